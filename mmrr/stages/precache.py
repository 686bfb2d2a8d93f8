"""Stage ``precache``: pages and kept tokens -> the visual cache of each page, one shard per shard of pages."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

import torch

from mmrr.config import Model
from mmrr.context import Context
from mmrr.contracts import ModelConfig, Options, PageGeometry, ScorerFamily
from mmrr.errors import MmrrError
from mmrr.modeling import families
from mmrr.modeling.checkpoint_files import loading
from mmrr.modeling.checkpoints import Checkpoint, expect_kind, resolve
from mmrr.modeling.devices import dtype_name, resolve_devices, resolve_dtype
from mmrr.modeling.finite import expect_finite
from mmrr.modeling.loaded import Loaded, LoadsEachTime
from mmrr.types import KeptTokens, Page, PageCache
from mmrr.workers import Work, on_devices
from mmrr.workspace import manifests
from mmrr.workspace.files import HashCache
from mmrr.workspace.manifests import PageShards, PrecacheConfig, PrecacheContent, Timing
from mmrr.workspace.pages import Collection, read_content, read_texts
from mmrr.workspace.store import SHARD_PAGES, Manifest, Spec, Workspace
from mmrr.workspace.tensors import PageCacheReader, page_name, read_kept_tokens, write_page_caches

#: Tokens of a text page in the estimate of the disk that its cache takes.
_TEXT_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Family:
    """A scorer family with its options resolved for one checkpoint."""

    name: str
    module: ScorerFamily
    prepare: Options
    checkpoint: Checkpoint
    config: ModelConfig

    @property
    def pruning_grid(self) -> PageGeometry:
        """How the scorer divides a page into visual tokens. Raises MmrrError if these are too few for a page."""
        return self.module.pruning_grid(self.prepare, self.config)

    def tokens(self, page: Page) -> int:
        """The number of visual tokens of a whole page; of a text without an image a usual number, for the estimate."""
        if not page.width_px:
            return _TEXT_TOKENS
        rows, columns = self.module.grid(self.prepare, self.config, page.width_px, page.height_px)
        return rows * columns


@dataclass(frozen=True, slots=True)
class Plan:
    """The work of a precache before it starts."""

    pages: int  # in the collection
    missing: int  # pages to compute
    page_bytes: int  # mean of the missing pages
    total_bytes: int  # of the missing pages
    free_bytes: int  # on the disk
    is_upper_bound: bool  # the sizes are the largest possible: the length of a page's text is not known yet


def family_of(hashes: HashCache, name: str, model: Model, options: Mapping[str, str]) -> Family:
    """Load a scorer family and resolve its ``auto`` options for a checkpoint."""
    module = families.load("scorers", name)
    if model.name not in module.SPEC.checkpoints:
        expect_kind("scorers", model.name)
    checkpoint = resolve(model.name, model.revision, hashes, module.SPEC.model_types)
    config = checkpoint.config()
    asked = families.parse_options(module.Prepare, dict(options))
    with loading(f"{checkpoint.id}: config.json does not fit {name}"):
        prepare = module.resolve(asked, config)
    return Family(name, module, prepare, checkpoint, config)


def precache(
    context: Context,
    collection: Collection,
    pruned: Manifest | None,
    family: Family,
    report: Callable[[Plan], None] = lambda plan: None,
) -> Manifest:
    """Compute the page caches that have no shard yet. With ``pruned`` None they hold every token.

    ``report`` gets the plan before the model is loaded. For a scorer that reads text, the manifest counts the pages
    without text (``without_text``). Raises MmrrError if the disk cannot hold the caches.
    """
    workspace = context.workspace
    devices = resolve_devices(context.machine.device)
    dtype = resolve_dtype(context.machine.dtype, devices[0])
    spec = _spec(collection, pruned, family, dtype)
    if done := workspace.done(spec):
        return done
    kept_shards = manifests.content(pruned, "prune")["shards"] if pruned else {}
    shards, shared = _shards(spec, collection, kept_shards, family), spec.shard_key("shared")
    missing = {pages: key for pages, key in shards.items() if not workspace.has_shard("precache", key)}
    singles = _stored_singles(workspace, spec, collection, missing) if devices[0].type == "cpu" else {}
    known = frozenset((pages, number) for pages, own in singles.items() for number in own)
    plan = _plan(
        workspace, collection, family, {pages: kept_shards.get(pages) for pages in missing}, dtype.itemsize, known
    )
    report(plan)
    if plan.total_bytes > plan.free_bytes:
        raise MmrrError(
            f"the caches need {plan.total_bytes / 1e9:.1f} GB and {workspace.root} has {plan.free_bytes / 1e9:.1f} GB "
            "free; free some, choose another --work, or lower --keep"
        )
    tasks = [_Task(key, pages, kept_shards.get(pages), singles=singles.get(pages)) for pages, key in missing.items()]
    if not workspace.has_shard("precache", shared):
        tasks.insert(0, _Task(shared))
    seconds = 0.0
    if tasks:
        # Helper processes of several devices load their own.
        loaded = context.loaded if len(devices) == 1 else None
        load = _Load(workspace, collection, family.name, family.checkpoint, family.prepare, dtype, loaded)
        seconds = on_devices(devices, load, tasks, context.progress("precache", plan.missing))
    keep = manifests.config(pruned, "prune")["keep"] if pruned else 1.0
    content = _content(workspace, collection, shards, shared, keep)
    if family.module.page_input(family.prepare) == "text":
        content["without_text"] = sum(not text.strip() for text in read_texts(workspace, collection))
    timing: Timing = {"pages_computed": plan.missing, "seconds": round(seconds, 3)}
    return _commit(workspace, spec, content, timing)


def prepare_pages(
    context: Context,
    collection: Collection,
    pruned: Manifest | None,
    family: Family,
    rows: Sequence[int],
    *,
    build: bool = True,
) -> Manifest:
    """The caches of the pages at ``rows`` alone: those that are missing are computed, each into a shard of its own.

    ``precache`` of the whole collection reads them from there later. The manifest has the fingerprint of that artifact
    and is not committed; if the artifact is there, it is returned. With ``build`` False nothing is computed: the
    manifest names the scorer and the pages, for a forward without caches. Raises MmrrError for a cache that is not
    finite.
    """
    workspace = context.workspace
    devices = resolve_devices(context.machine.device)
    dtype = resolve_dtype(context.machine.dtype, devices[0])
    spec = _spec(collection, pruned, family, dtype)
    if done := workspace.done(spec):
        return done
    kept_shards = manifests.content(pruned, "prune")["shards"] if pruned else {}
    shards, shared = _shards(spec, collection, kept_shards, family), spec.shard_key("shared")
    content: PrecacheContent = {"pages": 0, "page_bytes": 0, "keep": 1.0, "shards": shards, "shared": shared}
    if build:
        content["singles"] = singles = {}
        tasks = [] if workspace.has_shard("precache", shared) else [_Task(shared)]
        asked = dict.fromkeys(collection.shards[row] for row in rows)
        whole = {pages for pages in asked if workspace.has_shard("precache", shards[pages])}
        for row in rows:
            pages, number = collection.shards[row], collection.pages[row].number
            if pages in whole or f"{pages}/{number}" in singles:
                continue
            singles[f"{pages}/{number}"] = key = _single_key(spec, shards[pages], number)
            if not workspace.has_shard("precache", key):
                tasks.append(_Task(key, pages, kept_shards.get(pages), number))
        n_pages = sum(task.pages is not None for task in tasks)
        if tasks:
            load = _Load(workspace, collection, family.name, family.checkpoint, family.prepare, dtype, context.loaded)
            on_devices(devices[:1], load, tasks, context.progress("precache", n_pages))
        content["pages"] = n_pages
    values = (spec.stage, spec.fingerprint, spec.schema, dict(spec.config), spec.inputs, spec.model)
    return Manifest(*values, manifests.as_json(content), 0, {}, kept=False)


def _single_key(spec: Spec, whole: str, number: int) -> str:
    """The shard with the cache of one page of the pages that the shard ``whole`` would hold."""
    return spec.shard_key("page", whole, str(number))


def _stored_singles(
    workspace: Workspace, spec: Spec, collection: Collection, missing: Mapping[str, str]
) -> dict[str, dict[int, str]]:
    """{shard of pages: {page number: the shard with its cache alone}}, of ``missing`` {shard of pages: its shard}.

    Only where each page is computed alone, on the CPU, are the caches of single pages the same to the byte.
    """
    found: dict[str, dict[int, str]] = {}
    for pages, whole in missing.items():
        for page in collection.by_shard[pages]:
            key = _single_key(spec, whole, page.number)
            if workspace.has_shard("precache", key):
                found.setdefault(pages, {})[page.number] = key
    return found


def keep_cached(context: Context, cached: Manifest, collection: Collection, inputs: dict[str, str]) -> Manifest:
    """The ``precache`` artifact of a part of the pages of another one. Nothing is computed."""
    workspace = context.workspace
    spec = Spec("precache", cached.schema, cached.config, inputs, cached.model)
    if done := workspace.done(spec):
        return done
    known = manifests.content(cached, "precache")
    shards = {pages_key: known["shards"][pages_key] for pages_key in collection.by_shard}
    content = _content(workspace, collection, shards, known["shared"], known["keep"])
    if "without_text" in known:
        content["without_text"] = sum(not text.strip() for text in read_texts(workspace, collection))
    return _commit(workspace, spec, content, {"pages_computed": 0, "seconds": 0.0})


def _content(
    workspace: Workspace, collection: Collection, shards: PageShards, shared: str, keep: float
) -> PrecacheContent:
    size = _bytes(workspace, shards, shared)
    return {
        "pages": len(collection.pages),
        "page_bytes": round(size / max(1, sum(map(len, collection.by_shard.values())))),
        "keep": keep,
        "shards": shards,
        "shared": shared,
    }


def _bytes(workspace: Workspace, shards: PageShards, shared: str) -> int:
    return workspace.shard_bytes("precache", [*shards.values(), shared])


def _commit(workspace: Workspace, spec: Spec, content: PrecacheContent, timing: Timing) -> Manifest:
    return workspace.commit(spec, content, _bytes(workspace, content["shards"], content["shared"]), timing)


def _spec(collection: Collection, pruned: Manifest | None, family: Family, dtype: torch.dtype) -> Spec:
    inputs = {"pages": collection.manifest.fingerprint} | ({"prune": pruned.fingerprint} if pruned else {})
    config: PrecacheConfig = {
        "family": family.name,
        "options": families.stored_options(family.prepare),
        "wording": family.module.prompt(family.prepare),
    }
    return Spec("precache", 1, config, inputs, family.checkpoint.identity(dtype_name(dtype)))


def _shards(spec: Spec, collection: Collection, kept_shards: PageShards, family: Family) -> PageShards:
    """The shard of caches of each shard of pages: it depends on the images, the kept tokens, and text that is read."""
    # Text that OCR read lies in another shard than the images.
    by_ocr: PageShards = {}
    if family.module.page_input(family.prepare) == "text":
        both = zip(collection.shards, collection.text_shards, strict=True)
        by_ocr = {pages: text for pages, text in both if text != pages}
    return {
        pages: spec.shard_key(pages, kept_shards.get(pages, "all"), *([by_ocr[pages]] if pages in by_ocr else []))
        for pages in collection.by_shard
    }


@dataclass(frozen=True, slots=True)
class _Task:
    """A shard to compute."""

    key: str
    pages: str | None = None  # its shard of pages; None: the cache that all pages share
    kept: str | None = None  # the shard with its kept tokens; None: every token
    number: int | None = None  # of the only page to compute; None: every page of the shard
    singles: Mapping[int, str] | None = None  # {page number: the shard that has its cache already}


@dataclass(frozen=True, slots=True)
class _Load:
    """Loads the scorer on a device. It is sent to helper processes where there are several devices."""

    workspace: Workspace
    collection: Collection
    family: str
    checkpoint: Checkpoint
    prepare: Options
    dtype: torch.dtype
    loaded: Loaded | None  # where models stay in memory

    def __call__(self, device: torch.device) -> Work:
        module = families.load("scorers", self.family)
        key = ("scorer", self.family, self.checkpoint.revision, self.prepare, str(device), self.dtype)
        scorer = (self.loaded or LoadsEachTime()).get(
            key, lambda: module.load(self.checkpoint, self.prepare, device, self.dtype)
        )
        reads = module.page_input(self.prepare)
        n_together = 1 if device.type == "cpu" else SHARD_PAGES

        def prepare_shard(task: _Task, advance: Callable[[int], None]) -> None:
            caches: dict[str, PageCache] = {} if task.pages else {"shared": scorer.shared_state()}
            if not task.pages:
                expect_finite("the instruction", self.checkpoint.id, _states(caches["shared"]))
            kept = read_kept_tokens(self.workspace, task.kept) if task.kept else {}
            pages = self.collection.by_shard[task.pages] if task.pages else []
            if task.number is not None:
                pages = [page for page in pages if page.number == task.number]
            known = _read_singles(self.workspace, task.singles or {})
            order, pages = [page_name(page) for page in pages], [page for page in pages if page.number not in known]
            for first in range(0, len(pages), n_together):
                some = pages[first : first + n_together]
                contents = [read_content(self.workspace, self.collection, page, reads) for page in some]
                prepared = scorer.prepare(contents, [kept.get(page.number) for page in some])
                for page, cache in zip(some, prepared, strict=True):
                    expect_finite(f"page {page.page_id}", self.checkpoint.id, _states(cache))
                caches |= zip(map(page_name, some), prepared, strict=True)
                advance(len(some))
            if known:
                caches |= {f"{number:04d}": cache for number, cache in known.items()}
                caches = {name: caches[name] for name in order}
            folder = self.workspace.scratch()
            self.workspace.commit_shard("precache", task.key, folder, write_page_caches(folder, caches))

        return prepare_shard


def _read_singles(workspace: Workspace, singles: Mapping[int, str]) -> dict[int, PageCache]:
    """The caches of single pages; one that is damaged is set aside, and its page is read again."""
    reader, found = PageCacheReader(workspace), {}
    for number, key in singles.items():
        with contextlib.suppress(MmrrError):
            found[number] = reader.read(key, f"{number:04d}")
    return found


def _states(cache: PageCache) -> dict[str, torch.Tensor]:
    return {f"states ({name})": tensor for name, tensor in cache.items()}


def _plan(
    workspace: Workspace,
    collection: Collection,
    family: Family,
    missing: Mapping[str, str | None],
    dtype_bytes: int,
    known: Set[tuple[str, int]],
) -> Plan:
    """``missing``: {shard of pages to compute: the shard with its kept tokens, or None}.

    ``known``: (shard, page number) of its pages whose caches are there.
    """
    sizes = []
    for pages_key, kept_key in missing.items():
        kept: dict[int, KeptTokens] = read_kept_tokens(workspace, kept_key) if kept_key else {}
        for page in collection.by_shard[pages_key]:
            of_page = kept.get(page.number)
            n_tokens = len(of_page.indices) if of_page else family.tokens(page)
            sizes.append(family.module.cache_bytes(family.prepare, family.config, n_tokens, dtype_bytes))
    free = shutil.disk_usage(workspace.root).free
    reads_text = family.module.page_input(family.prepare) == "text"
    n_missing, mean = len(sizes) - len(known), sum(sizes) // max(1, len(sizes))
    return Plan(len(collection.pages), n_missing, mean, sum(sizes), free, reads_text)
