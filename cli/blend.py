"""``mmrr blend``: two runs made one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .show import check_output, note, plain_errors


def blend(
    first: Annotated[Path, typer.Argument(help="A TREC run, such as BM25's.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Another, such as a reranker's over it.", show_default=False)],
    output: Annotated[Path, typer.Option(help="Where the run goes.", show_default=False)],
    weight: Annotated[float, typer.Option(help="Of the second run beside the first.")] = 0.3,
) -> None:
    """Add up what two rankings say of each page.

    Scores are standardised per query. Words and sight err in different places,
    so where pages have a text layer a small reranker is best added to BM25.
    """
    with plain_errors():
        import io

        from mmrr.evaluation.trec import read_run, write_run
        from mmrr.search import fusion as blending
        from mmrr.workspace.files import write_atomically

        check_output(output)
        run = blending.fuse(read_run(first), read_run(second), weight)
        text = io.StringIO()
        write_run(run, text)
        write_atomically(output, text.getvalue())
        note(f"{len(run)} queries")
        typer.echo(output)
