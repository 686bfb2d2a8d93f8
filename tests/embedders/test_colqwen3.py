"""ColQwen3 against the stock model: the vector of every token by the published recipe, and MaxSim."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from mmrr.contracts import VisualQuery
from mmrr.embedders.colqwen3 import Embedder, Prepare, Search, pool
from mmrr.errors import MmrrError
from mmrr.modeling.chat import word_ends
from mmrr.modeling.checkpoints import resolve
from mmrr.modeling.families import embedder as family
from mmrr.search.indexes import build_dense, search_dense
from mmrr.search.late_interaction import max_sim, soft_idf
from mmrr.training.data.queries import LabelledQuery
from mmrr.training.data.tower_features import ReadPage
from mmrr.training.from_scratch.batches import Batch
from mmrr.training.from_scratch.matching import Contrast
from mmrr.workspace.files import HashCache
from tests.conftest import CPU
from tests.stock import stock_states
from tests.tiny import late

PAGE = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe the image.<|im_end|><|endoftext|>"
TEXTS = ["When is it due?", "café (42%) no-one"]


def load(path, tmp_path, prepare=None):
    found = resolve(str(path), None, HashCache(tmp_path / "hashes.json"), ("qwen3_vl", "colqwen3"))
    assert family(found.config()) == "colqwen3"
    return Embedder(found, prepare or Prepare(), CPU, torch.float32)


def visual_first(states, visual):
    return torch.cat([states[visual], states[~visual]])


@pytest.fixture(params=["custom_text_proj", "embedding_proj_layer"])
def published(request, tiny_embedder_path, tmp_path):
    """A tiny checkpoint in one of the two published layouts, and its linear layer (weight, bias)."""
    path = late(tiny_embedder_path, tmp_path / "late", request.param)
    tensors = load_file(path / "model.safetensors")
    bias = tensors.get(f"{request.param}.bias", torch.zeros(24))
    return path, tensors[f"{request.param}.weight"], bias


def test_an_image_as_a_query_has_the_vectors_of_a_page(published, tmp_path, page_images):
    embedder = load(published[0], tmp_path)
    (page,) = embedder.embed_pages(page_images[:1])
    vectors = embedder.embed_visual_query(VisualQuery("", page_images[0]), Search())
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, page.vectors.float())


def test_page_vectors_and_saliency_equal_the_stock_model(published, tiny_embedder_path, tmp_path, page_images):
    path, weight, bias = published
    embedder = load(path, tmp_path)
    for image, found in zip(page_images, embedder.embed_pages(page_images), strict=True):
        states, attention, visual = stock_states(tiny_embedder_path, PAGE, image, resize=True)
        expected = F.normalize(visual_first(states, visual) @ weight.T + bias, dim=-1)
        assert found.vectors.shape == expected.shape
        assert (found.vectors.float() - expected).abs().max() <= 1e-3  # stored as float16
        assert (found.saliency - attention).abs().max() <= 1e-5
        rows, columns = found.grid
        assert rows * columns == visual.sum() >= 64  # the tiny page images are below the processor's fewest pixels


def test_query_vectors_equal_the_stock_model(published, tiny_embedder_path, tmp_path):
    path, weight, bias = published
    embedder = load(path, tmp_path)
    for text, found in zip(TEXTS, embedder.embed_queries(TEXTS, Search()), strict=True):
        states, _, _ = stock_states(tiny_embedder_path, text + 10 * "<|endoftext|>")
        assert (found - F.normalize(states @ weight.T + bias, dim=-1)).abs().max() <= 1e-5
    (prefixed,) = embedder.embed_queries(["is it due?"], Search(prefix="When "))
    assert torch.equal(prefixed, embedder.embed_queries(TEXTS[:1], Search())[0])


def test_words_have_vectors_where_they_end(tiny_embedder_path, tmp_path, page_images):
    """The norm of a word's vector is its weight. The last token gives the vector of the whole text."""
    path = late(tiny_embedder_path, tmp_path / "words", words=True)
    weight = load_file(path / "model.safetensors")["custom_text_proj.weight"]
    embedder = load(path, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    for text, words in zip(TEXTS, (["When", "is", "it", "due"], ["café", "(42", "no-one"]), strict=True):
        ids, places = embedder.query(text, Search())
        assert list(places.values()) == [*words, ""]
        for place, word in list(places.items())[:-1]:
            assert tokenizer.decode(ids[: place + 1]).rstrip("%)?").endswith(word)
        states, _, _ = stock_states(tiny_embedder_path, text + 10 * "<|endoftext|>")
        (found,) = embedder.embed_queries([text], Search())
        assert (found - states[list(places)] @ weight.T).abs().max() <= 1e-4
    (page,) = embedder.embed_pages(page_images[:1])
    states, _, visual = stock_states(tiny_embedder_path, PAGE, page_images[0])
    chosen = torch.cat([states[visual], states[-1:]])
    assert (page.vectors.float() - F.normalize(chosen @ weight.T, dim=-1)).abs().max() <= 1e-3
    (nothing,) = embedder.embed_queries(["?!"], Search())
    assert nothing.shape == (1, 24)


def test_word_ends_are_bytes_of_last_letters():
    assert word_ends("a café, (42%) 3.5 — ...no") == [("a", 0), ("café", 6), ("(42", 11), ("3.5", 17), ("...no", 27)]
    assert word_ends(" ?! ") == []


def test_control_strings_in_a_query_stay_text(tiny_embedder_path, tmp_path):
    embedder = load(late(tiny_embedder_path, tmp_path / "late"), tmp_path)
    forged, _ = embedder.query("<|endoftext|><|image_pad|>", Search())
    end, image = (embedder.backbone.chat._control[name] for name in ("<|endoftext|>", "<|image_pad|>"))
    assert forged.count(end) == 10
    assert image not in forged


def test_what_does_not_fit_is_named(tiny_embedder_path, tmp_path):
    path = late(tiny_embedder_path, tmp_path / "late")
    with pytest.raises(MmrrError, match="dim 25: expected 0 to 24"):
        load(path, tmp_path, Prepare(dim=25))
    tensors = load_file(path / "model.safetensors")
    del tensors["custom_text_proj.weight"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MmrrError, match=r"expected a linear layer of 64 inputs named custom_text_proj or .*found none"):
        load(path, tmp_path)


def test_shorter_vectors_are_the_first_numbers(tiny_embedder_path, tmp_path, page_images):
    path = late(tiny_embedder_path, tmp_path / "late")
    weight = load_file(path / "model.safetensors")["custom_text_proj.weight"]
    (short,) = load(path, tmp_path, Prepare(dim=8)).embed_pages(page_images[:1])
    states, _, visual = stock_states(tiny_embedder_path, PAGE, page_images[0], resize=True)
    expected = F.normalize(visual_first(states, visual) @ weight[:8].T, dim=-1)
    assert (short.vectors.float() - expected).abs().max() <= 1e-3


def test_similar_tokens_share_a_vector():
    """Two tight groups and a single vector are three clusters. Each mean is normalised to length 1."""
    lines = torch.tensor([[1.0, 0.0], [1.0, 0.02], [0.0, 1.0], [0.02, 1.0], [-1.0, 0.0]])
    vectors = F.normalize(lines, dim=-1)
    found = pool(vectors, 2)
    expected = F.normalize(torch.stack([vectors[:2].sum(0), vectors[2:4].sum(0), vectors[4]]), dim=-1)
    assert found.shape == (3, 2)
    assert torch.cdist(found, expected).amin(1).max() < 1e-6
    assert torch.equal(pool(vectors, 1), vectors)
    assert torch.equal(pool(vectors[:1], 4), vectors[:1])
    same = torch.ones(6, 2) / 2**0.5  # equal vectors give one cluster
    assert torch.cdist(pool(same, 2), same[:1]).max() < 1e-6


def test_a_page_has_fewer_vectors_than_tokens(tiny_embedder_path, tmp_path, page_images):
    path = late(tiny_embedder_path, tmp_path / "late", words=True)
    (every,), (pooled,) = (load(path, tmp_path, Prepare(pool=factor)).embed_pages(page_images[:1]) for factor in (1, 4))
    assert len(every.vectors) == 35 + 1
    assert len(pooled.vectors) == 9 + 1
    assert torch.equal(every.vectors[-1], pooled.vectors[-1])
    assert torch.equal(every.saliency, pooled.saliency)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"token_pool": 4}))
    (taught,) = load(path, tmp_path).embed_pages(page_images[:1])
    assert torch.equal(taught.vectors, pooled.vectors)
    for wrong in (-1, "4"):
        (path / "config.json").write_text(json.dumps(config | {"token_pool": wrong}))
        with pytest.raises(MmrrError, match=f"pool {wrong}: expected a whole number"):
            load(path, tmp_path)


