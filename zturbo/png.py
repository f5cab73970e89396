"""PNG files, written for speed: one filter for the whole picture, and of deflate only runs and Huffman codes.

What an encoder is slow at is the search for repeated strings, and in drawn pictures it finds little beyond runs: after
the filter they are noise round zero. The table in docs/log.md has the ways that were weighed. Pillow reads back what is
written here, as any decoder does: the file is an ordinary PNG (https://www.w3.org/TR/png-3/).
"""

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zlib_ng import zlib_ng

if TYPE_CHECKING:
    import numpy as np

    Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
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
    import numpy as np

    height, width, channels = pixels.shape
    lines = pixels.reshape(height, width * channels)
    filtered = np.empty((height, 1 + width * channels), np.uint8)
    filtered[:, 0] = _SUB
    filtered[:, 1 : 1 + channels] = lines[:, :channels]
    np.subtract(lines[:, channels:], lines[:, :-channels], out=filtered[:, 1 + channels :])
    compressor = zlib_ng.compressobj(1, strategy=zlib_ng.Z_RLE)
    return compressor.compress(filtered) + compressor.flush()


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib_ng.crc32(data, zlib_ng.crc32(kind))
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", check)))
