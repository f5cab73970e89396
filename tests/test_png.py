"""The PNG writer against the format's own rules, and against Pillow, which reads what it wrote."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zturbo.png import PART_BYTES, SIGNATURE, png


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of every chunk; each is as long as it says, and its check is right."""
    assert data[:8] == SIGNATURE
    at = 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        content = data[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + content) == struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0]
        yield kind, content
        at += 12 + length


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32), st.booleans())
def test_every_pixel_comes_back(width: int, height: int, seed: int, flat: bool) -> None:
    pixels = np.random.default_rng(seed).integers(0, 2 if flat else 256, (height, width, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(png(pixels, []))) as picture:
        picture.load()
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (width, height))
        assert np.array_equal(np.asarray(picture), pixels)


@pytest.mark.parametrize("step", [(2, 2, 1), (-1, 1, 1), (1, 1, -1)])
def test_pixels_may_lie_in_any_order(step: tuple[int, int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    pixels = noise[:: step[0], :: step[1], :: step[2]]
    with Image.open(io.BytesIO(png(pixels, []))) as picture:
        assert np.array_equal(np.asarray(picture), pixels)


def test_a_picture_of_many_parts_comes_back() -> None:
    pixels = np.random.default_rng(0).integers(0, 8, (1000, 777, 3), dtype=np.uint8)
    data = png(pixels, [])
    assert png(pixels, []) == data
    with Image.open(io.BytesIO(data)) as picture:
        assert np.array_equal(np.asarray(picture), pixels)
    (content,) = (content for kind, content in chunks(data) if kind == b"IDAT")
    assert len(zlib.decompress(content)) == 1000 * (1 + 777 * 3) > 2 * PART_BYTES


def test_it_is_an_ordinary_png() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    found = list(chunks(png(pixels, [("parameters", "käse\n😀"), ("zturbo", "{}")])))
    assert [kind for kind, _ in found] == [b"IHDR", b"iTXt", b"iTXt", b"IDAT", b"IEND"]
    assert found[0][1] == struct.pack(">IIBBBBB", 9, 7, 8, 2, 0, 0, 0)
    assert found[1][1] == b"parameters\0\0\0\0\0" + "käse\n😀".encode()
    lines = zlib.decompress(found[3][1])  # the reference's inflate, and its check of the sum
    assert len(lines) == 7 * (1 + 9 * 3)
    assert {lines[line * (1 + 9 * 3)] for line in range(7)} == {1}


def test_one_colour_costs_next_to_nothing() -> None:
    """As the black picture in the place of a flagged one."""
    assert len(png(np.full((1024, 1024, 3), 7, np.uint8), [])) < 16_000
