"""The commands that use a workspace now: a lock and a scratch folder for each, in ``tmp/`` of the workspace."""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from pathlib import Path

from filelock import FileLock, Timeout

from mmrr.errors import MmrrError
from mmrr.workspace.files import check_file, make_folder, remove_file, remove_tree

_LOCK = re.compile(r"\d+-[0-9a-f]{8}\.lock")


class Scratch:
    """The lock and the scratch folders of one command."""

    def __init__(self, root: Path, run: str | None = None) -> None:
        """``run`` is the id of the command that this process helps, so that both write to one scratch folder."""
        self.run = run or f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._root = root
        self._folder = root / "tmp" / self.run
        self._lock_path = root / "tmp" / f"{self.run}.lock"
        self._lock = FileLock(self._lock_path)

    def open(self) -> None:
        """Take the lock."""
        make_folder(self._root, self._lock_path.parent)
        self._lock.acquire(timeout=10)  # no other command uses it, but a sweep may hold it for a moment

    def close(self) -> None:
        """Delete the command's scratch folders and its lock."""
        with contextlib.suppress(MmrrError):  # the next command names the link
            remove_tree(self._root, self._folder, ignore_errors=True)
        self._lock.release()
        with contextlib.suppress(MmrrError):
            remove_file(self._root, self._lock_path)

    def new(self) -> Path:
        """A new scratch folder."""
        folder = self._folder / uuid.uuid4().hex
        make_folder(self._root, folder)
        return folder

    def sweep(self) -> None:
        """Delete the scratch folders of killed commands. Their locks are free; a running command holds its lock."""
        for lock_path in self._others():
            check_file(lock_path)
            with contextlib.suppress(Timeout), FileLock(lock_path, timeout=0):
                remove_tree(self._root, lock_path.with_suffix(""), ignore_errors=True)
                remove_file(self._root, lock_path)
        for aside in self._root.glob(".*.json.*"):  # of a killed write_atomically, which takes less than an hour
            with contextlib.suppress(OSError):
                if time.time() - aside.lstat().st_mtime > 3600:
                    remove_file(self._root, aside)

    def others(self) -> bool:
        """Whether another command uses this workspace now."""
        self.sweep()
        return bool(self._others())

    def _others(self) -> list[Path]:
        """The locks of other commands. A file that mmrr did not name is no lock."""
        locks = self._lock_path.parent.glob("*.lock")
        return [path for path in locks if _LOCK.fullmatch(path.name) and path != self._lock_path]
