"""A lock that is given in the order in which threads asked for it: no thread takes it twice while another waits."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """The right to run the models. The scoring thread and the thread that adds documents take turns."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._order: deque[object] = deque()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, and hold it for the block."""
        self._take()
        try:
            yield
        finally:
            self._give()

    def let_others(self) -> None:
        """End a turn and wait for the next one; returns at once if no other thread waits."""
        with self._condition:
            alone = len(self._order) == 1
        if not alone:
            self._give()
            self._take()

    def _take(self) -> None:
        mine = object()
        with self._condition:
            self._order.append(mine)
            self._condition.wait_for(lambda: self._order[0] is mine)

    def _give(self) -> None:
        with self._condition:
            self._order.popleft()
            self._condition.notify_all()
