"""Runs by name: a TREC file, or an artifact of the workspace such as rerank/ab12cd34ef56. And what is recorded of them.

A file that a command of this workspace wrote is recognised by its checksum, so that its models and its times are known.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrr.errors import MmrrError
from mmrr.evaluation.trec import EXACT, RUN, read_run
from mmrr.types import Run
from mmrr.workspace import manifests
from mmrr.workspace.files import checksum_file
from mmrr.workspace.store import Manifest, Workspace

_STAGES = ("retrieve", "rerank")
_ARTIFACT = re.compile(r"(?:retrieve|rerank)/[0-9a-f]{12}")


@dataclass(frozen=True)
class NamedRun:
    """A run, its name in tables, and where it came from."""

    label: str
    run: Run
    made: Manifest | None = None  # the artifact with this run; None: made elsewhere
    path: Path | None = None  # the file that was named


def named_runs(workspace: Workspace, names: Sequence[Path]) -> list[NamedRun]:
    """Runs by their files or artifacts, ``run.trec``, ``rerank/ab12cd34ef56``, or with a label, ``LABEL=run.trec``.

    Without a label it is the name of the file without its ending, or the artifact. Files with the same name have their
    paths as labels. Raises MmrrError as ``read_run`` does, and for an artifact that is not there.
    """
    of_checksum = {one.files[RUN]: one for one in workspace.scan()[0] if one.stage in _STAGES and RUN in one.files}
    stems = Counter(name.stem for name in names)
    found = []
    for given in names:
        name, own_label = given, ""
        if "=" in str(given) and not given.exists():
            own_label, _, rest = str(given).partition("=")
            name = Path(rest)
        if _ARTIFACT.fullmatch(name.as_posix()) and not name.exists():
            made = workspace.find(*name.as_posix().split("/"))
            if made is None:
                raise MmrrError(f"no file and no artifact {name}; see: mmrr ls --work {workspace.root}")
            found.append(NamedRun(own_label or name.as_posix(), exact_run(workspace, made), made))
            continue
        run = read_run(name)
        label = own_label or (name.stem if stems[name.stem] == 1 else name.as_posix())
        found.append(NamedRun(label, run, of_checksum.get(checksum_file(name)), name))
    return found


def by_label(found: Sequence[NamedRun]) -> dict[str, NamedRun]:
    """The runs by label. Raises MmrrError for a label that occurs twice."""
    twice = [label for label, count in Counter(one.label for one in found).items() if count > 1]
    if twice:
        raise MmrrError(f"two runs are called {twice[0]}; expected different runs, or a label for each: LABEL=FILE")
    return {one.label: one for one in found}


def exact_run(workspace: Workspace, manifest: Manifest) -> Run:
    """The run of a ``retrieve`` or ``rerank`` artifact with the scores that were computed."""
    if not manifests.n_candidates(manifest):
        return {}
    return read_run(workspace.own_file(manifest, EXACT if EXACT in manifest.files else RUN))


def first_stage_of(workspace: Workspace, manifest: Manifest) -> Manifest:
    """The ``retrieve`` artifact that a reranking was made from; a first stage itself.

    Raises MmrrError if it was removed.
    """
    if manifest.stage == "retrieve":
        return manifest
    found = workspace.find("retrieve", manifest.inputs["retrieve"])
    if found is None:
        raise MmrrError(f"the first stage of rerank/{manifest.fingerprint} was removed; run mmrr rerank again")
    return found


def query_ms(workspace: Workspace, reranked: Manifest) -> float | None:
    """The median time to score a query's candidates from the caches, in milliseconds; None for no query."""
    lines = workspace.own_file(reranked, "timings.jsonl").read_text("utf-8").splitlines()
    return statistics.median(json.loads(line)["score_ms"] for line in lines) if lines else None
