"""`zturbo serve`: one supervised worker process that holds the model and answers HTTP.

Granian runs it: it bounds headers and their time, answers 431 where others swallow hundreds of megabytes, and starts
the worker again should it die. Settings reach the worker through the environment.
"""

import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI

from zturbo.api.app import create_app
from zturbo.config import Config, load_config
from zturbo.engine.queue import AdmissionQueue
from zturbo.engine.worker import Worker
from zturbo.storage.local import LocalFiles

if TYPE_CHECKING:
    from zturbo.engine.engine import Engine

GRACE_S = 30


def make_app() -> FastAPI:
    """The application as the environment's settings ask; called in the worker process."""
    config = load_config()
    worker = Worker(AdmissionQueue(config.queue_limit), lambda: _load(config))
    return create_app(worker, lambda: LocalFiles.start(config.files_dir), config.api_key, config.metadata, GRACE_S)


def _load(config: Config) -> "Engine":
    """Load the engine; on the worker's thread, so that /healthz answers meanwhile."""
    from zturbo.engine.engine import Engine

    engine = Engine.load_configured(config)
    print(engine.block(), file=sys.stderr, flush=True)
    return engine


def run(config: Config, config_file: Path | None) -> None:
    """Serve until SIGTERM or SIGINT: then refuse what comes, finish what runs, and return."""
    from granian import Granian
    from granian.constants import Interfaces

    key = config.api_key or secrets.token_hex(16)
    os.environ["ZTURBO_API_KEY"] = key
    if config_file is not None:
        os.environ["ZTURBO_CONFIG"] = str(config_file)
    for name in ("model", "device", "dtype", "quantization", "acceleration", "host", "port"):
        os.environ[f"ZTURBO_{name.upper()}"] = str(getattr(config, name))
    address = f"http://{config.host}:{config.port}"
    shown = key if not config.api_key else "as set"
    print(f"zturbo serves {config.model} at {address}/v1/images/generations\nkey: {shown}", file=sys.stderr, flush=True)
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
        workers_kill_timeout=GRACE_S + 5,
    ).serve()
