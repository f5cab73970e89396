"""Transformer blocks on the kernels of `triton_kernels`, put in from outside; parameters and their names stay.

    fuse(transformer)

Between two products a block's rows cross the memory once: four passes where eager has thirty. Where a product is in 8
bits, the kernel before it hands the rows over in 8 bits with a scale each, so that quantizing costs no pass of its own;
only attention's output needs one.
The arithmetic is the eager block's with the same roundings; `triton_kernels` says where a last bit may differ.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zturbo.acceleration import triton_kernels as kernels
from zturbo.acceleration.quantize import STORAGE, QuantizedLinear, Scheme, has_product
from zturbo.models.transformer import QK_NORM_EPS, Attention, Block, ZImageTransformer

PIECE = 2048
"""Columns of one program where a row need not be whole."""


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """What a product in 8 bits reads: rows = values * scale."""

    values: Tensor
    """(..., K) int8 or fp8."""
    scale: Tensor
    """(R, 1) fp32, R the number of rows."""
    dtype: torch.dtype
    """Of the product's result."""


Rows = Tensor | QuantizedRows


class FusedBlock(Block):
    """A `Block` whose forward runs on the fused kernels; CUDA, or the CPU through Triton's interpreter."""

    def forward(self, x: Tensor, rope: Tensor, modulation: Tensor, rows: int | None = None) -> Tensor:
        """(B,S,dim) -> (B,rows,dim); `modulation` is (1 or B, 4, dim), `rows` defaults to all."""
        rows = x.shape[1] if rows is None else rows
        attention, feed_forward = self.attention, self.feed_forward
        scale_attention, gate_attention, scale_ffn, gate_ffn = modulation.unbind(1)
        mixed = _attention(attention, scaled_norm(x, scale_attention, self.eps, scheme(attention.to_qkv)), rope, rows)
        x, normed = add_gated_norm(
            x[:, :rows], mixed, gate_attention, self.eps, scale_ffn, self.eps, scheme(feed_forward.w13)
        )
        gate_value = product(feed_forward.w13, normed)
        hidden_scale = feed_forward.hidden_scale
        hidden = silu_product(gate_value, hidden_scale, scheme(feed_forward.w2))
        return add_gated(x, product(feed_forward.w2, hidden), gate_ffn, self.eps * hidden_scale**2)


def fuse(transformer: ZImageTransformer) -> None:
    """Give every block of a loaded transformer the fused forward; parameters and their names stay."""
    for module in list(transformer.modules()):
        if type(module) is Block:
            module.__class__ = FusedBlock


def _attention(attention: Attention, x: Rows, rope: Tensor, rows: int) -> Tensor:
    """`Attention.forward` of normed rows: queries and keys are normed and rotated where the product has put them."""
    qkv = product(attention.to_qkv, x).unflatten(-1, (3, attention.heads, -1))  # (B,S,3,heads,D)
    norm_and_rotate(qkv, attention.norm_q.weight, attention.norm_k.weight, rope, rows)
    query, key, value = qkv.transpose(1, 3).unbind(2)  # (B,heads,S,D) each
    mixed = attention.attend(query[:, :, :rows], key, value).transpose(1, 2).flatten(2)
    out = attention.to_out[0]
    wanted = scheme(out)
    return product(out, mixed if wanted is None else quantize(mixed, wanted))


def scheme(layer: nn.Module) -> Scheme | None:
    """In which form a layer wants its rows: 8 bits where its weight is, and the device has the product."""
    return layer.scheme if isinstance(layer, QuantizedLinear) and has_product(layer) else None


def product(layer: nn.Module, rows: Rows) -> Tensor:
    """(..., K) -> (..., N): a linear layer without bias applied to rows in either form."""
    if isinstance(rows, Tensor):
        return layer(rows)
    assert isinstance(layer, QuantizedLinear)
    flat = rows.values.flatten(0, -2)
    multiply = _fp8_product if layer.scheme == "fp8" else _int8_product
    return multiply(layer, flat, rows.scale, rows.dtype).view(*rows.values.shape[:-1], -1)


