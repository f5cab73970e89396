"""PNG files, written for speed: one filter for the whole picture, and of deflate only runs and Huffman codes.

What an encoder is slow at is the search for repeated strings, and in drawn pictures it finds little beyond runs: after
the filter they are noise round zero. The table in docs/log.md has the ways that were weighed. Pillow reads back what is
written here, as any decoder does: the file is an ordinary PNG (https://www.w3.org/TR/png-3/).
"""

import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

from zlib_ng import zlib_ng

if TYPE_CHECKING:
    import numpy as np

    Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PART_BYTES = 1 << 19
"""Of the lines that are compressed at a time; a picture of 1024x1024 has 7 parts, one of 512x512 has 2."""
_ZLIB = b"\x78\x01"
"""Deflate with a window of 32 KiB, made for speed (RFC 1950, 2.2)."""
_RGB8 = b"\x08\x02\x00\x00\x00"
"""8 bits a channel, three channels; the only kinds of compression and filter there are; not interlaced."""
_SUB = 1
"""The filter that stores each byte as its distance from the pixel on the left."""


def png(pixels: "Pixels", texts: Sequence[tuple[str, str]]) -> bytes:
    """A PNG file.

    Args:
        pixels: (H, W, 3) uint8, RGB.
        texts: keyword and text of international text chunks, which come before the pixels.
    """
    height, width, _ = pixels.shape
    chunks = [_chunk(b"IHDR", struct.pack(">II", width, height) + _RGB8)]
    chunks += [_chunk(b"iTXt", keyword.encode("latin-1") + bytes(5) + text.encode()) for keyword, text in texts]
    return b"".join([SIGNATURE, *chunks, _chunk(b"IDAT", _deflated(pixels)), _chunk(b"IEND", b"")])


def _deflated(pixels: "Pixels") -> bytes:
    """The filtered lines as one zlib stream. Where it is cut depends on the size alone, and so the bytes do too."""
    import numpy as np

    height, width, channels = pixels.shape
    lines = pixels.reshape(height, width * channels)
    filtered = np.empty((height, 1 + width * channels), np.uint8)

    def part(first: int) -> bytes:
        """Some lines, filtered and deflated; all parts but the last end on a whole byte."""
        given, made = lines[first : first + rows], filtered[first : first + rows]
        made[:, 0] = _SUB
        made[:, 1 : 1 + channels] = given[:, :channels]
        np.subtract(given[:, channels:], given[:, :-channels], out=made[:, 1 + channels :])
        compressor = zlib_ng.compressobj(1, wbits=-zlib_ng.MAX_WBITS, strategy=zlib_ng.Z_RLE)
        last = first + rows >= height
        return compressor.compress(made) + compressor.flush(zlib_ng.Z_FINISH if last else zlib_ng.Z_SYNC_FLUSH)

    rows = max(1, PART_BYTES // (1 + width * channels))
    firsts = range(0, height, rows)
    parts = list(_threads().map(part, firsts)) if len(firsts) > 1 else [part(0)]
    return b"".join([_ZLIB, *parts, struct.pack(">I", zlib_ng.adler32(filtered))])


@cache
def _threads() -> ThreadPoolExecutor:
    """What compresses parts of a picture side by side; compressing holds no lock of the interpreter's."""
    return ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="zturbo-png")


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib_ng.crc32(data, zlib_ng.crc32(kind))
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", check)))
