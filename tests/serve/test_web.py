"""The web page's files, and the routes that it uses."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

import mmrr
from mmrr.serve.settings import Settings
from mmrr.serve.thumbnails import Thumbnails
from tests.serve.conftest import MACHINE, QUERY, png, serving
from tests.serve.test_security import KEY

PAGE = "/v1/pages/thesis.pdf/0001"
STATIC = Path(mmrr.__file__).parent / "serve" / "static"


def test_the_page_loads_only_its_own_files(client: TestClient):
    page = client.get("/")
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob:",
        "connect-src": "'self'",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
        "form-action": "'self'",
    }
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["cross-origin-resource-policy"] == "same-origin"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert not re.search(r"<script(?![^>]* src=)|<style|\bstyle=|\son\w+=|https?://", page.text)
    files = set(re.findall(r'(?:src|href)="(static/[^"]+)"', page.text))
    assert {f"static/{file.name}" for file in STATIC.iterdir() if file.suffix != ".html"} == files
    for file in files:
        answer = client.get(f"/{file}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].split(";")[0] in ("text/css", "text/javascript", "image/svg+xml")
        assert client.get(f"/{file}", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


def test_no_script_writes_markup_and_no_file_is_long():
    for file in STATIC.iterdir():
        text = file.read_text("utf-8")
        assert len(text.splitlines()) <= 450, file
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            file
        )
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), file


@pytest.mark.parametrize("name", ["../app.py", "..%2fapp.py", "%2e%2e/app.py", "none.js", "", "app.js/x"])
def test_a_name_of_a_file_is_no_path(client: TestClient, name: str):
    answer = client.get(f"/static/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "not_found"


def test_the_page_needs_no_key_and_what_it_shows_does(settings: Settings):
    with serving(replace(settings, keys=(KEY,), read_only=True)) as client:
        assert client.get("/").status_code == 200
        assert client.get("/static/app.js").status_code == 200
        for path in ("/v1/info", f"{PAGE}/image", f"{PAGE}/kept", f"{PAGE}/words", "/static/../v1/documents", "/docs"):
            assert client.get(path).status_code == 401, path
        info = client.get("/v1/info", headers={"Authorization": f"Bearer {KEY}"}).json()
        assert info["read_only"] is True


def test_info(client: TestClient):
    info = client.get("/v1/info").json()
    assert info["workspaces"] == [{"name": "work", "documents": 2, "pages": 5, "reranker": "reranker"}]
    assert info["read_only"] is False
    assert {".pdf", ".png"} <= set(info["upload_endings"])
    assert info["upload_bytes"] == 256 << 20


def test_images_are_small_and_may_be_kept(client: TestClient):
    page = client.get(PAGE).json()
    whole = client.get(f"{PAGE}/image")
    for kind in ("png", "jpeg", "webp"):
        answer = client.get(f"{PAGE}/image", params={"width": 32, "format": kind, "v": page["sha256"][:16]})
        assert answer.headers["content-type"] == f"image/{kind}"
        assert "immutable" in answer.headers["cache-control"]
        with Image.open(io.BytesIO(answer.content)) as image:
            assert (image.format, image.width) == (kind.upper(), 32)
        tag = answer.headers["etag"]
        again = client.get(f"{PAGE}/image", params={"width": 32, "format": kind}, headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
    # Without the hash, or with that of an earlier page, the image may be another one tomorrow.
    for version in ("", "0" * 16, page["sha256"][:4]):
        assert client.get(f"{PAGE}/image", params={"v": version}).headers["cache-control"] == "private, no-cache"
    assert whole.headers["content-type"] == "image/png"
    assert client.get(f"{PAGE}/image", params={"format": "exe"}).status_code == 422


def test_thumbnails_keep_within_their_budget():
    image = png(Image.new("RGB", (64, 64), "red"))
    thumbnails = Thumbnails(budget=1000)
    made = thumbnails.make(("a", 16, "png"), image)
    assert thumbnails.find(("a", 16, "png")) == made
    for i in range(50):
        thumbnails.make((str(i), 16, "png"), image)
    assert thumbnails.find(("a", 16, "png")) is None
    assert thumbnails.find(("49", 16, "png")) == made
    assert sum(map(len, thumbnails._known.values())) == thumbnails._bytes <= 1000


def test_snippets(client: TestClient):
    results = client.post("/v1/search", json={"query": "formatting of dues", "return_snippets": True}).json()["results"]
    parts = {one["page_id"]: one["snippet"]["parts"] for one in results}
    assert [part["text"] for part in parts["thesis.pdf/0002"] if part["match"]] == ["Formatting"]
    assert [part["text"] for part in parts["thesis.pdf/0001"] if part["match"]] == ["due"]
    assert "".join(part["text"] for part in parts["thesis.pdf/0002"]) == "Formatting rules for the cover of a thesis"
    page = client.get("/v1/pages/thesis.pdf/0002").json()
    one = next(one for one in results if one["page_id"] == "thesis.pdf/0002")
    assert {name: one[name] for name in ("width_px", "height_px", "sha256")}.items() <= page.items()
    assert client.post("/v1/search", json={"query": QUERY}).json()["results"][0]["snippet"] is None


def test_kept_tokens_are_those_of_the_reranker(client: TestClient, workspace: mmrr.Workspace, made: Path):
    answer = client.get(f"{PAGE}/kept").json()
    kept = workspace.kept("thesis.pdf/0001")
    assert kept is not None
    assert tuple(answer["grid"]) == kept.grid
    assert [i for i, one in enumerate(answer["kept"]) if one] == kept.indices.tolist()
    assert len(answer["kept"]) == kept.grid[0] * kept.grid[1]
    assert 0 < sum(answer["kept"]) < len(answer["kept"])
    assert client.get("/v1/pages/none.pdf/0001/kept").status_code == 404


@pytest.fixture(scope="module")
def unpruned(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    work = tmp_path_factory.mktemp("unpruned") / "work"
    with mmrr.Workspace(work, create=True, machine=MACHINE) as workspace:
        from tests.serve.conftest import RENDER

        workspace.index(made / "documents", text_embedder="none", render=RENDER)
    with serving(Settings({"work": work}, machine=MACHINE)) as client:
        yield client


def test_without_pruning_there_is_a_reason(unpruned: TestClient):
    answer = unpruned.get(f"{PAGE}/kept")
    assert answer.status_code == 404
    assert "pruned" in answer.json()["error"]["message"]
    assert unpruned.get("/v1/info").json()["workspaces"][0]["reranker"] == ""


def test_words_of_the_text_layer(client: TestClient, own: Settings):
    answer = client.get(f"{PAGE}/words", params={"q": "due dates"}).json()
    page = client.get(PAGE).json()
    assert (answer["width"], answer["height"]) == (page["width_px"], page["height_px"])
    assert " ".join(box["text"] for box in answer["boxes"]) == page["text"].strip()
    assert [box["text"] for box in answer["boxes"] if box["match"]] == ["due"]
    assert all(0 <= box["left"] <= box["left"] + box["width"] <= 1.00001 for box in answer["boxes"])
    assert answer["reason"] == ""
    assert not any(box["match"] for box in client.get(f"{PAGE}/words").json()["boxes"])
    assert client.get(f"{PAGE}/words", params={"q": "x" * 5000}).status_code == 413
    # The file of the document is changed, then removed.
    file = own.workspaces["work"].parent / "documents" / "thesis.pdf"
    with serving(own) as other:
        file.write_bytes(file.read_bytes() + b"\n")
        changed = other.get(f"{PAGE}/words").json()
        assert (changed["boxes"], "changed" in changed["reason"]) == ([], True)
        file.unlink()
        assert "no longer where" in other.get(f"{PAGE}/words").json()["reason"]
        file.symlink_to("/dev/zero")
        assert "no longer where" in other.get(f"{PAGE}/words").json()["reason"]
