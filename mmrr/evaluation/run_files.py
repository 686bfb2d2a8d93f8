"""Runs of other systems: RankLLM's JSON Lines, the prediction files of mteb, TREC; and tables that map their ids.

RankLLM: ``{"query": {"qid", "text"}, "candidates": [{"docid", "score", "doc"}]}`` a line.
mteb: ``{"mteb_model_meta": ..., subset: {split: {query_id: {document id: score}}}}``.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from mmrr.errors import MmrrError
from mmrr.evaluation.trec import lines, read_run
from mmrr.types import Query, Run, rank

#: What a file in another format than TREC must be.
_RANKLLM = 'expected {"query": ..., "candidates": [{"docid": ..., "score": ...}]} on each line'
_MTEB = "expected a prediction file of mteb, {subset: {split: {query_id: {document id: score}}}}"
#: Entries of an mteb file that are no subset.
_META = "mteb_model_meta"
#: The first lines of tables of ids that are a header: what the second column is called.
_HEADERS = ("page_id", "page")


@dataclass(frozen=True)
class ExternalRun:
    """A run in the ids of the system that made it, and the texts of its queries where the file has them."""

    run: Run
    texts: dict[str, str] = field(default_factory=dict)  # by query id

    @property
    def queries(self) -> list[Query]:
        """The queries whose texts the file has."""
        return [Query(query_id, text) for query_id, text in self.texts.items()]


def read_external(path: Path) -> ExternalRun:
    """Read a run: JSON Lines of RankLLM, JSON of mteb, or a TREC run, as the first characters say.

    A candidate of RankLLM without a score counts by its place. Raises MmrrError for a file that is missing, empty or
    in none of these formats, for a document that occurs twice in a query, and for a score that is not a number.
    """
    first = next(iter(lines(path)))[1].lstrip()
    if not first.startswith(("{", "[")):
        return ExternalRun(read_run(path))
    try:
        whole = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError):
        return _read_rankllm(path, None)
    by_line = path.suffix.lower() in (".jsonl", ".ndjson") or (isinstance(whole, dict) and "candidates" in whole)
    if isinstance(whole, list) or by_line:
        return _read_rankllm(path, whole if isinstance(whole, list) else [whole])
    return ExternalRun(_read_mteb(path, whole))


def _read_rankllm(path: Path, records: list[Any] | None) -> ExternalRun:
    """``records``: of a file that is one JSON list; None: one a line."""
    run: Run = {}
    texts: dict[str, str] = {}
    numbered = list(enumerate(records, 1)) if records is not None else list(lines(path))
    for n, entry in numbered:
        try:
            record = json.loads(entry) if records is None else entry
        except (ValueError, RecursionError) as error:
            _fail(path, n, f"found no valid JSON ({error}), {_RANKLLM}")
        if not isinstance(record, dict) or not isinstance(record.get("candidates"), list) or "query" not in record:
            _fail(path, n, f"found no query with a list of candidates, {_RANKLLM}")
        query = record["query"] if isinstance(record["query"], dict) else {"text": record["query"], **record}
        query_id = next((str(query[key]) for key in ("qid", "query_id", "id") if query.get(key) is not None), str(n))
        if query_id in run:
            _fail(path, n, f"the query {query_id} is in a line above, expected each query once")
        if isinstance(query.get("text"), str) and query["text"].strip():
            texts[query_id] = query["text"]
        scores: dict[str, float] = {}
        for position, candidate in enumerate(record["candidates"], 1):
            if not isinstance(candidate, dict) or not isinstance(candidate.get("docid"), str | int):
                _fail(path, n, f"candidate {position} has no docid, {_RANKLLM}")
            docid, score = str(candidate["docid"]), candidate.get("score", -float(position))
            if docid in scores:
                _fail(path, n, f"{docid} is already a candidate of query {query_id}; expected each document once")
            if not _is_score(score):
                _fail(path, n, f"the score of {docid} is {score!r}, expected a number")
            scores[docid] = float(score)
        run[query_id] = rank(scores)
    return ExternalRun(run, texts)


def _read_mteb(path: Path, whole: Any) -> Run:  # Any: JSON
    if not isinstance(whole, dict):
        raise MmrrError(f"{path.name}: found {type(whole).__name__}, {_MTEB}")
    parts: dict[str, Any] = {}
    subsets = {name: value for name, value in whole.items() if name != _META}
    if subsets and all(_is_scores(value) for value in subsets.values()):
        parts[""] = subsets  # {query_id: {document id: score}} alone, as pytrec_eval and BEIR write it
    else:
        for subset, splits in subsets.items():
            if not isinstance(splits, dict):
                raise MmrrError(f"{path.name}: found {type(splits).__name__} under {subset!r}, {_MTEB}")
            parts |= {f"{subset}/{split}": value for split, value in splits.items()}
    if len(parts) != 1:
        found = ", ".join(parts) or "none"
        raise MmrrError(
            f"{path.name}: found {len(parts)} splits ({found}), expected one; write a file with one of them"
        )
    ((name, queries),) = parts.items()
    if not isinstance(queries, dict) or not all(_is_scores(scores) for scores in queries.values()):
        raise MmrrError(f"{path.name}: {name} has no scores by query and document, {_MTEB}")
    return {
        query_id: rank({page: float(score) for page, score in scores.items()}) for query_id, scores in queries.items()
    }


def _is_scores(value: object) -> bool:
    return isinstance(value, dict) and all(_is_score(score) for score in value.values())


def _is_score(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def read_map(path: Path) -> dict[str, str]:
    """Read a table of two columns, another system's id and the page id: TSV if its first line has a tab, else CSV.

    A first line whose second column is called page_id is left out. Raises MmrrError for a line with other columns, and
    for an id that is mapped to two pages.
    """
    found: dict[str, str] = {}
    for n, line in lines(path):
        if n == 1:
            delimiter = "\t" if "\t" in line else ","
        (row,) = csv.reader([line.strip("\r\n")], delimiter=delimiter)
        cells = [cell.strip() for cell in row]
        if len(cells) != 2 or not all(cells):
            _fail(path, n, f"found {len(cells)} columns, expected 2: an id of the run, and the page id")
        if n == 1 and cells[1].lower() in _HEADERS:
            continue
        if found.setdefault(cells[0], cells[1]) != cells[1]:
            _fail(path, n, f"{cells[0]} is already mapped to {found[cells[0]]}, expected one page for each id")
    return found


def rankllm_text(answers: list[dict[str, Any]], texts: Mapping[str, str]) -> str:
    """Rankings as RankLLM's JSON Lines. ``texts``: of pages, by id. ``answers``: see ``table_text``."""
    written = []
    for answer in answers:
        candidates = []
        for row in answer["results"]:
            doc = {"text": texts.get(row["page_id"], ""), "title": row["doc_id"]}
            doc |= {key: row[key] for key in ("document", "page", "label", "image")}
            candidates.append({"docid": row["page_id"], "score": row.get("logit", row["score"]), "doc": doc})
        query = {"qid": answer["query_id"], "text": answer["text"]}
        written.append(json.dumps({"query": query, "candidates": candidates}, ensure_ascii=False) + "\n")
    return "".join(written)


def mteb_text(run: Run, model: str | None, revision: str | None) -> str:
    """A run as mteb's prediction file, with the subset ``default`` and the split ``test``."""
    scores = {query_id: {hit.page_id: hit.score for hit in hits} for query_id, hits in run.items()}
    meta = {"model_name": model, "revision": revision}
    return json.dumps({_META: meta, "default": {"test": scores}}, ensure_ascii=False)


def csv_text(answers: list[dict[str, Any]]) -> str:
    """Rankings as CSV with a header, one page a line.

    ``answers``: objects with ``query_id``, ``text`` and ``results``, whose rows have the same keys.
    """
    rows = [{"query_id": one["query_id"], "query": one["text"], **row} for one in answers for row in one["results"]]
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["query_id", "query", "rank", "page_id"]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _fail(path: Path, n: int, problem: str) -> NoReturn:
    raise MmrrError(f"{path.name}, line {n}: {problem}")
