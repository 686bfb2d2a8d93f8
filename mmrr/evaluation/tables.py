"""A comparison of runs as CSV, Markdown and LaTeX. Names of runs, domains and languages are data and are escaped."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmrr.evaluation.comparison import EXACT, PERMUTATIONS, Comparison

#: How a run that differs from the baseline is marked: a corrected p below 0.05.
MARK = "*"
_CSV = (
    *("field", "group", "queries", "run", "measure", "value", "low", "high", "difference", "difference_low"),
    *("difference_high", "p", "p_holm", "exact", "wins", "ties", "losses", "kendall_tau"),
)
_LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}
#: A spreadsheet reads a cell that begins so as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Table:
    """A table of texts. The first column holds names, the others numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    best: set[tuple[int, int]]  # (row, column) of the highest value of each measure


def about(compared: Comparison) -> str:
    """One sentence on what the numbers are."""
    return (
        f"{compared.queries} judged queries of {compared.documents} documents. Intervals: 95 %, bootstrap over "
        f"documents. p: two-sided paired randomisation test over queries against {compared.baseline} (exact up to "
        f"{EXACT} queries that differ, else {PERMUTATIONS:,} permutations), with Holm's correction over the other runs "
        f"in each measure. {MARK}: corrected p below 0.05."
    )


def means(compared: Comparison) -> Table:
    """A run a row, a measure a column, and Kendall's tau with the baseline."""
    rows = []
    for run, found in compared.evaluations.items():
        against = compared.against.get(run, {})
        marks = {measure: MARK if measure in against and against[measure].significant else "" for measure in found.mean}
        tau = "" if run == compared.baseline else number(compared.taus[run][compared.baseline], ".3f")
        rows.append([run, *(f"{value:.4f}{marks[measure]}" for measure, value in found.mean.items()), tau])
    if len(rows) == 1:
        rows[0].pop()
    columns = ["run", *compared.measures, *["tau"] * (len(rows) > 1)]
    values = [[found.mean[measure] for measure in compared.measures] for found in compared.evaluations.values()]
    return Table("Means", columns, rows, _best(values))


def differences(compared: Comparison) -> Table:
    """A measure and a run a row: value and difference with intervals, test, wins, ties and losses."""
    rows = []
    for measure in compared.measures:
        for run, against in compared.against.items():
            one, value = against[measure], compared.evaluations[run].mean[measure]
            rows.append(
                [
                    f"{measure}, {run}",
                    f"{value:.3f} ({interval(compared.intervals[run][measure], '.3f')})",
                    f"{one.change.difference:+.3f} ({interval(one.change.difference_interval, '+.3f')})",
                    p_value(one.test.p),
                    p_value(one.p_holm),
                    f"{one.test.wins}/{one.test.ties}/{one.test.losses}",
                ]
            )
    columns = ["measure, run", "mean (95 %)", "difference (95 %)", "p", "p (Holm)", "win/tie/loss"]
    return Table(f"Against {compared.baseline}", columns, rows, set())


def groups(compared: Comparison, measure: str | None = None) -> list[Table]:
    """For each field a table: a group a row, a run a column, in one measure (default: the first)."""
    measure = measure or compared.measures[0]
    found = []
    for field in dict.fromkeys(group.field for group in compared.groups):
        own = [group for group in compared.groups if group.field == field]
        values = [[group.means[run][measure] for run in compared.evaluations] for group in own]
        rows = [
            [group.name, str(group.queries), *(f"{value:.4f}" for value in row)]
            for group, row in zip(own, values, strict=True)
        ]
        across = {(row, 2 + column) for row, line in enumerate(values) for column in _highest(line)}
        columns = [field, "queries", *compared.evaluations]
        found.append(Table(f"{measure} by {field}", columns, rows, across))
    return found


