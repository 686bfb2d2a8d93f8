"""Checkpoints: found by path or Hub id, identified by content or commit, loaded completely or refused in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLForConditionalGeneration

from mmrr.backbones.qwen3_vl import Backbone
from mmrr.embedders.qwen3_vl import Embedder
from mmrr.embedders.qwen3_vl import Prepare as EmbedPrepare
from mmrr.errors import MmrrError
from mmrr.modeling import families
from mmrr.modeling.checkpoints import built_in, recorded, resolve
from mmrr.scorers.minireranker import Prepare, Scorer
from mmrr.workspace.files import HashCache
from mmrr.workspace.store import Spec
from tests.conftest import CPU
from tests.tiny import write_checkpoint

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A checkpoint of two layers with an LM head that is not tied to the embeddings."""
    return write_checkpoint(tmp_path_factory.mktemp("original") / "model", layers=2, tie=False)


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "model"))


@pytest.fixture
def hashes(tmp_path):
    return HashCache(tmp_path / "hashes.json")


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder, edit):
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def refused(folder, hashes, load=True, needs_head=True):
    """The error message for a checkpoint, which is one line."""

    def try_it():
        checkpoint = resolve(str(folder), None, hashes)
        assert load, "it was resolved"
        Backbone(checkpoint.path, checkpoint.adapter, CPU, torch.float32, needs_head=needs_head)

    with pytest.raises(MmrrError) as caught:
        try_it()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Identity


def test_a_local_folder_is_named_by_its_content(folder, hashes):
    checkpoint = resolve(str(folder), None, hashes)
    assert (checkpoint.path, checkpoint.model_type, checkpoint.adapter) == (folder, "qwen3_vl", None)
    assert checkpoint.revision.startswith("sha256:")
    assert len(checkpoint.revision) == 7 + 64
    elsewhere = Path(shutil.copytree(folder, folder.parent / "copy"))
    assert resolve(str(elsewhere), None, hashes).revision == checkpoint.revision
    assert checkpoint.identity("float32") == {
        "id": str(folder),
        "revision": checkpoint.revision,
        "dtype": "float32",
    }
    assert checkpoint.config()["text_config"]["num_hidden_layers"] == 2


def test_one_changed_weight_is_another_revision_though_header_and_size_are_the_same(folder, hashes):
    """A fine-tuned file has the same header and size as its base."""
    before = resolve(str(folder), None, hashes)
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    after = resolve(str(folder), None, hashes)
    assert after.revision != before.revision
    assert Spec("embed", 1, {}, {}, after.identity("float32")).fingerprint != (
        Spec("embed", 1, {}, {}, before.identity("float32")).fingerprint
    )


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.json", "preprocessor_config.json", "config.json"])
def test_a_change_of_any_file_changes_the_revision(folder, hashes, name):
    before = resolve(str(folder), None, hashes).revision
    path = folder / name
    path.write_text(path.read_text() + " ")
    assert resolve(str(folder), None, hashes).revision != before


def test_a_relative_path_is_remembered_as_an_absolute_one(folder, hashes, monkeypatch):
    """In another folder, the recorded path ``models/mine`` would be taken for a Hub id."""
    monkeypatch.chdir(folder.parent.parent)
    relative = str(folder.relative_to(folder.parent.parent))
    assert relative.count("/") == 1
    checkpoint = resolve(relative, None, hashes)
    monkeypatch.chdir("/")
    assert recorded(checkpoint.identity("float32"), hashes) == checkpoint


def test_a_recorded_checkpoint_that_changed_is_refused(folder, hashes):
    model = resolve(str(folder), None, hashes).identity("float32")
    assert recorded(model, hashes).identity("float32") == model
    edit_weights(folder, lambda tensors: tensors["lm_head.weight"].add_(1))
    with pytest.raises(MmrrError, match=r"has changed since it was used here.*run the earlier commands again"):
        recorded(model, hashes)


def test_a_revision_goes_with_a_hub_id_only(folder, hashes):
    with pytest.raises(MmrrError, match=r"is a local folder; leave out the revision \(main\), which needs a Hub id"):
        resolve(str(folder), "main", hashes)


