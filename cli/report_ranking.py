"""Shows rankings as tables or JSON, and writes them to files in the formats of other tools."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mmrr.errors import MmrrError

from .candidate_options import OutputFormat
from .report import MOST_LISTED, path_of
from .terminal import SCHEMA, counted, emit, is_quiet, note, table

if TYPE_CHECKING:
    from mmrr.context import Context
    from mmrr.evaluation.calibration import Calibration
    from mmrr.pipeline import Ranking
    from mmrr.types import Query, Run

_TITLE_CHARS = 200
#: Characters of a page's text that a row shows.
_SNIPPET_CHARS = 200
#: Endings of the names of files that say a format.
_ENDINGS: dict[str, OutputFormat] = {
    "_predictions.json": "mteb",
    ".jsonl": "rankllm",
    ".ndjson": "rankllm",
    ".json": "json",
    ".csv": "csv",
}


@dataclass(frozen=True)
class Narrow:
    """What is left out of the results. The artifact of the ranking keeps every candidate."""

    threshold: float | None = None  # of the score from 0 to 1
    one_per_document: bool = False
    fold_duplicates: bool = False  # of pages with the same image only the best
    calibration: Calibration | None = None  # gives the probabilities; None: the sigmoid of the logit

    def check(self) -> None:
        """Raise MmrrError for a threshold that is no probability."""
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise MmrrError(f"--threshold {self.threshold}: expected a score from 0 to 1, the sigmoid of a logit")

    def probability(self, logit: float) -> float:
        """What the threshold is compared with."""
        return self.calibration.probability(logit) if self.calibration else _sigmoid(logit)


@dataclass(frozen=True)
class Shown:
    """How a ranking is shown."""

    top_k: int
    output: Path | None = None
    format: OutputFormat | None = None  # of the file; None: by its ending
    as_json: bool = False
    is_file: bool = False  # the queries are from a file: the first ones are shown as tables, with --quiet none
    path: bool = True  # print the artifact's path
    narrow: Narrow = Narrow()

    @property
    def file_format(self) -> OutputFormat:
        """The format of the file."""
        if self.format or self.output is None:
            return self.format or "trec"
        name = self.output.name.lower()
        return next((format_ for ending, format_ in _ENDINGS.items() if name.endswith(ending)), "trec")


def read_calibration(path: Path | None) -> Calibration | None:
    """The calibration in a file. Raises MmrrError for another file."""
    if path is None:
        return None
    from mmrr.evaluation import calibration

    return calibration.read(path)


def check_format(shown: Shown, *, allowed: Sequence[OutputFormat] = ()) -> None:
    """Raise MmrrError for a wrong threshold, a format without a file, and one that ``allowed`` lacks (empty: all)."""
    shown.narrow.check()
    if shown.format and shown.output is None:
        raise MmrrError(f"--output-format {shown.format} is the format of a file; name it with --output")
    if shown.output and allowed and shown.file_format not in allowed:
        raise MmrrError(
            f"--output {shown.output}: found the format {shown.file_format}, expected {' or '.join(allowed)}"
        )


def ranking(context: Context, found: Ranking, shown: Shown) -> None:
    """Show the pages found: tables or JSON, and a file where --output names one."""
    from mmrr.workspace.files import write_atomically

    found = _narrowed(found, shown.narrow)
    if shown.output:
        write_atomically(shown.output, _file_text(context, found, shown))
    answers = _answers(context, found, shown.top_k, shown.narrow)
    if shown.as_json:
        emit({"artifact": path_of(found.manifest), "queries": answers})
        return
    most = 0 if is_quiet() else MOST_LISTED  # a script that reads the path of the artifact passes --quiet
    listed = answers[:most] if shown.is_file else answers
    for answer in listed:
        _ranking_table(found, answer)
    if len(listed) < len(answers):
        more = counted(len(answers) - len(listed), "more query", "more queries")
        where = path_of(found.manifest)
        note(f"... and {more}; " + (f"see {where}/run.trec" if where else "--output writes the whole ranking"))
    if shown.path and found.manifest.kept:
        typer.echo(found.manifest.path)


def images(answers: list[dict[str, Any]], shown: Shown) -> None:
    """Show image files that were ranked: a table or JSON, and a file where --output names one.

    ``answers``: objects with ``query_id``, ``text`` and ``results``, whose rows have ``rank``, ``image``, ``score`` and
    ``logit``.
    """
    from mmrr.evaluation.run_files import csv_text
    from mmrr.workspace.files import write_atomically

    if shown.output:
        as_csv = shown.file_format == "csv"
        write_atomically(shown.output, csv_text(answers) if as_csv else _json_text({"queries": answers}))
    best = [{**answer, "results": answer["results"][: shown.top_k]} for answer in answers]
    if shown.as_json:
        emit({"queries": best})
        return
    for answer in best:
        rows = [
            [str(row["rank"]), row["image"], f"{row['score']:.4f}", f"{row['logit']:.3f}"] for row in answer["results"]
        ]
        table(_title(answer), ["rank", "image", "score", "logit"], rows, numbers_from=2, to_stdout=True)


def _narrowed(found: Ranking, narrow: Narrow) -> Ranking:
    """The ranking without what is left out of the results.

    Raises MmrrError for a threshold where no score is a probability.
    """
    if narrow == Narrow():
        return found
    if narrow.calibration:
        _check_calibration(found, narrow.calibration)
    if narrow.threshold is not None and not _ranks_by_logit(found):
        raise MmrrError(
            "--threshold is of scores from 0 to 1, and this ranking has none: leave out --fuse, and do not use a "
            "scorer that ranks lists"
        )
    kept: Run = {}
    for query_id, hits in found.run.items():
        documents, pictures = set(), set()
        kept[query_id] = own = []
        for hit in hits:
            page = found.collection.pages[found.collection.row_of[hit.page_id]]
            low = narrow.threshold is not None and narrow.probability(hit.score) < narrow.threshold
            seen = narrow.one_per_document and page.doc_id in documents
            if low or seen or (narrow.fold_duplicates and page.sha256 in pictures):
                continue
            documents.add(page.doc_id)
            pictures.add(page.sha256)
            own.append(hit)
    return dataclasses.replace(found, final=kept)


def _file_text(context: Context, found: Ranking, shown: Shown) -> str:
    """The whole ranking in the format of the file."""
    format_ = shown.file_format
    from mmrr.evaluation import run_files
    from mmrr.evaluation.trec import write_run
    from mmrr.workspace.pages import read_texts

    if format_ == "trec":
        text = io.StringIO()
        write_run(found.run, text)
        return text.getvalue()
    if format_ == "mteb":
        model = found.manifest.model or {}
        return run_files.mteb_text(found.run, model.get("id"), model.get("revision"))
    answers = _answers(context, found, None, shown.narrow)
    if format_ == "csv":
        return run_files.csv_text(answers)
    if format_ == "json":
        return _json_text({"artifact": path_of(found.manifest), "queries": answers})
    page_ids = list(dict.fromkeys(row["page_id"] for answer in answers for row in answer["results"]))
    texts = read_texts(context.workspace, found.collection, [found.collection.row_of[one] for one in page_ids])
    return run_files.rankllm_text(answers, dict(zip(page_ids, texts, strict=True)))


def _json_text(document: Mapping[str, object]) -> str:
    return json.dumps({"schema": SCHEMA, **document}, ensure_ascii=False, indent=1) + "\n"


def _ranking_table(found: Ranking, answer: dict[str, Any]) -> None:
    reranked, logit = found.final is not None, _ranks_by_logit(found)
    columns = ["rank", "document", "page", "score", *["logit"] * logit, *["first stage"] * reranked]
    rows = []
    for row in answer["results"]:
        page = row["page_id"].rsplit("/", 1)[1].lstrip("0") or "0"
        labelled = f"{page} ({row['label']})" if row["label"] else page
        cells = [str(row["rank"]), row["doc_id"], labelled, f"{row['score']:.4f}"]
        if logit:
            cells.append(f"{row['logit']:.3f}")
        if reranked:
            cells.append(str(row["first_stage_rank"]))
        rows.append(cells)
    table(_title(answer), columns, rows, numbers_from=2, to_stdout=True)
    if not rows:
        note("no page shares a word with this query")


def described(query: Query) -> dict[str, str]:
    """A query in JSON: its id, its text and, if it has one, the name of its image."""
    image = {"image": query.image.name} if query.image else {}
    return {"query_id": query.query_id, "text": query.text, **image}


def _title(answer: Mapping[str, Any]) -> str:
    image = f"[{answer['image']}]" if "image" in answer else ""
    text = f"{image} {answer['text']}".strip()
    return text if len(text) < _TITLE_CHARS else text[:_TITLE_CHARS] + "..."


def _answers(context: Context, found: Ranking, top_k: int | None, narrow: Narrow) -> list[dict[str, Any]]:
    """The rows of each query, at most ``top_k``.

    With a scorer of single pages, ``logit`` decides the rank and ``score`` is its sigmoid: the page's own probability.
    With a list scorer, with score fusion and in the first stage, ``score`` decides the rank.
    """
    from mmrr.workspace import changes
    from mmrr.workspace.pages import read_texts

    collection, by_logit = found.collection, _ranks_by_logit(found)
    shown = {query.query_id: found.run.get(query.query_id, [])[:top_k] for query in found.queries}
    rows = {row: None for hits in shown.values() for row in (collection.row_of[hit.page_id] for hit in hits)}
    texts = dict(zip(rows, read_texts(context.workspace, collection, list(rows)), strict=True))
    places = changes.places(collection.manifest)
    answers = []
    for query in found.queries:
        first = {hit.page_id: (rank, hit.score) for rank, hit in enumerate(found.first.get(query.query_id, []), 1)}
        results = []
        for position, hit in enumerate(shown[query.query_id], 1):
            page = collection.pages[collection.row_of[hit.page_id]]
            place = places.get(page.doc_id)
            first_rank, first_score = first[hit.page_id]
            results.append(
                {
                    "rank": position,
                    "page_id": hit.page_id,
                    "doc_id": page.doc_id,
                    "document": str(place.path) if place else None,
                    "page": page.number,
                    "label": page.label,
                    "image": str(page.image),
                    **_scores(hit.score, narrow, by_logit=by_logit),
                    "first_stage_rank": first_rank,
                    "first_stage_score": first_score,
                    "snippet": _snippet(texts[collection.row_of[hit.page_id]], query.text),
                }
            )
        answers.append({**described(query), "results": results})
    return answers


def _scores(score: float, narrow: Narrow, *, by_logit: bool) -> dict[str, float]:
    if not by_logit:
        return {"score": score}
    calibrated = {"probability": narrow.probability(score)} if narrow.calibration else {}
    return {"score": _sigmoid(score), "logit": score, **calibrated}


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0


def _snippet(text: str, query: str) -> str:
    """The part of a page's text that has the most words of the query, on one line."""
    text = " ".join(text.split())
    wanted = {word for word in re.findall(r"\w+", query.casefold()) if len(word) > 2 or not word.isascii()}
    found = [(one.start(), one[0].casefold()) for one in re.finditer(r"\w+", text) if one[0].casefold() in wanted]
    best, most = 0, 0
    for i, (start, _) in enumerate(found):
        words = len({word for place, word in found[i:] if place < start + _SNIPPET_CHARS})
        if words > most:
            best, most = start, words
    # Some words before the first hit; from the start of the text if the hit is there.
    best = text.rfind(" ", 0, best - 40) + 1 if best > _SNIPPET_CHARS // 2 else 0
    return text[best : best + _SNIPPET_CHARS]


def _check_calibration(found: Ranking, calibration: Calibration) -> None:
    """Raise MmrrError for a calibration of another reranker, or of other settings that change logits."""
    if not _ranks_by_logit(found):
        raise MmrrError("--calibration is of a reranker's logits, and this ranking has none: leave out --fuse")
    assert found.reranked
    config, model = found.reranked.config, found.reranked.model or {}
    made = {name: config.get(name) for name in ("family", "options", "score")} | {"revision": model.get("revision")}
    for name, value in calibration.made_for.items():
        if made.get(name) != value:
            raise MmrrError(
                f"--calibration is of {name} {json.dumps(value)}, and this ranking of {json.dumps(made.get(name))}; "
                "run mmrr tune --calibrate, and take the settings that it writes"
            )


def _ranks_by_logit(found: Ranking) -> bool:
    """Whether scores are logits of single pages: not with a list scorer and not with score fusion."""
    from mmrr.modeling import families

    by = found.reranked.config if found.reranked else None
    return by is not None and "blend" not in by and not families.load("scorers", by["family"]).SPEC.listwise