def csv_text(compared: Comparison) -> str:
    """One line a run and measure over all queries, then one a group, run and measure."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV, restval="", lineterminator="\n")
    writer.writeheader()
    for run, found in compared.evaluations.items():
        for measure, value in found.mean.items():
            row: dict[str, object] = {"run": _cell(run), "measure": measure, "queries": compared.queries}
            row["value"], (row["low"], row["high"]) = value, compared.intervals[run][measure]
            if run in compared.against:
                one = compared.against[run][measure]
                row["difference"] = one.change.difference
                row["difference_low"], row["difference_high"] = one.change.difference_interval
                row |= {"p": one.test.p, "p_holm": one.p_holm, "exact": str(one.test.exact).lower()}
                row |= {"wins": one.test.wins, "ties": one.test.ties, "losses": one.test.losses}
                tau = compared.taus[run][compared.baseline]
                row["kendall_tau"] = "" if math.isnan(tau) else tau
            writer.writerow(row)
    for group in compared.groups:
        for run, values in group.means.items():
            for measure, value in values.items():
                row = {"field": group.field, "group": _cell(group.name), "queries": group.queries}
                writer.writerow(row | {"run": _cell(run), "measure": measure, "value": value})
    return text.getvalue()


def markdown_text(compared: Comparison) -> str:
    """Tables for a README or an issue. The highest value of each measure is bold."""
    parts = [about(compared)]
    for table in _tables(compared):
        lines = [_markdown_row(table.columns), _markdown_row(["---", *["---:"] * (len(table.columns) - 1)])]
        for i, row in enumerate(table.rows):
            cells = [_markdown_cell(cell) for cell in row]
            lines.append(_markdown_row([f"**{c}**" if (i, j) in table.best else c for j, c in enumerate(cells)], True))
        parts += [f"### {_markdown_cell(table.title)}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def latex_text(compared: Comparison) -> str:
    """Tables for a paper, with the rules of the package booktabs. The highest value of each measure is bold."""
    parts = [f"% {' '.join(about(compared).split())}\n% Needs \\usepackage{{booktabs}}."]
    for table in _tables(compared):
        lines = [
            f"% {' '.join(table.title.split())}",
            f"\\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            "\\toprule",
            " & ".join(map(latex, table.columns)) + r" \\",
            "\\midrule",
        ]
        for i, row in enumerate(table.rows):
            cells = [f"\\textbf{{{latex(c)}}}" if (i, j) in table.best else latex(c) for j, c in enumerate(row)]
            lines.append(" & ".join(cells) + r" \\")
        parts.append("\n".join([*lines, "\\bottomrule", "\\end{tabular}"]))
    return "\n\n".join(parts) + "\n"


def latex(text: str) -> str:
    """A text on one line, with the characters that LaTeX would read as commands escaped."""
    return "".join(_LATEX.get(char, char) for char in " ".join(text.split()))


def number(value: float, form: str) -> str:
    """A number in a form; a dash for what is not a number."""
    return "-" if math.isnan(value) else format(value, form)


def interval(ends: Sequence[float], form: str) -> str:
    """The two ends of an interval."""
    return " to ".join(number(end, form) for end in ends)


def p_value(p: float) -> str:
    """A p-value to three places, and "<0.001" below."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _tables(compared: Comparison) -> Iterator[Table]:
    yield means(compared)
    if compared.against:
        yield differences(compared)
    yield from groups(compared)


def _best(values: list[list[float]]) -> set[tuple[int, int]]:
    if len(values) < 2:
        return set()
    return {(row, 1 + column) for column, line in enumerate(zip(*values, strict=True)) for row in _highest(line)}


def _highest(line: Sequence[float]) -> list[int]:
    """The places of the highest value; none if all are equal."""
    return [i for i, value in enumerate(line) if value == max(line)] if max(line) > min(line) else []


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _markdown_cell(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]#])", r"\\\1", " ".join(text.split()))


def _markdown_row(cells: Sequence[str], escaped: bool = False) -> str:
    return "| " + " | ".join(cells if escaped else map(_markdown_cell, cells)) + " |"
