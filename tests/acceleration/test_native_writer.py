"""The C kernels writing: the logits of the eager language model, and so its words."""

import copy
from pathlib import Path

import pytest
import torch

from tests import reference
from tests.expansion.prompts import ENGLISH
from tests.parity.test_text_encoder import ours
from zturbo.acceleration import native, native_writer
from zturbo.acceleration.native_writer import MOST_BYTES, Scribe, unfit, weight_bytes
from zturbo.engine.engine import Engine, LoadOptions
from zturbo.engine.writing import Writer
from zturbo.models.configs import TextEncoderConfig
from zturbo.models.text_encoder import KVCache, Qwen3
from zturbo.weights import published

SHAPES = [{}, {"num_key_value_heads": 4}, {"head_dim": 48, "hidden_size": 112, "intermediate_size": 208}]


pytestmark = pytest.mark.usefixtures("native_kernels")


def scribe(model: Qwen3) -> Scribe:
    return Scribe(model, lambda logits: logits.clone())


@torch.inference_mode()
@pytest.mark.parametrize("changes", SHAPES, ids=["grouped queries", "plain", "wide"])
@pytest.mark.parametrize("prompt", [[5], [1, 2, 3], list(range(150))], ids=len)
def test_the_logits_are_the_eager_ones(changes: dict[str, int], prompt: list[int]) -> None:
    model = ours(reference.text_encoder(**changes))
    length = len(prompt) + 20
    follow = scribe(model).begin(length)
    cache = KVCache(model.config, 3, length, torch.float32, torch.device("cpu"))
    for tokens in ([prompt] * 3, *([[n], [n + 7], [2 * n]] for n in range(20))):
        expected = model.next_logits(torch.tensor(tokens), cache)
        torch.testing.assert_close(follow(tokens), expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_text_is_the_same_bytes_in_any_company() -> None:
    model = ours(reference.text_encoder())
    one, three = scribe(model).begin(40), scribe(model).begin(40)
    assert torch.equal(one([[1, 2, 3]])[0], three([[1, 2, 3]] * 3)[2])
    for n in range(20):
        assert torch.equal(one([[n]])[0], three([[n + 9], [n + 4], [n]])[2])


@torch.inference_mode()
def test_weights_in_bf16_are_read_exactly() -> None:
    model = ours(reference.text_encoder()).to(torch.bfloat16)
    found = scribe(model).begin(9)([[1, 2, 3]])
    assert torch.equal(found, scribe(copy.deepcopy(model).float()).begin(9)([[1, 2, 3]]))


def test_what_the_kernels_do_not_take_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unfit(ours(reference.text_encoder())) is None
    assert unfit(ours(reference.text_encoder(head_dim=24))) == "widths are multiples of 16 there"
    assert weight_bytes(TextEncoderConfig.from_dict(published.TEXT_ENCODER, "published")) > MOST_BYTES
    monkeypatch.setattr(native_writer, "TRIAL_LIMIT", 0.0)
    assert str(unfit(ours(reference.text_encoder()))).startswith("their result is off by ")


def test_weight_bytes_are_those_of_the_panels() -> None:
    model = ours(reference.text_encoder())
    panels = sum(one.panels.nbytes for one in scribe(model)._kept if isinstance(one, native.Packed))
    assert panels == weight_bytes(model.config)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nano_writes_the_same_words_with_the_kernels_and_without(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine.load("nano", LoadOptions(device="cpu", dtype=dtype))
    monkeypatch.setattr(native, "target", lambda: tmp_path / "none.so")
    native.library.cache_clear()
    try:
        plain = Engine.load("nano", LoadOptions(device="cpu", dtype="float32"))
    finally:
        native.library.cache_clear()
    monkeypatch.undo()
    assert isinstance(engine.writer, Writer)
    assert isinstance(plain.writer, Writer)
    assert engine.writer.words.endswith("; in fp32, native kernels")
    assert plain.writer.words.endswith("no native kernels: they are not built yet; servers build them while they load")
    for prompt in ENGLISH[:20]:
        assert engine.writer.expand(prompt).text == plain.writer.expand(prompt).text
