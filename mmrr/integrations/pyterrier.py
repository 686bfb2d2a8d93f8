"""PyTerrier: transformers that find pages of a workspace and rerank them. A ``docno`` is a page id. No Java is used."""

from __future__ import annotations

from typing import Any

from mmrr.api import Workspace
from mmrr.integrations._candidates import Candidate, logits
from mmrr.integrations._library import needs
from mmrr.reranker import Reranker

with needs("pyterrier", "pyterrier"):
    import pandas as pd
    import pyterrier as pt


class PageRetriever(pt.Transformer):
    """Queries (``qid``, ``query``) to results (``docno``, ``score``, ``rank``, and ``text`` if ``with_text``)."""

    def __init__(self, workspace: Workspace, top_k: int = 1000, *, with_text: bool = False, **options: object) -> None:
        """``options`` are fields of ``mmrr.Search``, such as ``rerank=False``."""
        super().__init__()
        self._workspace, self._with_text = workspace, with_text
        self._options: dict[str, Any] = {"top_k": top_k, "candidates": top_k, **options}

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """The results of all queries, which are searched together."""
        pt.validate.query_frame(inp, extra_columns=["query"])
        columns = [name for name in inp.columns if name not in ("docno", "score", "rank", "text")]
        rows = []
        found = self._workspace.search_many(list(inp["query"]), **self._options)
        for record, hits in zip(inp[columns].to_dict("records"), found, strict=True):
            for hit in hits:
                text = {"text": hit.text()} if self._with_text else {}
                rows.append({**record, "docno": hit.page_id, "score": hit.score, **text})
        names = [*columns, "docno", "score", *(["text"] if self._with_text else [])]
        return pt.model.add_ranks(pd.DataFrame(rows, columns=names))


class PageReranker(pt.Transformer):
    """Results (``qid``, ``query``, ``docno``) to the same rows with the reranker's logits as ``score``.

    The image of a row is ``image`` (a path, a data URI, bytes or a Pillow image) where there is such a column, else the
    page ``docno`` of ``workspace``. A reranker that reads text needs a column ``text``. Without a reranker, pages are
    scored from the page caches of the workspace.
    """

    def __init__(self, reranker: Reranker | None = None, workspace: Workspace | None = None) -> None:
        super().__init__()
        self._reranker, self._workspace = reranker, workspace

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """The same rows with new scores and ranks. Raises MmrrError if a row has no image."""
        reads_text = self._reranker is not None and self._reranker.reads == "text"
        pt.validate.result_frame(inp, extra_columns=["query", *(["text"] if reads_text else [])])
        out = inp.drop(columns=["score", "rank"], errors="ignore").reset_index(drop=True)
        out["score"] = 0.0
        for _, group in out.groupby("qid", sort=False):  # the images of one query are in memory at a time
            query = group["query"].iloc[0]
            out.loc[group.index, "score"] = logits(self._reranker, self._workspace, query, _candidates(group))
        return pt.model.add_ranks(out)


def _candidates(group: pd.DataFrame) -> list[Candidate]:
    texts = group["text"] if "text" in group else [""] * len(group)
    images = group["image"] if "image" in group else [None] * len(group)
    return [
        Candidate(text, {"page_id": docno, "image": image})
        for text, docno, image in zip(texts, group["docno"], images, strict=True)
    ]
