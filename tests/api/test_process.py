"""The server as a process: killed at any moment, its disk full, its clients gone, told to stop.

What is proven of kill -9: the process may die anywhere, and nothing that a client was told is lost. Not proven: that
the disk keeps its word when the power fails; that rests on fsync and on synchronous=FULL.
"""

import contextlib
import http.client
import io
import json
import os
import random
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.api.server_process import GENERATIONS, KEY, Reply, Serving, free_port, serving

MOMENTS = int(os.environ.get("KILL_MOMENTS", random.randrange(2**32)))
"""Seed of the moments of the kills; a failure shows it, and the environment may give it again."""
KILLS = 20
"""While it serves; every fifth restart is killed too, while it starts."""
CLIENTS = 6
PRICE = 10_500
BODY = {"model": "alibaba/z-image-turbo", "prompt": "a cat", "image_size": "square"}
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are set by Linux's prlimit")


def draw(server: Serving, **changes: Any) -> Reply:
    return server.ask("POST", GENERATIONS, BODY | changes)


def rows(server: Serving, query: str) -> list[tuple[Any, ...]]:
    """Ask the database file itself, beside the server."""
    with closing(sqlite3.connect(server.data_dir / "records.sqlite", timeout=30)) as connection:
        return connection.execute(query).fetchall()


def statuses(server: Serving) -> list[str]:
    return [status for (status,) in rows(server, "SELECT status FROM generations ORDER BY number")]


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.01)


# --- kill -9 ---------------------------------------------------------------------------------------------------------


