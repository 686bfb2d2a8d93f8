"""Shows rankings, their measures, and the pages they come from: as tables or as JSON."""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .terminal import counted, emit, note, size, table

if TYPE_CHECKING:
    from PIL import Image

    from mmrr.context import Context
    from mmrr.experiments import BenchmarkResult, Line
    from mmrr.pipeline import Judgement
    from mmrr.stages.precache import Plan
    from mmrr.workspace.changes import Changes
    from mmrr.workspace.store import Manifest

#: Most documents or queries that are listed.
MOST_LISTED = 20
#: Of the files that are no documents: most reasons that are listed.
_MOST_REASONS = 8
#: Names or ids that a note names.
_MOST_NAMED = 3
#: Entries of the metrics that are no run.
_COMPARISONS = ("difference", "interval", "kept", "kept_interval", "kendall_tau")


def documents(pages: Manifest, changes: Changes) -> None:
    """Count changes, documents and pages, and name each document that could not be read completely."""
    from mmrr.documents import page_notes
    from mmrr.workspace.pages import complaint

    entries = pages.content["documents"]
    bad = [entry for entry in entries if entry["status"] != "ok"]
    for entry in bad[:MOST_LISTED]:
        note(f"  {complaint(entry)}")
    if len(bad) > MOST_LISTED:
        note(f"  ... and {len(bad) - MOST_LISTED} more; see: mmrr ls --documents")
    statuses = Counter(entry["status"] for entry in entries)
    counts = ", ".join(
        f"{statuses[status]} {status}" for status in sorted(statuses, key=lambda name: (name != "ok", name))
    )
    read, without = (pages.content.get(name, 0) for name in ("by_ocr", "without_text"))
    texts = ", ".join([f"{read} read by OCR"] * (read > 0) + [f"{without} without text"] * (without > 0))
    read_pages = f"{counted(pages.content['pages'], 'page')} of {counted(len(entries), 'document')} ({counts})"
    noted: Counter[str] = Counter()
    for entry in entries:
        noted.update({code: len(numbers) for code, numbers in entry.get("notes", {}).items()})
    clauses = [f"{counted(len(entries), 'document')}: {changes}", read_pages, texts, *page_notes.summary(noted)]
    note("; ".join(filter(None, clauses)))
    if noted:
        note("mmrr ls --documents lists these pages")
    skipped(pages)


def skipped(pages: Manifest) -> None:
    """Count the files of the named folders that are no documents, by reason, with the first names."""
    from mmrr.workspace import changes

    names: dict[str, list[str]] = {}
    for name, reason in changes.skipped_names(pages):
        names.setdefault(reason, []).append(name)
    parts = []
    for reason, files in sorted(names.items(), key=lambda item: -len(item[1])):
        shown = ", ".join(files[:_MOST_NAMED]) + (", ..." if len(files) > _MOST_NAMED else "")
        if reason.startswith("unsupported: "):
            suffix, _, remedy = reason.removeprefix("unsupported: ").partition("; ")
            parts.append(f"{len(files)} {suffix} ({'; '.join(filter(None, [shown, remedy]))})")
        else:
            parts.append(f"{shown} ({reason})")
    parts = parts[:_MOST_REASONS] + ["..."] * (len(parts) > _MOST_REASONS)
    hidden = sum(changes.skipped(pages)["hidden"].values())
    parts += [f"{hidden} hidden"] * (hidden > 0)
    if parts:
        note(f"skipped: {', '.join(parts)}; see: mmrr ls --documents")


def plan(plan: Plan) -> None:
    """Say what precache will write, before it starts."""
    most = "at most " if plan.is_upper_bound else ""
    note(
        f"{counted(plan.pages, 'page')}, {plan.missing} to read; {most}{size(plan.page_bytes)} a page, "
        f"{most}{size(plan.total_bytes)} in total, {size(plan.free_bytes)} free"
    )


def without_text(context: Context, cached: Manifest) -> None:
    """Say how many pages have no text for a scorer that reads text."""
    without = cached.content.get("without_text", 0)
    if without:
        by_ocr = "ocr" in context.collection(cached).manifest.config
        remedy = "OCR found none on them" if by_ocr else "mmrr index --ocr auto reads it from their images"
        note(f"{without} of {cached.content['pages']} pages have no text for the scorer to read; {remedy}")


def path_of(manifest: Manifest) -> str | None:
    """The folder of an artifact; None if it goes with the command, because the workspace cannot be written."""
    return str(manifest.path) if manifest.kept else None


def picture(image: Image.Image, output: Path) -> None:
    """Write a PNG file completely or not at all."""
    from mmrr.workspace.files import write_atomically

    data = io.BytesIO()
    image.save(data, "png")
    write_atomically(output, data.getvalue())


