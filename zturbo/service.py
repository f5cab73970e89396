"""The whole story of one request, for every door: read `Service.generate` first.

queue.check()                    a full server refuses before anything is set aside or asked
ledger.start(...)                the price is held, or the request refused
endpoint.expand(prompt)          where the settings name one; else the engine expands, on its thread
guard.allow(prompt)              where the operator has one
ticket = queue.admit(...)        refused here at the latest
progress from the engine         on the event loop, from the device's thread
screen(checker, picture)         in worker threads; a flagged picture is black from here on
files.put(encode(...))           in worker threads
ledger.finish(...)               charge, file names and answer in one transaction; only then is anything delivered
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, Protocol

from zturbo.engine.progress import Picture, Progress
from zturbo.engine.queue import Ticket
from zturbo.engine.worker import Worker
from zturbo.errors import (
    Busy,
    ContentPolicyViolation,
    DeadlinePassed,
    InsufficientCredits,
    SafetyError,
    StorageError,
    ZTurboError,
)
from zturbo.expansion.expansion import NOT_HERE, Expansion
from zturbo.metrics import Metrics
from zturbo.params import GenerationParams
from zturbo.pictures import Settings, encode
from zturbo.provenance import Signer
from zturbo.safety.checker import Checker, Screened, screen, veiled
from zturbo.storage.embedded import Storage, now_ms
from zturbo.storage.records import Answer, End, Ending, KeyLimit, Request, Screening

REFUSALS = {"spending_limit": "the key's spending limit", "balance": "the balance"}
log = logging.getLogger("zturbo")


class Endpoint(Protocol):
    """What expands prompts outside the engine."""

    name: str

    async def expand(self, prompt: str) -> Expansion:
        """The expansion of a prompt, or why it stays as it is; never raises."""

    async def aclose(self) -> None:
        """Stop asking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One request as a door hands it in, already checked.

    Attributes:
        params: what to draw.
        request: what the log will say of it.
        credits: its price, should all pictures be delivered.
        limit: of the key's spending; None is unlimited.
        store: put the pictures into the file store; else only their bytes are handed over.
        progress: whether anybody looks at the progress; else only what the request needs crosses the threads.
        previews: how many previews of each picture the progress shall carry.
        may_switch_off: whether the request may leave the safety checker out.
        answer: makes what is kept for a repetition of the request; None keeps nothing.
    """

    params: GenerationParams
    request: Request
    credits: int = 0
    limit: KeyLimit | None = None
    store: bool = True
    progress: bool = True
    previews: int = 0
    may_switch_off: bool = False
    answer: "Callable[[Delivered], Answer] | None" = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """One picture as it is handed over: the file's bytes, and its name in the store where it was put there."""

    data: bytes
    seed: int
    name: str | None
    flagged: bool = False
    """Whether it is the black picture in the place of one that the safety checker withheld."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """The end of a request: its pictures, seconds by stage, the model that drew them, what the safety checker found."""

    pictures: tuple[Delivery, ...]
    timings: dict[str, float]
    model_version: str
    safety: Screening | None = None
    """None where nothing was checked."""
    expansion: Expansion | None = None
    """None where none was asked for."""
    level: str | None = None
    """The acceleration level that really drew; None where the engine has no levels."""


@dataclass(slots=True)
class _Work:
    """What a running request has so far, for whoever must end it."""

    ticket: Ticket | None = None
    names: list[str] = field(default_factory=list)
    ended: bool = False
    expansion: Expansion | None = None
    level: str | None = None
    """The acceleration level that really drew, as the engine told it."""


class Service:
    """Queue, engine, records and files, put together once.

    Args:
        worker: the engine's thread and its queue.
        storage: records, and where pictures are kept.
        write_prompts: whether prompt and settings are written into the pictures.
        timeout_s: how long a request may wait and run.
        metrics: counts what happens.
        signer: writes content credentials into the pictures; None writes none.
        endpoint: expands prompts before they are admitted; None leaves that to the engine.
    """

    def __init__(
        self,
        worker: Worker,
        storage: Storage,
        write_prompts: bool = True,
        timeout_s: float = 600.0,
        metrics: Metrics | None = None,
        signer: Signer | None = None,
        endpoint: Endpoint | None = None,
    ) -> None:
        self.worker, self.files, self.records = worker, storage.files, storage.records
        self.write_prompts, self.timeout_s = write_prompts, timeout_s
        self.metrics, self.signer, self.endpoint = metrics or Metrics(), signer, endpoint
        self._asking: Counter[str] = Counter()
        self._unsettled: dict[str, Ending] = {}
        self._unreleased: set[tuple[str, str]] = set()
        self._chores: set[asyncio.Task[None]] = set()

    @property
    def expander(self) -> str:
        """What expands prompts here, as `/v1/models` names it."""
        if self.endpoint is not None:
            return self.endpoint.name
        if self.worker.engine is None:
            return "still loading"
        return "local" if self.worker.engine.writer is not None else "none"

    async def generate(self, order: Order) -> AsyncGenerator[Progress | Delivered, None]:
        """Draw one request.

        Yields:
            progress while it is drawn, then the delivery. Closing the iterator cancels the work within a step.

        Raises:
            InsufficientCredits: the key's limit or the balance does not allow it.
            ContentPolicyViolation: the prompt check does not allow it.
            Busy: not admitted.
            DeadlinePassed: it took longer than the server allows.
            ZTurboError: what the engine or the store raised.
        """
        start, work, events = time.perf_counter(), _Work(), _Events(self.timeout_s, order.progress)
        try:
            await self._refuse_if_full(order, work)
            with self._counted(order.request.key or ""):
                await self._hold(order, work)
                if self.signer is not None:
                    self.signer.check()  # before it is drawn for nothing
                async with events.in_time():
                    guarded = await self._allow(order)
                    asking = time.perf_counter()
                    work.expansion = await self._asked(order.params)
            asked = time.perf_counter() - asking
            drawn = work.expansion.applied_to(order.params) if work.expansion else order.params
            work.ticket = self.worker.queue.admit(drawn, events.publish, order.previews, order.request.key or "")
            checker = self._checker_of(order)
            progress = None
            while progress is None or progress.stage != "done":
                progress = await events.next()
                work.expansion = work.expansion or progress.expansion
                if work.expansion is not progress.expansion:
                    progress = replace(progress, expansion=work.expansion)
                yield progress if checker is None else await _veiled(progress)
            judging = time.perf_counter()
            queued = events.drawn - start - guarded - asked - progress.timings["total"]
            screened, safety = await _screen(checker, progress.pictures)
            storing = time.perf_counter()
            work.level = progress.level
            pictures = await self._encode(screened, order, work)
            end = time.perf_counter()
            engine = {name: seconds for name, seconds in progress.timings.items() if name != "total"}
            ours = {"safety": guarded + storing - judging, "store": end - storing, "total": end - start}
            timings = {"queue": max(0.0, queued), "expand": asked, **engine, **ours}
            expansion = self._told(order, work.expansion)
            delivered = Delivered(pictures, timings, self.worker.engine.model.version, safety, expansion, work.level)
            await self._charge(order, delivered, work)
            yield delivered
        except (GeneratorExit, asyncio.CancelledError):
            self._give_up(order, work, "cancelled", "cancelled")
            raise
        except Exception as error:
            refused = isinstance(error, Busy | ContentPolicyViolation)
            if isinstance(error, SafetyError):
                log.error("request %s: %s", order.request.request_id, error.message, exc_info=error)
            self._give_up(order, work, "rejected" if refused else "failed", _code(error))
            raise
        finally:
            if work.ticket is not None:
                work.ticket.cancel()  # after the end it changes nothing

    @contextmanager
    def _counted(self, owner: str) -> Iterator[None]:
        """Count a request that may wait for a guard or an expansion endpoint, and holds its price meanwhile."""
        remote = self.endpoint is not None or self.worker.safety.guard is not None
        self._asking[owner] += remote
        try:
            yield
        finally:
            self._asking[owner] -= remote
            if not self._asking[owner]:
                del self._asking[owner]

    async def _refuse_if_full(self, order: Order, work: _Work) -> None:
        """Refuse what could not be admitted before anybody is asked and its price set aside, which others may need."""
        try:
            self.worker.queue.check(order.request.key or "", self._asking)
        except Busy as busy:
            work.ended = True
            await self.reject(order.request, busy)
            raise

    async def _hold(self, order: Order, work: _Work) -> None:
        """Begin the request's row and set its price aside."""
        refusal = await self.records.ledger.start(order.request, order.credits, order.limit)
        if refusal is not None:
            work.ended = True  # the ledger has written it down as rejected
            self.metrics.ended("rejected")
            raise InsufficientCredits(
                f"what is left of {REFUSALS[refusal]}, less what running requests hold, does not pay for this request, "
                f"which costs {order.credits} credits",
                "ask for fewer or smaller pictures, or wait for those that run; /v1/billing/balance says what is left",
            )

    async def _allow(self, order: Order) -> float:
        """Have the prompt checked, where the operator has a guard and the request is one to be checked.

        Returns:
            the seconds that took.
        """
        start, safety = time.perf_counter(), self.worker.safety
        if safety.guard is not None and safety.applies(order.params.safety_checker, order.may_switch_off):
            await safety.guard.allow(order.params.prompt)
        return time.perf_counter() - start

    async def _asked(self, params: GenerationParams) -> Expansion | None:
        """What the endpoint makes of a prompt; None where it is not its to expand."""
        if self.endpoint is None or not params.prompt_expansion:
            return None
        return await self.endpoint.expand(params.prompt)

    def _told(self, order: Order, expansion: Expansion | None) -> Expansion | None:
        """What the answer says of the expansion; the log says why a prompt was drawn as it is."""
        if not order.params.prompt_expansion:
            return None
        expansion = expansion or Expansion.left(order.params.prompt, NOT_HERE, "none")
        if not expansion.applied and expansion.provider != "none":
            log.info("request %s: the prompt was not expanded: %s", order.request.request_id, expansion.reason,
                     extra={"request_id": order.request.request_id, "expansion": expansion.provider})  # fmt: skip
        return expansion

    def _checker_of(self, order: Order) -> Checker | None:
        """What judges the request's pictures; None where the request, its key and the operator leave that out."""
        safety = self.worker.safety
        return safety.checker if safety.applies(order.params.safety_checker, order.may_switch_off) else None

    async def _encode(self, pictures: tuple[Screened, ...], order: Order, work: _Work) -> tuple[Delivery, ...]:
        """All files of a request, encoded and stored side by side; none goes on when one fails."""
        if len(pictures) == 1:
            return (await self._deliver(pictures[0], order, work),)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._deliver(picture, order, work)) for picture in pictures]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return tuple(task.result() for task in tasks)

    async def _deliver(self, screened: Screened, order: Order, work: _Work) -> Delivery:
        file = cache(partial(self._file_of, screened, _as_drawn(order.params, work.level), work.expansion))
        seed, flagged = screened.picture.seed, screened.withheld is not None
        if not order.store:
            return Delivery(await asyncio.to_thread(file), seed, None, flagged)
        name = await self.files.put(file, order.params.output_format)  # encoded and written in one visit to a thread
        work.names.append(name)
        return Delivery(file(), seed, name, flagged)

    def _file_of(self, screened: Screened, params: GenerationParams, expansion: Expansion | None) -> bytes:
        """The file of a picture, described and signed as the settings ask; run on a worker thread."""
        start, model, picture = time.perf_counter(), self.worker.engine.model, screened.picture
        settings = Settings.of(params, picture.seed, model.name, model.version) if self.write_prompts else None
        if settings is not None and expansion is not None and expansion.applied:
            settings = replace(settings, drawn_prompt=expansion.for_seed(picture.seed).text)
        data = encode(picture.pixels, params.output_format, screened.withheld or settings)
        if self.signer is not None:
            data = self.signer.sign(data, params.output_format)
        self.metrics.encoded(params.output_format, time.perf_counter() - start)
        return data

    async def _charge(self, order: Order, delivered: Delivered, work: _Work) -> None:
        """End the request's row as done. From here on it is delivered, even to a client that leaves meanwhile."""
        ending = Ending(
            status="done",
            ended_ms=now_ms(),
            credits=order.credits,
            files=tuple(picture.name for picture in delivered.pictures if picture.name is not None),
            seconds=delivered.timings,
            safety=delivered.safety,
            answer=order.answer(delivered) if order.answer else None,
        )
        finishing = asyncio.ensure_future(self.records.ledger.finish(order.request.request_id, ending))
        try:
            finished = await asyncio.shield(finishing)
        except asyncio.CancelledError:
            work.ended = True
            self._later(self._see_out(finishing, order, ending, work))
            raise
        if not finished:
            raise StorageError("the request's row has ended already", "its pictures were not charged")
        work.ended = True
        self._count(order, ending)

    async def _see_out(self, finishing: "asyncio.Future[bool]", order: Order, ending: Ending, work: _Work) -> None:
        """Nobody waits any more for a charge: if it fails after all, the request ends as cancelled."""
        try:
            charged = await finishing
        except StorageError:
            charged = False
        if charged:
            self._count(order, ending)
        else:
            work.ended = False
            self._give_up(order, work, "cancelled", "cancelled")

    def _give_up(self, order: Order, work: _Work, status: End, error: str) -> None:
        """End a request that delivers nothing: its row, its hold, and pictures that were stored already."""
        if work.ended:
            return
        work.ended = True
        ending = Ending(status=status, ended_ms=now_ms(), error=error)
        self._count(order, ending)
        self._unsettled[order.request.request_id] = ending
        self._later(self._clear(work.names))
        self._later(self.settle())

    async def release(self, owner: str, key: str) -> None:
        """Let an Idempotency-Key be used again, unless its answer was kept; later, where the disk refuses it now."""
        self._unreleased.discard((owner, key))
        try:
            await self.records.idempotency.release(owner, key)
        except StorageError as error:
            self._unreleased.add((owner, key))
            log.warning("an Idempotency-Key is not free yet: %s", error.message)

    async def settle(self) -> None:
        """End the rows of requests that have given up, and free their keys; what the disk refuses is tried again."""
        for owner, key in list(self._unreleased):
            if (owner, key) in self._unreleased:  # else it was freed meanwhile, and may be another request's by now
                await self.release(owner, key)
        for request_id, ending in list(self._unsettled.items()):
            try:
                await self.records.ledger.finish(request_id, ending)
            except StorageError as error:
                log.warning("the end of request %s is not written down yet: %s", request_id, error.message)
                return
            self._unsettled.pop(request_id, None)

    async def reject(self, request: Request, error: Exception) -> None:
        """Write down a request that never began; a store that fails does not change its answer."""
        self.metrics.ended("rejected")
        ending = Ending(status="rejected", ended_ms=now_ms(), error=_code(error))
        with contextlib.suppress(StorageError):
            await self.records.ledger.reject(request, ending)

    async def close(self) -> None:
        """Stop asking the endpoints, and wait for what is being written."""
        await self.worker.safety.aclose()
        if self.endpoint is not None:
            await self.endpoint.aclose()
        while self._chores:
            await asyncio.wait(self._chores)

    async def _clear(self, names: list[str]) -> None:
        """Remove pictures that nobody was told of; what stays is removed at the next start."""
        for name in names:
            with contextlib.suppress(StorageError):
                await self.files.delete(name)

    def _later(self, chore: Coroutine[Any, Any, None]) -> None:
        """Do something on the side, held until it is done."""
        task = asyncio.ensure_future(chore)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    def _count(self, order: Order, ending: Ending) -> None:
        params = order.params
        self.metrics.ended(ending.status)
        if ending.status == "done":
            self.metrics.credits.inc(ending.credits)
            seconds = dict(ending.seconds)
            flagged = sum(ending.safety.flagged) if ending.safety else 0
            self.metrics.flagged.inc(flagged)
            self.metrics.delivered(seconds, params.width, params.height, params.steps, params.num_images)
        log.info(
            "request %s %s", order.request.request_id, ending.status,
            extra={"request_id": order.request.request_id, "key": order.request.key, "status": ending.status,
                   "credits": ending.credits, "error": ending.error, "size": f"{params.width}x{params.height}",
                   "steps": params.steps, "images": params.num_images,
                   "seconds": {name: round(value, 4) for name, value in ending.seconds.items()}},
        )  # fmt: skip


