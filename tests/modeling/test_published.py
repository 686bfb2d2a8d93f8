"""Published late-interaction checkpoints, in the files of their authors: the stock model's numbers, or one line.

Tolerances: page vectors, which are stored as float16, 1e-3; query vectors 1e-5.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoImageProcessor, Qwen3VLForConditionalGeneration, Qwen3VLModel

from mmrr.embedders import colqwen3, qwen3_vl
from mmrr.errors import MmrrError
from mmrr.modeling import families
from mmrr.modeling.checkpoints import resolve
from mmrr.scorers import minireranker, ziprerank
from mmrr.training.merge import merge
from mmrr.workspace.files import HashCache
from tests import published
from tests.conftest import CPU
from tests.stock import stock_states

PAGE = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe the image.<|im_end|>"
#: By layout: how it is written, the Hub id, the end of a page's prompt, and the text in front of a query.
LAYOUTS = {
    "tomoro": (published.tomoro, "TomoroAI/tomoro-colqwen3-embed-4b", "<|endoftext|>", ""),
    "colpali": (published.colpali, "owner/colqwen3-merged", "<|endoftext|>", ""),
    "ops": (published.ops, "OpenSearch-AI/Ops-Colqwen3-4B", "<|im_start|>assistant\n<|endoftext|>", "Query: "),
}


def find(name, tmp_path):
    return resolve(str(name), None, HashCache(tmp_path / "hashes.json"), families.names("embedders"))


def load(name, tmp_path, prepare=None):
    checkpoint = find(name, tmp_path)
    assert families.embedder(checkpoint.config()) == "colqwen3"
    return colqwen3.Embedder(checkpoint, prepare or colqwen3.Prepare(), CPU, torch.float32)


def refused(name, tmp_path):
    with pytest.raises(MmrrError) as caught:
        load(name, tmp_path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def small():
    """An image of fewer pixels than the published processors give a model."""
    image = Image.new("RGB", (100, 40), "white")
    image.paste((30, 90, 200), (10, 10, 60, 30))
    return image


@pytest.mark.parametrize("family", [minireranker, ziprerank, qwen3_vl], ids=lambda family: family.__name__[5:])
def test_a_published_qwen3_vl_gives_the_same_in_shards_and_links(family, tiny_path, tmp_path, cache, page_images):
    """By its Hub id, from two shards; the embedder without the LM head, as the large one is published."""
    headless = family is qwen3_vl

    def edit(weights):
        return {name: tensor for name, tensor in weights.items() if not (headless and name.startswith("lm_head"))}

    name = "Qwen/Qwen3-VL-8B"
    published.put_in_hub(cache, name, published.write(tiny_path, tmp_path / "published", edit=edit))
    results = []
    for path in (name, tiny_path):
        checkpoint = resolve(str(path), None, HashCache(tmp_path / "hashes.json"))
        if headless:
            model = family.load(checkpoint, family.Prepare(), CPU, torch.float32)
            results.append(model.embed_pages(page_images[:1])[0].vectors)
            continue
        model = family.load(checkpoint, family.resolve(family.Prepare(), checkpoint.config()), CPU, torch.float32)
        caches = model.prepare(page_images[:2], [None] * 2)
        results.append(model.score(model.encode_query("lorem"), caches, model.shared_state(), family.Score()))
        if family is ziprerank:
            results[-1] = model.logits("lorem", caches, [0, 1], family.Score())
    assert (results[0] - results[1]).abs().max() <= 1e-5
    assert results[0].std() > 0.01


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_colqwen3_gives_the_stock_models_vectors(layout, tiny_embedder_path, tmp_path, cache, small):
    """From the Hub's cache by its id. The image has 100 x 40 pixels: 78 tokens with the published processor."""
    write, name, end, prefix = LAYOUTS[layout]
    commit = published.put_in_hub(cache, name, write(tiny_embedder_path, tmp_path / "published"))
    assert find(name, tmp_path).identity("float32")["revision"] == commit
    embedder = load(name, tmp_path)
    weight, bias = published.layer("x").values()
    (found,) = embedder.embed_pages([small])
    states, attention, visual = stock_states(tiny_embedder_path, PAGE + end, small, resize=True)
    assert visual.sum() == 78
    expected = F.normalize(torch.cat([states[visual], states[~visual]]) @ weight.T + bias, dim=-1)
    assert found.vectors.shape == expected.shape
    assert (found.vectors.float() - expected).abs().max() <= 1e-3
    assert (found.saliency - attention).abs().max() <= 1e-5
    (query,) = embedder.embed_queries(["When is it due?"], colqwen3.Search())
    states, _, _ = stock_states(tiny_embedder_path, f"{prefix}When is it due?" + 10 * "<|endoftext|>")
    assert (query - F.normalize(states @ weight.T + bias, dim=-1)).abs().max() <= 1e-5


