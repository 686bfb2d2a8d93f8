"""Trains EDJE (arXiv 2510.06820, training): adapter and joint encoder over a frozen vision encoder, on drawn pages.

The forward is the scorer's own, built anew of the trained tensors in every step, so what is learnt is what ranks.
What the vision encoder makes of a page is computed once and kept beside the pool of drawn pages.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmrr.backbones import edje as backbone
from mmrr.backbones import qwen3_vl
from mmrr.errors import MmrrError
from mmrr.modeling.checkpoints import ANY, Checkpoint, resolve
from mmrr.scorers import edje as scorer
from mmrr.training.config import CHECKPOINT, ModelName
from mmrr.training.data.cell_targets import fold
from mmrr.training.data.queries import LabelledQuery
from mmrr.training.data.tower_features import Keys, ReadPage, TowerFeatures, make_all
from mmrr.training.distributed import Crew, join
from mmrr.training.families.edje_init import Network, Sizes, learn_pieces, load, save, write_pieces
from mmrr.training.families.edje_pretrain import (
    FIRST_PAGES,
    POINTER,
    Cells,
    Pointer,
    Spelled,
    Spelling,
    acquaint,
    cells_of,
    ends_of,
)
from mmrr.training.from_scratch.matching import STRIP_ROWS, BatchMaker, batch_seed
from mmrr.training.loop import Losses, RunFolder, Schedule
from mmrr.training.loop import train as run_loop
from mmrr.training.synthetic.page_pool import PagePool
from mmrr.training.synthetic.sources import Document, read_documents, split
from mmrr.workspace.files import HashCache, checksum_file

Records = Iterator[dict[str, Any]]

#: Share of a text's pieces that are masked, always by [MASK] (paper, masked language modelling).
MASKED = 0.5
#: Places beside the page: [CLS], text and the two [SEP].
TEXT = scorer.MAX_PIECES + 3
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
    pointing: float = 1.0  # Local: of the loss on where a query's words look; see Lesson
    spelling: int = 1500  # Local, fresh: steps that teach pieces to spell; 0: none
    # The run
    reports: int = 1000  # drawn reports to train on
    strips: float = 0.5  # share of the steps on strips of pages
    rows: int = STRIP_ROWS  # of cells in a strip
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


@dataclass(frozen=True, slots=True)
class Batch:
    """Pages of a batch, and queries that each come from one of them."""

    step: int
    pages: list[Tensor]  # (T, D) each
    queries: list[str]
    owner: Tensor  # (Q,) the page that a query comes from
    answers: Tensor  # (Q, P) the pages that answer it, its own among them
    passages: list[Passage]  # what is masked
    cells: list[Cells]  # of each page's folded words


class Batches:
    """Step number -> Batch."""

    def __init__(self, config: Config, seed: str, features: TowerFeatures, keys: Keys, strips: int) -> None:
        self.seed, self.passages = config.seed, config.passages
        self.makers = [
            BatchMaker(
                features,
                keys,
                f"{seed}/{attempt}",
                pages=config.pages,
                queries=config.queries,
                answered_only=True,
                strips=strips,
                rows=config.rows,
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

    def _batch(self, step: int, pages: list[ReadPage], asked: list[list[LabelledQuery]]) -> Batch:
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
            [cells_of(page) for page in pages],
        )


def passage(page: ReadPage, number: int, rng: random.Random) -> Passage:
    """As many words in a row as may be read of a text, from anywhere on a page."""
    first = rng.randrange(max(1, len(page.words) - scorer.MAX_PIECES // 2))
    return Passage(number, tuple(page.words[first : first + scorer.MAX_PIECES]))


def holds(page: ReadPage, query: str) -> bool:
    """Whether a page is known to answer a query: it is one of its questions, or its words stand there in a row."""
    if any(asked.text == query for asked in page.questions):
        return True
    words = f" {' '.join(filter(None, map(fold, query.split())))} "
    return words in f" {' '.join(filter(None, page.folded))} "


class Lesson:
    """A network with its word pieces, its teacher and the weights of its losses.

    *Pointing*, of a Local network alone, whose vision tokens are the page's cells: in the second layer half of the
    heads must look from the last piece of a query's word to the cells in which it stands, or to ``[CLS]`` if the page
    lacks it.
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
        texts = [self.ids(query) for query in batch.queries]
        points = config.pointing and not network.sizes.tokens and network.sizes.layers > POINTER
        pointer = Pointer(parts[1], batch.cells, texts, [ends_of(self.ids, query.split()) for query in batch.queries])
        scores, z = network.against(parts, batch.pages, texts, self.pieces.sep, pointer.watch if points else None)
        matched = listwise(scores, batch.owner, batch.answers)
        found = {"loss": matched, "matched": matched}
        if points:
            found["pointed"] = pointer.loss()
            found["loss"] = found["loss"] + config.pointing * found["pointed"]
        if config.masking:
            found["masked"] = self._masked(parts[1], batch, z)
            found["loss"] = found["loss"] + config.masking * found["masked"]
        if self.teacher:
            found["distilled"] = distilled(scores, self._taught(batch), batch.owner, batch.answers)
            found["loss"] = found["loss"] + config.distillation * found["distilled"]
        return found | {"right": right(scores, batch.owner, batch.answers)}

    def ids(self, text: str) -> list[int]:
        return scorer.text_ids(self.pieces, text, punctuation=self.config.punctuation)

    def _masked(self, encoder: backbone.JointEncoder, batch: Batch, z: Sequence[Tensor]) -> Tensor:
        """Cross-entropy of the masked pieces, given the rest of the text and its page."""
        rng = random.Random(f"{self.config.seed}/mask/{batch.step}")
        states, wanted = [], []
        for passage in batch.passages:
            text = self.ids(" ".join(passage.words))
            hidden, places = masked(text[1:-1], self.pieces.mask, rng)
            if not places:
                continue
            ids = [text[0], *hidden, text[-1]]
            x = encoder.states(ids, self.pieces.sep, z[passage.page][None], len(ids))
            states.append(x[0, [1 + place for place in places]])
            wanted += [text[1 + place] for place in places]
        if not wanted:
            return z[0].sum() * 0
        logits = self.network.language_model.cls(torch.cat(states))
        return F.cross_entropy(logits.float(), torch.tensor(wanted, device=logits.device))

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
            texts = [self.ids(query) for query in batch.queries]
            scores = self.network.scores([page.to(self.network.device) for page in batch.pages], texts, self.pieces.sep)
            owner, answers = batch.owner.to(scores.device), batch.answers.to(scores.device)
            sums += torch.stack([listwise(scores, owner, answers), right(scores, owner, answers)]).cpu()
        loss, share = (sums / len(batches)).tolist()
        return {"val_loss": loss, "val_right": share}


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
    pool = PagePool(config.pool or run / "pool", known, config.seed)
    features, keys = yield from _features(vision, pool, config.reports, crew)
    if not config.start and teacher:
        _learn_from(network, teacher[0])
    elif not config.start and not network.sizes.tokens and config.spelling:
        yield from _spell(config, run, crew, lesson, start, features, keys)
    test = []
    if held_out:
        unseen = PagePool(pool.folder / "held-out", held_out, config.seed)
        seen, places = yield from _features(vision, unseen, HELD_OUT_REPORTS, crew)
        # Local pays for every token: it is measured on what most of its steps are on.
        make = Batches(
            config, str(config.seed), seen, places, 0 if network.sizes.tokens or not config.strips else HELD_OUT_BATCHES
        )
        test = [make(n) for n in range(HELD_OUT_BATCHES)]
    size = sum(tensor.numel() for tensor in network.tensors().values())
    kind = f"{network.sizes.tokens} tokens a page" if network.sizes.tokens else "Local"
    tell(f"{size / 1e6:.1f} million weights, {kind}; {len(keys)} pages of {config.reports} reports")
    yield from run_loop(
        RunFolder(run),
        network,
        config.schedule(),
        Batches(
            config,
            batch_seed(config.seed, start if config.start else None),
            features,
            keys,
            round(config.strips * config.steps),
        ),
        lesson.losses,
        evaluate=(lambda: lesson.measure(test)) if test else None,
        evaluate_every=config.evaluate_every,
        workers=config.workers,
        crew=crew,
    )
    if crew.leads:
        save(network, words, config.punctuation, run / CHECKPOINT, vision.id)
    crew.leave()


