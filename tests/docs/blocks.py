"""The blocks of code in our documents that say they can be run.

A block is run when the line `<!-- run -->` stands right above its fence:

    <!-- run -->
    ```console
    $ zturbo --version
    zturbo ...
    ```

`console`: every line that begins with `$ ` is a shell command and must succeed; the lines under it must appear in its
output, in this order, where `...` stands for anything. `python`: the block must run, and its asserts must hold; the
blocks of one document share their names. All blocks of a document run in one folder, which is empty at first.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MARK = "<!-- run -->"
LANGUAGES = ("console", "python")
TIMEOUT_S = 120
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: language, text, and the line of the document where its fence opens, from 1."""

    language: str
    text: str
    line: int


def runnable_blocks(document: str) -> list[Block]:
    """The marked blocks, in order.

    Raises:
        ValueError: a mark without a console or python block right under it.
    """
    blocks = []
    for match in _FENCE.finditer(document):
        if document[: match.start()].endswith(f"{MARK}\n"):
            blocks.append(Block(match[1], match[2], document.count("\n", 0, match.start()) + 1))
    marks = sum(line == MARK for line in document.splitlines())
    if marks != len(blocks) or any(block.language not in LANGUAGES for block in blocks):
        raise ValueError(f"{MARK} belongs right above a block of {' or '.join(LANGUAGES)}")
    return blocks


def run_document(document: str, folder: Path) -> int:
    """Run the marked blocks of a document in a folder; returns how many there were."""
    names: dict[str, object] = {"__name__": "__document__"}
    blocks = runnable_blocks(document)
    for block in blocks:
        if block.language == "console":
            run_console(block, folder)
        else:
            code = compile("\n" * block.line + block.text, "document", "exec")
            before = Path.cwd()
            os.chdir(folder)
            try:
                exec(code, names)
            finally:
                os.chdir(before)
    return len(blocks)


def run_console(block: Block, folder: Path) -> None:
    """Run each command and look for the output that is shown under it."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    for step in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, shown = step.partition("\n")
        done = subprocess.run(
            command, shell=True, cwd=folder, env={**os.environ, "PATH": path}, timeout=TIMEOUT_S, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        told = f"line {block.line}: $ {command}\n{done.stdout}"
        assert done.returncode == 0, told
        pieces = [re.escape(piece.strip()) for piece in shown.strip().split("...")]
        assert re.search(".*".join(pieces), done.stdout, re.DOTALL), told
