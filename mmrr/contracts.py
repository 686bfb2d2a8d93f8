"""The contract of a model family: a module in ``mmrr/scorers``, ``mmrr/embedders`` or ``mmrr/text_embedders``.

``families.load`` checks a module against these Protocols and raises one line if a member is missing or has other
parameters. docs/writing-a-scorer.md explains each member with a complete example. This module does not import torch.

The type variables are the types that a family chooses for itself. Code that finds a family by its name does not know
them and writes ``ScorerFamily``, ``Scorer``, ``EmbedderFamily`` ... without parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from typing_extensions import TypeVar

from mmrr.config import DenseOrder
from mmrr.types import Embedding, Grid, KeptTokens, PageCache

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from mmrr.modeling.checkpoints import Checkpoint

#: A checkpoint's config.json. Its authors choose the types of its values, hence Any.
ModelConfig = dict[str, Any]
#: What ``prepare`` reads of a page: its image, or its text.
PageInput = Literal["image", "text"]


class Options(Protocol):
    """A frozen dataclass. Every field has a default and ``metadata["help"]``, which ``mmrr models`` prints.

    The help text says what the value means, in which unit, and what special values such as 0 or "" do. A field whose
    name has changed has ``metadata["formerly"]``, the name under which users may still set it and manifests store it.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


class PageGeometry(NamedTuple):
    """How a scorer divides a page image into visual tokens."""

    cell_px: int  # side of one token, in pixels
    max_tokens: int | None  # most tokens of a page; None: the page image as rendered


@dataclass(frozen=True, slots=True)
class ScorerSpec:
    """What a scorer family is, known without loading a checkpoint."""

    checkpoints: tuple[str, ...]  # the names and Hub ids that ``mmrr models`` lists
    model_types: tuple[str, ...]  # accepted values of config.json's model_type; "*": the tensors identify a checkpoint
    accepts_pruning: bool  # whether ``prepare`` takes pages without their less salient tokens
    listwise: bool  # whether a page's score depends on the other candidates and on their order


@dataclass(frozen=True, slots=True)
class EmbedderSpec:
    """What an embedder family is, known without loading a checkpoint."""

    checkpoints: tuple[str, ...]  # the names and Hub ids that ``mmrr models`` lists
    multi_vector: bool  # True: late interaction, several vectors a page and a query; False: one vector each
    #: Whether one query may be an image with a text. False: ``embed_visual_query`` is given the image alone.
    joint_queries: bool = False


@dataclass(frozen=True, slots=True)
class TextEmbedderSpec:
    """What a text embedder family is, known without loading a checkpoint."""

    checkpoints: tuple[str, ...]  # the names and Hub ids that ``mmrr models`` lists
    model_types: tuple[str, ...]  # values of config.json's model_type; "*": every checkpoint no other family names


class VisualQuery(NamedTuple):
    """A query that is an image, alone or with a text."""

    text: str  # "": the image alone
    image: Image.Image  # RGB, its sides are whole tokens of 32 pixels


class Window(NamedTuple):
    """A part of a page's text that the model reads at once: ``text[start:end]``."""

    start: int
    end: int


class QueryWord(NamedTuple):
    """A word of a query and what a model has of it."""

    text: str
    places: tuple[int, ...]  # rows of its vectors, or its tokens; empty: the model has nothing of this word


#: The family's ``Prepare``: the options that change what is stored of a page.
PrepareT = TypeVar("PrepareT", bound=Options, default=Options)
PrepareT_contra = TypeVar("PrepareT_contra", bound=Options, contravariant=True, default=Options)
#: A scorer family's ``Score``: the options that change only how stored pages are scored.
ScoreT = TypeVar("ScoreT", bound=Options, default=Options)
ScoreT_contra = TypeVar("ScoreT_contra", bound=Options, contravariant=True, default=Options)
#: An embedder family's ``Search``: the options that change only how a query is embedded.
SearchT = TypeVar("SearchT", bound=Options, default=Options)
SearchT_contra = TypeVar("SearchT_contra", bound=Options, contravariant=True, default=Options)
#: What ``encode_query`` returns and ``score`` takes.
QueryT = TypeVar("QueryT", default=object)
QueryT_co = TypeVar("QueryT_co", covariant=True, default=object)
#: What a page is given as: ``Image.Image`` or ``str``.
PageT_contra = TypeVar("PageT_contra", contravariant=True, default="Image.Image | str")