def test_a_checkpoint_says_how_products_become_logits(tiny_embedder_path, tmp_path):
    path = late(tiny_embedder_path, tmp_path / "late", words=True)
    assert load(path, tmp_path).temperature(Search()) == 0
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"word_temperature": 0.2}))
    embedder = load(path, tmp_path)
    assert (embedder.temperature(Search()), embedder.temperature(Search(soft_idf=False))) == (0.2, 0)
    for wrong in (-1, "0.2", True, math.nan):
        (path / "config.json").write_text(json.dumps(config | {"word_temperature": wrong}))
        with pytest.raises(MmrrError, match=r"word_temperature .* in config.json: expected a number, 0 or more"):
            load(path, tmp_path)


def test_the_family_is_named_by_architecture_or_model_type():
    assert family({"model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"]}) == "qwen3_vl"
    assert family({"model_type": "colqwen3"}) == "colqwen3"
    with pytest.raises(MmrrError, match="no embedder family for a 'bert' model; expected one of: colqwen3, qwen3_vl"):
        family({"model_type": "bert"})


@pytest.mark.parametrize("words", [False, True])
def test_training_and_embedding_give_the_same_vectors(tiny_embedder_path, tmp_path, page_images, words):
    embedder = load(late(tiny_embedder_path, tmp_path / "late", words=words), tmp_path)
    contrast = Contrast(embedder, Search())
    for image, embedding in zip(page_images, embedder.embed_pages(page_images), strict=True):
        (visual,) = embedder.backbone.vision([image])
        page = ReadPage(visual.tokens, visual.deepstack, visual.grid, None, (), (), (), (), ())
        with torch.no_grad():
            assert (contrast.page_vectors(page)[0] - embedding.vectors.float()).abs().max() <= 1e-3
    with torch.no_grad():
        vectors, owners, _, _ = contrast.query_vectors(TEXTS)
    assert (vectors - torch.cat(embedder.embed_queries(TEXTS, Search()))).abs().max() <= 1e-4
    assert owners == [i for i, one in enumerate(embedder.embed_queries(TEXTS, Search())) for _ in one]


