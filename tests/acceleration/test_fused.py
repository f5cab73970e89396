"""The fused kernels against the eager arithmetic of `zturbo.models`: interpreted on a CPU, compiled on CUDA."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests import reference
from tests.parity.test_transformer import inputs, our_velocity, ours, relative_error
from zturbo.acceleration import fused
from zturbo.acceleration.fp16 import fit_half_precision
from zturbo.acceleration.fused import FusedBlock, QuantizedRows
from zturbo.acceleration.quantize import STORAGE, QuantizedLinear, Scheme, quantize_rows
from zturbo.models.attention import rope_table, rotate
from zturbo.models.transformer import Block, FeedForward, scaled_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SCHEMES: tuple[Scheme, ...] = ("int8", "fp8")
EPS = 1e-5

# exp(-x) may overflow to infinity on the way to a gate of 0, as in PyTorch; only numpy says so
pytestmark = [
    pytest.mark.kernels,
    pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning"),
]


def values(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def off(found: Tensor, expected: Tensor) -> Tensor:
    """How many representable numbers lie between, for each value."""
    width = torch.int32 if found.dtype == torch.float32 else torch.int16

    def place(x: Tensor) -> Tensor:
        bits = x.contiguous().view(width).long()
        return torch.where(bits < 0, torch.iinfo(width).min - bits, bits)

    return (place(found) - place(expected)).abs()


def same(found: Tensor, expected: Tensor, part: Tensor | None = None) -> bool:
    """Equal but for the order of a sum and a quotient's last bit: in half precision one unit in the last place, in few
    values (a missing rounding would move one in ten).

    part: what was rounded and then added; where the sum is smaller, it may be off by one of the part's units.
    """
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if found.dtype == torch.float32:
        return torch.allclose(found, expected, rtol=3e-6, atol=1e-6)
    near = off(found, expected) <= 1
    if part is not None:
        unit = torch.finfo(part.dtype).eps * 2.0 ** part.float().abs().clamp_min(1e-30).log2().floor()
        near |= (found.float() - expected.float()).abs() <= unit
    return bool(near.all()) and int((found != expected).sum()) <= 2 + 0.005 * found.numel()


def check_quantized(rows: fused.Rows, expected: Tensor, scheme: Scheme) -> None:
    """8-bit rows are those of `quantize_rows`; a value on the edge of two steps may fall to either side."""
    assert isinstance(rows, QuantizedRows)
    assert rows.values.dtype == STORAGE[scheme]
    assert rows.values.shape == expected.shape
    quantized, scale = quantize_rows(expected.flatten(0, -2), scheme)
    assert torch.allclose(rows.scale, scale, rtol=1e-2 if expected.dtype == torch.bfloat16 else 2e-3)
    found, wanted = rows.values.flatten(0, -2).float(), quantized.float()
    step = 1 if scheme == "int8" else wanted.abs().clamp_min(2**-6) / 8
    assert ((found - wanted).abs() <= step).all()
    assert (found != wanted).float().mean() < 0.01


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "slots", "size"), [(1, 5, 128), (2, 3, 192), (1, 1, 40)])
def test_scaled_norm(batch: int, slots: int, size: int, dtype: torch.dtype) -> None:
    x, scale = values(batch, slots, size, dtype=dtype) * 3, values(batch, size, dtype=dtype, seed=1)
    for vectors in (scale, scale[:1]):
        found = fused.scaled_norm(x, vectors, EPS)
        assert isinstance(found, Tensor)
        assert same(found, scaled_norm(x, vectors, EPS))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scaled_norm_in_8_bits(dtype: torch.dtype, scheme: Scheme) -> None:
    x, scale = values(2, 4, 192, dtype=dtype), values(2, 192, dtype=dtype, seed=1)
    check_quantized(fused.scaled_norm(x, scale, EPS, scheme), scaled_norm(x, scale, EPS), scheme)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_sum_and_the_next_norm(dtype: torch.dtype) -> None:
    whole, y = values(2, 6, 96, dtype=dtype), values(2, 4, 96, dtype=dtype, seed=1) * 50
    gate, scale = values(2, 96, dtype=dtype, seed=2), values(2, 96, dtype=dtype, seed=3)
    x = whole[:, :4]  # pictures lie apart, as in the last block
    change = scaled_norm(y, gate, EPS)
    total = x + change
    assert same(fused.add_gated(x, y, gate, EPS), total, change)
    found, normed = fused.add_gated_norm(x, y, gate, EPS, scale, next_eps=0.5)
    assert same(found, total, change)
    assert isinstance(normed, Tensor)
    assert same(normed, scaled_norm(found, scale, 0.5))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_next_norm_in_8_bits(scheme: Scheme) -> None:
    x, y = values(1, 4, 96), values(1, 4, 96, seed=1)
    gate, scale = values(1, 96, seed=2), values(1, 96, seed=3)
    found, normed = fused.add_gated_norm(x, y, gate, EPS, scale, EPS, scheme)
    check_quantized(normed, scaled_norm(found, scale, EPS), scheme)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "axes"), [(2, (16, 24, 24)), (3, (8, 8, 16)), (5, (8, 20, 20))])
@pytest.mark.parametrize("rows", [6, 4])
def test_queries_and_keys(heads: int, axes: tuple[int, ...], rows: int, dtype: torch.dtype) -> None:
    """Head sizes that are powers of two and not; queries that nobody asks for stay as they are, and so do values."""
    size = sum(axes)
    qkv = values(2, 6, 3, heads, size, dtype=dtype)
    weight_q, weight_k = 1 + values(size, dtype=dtype, seed=1) / 5, 1 + values(size, dtype=dtype, seed=2) / 5
    rope = rope_table(torch.arange(18).view(6, 3), axes, 256.0).to(DEVICE)
    expected = qkv.clone()
    for part, weight in enumerate((weight_q, weight_k)):
        expected[:, :, part] = rotate(F.rms_norm(qkv[:, :, part], (size,), weight, EPS), rope)
    expected[:, rows:, 0] = qkv[:, rows:, 0]
    fused.norm_and_rotate(qkv, weight_q, weight_k, rope, rows)
    assert same(qkv, expected)


@pytest.mark.parametrize("hidden_scale", [1.0, 2.0**-7])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [40, 2176])
def test_silu_product(size: int, dtype: torch.dtype, hidden_scale: float) -> None:
    gate_value = values(1, 3, 2 * size, dtype=dtype) * 8
    gate, value = gate_value.chunk(2, dim=-1)
    found = fused.silu_product(gate_value, hidden_scale)
    assert isinstance(found, Tensor)
    assert same(found, F.silu(gate) * (value * hidden_scale))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_silu_product_in_8_bits(scheme: Scheme) -> None:
    """A token whose hidden values reach 6.6e4 keeps its neighbours' scales out of it."""
    gate_value = values(1, 4, 2 * 2176)
    gate_value[:, 2] *= 257
    gate, value = gate_value.chunk(2, dim=-1)
    expected = F.silu(gate) * value
    assert expected.abs().max() > 6.6e4
    check_quantized(fused.silu_product(gate_value, wanted=scheme), expected, scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantizing_is_that_of_the_weights(scheme: Scheme, dtype: torch.dtype) -> None:
    """Every value and every scale, for rows that are tiny, huge, zero, and full of values on fp8's grid and between."""
    rows = (
        values(8, 640, dtype=dtype) * torch.tensor([1e-4, 1e-2, 1, 30, 1, 1, 1, 0], device=DEVICE, dtype=dtype)[:, None]
    )
    rows[4] = torch.linspace(-448, 448, 640).to(dtype)
    rows[5] = torch.linspace(-1, 1, 640).to(dtype) / 32
    rows[5, 0] = 448
    check_quantized(fused.quantize(rows[None], scheme), rows[None], scheme)


def test_interpreted_fp8_is_exact() -> None:
    """The rounding that stands in for the interpreter's own gives PyTorch's bits, where the scale is a power of 2."""
    grid = torch.arange(0, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    between = (grid[1:] + grid[:-1]) / 2
    points = torch.cat((grid, between, between * 1.0001, between * 0.9999, -grid, -between)).to(DEVICE)
    points = torch.cat((points, torch.tensor([448.0], device=DEVICE)))
    found = fused.quantize(points[None], "fp8")
    assert float(found.scale) == 1
    assert torch.equal(found.values[0].float(), points.to(torch.float8_e4m3fn).float())


def filled(scheme: Scheme, rows: int, columns: int) -> QuantizedLinear:
    layer = QuantizedLinear(columns, rows, scheme, DEVICE)
    layer.load_rows(0, values(rows, columns, seed=9))
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "columns", "outputs"), [(3, 40, 24), (130, 96, 144), (260, 64, 130), (1160, 256, 24)]
)
def test_int8_products_are_exact(tokens: int, columns: int, outputs: int, dtype: torch.dtype) -> None:
    """Whole tiles and parts of them in every direction; sums of integers, scaled in the order of `QuantizedLinear`."""
    layer, x = filled("int8", outputs, columns), values(1, tokens, columns)
    rows = fused.quantize(x.to(dtype), "int8")
    sums = rows.values[0].double() @ layer.weight.double().T
    expected = (sums.float() * rows.scale * layer.scale.t()).to(dtype)
    assert torch.equal(fused.product(layer, rows)[0], expected)


