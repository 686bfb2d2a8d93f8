"""``mmrr draw``: a retrieval benchmark out of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmrr.errors import MmrrError

from . import options as o
from .show import emit, note, plain_errors, progress


def draw(
    documents: Annotated[
        list[Path], typer.Argument(help="Texts as JSON Lines, plain or .gz; see docs/training.md.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="A new or empty folder for the benchmark.", show_default=False)],
    pages: Annotated[int, typer.Option(min=1, help="Pages to draw.")] = 200,
    questions: Annotated[int, typer.Option(min=0, help="The documents' own questions to ask, at most.")] = 300,
    phrases: Annotated[int, typer.Option(min=0, help="Phrases of one page alone to look for, at most.")] = 300,
    seed: Annotated[int, typer.Option(help="Another number, other pages and queries.")] = 0,
    held_out: Annotated[
        float,
        typer.Option(min=0, max=1, help="Draw only this share of the texts, the one training leaves out; 0: all."),
    ] = 0.0,
    json_: o.Json = False,
) -> None:
    """Make a benchmark out of texts: pages drawn as PDFs without a text layer, queries, and the pages that answer."""
    with plain_errors():
        from mmrr.training.synthetic.benchmark import BenchmarkSize, draw_benchmark
        from mmrr.training.synthetic.sources import read_documents, split

        texts = [text for path in documents for text in read_documents(path)]
        if held_out:
            _, texts = split(texts, held_out)
            if not texts:
                raise MmrrError(f"--held-out {held_out:g} holds none of the documents out; expected a larger share")
        try:
            with progress("drawing", pages) as advance:
                size = BenchmarkSize(pages, questions, phrases)
                made = draw_benchmark(texts, out, size, seed=seed, advance=advance)
        except KeyboardInterrupt as error:
            note("stopped; nothing was written")
            raise typer.Exit(130) from error
        if json_:
            counts = {"documents": made.documents, "pages": made.pages}
            emit({"folder": str(made.folder), **counts, "questions": made.questions, "phrases": made.phrases})
            return
        for kind, found, wanted in (("questions", made.questions, questions), ("phrases", made.phrases, phrases)):
            if found < wanted:
                note(f"{found} of the {wanted} {kind} asked for: these pages give no more")
        note(f"{made.pages} pages in {made.documents} PDFs, {made.questions} questions, {made.phrases} phrases")
        typer.echo(made.folder)
