"""Checkpoint folders of all families, and the ways in which such a folder can be broken or hostile."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmrr.config import Model
from mmrr.modeling import families
from mmrr.modeling.checkpoints import resolve
from mmrr.stages.precache import family_of
from tests.conftest import CPU
from tests.scorers.edje.reference import Original, write_edje, write_vision
from tests.scorers.kalm.reference import write_checkpoint as write_kalm
from tests.tiny import late, write_checkpoint

WEIGHTS = "model.safetensors"
#: A folder of each family. In the folder of EDJE is its vision encoder.
SCORERS = ("minireranker", "ziprerank", "edje", "kalm")
EMBEDDERS = ("qwen3_vl", "colqwen3")


def write_folders(root: Path) -> dict[str, Path]:
    """One tiny checkpoint for each family."""
    tiny = write_checkpoint(root / "tiny", layers=4, tie=False)
    torch.manual_seed(3)
    edje = write_edje(root / "edje", Original())
    vision = write_vision(root / "vision")
    (edje / "config.json").write_text(json.dumps({"num_attention_heads": 2, "vision": str(vision)}))
    return {
        "minireranker": tiny,
        "ziprerank": tiny,
        "qwen3_vl": tiny,
        "colqwen3": late(tiny, root / "late"),
        "edje": edje,
        "kalm": write_kalm(root / "kalm"),
    }


def use(family: str, folder: Path, hashes) -> None:
    """All that the commands do with a checkpoint: find it, read its settings, load it, read a page and a query."""
    page = Image.new("RGB", (96, 128), "white")
    if family in EMBEDDERS:
        checkpoint = resolve(str(folder), None, hashes, families.names("embedders"))
        module = families.load("embedders", families.embedder(checkpoint.config()))
        embedder = module.load(checkpoint, module.Prepare(), CPU, torch.float32)
        embedder.embed_pages([page])
        embedder.embed_queries(["When is it due?"], module.Search())
        return
    found = family_of(hashes, family, Model(str(folder)), {})
    found.module.cache_bytes(found.prepare, found.config, 12, 4)
    found.module.grid(found.prepare, found.config, 96, 128)
    scorer = found.module.load(found.checkpoint, found.prepare, CPU, torch.float32)
    content = "a page of text" if found.module.page_input(found.prepare) == "text" else page
    caches = scorer.prepare([content], [None])
    scorer.score(scorer.encode_query("When is it due?"), caches, scorer.shared_state(), found.module.Score())


def config(**changes):
    """Change config.json; a name with two underscores is a key of a section."""

    def damage(folder: Path) -> None:
        path = folder / "config.json"
        values = json.loads(path.read_text())
        for name, value in changes.items():
            section, _, key = name.rpartition("__")
            place = values
            for part in filter(None, section.split("__")):
                place = place[part]
            place[key] = value
        path.write_text(json.dumps(values))

    return damage


def without(*names):
    """Remove keys of config.json."""

    def damage(folder: Path) -> None:
        path = folder / "config.json"
        values = {key: value for key, value in json.loads(path.read_text()).items() if key not in names}
        path.write_text(json.dumps(values))

    return damage


def text(name, content):
    """Replace a file; None removes it."""

    def damage(folder: Path) -> None:
        if content is None:
            (folder / name).unlink()
        elif isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            (folder / name).write_text(content)

    return damage


def without_a_layer(tensors):
    """The first tensor of a file may be one that a family does not read; those of a layer are always read."""
    gone = next(name for name in sorted(tensors) if "layer" in name)
    return {name: tensor for name, tensor in tensors.items() if name != gone}


def weights(change):
    """Replace the tensors by what ``change`` makes of them."""

    def damage(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def data(change):
    """Replace the bytes of the weights by what ``change`` makes of them."""

    def damage(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))

    return damage


def sharded(names):
    """Weights in two files with an index that names ``names`` in place of the second."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        first = dict(list(tensors.items())[::2])
        save_file(first, folder / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
        places = {key: "model-00001-of-00002.safetensors" if key in first else names for key in tensors}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
        (folder / WEIGHTS).unlink()

    return damage


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def first_tensor(change):
    return lambda tensors: {key: change(value) if i == 0 else value for i, (key, value) in enumerate(tensors.items())}


def adapter_of(base):
    """Make the folder an adapter of ``base``, which is a function of the folder."""

    def damage(folder: Path) -> None:
        settings = {"peft_type": "LORA", "base_model_name_or_path": str(base(folder)), "r": 2}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        shutil.copy(folder / WEIGHTS, folder / "adapter_model.safetensors")

    return damage


def chain(folder: Path) -> None:
    """An adapter of an adapter of the first one."""
    other = folder.parent / "other"
    adapter_of(lambda _: other)(folder)
    shutil.copytree(folder, other)
    adapter_of(lambda _: folder)(other)


#: Damage of files that every family has, with a part of the message.
EVERY = {
    "weights are missing": (text(WEIGHTS, None), r"no \*\.safetensors"),
    "weights are empty": (text(WEIGHTS, b""), "is not a readable safetensors file"),
    "weights are cut": (data(lambda old: old[:-50]), "is not a readable safetensors file"),
    "a header of 2^60 bytes": (data(lambda old: struct.pack("<Q", 1 << 60) + old[8:]), "is not a readable safetensors"),
    "a header of noise": (data(lambda old: old[:8] + b"\xff" * 64 + old[72:]), "is not a readable safetensors"),
    "pickled weights": (pickled, "can run code"),
    "no tensors": (weights(lambda tensors: {}), ""),
    "a tensor of another shape": (
        weights(lambda tensors: {k: v[:-1].clone() if v.dim() > 1 else v for k, v in tensors.items()}),
        "",
    ),
    "int8 weights": (weights(lambda tensors: {k: v.to(torch.int8) for k, v in tensors.items()}), "in the format I8"),
    "a missing tensor": (weights(without_a_layer), ""),
    "a missing file of two": (sharded("model-00002-of-00002.safetensors"), "is missing"),
    "an index that leaves the folder": (sharded("../../etc/passwd"), "expected a safetensors file of this folder"),
    "an index of absolute paths": (sharded("/etc/passwd"), "expected a safetensors file of this folder"),
    "an index without a map": (text("model.safetensors.index.json", '{"weight_map": 3}'), "no weight_map"),
    "config.json is empty": (text("config.json", ""), "config.json is not readable JSON"),
    "config.json is no JSON": (text("config.json", "{'a': 1}"), "config.json is not readable JSON"),
    "config.json is a list": (text("config.json", "[1, 2]"), "config.json is not a JSON object"),
    "config.json is nested deep": (text("config.json", "[" * 200_000), "nested too deep"),
    "config.json is no text": (text("config.json", b"\xff\xfe\x00"), "config.json is not readable JSON"),
    "a size is a word": (config(num_attention_heads="x"), "num_attention_heads is 'x'; expected a whole number"),
    "a size is negative": (config(num_attention_heads=-4), "num_attention_heads is -4"),
    "a size is zero": (config(num_attention_heads=0), "num_attention_heads is 0"),
    "a size of 400 digits": (config(num_attention_heads=10**400), "num_attention_heads is 1000.*characters"),
    "a size is NaN": (config(num_attention_heads=float("nan")), "num_attention_heads is nan"),
    "a size is true": (config(num_attention_heads=True), "num_attention_heads is True"),
    "an adapter of itself": (adapter_of(lambda folder: folder), "is an adapter; merge it"),
    "a chain of adapters": (chain, "is an adapter; merge it"),
    "an adapter of a user's folder": (adapter_of(lambda folder: "~nosuchuser/x"), "found no folder"),
    "an adapter of a long name": (adapter_of(lambda folder: "x" * 5000), "found no folder"),
}
#: Damage of the files of one group of families.
QWEN = {
    "config.json is missing": (text("config.json", None), "no config.json"),
    "no text_config": (without("text_config"), ""),
    "no vision_config": (without("vision_config"), ""),
    "text_config is a list": (config(text_config=[1]), r"text_config is \[1\]; expected an object"),
    "another model": (config(model_type="llama"), "'llama' model"),
    "no model_type": (without("model_type"), "'None' model"),
    "architectures is a number": (config(architectures=3), None),
    "hidden_size is a word": (config(text_config__hidden_size="x"), "text_config: hidden_size is 'x'"),
    "hidden_size is large": (
        config(text_config__hidden_size=1_000_000),
        "describes a model of|linear layer of 1000000 inputs",
    ),
    "hidden_size is another": (
        config(text_config__hidden_size=128),
        "another shape than its config.json says|of 64 inputs|of 128 inputs",
    ),
    "a billion layers": (config(text_config__num_hidden_layers=10**6), "expected at most"),
    "no rope": (config(text_config__rope_scaling={"rope_type": "unknown"}), "does not load as Qwen3-VL"),
    "an activation that is code": (config(text_config__hidden_act="os.system"), "does not load as Qwen3-VL"),
    "a patch of 0 pixels": (config(vision_config__spatial_merge_size=0), "spatial_merge_size is 0"),
    "patches of another size": (config(vision_config__patch_size=8), ""),
    "an image token of no text": (config(image_token_id=10**6), "has a token 1000000"),
    "an image token that is text": (config(image_token_id="x"), "image_token_id is 'x'"),
    "deepstack is a number": (config(vision_config__deepstack_visual_indexes=3), "expected a list of layer numbers"),
    "no tokenizer": (text("tokenizer.json", None), "tokenizer"),
    "tokenizer.json is cut": (text("tokenizer.json", '{"version": "1.0", "truncation"'), "does not load"),
    "tokenizer.json is a list": (text("tokenizer.json", "[]"), "does not load"),
    "tokenizer.json of another kind": (text("tokenizer.json", '{"model": {"type": "WordLevel", "vocab": 3}}'), "load"),
    "tokenizer_config.json is a list": (text("tokenizer_config.json", "[]"), "does not load"),
    "no image processor": (text("preprocessor_config.json", None), "does not load"),
    "image processor of words": (text("preprocessor_config.json", '{"size": "large"}'), "does not load"),
    "no chat template": (text("chat_template.json", None), "has no chat template"),
    "chat_template.json is a list": (text("chat_template.json", "[]"), "chat_template.json is not a JSON object"),
    "chat template is a number": (text("chat_template.json", '{"chat_template": 3}'), "has no chat template"),
    "chat template is not closed": (text("chat_template.jinja", "{% for x in y %}"), "does not render"),
    "chat template is no text": (text("chat_template.jinja", b"\xff\xfe"), "does not load"),
    "chat template raises": (text("chat_template.jinja", "{{ raise_exception('no') }}"), "TemplateError: no"),
    "chat template is empty": (text("chat_template.jinja", ""), "places 0 texts|exactly one image"),
    "chat template leaves the sandbox": (
        text("chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        "does not render: SecurityError",
    ),
    "chat template of a long text": (text("chat_template.jinja", "{{ 'x' * 2000000 }}"), "expected at most 1,000,000"),
    "chat template of 10^10 letters": (text("chat_template.jinja", "{{ 'x' * 10000000000 }}"), "more memory"),
}
KALM = {
    "config.json is missing": (text("config.json", None), "no config.json"),
    "no decoder": (without("decoder"), "has no 'decoder'"),
    "no encoder": (without("encoder"), ""),
    "decoder is a list": (config(decoder=[1]), r"decoder is \[1\]; expected an object"),
    "hidden_size is large": (config(decoder__hidden_size=1_000_000), ""),
    "a size of the encoder is a word": (config(encoder__text_config__hidden_size="x"), "hidden_size is 'x'"),
    "no tokenizer": (text("tokenizer.json", None), "tokenizer"),
    "tokenizer.json is a list": (text("tokenizer.json", "[]"), "does not load"),
}
EDJE = {
    "no vision encoder": (config(vision="/none/at/all"), "found no folder"),
    "the vision encoder is a number": (config(vision=3), "found no folder"),
    "the adapter has 0 heads": (config(adapter_attention_heads=0), "adapter_attention_heads is 0"),
    "the adapter has 3 heads": (config(adapter_attention_heads=3), "cannot have 3 attention heads"),
    "no tokenizer": (text("vocab.txt", None), "has neither tokenizer.json nor vocab.txt"),
    "a broken tokenizer": (text("tokenizer.json", "[]"), "the tokenizer does not load"),
}
