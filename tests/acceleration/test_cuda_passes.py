"""The passes for CUDA: when they are taken, what they do to a fork, and what their products lose."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests import reference
from tests.parity.test_transformer import ours, relative_error
from zturbo.acceleration import cuda, fused, levels
from zturbo.acceleration.fused import FusedBlock
from zturbo.acceleration.quantize import TRANSFORMER_LAYERS, QuantizedLinear, Scheme, quantize_loaded
from zturbo.acceleration.verdicts import judged_once
from zturbo.engine.engine import Engine, LoadOptions
from zturbo.engine.pipeline import Pipeline
from zturbo.models.transformer import Block
from zturbo.params import ACCELERATIONS, GenerationParams

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.kernels,
    pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning"),
]


@pytest.fixture
def pipeline(tiny_folder: Path) -> Pipeline:
    return Engine.load(str(tiny_folder), LoadOptions(device=DEVICE, dtype="bfloat16")).pipeline


def clock(*seconds: float) -> Callable[[Callable[[], Tensor]], float]:
    """Does the work and gives the next of these times; the working dtype and 8 bits take turns."""
    times = iter(seconds * 4)

    def timed(work: Callable[[], Tensor]) -> float:
        work()
        return next(times)

    return timed


def test_the_kernels_pass_their_trial_here(pipeline: Pipeline) -> None:
    assert cuda.kernel_trial(pipeline) is None
    assert not any(isinstance(module, FusedBlock) for module in pipeline.transformer.modules())


def test_kernels_that_are_wrong_fail_their_trial(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "add_gated", lambda x, y, *_: x + y)
    assert "their result is off by" in str(cuda.kernel_trial(pipeline))


def test_kernels_that_do_not_compile_fail_their_trial(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> None:
        raise OSError("no C compiler\nand much more")

    monkeypatch.setattr(fused, "scaled_norm", broken)
    assert cuda.kernel_trial(pipeline) == "they fail (OSError: no C compiler)"


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_products_that_gain_too_little_stay(
    pipeline: Pipeline, scheme: Scheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "TIMED_TOKENS", 32)
    monkeypatch.setattr(cuda, "has_product", lambda _layer: True)  # a GPU has none of sizes as small as these
    monkeypatch.setattr(fused, "product", lambda _layer, rows: rows.values)
    assert cuda.products_unfit(pipeline, scheme, clock(1.2, 1.0)) is None
    assert (
        cuda.products_unfit(pipeline, scheme, clock(1.1, 1.0)) == "they are 1.10 times as fast here, and must be 1.15"
    )
    quantize_loaded(pipeline.transformer, TRANSFORMER_LAYERS, scheme)
    assert cuda.products_unfit(pipeline, scheme, clock(9.0, 1.0)) == "the weights are in 8 bits already"


def test_products_of_sizes_that_the_device_has_not_are_left_alone(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "has_product", lambda layer: layer.in_features != layer.out_features)
    asked = clock()  # has no time to give
    assert cuda.products_unfit(pipeline, "fp8", asked) == "this device has none of their sizes"


def test_a_device_that_refuses_products_keeps_its_model(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_arguments: object) -> Tensor:
        raise RuntimeError("row-wise scaling is for other cards\nand much more")

    monkeypatch.setattr(cuda, "TIMED_TOKENS", 32)
    monkeypatch.setattr(cuda, "has_product", lambda _layer: True)
    monkeypatch.setattr(fused, "product", refusing)
    found = cuda.products_unfit(pipeline, "fp8", clock(1.2, 1.0))
    assert found == "they fail (RuntimeError: row-wise scaling is for other cards)"


def test_the_hosts_launch_is_no_part_of_a_products_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        """Of a device that waits 1 ms for the first launch after it was idle."""

        now_ms = 0.0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at, Event.now_ms = Event.now_ms, Event.now_ms + 1

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, other: "Event") -> float:
            return other.at - self.at

    def work() -> Tensor:
        Event.now_ms += 2
        return torch.empty(0)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert cuda.device_seconds(work) == pytest.approx(2e-3, rel=0.06)


def test_a_verdict_is_given_once(pipeline: Pipeline) -> None:
    answers = iter(("too slow", None))
    judge = judged_once(lambda _pipeline: next(answers))
    assert [judge(pipeline), judge(pipeline)] == ["too slow", "too slow"]


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_a_forks_products_are_its_own(pipeline: Pipeline, scheme: Scheme) -> None:
    fork = pipeline.fork("high")
    before = dict(pipeline.transformer.named_parameters())
    quantize_loaded(fork.transformer, TRANSFORMER_LAYERS, scheme)
    cuda.fuse_blocks(fork)
    assert dict(pipeline.transformer.named_parameters()) == before
    quantized = [layer for layer in fork.transformer.modules() if isinstance(layer, QuantizedLinear)]
    assert len(quantized) == 4 * 7
    assert sum(layer.weight.nbytes for layer in quantized) == cuda.quantized_bytes(pipeline)
    assert all(isinstance(module, FusedBlock) for module in fork.transformer.modules() if isinstance(module, Block))


@pytest.mark.skipif(DEVICE == "cuda", reason="about machines without CUDA")
def test_without_cuda_there_is_nothing_of_it(pipeline: Pipeline) -> None:
    made = levels.Levels(pipeline)
    of_cuda = {one.name for passes in levels.LEVELS.values() for one in passes if one.devices == levels.CUDA}
    assert all(of_cuda.isdisjoint((*made[name].passes, *made[name].left_out)) for name in ACCELERATIONS)


def test_a_processor_needs_no_triton_and_no_compiler() -> None:
    """Loading and drawing import neither: both take seconds, and Triton is not everywhere."""
    program = (
        "import sys; from zturbo.engine.engine import Engine, LoadOptions\n"
        "Engine.load('nano', LoadOptions(device='cpu'))\n"
        "print(sorted({'triton', 'torch._dynamo', 'torch._inductor'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert found == "[]\n"


@pytest.mark.parametrize("name", ACCELERATIONS)
def test_graphs_come_last_and_nobody_continues_them(name: str) -> None:
    passes = [one for one in levels.LEVELS[name] if "cuda" in one.devices]
    assert passes[-1] is levels.GRAPHS
    assert levels.GRAPHS not in passes[:-1]


def loud_block(loud: float) -> tuple[Block, Tensor, Tensor, Tensor]:
    """A block of useful size and its inputs, of which two tokens of 48 drive one hidden value to some `loud`.

    One direction of the stream is positive in quiet tokens and closes that channel's gate; in the loud tokens it is
    negative and large, as the massive activations of trained transformers are.
    """
    model = ours(reference.transformer(n_layers=1, n_refiner_layers=0)).to(DEVICE)
    block = model.layers[0]
    assert isinstance(block, Block)
    direction = F.normalize(torch.randn(128, generator=torch.Generator().manual_seed(5)), dim=0).to(DEVICE)
    x = torch.randn(1, 48, 128, generator=torch.Generator().manual_seed(6)).to(DEVICE)
    x += 2 * direction
    x[:, [7, 30]] -= 60 * direction
    modulation = block.norm_weights()[None] * 0.6
    hidden = block.feed_forward.w13.weight.shape[0] // 2
    with torch.no_grad():
        for row in (3, hidden + 3):
            block.feed_forward.w13.weight[row] = -direction * loud**0.5 / 5.3
    return block, x, model.rope(4, 4, 32, x.device)[:48].contiguous(), modulation


@torch.no_grad()
@pytest.mark.parametrize(("scheme", "limit"), [("int8", 2e-2), ("fp8", 5e-2)])
@pytest.mark.parametrize("loud", [1.0, 6.6e4])
def test_a_block_in_8_bits_is_close_also_with_loud_hidden_values(loud: float, scheme: Scheme, limit: float) -> None:
    block, x, rope, modulation = loud_block(loud)
    found: list[float] = []
    block.feed_forward.w2.register_forward_pre_hook(lambda _layer, given: found.append(float(given[0].abs().max())))
    expected = block(x, rope, modulation)
    if loud > 1:
        assert 4e4 < found[0] < 4e5
    quantize_loaded(block, TRANSFORMER_LAYERS, scheme)
    block.__class__ = FusedBlock
    result = block(x, rope, modulation)
    assert relative_error(result, expected) < limit
    quiet = [token for token in range(48) if token not in (7, 30)]
    assert relative_error(result[:, quiet], expected[:, quiet]) < limit


@pytest.mark.gpu
@pytest.mark.parametrize("level", ACCELERATIONS)
def test_levels_on_the_device(tiny_folder: Path, level: str) -> None:
    """Each level draws the picture of eager arithmetic, and the same bytes again; what it is made of is printed."""
    params = GenerationParams.parse({"prompt": "a cat", "size": "512x512", "seed": 7, "acceleration": level})
    engine = Engine.load(str(tiny_folder), LoadOptions(device="cuda", acceleration=level))
    print(engine.block())
    pictures = []
    for _ in range(3):
        *_, last = engine.draw(params)
        pictures.append(last.pictures[0].pixels.astype(int))
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] == pictures[2]).all()
    pipeline = engine.pipeline
    *_, step = pipeline.denoise(pipeline.caption("a cat"), 512, 512, 8, 7)
    assert abs(pictures[0] - pipeline.decode(step.latents).astype(int)).mean() < (6 if level == "none" else 12)