def _as_drawn(params: GenerationParams, level: str | None) -> GenerationParams:
    """The parameters as the picture's file tells them: with the level that really drew."""
    return params if level is None else replace(params, acceleration=level)


def _code(error: Exception) -> str:
    """What the log calls an error."""
    return error.code if isinstance(error, ZTurboError) else "internal_error"


async def _veiled(progress: Progress) -> Progress:
    """Progress as it may be shown before its pictures are judged."""
    preview = progress.preview
    if preview is not None:
        preview = await asyncio.to_thread(veiled, preview)
    return replace(progress, preview=preview, pictures=())


async def _screen(
    checker: Checker | None, pictures: tuple[Picture, ...]
) -> tuple[tuple[Screened, ...], Screening | None]:
    """Judge the pictures of a request side by side, and put a black one in the place of each that is flagged.

    Raises:
        SafetyError: the checker failed on one of them.
    """
    if checker is None:
        return tuple(Screened(picture) for picture in pictures), None
    screened = await asyncio.gather(*(asyncio.to_thread(screen, checker, picture) for picture in pictures))
    verdicts = [one.verdict for one in screened if one.verdict is not None]
    return tuple(screened), Screening(
        checker=f"{checker.name}@{checker.version}",
        threshold=checker.threshold,
        scores=tuple(verdict.score for verdict in verdicts),
        flagged=tuple(verdict.flagged for verdict in verdicts),
    )


