"""How the server logs: one line per event on stderr, as JSON for machines or as text for people.

Events are ordinary `logging` records with `extra` members (request_id, key, status, seconds, ...), those of the
libraries among them. Prompts are never among them.
"""

import asyncio
import json
import logging
import sys
from datetime import UTC, datetime
from functools import partial
from typing import Any, TextIO

import structlog

FLUSH_S = 0.05
"""How long a line may wait for others. Each write lets another thread have the interpreter."""
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
"""Members of every record; the others are the event's own."""
_encode = json.JSONEncoder(ensure_ascii=False, default=repr).encode


class JsonLines(logging.Formatter):
    """A record as one line of JSON: event, level, the event's own members, timestamp, exception where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"event": record.getMessage(), "level": record.levelname.lower()}
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        moment = datetime.fromtimestamp(record.created, UTC)
        line["timestamp"] = f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond:06d}Z"
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line)


class GatheringHandler(logging.StreamHandler[TextIO]):
    """Writes lines of the event loop together, at most `FLUSH_S` later; those of other threads and warnings at once.

    A killed server loses what waits. Its records do not depend on it.
    """

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self._lines: list[str] = []
        self.gathers = True

    def emit(self, record: logging.LogRecord) -> None:
        """Called with the handler's lock held."""
        try:
            self._lines.append(self.format(record))
            loop = asyncio._get_running_loop() if self.gathers and record.levelno < logging.WARNING else None
            if loop is None:
                self.flush()
            elif len(self._lines) == 1:
                loop.call_later(FLUSH_S, self.flush)
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Write what waits."""
        self.acquire()
        try:
            if self._lines:
                lines, self._lines = self._lines, []
                self.stream.write("\n".join([*lines, ""]))
            super().flush()
        finally:
            self.release()


def set_up(log_format: str) -> None:
    """Send every log record to stderr.

    Args:
        log_format: json, text, or auto: text where stderr is a terminal, else json.
    """
    handler = GatheringHandler()
    handler.setFormatter(_formatter(log_format))
    logging._srcfile = None  # no event says which line it came from: the stack need not be walked
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.logAsyncioTasks = False  # type: ignore[attr-defined]  # read by Python 3.12 and newer
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)


def supervisor_config(log_format: str) -> dict[str, Any]:
    """The same for the process that watches the worker: what Granian is to give to `logging.config.dictConfig`."""
    handler = {"class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": "ours"}
    return {"formatters": {"ours": {"()": partial(_formatter, log_format)}},
            "handlers": {"console": handler, "access": handler}}  # fmt: skip


def finish() -> None:
    """Write what waits, and from here on every line at once: the process is about to end."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, GatheringHandler):
            handler.gathers = False
            handler.flush()


def _printable(_logger: object, _method: str, facts: Any) -> Any:
    """Facts as a terminal may show them: a path that anybody asked for could hold its control characters."""
    return {name: _shown(value) if isinstance(value, str) else value for name, value in facts.items()}


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _formatter(log_format: str) -> logging.Formatter:
    people = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    return _for_people() if people else JsonLines()


def _for_people() -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.ExtraAdder(),
            structlog.processors.TimeStamper("iso", utc=True),
            _printable,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            # Without the values of variables, which hold keys and prompts.
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ],
    )
