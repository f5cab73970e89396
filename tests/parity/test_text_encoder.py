"""Our Qwen3 against transformers' Qwen3ForCausalLM."""

from pathlib import Path

import pytest
import torch
from transformers import Qwen3ForCausalLM

from tests import reference
from zturbo.models.configs import TextEncoderConfig
from zturbo.models.text_encoder import KVCache, Qwen3
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
