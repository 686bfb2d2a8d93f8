"""Models and indexes that a process keeps between calls, so that a second query loads nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Loaded:
    """What was loaded, by a key that names all that it depends on. It may be used from several threads."""

    #: Versions of one thing that stay. The one before the newest may still be in use.
    SLOT = 2

    def __init__(self) -> None:
        self._known: dict[Hashable, Any] = {}  # Any: models and indexes of all types
        self._slots: dict[Hashable, list[Hashable]] = {}  # by slot the keys, the last used one last
        self._lock = threading.RLock()

    def get(self, key: Hashable, load: Callable[[], T]) -> T:
        """What is known by this key; the first call loads it. A failing ``load`` is tried again by the next call."""
        with self._lock:
            if key not in self._known:
                self._known[key] = load()
            found: T = self._known[key]
            return found

    def newest(self, slot: Hashable, key: Hashable, load: Callable[[], T]) -> T:
        """As ``get``, for what later versions replace: of a slot's keys the ``SLOT`` last used ones stay."""
        with self._lock:
            keys = self._slots.setdefault(slot, [])
            if key in keys:
                keys.remove(key)
            keys.append(key)
            while len(keys) > self.SLOT:
                self._known.pop((slot, keys.pop(0)), None)
            return self.get((slot, key), load)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._known.clear()
            self._slots.clear()


class LoadsEachTime(Loaded):
    """Keeps nothing: a command runs each model once, and the memory of one model is free before the next is loaded."""

    def get(self, key: Hashable, load: Callable[[], T]) -> T:
        return load()

    def newest(self, slot: Hashable, key: Hashable, load: Callable[[], T]) -> T:
        return load()

    def __reduce__(self) -> tuple[type[LoadsEachTime], tuple[()]]:
        """A helper process gets one of its own: a lock cannot be sent."""
        return LoadsEachTime, ()
