"""``mmrr mine``: pairs to train on, out of an indexed workspace and judgements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmrr.config import Machine, Mine

from . import options as o
from .session import open_context, search_options
from .show import emit, note, pairs, progress

_MINE = Mine()


def mine(
    queries: Annotated[Path, typer.Option(help="JSONL: query_id, text, perhaps doc_id.")],
    qrels: Annotated[Path, typer.Option(help="TREC judgements: query_id 0 page_id relevance.")],
    out: Annotated[Path, typer.Option(help="Folder for pairs.jsonl and the page images it names.")],
    work: o.Work = o.WORK,
    negatives: Annotated[
        int, typer.Option(min=0, help="Hard negatives a query: pages that the first stage finds and that are wrong.")
    ] = _MINE.negatives,
    top_k: Annotated[int, typer.Option(min=1, help="Candidates that hard negatives are drawn from.")] = _MINE.top_k,
    skip: Annotated[
        int,
        typer.Option(min=0, help="Pass over this many of the best wrong candidates: unjudged pages may be right."),
    ] = _MINE.skip,
    random: Annotated[int, typer.Option(min=0, help="Random negatives a query, from all pages.")] = _MINE.random,
    seed: Annotated[int, typer.Option(help="Another number, other negatives.")] = _MINE.seed,
    first_stage: o.FirstStageOption = None,
    scope: o.ScopeOption = o.RETRIEVE.scope,
    search_option: o.SearchOptions = None,
    from_: o.From = None,
    json_: o.Json = False,
    device: o.Device = o.MACHINE.device,
) -> None:
    """Make pairs for mmrr train: relevant pages, hard negatives, random ones.

    Hard negatives are what the first stage finds and the judgements do not call
    relevant. --first-stage dense: by the index's embedder alone.
    """
    with open_context(work, Machine(device), from_) as session:
        from mmrr import pipeline
        from mmrr.errors import MmrrError
        from mmrr.evaluation.trec import read_qrels, read_queries
        from mmrr.training.data import hard_negatives as mining

        options = Mine(negatives, top_k, skip, random, seed)
        mining.check(options)
        if out.exists() and not out.is_dir():
            raise MmrrError(f"--out {out} is a file; expected a folder")
        asked, judged = read_queries(queries), read_qrels(qrels)
        found = pipeline.search(session, asked, search_options(first_stage, scope, top_k), pairs(search_option))
        mined = mining.mine(found.collection, asked, found.first, judged, options)
        path = mining.write(session.workspace, mined, out, progress)
        counts = {
            "relevant": sum(len(one.relevant) for one in mined.queries),
            "hard": sum(len(one.hard) for one in mined.queries),
            "random": sum(len(one.random) for one in mined.queries),
        }
        if json_:
            left_out = {"queries_without_a_relevant_page": mined.unjudged, "pages_not_in_the_index": mined.unknown}
            emit({"pairs": str(path), "queries": len(mined.queries), **counts, **left_out})
            return
        if mined.unjudged:
            note(f"{len(mined.unjudged)} queries have no relevant page in the index and are left out")
        if mined.unknown:
            note(f"{len(mined.unknown)} relevant pages are not in the index: {', '.join(mined.unknown[:3])}")
        short = sum(len(one.hard) < negatives for one in mined.queries)
        if short:
            note(f"{short} queries have fewer than {negatives} hard negatives: the first stage found no more")
        note(f"{len(mined.queries)} queries: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()))
        typer.echo(path)
