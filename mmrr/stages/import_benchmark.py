"""Stage ``pages`` from a published benchmark: its page images, or its texts without an image."""

from __future__ import annotations

from mmrr.context import Context
from mmrr.evaluation.hub_dataset import table_id
from mmrr.evaluation.published import Published
from mmrr.stages._imported import Import, Item, collect
from mmrr.workspace.files import digest
from mmrr.workspace.store import Manifest, Spec


def read_pages(context: Context, published: Published, max_tokens: int) -> Manifest:
    """The documents of a benchmark as a collection. The files are read once, the pages of one shard at a time.

    The collection depends on the files of the corpus, not on the queries: the languages of one corpus share it.
    """
    content = table_id(published.corpus, context.workspace.hashes.sha256)
    images = published.has_images
    config = {"file": published.corpus.name, "text": "image" if images else "text", "max_tokens": max_tokens}
    places = [place for place in published.places if place]
    chosen = {"documents": [digest(places)]}
    spec = Spec("pages", 1, {**config, **chosen}, {"documents": digest(content)})
    if done := context.workspace.done(spec):
        return done
    plan = Import(spec, digest(content), config, "{:04d}", max_tokens, published.entry.name, len(places), by_page=True)
    return collect(context, plan, (Item(page.doc_id, page.number, page.image, page.text) for page in published.pages()))
