"""Which artifact of each stage is current: the one that later commands follow. The file is ``head.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from mmrr.errors import MmrrError
from mmrr.workspace.files import check_file, parse_json, read_file, write_atomically

_FINGERPRINT = re.compile(r"[0-9a-f]{12,64}")


class Current:
    """Reads and changes the fingerprint of each stage's current artifact."""

    def __init__(self, root: Path, stages: tuple[str, ...]) -> None:
        self.path = root / "head.json"
        self._lock = root / "head.lock"
        self._stages = stages

    def read(self) -> dict[str, str]:
        """{stage: fingerprint}. Raises MmrrError if the file is damaged."""
        try:
            values = parse_json(read_file(self.path))
            for stage, fingerprint in values.items():
                if stage not in self._stages:
                    raise ValueError(f"it has a stage {stage!r}")
                if not isinstance(fingerprint, str) or not _FINGERPRINT.fullmatch(fingerprint):
                    raise ValueError(f"for {stage} it has {fingerprint!r}, which is not a fingerprint")
        except FileNotFoundError:
            return {}
        except (ValueError, IsADirectoryError) as error:
            raise MmrrError(f"{self.path} is damaged ({error}); delete it and run mmrr index again") from error
        return values

    def change(self, function: Callable[[dict[str, str]], dict[str, str]]) -> dict[str, str]:
        """Replace the fingerprints by what ``function`` makes of them. Returns the old ones.

        No other command changes them meanwhile. Raises MmrrError if the file is damaged.
        """
        check_file(self._lock)
        with FileLock(self._lock):
            known = self.read()
            new = function(known)
            if new != known:
                write_atomically(self.path, json.dumps(new, indent=1))
        return known
