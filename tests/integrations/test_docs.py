"""The code in docs/frameworks.md runs as it is, in a folder with a workspace ``work``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.integrations.test_mteb import make_task

PAGE = (Path(__file__).parents[2] / "docs" / "frameworks.md").read_text("utf-8")
#: {heading: the code below it}
CODE = {
    section.partition("\n")[0]: code
    for section in PAGE.split("\n## ")[1:]
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
}


def run(heading: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(work.parent)
    names: dict[str, Any] = {}
    exec(compile(CODE[heading], heading, "exec"), names)
    return names


@pytest.mark.slow
@pytest.mark.parametrize(
    "heading",
    [
        pytest.param("LangChain", marks=pytest.mark.framework("langchain_core")),
        pytest.param("LlamaIndex", marks=pytest.mark.framework("llama_index")),
        pytest.param("Haystack", marks=pytest.mark.framework("haystack")),
        pytest.param("PyTerrier", marks=pytest.mark.framework("pyterrier")),
    ],
)
def test_the_code_prints_pages(
    heading: str, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run(heading, work, monkeypatch)
    assert "thesis.pdf/0001" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.framework("mteb")
def test_the_code_of_mteb(work: Path, monkeypatch: pytest.MonkeyPatch, page_images: list[Image.Image], tmp_path: Path):
    names = run("mteb", work, monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert all(0 <= score <= 1 for score in names["evaluate"](lambda: make_task(page_images)))


def test_every_framework_has_code_and_the_configuration_is_json():
    assert set(CODE) == {"LangChain", "LlamaIndex", "Haystack", "PyTerrier", "mteb"}
    (configuration,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert json.loads(configuration)["mcpServers"]["documents"]["args"][:2] == ["mcp", "--work"]
