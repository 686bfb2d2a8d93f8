"""``mmrr probe``: at which layer a reranker has decided, and where query and page meet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from mmrr.config import Machine
from mmrr.errors import MmrrError

from . import options as o
from .session import open_context, search_options
from .show import check_output, emit, note, pairs, progress, table


def probe(
    queries: Annotated[Path, typer.Option(help="JSONL: query_id, text, perhaps doc_id.")],
    qrels: Annotated[Path, typer.Option(help="TREC judgements: query_id 0 page_id relevance.")],
    work: o.Work = o.WORK,
    scorer_model: o.ScorerModel = None,
    scorer_revision: o.ScorerRevision = None,
    candidates: Annotated[int, typer.Option(min=2, help="Pages of the first stage that are scored.")] = 20,
    first_stage: o.FirstStageOption = None,
    scope: o.ScopeOption = o.RETRIEVE.scope,
    measure: Annotated[str, typer.Option(help="An ir_measures name.")] = "nDCG@5",
    share: Annotated[float, typer.Option(help="Of the last layer's measure, that the exit is to reach.")] = 0.99,
    alike: Annotated[float, typer.Option(help="Similarity below which query and page have met.")] = 0.95,
    output: Annotated[Optional[Path], typer.Option(help="Draw both curves here, as PNG.")] = None,
    from_: o.From = None,
    json_: o.Json = False,
    device: o.Device = o.MACHINE.device,
    dtype: o.Dtype = o.MACHINE.dtype,
) -> None:
    """Measure a reranker behind every layer, and suggest exit and band.

    The whole model over every page, nothing cut: as slow as dense reranking,
    but each page is read once for all its queries.
    """
    with open_context(work, Machine(device, dtype), from_) as session:
        from mmrr import pipeline
        from mmrr.evaluation import layer_probe as probing
        from mmrr.evaluation.trec import read_qrels, read_queries
        from mmrr.workspace.pages import read_image

        if scorer_model is None:
            raise MmrrError("which reranker? pass --scorer-model (or set MMRR_SCORER_MODEL): a local path or a Hub id")
        asked, judged = read_queries(queries), read_qrels(qrels)
        check_output(output)
        found = pipeline.search(session, asked, search_options(first_stage, scope, candidates), pairs(None))
        scorer = pipeline.load_scorer(session, scorer_model, scorer_revision)
        rows = found.collection.row_of
        pages = found.collection.pages
        result = probing.probe(
            scorer,
            lambda page_id: read_image(session.workspace, pages[rows[page_id]]),
            {query.query_id: query.text for query in asked},
            found.first,
            progress,
        )
        values = result.values(judged, measure)
        band = probing.suggest(values, result.similarity, share, alike)
        if output:
            probing.draw(values, measure, result.similarity, band, output)
        if json_:
            layers = [{measure: v, "similarity": s} for v, s in zip(values, result.similarity, strict=True)]
            emit({"layers": layers, "band": f"{band[0]}:{band[1]}", "picture": output and str(output)})
            return
        lines = [
            [str(layer), f"{value:.4f}", f"{alike_:.4f}"]
            for layer, (value, alike_) in enumerate(zip(values, result.similarity, strict=True), 1)
        ]
        table("", ["layers run", measure, "similarity"], lines, to_stdout=True)
        note(f"suggested: --band {band[0]}:{band[1]}")