def test_vectors_of_text_are_zero_where_the_checkpoint_masks_them(tiny_embedder_path, tmp_path, small):
    path = published.ops(tiny_embedder_path, tmp_path / "ops")
    (plain,) = load(path, tmp_path).embed_pages([small])
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"mask_non_image_embeddings": True}))
    (masked,) = load(path, tmp_path).embed_pages([small])
    assert torch.equal(masked.vectors[:78], plain.vectors[:78])
    assert not masked.vectors[78:].any()


@pytest.mark.parametrize("size", [(100, 40), (40, 900), (300, 280)])
def test_pixels_are_those_of_the_checkpoints_own_processor(tiny_embedder_path, tmp_path, embedder, size):
    """Pixel values and tokens of transformers' PIL processor, made from the checkpoint's file; exactly."""
    image = Image.effect_noise(size, 60).convert("RGB")
    processor = AutoImageProcessor.from_pretrained(tiny_embedder_path, backend="pil")
    expected = processor(images=[image], return_tensors="pt")
    found = embedder.backbone.tower.pixels(image)
    assert torch.equal(found["image_grid_thw"], expected["image_grid_thw"])
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    rows, columns = embedder.grid(*size)
    assert [1, 2 * rows, 2 * columns] == expected["image_grid_thw"][0].tolist()
    capped = processor(images=[image], size={"shortest_edge": 65536, "longest_edge": 100 * 1024}, return_tensors="pt")
    assert torch.equal(embedder.backbone.tower.pixels(image, 100)["pixel_values"], capped["pixel_values"])


@pytest.fixture(scope="module")
def embedder(tiny_embedder_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    return load(published.tomoro(tiny_embedder_path, folder / "tomoro"), folder)


def test_a_strip_that_the_processor_refuses_is_read_as_any_page(embedder):
    assert embedder.grid(32, 32 * 300) == (300, 1)


def test_a_plan_knows_the_limits_of_the_checkpoint(tmp_path):
    """The estimate of ZipRerank before anything is loaded. The file of the small model allows smaller images."""
    checkpoint = resolve("small-ziprerank", None, HashCache(tmp_path / "hashes.json"))
    options = ziprerank.resolve(ziprerank.Prepare(), checkpoint.config())
    scorer = ziprerank.load(checkpoint, options, CPU, torch.float32)
    found = ziprerank.grid(options, checkpoint.config(), 100, 40)
    assert found == scorer.grid(100, 40) == tuple(scorer.prepare([Image.new("RGB", (100, 40))], [None])[0]["grid"])


def test_limits_are_part_of_what_vectors_are_hashed_by(tiny_embedder_path, tmp_path):
    """The processor file decides for published models. mmrr's own read pages as they are rendered."""
    path = published.tomoro(tiny_embedder_path, tmp_path / "tomoro")
    assert colqwen3.pixel_limits(find(path, tmp_path), colqwen3.Prepare()) == (65536, 16777216)
    assert colqwen3.pixel_limits(find("reader-embedder", tmp_path), colqwen3.Prepare()) is None
    assert qwen3_vl.pixel_limits(find(tiny_embedder_path, tmp_path), qwen3_vl.Prepare()) is None
    values = json.loads((path / "preprocessor_config.json").read_text())
    values |= {"size": {"longest_edge": 7, "shortest_edge": 9}}
    (path / "preprocessor_config.json").write_text(json.dumps(values))
    assert "the limits of an image are 9 and 7 pixels" in refused(path, tmp_path)


# What does not add up


def edit_config(path, **changes):
    values = json.loads((path / "config.json").read_text())
    values = {key: value for key, value in (values | changes).items() if value is not None}
    (path / "config.json").write_text(json.dumps(values))


def edit_shard(path, edit):
    file = path / "model-00001-of-00002.safetensors"
    save_file(edit(load_file(file)), file, metadata={"format": "pt"})


def other_sizes(path):
    text = json.loads((path / "config.json").read_text())["text_config"]
    edit_config(path, text_config=text | {"vocab_size": 151936, "intermediate_size": 9728})


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path: edit_config(path, text_config=None), "text_config|hidden_size"),
        (lambda path: edit_config(path, vision_config=None), "has no 'vision_config'"),
        (other_sizes, "describes a model of|of another shape than its config.json says"),
        (
            lambda path: edit_shard(path, lambda tensors: tensors | {"vlm.adapter.weight": torch.ones(2)}),
            "has 1 tensors that no Qwen3-VL has, among them: vlm.adapter.weight",
        ),
        (lambda path: edit_config(path, quantization_config={"quant_method": "awq"}), "the weights are quantised .awq"),
    ],
    ids=["no text_config", "no vision_config", "other sizes", "another tensor", "quantised"],
)
def test_what_does_not_add_up_is_refused_before_memory_is_taken(damage, why, tiny_embedder_path, tmp_path, monkeypatch):
    path = published.tomoro(tiny_embedder_path, tmp_path / "tomoro")
    damage(path)
    monkeypatch.setattr(Qwen3VLForConditionalGeneration, "from_pretrained", None)
    with pytest.raises(MmrrError, match=why):
        load(path, tmp_path)


