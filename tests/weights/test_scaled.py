"""fp8 in its three markings, and the quantizations that are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.weights import models
from zturbo.errors import WeightsError
from zturbo.weights.checkpoint import open_checkpoint
from zturbo.weights.single_file import open_file

FP8 = torch.float8_e4m3fn
State = dict[str, Tensor]


def is_large(name: str, tensor: Tensor) -> bool:
    """The layers that fp8 files quantize: the linears of the blocks."""
    return tensor.ndim == 2 and name.startswith(("layers.", "noise_refiner.", "context_refiner."))


def quantized(weight: Tensor, per_row: bool = False, dtype: torch.dtype = FP8) -> tuple[Tensor, Tensor]:
    """(fp8, fp32 scale) by the largest magnitude, of the tensor or of each row."""
    largest = weight.abs().amax(dim=1) if per_row else weight.abs().amax()
    scale = largest / torch.finfo(dtype).max
    return (weight / (scale[:, None] if per_row else scale)).to(dtype), scale


def meant(weight: Tensor, per_row: bool = False, dtype: torch.dtype = FP8) -> Tensor:
    """What the fp8 tensor and its scale stand for."""
    stored, scale = quantized(weight, per_row, dtype)
    return stored.float() * (scale[:, None] if per_row else scale)


def marker(settings: object) -> Tensor:
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)


def plain(state: State, prefix: str) -> tuple[State, dict[str, str] | None]:
    return {prefix + n: t.to(FP8) if is_large(n, t) else t for n, t in state.items()}, None


def legacy(state: State, prefix: str) -> tuple[State, dict[str, str] | None]:
    out = {f"{prefix}scaled_fp8": torch.zeros(2, dtype=FP8)}
    for name, tensor in state.items():
        out[prefix + name] = tensor
        if is_large(name, tensor):
            layer = prefix + name.removesuffix(".weight")
            out[f"{layer}.weight"], out[f"{layer}.scale_weight"] = quantized(tensor)
            out[f"{layer}.scale_input"] = torch.tensor(1.0)
    return out, None


def legacy_bytes(state: State, prefix: str) -> tuple[State, dict[str, str] | None]:
    """The same in a uint8 container; a mark in fp32 stands for e4m3fn."""
    out, _ = legacy(state, prefix)
    bytes_ = {name: tensor.view(torch.uint8) if tensor.dtype == FP8 else tensor for name, tensor in out.items()}
    return bytes_ | {f"{prefix}scaled_fp8": torch.zeros(2)}, None


def current(state: State, prefix: str) -> tuple[State, dict[str, str] | None]:
    out: State = {}
    for name, tensor in state.items():
        out[prefix + name] = tensor
        if is_large(name, tensor):
            layer = prefix + name.removesuffix(".weight")
            out[f"{layer}.weight"], out[f"{layer}.weight_scale"] = quantized(tensor)
            out[f"{layer}.comfy_quant"] = marker({"format": "float8_e4m3fn", "full_precision_matrix_mult": True})
            out[f"{layer}.input_scale"] = torch.tensor([0.25])
    return out, None


def metadata(state: State, prefix: str) -> tuple[State, dict[str, str] | None]:
    """Layers declared in the file's metadata, here without the prefix, the bytes in a uint8 container."""
    out, layers = {}, {}
    for name, tensor in state.items():
        out[prefix + name] = tensor
        if is_large(name, tensor):
            layer = name.removesuffix(".weight")
            stored, scale = quantized(tensor, per_row=True)
            out[f"{prefix}{layer}.weight"], out[f"{prefix}{layer}.weight_scale"] = (
                stored.view(torch.uint8),
                scale[:, None],
            )
            layers[layer] = {"format": "float8_e4m3fn"}
    return out, {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


@pytest.mark.parametrize("layout", ["diffusers", "comfy"])
@pytest.mark.parametrize(
    ("mark", "prefix", "decoded"),
    [
        (plain, "", lambda t: t.to(FP8).float()),
        (legacy, "model.diffusion_model.", meant),
        (legacy_bytes, "model.diffusion_model.", meant),
        (current, "", meant),
        (metadata, "diffusion_model.", lambda t: meant(t, per_row=True)),
    ],
)
def test_fp8_loads_as_what_it_stands_for(
    tmp_path: Path,
    mark: Callable[[State, str], tuple[State, dict[str, str] | None]],
    prefix: str,
    decoded: Callable[[Tensor], Tensor],
    layout: str,
) -> None:
    _, state = models.transformer()
    original = models.comfy(state) if layout == "comfy" else state
    tensors, note = mark(original, prefix)
    component = open_checkpoint(models.save(tensors, tmp_path / "fp8.safetensors", note)).transformer
    loaded = models.load_transformer(component)

    values = {name: decoded(tensor) if is_large(name, tensor) else tensor for name, tensor in original.items()}
    if layout == "comfy":
        for name in list(values):
            if name.endswith("attention.qkv.weight"):
                parts = zip("qkv", values.pop(name).chunk(3), strict=True)
                values |= {name.replace("qkv", f"to_{letter}"): part for letter, part in parts}
        back = {"attention.out.": "attention.to_out.0.", "q_norm": "norm_q", "k_norm": "norm_k",
                "final_layer": "all_final_layer.2-1"}  # fmt: skip
        for old, new in back.items():
            values = {name.replace(old, new): tensor for name, tensor in values.items()}
        values = {("all_x_embedder.2-1." + n.removeprefix("x_embedder.") if n.startswith("x_emb") else n): t
                  for n, t in values.items()}  # fmt: skip
    models.assert_same(loaded, models.fused_transformer(values))
    largest = max((loaded[n] - models.fused_transformer(state)[n]).abs().max().item() for n in loaded)
    assert 0 < largest < 0.2  # fp8 was really stored, and really scaled


def test_e5m2_and_plain_int8(tmp_path: Path) -> None:
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    stored, scale = quantized(weight, dtype=torch.float8_e5m2)
    path = models.save(
        {"x.weight": stored, "x.weight_scale": scale, "x.comfy_quant": marker({"format": "float8_e5m2"}),
         "y.weight": torch.arange(-3, 3, dtype=torch.int8).reshape(2, 3), "y.weight_scale": torch.tensor([0.5, 2.0]),
         "y.comfy_quant": marker({"format": "int8_tensorwise"}),
         "z.bias": weight.to(torch.float8_e5m2)}, tmp_path / "f",
    )  # fmt: skip
    source = open_file(path)
    assert source.shapes == {"x.weight": (6, 8), "y.weight": (2, 3), "z.bias": (6, 8)}
    tensors = dict(source.tensors(frozenset(source.shapes), torch.float32))
    assert torch.equal(tensors["x.weight"], stored.float() * scale)
    assert torch.equal(tensors["y.weight"], torch.tensor([[-1.5, -1.0, -0.5], [0.0, 2.0, 4.0]]))
    assert torch.equal(tensors["z.bias"], weight.to(torch.float8_e5m2).float())


def test_scaling_is_rounded_once(tmp_path: Path) -> None:
    """bf16(fp8 * scale), not bf16(fp8) * bf16(scale)."""
    stored = torch.randn(300, 8, generator=torch.Generator().manual_seed(0)).to(FP8)
    scale = torch.tensor(0.123456789)
    path = models.save({"x.weight": stored, "x.scale_weight": scale, "scaled_fp8": torch.zeros(0)}, tmp_path / "f")
    ((_, got),) = open_file(path).tensors(frozenset({"x.weight"}), torch.bfloat16)
    assert torch.equal(got, (stored.float() * scale).bfloat16())
    assert not torch.equal(got, stored.bfloat16() * scale.bfloat16())


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"x.comfy_quant": marker({"format": "nvfp4"}), "x.weight_scale": torch.ones(())}, "as nvfp4"),
        ({"x.weight_scale_2": torch.ones(())}, "quantized as nvfp4"),
        ({"x.comfy_quant": marker({"format": "mxfp8"}), "x.weight_scale": torch.ones(())}, "as mxfp8"),
        (
            {"x.comfy_quant": marker({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256}),
             "x.weight_scale": torch.ones(())},
            r"rotated weights \(convrot\)",
        ),
        ({"x.qweight": torch.ones(1)}, "SVDQuant"),
        ({"x.smooth_factor": torch.ones(1)}, "SVDQuant"),
        ({"x.weight_scale_inv": torch.ones(1, 1)}, "block-wise fp8"),
        ({"x.weight": torch.ones(3, 4, dtype=torch.uint8), "x.weight_scale": torch.ones(())}, "names no format"),
        ({"x.weight.absmax": torch.ones(1)}, "bitsandbytes"),
        ({"x.weight_scale": torch.ones(2, 2)}, r"block scales 'x.weight_scale' of shape \[2, 2\]"),
    ],
)  # fmt: skip
def test_other_quantizations_are_refused_with_an_alternative(tmp_path: Path, extra: State, reason: str) -> None:
    path = models.save({"x.weight": torch.zeros(3, 4).to(FP8), **extra}, tmp_path / "f")
    with pytest.raises(WeightsError, match=reason) as caught:
        dict(open_file(path).tensors(frozenset({"x.weight"}), torch.float32))
    assert str(path) in caught.value.message
    assert "use the bf16, fp8 or GGUF file" in caught.value.hint


