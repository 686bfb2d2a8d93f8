"""Trains EDJE (arXiv 2510.06820, training): adapter and joint encoder over a frozen vision encoder, on drawn pages.

The forward is the scorer's own, built anew of the trained tensors in every step, so what is learnt is what ranks.
What the vision encoder makes of a page is computed once and kept beside the pool of drawn pages.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BertConfig, BertForMaskedLM
from transformers.models.bert.modeling_bert import BertPooler

from mmrr.backbones import edje as backbone
from mmrr.backbones import qwen3_vl
from mmrr.checkpoints import ANY, Checkpoint, resolve
from mmrr.errors import MmrrError
from mmrr.factory.pool import Pool
from mmrr.factory.sources import Document, read_documents, split
from mmrr.files import HashCache, checksum_file, save_tensors
from mmrr.scorers import edje as scorer
from mmrr.training.config import CHECKPOINT, ModelName
from mmrr.training.crew import Crew, join
from mmrr.training.features import Features, ReadPage
from mmrr.training.loop import Losses, RunFolder, Schedule, mixed
from mmrr.training.loop import train as run_loop
from mmrr.training.matching import BatchMaker
from mmrr.training.queries import Labelled
from mmrr.training.targets import fold

Records = Iterator[dict[str, Any]]

#: The joint encoder's layer that points.
POINTER = 1
#: Of a fresh Local network: pages that its words are first seen on; of the mean variance, what is added to each before
#: whitening; and the size of its word vectors (larger ones make masked words a matter of chance).
FIRST_PAGES, SHRINK, SMALL = 400, 1.0, 0.05
#: Share of a text's pieces that are masked, always by [MASK] (paper, masked language modelling).
MASKED = 0.5
#: Places beside the page: [CLS], text and the two [SEP].
TEXT = scorer.MAX_PIECES + 3
ALPHABET = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
#: Reports drawn of the held-out documents, and batches of them that are scored, to measure on.
HELD_OUT_REPORTS, HELD_OUT_BATCHES = 4, 12
#: Makers of batches to ask in turn: of a strip of a page there may be nothing to ask.
ATTEMPTS = 8
#: Tokens of a page up to which attention by plain products is faster and its memory small.
SHORT = 512
NONE = ModelName("")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """EDJE on pages drawn from documents. The sizes are a small model's; with ``start`` they are that checkpoint's."""

    scorer: str
    documents: tuple[Path, ...]  # JSON Lines of texts, see docs/training.md
    held_out: float = 0.1  # share of the documents that is never drawn for training
    seed: int = 0
    pool: Path | None = None  # where drawn pages are kept; default: in the run's folder
    vision: ModelName  # the frozen vision encoder, as in mmrr precache -o vision
    vision_revision: str = ""
    start: ModelName = NONE  # an EDJE checkpoint to go on from; default: fresh weights
    start_revision: str = ""
    language: ModelName = NONE  # where start's word pieces are read from; default: start itself
    teacher: ModelName = NONE  # an EDJE checkpoint over the same vision encoder; default: no distillation
    # The model
    tokens: int = 64  # m, learned queries of the adapter; 0: Local, every vision token is kept
    max_tokens: int = 1280  # Local: the most vision tokens a page
    adapter_heads: int = 4
    adapter_mlp: int = 2048
    layers: int = 4
    hidden: int = 256
    heads: int = 8
    mlp: int = 1024
    vocabulary: int = 4096  # word pieces, learnt from the documents
    punctuation: bool = False  # leave it in texts; EDJE takes it out
    # The losses' weights beside the listwise one
    masking: float = 1.0
    distillation: float = 1.0  # where there is a teacher
    passages: int = 1  # a page: runs of its words that are masked; 0: its queries are
    pointing: float = 1.0  # Local: of the loss on where words of these runs look; see Lesson
    # The run
    reports: int = 1000  # drawn reports to train on
    strips: float = 0.5  # share of the steps on strips of pages
    pages: int = 4  # a batch
    queries: int = 2  # a page
    steps: int = 4000
    lr: float = 5e-4
    warmup: int = 200
    decay: float = 0.5  # share of the steps over which the rate falls
    weight_decay: float = 0.05
    save_every: int = 250
    evaluate_every: int = 500
    workers: int = 1

    result: ClassVar[str] = CHECKPOINT

    def schedule(self) -> Schedule:
        return Schedule(
            self.steps,
            self.lr,
            warmup=self.warmup,
            decay=self.decay,
            weight_decay=self.weight_decay,
            save_every=self.save_every,
        )


# Losses


def listwise(scores: Tensor, owner: Tensor, answers: Tensor) -> Tensor:
    """Softmax cross-entropy of each positive against its negatives, mean of both directions (paper, ITM).

    ``scores`` (Q, P) of queries against pages; ``owner`` (Q,) the page of each query; ``answers`` (Q, P) the pages that
    answer it, which are no negatives. Negative pages of a query: all others. Negative queries of its page: those that
    this page does not answer. With one negative each it is -log sigmoid(s_pos - s_neg).
    """
    by_page = scores.masked_fill(answers & ~_own(owner, answers), -torch.inf)
    rivals = answers.T[owner] & ~torch.eye(len(owner), dtype=torch.bool, device=scores.device)
    by_query = scores.T[owner].masked_fill(rivals, -torch.inf)
    itself = torch.arange(len(owner), device=scores.device)
    return (F.cross_entropy(by_page, owner) + F.cross_entropy(by_query, itself)) / 2


def distilled(student: Tensor, teacher: Tensor, owner: Tensor, answers: Tensor) -> Tensor:
    """Binary cross-entropy of the student's logits (Q, P) on sigmoid of the teacher's (paper, distillation).

    Mean of three means: over positives, negative pages and negative queries. In a matrix every pair that is no answer
    is a negative page of its query and a negative query of its page, so these two means are one.
    """
    loss = F.binary_cross_entropy_with_logits(student, torch.sigmoid(teacher), reduction="none")
    positives, negatives = loss[_own(owner, answers)], loss[~answers]
    groups = [positives.mean()] + ([negatives.mean()] * 2 if len(negatives) else [])
    return torch.stack(groups).mean()


def masked(pieces: Sequence[int], mask: int, rng: random.Random) -> tuple[list[int], list[int]]:
    """``pieces`` of a text, each replaced by ``mask`` with probability 0.5, and the places of those replaced."""
    places = [place for place in range(len(pieces)) if rng.random() < MASKED]
    hidden = list(pieces)
    for place in places:
        hidden[place] = mask
    return hidden, places


def _own(owner: Tensor, answers: Tensor) -> Tensor:
    return F.one_hot(owner, answers.shape[1]).bool()


# Batches


@dataclass(frozen=True, slots=True)
class Passage:
    """A text that stands on a page of the batch."""

    page: int
    words: tuple[str, ...]
    cells: tuple[tuple[int, ...], ...] = ()  # of each word, where that is known


@dataclass(frozen=True, slots=True)
class Batch:
    """Pages of a batch, and queries that each come from one of them."""

    step: int
    pages: list[Tensor]  # (T, D) each
    queries: list[str]
    owner: Tensor  # (Q,) the page that a query comes from
    answers: Tensor  # (Q, P) the pages that answer it, its own among them
    passages: list[Passage]  # what is masked


class Batches:
    """Step number -> Batch."""

    def __init__(self, config: Config, features: Features, keys: list[tuple[int, int]], strips: int) -> None:
        self.seed, self.passages = config.seed, config.passages
        self.makers = [
            BatchMaker(
                features,
                keys,
                config.seed + 7919 * attempt,
                pages=config.pages,
                queries=config.queries,
                answered_only=True,
                strips=strips,
            )
            for attempt in range(ATTEMPTS)
        ]

    def __call__(self, step: int) -> Batch:
        """Raises MmrrError if the pages hold too few words to ask for."""
        for make in self.makers:
            found = make(step)
            if len(found.pages) > 1:
                return self._batch(step, found.pages, found.queries)
        raise MmrrError("the drawn pages hold too few words to ask for; expected documents with more text")

    def _batch(self, step: int, pages: list[ReadPage], asked: list[list[Labelled]]) -> Batch:
        rng = random.Random(f"{self.seed}/passages/{step}")
        queries = [(one.text, page) for page, its in enumerate(asked) for one in its]
        passages = [passage(page, at, rng) for at, page in enumerate(pages) for _ in range(self.passages)]
        answers = [[at == own or holds(page, text) for at, page in enumerate(pages)] for text, own in queries]
        return Batch(
            step,
            [page.tokens for page in pages],
            [text for text, _ in queries],
            torch.tensor([page for _, page in queries]),
            torch.tensor(answers),
            passages or [Passage(page, (text,)) for text, page in queries],
        )


def passage(page: ReadPage, number: int, rng: random.Random) -> Passage:
    """As many words in a row as may be read of a text, from anywhere on a page."""
    first = rng.randrange(max(1, len(page.words) - scorer.MAX_PIECES // 2))
    some = slice(first, first + scorer.MAX_PIECES)
    return Passage(number, tuple(page.words[some]), tuple(tuple(cells) for cells in page.cells[some]))


def holds(page: ReadPage, query: str) -> bool:
    """Whether a page is known to answer a query: it is one of its questions, or its words stand there in a row."""
    if any(asked.text == query for asked in page.questions):
        return True
    words = f" {' '.join(filter(None, map(fold, query.split())))} "
    return words in f" {' '.join(filter(None, page.folded))} "


# The network


class Compressed(nn.Module):
    """The adapter's tensors under the paper's names; its forward is the backbone's."""

    def __init__(self, tokens: int, width: int, inner: int, out: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, tokens, width))
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.attention = nn.MultiheadAttention(width, 1)  # heads are no tensors
        self.layernorm = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})
        self.projection = nn.Linear(width, out)


