"""Turns the library's results into tables and JSON documents."""

from __future__ import annotations

import dataclasses
import datetime
import io
import math
import os
import platform
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .show import emit, note, printable, size, table

if TYPE_CHECKING:
    from PIL import Image

    from mmrr.context import Context
    from mmrr.experiments import BenchmarkResult
    from mmrr.pipeline import Judgement, Ranking
    from mmrr.stages.precache import Plan
    from mmrr.stages.rerank import Rescored
    from mmrr.workspace.changes import Changes
    from mmrr.workspace.gc import Removal
    from mmrr.workspace.store import Manifest, Workspace
    from mmrr.workspace.verify import Verified

_SHOWN = 20


def documents(pages: Manifest, changes: Changes) -> None:
    """What changed in the collection, its pages and documents, and by name each document that is not whole."""
    from mmrr.workspace.pages import complaint

    entries = pages.content["documents"]
    bad = [entry for entry in entries if entry["status"] != "ok"]
    for entry in bad[:_SHOWN]:
        note(f"  {complaint(entry)}")
    if len(bad) > _SHOWN:
        note(f"  ... and {len(bad) - _SHOWN} more, see: mmrr ls --documents")
    statuses = Counter(entry["status"] for entry in entries)
    counts = ", ".join(
        f"{statuses[status]} {status}" for status in sorted(statuses, key=lambda name: (name != "ok", name))
    )
    read, without = (pages.content.get(name, 0) for name in ("by_ocr", "without_text"))
    texts = ", ".join([f"{read} read by OCR"] * (read > 0) + [f"{without} without text"] * (without > 0))
    note(
        f"{len(entries)} documents: {changes}; {pages.content['pages']} pages of {len(entries)} documents ({counts})"
        + (f"; {texts}" if texts else "")
    )


def plan(plan: Plan) -> None:
    """What precache will write, before it starts."""
    note(
        f"{plan.pages} pages, {plan.missing} to read; {size(plan.page_bytes)} a page, "
        f"{size(plan.total_bytes)} in all, {size(plan.free_bytes)} free"
    )


def without_text(session: Context, cached: Manifest) -> None:
    """How many pages a scorer that reads text was given none of."""
    without = cached.content.get("without_text", 0)
    if without:
        by_ocr = "ocr" in session.collection(cached).manifest.config
        remedy = "OCR found none on them" if by_ocr else "mmrr index --ocr reads it from their images"
        note(f"{without} of {cached.content['pages']} pages have no text for the scorer to read; {remedy}")


def ranking(
    session: Context,
    found: Ranking,
    top_k: int,
    output: Path | None,
    *,
    as_json: bool,
    is_file: bool,
    path: bool = True,
) -> None:
    """The pages found: a table for people, a document for machines, a TREC file where asked for."""
    from mmrr.workspace.files import write_atomically

    if output:
        write_atomically(output, (found.manifest.path / "run.trec").read_text("utf-8"))
    answers: list[dict[str, Any]] = [
        {"query_id": query.query_id, "text": query.text, "results": _results(found, query.query_id, top_k)}
        for query in found.queries
    ]
    if as_json:
        emit({"artifact": str(found.manifest.path), "queries": answers})
        return
    reranked = found.final is not None
    logit = ["logit"] if _by_logit(found) else []
    columns = ["rank", "document", "page", "score", *logit, *(["first stage"] if reranked else [])]
    for answer in answers if not is_file or len(answers) <= _SHOWN else answers[:_SHOWN]:
        rows = [
            [
                str(row["rank"]),
                row["doc_id"],
                row["page_id"].rsplit("/", 1)[1].lstrip("0") or "0",
                f"{row['score']:.4f}",
                *([f"{row['logit']:.3f}"] if logit else []),
                *([str(row["first_stage_rank"])] if reranked else []),
            ]
            for row in answer["results"]
        ]
        title = answer["text"] if len(answer["text"]) < 200 else answer["text"][:200] + "..."
        table(title, columns, rows, numbers_from=2, to_stdout=not is_file)
        if not rows:
            note("no page shares a word with this query")
    if is_file and len(answers) > _SHOWN:
        note(f"... and {len(answers) - _SHOWN} more queries, see {found.manifest.path / 'run.trec'}")
    if path:
        typer.echo(found.manifest.path)


def _results(found: Ranking, query_id: str, top_k: int) -> list[dict[str, Any]]:
    """``score`` is a page's own probability (never relative to the other pages), ``logit`` what it is ranked by.

    Of a scorer that ranks lists, as of a first stage, ``score`` is what the page is ranked by.
    """
    by_logit = _by_logit(found)
    first = {hit.page_id: position for position, hit in enumerate(found.first.get(query_id, []), 1)}
    rows = []
    for position, hit in enumerate(found.run.get(query_id, [])[:top_k], 1):
        page = found.collection.pages[found.collection.row_of[hit.page_id]]
        row: dict[str, Any] = {"rank": position, "page_id": hit.page_id, "doc_id": page.doc_id, "page": page.number}
        if not by_logit:
            row["score"] = hit.score
        else:
            probability = 1 / (1 + math.exp(-hit.score)) if hit.score > -700 else 0.0
            row |= {"score": probability, "logit": hit.score}
        rows.append({**row, "first_stage_rank": first[hit.page_id]})
    return rows


