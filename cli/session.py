"""How a command opens a workspace, and what it makes of what was typed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mmrr.config import FirstStage, Machine, Model, Retrieve, Scope
from mmrr.errors import MmrrError

from .show import note, pairs, plain_errors, progress

if TYPE_CHECKING:
    from mmrr.context import Context
    from mmrr.pipeline import Scoring


@contextlib.contextmanager
def open_context(
    work: Path,
    machine: Machine | None = None,
    chosen: list[str] | None = None,
    choices: tuple[str, ...] = ("index",),  # stages that --from may name here
    *,
    create: bool = False,
) -> Iterator[Context]:
    """The workspace, open, with errors shown as one line."""
    with plain_errors():
        from mmrr.context import Context
        from mmrr.workspace.store import Workspace

        names = {}
        for name in chosen or []:
            stage, _, names[stage] = name.partition("/")
            if stage not in choices:
                expected = " or ".join(f"{stage}/FINGERPRINT" for stage in choices)
                raise MmrrError(f"--from {name}: expected {expected}; see: mmrr ls --work {work}")
        with Workspace.open(work, create=create) as workspace:
            yield Context(workspace, machine or Machine(), progress, names, note)


def memory_size(option: str, text: str, *, or_none: bool = False) -> int:
    """Bytes of a size such as 512MiB or 4GB; 0 if there may be none. Raises MmrrError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if not match or not (or_none or float(match[1])):
        raise MmrrError(f"{option} {text}: expected a size such as 512MiB or 4GiB")
    step = 1024 if match[3] else 1000
    return int(float(match[1]) * step ** " KMGT".index(match[2].upper() or " "))


def search_options(first_stage: str | None, scope: str, candidates: int) -> Retrieve:
    """Raises MmrrError for a first stage or a scope that there is not."""
    for value, known, name in (
        (first_stage, (None, "dense", "bm25", "hybrid"), "--first-stage"),
        (scope, ("corpus", "document"), "--scope"),
    ):
        if value not in known:
            raise MmrrError(f"{name} {value}: expected {', '.join(filter(None, known))}")
    return Retrieve(cast("FirstStage | None", first_stage), cast("Scope", scope), candidates)


def known_models(family: str) -> tuple[list[str], list[str]]:
    """The checkpoints of a scorer that come with mmrr, and those to be had. Raises MmrrError for an unknown family."""
    from mmrr.modeling import checkpoints, families

    known, built_in = families.load("scorers", family).CHECKPOINTS, checkpoints.built_in()
    return [one for one in known if one in built_in], [one for one in known if one not in built_in]


def scorings(text: str) -> dict[str, Scoring]:
    """``NAME[=MODEL][+KEY=VALUE]...,...`` by label. Raises MmrrError for a family without a model of its own here."""
    from mmrr.pipeline import Scoring

    found = {}
    for part in text.split(","):
        head, *options = part.strip().split("+")
        name, _, model = head.partition("=")
        own, _ = known_models(name)
        if not model:
            if not own:
                raise MmrrError(f"no model of {name} comes with mmrr: pass {name}=MODEL, a local path or a Hub id")
            model = own[0]
        label = " ".join([f"{name} ({model})", *options])
        found[label] = Scoring(name, Model(model), pairs(options))
    return found