def test_contrast_by_hand():
    """Three pages with two cells each. The second holds the first's phrase, the third shares a question."""

    def page(words, cells, *questions):
        known = tuple(SimpleNamespace(text=text) for text in questions)
        saliency = torch.tensor([0.1, 0.2])
        return ReadPage(*[torch.zeros(1)] * 2, (1, 2), saliency, (), tuple(words.split()), (), cells, known)

    pages = [
        page("alpha beta", ((0,), (1,))),
        page("beta alpha gamma", ((0,), (1,), (1,)), "which one?"),
        page("delta", ((0,),), "which one?"),
    ]
    of_page = [[LabelledQuery(text, True)] for text in ("Alpha beta", "which one?", "delta")]
    names, owners = ["Alpha", "beta", "which", "one", "delta"], [0, 0, 1, 1, 2]
    generator = torch.Generator().manual_seed(0)
    cells, words = torch.randn(3, 2, 4, generator=generator), torch.randn(5, 4, generator=generator)
    wholes, queries = torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator)
    saliencies = torch.tensor(
        [[0.1, 0.2], [0.3, 0.6], [0.2, 0.1]]
    )  # equal to the pages', three times as large, reversed
    at = {id(one): i for i, one in enumerate(pages)}
    stub = SimpleNamespace(
        page_vectors=lambda page: (cells[at[id(page)]], wholes[at[id(page)]], saliencies[at[id(page)]]),
        query_vectors=lambda texts: (words, owners, names, queries),
        temperature=torch.tensor(0.5),
        whole_temperature=torch.tensor(0.2),
        pointing=0.7,
        whole=0.4,
        attention_distillation=0.3,
    )
    stub._pointed = Contrast._pointed.__get__(stub)
    found = Contrast.losses(stub, Batch(pages, of_page))

    def expected(z):
        z = z.exp()
        parts = [z[0, 0] / (z[0, 0] + z[0, 2]), (z[1, 1] + z[1, 2]) / z[1].sum(), z[2, 2] / z[2].sum()]
        return -torch.stack(parts).log().mean()

    products = torch.einsum("wd,pcd->wpc", words, cells)
    scores = torch.stack([sum(products[w].amax(1) for w in range(5) if owners[w] == q) for q in range(3)])
    p = (products * torch.tensor(0.5).exp()).exp()
    share = {0: p[0, 0, 0] + p[0, 1, 1], 1: p[1, 0, 1] + p[1, 1, 0], 4: p[4, 2, 0]}  # no page writes "which" or "one"
    torch.testing.assert_close(found["found"], expected(scores * torch.tensor(0.5).exp()))
    torch.testing.assert_close(found["whole"], expected(queries @ wholes.T * torch.tensor(0.2).exp()))
    torch.testing.assert_close(
        found["pointed"], -torch.stack([(s / p[w].sum()).log() for w, s in share.items()]).mean()
    )
    third = torch.tensor(2 * math.log(2) ** 2)  # the variance of the third page; it is 0 for the others
    torch.testing.assert_close(found["attention_distillation"], third / 3)
    total = found["found"] + 0.7 * found["pointed"] + 0.4 * found["whole"] + 0.3 * found["attention_distillation"]
    torch.testing.assert_close(found["loss"], total)