@dataclass
class Client:
    """Asks for ever, as a careful client does: what was not answered is asked again with the same Idempotency-Key."""

    name: str
    told: dict[str, list[str]] = field(default_factory=dict)
    """Idempotency-Key -> paths of its pictures, of what was answered."""
    pending: dict[str, Any] | None = None
    count: int = 0

    def work(self, server: Serving, wanted: Callable[[], bool]) -> None:
        """Until the server dies, or nobody wants more."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            while wanted():
                self.ask(server)

    def asked(self, server: Serving) -> bool:
        """Ask once more what is not answered yet; whether nothing is left."""
        self.ask(server)
        return self.pending is None

    def ask(self, server: Serving) -> None:
        """One request, or the last one again."""
        if self.pending is None:
            self.count += 1
            self.pending = {"num_images": 1 + self.count % 2, "output_format": ("png", "jpeg")[self.count % 2]}
        key = f"{self.name}-{self.count}"
        headers = {"idempotency-key": key, "x-client-request-id": key}
        reply = server.ask("POST", GENERATIONS, BODY | self.pending, headers)
        if reply.status == 200:
            self.told[key] = [item["url"].removeprefix(server.url) for item in reply.json()["data"]]
            self.pending = None
        else:
            assert reply.status in (409, 503), reply.body  # its first attempt still runs, or the queue is full


def load(server: Serving, clients: list[Client], seconds: float) -> None:
    """Let all clients ask, and kill everything some time after the first answer."""
    seen, alive = sum(len(client.told) for client in clients), True
    threads = [threading.Thread(target=client.work, args=(server, lambda: alive)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        until(lambda: sum(len(client.told) for client in clients) > seen, "a first answer")
        time.sleep(seconds)
        assert server.kill() == -signal.SIGKILL, "it ended by itself"
    finally:
        alive = False
        for thread in threads:
            thread.join()


def judge(server: Serving, clients: list[Client], whole_before: frozenset[str] = frozenset()) -> frozenset[str]:
    """After a restart: the database is clean, and every row, charge, picture and promise has its counterpart.

    Args:
        whole_before: pictures that were fetched and decoded before, and need not be again.

    Returns:
        All pictures.
    """
    assert rows(server, "PRAGMA integrity_check") == [("ok",)]
    assert rows(server, "PRAGMA foreign_key_check") == []
    assert rows(server, "SELECT count(*) FROM generations WHERE held <> 0 OR status = 'running'") == [(0,)]
    wrong = "SELECT request_id FROM generations WHERE credits <> (status = 'done') * images * ?"
    assert rows(server, wrong.replace("?", str(PRICE))) == [], "charged if and only if delivered"
    short = """SELECT request_id FROM generations WHERE status = 'done' AND images <>
        (SELECT count(*) FROM pictures WHERE pictures.request_id = generations.request_id)"""
    assert rows(server, short) == [], "no charge without its pictures"
    assert rows(server, "SELECT coalesce(sum(credits), 0) FROM generations") == rows(
        server, "SELECT coalesce(sum(credits), 0) FROM charges"
    )
    twice = (
        "SELECT client_request_id FROM generations WHERE status = 'done' GROUP BY 1 HAVING count(client_request_id) > 1"
    )
    assert rows(server, twice) == [], "a repeated request was charged twice"
    named = {str(name) for (name,) in rows(server, "SELECT name FROM pictures")}
    root = server.data_dir / "files"
    stored = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert named == stored, "a row without its picture, a picture without its row, or a half file"
    told = {path for client in clients for paths in client.told.values() for path in paths}
    assert {path.removeprefix("/files/b/") for path in told} <= named, "an answer was lost"
    for name in named - whole_before:
        whole(server, f"/files/b/{name}")
    return frozenset(named)


def whole(server: Serving, path: str) -> None:
    """A picture is served, and every pixel of it can be decoded."""
    reply = server.ask("GET", path)
    assert reply.status == 200
    Image.open(io.BytesIO(reply.body)).load()


def test_killed_under_load_and_nothing_is_lost(tmp_path: Path) -> None:
    clients, moments = [Client(f"client-{number}") for number in range(CLIENTS)], random.Random(MOMENTS)
    print(f"KILL_MOMENTS={MOMENTS}")
    known: frozenset[str] = frozenset()
    for run in range(KILLS):
        with serving(tmp_path, side=256) as server:
            known = judge(server, clients, known)
            load(server, clients, moments.uniform(0, 0.3))
        if run % 5 == 0:
            with serving(tmp_path, ready=False, start=False) as server:
                time.sleep(moments.uniform(0.2, 2))
                server.kill()
    with serving(tmp_path, side=256) as server:
        for client in clients:
            until(partial(client.asked, server), "an answer to what was asked")
        judge(server, clients)
        assert len(rows(server, "SELECT 1 FROM generations WHERE error = 'server_stopped'")) > 0, (
            "no kill hit a request"
        )


def test_the_judge_sees_what_is_missing(tmp_path: Path) -> None:
    """The test above would fail for a lost answer, a lost row, half a file, a stray file and a wrong charge."""
    client = Client("client")
    with serving(tmp_path, side=256) as server:
        client.ask(server)
        judge(server, [client])
        path = next((server.data_dir / "files").rglob("*.jpeg"))
        data = path.read_bytes()
        for damage, mended in (
            (lambda: path.write_bytes(data[: len(data) // 2]), lambda: path.write_bytes(data)),
            (path.unlink, lambda: path.write_bytes(data)),
            (lambda: path.with_suffix(".part").touch(), lambda: path.with_suffix(".part").unlink()),
            (lambda: change(server, "credits = credits + 1"), lambda: change(server, "credits = credits - 1")),
            (lambda: change(server, "images = 3"), lambda: change(server, "images = 2")),
            (lambda: client.told.update(never=["/files/b/none"]), lambda: client.told.pop("never")),
        ):
            damage()
            with pytest.raises((AssertionError, OSError)):
                judge(server, [client])
            mended()
        judge(server, [client])


def change(server: Serving, what: str) -> None:
    with closing(sqlite3.connect(server.data_dir / "records.sqlite", timeout=30)) as connection, connection:
        connection.execute(f"UPDATE generations SET {what} WHERE status = 'done'")


def test_the_worker_is_started_again(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert draw(server).status == 200
        first = server.worker()
        os.kill(first, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{first}").exists() and server.answers("/readyz") == 200, "another worker")
        assert draw(server).status == 200
        judge(server, [])


def test_what_a_worker_that_dies_was_drawing_is_free(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    with serving(tmp_path, gate=gate) as server:
        gate.unlink()
        with send(server):
            until(lambda: statuses(server) == ["running"], "a drawing")
            first = server.worker()
            os.kill(first, signal.SIGKILL)
            gate.touch()
            until(lambda: not Path(f"/proc/{first}").exists() and server.answers("/readyz") == 200, "another worker")
        assert rows(server, "SELECT status, credits, held FROM generations") == [("failed", 0, 0)]
        judge(server, [])


@linux
def test_no_worker_outlives_its_supervisor(tmp_path: Path) -> None:
    """It would keep the port and the data folder."""
    with serving(tmp_path) as server:
        worker = server.worker()
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        until(lambda: not Path(f"/proc/{worker}").exists(), "the orphan's end")


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        environment = os.environ | {"ZTURBO_PORT": str(server.port), "ZTURBO_DATA_DIR": str(tmp_path / "other")}
        second = subprocess.run(
            [sys.executable, "-m", "tests.api.server_process"], env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert second.returncode != 0
        assert f"cannot listen on 127.0.0.1:{server.port}: Address already in use" in second.stderr
        assert draw(server).status == 200


def test_a_data_folder_that_is_taken_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        environment = os.environ | {"ZTURBO_PORT": str(free_port()), "ZTURBO_DATA_DIR": str(server.data_dir)}
        second = subprocess.run(
            [sys.executable, "-m", "zturbo", "serve"], env=environment, capture_output=True, text=True, check=False
        )
        assert second.returncode == 1, second.stderr
        assert f"another server uses {server.data_dir}" in second.stderr
        assert "Traceback" not in second.stderr
        assert draw(server).status == 200


# --- disk ------------------------------------------------------------------------------------------------------------


def refused_for_storage(reply: Reply, reason: str) -> None:
    assert reply.status == 503, reply.body
    assert reply.json()["error"]["code"] == "storage_unavailable"
    assert reason in reply.json()["message"]
    assert int(reply.headers["retry-after"]) > 0


def nothing_is_held(server: Serving) -> bool:
    return rows(server, "SELECT count(*) FROM generations WHERE held <> 0 OR status = 'running'") == [(0,)]


def no_temporaries(server: Serving) -> bool:
    return not list((server.data_dir / "files").rglob("*.part"))


@linux
def test_files_that_cannot_grow(tmp_path: Path) -> None:
    """RLIMIT_FSIZE of the running worker: every larger write fails, in pictures and in the database's log."""
    with serving(tmp_path) as server:
        assert draw(server).status == 200
        worker = server.worker()
        before = resource.prlimit(worker, resource.RLIMIT_FSIZE)
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (2048, before[1]))
        for _ in range(3):
            refused_for_storage(draw(server), "")
        assert server.answers("/healthz") == 200
        resource.prlimit(worker, resource.RLIMIT_FSIZE, before)
        assert draw(server).status == 200
        until(lambda: nothing_is_held(server), "the ends of the refused requests")
        assert no_temporaries(server)
        judge(server, [])


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own; skips where mounting is not permitted."""
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@linux
def test_a_full_disk(tmp_path: Path) -> None:
    with mounted(tmp_path / "data", "size=8m"), serving(tmp_path) as server:
        assert draw(server).status == 200
        ballast = server.data_dir / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        for _ in range(3):
            refused_for_storage(draw(server), "")
        assert server.answers("/healthz") == 200
        ballast.unlink()
        assert draw(server).status == 200
        until(lambda: nothing_is_held(server), "the ends of the refused requests")
        assert no_temporaries(server)
        judge(server, [])


@linux
def test_a_folder_that_becomes_read_only(tmp_path: Path) -> None:
    with mounted(tmp_path / "data" / "files", "size=8m") as folder, serving(tmp_path) as server:
        first = draw(server)
        assert first.status == 200
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        refused_for_storage(draw(server), "Read-only file system")
        whole(server, first.json()["data"][0]["url"].removeprefix(server.url))
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
        assert draw(server).status == 200
        until(lambda: nothing_is_held(server), "the ends of the refused requests")
        judge(server, [])


# --- clients that leave ----------------------------------------------------------------------------------------------


def send(server: Serving, withheld: int = 0, **changes: Any) -> socket.socket:
    """A request on its way, on a connection that can be closed under it; its last bytes may be withheld."""
    body = json.dumps(BODY | changes).encode()
    head = (
        f"POST {GENERATIONS} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(head.encode() + body[: len(body) - withheld])
    return connection


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_clients_that_leave_pay_nothing_and_free_their_places(tmp_path: Path, stream: bool) -> None:
    """One leaves while its picture is drawn, one while it waits; the next one's is drawn."""
    gate = tmp_path / "gate"
    gate.touch()
    with serving(tmp_path, gate=gate, queue_limit=1) as server:
        gate.unlink()
        with send(server, stream=stream):
            until(lambda: len(statuses(server)) == 1 and waiting(server) == 0, "the first to be drawn")
            with send(server, stream=stream):
                until(lambda: waiting(server) == 1, "the second to wait")
                assert draw(server).status == 503, "the queue is full"
            until(lambda: statuses(server)[1] == "cancelled", "the end of the one that waited")
            taken = send(server, num_inference_steps=1)  # its place is free, while the first is still drawn
            until(lambda: statuses(server) == ["running", "cancelled", "rejected", "running"], "the place of it")
        until(lambda: statuses(server)[0] == "cancelled", "the end of the one that was drawn")
        gate.touch()
        with taken:
            assert taken.recv(12) == b"HTTP/1.1 200"
        assert rows(server, "SELECT sum(credits) FROM generations WHERE status <> 'done'") == [(0,)]
        assert server.logged('"status": "cancelled"', 2) == 2
        judge(server, [])