def test_fp8_products_are_those_of_the_layer() -> None:
    layer, x = filled("fp8", 48, 64), values(2, 5, 64)
    found, expected = fused.product(layer, fused.quantize(x, "fp8")), layer(x)
    assert found.shape == (2, 5, 48)
    assert relative_error(found, x @ values(48, 64, seed=9).T) < 0.04
    assert relative_error(found, expected) < 0.03


@pytest.mark.parametrize("scheme", [None, *SCHEMES])
def test_a_row_does_not_know_its_batch(scheme: Scheme | None) -> None:
    x, scale = values(2, 5, 96, dtype=torch.bfloat16), values(2, 96, dtype=torch.bfloat16, seed=1)
    together, alone = fused.scaled_norm(x, scale, EPS, scheme), fused.scaled_norm(x[1:, 2:4], scale[1:], EPS, scheme)
    if isinstance(together, QuantizedRows):
        assert isinstance(alone, QuantizedRows)
        assert torch.equal(together.values[1:, 2:4].float(), alone.values.float())
        assert torch.equal(together.scale[7:9], alone.scale)
    else:
        assert isinstance(alone, Tensor)
        assert torch.equal(together[1:, 2:4], alone)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_a_whole_transformer(size: tuple[int, int], dtype: torch.dtype, limit: float) -> None:
    """With and without padded image tokens; in bf16 a last bit that differs grows, as between any two kernels."""
    theirs = reference.transformer(n_layers=1, n_refiner_layers=1)
    latents, captions = inputs(theirs, size, [5])
    plain, swapped = (ours(theirs).to(DEVICE, dtype) for _ in range(2))
    names = list(swapped.state_dict())
    fused.fuse(swapped)
    assert sum(isinstance(module, FusedBlock) for module in swapped.modules()) == 3
    assert list(swapped.state_dict()) == names
    given = latents.to(DEVICE, dtype), torch.tensor([0.4], device=DEVICE), [text.to(DEVICE, dtype) for text in captions]
    assert relative_error(our_velocity(swapped, *given), our_velocity(plain, *given)) < limit


