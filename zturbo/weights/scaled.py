"""Stored tensors, decoded: fp8 and int8 weights times their scales, everything else as it is.

Three markings are in circulation (ComfyUI, `QUANTIZATION.md` and `convert_old_quants`):
  plain      an fp8 weight without any scale: a cast
  legacy     a tensor `scaled_fp8`, and per layer `X.scale_weight` (also `X.scale_input`, for fp8 activations)
  current    per layer `X.comfy_quant` (a uint8 tensor of JSON) or the file's metadata `_quantization_metadata`,
             each naming a format; the scale is `X.weight_scale`
W = stored * scale, the scale being one number or one per row. Formats with packed or rotated values are refused.
"""

import json
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from zturbo.weights.names import Shape
from zturbo.weights.sources import LAYER_FORMATS, StoredTensors, bad_file

_STORAGE = {
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "int8_tensorwise": torch.int8,
}
"""Formats whose value is stored * scale."""

_LEGACY_MARK = "scaled_fp8"
"""Last part of the name of a tensor whose type is that of a legacy file's weights; fp32 stands for e4m3fn."""

_SCALES = (".weight_scale", ".scale_weight")
_EXTRAS = (*_SCALES, ".input_scale", ".scale_input", ".comfy_quant")
"""Suffixes of tensors that describe a layer's weight; input scales serve fp8 activations, which are not used."""

_FOREIGN = {
    ".qweight": "SVDQuant (Nunchaku)",
    ".wscales": "SVDQuant (Nunchaku)",
    ".smooth_factor": "SVDQuant (Nunchaku)",
    ".weight_scale_2": "nvfp4",
    ".weight_s_rel": "asym_w4a8",
    ".weight.absmax": "bitsandbytes",
    ".weight.quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes int8",
    ".weight_scale_inv": "block-wise fp8",
    ".pre_quant_scale": "AWQ",
    ".zero_point": "SDNQ",
    ".svd_up": "SDNQ",
}
"""Names that give away formats of other programs, for a clear refusal."""

ALTERNATIVES = "use the bf16, fp8 or GGUF file of the same model; weights can be quantized while loading"


