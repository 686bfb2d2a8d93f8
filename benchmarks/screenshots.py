"""Draws the screenshots of the web page in docs/images.

    python -m benchmarks.screenshots WORK [--output docs/images]

WORK is a workspace of data/sample with page vectors and page caches, such as ``make demo`` makes. Five states are
drawn: results, a page with the words of the question, a page with its evidence, the dark theme, and a phone.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.web_site import browser, server

QUERY = "When is the thesis due?"
ADDRESS = f"?q={QUERY.replace(' ', '+').replace('?', '%3F')}&rank=0.3"
PAGE = "&page=graduate-handbook.pdf/0008"
DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 780}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
#: Name of the file: address, context of the browser, layers that are shown.
STATES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "web-results": (ADDRESS, {**DESKTOP, "color_scheme": "light"}, ()),
    "web-page": (ADDRESS + PAGE, {**DESKTOP, "color_scheme": "light"}, ("words",)),
    "web-evidence": (ADDRESS + PAGE, {**DESKTOP, "color_scheme": "light"}, ("evidence",)),
    "web-dark": (ADDRESS, {**DESKTOP, "color_scheme": "dark"}, ()),
    "web-phone": (ADDRESS, {**PHONE, "color_scheme": "light"}, ()),
}
MOST_BYTES = 150_000
RERANKED = "() => /, reranked by/.test(document.querySelector('#status').textContent)"
LOADED = "() => [...document.querySelectorAll('.thumbnail')].slice(0, 6).every((one) => one.complete)"


def draw(opened: Any, url: str, state: tuple[str, dict[str, Any], tuple[str, ...]]) -> Image.Image:
    """One state. Any: Playwright is optional."""
    address, options, layers = state
    context = opened.new_context(**options)
    try:
        page = context.new_page()
        page.add_init_script(f"localStorage.setItem('mmrr-layers', '{','.join(layers)}')")
        page.goto(f"{url}/{address}")
        page.wait_for_function(
            "() => /, reranked by/.test(document.querySelector('#status').textContent)", timeout=60_000
        )
        page.wait_for_function(
            "() => [...document.querySelectorAll('.thumbnail')].slice(0, 6).every((i) => i.complete)"
        )
        for layer in layers:
            page.wait_for_selector(f"#layer-{layer}:not([hidden])", timeout=60_000)
        if "evidence" in layers:
            page.select_option("#source", "embedder")
            with page.expect_response(lambda answer: "word=" in answer.url):
                page.click(".chip:has-text('thesis')")
        page.evaluate("document.activeElement.blur()")
        page.wait_for_timeout(500)
        return Image.open(io.BytesIO(page.screenshot()))
    finally:
        context.close()


def save(image: Image.Image, path: Path) -> int:
    """Write a PNG of 256 colours. Returns its bytes."""
    image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    with server(options.work, "--device", "cpu", "--dtype", "float32", "--read-only") as url, browser() as opened:
        for name, state in STATES.items():
            size = save(draw(opened, url, state), options.output / f"{name}.png")
            print(f"{name}.png: {size} bytes")
            if size > MOST_BYTES:
                raise SystemExit(f"{name}.png has {size} bytes; expected at most {MOST_BYTES}")


if __name__ == "__main__":
    main()
