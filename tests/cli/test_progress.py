"""Progress: plain lines where stderr is no terminal, the expected time of long work, nothing for quick work."""

from __future__ import annotations

import io
import time

import pytest

from mmrr.cli import progress as shown
from mmrr.cli.terminal import Verbosity, set_verbosity


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (5300, "88 min"), (12_000, "3 h 20 min"), (190_000, "2 d 4 h")],
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert shown.duration(seconds) == text


def test_the_rate_leaves_out_the_first_page() -> None:
    clock = Clock()
    pace = shown.Pace(12_000, clock)
    clock.now += 60  # loading
    pace.advance(1)
    for _ in range(2):
        clock.now += 1
        pace.advance(1)
    assert pace.left() is None
    clock.now += 1
    pace.advance(1)
    assert pace.whole() == pytest.approx(12_000)
    assert pace.left() == pytest.approx(11_996)
    assert shown.duration(pace.whole() or 0) == "3 h 20 min"


def test_quick_work_is_not_announced() -> None:
    clock = Clock()
    pace = shown.Pace(10, clock)
    for _ in range(5):
        clock.now += 2
        pace.advance(1)
    assert pace.left() == pytest.approx(10)
    assert pace.whole() is None


def test_the_time_of_long_work_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(shown, "_KNOWN_AFTER_S", 0.0)
    with shown.progress("precache", 120_000) as advance:
        for _ in range(6):
            time.sleep(0.01)
            advance(1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("precache: about ")
    assert line.endswith(" min for 120,000 pages")


def test_a_log_gets_a_line_at_intervals_and_one_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with shown.progress("embed", 1000) as advance:
        advance(1000)
    assert capsys.readouterr().err == "", "quick work shows nothing"
    monkeypatch.setattr(shown, "LINE_INTERVAL_S", 0.05)
    with shown.progress("embed", 1000) as advance:
        time.sleep(0.08)  # also where nothing is reported yet
        for _ in range(10):
            advance(100)
            time.sleep(0.02)
    first, *lines, last = capsys.readouterr().err.splitlines()
    assert first == "embed: 0 of 1,000"
    assert any(line.startswith("embed: ") and line.endswith(" s left") for line in lines)
    assert last == "embed: 1,000 of 1,000 in 0 s"
    assert not any("\x1b" in line or "\r" in line for line in (first, *lines, last))


def test_interrupted_work_has_no_last_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def stop() -> None:
        with shown.progress("embed", 10):
            time.sleep(0.03)
            raise KeyboardInterrupt

    monkeypatch.setattr(shown, "LINE_INTERVAL_S", 0.01)
    with pytest.raises(KeyboardInterrupt):
        stop()
    assert " in " not in capsys.readouterr().err


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with shown.progress("embed", 10) as advance:
        advance(10)
    assert "10/10" in terminal.getvalue()


def test_quiet_shows_no_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(shown, "LINE_INTERVAL_S", 0.01)
    set_verbosity(Verbosity.QUIET)
    try:
        with shown.progress("embed", 10):
            time.sleep(0.03)
    finally:
        set_verbosity(Verbosity.NORMAL)
    assert capsys.readouterr().err == ""
