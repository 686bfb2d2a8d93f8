"""The options of ``Workspace.search``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from mmrr.config import FirstStage
from mmrr.errors import MmrrError


@dataclass(frozen=True, slots=True)
class Search:
    """How pages are found. The names are those of the options of ``mmrr retrieve`` and ``mmrr rerank``."""

    top_k: int = 10
    candidates: int = 100
    first_stage: str | None = None  # words, meaning, sight or hybrid; None: everything that the index has
    channels: Mapping[str, float] | None = None  # weights of the sum; None: the default weights
    rerank: bool | None = None  # None: if the index has page caches
    fuse: float | None = None  # weight of the reranker in score fusion; None: the reranker's scores alone
    document: str | None = None  # id, path or file name: only its pages are searched, as a collection of their own
    documents: Sequence[str] | None = None  # the same names: only their pages are found
    where: str | None = None  # conditions on documents, such as "year>=2020": only their pages are found
    search_options: Mapping[str, object] = field(default_factory=dict)
    score_options: Mapping[str, object] = field(default_factory=dict)

    def updated(self, named: Mapping[str, object]) -> Search:
        """These options with other values. Raises MmrrError for an unknown name and an unknown first stage."""
        known = {one.name for one in dataclasses.fields(Search)}
        unknown = sorted(named.keys() - known)
        if unknown:
            raise MmrrError(f"search has no option {', '.join(unknown)}; expected some of: {', '.join(sorted(known))}")
        found = dataclasses.replace(self, **named)  # type: ignore[arg-type]
        stages = get_args(FirstStage)
        if found.first_stage is not None and found.first_stage not in stages:
            raise MmrrError(f"first_stage is '{found.first_stage}'; expected one of: {', '.join(stages)}")
        return found