def _by_logit(found: Ranking) -> bool:
    """Whether a page is ranked by a score of its own: a place in a list is no logit, nor is what a blend adds up."""
    from mmrr.modeling import families

    by = found.reranked.config if found.reranked else None
    return by is not None and "blend" not in by and not families.load("scorers", by["family"]).LISTWISE


def picture(image: Image.Image, output: Path) -> None:
    """A PNG, whole or not at all."""
    from mmrr.workspace.files import write_atomically

    data = io.BytesIO()
    image.save(data, "png")
    write_atomically(output, data.getvalue())


def evaluation(judgement: Judgement, *, as_json: bool) -> None:
    """One run, or two with what changed; intervals by bootstrap over documents."""
    judged, unknown = judgement.metrics, judgement.unknown
    if unknown:
        note(
            f"{len(unknown)} judged pages are not in the index and count as not found: "
            f"{', '.join(unknown[:3])}{', ...' if len(unknown) > 3 else ''}"
        )
    metrics = judged.content["metrics"]
    if as_json:
        emit({"artifact": str(judged.path), "queries": judged.content["queries"], "metrics": metrics})
        return
    runs = [name for name in metrics if name not in ("difference", "interval", "kept", "kept_interval", "kendall_tau")]
    columns = ["measure", *(name.replace("_", " ") for name in runs)]
    rows = [[name, *(f"{metrics[run][name]:.4f}" for run in runs)] for name in metrics[runs[0]]]
    if "difference" in metrics:
        columns += ["difference", "95 % interval", "kept", "95 % interval"]
        for row in rows:
            name = row[0]
            row += [f"{metrics['difference'][name]:+.4f}", _interval(metrics["interval"][name], "+.3f")]
            row += [_share(metrics["kept"][name]), _interval(metrics["kept_interval"][name], ".1%")]
    alike = metrics.get("kendall_tau")
    title = f"{judged.content['queries']} judged queries"
    table(title if alike is None else f"{title}; Kendall tau {alike:.3f}", columns, rows, to_stdout=True)
    typer.echo(judged.path)


def _interval(ends: list[float | None], form: str) -> str:
    return " to ".join("-" if end is None else format(end, form) for end in ends)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def mmdocir(result: BenchmarkResult, *, as_json: bool) -> None:
    """MMDocIR's recall tables."""
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
        emit(
            {"artifact": str(result.metrics.path), "run": str(result.run_path), "queries": queries, "metrics": metrics}
        )
        return
    for kind, recalls in metrics.items():
        if recalls is None:
            note(f"no {kind} recall: " + "pass --layouts, with the published parquet files")
            continue
        domains = list(next(iter(recalls.values()))["domains"])
        rows = [[name, *(f"{recall['domains'][name]:.1f}" for recall in recalls.values())] for name in domains]
        rows += [
            [f"{mean} mean", *(f"{recall[mean]:.1f}" for recall in recalls.values())] for mean in ("macro", "micro")
        ]
        title = f"MMDocIR {kind} recall, %; {len(result.benchmark.questions)} questions"
        table(title, [f"{kind} recall", *recalls], rows, to_stdout=True)
    note(f"run: {result.run_path}")
    typer.echo(result.metrics.path)


def artifacts(workspace: Workspace, *, as_json: bool) -> None:
    """Everything committed, in the order of the data flow."""
    rows = []
    for manifest in workspace.artifacts():
        head = workspace.current(manifest.stage)
        rows.append(
            {
                "name": f"{manifest.stage}/{manifest.fingerprint}",
                "head": head is not None and head.fingerprint == manifest.fingerprint,
                "made_of": [f"{role}/{name[:12]}" for role, name in manifest.inputs.items()],
                "how": _how(manifest),
                "bytes": manifest.bytes,
                "created": manifest.provenance.get("created", ""),
            }
        )
    if as_json:
        emit({"work": str(workspace.root), "artifacts": rows})
        return
    shown = [
        [
            ("* " if row["head"] else "  ") + row["name"],
            f"{row['how']}\nof {' '.join(row['made_of'])}",
            size(row["bytes"]),
            _age(row["created"]),
        ]
        for row in rows
    ]
    table(str(workspace.root), ["artifact", "how it was made", "size", "age"], shown, numbers_from=2, to_stdout=True)


