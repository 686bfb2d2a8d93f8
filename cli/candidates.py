"""What ``mmrr rerank`` reranks besides the first stage's pages: another system's run, and image files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mmrr.config import Machine, Model
from mmrr.errors import MmrrError

from . import report_ranking
from .context import queries_from, scoring_of
from .terminal import counted, note

if TYPE_CHECKING:
    from mmrr.context import Context
    from mmrr.evaluation.run_files import ExternalRun
    from mmrr.pipeline import Ranking, Scoring
    from mmrr.types import Query
    from mmrr.workspace.pages import Collection
    from mmrr.workspace.store import Manifest

#: Ids or queries that a note names.
_MOST_NAMED = 3


@dataclass(frozen=True)
class NamedScorer:
    """The scorer as the options of ``mmrr rerank`` name it."""

    family: str
    model: str | None
    revision: str | None
    keep: float | None
    options: dict[str, str]
    is_default: bool  # the model comes from the environment or from a file of defaults
    is_asked: bool = False  # an option of new page caches is on the command line

    @classmethod
    def read(
        cls,
        ctx: typer.Context,
        model: tuple[str, str | None, str | None],
        keep: float | None,
        options: dict[str, str],
    ) -> NamedScorer:
        """``model``: family, checkpoint, revision. ``ctx`` says where the checkpoint's name comes from."""
        asked = {name: _is_on_the_line(ctx, name) for name in ("scorer_model", "keep", "band", "codec", "option")}
        return cls(*model, keep, options, not asked.pop("scorer_model"), any(asked.values()))

    def scoring(self, context: Context) -> Scoring | None:
        """The scorer that reads the candidates now; None: the page caches of the last ``mmrr precache`` are used.

        A default scorer is used only where there are no page caches. Raises MmrrError if there is neither.
        """
        there = "precache" in context.chosen or context.workspace.current("precache") is not None
        if self.model is None or (self.is_default and there):
            if self.is_asked:
                raise MmrrError("--keep, --band, --codec and --option are of new page caches: name --scorer-model too")
            try:
                context.current("precache")  # fails here, before the search, if there are no caches
            except MmrrError as error:
                raise MmrrError(f"{error}; or name --scorer-model to read the candidates alone") from error
            return None
        if "precache" in context.chosen:
            raise MmrrError("--from precache/FINGERPRINT and --scorer-model both name a scorer; leave one of them out")
        return scoring_of(self.family, self.model, self.revision, self.keep, self.options)


def _is_on_the_line(ctx: typer.Context, name: str) -> bool:
    origin = ctx.get_parameter_source(name)
    return origin is not None and origin.name == "COMMANDLINE"


def caches_of(context: Context, scoring: Scoring | None, ranking: Ranking, *, build: bool) -> Manifest:
    """The caches to rerank from. With a scorer, pages without a cache are read now, and counted."""
    from mmrr import candidates

    if scoring is None:
        return context.same_pages(context.current("precache"), ranking.collection)
    found = candidates.candidate_caches(context, scoring, ranking, build=build)
    if build and "singles" in found.content:
        asked = len({hit.page_id for hits in ranking.first.values() for hit in hits})
        read = found.content["pages"]
        note(f"{counted(asked, 'candidate page')}: {read} read now and kept, {asked - read} from caches")
    return found


def keeping_models(context: Context) -> Context:
    """The same context; a model that it loads to read candidates stays in memory to score them."""
    from mmrr.modeling.loaded import Loaded

    return dataclasses.replace(context, loaded=Loaded())


def pages_of(context: Context, run_file: Path | None) -> Collection:
    """The pages that are ranked: those of the index, or for a run without an index the rendered ones."""
    from mmrr import candidates

    return candidates.pages_of(context) if run_file else context.collection(context.current("index"))


