"""Graphs of the denoiser: which shapes are recorded, what a replay reads and returns, which graphs leave.

On a CPU a stand-in records; the tests marked gpu record with CUDA.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from tests import reference
from tests.parity.test_transformer import ours
from zturbo.acceleration import graphs
from zturbo.acceleration.graphs import CudaRecorder, Graphs, replay
from zturbo.engine.sampling import sigmas, timesteps
from zturbo.models.transformer import Modulation, ZImageTransformer


@dataclass
class Again:
    """Does recorded work again, into the same result, as a CUDA graph does."""

    work: Callable[[], Tensor]
    result: Tensor

    def replay(self) -> None:
        with torch.inference_mode():
            self.result.copy_(self.work())


@dataclass
class StandIn:
    """Records by keeping the work; can refuse."""

    refuses: bool = False
    recorded: list[Again] = field(default_factory=list)

    def record(self, work: Callable[[], Tensor]) -> Again:
        if self.refuses:
            raise torch.OutOfMemoryError("no memory")
        self.recorded.append(Again(work, torch.zeros_like(work())))
        return self.recorded[-1]


@pytest.fixture(scope="module")
def transformer() -> ZImageTransformer:
    return ours(reference.transformer(n_layers=1, n_refiner_layers=1))


def graphed(recorder: StandIn, most: int = 8) -> tuple[ZImageTransformer, Graphs]:
    model = ours(reference.transformer(n_layers=1, n_refiner_layers=1))
    return model, replay(model, recorder, most)


Inputs = tuple[Tensor, Tensor, Modulation]


def inputs(model: ZImageTransformer, size: tuple[int, int] = (8, 8), words: int = 5, step: int = 0) -> Inputs:
    """Of one picture at one step; each step and each prompt has its own values."""
    generator = torch.Generator().manual_seed(100 * step + words)
    device, dtype = model.x_pad_token.device, model.x_pad_token.dtype
    latents = torch.randn(1, 16, *size, generator=generator).to(device, dtype)
    text = torch.randn(1, words, model.config.cap_feat_dim, generator=generator).to(device, dtype)
    modulation = model.modulation(timesteps(sigmas(4, 3.0), 1000).to(device))
    return latents, model.embed_caption(text), modulation[step]


@torch.no_grad()
def test_the_second_forward_of_a_shape_is_recorded_and_replayed_from_then_on(transformer: ZImageTransformer) -> None:
    """Each step has other latents and other modulation, each prompt another caption: none stays in the graph."""
    recorder = StandIn()
    model, kept = graphed(recorder)
    for step, words in enumerate((5, 31, 17, 5)):
        given = inputs(transformer, words=words, step=step)
        assert torch.equal(model(*given), transformer(*given))
        assert len(kept) == min(step, 1)
    assert len(recorder.recorded) == 1


@torch.no_grad()
def test_slots_sizes_and_batches_have_graphs_of_their_own(transformer: ZImageTransformer) -> None:
    recorder = StandIn()
    model, kept = graphed(recorder)
    shapes = [inputs(transformer, (8, 8), 32), inputs(transformer, (8, 8), 33), inputs(transformer, (8, 12), 5)]
    latents, caption, modulation = shapes[0]
    shapes.append((latents.repeat(2, 1, 1, 1), caption.repeat(2, 1, 1), modulation))
    for _ in range(3):
        for given in shapes:
            assert torch.equal(model(*given), transformer(*given))
    assert len(kept) == len(recorder.recorded) == 4


@torch.no_grad()
def test_a_result_outlives_the_next_replay(transformer: ZImageTransformer) -> None:
    """A preview may be decoded after another request's step."""
    model, _ = graphed(StandIn())
    first, second = inputs(transformer, step=0), inputs(transformer, step=1)
    model(*first)
    model(*first)
    found = model(*first)
    model(*second)
    assert torch.equal(found, transformer(*first))


