"""ZipRerank's prompt, pixels and positions against the stock model."""

from __future__ import annotations

import json
import math

import pytest
import torch
from PIL import Image

from mmrr.errors import MmrrError
from mmrr.modeling.checkpoints import resolve
from mmrr.scorers import ziprerank
from mmrr.scorers.ziprerank import Prepare, Scorer
from mmrr.types import KeptTokens
from mmrr.workspace.files import HashCache
from tests.conftest import CPU
from tests.scorers.ziprerank.reference import FULL, NASTY, QUERIES, QUERY, letter_ids, rendered, stock_inputs

# Prompt


def test_the_prompt_of_one_page(scorer, stock):
    _, tokenizer, _ = stock
    ids = [i for segment in scorer.segments("who?", 1) for i in segment]
    assert tokenizer.decode(ids) == (
        "<|im_start|>user\n"
        "You are RankGPT, an intelligent assistant that can rank passages based on their relevancy to the query.\n"
        "\n"
        "I will provide you with 1 passages as images.\n"
        "Rank the passages based on their relevance to the search query.\n"
        "\n"
        "The images are provided in order: Picture 1 is passage [A].\n"
        "\n"
        "Search Query: who?\n"
        "\n"
        "Rank the passages above based on their relevance to the search query.\n"
        "The passages should be listed in descending order using identifiers.\n"
        "The most relevant passages should be listed first.\n"
        "The output format should be [A] > [B], etc.\n"
        "Only output the ranking results, do not say anything else."
        "<|vision_start|><|image_pad|><|vision_end|><|im_end|>\n"
        "<|im_start|>assistant\n"
        "["
    )


@pytest.mark.parametrize("n", [1, 3, 20])
@pytest.mark.parametrize("query", QUERIES)
def test_the_ids_are_the_stock_templates_and_a_bracket(scorer, zip_path, stock, query, n):
    _, tokenizer, _ = stock
    ids = [i for segment in scorer.segments(query, n) for i in segment]
    assert ids == [*tokenizer(rendered(tokenizer, zip_path, query, n)).input_ids, tokenizer.convert_tokens_to_ids("[")]
    assert tokenizer.decode(ids[-12:]).endswith("<|im_start|>assistant\n[")
    assert ids.count(scorer.backbone.config.image_token_id) == n


def test_pages_are_named_in_order(stock, zip_path):
    _, tokenizer, _ = stock
    text = rendered(tokenizer, zip_path, "q", 20)
    (line,) = [line for line in text.splitlines() if line.startswith("The images")]
    assert line.startswith("The images are provided in order: Picture 1 is passage [A], Picture 2 is passage [B], ")
    assert line.endswith("Picture 19 is passage [S], Picture 20 is passage [T].")


def test_bracket_and_letters_are_single_tokens(scorer, stock):
    _, tokenizer, _ = stock
    assert scorer.letters == letter_ids(tokenizer, 20)
    assert len(set(scorer.letters)) == 20
    assert scorer.bracket == tokenizer.convert_tokens_to_ids("[")
    for letter, token in zip("ABCDEFGHIJKLMNOPQRST", scorer.letters, strict=True):
        assert tokenizer(letter).input_ids == [token]


def test_control_strings_in_a_query_stay_text(scorer, stock):
    _, tokenizer, _ = stock
    control = set(tokenizer.get_added_vocab().values())
    plain, ids = ([i for part in scorer.segments(query, 3) for i in part] for query in ("x", NASTY))
    assert [i for i in ids if i in control] == [i for i in plain if i in control]
    assert NASTY in tokenizer.decode(ids)


def test_more_pages_than_letters_are_refused(scorer, states):
    for n in (0, 21, 26):
        with pytest.raises(MmrrError, match=f"found {n} pages for one prompt; expected 1 to 20"):
            scorer.logits("q", states, [0] * n, FULL)


def test_a_query_that_is_too_long_is_refused(scorer, states, monkeypatch):
    monkeypatch.setattr(ziprerank, "MAX_QUERY_TOKENS", 8)
    with pytest.raises(MmrrError, match="expected at most 8"):
        scorer.logits("a b c d e f g h i", states, [0], FULL)


def changed(zip_path, tmp_path, **files):
    """A copy of the checkpoint with some of its files rewritten."""
    folder = tmp_path / "changed"
    folder.mkdir()
    for path in zip_path.iterdir():
        (folder / path.name).symlink_to(path)
    for name, content in files.items():
        target = folder / f"{name}.json"
        target.unlink()
        target.write_text(content)
    return resolve(str(folder), None, HashCache(tmp_path / "hashes.json"))


@pytest.mark.parametrize("between", ["Picture: ", "\n"])
def test_a_template_that_writes_between_the_images_is_refused(zip_path, tmp_path, between):
    template = json.loads((zip_path / "chat_template.json").read_text())["chat_template"]
    template = template.replace("<|vision_start|>", f"{{{{ '{between}' }}}}<|vision_start|>")
    other = changed(zip_path, tmp_path, chat_template=json.dumps({"chat_template": template}))
    with pytest.raises(MmrrError, match="does not place the images next to each other"):
        Scorer(other, Prepare(), CPU, torch.float32)


def test_a_tokenizer_without_a_letter_is_refused(scorer, monkeypatch, checkpoint):
    from mmrr.modeling.chat import ChatEncoder

    known = ChatEncoder.token_id

    def token_id(self, word):
        if word == "K":
            raise ValueError("'K' is 2 tokens, expected 1")
        return known(self, word)

    monkeypatch.setattr(ChatEncoder, "token_id", token_id)
    with pytest.raises(MmrrError, match="list-wise reranker: 'K' is 2 tokens"):
        Scorer(checkpoint, Prepare(), CPU, torch.float32)


