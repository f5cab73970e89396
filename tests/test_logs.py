"""The lines of the log: their members, their order, and that none is lost or late."""

import asyncio
import io
import json
import logging
import logging.config
import pickle
from collections.abc import Iterator

import pytest

from zturbo import logs

pytestmark = pytest.mark.anyio


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Stderr, while the log goes there and nowhere else."""
    root, stream = logging.getLogger(), io.StringIO()
    before = root.handlers[:], root.level, logging._srcfile
    monkeypatch.setattr("sys.stderr", stream)
    logs.set_up("json")
    yield stream
    root.handlers[:], root.level, logging._srcfile = before
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = True
    logging.logAsyncioTasks = True  # type: ignore[attr-defined]


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_the_supervisor_writes_the_same_lines_to_the_same_place(capsys: pytest.CaptureFixture[str]) -> None:
    config = pickle.loads(pickle.dumps(logs.supervisor_config("json")))  # workers may be spawned
    granian = {"handlers": ["console"], "level": "INFO", "propagate": False}
    logging.config.dictConfig(
        {"version": 1, "disable_existing_loggers": False, "loggers": {"supervisor": granian}, **config}
    )
    logging.getLogger("supervisor").info("Listening at: %s", "http://127.0.0.1:8000")
    out, line = capsys.readouterr()
    assert out == ""
    assert (json.loads(line)["event"], json.loads(line)["level"]) == ("Listening at: http://127.0.0.1:8000", "info")


def test_a_line_has_the_events_own_members(stream: io.StringIO) -> None:
    logging.getLogger("any").info("drew %d", 2, extra={"request_id": "x", "seconds": {"total": 0.5}, "odd": object})
    (line,) = lines(stream)
    assert list(line) == ["event", "level", "request_id", "seconds", "odd", "timestamp"]
    assert (line["event"], line["level"], line["seconds"]) == ("drew 2", "info", {"total": 0.5})
    assert str(line["timestamp"])[-1] == "Z"
    assert len(str(line["timestamp"])) == len("2026-01-01T00:00:00.000000Z")


def test_an_exception_is_told_on_the_same_line(stream: io.StringIO) -> None:
    try:
        raise ValueError("wrong\nvalue")
    except ValueError:
        logging.getLogger("any").exception("crashed")
    (line,) = lines(stream)
    assert line["level"] == "error"
    assert "ValueError: wrong\nvalue" in str(line["exception"])


def test_a_terminal_is_shown_no_control_characters(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    logs.set_up("text")
    logging.getLogger("any").info("answered", extra={"path": "/\x1b]0;pwned\x07\x1b[31mred\u202e", "status": 404})
    (line,) = stream.getvalue().splitlines()
    assert r"/\x1b]0;pwned\x07\x1b[31mred\u202e" in line
    assert "\x07" not in line
    assert "404" in line


def test_a_terminal_is_shown_no_values_of_variables(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold keys and prompts."""
    monkeypatch.setattr("sys.stderr", stream)
    logs.set_up("text")
    authorization = "Bearer " + "5" * 32
    try:
        raise RuntimeError(f"{len(authorization)}")
    except RuntimeError:
        logging.getLogger("zturbo").exception("crashed")
    assert "RuntimeError: 39" in stream.getvalue()
    assert "5" * 32 not in stream.getvalue()


async def test_lines_of_the_event_loop_are_written_together_and_in_order(stream: io.StringIO) -> None:
    log = logging.getLogger("any")
    for number in range(3):
        log.info("%d", number)
    assert stream.getvalue() == ""
    await asyncio.to_thread(log.info, "from a thread")
    assert [line["event"] for line in lines(stream)] == ["0", "1", "2", "from a thread"]
    log.info("later")
    while len(lines(stream)) < 5:
        await asyncio.sleep(0.01)


async def test_a_warning_waits_for_nobody(stream: io.StringIO) -> None:
    logging.getLogger("any").info("before")
    logging.getLogger("any").warning("now")
    assert [line["event"] for line in lines(stream)] == ["before", "now"]


async def test_nothing_waits_at_the_end(stream: io.StringIO) -> None:
    logging.getLogger("any").info("last")
    logs.finish()
    assert len(lines(stream)) == 1
    logging.getLogger("any").info("very last")
    assert len(lines(stream)) == 2