def _fp8_product(layer: QuantizedLinear, rows: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    if rows.device.type != "cuda":  # the same numbers, for tests
        return (F.linear(rows.float(), layer.weight.float()) * scale * layer.scale.t()).to(dtype)
    # Sums of Hopper's tensor cores keep 14 bits unless they are moved out in between, which costs a third of the speed;
    # the error is far below what fp8 itself rounds.
    result = torch._scaled_mm(
        rows, layer.weight.t(), scale_a=scale, scale_b=layer.scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
    )
    return result.to(dtype)


def _int8_product(layer: QuantizedLinear, rows: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    result = torch.empty(rows.shape[0], layer.out_features, dtype=dtype, device=rows.device)
    (m, k), n, tiles = rows.shape, layer.out_features, _tiles(rows)
    kernels.int8_product[(-(-m // tiles["BLOCK_M"]) * -(-n // tiles["BLOCK_N"]),)](
        rows, layer.weight, scale, layer.scale, result, m, n, k, EVEN_K=k % tiles["BLOCK_K"] == 0, **tiles
    )
    return result


def _tiles(rows: Tensor) -> dict[str, int]:
    """Sizes of the product's tiles, which change no sum; Hopper's were the fastest of eight, at 1152 and 4224 rows."""
    if rows.device.type == "cuda" and torch.cuda.get_device_capability(rows.device) >= (9, 0):
        return {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 128, "GROUP": 8, "num_warps": 4, "num_stages": 3}
    return {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "GROUP": 8, "num_warps": 8, "num_stages": 3}


def scaled_norm(x: Tensor, scale: Tensor, eps: float, wanted: Scheme | None = None) -> Rows:
    """`models.transformer.scaled_norm`: (B,S,dim) and (1 or B, dim) -> (B,S,dim), in 8 bits where wanted."""
    batch, slots, size = x.shape
    out, out_scale = _room(x, size, wanted)
    kernels.norm_scale[(batch * slots,)](
        x, _batch_stride(x, size), scale, _vector_stride(scale), out, out_scale, slots, size, eps,
        BLOCK=_power_of_2(size), SCHEME=wanted or "none", **_as_written(size),
    )  # fmt: skip
    return _rows(out, out_scale, x.dtype)


def add_gated(x: Tensor, y: Tensor, gate: Tensor, eps: float) -> Tensor:
    """x + scaled_norm(y, gate): (B,S,dim) twice and (1 or B, dim) -> (B,S,dim)."""
    out = torch.empty(y.shape, dtype=x.dtype, device=x.device)
    _add_gated_norm(x, y, gate, eps, out, None, None, None, 0.0, None)
    return out


def add_gated_norm(
    x: Tensor, y: Tensor, gate: Tensor, eps: float, next_scale: Tensor, next_eps: float, wanted: Scheme | None = None
) -> tuple[Tensor, Rows]:
    """`add_gated`, and scaled_norm(the sum, next_scale) in 8 bits where wanted."""
    out = torch.empty(y.shape, dtype=x.dtype, device=x.device)
    next_out, next_out_scale = _room(out, y.shape[-1], wanted)
    assert _vector_stride(next_scale) == _vector_stride(gate)
    _add_gated_norm(x, y, gate, eps, out, next_scale, next_out, next_out_scale, next_eps, wanted)
    return out, _rows(next_out, next_out_scale, x.dtype)


def _add_gated_norm(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    eps: float,
    out: Tensor,
    next_scale: Tensor | None,
    next_out: Tensor | None,
    next_out_scale: Tensor | None,
    next_eps: float,
    wanted: Scheme | None,
) -> None:
    batch, slots, size = x.shape
    assert y.is_contiguous()
    assert y.shape == x.shape
    kernels.add_gated_norm[(batch * slots,)](
        x, _batch_stride(x, size), y, gate, _vector_stride(gate), out, next_scale, next_out, next_out_scale,
        slots, size, eps, next_eps, BLOCK=_power_of_2(size), NEXT=next_scale is not None, SCHEME=wanted or "none",
        **_as_written(size),
    )  # fmt: skip


def norm_and_rotate(qkv: Tensor, weight_q: Tensor, weight_k: Tensor, rope: Tensor, rows: int) -> None:
    """Norm and rotate queries (of the first `rows` slots) and keys of (B,S,3,heads,D) in place."""
    batch, slots, _, heads, size = qkv.shape
    assert qkv.is_contiguous()
    assert rope.is_contiguous()
    assert rope.shape == (slots, size // 2, 2)
    kernels.norm_and_rotate[(batch * slots, 2)](
        qkv, weight_q, weight_k, rope, slots, rows, QK_NORM_EPS, HEADS=heads, DIM=size,
        HEADS_BLOCK=_power_of_2(heads), DIM_BLOCK=_power_of_2(size), **_as_written(heads * size),
    )  # fmt: skip


def silu_product(gate_value: Tensor, hidden_scale: float = 1.0, wanted: Scheme | None = None) -> Rows:
    """silu(gate) * (value * hidden_scale): (..., 2 * hidden), gates first -> (..., hidden), in 8 bits where wanted."""
    assert gate_value.is_contiguous()
    size = gate_value.shape[-1] // 2
    out, out_scale = _room(gate_value, size, wanted)
    block = _power_of_2(size if wanted else min(size, PIECE))
    kernels.silu_product[(gate_value.numel() // (2 * size), -(-size // block))](
        gate_value, out, out_scale, size, hidden_scale, BLOCK=block, SCHEME=wanted or "none", **_as_written(block)
    )
    return _rows(out, out_scale, gate_value.dtype)


def quantize(x: Tensor, wanted: Scheme) -> QuantizedRows:
    """(..., K) in 8 bits with a scale per row."""
    x = x.contiguous()
    size = x.shape[-1]
    out, out_scale = _room(x, size, wanted)
    assert out_scale is not None
    kernels.quantize[(x.numel() // size,)](
        x, out, out_scale, size, BLOCK=_power_of_2(size), SCHEME=wanted, **_as_written(size)
    )
    return QuantizedRows(out, out_scale, x.dtype)


def _room(like: Tensor, size: int, wanted: Scheme | None) -> tuple[Tensor, Tensor | None]:
    """Where a kernel writes rows of `size` columns, and their scales."""
    shape = (*like.shape[:-1], size)
    out = torch.empty(shape, dtype=like.dtype if wanted is None else STORAGE[wanted], device=like.device)
    if wanted is None:
        return out, None
    return out, torch.empty(out.numel() // size, 1, dtype=torch.float32, device=like.device)


def _rows(out: Tensor, out_scale: Tensor | None, dtype: torch.dtype) -> Rows:
    return out if out_scale is None else QuantizedRows(out, out_scale, dtype)


def _batch_stride(x: Tensor, size: int) -> int:
    """Rows lie next to each other inside a picture; pictures may lie apart."""
    assert x.stride()[1:] == (size, 1)
    return x.stride(0)


def _vector_stride(vectors: Tensor) -> int:
    """From one picture's vector to the next; 0 where all share one."""
    assert vectors.stride(-1) == 1
    return vectors.stride(0) if vectors.shape[0] > 1 else 0


def _power_of_2(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _as_written(columns: int) -> dict[str, int | bool]:
    """How a kernel of rows is launched: with sixteen values a thread, in the range that pays, a function of the row
    alone, so that no row knows its batch; and without fused multiply-add, which skips the rounding between the two."""
    return {"num_warps": min(16, max(1, _power_of_2(columns) // 512)), "enable_fp_fusion": False}
