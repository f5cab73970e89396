"""The table of names against the reference classes, at full size on the meta device and at small sizes."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

import gguf
import pytest
import torch
from diffusers import AutoencoderKL as ReferenceVae
from diffusers import ZImageTransformer2DModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_vae_checkpoint,
    convert_z_image_transformer_checkpoint_to_diffusers,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from tests.weights import models
from zturbo.models.configs import TextEncoderConfig, TransformerConfig, VaeConfig
from zturbo.models.text_encoder import Qwen3
from zturbo.models.transformer import ZImageTransformer
from zturbo.models.vae import AutoencoderKL
from zturbo.weights import names, published
from zturbo.weights.load import load_weights
from zturbo.weights.names import NameTable, Shape

FULL_TRANSFORMER = TransformerConfig.from_dict(published.TRANSFORMER, "published")
FULL_TEXT_ENCODER = TextEncoderConfig.from_dict(published.TEXT_ENCODER, "published")
FULL_VAE = VaeConfig.from_dict(published.VAE, "published")


def registry_hash(shapes: Mapping[str, Iterable[int]]) -> str:
    """The key hash by which DiffSynth-Studio's registry knows a file: md5 over sorted `key:shape` and `key` strings."""
    keys = [f"{name}:{'_'.join(map(str, shape))}" for name, shape in shapes.items()]
    return hashlib.md5(",".join(sorted([*keys, *shapes])).encode()).hexdigest()


def shapes_of(table: NameTable) -> dict[str, Shape]:
    return {name: place.shape for name, place in table.placements.items()}


def reference_shapes(module: nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items() if name != "lm_head.weight"}


def assert_tiles(module: nn.Module, table: NameTable) -> None:
    """The placements fill every parameter of the module, each row exactly once."""
    rows: dict[str, list[range]] = {}
    for place in table.placements.values():
        rows.setdefault(place.parameter, []).append(place.rows)
        assert place.shape[1:] == tuple(module.get_parameter(place.parameter).shape[1:]), place
    assert rows.keys() == {name for name, _ in module.named_parameters()}
    for name, blocks in rows.items():
        blocks.sort(key=lambda block: block.start)
        assert blocks[0].start == 0
        assert blocks[-1].stop == module.get_parameter(name).shape[0]
        assert all(one.stop == other.start for one, other in pairwise(blocks)), name


def load(module: nn.Module, tensors: Iterable[tuple[str, torch.Tensor]], table: NameTable) -> None:
    load_weights(module, tensors, table.placements, source=Path("memory"), dtype=torch.float32, device="cpu")


def test_the_published_transformer_has_the_reference_names_and_shapes() -> None:
    with torch.device("meta"):
        expected = reference_shapes(ZImageTransformer2DModel(**published.TRANSFORMER))
        ours = ZImageTransformer(FULL_TRANSFORMER)
    table = names.transformer_names(FULL_TRANSFORMER, "diffusers")
    assert shapes_of(table) == expected
    assert len(table.placements) == 521
    assert models.parameter_count(table.placements) == 6_154_908_736
    assert registry_hash(shapes_of(table)) == "fc3a8a1247fe185ce116ccbe0e426c28"
    prefixed = table.prefixed("model.diffusion_model.")
    assert registry_hash(shapes_of(prefixed)) == "8cf241a0d32f93d5de368502a086852f"
    assert_tiles(ours, table)


def test_the_published_transformer_in_comfy_names() -> None:
    with torch.device("meta"):
        ours = ZImageTransformer(FULL_TRANSFORMER)
        expected = models.comfy(ZImageTransformer2DModel(**published.TRANSFORMER).state_dict())
    table = names.transformer_names(FULL_TRANSFORMER, "comfy")
    assert shapes_of(table) == {name: tuple(tensor.shape) for name, tensor in expected.items()}
    assert len(table.placements) == 453
    assert models.parameter_count(table.placements) == 6_154_908_736
    assert_tiles(ours, table)


def test_the_published_text_encoder_has_the_reference_names_and_shapes() -> None:
    with torch.device("meta"):
        expected = reference_shapes(Qwen3ForCausalLM(Qwen3Config(**published.TEXT_ENCODER)))
        ours = Qwen3(FULL_TEXT_ENCODER)
    table = names.text_encoder_names(FULL_TEXT_ENCODER, "transformers")
    assert shapes_of(table) == expected
    assert len(table.placements) == 398
    assert models.parameter_count(table.placements) == 4_022_468_096
    assert registry_hash(shapes_of(table)) == "0f050f62a88876fea6eae0a18dac5a2e"
    assert_tiles(ours, table)


def test_the_text_encoder_without_its_head_has_the_reference_names_and_shapes() -> None:
    with torch.device("meta"):
        expected = reference_shapes(Qwen3Model(Qwen3Config(**published.TEXT_ENCODER)))
    table = names.text_encoder_names(FULL_TEXT_ENCODER, "transformers base")
    assert shapes_of(table) == expected
    assert len(table.placements) == 398
    with torch.device("meta"):
        assert_tiles(Qwen3(FULL_TEXT_ENCODER), table)


def test_llama_cpp_names_are_those_of_the_gguf_package() -> None:
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, FULL_TEXT_ENCODER.num_hidden_layers)
    hf = names.text_encoder_names(FULL_TEXT_ENCODER, "transformers").placements
    expected = {theirs.get_name(name, (".weight",)): place for name, place in hf.items()}
    assert names.text_encoder_names(FULL_TEXT_ENCODER, "llama.cpp").placements == expected