@torch.no_grad()
def test_half_precision_keeps_its_scaled_hidden_values() -> None:
    theirs = reference.transformer(n_layers=1, n_refiner_layers=0)
    for name in ("w1", "w3"):
        getattr(theirs.layers[0].feed_forward, name).weight.mul_(300)
    latents, captions = inputs(theirs, (8, 8), [5])
    time = torch.tensor([0.5], device=DEVICE)
    exact = our_velocity(ours(theirs).to(DEVICE), latents.to(DEVICE), time, [text.to(DEVICE) for text in captions])
    half = ours(theirs).to(DEVICE, torch.float16)
    fit_half_precision(half)
    fused.fuse(half)
    assert any(isinstance(layer, FeedForward) and layer.hidden_scale != 1 for layer in half.modules())
    found = our_velocity(half, latents.to(DEVICE).half(), time, [text.to(DEVICE).half() for text in captions])
    assert relative_error(found, exact) < 1e-2


@torch.no_grad()
def test_scaled_hidden_values_have_their_eps_scaled_as_well() -> None:
    """With an eps that matters, so that a wrong one shows."""
    model = ours(reference.transformer(n_layers=1, n_refiner_layers=0)).to(DEVICE)
    block = model.layers[0]
    assert isinstance(block, Block)
    block.eps, block.feed_forward.hidden_scale = 0.5, 0.25
    x, rope = values(1, 32, 128), model.rope(0, 0, 32, torch.device(DEVICE))
    modulation = block.norm_weights()[None]
    expected = block(x, rope, modulation)
    fused.fuse(model)
    assert relative_error(block(x, rope, modulation), expected) < 2e-6
