"""Writing on CUDA: the step that makes a token of a text is recorded once, and from then on is one launch.

    decoder = Decoder(encoder, rank, CudaRecorder(device), rows=1)
    follow = decoder.begin(length=420)
    best = follow([[1, 2, 3]])    # reads the prompt
    best = follow([[4]])          # goes on from one token more

A step of 36 layers is some 800 launches, and they, not the arithmetic, are most of its time. A graph wants the same
shapes for every token, so the step goes over all slots of a cache of fixed length (`CacheStep`) and reads its token
and position from the device. There is a graph for each multiple of 256 slots up to 1024; all their caches lie in one
memory, for one text is written at a time. Longer texts are for the growing cache.

Which length a text gets depends on its prompt alone, and the first step is a replay already: a text is the same
whether or not its graph was there before. Where recording fails the same step is run launch by launch.

Nothing of this is for a CPU: there it is slower than the growing cache, and rounds otherwise in bf16.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from zturbo.acceleration.graphs import Recorder, Recording
from zturbo.engine.plan import GIB
from zturbo.models.configs import TextEncoderConfig
from zturbo.models.text_encoder import CacheStep, KVCache, Qwen3

log = logging.getLogger("zturbo")

SLOTS = 256
MOST_SLOTS = 1024
"""An instruction of 220 tokens, a prompt of 300 twice, and 165 of an answer fit; 144 MiB for Qwen3-4B."""
KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""The first takes a mask in every dtype; naming it keeps the choice from changing with PyTorch's preferences."""
STEP_BYTES = 64 * 2**20
"""Generous for what a step computes in, launches and workspaces."""

Follow = Callable[[list[list[int]]], Tensor]
"""Reads (rows, n) tokens more and ranks what may come next."""
Rank = Callable[[Tensor], Tensor]
"""(rows, vocab) logits -> what the caller picks from."""


@dataclass(slots=True)
class Steps:
    """The steps of one length."""

    cache: KVCache
    recording: Recording | None = None


class Decoder:
    """Writes on a resident language model, one text of several candidates at a time.

    Args:
        encoder: the language model.
        rank: (rows, vocab) logits -> what the caller picks from; part of the recorded step.
        recorder: of the model's device.
        rows: candidates of a text.
    """

    def __init__(self, encoder: Qwen3, rank: Rank, recorder: Recorder, rows: int) -> None:
        weight = encoder.model.embed_tokens.weight
        self.failure: str | None = None
        """Why no more steps are recorded."""
        self._encoder, self._rank, self._recorder, self._rows = encoder, rank, recorder, rows
        self._memory = torch.empty(
            KVCache.size(encoder.config, rows, MOST_SLOTS), dtype=weight.dtype, device=weight.device
        )
        self._given = torch.zeros(1 + rows, dtype=torch.int64, device=weight.device)
        """The position, and each row's token there."""
        self._steps: dict[int, Steps] = {}

    def __len__(self) -> int:
        """How many steps are recorded."""
        return sum(steps.recording is not None for steps in self._steps.values())

    def begin(self, length: int) -> Follow | None:
        """Forget the text before.

        Args:
            length: tokens of the prompt and the answer together, at most.

        Returns:
            Called with the prompt (the same number of tokens in each row), then with one token for each row at a time.
            What it returns lasts until the next call. None: the text is too long.
        """
        if length > MOST_SLOTS:
            return None
        steps = self._of(-(-length // SLOTS) * SLOTS)
        steps.cache.length = 0
        steps.cache.states.zero_()  # a hidden slot weighs nothing, but nothing times infinity is not a number
        return lambda tokens: self._follow(steps, tokens)

    def _of(self, slots: int) -> Steps:
        if slots not in self._steps:
            config, memory = self._encoder.config, self._memory
            cache = KVCache(config, self._rows, slots, memory.dtype, memory.device, memory)
            self._steps[slots] = Steps(cache)
        return self._steps[slots]

    def _follow(self, steps: Steps, tokens: list[list[int]]) -> Tensor:
        cache = steps.cache
        if cache.length == 0:
            ids = torch.tensor(tokens, device=self._given.device)
            return self._rank(self._encoder.next_logits(ids, cache))
        given = torch.tensor([cache.length, *(token for (token,) in tokens)])
        self._given.copy_(given, non_blocking=True)  # staged by the driver before it returns; nobody waits
        cache.length += 1
        if steps.recording is None and self.failure is None:
            self._record(steps)
        if steps.recording is None:
            return self._step(cache)
        steps.recording.replay()
        return steps.recording.result

    def _step(self, cache: KVCache) -> Tensor:
        """One token for each row; done twice at one position it changes nothing."""
        position, tokens = self._given[:1], self._given[1:, None]
        with sdpa_kernel(KERNELS, set_priority=True):
            return self._rank(self._encoder.next_logits(tokens, CacheStep(cache, position)))

    def _record(self, steps: Steps) -> None:
        """Record the step of a length; where that cannot be done it is not tried again."""
        self._step(steps.cache)  # kernels are compiled and workspaces taken outside of any graph
        try:
            steps.recording = self._recorder.record(lambda: self._step(steps.cache))
        except RuntimeError as error:
            self.failure = f"{type(error).__name__}: {error}"
            log.warning("no CUDA graph of a token, and no more are recorded: %s", self.failure)


def unfit(resident: bool, needed_bytes: int, spare_bytes: int) -> str | None:
    """Why the steps of a language model on CUDA are not recorded.

    Args:
        resident: whether its layers stay on the device.
        needed_bytes: of `memory`.
        spare_bytes: of the device, beside the plan.
    """
    if not resident:
        return "its layers are on the host"
    if needed_bytes > spare_bytes:
        return f"a graph needs {needed_bytes / GIB:.2f} GiB, {max(0, spare_bytes) / GIB:.2f} GiB are left"
    return None


def memory(config: TextEncoderConfig, rows: int, itemsize: int) -> int:
    """Most bytes that a decoder takes: the caches' memory, and a few copies of the logits for each length."""
    logits = rows * config.vocab_size * (2 * itemsize + 4 * 4)
    return KVCache.size(config, rows, MOST_SLOTS) * itemsize + MOST_SLOTS // SLOTS * logits + STEP_BYTES
