"""The web application: routes, middleware and the life of the service."""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware

from zturbo import logs
from zturbo.api import errors, images, keys, models, monitoring, openapi, pictures, usage, web
from zturbo.api.answers import untold
from zturbo.api.identity import EXPOSED, RequestIds
from zturbo.api.operations import OPERATIONS
from zturbo.api.schemas import model_names
from zturbo.api.sessions import LocalSessions
from zturbo.config import Config
from zturbo.engine.worker import Worker
from zturbo.errors import StorageError
from zturbo.expansion.endpoint import ChatEndpoint
from zturbo.keys import first_key
from zturbo.metrics import Metrics
from zturbo.provenance import EXPIRY_TOLD_DAYS, open_signer
from zturbo.rates import KeyRates
from zturbo.service import Service
from zturbo.storage.embedded import Storage, now_ms
from zturbo.storage.records import DAY_MS

PARTS = (images, keys, models, monitoring, openapi, pictures, usage, web)
SETTLE_EVERY_S = 5.0
SWEEP_EVERY_S = 3600.0
REPLAYS = 4
"""Answers to repetitions that are put together at a time: each holds its pictures, and nothing else bounds them."""

log = logging.getLogger("zturbo")


def create_app(
    worker: Worker,
    open_storage: Callable[[], Awaitable[Storage]],
    config: Config,
    show_key: Callable[[str], None] = lambda _text: None,
) -> Starlette:
    """The application of one worker and one store.

    Args:
        worker: started when the application starts, drained when it stops.
        open_storage: opens records and files, once, when the application starts.
        config: the settings.
        show_key: receives the text of the key that the first start makes; it is shown nowhere else.
    """
    metrics, signer = Metrics(), open_signer(config)

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        storage = await open_storage()
        try:
            if made := await first_key(storage.records.keys, config.api_key, now_ms()):
                show_key(made)
            endpoint = ChatEndpoint.configured(config) if config.expansion_provider == "endpoint" else None
            service = Service(worker, storage, config.metadata, config.request_timeout_s, metrics, signer, endpoint)
            app.state.service = service
            if signer is not None and (left := signer.days_left) < EXPIRY_TOLD_DAYS:
                log.warning("the certificate of c2pa_certificate ends in %d days; nothing is drawn from then on", left)
            worker.start()
            async with _chores(service, config.retention_days):
                yield
                worker.queue.drain()
                if worker.ready:  # else nothing was admitted, and loading cannot be stopped
                    await asyncio.to_thread(worker.join, config.shutdown_grace_s)
                await service.close()
        finally:
            await storage.close()
            logs.finish()

    routes = [route for part in PARTS for route in part.router.routes]
    app = Starlette(routes=routes, lifespan=life)
    app.router.redirect_slashes = False
    app.state.config = config
    app.state.models = model_names(config.model_aliases)
    app.state.scans = defaultdict(partial(asyncio.Semaphore, 1))  # by key
    app.state.replays = defaultdict(partial(asyncio.Semaphore, REPLAYS))  # by key
    app.state.managing = asyncio.Lock()  # changes of keys take turns
    app.state.rates = KeyRates(config.rate_limit, config.concurrency_limit)
    # Behind a proxy anybody is local.
    app.state.sessions = LocalSessions(config.host, enabled=config.local_sessions and not config.public_url)
    errors.install(app)
    app.state.routes = routes
    openapi.publish(app, OPERATIONS)
    app.add_middleware(
        CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"], expose_headers=list(EXPOSED)
    )
    app.add_middleware(RequestIds, metrics=metrics)
    return app


@asynccontextmanager
async def _chores(service: Service, retention_days: int) -> AsyncIterator[None]:
    """What a server does on the side: write down ends that the disk refused, and clear away what is old."""

    async def settle() -> None:
        await service.settle()

    async def sweep() -> None:
        if retention_days and (removed := await service.files.sweep(now_ms() - retention_days * DAY_MS)):
            log.info("retention removed %d pictures", removed)

    async def expire() -> None:  # apart: on a full disk it fails until the other has made room
        now = now_ms()
        for answer in await service.records.idempotency.expired(now):
            for name in untold(answer):
                await service.files.delete(name)
        await service.records.idempotency.forget(now)  # last: what is interrupted finds the same names again

    chores = ((SETTLE_EVERY_S, settle), (SWEEP_EVERY_S, sweep), (SWEEP_EVERY_S, expire))
    tasks = [asyncio.ensure_future(_every(seconds, chore)) for seconds, chore in chores]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _every(seconds: float, chore: Callable[[], Awaitable[None]]) -> None:
    """Do something now and again and again; storage that fails is tried again."""
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            try:
                await chore()
            except StorageError as error:
                log.warning("storage: %s", error.message)
            await asyncio.sleep(seconds)
