"""GET /v1/pages/{id}/evidence: the heat map that the workspace computes, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

import mmrr
from tests.serve.conftest import QUERY

PAGE = "thesis.pdf/0001"


def evidence(client: TestClient, status: int = 200, page: str = PAGE, **parameters: Any) -> Any:
    answer = client.get(f"/v1/pages/{page}/evidence", params={"q": QUERY, **parameters})
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.mark.parametrize("options", [{}, {"word": 2}, {"source": "reranker", "layer": 0}])
def test_evidence_is_what_the_workspace_computes(
    client: TestClient, workspace: mmrr.Workspace, options: dict[str, Any]
) -> None:
    found = evidence(client, **options)
    expected = workspace.explain(QUERY, PAGE, **options)
    assert (found["source"], found["sources"]) == ("reranker", ["reranker"])
    assert [(one["text"], one["index"]) for one in found["words"]] == [
        ("When", 0),
        ("is", 1),
        ("the", 2),
        ("thesis", 3),
        ("due", 4),
    ]
    assert tuple(found["grid"]) == expected.heat.shape
    assert np.abs(np.array(found["heat"]) - expected.heat.ravel()).max() < 1e-3
    assert found["kept"] == expected.kept.ravel().tolist()
    assert 0 < sum(found["kept"]) < len(found["kept"])


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        ({"word": 9}, 422, "no word 9; expected one of: 0 When"),
        ({"word": -1}, 422, "word"),
        ({"layer": 7}, 422, "layer 7: expected 0 to"),
        ({"q": " "}, 422, "empty"),
        ({"source": "embedder"}, 404, "late-interaction embedder (colqwen3)"),
        ({"source": "saliency"}, 422, "source"),
        ({"page": "thesis.pdf/9999"}, 404, "no page of that id"),
        ({"page": "thesis/1"}, 404, "no page of that id"),
        ({"page": "../../mmrr.json"}, 404, ""),
        ({"workspace": "other"}, 404, "this server has work"),
    ],
)
def test_what_has_no_evidence_is_one_line(client: TestClient, options: dict[str, Any], status: int, says: str) -> None:
    message = evidence(client, status, **options)["error"]["message"]
    assert says in message
    assert "\n" not in message