def test_a_built_in_checkpoint_is_named_wherever_mmrr_lies(original, tmp_path, monkeypatch, hashes):
    """A workspace made with it works on another machine. A local folder of the same name needs a path."""
    monkeypatch.setattr("mmrr.modeling.checkpoints._BUILT_IN", tmp_path / "models")
    shutil.copytree(original, tmp_path / "models" / "small")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    assert built_in() == ["small"]
    found = resolve("small", None, hashes)
    assert found.id == "small"
    assert found.path == tmp_path / "models" / "small"
    assert recorded(found.identity("float32"), hashes) == found
    with pytest.raises(MmrrError, match=r"no config\.json"):
        resolve("./small", None, hashes)
    with pytest.raises(MmrrError, match=r"or a model that comes with mmrr \(small\)"):
        resolve("smaller", None, hashes)


# Errors before loading


@pytest.mark.parametrize("name", ["qwen", "./none", "/none/at/all", "a/b/c", "owner/", "", "-x/y", "../x/y", "a b/c"])
def test_neither_a_folder_nor_a_hub_id(hashes, name):
    with pytest.raises(MmrrError, match=rf"no folder '{name}'; expected a folder, a Hub id \(owner/name\)"):
        resolve(name, None, hashes)


def test_a_hub_id_that_is_not_here_offline_is_one_clear_line(hashes):
    with pytest.raises(MmrrError) as caught:
        resolve("nobody/no-such-model-here", None, hashes)
    message = str(caught.value)
    assert "nobody/no-such-model-here is not on this machine and HF_HUB_OFFLINE is set" in message
    assert "hf download nobody/no-such-model-here" in message
    assert "\n" not in message


def test_another_architecture_is_told_what_there_is(folder, hashes):
    edit_json(folder / "config.json", model_type="llama")
    known = ", ".join(families.names("backbones"))
    assert "qwen3_vl" in known
    assert refused(folder, hashes, load=False).endswith(f"is a 'llama' model; expected: {known}")


def test_weights_that_can_run_code_are_refused(folder, hashes):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    assert "no *.safetensors" in refused(folder, hashes, load=False)


@pytest.mark.parametrize(
    ("text", "why"), [("{", "not readable JSON"), ("[]", "is not a JSON object"), (None, "no config.json")]
)
def test_an_invalid_config_is_refused(folder, hashes, text, why):
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    assert why in refused(folder, hashes, load=False)


def test_a_file_that_cannot_be_read_is_named(folder, hashes):
    """A broken link, such as in a moved Hub cache, is an error of one line."""
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / "gone")
    message = refused(folder, hashes, load=False)
    assert WEIGHTS in message
    assert "cannot be read" in message


# Errors while loading


def test_missing_tensors_are_named(folder, hashes):
    """transformers would fill missing tensors with random numbers."""
    gone = "model.language_model.layers.1.self_attn.v_proj.weight"
    edit_weights(folder, lambda tensors: tensors.pop(gone))
    message = refused(folder, hashes)
    assert f"lacks 1 tensors of a Qwen3-VL, among them: {gone}" in message
    assert gone in refused(folder, hashes, needs_head=False)


def test_a_missing_head_is_the_scorers_concern_alone(folder, hashes, page_images):
    edit_weights(folder, lambda tensors: tensors.pop("lm_head.weight"))
    checkpoint = resolve(str(folder), None, hashes)
    with pytest.raises(MmrrError, match=r"lacks 1 tensors of a Qwen3-VL, among them: lm_head\.weight"):
        Scorer(checkpoint, Prepare(band="0:2"), CPU, torch.float32)
    (embedding,) = Embedder(checkpoint, EmbedPrepare(), CPU, torch.float32).embed_pages(page_images[:1])
    assert embedding.vectors.norm().item() == pytest.approx(1, abs=1e-5)


def test_a_tied_head_is_not_missing(tmp_path, hashes):
    folder = write_checkpoint(tmp_path / "tied", layers=2, tie=True)
    assert "lm_head.weight" not in load_file(folder / WEIGHTS)
    backbone = Backbone(folder, None, CPU, torch.float32, needs_head=True)
    assert torch.equal(backbone.model.lm_head.weight, backbone.text.embed_tokens.weight)


def test_a_tensor_of_another_shape(folder, hashes):
    def narrow(tensors):
        name = "model.language_model.norm.weight"
        tensors[name] = tensors[name][:-1].clone()

    edit_weights(folder, narrow)
    why = (
        "has 1 tensors of another shape than its config.json says, among them: model.language_model.norm.weight is [63]"
    )
    assert f"{why}, expected [64]" in refused(folder, hashes)


