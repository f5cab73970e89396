"""Encoding, metadata, names and atomic writing."""

import errno
import io
import json
import os
import re
import stat
import struct
import subprocess
import sys
import xml.etree.ElementTree
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin, PngImagePlugin

from zturbo.errors import InvalidInput, ZTurboError
from zturbo.params import OUTPUT_FORMATS
from zturbo.pictures import (
    AI_SOURCE,
    EXTENSIONS,
    SUFFIXES,
    Settings,
    encode,
    format_of,
    glimpse,
    read_metadata,
    slug,
    write_atomic,
    write_new,
)

Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]
any_format = pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
prompts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200)
NASTY = 'a "fox" <&>]]> \\ \' \r\n\t \x01\x1f\x7f\x85\u2028\ufeff\ufffe\uffff 😀 עברית </zturbo:settings>'


def smooth(height: int = 48, width: int = 80) -> Pixels:
    """A picture without noise, so that lossy formats stay near it."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=-1).astype(np.uint8)


def made(prompt: str = "a fox", **changes: object) -> Settings:
    facts = {
        "prompt": prompt, "seed": 7, "width": 80, "height": 48, "steps": 8, "acceleration": "none", "model": "nano",
        "model_version": "nano@0123456789abcdef",
    }  # fmt: skip
    return Settings(**(facts | changes))  # type: ignore[arg-type]


def xmp_of(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as picture:
        packet = picture.info["xmp"]
        assert isinstance(packet, bytes)
        return packet


@any_format
def test_the_file_is_of_its_format_and_holds_the_picture(output_format: str) -> None:
    pixels = smooth()
    with Image.open(io.BytesIO(encode(pixels, output_format, None))) as picture:
        assert (picture.format, picture.mode, picture.size) == (output_format.upper(), "RGB", (80, 48))
        error = np.abs(np.asarray(picture).astype(int) - pixels)
    assert error.max() == 0 if output_format == "png" else error.mean() < 4


def test_jpeg_keeps_the_chroma_at_full_size() -> None:
    with Image.open(io.BytesIO(encode(smooth(), "jpeg", None))) as picture:
        assert JpegImagePlugin.get_sampling(picture) == 0  # 4:4:4
        assert isinstance(picture, JpegImagePlugin.JpegImageFile)
        assert picture.quantization[0][0] == 2  # quality 95 of libjpeg's scale


def test_webp_is_what_pillow_makes_of_quality_90() -> None:
    def pixels_of(data: bytes) -> bytes:
        begin = data.index(b"VP8 ") + 4
        return data[begin : begin + 4 + int.from_bytes(data[begin : begin + 4], "little")]

    plain = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(plain, "WEBP", quality=90, method=2)
    assert pixels_of(encode(noise, "webp", None)) == pixels_of(plain.getvalue())


def test_the_encoder_is_deterministic() -> None:
    for output_format in OUTPUT_FORMATS:
        assert encode(smooth(), output_format, made()) == encode(smooth(), output_format, made())


@any_format
@pytest.mark.parametrize("prompt", [NASTY, "", "\n", "😀" * 4000, "\x01" * 4000, "&" * 4000, '"' * 4000])
def test_settings_come_back(output_format: str, prompt: str) -> None:
    written = made(prompt)
    read = read_metadata(encode(smooth(), output_format, written))
    assert (read["format"], read["width"], read["height"], read["ai_generated"]) == (output_format, 80, 48, True)
    assert read["settings"] == json.loads(written.as_json())
    assert read["settings"]["prompt"] == prompt
    assert read["parameters"] == written.as_infotext()


@settings(max_examples=50)
@given(prompts, prompts, st.integers(1, 2**80), st.sampled_from(OUTPUT_FORMATS))
def test_every_prompt_and_seed_comes_back(prompt: str, drawn: str, seed: int, output_format: str) -> None:
    data = encode(smooth(), output_format, made(prompt, drawn_prompt=drawn, seed=seed))
    read = read_metadata(data)["settings"]
    assert (read["prompt"], read["drawn_prompt"], read["seed"]) == (prompt, drawn, seed)
    xml.etree.ElementTree.fromstring(xmp_of(data))


@any_format
def test_without_settings_only_the_mark_stays(output_format: str) -> None:
    data = encode(smooth(), output_format, None)
    read = read_metadata(data)
    assert read["ai_generated"] is True
    assert (read["settings"], read["parameters"]) == (None, None)
    with Image.open(io.BytesIO(data)) as picture:
        assert not picture.getexif()


@any_format
def test_the_mark_is_the_iptc_property(output_format: str) -> None:
    root = xml.etree.ElementTree.fromstring(xmp_of(encode(smooth(), output_format, made(NASTY))))
    mark = root.find(".//{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert mark is not None
    assert mark.text == AI_SOURCE == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def test_png_chunks_are_international_text_before_the_pixels() -> None:
    data = encode(smooth(), "png", made(NASTY))
    kinds, position = [], 8
    while position < len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        kinds.append((kind, data[position + 8 :].split(b"\0", 1)[0] if kind == b"iTXt" else b""))
        position += 12 + length
    assert kinds[1:4] == [(b"iTXt", b"parameters"), (b"iTXt", b"zturbo"), (b"iTXt", b"XML:com.adobe.xmp")]


def test_infotext_reads_as_the_web_ui_reads_it() -> None:
    """The expression is the one of AUTOMATIC1111's `infotext_utils.py`, over the last line."""
    text = made("two\nlines", model='a, "b": c').as_infotext()
    prompt, _, last = text.rpartition("\n")
    pairs = dict(re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last))
    assert prompt == "two\nlines"
    assert (pairs["Steps"], pairs["Seed"], pairs["Size"], pairs["Sampler"]) == ("8", "7", "80x48", "Euler")
    assert json.loads(pairs["Model"]) == 'a, "b": c'


