"""Stage ``embed_text``: the text of pages -> windows and their vectors, one shard per shard of pages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from mmrr.config import Model
from mmrr.context import Context
from mmrr.contracts import Options
from mmrr.errors import MmrrError
from mmrr.modeling import families, text_checkpoints
from mmrr.modeling.checkpoints import Checkpoint
from mmrr.modeling.devices import dtype_name, resolve_devices, resolve_dtype
from mmrr.workers import Work, on_devices
from mmrr.workspace import manifests
from mmrr.workspace.manifests import EmbedTextContent, PageShards, Timing
from mmrr.workspace.pages import Collection, read_texts
from mmrr.workspace.store import Manifest, Spec, Workspace
from mmrr.workspace.tensors import write_windows


def embed_text(context: Context, collection: Collection, model: Model, options: Mapping[str, str]) -> Manifest:
    """Embed the text of the pages that have no shard yet. ``options``: fields of the family's ``Prepare``, as text."""
    workspace = context.workspace
    checkpoint, name, prepare = _resolved(workspace, model, options)
    devices = resolve_devices(context.machine.device)
    dtype = _dtype(context.machine.dtype, devices[0])
    spec = Spec(
        "embed_text",
        1,
        {"family": name, "options": families.stored_options(prepare)},
        {"pages": collection.manifest.fingerprint},
        checkpoint.identity(dtype_name(dtype)),
    )
    if done := workspace.done(spec):
        return done
    shards = _shards(spec, collection)
    missing = [_Task(pages, key) for pages, key in shards.items() if not workspace.has_shard("embed_text", key)]
    n_pages = sum(len(collection.by_shard[task.pages]) for task in missing)
    seconds = 0.0
    if missing:
        load = _Load(workspace, collection, name, checkpoint, prepare, dtype)
        seconds = on_devices(devices, load, missing, context.progress("embed text", n_pages))
    return _commit(workspace, spec, collection, shards, {"pages_computed": n_pages, "seconds": round(seconds, 3)})


def check(context: Context, model: Model, options: Mapping[str, str]) -> None:
    """Raise the MmrrError that ``embed_text`` raises for a wrong checkpoint, option or device. Loads no weights."""
    _resolved(context.workspace, model, options)
    resolve_dtype(context.machine.dtype, resolve_devices(context.machine.device)[0])


def _dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is float32 on a CPU: these models are small, and bfloat16 took seven times as long there."""
    return torch.float32 if name == "auto" and device.type == "cpu" else resolve_dtype(name, device)


def _resolved(workspace: Workspace, model: Model, options: Mapping[str, str]) -> tuple[Checkpoint, str, Options]:
    """The checkpoint, the name of its family, and the family's options."""
    checkpoint = text_checkpoints.resolve(model.name, model.revision, workspace.hashes)
    name = families.text_embedder(checkpoint.model_type)
    return checkpoint, name, families.parse_options(families.load("text_embedders", name).Prepare, dict(options))


def followed(workspace: Workspace, indexed: Manifest | None) -> tuple[Model, dict[str, str]] | None:
    """The text embedder of an index and its options, as text; None if the index has no vectors of text.

    Raises MmrrError if the vectors were removed, or if the checkpoint is not found or has changed.
    """
    if indexed is None or "embed_text" not in indexed.inputs:
        return None
    embedded = workspace.find("embed_text", indexed.inputs["embed_text"])
    if embedded is None or embedded.model is None:
        raise MmrrError(
            f"the text vectors of index/{indexed.fingerprint} were removed, so its text embedder is not known; "
            "pass --text-embedder MODEL, or --text-embedder none"
        )
    text_checkpoints.recorded(embedded.model, workspace.hashes)
    revision = embedded.model["revision"]
    model = Model(embedded.model["id"], None if revision.startswith("sha256:") else revision)
    config = manifests.config(embedded, "embed_text")
    prepare = families.make_options(families.load("text_embedders", config["family"]).Prepare, config["options"])
    return model, {name: str(value) for name, value in dataclasses.asdict(prepare).items()}


def keep_embedded(context: Context, embedded: Manifest, collection: Collection) -> Manifest:
    """The ``embed_text`` artifact of a part of the pages of another one. Nothing is computed."""
    assert embedded.model
    inputs = {"pages": collection.manifest.fingerprint}
    spec = Spec("embed_text", embedded.schema, embedded.config, inputs, embedded.model)
    if done := context.workspace.done(spec):
        return done
    known = manifests.content(embedded, "embed_text")["shards"]
    shards = {pages_key: known[pages_key] for pages_key in collection.by_shard}
    return _commit(context.workspace, spec, collection, shards, {"pages_computed": 0, "seconds": 0.0})


def _shards(spec: Spec, collection: Collection) -> PageShards:
    """The shard of windows of each shard of pages: it depends on the text layer, and on the text that OCR read."""
    both = zip(collection.shards, collection.text_shards, strict=True)
    by_ocr = {pages: text for pages, text in both if text != pages}
    return {
        pages: spec.shard_key(pages, *([by_ocr[pages]] if pages in by_ocr else [])) for pages in collection.by_shard
    }


def _commit(workspace: Workspace, spec: Spec, collection: Collection, shards: PageShards, timing: Timing) -> Manifest:
    content: EmbedTextContent = {
        "pages": len(collection.pages),
        "windows": sum(manifests.shard_record(workspace, "embed_text", key)["windows"] for key in {*shards.values()}),
        "shards": shards,
    }
    return workspace.commit(spec, content, workspace.shard_bytes("embed_text", shards.values()), timing)


@dataclass(frozen=True, slots=True)
class _Task:
    """A shard to compute."""

    pages: str  # its shard of pages
    key: str


@dataclass(frozen=True, slots=True)
class _Load:
    """Loads the text embedder on a device. It is sent to helper processes where there are several devices."""

    workspace: Workspace
    collection: Collection
    family: str
    checkpoint: Checkpoint
    prepare: Options
    dtype: torch.dtype

    def __call__(self, device: torch.device) -> Work:
        family = families.load("text_embedders", self.family)
        embedder = family.load(self.checkpoint, self.prepare, device, self.dtype)

        def embed_shard(task: _Task, advance: Callable[[int], None]) -> None:
            pages = self.collection.by_shard[task.pages]
            rows = [self.collection.row_of[page.page_id] for page in pages]
            texts = read_texts(self.workspace, self.collection, rows)
            windows = {page.number: embedder.windows(text) for page, text in zip(pages, texts, strict=True)}
            parts = [
                text[window.start : window.end]
                for text, of_page in zip(texts, windows.values(), strict=True)
                for window in of_page
            ]
            vectors = embedder.embed_windows(parts) if parts else torch.zeros(0, 0)
            folder = self.workspace.scratch()
            write_windows(folder, windows, vectors)
            self.workspace.commit_shard("embed_text", task.key, folder, {"windows": len(parts)})
            advance(len(pages))

        return embed_shard