def _how(manifest: Manifest) -> str:
    content, config = manifest.content, manifest.config
    model = f" with {manifest.model['id']} in {manifest.model['dtype']}" if manifest.model else ""
    counts = ", ".join(f"{content[name]} {name}" for name in ("pages", "queries") if name in content)
    dials = {
        "pages": ("renderer", "dpi", "max_tokens", "ocr"),
        "index": ("faiss_factory",),
        "retrieve": ("first_stage", "scope", "depth"),
        "prune": ("keep",),
        "precache": ("family", "options"),
        "rerank": ("family", "dense", "score"),
        "eval": ("benchmark", "measures"),
    }.get(manifest.stage, ())
    chosen = [f"{name} {_flat(config[name])}" for name in dials if config.get(name) is not None]
    return "; ".join(filter(None, [counts + model, ", ".join(chosen)]))


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items() if key != "instruction")
    return " ".join(value) if isinstance(value, list) else str(value)


def _age(created: str) -> str:
    try:
        seconds = (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(created)).total_seconds()
    except ValueError:
        return "?"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def document_list(pages: Manifest, *, as_json: bool) -> None:
    """The documents of an index with their status."""
    entries = pages.content["documents"]
    if as_json:
        emit({"artifact": str(pages.path), "documents": entries})
        return
    rows = [[entry["doc_id"], entry["status"], str(entry["n_pages"]), entry["detail"]] for entry in entries]
    table(str(pages.path), ["document", "status", "pages", "detail"], rows, numbers_from=4, to_stdout=True)


def removal(removed: Removal) -> None:
    """What was taken away."""
    for name in removed.artifacts:
        note(f"removed {name}")
    note(f"removed {removed.shards} shards that nothing lists any more; {size(removed.bytes)} freed")


def verification(checked: Verified, rescored: Rescored | None, *, as_json: bool) -> None:
    """What was read and what is wrong with it, then how far the caches are from plain forwards."""
    if as_json:
        result: dict[str, Any] = dataclasses.asdict(checked)
        if rescored:
            result["rescored"] = {"pairs": len(rescored.pairs), "largest_difference": rescored.largest}
        emit(result)
        return
    for problem in checked.problems:
        note(printable(problem))
    what = f"{checked.artifacts} artifacts, {checked.shards} shards, {size(checked.bytes)}"
    typer.echo(f"{what}: {f'{len(checked.problems)} damaged or missing' if checked.problems else 'all as written'}")
    if rescored:
        typer.echo(
            f"{len(rescored.pairs)} scores from the caches and without them: largest difference "
            f"{rescored.largest:.2g}, scores from {min(one[3] for one in rescored.pairs):.3f} "
            f"to {max(one[3] for one in rescored.pairs):.3f}"
        )


def models(*, as_json: bool) -> None:
    """Families with their options, and the published checkpoints they load."""
    from mmrr.modeling import families

    rows: list[dict[str, Any]] = []
    for kind in ("embedders", "scorers"):
        for name in families.names(kind):
            module = families.load(kind, name)
            classes = ("Prepare", "Search") if kind == "embedders" else ("Prepare", "Score")
            rows.append(
                {
                    "kind": kind[:-1],
                    "family": name,
                    "what": (module.__doc__ or "").strip().splitlines()[0],
                    "checkpoints": list(module.CHECKPOINTS),
                    "options": {
                        cls.lower(): {field.name: field.default for field in dataclasses.fields(getattr(module, cls))}
                        for cls in classes
                    },
                }
            )
    if as_json:
        emit({"families": rows})
        return
    for row in rows:
        typer.echo(f"{row['kind']} {row['family']}: {row['what']}")
        typer.echo(f"  checkpoints: {', '.join(row['checkpoints'])}")
        for group, options in row["options"].items():
            for name, default in options.items():
                typer.echo(f"  {group:8} {name} = {default!r}")


def doctor(work: Path, *, as_json: bool) -> None:
    """One screen on this machine."""
    import torch
    import transformers
    from huggingface_hub import constants

    from mmrr import __version__
    from mmrr.documents.rendering import default_renderer
    from mmrr.modeling.devices import dtype_name, resolve_device, resolve_dtype

    device = resolve_device()
    existing = next(folder for folder in (work.absolute(), *work.absolute().parents) if folder.exists())
    facts = {
        "mmrr": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cores": str(os.cpu_count()),
        "device": f"{device}" + (f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""),
        "number format": dtype_name(resolve_dtype("auto", device)),
        "renderer": default_renderer() + ("" if shutil.which("pdftoppm") else " (poppler-utils is not installed)"),
        "Hub": "offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "online where there is a network",
        "Hub cache": str(constants.HF_HUB_CACHE),
        "workspace": f"{work.absolute()}" + ("" if (work / "mmrr.json").exists() else " (none yet)"),
        "free disk": size(shutil.disk_usage(existing).free),
    }
    if as_json:
        emit(facts)
        return
    table("", ["", "this machine"], [[name, value] for name, value in facts.items()], numbers_from=2, to_stdout=True)