def test_the_published_vae_has_the_reference_names_and_shapes() -> None:
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    with torch.device("meta"):
        reference = ReferenceVae(**published.VAE, **blocks)
        ours = AutoencoderKL(FULL_VAE)
    table = names.vae_names(FULL_VAE, "diffusers")
    assert shapes_of(table) == reference_shapes(reference)
    assert len(table.placements) == 244
    assert models.parameter_count(table.placements) == 34_274_208 + 49_545_475
    assert registry_hash(shapes_of(table)) == "1aafa3cc91716fb6b300cc1cd51b85a3"
    assert_tiles(ours, table)
    assert_tiles(ours, names.vae_names(FULL_VAE, "flux"))


def test_comfy_names_convert_with_diffusers_own_converter() -> None:
    config, state = models.transformer()
    ours = models.fused_transformer(state)
    table = names.transformer_names(config, "comfy")
    stored = {
        name: ours[place.parameter][place.first_row : place.rows.stop] for name, place in table.placements.items()
    }
    converted = convert_z_image_transformer_checkpoint_to_diffusers(dict(stored))
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[name], state[name]) for name in state)


def test_flux_vae_names_convert_with_diffusers_own_converter() -> None:
    config, state = models.vae()
    table = names.vae_names(config, "flux")
    stored = {name: state[place.parameter] for name, place in table.placements.items()}
    attention = {name for name in stored if ".attn_1." in name and name.endswith("weight") and "norm" not in name}
    assert len(attention) == 8
    stored |= {name: stored[name][:, :, None, None] for name in attention}
    widths = list(config.block_out_channels)
    settings = {"down_block_types": widths, "up_block_types": widths, "layers_per_block": config.layers_per_block}
    converted = convert_ldm_vae_checkpoint(stored, settings)
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[name].squeeze(), state[name].squeeze()) for name in state)


@pytest.mark.parametrize("prefix", names.TRANSFORMER_PREFIXES)
def test_layouts_make_the_round_trip(prefix: str) -> None:
    """diffusers -> ours -> Comfy -> ours -> diffusers, bit for bit."""
    config, state = models.transformer()
    split = names.transformer_names(config, "diffusers").prefixed(prefix)
    fused = names.transformer_names(config, "comfy").prefixed(prefix)
    with torch.device("meta"):
        first, second = ZImageTransformer(config), ZImageTransformer(config)
    original = {prefix + name: tensor for name, tensor in state.items()}
    load(first, original.items(), split)
    load(second, models.named_weights(first, fused.placements), fused)
    back = dict(models.named_weights(second, split.placements))
    assert back.keys() == original.keys()
    assert all(torch.equal(back[name], original[name]) for name in original)
    models.assert_same(models.parameters(first), models.fused_transformer(state))


def test_a_text_encoder_makes_the_round_trip() -> None:
    config, state = models.text_encoder()
    table = names.text_encoder_names(config, "transformers")
    with torch.device("meta"):
        module = Qwen3(config)
    load(module, state.items(), table)
    models.assert_same(models.parameters(module), models.fused_text_encoder(state))
    back = dict(models.named_weights(module, table.placements))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@given(
    heads=st.integers(1, 4),
    half=st.integers(1, 8),
    layers=st.integers(1, 3),
    refiners=st.integers(0, 2),
    patch=st.integers(1, 4),
    channels=st.integers(1, 8),
    width=st.integers(1, 64),
)
@settings(max_examples=25)
def test_any_transformer_of_the_family_is_tiled(
    heads: int, half: int, layers: int, refiners: int, patch: int, channels: int, width: int
) -> None:
    config = TransformerConfig(
        patch_size=patch, in_channels=channels, dim=heads * 6 * half, n_layers=layers, n_refiner_layers=refiners,
        n_heads=heads, norm_eps=1e-5, cap_feat_dim=width, rope_theta=256.0, t_scale=1000.0,
        axes_dims=(2 * half, 2 * half, 2 * half), axes_lens=(64, 64, 64),
    )  # fmt: skip
    with torch.device("meta"):
        ours = ZImageTransformer(config)
    for layout in ("diffusers", "comfy"):
        table = names.transformer_names(config, layout)
        assert_tiles(ours, table)
        (found,) = names.find_transformer(table.prefixed("diffusion_model.").placements)
        assert found == names.Found(layout, "diffusion_model.")
    assert models.parameter_count(table.placements) == sum(math.prod(p.shape) for p in ours.parameters())


def test_a_name_of_one_layout_is_never_part_of_another() -> None:
    split = names.transformer_names(FULL_TRANSFORMER, "diffusers").placements
    fused = names.transformer_names(FULL_TRANSFORMER, "comfy").placements
    for name in split.keys() & fused.keys():
        assert split[name] == fused[name]
    assert names.find_transformer(split) == [names.Found("diffusers", "")]
    assert names.find_transformer(fused) == [names.Found("comfy", "")]
    assert names.find_text_encoder(split) == names.find_vae(split) == []
    for layout in ("transformers", "transformers base", "llama.cpp"):
        encoder = names.text_encoder_names(FULL_TEXT_ENCODER, layout).placements
        assert names.find_text_encoder(encoder) == [names.Found(layout, "")]
        assert names.find_transformer(encoder) == names.find_vae(encoder) == []