class DecodedTensors:
    """A `TensorSource` over stored tensors.

    Raises:
        WeightsError: the file uses a quantization format that is not supported, or marks a layer inconsistently.
    """

    def __init__(self, stored: StoredTensors) -> None:
        self._stored = stored
        self.path: Path = stored.path
        self.files = stored.files
        self.metadata = stored.metadata
        for name in stored.entries:
            if kind := next((kind for suffix, kind in _FOREIGN.items() if name.endswith(suffix)), None):
                reason = f"is quantized as {kind} (it has {name!r}), which is not supported"
                raise bad_file(self.path, reason, ALTERNATIVES)
        self._formats = self._declared_formats()
        for layer, settings in self._formats.items():
            self._check_format(layer, settings)

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """Shapes of the weights; scales and markers of existing layers are part of their weight."""
        return {name: entry.shape for name, entry in self._stored.entries.items() if not self._describes_weight(name)}

    def tensors(self, names: frozenset[str], dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        entries = self._stored.entries
        for name in sorted(names, key=lambda name: (entries[name].file, entries[name].begin)):
            yield name, self._decode(name, dtype)

    def _describes_weight(self, name: str) -> bool:
        if name.rsplit(".", 1)[-1] == _LEGACY_MARK:
            return True
        return any(name.endswith(s) and f"{name.removesuffix(s)}.weight" in self._stored.entries for s in _EXTRAS)

    def _declared_formats(self) -> dict[str, Mapping[str, Any]]:
        """Layer -> its settings, from the metadata and from marker tensors."""
        formats: dict[str, Mapping[str, Any]] = {}
        if text := self._stored.metadata.get(LAYER_FORMATS):
            layers = self._json(text, LAYER_FORMATS).get("layers")
            if not isinstance(layers, dict):
                raise bad_file(self.path, f"has a {LAYER_FORMATS} without layers")
            formats |= {self._full_name(layer): self._settings(value, layer) for layer, value in layers.items()}
        for name, entry in self._stored.entries.items():
            if name.endswith(".comfy_quant") and self._describes_weight(name):
                if entry.dtype != torch.uint8 or math.prod(entry.shape) > 1 << 16:
                    raise bad_file(self.path, f"has a marker {name!r} that is not a short uint8 text")
                text = bytes(self._stored.read(name).flatten().tolist()).decode("utf-8", "replace")
                layer = name.removesuffix(".comfy_quant")
                formats[layer] = self._settings(self._json(text, name), layer)
        return formats

    def _full_name(self, layer: str) -> str:
        """Some converters write metadata without the prefix that the tensors carry."""
        for prefix in ("", "model.diffusion_model.", "diffusion_model."):
            if f"{prefix}{layer}.weight" in self._stored.entries:
                return prefix + layer
        raise bad_file(self.path, f"declares the quantized layer {layer!r}, which has no weight")

    def _json(self, text: str, where: str) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise bad_file(self.path, f"has an unreadable {where}: {error}") from error
        if not isinstance(value, dict):
            raise bad_file(self.path, f"has a {where} that is not a JSON object")
        return value

    def _settings(self, value: Any, layer: str) -> Mapping[str, Any]:
        settings = {"format": value} if isinstance(value, str) else value
        if not isinstance(settings, dict) or not isinstance(settings.get("format"), str):
            raise bad_file(self.path, f"quantizes {layer!r} without naming a format")
        return settings

    def _check_format(self, layer: str, settings: Mapping[str, Any]) -> None:
        kind = settings["format"]
        params = settings.get("params")
        if settings.get("convrot") or (isinstance(params, dict) and params.get("convrot")):
            kind = f"{kind} with rotated weights (convrot)"  # the activations would need the same rotation
        if kind not in _STORAGE:
            raise bad_file(self.path, f"stores {layer!r} as {kind}, which is not supported", ALTERNATIVES)
        if not self._scale_name(layer):
            raise bad_file(self.path, f"stores {layer!r} as {kind} without a scale")

    def _scale_name(self, layer: str) -> str | None:
        return next((layer + s for s in _SCALES if layer + s in self._stored.entries), None)

    def _decode(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        layer = name.removesuffix(".weight")
        scale_name = self._scale_name(layer) if name.endswith(".weight") else None
        if scale_name is None:
            return self._stored.read(name, dtype if self._stored.entries[name].dtype.is_floating_point else None)
        stored = self._stored.read(name)
        if settings := self._formats.get(layer):
            stored = self._as_storage(name, stored, _STORAGE[settings["format"]])
        elif stored.dtype == torch.uint8:
            stored = stored.view(self._legacy_storage(name))
        return _scaled(stored, self._scale(scale_name, stored), dtype)

    def _as_storage(self, name: str, tensor: torch.Tensor, storage: torch.dtype) -> torch.Tensor:
        """The declared element type; some writers keep fp8 in a container of plain bytes."""
        if tensor.dtype == storage:
            return tensor
        if tensor.dtype == torch.uint8 and storage.itemsize == 1:
            return tensor.view(storage)
        raise bad_file(self.path, f"declares {name!r} as {storage} but stores {tensor.dtype}")

    def _legacy_storage(self, name: str) -> torch.dtype:
        """What bytes with a scale and without a format are: fp8, in the type of the file's legacy mark."""
        marks = [entry.dtype for key, entry in self._stored.entries.items() if key.rsplit(".", 1)[-1] == _LEGACY_MARK]
        if not marks:
            raise bad_file(self.path, f"stores {name!r} as bytes with a scale and names no format", ALTERNATIVES)
        return marks[0] if marks[0] in _STORAGE.values() else torch.float8_e4m3fn

    def _scale(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The scale, shaped to multiply the weight's rows."""
        scale = self._stored.read(name).to(torch.float32).flatten()
        if scale.numel() not in (1, weight.shape[0] if weight.ndim else 1):
            shape = list(self._stored.entries[name].shape)
            reason = f"has block scales {name!r} of shape {shape}; one, or one per row, are supported"
            raise bad_file(self.path, reason, ALTERNATIVES)
        if not bool(torch.isfinite(scale).all()):
            raise bad_file(self.path, f"has a scale {name!r} that is not finite")
        return scale.reshape([-1] + [1] * (weight.ndim - 1)) if scale.numel() > 1 else scale.reshape(())


ROWS_AT_ONCE = 1024
"""Rows decoded together: bounds the fp32 working copy of a 10240-wide matrix to 40 MB."""


def _scaled(stored: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """stored * scale in fp32, rounded once to `dtype`, a few rows at a time."""
    if stored.ndim == 0:
        return (stored.to(torch.float32) * scale).to(dtype)
    out = torch.empty(stored.shape, dtype=dtype)
    for i in range(0, stored.shape[0], ROWS_AT_ONCE):
        rows = slice(i, i + ROWS_AT_ONCE)
        out[rows] = stored[rows].to(torch.float32) * (scale[rows] if scale.ndim else scale)
    return out
