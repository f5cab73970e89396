"""`zturbo serve`: one supervised worker process that holds the model and answers HTTP.

Granian runs it: it bounds headers and their time, answers 431 where others swallow hundreds of megabytes, and starts
the worker again should it die. Settings reach the worker through the environment.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI

from zturbo import logs
from zturbo.api.app import create_app
from zturbo.config import CONFIG_VARIABLE, SETTINGS, Config, load_config
from zturbo.engine.queue import AdmissionQueue
from zturbo.engine.worker import Worker
from zturbo.storage.embedded import open_storage

if TYPE_CHECKING:
    from zturbo.engine.engine import Engine


def make_app() -> FastAPI:
    """The application as the environment's settings ask; called in the worker process."""
    config = load_config()
    logs.set_up(config.log_format)
    worker = Worker(AdmissionQueue(config.queue_limit), lambda: _load(config))
    return create_app(worker, lambda: open_storage(config), config, _show_key)


def _load(config: Config) -> "Engine":
    """Load the engine; on the worker's thread, so that /healthz answers meanwhile."""
    from zturbo.engine.engine import Engine

    engine = Engine.load_configured(config)
    _say(engine.block())
    return engine


def _show_key(text: str) -> None:
    _say(f"key: {text}\n     It is kept as a hash and not shown again; `zturbo keys create` makes another.")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(config: Config, config_file: Path | None) -> None:
    """Serve until SIGTERM or SIGINT: then refuse what comes, finish what runs, and return."""
    from granian import Granian
    from granian.constants import Interfaces

    if config_file is not None:
        os.environ[CONFIG_VARIABLE] = str(config_file)
    for setting in SETTINGS:  # the worker reads the same settings, wherever they came from
        os.environ[setting.variable] = str(getattr(config, setting.name))
    _say(f"zturbo serves {config.model} at http://{config.host}:{config.port}/v1/images/generations")
    Granian(
        "zturbo.api.serve:make_app",
        factory=True,
        address=config.host,
        port=config.port,
        interface=Interfaces.ASGI,
        workers=1,
        websockets=False,
        log_access=False,
        respawn_failed_workers=True,
        workers_kill_timeout=config.shutdown_grace_s + 5,
    ).serve()
