"""A checker whose verdicts a test decides."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zturbo.safety.checker import Verdict

if TYPE_CHECKING:
    from zturbo.engine.progress import Pixels


@dataclass
class StubChecker:
    """Implements `Checker`: `score_of` gives a picture's score, or raises."""

    score_of: Callable[["Pixels"], float] = lambda _pixels: 0.0
    name: str = "stub"
    licence: str = "none needed"
    source: str = "tests"
    version: str = "0"
    threshold: float = 0.5
    asked: list[tuple[int, ...]] = field(default_factory=list)
    """The shapes of the pictures it was asked about."""

    def check(self, pixels: "Pixels") -> Verdict:
        self.asked.append(pixels.shape)
        return Verdict(score=self.score_of(pixels), threshold=self.threshold)
