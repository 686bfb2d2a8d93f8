"""Queries that a run answers badly: the pages it found, the pages that were wanted, and where they were lost."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mmrr.context import Context
from mmrr.errors import MmrrError
from mmrr.types import Run
from mmrr.workspace.pages import Collection, read_image, read_texts

#: Pages of a failure that are shown: the first that were found, and the first that were wanted.
_FOUND, _WANTED = 3, 2
#: The size of a thumbnail in pixels, and the quality of its JPEG: about 14 kB a page of text.
_SIZE, _QUALITY = (280, 400), 68
_TEXT_CHARS = 160


@dataclass(frozen=True)
class Place:
    """Where a query failed: the run, its baseline, and how many pages were looked at."""

    subject: str
    baseline: str
    run: Run
    depth: int


@dataclass(frozen=True)
class Failing:
    """A query without a wanted page among the first."""

    query_id: str
    text: str
    judged: Mapping[str, int]
    ranks: Mapping[str, int | None]  # {run: rank of the first wanted page}


@dataclass(frozen=True)
class Shown:
    """A page in a failure."""

    page_id: str
    document: str
    page: str  # its number, with the document's own label
    rank: int | None  # in the subject; None: not among its candidates
    score: float | None
    wanted: bool
    text: str  # the beginning of its text
    source: str  # data URI of a JPEG; "" where there is no image
    size: tuple[int, int]  # of the thumbnail, in pixels


@dataclass(frozen=True)
class Failure:
    """A failing query with its pages."""

    query_id: str
    text: str
    reason: str  # one sentence
    found: list[Shown]
    wanted: list[Shown]
    more_wanted: int  # wanted pages that are not shown


def find_failures(
    context: Context, collection: Collection | None, failing: Sequence[Failing], place: Place
) -> list[Failure]:
    """The failing queries with thumbnails. A page without an image has none."""
    thumbnails = _Thumbnails(context, collection)
    found = []
    with context.progress("thumbnails", len(failing)) as advance:
        for one in failing:
            hits = place.run.get(one.query_id, [])
            scores = {hit.page_id: (rank, hit.score) for rank, hit in enumerate(hits, 1)}
            wanted = [page_id for page_id, grade in one.judged.items() if grade > 0]
            wanted.sort(key=lambda page_id: (scores.get(page_id, (len(hits) + 1, 0.0))[0], page_id))
            shown = [*(hit.page_id for hit in hits[:_FOUND]), *wanted[:_WANTED]]
            pictures = [thumbnails.shown(page_id, scores.get(page_id), page_id in wanted) for page_id in shown]
            n_found = len(hits[:_FOUND])
            reason = _reason(one, place, len(hits))
            more = max(0, len(wanted) - _WANTED)
            found.append(Failure(one.query_id, one.text, reason, pictures[:n_found], pictures[n_found:], more))
            advance(1)
    return found


def _reason(one: Failing, place: Place, n_candidates: int) -> str:
    rank, before = one.ranks[place.subject], one.ranks[place.baseline]
    if not n_candidates:
        return "The run has no result for this query."
    if rank is None:
        return f"No wanted page is among the {n_candidates} candidates of the run."
    moved = f"The first wanted page has rank {rank}"
    if place.subject == place.baseline:
        return f"{moved} of {n_candidates}."
    there = f"rank {before}" if before else "not there"
    return f"{moved} of {n_candidates}; in {place.baseline}: {there}."


@dataclass
class _Thumbnails:
    """Thumbnails of a collection's pages, each made once."""

    context: Context
    collection: Collection | None
    made: dict[str, tuple[str, tuple[int, int], str]] = field(default_factory=dict)

    def shown(self, page_id: str, place: tuple[int, float] | None, wanted: bool) -> Shown:
        document, _, number = page_id.rpartition("/")
        page = number.lstrip("0") or number
        row = self.collection.row_of.get(page_id) if self.collection else None
        if self.collection and row is not None and self.collection.pages[row].label:
            page += f" ({self.collection.pages[row].label})"
        if page_id not in self.made:
            self.made[page_id] = self._make(row)
        source, size, text = self.made[page_id]
        rank, score = place or (None, None)
        return Shown(page_id, document, page, rank, score, wanted, text, source, size)

    def _make(self, row: int | None) -> tuple[str, tuple[int, int], str]:
        if self.collection is None or row is None:
            return "", (0, 0), ""
        workspace = self.context.workspace
        try:
            image = read_image(workspace, self.collection.pages[row])
            (text,) = read_texts(workspace, self.collection, [row])
        except MmrrError:  # gone or damaged: the report shows the rest, and mmrr verify names it
            return "", (0, 0), ""
        image.thumbnail(_SIZE, reducing_gap=2.0)
        data = io.BytesIO()
        image.save(data, "jpeg", quality=_QUALITY, optimize=True)
        uri = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
        return uri, image.size, _beginning(text)


def _beginning(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _TEXT_CHARS else words[:_TEXT_CHARS].rsplit(" ", 1)[0] + " ..."
