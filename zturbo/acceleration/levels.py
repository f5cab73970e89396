"""The acceleration levels `none`, `regular`, `high`: ordered lists of passes; only this file decides these words.

A pass changes a fork of a loaded pipeline from outside: the fork has modules of its own and the same weights, so one
engine draws requests of all three levels. Which passes a level has is decided once, when the level is first asked
for, by the device, the model and the memory; the reason is printed, and nothing is swapped under a running engine:
the same request must give the same bytes in the first minute and in the last. A level whose passes come down to those
of a lower one draws as that one, and says so.

What a pass must compile is built by `build_passes`, by servers while they load and by `make setup`, and kept on the
disk. A single `zturbo generate` never builds: it takes what is there.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from zturbo.acceleration import cpu, cuda, native
from zturbo.engine.pipeline import Pipeline
from zturbo.engine.plan import GIB
from zturbo.params import ACCELERATIONS

log = logging.getLogger("zturbo")


@dataclass(frozen=True, slots=True)
class Pass:
    """One change of a pipeline.

    Attributes:
        name: a few words for the start-up block.
        lossless: the picture stays equal but for the rounding of the working dtype.
        unfit: why this device or this model does without the pass; None where it pays.
        apply: changes a fork.
        bytes_needed: device memory that it takes beside the weights, and while drawing beyond what the plan counts.
        build: compiles what `unfit` then looks for; may take minutes the first time, and nothing afterwards.
        devices: where it is offered at all; elsewhere it is not even mentioned.
        follows: the pass that it changes, whose memory it uses; a level without that one does without this one.
        instead_of: the pass that it stands in for; a level with that one does without this one.
    """

    name: str
    lossless: bool
    unfit: Callable[[Pipeline], str | None]
    apply: Callable[[Pipeline], None]
    bytes_needed: Callable[[Pipeline], int] = lambda _pipeline: 0
    build: Callable[[], None] | None = None
    devices: tuple[str, ...] = ("cpu", "cuda", "mps")
    follows: "Pass | None" = None
    instead_of: "Pass | None" = field(default=None, compare=False)  # it is the same pass wherever it stands


Table = Mapping[str, tuple[Pass, ...]]
CUDA = ("cuda",)
FUSED = Pass("fused kernels", True, cuda.fused_unfit, cuda.fuse_blocks, devices=CUDA)
INT8 = Pass("int8 products", False, cuda.int8_unfit, cuda.to_int8, cuda.quantized_bytes, devices=CUDA)
FP8 = Pass("fp8 products", False, cuda.fp8_unfit, cuda.to_fp8, cuda.quantized_bytes, devices=CUDA)
INT8_INSTEAD = replace(INT8, instead_of=FP8)
GRAPHS = Pass("CUDA graphs", True, cuda.graphs_unfit, cuda.record_forwards, cuda.graph_bytes, devices=CUDA)
CPU = ("cpu",)
NATIVE = Pass("native blocks", True, cpu.native_unfit, cpu.to_native, cpu.native_bytes, native.build, CPU)
DECODER = Pass("native decoder", True, cpu.decoder_unfit, cpu.to_native_decoder, cpu.decoder_bytes, native.build, CPU)
INTEGERS = Pass("integer products", False, cpu.integers_unfit, cpu.to_integers, cpu.integer_bytes, native.build, CPU)
INTEGER_DECODER = Pass(
    "integer decoder",
    False,
    cpu.integer_decoder_unfit,
    cpu.to_integer_decoder,
    cpu.integer_decoder_bytes,
    native.build,
    CPU,
    DECODER,
)
INTEGER_DOWN = Pass(
    "8-bit down projections",
    False,
    cpu.integer_down_unfit,
    cpu.to_integer_down,
    cpu.integer_down_bytes,
    native.build,
    CPU,
    INTEGERS,
)
GUESSES = Pass("extrapolated forwards", False, cpu.guess_unfit, cpu.guess_forwards, devices=CPU)

LEVELS: Table = {
    "none": (FUSED, GRAPHS, NATIVE, DECODER),
    "regular": (INT8, FUSED, GRAPHS, NATIVE, DECODER, INTEGERS, INTEGER_DECODER),
    "high": (FP8, INT8_INSTEAD, FUSED, GRAPHS, NATIVE, DECODER, INTEGERS, INTEGER_DECODER, INTEGER_DOWN, GUESSES),
}
"""On CUDA a level's graphs come last: a graph keeps what it was recorded of."""