@pytest.mark.parametrize(
    ("extra", "note", "reason"),
    [
        ({"x.comfy_quant": marker({"format": "float8_e4m3fn"})}, None, "without a scale"),
        ({"x.comfy_quant": torch.tensor([255], dtype=torch.uint8)}, None, "unreadable x.comfy_quant"),
        ({"x.comfy_quant": marker([])}, None, "not a JSON object"),
        ({"x.comfy_quant": marker({})}, None, "without naming a format"),
        ({"x.comfy_quant": torch.zeros(4)}, None, "not a short uint8 text"),
        ({"x.scale_weight": torch.tensor(float("nan"))}, None, "not finite"),
        ({"x.weight_scale": torch.tensor(float("inf"))}, None, "not finite"),
        (
            {"x.comfy_quant": marker({"format": "int8_tensorwise"}), "x.weight_scale": torch.ones(())},
            None,
            "but stores",
        ),
        ({}, "{", "unreadable _quantization_metadata"),
        ({}, "[" * 100_000, "unreadable _quantization_metadata"),
        ({}, "{}", "without layers"),
        ({}, '{"layers": {"nowhere": {"format": "float8_e4m3fn"}}}', "'nowhere', which has no weight"),
        ({}, '{"layers": {"x": 1}}', "without naming a format"),
    ],
)
def test_inconsistent_markings_are_refused(tmp_path: Path, extra: State, note: str | None, reason: str) -> None:
    metadata = {"_quantization_metadata": note} if note else None
    path = models.save({"x.weight": torch.zeros(3, 4).to(FP8), **extra}, tmp_path / "f", metadata)
    with pytest.raises(WeightsError, match=reason) as caught:
        dict(open_file(path).tensors(frozenset({"x.weight"}), torch.float32))
    assert str(path) in caught.value.message


def test_a_scale_of_a_missing_weight_is_left_over(tmp_path: Path) -> None:
    _, state = models.transformer()
    path = models.save({**state, "layers.1.attention.to_x.weight_scale": torch.ones(())}, tmp_path / "f.safetensors")
    with pytest.raises(WeightsError, match=r"1 tensors do not belong to this model: layers\.1\.attention\.to_x"):
        open_checkpoint(path)
