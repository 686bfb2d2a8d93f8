"""Shows a workspace, the model families, the defaults and this machine: as tables or as JSON."""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mmrr.errors import MmrrError

from .defaults import PROJECT_FILE, Effective, user_file
from .terminal import counted, emit, note, printable, size, table

if TYPE_CHECKING:
    from mmrr.stages.rerank import Rescored
    from mmrr.workspace.gc import Removal
    from mmrr.workspace.store import Manifest, Workspace
    from mmrr.workspace.verify import Verified

#: The settings of each stage that mmrr ls shows.
_SETTINGS = {
    "pages": ("renderer", "dpi", "max_tokens", "ocr"),
    "embed_text": ("options",),
    "index": ("faiss_factory", "language"),
    "retrieve": ("first_stage", "channels", "scope", "depth"),
    "prune": ("keep",),
    "precache": ("family", "options"),
    "rerank": ("family", "dense", "score"),
    "eval": ("benchmark", "measures"),
}


def artifacts(workspace: Workspace, *, as_json: bool) -> bool:
    """List all artifacts in the order of the data flow and name damaged listings. Returns whether all are whole."""
    rows = []
    found, unreadable = workspace.scan()
    problems = [str(error) for error in unreadable.values()]
    current: dict[str, str] = {}
    try:
        current = workspace.all_current.read()
    except MmrrError as error:
        problems.append(str(error))
    for manifest in found:
        rows.append(
            {
                "name": f"{manifest.stage}/{manifest.fingerprint}",
                "current": current.get(manifest.stage) == manifest.fingerprint,
                "made_of": [f"{role}/{name[:12]}" for role, name in manifest.inputs.items()],
                "how": _how(manifest),
                "bytes": manifest.bytes,
                "created": manifest.provenance.get("created", ""),
            }
        )
    if as_json:
        emit({"work": str(workspace.root), "artifacts": rows, "problems": problems})
        return not problems
    shown = [
        [
            ("* " if row["current"] else "  ") + row["name"],
            f"{row['how']}\nmade from {' '.join(row['made_of'])}" if row["made_of"] else row["how"],
            size(row["bytes"]),
            _age(row["created"]),
        ]
        for row in rows
    ]
    table(str(workspace.root), ["artifact", "how it was made", "size", "age"], shown, numbers_from=2, to_stdout=True)
    for problem in problems:
        typer.echo(f"error: {printable(problem)}", err=True)
    return not problems


def _how(manifest: Manifest) -> str:
    content, config = manifest.content, manifest.config
    model = f" with {manifest.model['id']} in {manifest.model['dtype']}" if manifest.model else ""
    nouns = {"pages": "page", "queries": "query"}
    counts = ", ".join(counted(content[name], noun, name) for name, noun in nouns.items() if name in content)
    names = _SETTINGS.get(manifest.stage, ())
    settings = [f"{name} {_flat(config[name])}" for name in names if config.get(name) is not None]
    return "; ".join(filter(None, [counts + model, ", ".join(settings)]))


def _flat(value: object) -> str:
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
    """List the documents of an index with their status, then the files that are no documents, with the reason."""
    from mmrr.workspace import changes, metadata

    entries, described = pages.content["documents"], metadata.of(pages)
    skipped, hidden = changes.skipped_names(pages), changes.skipped(pages)["hidden"]
    if as_json:
        files = [{"file": name, "reason": reason} for name, reason in skipped]
        listed = [{**entry, "metadata": metadata.shown(described.get(entry["doc_id"], {}))} for entry in entries]
        emit({"artifact": str(pages.path), "documents": listed, "skipped": files, "hidden": hidden})
        return
    rows = [
        [
            entry["doc_id"],
            entry["status"],
            str(entry["n_pages"]),
            "\n".join(filter(None, [entry["detail"], _notes(entry)])),
        ]
        for entry in entries
    ]
    rows += [[name, "skipped", "0", reason] for name, reason in skipped]
    rows += [
        [root, "hidden", "0", f"{counted(count, 'entry', 'entries')} not looked at"] for root, count in hidden.items()
    ]
    table(str(pages.path), ["document", "status", "pages", "detail"], rows, numbers_from=4, to_stdout=True)


