"""Turns what the user typed into what the library takes: the workspace, the models, the queries, the options."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmrr.config import DenseOrder, FirstStage, Index, Machine, Model
from mmrr.errors import MmrrError

from .terminal import note, progress

if TYPE_CHECKING:
    from mmrr.context import Context
    from mmrr.pipeline import Scoring
    from mmrr.types import Query

#: The note of a command that indexes no page vectors.
TEXT_ONLY = "no --embedder: pages are found by their text layer alone (BM25)"


@contextlib.contextmanager
def open_context(
    work: Path,
    machine: Machine | None = None,
    chosen: list[str] | None = None,
    choices: tuple[str, ...] = ("index",),
    *,
    create: bool = False,
) -> Iterator[Context]:
    """Open a workspace. ``chosen`` are the values of --from, ``choices`` the stages that they may name."""
    from mmrr.context import Context
    from mmrr.workspace.store import Workspace

    fingerprints = {}
    for name in chosen or []:
        stage, _, fingerprints[stage] = name.partition("/")
        if stage not in choices:
            expected = " or ".join(f"{stage}/FINGERPRINT" for stage in choices)
            raise MmrrError(f"--from {name}: expected {expected}; see: mmrr ls --work {work}")
    with Workspace.open(work, create=create) as workspace:
        yield Context(workspace, machine or Machine(), progress, fingerprints, note)


def memory_size(option: str, text: str, *, zero_allowed: bool = False) -> int:
    """Bytes of a size such as 512MiB or 4GB. Raises MmrrError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if not match or not (zero_allowed or float(match[1])):
        raise MmrrError(f"{option} {text}: expected a size such as 512MiB or 4GiB")
    step = 1024 if match[3] else 1000
    return int(float(match[1]) * step ** " KMGT".index(match[2].upper() or " "))


def scoring_machine(device: str, memory_budget: str, resident: str) -> Machine:
    """The machine that reranks: its device and its two memory limits."""
    budget = memory_size("--memory-budget", memory_budget)
    return Machine(device, memory=budget, resident=memory_size("--resident", resident, zero_allowed=True))


def drawing_machine(machine: Machine, page_timeout: float, page_memory: str) -> Machine:
    """The machine that draws pages, with its two limits of one page."""
    memory = memory_size("--page-memory", page_memory)
    return dataclasses.replace(machine, page_seconds=page_timeout, page_memory=memory)


def pairs(values: list[str] | None, **named: object) -> dict[str, str]:
    """``["a=1"]`` and the named options that are not None -> ``{"a": "1"}``. Raises MmrrError for a text without =."""
    options = {name: str(value) for name, value in named.items() if value is not None}
    for text in values or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise MmrrError(f"option '{text}': expected KEY=VALUE")
        options[key.strip()] = value
    return options


def embedder_model(
    name: str | None, revision: str | None, first_stage: FirstStage | None, scoring: Scoring | None = None
) -> Model | None:
    """The embedder, or None if no step needs it: neither the first stage nor the pruning for ``scoring``."""
    if first_stage == "bm25" and not (name and scoring and scoring.prunes):
        return None
    if name is None and first_stage:
        raise MmrrError(f"--first-stage {first_stage} needs --embedder, a local path or a Hub id")
    if name is None:
        note(TEXT_ONLY)
    return Model(name, revision) if name else None


@dataclass(frozen=True)
class Embedding:
    """The embedder of an index, or None, with its options; and what to say about it."""

    model: Model | None
    options: dict[str, str]
    note: str = ""


