"""An adapter without its framework says what to install; a text scorer gets texts; a document needs an image."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mmrr
from mmrr.integrations._candidates import Candidate, rank
from mmrr.integrations._library import MissingLibraryError, needs
from tests.integrations.conftest import QUERY

ADAPTERS = {
    "langchain": "langchain_core",
    "llamaindex": "llama_index",
    "haystack": "haystack",
    "mteb": "mteb",
    "pyterrier": "pyterrier",
    "mcp": "mcp",
}


@pytest.mark.slow
def test_a_missing_framework_is_one_line():
    code = "import sys, importlib\n" + "".join(
        f"sys.modules[{library!r}] = None\n"
        f"try: importlib.import_module('mmrr.integrations.{name}')\n"
        f"except ImportError as error: print(type(error).__name__, error)\n"
        for name, library in ADAPTERS.items()
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == [
        f"MissingLibraryError {library} is not installed; run: pip install 'mmrr[{name}]'"
        for name, library in ADAPTERS.items()
    ]


def test_a_library_that_the_framework_lacks_keeps_its_error():
    with pytest.raises(ModuleNotFoundError) as found, needs("langchain", "langchain_core"):
        raise ModuleNotFoundError("no yaml", name="yaml")
    assert not isinstance(found.value, MissingLibraryError)


def test_a_document_without_an_image_is_refused(reranker: mmrr.Reranker, best: list[mmrr.Hit]):
    with pytest.raises(mmrr.MmrrError, match="document 0 has no image; expected 'image' or 'page_id' in its metadata"):
        rank(reranker, None, QUERY, [Candidate("/etc/passwd")], None)
    with pytest.raises(mmrr.MmrrError, match=f"document 0 is page {best[0].page_id}; pass the workspace"):
        rank(reranker, None, QUERY, [Candidate("", {"page_id": best[0].page_id})], None)


def test_a_scorer_of_text_gets_the_text():
    kalm = mmrr.Reranker("small-kalm", scorer="kalm", device="cpu", dtype="float32")
    texts = ["The thesis is due in June", "Rainfall by month"]
    assert rank(kalm, None, QUERY, [Candidate(text) for text in texts], 1) == kalm.rank(QUERY, texts, top_k=1)


def test_without_a_reranker_pages_are_scored_from_the_caches_of_the_workspace(
    workspace: mmrr.Workspace, ranked: list[tuple[str, float]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mmrr.Workspace, "image", lambda *_: pytest.fail("a page image was read"))
    pages = [page.page_id for page in workspace.pages()]
    given = [Candidate("", {"page_id": page_id}) for page_id in [*pages, pages[0]]]
    found = rank(None, workspace, QUERY, given, None)
    assert len(found) == len(given)
    order = list(dict.fromkeys(given[one["corpus_id"]].metadata["page_id"] for one in found))
    assert order == [page_id for page_id, _ in ranked]
    assert found[0]["score"] == pytest.approx(ranked[0][1], abs=1e-5)
    with pytest.raises(mmrr.MmrrError, match="nothing to rank with; pass a reranker, or a workspace with page caches"):
        rank(None, None, QUERY, given, None)
    with pytest.raises(mmrr.MmrrError, match="top_k is 0; expected 1 or more"):
        rank(None, workspace, QUERY, given, 0)