def test_infotext_shows_what_was_drawn() -> None:
    assert made("fox", drawn_prompt="a red fox").as_infotext().startswith("a red fox\n")


def test_a_user_comment_is_unicode_in_big_endian() -> None:
    with Image.open(io.BytesIO(encode(smooth(), "jpeg", made("é")))) as picture:
        comment = picture.getexif().get_ifd(0x8769)[0x9286]
    assert comment.startswith(b"UNICODE\0\0\xe9")


@any_format
def test_names_of_broken_encoding_are_written_all_the_same(output_format: str) -> None:
    data = encode(smooth(), output_format, made(model="nano\udcff, x"))
    assert read_metadata(data)["settings"]["model"] == "nano\udcff, x"


def test_a_drawn_prompt_beyond_a_jpeg_segment_is_left_out() -> None:
    data = encode(smooth(), "jpeg", made(drawn_prompt="é" * 60_000))
    read = read_metadata(data)
    assert (read["ai_generated"], read["settings"], read["parameters"]) == (True, None, None)
    assert read_metadata(encode(smooth(), "png", made(drawn_prompt="é" * 60_000)))["settings"] is not None


def test_reading_from_a_path(tmp_path: Path) -> None:
    path = tmp_path / "picture.bin"  # the content decides, not the name
    path.write_bytes(encode(smooth(), "webp", made("x")))
    assert read_metadata(path)["settings"]["prompt"] == "x"


def test_a_picture_of_somebody_else() -> None:
    file = io.BytesIO()
    Image.fromarray(smooth()).save(file, "PNG")
    assert read_metadata(file.getvalue()) == {
        "format": "png", "width": 80, "height": 48, "ai_generated": False, "settings": None, "parameters": None,
    }  # fmt: skip


def png_with(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (1, 1)) -> bytes:
    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    rows = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0\0\0\0")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in rows
    )


def test_a_text_bomb_is_refused() -> None:
    bomb = b"zturbo\0\1\0\0\0" + zlib.compress(b"x" * 50_000_000)
    assert len(bomb) < 60_000
    with pytest.raises(InvalidInput, match="too large"):
        read_metadata(png_with((b"iTXt", bomb)))


def test_a_pixel_bomb_is_refused() -> None:
    with pytest.raises(InvalidInput, match="decompression bomb"):
        read_metadata(png_with(size=(30_000, 30_000)))


def test_a_large_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse: takes no disk, but would take all memory
    with pytest.raises(InvalidInput, match="larger than 64 MiB"):
        read_metadata(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "3", "{", "null", '{"a": ' * 5000])
def test_settings_that_are_no_object_count_as_none(text: str) -> None:
    assert read_metadata(png_with((b"iTXt", b"zturbo\0\0\0\0\0" + text.encode())))["settings"] is None


def test_a_tiff_is_not_read() -> None:
    file = io.BytesIO()
    Image.fromarray(smooth()).save(file, "TIFF")
    with pytest.raises(InvalidInput, match="cannot be read as a picture"):
        read_metadata(file.getvalue())


@pytest.mark.parametrize("broken", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"])
def test_what_is_no_picture_is_refused(broken: bytes) -> None:
    with pytest.raises(InvalidInput, match="cannot be read as a picture"):
        read_metadata(broken)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No such file"):
        read_metadata(tmp_path / "none.png")


@settings(max_examples=150)
@given(st.data(), st.sampled_from(OUTPUT_FORMATS))
def test_damaged_files_are_read_or_refused(data: st.DataObject, output_format: str) -> None:
    """Flipped bytes and cuts in headers and metadata: nothing but InvalidInput, no hang, no warning."""
    file = bytearray(encode(smooth(16, 16), output_format, made()))
    for place in data.draw(st.lists(st.integers(0, len(file) - 1), min_size=1, max_size=8)):
        file[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(file)))
    for candidate in (bytes(file), bytes(file[:cut])):
        try:
            read = read_metadata(candidate)
        except InvalidInput:
            continue
        assert read["settings"] is None or isinstance(read["settings"], dict)
        assert read["parameters"] is None or isinstance(read["parameters"], str)


def test_suffixes_and_extensions_agree() -> None:
    assert all(SUFFIXES[suffix] == name for name, suffix in EXTENSIONS.items())
    assert EXTENSIONS.keys() == set(OUTPUT_FORMATS)


