"""How the server logs: one line per event on stderr, as JSON for machines or as text for people.

Events are ordinary `logging` records with `extra` members (request_id, key, status, seconds, ...); structlog renders
them, and those of the libraries beside them. Prompts are never among them.
"""

import logging
import sys

import structlog


def set_up(log_format: str) -> None:
    """Send every log record to stderr.

    Args:
        log_format: json, text, or auto: text where stderr is a terminal, else json.
    """
    people = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    renderer = structlog.dev.ConsoleRenderer() if people else structlog.processors.JSONRenderer(ensure_ascii=False)
    pre_chain: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper("iso", utc=True),
    ]
    errors = [] if people else [structlog.processors.format_exc_info]
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=pre_chain,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *errors, renderer],
        )
    )
    logging._srcfile = None  # no event says which line it came from: the stack need not be walked
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