@torch.no_grad()
def test_positions_are_those_of_the_call(transformer: ZImageTransformer) -> None:
    model, kept = graphed(StandIn())
    given = inputs(transformer)
    for shift in (0, 1, 2):
        rope = transformer.rope(4, 4, 32, torch.device("cpu")).roll(shift, 0)
        assert torch.equal(model(*given, rope), transformer(*given, rope))
    assert len(kept) == 1


@torch.no_grad()
def test_the_least_recently_used_graph_leaves(transformer: ZImageTransformer) -> None:
    recorder = StandIn()
    model, kept = graphed(recorder, most=2)
    small, wide, tall = (inputs(transformer, size) for size in ((8, 8), (8, 12), (12, 8)))
    for given in (small, small, wide, wide, small, tall, tall):
        model(*given)
    assert len(kept) == 2
    model(*small)
    assert len(recorder.recorded) == 3  # small was used after wide, so wide had to leave
    assert torch.equal(model(*wide), transformer(*wide))
    assert len(recorder.recorded) == 4


@torch.no_grad()
def test_shapes_that_come_once_cost_no_graph(transformer: ZImageTransformer) -> None:
    recorder = StandIn()
    model, kept = graphed(recorder, most=2)
    small = inputs(transformer)
    model(*small)
    model(*small)
    for columns in range(10, 30, 2):
        model(*inputs(transformer, (8, columns)))
    assert len(recorder.recorded) == len(kept) == 1
    model(*small)
    assert len(recorder.recorded) == 1


@torch.no_grad()
def test_large_pictures_are_not_recorded(transformer: ZImageTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_TOKENS", 16)
    recorder = StandIn()
    model, _ = graphed(recorder)
    for _ in range(3):
        model(*inputs(transformer, (8, 8)))
        model(*inputs(transformer, (8, 10)))
    assert len(recorder.recorded) == 1


@torch.no_grad()
def test_what_cannot_be_recorded_is_drawn_all_the_same(
    transformer: ZImageTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = StandIn()
    model, kept = graphed(recorder)
    small, wide = inputs(transformer), inputs(transformer, (8, 12))
    model(*small)
    model(*small)
    recorder.refuses = True
    for _ in range(3):
        assert torch.equal(model(*wide), transformer(*wide))
    assert kept.failure is not None
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # told once, not tried again
    assert torch.equal(model(*small), transformer(*small))
    assert len(kept) == 1


def test_a_graph_made_in_inference_mode_serves_outside_of_it(transformer: ZImageTransformer) -> None:
    model, kept = graphed(StandIn())
    with torch.inference_mode():
        given = inputs(transformer)
        model(*given)
        model(*given)
    with torch.no_grad():
        fresh = inputs(transformer, step=1)
        assert torch.equal(model(*fresh), transformer(*fresh))
    assert len(kept) == 1


@pytest.mark.gpu
@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replays_are_bit_equal_on_the_device(dtype: torch.dtype) -> None:
    theirs = reference.transformer()
    plain, model = (ours(theirs).to("cuda", dtype) for _ in range(2))
    kept = replay(model, CudaRecorder(torch.device("cuda")), most=2)
    for _ in range(3):
        for size, words in (((16, 16), 5), ((16, 24), 40), ((16, 16), 5), ((12, 18), 70)):
            for step in range(4):
                given = inputs(plain, size, words, step)
                assert torch.equal(model(*given), plain(*given))
    assert len(kept) == 2
    assert kept.failure is None


@pytest.mark.gpu
@torch.inference_mode()
def test_graphs_share_their_memory() -> None:
    """Many sizes reserve what the largest takes, and launch parameters, but no working memory of their own."""
    plain = ours(reference.transformer(dim=512, n_heads=8, n_kv_heads=8, axes_dims=[16, 24, 24])).to(
        "cuda", torch.bfloat16
    )
    kept = replay(plain, CudaRecorder(torch.device("cuda")))
    reserved = []
    for columns in (128, 120, 112, 104, 96, 88, 80, 72):
        given = inputs(plain, (128, columns))
        for _ in range(2):
            plain(*given)
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert len(kept) == 8
    assert kept.failure is None
    assert reserved[-1] - reserved[0] < 64 * 2**20
