"""A headless Chromium for tests of the web page, which Playwright drives. Both are optional."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

#: The browser; Playwright does not download one.
CHROMIUM = os.environ.get("MMRR_TEST_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@contextmanager
def started() -> Iterator[Any]:
    """A browser, for a whole file of tests; skips them where it or its driver is missing. Any: optional types."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'mmrr[browser]'")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed; set MMRR_TEST_CHROMIUM to its path")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Seen:
    """What pages asked for and complained of."""

    url: str
    elsewhere: list[str] = field(default_factory=list)  # requests to other hosts
    errors: list[str] = field(default_factory=list)  # in the console, and uncaught ones
    refused: list[str] = field(default_factory=list)  # what the browser writes of an answer that is no success

    def watch(self, page: Any) -> None:
        host = urlsplit(self.url).netloc
        page.on("request", lambda asked: self._asked(asked.url, host))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda line: self._said(line.type, line.text))

    def _asked(self, url: str, host: str) -> None:
        parts = urlsplit(url.removeprefix("blob:"))
        if parts.netloc != host and parts.scheme != "data":
            self.elsewhere.append(url)

    def _said(self, kind: str, text: str) -> None:
        if text.startswith("Failed to load resource"):
            self.refused.append(text)
        elif kind in ("error", "warning"):
            self.errors.append(text)