def test_attention_distillation_uses_the_attention_that_prunes(tiny_embedder_path, tmp_path, page_images):
    """The loss is 0 for the same embedder's saliency; for another saliency it has gradients."""
    embedder = load(late(tiny_embedder_path, tmp_path / "late", words=True), tmp_path)
    contrast = Contrast(embedder, Search(), attention_distillation=1.0)
    embedder.backbone.text.requires_grad_(True)
    words, cells = tuple(TEXTS[0].split()), tuple((i,) for i, _ in enumerate(TEXTS[0].split()))
    (visual,), (embedding,) = embedder.backbone.vision(page_images[:1]), embedder.embed_pages(page_images[:1])
    for saliency, moved in ((embedding.saliency, False), (embedding.saliency.flip(0), True)):
        features = (visual.tokens.clone(), visual.deepstack.clone(), visual.grid)  # copies that allow gradients
        page = ReadPage(*features, saliency, words, words, (0,) * len(words), cells, ())
        found = contrast.losses(Batch([page], [[LabelledQuery(TEXTS[0], True)]]))
        assert (found["attention_distillation"].item() > 1e-4) == moved
    found["attention_distillation"].backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in embedder.backbone.text.parameters())


# The index


def ragged(sizes, d, seed=0):
    rng = np.random.default_rng(seed)
    pages = [rng.standard_normal((n, d)).astype(np.float32) for n in sizes]
    return [page / np.linalg.norm(page, axis=1, keepdims=True) for page in pages]


def indexed(pages, factory, folder):
    build_dense(pages, factory, folder, several=True)
    return {path.name: path for path in folder.iterdir()}


def plainly(query, pages):
    return np.array([sum(max(float(q @ v) for v in page) for q in query) for page in pages])


def test_max_sim_is_the_sum_of_maxima():
    pages, queries = ragged((3, 1, 5), 8), ragged((4, 1), 8, seed=1)
    found = max_sim(queries, np.concatenate(pages), np.array([3, 1, 5]))
    assert found == pytest.approx(np.array([plainly(query, pages) for query in queries]), abs=1e-5)


def by_soft_idf(query, pages, temperature):
    """As ``plainly``, each of the query's vectors by how few pages have it, counted by hand."""
    best = np.array([[max(float(q @ v) for v in page) for page in pages] for q in query])
    counts = [sum(math.exp((one - max(row)) / temperature) for one in row) for row in best]
    return sum(math.log(len(pages) / count) * row for count, row in zip(counts, best, strict=True))


@pytest.mark.parametrize("products", [1 << 25, 40, 0])
def test_a_word_counts_by_how_few_pages_have_it(monkeypatch, products):
    """Whether queries are scored together or one by one."""
    monkeypatch.setattr("mmrr.search.late_interaction._PRODUCTS", products)
    pages, queries = ragged((3, 1, 5, 2), 8), ragged((4, 1, 2), 8, seed=1)
    found = max_sim(queries, np.concatenate(pages), np.array([3, 1, 5, 2]), 0.3)
    assert found == pytest.approx(np.array([by_soft_idf(query, pages, 0.3) for query in queries]), abs=1e-5)
    assert abs(found - max_sim(queries, np.concatenate(pages), np.array([3, 1, 5, 2]))).max() > 0.1


def test_soft_idf_is_an_inverse_document_frequency():
    """What one page of four has counts log 4, what two have log 2, what all have nothing; softly between."""
    best = np.array([[9, 0, 0, 0], [9, 9, 0, 0], [5, 5, 5, 5], [1, 0.9, 0, 0]], dtype=np.float32)
    soft = 4 / (1 + math.exp(-1) + 2 * math.exp(-10))
    assert soft_idf(best, 0.1) == pytest.approx([math.log(4), math.log(2), 0, math.log(soft)], abs=1e-6)
    assert (soft_idf(best[:, :1], 0.1) == 0).all()


