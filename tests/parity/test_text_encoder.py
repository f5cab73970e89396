"""Our Qwen3 against transformers' Qwen3ForCausalLM."""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.backends import cuda
from transformers import Qwen3ForCausalLM

from tests import reference
from zturbo.models.configs import TextEncoderConfig
from zturbo.models.text_encoder import CacheStep, KVCache, Qwen3, rope_tables, rotate_halves
from zturbo.weights.load import load_weights
from zturbo.weights.names import text_encoder_names

CONFIGS = {
    "grouped queries": {},
    "plain": {"num_key_value_heads": 4},
    "wide heads": {"head_dim": 64, "num_hidden_layers": 2},
}


def ours(theirs: Qwen3ForCausalLM) -> Qwen3:
    config = TextEncoderConfig.from_dict(theirs.config.to_dict(), "reference")
    with torch.device("meta"):
        model = Qwen3(config).eval()
    table = text_encoder_names(config, "transformers")
    state = {name: value for name, value in theirs.state_dict().items() if name in table.placements}
    load_weights(model, state.items(), table.placements, source=Path("reference"), dtype=torch.float32, device="cpu")
    return model


def ids(count: int, batch: int = 2) -> torch.Tensor:
    return torch.randint(0, 320, (batch, count), generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("length", [1, 9, 512])
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_hidden_states_and_logits(changes: dict[str, int], length: int) -> None:
    theirs = reference.text_encoder(**changes)
    model, tokens = ours(theirs), ids(length)
    expected = theirs(tokens, output_hidden_states=True)
    assert torch.allclose(model.encode(tokens), expected.hidden_states[-2], rtol=1e-5, atol=1e-5)
    assert torch.allclose(model(tokens), expected.logits, rtol=1e-4, atol=1e-4)


def kernels_that_may_be_asked() -> tuple[bool, ...]:
    names = ("cudnn", "flash", "mem_efficient", "math")
    return tuple(getattr(cuda, f"{name}_sdp_enabled")() for name in names)


@pytest.mark.parametrize(("device", "cudnn"), [("cuda", False), ("cpu", True)])
@torch.no_grad()
def test_a_prompt_of_a_new_length_waits_for_no_plan_of_cudnn(device: str, cudnn: bool) -> None:
    model, before = ours(reference.text_encoder()), kernels_that_may_be_asked()
    found: set[tuple[bool, ...]] = set()
    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_pre_hook(lambda *_: found.add(kernels_that_may_be_asked()))  # type: ignore[union-attr]
    with FakeTensorMode():  # shapes and devices alone
        weights = {name: torch.empty(one.shape, device=device) for name, one in model.named_parameters()}
        tokens = torch.zeros(1, 9, dtype=torch.int64, device=device)
        assert torch.func.functional_call(model, weights, tokens).device.type == device
    assert found == {(cudnn, True, True, True)}
    assert kernels_that_may_be_asked() == before


@torch.no_grad()
def test_the_encoder_stops_before_the_last_layer() -> None:
    """The output that conditions the picture is not the last layer's, nor a normed one."""
    theirs = reference.text_encoder()
    states = theirs(ids(9), output_hidden_states=True).hidden_states
    found = ours(theirs).encode(ids(9))
    assert not torch.allclose(found, states[-1], rtol=1e-2, atol=1e-2)
    assert not torch.allclose(found, states[-3], rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_token_by_token_with_a_cache() -> None:
    model, tokens = ours(reference.text_encoder()), ids(24)
    cache = KVCache(model.config, batch=2, length=24, dtype=torch.float32, device=torch.device("cpu"))
    parts = [model(tokens[:, :10], cache), *(model(tokens[:, i : i + 1], cache) for i in range(10, 24))]
    assert cache.length == 24
    assert torch.allclose(torch.cat(parts, dim=1), model(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
@torch.inference_mode()
def test_steps_over_fixed_slots_give_the_logits_of_the_growing_cache(changes: dict[str, int]) -> None:
    """The position is on the device; what lies in later slots is hidden, whatever it is."""
    model, tokens = ours(reference.text_encoder(**changes)), ids(24)
    growing, fixed = (KVCache(model.config, 2, length, torch.float32, torch.device("cpu")) for length in (24, 64))
    fixed.states.fill_(3.0)
    assert torch.equal(model(tokens[:, :10], growing), model(tokens[:, :10], fixed))
    for index in range(10, 24):
        token = tokens[:, index : index + 1]
        found = model(token, CacheStep(fixed, torch.tensor([index])))
        torch.testing.assert_close(found, model(token, growing), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fixed.states[..., :24, :], growing.states, rtol=1e-5, atol=1e-5)
    assert (fixed.states[..., 24:, :] == 3.0).all()
    assert fixed.length == 10, "a step leaves the length to who counts"


@torch.inference_mode()
def test_a_step_repeated_changes_nothing() -> None:
    """Recording runs a step more than once."""
    model, tokens = ours(reference.text_encoder()), ids(11)
    cache = KVCache(model.config, 2, 16, torch.float32, torch.device("cpu"), torch.zeros(10_000))
    model(tokens[:, :10], cache)
    first, again = (model(tokens[:, 10:], CacheStep(cache, torch.tensor([10]))) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_is_the_published_one_bit_for_bit(dtype: torch.dtype) -> None:
    """Tables made once, a roll and a folded sign, in the place of each position's angles, two halves and a negation."""
    config = ours(reference.text_encoder()).config
    x = torch.randn(2, 3, 50, config.head_dim, generator=torch.Generator().manual_seed(1)).to(dtype)
    exponent = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    first, second = x.chunk(2, dim=-1)
    tables = rope_tables(config, 50, dtype, torch.device("cpu"))
    for position in range(50):
        angles = (torch.tensor([float(position)]) * (1.0 / config.rope_theta**exponent)).repeat(2)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        expected = x * cos + torch.cat((-second, first), dim=-1) * sin
        found = rotate_halves(x, *(table[position : position + 1] for table in tables))
        assert torch.equal(found, expected)
