"""Training EDJE: its losses by hand, and small runs on drawn pages whose checkpoints the ordinary scorer loads."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from mmrr.backbones import edje as backbone
from mmrr.errors import MmrrError
from mmrr.modeling.checkpoints import Checkpoint, resolve
from mmrr.scorers import edje as scorer
from mmrr.training.config import read
from mmrr.training.data.tower_features import ReadPage
from mmrr.training.families import edje
from mmrr.training.families.edje import Batch, Config, Lesson, Passage
from mmrr.training.families.edje_init import (
    N_GRAMS,
    SMALL,
    SPECIALS,
    WORDS,
    Letters,
    Network,
    Sizes,
    grams,
    learn_pieces,
    load,
    write_pieces,
)
from mmrr.training.families.edje_pretrain import acquaint, ends_of
from mmrr.training.synthetic.page_pool import LocatedQuestion
from mmrr.training.synthetic.sources import read_documents
from mmrr.workspace.files import HashCache
from tests.conftest import CPU
from tests.console import FP32, INDEX, SOIL, THESIS, mmrr, refused, write_documents
from tests.scorers.edje.reference import Original, write_edje, write_vision
from tests.texts import write_texts
from tests.tiny import write_checkpoint

TOLERANCE = 1e-4
SIZES = (
    "tokens = 4\nadapter_heads = 4\nadapter_mlp = 24\nlayers = 2\nhidden = 16\nheads = 2\nmlp = 24\nvocabulary = 300\n"
)
STUDENT = 'teacher = "local/checkpoint"\n'
QUERIES = ("the ferry of Skarrow", "library", "Who opened the school of Lunna 2?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train-edje")
    write_texts(folder / "texts.jsonl")
    write_checkpoint(folder / "vision", layers=1)
    return folder


def config(folder: Path, name: str, lines: str = "", vision: str = "vision", sizes: str = SIZES) -> Config:
    common = (
        f'scorer = "edje"\ndocuments = "texts.jsonl"\npool = "pool"\nvision = "{vision}"\nworkers = 0\nwarmup = 1\n'
        "reports = 2\nheld_out = 0.0\nsave_every = 2\nsteps = 4\npages = 3\nspelling = 2\n"
    )
    own = {line.split(" ")[0] for line in lines.splitlines()}
    kept = [line for line in (common + sizes).splitlines() if line.split(" ")[0] not in own]
    path = folder / f"{name}.toml"
    path.write_text("\n".join(kept) + "\n" + lines)
    found: Config = read(path, "reranker")
    return found


def losses_of(records: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in records if "loss" in record]


@pytest.fixture(scope="module")
def runs(folder: Path) -> Path:
    """A Local model, and a compressed one that it teaches."""
    for name, lines in (("local", "tokens = 0\n"), ("student", STUDENT)):
        last = list(edje.train(config(folder, name, lines), folder / name))[-1]
        assert last["step"] == 4
        assert math.isfinite(last["loss"])
        assert ("distilled" in last) == (name == "student")
    return folder


def found(path: Path) -> Checkpoint:
    return resolve(str(path), None, HashCache(path.parent / "hashes.json"), scorer.SPEC.model_types)


def scorer_of(folder: Path, name: str, vision: str = "vision") -> scorer.Scorer:
    checkpoint = found(folder / name / "checkpoint")
    prepare = scorer.resolve(scorer.Prepare(vision=str(folder / vision)), checkpoint.config())
    return scorer.Scorer(checkpoint, prepare, CPU, torch.float32)


# Losses


def test_one_negative_each_way_is_the_papers_formula() -> None:
    """-log sigmoid(s_pos - s_neg), mean of the two directions."""
    scores = torch.tensor([[2.0, 0.5], [-1.0, 1.0]])
    owner, answers = torch.tensor([0, 1]), torch.eye(2, dtype=torch.bool)
    by_page = -(F.logsigmoid(torch.tensor(1.5)) + F.logsigmoid(torch.tensor(2.0))) / 2
    by_query = -(F.logsigmoid(torch.tensor(3.0)) + F.logsigmoid(torch.tensor(0.5))) / 2
    assert torch.allclose(edje.listwise(scores, owner, answers), (by_page + by_query) / 2)


def test_the_listwise_loss_by_hand() -> None:
    """Three pages, two queries of page 0 and one of page 2; query 0 stands on page 1 too, which is no negative."""
    scores = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    owner = torch.tensor([0, 0, 2])
    answers = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 1]]).bool()
    s = scores.double().tolist()

    def softmax(positive: float, *negatives: float) -> float:
        return math.log(sum(math.exp(one - positive) for one in (positive, *negatives)))

    by_page = [softmax(s[0][0], s[0][2]), softmax(s[1][0], s[1][1], s[1][2]), softmax(s[2][2], s[2][0], s[2][1])]
    by_query = [softmax(s[0][0], s[2][0]), softmax(s[1][0], s[2][0]), softmax(s[2][2], s[0][2], s[1][2])]
    expected = sum(by_page) / 6 + sum(by_query) / 6
    assert float(edje.listwise(scores, owner, answers)) == pytest.approx(expected, abs=1e-6)


def test_a_batch_without_negatives_teaches_nothing() -> None:
    scores = torch.ones(2, 2, requires_grad=True)
    owner, answers = torch.tensor([0, 1]), torch.ones(2, 2, dtype=torch.bool)
    loss = edje.listwise(scores, owner, answers)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert scores.grad is not None
    assert not scores.grad.any()
    assert torch.isfinite(edje.distilled(scores, scores.detach(), owner, answers))


def test_distillation_by_hand() -> None:
    """Mean over positives, negative pages and negative queries; least where student and teacher agree."""
    student = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    teacher = torch.tensor([[4.0, -1.0], [0.0, 2.0]])
    owner, answers = torch.tensor([0, 1]), torch.eye(2, dtype=torch.bool)

    def bce(logit: float, other: float) -> float:
        target, p = 1 / (1 + math.exp(-other)), 1 / (1 + math.exp(-logit))
        return -(target * math.log(p) + (1 - target) * math.log(1 - p))

    positives = (bce(1, 4) + bce(3, 2)) / 2
    negatives = (bce(-2, -1) + bce(0.5, 0)) / 2
    expected = (positives + 2 * negatives) / 3
    assert float(edje.distilled(student, teacher, owner, answers)) == pytest.approx(expected, abs=1e-6)
    moved = teacher.clone().requires_grad_(True)
    edje.distilled(moved, teacher, owner, answers).backward()  # type: ignore[no-untyped-call]
    assert moved.grad is not None
    assert moved.grad.abs().max() <= 1e-6


def test_half_of_the_pieces_are_masked_and_always_by_the_mask() -> None:
    pieces = list(range(10, 4010))
    hidden, places = edje.masked(pieces, 4, random.Random(0))
    assert {place for place in range(4000) if hidden[place] != pieces[place]} == set(places)
    assert {hidden[place] for place in places} == {4}
    assert 0.47 < len(places) / 4000 < 0.53
    assert edje.masked(pieces, 4, random.Random(0)) == (hidden, places)
    assert edje.masked([], 4, random.Random(0)) == ([], [])


def test_right_is_above_every_page_that_does_not_answer() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0]])
    answers = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    assert float(edje.right(scores, torch.tensor([0, 0]), answers)) == 0.5


def page_of(words: str, *questions: str) -> ReadPage:
    its = tuple(words.split())
    return ReadPage(
        torch.zeros(1, 1),
        torch.zeros(0, 1, 1),
        (1, 1),
        None,
        its,
        tuple(map(edje.fold, its)),
        (0,) * len(its),
        ((0,),) * len(its),
        tuple(LocatedQuestion(text, "", (0,)) for text in questions),
    )


def test_a_passage_is_words_in_a_row() -> None:
    words = [f"w{i}" for i in range(100)]
    page = page_of(" ".join(words))
    passages = [list(edje.passage(page, 0, random.Random(seed)).words) for seed in range(40)]
    for found in passages:
        assert 30 <= len(found) <= scorer.MAX_PIECES
        assert found == words[(first := words.index(found[0])) : first + len(found)]
    assert passages[0] != passages[1]
    again = edje.passage(page, 3, random.Random(0))
    assert (passages[0], again.page) == (list(again.words), 3)
    assert edje.passage(page_of("one"), 0, random.Random(0)).words == ("one",)


def test_a_page_that_shows_the_words_too_is_no_negative() -> None:
    page = page_of("The ferry - sails (at 3.5) knots", "How fast?")
    assert edje.holds(page, "ferry sails at")
    assert edje.holds(page, "FERRY, sails at 35")
    assert edje.holds(page, "How fast?")
    assert not edje.holds(page, "ferry at")
    assert not edje.holds(page, "erry sails")
    assert not edje.holds(page, "How slow?")


# The network in training


def sizes(**changes: Any) -> Sizes:
    return Sizes(**{
        "tokens": 4, "vision_width": 8, "adapter_heads": 2, "adapter_mlp": 16, "layers": 2, "hidden": 12, "heads": 2,
        "mlp": 24, "words": 40, "positions": 128, **changes,
    })  # fmt: skip


@pytest.mark.parametrize("tokens", [4, 0])
def test_the_forward_in_training_is_the_stock_modules(tokens: int) -> None:
    """BERT fed with words replaced, the unfolded adapter; and gradients reach every tensor that scores."""
    torch.manual_seed(1)
    original = Original(m=4, d=12, layers=2, local=not tokens, positions=512, width=8)
    network = Network(
        sizes(tokens=tokens, adapter_mlp=24, words=original.language_model.config.vocab_size, positions=512)
    )
    network.load_state_dict({name: original.state_dict()[name] for name in network.tensors()}, strict=False)
    pages = [torch.randn(n, 8) for n in (9, 5)]
    texts = [[2, 7, 8, 3], [2, 9, 3]]
    scores = network.scores(pages, texts, 3)
    for row, text in zip(scores, texts, strict=True):
        z = [original.vision_projection(page[None])[0] for page in pages]
        expected = torch.cat([original.score([text[1:-1]], [one]) for one in z])
        assert (row - expected).abs().max() <= 1e-5
    scores.square().sum().backward()
    unused = {name for name, tensor in network.tensors().items() if tensor.grad is None}
    assert not unused


def lesson_of(network: Network, **changes: Any) -> Lesson:
    class Pieces:
        cls, sep, mask = 2, 3, 4

        def encode(self, text: str) -> list[int]:
            return [5 + ord(letter) % 30 for letter in text if letter != " "]

    made = Config(scorer="edje", documents=(), vision=edje.NONE, **changes)
    return Lesson(made, network, Pieces(), None)


def batch_of(pages: list[Tensor]) -> Batch:
    eye = torch.eye(len(pages), dtype=torch.bool)
    texts = ["abcdef", "ghijkl", "mnopqr"][: len(pages)]
    passages = [Passage(i, (text,)) for i, text in enumerate(texts)]
    return Batch(0, pages, texts, torch.arange(len(pages)), eye, passages, [{text: (1,)} for text in texts])


def test_masked_pieces_see_the_page_and_their_loss_is_weighed() -> None:
    torch.manual_seed(2)
    network = Network(sizes())
    pages = [torch.randn(6, 8, requires_grad=True) for _ in range(3)]
    found = lesson_of(network, masking=0.5).losses(batch_of(pages))
    assert torch.allclose(found["loss"], found["matched"] + 0.5 * found["masked"])
    assert float(found["masked"].detach()) == pytest.approx(math.log(40), rel=0.2)  # chance, of 40 pieces
    found["masked"].backward()  # type: ignore[no-untyped-call]
    for page in pages:
        assert page.grad is not None
        assert page.grad.abs().sum() > 0
    assert "masked" not in lesson_of(network, masking=0.0).losses(batch_of(pages))


def test_words_point_at_their_cells_or_at_the_beginning() -> None:
    """Against attention written out, in float32 within 1e-5; pages of one length and of several."""
    torch.manual_seed(4)
    network = Network(sizes(tokens=0))
    lesson = lesson_of(network, masking=0.0)
    for lengths in ((6, 6), (6, 4)):
        pages = [torch.randn(n, 8) for n in lengths]
        cells = [{"abcdef": (0, 2), "ghi": (1,)}, {"abcdef": (3,)}]
        batch = dataclasses.replace(batch_of(pages), queries=["abcdef xy", "xyz ghi"], cells=cells)
        found = lesson.losses(batch)
        assert torch.allclose(found["loss"], found["matched"] + found["pointed"])
        expected = []
        adapter, encoder = network.parts()
        for query, words in zip(batch.queries, (["abcdef"], ["xyz", "ghi"]), strict=True):
            text = lesson.ids(query)
            ends = ends_of(lesson.ids, query.split())
            assert list(ends.values()) == words  # two letters are too short to tell pages apart
            for page, own in zip(pages, cells, strict=True):
                x = encoder.embed(text, lesson.pieces.sep, adapter(page[None])[0][None])
                x = encoder.layer(0, x, x)
                query_heads, key = (encoder.heads_of(1, part, x)[0, 0] for part in ("query", "key"))
                weights = (query_heads @ key.T / key.shape[-1] ** 0.5).softmax(-1)
                looked = [
                    weights[row, [len(text) + cell for cell in own[word]] if word in own else [0]].sum().log()
                    for row, word in ends.items()
                ]
                expected.append(-torch.stack(looked).mean())
        assert found["pointed"].item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-5)
    assert "pointed" not in lesson_of(network, pointing=0.0).losses(batch)
    compressed = lesson_of(Network(sizes())).losses(batch)
    assert "pointed" not in compressed


def test_ends_are_rows_of_last_pieces() -> None:
    ids = lesson_of(Network(sizes(tokens=0))).ids
    assert ends_of(ids, ["abc", "de", "Fgh."]) == {3: "abc", 8: "fgh"}
    many = ["abcdefghij"] * 8
    assert list(ends_of(ids, many)) == [10, 20, 30, 40, 50, 60]  # the others are cut off
    assert ends_of(lambda text: [2, len(text), 3], ["abc", "def"]) == {}  # pieces across words


def test_a_fresh_local_network_begins_with_letters_like_their_cells() -> None:
    """A page of two words, each in a cell of its own: at once the words' vectors are those cells', as the projection
    has them, and the first layers' keys are their queries."""
    torch.manual_seed(6)
    network = Network(sizes(tokens=0, hidden=8, adapter_mlp=20))
    lesson = lesson_of(network)
    pieces = ["[PAD]", *(f"{n}" for n in range(1, 40))]
    pieces[lesson.pieces.encode("a")[0]], pieces[lesson.pieces.encode("b")[0]] = "a", "b"
    page = dataclasses.replace(page_of("a b"), tokens=torch.randn(6, 8), cells=((1,), (4,)))
    acquaint(network, pieces, lesson.ids, [page])
    adapter, encoder = network.parts()
    cells = adapter(page.tokens[None])[0]
    for word, cell in zip("ab", (1, 4), strict=True):
        (piece,) = lesson.pieces.encode(word)
        row = encoder.weights["embeddings.word_embeddings.weight"][piece]
        alike = F.cosine_similarity(row, F.layer_norm(cells[cell], (8,)), dim=0)
        assert alike > 0.999
    for layer in network.language_model.bert.encoder.layer:
        assert torch.equal(layer.attention.self.query.weight, layer.attention.self.key.weight)
    narrow = Network(sizes(tokens=0))  # 12 wide over vision tokens of 8: letters at random
    before = narrow.vision_projection[0].weight.clone()
    acquaint(narrow, pieces, lesson.ids, [page])
    assert torch.equal(before, narrow.vision_projection[0].weight)
    assert narrow.letters is not None