@pytest.mark.parametrize("damage", ["truncated", "header", "empty"])
def test_damaged_weights_are_one_line(folder, hashes, damage):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes({"truncated": data[:-100], "header": b"\xff" + data[1:], "empty": b""}[damage])
    assert "model.safetensors is not a readable safetensors file" in refused(folder, hashes)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("tokenizer.json", "has no tokenizer.json"),
        ("preprocessor_config.json", "image processor"),
        ("chat_template.json", "has no chat template"),
    ],
)
def test_missing_parts_are_named(folder, hashes, name, why):
    """Without tokenizer.json transformers makes a tokenizer without vocabulary, to which all queries are equal."""
    (folder / name).unlink()
    assert why in refused(folder, hashes)


# LoRA


def train_adapter(base, out, **options):
    """An adapter as a training run saves it with peft, with B different from zero."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(base)
    settings = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], **options}
    adapted = get_peft_model(model, LoraConfig(**settings))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2, generator=generator)
    adapted.save_pretrained(out)
    edit_json(out / "adapter_config.json", base_model_name_or_path=str(base))
    return out


@pytest.fixture(scope="module")
def trained(original, tmp_path_factory):
    return train_adapter(original, tmp_path_factory.mktemp("adapter") / "lora")


@pytest.fixture
def adapter(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "lora"))


def scores(name, hashes, images):
    scorer = Scorer(resolve(str(name), None, hashes), Prepare(band="0:2"), CPU, torch.float32)
    return scorer.dense("When is it due?", images, "vision-first")


def test_an_adapter_is_what_merging_it_by_hand_is(folder, original, adapter, hashes, page_images):
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert len(tensors) == 8  # A and B, two projections, two layers

    def merge(weights):
        for name, b in tensors.items():
            if ".lora_B." in name:
                target = name.removeprefix("base_model.model.").replace(".lora_B.weight", ".weight")
                weights[target] += 6 / 2 * b @ tensors[name.replace("lora_B", "lora_A")]

    edit_weights(folder, merge)
    by_hand = scores(folder, hashes, page_images[:2])
    assert (scores(adapter, hashes, page_images[:2]) - by_hand).abs().max() <= 1e-5
    assert (scores(original, hashes, page_images[:2]) - by_hand).abs().max() > 0.01


def test_an_adapter_is_named_by_itself_and_its_base(adapter, original, folder, hashes):
    checkpoint = resolve(str(adapter), None, hashes)
    base = resolve(str(original), None, hashes)
    assert (checkpoint.path, checkpoint.adapter) == (original, adapter)
    own, _, base_revision = checkpoint.revision.partition("+")
    assert base_revision == base.revision
    assert recorded(checkpoint.identity("float32"), hashes) == checkpoint
    data = (adapter / "adapter_model.safetensors").read_bytes()
    (adapter / "adapter_model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert resolve(str(adapter), None, hashes).revision.partition("+")[0] != own
    edit_weights(folder, lambda tensors: tensors["lm_head.weight"].add_(1))
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(folder))
    assert resolve(str(adapter), None, hashes).revision.partition("+")[2] != base_revision


def edit_adapter(adapter, edit):
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(edit(tensors), adapter / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "edit",
    [
        lambda tensors: {name: torch.cat([t, t], 1) if "lora_A" in name else t for name, t in tensors.items()},
        lambda tensors: {name.replace("layers.1.", "layers.7."): t for name, t in tensors.items()},
        lambda tensors: {**tensors, "base_model.model.model.visual.x.lora_A.weight": torch.zeros(2, 4)},
        lambda tensors: dict(list(tensors.items())[1:]),
        lambda tensors: {name.replace("language_model", "other"): t for name, t in tensors.items()},
    ],
    ids=["other shapes", "other layers", "more than there is", "less than there is", "other names"],
)
def test_an_adapter_that_does_not_fit_is_one_line(adapter, hashes, edit):
    """peft warns about missing tensors but not about unused ones, so that half an adapter could be merged."""
    edit_adapter(adapter, edit)
    assert f"adapter {adapter} does not fit: " in refused(adapter, hashes)


def test_an_adapter_of_a_deeper_model_is_refused(tmp_path, original, hashes):
    """The tensors of the first two layers fit. Those of the third layer must not be dropped silently."""
    deeper = write_checkpoint(tmp_path / "deeper", layers=3, tie=False)
    adapter = train_adapter(deeper, tmp_path / "lora")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(original))
    assert "does not fit: 4 tensors" in refused(adapter, hashes)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"target_modules": ["c_attn"]}, "does not fit: .*c_attn"),
        ({"r": 4}, "does not fit: size mismatch"),
        ({"peft_type": "IA3"}, "is no LoRA"),
        ({"peft_type": "NEWER"}, "does not fit: .*NEWER"),
        ({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
        ({"base_model_name_or_path": "/gone"}, "no folder '/gone'"),
    ],
)
def test_an_adapters_settings_that_do_not_fit(adapter, hashes, changes, why):
    edit_json(adapter / "adapter_config.json", **changes)
    assert re.search(why, refused(adapter, hashes))


def test_an_adapter_on_an_adapter_is_refused(adapter, trained, hashes):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(trained))
    assert "is an adapter; merge it into its own base model first" in refused(adapter, hashes, load=False)


def test_adapter_weights_that_can_run_code_are_refused(adapter, hashes):
    """peft would load adapter_model.bin too, but two such adapters would have the same revision."""
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors" in refused(adapter, hashes, load=False)


# The cache of the Hub


def put_in_hub_cache(cache, name, commit, source, newest=True):
    """A folder in the layout of the Hub's client."""
    repository = cache / ("models--" + name.replace("/", "--"))
    shutil.copytree(source, repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)


