"""Shows rankings, their measures, and the pages they come from: as tables or as JSON."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from . import report_comparison
from .terminal import counted, emit, note, size, table

if TYPE_CHECKING:
    from PIL import Image

    from mmrr.context import Context
    from mmrr.evaluation.comparison import Comparison
    from mmrr.experiments import BenchmarkResult
    from mmrr.stages.evaluate import Judgement
    from mmrr.stages.precache import Plan
    from mmrr.workspace.changes import Changes
    from mmrr.workspace.store import Manifest

#: Most documents or queries that are listed.
MOST_LISTED = 20
#: Of the files that are no documents: most reasons that are listed.
_MOST_REASONS = 8
#: Names or ids that a note names.
_MOST_NAMED = 3


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
    """Show the measures of one run, or of several with their differences, intervals and tests."""
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
        compared = judgement.comparison.as_json()
        emit({"artifact": path_of(judged), "queries": n_queries, **in_vain, "metrics": metrics, "comparison": compared})
        return
    title = counted(n_queries, "judged query", "judged queries")
    if len(judgement.comparison.against) > 1:
        report_comparison.comparison(judgement.comparison, title)
    else:
        _one_or_two_runs(judgement.comparison, metrics, title)
        report_comparison.groups(judgement.comparison)
    if judged.kept:
        typer.echo(judged.path)


def _one_or_two_runs(compared: Comparison, metrics: dict[str, Any], title: str) -> None:
    from mmrr.evaluation import tables

    runs = list(compared.evaluations)
    columns = ["measure", *(name.replace("_", " ") for name in runs)]
    rows = [[name, *(f"{metrics[run][name]:.4f}" for run in runs)] for name in compared.measures]
    if "difference" in metrics:
        (against,) = compared.against.values()
        columns += ["difference", "95 % interval", "kept", "95 % interval", "p", "win/tie/loss"]
        for row in rows:
            name, test = row[0], against[row[0]].test
            row += [f"{metrics['difference'][name]:+.4f}", _interval(metrics["interval"][name], "+.3f")]
            row += [_share(metrics["kept"][name]), _interval(metrics["kept_interval"][name], ".1%")]
            row += [tables.p_value(test.p), f"{test.wins}/{test.ties}/{test.losses}"]
    tau = metrics.get("kendall_tau")
    table(title if tau is None else f"{title}; Kendall tau {tau:.3f}", columns, rows, to_stdout=True)


def by_channel(compared: Comparison, *, as_json: bool) -> None:
    """Show one row for each way of ranking: each measure with its 95 % interval, and that of the difference."""
    from mmrr.evaluation import tables

    rows = [
        {
            "name": name,
            "metrics": found.mean,
            "intervals": compared.intervals[name],
            "differences": {
                measure: one.change.difference_interval for measure, one in compared.against.get(name, {}).items()
            },
        }
        for name, found in compared.evaluations.items()
    ]
    if as_json:
        emit({"queries": compared.queries, "rows": rows, "comparison": compared.as_json()})
        return
    *_, last = measures = compared.measures
    columns = [
        "ranking",
        *(f"{measure} (95 %)" for measure in measures),
        f"{last} less {compared.baseline}",
        "p (Holm)",
    ]
    cells = []
    for name, found in compared.evaluations.items():
        shown = [f"{found.mean[one]:.3f} ({_interval([*compared.intervals[name][one]], '.2f')})" for one in measures]
        against = compared.against.get(name, {}).get(last)
        less = _interval([*against.change.difference_interval], "+.3f") if against else ""
        cells.append([name, *shown, less, tables.p_value(against.p_holm) if against else ""])
    title = counted(compared.queries, "judged query", "judged queries")
    table(title, columns, cells, to_stdout=True)
    report_comparison.groups(compared)


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
