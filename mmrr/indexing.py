"""From pages to an index: which vectors it has, and the stages that make them. Moves nothing; ``pipeline`` does.

A function imports its stages itself: commands that index nothing need no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmrr.config import Index, Model
from mmrr.context import Context
from mmrr.errors import MmrrError
from mmrr.workspace.pages import load
from mmrr.workspace.store import Manifest

#: The name that means no text embedder.
NONE = "none"
#: The notice of an index that has no vectors of text.
_WITHOUT = "no text embedder on this machine: pages are not found by meaning; run: pip install 'mmrr[text]'"


@dataclass(frozen=True)
class Indexing:
    """What an index has besides the words of its pages, and how it is built."""

    embedder: Model | None = None  # vectors of the page images
    embed_options: Mapping[str, str] = field(default_factory=dict)
    text_embedder: Model | None = None  # vectors of the pages' text
    text_options: Mapping[str, str] = field(default_factory=dict)
    index: Index = field(default_factory=Index)


@dataclass(frozen=True)
class TextEmbedding:
    """The text embedder of an index, or None, with its options; and what to say about it."""

    model: Model | None
    options: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def text_embedding(
    context: Context, name: str | None, revision: str | None = None, options: Mapping[str, str] | None = None
) -> TextEmbedding:
    """The text embedder of this name (``none`` for none). Without a name: that of the current index, else minilm.

    minilm is taken where its Python package is installed, so that nothing is downloaded unasked.
    Raises MmrrError if the text embedder of the current index is not found.
    """
    from mmrr.modeling import text_checkpoints
    from mmrr.stages import embed_text

    chosen = dict(options or {})
    if name is not None:
        if name == NONE and (revision or chosen):
            raise MmrrError(f"--text-embedder {NONE} has no revision and no options; leave them out")
        return TextEmbedding(None if name == NONE else Model(name, revision), chosen)
    followed = embed_text.followed(context.workspace, context.workspace.current("index"))
    if followed:
        model, before = followed
        said = f"text embedder {model.name}, as in the current index; --text-embedder {NONE} leaves it out"
        return TextEmbedding(Model(model.name, revision or model.revision), before | chosen, said)
    if text_checkpoints.packaged():
        name = text_checkpoints.MINILM
        said = f"text embedder {name}: pages are found by meaning too; --text-embedder {NONE} leaves it out"
        return TextEmbedding(Model(name), chosen, said)
    return TextEmbedding(None, chosen, _WITHOUT)


def check(context: Context, indexing: Indexing) -> None:
    """Raise the MmrrError of ``build`` for a wrong name or option, before anything is computed."""
    from mmrr.stages import embed, embed_text, index

    if indexing.embedder:
        embed.check(context, indexing.embedder, indexing.embed_options)
    if indexing.text_embedder:
        embed_text.check(context, indexing.text_embedder, indexing.text_options)
    elif indexing.text_options:
        raise MmrrError(f"--text-option {', '.join(indexing.text_options)} needs a text embedder; pass --text-embedder")
    index.check(indexing.index)


def build(context: Context, pages: Manifest, indexing: Indexing) -> list[Manifest]:
    """The artifacts in this order: ``embed`` with an embedder, ``embed_text`` with a text embedder, ``index``."""
    from mmrr.stages import embed, embed_text, index

    collection = load(context.workspace, pages)
    embedded = text_embedded = None
    index.check(indexing.index)  # before the vectors are computed
    if indexing.embedder:
        if not embed.is_multi_vector(context, indexing.embedder, indexing.embed_options):
            index.check_size(indexing.index, len(collection.pages))
        embedded = embed.embed(context, collection, indexing.embedder, indexing.embed_options)
    if indexing.text_embedder:
        text_embedded = embed_text.embed_text(context, collection, indexing.text_embedder, indexing.text_options)
    made = index.build(context, collection, embedded, text_embedded, indexing.index)
    return [one for one in (embedded, text_embedded, made) if one]


def followed(context: Context) -> Indexing:
    """How the current index was built, for other pages. Without an index: words, and meaning where minilm is installed.

    Raises MmrrError if one of its embedders is not found or has changed.
    """
    from mmrr.stages import embed, embed_text, index

    indexed = context.workspace.current("index")
    if indexed is None:
        text = text_embedding(context, None)
        return Indexing(text_embedder=text.model, text_options=text.options)
    model, options = embed.followed(context.workspace, indexed) or (None, {})
    text_model, text_options = embed_text.followed(context.workspace, indexed) or (None, {})
    return Indexing(model, options, text_model, text_options, index.options_of(indexed))
