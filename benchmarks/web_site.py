"""A server on a workspace and a browser for it, for the measurements and screenshots of the web page."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def server(work: Path, *options: str) -> Iterator[str]:
    """``mmrr serve`` on a free port, with its models loaded. Gives its address."""
    command = [sys.executable, "-m", "mmrr.cli.main", "serve", "--port", "0", "--work", f"work={work}", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        found = next(filter(None, (re.search(r" at (http://[^ ;]+)", line) for line in process.stderr)), None)
        if found is None:
            raise SystemExit("the server did not start")
        while True:
            with suppress(urllib.error.URLError):
                urllib.request.urlopen(f"{found[1]}/ready").close()
                break
            time.sleep(0.2)
        yield found[1]
    finally:
        process.kill()
        process.wait()


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium. Any: Playwright is optional."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise SystemExit("playwright is not installed; run: pip install 'mmrr[browser]'") from None
    path = os.environ.get("MMRR_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        raise SystemExit("no Chromium is installed; set MMRR_TEST_CHROMIUM to its path")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path)
        try:
            yield opened
        finally:
            opened.close()
