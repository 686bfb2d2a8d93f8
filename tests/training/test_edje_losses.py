"""EDJE's losses by hand, and the network in training against the stock modules."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmrr.scorers import edje as scorer
from mmrr.training.data.cell_targets import fold
from mmrr.training.data.tower_features import ReadPage
from mmrr.training.families import edje, edje_losses
from mmrr.training.families.edje import Config
from mmrr.training.families.edje_init import N_GRAMS, SMALL, SPECIALS, WORDS, Letters, Network, Sizes, grams
from mmrr.training.families.edje_losses import Batch, Lesson, Passage, Teacher
from mmrr.training.families.edje_pretrain import ends_of, init_letters
from mmrr.training.synthetic.page_pool import LocatedQuestion
from tests.scorers.edje.reference import Original


def test_with_one_negative_each_way_the_loss_is_the_papers_formula() -> None:
    """-log sigmoid(s_pos - s_neg), mean of the two directions."""
    scores = torch.tensor([[2.0, 0.5], [-1.0, 1.0]])
    owner, answers = torch.tensor([0, 1]), torch.eye(2, dtype=torch.bool)
    by_page = -(F.logsigmoid(torch.tensor(1.5)) + F.logsigmoid(torch.tensor(2.0))) / 2
    by_query = -(F.logsigmoid(torch.tensor(3.0)) + F.logsigmoid(torch.tensor(0.5))) / 2
    assert torch.allclose(edje_losses.listwise(scores, owner, answers), (by_page + by_query) / 2)


def test_the_listwise_loss_by_hand() -> None:
    """Three pages, two queries of page 0, one of page 2. Page 1 answers query 0 too, so it is not a negative of it."""
    scores = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    owner = torch.tensor([0, 0, 2])
    answers = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 1]]).bool()
    s = scores.double().tolist()

    def softmax(positive: float, *negatives: float) -> float:
        return math.log(sum(math.exp(one - positive) for one in (positive, *negatives)))

    by_page = [softmax(s[0][0], s[0][2]), softmax(s[1][0], s[1][1], s[1][2]), softmax(s[2][2], s[2][0], s[2][1])]
    by_query = [softmax(s[0][0], s[2][0]), softmax(s[1][0], s[2][0]), softmax(s[2][2], s[0][2], s[1][2])]
    expected = sum(by_page) / 6 + sum(by_query) / 6
    assert float(edje_losses.listwise(scores, owner, answers)) == pytest.approx(expected, abs=1e-6)


def test_a_batch_without_negatives_has_no_gradient() -> None:
    scores = torch.ones(2, 2, requires_grad=True)
    owner, answers = torch.tensor([0, 1]), torch.ones(2, 2, dtype=torch.bool)
    loss = edje_losses.listwise(scores, owner, answers)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert scores.grad is not None
    assert not scores.grad.any()
    assert torch.isfinite(edje_losses.distilled(scores, scores.detach(), owner, answers))


def test_distillation_by_hand() -> None:
    """Mean over positives, negative pages and negative queries; smallest where student and teacher agree."""
    student = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    teacher = torch.tensor([[4.0, -1.0], [0.0, 2.0]])
    owner, answers = torch.tensor([0, 1]), torch.eye(2, dtype=torch.bool)

    def bce(logit: float, other: float) -> float:
        target, p = 1 / (1 + math.exp(-other)), 1 / (1 + math.exp(-logit))
        return -(target * math.log(p) + (1 - target) * math.log(1 - p))

    positives = (bce(1, 4) + bce(3, 2)) / 2
    negatives = (bce(-2, -1) + bce(0.5, 0)) / 2
    expected = (positives + 2 * negatives) / 3
    assert float(edje_losses.distilled(student, teacher, owner, answers)) == pytest.approx(expected, abs=1e-6)
    moved = teacher.clone().requires_grad_(True)
    edje_losses.distilled(moved, teacher, owner, answers).backward()  # type: ignore[no-untyped-call]
    assert moved.grad is not None
    assert moved.grad.abs().max() <= 1e-6


def test_half_of_the_pieces_are_masked_always_by_the_mask_token() -> None:
    pieces = list(range(10, 4010))
    hidden, places = edje_losses.masked(pieces, 4, random.Random(0))
    assert {place for place in range(4000) if hidden[place] != pieces[place]} == set(places)
    assert {hidden[place] for place in places} == {4}
    assert 0.47 < len(places) / 4000 < 0.53
    assert edje_losses.masked(pieces, 4, random.Random(0)) == (hidden, places)
    assert edje_losses.masked([], 4, random.Random(0)) == ([], [])


def test_accuracy_counts_queries_whose_page_is_above_all_that_do_not_answer() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0]])
    answers = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    assert float(edje_losses.accuracy(scores, torch.tensor([0, 0]), answers)) == 0.5


def page_of(words: str, *questions: str) -> ReadPage:
    its = tuple(words.split())
    return ReadPage(
        torch.zeros(1, 1),
        torch.zeros(0, 1, 1),
        (1, 1),
        None,
        its,
        tuple(map(fold, its)),
        (0,) * len(its),
        ((0,),) * len(its),
        tuple(LocatedQuestion(text, "", (0,)) for text in questions),
    )


def test_a_passage_is_consecutive_words() -> None:
    words = [f"w{i}" for i in range(100)]
    page = page_of(" ".join(words))
    passages = [list(edje_losses.passage(page, 0, random.Random(seed)).words) for seed in range(40)]
    for found in passages:
        assert 30 <= len(found) <= scorer.MAX_PIECES
        assert found == words[(first := words.index(found[0])) : first + len(found)]
    assert passages[0] != passages[1]
    again = edje_losses.passage(page, 3, random.Random(0))
    assert (passages[0], again.page) == (list(again.words), 3)
    assert edje_losses.passage(page_of("one"), 0, random.Random(0)).words == ("one",)


def test_a_page_with_the_same_words_is_not_a_negative() -> None:
    page = page_of("The ferry - sails (at 3.5) knots", "How fast?")
    assert edje_losses.holds(page, "ferry sails at")
    assert edje_losses.holds(page, "FERRY, sails at 35")
    assert edje_losses.holds(page, "How fast?")
    assert not edje_losses.holds(page, "ferry at")
    assert not edje_losses.holds(page, "erry sails")
    assert not edje_losses.holds(page, "How slow?")


# The network in training


def sizes(**changes: Any) -> Sizes:
    return Sizes(**{
        "tokens": 4, "vision_width": 8, "adapter_heads": 2, "adapter_mlp": 16, "layers": 2, "hidden": 12, "heads": 2,
        "mlp": 24, "words": 40, "positions": 128, **changes,
    })  # fmt: skip


@pytest.mark.parametrize("tokens", [4, 0])
def test_the_forward_in_training_is_the_stock_modules(tokens: int) -> None:
    """Against BERT with replaced word vectors and the published adapter; gradients reach every scoring tensor."""
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


def test_masked_pieces_see_the_page_and_their_loss_is_weighted() -> None:
    torch.manual_seed(2)
    network = Network(sizes())
    pages = [torch.randn(6, 8, requires_grad=True) for _ in range(3)]
    found = lesson_of(network, masking=0.5).losses(batch_of(pages))
    assert torch.allclose(found["loss"], found["matched"] + 0.5 * found["masked"])
    assert float(found["masked"].detach()) == pytest.approx(math.log(40), rel=0.2)  # chance level with 40 pieces
    found["masked"].backward()  # type: ignore[no-untyped-call]
    for page in pages:
        assert page.grad is not None
        assert page.grad.abs().sum() > 0
    assert "masked" not in lesson_of(network, masking=0.0).losses(batch_of(pages))


def test_words_point_at_their_cells_or_at_cls() -> None:
    """Against attention written out, float32 within 1e-5; for pages of equal and of different lengths."""
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
            assert list(ends.values()) == words  # words of two letters are left out
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
    assert list(ends_of(ids, many)) == [10, 20, 30, 40, 50, 60]  # later words are cut off
    assert ends_of(lambda text: [2, len(text), 3], ["abc", "def"]) == {}  # a piece spans two words


def test_a_random_local_network_starts_with_letters_similar_to_their_cells() -> None:
    """A page of two words in two cells: the words' vectors equal the projected cells before any training.

    The first layers' keys have the same projection as their queries.
    """
    torch.manual_seed(6)
    network = Network(sizes(tokens=0, hidden=8, adapter_mlp=20))
    lesson = lesson_of(network)
    pieces = ["[PAD]", *(f"{n}" for n in range(1, 40))]
    pieces[lesson.pieces.encode("a")[0]], pieces[lesson.pieces.encode("b")[0]] = "a", "b"
    page = dataclasses.replace(page_of("a b"), tokens=torch.randn(6, 8), cells=((1,), (4,)))
    init_letters(network, pieces, lesson.ids, [page])
    adapter, encoder = network.parts()
    cells = adapter(page.tokens[None])[0]
    for word, cell in zip("ab", (1, 4), strict=True):
        (piece,) = lesson.pieces.encode(word)
        row = encoder.weights["embeddings.word_embeddings.weight"][piece]
        alike = F.cosine_similarity(row, F.layer_norm(cells[cell], (8,)), dim=0)
        assert alike > 0.999
    for layer in network.language_model.bert.encoder.layer:
        assert torch.equal(layer.attention.self.query.weight, layer.attention.self.key.weight)
    narrow = Network(sizes(tokens=0))  # width 12 over vision tokens of width 8: the letters stay random
    before = narrow.vision_projection[0].weight.clone()
    init_letters(narrow, pieces, lesson.ids, [page])
    assert torch.equal(before, narrow.vision_projection[0].weight)
    assert narrow.letters is not None


def test_pieces_share_their_letters() -> None:
    """A piece's vector is the sum of its letters' vectors, and its gradient reaches them."""
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
    assert torch.equal(vectors[[0, 4, 7]], own[[0, 4, 7]])  # control tokens, and pieces without letters
    vectors[5, 0].backward()  # type: ignore[no-untyped-call]
    assert letters.table.grad is not None
    assert set(letters.table.grad.abs().sum(1).nonzero()[:, 0].tolist()) == set(grams("abc"))
    assert not any(name.startswith("letters") for name in network.tensors())


def test_a_student_starts_with_its_teachers_joint_encoder() -> None:
    torch.manual_seed(5)
    student, teacher = Network(sizes()), Network(sizes(tokens=0))
    before = student.vision_projection.query.clone()
    edje._copy_joint_encoder(student, teacher)
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
    assert float(last["accuracy"]) == 1


def test_a_student_learns_its_teachers_scores() -> None:
    torch.manual_seed(4)
    teacher, network = Network(sizes(tokens=0)), Network(sizes())
    with torch.no_grad():
        teacher.classification_head[1].weight.normal_(0, 30)
    batch = batch_of([torch.randn(6, 8) for _ in range(3)])
    lesson = lesson_of(network, masking=0.0)
    lesson.teacher = Teacher(teacher.requires_grad_(False), lesson.pieces, False)
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
