"""A checkpoint folder that is broken or hostile ends each family in one line, and runs no code."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers.utils.chat_template_utils import render_jinja_template

from mmrr.errors import MmrrError
from mmrr.modeling import templates
from mmrr.modeling.checkpoint_files import loading
from mmrr.modeling.finite import expect_finite
from mmrr.random_checkpoint import CHAT_TEMPLATE as PUBLISHED
from mmrr.workspace.files import HashCache
from tests.modeling import hostile
from tests.tiny import CHAT_TEMPLATE


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return hostile.write_folders(tmp_path_factory.mktemp("originals"))


@pytest.fixture
def hashes(tmp_path):
    return HashCache(tmp_path / "hashes.json")


def expect_one_line(family, original, tmp_path, hashes, damage, why):
    folder = Path(shutil.copytree(original, tmp_path / "model"))
    damage(folder)
    if why is None:
        hostile.use(family, folder, hashes)
        return
    with pytest.raises(MmrrError) as caught:
        hostile.use(family, folder, hashes)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 800
    assert re.search(why, message), message


def cases(families, table):
    return [pytest.param(family, *table[name], id=f"{family}-{name}") for family in families for name in table]


@pytest.mark.parametrize("family", [*hostile.SCORERS, *hostile.EMBEDDERS])
def test_the_folder_itself_is_used(family, originals, tmp_path, hashes):
    expect_one_line(family, originals[family], tmp_path, hashes, lambda folder: None, None)


@pytest.mark.parametrize(
    ("family", "damage", "why"), cases(["minireranker", "colqwen3", "edje", "kalm"], hostile.EVERY)
)
def test_every_family(family, damage, why, originals, tmp_path, hashes):
    expect_one_line(family, originals[family], tmp_path, hashes, damage, why)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "damage", "why"), cases(["ziprerank", "qwen3_vl"], hostile.EVERY)[::3])
def test_every_other_family(family, damage, why, originals, tmp_path, hashes):
    expect_one_line(family, originals[family], tmp_path, hashes, damage, why)


@pytest.mark.parametrize(("family", "damage", "why"), cases(["minireranker"], hostile.QWEN))
def test_qwen(family, damage, why, originals, tmp_path, hashes):
    expect_one_line(family, originals[family], tmp_path, hashes, damage, why)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "damage", "why"),
    # These load through the same backbone as miniReranker, which is tried with every case: a third is tried here.
    cases(["ziprerank", "qwen3_vl"], hostile.QWEN)[::3]
    # ColQwen3 renders no chat template.
    + cases(["colqwen3"], {name: case for name, case in hostile.QWEN.items() if "chat template" not in name}),
)
def test_other_families_of_qwen(family, damage, why, originals, tmp_path, hashes):
    expect_one_line(family, originals[family], tmp_path, hashes, damage, why)


@pytest.mark.parametrize(("family", "damage", "why"), cases(["kalm"], hostile.KALM) + cases(["edje"], hostile.EDJE))
def test_kalm_and_edje(family, damage, why, originals, tmp_path, hashes):
    expect_one_line(family, originals[family], tmp_path, hashes, damage, why)


@pytest.mark.parametrize("family", ["minireranker", "edje"])
def test_code_in_the_folder_does_not_run(family, originals, tmp_path, hashes):
    """The files name classes of the folder, as checkpoints with remote code do."""
    folder = Path(shutil.copytree(originals[family], tmp_path / "model"))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        path = folder / name
        values = json.loads(path.read_text()) if path.exists() else {}
        classes = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor")
        path.write_text(json.dumps({**values, "auto_map": dict.fromkeys(classes, "evil.Evil")}))
    try:
        hostile.use(family, folder, hashes)
    except MmrrError as error:
        assert "\n" not in str(error)  # noqa: PT017  (used or refused, but not run)
    assert not (tmp_path / "ran").exists()


def test_an_adapter_can_neither_import_nor_allocate(originals, tmp_path, hashes):
    folder = tmp_path / "lora"
    folder.mkdir()
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(2, 4)}, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(originals["minireranker"]), "target_modules": ["x"]}
    for change, why in (
        ({"r": 10**9}, "expected ranks from 1 to 4"),
        ({"r": 2, "rank_pattern": {"x": 10**9}}, "expected ranks from 1 to 4"),
        ({"r": "2"}, "expected ranks from 1 to 4"),
        ({"r": 2, "megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "mmrr imports none"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps({**settings, **change}))
        with pytest.raises(MmrrError, match=why):
            hostile.use("minireranker", folder, hashes)


# Chat templates


QWEN_LIKE = """{%- if tools %}{{- '<|im_start|>system\\n' }}
{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}
{%- set ns = namespace(count=0, last=messages|length - 1) %}
{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and message.content is not string %}{%- set ns.last = index %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}
        {%- set parts = [] %}
        {%- for item in message.content %}
            {%- if item.type == 'image' or 'image' in item %}
                {%- set ns.count = ns.count + 1 %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}{%- continue %}
            {%- endif %}{{- item.text }}{% generation %}{{ '' }}{% endgeneration %}
        {%- endfor %}
    {%- endif %}
    {{- message | tojson(indent=1) ~ strftime_now('x') ~ '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' + (eos_token or '') }}{%- endif %}
   {% if ns.count > 3 %}{{ raise_exception('too many') }}{% endif %} ü {{ ns.last }}
