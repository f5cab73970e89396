"""Writing through recorded steps: the same words as with the growing cache, whatever was written before.

On a CPU a stand-in records; the tests marked gpu record with CUDA.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests import reference
from tests.acceleration.test_graphs import StandIn
from tests.parity.test_text_encoder import ours
from zturbo.acceleration import decoding
from zturbo.acceleration.decoding import MOST_SLOTS, SLOTS, Decoder, Follow
from zturbo.acceleration.graphs import CudaRecorder, Recorder
from zturbo.engine.engine import Engine, LoadOptions, _record_tokens
from zturbo.engine.plan import GIB, Placement
from zturbo.engine.writing import Writer
from zturbo.errors import Cancelled
from zturbo.models.configs import TextEncoderConfig
from zturbo.models.text_encoder import KVCache, Qwen3
from zturbo.weights import published

PROMPTS = ("a red boat", "two cats in a city at night", "a small house with a red door and a green tree on the left")


def double(logits: torch.Tensor) -> torch.Tensor:
    """In the place of a ranking: shows the logits, and that it is a part of the step."""
    return logits * 2


def decoder(recorder: Recorder | None = None, rows: int = 2, **config: int) -> tuple[Qwen3, Decoder]:
    model = ours(reference.text_encoder(**config))
    return model, Decoder(model, double, recorder or StandIn(), rows)


def fed(follow: Follow | None, prompt: list[int], count: int) -> list[torch.Tensor]:
    """Logits of a prompt and of `count` tokens after it, the same in all of two rows but for a shift."""
    assert follow is not None
    found = [follow([prompt, prompt]).clone()]
    return found + [follow([[index], [index + 7]]).clone() for index in range(count)]


def grown(model: Qwen3, prompt: list[int], count: int) -> list[torch.Tensor]:
    """The same, by the growing cache."""
    weight = model.model.embed_tokens.weight
    cache = KVCache(model.config, 2, len(prompt) + count, weight.dtype, weight.device)
    tokens = [[prompt, prompt], *([[index], [index + 7]] for index in range(count))]
    return [model.next_logits(torch.tensor(one, device=weight.device), cache) * 2 for one in tokens]


@torch.inference_mode()
@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 4}], ids=["grouped queries", "plain"])
def test_the_logits_are_those_of_the_growing_cache(changes: dict[str, int]) -> None:
    recorder = StandIn()
    model, steps = decoder(recorder, **changes)
    for prompt, count in (([1, 2, 3], 30), (list(range(200)), 50), ([5], 12)):  # each in what the one before left
        for found, expected in zip(fed(steps.begin(SLOTS), prompt, count), grown(model, prompt, count), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert len(recorder.recorded) == len(steps) == 1


@torch.inference_mode()
def test_a_text_does_not_depend_on_what_was_written_before() -> None:
    """Bit for bit: not on other texts, other lengths, the graph being there, or a text that ended in nonsense."""
    _, fresh = decoder()
    expected = fed(fresh.begin(300), [1, 2, 3], 9)
    _, used = decoder()
    for length in (300, 1000, 20, 300):
        follow = used.begin(length)
        fed(follow, list(range(length % 90)), 9)
        used._memory.fill_(torch.nan)
    assert all(torch.equal(*pair) for pair in zip(fed(used.begin(300), [1, 2, 3], 9), expected, strict=True))


@torch.inference_mode()
def test_lengths_are_few_and_share_one_memory() -> None:
    recorder = StandIn()
    model, steps = decoder(recorder)
    for length in (1, SLOTS, SLOTS + 1, MOST_SLOTS - 1, MOST_SLOTS, 2 * SLOTS):
        fed(steps.begin(length), [1, 2], 2)
    assert len(steps) == len(recorder.recorded) == 3
    caches = [one.cache.states for one in steps._steps.values()]
    assert [cache.shape[4] for cache in caches] == [SLOTS, 2 * SLOTS, MOST_SLOTS]
    assert len({cache.data_ptr() for cache in caches}) == 1
    assert steps.begin(MOST_SLOTS + 1) is None
    assert caches[-1].nbytes == KVCache.size(model.config, 2, MOST_SLOTS) * 4


@torch.inference_mode()
def test_each_length_is_recorded_at_its_first_token() -> None:
    """So that all of a text, and every later one, is computed in one way."""
    recorder = StandIn()
    _, steps = decoder(recorder)
    follow = steps.begin(9)
    assert follow is not None
    follow([[1, 2], [1, 2]])
    assert len(recorder.recorded) == 0
    follow([[3], [4]])
    assert len(recorder.recorded) == 1


@torch.inference_mode()
def test_what_cannot_be_recorded_is_written_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    model, steps = decoder(recorder := StandIn(refuses=True))
    for length in (SLOTS, 2 * SLOTS, SLOTS):
        found, expected = fed(steps.begin(length), [1, 2, 3], 5), grown(model, [1, 2, 3], 5)
        for pair in zip(found, expected, strict=True):
            torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)
    assert steps.failure is not None
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # told once, not tried again
    assert len(steps) == len(recorder.recorded) == 0


def test_why_steps_are_not_recorded() -> None:
    assert decoding.unfit(True, GIB, GIB) is None
    assert decoding.unfit(False, GIB, GIB) == "its layers are on the host"
    assert decoding.unfit(True, GIB, -1) == "a graph needs 1.00 GiB, 0.00 GiB are left"


def test_memory_of_the_published_model() -> None:
    """The cache by hand: 36 layers, keys and values, 8 heads of 128, 1024 slots, 2 bytes."""
    config = TextEncoderConfig.from_dict(published.TEXT_ENCODER, "published")
    beside = decoding.memory(config, 1, 2) - 36 * 2 * 8 * 128 * 1024 * 2
    assert 64 * 2**20 < beside < 128 * 2**20


@pytest.mark.parametrize(
    ("placement", "spare", "words"),
    [
        ("resident", GIB, "by the text encoder; a token is a CUDA graph"),
        ("resident", 0, "by the text encoder; no CUDA graph of a token: a graph needs 0.07 GiB, 0.00 GiB are left"),
        ("streamed", GIB, "by the text encoder; no CUDA graph of a token: its layers are on the host"),
    ],
)
def test_the_engine_records_on_cuda_where_it_can_and_says_so(
    placement: Placement, spare: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the recorder, and a pipeline that calls its device CUDA."""
    engine = Engine.load("nano", LoadOptions(device="cpu"))
    assert engine.writer is not None
    engine.writer = Writer(engine.pipeline, engine.writer.recipe, engine.model.version)  # as on CUDA
    plan = replace(engine.plan, text_encoder_placement=placement)
    assert (_record_tokens(engine.writer, plan, spare), engine.writer.words) == (0, "by the text encoder")
    monkeypatch.setattr("zturbo.engine.engine.CudaRecorder", lambda _device: StandIn())
    engine.pipeline.device = torch.device("cuda")
    taken = _record_tokens(engine.writer, plan, spare)
    assert f"expansion  {words}\n" in engine.block()
    assert (engine.writer.decoder is not None) == (taken > 0) == words.endswith("is a CUDA graph")


