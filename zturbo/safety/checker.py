"""What a safety checker is, what becomes of a picture that it flags, and who may switch the check off.

    screen(checker, picture)      a flagged picture comes out black; a checker that fails raises, it never lets pass
    veiled(preview)               how previews are shown while their picture is not judged yet

Pixels are numpy arrays
(H, W, 3) uint8, RGB. Imports numpy and Pillow only where they are needed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from zturbo.engine.progress import Picture
from zturbo.errors import SafetyError
from zturbo.pictures import Withheld

if TYPE_CHECKING:
    from zturbo.engine.progress import Pixels
    from zturbo.safety.prompts import PromptGuard

VEIL_SIDE = 12
"""Pixels left on the longer side of a veiled preview: washes of colour. At 48 a face can be told, at 24 a figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a checker found in one picture."""

    score: float
    """From 0, harmless, to 1."""
    threshold: float
    """The lowest score that is flagged."""
    categories: Mapping[str, float] = field(default_factory=dict)
    """The model's own classes -> their shares."""

    @property
    def flagged(self) -> bool:
        """Whether the picture is withheld."""
        return self.score >= self.threshold


class Checker(Protocol):
    """Judges pictures. May be asked by several threads at once."""

    @property
    def name(self) -> str: ...

    @property
    def licence(self) -> str: ...

    @property
    def source(self) -> str:
        """Where the model comes from: an address or a folder."""

    @property
    def version(self) -> str:
        """Eight hex digits that tell its weights from others; the same wherever they lie."""

    @property
    def threshold(self) -> float: ...

    def check(self, pixels: "Pixels") -> Verdict:
        """Judge one picture of any size; whatever it raises fails the request."""


@dataclass(frozen=True, slots=True)
class Safety:
    """What is checked on this server.

    checker: of pictures; None where they are not checked.
    always: check whatever the request says.
    guard: of prompts; None where they are not checked.
    """

    checker: Checker | None = None
    always: bool = False
    guard: "PromptGuard | None" = None

    def applies(self, asked: bool, may_switch_off: bool) -> bool:
        """Whether a request is checked.

        Args:
            asked: its `enable_safety_checker`.
            may_switch_off: whether its key may leave the check out.
        """
        return asked or self.always or not may_switch_off

    def row(self) -> str:
        """One row of the start-up block: what is checked, and who decides."""
        what = "none: pictures are not checked"
        if self.checker is not None:
            who = "always on" if self.always else "the request decides"
            what = f"{self.checker.name}@{self.checker.version}, threshold {self.checker.threshold:g}  ({who})"
        guard = f"; prompts by {self.guard.name}" if self.guard is not None else ""
        return f"{'safety':>12}  {what}{guard}"

    async def aclose(self) -> None:
        """Let go of connections."""
        if self.guard is not None:
            await self.guard.aclose()


@dataclass(frozen=True, slots=True)
class Screened:
    """A picture that may be handed out."""

    picture: Picture
    verdict: Verdict | None = None
    """None where it was not checked."""
    withheld: Withheld | None = None
    """What its file says of it, where it is the black picture in the place of a flagged one."""


def screen(checker: Checker | None, picture: Picture) -> Screened:
    """Judge a picture, and put a black one of its size in its place where it is flagged.

    Args:
        checker: None lets everything pass.

    Raises:
        SafetyError: as `judge`.
    """
    if checker is None:
        return Screened(picture)
    verdict = judge(checker, picture.pixels)
    if not verdict.flagged:
        return Screened(picture, verdict)
    import numpy as np

    black = replace(picture, pixels=np.zeros_like(picture.pixels))
    return Screened(black, verdict, Withheld(checker.name))


def judge(checker: Checker, pixels: "Pixels") -> Verdict:
    """Ask a checker, and do not take silence or nonsense for an answer.

    Raises:
        SafetyError: it failed, or its score is not a number from 0 to 1. Names the checker.
    """
    try:
        verdict = checker.check(pixels)
    except Exception as error:  # whatever it is, the picture was not checked
        raise SafetyError(_failed(checker, type(error).__name__)) from error
    if not (math.isfinite(verdict.score) and 0 <= verdict.score <= 1):
        raise SafetyError(_failed(checker, f"its score is {verdict.score}"))
    return verdict


def _failed(checker: Checker, reason: str) -> str:
    return f"the safety checker {checker.name} failed ({reason}): no picture was delivered, nothing is charged"


def veiled(pixels: "Pixels") -> "Pixels":
    """A picture of the same size that shows its light and colours but nothing of what is drawn."""
    import numpy as np
    from PIL import Image

    height, width = pixels.shape[:2]
    scale = VEIL_SIDE / max(width, height)
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(pixels, "RGB").resize(small, Image.Resampling.BOX)
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))


def described(checker: Checker | None) -> dict[str, Any]:
    """A checker's facts, for people and clients; only the name "none" where pictures are not checked."""
    if checker is None:
        return {"name": "none"}
    return {
        "name": checker.name,
        "version": checker.version,
        "licence": checker.licence,
        "source": checker.source,
        "threshold": checker.threshold,
    }
