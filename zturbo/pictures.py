"""Pictures on the way out: encoded, described, named and written whole or not at all.

Every picture says that a machine drew it (XMP, Iptc4xmpExt:DigitalSourceType trainedAlgorithmicMedia). Its prompt and
settings come along unless they are switched off:

    PNG         iTXt `parameters` (the infotext that AUTOMATIC1111's web UI reads), iTXt `zturbo` (JSON), iTXt XMP
    JPEG, WebP  EXIF UserComment (the same infotext), XMP with the same JSON in `zturbo:settings`

`read_metadata` reads them back, from files of anybody. Pillow is imported where it is needed: `--help` stays instant.
"""

import contextlib
import errno
import html
import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zturbo import __version__
from zturbo.errors import InvalidInput, Problem, ZTurboError
from zturbo.params import OUTPUT_FORMATS, GenerationParams, closest
from zturbo.png import png
from zturbo.tokens import new_token

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]

SUFFIXES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
"""File name suffix -> output format."""
EXTENSIONS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
"""Output format -> file name suffix."""
AI_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""https://cv.iptc.org/newscodes/digitalsourcetype: created by a model that was trained on sampled content."""

MAX_FILE_BYTES = 64 * 2**20
"""Larger pictures are not opened by `read_metadata`."""
MAX_SEGMENT_BYTES = 65_000
"""Of EXIF and of XMP: a segment of a JPEG holds 65,533 bytes, headings included. A prompt of 4000 characters fits; an
expanded prompt far beyond that does not, and then the segment goes without the settings."""
GLIMPSE = 512
"""Pixels of a preview's longer side, at most."""
MAX_SLUG = 48
"""Characters of the prompt in a file name."""

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | sum(getattr(os, flag, 0) for flag in ("O_CLOEXEC", "O_BINARY"))
_NAMESPACE = "urn:zturbo:1.0:"
_USER_COMMENT, _EXIF_IFD = 0x9286, 0x8769
_UNICODE = b"UNICODE\0"
_SETTINGS_IN_XMP = re.compile(r"<zturbo:settings>([^<]*)</zturbo:settings>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a picture was made, as it is written into the file."""

    prompt: str
    drawn_prompt: str | None = None
    """What was drawn in place of `prompt`, where that is another text."""
    seed: int
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    steps: int
    acceleration: str
    model: str
    model_version: str
    software_version: str = __version__

    @classmethod
    def of(cls, params: GenerationParams, seed: int, model: str, model_version: str) -> "Settings":
        """The settings of one picture of a request, drawn with `seed`."""
        return cls(
            prompt=params.prompt,
            seed=seed,
            width=params.width,
            height=params.height,
            steps=params.steps,
            acceleration=params.acceleration,
            model=model,
            model_version=model_version,
        )

    def as_json(self) -> str:
        """One line of JSON that may stand in XML text once <, > and & are escaped."""
        values = ((name, getattr(self, name)) for name in self.__slots__)
        text = json.dumps({name: value for name, value in values if value is not None}, ensure_ascii=False)
        # JSON has escaped everything below U+0020; these are the rest of what XML 1.0 (2.2) forbids, or may change.
        return re.sub("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]", lambda char: f"\\u{ord(char[0]):04x}", text)

    def as_infotext(self) -> str:
        """The prompt, then one line `Steps: 8, Sampler: Euler, ...` as AUTOMATIC1111's web UI writes it."""
        pairs = {
            "Steps": self.steps,
            "Sampler": "Euler",
            "CFG scale": 1,  # the model is distilled: it draws without guidance
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            "Model": self.model,
            "Model version": self.model_version,
            "Acceleration": self.acceleration,
            "Version": f"zturbo {self.software_version}",
        }
        line = ", ".join(f"{name}: {_infotext_value(str(value))}" for name, value in pairs.items())
        return f"{_well_formed(self.drawn_prompt or self.prompt)}\n{line}"


@dataclass(frozen=True, slots=True)
class Withheld:
    """What the black picture in the place of a flagged one says of itself: nothing of what was asked for or drawn."""

    checker: str
    """The name of the safety checker."""

    def as_json(self) -> str:
        """One line of JSON that may stand in XML text once <, > and & are escaped."""
        return json.dumps({"withheld": self.as_infotext(), "software_version": __version__})

    def as_infotext(self) -> str:
        """One sentence."""
        return f"withheld by the safety checker {self.checker}"


Written = Settings | Withheld | None
"""What is written into a file beside the mark that a machine drew it."""


def glimpse(pixels: "Pixels") -> "Pixels":
    """A preview of a picture: half as large, or as its longer side needs to have at most `GLIMPSE` pixels.

    It goes out before the picture is paid for, and must not take its place. Both (H, W, 3) uint8, RGB.
    """
    import numpy as np
    from PIL import Image

    factor = max(2, -(-max(pixels.shape[:2]) // GLIMPSE))
    return np.asarray(Image.fromarray(pixels, "RGB").reduce(factor))


def encode(pixels: "Pixels", output_format: str, settings: Written) -> bytes:
    """A picture file.

    Args:
        pixels: (H, W, 3) uint8, RGB.
        output_format: png (lossless, written by zturbo.png), jpeg (quality 95, chroma at full size) or webp (quality
            90, method 2: half the time of Pillow's default for 1 to 3% more bytes).
        settings: written into the file; None leaves them out, but not the mark that a machine drew it.
    """
    assert output_format in OUTPUT_FORMATS, output_format
    if output_format == "png":
        return png(pixels, _texts(settings))
    from PIL import Image

    file = io.BytesIO()
    quality = {"quality": 95, "subsampling": "4:4:4"} if output_format == "jpeg" else {"quality": 90, "method": 2}
    picture = Image.fromarray(pixels, "RGB")
    picture.save(file, output_format.upper(), exif=_exif(settings), xmp=_xmp(settings), **quality)
    return file.getvalue()


def read_metadata(source: Path | bytes) -> dict[str, Any]:
    """What a picture says about itself.

    Args:
        source: a PNG, JPEG or WebP file of at most 64 MiB, or its bytes. Pixels are not decoded.

    Returns:
        format, width, height; ai_generated (whether it carries the mark); settings (the JSON object that we write, or
        None); parameters (the infotext, or None). Nothing in it was checked: the file's author wrote it.

    Raises:
        InvalidInput: it cannot be read as such a picture.
    """
    import warnings

    from PIL import Image

    path = ("picture",)
    try:
        data = _read_bounded(source)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # e.g. a picture of more pixels than Pillow calls safe
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as picture:
                return _described(picture)
    except (OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        hint = "a PNG, JPEG or WebP file of at most 64 MiB"
        raise InvalidInput([Problem(path, f"cannot be read as a picture: {reason}", None, hint)]) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: others see the old file or the new one, even when the power fails.

    Raises:
        ZTurboError: no such folder, no permission, disk full: the message says which. Nothing is left behind.
    """
    temporary = path.with_name(f".{new_token()}.part")
    try:
        try:
            descriptor = os.open(temporary, _NEW, 0o666)
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.replace(path)
        except BaseException:  # KeyboardInterrupt as well: no half file may stay
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error


def write_new(folder: Path, stem: str, suffix: str, data: bytes) -> Path:
    """Write a file of a name that nobody has: `stem.png`, else `stem-1.png`, `stem-2.png`, ...; returns its path.

    Raises:
        ZTurboError: as `write_atomic`.
    """
    path = _claim(folder, stem, suffix)
    try:
        write_atomic(path, data)
    except BaseException:  # KeyboardInterrupt as well: the claimed name is an empty file
        path.unlink(missing_ok=True)
        raise
    return path


def format_of(path: Path) -> str:
    """The output format that a file name's suffix stands for.

    Raises:
        InvalidInput: the suffix stands for none.
    """
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    near = closest(suffix, SUFFIXES) or ".png"
    message = f"must end in {', '.join(SUFFIXES)}; got {path.name!r}"
    raise InvalidInput([Problem(("output",), message, str(path), f"nearest valid value: {path.stem}{near}")])


def slug(prompt: str) -> str:
    """A short, portable piece of a file name out of a prompt: letters and digits of any script, joined by hyphens."""
    import unicodedata

    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFC", prompt).lower())
    text = ""
    for word in words:
        longer = f"{text}-{word}" if text else word[:MAX_SLUG]
        if len(longer) > MAX_SLUG:
            break
        text = longer
    # 255 bytes are the limit of most file systems; seed, number and suffix need some as well.
    while (size := len(text.encode("utf-8", "replace"))) > 160:
        text = text[: len(text) * 160 // size]
    return text.strip("-") or "picture"


def _claim(folder: Path, stem: str, suffix: str) -> Path:
    """Make the first free name an empty file, so that two programs never take the same one."""
    number = 0
    while True:
        path = folder / f"{stem}{f'-{number}' if number else ''}{suffix}"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise _cannot_write(path, error) from error
        else:
            return path


def _cannot_write(path: Path, error: OSError) -> ZTurboError:
    """The error of a file that cannot be written, with what to do."""
    hints = {
        errno.ENOENT: f"make the folder first: {path.parent}",
        errno.ENOTDIR: f"{path.parent} is not a folder",
        errno.EISDIR: "that is a folder; name a file in it",
        errno.EACCES: "choose a folder that you may write to",
        errno.EPERM: "choose a folder that you may write to",
        errno.EROFS: "choose a folder that can be written to",
        errno.ENOSPC: "the disk is full: make room, or choose another folder",
        errno.EDQUOT: "your quota is used up: make room, or choose another folder",
        errno.ENAMETOOLONG: "choose a shorter name",
    }
    return ZTurboError(f"cannot write {path}: {error.strerror or error}", hints.get(error.errno or 0, ""))


def _described(picture: "Image.Image") -> dict[str, Any]:
    xmp = picture.info.get("xmp", b"")
    xmp = xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else str(xmp)
    if picture.format == "PNG":
        settings, parameters = picture.info.get("zturbo"), picture.info.get("parameters")
    else:
        match = _SETTINGS_IN_XMP.search(xmp)
        settings, parameters = html.unescape(match[1]) if match else None, _user_comment(picture)
    return {
        "format": str(picture.format).lower(),
        "width": picture.width,
        "height": picture.height,
        "ai_generated": AI_SOURCE in xmp,
        "settings": _object(settings),
        "parameters": str(parameters) if parameters is not None else None,
    }


def _object(text: object) -> dict[str, Any] | None:
    """A JSON object, or None for everything else, be it no JSON or nested too deep."""
    if not isinstance(text, str):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _user_comment(picture: "Image.Image") -> str | None:
    try:
        comment = picture.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, IndexError, OverflowError, Warning):
        return None  # Pillow's TIFF reader raises any of these for broken EXIF; the rest of the file may be fine
    if not isinstance(comment, bytes) or not comment.startswith(_UNICODE):
        return None
    return comment[len(_UNICODE) :].decode("utf-16-be", "replace")


def _read_bounded(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        data = source
    else:
        with source.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError("it is larger than 64 MiB")
    return data


def _texts(settings: Written) -> list[tuple[str, str]]:
    """Keywords and texts of a PNG: the settings, and the mark."""
    described = [("parameters", settings.as_infotext()), ("zturbo", settings.as_json())] if settings else []
    return [*described, ("XML:com.adobe.xmp", _MARK)]


def _exif(settings: Written) -> bytes:
    """EXIF with the infotext as UserComment, in big-endian UTF-16: what piexif, and so the web UI, writes and reads."""
    from PIL import Image

    comment = _UNICODE + settings.as_infotext().encode("utf-16-be") if settings is not None else b""
    if not comment or len(comment) > MAX_SEGMENT_BYTES:
        return b""
    exif = Image.Exif()
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = comment
    return exif.tobytes()


def _xmp(settings: Written) -> bytes:
    """The XMP packet: the mark, and the settings as far as they fit one JPEG segment."""
    text = settings.as_json() if settings is not None else ""
    inside = f"\n   <zturbo:settings>{html.escape(text, quote=False)}</zturbo:settings>" if text else ""
    packet = _packet(inside).encode()
    return packet if len(packet) <= MAX_SEGMENT_BYTES else _MARK.encode()


def _packet(inside: str) -> str:
    return f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:zturbo="{_NAMESPACE}">
   <xmp:CreatorTool>zturbo {__version__}</xmp:CreatorTool>
   <Iptc4xmpExt:DigitalSourceType>{AI_SOURCE}</Iptc4xmpExt:DigitalSourceType>{inside}
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


_MARK = _packet("")
"""The XMP packet that only says that a machine drew the picture."""


def _infotext_value(text: str) -> str:
    """A value of the infotext's last line, quoted where the reader would split it."""
    text = _well_formed(text)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n"]', text) else text


def _well_formed(text: str) -> str:
    """Text that UTF-8 and UTF-16 can hold; file names of broken encoding can bring halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode()


def sync_folder(folder: Path) -> None:
    """Make new names in a folder last. Not every system can do that; the files are whole either way."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