def show(image: Image.Image, output: Path, *, in_terminal: bool) -> None:
    """The picture in the terminal, where it is asked for and can be shown, and the path of its file on one line."""
    if in_terminal:
        from . import graphics

        graphics.show(image)
    typer.echo(output)


def evaluation(judgement: Judgement, *, as_json: bool) -> None:
    """Show the measures of one run, or of two runs with their difference and its bootstrap intervals."""
    judged = judgement.metrics
    _count_in_vain("judged page", "not in the index and", judgement.unknown)
    spellings = [f"{there} for {wanted}" for wanted, there in judgement.other.items()]
    _count_in_vain("judged page", "in the run under another id and", spellings)
    metrics, n_queries = judged.content["metrics"], judged.content["queries"]
    missing_queries(judgement.missing, n_queries)
    if as_json:
        in_vain = {
            "queries_not_in_the_run": judgement.missing,
            "pages_not_in_the_index": judgement.unknown,
            "pages_under_another_id": judgement.other,
        }
        emit({"artifact": path_of(judged), "queries": n_queries, **in_vain, "metrics": metrics})
        return
    runs = [name for name in metrics if name not in _COMPARISONS]
    columns = ["measure", *(name.replace("_", " ") for name in runs)]
    rows = [[name, *(f"{metrics[run][name]:.4f}" for run in runs)] for name in metrics[runs[0]]]
    if "difference" in metrics:
        columns += ["difference", "95 % interval", "kept", "95 % interval"]
        for row in rows:
            name = row[0]
            row += [f"{metrics['difference'][name]:+.4f}", _interval(metrics["interval"][name], "+.3f")]
            row += [_share(metrics["kept"][name]), _interval(metrics["kept_interval"][name], ".1%")]
    tau = metrics.get("kendall_tau")
    title = counted(n_queries, "judged query", "judged queries")
    table(title if tau is None else f"{title}; Kendall tau {tau:.3f}", columns, rows, to_stdout=True)
    if judged.kept:
        typer.echo(judged.path)


def by_channel(lines: list[Line], n_queries: int, *, as_json: bool) -> None:
    """Show one row for each way of ranking: each measure with its 95 % interval, and that of the difference."""
    if as_json:
        emit({"queries": n_queries, "rows": [dataclasses.asdict(line) for line in lines]})
        return
    measures = list(lines[0].metrics)
    columns = ["ranking", *(f"{measure} (95 %)" for measure in measures), f"{measures[-1]} less {lines[0].name}"]
    rows = []
    for line in lines:
        cells = [f"{line.metrics[name]:.3f} ({_interval([*line.intervals[name]], '.2f')})" for name in measures]
        less = line.differences.get(measures[-1])
        rows.append([line.name, *cells, _interval([*less], "+.3f") if less else ""])
    table(counted(n_queries, "judged query", "judged queries"), columns, rows, to_stdout=True)


def missing_queries(missing: list[str], judged: int) -> None:
    """Say how many judged queries the run lacks."""
    if missing:
        named = ", ".join(missing[:_MOST_NAMED]) + (", ..." if len(missing) > _MOST_NAMED else "")
        note(f"{len(missing)} of {judged} judged queries are not in the run; they count as 0: {named}")


def _count_in_vain(noun: str, why: str, names: list[str]) -> None:
    """Say how many judged pages count as not found, and name the first."""
    if names:
        are, count = ("is", "counts") if len(names) == 1 else ("are", "count")
        named = ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")
        note(f"{counted(len(names), noun)} {are} {why} {count} as not found: {named}")


def _interval(ends: list[float | None], form: str) -> str:
    return " to ".join("-" if end is None else format(end, form) for end in ends)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def mmdocir(result: BenchmarkResult, *, as_json: bool) -> None:
    """Show MMDocIR's recall tables."""
    metrics = result.metrics.content["metrics"]
    if as_json:
        queries = {
            question.query_id: {
                "doc": question.doc_id,
                "index": question.index,
                "page_id": list(question.page_id),
                "domain": question.domain,
            }
            for question in result.benchmark.questions
        }
        paths = {"artifact": str(result.metrics.path), "run": str(result.run_path)}
        emit({**paths, "queries": queries, "metrics": metrics})
        return
    for kind, recalls in metrics.items():
        if recalls is None:
            note(f"no {kind} recall: pass --layouts; it needs the published parquet files")
            continue
        domains = list(next(iter(recalls.values()))["domains"])
        rows = [[name, *(f"{recall['domains'][name]:.1f}" for recall in recalls.values())] for name in domains]
        rows += [
            [f"{mean} mean", *(f"{recall[mean]:.1f}" for recall in recalls.values())] for mean in ("macro", "micro")
        ]
        title = f"MMDocIR {kind} recall, %; {counted(len(result.benchmark.questions), 'question')}"
        table(title, [f"{kind} recall", *recalls], rows, to_stdout=True)
    note(f"run: {result.run_path}")
    typer.echo(result.metrics.path)