@pytest.fixture(scope="module")
def nano() -> Engine:
    return Engine.load("nano", LoadOptions(device="cpu", dtype="float32"))


def writers(engine: Engine, recorder: Recorder) -> tuple[Writer, Writer]:
    """Two that remember nothing yet: by the growing cache, and by recorded steps."""
    assert engine.writer is not None
    plain, recorded = (Writer(engine.pipeline, engine.writer.recipe, engine.model.version) for _ in range(2))
    recorded.record(recorder)
    return plain, recorded


def test_the_same_words_are_written(nano: Engine) -> None:
    """Three candidates at a time, each with its own end."""
    plain, recorded = writers(nano, recorder := StandIn())
    for prompt in PROMPTS:
        expected = plain._answers(prompt, lambda: False)
        assert recorded._answers(prompt, lambda: False) == expected
        assert len({text for text, _ in expected}) > 1
        assert recorded.expand(prompt).text == plain.expand(prompt).text != prompt
    assert len(recorder.recorded) == 1


def test_a_text_too_long_for_the_graphs_is_written_without(nano: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, recorded = writers(nano, recorder := StandIn())
    monkeypatch.setattr(decoding, "MOST_SLOTS", 16)
    assert recorded.expand(PROMPTS[0]).text == plain.expand(PROMPTS[0]).text
    assert not recorder.recorded


class Counting(StandIn):
    """Counts the replays of what it recorded."""

    replays = 0

    def record(self, work: Callable[[], torch.Tensor]) -> Any:
        made = super().record(work)
        again = made.replay

        def replay() -> None:
            self.replays += 1
            again()

        made.replay = replay  # type: ignore[method-assign]
        return made


def test_no_token_is_computed_after_the_stop_of_the_last_candidate(nano: Engine) -> None:
    _, recorded = writers(nano, recorder := Counting())
    read = recorded.pipeline.tokenizer.tokenizer.encode(recorded.chat(PROMPTS[0]), add_special_tokens=False).ids
    rows = recorded.write(read, recorded._chances(PROMPTS[0]), lambda: False)
    longest = max(len(row) for row in rows)
    assert longest < recorded.recipe.longest
    assert not {token for row in rows for token in row} & set(recorded.stops)
    assert recorder.replays == longest


def test_cancelled_between_two_tokens_and_then_written_whole(nano: Engine) -> None:
    plain, recorded = writers(nano, recorder := Counting())
    asked: list[int] = []
    with pytest.raises(Cancelled):
        recorded.expand(PROMPTS[0], lambda: asked.append(1) or len(asked) > 4)  # type: ignore[func-returns-value]
    assert recorder.replays == 3  # the prompt gave the first of four tokens
    assert recorded.expand(PROMPTS[0]).text == plain.expand(PROMPTS[0]).text


def test_a_replay_that_fails_leaves_the_prompt_and_the_next_is_written(nano: Engine) -> None:
    plain, recorded = writers(nano, recorder := StandIn())
    recorded.expand(PROMPTS[0])
    work = recorder.recorded[0].work
    recorder.recorded[0].work = lambda: (_ for _ in ()).throw(RuntimeError("device"))
    assert recorded.expand(PROMPTS[1]).reason == "the language model failed: RuntimeError"
    recorder.recorded[0].work = work
    assert recorded.expand(PROMPTS[1]).text == plain.expand(PROMPTS[1]).text


@pytest.mark.gpu
@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replays_are_bit_equal_to_the_same_steps_launch_by_launch(dtype: torch.dtype) -> None:
    config = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 128}
    theirs = reference.text_encoder(**config)
    model = ours(theirs).to("cuda", dtype)
    recorded = Decoder(model, double, CudaRecorder(torch.device("cuda")), 2)
    launched = Decoder(model, double, StandIn(refuses=True), 2)
    for length, prompt in ((200, [1, 2, 3]), (900, list(range(300))), (200, [4, 5])):
        pairs = zip(fed(recorded.begin(length), prompt, 40), fed(launched.begin(length), prompt, 40), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
    assert len(recorded) == 2
    assert recorded.failure is None


@pytest.mark.gpu
@torch.inference_mode()
def test_on_the_device_the_logits_are_those_of_the_growing_cache() -> None:
    model = ours(reference.text_encoder()).to("cuda")
    steps = Decoder(model, double, CudaRecorder(torch.device("cuda")), 2)
    for found, expected in zip(fed(steps.begin(200), [1, 2, 3], 30), grown(model, [1, 2, 3], 30), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_nano_writes_by_graphs_on_the_device() -> None:
    engine = Engine.load("nano", LoadOptions(device="cuda", dtype="float32"))
    assert engine.writer is not None
    assert engine.writer.words == "by the text encoder; a token is a CUDA graph"
    plain = Writer(engine.pipeline, engine.writer.recipe, engine.model.version)
    for prompt in PROMPTS:
        assert engine.writer.expand(prompt).text == plain.expand(prompt).text
    assert isinstance(engine.writer.decoder, Decoder)
    assert engine.writer.decoder.failure is None
