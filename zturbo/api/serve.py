"""`zturbo serve`: one supervised worker process that holds the model and answers HTTP.

Granian runs it: it bounds headers and their time, answers 431 where others swallow hundreds of megabytes, and starts
the worker again should it die. Settings reach the worker through the environment.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette

from zturbo import logs
from zturbo.api.app import create_app
from zturbo.config import CONFIG_VARIABLE, SETTINGS, Config, load_config
from zturbo.engine.catalog import resolve
from zturbo.engine.queue import AdmissionQueue
from zturbo.engine.worker import Draws, Worker
from zturbo.errors import ConfigError
from zturbo.provenance import open_signer
from zturbo.storage.embedded import open_storage, try_storage

log = logging.getLogger("zturbo")
ORPHAN_POLL_S = 0.5
DYING_S = 1.0
"""For the answers of requests that a lost device ended."""
PAUSES_S: tuple[float, ...] = (5.0, 15.0, 45.0, 120.0)
"""After the first, second, ... start in a row at which the device was lost; then there is no further one."""
LOST_EARLY = 3
"""The exit status of a worker that lost its device before it could draw."""
LOST_STARTS = "ZTURBO_LOST_STARTS"
"""The environment's variable by which a worker is told how many in a row have ended so."""
KILL_AFTER_S = 5
"""Seconds after the grace."""

STOPPING = getattr(signal, "SIGUSR1", None)
"""How the supervisor tells its worker; Windows has no such signal."""

if TYPE_CHECKING:
    from zturbo.engine.engine import Engine
    from zturbo.safety.checker import Safety


def make_app() -> Starlette:
    """The application as the environment's settings ask; called in the worker process."""
    return make_app_of(_load)


def make_app_of(load: Callable[[Config], Draws]) -> Starlette:
    """The application as the environment's settings ask, round an engine of the caller's.

    Args:
        load: makes the engine, on the worker's thread.
    """
    config = load_config()
    logs.set_up(config.log_format)
    orphan = threading.Thread(
        target=_end_with, args=(os.getppid(), config.shutdown_grace_s), name="orphan", daemon=True
    )
    orphan.start()
    queue = AdmissionQueue(config.queue_limit)
    worker = Worker(queue, lambda: load(config), lambda: _load_safety(config), _die)
    if STOPPING is not None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # from a terminal; this process is told by its supervisor
        _hear_once()
        signal.signal(STOPPING, lambda *_: _stop(worker.queue, config.shutdown_grace_s))
    return create_app(worker, lambda: open_storage(config), config, _show_key)


def _die(worked: bool) -> bool:
    """End this worker, once its answers are on their way; its supervisor starts another.

    Args:
        worked: whether it has drawn; one that has not waits before it ends, longer each time.

    Returns:
        False where it stays, to say what is wrong: too many in a row lost the device at their start.
    """
    lost = int(os.environ.get(LOST_STARTS, "0"))
    if not worked and lost >= len(PAUSES_S):
        log.critical("the device was lost at %d starts in a row: look after it, then start the server anew", lost + 1)
        return False
    pause_s, status = (DYING_S, 1) if worked else (PAUSES_S[lost], LOST_EARLY)
    log.critical("this process ends in %g s, and another one tries", pause_s)
    logs.finish()
    ending = threading.Timer(pause_s, os._exit, (status,))
    ending.daemon = True
    ending.start()
    return True


def _count_lost_starts(granian: Any) -> None:
    """Have Granian tell each worker it starts how many before it lost the device at their start."""
    respawn = granian._respawn_workers

    def counted(*args: Any, **kwargs: Any) -> None:
        early = granian.wrks[0].inner.exitcode == LOST_EARLY
        os.environ[LOST_STARTS] = str(int(os.environ.get(LOST_STARTS, "0")) + 1 if early else 0)
        respawn(*args, **kwargs)

    granian._respawn_workers = counted


def _hear_once() -> None:
    """Told to stop twice, as by a terminal and by its supervisor, Granian's worker would stand still for ever."""
    from granian import _signals

    signals: Any = _signals
    listen = signals.set_loop_signals

    def hear(loop: asyncio.AbstractEventLoop) -> Any:
        event, told = listen(loop), False

        def stop() -> None:
            nonlocal told
            if not told:
                told = True
                event.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        return event

    signals.set_loop_signals = hear


