"""Strict placement: what arrives is checked, what is missing is named, and memory follows the stream."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.weights import models
from zturbo.acceleration.quantize import TRANSFORMER_LAYERS, QuantizedLinear, quantize_layers
from zturbo.errors import WeightsError
from zturbo.models.transformer import ZImageTransformer
from zturbo.weights.checkpoint import open_checkpoint
from zturbo.weights.load import load_weights
from zturbo.weights.names import Placement

PLACES = {
    "q": Placement("fused.weight", 0, (2, 3)),
    "k": Placement("fused.weight", 2, (2, 3)),
    "norm": Placement("norm.weight", 0, (3,)),
    "pad": Placement("pad", 0, (1, 3)),
}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fused = nn.Linear(3, 4, bias=False)
        self.norm = nn.RMSNorm(3)
        self.pad = nn.Parameter(torch.zeros(1, 3), requires_grad=False)
        self.register_buffer("table", torch.arange(3))


def made() -> Model:
    with torch.device("meta"):
        return Model()


def tensors() -> dict[str, Tensor]:
    return {
        "q": torch.arange(6.0).reshape(2, 3),
        "k": torch.arange(6.0, 12.0).reshape(2, 3),
        "norm": torch.tensor([1.0, 2.0, 3.0]),
        "pad": torch.tensor([7.0, 8.0, 9.0]),  # as GGUF has it
    }


def load(module: nn.Module, stream: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
    load_weights(module, stream.items(), PLACES, source=Path("some/file"), dtype=dtype, device="cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_reach_their_places(dtype: torch.dtype) -> None:
    module = made()
    load(module, tensors(), dtype)
    assert torch.equal(module.fused.weight, torch.arange(12.0).reshape(4, 3).to(dtype))
    assert torch.equal(module.pad, torch.tensor([[7.0, 8.0, 9.0]], dtype=dtype))
    assert {parameter.dtype for parameter in module.parameters()} == {dtype}
    assert module.fused.weight.requires_grad
    assert not module.pad.requires_grad
    assert module.get_buffer("table").is_meta  # buffers are the module's own business
    back = dict(models.named_weights(module, PLACES))
    assert torch.equal(back["k"], tensors()["k"].to(dtype))


def test_the_module_does_not_share_memory_with_the_stream() -> None:
    module, stream = made(), tensors()
    load(module, stream)
    stream["norm"].zero_()
    assert module.norm.weight.tolist() == [1.0, 2.0, 3.0]


def test_a_stream_that_gives_its_tensors_away_is_not_copied() -> None:
    module, stream = made(), tensors()
    load_weights(module, stream.items(), PLACES, source=Path("f"), dtype=torch.float32, device="cpu", keep=True)
    assert module.norm.weight.data_ptr() == stream["norm"].data_ptr()
    assert module.norm.weight.requires_grad
    assert torch.equal(module.fused.weight, torch.arange(12.0).reshape(4, 3))
    assert not module.pad.requires_grad


def test_parameters_are_allocated_when_their_first_rows_arrive() -> None:
    module = made()
    seen = []

    def stream() -> object:
        for name, tensor in tensors().items():
            seen.append([parameter.is_meta for parameter in (module.fused.weight, module.norm.weight, module.pad)])
            yield name, tensor

    load_weights(module, stream(), PLACES, source=Path("f"), dtype=torch.float32, device="cpu")  # type: ignore[arg-type]
    assert seen == [[True, True, True], [False, True, True], [False, True, True], [False, False, True]]


def test_missing_tensors_are_named() -> None:
    stream = tensors()
    del stream["k"], stream["pad"]
    with pytest.raises(WeightsError, match="some/file: 2 tensors are missing: k, pad"):
        load(made(), stream)


def test_left_over_tensors_are_named_up_to_ten() -> None:
    extra = {f"extra{i:02}": torch.ones(1) for i in range(11)}
    with pytest.raises(WeightsError, match=r"11 tensors do not belong.*extra00.*extra09 \.\.\. \(11 in all\)"):
        load(made(), {**tensors(), **extra})


def test_a_wrong_shape_is_named_with_both() -> None:
    for wrong in (torch.ones(3, 2), torch.ones(6), torch.ones(1, 6), torch.ones(2, 4)):
        with pytest.raises(WeightsError, match=r"some/file: k has the shape .* expected \[2, 3\]"):
            load(made(), {**tensors(), "k": wrong})


def test_axes_of_one_do_not_count() -> None:
    module = made()
    load(module, {**tensors(), "q": torch.arange(6.0).reshape(2, 3, 1, 1), "norm": torch.ones(1, 3)})
    assert torch.equal(module.fused.weight[:2], tensors()["q"])


def test_integers_without_a_format_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"q holds torch\.int8 without a known quantization format"):
        load(made(), {**tensors(), "q": torch.ones(2, 3, dtype=torch.int8)})


def test_a_repeated_tensor_is_refused() -> None:
    stream = [*tensors().items(), ("q", torch.ones(2, 3))]
    with pytest.raises(WeightsError, match="q came twice"):
        load_weights(made(), stream, PLACES, source=Path("f"), dtype=torch.float32, device="cpu")


def test_names_that_leave_a_parameter_empty_are_our_mistake() -> None:
    places = {name: place for name, place in PLACES.items() if name != "norm"}
    stream = {name: tensor for name, tensor in tensors().items() if name != "norm"}
    with pytest.raises(AssertionError, match=r"norm\.weight"):
        load_weights(made(), stream.items(), places, source=Path("f"), dtype=torch.float32, device="cpu")


class Halved(nn.Module):
    """Stands for a quantized linear: keeps its weight in a form of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, Tensor]] = []

    def load_rows(self, first_row: int, rows: Tensor) -> None:
        self.calls.append((first_row, rows))


def test_a_layer_that_takes_rows_receives_them_in_the_target_dtype() -> None:
    module = made()
    layer = Halved()
    module.fused = layer  # type: ignore[assignment]
    load(module, tensors(), torch.bfloat16)
    assert [(row, rows.tolist()) for row, rows in layer.calls] == [
        (0, [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]),
        (2, [[6.0, 7.0, 8.0], [9.0, 10.0, 11.0]]),
    ]
    assert {rows.dtype for _, rows in layer.calls} == {torch.bfloat16}


@pytest.mark.parametrize("layout", ["split", "fused"])
def test_quantized_layers_are_filled_from_either_layout(tmp_path: Path, layout: str) -> None:
    """The real 8-bit layers: row scales make the result independent of how the rows arrived."""
    config, state = models.transformer()
    stored = state if layout == "split" else models.comfy(state)
    component = open_checkpoint(models.save(stored, tmp_path / "f.safetensors")).transformer
    with torch.device("meta"):
        module = ZImageTransformer(config)
    quantize_layers(module, TRANSFORMER_LAYERS, "int8", "cpu")
    component.load_into(module, dtype=torch.float32, device="cpu")
    for name, expected in models.fused_transformer(state).items():
        layer = module.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, QuantizedLinear):
            step = expected.abs().amax(dim=1, keepdim=True) / 127
            assert (((layer.weight.float() * layer.scale) - expected).abs() <= 0.51 * step).all(), name
        else:
            assert torch.equal(module.get_parameter(name), expected), name
    assert isinstance(module.get_submodule("layers.0.attention.to_qkv"), QuantizedLinear)
