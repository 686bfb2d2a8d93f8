"""The reader's loss and targets, the ranking loss, the words of a page and a new model's files; no training run."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

from mmrr import random_checkpoint
from mmrr.training.data import queries
from mmrr.training.data.cell_targets import ALPHABET, CellTargets, fold, word_hashes
from mmrr.training.data.queries import LabelledQuery, folded_ends
from mmrr.training.data.tower_features import ReadPage
from mmrr.training.from_scratch.batches import Batch
from mmrr.training.from_scratch.matching import ranked
from mmrr.training.from_scratch.reader import Crops, Reader, faster, patchify
from mmrr.training.synthetic.page_pool import LocatedQuestion
from mmrr.training.synthetic.snippets import draw_snippet


def test_a_page_does_not_contain_words_in_another_order() -> None:
    page = ReadPage(
        *[()] * 5, folded=("a", "rope", "", "of", "grey", "rope", "and", "wire"), blocks=(), cells=(), questions=()
    )  # type: ignore[arg-type]
    for text in ("rope of grey", "Rope, of GREY", "rope — of", "and wire", "A rope"):
        assert queries.contains_phrase(page, text), text
    for text in ("grey of rope", "a wire", "rop", "of gre", "wire and"):
        assert not queries.contains_phrase(page, text), text


def test_the_ranking_loss_is_cross_entropy_over_the_pages_of_a_query() -> None:
    """Three pages, by hand. A query with one page and a query without an answer have no loss."""
    labelled = [
        [LabelledQuery("a", True), LabelledQuery("b", False), LabelledQuery("alone", True)],
        [LabelledQuery("a", False), LabelledQuery("b", True), LabelledQuery("none", False)],
        [LabelledQuery("b", True), LabelledQuery("a", False), LabelledQuery("none", False)],
    ]
    z = torch.tensor([1.0, 0.5, 7.0, 2.0, -1.0, 3.0, 0.25, -0.5, 4.0], requires_grad=True)
    y = torch.tensor([query.relevant for queries in labelled for query in queries])
    batch = Batch([None] * 3, labelled)  # type: ignore[list-item]
    loss, first = ranked(z, y, batch)
    by_hand_a = -torch.log_softmax(torch.tensor([1.0, 2.0, -0.5]), 0)[0]
    shares = torch.softmax(torch.tensor([0.5, -1.0, 0.25]), 0)
    torch.testing.assert_close(loss, (by_hand_a - torch.log(shares[1] + shares[2])) / 2)
    assert first == 0
    loss.backward()
    assert torch.isfinite(z.grad).all()
    assert z.grad[[2, 5, 8]].eq(0).all()
    nothing, _ = ranked(z, torch.zeros_like(y), batch)
    assert nothing == 0


def test_strips_are_rows_of_the_page() -> None:
    page = ReadPage(
        tokens=torch.arange(12.0)[:, None],
        deepstack=torch.arange(12.0)[None, :, None],
        grid=(4, 3),
        saliency=torch.arange(12.0),
        words=("One", "two", "three"),
        folded=("one", "two", "three"),
        blocks=(0, 0, 1),
        cells=((1, 2), (4, 5), (5, 8)),
        questions=(LocatedQuestion("what?", "this", (0,)),),
    )
    strip = page.strip(1, 2)
    assert strip.grid == (2, 3)
    assert strip.tokens.flatten().tolist() == strip.deepstack.flatten().tolist() == [3, 4, 5, 6, 7, 8]
    assert strip.words == ("two", "three")
    assert strip.cells == ((1, 2), (2, 5))
    assert page.strip(0, 2).words == ("One", "two")
    assert strip.questions == ()


@pytest.mark.parametrize("side", [16, 18])
def test_the_faster_tower_equals_the_stock_tower(side: int) -> None:
    """256 patches use plain products, 324 the fused kernel; both within 1e-5 of transformers' tower."""
    tower = random_checkpoint.new_model(random_checkpoint.Shape(vision_layers=2)).model.visual.eval()
    pixels, grid = torch.randn(2 * side * side, 1536), torch.tensor([[1, side, side]] * 2)
    with torch.no_grad():
        stock = tower(pixels, grid_thw=grid).pooler_output
        assert torch.allclose(faster(tower)(pixels, grid_thw=grid).pooler_output, stock, atol=1e-5)


@pytest.mark.slow
def test_a_reader_learns_one_batch() -> None:
    """The loss on one batch falls by a third in 60 steps."""
    drawn = draw_snippet(["ferry", "quarry"], 256, 128, random.Random(0))
    characters, hashes = CellTargets(drawn.words).crop(0, 0, 8, 4, 32)
    model = random_checkpoint.new_model(random_checkpoint.Shape(vision_layers=2))
    reader = Reader(model.model.visual, 256)
    batch = Crops(
        patchify(np.asarray(drawn.image)[None]),
        torch.tensor([[1, 8, 16]]),
        torch.from_numpy(characters),
        torch.from_numpy(hashes),
    )
    optimizer = torch.optim.AdamW(reader.parameters(), 1e-3)
    losses = []
    for _ in range(60):
        loss = reader.losses(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] * 2 / 3


def test_targets_are_the_characters_and_hashes_of_each_cell() -> None:
    drawn = draw_snippet(["abc"], 64, 32, random.Random(1))
    characters, hashes = CellTargets(drawn.words).crop(0, 0, 2, 1, 32)
    for cell in range(2):
        inside = [
            (character, word.text)
            for word in drawn.words
            for character, (x, y) in zip(word.text, word.centres, strict=True)
            if x // 32 == cell and y // 32 == 0
        ]
        assert {ALPHABET[i] for i in characters[cell].nonzero()[0]} == {fold(character) for character, _ in inside}
        assert set(hashes[cell].nonzero()[0]) == {h for _, word in inside for h in word_hashes(fold(word))}


def test_word_ends_count_bytes() -> None:
    text = "Café (1,452.4) naïve?"
    ends = folded_ends(text)
    assert [word for word, _ in ends] == ["cafe", "14524", "naive"]
    assert [text.encode()[: end + 1].decode() for _, end in ends] == ["Café", "Café (1,452.4", "Café (1,452.4) naïve"]


# The files of a new model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "checkpoint"
    model = random_checkpoint.new_model(random_checkpoint.Shape(layers=1, vision_layers=1, deepstack=(0,)))
    random_checkpoint.save(model, path, 64, torch.bfloat16)
    return path


@pytest.mark.slow
def test_answers_and_fixed_phrases_are_one_token_and_other_words_bytes(checkpoint: Path) -> None:
    """With the tokenizer that transformers loads from the checkpoint."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for text in ("yes", "no", *random_checkpoint.PHRASES):
        assert len(tokenizer(text)["input_ids"]) == 1, text
    for text in ("yesterday knows", "Query: system user", "<Query>:né 7", random_checkpoint.PHRASES[1].lower()):
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.encode())
        assert tokenizer.decode(ids) == text


def test_patches_equal_those_of_the_image_processor(checkpoint: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    image = np.random.default_rng(0).integers(0, 256, (1, 96, 64, 3), dtype=np.uint8)
    there = processor(images=[Image.fromarray(image[0])], do_resize=False, return_tensors="pt")["pixel_values"]
    assert torch.equal(there, patchify(image))