def _stop(queue: AdmissionQueue, grace_s: float) -> None:
    """Refuse what comes on connections that are open, and after the grace end what still runs: with an answer.

    Granian stops the application after the last connection only, which would be too late for either.
    """
    queue.drain()
    ending = threading.Timer(grace_s, queue.give_up)
    ending.daemon = True
    ending.start()


def _load(config: Config) -> "Engine":
    """Load the engine; on the worker's thread, so that /healthz answers meanwhile."""
    from zturbo.engine.engine import Engine

    engine = Engine.load_configured(config, build=True)
    engine.warm_up()
    _say(engine.block())
    return engine


def _load_safety(config: Config) -> "Safety":
    """Load what judges pictures; on the worker's thread as well."""
    from zturbo.safety.load import load_safety

    safety = load_safety(config)
    _say(safety.row())
    return safety


def _probe(host: str, port: int) -> str:
    """Find out whether an address is free. Granian would share a port with another server, and nobody would notice.

    Returns:
        The address in numbers, which is all that Granian takes; of a name with several the IPv4 one.

    Raises:
        ConfigError: it is taken, or is no address of this computer.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, number, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        with socket.socket(family, kind, number) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that just ended do not count
            probe.bind(address)
        return str(address[0])
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}", "choose another --port, or stop what has it"
        ) from error


def _end_with(supervisor: int, grace_s: float) -> None:
    """Stop this process once its supervisor was killed: an orphan would keep the port and the data folder."""
    while os.getppid() == supervisor:
        time.sleep(ORPHAN_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s + KILL_AFTER_S)
    os._exit(1)  # some client would not let it end


def _show_key(text: str) -> None:
    _say(f"key: {text}\n     It is kept as a hash and not shown again; `zturbo keys create` makes another.")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _tell_workers(granian: Any, number: int) -> None:
    """Have Granian tell its worker of a SIGTERM or SIGINT at once, not when all connections have ended.

    A SIGHUP, as of a terminal that closes, is taken for one of these, unless it is ignored, as under nohup: Granian
    would start a second worker beside the first, which holds the data folder.
    """
    interrupt, supervisor = granian.signal_handler_interrupt, os.getpid()

    def told(*args: Any, **kwargs: Any) -> None:
        if os.getpid() != supervisor:  # a worker that was just forked and has no handlers of its own yet
            os._exit(0)
        for worker in granian.wrks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.inner.pid, number)
        interrupt(*args, **kwargs)

    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    granian.signal_handler_interrupt = told
    granian.signal_handler_reload = (lambda *_: None) if ignored else told


def run(config: Config, config_file: Path | None, factory: str = "zturbo.api.serve:make_app") -> None:
    """Serve until SIGTERM or SIGINT: then refuse what comes, finish what runs, and return.

    Args:
        config_file: where the settings were read from, for the worker to read it as well.
        factory: "module:function" that makes the application in the worker process.

    Raises:
        ConfigError: the address cannot be listened on, as when another server has it, or content credentials cannot be
            signed.
        StorageError: the data folder cannot be used, as when another server has it.
        WeightsNotFound: there is no such model on this computer.
    """
    from granian import Granian
    from granian.constants import HTTPModes, Interfaces

    resolve(config.model)
    numbers = _probe(config.host, config.port)
    asyncio.run(try_storage(config))  # here it is one message; in the worker a traceback, and another try
    open_signer(config)  # the same
    if config_file is not None:
        os.environ[CONFIG_VARIABLE] = str(config_file)
    for setting in SETTINGS:  # the worker reads the same settings, wherever they came from
        os.environ[setting.variable] = str(getattr(config, setting.name))
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"http://{host}:{config.port}"
    _say(f"zturbo serves {config.model} at {address}/v1/images/generations\nplayground: {address}/")
    granian = Granian(
        factory,
        factory=True,
        address=numbers,
        port=config.port,
        interface=Interfaces.ASGI,
        workers=1,
        http=HTTPModes.http1,  # its second version reports a lost connection to one of its requests only
        websockets=False,
        log_access=False,
        log_dictconfig=logs.supervisor_config(config.log_format),
        respawn_failed_workers=True,
        workers_kill_timeout=config.shutdown_grace_s + KILL_AFTER_S,
    )
    if STOPPING is not None:
        _tell_workers(granian, STOPPING)
    _count_lost_starts(granian)
    granian.serve()
