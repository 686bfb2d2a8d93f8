"""``mmrr probe``: the quality of a reranker after every layer, and the layer where query and page interact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from mmrr.config import Machine, Retrieve
from mmrr.errors import MmrrError

from . import options as o
from .context import open_context
from .progress import progress
from .terminal import check_output, emit, note, table


# One parameter per option.
def probe(
    queries: o.RequiredQueries,
    qrels: o.RequiredQrels,
    work: o.Work = o.WORK,
    scorer_model: o.ScorerModel = None,
    scorer_revision: o.ScorerRevision = None,
    candidates: Annotated[int, typer.Option("--candidates", min=2, help="First-stage pages to score.")] = 20,
    first_stage: o.FirstStageOption = None,
    scope: o.ScopeOption = o.RETRIEVE.scope,
    measure: Annotated[str, typer.Option("--measure", help="Name of a measure as ir_measures writes it.")] = "nDCG@5",
    share: Annotated[
        float, typer.Option("--share", help="Share of the last layer's quality that the exit layer must reach.")
    ] = 0.99,
    similarity: Annotated[
        float, typer.Option("--similarity", help="Cosine similarity that marks the start of the band.")
    ] = 0.95,
    output: Annotated[Optional[Path], typer.Option("--output", help="Draw both curves to this PNG file.")] = None,
    from_: o.From = None,
    json_: o.Json = False,
    device: o.Device = o.MACHINE.device,
    dtype: o.Dtype = o.DTYPE,
) -> None:
    """Measure a reranker after every layer.

    Suggests the exit layer and the band. It runs the whole model over whole pages: as slow as dense reranking, but
    each page is read once for all its queries.
    """
    if scorer_model is None:
        raise MmrrError("no reranker given; pass --scorer-model (or set MMRR_SCORER_MODEL), a local path or a Hub id")
    with open_context(work, Machine(device, dtype), from_) as context:
        from mmrr import pipeline
        from mmrr.evaluation import ids, layer_probe
        from mmrr.evaluation.trec import read_qrels, read_queries
        from mmrr.workspace.pages import read_image

        query_list, judged = read_queries(queries), read_qrels(qrels)
        check_output(output, is_picture=True)
        ids.unknown_pages(judged, context.collection(context.current("index")).row_of, str(qrels))
        found = pipeline.search(context, query_list, Retrieve(first_stage, scope, candidates), {})
        scorer = pipeline.load_scorer(context, scorer_model, scorer_revision)
        pages, rows = found.collection.pages, found.collection.row_of
        result = layer_probe.probe(
            scorer,
            lambda page_id: read_image(context.workspace, pages[rows[page_id]]),
            {query.query_id: query.text for query in query_list},
            found.first,
            progress,
        )
        values = result.values(judged, measure)
        band = layer_probe.suggest(values, result.similarity, share, similarity)
        if output:
            layer_probe.draw(values, measure, result.similarity, band, output)
        layers = list(zip(values, result.similarity, strict=True))
        suggested = f"{band[0]}:{band[1]}"
        if json_:
            documents = [{measure: value, "similarity": alike} for value, alike in layers]
            emit({"layers": documents, "band": suggested, "picture": output and str(output)})
            return
        lines = [[str(layer), f"{value:.4f}", f"{alike:.4f}"] for layer, (value, alike) in enumerate(layers, 1)]
        table("", ["layers", measure, "similarity"], lines, to_stdout=True)
        note(f"suggested: --band {suggested}")