def _notes(entry: Mapping[str, Any]) -> str:
    """What is wrong with pages of a document: a line for each code, with the numbers of the pages."""
    notes: Mapping[str, list[int]] = entry.get("notes", {})
    return "\n".join(
        f"{code}: {'page' if len(numbers) == 1 else 'pages'} {_ranges(numbers)}" for code, numbers in notes.items()
    )


def _ranges(numbers: Sequence[int]) -> str:
    """For example ``1-3, 7``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def removal(removed: Removal) -> None:
    """Say what was removed."""
    for name in removed.artifacts:
        note(f"removed {name}")
    stages = ", ".join(f"{count} of {stage}" for stage, count in removed.by_stage.items())
    what = f"{counted(removed.shards, 'unused shard')}{f' ({stages})' if stages else ''}"
    note(f"removed {what}; {size(removed.bytes)} freed")
    if removed.shards and not removed.artifacts:
        note("no artifact listed them: a command that was interrupted computes them again")
    if removed.unlisted:
        note(
            f"kept {counted(removed.unlisted, 'shard')} ({size(removed.unlisted_bytes)}) of commands that were "
            "interrupted, which continue from there; mmrr rm without names removes them"
        )


def verification(checked: Verified, rescored: Rescored | None, *, as_json: bool) -> None:
    """Show what was read, each problem, and the difference between cached scores and plain forwards."""
    if as_json:
        result: dict[str, object] = dataclasses.asdict(checked)
        if rescored:
            result["rescored"] = {"pairs": len(rescored.pairs), "largest_difference": rescored.largest}
        emit(result)
        return
    for problem in checked.problems:
        note(printable(problem))
    what = f"{counted(checked.artifacts, 'artifact')}, {counted(checked.shards, 'shard')}, {size(checked.bytes)}"
    typer.echo(f"{what}: {f'{len(checked.problems)} damaged or missing' if checked.problems else 'all as written'}")
    if rescored:
        scores = [pair[3] for pair in rescored.pairs]
        typer.echo(
            f"{counted(len(scores), 'score')} with and without caches: largest difference {rescored.largest:.2g}, "
            f"scores from {min(scores):.3f} to {max(scores):.3f}"
        )


#: The command-line option that passes an option to a family, by the command that takes it.
_FLAGS = {"index": "--embed-option", "retrieve": "--search-option", "precache": "--option", "rerank": "--score-option"}


def models(*, as_json: bool) -> None:
    """List the families with their checkpoints and options, and name each family that cannot be loaded."""
    from mmrr.modeling import families

    found, errors = families.describe()
    if as_json:
        rows = [dataclasses.asdict(family) for family in found]
        listed = [{"kind": row.pop("kind"), "family": row.pop("name"), **row} for row in rows]
        emit({"families": listed, "errors": errors})
        return
    for family in found:
        typer.echo(f"{family.kind} {family.name}: {family.summary}")
        typer.echo(f"  checkpoints: {', '.join(family.checkpoints)}")
        for option in family.options:
            flag = "--text-option" if family.kind == "text embedder" else _FLAGS[option.stage]
            typer.echo(f"  {flag} {option.name}={option.default}  ({option.type})  {option.help}")
        typer.echo()
    for error in errors:
        typer.echo(f"error: {printable(error)}", err=True)


def defaults(found: Sequence[Effective], *, as_json: bool) -> None:
    """Show each default and its origin."""
    if as_json:
        files = [str(path) for path in (PROJECT_FILE, user_file()) if path.is_file()]
        rows = [
            {**dataclasses.asdict(one), "value": str(one.value) if isinstance(one.value, Path) else one.value}
            for one in found
        ]
        emit({"files": files, "defaults": rows})
        return
    cells = [
        [one.key, "" if one.value is None else str(one.value), f"{one.source} {one.detail}".strip()] for one in found
    ]
    table("", ["key", "value", "from"], cells, numbers_from=3, to_stdout=True)


def doctor(work: Path, *, as_json: bool) -> None:
    """Show this machine on one screen."""
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
        "Hub": "offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "online if there is a network",
        "Hub cache": str(constants.HF_HUB_CACHE),
        "workspace": f"{work.absolute()}" + ("" if (work / "mmrr.json").exists() else " (does not exist yet)"),
        "free disk": size(shutil.disk_usage(existing).free),
    }
    if as_json:
        emit(facts)
        return
    table("", ["", "this machine"], [[name, value] for name, value in facts.items()], numbers_from=2, to_stdout=True)