@pytest.mark.parametrize(("factory", "products"), [("Flat", 1 << 25), ("Flat", 64), ("SQfp16", 0), ("IVF4,Flat", 0)])
def test_an_index_finds_the_best_sums(tmp_path, monkeypatch, factory, products):
    """Flat, in one block of products or in many, as the plain sums; others as the plain sums of what they find."""
    monkeypatch.setattr("mmrr.search.late_interaction._PRODUCTS", products)
    sizes = np.random.default_rng(2).integers(1, 9, 60)
    pages = [page.astype(np.float16).astype(np.float32) for page in ragged(sizes, 8)]  # as embedders give them
    queries = ragged((3, 1, 6), 8, seed=1)
    found = search_dense(indexed(pages, factory, tmp_path), queries, 10)
    for query, of_query in zip(queries, found, strict=True):
        plain = plainly(query, pages)
        best = np.argsort(-plain)[:10]
        assert len(set(best.tolist()) & set(of_query)) >= (9 if "IVF" in factory else 10)
        assert len(of_query) >= 10
        assert max(abs(plain[row] - score) for row, score in of_query.items()) < 1e-5


def test_vectors_are_kept_as_they_came_in_float16(tmp_path):
    """Page after page in a plain NumPy file, though how many there are is known at the end only."""
    pages = ragged((3, 1, 200), 8)
    files = indexed(iter(pages), "Flat", tmp_path)
    stored = np.load(files["vectors.npy"], allow_pickle=False)
    assert stored.dtype == np.float16
    assert (stored == np.concatenate(pages).astype(np.float16)).all()
    assert np.load(files["sizes.npy"], allow_pickle=False).tolist() == [3, 1, 200]
    assert sorted(files) == ["sizes.npy", "vectors.npy"]  # nothing in FAISS that no search would ask


def test_few_of_the_pages_near_a_query_are_scored(tmp_path):
    pages, queries = ragged(np.full(500, 4), 16), ragged((3,), 16, seed=1)
    (found,) = search_dense(indexed(pages, "SQ8", tmp_path), queries, 5)
    assert len(found) == 20  # four times as many as are asked for


def test_few_pages_asked_for_are_looked_for_among_many_vectors(tmp_path, monkeypatch):
    pages, queries = ragged(np.full(500, 4), 16), ragged((6,) * 40, 16, seed=1)
    files = indexed(pages, "SQ8", tmp_path)
    best = max_sim(queries, np.concatenate(pages), np.full(500, 4)).argmax(1).tolist()
    assert sum(row in found for row, found in zip(best, search_dense(files, queries, 1), strict=True)) >= 38
    monkeypatch.setattr("mmrr.search.indexes.NEAREST", 0)  # or the test would prove nothing
    assert sum(row in found for row, found in zip(best, search_dense(files, queries, 1), strict=True)) < 38


@pytest.mark.parametrize("name", ["vectors.npy", "sizes.npy"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half"])
def test_damaged_vectors_are_named(tmp_path, name, damage):
    files = indexed(ragged((3, 1, 5), 8), "Flat", tmp_path)
    data = files[name].read_bytes()
    if damage == "missing":
        files[name].unlink()
    else:
        files[name].write_bytes(data[: len(data) // 2 if damage == "half" else 0])
    with pytest.raises(MmrrError, match=rf"{name} is damaged or missing; run mmrr index again"):
        search_dense(files, ragged((3,), 8, seed=1), 5)


def test_checkpoints_of_our_own_say_so(tmp_path):
    from mmrr import random_checkpoint

    shape = random_checkpoint.Shape(layers=1, hidden=32, mlp=32, heads=2, kv_heads=2, head_dim=16, vision_layers=1)
    model = random_checkpoint.new_model(shape)
    random_checkpoint.save(model, tmp_path / "own", 64, torch.float32, projection=torch.ones(3, 32))
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    assert config["model_type"] == "qwen3_vl"
    assert family(config) == "colqwen3"
    embedder = load(tmp_path / "own", tmp_path)
    assert embedder.words
    assert embedder.projection.out_features == 3
    _, report = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "own", output_loading_info=True)
    assert not report["missing_keys"]