# Pixels


#: Width and height of an image, the same with a limit of 1,024 pixels, and its tokens.
SIZES = [
    ((1700, 2200), (791, 1024), 800),
    ((1654, 2339), (724, 1024), 736),
    ((1920, 1080), (1024, 576), 576),
    ((1440, 1080), (1024, 768), 768),
    ((960, 540), (960, 540), 510),
    ((3000, 4500), (682, 1024), 672),
    ((280, 280), (280, 280), 81),
    ((300, 40), (300, 40), 66),
    ((100, 20), (100, 20), 72),
]


@pytest.mark.parametrize(("size", "small", "n_tokens"), SIZES)
def test_the_cap_and_the_processor_cut_a_page(stock, checkpoint, size, small, n_tokens):
    _, _, processor = stock
    assert ziprerank.capped(*size, 1024) == small
    assert ziprerank.capped(*size, 0) == size
    height, width = ziprerank.grid(Prepare(1024), checkpoint.config(), *size)
    assert height * width == n_tokens
    pixels = processor(images=[Image.new("RGB", small)], return_tensors="pt")
    assert pixels["image_grid_thw"].tolist() == [[1, 2 * height, 2 * width]]
    _, most = ziprerank.pruning_grid(Prepare(1024), checkpoint.config())
    assert n_tokens <= most


def test_the_processors_upper_limit(stock):
    """Images within ``max_side`` never reach the published limit, so the test uses a lower one, or no max_side."""
    _, _, processor = stock
    for size, most in (((1240, 1754), 900_000), ((2000, 333), 300_000), ((1280, 1280), 1_000_000)):
        out = processor(
            images=[Image.new("RGB", size)], return_tensors="pt", size={"shortest_edge": 65536, "longest_edge": most}
        )
        _, rows, columns = out["image_grid_thw"][0].tolist()
        assert ziprerank.cells(*size, 32, (65536, most)) == (rows // 2, columns // 2)


def test_a_cache_is_as_large_and_cut_as_planned(scorer, checkpoint, images, states):
    config = checkpoint.config()
    for image, state in zip(images, states, strict=True):
        grid = ziprerank.grid(scorer.prepare_options, config, *image.size)
        assert grid == scorer.grid(*image.size) == tuple(state["grid"].tolist())
        n_tokens = math.prod(grid)
        assert state["tokens"].shape == (n_tokens, 64)
        assert state["deepstack"].shape == (2, n_tokens, 64)
        planned = ziprerank.cache_bytes(scorer.prepare_options, config, n_tokens, 4)
        assert planned == sum(tensor.nbytes for tensor in state.values())


def test_without_a_cap_the_page_is_not_shrunk(checkpoint, images, scorer):
    free = Scorer(checkpoint, Prepare(0), CPU, torch.float32)
    (state,) = free.prepare(images[-1:], [None])
    assert state["grid"].tolist() == [9, 12]
    assert scorer.grid(*images[-1].size) == (8, 10)  # 256 x 197 pixels are 48 tokens: enlarged to at least 64
    assert free.prepare_options != scorer.prepare_options


def test_an_image_too_narrow_for_the_processor_is_refused(scorer):
    with pytest.raises(MmrrError, match=r"1 x 256 pixels: .*aspect ratio"):
        scorer.prepare([Image.new("RGB", (3, 1000))], [None])


def test_a_pruned_page_is_refused(scorer, images):
    with pytest.raises(MmrrError, match="found pruned pages"):
        scorer.prepare(images[:1], [KeptTokens(torch.tensor([0], dtype=torch.int32), (8, 8))])


def test_pages_prepared_together_and_alone_are_the_same(scorer, images, states):
    for image, state in zip(images, states, strict=True):
        (alone,) = scorer.prepare([image], [None])
        assert all(torch.equal(alone[name], state[name]) for name in state)


# Positions


def test_positions_are_the_stock_models_and_pruning_moves_none(scorer, zip_path, stock, images, states):
    model, _, _ = stock
    pages = images[:2]
    assert tuple(states[0]["grid"].tolist()) != tuple(states[1]["grid"].tolist())
    ids, types, pixels = stock_inputs(stock, zip_path, QUERY, pages)
    expected, _ = model.model.get_rope_index(ids, mm_token_type_ids=types, image_grid_thw=pixels["image_grid_thw"])
    visuals = [scorer.make_visual(s["tokens"], s["deepstack"], tuple(s["grid"].tolist())) for s in states[:2]]
    short = [i for part in scorer.segments(QUERY, 2) for i in part]
    whole = scorer.backbone.pages_sequence(short, visuals, [None, None])
    assert torch.equal(whole.positions, expected[:, 0])
    assert whole.next_pos == int(expected.max()) + 1
    kept = [torch.tensor([0, 5, 17, 40]), torch.tensor([3, 60])]
    pruned = scorer.backbone.pages_sequence(
        short, [visual.keep(one) for visual, one in zip(visuals, kept, strict=True)], kept
    )
    alive = types[0] == 0
    visual_at = types[0].nonzero()[:, 0]
    alive[visual_at[torch.cat([kept[0], len(visuals[0].tokens) + kept[1]])]] = True
    assert torch.equal(pruned.positions, expected[:, 0, alive])
    assert torch.equal(pruned.embeddings, whole.embeddings[alive])
    assert pruned.next_pos == whole.next_pos


def test_a_prompt_with_other_than_its_pages_is_refused(scorer, states):
    short = [i for part in scorer.segments(QUERY, 2) for i in part]
    visual = scorer.make_visual(states[0]["tokens"], states[0]["deepstack"], (8, 8))
    with pytest.raises(MmrrError, match="2 places for images, but 1 pages"):
        scorer.backbone.pages_sequence(short, [visual], [None])
