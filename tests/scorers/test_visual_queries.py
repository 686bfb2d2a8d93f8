"""Queries with an image: the cached score is that of a plain forward over page, image and text.

The reference uses the layers of transformers and explicit masks over the complete sequence, as in
``test_minireranker.py``. Tolerance: |dz| <= 1e-4 in float32.
"""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, Qwen3VLForConditionalGeneration

from mmrr.contracts import VisualQuery
from mmrr.errors import MmrrError
from mmrr.scorers import minireranker
from mmrr.scorers.minireranker import Prepare, Score, Scorer
from mmrr.types import KeptTokens
from tests.conftest import CPU

TOLERANCE = 1e-4
IMAGE = {"type": "image"}


@pytest.fixture(scope="module")
def stock(tiny_path):
    model = Qwen3VLForConditionalGeneration.from_pretrained(tiny_path, attn_implementation="eager").eval()
    return model, AutoTokenizer.from_pretrained(tiny_path), AutoImageProcessor.from_pretrained(tiny_path, backend="pil")


@pytest.fixture(scope="module")
def queries(page_images):
    """An image with a text, the image alone, and another image with the same text."""
    wide, tall = page_images[1].crop((0, 0, 96, 64)), page_images[2].crop((16, 16, 80, 144))
    return [VisualQuery("the same table", wide), VisualQuery("", wide), VisualQuery("the same table", tall)]


def scorer_with(tiny, band, **options):
    return Scorer(tiny, Prepare(band=band, **options), CPU, torch.float32)


