"""The web application: routes, middleware and the life of the service."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from zturbo import __version__
from zturbo.api import errors, images, models, pictures
from zturbo.api.identity import EXPOSED, RequestIds
from zturbo.engine.worker import Worker
from zturbo.service import Service
from zturbo.storage.files import Files


def create_app(
    worker: Worker,
    open_files: Callable[[], Awaitable[Files]],
    key: str,
    write_prompts: bool = True,
    grace_s: float = 30.0,
) -> FastAPI:
    """The application of one worker and one store.

    Args:
        worker: started when the application starts, drained when it stops.
        open_files: opens the store of pictures, once, when the application starts.
        key: the bearer key that requests must carry.
        write_prompts: whether prompt and settings are written into the pictures.
        grace_s: how long running requests may take to end when the application stops.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        files = await open_files()
        app.state.service = Service(worker, files, write_prompts)
        worker.start()
        yield
        worker.queue.drain()
        await asyncio.to_thread(worker.join, grace_s)
        await files.close()

    app = FastAPI(title="zturbo", version=__version__, lifespan=life, redirect_slashes=False)
    app.state.key = key
    errors.install(app)
    for part in (images, models, pictures):
        app.include_router(part.router)
    app.add_middleware(
        CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"], expose_headers=list(EXPOSED)
    )
    app.add_middleware(RequestIds)
    return app