def test_pieces_share_their_letters() -> None:
    """A piece is the sum of its letters, which a gradient reaches through every piece that has them."""
    assert grams("##ab") == grams("##AB") != grams("ab")
    assert set(grams("##abc")) < set(grams("##abcd"))
    assert grams("##.") == []
    torch.manual_seed(7)
    network = Network(sizes(tokens=0))
    pieces = [*SPECIALS, "abc", "##abc", ".", *(f"{n}" for n in range(32))]
    network.letters = letters = Letters(pieces, torch.randn(N_GRAMS, 12))
    own = network.language_model.bert.embeddings.word_embeddings.weight
    vectors = network.tensors()[WORDS]
    for piece in (5, 6):
        expected = F.layer_norm(letters.table[grams(pieces[piece])].sum(0), (12,)) * SMALL
        assert torch.allclose(vectors[piece] - own[piece], expected, atol=1e-6)
    assert torch.equal(vectors[[0, 4, 7]], own[[0, 4, 7]])  # specials, and what has no letters
    vectors[5, 0].backward()  # type: ignore[no-untyped-call]
    assert letters.table.grad is not None
    assert set(letters.table.grad.abs().sum(1).nonzero()[:, 0].tolist()) == set(grams("abc"))
    assert not any(name.startswith("letters") for name in network.tensors())