def embedding_of(
    context: Context,
    named: Model,
    options: dict[str, str],
    first_stage: FirstStage | None,
    scoring: Scoring | None = None,
) -> Embedding:
    """The embedder that the options name (the name "" for none), else that of the current index.

    --first-stage bm25 indexes text only, unless the pruning for ``scoring`` needs the named embedder.
    Raises MmrrError if the first stage needs an embedder and there is none, or if the current one is not found.
    """
    from mmrr.stages import embed

    if named.name or first_stage == "bm25":
        return Embedding(embedder_model(named.name or None, named.revision, first_stage, scoring), options)
    followed = embed.followed(context.workspace, context.workspace.current("index"))
    if followed is None:
        if first_stage:
            embedder_model(None, None, first_stage)
        return Embedding(None, options, TEXT_ONLY)
    model, before = followed
    said = f"embedder {model.name}, as in the current index; --first-stage bm25 indexes text only"
    return Embedding(Model(model.name, named.revision or model.revision), before | options, said)


def check_embedding(context: Context, embedding: Embedding, index: Index) -> None:
    """Check the names and options of an index, and say which embedder it uses. Called before pages are rendered."""
    from mmrr import pipeline

    pipeline.check_index(context, embedding.model, embedding.options, index)
    if embedding.note:
        context.notice(embedding.note)


def scoring_of(
    family: str, model: str | None, revision: str | None, keep: float | None, options: dict[str, str]
) -> Scoring:
    """The reranker that the options name. Raises MmrrError if --scorer-model is missing."""
    from mmrr.pipeline import Scoring

    if model is None:
        built_in, published = known_models(family)
        ways = ["a local path", *(f"a Hub id such as {name}" for name in published[:1])]
        ways += [f"{name}, the small model that mmrr includes" for name in built_in[:1]]
        raise MmrrError(f"no reranker given; pass --scorer-model (or set MMRR_SCORER_MODEL) with {', or '.join(ways)}")
    return Scoring(family, Model(model, revision), options, keep)


def known_models(family: str) -> tuple[list[str], list[str]]:
    """A scorer's checkpoints: those in mmrr, and those on the Hub. Raises MmrrError for an unknown family."""
    from mmrr.modeling import checkpoints, families

    known, built_in = families.load("scorers", family).SPEC.checkpoints, checkpoints.built_in()
    return [one for one in known if one in built_in], [one for one in known if one not in built_in]


def scorings(text: str) -> dict[str, Scoring]:
    """Parse ``NAME[=MODEL][+KEY=VALUE]...,...`` into rerankers by label.

    Raises MmrrError for a family that needs a model and names none.
    """
    from mmrr.pipeline import Scoring

    found = {}
    for part in text.split(","):
        scorer, *options = part.strip().split("+")
        name, _, model = scorer.partition("=")
        built_in, _ = known_models(name)
        if not model:
            if not built_in:
                raise MmrrError(f"mmrr includes no model of {name}; pass {name}=MODEL, a local path or a Hub id")
            model = built_in[0]
        label = " ".join([f"{name} ({model})", *options])
        found[label] = Scoring(name, Model(model), pairs(options))
    return found


def dense_order(dense: bool, prompt: DenseOrder) -> DenseOrder | None:
    """The prompt order of the dense forward, or None when scores come from the caches."""
    if prompt == "query-first" and not dense:
        raise MmrrError("--prompt query-first needs --dense: the caches are vision-first")
    return prompt if dense else None


def queries_from(query: str | None, path: Path | None, document: str | None = None, scope: str = "") -> list[Query]:
    """One query from the command line, or the queries of a file. Raises MmrrError for none, both or an empty one."""
    from mmrr.evaluation.trec import read_queries
    from mmrr.types import Query

    if (query is None) == (path is None):
        raise MmrrError("expected either one query on the command line or --queries FILE")
    if document is not None and (path is not None or scope != "document"):
        raise MmrrError("--document needs a query on the command line and --scope document")
    if path is not None:
        return read_queries(path)
    if query is None or not query.strip():
        raise MmrrError("the query is empty; expected a question or some words")
    if any("\ud800" <= char <= "\udfff" for char in query):
        raise MmrrError("the query is not text in UTF-8")
    return [Query("query", query, document)]
