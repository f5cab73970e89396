"""The real server in processes of its own: Granian, SQLite, files, keys and logs are real, only the drawing is instant.

    python -m tests.api.server_process [make_losing]

serves as `zturbo serve` does, with the settings of the environment. Three variables are for the engine alone:

    INSTANT_GATE   a file; while it is missing, drawing stops between two steps, the warm-up picture's too
    INSTANT_STEP   seconds that each step takes
    INSTANT_SIDE   pixels; larger pictures are drawn no larger, where encoding is not what is looked at
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from tests.api.instant import Instant
from zturbo.api import serve
from zturbo.api.serve import make_app_of, run
from zturbo.config import load_config
from zturbo.engine.progress import Progress
from zturbo.errors import DeviceLost
from zturbo.params import MAX_SIDE

KEY = "0123456789abcdef0123456789abcdef"
GENERATIONS = "/v1/images/generations"
START_S = 60
"""More than any start takes, on a machine that is busy with other things."""


class FileGate(threading.Event):
    """Open while a file exists."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the file, whatever the time."""
        while not self._path.exists():
            time.sleep(0.002)
        return True


class SlowGate(threading.Event):
    """Opens for each step after a while."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def wait(self, timeout: float | None = None) -> bool:
        """Let the step take its time."""
        time.sleep(self._seconds)
        return True


def make_app() -> Starlette:
    """The application round an instant engine; called in the worker process."""
    side = int(os.environ.get("INSTANT_SIDE", MAX_SIDE))
    return make_app_of(lambda _config: Instant(gate=_gate(), max_side=side))


class Losing(Instant):
    """Loses its device at the first picture, which is the warm-up's."""

    def draw(self, *_asked: object, **_named: object) -> Iterator[Progress]:
        raise DeviceLost("the device failed: an illegal memory access was encountered")


def make_losing() -> Starlette:
    """The application round an engine that never comes up; Granian would call two short pauses a loop, and end."""
    serve.PAUSES_S = (0.2, 5.6)
    return make_app_of(lambda _config: Losing())


def _gate() -> threading.Event:
    if path := os.environ.get("INSTANT_GATE"):
        return FileGate(Path(path))
    if seconds := float(os.environ.get("INSTANT_STEP", "0")):
        return SlowGate(seconds)
    always = threading.Event()
    always.set()
    return always


@dataclass
class Serving:
    """A server that runs in a process group of its own."""

    port: int
    data_dir: Path
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """The address before the path."""
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, timeout_s: float = 30
    ) -> "Reply":
        """One request on a connection of its own, with the key; a body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        sent = {"authorization": f"Bearer {KEY}", "content-type": "application/json", **(headers or {})}
        try:
            connection.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body), sent)
            answer = connection.getresponse()
            return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def answers(self, path: str) -> int:
        """The status of a GET, or 0 where nobody answers."""
        try:
            return self.ask("GET", path).status
        except (OSError, http.client.HTTPException):
            return 0

    def logged(self, text: str, times: int) -> int:
        """How often the log holds a text, once that is so often, or after ten seconds: lines are written in groups."""
        deadline = time.monotonic() + 10
        while (found := self.log.read_text("utf-8").count(text)) < times and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    def until(self, path: str, status: int) -> None:
        """Wait for a GET to be answered so."""
        deadline = time.monotonic() + START_S
        while (found := self.answers(path)) != status:
            ended = self.process.poll()
            assert ended is None or status == 0, f"the server ended with {ended}\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"{path} answers {found}, not {status}\n{self.log.read_text()}"
            time.sleep(0.01)

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Send the whole server a signal, and wait for its end; returns the exit code."""
        os.killpg(self.process.pid, number)
        return self.process.wait(START_S)

    def worker(self) -> int:
        """The process id of the one process that answers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        assert len(children) == 1, f"one worker was expected; there are {children}"
        return int(children[0])


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)


@contextmanager
def serving(
    folder: Path, gate: Path | None = None, step_s: float = 0, side: int = MAX_SIDE, ready: bool = True,
    start: bool = True, module: str = "tests.api.server_process", **settings: object,
) -> Iterator[Serving]:  # fmt: skip
    """A server on a free loopback port, its data in FOLDER/data; killed at the end where it still runs.

    Args:
        gate: the file that holds the engine while it is missing.
        step_s: seconds that each step takes.
        side: pixels of the largest picture that is really drawn.
        ready: wait until pictures can be drawn; else only until it answers.
        start: wait at all.
        module: what Python runs, with its arguments; "zturbo serve" draws in earnest.
        settings: as in `Config`.
    """
    port, log = free_port(), folder / "server.log"
    none = folder / "config.toml"  # not the user's own
    none.touch()
    given = {"config": none, "host": "127.0.0.1", "port": port, "data_dir": folder / "data", "api_key": KEY,
             "log_format": "json", "safety_checker": "none"}  # fmt: skip
    environment = {f"ZTURBO_{name.upper()}": str(value) for name, value in (given | settings).items()}
    environment |= {"INSTANT_STEP": str(step_s), "INSTANT_SIDE": str(side)}
    if gate is not None:
        environment["INSTANT_GATE"] = str(gate)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ZTURBO_")}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *module.split()],
            env=clean | environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    server = Serving(port, folder / "data", log, process)
    try:
        if start:
            server.until("/readyz" if ready else "/healthz", 200)
        yield server
    finally:
        if process.poll() is None:
            server.kill()


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    run(load_config(), None, f"tests.api.server_process:{(sys.argv[1:] or ['make_app'])[0]}")