class _Events:
    """What the engine's thread publishes, brought to the event loop that asked."""

    def __init__(self, timeout_s: float, progress: bool) -> None:
        self._loop, self._progress = asyncio.get_running_loop(), progress
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._timeout_s, self._deadline = timeout_s, self._loop.time() + timeout_s
        self.drawn = 0.0
        """When the engine was done; who asked may read of it later, behind what a slow reader takes."""

    def publish(self, event: Any) -> None:
        """Called from any thread: a place in the queue is told by whoever changes it."""
        if isinstance(event, Progress) and event.stage == "done":
            self.drawn = time.perf_counter()
        needed = self._progress or isinstance(event, BaseException) or event.stage == "done" or event.expansion
        if needed and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """What is awaited within ends at the request's deadline.

        Raises:
            DeadlinePassed: it has passed.
        """
        late = DeadlinePassed(
            f"the request was not done within {self._timeout_s:g} s",
            "ask for fewer or smaller pictures or fewer steps, or again later; request_timeout_s is the server's limit",
        )
        try:
            async with asyncio.timeout_at(self._deadline) as limit:
                yield
        except TimeoutError:
            if limit.expired():
                raise late from None
            raise
        if self._loop.time() > self._deadline:  # it waited here, for a slow reader
            raise late

    async def next(self) -> Progress:
        """The next progress; an exception of the engine is raised here.

        Raises:
            DeadlinePassed: none came in time.
        """
        async with self.in_time():
            event = await self._queue.get()
        if isinstance(event, BaseException):
            try:
                raise event
            finally:
                del event  # with the frame it is in, it would be a circle that holds what the engine's frames held
        assert isinstance(event, Progress)
        return event
