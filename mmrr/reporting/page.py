"""Draws a report as one HTML file. Queries, page text and names are data: the template escapes all of them.

The file loads nothing. Its Content-Security-Policy allows its own style and script by their hashes, and images inside
the file.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2

from mmrr.context import Context
from mmrr.evaluation import tables
from mmrr.evaluation.comparison import SIGNIFICANT, Against
from mmrr.reporting.gather import Asked, Report, gather
from mmrr.reporting.plot import Plot, Point, amount, gains, scatter
from mmrr.workspace.files import write_atomically

_CHANGED = 0.0005  # a smaller difference prints as 0.000


def write(context: Context, asked: Asked, output: Path) -> tuple[Report, int]:
    """Write a report to a file. Returns what it shows and its bytes. Raises MmrrError as ``gather`` does."""
    report = gather(context, asked)
    text = html(report).encode("utf-8", "replace")
    write_atomically(output, text)
    return report, len(text)


def html(report: Report) -> str:
    """The report as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mmrr.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"amount": amount, "number": tables.number, "interval": tables.interval}
    environment.filters["p"] = tables.p_value
    style, script = (_source(environment, name) for name in ("report.css", "report.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    numbers = {one.label: number for number, one in enumerate(report.runs, 1)}
    values = {
        "report": report,
        "compared": report.comparison,
        "policy": policy,
        "style": style,
        "script": script,
        "numbers": numbers,
        "plots": _plots(report, numbers),
        "bars": _bars(report),
        "verdict": _verdict(report),
        "means": tables.means(report.comparison),
        "groups": tables.groups(report.comparison),
        "about": tables.about(report.comparison),
        "against": report.comparison.against.get(report.subject, {}).get(report.measure),
    }
    return environment.get_template("report.html").render(values)


def _plots(report: Report, numbers: dict[str, int]) -> list[tuple[Plot | None, str, list[str]]]:
    """Each plot with its name, and for each run without a cost the reason."""
    kinds = (("bytes a page", "bytes"), ("milliseconds a query", "ms"))
    found = []
    for name, unit in kinds:
        points, reasons = [], []
        for one in report.runs:
            value = report.comparison.evaluations[one.label].mean[report.measure]
            low, high = report.comparison.intervals[one.label][report.measure]
            cost, reason = (one.page_bytes, one.no_bytes) if unit == "bytes" else (one.query_ms, one.no_ms)
            points.append(Point(numbers[one.label], one.label, value, low, high, cost))
            reasons += [f"{numbers[one.label]} {one.label}: {reason}."] if not cost else []
        axis = f"{name} (logarithmic)"
        found.append((scatter(f"{report.measure} over {name}", axis, report.measure, points, unit), name, reasons))
    return found


def _bars(report: Report) -> Any:  # Any: None, or plot.Bars
    if not report.comparison.against:
        return None
    return gains([(row.query_id, row.difference or 0.0) for row in report.rows])


def _verdict(report: Report) -> str:
    """One sentence on the subject and the baseline in the first measure."""
    compared, measure = report.comparison, report.measure
    against = compared.against.get(report.subject, {}).get(measure)
    if against is None:
        return f"{report.subject} reaches {measure} {compared.evaluations[report.subject].mean[measure]:.3f}."
    change = against.change.difference
    if abs(change) < _CHANGED:
        return f"{report.subject} and {compared.baseline} reach the same {measure}."
    word = "higher" if change > 0 else "lower"
    than = f"{abs(change):.3f} {word} than that of {compared.baseline}"
    return f"{measure} of {report.subject} is {than}. {_chance(against)}"


def _chance(against: Against) -> str:
    p = tables.p_value(against.p_holm).replace("<", "< ") if against.p_holm < 0.001 else f"= {against.p_holm:.3f}"
    if against.significant:
        return f"A difference as large by chance is unlikely (p {p})."
    return f"A difference as large may be chance (p {p}, not below {SIGNIFICANT})."


def _source(environment: jinja2.Environment, name: str) -> str:
    assert environment.loader
    source, _, _ = environment.loader.get_source(environment, name)
    return source


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode("ascii")
