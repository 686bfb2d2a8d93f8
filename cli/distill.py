"""``mmrr distill``: a teacher's ranking as training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from mmrr.config import Machine, Rerank, Retrieve
from mmrr.errors import MmrrError

from . import options as o
from .candidates import pages_of
from .context import open_context, pairs
from .progress import progress
from .terminal import counted, emit, note


# One parameter per option.
def distill(
    output: Annotated[Path, typer.Option("--output", help="Folder for lists.jsonl, pairs.jsonl and their images.")],
    queries: o.RequiredQueries,
    run_file: Annotated[
        Optional[Path],
        typer.Option("--run", help="The teacher's TREC run. Default: search and rerank with the current caches."),
    ] = None,
    work: o.Work = o.WORK,
    length: Annotated[int, typer.Option("--length", min=1, help="The teacher's best pages of a query.")] = 20,
    temperature: Annotated[float, typer.Option("--temperature", help="The teacher's scores are divided by it.")] = 1.0,
    softmax: Annotated[
        bool,
        typer.Option(
            "--softmax",
            help="For scores that are no logits (MaxSim, BM25): relative to the best page of a list. "
            "Default: the sigmoid of the score.",
        ),
    ] = False,
    negatives: Annotated[
        int, typer.Option("--negatives", min=0, help="Random pages a query that the teacher did not rank.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Random seed. The same seed gives the same output.")] = 0,
    first_stage: o.FirstStageOption = None,
    scope: o.ScopeOption = o.RETRIEVE.scope,
    from_: o.From = None,
    json_: o.Json = False,
    device: o.Device = o.MACHINE.device,
) -> None:
    """Make training data from a teacher's ranking.

    Writes lists.jsonl, which `mmrr train reranker` with scorer = "ziprerank" takes as `lists`, and pairs.jsonl with a
    probability for each page, which the miniReranker training takes as `pairs`. The teacher is a run of any system, or
    the scorer of the last mmrr precache.

    Example: `mmrr distill --queries train.jsonl --run teacher.trec --output distilled`
    """
    if not 0 < temperature < float("inf"):
        raise MmrrError(f"--temperature {temperature:g}: expected a number above 0")
    if output.exists() and not output.is_dir():
        raise MmrrError(f"--output {output} is a file; expected a folder")
    with open_context(work, Machine(device), from_, ("index", "precache"), reading=True) as context:
        from mmrr import pipeline
        from mmrr.evaluation.trec import read_queries, read_run
        from mmrr.training.data import distillation

        query_list = read_queries(queries)
        if run_file:
            collection, run = pages_of(context, run_file), read_run(run_file)
        else:
            ranking = pipeline.search(context, query_list, Retrieve(first_stage, scope, length), pairs(None))
            ranking = pipeline.rerank_run(context, ranking, Rerank(), {})
            if ranking.final is None:
                raise MmrrError("the reranking has no run")
            collection, run = ranking.collection, ranking.final
        options = distillation.Distill(length, temperature, softmax, negatives, seed)
        found = distillation.distill(collection, query_list, run, options)
        lists, file = distillation.write(context.workspace, found, output, progress)
    n_pages = sum(len(one.pages) for one in found.lists)
    if json_:
        counts = {"queries": len(found.lists), "pages": n_pages, "queries_left_out": found.short}
        emit({"lists": str(lists), "pairs": str(file), **counts})
        return
    if found.short:
        note(f"{counted(len(found.short), 'query', 'queries')} left out: fewer than two different pages")
    note(f"{counted(len(found.lists), 'query', 'queries')}, {counted(n_pages, 'page')}")
    typer.echo(lists)
    typer.echo(file)
