"""Who goes first: whoever would be done first if all were served at once, every owner alike.

The engine imagines that it shares itself: every owner the same rate, and within an owner every job the same. In
truth it serves one job at a time, always the one that would be the first to be done under that sharing (Friedman and
Henderson 2003, "Fairness and efficiency in web server protocols"). So a short job passes long ones, no job ends
later than if all had been served at once, and an owner with many jobs delays nobody but itself.
"""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass

ROUNDING = 1e-6
"""Of the unit of work: what is left of a claim by the arithmetic alone."""


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
        """Jobs that the imagined engine is at, by owner; nobody has none."""

    def join(self, job: Hashable, owner: str, cost: float) -> None:
        """A job has come."""
        self._claims[job] = _Claim(owner, cost)
        if cost > 0:
            self._sharers[owner] += 1

    def work(self, done: float) -> None:
        """The engine has done some work; the imagined one did as much, for all at once.

        It goes from one job's end to the next: what a job no longer needs is the others'.
        """
        while done > 0 and self._sharers:
            until_due = min(self.rank(job) for job, claim in self._claims.items() if claim.left > 0)
            stretch = min(done, len(self._sharers) * until_due)
            done -= stretch
            self._share(stretch)

    def _share(self, work: float) -> None:
        """Some work for all at once, of which nobody needs less than its share."""
        shares = {owner: work / len(self._sharers) / jobs for owner, jobs in self._sharers.items()}
        due = []
        for job, claim in self._claims.items():
            if claim.left > 0:
                claim.left -= shares[claim.owner]
                if claim.left <= ROUNDING:
                    claim.left = 0.0
                    due.append(job)
        for job in due:
            self._leave_share(job)

    def end(self, job: Hashable) -> None:
        """A job is done; the imagined engine is still at it, unless nothing else is left."""
        claim = self._claims[job]
        claim.ended = True
        if claim.left <= 0:
            del self._claims[job]
        if all(claim.ended for claim in self._claims.values()):
            self._claims.clear()
            self._sharers.clear()

    def leave(self, job: Hashable) -> None:
        """A job is given up, in both engines."""
        claim = self._claims[job]
        if claim.left > 0:
            claim.left = 0.0
            self._leave_share(job)
        self.end(job)

    def rank(self, job: Hashable) -> float:
        """The smallest goes first: work until the job would be done, should nobody come or go; 0 when it is due."""
        claim = self._claims[job]
        return claim.left * self._sharers[claim.owner] if claim.left > 0 else 0.0

    def _leave_share(self, job: Hashable) -> None:
        """The imagined engine has nothing more to do for a job."""
        claim = self._claims[job]
        self._sharers[claim.owner] -= 1
        if not self._sharers[claim.owner]:
            del self._sharers[claim.owner]
        if claim.ended:
            del self._claims[job]
