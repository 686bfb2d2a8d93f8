"""Takes documents out of a collection, and everything that was made of them off the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mmrr.context import Context
from mmrr.errors import MmrrError
from mmrr.pipeline import Collected, can_change, make_current
from mmrr.stages import embed, embed_text, index, precache, prune
from mmrr.workspace import changes, gc, manifests
from mmrr.workspace.gc import Removal
from mmrr.workspace.pages import Collection, load, without
from mmrr.workspace.store import Manifest

#: The stages whose artifacts are made again without the documents. Rankings and measures are removed.
_REDUCED = ("pages", "embed", "embed_text", "index", "prune", "precache")


@dataclass(frozen=True)
class Removed:
    """A collection without some documents, and what was removed from the disk."""

    collected: Collected
    removal: Removal


def remove_documents(context: Context, names: Sequence[str]) -> Removed:
    """Step: take documents out of the collection, the index and the caches, and delete their data. No model is run.

    ``names`` are ids, paths or file names. Artifacts that hold the documents are removed, those of earlier commands
    too. The current ones and all page caches are first made again without the documents, of the shards that are there.
    Shards that another document or artifact needs stay: two files with the same content share theirs.

    Raises MmrrError for a name that is not in the collection or not unique, if no document would be left, and if
    another command uses the workspace.
    """
    workspace = context.workspace
    before = context.current("pages")
    can_change(context, before)
    if workspace.others_running():
        raise MmrrError(f"another mmrr command is working in {workspace.root}; try again when it has ended")
    ids = {changes.find(before, name) for name in names}
    left = {entry["sha256"] for entry in manifests.documents(before) if entry["doc_id"] not in ids}
    contents = {entry["sha256"] for entry in manifests.documents(before)} - left
    artifacts = workspace.artifacts()
    reduced = _Reduced(context, {one.fingerprint: one for one in artifacts}, ids, contents)
    holders = [one for one in artifacts if one.stage == "pages" and reduced.hit(one)]
    doomed = {one.fingerprint: one for one in holders}
    for holder in holders:
        doomed |= {one.fingerprint: one for one in gc.dependents(holder, artifacts)}
    current = set(workspace.all_current.read().values())
    pages = reduced.artifact(before)
    if pages is None:
        raise MmrrError(
            "no document that opens would be left; name others with mmrr index --replace, "
            f"or delete the folder {workspace.root}"
        )
    made = []
    for old in doomed.values():
        if old.stage in _REDUCED and (old.fingerprint in current or old.stage == "precache"):
            new = reduced.artifact(old)
            if new and old.fingerprint in current:
                made.append(new)
    make_current(context, *made)
    removal = gc.remove(workspace, [f"{one.stage}/{one.fingerprint}" for one in doomed.values()], cascade=True)
    return Removed(Collected(pages, changes.compare(manifests.documents(before), manifests.documents(pages))), removal)


@dataclass
class _Reduced:
    """Makes artifacts again without some documents, each once."""

    context: Context
    known: dict[str, Manifest]  # by fingerprint
    ids: set[str]  # of the documents
    contents: set[str]  # content hashes that no other document of the collection has
    _made: dict[str, Manifest | None] = field(default_factory=dict)

    def hit(self, pages: Manifest) -> bool:
        """Whether a collection holds one of the documents, perhaps under an earlier name."""
        return bool(self._gone(pages))

    def _gone(self, pages: Manifest) -> set[str]:
        entries = manifests.documents(pages)
        return {one["doc_id"] for one in entries if one["doc_id"] in self.ids or one["sha256"] in self.contents}

    def artifact(self, old: Manifest) -> Manifest | None:
        """The artifact without the documents; None if nothing is left, or if what it was made of is gone."""
        if old.fingerprint not in self._made:
            self._made[old.fingerprint] = self._make(old)
        return self._made[old.fingerprint]

    def _make(self, old: Manifest) -> Manifest | None:
        if old.stage == "pages":
            if not self.hit(old):
                return old
            gone = self._gone(old)
            opens = any(entry["shards"] for entry in manifests.documents(old) if entry["doc_id"] not in gone)
            return without(self.context.workspace, old, gone) if opens else None
        made = {role: self._input(fingerprint) for role, fingerprint in old.inputs.items()}
        pages = made["pages"]
        if pages is None or None in made.values():
            return None
        return self._of_pages(old, load(self.context.workspace, pages), made)

    def _input(self, fingerprint: str) -> Manifest | None:
        return self.artifact(self.known[fingerprint]) if fingerprint in self.known else None

    def _of_pages(self, old: Manifest, collection: Collection, made: dict[str, Manifest | None]) -> Manifest:
        if old.stage == "embed":
            return embed.keep_embedded(self.context, old, collection)
        if old.stage == "embed_text":
            return embed_text.keep_embedded(self.context, old, collection)
        if old.stage == "index":
            vectors = made.get("embed"), made.get("embed_text")
            return index.build(self.context, collection, *vectors, index.options_of(old))
        inputs = {role: one.fingerprint for role, one in made.items() if one}
        if old.stage == "prune":
            return prune.keep_pruned(self.context, old, collection, inputs)
        return precache.keep_cached(self.context, old, collection, inputs)
