"""Turns what the user typed into what the library takes: the workspace, the models, the queries, the options."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmrr.config import DenseOrder, FirstStage, Index, Machine, Model, Scope
from mmrr.errors import MmrrError

from .progress import progress
from .terminal import note

if TYPE_CHECKING:
    from mmrr.context import Context
    from mmrr.indexing import Indexing
    from mmrr.pipeline import Scoring
    from mmrr.types import Query, QueryImage
    from mmrr.workspace.pages import Collection

#: The notes of a command that indexes no page vectors: without and with vectors of the text.
TEXT_ONLY = "no --embedder: pages are found by their text layer alone (BM25)"
NOT_BY_SIGHT = "no --embedder: pages are found by the words and the meaning of their text, not by sight"
#: The values of --first-stage for words alone, and for page vectors alone.
_WORDS_ONLY, _BY_SIGHT = ("words", "bm25"), ("sight", "dense")


@contextlib.contextmanager
def open_context(
    work: Path,
    machine: Machine | None = None,
    chosen: list[str] | None = None,
    choices: tuple[str, ...] = ("index",),
    *,
    create: bool = False,
    reading: bool = False,
) -> Iterator[Context]:
    """Open a workspace. ``chosen`` are the values of --from, ``choices`` the stages that they may name.

    ``reading``: the command also works where the workspace cannot be written. Six parameters and a flag: what the
    options of a command say about its workspace.
    """
    from mmrr.context import Context
    from mmrr.workspace import read_only
    from mmrr.workspace.store import Workspace

    fingerprints = {}
    for name in chosen or []:
        stage, _, fingerprints[stage] = name.partition("/")
        if stage not in choices:
            expected = " or ".join(f"{stage}/FINGERPRINT" for stage in choices)
            raise MmrrError(f"--from {name}: expected {expected}; see: mmrr ls --work {work}")
    with read_only.opened(work, note) if reading else Workspace.open(work, create=create) as workspace:
        yield Context(workspace, machine or Machine(), progress, fingerprints, note)


def memory_size(option: str, text: str, *, zero_allowed: bool = False) -> int:
    """Bytes of a size such as 512MiB or 4GB. Raises MmrrError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    size = -1.0
    if match:
        step = 1024 if match[3] else 1000
        size = float(match[1]) * step ** " KMGT".index(match[2].upper() or " ")
    if not (size > 0 or (zero_allowed and size == 0)) or size >= 2**63:
        raise MmrrError(f"{option} {text[:40]}: expected a size such as 512MiB or 4GiB")
    return int(size)


def scoring_machine(device: str, memory_budget: str, resident: str, dtype: str = "auto") -> Machine:
    """The machine that reranks: its device, its two memory limits, and the number format of new page caches."""
    budget = memory_size("--memory-budget", memory_budget)
    return Machine(device, dtype, memory=budget, resident=memory_size("--resident", resident, zero_allowed=True))


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


@dataclass(frozen=True)
class Named:
    """The models of an index as the options name them."""

    embedder: str | None
    embedder_revision: str | None
    embed_options: dict[str, str]
    text_embedder: str | None
    text_embedder_revision: str | None
    text_options: dict[str, str]


def indexing_of(
    context: Context,
    named: Named,
    first_stage: FirstStage | None,
    index: Index,
    scoring: Scoring | None = None,
    *,
    follow: bool = True,
) -> tuple[Indexing, list[str]]:
    """How the pages are indexed, and what to say about it. Seven parameters: the options of three groups.

    A model that is not named is that of the current index, with ``follow``. --first-stage words indexes words only,
    unless the pruning for ``scoring`` needs the named embedder. Raises MmrrError if the first stage needs a model and
    there is none, or if one of the current index is not found.
    """
    from mmrr.indexing import Indexing, TextEmbedding, text_embedding
    from mmrr.stages import embed

    model = Model(named.embedder, named.embedder_revision) if named.embedder else None
    options = named.embed_options
    notes: list[str] = []
    text = TextEmbedding(None)
    if first_stage in _WORDS_ONLY:
        model = model if scoring and scoring.prunes else None
    else:
        followed = embed.followed(context.workspace, context.workspace.current("index")) if follow else None
        if model is None and followed:
            model, before = followed
            notes.append(f"embedder {model.name}, as in the current index; --first-stage words indexes text only")
            model, options = Model(model.name, named.embedder_revision or model.revision), before | options
        if follow or named.text_embedder is not None:
            text = text_embedding(context, named.text_embedder, named.text_embedder_revision, named.text_options)
        if first_stage in _BY_SIGHT and model is None:
            raise MmrrError(f"--first-stage {first_stage} needs --embedder, a local path or a Hub id")
        if (first_stage == "meaning" or (first_stage == "hybrid" and model is None)) and text.model is None:
            either = "--embedder or " if first_stage == "hybrid" else ""
            raise MmrrError(f"--first-stage {first_stage} needs {either}--text-embedder, a local path or a Hub id")
        if model is None:
            notes.append(NOT_BY_SIGHT if text.model else TEXT_ONLY)
        notes += [text.note] if text.note else []
    return Indexing(model, options, text.model, text.options, index), notes


