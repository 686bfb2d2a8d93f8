"""Where a model decides and where query and page meet: what exit and band are chosen by.

The plain vision-first model over a first stage's candidates. *Logit probing*: behind every layer, the last token's
state through the final norm and the answers' rows, judged as a run of its own. *Interaction probing*: a query's states
behind two pages, compared layer by layer; they are alike as long as the page says nothing (docs/minireranker.md).
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
    """Layers are counted from 1: what stands at l is what an exit behind l layers sees."""

    runs: list[Run]  # by layer
    similarity: list[float]  # by layer, mean cosine of a query's states behind two of its pages

    def values(self, qrels: Qrels, measure: str) -> list[float]:
        """The measure of every layer's run."""
        return [next(iter(evaluate(run, qrels, [measure]).mean.values())) for run in self.runs]


def probe(
    scorer: Any,
    read_image: Callable[[str], Image.Image],
    texts: Mapping[str, str],
    run: Run,
    progress: Progress = silent,
) -> Probe:
    """Score a run's pages behind every layer of ``scorer``'s model; every token kept, every layer run.

    ``texts``: the queries by id. Each page is read once, with all queries it is a candidate of. Raises MmrrError if no
    query has two candidates: there would be nothing to compare.
    """
    asked: dict[str, list[str]] = {}
    for query_id, hits in run.items():
        for hit in hits:
            asked.setdefault(hit.page_id, []).append(query_id)
    depth = scorer.backbone.n_layers
    scores: list[dict[str, dict[str, float]]] = [{query_id: {} for query_id in run} for _ in range(depth)]
    before: dict[str, list[Tensor]] = {}  # of each query, its states behind the page before
    total, pairs = torch.zeros(depth), 0
    with progress("probe", len(asked)) as advance:
        for page_id, query_ids in asked.items():
            suffixes = [scorer.segments(texts[query_id])[1] for query_id in query_ids]
            states = _read(scorer, read_image(page_id), suffixes)
            for row, query_id in enumerate(query_ids):
                own = [layer[row] for layer in states]
                ends = torch.stack([layer[-1] for layer in own])
                for at, z in enumerate(scorer.logit(scorer.backbone.final_norm(ends)).tolist()):
                    scores[at][query_id][page_id] = z
                if query_id in before:
                    total += torch.stack([_alike(a, b) for a, b in zip(before[query_id], own, strict=True)])
                    pairs += 1
                before[query_id] = own
            advance(1)
    if not pairs:
        raise MmrrError("no query has two candidates to compare; index more pages or raise --candidates")
    runs = [{query_id: rank(pages) for query_id, pages in layer.items()} for layer in scores]
    return Probe(runs, (total / pairs).tolist())


@torch.inference_mode()
def _read(scorer: Any, image: Image.Image, suffixes: list[list[int]]) -> list[Sequence[Tensor]]:
    """States (M, D) of each query's tokens behind every layer, over one page."""
    backbone = scorer.backbone
    (visual,) = backbone.vision([image], scorer.prepare_options.max_tokens or None)
    page = backbone.page_sequence(scorer.before, visual, scorer.after)
    found: list[Sequence[Tensor]] = []
    lengths = [len(suffix) for suffix in suffixes]
    everything = (0, backbone.n_layers), backbone.n_layers
    score_states(
        backbone, page, suffixes, *everything, seen=lambda _, states: found.append(torch.split(states, lengths))
    )
    return found


def _alike(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a.float(), b.float(), dim=-1).mean().cpu()


def suggest(values: list[float], similarity: list[float], share: float, alike: float) -> tuple[int, int]:
    """(b, e): e is the first layer that reaches ``share`` of the last one's value, b follows the last of the leading
    layers whose similarity is ``alike`` or more; b < e.
    """
    end = next(at for at, value in enumerate(values, 1) if value >= share * values[-1])
    start = next((at for at, value in enumerate(similarity) if value < alike), len(similarity))
    return min(start, end - 1), end


def draw(values: list[float], measure: str, similarity: list[float], band: tuple[int, int], picture: Path) -> None:
    """Both curves over the layers, as PNG. Raises MmrrError if matplotlib is not installed."""
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
