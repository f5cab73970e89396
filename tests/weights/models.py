"""Reference weights for these tests, and what our modules must hold once they are loaded.

The recipes here are written from the format's description, by hand and apart from
`zturbo.weights.names`, so that a wrong table cannot prove itself.
"""

import functools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests import reference
from zturbo.models.configs import TextEncoderConfig, TransformerConfig, VaeConfig
from zturbo.models.text_encoder import Qwen3
from zturbo.models.transformer import ZImageTransformer
from zturbo.models.vae import AutoencoderKL
from zturbo.weights.checkpoint import Component
from zturbo.weights.names import Placement

State = dict[str, Tensor]


@functools.cache
def transformer() -> tuple[TransformerConfig, State]:
    """A small member of the family: heads of 128, so that a single file without config can be opened."""
    changes: dict[str, Any] = {
        "dim": 256,
        "axes_dims": [32, 48, 48],
        "cap_feat_dim": 64,
        "n_layers": 2,
        "n_refiner_layers": 1,
    }
    model = reference.transformer(**changes)
    return TransformerConfig.from_dict(json.loads(model.to_json_string()), "tiny"), dict(model.state_dict())


@functools.cache
def text_encoder() -> tuple[TextEncoderConfig, State]:
    model = reference.text_encoder(hidden_size=64, intermediate_size=96, vocab_size=96)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    return TextEncoderConfig.from_dict(model.config.to_dict(), "tiny"), state


@functools.cache
def vae() -> tuple[VaeConfig, State]:
    model = reference.vae(block_out_channels=(16, 24, 32))
    return VaeConfig.from_dict(json.loads(model.to_json_string()), "tiny"), dict(model.state_dict())


def fused_transformer(state: Mapping[str, Tensor]) -> State:
    """diffusers' tensors as our parameters."""
    out = dict(state)
    for name in state:
        if name.endswith("attention.to_q.weight"):
            block = name.removesuffix("attention.to_q.weight")
            parts = [out.pop(f"{block}attention.to_{letter}.weight") for letter in "qkv"]
            out[f"{block}attention.to_qkv.weight"] = torch.cat(parts)
            ffn = [out.pop(f"{block}feed_forward.{w}.weight") for w in ("w1", "w3")]
            out[f"{block}feed_forward.w13.weight"] = torch.cat(ffn)
    return out


def fused_text_encoder(state: Mapping[str, Tensor]) -> State:
    out = dict(state)
    for name in state:
        if name.endswith("self_attn.q_proj.weight"):
            layer = name.removesuffix("self_attn.q_proj.weight")
            parts = [out.pop(f"{layer}self_attn.{letter}_proj.weight") for letter in "qkv"]
            out[f"{layer}self_attn.qkv_proj.weight"] = torch.cat(parts)
            mlp = [out.pop(f"{layer}mlp.{part}_proj.weight") for part in ("gate", "up")]
            out[f"{layer}mlp.gate_up_proj.weight"] = torch.cat(mlp)
    return out


def comfy(state: Mapping[str, Tensor], prefix: str = "") -> State:
    """diffusers' tensors in the names of ComfyUI's repack."""
    out: State = {}
    for name, tensor in state.items():
        if ".to_k." in name or ".to_v." in name:
            continue
        if ".to_q." in name:
            tensor = torch.cat([state[name.replace("to_q", f"to_{letter}")] for letter in "qkv"])
        for old, new in (
            ("attention.to_q", "attention.qkv"), ("attention.to_out.0", "attention.out"),
            ("norm_q", "q_norm"), ("norm_k", "k_norm"),
            ("all_x_embedder.2-1", "x_embedder"), ("all_final_layer.2-1", "final_layer"),
        ):  # fmt: skip
            name = name.replace(old, new)
        out[prefix + name] = tensor
    return out


def save(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata)
    return path


def load_transformer(component: Component[TransformerConfig], dtype: torch.dtype = torch.float32) -> State:
    with torch.device("meta"):
        module = ZImageTransformer(component.config)
    component.load_into(module, dtype=dtype, device="cpu")
    return parameters(module)


def load_text_encoder(component: Component[TextEncoderConfig], dtype: torch.dtype = torch.float32) -> State:
    with torch.device("meta"):
        module = Qwen3(component.config)
    component.load_into(module, dtype=dtype, device="cpu")
    return parameters(module)


def load_vae(component: Component[VaeConfig], dtype: torch.dtype = torch.float32) -> State:
    with torch.device("meta"):
        module = AutoencoderKL(component.config)
    component.load_into(module, dtype=dtype, device="cpu")
    return parameters(module)


def parameters(module: nn.Module) -> State:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def assert_same(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
    """Every parameter, bit for bit, in the dtype that was asked for."""
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        assert tensor.dtype == dtype, name
        assert tensor.shape == expected[name].shape, name
        assert torch.equal(tensor, expected[name].to(dtype)), name


def named_weights(module: nn.Module, placements: Mapping[str, Placement]) -> Iterator[tuple[str, torch.Tensor]]:
    """The way back: (checkpoint name, tensor) for a module's parameters, as views of them."""
    for name, placement in placements.items():
        rows = module.get_parameter(placement.parameter).detach()[placement.first_row : placement.rows.stop]
        yield name, rows.reshape(placement.shape)


def parameter_count(placements: Mapping[str, Placement]) -> int:
    """Parameters of a component, from its names alone."""
    return sum(math.prod(placement.shape) for placement in placements.values())