@dataclass(frozen=True, slots=True)
class Level:
    """A level as this engine draws it.

    Attributes:
        name: as asked for.
        drawn: the level that really draws: `name`, or the lowest one with the same passes.
        passes: names of the passes it has.
        pipeline: the fork they were applied to.
        added_bytes: device memory it takes beside the model's weights.
        left_out: passes that this device or model does without, and why.
    """

    name: str
    drawn: str
    passes: tuple[str, ...]
    pipeline: Pipeline
    added_bytes: int
    left_out: dict[str, str]

    def __str__(self) -> str:
        """A line of the start-up block."""
        what = ", ".join(self.passes) or "the reference's arithmetic, operation by operation"
        text = what if self.drawn == self.name else f"draws as {self.drawn}"
        memory = f" (+{self.added_bytes / GIB:.2f} GiB)" if self.added_bytes and self.drawn == self.name else ""
        return text + memory + "".join(f"; no {name}: {reason}" for name, reason in self.left_out.items())


class Levels:
    """The levels of one engine; safe to use from several threads.

    What each consists of is decided at once, for all of them, so that it depends on no request; a level is made when
    it is first asked for. One that continues a lower one's passes shares what that one made.

    Args:
        pipeline: loaded, without passes.
        spare_bytes: device memory that all levels together may take beside it.
        table: the passes of each level.
    """

    def __init__(self, pipeline: Pipeline, spare_bytes: int = 0, table: Table | None = None) -> None:
        self._pipeline = pipeline
        self._chosen: dict[str, tuple[Pass, ...]] = {}
        self._left_out: dict[str, dict[str, str]] = {}
        for name in ACCELERATIONS:
            spare_bytes = self._choose(name, (LEVELS if table is None else table)[name], spare_bytes)
        self._made: dict[str, Level] = {}
        self._lock = threading.RLock()

    def __getitem__(self, name: str) -> Level:
        if name in self._made:  # without the lock: another level that is being made holds it for seconds
            return self._made[name]
        with self._lock:
            if name not in self._made:
                self._made[name] = self._make(name)
                log.info("acceleration %s: %s", name, self._made[name])
            return self._made[name]

    def made(self) -> list[Level]:
        """The levels that were made so far."""
        return [self._made[name] for name in ACCELERATIONS if name in self._made]

    def _choose(self, name: str, passes: tuple[Pass, ...], spare_bytes: int) -> int:
        """Decide which passes a level has, and why it does without the others; returns the bytes that are left."""
        chosen: list[Pass] = []
        left_out: dict[str, str] = {}
        for one in (one for one in passes if self._pipeline.device.type in one.devices):
            shared = any(lower[: len(chosen) + 1] == (*chosen, one) for lower in self._chosen.values())
            needed = 0 if shared else one.bytes_needed(self._pipeline)
            if one.instead_of is not None and one.instead_of in chosen:
                reason: str | None = f"{one.instead_of.name} go first"
            else:
                reason = one.unfit(self._pipeline)
            if one.follows is not None and one.follows not in chosen:
                reason = f"only with {one.follows.name}"
            if reason is None and needed > spare_bytes:
                reason = f"it needs {needed / GIB:.1f} GiB, {max(0, spare_bytes) / GIB:.1f} GiB are left"
            if reason is None:
                chosen.append(one)
                spare_bytes -= needed
            else:
                left_out[one.name] = reason
        self._chosen[name], self._left_out[name] = tuple(chosen), left_out
        return spare_bytes

    def _make(self, name: str) -> Level:
        passes, left_out = self._chosen[name], self._left_out[name]
        names = tuple(one.name for one in passes)
        lower = ACCELERATIONS[: ACCELERATIONS.index(name)]
        for same in (self[other] for other in lower if self._chosen[other] == passes):
            return Level(name, same.drawn, names, same.pipeline, same.added_bytes, left_out)
        begun = [other for other in lower if passes[: len(self._chosen[other])] == self._chosen[other]]
        base = self[begun[-1]].pipeline if begun else self._pipeline
        pipeline = base.fork(name) if passes else base
        for one in passes[len(self._chosen[begun[-1]]) if begun else 0 :]:
            one.apply(pipeline)
        return Level(name, name, names, pipeline, added_bytes(pipeline, base), left_out)


def added_bytes(fork: Pipeline, base: Pipeline) -> int:
    """Memory of the tensors that a fork has and its base does not."""
    known = {tensor.data_ptr() for tensor in _tensors((base.transformer, base.vae))}
    own = {tensor.data_ptr(): tensor for tensor in _tensors((fork.transformer, fork.vae))}
    return sum(tensor.nbytes for address, tensor in own.items() if address not in known)


def _tensors(networks: Iterable[nn.Module]) -> Iterable[nn.Parameter]:
    for network in networks:
        yield from network.parameters()
        yield from network.buffers()  # type: ignore[misc]


def build_passes(report: Callable[[str], None] = lambda _line: None) -> None:
    """Compile what the passes need and is not on the disk yet; a pass that cannot be built is left out later."""
    builds = {one.build: one.name for passes in LEVELS.values() for one in passes if one.build is not None}
    for build, name in builds.items():
        report(f"building {name}")
        try:
            build()
        except Exception as error:  # whatever a compiler may do: the server runs without
            log.warning("%s could not be built: %s", name, error)
