"""Compares the ids of runs with those of judgements: which match, and which are probably another spelling."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence, Set

from mmrr.errors import MmrrError
from mmrr.types import Qrels, Query, Run, rank

#: A name and a number at its end: ``doc.pdf/0006``, ``doc.pdf/6``, ``doc_page_6``, ``q6``.
_NUMBERED = re.compile(r"(.*?)[/#:_\s-]*(?:(?<![a-z])p(?:age)?[_\s.-]*)?0*(\d+)", re.DOTALL)
_ENDING = re.compile(r"\.[a-z]\w{0,4}$")
#: Ids that a message shows.
_SHOWN = 3


def unknown_pages(qrels: Qrels, known: Collection[str], where: str) -> list[str]:
    """The judged pages that an index does not have, sorted. ``where`` names the judgements in the error.

    Raises MmrrError with ids of both kinds if the index has none of them.
    """
    judged = {page_id for pages in qrels.values() for page_id in pages}
    unknown = sorted(judged.difference(known))
    if judged and len(unknown) == len(judged):
        raise MmrrError(
            f"{where}: none of the {len(judged)} judged pages is in the index "
            f"(judged: {some(unknown)}; indexed: {some(known)}){_guess(other_spellings(unknown, known))}"
        )
    return unknown


def lacking(qrels: Qrels, known: Collection[str]) -> list[str]:
    """The judged pages that an index does not have, sorted; none if it has none of them: they are of another index."""
    judged = {page_id for pages in qrels.values() for page_id in pages}
    unknown = sorted(judged.difference(known))
    return unknown if len(unknown) < len(judged) else []


def to_pages(run: Run, known: Collection[str], mapped: Mapping[str, str], where: str) -> tuple[Run, list[str]]:
    """A run of another system over the pages of an index, and its ids without a page, sorted.

    ``mapped``: {id of the run: page id}; other ids are page ids. Of two ids of one page in a query, the better score
    counts. ``where`` names the run in the error. Raises MmrrError with ids of both kinds if no id has a page.
    """
    found: Run = {}
    asked, unknown = set(), set()
    for query_id, hits in run.items():
        scores: dict[str, float] = {}
        for hit in hits:
            asked.add(hit.page_id)
            page_id = mapped.get(hit.page_id, hit.page_id)
            if page_id not in known:
                unknown.add(hit.page_id)
                continue
            scores[page_id] = max(hit.score, scores.get(page_id, -math.inf))
        found[query_id] = rank(scores)
    if asked and len(unknown) == len(asked):
        wanted = sorted(mapped.get(name, name) for name in unknown)
        shown = f"run: {some(sorted(unknown))}" + (f"; mapped: {some(wanted)}" if mapped.keys() & unknown else "")
        raise MmrrError(
            f"{where}: none of the {len(asked)} ids is a page of the index ({shown}; indexed: {some(known)})"
            f"{_guess(other_spellings(wanted, known))}; --map FILE says which page an id is"
        )
    return found, sorted(unknown)


def queries_of(run: Run, queries: Sequence[Query], where: str) -> tuple[list[str], list[str]]:
    """The queries of a run that ``queries`` lacks, and those of ``queries`` that the run lacks.

    Raises MmrrError with ids of both kinds if they have none in common.
    """
    ids = [query.query_id for query in queries]
    without_text = [query_id for query_id in run if query_id not in set(ids)]
    if len(without_text) == len(run):
        raise MmrrError(
            f"{where}: none of the {len(run)} queries of the run is in the file of queries "
            f"(run: {some(run)}; queries: {some(ids)}){_guess(other_spellings(ids, run))}"
        )
    return without_text, [query_id for query_id in ids if query_id not in run]


def check_queries(name: str, run: Run, qrels: Qrels) -> None:
    """Raise MmrrError with ids of both kinds if a run answers none of the judged queries."""
    if not run.keys() & qrels.keys():
        raise MmrrError(
            f"the {name} run answers none of the {len(qrels)} judged queries "
            f"(run: {some(run)}; judged: {some(qrels)}){_guess(other_spellings(qrels, run))}"
        )


def check_pages(name: str, run: Run, qrels: Qrels, known: Set[str] = frozenset()) -> dict[str, str]:
    """{judged page: page of the run} for judged pages that the run probably has under another id.

    ``known`` are the ids of an index: two of them are two pages, however alike.
    Raises MmrrError with ids of both kinds if the run has no judged page at all, unless that can be its ranking: if
    it has other pages of a judged document, or if ``known`` has ids of both.
    """
    ranked = {hit.page_id for hits in run.values() for hit in hits}
    judged = {page_id for pages in qrels.values() for page_id in pages}
    other = other_spellings(judged - ranked, ranked)
    other = {wanted: there for wanted, there in other.items() if not {wanted, there} <= known}
    same_documents = {_document(page_id) for page_id in judged} & {_document(page_id) for page_id in ranked} - {""}
    if judged & ranked or not ranked or (not other and (same_documents or (judged & known and ranked & known))):
        return other
    raise MmrrError(
        f"none of the {len(judged)} judged pages is in the {name} run "
        f"(run: {some(sorted(ranked))}; judged: {some(sorted(judged))}){_guess(other)}"
    )


def other_spellings(wanted: Iterable[str], there: Iterable[str]) -> dict[str, str]:
    """{id in ``wanted``: id in ``there``} of ids that differ in spelling alone, such as ``a.pdf/6`` and ``a.pdf/0006``.

    The folder, the ending, capitals, the separator and zeros before the number are spelling. An id that fits several
    is left out.
    """
    by_reading: dict[tuple[str, str], list[str]] = {}
    for name in there:
        by_reading.setdefault(_reading(name), []).append(name)
    found = {}
    for name in sorted(wanted):
        fitting = by_reading.get(_reading(name), [])
        if len(fitting) == 1 and fitting != [name]:
            found[name] = fitting[0]
    return found


def some(ids: Iterable[str]) -> str:
    """The first ids, for a message."""
    names = list(ids)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "") if names else "none"


def _guess(other: dict[str, str]) -> str:
    if not other:
        return ""
    wanted, there = next(iter(other.items()))
    return f"; {wanted} is probably {there}: write the same ids in both"


def _reading(name: str) -> tuple[str, str]:
    """The document and the page number of an id, without its spelling."""
    name = name.casefold()
    numbered = _NUMBERED.fullmatch(name)
    document, number = numbered.groups() if numbered else (name, "")
    return _ENDING.sub("", document.rpartition("/")[2]), number


def _document(page_id: str) -> str:
    return page_id.rpartition("/")[0]