def in_offline_process(cache, code):
    """The Hub's client reads its settings when it is imported, so that the test needs another process."""
    script = (
        "import json, sys; from pathlib import Path\n"
        "from mmrr.workspace.files import HashCache\n"
        "from mmrr.modeling.checkpoints import built_in, recorded, resolve\n"
        "from mmrr.errors import MmrrError\n"
        f"hashes = HashCache(Path({str(cache.parent / 'hashes.json')!r}))\n"
        "def show(c): print(json.dumps([c.id, c.revision, str(c.path), c.model_type, str(c.adapter)]))\n" + code
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_hub_id_in_the_cache_is_named_by_its_commit(tmp_path, original):
    cache, commit = tmp_path / "hub", "0a" * 20
    put_in_hub_cache(cache, "owner/name", commit, original)
    code = (
        "show(resolve('owner/name', None, hashes)); show(resolve('owner/name', 'main', hashes))\n"
        f"show(resolve('owner/name', '{commit}', hashes))\n"
        "try: resolve('owner/other', None, hashes)\n"
        "except MmrrError as error: print(json.dumps(str(error)))\n"
        "try: resolve('owner/name', 'no-such-branch', hashes)\n"
        "except MmrrError as error: print(json.dumps(str(error)))\n"
    )
    *found, missing, no_branch = in_offline_process(cache, code)
    path = str(cache / "models--owner--name" / "snapshots" / commit)
    assert found == [["owner/name", commit, path, "qwen3_vl", "None"]] * 3
    assert "owner/other is not on this machine and HF_HUB_OFFLINE is set" in missing
    assert "hf download owner/name --revision no-such-branch" in no_branch


@pytest.mark.slow
def test_what_was_recorded_is_found_again_after_the_hub_moved_on(tmp_path, original, trained):
    """Both commits of an adapter are pinned, so that its caches stay valid after a new commit of its base."""
    cache, old, new = tmp_path / "hub", "0a" * 20, "0b" * 20
    adapter = Path(shutil.copytree(trained, tmp_path / "lora"))
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="owner/base")
    for name, source in (("owner/base", original), ("owner/lora", adapter)):
        put_in_hub_cache(cache, name, old, source)
    models = [
        {"id": name, "revision": revision, "dtype": "float32"}
        for name, revision in (("owner/base", old), ("owner/lora", f"{old}+{old}"))
    ]
    code = f"for model in {models}: show(recorded(model, hashes))\n"
    before = in_offline_process(cache, code)
    for name, source in (("owner/base", original), ("owner/lora", adapter)):
        put_in_hub_cache(cache, name, new, source)
    after = in_offline_process(cache, code + "show(resolve('owner/lora', None, hashes))\n")
    assert after[:2] == before
    assert [row[1] for row in after] == [old, f"{old}+{old}", f"{new}+{new}"]