def test_a_student_begins_with_its_teachers_joint_encoder() -> None:
    torch.manual_seed(5)
    student, teacher = Network(sizes()), Network(sizes(tokens=0))
    before = student.vision_projection.query.clone()
    edje._learn_from(student, teacher)
    assert torch.equal(student.vision_projection.query, before)
    own, others = student.state_dict(), teacher.state_dict()
    same = [name for name in own if name in others and not name.startswith("vision_projection.")]
    assert same
    for name in same:
        assert own[name].shape != others[name].shape or torch.equal(own[name], others[name]), name


def test_matching_is_learnt_on_one_batch() -> None:
    torch.manual_seed(3)
    network = Network(sizes())
    batch = batch_of([torch.randn(6, 8) for _ in range(3)])
    lesson = lesson_of(network)
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    first = lesson.losses(batch)
    for _ in range(100):
        optimizer.zero_grad()
        last = lesson.losses(batch)
        last["loss"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(first["matched"].detach()) == pytest.approx(math.log(3), rel=0.2)
    assert float(last["matched"]) < 0.1
    assert float(last["masked"]) < float(first["masked"]) / 2
    assert float(last["right"]) == 1


def test_a_student_learns_its_teachers_scores() -> None:
    torch.manual_seed(4)
    teacher, network = Network(sizes(tokens=0)), Network(sizes())
    with torch.no_grad():
        teacher.classification_head[1].weight.normal_(0, 30)
    batch = batch_of([torch.randn(6, 8) for _ in range(3)])
    lesson = lesson_of(network, masking=0.0)
    lesson.teacher = (teacher.requires_grad_(False), lesson.pieces, False)
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    apart = []
    for _ in range(80):
        texts = [scorer.text_ids(lesson.pieces, query, punctuation=False) for query in batch.queries]
        with torch.no_grad():
            theirs, ours = (one.scores(batch.pages, texts, 3) for one in (teacher, network))
        apart.append(float((theirs.sigmoid() - ours.sigmoid()).abs().max()))
        optimizer.zero_grad()
        lesson.losses(batch)["distilled"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert apart[-1] < apart[0] / 4
    assert all(tensor.grad is None for tensor in teacher.parameters())


def test_the_small_model_is_below_13_mb_in_half_precision() -> None:
    own = Config(scorer="edje", documents=(), vision=edje.NONE)
    shape = Sizes(
        tokens=own.tokens,
        vision_width=256,
        adapter_heads=own.adapter_heads,
        adapter_mlp=own.adapter_mlp,
        layers=own.layers,
        hidden=own.hidden,
        heads=own.heads,
        mlp=own.mlp,
        words=own.vocabulary,
        positions=edje.TEXT + own.tokens,
    )
    assert 2 * sum(tensor.numel() for tensor in Network(shape).tensors().values()) < 13_000_000


# Word pieces


def test_word_pieces_are_learnt_from_the_documents(folder: Path, tmp_path: Path) -> None:
    documents = read_documents(folder / "texts.jsonl")
    pieces = learn_pieces(documents, 300, punctuation=False)
    assert pieces[:5] == list(SPECIALS)
    assert len(pieces) == len(set(pieces)) <= 300
    assert not {".", "(", "?"} & set(pieces)
    assert {".", "(", "?"} <= set(learn_pieces(documents, 300, punctuation=True))
    assert pieces == learn_pieces(documents, 300, punctuation=False)
    write_pieces(pieces, tmp_path)
    read_back = backbone.WordPieces(tmp_path, len(pieces))
    assert (read_back.cls, read_back.sep, read_back.mask) == (2, 3, 4)
    unknown, specials = pieces.index("[UNK]"), set(range(5))
    for text in ("zebra qqq 0918 xylophone", *QUERIES):
        ids = read_back.encode(scorer.canonical(text))
        assert unknown not in ids
        assert "".join(pieces[i].removeprefix("##") for i in ids) == scorer.canonical(text).replace(" ", "")
    assert len(read_back.encode("ferry of the library")) < 10  # common words are few pieces
    assert not (specials - {unknown}) & set(read_back.encode("[CLS] [SEP] [MASK]"))


# Runs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["local", "student"])
def test_what_was_trained_is_what_scores(runs: Path, name: str, page_images: list[Any]) -> None:
    """The training forward over the saved weights, and the ordinary scorer from page image to logit."""
    ordinary = scorer_of(runs, name)
    vision = json.loads((runs / "vision" / "config.json").read_text())
    network, pieces, punctuation = load(found(runs / name / "checkpoint"), vision, runs / name / "checkpoint")
    pages = [tokens.clone() for tokens in ordinary.vision.tokens(page_images)]
    texts = [scorer.text_ids(pieces, query, punctuation=punctuation) for query in QUERIES]
    assert texts == [ordinary.text_ids(query) for query in QUERIES]
    with torch.no_grad():
        trained = network.scores(pages, texts, pieces.sep)
    for query, row in zip(QUERIES, trained, strict=True):
        scores = torch.tensor([ordinary.score_uncached(query, image, None, scorer.Score()) for image in page_images])
        assert (scores - row).abs().max() <= TOLERANCE
    assert (trained[0] - trained[1]).abs().max() > 0


@pytest.mark.slow
def test_the_checkpoint_is_what_was_trained_last(runs: Path) -> None:
    """The run's state and the checkpoint hold the same tensors, but for half precision and training's head."""
    state = load_file(runs / "student" / "state.safetensors")
    weights = load_file(runs / "student" / "checkpoint" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    for name, tensor in weights.items():
        assert torch.equal(tensor, state[f"model.{name}"].half()), name
    left = {name for name in state if name.startswith("model.") and name.removeprefix("model.") not in weights}
    assert all(".cls." in name for name in left)
    fresh = load_file(runs / "student" / "start" / "model.safetensors")
    assert not torch.equal(fresh["vision_projection.query"].half(), weights["vision_projection.query"])


@pytest.mark.slow
def test_local_keeps_every_token_and_the_student_four(runs: Path, page_images: list[Any]) -> None:
    for name, shapes in (("local", [35, 32, 36, 6]), ("student", [4] * 4)):
        states = scorer_of(runs, name).prepare(page_images, [None] * 4)
        assert [len(state["z"]) for state in states] == shapes
    assert scorer_of(runs, "local").prepare_options.tokens == 1280


@pytest.mark.slow
def test_a_run_that_was_stopped_repeats_its_losses(runs: Path) -> None:
    settings = config(runs, "student", STUDENT + "decay = 0.0\nstrips = 0.0\n")
    whole = losses_of(list(edje.train(settings, runs / "whole")))
    list(edje.train(replace(settings, steps=2), runs / "parts"))
    parts = losses_of(list(edje.train(settings, runs / "parts")))
    assert len(whole) == 2
    assert parts == whole[1:]
    state, other = (load_file(runs / name / "state.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in state.items())


@pytest.mark.slow
def test_it_is_measured_on_documents_it_never_drew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edje, "HELD_OUT_REPORTS", 1)
    lines = 'held_out = 0.1\nreports = 1\npool = "other-pool"\nevaluate_every = 2\nsteps = 2\n'
    last = list(edje.train(config(folder, "measured", lines), folder / "measured"))[-1]
    assert 0 <= last["val_right"] <= 1
    assert 0 < last["val_loss"] < 2 * math.log(3)


@pytest.mark.slow
def test_it_goes_on_from_a_checkpoint(runs: Path) -> None:
    """Its sizes, its word pieces, its weights: the first loss is the trained one's."""
    lines = "steps = 1\nlr = 1e-9\nwarmup = 0\n"
    more = config(runs, "more", lines + 'start = "student/checkpoint"\n', sizes="")
    list(edje.train(more, runs / "more"))
    weights, before = (load_file(runs / name / "checkpoint" / "model.safetensors") for name in ("more", "student"))
    assert weights.keys() == before.keys()
    for name, tensor in weights.items():
        assert (tensor - before[name]).abs().max() <= 1e-3
    words = [(runs / name / "checkpoint" / "vocab.txt").read_bytes() for name in ("more", "student")]
    assert words[0] == words[1]


def test_a_published_shape_over_siglip_goes_on(folder: Path, page_images: list[Any]) -> None:
    """The paper's own second stage: no masking, pages squeezed to the encoder's square."""
    write_vision(folder / "siglip")
    torch.manual_seed(5)
    write_edje(folder / "published", Original())
    lines = 'start = "published"\nstrips = 0.0\nmasking = 0.0\nsteps = 2\nheld_out = 0.0\nqueries = 1\n'
    settings = config(folder, "over-siglip", lines, vision="siglip", sizes="")
    list(edje.train(settings, folder / "over-siglip"))
    trained = scorer_of(folder, "over-siglip", "siglip")
    assert trained.prepare(page_images[:1], [None])[0]["z"].shape == (4, 12)
    with pytest.raises(MmrrError, match=r"strips = 0.5: .* squeezes pages to a square.*expected strips = 0.0"):
        list(edje.train(replace(settings, strips=0.5), folder / "no"))


@pytest.mark.slow
def test_from_the_command_line_to_a_ranking(runs: Path, tmp_path: Path) -> None:
    config(runs, "cli", "held_out = 0.0\nsteps = 2\n")
    told = json.loads(
        mmrr("train", "reranker", "--config", runs / "cli.toml", "--run", tmp_path / "run", "--json").stdout
    )
    assert told["result"] == str(tmp_path / "run" / "checkpoint")
    docs = write_documents(tmp_path / "docs", thesis=THESIS, soil=SOIL)
    work = ("--work", tmp_path / "w")
    mmrr("index", docs, *work, *INDEX)
    model = ("--scorer-model", told["result"])  # it names its vision encoder
    mmrr("precache", *work, "--scorer", "edje", *model, *FP32)
    ranked = json.loads(mmrr("rerank", "the thesis", *work, "--json").stdout)
    assert ranked
    assert json.loads(mmrr("verify", *work, "--json").stdout)["problems"] == []
    (runs / "bad.toml").write_text((runs / "cli.toml").read_text().replace("tokens = 4", "tokens = 4\nband = 1"))
    assert "unknown key band" in refused("train", "reranker", "--config", runs / "bad.toml", "--run", tmp_path / "bad")


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("pages = 1\n", "pages = 1; expected 2 or more"),
        ("tokens = -1\n", "tokens = -1; expected 0 or more"),
        ("hidden = 15\n", "hidden = 15 cannot have heads = 2"),
        ("adapter_heads = 3\n", "width 64 cannot have adapter_heads = 3"),
        ('start = "published"\n', "published reads vision tokens of width 16; those of `vision` have 64"),
        ('teacher = "vision"\n', "0 tensors are named"),
        ("tokens = 0\nmax_tokens = 8\n", "do not fit 72 positions; raise max_tokens"),
    ],
)
def test_what_does_not_fit_is_said(folder: Path, tmp_path: Path, lines: str, why: str) -> None:
    write_edje(folder / "published", Original())
    with pytest.raises(MmrrError, match=why):
        list(edje.train(config(folder, "unfit", lines + ""), tmp_path / "run"))
