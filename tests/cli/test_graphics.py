"""Pictures in terminals: a pseudo-terminal plays kitty, a terminal with sixel, and one without pictures."""

from __future__ import annotations

import base64
import io
import os
import re
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrr.cli import graphics
from tests.cli.chain import Chain
from tests.console import mmrr, refused

pty = pytest.importorskip("pty")
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8))


class Terminal:
    """The other side of a pseudo-terminal: it answers DA1 with ``answer`` and keeps what it was sent."""

    def __init__(self, answer: bytes) -> None:
        self.side, self.process_side = pty.openpty()
        self.answer, self.sent, self.stopped = answer, b"", False
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while not self.stopped:
            if not select.select([self.side], [], [], 0.02)[0]:
                continue
            got = os.read(self.side, 65536)
            self.sent += got
            if b"\x1b[c" in got and self.answer:
                os.write(self.side, self.answer)

    def close(self) -> bytes:
        time.sleep(0.1)
        self.stopped = True
        self.thread.join()
        os.close(self.side)
        os.close(self.process_side)
        return self.sent


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], Terminal]]:
    """Make stdin and stdout a pseudo-terminal."""
    for name in ("KITTY_WINDOW_ID", "TERM_PROGRAM", "TMUX", "STY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    files: list[io.TextIOWrapper] = []

    def make(answer: bytes) -> Terminal:
        made = Terminal(answer)
        for name, mode in (("stdin", "r"), ("stdout", "w")):
            files.append(open(os.dup(made.process_side), mode))  # noqa: SIM115  (closed below)
            monkeypatch.setattr(sys, name, files[-1])
        return made

    yield make
    for file in files:
        file.close()


def test_kitty_gets_a_png_in_chunks(terminal: Callable[[bytes], Terminal], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITTY_WINDOW_ID", "1")
    played = terminal(b"")
    assert graphics.show(PICTURE)
    parts = re.findall(rb"\x1b_G([^;]*);([^\x1b]*)\x1b\\", played.close())
    assert len(parts) > 1
    assert parts[0][0] == b"a=T,f=100,q=2,m=1"
    assert [keys for keys, _ in parts[1:]] == [b"m=1"] * (len(parts) - 2) + [b"m=0"]
    assert all(len(data) <= 4096 for _, data in parts)
    decoded = Image.open(io.BytesIO(base64.b64decode(b"".join(data for _, data in parts))))
    assert np.array_equal(np.asarray(decoded), np.asarray(PICTURE))


@pytest.mark.parametrize(("answer", "known"), [(b"\x1b[?62;4;22c", True), (b"\x1b[?62;14;22c", False), (b"", False)])
def test_a_terminal_is_asked_whether_it_knows_sixel(
    terminal: Callable[[bytes], Terminal], answer: bytes, known: bool
) -> None:
    played = terminal(answer)
    started = time.monotonic()
    assert graphics.show(PICTURE) is known
    assert time.monotonic() - started < 5
    assert (b"\x1bPq" in played.close()) is known


def test_sixel_holds_the_quantised_picture() -> None:
    expected = PICTURE.quantize(256, dither=Image.Dither.NONE).convert("RGB")
    found = decoded(graphics.sixel(PICTURE).decode("ascii"))
    assert found.shape == (37, 50, 3)
    assert np.abs(found - np.asarray(expected, dtype=float)).max() <= 1.3, "colours are stored in per cent"
    plain = Image.new("RGB", (300, 12), (255, 0, 0))
    assert len(graphics.sixel(plain)) < 80, "equal columns are runs"
    assert (decoded(graphics.sixel(plain).decode("ascii")) == (255, 0, 0)).all()


def decoded(text: str) -> np.ndarray:
    """The picture of a sixel string, read by the protocol alone."""
    head = re.match(r'\x1bPq"1;1;(\d+);(\d+)', text)
    assert head
    assert text.endswith("\x1b\\")
    picture = np.full((int(head[2]) + 6, int(head[1]), 3), -1.0)
    colours: dict[str, tuple[float, ...]] = {}
    x = y = 0
    colour = ""
    body = text[head.end() : -2]
    for token in re.finditer(r"#(\d+)(?:;2;(\d+);(\d+);(\d+))?|!(\d+)([?-~])|([?-~])|([$-])", body):
        if token[1]:
            colour = token[1]
            if token[2]:
                colours[colour] = tuple(float(part) * 255 / 100 for part in token.groups()[1:4])
        elif token[8]:
            x, y = 0, y + 6 * (token[8] == "-")
        else:
            times, bits = int(token[5] or 1), ord(token[6] or token[7]) - 63
            for row in range(6):
                if bits >> row & 1:
                    picture[y + row, x : x + times] = colours[colour]
            x += times
    assert (picture[int(head[2]) :] == -1).all()
    return picture[: int(head[2])]


def test_view_and_explain_write_the_path_where_no_picture_can_be_shown(made: Chain, tmp_path: Path) -> None:
    shown = mmrr("view", "thesis/1", "--work", made.work, "--output", tmp_path / "page.png", "--show")
    assert shown.stdout == f"{tmp_path / 'page.png'}\n"
    why = mmrr("explain", "thesis due", "thesis/1", "--work", made.work, "--output", tmp_path / "why.png", "--show")
    assert why.stdout == f"{tmp_path / 'why.png'}\n"
    assert "thesis" in why.stderr
    assert Image.open(tmp_path / "why.png").width == 640


def test_explain_prints_json_and_refuses_in_one_line(made: Chain, tmp_path: Path) -> None:
    import json

    options = ("--work", made.work, "--output", tmp_path / "why.png", "--word", "DUE")
    found = json.loads(mmrr("explain", "thesis due", "thesis/1", *options, "--json").stdout)
    assert (found["source"], found["word"], found["page_id"]) == ("reranker", 1, "thesis.pdf/0001")
    assert found["words"] == [{"text": "thesis", "index": 0}, {"text": "due", "index": 1}]
    assert len(found["heat"]) == len(found["kept"]) == found["grid"][0] * found["grid"][1]
    assert "no word 'soil'" in refused("explain", "thesis due", "thesis/1", *options[:4], "--word", "soil")
    assert "colqwen3" in refused("explain", "thesis due", "thesis/1", *options[:4], "--source", "embedder")
    assert "ends in .png" in refused("explain", "due", "thesis/1", "--work", made.work, "--output", tmp_path / "x.jpg")
