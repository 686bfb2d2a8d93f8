"""Where a page's score for a query comes from: a heat map over the page's visual tokens.

There are two sources. The *embedder*, with late interaction: the products of a word's vectors with the page's stored
vectors. The *reranker*: the attention of the query's tokens to the visual tokens in the page's cache. Nothing is
written, and the reranker does not read the page again.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmrr import heat_map
from mmrr.context import Context
from mmrr.contracts import Embedder, QueryWord, SupportsAttention, SupportsWordVectors
from mmrr.errors import MmrrError
from mmrr.modeling import families
from mmrr.modeling.contract_check import has_ability
from mmrr.stages import retrieve
from mmrr.stages._query_vectors import load_embedder
from mmrr.stages._scoring import load_scorer
from mmrr.types import Embedding, Grid
from mmrr.workspace import manifests
from mmrr.workspace.pages import Collection, page_row, read_image
from mmrr.workspace.store import Manifest
from mmrr.workspace.tensors import PageCacheReader, page_name, read_embeddings, read_kept_tokens

Source = Literal["reranker", "embedder"]
#: Divisor of the distance from the median product to the largest one, where a checkpoint has no temperature. For the
#: checkpoint that comes with mmrr and has one, the distance is 13 temperatures on average.
_SPREAD = 12
#: The kinds of families that may have evidence, and the ability that they need for it.
_FAMILIES: tuple[tuple[families.Described, type], ...] = (
    ("embedders", SupportsWordVectors),
    ("scorers", SupportsAttention),
)


class NoEvidenceError(MmrrError):
    """The workspace has nothing that evidence is computed from."""


class WrongChoiceError(MmrrError):
    """The query has no such word, or the source no such layer."""


class Word(NamedTuple):
    """A word of the query, up to its last letter or digit."""

    text: str
    index: int  # type: ignore[assignment]  # from 0, in the order of the query; hides tuple.index


@dataclass(frozen=True)
class Evidence:
    """A heat map of one page for one query."""

    query: str
    page_id: str
    source: Source
    sources: tuple[Source, ...]  # those that this workspace has
    words: tuple[Word, ...]
    word: Word | None  # whose heat it is; None: of the whole query
    heat: NDArray[np.float32]  # (rows, columns), 0 to 1; the largest is 1
    kept: NDArray[np.bool_]  # (rows, columns): False where pruning dropped the token
    _page: Callable[[], Image.Image] = field(repr=False, compare=False)

    def image(self) -> Image.Image:
        """The page with the heat over it, in RGB, with the query, its words and a legend.

        Raises MmrrError if the page image is gone or damaged.
        """
        word = None if self.word is None else self.word.index
        caption = heat_map.Caption(self.page_id, self.query, [one.text for one in self.words], word, self.source)
        return heat_map.draw(self._page(), self.heat, self.kept, caption)

    def _repr_png_(self) -> bytes:
        """The picture, for notebooks."""
        buffer = io.BytesIO()
        self.image().save(buffer, "PNG")
        return buffer.getvalue()


@dataclass(frozen=True)
class _Page:
    """A page, and the artifacts that its evidence is computed from."""

    context: Context
    indexed: Manifest
    collection: Collection
    row: int
    embedded: Manifest | None
    cached: Manifest | None

    @property
    def sources(self) -> tuple[Source, ...]:
        found = {"reranker": self.cached, "embedder": self.embedded}
        return tuple(name for name in get_args(Source) if found[name])


def explain(
    context: Context,
    query: str,
    page_id: str,
    *,
    word: int | str | None = None,
    source: str | None = None,
    layer: int | None = None,
) -> Evidence:
    """The evidence for a query on a page of the current index.

    ``word``: the number of a word, from 0, or a word of the query; None: the whole query. ``source``: ``embedder`` or
    ``reranker``; None: the reranker if the pages have caches that show evidence. ``layer``: of the reranker's layers
    that see the page, from 0; None: their sum. A page with tiles is explained by its own image; a tile has its own id.
    Raises NoEvidenceError if the workspace has no such source, WrongChoiceError for a word or a layer that is not
    there, and MmrrError for an empty query and a page that is not in the index.
    """
    if not query.strip():
        raise MmrrError("the query is empty; expected a question or some words")
    page = _open(context, page_id)
    chosen = _source(page, source)
    compute = _by_reranker if chosen == "reranker" else _by_embedder
    words, pick, heat, grid = compute(page, query, word, layer)
    kept = _kept(page, grid)
    if chosen == "reranker":
        heat = _spread(heat, kept)
    named = tuple(Word(one.text, index) for index, one in enumerate(words))
    shown = page.collection.pages[page.row]
    return Evidence(
        query,
        shown.page_id,
        chosen,
        page.sources,
        named,
        None if pick is None else named[pick],
        heat.reshape(grid).astype(np.float32),
        kept,
        functools.partial(read_image, context.workspace, shown),
    )


def _open(context: Context, page_id: str) -> _Page:
    """Find the page, and which sources of evidence it has."""
    indexed = context.current("index")
    collection = context.collection(indexed)
    row = page_row(collection, page_id)
    embedded = context.workspace.find("embed", indexed.inputs["embed"]) if "embed" in indexed.inputs else None
    if embedded:
        module = families.load("embedders", manifests.config(embedded, "embed")["family"])
        if not (module.SPEC.multi_vector and has_ability(module, SupportsWordVectors)):
            embedded = None
    cached = context.find_current("precache")
    if cached:
        scorer = families.load("scorers", manifests.config(cached, "precache")["family"])
        if cached.inputs["pages"] != indexed.inputs["pages"] or not has_ability(scorer, SupportsAttention):
            cached = None
    return _Page(context, indexed, collection, row, embedded, cached)


def _source(page: _Page, asked: str | None) -> Source:
    known: tuple[Source, ...] = get_args(Source)
    if asked is not None and asked not in known:
        raise WrongChoiceError(f"source '{asked}'; expected one of: {', '.join(known)}")
    fits = [name for name in page.sources if asked in (None, name)]
    if not fits:
        names = {kind: ", ".join(_with_ability(kind, ability)) for kind, ability in _FAMILIES}
        where = f"its {asked} has" if asked else "neither vectors nor page caches have"
        raise NoEvidenceError(
            f"nothing shows where a score in this workspace comes from: {where} no evidence; expected vectors of a "
            f"late-interaction embedder ({names['embedders']}), or page caches of the index by {names['scorers']}"
        )
    return fits[0]


def _with_ability(kind: families.Described, ability: type) -> list[str]:
    return [name for name in families.names(kind) if has_ability(families.load(kind, name), ability)]


def _pick(words: Sequence[QueryWord], asked: int | str | None) -> int | None:
    """The index of a word that is named by its number or its text."""
    if asked is None:
        return None
    texts = [word.text.casefold() for word in words]
    if isinstance(asked, str):
        text = asked.strip().casefold()
        if text in texts:
            return texts.index(text)
        if not text.isascii() or not text.isdecimal():
            raise WrongChoiceError(f"the query has no word '{asked}'; {_listed(words)}")
        asked = int(text[:9])
    if not 0 <= asked < len(words):
        raise WrongChoiceError(f"the query has no word {asked}; {_listed(words)}")
    return asked


def _listed(words: Sequence[QueryWord]) -> str:
    shown = ", ".join(f"{index} {word.text}" for index, word in enumerate(words[:20]))
    return f"expected one of: {shown}{', ...' if len(words) > 20 else ''}" if words else "it has no words"


_Found = tuple[Sequence[QueryWord], int | None, NDArray[np.float32], Grid]


def _by_reranker(page: _Page, query: str, word: int | str | None, layer: int | None) -> _Found:
    """Attention to the kept tokens: (words, chosen word, heat (K,), grid)."""
    assert page.cached
    workspace, number = page.context.workspace, page.collection.pages[page.row]
    scorer = cast(SupportsAttention, load_scorer(page.context, page.cached))
    words = scorer.word_tokens(query)
    pick = _pick(words, word)
    known, shard = manifests.content(page.cached, "precache"), page.collection.shards[page.row]
    reader = PageCacheReader(workspace)
    cache = reader.read(known["shards"][shard], page_name(number))
    tokens = [-1] if pick is None else words[pick].places
    weights = scorer.attention(query, cache, reader.read(known["shared"], "shared"), tokens).numpy()
    return words, pick, attention_heat(weights, layer), scorer.grid(number.width_px, number.height_px)


def _by_embedder(page: _Page, query: str, word: int | str | None, layer: int | None) -> _Found:
    """Products with the page's vectors: (words, chosen word, heat (T,), grid)."""
    assert page.embedded
    if layer is not None:
        raise WrongChoiceError("the evidence of the embedder has no layers: leave out the layer")
    embedder = load_embedder(page.context, page.embedded)
    family = families.load("embedders", manifests.config(page.embedded, "embed")["family"])
    search = family.Search()
    words = cast("SupportsWordVectors[Any]", embedder).word_vectors(query, search)
    pick = _pick(words, word)
    vectors = embedder.embed_queries([query], search)[0].cpu().numpy()
    temperature = embedder.temperature(search)
    weights = retrieve.vector_weights(page.context, page.indexed, vectors, temperature)
    embedding, owners = _stored(page, embedder)
    rows = list(range(len(vectors)) if pick is None else words[pick].places)
    if not rows:
        raise WrongChoiceError(f"the embedder has no vector of the word '{words[pick or 0].text}'; choose another")
    by_vector = product_heat(vectors[rows], embedding.vectors.float().numpy(), weights[rows], temperature)
    heat = np.where(owners < 0, 0, by_vector[owners]).astype(np.float32)
    return words, pick, _scaled(heat), embedding.grid