class Scorer(Protocol[PageT_contra, QueryT, ScoreT_contra]):
    """One checkpoint with one set of ``Prepare`` options, on one device."""

    def shared_state(self) -> PageCache:
        """The tensors that all pages share, stored once for each artifact. At least one."""
        ...

    def prepare(self, pages: Sequence[PageT_contra], kept: Sequence[KeptTokens | None]) -> list[PageCache]:
        """The cache of each page, on the CPU. ``kept`` None: the page keeps all its tokens."""
        ...

    def encode_query(self, text: str) -> QueryT:
        """The part of scoring that depends on the query alone. A family without such a part returns ``text``."""
        ...

    def score(self, query: QueryT, caches: Sequence[PageCache], shared: PageCache, options: ScoreT_contra) -> Tensor:
        """The score of each page, (N,) float32 on the CPU; a higher score is a better page.

        A listwise family gets all candidates in the order of the first stage, as a sequence that reads a page when it
        is indexed. Any other family gets them in portions, on the device.
        """
        ...


@runtime_checkable
class SupportsVisualQueries(Protocol[QueryT_co]):
    """A scorer that takes queries with images. Its other methods then take ``VisualQuery`` too."""

    def encode_visual_query(self, query: VisualQuery) -> QueryT_co:
        """As ``encode_query``. ``query.text`` "": the image alone."""
        ...


@runtime_checkable
class SupportsUncached(Protocol[PageT_contra, ScoreT_contra]):
    """A scorer with a forward that uses no cache: the reference of ``mmrr verify --rescore``.

    It gets a ``VisualQuery`` only if it is ``SupportsVisualQueries``.
    """

    def score_uncached(
        self, query: str | VisualQuery, page: PageT_contra, kept: KeptTokens | None, options: ScoreT_contra
    ) -> float:
        """The score of one pair, over the same kept tokens and with the same options as ``score``."""
        ...


@runtime_checkable
class SupportsDense(Protocol):
    """A scorer with the unmodified model's full forward: the baseline of ``mmrr rerank --dense``.

    It gets a ``VisualQuery`` only if it is ``SupportsVisualQueries``.
    """

    def dense(self, query: str | VisualQuery, pages: Sequence[Image.Image], order: DenseOrder) -> Tensor:
        """The score of each page, (N,) float32 on the CPU. ``order``: which of page and query the prompt has first."""
        ...


@runtime_checkable
class SupportsNarrowing(Protocol[PrepareT_contra]):
    """A scorer whose page caches contain those of other options, so that ``mmrr tune`` reads a page once for all."""

    def narrowed(
        self, options: PrepareT_contra, caches: Sequence[PageCache], shared: PageCache
    ) -> tuple[Scorer[Any, Any, Any], list[PageCache], PageCache]:
        """A scorer with these options, and the caches that it would make, from the caches of this one.

        Raises MmrrError if this scorer's caches do not contain them.
        """
        ...


@runtime_checkable
class SupportsAttention(Protocol):
    """A scorer that attends to the visual tokens in a page's cache: the evidence of ``mmrr explain``."""

    def word_tokens(self, query: str) -> list[QueryWord]:
        """The words of a query in their order, each with its tokens."""
        ...

    def grid(self, width_px: int, height_px: int) -> Grid:
        """(rows, columns) of the visual tokens of a whole page image of this size."""
        ...

    def attention(self, query: str, cache: PageCache, shared: PageCache, tokens: Sequence[int]) -> Tensor:
        """Attention (L, K) float32 to the page's kept visual tokens in each layer that sees the page, on the CPU.

        The mean over the heads and over ``tokens`` of the query; -1 is its last token. A row sums to at most 1.
        """
        ...


class ScorerFamily(Protocol[PrepareT, ScoreT, PageT_contra, QueryT]):
    """A module in ``mmrr/scorers``. ``options`` are resolved everywhere but in ``resolve``."""

    SPEC: ScorerSpec
    Prepare: type[PrepareT]  # hashed into every page cache
    Score: type[ScoreT]  # hashed into a run alone: changing it reuses the caches

    def resolve(self, options: PrepareT, config: ModelConfig) -> PrepareT:
        """The options with every automatic value written out for this checkpoint.

        Raises MmrrError for options that do not fit the checkpoint. Runs before anything is computed.
        """
        ...

    def page_input(self, options: PrepareT) -> PageInput:
        """What ``prepare`` reads of a page."""
        ...

    def prompt(self, options: PrepareT) -> dict[str, str]:
        """The fixed text of the prompt by role, hashed into every page cache. {} if there is none."""
        ...

    def grid(self, options: PrepareT, config: ModelConfig, width_px: int, height_px: int) -> Grid:
        """(rows, columns) of the visual tokens of a whole page image of this size. Used for the size estimate."""
        ...

    def pruning_grid(self, options: PrepareT, config: ModelConfig) -> PageGeometry:
        """The grid on which ``mmrr prune`` chooses tokens. Without effect where ``SPEC.accepts_pruning`` is False."""
        ...

    def cache_bytes(self, options: PrepareT, config: ModelConfig, n_tokens: int, dtype_bytes: int) -> int:
        """Bytes of one page's cache with ``n_tokens`` visual tokens. Used for the size estimate."""
        ...

    def load(
        self, checkpoint: Checkpoint, options: PrepareT, device: torch.device, dtype: torch.dtype
    ) -> Scorer[PageT_contra, QueryT, ScoreT]:
        """Load the checkpoint. The return annotation names the scorer's class, whose methods are checked too.

        Raises MmrrError if the checkpoint does not fit the family.
        """
        ...


