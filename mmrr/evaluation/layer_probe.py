"""Probes of the layers: at which layer the model decides, and at which layer query and page begin to interact.

Exit and band are chosen by these curves. Both use the uncached vision-first model over the candidates of the first
stage. *Logit probing*: after every layer, the last token's state goes through the final norm and the answer rows of the
LM head; the result is evaluated as a run. *Interaction probing*: the states of one query after two pages are compared
layer by layer. They are similar as long as the page has no effect on them (docs/minireranker.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mmrr.errors import MmrrError
from mmrr.evaluation.metrics import evaluate
from mmrr.modeling.plain_forward import score_states
from mmrr.types import Progress, Qrels, Run, rank, silent


@dataclass(frozen=True, slots=True)
class Probe:
    """Layers are counted from 1: the value of layer l is what an exit after l layers would see."""

    runs: list[Run]  # per layer
    similarity: list[float]  # per layer: mean cosine of a query's states after two of its pages

    def values(self, qrels: Qrels, measure: str) -> list[float]:
        """The measure of the run of every layer."""
        return [next(iter(evaluate(run, qrels, [measure]).mean.values())) for run in self.runs]


def probe(
    scorer: Any,
    read_image: Callable[[str], Image.Image],
    texts: Mapping[str, str],
    run: Run,
    progress: Progress = silent,
) -> Probe:
    """Score the pages of a run after every layer of ``scorer``'s model, with all tokens and all layers.

    ``texts``: the queries by id. Each page is read once, with all queries that it is a candidate of. Raises MmrrError
    if no query has two candidates, because then there are no states to compare.
    """
    queries_of: dict[str, list[str]] = {}
    for query_id, hits in run.items():
        for hit in hits:
            queries_of.setdefault(hit.page_id, []).append(query_id)
    depth = scorer.backbone.n_layers
    scores: list[dict[str, dict[str, float]]] = [{query_id: {} for query_id in run} for _ in range(depth)]
    previous: dict[str, list[Tensor]] = {}  # the states of each query after its previous page
    total, pairs = torch.zeros(depth), 0
    with progress("probe", len(queries_of)) as advance:
        for page_id, query_ids in queries_of.items():
            suffixes = [scorer.segments(texts[query_id])[1] for query_id in query_ids]
            states = _read(scorer, read_image(page_id), suffixes)
            for row, query_id in enumerate(query_ids):
                own = [layer[row] for layer in states]
                ends = torch.stack([layer[-1] for layer in own])
                for at, z in enumerate(scorer.logit(scorer.backbone.final_norm(ends)).tolist()):
                    scores[at][query_id][page_id] = z
                if query_id in previous:
                    total += torch.stack([_similarity(a, b) for a, b in zip(previous[query_id], own, strict=True)])
                    pairs += 1
                previous[query_id] = own
            advance(1)
    if not pairs:
        raise MmrrError("no query has two candidates to compare; index more pages or raise --candidates")
    runs = [{query_id: rank(pages) for query_id, pages in layer.items()} for layer in scores]
    return Probe(runs, (total / pairs).tolist())


@torch.inference_mode()
def _read(scorer: Any, image: Image.Image, suffixes: list[list[int]]) -> list[Sequence[Tensor]]:
    """The states (M, D) of each query's tokens after every layer, over one page."""
    backbone = scorer.backbone
    (visual,) = backbone.vision([image], scorer.prepare_options.max_tokens or None)
    page = backbone.page_sequence(scorer.before, visual, scorer.after)
    found: list[Sequence[Tensor]] = []
    lengths = [len(suffix) for suffix in suffixes]
    all_layers = (0, backbone.n_layers), backbone.n_layers
    score_states(
        backbone, page, suffixes, *all_layers, seen=lambda _, states: found.append(torch.split(states, lengths))
    )
    return found


def _similarity(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a.float(), b.float(), dim=-1).mean().cpu()


def suggest(values: list[float], similarity: list[float], share: float, threshold: float) -> tuple[int, int]:
    """The band (b, e) with b < e.

    e is the first layer with at least ``share`` of the last layer's quality ``values[-1]``. b is the number of leading
    layers whose similarity is at least ``threshold``.
    """
    end = next(at for at, value in enumerate(values, 1) if value >= share * values[-1])
    start = next((at for at, value in enumerate(similarity) if value < threshold), len(similarity))
    return min(start, end - 1), end


def draw(values: list[float], measure: str, similarity: list[float], band: tuple[int, int], picture: Path) -> None:
    """Draw both curves over the layers as PNG. Raises MmrrError if matplotlib is not installed."""
    from mmrr.plots import new_figure

    figure = new_figure(figsize=(9.0, 3.4), layout="constrained")
    for place, (title, curve) in enumerate(
        ((f"logit probing: {measure}", values), ("interaction probing: similarity", similarity)), 1
    ):
        panel = figure.add_subplot(1, 2, place)
        panel.axvspan(band[0] + 0.5, band[1] + 0.5, color="tab:orange", alpha=0.15, label=f"band {band[0]}:{band[1]}")
        panel.plot(range(1, len(curve) + 1), curve, marker="o")
        panel.set_title(title)
        panel.set_xlabel("layers run")
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(picture, dpi=110)
