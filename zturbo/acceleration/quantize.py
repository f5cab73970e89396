"""Linear layers with 8-bit weights: half the memory of bf16, and fast where the device has 8-bit products.

Weights have one scale per output row; activations are quantized on the fly with one scale per token, because this
model's hidden values reach 6.6e4 in a few tokens and one scale for all of them leaves only noise (docs/log.md).

int8: symmetric, round to nearest, W8A8 through `torch._int_mm`.
fp8:  e4m3, W8A8 through `torch._scaled_mm` with row scales on CUDA capability 8.9 and newer; elsewhere the weight is
      expanded for the product, which keeps the memory and gives up the speed.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Scheme = Literal["int8", "fp8"]

LIMITS: dict[Scheme, float] = {"int8": 127.0, "fp8": 448.0}
ROWS_AT_ONCE = 2048
"""Tokens of one int8 product: its sums take four bytes each, twice, before they are rounded."""
STORAGE: dict[Scheme, torch.dtype] = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
TRANSFORMER_LAYERS = ("attention.to_qkv", "attention.to_out.0", "feed_forward.w13", "feed_forward.w2")
"""The four wide products of a transformer block; everything else is small and stays as it is."""
TEXT_ENCODER_LAYERS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
"""The same of a text encoder's layer."""


def quantize_rows(values: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """One scale per row: (R, K) float -> (R, K) 8-bit and (R, 1) fp32 with values = q * scale."""
    limit = LIMITS[scheme]
    values = values.float()
    scale = values.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / limit
    scaled = values / scale
    if scheme == "int8":
        scaled = scaled.round_()
    return scaled.clamp_(-limit, limit).to(STORAGE[scheme]), scale


class QuantizedLinear(nn.Module):
    """A bias-free linear layer with 8-bit weights, filled row block by row block while a checkpoint streams in.

    Args:
        in_features, out_features: as in `nn.Linear`.
        scheme: "int8" or "fp8".
        device: where the weights live.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, in_features: int, out_features: int, scheme: Scheme, device: torch.device | str) -> None:
        super().__init__()
        self.in_features, self.out_features, self.scheme = in_features, out_features, scheme
        self.register_buffer("weight", torch.empty(out_features, in_features, dtype=STORAGE[scheme], device=device))
        self.register_buffer("scale", torch.empty(out_features, 1, dtype=torch.float32, device=device))

    def load_rows(self, first_row: int, rows: Tensor) -> None:
        """Quantize `rows` (n, in_features) into the weight from `first_row` on."""
        span = slice(first_row, first_row + rows.shape[0])
        self.weight[span], self.scale[span] = quantize_rows(rows.to(self.weight.device), self.scheme)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features) in x's dtype."""
        rows = x.reshape(-1, self.in_features)
        return self._product(rows)(rows).to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _product(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        """The product that this device has for these rows."""
        sizes = (self.in_features, self.out_features)
        if self.scheme == "int8" and _has_int8_product(rows, sizes):
            return self._int8_product
        if self.scheme == "fp8" and _has_fp8_product(rows, sizes):
            return self._fp8_product
        weight = self.weight.to(rows.dtype if rows.dtype != torch.float16 else torch.float32)
        return lambda block: F.linear(block.to(weight.dtype), weight).mul_(self.scale.t())

    def _int8_product(self, rows: Tensor) -> Tensor:
        result = torch.empty(rows.shape[0], self.out_features, dtype=rows.dtype, device=rows.device)
        for block, target in zip(rows.split(ROWS_AT_ONCE), result.split(ROWS_AT_ONCE), strict=True):
            quantized, scale = quantize_rows(block, "int8")
            target.copy_((torch._int_mm(quantized, self.weight.t()) * scale).mul_(self.scale.t()))
        return result

    def _fp8_product(self, rows: Tensor) -> Tensor:
        quantized, scale = quantize_rows(rows, "fp8")
        return torch._scaled_mm(  # row scales come with bf16 results on every device that has them
            quantized, self.weight.t(), scale_a=scale, scale_b=self.scale.t().contiguous(), out_dtype=torch.bfloat16
        )


def _has_int8_product(rows: Tensor, sizes: tuple[int, int]) -> bool:
    """CUDA's kernel wants more than 16 rows and sides in eights, a CPU's AVX512-VNNI; MPS has none.

    On processors without, PyTorch multiplies value by value: 13 to 24 times as long as the weights turned to fp32.
    """
    if rows.device.type == "cuda":
        capable = torch.cuda.get_device_capability(rows.device) >= (7, 5)
        last_block = (rows.shape[0] - 1) % ROWS_AT_ONCE + 1
        return capable and last_block > 16 and all(size % 8 == 0 for size in sizes)
    return rows.device.type == "cpu" and torch.cpu._is_vnni_supported()


def _has_fp8_product(rows: Tensor, sizes: tuple[int, int]) -> bool:
    """Capability 8.9 and newer; sides in sixteens."""
    if rows.device.type != "cuda" or any(size % 16 for size in sizes):
        return False
    return torch.cuda.get_device_capability(rows.device) >= (8, 9)


def has_product(layer: QuantizedLinear) -> bool:
    """Whether this device multiplies rows in 8 bits with this layer, whatever their number."""
    sizes, rows = (layer.in_features, layer.out_features), layer.weight[:1].expand(ROWS_AT_ONCE, -1)
    if layer.weight.device.type != "cuda":
        return layer.weight.device.type == "cpu"
    return _has_int8_product(rows, sizes) if layer.scheme == "int8" else _has_fp8_product(rows, sizes)


def quantize_layers(model: nn.Module, names: tuple[str, ...], scheme: Scheme, device: torch.device | str) -> None:
    """Replace the wide linear layers of a network before its weights are loaded.

    Args:
        model: on the meta device.
        names: how the layers' names end: `TRANSFORMER_LAYERS` or `TEXT_ENCODER_LAYERS`.
        scheme: "int8" or "fp8".
        device: where the 8-bit weights will live.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.endswith(names):
            assert module.bias is None
            parent, _, child = name.rpartition(".")
            quantized = QuantizedLinear(module.in_features, module.out_features, scheme, device)
            model.get_submodule(parent).register_module(child, quantized)


def quantize_loaded(model: nn.Module, names: tuple[str, ...], scheme: Scheme) -> None:
    """Replace the wide linear layers of a loaded network, each on its device; the old weights are not touched.

    Args:
        model: whose layers are replaced; others may share their weights.
        names: how the layers' names end.
        scheme: "int8" or "fp8".
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.endswith(names):
            assert module.bias is None
            parent, _, child = name.rpartition(".")
            quantized = QuantizedLinear(module.in_features, module.out_features, scheme, module.weight.device)
            quantized.load_rows(0, module.weight)
            model.get_submodule(parent).register_module(child, quantized)