def external_ranking(
    context: Context,
    path: Path,
    id_map: Path | None,
    asked: tuple[str | None, Path | None, Path | None],
    depth: int,
    within: set[int] | None,
) -> Ranking:
    """The candidates in a file of another system, with what was left out counted and named on stderr.

    ``asked``: the query on the command line, the file of queries, the image. ``depth``: candidates of each query.
    ``within``: the rows of pages that stay. Raises MmrrError for a depth below 1.
    """
    from mmrr import candidates
    from mmrr.evaluation import run_files

    if depth < 1:
        raise MmrrError(f"--candidates {depth}: expected 1 or more")
    found = run_files.read_external(path)
    wanted = _queries(path, found, *asked)
    ids = run_files.read_map(id_map) if id_map else {}
    imported = candidates.import_external(context, found, wanted, ids, depth, within)
    _left_out("id", "without a page in the index, left out", imported.unknown)
    _left_out("query", "without a text, left out", imported.without_text, "queries")
    _left_out("query", "without candidates in the run", imported.without_candidates, "queries")
    if imported.cut:
        note(f"{counted(imported.cut, 'candidate')} beyond the {depth} best of each query left out; see --candidates")
    return imported.ranking


def _queries(
    path: Path, found: ExternalRun, query: str | None, queries: Path | None, image: Path | None
) -> list[Query]:
    if query is None and queries is None and image is None:
        if not found.texts:
            raise MmrrError(f"{path.name} has no texts of queries; add --queries FILE")
        return found.queries
    given = queries_from(query, queries, None, image)
    if queries is not None:
        return given
    if len(found.run) != 1:
        raise MmrrError(f"{path.name} has {len(found.run)} queries and the command line one; pass --queries FILE")
    return [dataclasses.replace(given[0], query_id=next(iter(found.run)))]


def _left_out(noun: str, why: str, names: Sequence[str], plural: str = "") -> None:
    if names:
        named = ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")
        note(f"{counted(len(names), noun, plural)} {why}: {named}")


def refuse_options(option: str, **others: object) -> None:
    """Raise MmrrError for the first of ``others`` (names of options with their values) that was given."""
    for name, value in others.items():
        if value:
            raise MmrrError(f"{option} and --{name.replace('_', '-')} exclude each other; leave one of them out")


def rank_images(
    images: Sequence[Path],
    queries: list[Query],
    named: NamedScorer,
    score_options: dict[str, str],
    machine: Machine,
    shown: report_ranking.Shown,
) -> None:
    """Rank image files for each query. There is no workspace, and nothing is kept."""
    from mmrr.reranker import Reranker

    report_ranking.check_format(shown, allowed=("csv", "json"))
    if named.keep not in (None, 1):
        raise MmrrError("--keep needs the embedder's attention, and --images has none; leave it out")
    files = list(_image_files(images))
    least = shown.narrow.threshold or 0.0
    scoring = scoring_of(named.family, named.model, named.revision, None, named.options)
    model: Model = scoring.model
    reranker = Reranker(
        model.name,
        scorer=named.family,
        revision=model.revision,
        device=machine.device,
        dtype=machine.dtype,
        options=named.options,
        score_options=score_options,
    )
    answers = []
    for query in queries:
        ranked = reranker.rank(query, files)
        results = [
            {"rank": rank, "image": str(files[one["corpus_id"]]), "score": one["score"], "logit": one["logit"]}
            for rank, one in enumerate(ranked, 1)
            if one["score"] >= least
        ]
        answers.append({**report_ranking.described(query), "results": results})
    report_ranking.images(answers, shown)


def _image_files(named: Sequence[Path]) -> Iterator[Path]:
    """The named files, and the images in the named folders by their names, without hidden ones."""
    from mmrr.documents.formats import image_suffixes

    for path in named:
        if path.is_dir():
            inside = sorted(
                one for one in path.rglob("*") if not any(part[0] == "." for part in one.parts[len(path.parts) :])
            )
            found = [one for one in inside if one.is_file() and one.suffix.lower() in image_suffixes()]
            if not found:
                raise MmrrError(
                    f"--images {path}: found no image in this folder, expected {', '.join(sorted(image_suffixes()))}"
                )
            _left_out(
                "file", "that is no image, left out", [str(one) for one in inside if one.is_file() and one not in found]
            )
            yield from found
        elif path.is_file():
            yield path
        else:
            raise MmrrError(f"--images {path}: found no such file or folder")
