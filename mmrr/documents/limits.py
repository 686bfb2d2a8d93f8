"""How long one page may take and how much memory it may use.

Both are properties of a command on a machine, not of a file: a page past a limit may be drawn with a larger one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

#: The least limit of memory: the process needs this much without a page.
LEAST_MEMORY = 256 << 20
#: The status of a page past a limit.
LimitStatus = Literal["time_limit", "memory_limit"]


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one page, for each renderer that draws it."""

    seconds: float = 60.0  # of real time; inf: no limit
    memory: int = 2 << 30  # bytes of the process that draws

    @property
    def whole_seconds(self) -> int | None:
        """The seconds, rounded up; None for no limit."""
        return math.ceil(self.seconds) if self.seconds < 1e9 else None


class PastLimitError(Exception):
    """A page needs more than a limit allows. The message is one line: what it needs, and how to allow it."""

    def __init__(self, status: LimitStatus, message: str) -> None:
        super().__init__(status, message)  # all arguments, so that it can be pickled
        self.status: LimitStatus = status
        self.message = message

    def __str__(self) -> str:
        return self.message


def past_time(limits: Limits, who: str) -> PastLimitError:
    """The error of a page that took too long. ``who`` drew it."""
    return PastLimitError(
        "time_limit", f"{who} took more than {limits.seconds:g} s; --page-timeout SECONDS gives it longer"
    )


def past_memory(limits: Limits, who: str) -> PastLimitError:
    """The error of a page that needs too much memory. ``who`` drew it."""
    return PastLimitError(
        "memory_limit",
        f"{who} needs more than {limits.memory / 2**20:.0f} MiB of memory; --page-memory SIZE allows more",
    )
