"""``mmrr mine`` and ``mmrr draw``: make data for training and for measuring it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from mmrr.config import Machine, Mine, Retrieve
from mmrr.errors import MmrrError

from . import options as o
from .context import open_context, pairs
from .progress import progress
from .terminal import counted, emit, note

if TYPE_CHECKING:
    from mmrr.training.data.hard_negatives import MiningResult
    from mmrr.training.synthetic.benchmark import Benchmark

_MINE = Mine()
_SEED = "Random seed. The same seed gives the same output."


# One parameter per option.
def mine(
    output: Annotated[Path, typer.Option("--output", help="Folder for pairs.jsonl and the page images it names.")],
    queries: o.Queries = None,
    qrels: o.Qrels = None,
    data: Annotated[
        Optional[str],
        typer.Option(
            "--data",
            metavar="HUB_ID|FOLDER",
            help="Write a published training set as pairs or ranked lists, without a workspace: rows of query and "
            "image, MMDocIR's training set, RankZephyr's conversations, or ZipRerank's distillation set.",
        ),
    ] = None,
    split: Annotated[
        Optional[str], typer.Option("--split", help="With --data: its split, or the parts of MMDocIR's training set.")
    ] = None,
    limit: Annotated[Optional[int], typer.Option("--limit", min=1, help="With --data: the first queries only.")] = None,
    work: o.Work = o.WORK,
    negatives: Annotated[
        int,
        typer.Option(
            "--negatives", min=0, help="Hard negatives per query: wrong pages among the first-stage candidates."
        ),
    ] = _MINE.negatives,
    top_k: Annotated[
        int, typer.Option("--top-k", min=1, help="First-stage candidates to sample hard negatives from.")
    ] = _MINE.top_k,
    skip: Annotated[
        int,
        typer.Option("--skip", min=0, help="Leave out the best wrong candidates: unjudged pages may be relevant."),
    ] = _MINE.skip,
    random: Annotated[
        int, typer.Option("--random", min=0, help="Random negatives per query, from all pages.")
    ] = _MINE.random,
    seed: Annotated[int, typer.Option("--seed", help=_SEED)] = _MINE.seed,
    first_stage: o.FirstStageOption = None,
    scope: o.ScopeOption = o.RETRIEVE.scope,
    search_option: o.SearchOptions = None,
    from_: o.From = None,
    json_: o.Json = False,
    device: o.Device = o.MACHINE.device,
) -> None:
    """Make training pairs from judgements or a published set.

    Writes relevant pages, hard negatives and random negatives for mmrr train. A hard negative is a page that the
    first stage finds and the judgements do not call relevant. With --first-stage sight, only the index's embedder
    finds them.

    Example: `mmrr mine --data vidore/colpali_train_set --limit 1000 --output pairs`
    """
    if data is not None:
        if queries or qrels:
            raise MmrrError("--data and --queries exclude each other: a published set has its own queries")
        _published(data, split or "", (limit or 0, random, seed), output, as_json=json_)
        return
    if queries is None or qrels is None:
        raise MmrrError("expected --queries and --qrels, or --data HUB_ID")
    if split or limit:
        raise MmrrError("--split and --limit are of a published set: pass --data")
    with open_context(work, Machine(device), from_) as context:
        from mmrr import pipeline
        from mmrr.evaluation.trec import read_qrels, read_queries
        from mmrr.training.data import hard_negatives

        options = Mine(negatives, top_k, skip, random, seed)
        hard_negatives.check(options)
        if output.exists() and not output.is_dir():
            raise MmrrError(f"--output {output} is a file; expected a folder")
        query_list, judged = read_queries(queries), read_qrels(qrels)
        found = pipeline.search(context, query_list, Retrieve(first_stage, scope, top_k), pairs(search_option))
        mined = hard_negatives.mine(found.collection, query_list, found.first, judged, options)
        path = hard_negatives.write(context.workspace, mined, output, progress)
        _report_mined(mined, path, negatives, as_json=json_)


def _published(data: str, split: str, numbers: tuple[int, int, int], output: Path, *, as_json: bool) -> None:
    """Write a published set. ``numbers``: queries, random wrong pages a query, and the seed."""
    from mmrr.training.data.published_sets import Request, is_published, prepare

    if not is_published(data):
        raise MmrrError(f"--data {data}: expected a Hub id such as owner/name, or a folder")
    if output.exists() and not output.is_dir():
        raise MmrrError(f"--output {output} is a file; expected a folder")
    path = prepare(Request(data, split, *numbers), output, note)
    if as_json:
        with path.open(encoding="utf-8") as file:
            emit({path.stem: str(path), "lines": sum(1 for _ in file)})
        return
    typer.echo(path)


def _report_mined(mined: MiningResult, path: Path, negatives: int, *, as_json: bool) -> None:
    counts = {
        "relevant": sum(len(one.relevant) for one in mined.queries),
        "hard": sum(len(one.hard) for one in mined.queries),
        "random": sum(len(one.random) for one in mined.queries),
    }
    if as_json:
        left_out = {"queries_without_a_relevant_page": mined.unjudged, "pages_not_in_the_index": mined.unknown}
        emit({"pairs": str(path), "queries": len(mined.queries), **counts, **left_out})
        return
    if mined.unjudged:
        note(f"{counted(len(mined.unjudged), 'query', 'queries')} left out: no relevant page in the index")
    if mined.unknown:
        note(f"{counted(len(mined.unknown), 'relevant page')} not in the index: {', '.join(mined.unknown[:3])}")
    short = sum(len(one.hard) < negatives for one in mined.queries)
    if short:
        queries, hard = counted(short, "query", "queries"), counted(negatives, "hard negative")
        note(f"{queries} with fewer than {hard}: the first stage found no more")
    kinds = ", ".join(f"{n} {kind}" for kind, n in counts.items())
    note(f"{counted(len(mined.queries), 'query', 'queries')}: {kinds}")
    typer.echo(path)


# One parameter per option.
def draw(
    documents: Annotated[
        list[Path],
        typer.Argument(
            metavar="TEXTS", help="Texts as JSON Lines, plain or .gz; see docs/training.md.", show_default=False
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", help="A new or empty folder for the benchmark.", show_default=False)
    ],
    pages: Annotated[int, typer.Option("--pages", min=1, help="Pages to draw.")] = 200,
    questions: Annotated[int, typer.Option("--questions", min=0, help="Most questions, taken from the texts.")] = 300,
    phrases: Annotated[
        int, typer.Option("--phrases", min=0, help="Most phrase queries. A phrase is on one page only.")
    ] = 300,
    seed: Annotated[int, typer.Option("--seed", help=_SEED)] = 0,
    held_out: Annotated[
        float,
        typer.Option(
            "--held-out",
            min=0,
            max=1,
            help="Use only this share of the texts, the one that training leaves out. 0: all texts.",
        ),
    ] = 0.0,
    json_: o.Json = False,
) -> None:
    """Make a benchmark from texts.

    Draws PDF pages without a text layer, and writes queries and the pages that answer them.
    """
    from mmrr.training.synthetic.benchmark import BenchmarkSize, draw_benchmark
    from mmrr.training.synthetic.sources import read_documents, split

    texts = [text for path in documents for text in read_documents(path)]
    if held_out:
        _, texts = split(texts, held_out)
        if not texts:
            raise MmrrError(f"--held-out {held_out:g} selects no document; expected a larger share")
    wanted = {"questions": questions, "phrases": phrases}
    try:
        with progress("drawing", pages) as advance:
            drawn = draw_benchmark(texts, output, BenchmarkSize(pages, **wanted), seed=seed, advance=advance)
    except KeyboardInterrupt as error:
        note("stopped; nothing was written")
        raise typer.Exit(130) from error
    _report_drawn(drawn, wanted, as_json=json_)


def _report_drawn(drawn: Benchmark, wanted: dict[str, int], *, as_json: bool) -> None:
    found = {"questions": drawn.questions, "phrases": drawn.phrases}
    if as_json:
        emit({"folder": str(drawn.folder), "documents": drawn.documents, "pages": drawn.pages, **found})
        return
    for kind, n in found.items():
        if n < wanted[kind]:
            note(f"{n} of the {wanted[kind]} {kind} asked for: these pages contain no more")
    note(
        f"{counted(drawn.pages, 'page')} in {counted(drawn.documents, 'PDF')}, "
        f"{counted(drawn.questions, 'question')}, {counted(drawn.phrases, 'phrase')}"
    )
    typer.echo(drawn.folder)
