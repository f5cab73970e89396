"""What every `Idempotency` does."""

import asyncio

from tests.contract.samples import NOW
from zturbo.storage.records import Answer, Records, Reservation

LATER = NOW + 86_400_000
ANSWER = Answer("owner", "k", b'{"data": []}')


async def test_one_of_many_at_once_is_new(records: Records) -> None:
    reserve = records.idempotency.reserve
    states = await asyncio.gather(*(reserve("owner", "k", b"body", NOW, LATER) for _ in range(20)))
    assert sorted(one.state for one in states) == ["new"] + ["running"] * 19


async def test_a_finished_answer_is_given_again(records: Records) -> None:
    reserve = records.idempotency.reserve
    await reserve("owner", "k", b"body", NOW, LATER)
    assert await records.idempotency.finish(ANSWER)
    assert await reserve("owner", "k", b"body", NOW, LATER) == Reservation("finished", ANSWER.body)
    assert not await records.idempotency.finish(Answer("owner", "k", b"another")), "the first answer stays"
    assert await reserve("owner", "k", b"body", LATER - 1, LATER) == Reservation("finished", ANSWER.body)


async def test_an_empty_answer_is_an_answer(records: Records) -> None:
    await records.idempotency.reserve("owner", "k", b"body", NOW, LATER)
    await records.idempotency.finish(Answer("owner", "k", b""))
    assert await records.idempotency.reserve("owner", "k", b"body", NOW, LATER) == Reservation("finished", b"")


async def test_another_body_is_told(records: Records) -> None:
    reserve = records.idempotency.reserve
    await reserve("owner", "k", b"body", NOW, LATER)
    assert (await reserve("owner", "k", b"other", NOW, LATER)).state == "other_body"
    await records.idempotency.finish(ANSWER)
    assert await reserve("owner", "k", b"other", NOW, LATER) == Reservation("other_body")


async def test_owners_do_not_see_each_other(records: Records) -> None:
    await records.idempotency.reserve("owner", "k", b"body", NOW, LATER)
    await records.idempotency.finish(ANSWER)
    assert (await records.idempotency.reserve("other", "k", b"body", NOW, LATER)).state == "new"


async def test_a_failed_request_frees_its_key(records: Records) -> None:
    reserve = records.idempotency.reserve
    await reserve("owner", "k", b"body", NOW, LATER)
    await records.idempotency.release("owner", "k")
    assert (await reserve("owner", "k", b"other", NOW, LATER)).state == "new"
    await records.idempotency.finish(ANSWER)
    await records.idempotency.release("owner", "k")
    assert (await reserve("owner", "k", b"other", NOW, LATER)).state == "finished", "an answer is not taken back"
    await records.idempotency.release("owner", "never")


async def test_nothing_is_kept_without_a_reservation(records: Records) -> None:
    assert not await records.idempotency.finish(ANSWER)
    assert (await records.idempotency.reserve("owner", "k", b"body", NOW, LATER)).state == "new"


async def test_it_expires(records: Records) -> None:
    reserve = records.idempotency.reserve
    await reserve("owner", "k", b"body", NOW, LATER)
    await records.idempotency.finish(ANSWER)
    assert (await reserve("owner", "k", b"other", LATER, LATER + 1)).state == "new", "by itself"
    await records.idempotency.finish(ANSWER)
    await reserve("owner", "young", b"body", NOW, LATER + 2)
    expired = await records.idempotency.expired(LATER + 1)
    assert len(expired) == 2, "also of the one whose key was used again"
    assert await records.idempotency.expired(LATER + 1) == expired, "until they are forgotten"
    await records.idempotency.forget(LATER + 1)
    assert await records.idempotency.expired(LATER + 1) == ()
    assert (await reserve("owner", "young", b"body", NOW, LATER)).state == "running"


async def test_a_running_reservation_does_not_expire(records: Records) -> None:
    """A computer that slept for a day has the request still to draw."""
    await records.idempotency.reserve("owner", "k", b"body", NOW, LATER)
    assert await records.idempotency.expired(LATER + 1) == ()
    await records.idempotency.forget(LATER + 1)
    again = await records.idempotency.reserve("owner", "k", b"body", LATER + 1, LATER + 2)
    assert again == Reservation("running")
