"""The playground's pictures in docs/images: the real page, the real server, the embedded model.

    python -m tools.screenshots

Needs a Chromium, as the browser tests do.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, Page

from tests.web.browser import WHY, choose, launched
from tools.demo import serving

FOLDER = Path(__file__).parent.parent / "docs" / "images"
MAX_BYTES = 600_000
DRAWING_MS = 180_000
EXAMPLE = "A T-Rex relaxing on a beach, lying on a sun lounger and wearing sunglasses."
DRAWN: tuple[tuple[str, str | tuple[int, int], int], ...] = (
    ("A yellow house in the snow at night", "square", 4),
    ("A red boat on the sea at sunset", "landscape_4_3", 3),
    (EXAMPLE, (1440, 512), 8),
)
"""Prompt, size, seed: the last one is on the stage."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture to take; `show` brings the page there."""

    name: str
    width: int
    height: int
    show: Callable[[Page], None]
    scheme: Literal["light", "dark"] = "light"
    language: str = "en-US"
    scale: float = 1.0
    """Pixels of the picture for one of the page."""


def whole(page: Page) -> None:
    """The stage with its picture, as it is after drawing."""
    page.evaluate("scrollTo(0, 0)")
    page.locator("#prompt").blur()


def stage(page: Page) -> None:
    """A narrow page, scrolled to its picture."""
    page.locator("#stage").evaluate("(stage) => stage.scrollIntoView()")


def pair(page: Page) -> None:
    """Two seeds beside each other: one draws on the left, the other on the right."""
    draw(page, EXAMPLE, (1440, 512), 10)
    drawn(page, len(DRAWN) + 1)
    page.locator("#act-compare").click()
    page.locator("#pictures button").nth(1).click()
    page.locator("#compare").wait_for()


SHOTS = (
    Shot("desktop", 1280, 840, whole),
    Shot("dark", 1280, 840, whole, scheme="dark", language="zh-CN"),
    Shot("phone", 390, 844, stage, scale=1.5),
    Shot("compare", 1280, 840, pair, scheme="dark"),
)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="zturbo-screenshots-") as folder, launched() as browser:
        if browser is None:
            sys.exit(WHY)
        with serving(Path(folder), own_settings(Path(folder))) as (address, _key):
            for shot in SHOTS:
                path = FOLDER / f"playground-{shot.name}.png"
                path.write_bytes(small(take(browser, address, shot)))
                print(path, path.stat().st_size)


def own_settings(folder: Path) -> dict[str, str]:
    """None of the user's file, and no public address: where there is one, the playground asks for a key."""
    file = folder / "config.toml"
    file.touch()
    return {"ZTURBO_CONFIG": str(file), "ZTURBO_PUBLIC_URL": ""}


def take(browser: Browser, address: str, shot: Shot) -> bytes:
    """A PNG of the page after it has drawn."""
    context = browser.new_context(
        viewport={"width": shot.width, "height": shot.height}, device_scale_factor=shot.scale,
        color_scheme=shot.scheme, locale=shot.language, reduced_motion="reduce",
    )  # fmt: skip
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("html[data-ready]")
    for number, (prompt, size, seed) in enumerate(DRAWN, start=1):
        draw(page, prompt, size, seed)
        drawn(page, number)
    shot.show(page)
    page.wait_for_load_state("networkidle")
    data = page.screenshot()
    context.close()
    return data


def draw(page: Page, prompt: str, size: str | tuple[int, int], seed: int) -> None:
    page.locator("#prompt").fill(prompt)
    choose(page, "size", size if isinstance(size, str) else "custom")
    if not isinstance(size, str):
        page.locator("#width").fill(str(size[0]))
        page.locator("#height").fill(str(size[1]))
    page.locator("#more").evaluate("(more) => { more.open = true; }")
    page.locator("#seed").fill(str(seed))
    page.locator("#draw").click()


def drawn(page: Page, pictures: int) -> None:
    """Wait until there are as many pictures."""
    page.locator("#pictures li").nth(pictures - 1).wait_for(timeout=DRAWING_MS)
    page.locator("#about").wait_for()


def small(data: bytes) -> bytes:
    """The same picture in fewer bytes: in 256 colours where it would be too large for a document otherwise."""
    with Image.open(BytesIO(data)) as picture:
        whole = picture.convert("RGB")
    for candidate in (whole, whole.quantize(256, dither=Image.Dither.FLOYDSTEINBERG)):
        file = BytesIO()
        candidate.save(file, "PNG", optimize=True)
        if file.tell() <= MAX_BYTES:
            return file.getvalue()
    raise SystemExit(f"a picture has {file.tell()} bytes; at most {MAX_BYTES} are wanted")


if __name__ == "__main__":
    main()
