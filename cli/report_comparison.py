"""Shows a comparison of runs as tables, and writes it to files: CSV, LaTeX, Markdown. Declares these options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .terminal import check_output, note, table

if TYPE_CHECKING:
    from mmrr.evaluation.comparison import Comparison

_PANEL = "Files"
Csv = Annotated[
    Optional[Path],
    typer.Option("--csv", help="Write the measures, intervals and tests to this CSV file.", rich_help_panel=_PANEL),
]
Latex = Annotated[
    Optional[Path],
    typer.Option("--latex", help="Write the tables to this file for LaTeX (booktabs).", rich_help_panel=_PANEL),
]
Markdown = Annotated[
    Optional[Path],
    typer.Option("--markdown", help="Write the tables to this Markdown file.", rich_help_panel=_PANEL),
]


@dataclass(frozen=True)
class TableFiles:
    """The files that the tables of a comparison are written to."""

    csv: Path | None = None
    latex: Path | None = None
    markdown: Path | None = None

    def check(self) -> None:
        """Raise MmrrError, before the work starts, for a file that cannot be written."""
        for name in ("csv", "latex", "markdown"):
            check_output(getattr(self, name), option=f"--{name}")

    def write(self, compared: Comparison) -> None:
        """Write the files that were named."""
        from mmrr.evaluation import tables
        from mmrr.workspace.files import write_atomically

        forms = ((self.csv, tables.csv_text), (self.latex, tables.latex_text), (self.markdown, tables.markdown_text))
        for path, text_of in forms:
            if path:
                write_atomically(path, text_of(compared))


def comparison(compared: Comparison, title: str) -> None:
    """Show runs that are compared with a baseline: means, differences and tests."""
    from mmrr.evaluation import tables

    means = tables.means(compared)
    table(f"{title}; tau: Kendall's, with {compared.baseline}", means.columns, means.rows, to_stdout=True)
    against = tables.differences(compared)
    table(against.title, against.columns, against.rows, to_stdout=True)
    groups(compared)
    note(tables.about(compared))


def groups(compared: Comparison) -> None:
    """Show the first measure by domain and by language, where the queries have these fields."""
    from mmrr.evaluation import tables

    for one in tables.groups(compared):
        table(one.title, one.columns, one.rows, to_stdout=True)
