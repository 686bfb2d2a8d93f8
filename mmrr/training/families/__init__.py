"""Training of the reranker families other than miniReranker: one module a family, found by its name.

A module that trains a family defines ``config_class(values, path)`` and ``train(config, run, tell)``. Modules with a
longer name (``edje_init``) hold parts of a training.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from mmrr.errors import MmrrError

if TYPE_CHECKING:
    from mmrr.training.config import TrainingConfig
    from mmrr.training.loop import Records, Tell

#: The families: the modules without an underscore in their names.
NAMES = sorted(module.name for module in pkgutil.iter_modules(__path__) if "_" not in module.name)


class TrainingFamily(Protocol):
    """What ``mmrr train reranker`` calls of a family's module."""

    def config_class(self, values: dict[str, Any], path: Path) -> type[TrainingConfig]:
        """The dataclass for a config with these TOML ``values``. ``path``: the config file, for error messages."""

    def train(self, config: Any, run: Path, tell: Tell = ...) -> Records:
        """Train, yield records, and leave the result in the run folder. ``config`` (Any): the family's own class."""


def load(name: str) -> TrainingFamily:
    """Import the training of a family. Raises MmrrError that lists the families."""
    if name not in NAMES:
        raise MmrrError(f"no training for scorer = {name!r}; expected minireranker, {', '.join(NAMES)}")
    return cast(TrainingFamily, importlib.import_module(f"mmrr.training.families.{name}"))
