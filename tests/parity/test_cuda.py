"""What only a CUDA device can show: its 8-bit products, streamed layers, and whole pictures beside the CPU's."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.parity.test_transformer import relative_error
from zturbo.acceleration.quantize import QuantizedLinear, Scheme
from zturbo.engine.engine import Engine, LoadOptions
from zturbo.engine.offload import stream_layers
from zturbo.params import GenerationParams

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("sizes", [(256, 512), (128, 682), (136, 264)])
@pytest.mark.parametrize("tokens", [1, 17, 2048 + 5, 4224])
@pytest.mark.parametrize(("scheme", "limit"), [("int8", 0.02), ("fp8", 0.045)])
def test_8_bit_products(scheme: Scheme, limit: float, tokens: int, sizes: tuple[int, int], dtype: torch.dtype) -> None:
    """For shapes that the device has kernels for, and for those where the weight is expanded."""
    torch.manual_seed(0)
    weight, x = torch.randn(sizes[1], sizes[0]), torch.randn(1, tokens, sizes[0])
    layer = QuantizedLinear(sizes[0], sizes[1], scheme, "cuda")
    layer.load_rows(0, weight)
    found = layer(x.to("cuda", dtype))
    assert found.dtype == dtype
    assert relative_error(found.cpu(), F.linear(x, weight)) < limit


def test_a_streamed_text_encoder_equals_a_resident_one(tiny_folder: Path) -> None:
    resident = Engine.load(str(tiny_folder), LoadOptions(device="cuda", dtype="float32")).pipeline
    streamed = Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32")).pipeline.text_encoder
    stream_layers(streamed, torch.device("cuda"))
    ids = resident.tokenizer.encode("a cat")
    with torch.inference_mode():
        assert relative_error(streamed.encode(ids).cpu(), resident.text_encoder.encode(ids.cuda()).cpu()) < 1e-5


@pytest.mark.parametrize(("dtype", "levels"), [("float32", 1.0), ("bfloat16", 6.0), ("float16", 2.0)])
def test_a_picture_beside_the_cpus(tiny_folder: Path, dtype: str, levels: float) -> None:
    """The same seed on both devices: the mean difference in levels of 255."""
    params = GenerationParams.parse({"prompt": "a cat", "size": "512x512", "seed": 7})
    pictures = []
    for device, precision in (("cpu", "float32"), ("cuda", dtype)):
        *_, last = Engine.load(str(tiny_folder), LoadOptions(device=device, dtype=precision)).draw(params)
        pictures.append(last.pictures[0].pixels.astype(int))
    assert np.abs(pictures[0] - pictures[1]).mean() < levels
