"""Who goes first: whoever would be done first if all were served at once, every owner alike.

The engine imagines that it shares itself: every owner the same rate, and within an owner every job the same. In
truth it serves one job at a time, always the one that would be the first to be done under that sharing (Friedman and
Henderson 2003, "Fairness and efficiency in web server protocols"). So a short job passes long ones, no job ends
later than if all had been served at once, and an owner with many jobs delays nobody but itself.
"""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(slots=True)
class _Claim:
    owner: str
    left: float
    """Work that the imagined engine still has to do; from 0 on the job is due."""
    ended: bool = False


class FairOrder:
    """The imagined engine. Work is counted in any unit, here in pixel-steps; not safe to call from two threads."""

    def __init__(self) -> None:
        self._claims: dict[Hashable, _Claim] = {}
        self._sharers: Counter[str] = Counter()
        """Jobs that the imagined engine is at, by owner."""

    def join(self, job: Hashable, owner: str, cost: float) -> None:
        """A job has come."""
        self._claims[job] = _Claim(owner, cost)
        self._count()

    def work(self, done: float) -> None:
        """The engine has done some work; the imagined one did as much, for all at once."""
        for claim in self._claims.values():
            if claim.left > 0:
                claim.left -= done / len(self._sharers) / self._sharers[claim.owner]
        self._claims = {job: claim for job, claim in self._claims.items() if claim.left > 0 or not claim.ended}
        self._count()

    def end(self, job: Hashable) -> None:
        """A job is done; the imagined engine is still at it, unless nothing else is left."""
        self._claims[job].ended = True
        if all(claim.ended for claim in self._claims.values()):
            self._claims.clear()
        self._count()

    def leave(self, job: Hashable) -> None:
        """A job is given up, in both engines."""
        self._claims[job].left = 0.0
        self.end(job)

    def rank(self, job: Hashable) -> float:
        """The smallest goes first: work until the job would be done, should nobody come or go; 0 when it is due."""
        claim = self._claims[job]
        return claim.left * self._sharers[claim.owner] if claim.left > 0 else 0.0

    def _count(self) -> None:
        self._sharers = Counter(claim.owner for claim in self._claims.values() if claim.left > 0)