@dataclass(frozen=True, slots=True)
class Sizes:
    """All that the tensors of a network need."""

    tokens: int
    vision_width: int
    adapter_heads: int
    adapter_mlp: int
    layers: int
    hidden: int
    heads: int
    mlp: int
    words: int
    positions: int

    def config(self) -> dict[str, Any]:
        """What tensors do not say, for config.json."""
        return {"num_attention_heads": self.heads, "adapter_attention_heads": self.adapter_heads}


class Network(nn.Module):
    """EDJE in training: the tensors of a checkpoint under their names, and the scorer's forward over them."""

    def __init__(self, sizes: Sizes) -> None:
        """Random weights. Raises MmrrError if the heads do not fit the widths."""
        super().__init__()
        self.sizes, width, inner = sizes, sizes.vision_width, sizes.adapter_mlp
        if sizes.hidden % sizes.heads:
            raise MmrrError(f"hidden = {sizes.hidden} cannot have heads = {sizes.heads}; expected a divisor of it")
        if sizes.tokens and width % sizes.adapter_heads:
            raise MmrrError(
                f"an adapter of the vision encoder's width {width} cannot have adapter_heads = {sizes.adapter_heads}; "
                "expected a divisor of it"
            )
        config = BertConfig(
            vocab_size=sizes.words,
            hidden_size=sizes.hidden,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            intermediate_size=sizes.mlp,
            max_position_embeddings=sizes.positions,
        )
        self.vision_projection = (
            Compressed(sizes.tokens, width, inner, sizes.hidden)
            if sizes.tokens
            else nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, sizes.hidden))
        )
        self.language_model = BertForMaskedLM(config)
        self.classification_head = nn.Sequential(
            BertPooler(config),  # type: ignore[no-untyped-call]
            nn.Linear(sizes.hidden, 1),
        )
        self.layout = backbone.layout({name: tuple(tensor.shape) for name, tensor in self.tensors().items()})

    @property
    def device(self) -> torch.device:
        return self.language_model.device

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds: all but the head of masked language modelling."""
        return {name: tensor for name, tensor in self.named_parameters() if ".cls." not in name}

    def parts(self) -> tuple[backbone.Adapter, backbone.JointEncoder]:
        """Adapter and joint encoder as they score now; gradients flow through them."""
        tensors, sizes = self.tensors(), self.sizes
        return (
            backbone.Adapter(tensors, self.layout, sizes.adapter_heads, self.device, torch.float32),
            backbone.JointEncoder(tensors, self.layout, sizes.heads, self.device, torch.float32),
        )

    def scores(self, pages: Sequence[Tensor], texts: Sequence[Sequence[int]], last: int) -> Tensor:
        """Logits (Q, P) of texts (ids of ``[CLS] text [SEP]``) against pages (T, D); ``last``: the final ``[SEP]``."""
        return self.against(self.parts(), pages, texts, last)[0]

    def against(
        self, parts: Any, pages: Sequence[Tensor], texts: Sequence[Sequence[int]], last: int
    ) -> tuple[Tensor, list[Tensor]]:
        """``scores`` of ``parts``, and each page's Z (m, d)."""
        adapter, encoder = parts
        longest = max(map(len, texts)) + 1 + (self.sizes.tokens or max(map(len, pages)))
        if longest > self.sizes.positions:
            raise MmrrError(
                f"a text and a page of {longest} tokens do not fit {self.sizes.positions} positions; raise max_tokens"
            )
        z = [adapter(page[None].float())[0].float() for page in pages]
        states = torch.stack([_first_states(encoder, text, last, z) for text in texts])  # (Q, P, d)
        with mixed(self.device, None):  # the head is float32, as in the scorer
            return encoder.logits(states.flatten(0, 1).float()).view(states.shape[:2]), z