def check_indexing(context: Context, indexing: Indexing, notes: list[str]) -> None:
    """Check the names and options of an index, and say what it uses. Called before pages are rendered."""
    from mmrr.indexing import check

    check(context, indexing)
    for line in notes:
        context.notice(line)


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


def fusion_of(fuse: str | None, channels: str | None) -> tuple[float | None, dict[str, float] | None]:
    """The weight of the reranker, and the weights of the first stage's channels, from --fuse and --channels.

    --fuse is one weight, that of the reranker, or ``NAME=WEIGHT`` pairs: channels, and ``reranker``.
    Raises MmrrError for anything else, and for channels in both options.
    """
    from mmrr.search.channels import parse

    of_channels = parse(channels) if channels is not None else None
    if fuse is None:
        return None, of_channels
    with contextlib.suppress(ValueError):
        return float(fuse), of_channels
    found = parse(fuse, "--fuse")
    reranker = found.pop("reranker", None)
    if found and of_channels is not None:
        raise MmrrError(f"--fuse {fuse} and --channels {channels} both have weights of channels; leave one of them out")
    return reranker, found or of_channels


def dense_order(dense: bool, prompt: DenseOrder) -> DenseOrder | None:
    """The prompt order of the dense forward, or None when scores come from the caches."""
    if prompt == "query-first" and not dense:
        raise MmrrError("--prompt query-first needs --dense: the caches are vision-first")
    return prompt if dense else None


@dataclass(frozen=True)
class NamedPages:
    """The pages that the options let a search find."""

    documents: list[str] | None = None
    pages: str | None = None
    where: str | None = None
    metadata: Path | None = None

    def read(self, collection: Collection, scope: Scope, *, is_file: bool) -> tuple[str | None, Scope, set[int] | None]:
        """The only document, the scope, and the rows that may be found (None: all).

        For one query, a single document that is no pattern is searched alone: all of its pages are ranked.
        Raises MmrrError if the collection has no such document, or several, and if no page fits.
        """
        from mmrr.workspace import changes, selection

        names = tuple(self.documents or ())
        doc_id = None
        if len(names) == 1 and not is_file and not selection.is_pattern(names[0], collection):
            doc_id, names = changes.find(collection.manifest, names[0]), ()
            scope = "document"
        where = (self.pages or "", self.where or "", self.metadata)
        return doc_id, scope, selection.rows_of(collection, selection.Filters(names, *where))


def queries_from(
    query: str | None, path: Path | None, document: str | None = None, image: Path | None = None
) -> list[Query]:
    """One query from the command line, a text, an image or both; or the queries of a file.

    Raises MmrrError for none, for both, for an empty text and for what is no image.
    """
    from mmrr.evaluation.trec import read_queries
    from mmrr.types import Query

    if (query is None and image is None) == (path is None):
        raise MmrrError("expected either one query on the command line or --queries FILE")
    if path is not None:
        return read_queries(path, images=True)
    if query is not None and not query.strip():
        raise MmrrError("the query is empty; expected a question or some words")
    if any("\ud800" <= char <= "\udfff" for char in query or ""):
        raise MmrrError("the query is not text in UTF-8")
    return [Query("query", query or "", document, _query_image(image))]


def _query_image(path: Path | None) -> QueryImage | None:
    from mmrr.queries import query_image

    try:
        return None if path is None else query_image(path)
    except MmrrError as error:
        raise MmrrError(f"--query-image {error}") from error
