"""A checkpoint's version: a short digest bound to its content, the same wherever the files lie.

Rule for one file: sha256 over its size and its bytes; of a file above 100 MB only the first and the last MiB
(so the whole header of any published model) and 64 stretches of 64 KiB spread evenly in between are taken,
which reads 6 MB of a 12 GB file. A fine-tune changes nearly every byte and so always changes the sample.
Rule for a checkpoint: sha256 over each part's role, its config and its files' digests in sorted order; names
and places of files do not count. The first 16 hexadecimal digits are used.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from zturbo.weights.safetensors_file import open_binary

FULL_BYTES = 100_000_000
EDGE_BYTES, SAMPLE_BYTES, SAMPLES = 1 << 20, 1 << 16, 64
VERSION_DIGITS = 16


def file_digest(path: Path) -> str:
    """sha256 of one file by the rule above.

    Raises:
        WeightsNotFound, WeightsError: the file is not there or cannot be read.
    """
    file, size = open_binary(path)
    digest = hashlib.sha256(str(size).encode())
    with file:
        for begin, count in _stretches(size):
            file.seek(begin)
            while count and (block := file.read(min(count, EDGE_BYTES))):
                digest.update(block)
                count -= len(block)
    return digest.hexdigest()


def _stretches(size: int) -> list[tuple[int, int]]:
    """(begin, count) of the bytes that count."""
    if size <= FULL_BYTES:
        return [(0, size)]
    step = (size - 2 * EDGE_BYTES) // SAMPLES
    middle = [(EDGE_BYTES + i * step, SAMPLE_BYTES) for i in range(SAMPLES)]
    return [(0, EDGE_BYTES), *middle, (size - EDGE_BYTES, EDGE_BYTES)]


def version_of(parts: Iterable[tuple[str, str, Iterable[Path]]]) -> str:
    """Digest of (role, config, files) parts, e.g. ("transformer", repr(config), files)."""
    digest = hashlib.sha256()
    for role, config, files in sorted((role, config, sorted(map(file_digest, files))) for role, config, files in parts):
        digest.update(repr((role, config, files)).encode())
    return digest.hexdigest()[:VERSION_DIGITS]
