"""Checked by mypy, not run: every shipped family has the types of its Protocol."""

from __future__ import annotations

from PIL import Image

from mmrr.contracts import EmbedderFamily, ScorerFamily
from mmrr.embedders import colqwen3, qwen3_vl
from mmrr.scorers import edje, kalm, minireranker, ziprerank

EDJE: ScorerFamily[edje.Prepare, edje.Score, Image.Image, str] = edje
KALM: ScorerFamily[kalm.Prepare, kalm.Score, Image.Image | str, str] = kalm
MINIRERANKER: ScorerFamily[minireranker.Prepare, minireranker.Score, Image.Image, minireranker.EncodedQuery] = (
    minireranker
)
ZIPRERANK: ScorerFamily[ziprerank.Prepare, ziprerank.Score, Image.Image, str] = ziprerank
COLQWEN3: EmbedderFamily[colqwen3.Prepare, colqwen3.Search] = colqwen3
QWEN3_VL: EmbedderFamily[qwen3_vl.Prepare, qwen3_vl.Search] = qwen3_vl
