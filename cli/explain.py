"""``mmrr explain``: where a page's score for a query comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from mmrr.config import Machine

from . import options as o
from . import report
from .candidates import keeping_models
from .context import open_context, queries_from
from .terminal import check_output, emit, table

if TYPE_CHECKING:
    from mmrr.evidence import Evidence

SourceName = Literal["reranker", "embedder"]


# One parameter per option.
def explain(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="A question or some words.", show_default=False)],
    page: o.PageName,
    work: o.Work = o.WORK,
    output: Annotated[Path, typer.Option("--output", help="PNG file to write.")] = Path("evidence.png"),
    word: Annotated[
        Optional[str],
        typer.Option(
            "--word",
            metavar="N|TEXT",
            help="A word of the query, or its number from 0. Default: the whole query.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        Optional[SourceName],
        typer.Option(
            "--source",
            help="embedder: products with the page's vectors. reranker: attention to the visual tokens in the page's "
            "cache. Default: the reranker, if it has such caches.",
            show_default=False,
        ),
    ] = None,
    layer: Annotated[
        Optional[int],
        typer.Option(
            "--layer",
            min=0,
            help="Of the reranker's layers that see the page, from 0. Default: their sum.",
            show_default=False,
        ),
    ] = None,
    show: o.Show = False,
    from_: o.From = None,
    json_: o.Json = False,
    device: o.Device = o.MACHINE.device,
) -> None:
    """Draw where a page's score comes from.

    Writes a picture of the page with a heat map over its visual tokens, the query and its words. The tokens that
    pruning dropped are faded and hatched. The page is not read again: the vectors and caches of the workspace are used.

    Example: `mmrr explain "When is the thesis due?" handbook.pdf/0007 --word thesis --output why.png`
    """
    check_output(output, is_picture=True)
    with open_context(work, Machine(device), from_, ("index", "precache"), reading=True) as opened:
        from mmrr import evidence

        context = keeping_models(opened)
        (asked,) = queries_from(query, None)
        found = evidence.explain(context, asked.text, page, word=word, source=source, layer=layer)
        picture = found.image()
        report.picture(picture, output)
        if json_:
            emit(_document(found, output))
            return
        table("Words of the query", ["number", "word"], [[str(one.index), one.text] for one in found.words])
        report.show(picture, output, in_terminal=show)


def _document(found: Evidence, output: Path) -> dict[str, object]:
    return {
        "query": found.query,
        "page_id": found.page_id,
        "source": found.source,
        "sources": list(found.sources),
        "word": None if found.word is None else found.word.index,
        "words": [{"text": one.text, "index": one.index} for one in found.words],
        "grid": list(found.heat.shape),
        "heat": [round(value, 4) for value in found.heat.ravel().tolist()],
        "kept": found.kept.ravel().tolist(),
        "picture": str(output),
    }