def waiting(server: Serving) -> int:
    """Requests in the queue, as the server counts them."""
    lines = server.ask("GET", "/metrics").body.decode().splitlines()
    return next(int(float(line.split()[1])) for line in lines if line.startswith("zturbo_queue_length "))


# --- start and stop --------------------------------------------------------------------------------------------------


def test_it_is_ready_after_a_picture_and_alive_before(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with serving(tmp_path, gate=gate, ready=False) as server:
        assert server.answers("/healthz") == 200
        refused = server.ask("GET", "/readyz")
        assert refused.status == 503
        assert "loading" in refused.json()["message"]
        assert int(refused.headers["retry-after"]) > 0
        assert draw(server).status == 503
        gate.touch()  # the warm-up picture can be drawn now
        server.until("/readyz", 200)
        assert draw(server).status == 200


def asking_for(server: Serving, pictures: int = 1) -> tuple[list[int], list[threading.Thread]]:
    """Requests that run on threads of their own, and where they put the statuses of their answers."""
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(draw(server).status)) for _ in range(pictures)]
    for thread in threads:
        thread.start()
    return answers, threads


def test_told_to_stop_it_finishes_what_runs_and_refuses_what_comes(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    with serving(tmp_path, gate=gate) as server:
        gate.unlink()
        answers, threads = asking_for(server, 3)
        until(lambda: statuses(server) == ["running"] * 3, "three requests")
        with send(server, withheld=1) as late:
            os.kill(server.process.pid, signal.SIGTERM)
            until(lambda: server.answers("/readyz") != 200, "it to be no longer ready")
            late.sendall(b"}")
            assert late.recv(100).startswith(b"HTTP/1.1 503 ")
        gate.touch()
        assert server.process.wait(60) == 0
        for thread in threads:
            thread.join()
        assert answers == [200] * 3
        assert sorted(statuses(server)) == ["done"] * 3 + ["rejected"]


def test_a_terminal_that_closes_ends_it_like_any_other_word_to_stop(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    with serving(tmp_path, gate=gate) as server:
        gate.unlink()
        answers, (asking,) = asking_for(server)
        until(lambda: statuses(server) == ["running"], "a request")
        os.killpg(server.process.pid, signal.SIGHUP)
        until(lambda: server.answers("/readyz") != 200, "it to be no longer ready")
        gate.touch()
        assert server.process.wait(60) == 0
        asking.join()
        assert answers == [200]
        assert "Traceback" not in server.log.read_text("utf-8")


def test_under_nohup_a_terminal_may_close(tmp_path: Path) -> None:
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # its children have it so as well
    try:
        with serving(tmp_path) as server:
            os.killpg(server.process.pid, signal.SIGHUP)
            assert draw(server).status == 200
            server.until("/readyz", 200)
    finally:
        signal.signal(signal.SIGHUP, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_by_the_terminal_and_by_its_supervisor_it_ends_at_once(tmp_path: Path, number: signal.Signals) -> None:
    """A terminal tells both; told twice, Granian's worker stood still until it was killed, one time in four."""
    for turn in range(6):
        (folder := tmp_path / str(turn)).mkdir()
        with serving(folder, shutdown_grace_s=1) as server:
            os.killpg(server.process.pid, number)
            assert server.process.wait(60) == 0
            assert "Killing" not in server.log.read_text("utf-8")


def test_told_to_stop_while_it_loads_it_ends_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, gate=tmp_path / "never", ready=False) as server:
        assert server.answers("/healthz") == 200
        os.kill(server.process.pid, signal.SIGTERM)
        assert server.process.wait(20) == 0, "well before the grace of 30 s and the kill after it"


def test_a_device_that_is_lost_at_every_start_is_given_up(tmp_path: Path) -> None:
    """Each worker waits longer before it ends; the last one stays, and says what is wrong."""
    with serving(tmp_path, module="tests.api.server_process make_losing", ready=False) as server:
        first = server.worker()
        server.until("/readyz", 503)
        assert server.logged("3 starts in a row", 1) == 1
        assert server.worker() != first
        refused = server.ask("GET", "/readyz")
        assert (refused.status, "retry-after" in refused.headers) == (503, False)
        assert server.process.poll() is None


def test_it_listens_where_a_name_says(tmp_path: Path) -> None:
    with serving(tmp_path, host="localhost") as server:
        assert server.ask("GET", "/healthz").status == 200


def test_told_to_stop_it_does_not_wait_for_ever(tmp_path: Path) -> None:
    """A picture that takes longer than the grace is given up: its client is told, and its request is not charged."""
    gate = tmp_path / "gate"
    gate.touch()
    with serving(tmp_path, gate=gate, shutdown_grace_s=1) as server:
        gate.unlink()
        answers, (asking,) = asking_for(server)
        until(lambda: statuses(server) == ["running"], "a request")
        os.kill(server.process.pid, signal.SIGTERM)
        assert server.process.wait(60) == 0
        asking.join()
        assert answers == [503]
    gate.touch()
    with serving(tmp_path, gate=gate) as server:
        assert rows(server, "SELECT status, credits, held FROM generations") == [("rejected", 0, 0)]
