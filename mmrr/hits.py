"""The pages of an answer, and how notebooks show them: thumbnails in HTML that loads nothing."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, SupportsIndex, overload

from PIL import Image

from mmrr.errors import MmrrError
from mmrr.search.passages import Passage
from mmrr.types import Query
from mmrr.workspace import metadata as described

if TYPE_CHECKING:
    from mmrr.answering import Answer
    from mmrr.api import Workspace

#: Width of a thumbnail in pixels, and its JPEG quality. A page takes about 10 kB.
_WIDTH, _QUALITY = 200, 70
#: Hits of a list that have a thumbnail; the others are lines of text.
_MOST = 50


@dataclass(frozen=True, slots=True)
class Hit:
    """One page of an answer."""

    page_id: str
    document: str  # the document's id
    page: int  # from 1
    label: str  # the page's label in the PDF, such as "iv"; "" if it has none
    score: float  # what the rank follows; higher is better
    rank: int  # from 1
    first_stage_rank: int | None  # from 1; None: the answer was not reranked
    query: Query
    metadata: Mapping[str, str | int | float]  # of the document: what mmrr index stored, such as {"year": 2021}
    _workspace: Workspace = field(repr=False, compare=False)

    def image(self) -> Image.Image:
        """The page image in RGB, as it was indexed. Raises MmrrError if it is gone or damaged."""
        return self._workspace.image(self.page_id)

    def text(self) -> str:
        """The page's text, from the text layer or OCR; "" if it has none."""
        return self._workspace.text(self.page_id)

    def passage(self) -> Passage:
        """The part of the page's text that answers the query best, with the places of the query's words in it."""
        return self._workspace.passages(self.query.text, [self.page_id])[0]

    def _repr_html_(self) -> str:
        """The page for notebooks: a thumbnail and its caption."""
        return _card(self, with_image=True)


class Hits(list[Hit]):
    """The pages of an answer, best first. A notebook shows them as thumbnails."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> Hits: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Hit | Hits:
        found = super().__getitem__(index)
        return Hits(found) if isinstance(found, list) else found

    def _repr_html_(self) -> str:
        """The pages for notebooks. The first 50 have thumbnails."""
        return _grid(_card(hit, with_image=place < _MOST) for place, hit in enumerate(self))


def _grid(cards: Iterable[str]) -> str:
    return f'<div style="display:flex;flex-wrap:wrap;gap:1em">{"".join(cards) or "no pages"}</div>'


def _card(hit: Hit, *, with_image: bool) -> str:
    number = f"{hit.page} ({hit.label})" if hit.label else str(hit.page)
    moved = "" if hit.first_stage_rank is None else f", first stage {hit.first_stage_rank}"
    place = html.escape(f"{hit.document}, page {number}")
    told = f"<b>{hit.rank}.</b> {place}<br><small>score {hit.score:.4g}{moved}</small>"
    image = _thumbnail(hit, place) if with_image else ""
    return (
        f'<figure style="width:{_WIDTH}px;margin:0">{image}'
        f'<figcaption style="overflow-wrap:anywhere">{told}</figcaption></figure>'
    )


def _thumbnail(hit: Hit, place: str) -> str:
    """A page image as a data URI. Where it cannot be read, the reason as text."""
    try:
        image = hit.image()
    except MmrrError as error:
        return f"<p>{html.escape(str(error))}</p>"
    image.thumbnail((_WIDTH, 4 * _WIDTH))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=_QUALITY)
    source = base64.b64encode(data.getvalue()).decode("ascii")
    return f'<img src="data:image/jpeg;base64,{source}" alt="{place}" style="border:1px solid #999;max-width:100%">'


def hits_of(workspace: Workspace, ranking: Answer, query: Query) -> Hits:
    """The pages of an answer to a query."""
    first = {hit.page_id: rank for rank, hit in enumerate(ranking.first[query.query_id], 1)}
    hits, of_document = Hits(), described.of(ranking.collection.manifest)
    for rank, (page_id, score) in enumerate(ranking.run[query.query_id], 1):
        page = ranking.collection.pages[ranking.collection.row_of[page_id]]
        before = first.get(page_id) if ranking.final is not None else None
        values = described.shown(of_document.get(page.doc_id, {}))
        hits.append(Hit(page_id, page.doc_id, page.number, page.label, score, rank, before, query, values, workspace))
    return hits
