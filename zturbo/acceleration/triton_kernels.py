"""Triton kernels over rows of tokens: what stands between two matrix products of a transformer block, in one pass each.

    norm_scale         rms_norm(x) * scale
    add_gated_norm     x + rms_norm(y) * gate, and of the sum the next product's input, rms_norm(sum) * scale
    norm_and_rotate    rms_norm and rotary positions of queries and keys, in place on packed q, k, v
    silu_product       silu(gate) * value
    quantize           a row as it is
    int8_product       a product of 8-bit rows, scaled and rounded as it leaves

The rows that a product reads can leave in 8 bits with their scale (SCHEME "fp8" or "int8"), so that quantizing them
costs no pass over the memory. Values are computed in fp32 and rounded to the working dtype where the eager form of
`zturbo.models` rounds them; what differs is the order of a row's sum and the last bit of a quotient, so a result is
within one unit in the last place (a gated sum: of what was added) and almost always equal. One program computes one
row, whatever else is in the batch.

Imported only where Triton is used: on CUDA, and in the tests through its interpreter (TRITON_INTERPRET=1).
The launchers are in `fused`.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _nearest(values, BITS: tl.constexpr):
    """fp32 without its last BITS bits, to nearest even: what the hardware's casts do, for the interpreter (Triton 3.7),
    which cuts bf16 off and loses the carry from mantissa to exponent in fp8. Its casts of such values are exact."""
    bits = values.to(tl.int32, bitcast=True)
    even = (bits >> BITS) & 1
    return ((bits + (1 << (BITS - 1)) - 1 + even) & -(1 << BITS)).to(tl.float32, bitcast=True)


@triton.jit
def _round(values, dtype: tl.constexpr):
    """fp32 values as the working dtype holds them."""
    if INTERPRETED:
        if dtype == tl.bfloat16:
            values = _nearest(values, 16)
    return values.to(dtype).to(tl.float32)


@triton.jit
def _scaled_norm(values, scale, size, eps, dtype: tl.constexpr):
    """`models.transformer.scaled_norm` of one row: two roundings."""
    normed = _round(values * tl.rsqrt(tl.sum(values * values, axis=0) / size + eps), dtype)
    return _round(normed * scale, dtype)


@triton.jit
def _e4m3(values):
    """fp32 of at most 448 -> fp8: three bits of mantissa, below 2**-6 steps of 2**-9."""
    if INTERPRETED:
        values = tl.where(tl.abs(values) < 0.015625, (values + 24576.0) - 24576.0, _nearest(values, 20))
    return values.to(tl.float8e4nv)


@triton.jit
def _store_row(out, out_scale, row, columns, mask, size, values, SCHEME: tl.constexpr):
    """Write a row in the working dtype, or in 8 bits with its scale: values = q * scale, as `quantize_rows` has it."""
    place = out + row * size + columns
    if SCHEME == "none":
        tl.store(place, values.to(out.dtype.element_ty), mask=mask)
    else:
        limit = 448.0 if SCHEME == "fp8" else 127.0
        largest = tl.maximum(tl.max(tl.abs(values), axis=0), 1e-12)
        tl.store(out_scale + row, tl.div_rn(largest, limit))
        scaled = values * tl.div_rn(limit, largest)
        if SCHEME == "fp8":
            tl.store(place, _e4m3(scaled), mask=mask)
        else:  # adding 1.5 * 2**23 leaves no bits behind the point: to nearest even
            tl.store(place, ((scaled + 12582912.0) - 12582912.0).to(tl.int8), mask=mask)


@triton.jit
def norm_scale(x, x_batch, scale, scale_batch, out, out_scale, slots, size, eps, BLOCK: tl.constexpr,
               SCHEME: tl.constexpr):  # fmt: skip
    """Grid (B * slots,): x (B, slots, size) and scale (B or 1, size), with their strides from picture to picture."""
    row = tl.program_id(0).to(tl.int64)
    batch, columns = row // slots, tl.arange(0, BLOCK)
    mask = columns < size
    values = tl.load(x + batch * x_batch + (row % slots) * size + columns, mask=mask, other=0.0).to(tl.float32)
    factors = tl.load(scale + batch * scale_batch + columns, mask=mask, other=0.0).to(tl.float32)
    result = _scaled_norm(values, factors, size, eps, x.dtype.element_ty)
    _store_row(out, out_scale, row, columns, mask, size, result, SCHEME)


@triton.jit
def add_gated_norm(x, x_batch, y, gate, gate_batch, out, next_scale, next_out, next_out_scale, slots, size, eps,
                   next_eps, BLOCK: tl.constexpr, NEXT: tl.constexpr, SCHEME: tl.constexpr):  # fmt: skip
    """Grid (B * slots,): x (B, slots, size) with batch stride `x_batch`; y, out and next_out (B * slots, size).

    NEXT: whether the norm of the sum is wanted too; `next_scale` has the strides of `gate`.
    """
    row = tl.program_id(0).to(tl.int64)
    batch, columns = row // slots, tl.arange(0, BLOCK)
    mask = columns < size
    before = tl.load(x + batch * x_batch + (row % slots) * size + columns, mask=mask, other=0.0).to(tl.float32)
    change = tl.load(y + row * size + columns, mask=mask, other=0.0).to(tl.float32)
    factors = tl.load(gate + batch * gate_batch + columns, mask=mask, other=0.0).to(tl.float32)
    total = _round(before + _scaled_norm(change, factors, size, eps, x.dtype.element_ty), x.dtype.element_ty)
    tl.store(out + row * size + columns, total.to(out.dtype.element_ty), mask=mask)
    if NEXT:
        factors = tl.load(next_scale + batch * gate_batch + columns, mask=mask, other=0.0).to(tl.float32)
        result = _scaled_norm(total, factors, size, next_eps, x.dtype.element_ty)
        _store_row(next_out, next_out_scale, row, columns, mask, size, result, SCHEME)


@triton.jit
def norm_and_rotate(qkv, weight_q, weight_k, rope, slots, rows, eps, HEADS: tl.constexpr, DIM: tl.constexpr,
                    HEADS_BLOCK: tl.constexpr, DIM_BLOCK: tl.constexpr):  # fmt: skip
    """Grid (B * slots, 2): qkv (B, slots, 3, HEADS, DIM); program (r, 0) turns the queries of row r, (r, 1) its keys.

    rope: (slots, DIM / 2, 2) fp32, cos first. Queries from slot `rows` on are never read, and stay as they are.
    """
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = row % slots
    heads, columns = tl.arange(0, HEADS_BLOCK), tl.arange(0, DIM_BLOCK)
    if part == 0:
        weight = tl.load(weight_q + columns, mask=columns < DIM, other=0.0).to(tl.float32)
    else:
        weight = tl.load(weight_k + columns, mask=columns < DIM, other=0.0).to(tl.float32)
    place = qkv + (row * 3 + part) * (HEADS * DIM) + heads[:, None] * DIM + columns[None, :]
    wanted = (part == 1) | (slot < rows)
    mask = (heads[:, None] < HEADS) & (columns[None, :] < DIM) & wanted
    values = tl.load(place, mask=mask, other=0.0).to(tl.float32)  # (heads, D)
    norm = tl.rsqrt(tl.sum(values * values, axis=1) / DIM + eps)
    normed = _round(values * norm[:, None] * weight[None, :], qkv.dtype.element_ty)
    pairs = tl.arange(0, DIM_BLOCK // 2)
    cos = tl.load(rope + slot * DIM + 2 * pairs, mask=2 * pairs < DIM, other=0.0)[None, :]
    sin = tl.load(rope + slot * DIM + 2 * pairs + 1, mask=2 * pairs < DIM, other=0.0)[None, :]
    even, odd = tl.split(tl.reshape(normed, (HEADS_BLOCK, DIM_BLOCK // 2, 2)))
    turned = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (HEADS_BLOCK, DIM_BLOCK))
    tl.store(place, _round(turned, qkv.dtype.element_ty).to(qkv.dtype.element_ty), mask=mask)


@triton.jit
def silu_product(gate_value, out, out_scale, size, hidden_scale, BLOCK: tl.constexpr, SCHEME: tl.constexpr):
    """Grid (rows, pieces of BLOCK columns; one piece where the row is quantized): (R, 2 * size) -> (R, size)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < size
    dtype: tl.constexpr = gate_value.dtype.element_ty
    gate = tl.load(gate_value + row * 2 * size + columns, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(gate_value + row * 2 * size + size + columns, mask=mask, other=0.0).to(tl.float32)
    opened = _round(gate / (1.0 + tl.exp(-gate)), dtype)
    result = _round(opened * _round(value * hidden_scale, dtype), dtype)
    _store_row(out, out_scale, row, columns, mask, size, result, SCHEME)


@triton.jit
def quantize(x, out, out_scale, size, BLOCK: tl.constexpr, SCHEME: tl.constexpr):
    """Grid (rows,): (R, size) in 8 bits."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < size
    values = tl.load(x + row * size + columns, mask=mask, other=0.0).to(tl.float32)
    _store_row(out, out_scale, row, columns, mask, size, values, SCHEME)


@triton.jit
def int8_product(left, right, left_scale, right_scale, out, m, n, k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                 BLOCK_K: tl.constexpr, GROUP: tl.constexpr, EVEN_K: tl.constexpr):  # fmt: skip
    """Grid (tiles,): (M, K) int8 by (N, K) int8 with a scale per row of each -> (M, N); EVEN_K: BLOCK_K divides K.

    Sums of integers are exact, so the result is the same for every tiling and in every company. Tiles come in groups of
    GROUP rows of tiles, which read the same weights while those are near.
    """
    program, across = tl.program_id(0), tl.cdiv(n, BLOCK_N)
    group = program // (GROUP * across)
    height = tl.minimum(tl.cdiv(m, BLOCK_M) - group * GROUP, GROUP)
    place = program % (GROUP * across)
    row = (group * GROUP + place % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (place // height) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    # Beyond the edges the first rows are read again: loads without a mask run ahead of the products.
    a = left + (row % m).to(tl.int64)[:, None] * k + depth[None, :]
    b = right + (column % n).to(tl.int64)[:, None] * k + depth[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for start in range(0, k, BLOCK_K):
        if EVEN_K:
            one, other = tl.load(a + start), tl.load(b + start)
        else:
            inside = depth[None, :] < k - start
            one, other = tl.load(a + start, mask=inside, other=0), tl.load(b + start, mask=inside, other=0)
        total = tl.dot(one, tl.trans(other), total, out_dtype=tl.int32)
    factors = tl.load(left_scale + row, mask=row < m, other=0.0)[:, None]
    columns = tl.load(right_scale + column, mask=column < n, other=0.0)[None, :]
    result = _round(total.to(tl.float32) * factors * columns, out.dtype.element_ty)
    where = out + row.to(tl.int64)[:, None] * n + column[None, :]
    tl.store(where, result.to(out.dtype.element_ty), mask=(row[:, None] < m) & (column[None, :] < n))
