"""``mmrr.Reranker``: scores page images for queries without a workspace. Each page is read once."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mmrr.config import Model, Render
from mmrr.contracts import SupportsVisualQueries, VisualQuery
from mmrr.documents.image_input import PageImage, read_image
from mmrr.errors import MmrrError, UnsupportedQueryError
from mmrr.modeling import families
from mmrr.modeling.devices import dtype_name, resolve_device, resolve_dtype
from mmrr.modeling.loaded import Loaded, LoadsEachTime
from mmrr.queries import QueryLike, as_query, pixels
from mmrr.stages.precache import family_of
from mmrr.types import PageCache, Query
from mmrr.workspace.artifact import Manifest, Spec
from mmrr.workspace.files import HashCache
from mmrr.workspace.store import Workspace
from mmrr.workspace.tensors import PageCacheReader, write_page_caches

#: The name of the only page in a shard of a cache folder.
_PAGE = "0001"


class Ranked(TypedDict):
    """One document of a ranking, as ``CrossEncoder.rank`` of sentence-transformers names its fields."""

    corpus_id: int  # the document's place in the list that was given
    score: float  # sigmoid of the logit: 0 to 1
    logit: float  # what the order follows


class Reranker:
    """A reranker in memory. Pages are prepared once and found again by their content.

    Methods may be called from several threads; they run one after another.
    """

    def __init__(
        self,
        model: str,
        *,
        scorer: str = "minireranker",
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        options: Mapping[str, object] | None = None,
        score_options: Mapping[str, object] | None = None,
        memory: int = 1 << 30,
        max_tokens: int = Render().max_tokens,
        loaded: Loaded | None = None,
    ) -> None:
        """Load a checkpoint. The parameters have the meaning of the options of ``mmrr precache`` and ``mmrr rerank``.

        Args:
            model: a Hub id, a local folder, or the name of a model that mmrr includes.
            scorer: the scorer family; ``mmrr models`` lists them.
            revision: branch, tag or commit of a Hub id.
            options: options of the family that change page caches, e.g. ``{"codec": "int8"}``.
            score_options: options of the family that change scores only, e.g. ``{"exit_layer": 5}``.
            memory: bytes of page caches that stay in memory.
            max_tokens: most visual tokens of a page image, 32 x 32 pixels each.
            loaded: models that are shared with workspaces; one thread at a time may then use them.

        Raises:
            MmrrError: the checkpoint is not found or does not fit the family, or an option is unknown.
        """
        self._device = resolve_device(device)
        number_format = resolve_dtype(dtype, self._device)
        given = {name: str(value) for name, value in (options or {}).items()}
        family = family_of(HashCache(), scorer, Model(model, revision), given)
        module = family.module
        scores = {name: str(value) for name, value in (score_options or {}).items()}
        self._score_as = families.parse_options(module.Score, scores)
        self._reads = module.page_input(family.prepare)
        self._spec = Spec(
            "precache",
            1,
            {
                "family": scorer,
                "options": families.stored_options(family.prepare),
                "wording": module.prompt(family.prepare),
            },
            {},
            family.checkpoint.identity(dtype_name(number_format)),
        )
        key = ("scorer", scorer, family.checkpoint.revision, family.prepare, str(self._device), number_format)
        self._scorer = (loaded or LoadsEachTime()).get(
            key, lambda: module.load(family.checkpoint, family.prepare, self._device, number_format)
        )
        self._shared = {name: tensor.to(self._device) for name, tensor in self._scorer.shared_state().items()}
        self.model, self.max_tokens, self.listwise = model, max_tokens, module.SPEC.listwise
        self._family, self._memory = scorer, memory
        self._caches: OrderedDict[str, PageCache] = OrderedDict()
        self._bytes = 0
        self._folder: Workspace | None = None
        self._lock = threading.RLock()

    @property
    def reads(self) -> Literal["image", "text"]:
        """What a document is: the image of a page, or its text."""
        return self._reads

    @property
    def revision(self) -> str:
        """The checkpoint's commit on the Hub, or the hash of its files."""
        assert self._spec.model
        return self._spec.model["revision"]

    def made(self, caches: Manifest) -> bool:
        """Whether page caches of a workspace are those of this reranker: the same model, options and prompt."""
        # The name of a model may be a path: only its revision and its number format count.
        same = Spec("precache", caches.schema, caches.config, {}, caches.model)
        return same.fingerprint == self._spec.fingerprint

    def refusal(self, query: Query) -> UnsupportedQueryError | None:
        """Why the scorer family does not take the query, if it has an image; None: it does."""
        try:
            if query.image:
                families.expect_visual("scorers", self._family)
        except UnsupportedQueryError as error:
            return error
        return None

    def rank(self, query: QueryLike, documents: Sequence[PageImage], top_k: int | None = None) -> list[Ranked]:
        """The documents from the best to the worst, at most ``top_k``; equal logits in the given order.

        ``query`` is a text, an image (a path, the bytes of a file or a Pillow image), or both: ``{"text": ...,
        "image": ...}``.
        ``documents`` are page images: paths, bytes of image files, data URIs or Pillow images. For a scorer that reads
        text, they are the texts of pages. Raises MmrrError for an image that cannot be read, with its place.
        """
        if top_k is not None and top_k < 1:
            raise MmrrError(f"top_k is {top_k}; expected 1 or more")
        logits = self._logits(query, documents)
        scores = torch.sigmoid(logits)
        order = sorted(range(len(documents)), key=lambda i: -float(logits[i]))[:top_k]
        return [{"corpus_id": i, "score": float(scores[i]), "logit": float(logits[i])} for i in order]

    def predict(self, pairs: Sequence[tuple[QueryLike, PageImage]], *, logits: bool = False) -> NDArray[np.float32]:
        """The score of each (query, document) pair, (N,) float32: sigmoid of the logit, or the logit itself.

        The pairs of one query are scored together. For a listwise scorer they are one list.
        """
        by_query: dict[Query, list[int]] = {}
        known: dict[int, Query] = {}  # an image that several pairs share is read once
        for i, (given, _) in enumerate(pairs):
            query = known.get(id(given)) or known.setdefault(id(given), as_query(given))
            by_query.setdefault(query, []).append(i)
        found = torch.empty(len(pairs))
        for query, places in by_query.items():
            found[torch.tensor(places)] = self._logits(query, [pairs[i][1] for i in places])
        scores: NDArray[np.float32] = (found if logits else torch.sigmoid(found)).numpy()
        return scores

    def prepare(self, documents: Sequence[PageImage]) -> None:
        """Read these documents now, so that a later query finds their caches."""
        with self._lock, torch.inference_mode():
            self._page_caches(documents)

    @contextlib.contextmanager
    def cache(self, folder: str | Path) -> Iterator[Reranker]:
        """Keep page caches in a folder too, by their content: another process with the same model finds them.

        Raises MmrrError if the folder holds other files or cannot be written.
        """
        with Workspace.open(Path(folder), create=True) as opened:
            before, self._folder = self._folder, opened
            try:
                yield self
            finally:
                self._folder = before

    def _logits(self, given: QueryLike, documents: Sequence[PageImage]) -> torch.Tensor:
        query = as_query(given)
        if error := self.refusal(query):
            raise error
        if not documents:
            return torch.zeros(0)
        with self._lock, torch.inference_mode():
            caches = [
                {name: tensor.to(self._device) for name, tensor in cache.items()}
                for cache in self._page_caches(documents)
            ]
            logits = self._scorer.score(self._encoded(query), caches, self._shared, self._score_as)
        if not torch.isfinite(logits).all():
            raise MmrrError(
                f"{self._spec.model and self._spec.model['id']} gave scores that are not finite; try float32"
            )
        return logits.float().cpu()

    def _encoded(self, query: Query) -> Any:
        if query.image is None:
            return self._scorer.encode_query(query.text)
        assert isinstance(self._scorer, SupportsVisualQueries)
        return self._scorer.encode_visual_query(VisualQuery(query.text, pixels(query.image, self.max_tokens)))

    def _page_caches(self, documents: Sequence[PageImage]) -> list[PageCache]:
        """The cache of each document, in order. Documents of equal content are prepared once."""
        pages = [self._page(i, document) for i, document in enumerate(documents)]
        keys = [self._spec.shard_key(_content(page)) for page in pages]
        found = {key: cache for key in dict.fromkeys(keys) if (cache := self._stored(key)) is not None}
        for key, page in dict(zip(keys, pages, strict=True)).items():
            if key not in found:
                (found[key],) = self._scorer.prepare([page], [None])
                self._store(key, found[key])
        for key, cache in found.items():
            self._remember(key, cache)
        return [found[key] for key in keys]

    def _page(self, i: int, document: PageImage) -> Image.Image | str:
        if self._reads == "text":
            if not isinstance(document, str):
                raise MmrrError(f"document {i}: found {type(document).__name__}; this scorer reads text")
            return document
        try:
            return read_image(document, self.max_tokens)
        except MmrrError as error:
            raise MmrrError(f"document {i}: {error}") from error

    def _stored(self, key: str) -> PageCache | None:
        if key in self._caches:
            return self._caches[key]
        if self._folder and self._folder.has_shard("precache", key):
            # A damaged shard is set aside, and the page is read again.
            with contextlib.suppress(MmrrError):
                cache = PageCacheReader(self._folder).read(key, _PAGE)
                return {name: tensor.clone() for name, tensor in cache.items()}
        return None

    def _store(self, key: str, cache: PageCache) -> None:
        if self._folder:
            folder = self._folder.scratch()
            self._folder.commit_shard("precache", key, folder, write_page_caches(folder, {_PAGE: cache}))

    def _remember(self, key: str, cache: PageCache) -> None:
        if key not in self._caches:
            self._bytes += _size(cache)
            self._caches[key] = cache
        self._caches.move_to_end(key)
        while self._bytes > self._memory:
            _, oldest = self._caches.popitem(last=False)
            self._bytes -= _size(oldest)


def _content(page: Image.Image | str) -> str:
    data = page.encode(errors="surrogatepass") if isinstance(page, str) else page.tobytes()
    head = "text" if isinstance(page, str) else f"{page.width} {page.height}"
    return hashlib.sha256(head.encode() + b"\n" + data).hexdigest()


def _size(cache: PageCache) -> int:
    return sum(tensor.nbytes for tensor in cache.values())
