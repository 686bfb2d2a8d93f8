"""The stages one by one: ``mmrr render``, ``retrieve``, ``prune`` and ``fuse``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmrr.config import Machine, Prune, Render, Retrieve

from . import candidate_options as c
from . import options as o
from . import report, report_ranking
from .context import NamedPages, drawing_machine, fusion_of, open_context, pairs, queries_from
from .terminal import check_output, counted, note


# One parameter per option.
def render(
    documents: o.Documents,
    work: o.Work = o.WORK,
    replace: o.Replace = False,
    renderer: o.Renderer = o.RENDERER,
    dpi: o.Dpi = o.RENDER.dpi,
    max_tokens: o.MaxTokens = o.RENDER.max_tokens,
    ocr: o.Ocr = o.RENDER.ocr,
    ocr_language: o.OcrLanguage = o.RENDER.ocr_language,
    convert: o.Convert = o.RENDER.convert,
    password: o.Password = None,
    tiles: o.Tiles = o.RENDER.tiles,
    workers: o.Workers = o.MACHINE.workers,
    page_timeout: o.PageTimeout = o.MACHINE.page_seconds,
    page_memory: o.PageMemory = o.PAGE_MEMORY,
) -> None:
    """Render documents to page images and text.

    mmrr index does this too, and adds documents in the same way.
    """
    machine = drawing_machine(Machine(workers=workers), page_timeout, page_memory)
    with open_context(work, machine, create=True) as context:
        from mmrr import pipeline

        found = pipeline.render_documents(
            context,
            documents,
            Render(renderer, dpi, max_tokens, ocr, ocr_language, convert, password, tiles),
            replace=replace,
        )
        report.documents(found.manifest, found.changes)
        typer.echo(found.manifest.path)


# One parameter per option.
def retrieve(
    query: o.Question = None,
    query_image: o.QueryImage = None,
    queries: o.Queries = None,
    work: o.Work = o.WORK,
    output: o.RunOutput = None,
    document: c.Document = None,
    pages: c.Pages = None,
    where: c.Where = None,
    metadata: c.Metadata = None,
    top_k: o.TopK = 10,
    candidates: o.Candidates = o.RETRIEVE.depth,
    first_stage: o.FirstStageOption = None,
    channels: o.Channels = None,
    scope: o.ScopeOption = o.RETRIEVE.scope,
    search_option: o.SearchOptions = None,
    from_: o.From = None,
    json_: o.Json = False,
    device: o.Device = o.MACHINE.device,
) -> None:
    """Rank pages by the first stage only.

    Finds pages by words, by meaning, by sight, or by the sum of them. mmrr rerank does this too.
    """
    with open_context(work, Machine(device), from_, reading=True) as context:
        from mmrr import pipeline

        collection = context.collection(context.current("index"))
        named_pages = NamedPages(document, pages, where, metadata)
        doc_id, scope, within = named_pages.read(collection, scope, is_file=query is None and query_image is None)
        query_list = queries_from(query, queries, doc_id, query_image)
        check_output(output)
        how = Retrieve(first_stage, scope, candidates, fusion_of(None, channels)[1])
        ranking = pipeline.search(context, query_list, how, pairs(search_option), within=within)
        if queries:  # mmrr eval measures a file of queries, not a query from the command line
            pipeline.remember(context, ranking)
        report_ranking.ranking(
            context, ranking, report_ranking.Shown(top_k, output, as_json=json_, is_file=queries is not None)
        )


# One parameter per option.
def prune(
    work: o.Work = o.WORK,
    keep: o.PrunedShare = o.PRUNE.keep,
    by: o.By = o.PRUNE.by,
    from_: o.From = None,
) -> None:
    """Choose the visual tokens to keep.

    The next mmrr precache without --keep uses this choice. mmrr precache also chooses tokens itself.
    """
    with open_context(work, chosen=from_) as context:
        from mmrr import pipeline

        made = pipeline.prune_pages(context, Prune(keep, by))
        pages = counted(made.content["pages"], "page")
        note(f"kept {made.content['kept']} of {made.content['tokens']} visual tokens on {pages}")
        typer.echo(made.path)


def fuse(
    first: Annotated[
        Path, typer.Argument(metavar="FIRST", help="A TREC run, for example of BM25.", show_default=False)
    ],
    second: Annotated[
        Path, typer.Argument(metavar="SECOND", help="Another TREC run, for example of a reranker.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", help="TREC run file to write.", show_default=False)],
    weight: Annotated[float, typer.Option("--weight", help="Weight of the second run; the first has weight 1.")] = 0.3,
) -> None:
    """Fuse the scores of two TREC runs.

    Score fusion: first + weight x second, both standardised per query. Text search and visual reranking make
    different errors. If pages have a text layer, a small reranker ranks best when it is added to BM25.
    """
    import io

    from mmrr.evaluation.trec import read_run, write_run
    from mmrr.search import fusion
    from mmrr.workspace.files import write_atomically

    check_output(output)
    run = fusion.fuse(read_run(first), read_run(second), weight)
    text = io.StringIO()
    write_run(run, text)
    write_atomically(output, text.getvalue())
    note(counted(len(run), "query", "queries"))
    typer.echo(output)
