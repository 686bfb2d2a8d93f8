"""Shards that another command may draw better: with larger limits, another font or another renderer.

Such a shard is stored under a name of its own, which also depends on these conditions. The same command finds it again,
and a command under other conditions draws it again. A shard that is whole has one name, whatever the conditions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmrr.documents import poppler
from mmrr.documents.drawn import is_limit
from mmrr.documents.limits import Limits
from mmrr.documents.page_notes import BLANK
from mmrr.documents.rendering import RenderedPage
from mmrr.stages._drawing import Task
from mmrr.workspace.files import digest
from mmrr.workspace.store import Spec

_FONT_FOLDERS = (
    "/usr/share/fonts",
    "/usr/share/X11/fonts",
    "/usr/local/share/fonts",
    "~/.fonts",
    "~/.local/share/fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
    "/System/Library/Fonts",
    "C:/Windows/Fonts",
)


class Conditions:
    """What the images of pages depend on besides the file and the options."""

    def __init__(self, drawn: Spec, limits: Limits) -> None:
        self._drawn = drawn
        has_poppler = poppler.installed()
        self._parts = {
            "blank": digest(["blank", has_poppler, sorted(_fonts())]),
            "limit": digest(["limit", has_poppler, str(limits.seconds), limits.memory]),
        }

    def names(self, task: Task) -> list[str]:
        """The names under which the same command may have stored a shard that is not whole."""
        return [self._name(task, kinds) for kinds in (("blank",), ("limit",), ("blank", "limit"))]

    def name(self, task: Task, pages: Sequence[RenderedPage]) -> str | None:
        """The name of a shard that is not whole; None for one that is."""
        kinds = ("blank",) * any(BLANK in page.notes for page in pages)
        kinds += ("limit",) * any(is_limit(page.status) for page in pages)
        return self._name(task, kinds) if kinds else None

    def _name(self, task: Task, kinds: Iterable[str]) -> str:
        parts = [self._parts[kind] for kind in kinds]
        return self._drawn.shard_key(task.sha256, f"{task.first}-{task.last}", *parts)


def _fonts() -> list[str]:
    """The names of the font files of this machine."""
    folders = (Path(name).expanduser() for name in _FONT_FOLDERS)
    return [name for folder in folders for _, _, names in os.walk(folder) for name in names]
