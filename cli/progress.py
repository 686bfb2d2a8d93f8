"""How far long work has come: a bar on a terminal, else one plain line every ten seconds; and how long it will take."""

from __future__ import annotations

import contextlib
import contextvars
import sys
import threading
import time
from collections.abc import Callable, Iterator

from .terminal import detail, is_quiet, note

#: Seconds between two lines where stderr is not a terminal.
LINE_INTERVAL_S = 10.0
#: The whole time is said once it is known from as many pieces of work after the first, and as many seconds.
_KNOWN_AFTER, _KNOWN_AFTER_S = 3, 5.0
#: Shorter work is not announced.
_WORTH_SAYING_S = 60.0
#: What is counted; other work counts something else and names no unit.
_UNITS = {"render": " pages", "OCR": " pages", "embed": " pages", "precache": " pages"}


class Pace:
    """How much of some work is done, and how long the rest takes at the rate since its first piece.

    The first piece is left out of the rate: it often includes loading.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.done = total, 0
        self._clock = clock
        self._started = clock()
        self._first: tuple[int, float] | None = None

    def advance(self, n: int) -> None:
        self.done += n
        if self._first is None:
            self._first = self.done, self._clock()

    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    def seconds_for(self, n: int) -> float | None:
        """Seconds for ``n`` pieces, or None if the rate is not known yet."""
        if self._first is None or self.done - self._first[0] < _KNOWN_AFTER:
            return None
        return n * (self._clock() - self._first[1]) / (self.done - self._first[0])

    def left(self) -> float | None:
        """Seconds for what is not done, or None if the rate is not known yet."""
        return self.seconds_for(self.total - self.done)

    def whole(self) -> float | None:
        """Seconds for all the work, if it is long and the rate is known well enough to be said."""
        seconds = self.seconds_for(self.total) if self.elapsed() >= _KNOWN_AFTER_S else None
        return seconds if seconds is not None and seconds >= _WORTH_SAYING_S else None


def duration(seconds: float) -> str:
    """A time for people: ``40 s``, ``12 min``, ``3 h 20 min``, ``2 d 5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


@contextlib.contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """The progress of some work on stderr.

    A terminal gets a bar, anything else a line every ten seconds with what is done and the time left, and none for
    quick work. Either gets one line with the expected time of long work. Nothing is shown for an empty task and with
    --quiet; --verbose adds a line with the seconds.
    """
    if total == 0 or is_quiet():
        yield lambda n: None
        return
    pace = Pace(total)
    with _shown(description, pace) as show:
        told = False

        def advance(n: int) -> None:
            nonlocal told
            pace.advance(n)
            show(n)
            if not told and (whole := pace.whole()):
                told = True
                note(f"{description}: about {duration(whole)} for {total:,}{_UNITS.get(description, '')}")

        yield advance
    detail(f"{description}: {total} in {pace.elapsed():.2f} s")


@contextlib.contextmanager
def _shown(description: str, pace: Pace) -> Iterator[Callable[[int], None]]:
    if not sys.stderr.isatty():
        with _lines(description, pace):
            yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=pace.total)
        yield lambda n: bar.advance(task, n)


@contextlib.contextmanager
def _lines(description: str, pace: Pace) -> Iterator[None]:
    """A line every ten seconds, from a thread: some work reports nothing for minutes. And one at the end, if any."""
    ended = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        while not ended.wait(LINE_INTERVAL_S):
            left = pace.left()
            rest = "" if left is None else f", about {duration(left)} left"
            note(f"{description}: {pace.done:,} of {pace.total:,}{rest}")
            written += 1

    # The thread gets the context of this one, which holds the verbosity.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(write,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if written:
        note(f"{description}: {pace.done:,} of {pace.total:,} in {duration(pace.elapsed())}")