def _first_states(encoder: backbone.JointEncoder, text: Sequence[int], last: int, z: Sequence[Tensor]) -> Tensor:
    """States of ``[CLS]`` of one text against pages (P, d): at once where they are of one length, as in the scorer."""
    if len({len(page) for page in z}) == 1:
        return encoder.states(text, last, torch.stack(list(z)), 1)[:, 0]
    return torch.cat([encoder.states(text, last, page[None], 1)[:, 0] for page in z])


class Lesson:
    """A network with its word pieces, its teacher and the weights of its losses.

    *Pointing*, of a Local network alone, whose vision tokens are the page's cells: in the second layer half of the
    heads must look from a word of a masked text, if its last piece was left, to the cells in which it stands.
    """

    def __init__(
        self, config: Config, network: Network, pieces: Any, teacher: tuple[Network, Any, bool] | None
    ) -> None:
        """``teacher``: a frozen network, its word pieces, and whether it reads punctuation."""
        self.config, self.network, self.pieces, self.teacher = config, network, pieces, teacher

    def losses(self, batch: Batch) -> Losses:
        """The weighted sum, and each loss of its own; ``right``: queries whose page is above all that do not answer."""
        with self._attention(batch.pages):
            return self._losses(batch)

    def _attention(self, pages: Sequence[Tensor]) -> contextlib.AbstractContextManager[Any]:
        """Plain products: of short sequences on a CPU, the fused kernel's gradient takes several times as long."""
        longest = self.network.sizes.tokens or max(map(len, pages))
        plain = self.network.device.type == "cpu" and longest <= SHORT
        return sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext()

    def _losses(self, batch: Batch) -> Losses:
        config, network = self.config, self.network
        parts = network.parts()
        texts = [self._ids(query) for query in batch.queries]
        scores, z = network.against(parts, batch.pages, texts, self.pieces.sep)
        matched = listwise(scores, batch.owner, batch.answers)
        found = {"loss": matched, "matched": matched}
        if config.masking:
            found |= self._masked(parts[1], batch, z)
            found["loss"] = found["loss"] + config.masking * found["masked"]
            if "pointed" in found:
                found["loss"] = found["loss"] + config.pointing * found["pointed"]
        if self.teacher:
            found["distilled"] = distilled(scores, self._taught(batch), batch.owner, batch.answers)
            found["loss"] = found["loss"] + config.distillation * found["distilled"]
        return found | {"right": right(scores, batch.owner, batch.answers)}

    def _ids(self, text: str) -> list[int]:
        return scorer.text_ids(self.pieces, text, punctuation=self.config.punctuation)

    def _masked(self, encoder: backbone.JointEncoder, batch: Batch, z: Sequence[Tensor]) -> Losses:
        """Cross-entropy of the masked pieces, given the rest of the text and its page; of Local, pointing."""
        rng = random.Random(f"{self.config.seed}/mask/{batch.step}")
        states, wanted, pointed = [], [], []
        points = self.config.pointing and not self.network.sizes.tokens and self.network.sizes.layers > POINTER
        for passage in batch.passages:
            text, ends = self._spelt(passage)
            hidden, places = masked(text[1:-1], self.pieces.mask, rng)
            if not places:
                continue
            ids = [text[0], *hidden, text[-1]]
            x = encoder.embed(ids, self.pieces.sep, z[passage.page][None])
            for index in range(encoder.layers):
                if points and index == POINTER:
                    looking = {1 + end: cells for end, cells in ends.items() if end not in places and cells}
                    if looking:
                        pointed.append(_looks(encoder, index, x, looking, len(ids)))
                x = encoder.layer(index, x[:, : len(ids)] if index == encoder.layers - 1 else x, x)
            states.append(x[0, [1 + place for place in places]])
            wanted += [text[1 + place] for place in places]
        if not wanted:
            return {"masked": z[0].sum() * 0}
        logits = self.network.language_model.cls(torch.cat(states))
        found = {"masked": F.cross_entropy(logits.float(), torch.tensor(wanted, device=logits.device))}
        return found | ({"pointed": torch.stack(pointed).mean()} if points and pointed else {})

    def _spelt(self, passage: Passage) -> tuple[list[int], dict[int, tuple[int, ...]]]:
        """Ids of ``[CLS] text [SEP]``, and by the place of a word's last piece its cells."""
        text = self._ids(" ".join(passage.words))
        ends: dict[int, tuple[int, ...]] = {}
        pieces: list[int] = []
        for word, cells in zip(passage.words, passage.cells, strict=False):
            pieces += self._ids(word)[1:-1]
            if pieces and len(pieces) <= len(text) - 2:
                ends[len(pieces) - 1] = cells
        # Where the pieces of a text are not those of its words, places mean nothing.
        return text, ends if pieces[: len(text) - 2] == text[1:-1] else {}

    @torch.no_grad()
    def _taught(self, batch: Batch) -> Tensor:
        assert self.teacher
        network, pieces, punctuation = self.teacher
        texts = [scorer.text_ids(pieces, query, punctuation=punctuation) for query in batch.queries]
        return network.scores(batch.pages, texts, pieces.sep)

    def measure(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Listwise loss and the share that is right, over batches of pages that were never trained on."""
        sums = torch.zeros(2)
        for batch in batches:
            texts = [self._ids(query) for query in batch.queries]
            scores = self.network.scores([page.to(self.network.device) for page in batch.pages], texts, self.pieces.sep)
            owner, answers = batch.owner.to(scores.device), batch.answers.to(scores.device)
            sums += torch.stack([listwise(scores, owner, answers), right(scores, owner, answers)]).cpu()
        loss, share = (sums / len(batches)).tolist()
        return {"val_loss": loss, "val_right": share}


def _looks(
    encoder: backbone.JointEncoder, index: int, x: Tensor, looking: dict[int, tuple[int, ...]], before: int
) -> Tensor:
    """-log of the attention that half of a layer's heads give from rows to their cells, ``before`` rows from the start;
    the mean."""
    heads = max(1, encoder.heads // 2)
    query = encoder.heads_of(index, "query", x[:, list(looking)])[0, :heads].float()
    key = encoder.heads_of(index, "key", x)[0, :heads].float()
    logits = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5  # (h, W, n)
    target = torch.zeros(logits.shape[1:], dtype=torch.bool, device=x.device)
    for row, cells in enumerate(looking.values()):
        target[row, [before + cell for cell in cells]] = True
    return (logits.logsumexp(-1) - logits.masked_fill(~target, -torch.inf).logsumexp(-1)).mean()


def right(scores: Tensor, owner: Tensor, answers: Tensor) -> Tensor:
    """Share of the queries whose own page scores above all pages that do not answer it."""
    own = scores.gather(1, owner[:, None])[:, 0]
    return (own > scores.masked_fill(answers, -torch.inf).amax(1)).float().mean()


# Runs


def train(config: Config, run: Path, tell: Callable[[str], None] = lambda _: None) -> Records:
    """Train, yielding the log's records, and leave the checkpoint in the run's folder.

    Raises MmrrError for documents that cannot be read, and for a vision encoder, a start or a teacher that does not
    fit.
    """
    crew = join()
    hashes = HashCache(run / "hashes.json")
    vision = resolve(config.vision, config.vision_revision or None, hashes, scorer.VISION_TYPES)
    fixed, width = backbone.vision_tokens(vision.config())
    _check(config, fixed)
    known, held_out = split([one for path in config.documents for one in read_documents(path)], config.held_out)
    start = _start(config, run, known, width, fixed, hashes)
    words = Checkpoint.companion(config.language).path if config.language else start.path
    network, pieces, punctuation = load(start, vision.config(), words)
    config = replace(config, punctuation=punctuation)
    if pieces.mask is None and config.masking:
        raise MmrrError(f"{start.id}: its tokenizer has no [MASK]; masking = 0 trains without")
    network.to(crew.device)
    teacher = None
    if config.teacher:
        found = resolve(config.teacher, None, hashes, (ANY,))
        teacher = load(found, vision.config(), found.path)
        teacher[0].to(crew.device).requires_grad_(False)
    lesson = Lesson(config, network, pieces, teacher)
    pool = Pool(config.pool or run / "pool", known, config.seed)
    features, keys = yield from _features(vision, pool, config.reports, crew)
    if not config.start and teacher:
        _learn_from(network, teacher[0])
    elif not config.start and not RunFolder(run).state.exists():
        torch.manual_seed(config.seed)  # of a start that an earlier process wrote, too
        step = max(1, len(keys) // FIRST_PAGES)
        acquaint(network, pieces, punctuation, (features.load(*key) for key in keys[::step]))
    test = []
    if held_out:
        unseen = Pool(run / "held-out", held_out, config.seed)
        seen, places = yield from _features(vision, unseen, HELD_OUT_REPORTS, crew)
        # Local pays for every token: it is measured on what most of its steps are on.
        make = Batches(config, seen, places, 0 if network.sizes.tokens or not config.strips else HELD_OUT_BATCHES)
        test = [make(n) for n in range(HELD_OUT_BATCHES)]
    size = sum(tensor.numel() for tensor in network.tensors().values())
    kind = f"{network.sizes.tokens} tokens a page" if network.sizes.tokens else "Local"
    tell(f"{size / 1e6:.1f} million weights, {kind}; {len(keys)} pages of {config.reports} reports")
    yield from run_loop(
        RunFolder(run),
        network,
        config.schedule(),
        Batches(config, features, keys, round(config.strips * config.steps)),
        lesson.losses,
        evaluate=(lambda: lesson.measure(test)) if test else None,
        evaluate_every=config.evaluate_every,
        workers=config.workers,
        crew=crew,
    )
    if crew.leads:
        save(network, words, config.punctuation, run / CHECKPOINT, vision.id)
    crew.leave()


def _learn_from(network: Network, teacher: Network) -> None:
    """Begin with the teacher's joint encoder and head, where they have the same shape; the adapter begins anew."""
    own = network.state_dict()
    taken = {
        name: tensor
        for name, tensor in teacher.state_dict().items()
        if not name.startswith("vision_projection.") and name in own and own[name].shape == tensor.shape
    }
    network.load_state_dict(taken, strict=False)


def acquaint(network: Network, pieces: Any, punctuation: bool, pages: Iterable[ReadPage]) -> None:
    """Begin a fresh Local network with words that look like the cells they stand in.

    Vision tokens, whitened, go through the projection as they are (x = gelu(x) - gelu(-x)); a piece begins as the
    mean of the cells in which words with it stood on ``pages``; and the first two layers' keys are projected as their
    queries, so that like attends to like. From random weights it took hundreds of steps to get as far (docs/runs.md).

    Does nothing where the widths of vision encoder and joint encoder differ, or the projection is too narrow for it.
    """
    sizes, n = network.sizes, network.sizes.hidden
    if sizes.tokens or sizes.vision_width != n or sizes.adapter_mlp < 2 * n:
        return
    counts = torch.zeros(sizes.words)
    sums = torch.zeros(sizes.words, n)
    some = []
    for page in pages:
        tokens = page.tokens.float()
        some.append(tokens)
        for word, cells in zip(page.words, page.cells, strict=True):
            ids = scorer.text_ids(pieces, word, punctuation=punctuation)[1:-1]
            if ids and cells:
                sums[ids] += tokens[list(cells)].mean(0)
                counts[ids] += 1
    seen = counts > 0
    every = torch.cat(some)
    mean = every.mean(0)
    size, axes = torch.linalg.eigh(torch.cov(every.T))
    white = axes @ torch.diag((size + SHRINK * size.mean()).rsqrt()) @ axes.T
    words = (sums[seen] / counts[seen, None] - mean) @ white
    joint: Any = network.language_model.bert
    projection: Any = network.vision_projection
    with torch.no_grad():
        table = joint.embeddings.word_embeddings.weight
        table[seen] = F.layer_norm(words, (n,)) * SMALL
        first, _, second = projection
        first.weight.normal_(std=0.02)
        first.bias.zero_()
        first.weight[: 2 * n] = torch.cat([white, -white])
        first.bias[: 2 * n] = torch.cat([-white @ mean, white @ mean])
        second.weight.zero_()
        second.bias.zero_()
        second.weight[:, : 2 * n] = torch.cat([torch.eye(n), -torch.eye(n)], dim=1)
        for layer in joint.encoder.layer[: POINTER + 1]:
            attention = layer.attention.self
            nn.init.orthogonal_(attention.query.weight)
            attention.key.weight.copy_(attention.query.weight)


def _check(config: Config, fixed: int) -> None:
    """``fixed``: tokens of every page; 0: it depends on the page. Raises MmrrError for values that do not fit."""
    least = {"tokens": 0, "max_tokens": 1, "pages": 2, "queries": 1, "layers": 1, "vocabulary": 256}
    least |= dict.fromkeys(("hidden", "heads", "mlp", "adapter_heads", "adapter_mlp"), 1)
    least |= dict.fromkeys(("masking", "distillation", "passages"), 0)
    for name, smallest in least.items():
        if getattr(config, name) < smallest:
            raise MmrrError(f"{name} = {getattr(config, name)}; expected {smallest} or more")
    if fixed and config.strips:
        raise MmrrError(
            f"strips = {config.strips}: {config.vision} squeezes pages to a square, so that a strip of its tokens is "
            "none of the page; expected strips = 0.0"
        )


def _features(vision: Checkpoint, pool: Pool, reports: int, crew: Crew) -> Any:
    """What the vision encoder makes of the pages, and their places; in the folder that other trainings use, too."""
    file = vision.path / "model.safetensors"
    name = checksum_file(file) if file.exists() else vision.revision.removeprefix("sha256:")
    features = Features(pool.folder / f"features-{name[:12]}", pool)
    tower: Any = None
    keys = []
    for report in range(reports):
        places = [(report, number) for number in range(pool.pages(report))]
        for place in places:
            if not features.path(*place).exists():
                tower = tower or _tower(vision, crew)
                with mixed(crew.device, torch.bfloat16):  # as a tower of our own was trained
                    features.make(tower, *place)
        keys += places
        yield {"stage": "features", "step": report + 1, "steps": reports, "lr": 0.0}
    return features, keys


def _tower(vision: Checkpoint, crew: Crew) -> Any:
    if vision.adapter:
        raise MmrrError(f"{vision.id} is a LoRA adapter; EDJE's vision encoder is a whole checkpoint")
    config = vision.config()
    if backbone.reads_any_size(config):
        return qwen3_vl.Backbone(vision.path, None, crew.device, torch.float32, needs_head=False)
    return _Squeezed(backbone.Vision(vision.path, config, crew.device, torch.float32))


class _Squeezed:
    """A vision encoder of one size, as Features asks for one."""

    def __init__(self, vision: backbone.Vision) -> None:
        self.encoder = vision

    def vision(self, images: Sequence[Any]) -> list[qwen3_vl.Visual]:
        tokens = self.encoder.tokens(images)
        side = round(tokens.shape[1] ** 0.5)
        return [qwen3_vl.Visual(one, one.new_zeros(0, *one.shape), (side, side)) for one in tokens]


def _start(
    config: Config, run: Path, documents: list[Document], width: int, fixed: int, hashes: HashCache
) -> Checkpoint:
    """The checkpoint to go on from: the config's, or a fresh one with word pieces learnt from the documents."""
    if config.start:
        return resolve(config.start, config.start_revision or None, hashes, (ANY,))
    path = run / "start"
    if not (path / "model.safetensors").exists():
        path.mkdir(parents=True, exist_ok=True)
        pieces = learn_pieces(documents, config.vocabulary, punctuation=config.punctuation)
        write_pieces(pieces, path)
        sizes = Sizes(
            tokens=config.tokens,
            vision_width=width,
            adapter_heads=config.adapter_heads,
            adapter_mlp=config.adapter_mlp,
            layers=config.layers,
            hidden=config.hidden,
            heads=config.heads,
            mlp=config.mlp,
            words=len(pieces),
            positions=TEXT + (config.tokens or fixed or config.max_tokens),
        )
        torch.manual_seed(config.seed)
        save(Network(sizes), path, config.punctuation, path, dtype=torch.float32)
    return resolve(str(path), None, hashes, (ANY,))


def load(checkpoint: Checkpoint, vision: dict[str, Any], words: Path) -> tuple[Network, Any, bool]:
    """A network of a checkpoint's weights, the word pieces in folder ``words``, and whether it reads punctuation.

    ``vision``: the config.json of the vision encoder.

    Raises MmrrError for tensors that are not EDJE's, another vision encoder's width, or a tile embedding.
    """
    config = checkpoint.config()
    made, (_, vision_width) = backbone.layout(config["tensors"]), backbone.vision_tokens(vision)
    if made.vision_width != vision_width:
        raise MmrrError(
            f"{checkpoint.id} reads vision tokens of width {made.vision_width}; those of `vision` have {vision_width}"
        )
    if made.tiles:
        raise MmrrError(f"{checkpoint.id} has a tile embedding, which is not trained here")
    own = backbone.load(checkpoint.path, made)
    inner = "vision_projection.mlp.fc1.weight" if made.queries else "vision_projection.0.weight"
    sizes = Sizes(
        tokens=made.queries,
        vision_width=vision_width,
        adapter_heads=backbone.adapter_heads(config, backbone.vision_heads(vision)),
        adapter_mlp=len(own[inner]),
        layers=made.layers,
        hidden=made.width,
        heads=backbone.joint_heads(config),
        mlp=len(own["language_model.bert.encoder.layer.0.intermediate.dense.weight"]),
        words=made.words,
        positions=made.positions,
    )
    torch.manual_seed(0)  # of the masked language model's head, which no checkpoint holds
    network = Network(sizes)
    network.load_state_dict(own, strict=False)
    return network, backbone.WordPieces(words, made.words), bool(config.get("punctuation"))


def save(
    network: Network, words: Path, punctuation: bool, path: Path, vision: str = "", dtype: torch.dtype = torch.float16
) -> None:
    """Write a checkpoint that the scorer loads: weights under the paper's names, config.json, the word pieces.

    ``vision``: the vision encoder it belongs to, for config.json.
    """
    path.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in network.tensors().items()}
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise MmrrError(f"weights that {dtype} does not hold; train with a lower lr")
    values = {"model_type": "edje", **network.sizes.config(), "punctuation": punctuation}
    if vision:
        values["vision"] = vision
    (path / "config.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        if (words / name).exists() and words != path:
            (path / name).write_bytes((words / name).read_bytes())
    save_tensors(tensors, path / "model.safetensors")


def learn_pieces(documents: Sequence[Document], n: int, *, punctuation: bool) -> list[str]:
    """At most ``n`` word pieces of the documents' texts and questions, as the scorer cleans them.

    Among them are the letters that the texts write most, and all of a-z and 0-9, at the start of a word and within.
    """

    def texts() -> Iterator[str]:
        for one in documents:
            yield one.title
            for block in one.blocks:
                yield block.text
                yield from (cell for row in block.rows for cell in row)
            yield from (question.text for question in one.questions)

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    corpus = [normalizer.normalize_str(scorer.canonical(text, punctuation=punctuation)) for text in texts() if text]
    counts = Counter(letter for text in corpus for letter in text if not letter.isspace())
    common = sorted(counts, key=lambda letter: (-counts[letter], letter))[: max(64, n // 16)]
    letters = sorted(ALPHABET | set(common))
    # Named first, they have the same numbers in every training: among equals, the pieces' numbers decide.
    first = [*SPECIALS, *letters, *(f"##{letter}" for letter in letters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=n, special_tokens=first, limit_alphabet=len(letters), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    learnt = tokenizer.get_vocab()
    return sorted(learnt, key=learnt.__getitem__)


def write_pieces(pieces: Sequence[str], path: Path) -> None:
    """As MiniLM's repository has them: vocab.txt, and a tokenizer_config.json that says how to read it."""
    (path / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    values = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (path / "tokenizer_config.json").write_text(json.dumps(values) + "\n", encoding="utf-8")
