"""Configs of files that carry none: what tensor shapes tell, completed by the published values.

Shapes give widths and depths. Rotary bases, epsilons and the VAE's scaling leave no trace in them, so those come
from the published configs, and only where the shapes are those the values were published for.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zturbo.errors import WeightsError
from zturbo.models.configs import TextEncoderConfig, TransformerConfig, VaeConfig
from zturbo.weights import published
from zturbo.weights.names import Shape, TextEncoderLayout, text_encoder_root

USE_A_FOLDER = "use a folder with the config.json files beside the weights"


class _Shapes:
    """Shapes of one component, its prefix removed, with strict look-ups."""

    def __init__(self, shapes: Mapping[str, Shape], source: Path) -> None:
        self.shapes, self.source = shapes, source

    def of(self, name: str, axes: int) -> Shape:
        shape = self.shapes.get(name)
        if shape is None or len(shape) != axes or not all(shape):
            got = "is missing" if shape is None else f"has the shape {list(shape)}"
            raise WeightsError(f"{self.source}: {name} {got}, so the model's config cannot be told", USE_A_FOLDER)
        return shape

    def count(self, pattern: str) -> int:
        """How many members a numbered list has: 1 + the highest N in names matching `pattern`, or 0."""
        found = (re.match(pattern, name) for name in self.shapes)
        # Four digits are beyond any model; without a bound a hostile name would ask for a table of that length.
        return max((int(match[1]) + 1 for match in found if match and len(match[1]) <= 4), default=0)

    def unknown(self, what: str) -> WeightsError:
        return WeightsError(f"{self.source}: {what}", USE_A_FOLDER)


def infer_transformer(shapes: Mapping[str, Shape], layout: str, source: Path) -> TransformerConfig:
    """Widths and depths from shapes, the rest from the published family.

    Raises:
        WeightsError: a telling tensor is missing, or the head width is not the family's 128.
    """
    s = _Shapes(shapes, source)
    comfy = layout == "comfy"
    dim, cap_feat_dim = s.of("cap_embedder.1.weight", 2)
    (head_dim,) = s.of(f"layers.0.attention.{'q_norm' if comfy else 'norm_q'}.weight", 1)
    if head_dim != published.HEAD_DIM or dim % head_dim:
        raise s.unknown(f"heads of {head_dim} values in width {dim}; a file without config needs {published.HEAD_DIM}")
    # Comfy's name does not say the patch size: the family has only one.
    patch = 2 if comfy else s.count(r"all_x_embedder\.(\d+)-1\.weight$") - 1
    patch_dim = s.of("x_embedder.weight" if comfy else f"all_x_embedder.{patch}-1.weight", 2)[1]
    if patch < 1 or patch_dim % (patch * patch):
        raise s.unknown(f"image tokens of {patch_dim} values do not fit patches of {patch} x {patch}")
    members: dict[str, Any] = {
        **published.TRANSFORMER,
        "all_patch_size": [patch],
        "in_channels": patch_dim // (patch * patch),
        "dim": dim,
        "n_layers": s.count(r"layers\.(\d+)\."),
        "n_refiner_layers": s.count(r"noise_refiner\.(\d+)\."),
        "n_heads": dim // head_dim,
        "n_kv_heads": dim // head_dim,
        "cap_feat_dim": cap_feat_dim,
    }
    return TransformerConfig.from_dict(members, f"{source} (read from tensor shapes)")


def infer_text_encoder(shapes: Mapping[str, Shape], layout: TextEncoderLayout, source: Path) -> TextEncoderConfig:
    """The published Qwen3-4B config, where the shapes (in one of transformers' layouts) are exactly its own.

    Raises:
        WeightsError: the shapes are those of another size of Qwen3.
    """
    s = _Shapes(shapes, source)
    root = text_encoder_root(layout)
    vocab, hidden = s.of(f"{root}embed_tokens.weight", 2)
    layer = f"{root}layers.0"
    (head_dim,) = s.of(f"{layer}.self_attn.q_norm.weight", 1)
    members: dict[str, Any] = {
        **published.TEXT_ENCODER,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": s.of(f"{layer}.mlp.gate_proj.weight", 2)[0],
        "num_hidden_layers": s.count(rf"{re.escape(root)}layers\.(\d+)\."),
        "num_attention_heads": s.of(f"{layer}.self_attn.q_proj.weight", 2)[0] // head_dim,
        "num_key_value_heads": s.of(f"{layer}.self_attn.k_proj.weight", 2)[0] // head_dim,
        "head_dim": head_dim,
    }
    if members != published.TEXT_ENCODER:
        other = {name: value for name, value in members.items() if value != published.TEXT_ENCODER[name]}
        raise s.unknown(f"is not the published Qwen3-4B text encoder: {other}")
    return TextEncoderConfig.from_dict(members, f"{source} (read from tensor shapes)")


def text_encoder_from_gguf(metadata: Mapping[str, Any], shapes: Mapping[str, Shape], source: Path) -> TextEncoderConfig:
    """llama.cpp's own members of a qwen3 file; the vocabulary is the embedding's length.

    Raises:
        WeightsError: the embedding is missing.
        ConfigError: a member is missing or wrong.
    """
    vocab, _ = _Shapes(shapes, source).of("token_embd.weight", 2)
    named = {
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "head_dim": "attention.key_length",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon",
        "rope_theta": "rope.freq_base",
    }
    members = {ours: metadata[f"qwen3.{key}"] for ours, key in named.items() if f"qwen3.{key}" in metadata}
    if "rms_norm_eps" in members:  # stored in fp32; the decimal it was written from is meant
        members["rms_norm_eps"] = float(f"{members['rms_norm_eps']:.6g}")
    return TextEncoderConfig.from_dict({"vocab_size": vocab, **members}, f"{source} (GGUF metadata)")


def infer_vae(shapes: Mapping[str, Shape], layout: str, source: Path) -> VaeConfig:
    """The published Flux VAE config, where the shapes are its own.

    Raises:
        WeightsError: another VAE, whose scaling cannot be told from a file without a config.
    """
    s = _Shapes(shapes, source)
    down, resnet = ("encoder.down", "block") if layout == "flux" else ("encoder.down_blocks", "resnets")
    levels = s.count(rf"{re.escape(down)}\.(\d+)\.")
    members: dict[str, Any] = {
        **published.VAE,
        "latent_channels": s.of("decoder.conv_in.weight", 4)[1],
        "block_out_channels": [s.of(f"{down}.{i}.{resnet}.0.conv1.weight", 4)[0] for i in range(levels)],
        "layers_per_block": s.count(rf"{re.escape(down)}\.0\.{resnet}\.(\d+)\."),
    }
    if members != published.VAE:
        other = {name: value for name, value in members.items() if value != published.VAE[name]}
        raise s.unknown(f"is not the published Flux VAE: {other}")
    return VaeConfig.from_dict(members, f"{source} (read from tensor shapes)")
