"""What commands of several files take and print."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings file (TOML) to read in place of the usual one."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]


def write_path(path: Path) -> None:
    """A path as the system spells it, whatever the terminal's encoding."""
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(path) + b"\n")
    sys.stdout.buffer.flush()
