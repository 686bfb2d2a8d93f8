"""Stage ``precache``: pages and kept tokens -> each page's visual cache, one shard per shard of pages."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from mmrr.config import Machine, Model
from mmrr.contracts import ModelConfig, Options, PageGeometry, ScorerFamily
from mmrr.errors import MmrrError
from mmrr.modeling import families
from mmrr.modeling.checkpoints import Checkpoint, resolve
from mmrr.modeling.devices import dtype_name, resolve_devices, resolve_dtype
from mmrr.types import KeptTokens, Page, Progress, silent
from mmrr.workers import Work, on_devices
from mmrr.workspace.files import HashCache
from mmrr.workspace.pages import Collection, read_content, read_texts
from mmrr.workspace.store import SHARD_PAGES, Manifest, Spec, Workspace
from mmrr.workspace.tensors import page_name, read_kept_tokens, write_states


@dataclass(frozen=True, slots=True)
class Family:
    """A scorer family with its options written out for one checkpoint."""

    name: str
    module: ScorerFamily
    prepare: Options
    checkpoint: Checkpoint
    config: ModelConfig

    @property
    def pruning_grid(self) -> PageGeometry:
        return self.module.pruning_grid(self.prepare, self.config)

    def tokens(self, page: Page) -> int:
        """Visual tokens of a whole page."""
        rows, columns = self.module.grid(self.prepare, self.config, page.width_px, page.height_px)
        return rows * columns


@dataclass(frozen=True, slots=True)
class Plan:
    """What a precache is about to do."""

    pages: int  # in the collection
    missing: int  # to be computed now
    page_bytes: int  # mean, of the missing pages
    total_bytes: int  # of the missing pages
    free_bytes: int


def family_of(hashes: HashCache, name: str, model: Model, options: dict[str, str]) -> Family:
    """Find the scorer and write out what its ``auto`` options mean for this checkpoint."""
    module = families.load("scorers", name)
    checkpoint = resolve(model.name, model.revision, hashes, module.SPEC.model_types)
    config = checkpoint.config()
    return Family(
        name, module, module.resolve(families.parse_options(module.Prepare, options), config), checkpoint, config
    )


def precache(
    workspace: Workspace,
    collection: Collection,
    pruned: Manifest | None,
    family: Family,
    machine: Machine,
    report: Callable[[Plan], None] = lambda plan: None,
    progress: Progress = silent,
) -> Manifest:
    """Compute the page caches that no shard has yet; ``pruned`` None keeps every token. Makes the result the head.

    ``report`` is told the plan before the model is loaded. Of a scorer that reads text, the manifest says how many
    pages have none (``without_text``). Raises MmrrError if the disk cannot hold the caches.
    """
    devices = resolve_devices(machine.device)
    dtype = resolve_dtype(machine.dtype, devices[0])
    inputs = {"pages": collection.manifest.fingerprint} | ({"prune": pruned.fingerprint} if pruned else {})
    spec = Spec(
        "precache",
        1,
        {
            "family": family.name,
            "options": families.stored_options(family.prepare),
            "wording": family.module.prompt(family.prepare),
        },
        inputs,
        family.checkpoint.identity(dtype_name(dtype)),
    )
    if done := workspace.done(spec):
        workspace.set_current(*filter(None, (pruned, done)))
        return done
    keep_shards = pruned.content["shards"] if pruned else {}
    reads = family.module.page_input(family.prepare)
    # Where OCR read pages, their text lies in another shard than their images.
    by_ocr = {p: text for p, text in zip(collection.shards, collection.text_shards, strict=True) if text != p}
    texts = {pages: [by_ocr[pages]] if reads == "text" and pages in by_ocr else [] for pages in collection.by_shard}
    shards = {p: spec.shard_key(p, keep_shards.get(p, "all"), *texts[p]) for p in collection.by_shard}
    shared = spec.shard_key("shared")
    missing = {pages: key for pages, key in shards.items() if not workspace.has_shard("precache", key)}
    needs_shared = not workspace.has_shard("precache", shared)
    plan = _plan(workspace, collection, family, missing, keep_shards, dtype.itemsize)
    report(plan)
    if plan.total_bytes > plan.free_bytes:
        raise MmrrError(
            f"the caches need {plan.total_bytes / 1e9:.1f} GB and {workspace.root} has {plan.free_bytes / 1e9:.1f} GB "
            "free; free some, choose another --work, or lower --keep"
        )
    tasks = [_Task(key, pages, keep_shards.get(pages)) for pages, key in missing.items()]
    if needs_shared:
        tasks.insert(0, _Task(shared))
    seconds = 0.0
    if tasks:
        load = partial(_load, workspace, collection, family.name, family.checkpoint, family.prepare, dtype)
        seconds = on_devices(devices, load, tasks, progress("precache", plan.missing))
    size = workspace.shard_bytes("precache", [*shards.values(), shared])
    content: dict[str, Any] = {
        "pages": len(collection.pages),
        "page_bytes": round(size / max(1, sum(map(len, collection.by_shard.values())))),
        "keep": pruned.config["keep"] if pruned else 1.0,
        "shards": shards,
        "shared": shared,
    }
    if reads == "text":
        content["without_text"] = sum(not text.strip() for text in read_texts(workspace, collection))
    timing = {"pages_computed": plan.missing, "seconds": round(seconds, 3)}
    manifest = workspace.commit(spec, content, size, timing)
    workspace.set_current(*filter(None, (pruned, manifest)))
    return manifest


@dataclass(frozen=True, slots=True)
class _Task:
    """A shard to compute."""

    key: str
    pages: str | None = None  # the pages shard it is of; None: what all pages share
    kept: str | None = None  # the shard with its kept tokens; None: all are


def _load(
    workspace: Workspace,
    collection: Collection,
    family: str,
    checkpoint: Checkpoint,
    prepare: Options,
    dtype: torch.dtype,
    device: torch.device,
) -> Work:
    module = families.load("scorers", family)
    scorer, reads = module.load(checkpoint, prepare, device, dtype), module.page_input(prepare)
    n_together = 1 if device.type == "cpu" else SHARD_PAGES

    def prepare_shard(task: _Task, advance: Callable[[int], None]) -> None:
        states = {} if task.pages else {"shared": scorer.shared_state()}
        keeps = read_kept_tokens(workspace, task.kept) if task.kept else {}
        pages = collection.by_shard[task.pages] if task.pages else []
        for first in range(0, len(pages), n_together):
            some = pages[first : first + n_together]
            contents = [read_content(workspace, collection, page, reads) for page in some]
            prepared = scorer.prepare(contents, [keeps.get(page.number) for page in some])
            states |= zip(map(page_name, some), prepared, strict=True)
            advance(len(some))
        folder = workspace.scratch()
        workspace.commit_shard("precache", task.key, folder, write_states(folder, states))

    return prepare_shard


def _plan(
    workspace: Workspace,
    collection: Collection,
    family: Family,
    missing: dict[str, str],
    keep_shards: dict[str, str],
    dtype_bytes: int,
) -> Plan:
    sizes = []
    for pages_key in missing:
        keeps: dict[int, KeptTokens] = read_kept_tokens(workspace, keep_shards[pages_key]) if keep_shards else {}
        for page in collection.by_shard[pages_key]:
            keep = keeps.get(page.number)
            n_tokens = len(keep.indices) if keep else family.tokens(page)
            sizes.append(family.module.cache_bytes(family.prepare, family.config, n_tokens, dtype_bytes))
    free = shutil.disk_usage(workspace.root).free
    return Plan(len(collection.pages), len(sizes), sum(sizes) // max(1, len(sizes)), sum(sizes), free)