class Embedder(Protocol[SearchT_contra]):
    """One checkpoint with one set of ``Prepare`` options, on one device."""

    def embed_pages(self, pages: Sequence[Image.Image]) -> list[Embedding]:
        """The vectors and the saliency map of each page, on the CPU."""
        ...

    def embed_queries(self, texts: Sequence[str], options: SearchT_contra) -> list[Tensor]:
        """The vectors (M, D) float32 of each query, on the CPU."""
        ...

    def temperature(self, options: SearchT_contra) -> float:
        """What a product of two vectors is divided by to be a logit, for soft IDF weights of the query's vectors.

        0.0: all vectors of a query have the same weight.
        """
        ...


@runtime_checkable
class EmbedsVisualQueries(Protocol[SearchT_contra]):
    """An embedder that takes queries with images."""

    def embed_visual_query(self, query: VisualQuery, options: SearchT_contra) -> Tensor:
        """The vectors (M, D) float32 of a query. It has a text only with ``SPEC.joint_queries``."""
        ...


@runtime_checkable
class SupportsWordVectors(Protocol[SearchT_contra]):
    """A late-interaction embedder that knows the vectors of a query's words: the evidence of ``mmrr explain``.

    The vectors of a page begin with those of its visual tokens.
    """

    def word_vectors(self, text: str, options: SearchT_contra) -> list[QueryWord]:
        """The words of a query in their order, each with the rows of its vectors in ``embed_queries``."""
        ...


class EmbedderFamily(Protocol[PrepareT, SearchT]):
    """A module in ``mmrr/embedders``, named like the checkpoints' architecture or model type."""

    SPEC: EmbedderSpec
    Prepare: type[PrepareT]  # hashed into every page's vectors
    Search: type[SearchT]  # hashed into a run alone: changing it reuses the pages' vectors

    def check(self, checkpoint: Checkpoint, options: PrepareT) -> None:
        """Raise MmrrError if the options do not fit the checkpoint. Loads no weights: no page is rendered yet."""
        ...

    def pixel_limits(self, checkpoint: Checkpoint, options: PrepareT) -> tuple[int, int] | None:
        """Fewest and most pixels that a page image is resized to, if the checkpoint's processor file decides.

        They are hashed into the vectors. None: the limits of ``mmrr.documents.page_grid``.
        """
        ...

    def load(
        self, checkpoint: Checkpoint, options: PrepareT, device: torch.device, dtype: torch.dtype
    ) -> Embedder[SearchT]:
        """Load the checkpoint. The return annotation names the embedder's class, whose methods are checked too.

        Raises MmrrError if the checkpoint does not fit the family.
        """
        ...


class TextEmbedder(Protocol):
    """One checkpoint with one set of ``Prepare`` options, on one device."""

    def windows(self, text: str) -> list[Window]:
        """The windows of a page's text, in order. They fit the model and overlap. A page without words has none."""
        ...

    def embed_windows(self, texts: Sequence[str]) -> Tensor:
        """The vectors (W, D) float32 of the texts of windows, on the CPU. A larger product is a better match."""
        ...

    def embed_queries(self, texts: Sequence[str]) -> Tensor:
        """The vectors (Q, D) float32 of queries, on the CPU."""
        ...


class TextEmbedderFamily(Protocol[PrepareT]):
    """A module in ``mmrr/text_embedders``."""

    SPEC: TextEmbedderSpec
    Prepare: type[PrepareT]  # hashed into the vectors of every window

    def load(self, checkpoint: Checkpoint, options: PrepareT, device: torch.device, dtype: torch.dtype) -> TextEmbedder:
        """Load the checkpoint. The return annotation names the embedder's class, whose methods are checked too.

        Raises MmrrError if the checkpoint does not fit the family.
        """
        ...
