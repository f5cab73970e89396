"""What every training loop of the recipe shares: device, precision, learning rates, averaging, checkpoints, one line.

A loop asks `Run` for its place, takes steps, and lets `Run` print, save and stop. Killing a process at any moment loses
at most the time since its last checkpoint.
"""

import argparse
import hashlib
import math
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from nano import parallel
from nano.config import PROFILES, Folders, Profile
from nano.muon import Muon
from zturbo.engine.machine import detect

Model = TypeVar("Model", bound=nn.Module)


def arguments(what: str) -> argparse.ArgumentParser:
    """The flags that every script of the recipe takes."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--profile", choices=sorted(PROFILES), default="cpu", help="sizes and budgets (config.py)")
    parser.add_argument("--folder", type=Path, default=Path("nano-run"), help="where checkpoints and caches lie")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="stop after this time, earlier runs of the step included"
    )
    parser.add_argument("--seed", type=int, help="of pictures, words and noise; where none is given, the profile's")
    return parser


def opened(parsed: argparse.Namespace) -> tuple[Profile, Folders]:
    """The profile and the folders of a command line; seeds PyTorch."""
    profile = PROFILES[parsed.profile]
    if parsed.seed is not None:
        profile = replace(profile, seed=parsed.seed)
    parsed.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(profile.seed)
    torch.set_flush_denormal(True)  # vanishing gradients otherwise cost a CPU ten times their worth
    return profile, Folders(parsed.folder)


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def working_dtype() -> torch.dtype:
    """bf16 where the device multiplies it natively, else fp32: emulated, bf16 is several times slower than fp32."""
    return torch.bfloat16 if detect().bf16 else torch.float32


def half_precision() -> AbstractContextManager[Any]:
    """Autocast for convolutions; the transformers of the recipe use `Shadow` instead, whose norms stay fused."""
    return torch.autocast(device().type, dtype=torch.bfloat16, enabled=working_dtype() == torch.bfloat16)


class Shadow(Generic[Model]):
    """A copy in the working dtype that does forward and backward for weights kept in fp32: in bf16 five times faster.

    `refresh` before the forward, `hand_back` after the backward.
    """

    def __init__(self, master: Model) -> None:
        self.master = master
        self.model = deepcopy(master).to(working_dtype())

    def refresh(self) -> None:
        """Copy the weights to the shadow."""
        ours, theirs = ([p.detach() for p in model.parameters()] for model in (self.model, self.master))
        torch._foreach_copy_(ours, theirs)

    def hand_back(self) -> None:
        """Move the gradients to the fp32 weights."""
        pairs = zip(self.model.parameters(), self.master.parameters(), strict=True)
        given = [(theirs, ours.grad) for ours, theirs in pairs if ours.grad is not None]
        gradients = [torch.empty_like(theirs) for theirs, _ in given]
        torch._foreach_copy_(gradients, [gradient for _, gradient in given])
        self.master.zero_grad(set_to_none=True)
        for (theirs, _), gradient in zip(given, gradients, strict=True):
            theirs.grad = gradient
        self.model.zero_grad(set_to_none=True)


def cosine(progress: float, floor: float = 0.0, warmup: float = 0.02) -> float:
    """Learning rate factor at a share of the training: linear warm-up, then a cosine from 1 to `floor`."""
    if progress < warmup:
        return progress / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Optimizers:
    """Muon for matrices and convolutions, AdamW for the rest (Jordan et al. 2024), stepped as one.

    A convolution (out, in, 3, 3) is orthogonalised as the matrix (out, 9 * in) that shares its memory.

    Args:
        named: names and parameters; those with a word of `muon` in the name and two or four axes go to Muon.
        lr, muon_lr: peak learning rates.
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], muon: tuple[str, ...], lr: float, muon_lr: float = 0.02
    ) -> None:
        named = list(named)
        self.parameters = [p for _, p in named]
        chosen = [p.ndim in (2, 4) and any(word in name for word in muon) and "adaLN" not in name for name, p in named]
        rest = [p for p, is_matrix in zip(self.parameters, chosen, strict=True) if not is_matrix]
        self.matrices = [
            (p, nn.Parameter(self._matrix(p.data)))
            for p, is_matrix in zip(self.parameters, chosen, strict=True)
            if is_matrix
        ]
        self.all: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.97), weight_decay=0.0)]
        if self.matrices:
            views = [view for _, view in self.matrices]
            self.all.append(Muon(views, muon_lr, 0.95, working_dtype()))
        self.peaks = [optimizer.param_groups[0]["lr"] for optimizer in self.all]

    @staticmethod
    def _matrix(weight: Tensor) -> Tensor:
        return weight if weight.ndim == 2 else weight.permute(0, 2, 3, 1).flatten(1)

    def step(self, factor: float) -> None:
        """One step at `factor` of the peak learning rates, after clipping; gradients are cleared."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for parameter, view in self.matrices:
            assert view.data_ptr() == parameter.data_ptr(), "a convolution must lie in channels_last memory"
            view.grad = None if parameter.grad is None else self._matrix(parameter.grad)
        for optimizer, peak in zip(self.all, self.peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
        for parameter, view in self.matrices:
            parameter.grad = view.grad = None
        self.all[0].zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.all]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.all, states, strict=True):
            optimizer.load_state_dict(state)


class Average(Generic[Model]):
    """Exponential moving average of a model's weights; its horizon grows with the run up to `horizon` steps."""

    def __init__(self, model: Model, horizon: float) -> None:
        self.model = deepcopy(model).requires_grad_(False)
        self.horizon, self.steps = horizon, 0

    @torch.no_grad()
    def update(self, model: Model) -> None:
        self.steps += 1
        share = max(1 / self.horizon, min(1.0, 10 / (self.steps + 9)))
        ours, theirs = ([p.detach() for p in one.parameters()] for one in (self.model, model))
        torch._foreach_lerp_(ours, theirs, share)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def fingerprint(weights: dict[str, Tensor]) -> str:
    """What tells weights apart from all others: a checkpoint that was made from them is of no use for others."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def restored(path: Path) -> dict[str, Any] | None:
    """The last checkpoint at a path, on the CPU, or None."""
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


@dataclass
class Run:
    """The course of one loop: how far it is, what it prints, when it saves.

    steps: how many the loop takes; minutes: when to stop at the latest; both shape `progress`.
    """

    name: str
    steps: int
    minutes: float = math.inf
    save_every_s: float = 120.0
    step: int = 0
    spent_s: float = 0.0  # by earlier processes
    smooth: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.started = self.saved = self.printed = time.monotonic()
        self.first = self.step

    @property
    def elapsed_s(self) -> float:
        """Of all processes that worked on this run."""
        return self.spent_s + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """Share of the loop that is done, by steps or by time, whichever is further."""
        spent = self.elapsed_s / (60 * self.minutes) if self.minutes > 0 else 1.0
        return min(1.0, max(self.step / self.steps, spent))

    @property
    def done(self) -> bool:
        return self.progress >= 1.0

    def tick(self, every_s: float = 10.0, **values: float | Tensor) -> None:
        """Count a step and now and then print one line with smoothed values and the time left."""
        self.step += 1
        now = time.monotonic()
        if parallel.rank() or (now - self.printed < every_s and not self.done):
            return
        self.printed = now
        for name, value in values.items():
            self.smooth[name] = 0.5 * self.smooth.get(name, float(value)) + 0.5 * float(value)
        rate = (self.step - self.first) / (now - self.started)
        left = min((self.steps - self.step) / max(rate, 1e-9), 60 * self.minutes - self.elapsed_s)
        shown = " ".join(f"{name} {value:.4f}" for name, value in self.smooth.items())
        print(
            f"{self.name} {self.step}/{self.steps} {shown} {rate:.2f} steps/s, {max(0.0, left) / 60:.1f} min left",
            flush=True,
        )

    def due(self) -> bool:
        """Whether a checkpoint should be written now; always true at the end."""
        now = time.monotonic()
        if now - self.saved < self.save_every_s and not self.done:
            return False
        self.saved = now
        return True
