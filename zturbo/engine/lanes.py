"""How many pictures are under way side by side, how many of them are computed at once, and with how many threads each.

Eager networks leave half of a processor idle: their products are too short for two threads to share them well. Two
pictures with one thread each use all of it. The native kernels share well, and have one pool of threads, so there one
picture has all of them, and a further lane lets a shorter request go before it at once: the longer one rests where it
next takes breath.

A picture must not depend on the company it is drawn in, so a part of the work runs on fewer threads only where its
bytes are proven not to change by it: the first time that would happen for a shape, it is computed both ways and
compared. The verdict is kept, and told in the log.
"""

import logging
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

log = logging.getLogger("zturbo")

MOST_LANES = 4
"""More would wait for each other at the interpreter's lock."""


def lane_count(device: str, threads: int, free_bytes: int, needed_bytes: int) -> int:
    """How many pictures a machine computes side by side.

    Args:
        device: "cpu", "cuda" or "mps"; only a CPU is shared by threads.
        threads: that PyTorch may use.
        free_bytes: memory that a plan may use.
        needed_bytes: most that the plan needs; each further lane counts as much, which is more than it takes.
    """
    return max(1, min(threads, MOST_LANES, free_bytes // needed_bytes)) if device == "cpu" else 1


def abreast(lanes: int, native: bool) -> int:
    """How many of the pictures under way are computed at once.

    Args:
        lanes: pictures under way.
        native: by the native kernels, whose threads serve one caller; a second one would compute alone beside them.
    """
    return 1 if native else lanes


class Lanes:
    """Shares PyTorch's threads between the pictures of this moment.

    Args:
        count: most pictures side by side.
        cpu: whether PyTorch's threads are what computes; else they are left alone where there is one lane.
    """

    def __init__(self, count: int = 1, cpu: bool = False) -> None:
        self.count, self.threads = count, torch.get_num_threads()
        self.abreast = count
        """How many are computed at once; the others rest."""
        self._shares = cpu or count > 1
        self._busy = 0
        self._counting, self._prompts = threading.Lock(), threading.Lock()
        self._exact: dict[tuple[Hashable, int], bool] = {}

    def compute(self, shape: Hashable, part: Callable[[], Tensor]) -> Tensor:
        """The result of a part of the work: on all threads when nothing else runs, else on a share where that is exact.

        Args:
            shape: names the part and all sizes in it.
            part: may be called twice.
        """
        if not self._shares:
            return part()
        with self._working() as share:
            exact = self._exact.get((shape, share))
            if share == self.threads or exact is False:
                return _on(self.threads, part)
            found = _on(share, part)
            return found if exact else self._prove(shape, share, found, _on(self.threads, part))

    @contextmanager
    def between(self) -> Iterator[None]:
        """One of PyTorch's threads, for the little that lies between two parts of one picture.

        Its others would go on spinning for milliseconds afterwards, on the cores that the next part needs.
        """
        with on_threads(1) if self._shares else nullcontext():
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One thread of control at a time, with all of PyTorch's threads: for prompts, whose products are small."""
        with self._prompts, self._working():
            if self._shares:
                _take(self.threads)
            yield

    @contextmanager
    def _working(self) -> Iterator[int]:
        """Count the caller among those at work; yields the threads that are left to each."""
        with self._counting:
            self._busy += 1
            share = max(1, self.threads // min(self._busy, self.abreast))
        try:
            yield share
        finally:
            with self._counting:
                self._busy -= 1

    def _prove(self, shape: Hashable, share: int, found: Tensor, expected: Tensor) -> Tensor:
        exact = self._exact[shape, share] = torch.equal(found, expected)
        verdict = "the same bytes" if exact else "other bytes, so it always takes all of them"
        log.info("%s on %d of %d threads: %s", shape, share, self.threads, verdict)
        return expected


def _on(threads: int, part: Callable[[], Tensor]) -> Tensor:
    with on_threads(threads):
        return part()


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Have PyTorch compute on so many threads in here, for the calling thread."""
    before = torch.get_num_threads()
    _take(count)
    try:
        yield
    finally:
        _take(before)


def _take(threads: int) -> None:
    """Set PyTorch's threads for the calling thread only; without a look first, another thread's setting comes back."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def sum_on_one_thread(network: nn.Module) -> None:
    """Give a network's group norms one thread each, from outside.

    PyTorch's kernel for channels_last adds up one partial sum per thread, so its result depends on their number. It is
    a tenth of a decoding; nothing else in one depends on the threads.
    """
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            _pin(module)


def _pin(norm: nn.GroupNorm) -> None:
    threads = threading.local()

    def before(_module: nn.Module, _inputs: object) -> None:
        threads.kept = torch.get_num_threads()
        _take(1)

    def after(_module: nn.Module, _inputs: object, _output: object) -> None:
        _take(threads.kept)

    norm.register_forward_pre_hook(before)
    norm.register_forward_hook(after)
