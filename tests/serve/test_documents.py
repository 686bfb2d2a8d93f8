"""Uploads and removals: the collection changes as a whole, and only by names that the server made."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mmrr.serve.errors import RefusedError
from mmrr.serve.jobs import safe_name
from mmrr.serve.settings import Limits, Settings
from tests.pdfs import make_pdf
from tests.serve.conftest import QUERY, serving


def finished(client: TestClient, answer: Any) -> dict[str, Any]:
    """The job of an upload or removal when it has ended."""
    assert answer.status_code == 202, answer.text
    for _ in range(600):
        job: dict[str, Any] = client.get(f"/v1/documents/jobs/{answer.json()['id']}").json()
        if job["status"] in ("done", "failed"):
            return job
        time.sleep(0.1)
    raise AssertionError(job)


def upload(client: TestClient, name: str, content: bytes) -> Any:
    return client.post("/v1/documents", files={"file": (name, content, "application/pdf")})


def ids(client: TestClient) -> set[str]:
    return {row["id"] for row in client.get("/v1/documents").json()["documents"]}


def best(client: TestClient, query: str) -> dict[str, Any]:
    found = client.post("/v1/search", json={"query": query, "rerank": False, "first_stage": "words"}).json()
    one: dict[str, Any] = found["results"][0]
    return one


def test_upload_search_replace_and_remove(own: Settings):
    with serving(own) as client:
        job = finished(client, upload(client, "Zebra care.pdf", make_pdf(["A zebra eats grass", "Stripes"])))
        assert (job["status"], job["document"], job["message"]) == ("done", "Zebra_care.pdf", "")
        assert ids(client) == {"Zebra_care.pdf", "soil.pdf", "thesis.pdf"}
        assert best(client, "zebra")["page_id"] == "Zebra_care.pdf/0001"
        reranked = client.post("/v1/search", json={"query": "zebra"}).json()
        assert reranked["reranked"]
        assert len(reranked["results"]) == 7
        page = client.get("/v1/pages/Zebra_care.pdf/0002").json()
        assert "Stripes" in page["text"]

        finished(client, upload(client, "Zebra care.pdf", make_pdf(["A giraffe eats leaves"])))
        assert best(client, "giraffe")["page_id"] == "Zebra_care.pdf/0001"
        assert client.get("/v1/pages/Zebra_care.pdf/0002").status_code == 404

        job = finished(client, client.delete("/v1/documents/Zebra_care.pdf"))
        assert job["status"] == "done", job
        assert ids(client) == {"soil.pdf", "thesis.pdf"}
        assert client.post("/v1/search", json={"query": QUERY}).json()["reranked"]
        uploads = own.workspaces["work"] / "uploads"
        assert list(uploads.iterdir()) == []
        assert client.delete("/v1/documents/Zebra_care.pdf").status_code == 404


def test_a_bad_file_leaves_the_collection(own: Settings):
    limits = Limits(pages=2)
    with serving(replace(own, limits=limits)) as client:
        job = finished(client, upload(client, "bad.pdf", b"no document at all"))
        assert job["status"] == "failed"
        assert "not_a_document" in job["message"]
        job = finished(client, upload(client, "long.pdf", make_pdf(["one", "two", "three"])))
        assert "3 pages; expected at most 2" in job["message"]
        assert ids(client) == {"soil.pdf", "thesis.pdf"}
        assert list((own.workspaces["work"] / "uploads").iterdir()) == []
        assert upload(client, "page.exe", b"MZ").status_code == 415
        assert client.post("/v1/documents", data={"workspace": "work"}).status_code == 422
        assert client.get("/v1/documents/jobs/none").status_code == 404


def test_read_only(own: Settings):
    work = own.workspaces["work"]
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    with serving(replace(own, read_only=True)) as client:
        assert upload(client, "a.pdf", make_pdf(["text"])).status_code == 403
        assert client.delete("/v1/documents/soil.pdf").status_code == 403
        assert client.post("/v1/search", json={"query": QUERY}).json()["reranked"]
        assert client.post("/v1/rerank", json={"query": QUERY, "documents": [{"page_id": "soil.pdf/0001"}]}).is_success
        assert client.get("/v1/pages/soil.pdf/0001/image").is_success
        assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == before
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == before


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.pdf", "a.pdf"),
        ("../../etc/x.pdf", "x.pdf"),
        ("C:\\docs\\x.PDF", "x.PDF"),
        (".hidden.pdf", "hidden.pdf"),
        ("a b\n\0c.pdf", "a_b_c.pdf"),
        ("Übung 1.pdf", "Übung_1.pdf"),
        ("x" * 300 + ".pdf", "x" * 150 + ".pdf"),
        ("員" * 100 + ".pdf", "員" * 50 + ".pdf"),
        ("page.png", "page.png"),
    ],
)
def test_file_names(name: str, expected: str):
    assert safe_name(name) == expected
    assert "/" not in safe_name(name)


@pytest.mark.parametrize("name", ["", "x", "..", "/", "x.exe", ".pdf", "x.pdf/", "x.pdf.sh"])
def test_file_names_that_are_refused(name: str):
    with pytest.raises(RefusedError):
        safe_name(name)


def test_an_upload_that_is_stopped_leaves_the_old_index(own: Settings, monkeypatch: pytest.MonkeyPatch):
    from mmrr import adding

    def stopped(*_: object, **__: object) -> None:
        raise RuntimeError("stopped after the pages were rendered and indexed")

    with serving(own) as client:
        with monkeypatch.context() as patch:
            patch.setattr(adding, "cache_pages", stopped)
            job = finished(client, upload(client, "new.pdf", make_pdf(["A walrus"])))
        assert (job["status"], job["message"]) == ("failed", "an error of the server; its log has the reason")
        assert ids(client) == {"soil.pdf", "thesis.pdf"}
        assert client.post("/v1/search", json={"query": QUERY}).json()["reranked"]
        job = finished(client, upload(client, "new.pdf", make_pdf(["A walrus"])))
        assert job["status"] == "done"
        assert best(client, "walrus")["page_id"] == "new.pdf/0001"
