"""The order of turns, in steps and never in seconds: nobody ends later than if all were served at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zturbo.engine.fairness import FairOrder


@dataclass(frozen=True)
class Job:
    number: int
    comes: int
    steps: int
    owner: str = ""


def run(jobs: Sequence[Job]) -> dict[int, int]:
    """Serve jobs step by step in fair order; the work that was done in all when each of them ended."""
    order, done, left, ends = FairOrder(), 0, {job: job.steps for job in jobs}, dict[int, int]()
    coming = sorted(jobs, key=lambda job: job.comes)
    here: list[Job] = []
    while len(ends) < len(jobs):
        while coming and (coming[0].comes <= done or not here):
            here.append(coming.pop(0))
            order.join(here[-1], here[-1].owner, here[-1].steps)
        job = min(here, key=lambda one: (order.rank(one), one.number))
        left[job] -= 1
        done += 1
        order.work(1)
        if left[job] == 0:
            here.remove(job)
            order.end(job)
            ends[job.number] = done
    return ends


def shared(jobs: Sequence[Job]) -> dict[int, float]:
    """The same, were all served at once: the work that was done in all when each of them would end."""
    left = {job: float(job.steps) for job in jobs}
    done, ends = 0.0, dict[int, float]()
    while left:
        here = [job for job in left if job.comes <= done] or [min(left, key=lambda job: job.comes)]
        shares = {
            job: 1 / len({one.owner for one in here}) / sum(one.owner == job.owner for one in here) for job in here
        }
        later = [job.comes - done for job in left if job.comes > done and job not in here]
        span = min([left[job] / shares[job] for job in here] + later)
        done += span
        for job in here:
            left[job] -= span * shares[job]
            if left[job] <= 1e-9:
                ends[job.number] = done
                del left[job]
    return ends


ARRIVALS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 32)), min_size=1, max_size=12)


@given(ARRIVALS)
def test_nobody_ends_later_than_if_all_were_served_at_once(arrivals: list[tuple[int, int]]) -> None:
    jobs = [Job(number, comes, steps) for number, (comes, steps) in enumerate(arrivals)]
    alone = shared(jobs)
    for number, end in run(jobs).items():
        assert end <= alone[number] + len(jobs), "a step of slack for each job whose share ends within one"


def test_a_short_job_passes_long_ones() -> None:
    ends = run([*(Job(number, 0, 32) for number in range(4)), Job(4, 10, 4)])
    assert ends[4] == 14
    assert sorted(ends.values()) == [14, 36, 68, 100, 132]


def test_short_jobs_without_end_do_not_starve_a_long_one() -> None:
    jobs = [Job(0, 0, 20), *(Job(1 + number, 4 * number, 4) for number in range(50))]
    ends = run(jobs)
    assert ends[0] <= shared(jobs)[0] + 4
    assert ends[0] < max(ends.values()) / 1.5


def test_a_greedy_owner_delays_nobody_but_itself() -> None:
    """A hundred jobs of one owner, and one of another that comes late: it gets its half at once."""
    jobs = [*(Job(number, 0, 8, "greedy") for number in range(100)), Job(100, 50, 8, "modest")]
    ends = run(jobs)
    assert ends[100] == 58
    modest = [Job(100 + number, 50, 8, "modest") for number in range(10)]
    ends = run([*jobs[:100], *modest])
    assert max(ends[job.number] for job in modest) <= 50 + 2 * 80 + 8


STRIDE = 16
"""A step of 2048x2048, in steps of 512x512."""


def test_what_a_short_job_does_not_need_is_the_others() -> None:
    """Between the long steps of one owner, short jobs of another: the long job gets ahead by what they leave."""
    order, left = FairOrder(), 32 * STRIDE
    order.join("long", "a", left)
    for number in range(26):
        order.join(number, "b", 1)
        assert order.rank(number) < order.rank("long")
        order.work(1)
        order.end(number)
        order.work(STRIDE)
        left -= STRIDE
        assert order.rank("long") == pytest.approx(left)


def test_short_jobs_beside_a_long_one_leave_nothing_behind() -> None:
    order = FairOrder()
    order.join("long", "a", 1e9)
    for number in range(100):
        order.join(number, "b", 1)
        order.work(1)
        order.end(number)
        order.work(STRIDE)
    assert len(order._claims) <= 2


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=10))
def test_the_imagined_engine_does_as_much_as_the_true_one(strides: list[tuple[str, int, int]]) -> None:
    order = FairOrder()
    for job, (owner, cost, _) in enumerate(strides):
        order.join(job, owner, cost)
    given_out = 0
    for _, _, done in strides:
        order.work(done)
        given_out += done
        left = sum(claim.left for claim in order._claims.values())
        assert left == pytest.approx(max(0, sum(cost for _, cost, _ in strides) - given_out), abs=1e-3)


def test_what_is_given_up_takes_no_share() -> None:
    order = FairOrder()
    for job in ("gone", "stays"):
        order.join(job, "", 10)
    order.leave("gone")
    order.work(5)
    assert order.rank("stays") == 5
    order.end("stays")
    order.join("next", "", 3)
    assert order.rank("next") == 3
