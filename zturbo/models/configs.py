"""Shapes of the networks, read strictly from a checkpoint's own JSON files.

A model's shape comes from its file and from nowhere else: a member that is missing or of the wrong
type raises `ConfigError` with the file and the member. Members that do not shape the computation are ignored.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zturbo.errors import ConfigError, WeightsNotFound

MAX_JSON_BYTES = 1 << 20
SEQUENCE_MULTIPLE = 32
"""Captions and image tokens are padded to a multiple of this many slots (Z-Image, `SEQ_MULTI_OF`)."""


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object from a file.

    Raises:
        WeightsNotFound: no such file.
        ConfigError: the file is not a JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ConfigError(f"{path} has {path.stat().st_size} bytes; a config file has at most {MAX_JSON_BYTES}")
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise WeightsNotFound(
            f"{path} does not exist", "a model folder has the layout of a diffusers ZImagePipeline"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


class _Members:
    """Strict access to the members of one config object."""

    def __init__(self, members: Mapping[str, Any], source: str) -> None:
        self._members = members
        self._source = source

    def fail(self, name: str, rule: str) -> ConfigError:
        return ConfigError(f"{self._source}: {name} must be {rule}, received {self._members.get(name)!r}")

    def _get(self, name: str) -> Any:
        if name not in self._members:
            raise ConfigError(f"{self._source}: the member {name!r} is missing")
        return self._members[name]

    def integer(self, name: str, least: int = 1, most: int = 1_000_000) -> int:
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.fail(name, f"an integer from {least} to {most}")
        return value

    def number(self, name: str, *, positive: bool = True) -> float:
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
            raise self.fail(name, "a finite number")
        if positive and value <= 0:
            raise self.fail(name, "above 0")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self._get(name)
        if not isinstance(value, bool):
            raise self.fail(name, "true or false")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        value = self._get(name)
        if (
            not isinstance(value, list)
            or not value
            or not all(type(item) is int and 0 < item <= 1_000_000 for item in value)
        ):
            raise self.fail(name, "a list of positive integers")
        return tuple(value)

    def demand(self, name: str, allowed: object) -> None:
        """The member, where present, must have the one value this implementation computes."""
        if name in self._members and self._members[name] != allowed:
            raise self.fail(name, repr(allowed))


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """Shape of a Z-Image S3-DiT (`transformer/config.json` of diffusers' ZImageTransformer2DModel)."""

    patch_size: int
    in_channels: int
    dim: int
    n_layers: int
    n_refiner_layers: int
    n_heads: int
    norm_eps: float
    cap_feat_dim: int
    rope_theta: float
    t_scale: float
    axes_dims: tuple[int, int, int]
    axes_lens: tuple[int, int, int]

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def hidden_dim(self) -> int:
        """Width of the feed-forward layer: int(dim * 8 / 3)."""
        return int(self.dim / 3 * 8)

    @property
    def modulation_dim(self) -> int:
        """Width of the timestep embedding: min(dim, 256)."""
        return min(self.dim, 256)

    @property
    def patch_dim(self) -> int:
        """Values per image token: patch * patch * channels."""
        return self.patch_size * self.patch_size * self.in_channels

    @property
    def max_caption_tokens(self) -> int:
        """Longest caption whose pad slots and image position still lie in the table of positions."""
        return (self.axes_lens[0] - 2) // SEQUENCE_MULTIPLE * SEQUENCE_MULTIPLE

    @classmethod
    def from_dict(cls, members: Mapping[str, Any], source: str) -> "TransformerConfig":
        """Raises `ConfigError` where a member is missing, wrong, or asks for a variant that Turbo does not have."""
        m = _Members(members, source)
        for name, allowed in (("all_f_patch_size", [1]), ("qk_norm", True), ("siglip_feat_dim", None)):
            m.demand(name, allowed)
        patches, axes, lens = m.integers("all_patch_size"), m.integers("axes_dims"), m.integers("axes_lens")
        if len(patches) != 1:
            raise m.fail("all_patch_size", "a list of one patch size")
        if len(axes) != 3 or len(lens) != 3 or any(axis % 2 for axis in axes):
            raise m.fail("axes_dims", "three even numbers, with three axes_lens beside them")
        config = cls(
            patch_size=patches[0],
            in_channels=m.integer("in_channels"),
            dim=m.integer("dim"),
            n_layers=m.integer("n_layers"),
            n_refiner_layers=m.integer("n_refiner_layers", least=0),
            n_heads=m.integer("n_heads"),
            norm_eps=m.number("norm_eps"),
            cap_feat_dim=m.integer("cap_feat_dim"),
            rope_theta=m.number("rope_theta"),
            t_scale=m.number("t_scale"),
            axes_dims=(axes[0], axes[1], axes[2]),
            axes_lens=(lens[0], lens[1], lens[2]),
        )
        if config.n_heads != m.integer("n_kv_heads"):
            raise m.fail("n_kv_heads", f"equal to n_heads ({config.n_heads}): this family has no grouped queries")
        if config.dim % config.n_heads or sum(axes) != config.head_dim:
            raise m.fail("axes_dims", f"of sum dim / n_heads = {config.dim} / {config.n_heads}")
        return config


@dataclass(frozen=True, slots=True)
class TextEncoderConfig:
    """Shape of a Qwen3 causal language model (`text_encoder/config.json` of transformers' Qwen3ForCausalLM)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float

    @classmethod
    def from_dict(cls, members: Mapping[str, Any], source: str) -> "TextEncoderConfig":
        """Accepts both spellings of the rotary base: `rope_theta` (4.x) and `rope_parameters` (5.x)."""
        rope = members.get("rope_parameters") or members.get("rope_scaling") or {}
        if not isinstance(rope, Mapping):
            raise ConfigError(f"{source}: rope_parameters must be an object, received {rope!r}")
        if "rope_theta" in rope:
            members = {**members, "rope_theta": rope["rope_theta"]}
        m = _Members(members, source)
        for name in ("rope_type", "type"):  # the older spelling counts as well
            _Members(rope, f"{source}: rope_scaling").demand(name, "default")
        for name, allowed in (
            ("model_type", "qwen3"), ("attention_bias", False), ("hidden_act", "silu"),
            ("tie_word_embeddings", True), ("use_sliding_window", False),
        ):  # fmt: skip
            m.demand(name, allowed)
        config = cls(
            vocab_size=m.integer("vocab_size"),
            hidden_size=m.integer("hidden_size"),
            intermediate_size=m.integer("intermediate_size"),
            num_hidden_layers=m.integer("num_hidden_layers", least=2),
            num_attention_heads=m.integer("num_attention_heads"),
            num_key_value_heads=m.integer("num_key_value_heads"),
            head_dim=m.integer("head_dim"),
            rms_norm_eps=m.number("rms_norm_eps"),
            rope_theta=m.number("rope_theta"),
        )
        if config.num_attention_heads % config.num_key_value_heads:
            raise m.fail("num_key_value_heads", f"a divisor of num_attention_heads ({config.num_attention_heads})")
        return config


@dataclass(frozen=True, slots=True)
class VaeConfig:
    """Shape of the image autoencoder (`vae/config.json` of diffusers' AutoencoderKL)."""

    latent_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    norm_num_groups: int
    scaling_factor: float
    shift_factor: float
    mid_block_add_attention: bool

    @property
    def factor(self) -> int:
        """Pixels per latent, along each side."""
        return 1 << (len(self.block_out_channels) - 1)

    @classmethod
    def from_dict(cls, members: Mapping[str, Any], source: str) -> "VaeConfig":
        members = {"mid_block_add_attention": True, **members}  # files older than the member always have the attention
        m = _Members(members, source)
        for name, allowed in (
            ("in_channels", 3), ("out_channels", 3), ("act_fn", "silu"),
            ("use_quant_conv", False), ("use_post_quant_conv", False),
        ):  # fmt: skip
            if name not in members:
                raise ConfigError(f"{source}: the member {name!r} is missing")
            m.demand(name, allowed)
        for name in ("down_block_types", "up_block_types"):
            kinds = members.get(name, [])
            if not isinstance(kinds, list) or any(
                kind not in ("DownEncoderBlock2D", "UpDecoderBlock2D") for kind in kinds
            ):
                raise m.fail(name, "of DownEncoderBlock2D / UpDecoderBlock2D only")
        config = cls(
            latent_channels=m.integer("latent_channels"),
            block_out_channels=m.integers("block_out_channels"),
            layers_per_block=m.integer("layers_per_block"),
            norm_num_groups=m.integer("norm_num_groups"),
            scaling_factor=m.number("scaling_factor"),
            shift_factor=m.number("shift_factor", positive=False),
            mid_block_add_attention=m.flag("mid_block_add_attention"),
        )
        if any(width % config.norm_num_groups for width in config.block_out_channels):
            raise m.fail("block_out_channels", f"multiples of norm_num_groups ({config.norm_num_groups})")
        return config


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """The noise schedule (`scheduler/scheduler_config.json` of FlowMatchEulerDiscreteScheduler)."""

    num_train_timesteps: int
    shift: float

    @classmethod
    def from_dict(cls, members: Mapping[str, Any], source: str) -> "SchedulerConfig":
        m = _Members(members, source)
        for name in ("use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
                     "invert_sigmas", "stochastic_sampling", "shift_terminal"):  # fmt: skip
            if members.get(name) not in (None, False):
                raise m.fail(name, "false: this sampler follows the static shift")
        return cls(num_train_timesteps=m.integer("num_train_timesteps"), shift=m.number("shift"))
