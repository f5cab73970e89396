"""LoRA and LoKr adapters of the transformer, merged into the weights while they are loaded.

W + scale * B A (LoRA) or W + scale * w1 (x) w2 (LoKr, Kronecker product), in fp32, on the rows of the base
tensor that the adapter covers. Both base and adapter are placed by rows of our parameters, so an adapter of
the fused qkv merges into a base with split q, k, v and the other way round, exactly.

Keys are <prefix><module><part>. Modules are the linears of both layouts in `names`, spelled with dots or with
underscores; no part of a key is guessed. Every key must be used, but for Comfy's copy of modules that the file
has in diffusers' spelling too: some trainers write both, and diffusers drops the same copies
(`_convert_non_diffusers_z_image_lora_to_diffusers`, https://github.com/huggingface/diffusers/issues/13203).
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch

from zturbo.errors import WeightsError
from zturbo.models.configs import TransformerConfig, read_json
from zturbo.weights.load import some
from zturbo.weights.names import Placement, TransformerLayout, transformer_names
from zturbo.weights.scaled import ROWS_AT_ONCE, DecodedTensors
from zturbo.weights.single_file import open_file
from zturbo.weights.sources import bad_file

_DOTTED = (
    "",  # DiffSynth
    "transformer.",  # diffusers
    "diffusion_model.",  # ai-toolkit, ComfyUI
    "model.diffusion_model.",
    "base_model.model.",  # PEFT
    "base_model.model.transformer.",
    "base_model.model.diffusion_model.",
)
_UNDERSCORED = ("lora_unet_", "lora_transformer_", "lycoris_")  # kohya and musubi, OneTrainer, SimpleTuner
_PREFIXES = (*_DOTTED, *_UNDERSCORED)

_PLAIN_NAME = re.compile(r"\^?[\w.-]+", re.ASCII)
_PART = re.compile(
    r"(?P<module>.+)\.(?:lora[_.](?P<side>A|B|down|up)(?:(?:\.\w+)?\.weight)?|(?P<rest>alpha|lokr_w[12](?:_[ab])?))"
)
_SIDES = {"A": "down", "B": "up", "down": "down", "up": "up"}

_TEXT_ENCODER = ("lora_te", "text_encoder", "lora_text", "base_model.model.text_encoder")
_UNSUPPORTED = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "magnitude": "DoRA",
    "hada_": "LoHa",
    "lokr_t2": "a convolution's LoKr",
    "lora_mid": "a convolution's LoRA",
    "diff": "full differences",
    "diff_b": "full differences",
    "control_": "a ControlNet",
}


class _Delta(Protocol):
    """What an adapter adds to `count` rows of a parameter, from `first_row` on."""

    @property
    def first_row(self) -> int: ...

    @property
    def count(self) -> int: ...

    def rows(self, begin: int, end: int) -> torch.Tensor:
        """Rows begin..end of the delta itself, fp32 (end - begin, in)."""
        ...


@dataclass(frozen=True, slots=True)
class _LowRank:
    first_row: int
    up: torch.Tensor  # (out, r), scale included
    down: torch.Tensor  # (r, in)

    @property
    def count(self) -> int:
        return self.up.shape[0]

    def rows(self, begin: int, end: int) -> torch.Tensor:
        return self.up[begin:end] @ self.down


@dataclass(frozen=True, slots=True)
class _Kronecker:
    first_row: int
    left: torch.Tensor  # (o1, i1), scale included
    right: torch.Tensor  # (o2, i2); the delta is (o1 * o2, i1 * i2)

    @property
    def count(self) -> int:
        return self.left.shape[0] * self.right.shape[0]

    def rows(self, begin: int, end: int) -> torch.Tensor:
        row, height = torch.arange(begin, end), self.right.shape[0]
        blocks = self.left[row // height, :, None] * self.right[row % height, None, :]  # (rows, i1, i2)
        return blocks.flatten(1)


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter, every key of it understood, ready to merge."""

    path: Path
    scale: float
    deltas: Mapping[str, Sequence[_Delta]]
    """Our parameter -> what is added to it."""


@dataclass(slots=True)
class _Adapter:
    """The tensors of one adapted module."""

    key: str
    place: Placement
    parts: dict[str, torch.Tensor] = field(default_factory=dict)


