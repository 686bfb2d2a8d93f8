"""Queries with images in the stages: which channels and models take them, and what a model is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmrr.config import Render
from mmrr.context import Context
from mmrr.contracts import Scorer, SupportsVisualQueries, VisualQuery
from mmrr.errors import UnsupportedQueryError
from mmrr.modeling import families
from mmrr.queries import pixels
from mmrr.types import Query
from mmrr.workspace import manifests
from mmrr.workspace.pages import Collection
from mmrr.workspace.store import Manifest


def max_tokens(collection: Collection) -> int:
    """Most visual tokens of a query's image: those of the pages, so that a page is the same image as a query."""
    return manifests.config(collection.manifest, "pages").get("max_tokens") or Render().max_tokens


def check_channels(
    context: Context, queries: Iterable[Query], weights: Mapping[str, float], embedded: Manifest | None
) -> None:
    """Raise UnsupportedQueryError if images cannot be searched for; say which parts of queries find no pages.

    ``weights``: of the channels that are used. ``embedded``: the page vectors of the index; None: it has none.
    """
    visual = [query for query in queries if query.image]
    if not visual:
        return
    alone = next((query for query in visual if not query.text.strip()), None)
    if "sight" not in weights:
        if alone:
            need = (
                "page vectors, and this index has none; run mmrr index with --embedder"
                if embedded is None
                else f"sight, and this search uses {' and '.join(weights)} alone"
            )
            raise UnsupportedQueryError(f"query {alone.query_id} is an image without a text: finding it needs {need}")
        context.notice(f"pages are found by the text of a query, not by its image: {' and '.join(weights)} alone")
        return
    assert embedded
    family = manifests.config(embedded, "embed")["family"]
    families.expect_visual("embedders", family)
    others = [name for name in weights if name != "sight"]
    if alone and others:
        context.notice(f"an image without a text is found by sight; {' and '.join(others)} are left out")
    if any(query.text.strip() for query in visual) and not families.load("embedders", family).SPEC.joint_queries:
        context.notice(f"{family} has no prompt for an image with a text: sight uses the image alone")


def check_scorer(family: str, queries: Iterable[Query]) -> None:
    """Raise UnsupportedQueryError if a query has an image and the scorer family takes none."""
    if any(query.image for query in queries):
        families.expect_visual("scorers", family)


def asked(query: Query, collection: Collection) -> str | VisualQuery:
    """What a model is given of a query. Raises MmrrError if the file of its image changed or is gone."""
    if query.image is None:
        return query.text
    return VisualQuery(query.text, pixels(query.image, max_tokens(collection)))


def encode(scorer: Scorer, query: Query, collection: Collection) -> Any:
    """A scorer's encoded query. Any: the type is the family's own."""
    given = asked(query, collection)
    if isinstance(given, str):
        return scorer.encode_query(given)
    assert isinstance(scorer, SupportsVisualQueries)  # ``check_scorer`` was called
    return scorer.encode_visual_query(given)
