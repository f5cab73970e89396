"""CUDA graphs of the denoiser: one launch per forward in place of hundreds, which decides the time of small pictures.

    replay(transformer, CudaRecorder(device))

A graph belongs to one shape: batch, latents, caption slots. Slots are multiples of 32 by the model's own rule, so
there are few, and nothing is padded for the graphs' sake. The first forward of a shape runs as it is, which compiles
kernels and fills caches; the second is recorded; from then on it is replayed. What a forward reads (latents, caption,
the step's modulation, positions) is copied into buffers that the graph was recorded on, on the device and without
waiting for it: a graph knows nothing of steps, prompts or requests. Its result is copied out before anybody else can
replay.

All graphs share one pool of memory, so many take no more than the largest. That is safe because only one runs at a
time (CUDA has one lane) and nothing in the pool is read after the replay that wrote it.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from zturbo.models.configs import TransformerConfig
from zturbo.models.transformer import Modulation, ZImageTransformer

log = logging.getLogger("zturbo")

MOST_GRAPHS = 32
"""Each holds its launches and its input buffers, some 10 MB at the 6B's shapes."""
GRAPH_BYTES = 10 * 2**20
MOST_TOKENS = 8192
"""Image tokens of one call beyond which the device is busy however slowly launches come: 1448x1448."""
MOST_CAPTION_SLOTS = 512

Key = tuple[torch.Size, ...]


class Recording(Protocol):
    """Work that was recorded and can be done again on the same memory."""

    @property
    def result(self) -> Tensor:
        """What the work returned; every replay writes it anew."""

    def replay(self) -> None:
        """Do it again."""


class Recorder(Protocol):
    """What turns work into a recording."""

    def record(self, work: Callable[[], Tensor]) -> Recording:
        """Record work that ran before with the same shapes.

        Raises:
            RuntimeError: it cannot be recorded: no memory, or something in it that graphs do not allow.
        """


@dataclass(frozen=True, slots=True)
class Graph:
    """One shape's recording, and the buffers that it reads."""

    inputs: tuple[Tensor, ...]
    recording: Recording

    def run(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """The forward of other inputs of the same shape."""
        for buffer, given in zip(self.inputs, inputs, strict=True):
            buffer.copy_(given)
        self.recording.replay()
        return self.recording.result.clone()


class Graphs:
    """A transformer's forward, recorded per shape and replayed.

    Args:
        transformer: what is recorded.
        recorder: of its device.
        most: graphs kept; the least recently used one leaves first.
    """

    def __init__(self, transformer: ZImageTransformer, recorder: Recorder, most: int = MOST_GRAPHS) -> None:
        self.recorder, self.most = recorder, most
        self.failure: str | None = None
        """Why no more graphs are recorded."""
        self._forward, self._positions = transformer.forward, transformer.rope
        self._patch = transformer.config.patch_size
        self._seen: OrderedDict[Key, None] = OrderedDict()
        self._graphs: OrderedDict[Key, Graph] = OrderedDict()

    def __len__(self) -> int:
        """How many graphs there are."""
        return len(self._graphs)

    def __call__(self, latents: Tensor, caption: Tensor, modulation: Modulation, rope: Tensor | None = None) -> Tensor:
        """`ZImageTransformer.forward`."""
        batch, _, height, width = latents.shape
        rows, columns = height // self._patch, width // self._patch
        if rope is None:
            rope = self._positions(rows, columns, caption.shape[1], latents.device)
        inputs = (latents, caption, modulation.blocks, modulation.final, rope)
        key = tuple(one.shape for one in inputs)
        if key not in self._graphs:
            ready = key in self._seen and batch * rows * columns <= MOST_TOKENS and self.failure is None
            _use(self._seen, key, None, 2 * self.most)
            if not (ready and self._record(key, inputs)):
                return self._forward(latents, caption, modulation, rope)
        graph = self._graphs[key]
        _use(self._graphs, key, graph, self.most)
        return graph.run(inputs)

    def _record(self, key: Key, inputs: tuple[Tensor, ...]) -> bool:
        """Make the graph of a shape; False where that cannot be done, and then it is not tried again."""
        with torch.inference_mode(False):  # buffers that may be written outside of inference mode as well
            buffers = tuple(torch.empty(one.shape, dtype=one.dtype, device=one.device) for one in inputs)
        for buffer, given in zip(buffers, inputs, strict=True):
            buffer.copy_(given)
        latents, caption, blocks, final, rope = buffers
        try:
            recording = self.recorder.record(lambda: self._forward(latents, caption, Modulation(blocks, final), rope))
        except RuntimeError as error:
            self.failure = f"{type(error).__name__}: {error}"
            log.warning("no CUDA graph of latents %s, and no more are recorded: %s", tuple(key[0]), self.failure)
            return False
        _use(self._graphs, key, Graph(buffers, recording), self.most)
        return True


def _use(kept: OrderedDict[Key, Any], key: Key, value: object, most: int) -> None:
    """Make an entry the latest; the oldest leave."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)


def replay(transformer: ZImageTransformer, recorder: Recorder, most: int = MOST_GRAPHS) -> Graphs:
    """Put graphs in the place of a transformer's forward."""
    graphs = Graphs(transformer, recorder, most)
    transformer.forward = graphs  # type: ignore[method-assign]
    return graphs


def memory(config: TransformerConfig, itemsize: int) -> int:
    """Most bytes that the graphs of a transformer take: the values alive in the largest forward, and each one's own."""
    values = 4 * config.dim + 3 * max(config.dim, config.hidden_dim)
    return values * (MOST_TOKENS + MOST_CAPTION_SLOTS) * itemsize + MOST_GRAPHS * GRAPH_BYTES


@dataclass(frozen=True, slots=True)
class CudaRecording:
    """A captured CUDA graph."""

    graph: torch.cuda.CUDAGraph
    result: Tensor

    def replay(self) -> None:
        """Launch it on the current stream."""
        self.graph.replay()


class CudaRecorder:
    """Captures CUDA graphs into one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], Tensor]) -> CudaRecording:
        """Capture work on a stream of its own, where it runs once before: libraries take workspaces per stream."""
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        with _returning_to(here):
            self._stream.wait_stream(here)
            with torch.cuda.stream(self._stream):
                work()
            here.wait_stream(self._stream)
            # thread_local: what other threads do on the device meanwhile, such as a safety checker, is none of this
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                result = work()
        return CudaRecording(graph, result)


@contextmanager
def _returning_to(stream: torch.cuda.Stream) -> Iterator[None]:
    """A capture that fails can leave its own stream as the current one."""
    try:
        yield
    finally:
        torch.cuda.set_stream(stream)
