"""A real headless browser for the tests: whichever Chromium the computer has, else the reason why there is none."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Playwright, Request, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
VARIABLE = "ZTURBO_TEST_BROWSER"
WHY = f"no browser: install chromium (Debian: apt-get install chromium), or name one in {VARIABLE}"


def find_browser(playwright: Playwright) -> str | None:
    """The path of a Chromium: the one that the environment names, on PATH, or Playwright's own."""
    named = os.environ.get(VARIABLE)
    found = next(filter(None, map(shutil.which, (named,) if named else NAMES)), None)
    own = playwright.chromium.executable_path
    return found or (own if Path(own).exists() else None)


@contextmanager
def launched() -> Iterator[Browser | None]:
    """A browser for as long as the context lasts; None where there is none."""
    with sync_playwright() as playwright:
        path = find_browser(playwright)
        if path is None:
            yield None
            return
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=sandbox)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Watch:
    """What a page does that it should not: errors on its console, and requests to other hosts."""

    home: str
    problems: list[str] = field(default_factory=list)
    allowed: tuple[str, ...] = ()
    """Parts of messages that a test provokes."""

    def follow(self, page: Page) -> None:
        """Watch a page from its first request on."""
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))
        page.on("request", self._request)

    def found(self) -> list[str]:
        """What no test provoked."""
        return [problem for problem in self.problems if not any(part in problem for part in self.allowed)]

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"{message.type}: {message.text}")

    def _request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("blob", "data") and f"{parts.scheme}://{parts.netloc}" != self.home:
            self.problems.append(f"another host: {request.url}")


def opened(context: BrowserContext, watch: Watch) -> Page:
    """The playground in a new tab, ready to be used."""
    page = context.new_page()
    watch.follow(page)
    page.goto(f"{watch.home}/")
    page.wait_for_selector("html[data-ready]")
    return page


def choose(page: Page, name: str, value: Any) -> None:
    """Choose a radio button by its value; its label covers it."""
    page.locator(f"input[name={name}][value='{value}']").check(force=True)