@pytest.mark.parametrize(
    ("model_type", "why"),
    [
        ("qwen3_5", "built on Qwen3.5"),
        ("qwen3_vl_moe", "mixtures of experts"),
        ("qwen3_vl_nemotron_embed", "attention looks both ways"),
    ],
)
def test_relatives_are_refused_by_name_with_the_reason(model_type, why, tiny_embedder_path, tmp_path):
    path = published.colpali(tiny_embedder_path, tmp_path / "other")
    edit_config(path, model_type=model_type)
    assert f"is a '{model_type}' model, which mmrr does not run: " in refused(path, tmp_path)
    assert why in refused(path, tmp_path)


# Adapters of colpali-engine


class ColQwen3(Qwen3VLModel):
    """The network that colpali-engine trains: Qwen3-VL without a head, and a linear layer."""

    def __init__(self, config):
        super().__init__(config)
        self.custom_text_proj = nn.Linear(config.text_config.hidden_size, published.DIM)
        self.post_init()


@pytest.mark.parametrize("whole", [False, True], ids=["a LoRA of the layer", "the whole layer"])
def test_an_adapter_of_colpali_engine_is_what_its_network_computes(whole, tiny_embedder_path, tmp_path, small):
    """Trained on a base with the layer, or on a plain Qwen3-VL with the layer saved in the adapter."""
    source = published.write(tiny_embedder_path, tmp_path / "plain")
    base = source if whole else published.colpali(tiny_embedder_path, tmp_path / "base")
    names = r"(.*(language_model).*(down_proj|gate_proj|up_proj|k_proj|q_proj|v_proj|o_proj).*$"
    settings = LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=names + (")" if whole else "|.*(custom_text_proj).*$)"),
        modules_to_save=["custom_text_proj"] if whole else None,
        task_type="FEATURE_EXTRACTION",
    )
    network = ColQwen3.from_pretrained(tiny_embedder_path, key_mapping={r"^model\.": ""})
    if not whole:
        network.custom_text_proj.load_state_dict(
            {"weight": (w := published.layer("x"))["x.weight"], "bias": w["x.bias"]}
        )
    adapted = get_peft_model(network, settings)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert any(name.startswith("base_model.model.language_model.layers.0.") for name in saved)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(base)}))

    merged = adapted.merge_and_unload().eval()
    stock = Path(shutil.copytree(tiny_embedder_path, tmp_path / "stock"))
    tensors = load_file(stock / "model.safetensors")
    own = {f"model.{name}": tensor for name, tensor in merged.state_dict().items() if "text_proj" not in name}
    save_file(tensors | own, stock / "model.safetensors", metadata={"format": "pt"})
    states, _, visual = stock_states(stock, PAGE + "<|endoftext|>", small, resize=True)
    with torch.no_grad():
        expected = F.normalize(merged.custom_text_proj(torch.cat([states[visual], states[~visual]])), dim=-1)
    (found,) = load(tmp_path / "adapter", tmp_path).embed_pages([small])
    assert (found.vectors.float() - expected).abs().max() <= 1e-3
    merge(str(tmp_path / "adapter"), tmp_path / "merged")
    (same,) = load(tmp_path / "merged", tmp_path).embed_pages([small])
    assert (same.vectors.float() - found.vectors.float()).abs().max() <= 1e-3
    if whole:
        return
    (path.parent / "other").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(path.parent / name, path.parent / "other" / name)
    settings = json.loads(path.read_text()) | {"base_model_name_or_path": str(source)}
    (path.parent / "other" / "adapter_config.json").write_text(json.dumps(settings))
    assert "found none there or in" in refused(path.parent / "other", tmp_path)
