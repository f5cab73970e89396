"""Options that commands of several files take."""

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings file (TOML) to read in place of the usual one."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