"""


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, PUBLISHED, QWEN_LIKE], ids=["tests", "models", "all it can do"])
def test_templates_render_byte_for_byte_as_in_transformers(template):
    chat = [
        {"role": "system", "content": [{"type": "text", "text": "a <b> ü"}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\ue0000\ue001"}]},
    ]
    values = {"tools": None, "documents": None, "add_generation_prompt": True, "eos_token": "<|im_end|>"}
    (expected,), _ = render_jinja_template([chat], chat_template=template, **values)
    assert templates.render(template, {**values, "messages": chat}) == expected


@pytest.mark.parametrize("template", ["{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"])
def test_a_template_that_runs_without_end_is_stopped(template, monkeypatch):
    monkeypatch.setattr(templates, "CPU_SECONDS", 1)
    with pytest.raises(MmrrError, match="the chat template was stopped: it takes more than 1 s"):
        templates.render(template, {})


@pytest.mark.parametrize(
    "template",
    [
        "{{ range(10**9) | list }}",
        "{{ 'a'.ljust(10**10) }}",
        "{{ '%10000000000d' % 1 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_takes_all_memory_is_one_line(template):
    with pytest.raises(MmrrError, match=r"the chat template (does not render|was stopped)") as caught:
        templates.render(template, {})
    assert "\n" not in str(caught.value)


def test_equal_templates_render_once(monkeypatch):
    assert templates.render("{{ x }}", {"x": "once"}) == "once"
    monkeypatch.setattr(templates.subprocess, "run", None)
    assert templates.render("{{ x }}", {"x": "once"}) == "once"


# Errors of other libraries, numbers that are no numbers


class PanicException(BaseException):
    """As tokenizers raises it."""


@pytest.mark.parametrize(
    "error", [KeyError("x"), RecursionError(), MemoryError(), PanicException("index out of range")]
)
def test_what_libraries_raise_is_one_line(error):
    with pytest.raises(MmrrError, match=rf"^FILE: {type(error).__name__}"), loading("FILE"):
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), MmrrError("ours")])
def test_what_is_not_theirs_passes(error):
    with pytest.raises(type(error)) as caught, loading("FILE"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(dtype, value):
    fine = torch.randn(3, 5, 7).to(dtype)
    expect_finite("page a/0001", "model", {"k": fine, "n": torch.tensor([3]), "none": fine[:0]})
    damaged = fine.clone()
    damaged[2, 4, 6] = value
    with pytest.raises(MmrrError, match="page a/0001: model gave k that are not finite"):
        expect_finite("page a/0001", "model", {"n": torch.tensor([3]), "k": damaged})