def open_lora(path: Path, config: TransformerConfig, scale: float = 1.0) -> Lora:
    """Read an adapter for a transformer of this config; `scale` multiplies its own strength.

    Raises:
        WeightsNotFound: there is no such file.
        WeightsError: a key is unknown, unused or of an unsupported kind, or a shape does not fit.
    """
    if not math.isfinite(scale):
        raise WeightsError(f"{path}: the scale of an adapter must be finite, received {scale}")
    source = open_file(path)
    if not isinstance(source, DecodedTensors):
        raise WeightsError(f"{path}: is not a safetensors file", "adapters are safetensors files")
    _refuse_unsupported(path, source.shapes)
    adapters = _grouped(source, _module_places(config), _second_spellings(config))
    alphas = _Alphas(path, source.metadata)
    deltas: dict[str, list[_Delta]] = defaultdict(list)
    for adapter in adapters:
        deltas[adapter.place.parameter].append(_delta(path, adapter, alphas, scale))
    _check_disjoint(path, deltas)
    return Lora(path, scale, dict(deltas))


def merge(
    tensors: Iterable[tuple[str, torch.Tensor]], placements: Mapping[str, Placement], loras: Sequence[Lora]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Add adapters to a stream of (checkpoint name, tensor); adapted tensors come out in fp32, others unchanged.

    Peak memory beside the stream: one tensor in fp32 and 1024 rows of a delta.
    """
    for name, tensor in tensors:
        place = placements.get(name)
        deltas = [delta for lora in loras for delta in lora.deltas.get(place.parameter, ())] if place else []
        yield name, _merged(tensor, place.first_row, deltas) if place and deltas else tensor


def _merged(tensor: torch.Tensor, first_row: int, deltas: Sequence[_Delta]) -> torch.Tensor:
    out = tensor.to(torch.float32, copy=True)
    last_row = first_row + out.shape[0]
    for delta in deltas:
        begin, end = max(first_row, delta.first_row), min(last_row, delta.first_row + delta.count)
        for row in range(begin, end, ROWS_AT_ONCE):
            stop = min(row + ROWS_AT_ONCE, end)
            out[row - first_row : stop - first_row] += delta.rows(row - delta.first_row, stop - delta.first_row)
    return out


def _linears(config: TransformerConfig, layout: TransformerLayout) -> dict[str, Placement]:
    """The modules of one layout that an adapter may adapt."""
    return {
        name.removesuffix(".weight"): place
        for name, place in transformer_names(config, layout).placements.items()
        if name.endswith(".weight") and len(place.shape) == 2
    }


def _spelled(prefix: str, module: str) -> str:
    return prefix + (module.replace(".", "_") if prefix in _UNDERSCORED else module)


def _module_places(config: TransformerConfig) -> dict[str, Placement]:
    """Every accepted spelling of every linear of the transformer."""
    linears = _linears(config, "diffusers") | _linears(config, "comfy")
    return {_spelled(prefix, module): place for module, place in linears.items() for prefix in _PREFIXES}


def _second_spellings(config: TransformerConfig) -> dict[str, frozenset[str]]:
    """Comfy's spelling of each module that diffusers spells otherwise -> diffusers' spellings of the same rows.

    The fused qkv has three of them, other modules one; all are behind the same prefix.
    """
    split = _linears(config, "diffusers")
    seconds: dict[str, frozenset[str]] = {}
    for module, place in _linears(config, "comfy").items():
        if module not in split:
            same = [other for other, its_place in split.items() if its_place.parameter == place.parameter]
            for prefix in _PREFIXES:
                seconds[_spelled(prefix, module)] = frozenset(_spelled(prefix, other) for other in same)
    return seconds


def _refuse_unsupported(path: Path, keys: Iterable[str]) -> None:
    for key in keys:
        if key.startswith(_TEXT_ENCODER):
            raise bad_file(path, f"adapts the text encoder ({key!r}), only the transformer can be adapted", "")
        if kind := _foreign_kind(key):
            raise bad_file(path, f"is {kind} ({key!r}); LoRA and LoKr of linear layers are supported", "")


def _foreign_kind(key: str) -> str | None:
    """The kind of adapter that one dotted part of a key gives away; a mark ending in _ stands for all it begins."""
    for segment in key.split("."):
        for mark, kind in _UNSUPPORTED.items():
            if segment == mark or (mark.endswith("_") and segment.startswith(mark)):
                return kind
    return None


def _grouped(
    source: DecodedTensors, places: Mapping[str, Placement], second_spellings: Mapping[str, frozenset[str]]
) -> list[_Adapter]:
    """Adapters by module, second copies dropped; a key that names no linear of this model is left over."""
    adapters: dict[str, _Adapter] = {}
    left_over = []
    keys: dict[str, tuple[str, str]] = {}
    for key in source.shapes:
        match = _PART.fullmatch(key)
        if match is None or match["module"] not in places:
            left_over.append(key)
        else:
            keys[key] = match["module"], match["rest"] or _SIDES[match["side"]]
    if left_over or not keys:
        what = (
            f"{len(left_over)} keys fit no linear of this model: {some(left_over)}" if left_over else "holds no adapter"
        )
        raise bad_file(source.path, what, "the adapter was made for another model")
    modules = {module for module, _ in keys.values()}
    copies = {module for module in modules & second_spellings.keys() if second_spellings[module] <= modules}
    wanted = frozenset(key for key, (module, _) in keys.items() if module not in copies)
    for key, tensor in source.tensors(wanted, torch.float32):
        module, part = keys[key]
        adapter = adapters.setdefault(module, _Adapter(module, places[module]))
        if part in adapter.parts:
            raise bad_file(source.path, f"has the part {part} of {module} twice", "")
        adapter.parts[part] = tensor.to(torch.float32)
    return list(adapters.values())


def _check_disjoint(path: Path, deltas: Mapping[str, Sequence[_Delta]]) -> None:
    """One file may not adapt the same rows twice, such as fused and only in part split: what is meant is unknown."""
    for parameter, several in deltas.items():
        ordered = sorted(several, key=lambda delta: delta.first_row)
        for one, other in pairwise(ordered):
            if other.first_row < one.first_row + one.count:
                raise bad_file(path, f"adapts {parameter} twice over the same rows", "")


# --- strength ------------------------------------------------------------------------------------------------


class _Alphas:
    """The strength of each module: from its own alpha, else from PEFT's settings, else 1."""

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self._path = path
        settings = _peft_settings(path, metadata)
        if settings.get("use_dora"):
            raise bad_file(path, "is DoRA; LoRA and LoKr of linear layers are supported", "")
        self._is_lokr = settings.get("peft_type") == "LOKR"  # then alpha has another name, and r counts
        self._alpha: Any = settings.get("alpha" if self._is_lokr else "lora_alpha")
        self._rank: Any = settings.get("r")
        self._alphas, self._ranks = (self._pattern(settings, name) for name in ("alpha_pattern", "rank_pattern"))
        self._root = bool(settings.get("use_rslora"))  # rank-stabilised: alpha / sqrt(rank)

    def _pattern(self, settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        """Exceptions for some modules.

        PEFT matches regular expressions, with which a file could hang us; here they are last parts of names, or
        whole ones behind a ^.
        """
        pattern: Any = settings.get(name) or {}
        if not isinstance(pattern, dict):
            raise bad_file(self._path, f"has the {name} {pattern!r}, expected an object", "")
        if odd := [key for key in pattern if not _PLAIN_NAME.fullmatch(key)]:
            reason = f"has the regular expression {odd[0][:80]!r} in its {name}; names are supported"
            raise bad_file(self._path, reason, "")
        return pattern

    def kronecker(self, adapter: _Adapter, rank: int | None) -> float:
        """LyCORIS counts alpha only where a factor is itself low-rank, by that factor's rank; PEFT, whose LoKr has its
        alpha in the settings, always and by their r (`LoKrLayer.get_delta_weight`)."""
        if "alpha" in adapter.parts or not self._is_lokr:
            return self.scale(adapter, rank) if rank else 1.0
        alpha = self._from_settings(adapter.key, self._alphas, self._alpha)
        rank = self._from_settings(adapter.key, self._ranks, self._rank)
        if alpha is None or rank is None:
            raise bad_file(self._path, f"is PEFT's LoKr, and its settings name no r or no alpha for {adapter.key}", "")
        if (divisor := self._checked(rank, adapter, "rank")) <= 0:
            raise bad_file(self._path, f"has the rank {rank!r} for {adapter.key}, expected a positive number", "")
        return self._checked(alpha, adapter) / divisor

    def scale(self, adapter: _Adapter, rank: int) -> float:
        if (tensor := adapter.parts.get("alpha")) is not None:
            if tensor.numel() != 1:
                raise bad_file(self._path, f"has an alpha of {tensor.numel()} values for {adapter.key}", "")
            return self._checked(tensor.item(), adapter) / rank
        alpha = self._from_settings(adapter.key, self._alphas, self._alpha)
        if alpha is None:
            return 1.0
        return self._checked(alpha, adapter) / (math.sqrt(rank) if self._root else rank)

    @staticmethod
    def _from_settings(module: str, pattern: Mapping[str, Any], usual: Any) -> Any:
        """What the settings say of a module: the first exception that it fits, else what is said of all."""
        for name, value in pattern.items():
            if name.startswith("^"):
                fits = any(module == _spelled(prefix, name[1:]) for prefix in _PREFIXES)
            else:
                fits = module == name or module.endswith(f".{name}")
            if fits:
                return value
        return usual

    def _checked(self, value: Any, adapter: _Adapter, what: str = "alpha") -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise bad_file(self._path, f"has the {what} {value!r} for {adapter.key}, expected a finite number", "")
        return float(value)


def _peft_settings(path: Path, metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """`lora_adapter_metadata` in the file (diffusers), or PEFT's adapter_config.json beside it."""
    if text := metadata.get("lora_adapter_metadata"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise bad_file(path, f"has an unreadable lora_adapter_metadata: {error}") from error
        if not isinstance(value, dict):
            raise bad_file(path, "has a lora_adapter_metadata that is not a JSON object")
        return {key.removeprefix("transformer."): member for key, member in value.items()}
    beside = path.parent / "adapter_config.json"
    # PEFT's own file name: in a folder of many adapters the config is of that one only
    return read_json(beside) if path.name == "adapter_model.safetensors" and beside.is_file() else {}


# --- deltas --------------------------------------------------------------------------------------------------


def _delta(path: Path, adapter: _Adapter, alphas: _Alphas, user_scale: float) -> _Delta:
    kinds = adapter.parts.keys() - {"alpha"}
    if any(tensor.ndim != 2 for part, tensor in adapter.parts.items() if part in kinds):
        raise _misfit(path, adapter)
    if kinds == {"down", "up"}:
        return _low_rank(path, adapter, alphas, user_scale)
    if kinds in _LOKR_PARTS:
        return _kronecker(path, adapter, alphas, user_scale)
    raise bad_file(path, f"has for {adapter.key} only {some(kinds) or 'alpha'}: the adapter is not complete", "")


def _low_rank(path: Path, adapter: _Adapter, alphas: _Alphas, user_scale: float) -> _LowRank:
    up, down = adapter.parts["up"], adapter.parts["down"]
    rank = down.shape[0]
    if rank == 0 or up.shape[1] != rank or (up.shape[0], down.shape[1]) != adapter.place.shape:
        raise _misfit(path, adapter)
    return _LowRank(adapter.place.first_row, up * (alphas.scale(adapter, rank) * user_scale), down)


_LOKR_PARTS = [
    {*one, *two}
    for one in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
    for two in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
]


def _kronecker(path: Path, adapter: _Adapter, alphas: _Alphas, user_scale: float) -> _Kronecker:
    left, left_rank = _factor(path, adapter, "lokr_w1")
    right, right_rank = _factor(path, adapter, "lokr_w2")
    if (left.shape[0] * right.shape[0], left.shape[1] * right.shape[1]) != adapter.place.shape:
        raise _misfit(path, adapter)
    strength = alphas.kronecker(adapter, right_rank or left_rank)
    return _Kronecker(adapter.place.first_row, left * (strength * user_scale), right)


def _factor(path: Path, adapter: _Adapter, name: str) -> tuple[torch.Tensor, int | None]:
    """One Kronecker factor, multiplied out, and its rank if it came as two matrices."""
    if (whole := adapter.parts.get(name)) is not None:
        return whole, None
    a, b = adapter.parts[f"{name}_a"], adapter.parts[f"{name}_b"]
    out_rows, in_columns = adapter.place.shape
    # Both checks bound the product by the weight it is added to.
    if a.shape[1] != b.shape[0] or a.shape[1] == 0 or a.shape[0] > out_rows or b.shape[1] > in_columns:
        raise _misfit(path, adapter)
    return a @ b, a.shape[1]


def _misfit(path: Path, adapter: _Adapter) -> WeightsError:
    shapes = {part: list(tensor.shape) for part, tensor in adapter.parts.items()}
    reason = f"has {shapes} for {adapter.key}, which does not fit the weight {list(adapter.place.shape)}"
    return bad_file(path, reason, "the adapter was made for another model")