def _spell(
    config: Config,
    run: Path,
    crew: Crew,
    lesson: Lesson,
    start: Checkpoint,
    features: TowerFeatures,
    keys: Keys,
) -> Records:
    """Teach a fresh Local network to spell, in a run folder of its own, inside this one."""
    network = lesson.network
    torch.manual_seed(config.seed)
    pieces = (start.path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    some = (features.load(*key) for key in keys[:: max(1, len(keys) // FIRST_PAGES)])
    acquaint(network, pieces, lesson.ids, some)
    network.to(crew.device)
    spelling, make = Spelling(network, lesson.ids, lesson.pieces.sep), Spelled(features, keys, config.seed)
    schedule = replace(config.schedule(), steps=config.spelling)
    folder = RunFolder(run / "spelling")
    for record in run_loop(folder, spelling, schedule, make, spelling.losses, workers=config.workers, crew=crew):
        yield record | {"stage": "spelling"}
    network.zero_grad(set_to_none=True)


def _learn_from(network: Network, teacher: Network) -> None:
    """Begin with the teacher's joint encoder and head, where they have the same shape; the adapter begins anew."""
    own = network.state_dict()
    taken = {
        name: tensor
        for name, tensor in teacher.state_dict().items()
        if not name.startswith("vision_projection.") and name in own and own[name].shape == tensor.shape
    }
    network.load_state_dict(taken, strict=False)


def _check(config: Config, fixed: int) -> None:
    """``fixed``: tokens of every page; 0: it depends on the page. Raises MmrrError for values that do not fit."""
    least = {"tokens": 0, "max_tokens": 1, "pages": 2, "queries": 1, "rows": 1, "layers": 1, "vocabulary": 256}
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


def _features(vision: Checkpoint, pool: PagePool, reports: int, crew: Crew) -> Any:
    """What the vision encoder makes of the pages, and their places; in the folder that other trainings use, too."""
    file = vision.path / "model.safetensors"
    name = checksum_file(file) if file.exists() else vision.revision.removeprefix("sha256:")
    features = TowerFeatures(pool.folder / f"features-{name[:12]}", pool)
    keys = yield from make_all(features, reports, lambda: _tower(vision, crew), crew.device)
    return features, keys


def _tower(vision: Checkpoint, crew: Crew) -> Any:
    if vision.adapter:
        raise MmrrError(f"{vision.id} is a LoRA adapter; EDJE's vision encoder is a whole checkpoint")
    config = vision.config()
    if backbone.reads_any_size(config):
        return qwen3_vl.Backbone(vision.path, None, crew.device, torch.float32, needs_head=False)
    return _Squeezed(backbone.Vision(vision.path, config, crew.device, torch.float32))


class _Squeezed:
    """A vision encoder of one size, as TowerFeatures asks for one."""

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