@pytest.mark.parametrize(
    ("name", "expected"), [("a.PNG", "png"), ("a.b.jpg", "jpeg"), ("x/y.jpeg", "jpeg"), ("w.webp", "webp")]
)
def test_a_suffix_names_a_format(name: str, expected: str) -> None:
    assert format_of(Path(name)) == expected


@pytest.mark.parametrize(("name", "hint"), [("a.gif", "a.png"), ("a", "a.png"), ("a.jpe", "a.jpeg"), (".png", ".png")])
def test_other_suffixes_are_refused(name: str, hint: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        format_of(Path(name))
    assert caught.value.problems[0].hint.endswith(hint)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A fox, in the SNOW!", "a-fox-in-the-snow"),
        ("../../etc/passwd", "etc-passwd"),
        ("", "picture"),
        ("...///\n", "picture"),
        ("Ёлка в лесу", "ёлка-в-лесу"),
        ("红色的狐狸", "红色的狐狸"),
        ("x" * 300, "x" * 48),
        ("a fox " * 50, "a-fox-a-fox-a-fox-a-fox-a-fox-a-fox-a-fox-a-fox"),
    ],
)
def test_slugs(prompt: str, expected: str) -> None:
    assert slug(prompt) == expected


@given(st.text(max_size=300))
def test_a_slug_is_a_safe_short_file_name(prompt: str) -> None:
    name = slug(prompt)
    assert name
    assert len(name.encode()) <= 160
    assert not set(name) & set('/\\:*?"<>|. \0\n\x1b')
    assert name[0] != "-"


def test_writing_replaces_a_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_atomic(path, b"old" * 1000)
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.png", b"x")
    (tmp_path / "other").touch()
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_the_data_is_on_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File synced, then renamed, then the folder synced: the order that survives a power cut."""
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def rename(path: Path, to: Path) -> None:
        events.append("rename")
        replace(path, to)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", rename)
    write_atomic(tmp_path / "a.png", b"x")
    assert events == ["file", "rename", "folder"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, file_size_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    path = tmp_path / "a.png"
    write_atomic(path, b"old")
    with file_size_limit(1000), pytest.raises(ZTurboError, match=r"cannot write .*a\.png: File too large"):
        write_atomic(path, b"x" * 100_000)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("moment", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize(
    "write",
    [lambda path: write_atomic(path, b"x"), lambda path: write_new(path.parent, path.stem, ".png", b"x")],
    ids=["write_atomic", "write_new"],
)
def test_nothing_is_left_behind(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    error: BaseException,
    write: Callable[[Path], None],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(moment, fail)
    with pytest.raises((KeyboardInterrupt, ZTurboError)) as caught:
        write(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
    if isinstance(caught.value, ZTurboError):
        assert "the disk is full" in caught.value.hint


def test_unwritable_places_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, word in [("none/a.png", "make the folder first"), ("file/a.png", "is not a folder"), (".", "a folder")]:
        with pytest.raises(ZTurboError) as caught:
            write_atomic(tmp_path / place, b"x")
        assert word in caught.value.hint
    with pytest.raises(ZTurboError) as caught:
        write_atomic(tmp_path / f"{'x' * 300}.png", b"x")
    assert caught.value.hint == "choose a shorter name"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ZTurboError) as caught:
        write_atomic(tmp_path / "a.png", b"x")
    assert caught.value.hint == "choose a folder that you may write to"


def test_new_names_are_never_taken_twice(tmp_path: Path) -> None:
    names = [write_new(tmp_path, "fox-7", ".png", bytes([number])).name for number in range(3)]
    assert names == ["fox-7.png", "fox-7-1.png", "fox-7-2.png"]
    assert [(tmp_path / name).read_bytes() for name in names] == [b"\0", b"\1", b"\2"]
    with pytest.raises(ZTurboError, match="cannot write"):
        write_new(tmp_path / "none", "fox", ".png", b"")


def test_many_at_once_get_a_name_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda number: write_new(tmp_path, "fox", ".png", b"%d" % number), range(40)))
    assert sorted(path.read_bytes() for path in paths) == sorted(b"%d" % number for number in range(40))
    assert len(list(tmp_path.iterdir())) == 40


def test_importing_loads_no_pillow() -> None:
    code = "import sys, zturbo.pictures; sys.exit('PIL' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pillow_bounds_text() -> None:
    """What `read_metadata` relies on: Pillow's own limit of decompressed text, not raised by anybody."""
    assert PngImagePlugin.MAX_TEXT_CHUNK <= 2**20


@pytest.mark.parametrize(
    ("size", "seen"),
    [((512, 512), (256, 256)), ((768, 1024), (384, 512)), ((512, 1440), (171, 480)), ((2048, 2048), (512, 512))],
)
def test_a_preview_does_not_take_the_pictures_place(size: tuple[int, int], seen: tuple[int, int]) -> None:
    assert glimpse(np.full((*size, 3), 7, np.uint8)).shape == (*seen, 3)
    assert (glimpse(np.full((*size, 3), 7, np.uint8)) == 7).all()