def _stored(page: _Page, embedder: Embedder) -> tuple[Embedding, NDArray[np.int64]]:
    """A page's vectors, and the row of each visual token's vector.

    An earlier mmrr did not store the rows of pooled vectors. The embedder then reads the page again.
    """
    assert page.embedded
    one = page.collection.pages[page.row]
    shards = manifests.content(page.embedded, "embed")["shards"]
    found = read_embeddings(page.context.workspace, shards[page.collection.shards[page.row]])[one.number]
    n_tokens = found.saliency.numel()
    if found.owners is None and len(found.vectors) < n_tokens:
        (found,) = embedder.embed_pages([read_image(page.context.workspace, one)])
    owners = np.arange(n_tokens) if found.owners is None else found.owners.numpy().astype(np.int64)
    return found, owners


def _kept(page: _Page, grid: Grid) -> NDArray[np.bool_]:
    """(rows, columns) of ``grid``: the tokens that the page caches hold, else those of the current pruning."""
    pruned = None
    if page.cached:
        if "prune" in page.cached.inputs:
            pruned = page.context.workspace.find("prune", page.cached.inputs["prune"])
            if pruned is None:
                raise MmrrError("the kept tokens of the page caches were removed; run mmrr precache again")
    elif page.embedded:
        found = page.context.find_current("prune")
        pruned = found if found and found.inputs["embed"] == page.embedded.fingerprint else None
    if pruned is None:
        return np.ones(grid, dtype=np.bool_)
    shard = manifests.content(pruned, "prune")["shards"][page.collection.shards[page.row]]
    kept = read_kept_tokens(page.context.workspace, shard)[page.collection.pages[page.row].number]
    mask = np.zeros(kept.grid[0] * kept.grid[1], dtype=np.bool_)
    mask[kept.indices.numpy()] = True
    rows, columns = (np.arange(n) * own // n for n, own in zip(grid, kept.grid, strict=True))
    resampled: NDArray[np.bool_] = mask.reshape(kept.grid)[rows][:, columns]
    return resampled


def _spread(heat: NDArray[np.float32], kept: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The heat of the kept tokens (K,) on the whole grid, (T,)."""
    if int(kept.sum()) != len(heat):
        raise MmrrError(
            f"found a page cache of {len(heat)} visual tokens; expected {int(kept.sum())}; run mmrr precache again"
        )
    whole = np.zeros(kept.size, dtype=np.float32)
    whole[kept.ravel()] = heat
    return whole


def attention_heat(weights: NDArray[np.float32], layer: int | None = None) -> NDArray[np.float32]:
    """Heat (K,) of attention weights (L, K): their sum over the layers, or one layer, divided by the largest.

    Raises WrongChoiceError for a layer that is not there.
    """
    if layer is not None and not 0 <= layer < len(weights):
        raise WrongChoiceError(f"layer {layer}: expected 0 to {len(weights) - 1}, of the layers that see the page")
    return _scaled(weights.sum(axis=0) if layer is None else weights[layer])


def product_heat(
    query: NDArray[np.float32], page: NDArray[np.float32], weights: NDArray[np.float32], temperature: float
) -> NDArray[np.float32]:
    """Heat (V,) of a page's vectors (V, D) for query vectors (M, D).

    Of one query vector it is exp((s - s_max) / ``temperature``) with the products s: 1 for the page vector that gives
    the score. Several are added, each times what it adds to the score: its weight (M,) times its largest product, at
    least 0. A temperature of 0 stands for 1/12 of the distance from the median product to the largest.
    """
    products = query @ page.T
    best = products.max(axis=1, keepdims=True)
    spread = temperature or np.maximum((best - np.median(products, axis=1, keepdims=True)) / _SPREAD, 1e-6)
    parts = np.maximum(weights[:, None] * best, 0)
    if not parts.any():  # no vector adds to the score, as in a collection of one page
        parts = np.ones_like(parts)
    return _scaled((parts * np.exp((products - best) / spread)).sum(axis=0).astype(np.float32))


def _scaled(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    largest = float(heat.max(initial=0.0))
    return heat / np.float32(largest) if largest > 0 else heat