def keep_of(scorer, image, seed):
    height, width = scorer.grid(*image.size)
    kept = torch.randperm(height * width, generator=torch.Generator().manual_seed(seed))[: height * width // 2]
    return KeptTokens(kept.sort().values.int(), (height, width))


def stock_inputs(stock, tiny_path, query, page, order):
    """Token ids and pixels by the template, tokenizer and image processor of transformers."""
    _, tokenizer, processor = stock
    instruction = f"<Instruct>: {minireranker.INSTRUCTION}"
    asked = [IMAGE] + [{"type": "text", "text": query.text}] * bool(query.text)
    if order == "vision-first":
        texts, images = (f"{instruction}\n<Document>: ", "\n<Query>: "), [page, query.image]
        user = [{"type": "text", "text": texts[0]}, IMAGE, {"type": "text", "text": texts[1]}, *asked]
    else:
        images = [query.image, page]
        texts = (f"{instruction}<Query>:", "\n<Document>:")
        user = [{"type": "text", "text": texts[0]}, *asked, {"type": "text", "text": texts[1]}, IMAGE]
    chat = [{"role": "system", "content": minireranker.SYSTEM}, {"role": "user", "content": user}]
    template = json.loads((tiny_path / "chat_template.json").read_text())["chat_template"]
    text = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, add_generation_prompt=True)
    pixels = processor(images=images, do_resize=False, return_tensors="pt")
    first, *rest = text.split("<|image_pad|>")
    for grid, part in zip(pixels["image_grid_thw"], rest, strict=True):
        first += "<|image_pad|>" * (int(grid.prod()) // 4) + part
    return tokenizer(first, return_tensors="pt").input_ids, pixels


def margin(stock, hidden):
    model, tokenizer, _ = stock
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    with torch.no_grad():
        return float(hidden @ model.lm_head.weight[yes] - hidden @ model.lm_head.weight[no])


def stock_score(stock, tiny_path, query, page, order):
    """The stock model's own forward over the whole prompt."""
    ids, pixels = stock_inputs(stock, tiny_path, query, page, order)
    types = (ids == stock[0].config.image_token_id).int()
    with torch.no_grad():
        states = stock[0].model(input_ids=ids, mm_token_type_ids=types, **pixels).last_hidden_state
    return margin(stock, states[0, -1])


def masked_score(stock, tiny_path, query, page, how):
    """Every layer over the whole prompt with an explicit mask. ``how``: band, exit layer, kept tokens of the page."""
    (start, end), leave, keep = how
    model = stock[0]
    ids, pixels = stock_inputs(stock, tiny_path, query, page, "vision-first")
    inner, text = model.model, model.model.language_model
    types = (ids == model.config.image_token_id).int()
    visual_at = types[0].nonzero()[:, 0]
    page_end = (ids[0] == model.config.vision_end_token_id).nonzero()[0].item()
    with torch.no_grad():
        positions, _ = inner.get_rope_index(ids, mm_token_type_ids=types, image_grid_thw=pixels["image_grid_thw"])
        features = inner.get_image_features(**pixels, return_dict=True)
        x = text.embed_tokens(ids)
        x[0, visual_at] = torch.cat(list(features.pooler_output))
        alive = torch.ones(ids.shape[1], dtype=torch.bool)
        if keep is not None:
            of_page = visual_at[visual_at < page_end]
            alive[of_page] = False
            alive[of_page[keep.indices.long()]] = True
        second = (torch.arange(ids.shape[1]) >= page_end + 2)[alive]  # after the newline
        deep = []
        for level in features.deepstack_features:
            full = torch.zeros_like(x)
            full[0, visual_at] = torch.cat(list(level)) if isinstance(level, list | tuple) else level
            deep.append(full[:, alive])
        x, rotary = x[:, alive], text.rotary_emb(x, positions[..., alive])
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        apart = causal & ~(second[:, None] & ~second[None, :])
        for index in range(leave):
            mask = torch.zeros(causal.shape).masked_fill(~(causal if start <= index < end else apart), -torch.inf)
            x = text.layers[index](x, position_embeddings=rotary, attention_mask=mask[None, None])
            if index < len(deep):
                x = x + deep[index]
        return margin(stock, text.norm(x)[0, -1])


@pytest.mark.parametrize(
    ("band", "leave", "pruned"),
    [("0:6", 6, False), ("2:4", 4, True), ("0:4", 5, False), ("1:5", 3, True)],
    ids=["dense", "band, exit, pruned", "alone after the band", "exit inside the band"],
)
def test_cached_scores_equal_a_plain_forward(tiny, tiny_path, stock, page_images, queries, band, leave, pruned):
    """Eight parameters: five fixtures and the three compressions. The pages differ in size and are scored together."""
    scorer = scorer_with(tiny, band)
    keeps = [keep_of(scorer, page, i) if pruned else None for i, page in enumerate(page_images)]
    start, end = (int(one) for one in band.split(":"))
    caches, shared = scorer.prepare(page_images, keeps), scorer.shared_state()
    found = []
    for query in queries:
        scores = scorer.score(scorer.encode_visual_query(query), caches, shared, Score(exit_layer=leave))
        how = [((start, min(end, leave)), leave, keep) for keep in keeps]
        expected = [
            masked_score(stock, tiny_path, query, page, one) for page, one in zip(page_images, how, strict=True)
        ]
        assert (scores - torch.tensor(expected)).abs().max() <= TOLERANCE
        plain = scorer.score_uncached(query, page_images[0], keeps[0], Score(exit_layer=leave))
        assert plain == pytest.approx(expected[0], abs=TOLERANCE)
        if band == "0:6":  # no compression: also the model's own forward
            own = [stock_score(stock, tiny_path, query, page, "vision-first") for page in page_images]
            assert (scores - torch.tensor(own)).abs().max() <= TOLERANCE
        found.append(scores)
    for one, other in [(0, 1), (0, 2)]:  # image and text both count
        assert (found[one] - found[other]).abs().max() > 10 * TOLERANCE


@pytest.mark.parametrize("order", ["vision-first", "query-first"])
def test_dense_is_the_stock_forward(tiny, tiny_path, stock, page_images, queries, order):
    for query in queries[:2]:
        scores = scorer_with(tiny, "2:4").dense(query, page_images[:2], order)
        expected = torch.tensor([stock_score(stock, tiny_path, query, page, order) for page in page_images[:2]])
        assert (scores - expected).abs().max() <= TOLERANCE


def test_a_page_has_the_same_score_alone_and_in_a_batch(tiny, page_images, queries, monkeypatch):
    scorer = scorer_with(tiny, "2:4", codec="int8")
    caches, shared = scorer.prepare(page_images, [None] * 4), scorer.shared_state()
    encoded = scorer.encode_visual_query(queries[0])
    together = scorer.score(encoded, caches, shared, Score())
    alone = torch.cat([scorer.score(encoded, [cache], shared, Score()) for cache in caches])
    assert torch.allclose(together, alone, atol=TOLERANCE)


def test_a_query_that_is_too_long_is_refused(tiny, queries, monkeypatch):
    monkeypatch.setattr(minireranker, "MAX_QUERY_TOKENS", 12)
    with pytest.raises(MmrrError, match=r"found a query of \d+ tokens; expected at most 12"):
        scorer_with(tiny, "2:4").encode_visual_query(VisualQuery("", Image.new("RGB", (256, 256))))
