"""How the process holds memory. The command line's choice, not the library's: it holds for all that runs beside it."""

from __future__ import annotations

import ctypes

#: glibc's names for what mallopt sets.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed() -> None:
    """Let the memory that a tensor leaves be the next one's. With glibc; elsewhere nothing happens.

    By itself glibc hands large blocks back to the system at once, which gives the next ones page by page and zeroed:
    3 to 27 % of the time of a large model's layers (BENCHMARKS.md). Up to 2 GiB that are free stay with the process.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no library without a name
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
