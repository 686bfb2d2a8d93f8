"""``mmrr tune``: the reranker settings that keep the quality at the fewest bytes, and a calibration of its scores."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from mmrr.config import Retrieve
from mmrr.errors import MmrrError

from . import options as o
from .context import fusion_of, memory_size, open_context, pairs, queries_from, scoring_machine, scoring_of
from .terminal import check_output, emit, note, size, table

if TYPE_CHECKING:
    from mmrr.evaluation.calibration import Calibration, Method
    from mmrr.tuning import Point, Tuned


# One parameter per option.
def tune(
    queries: o.RequiredQueries,
    qrels: o.RequiredQrels,
    work: o.Work = o.WORK,
    bytes_: Annotated[
        Optional[str], typer.Option("--bytes", metavar="SIZE", help="Most bytes of a page's cache, such as 1MB.")
    ] = None,
    ms: Annotated[
        Optional[float], typer.Option("--ms", min=0, help="Most milliseconds of a query, with caches in memory.")
    ] = None,
    keep_quality: Annotated[
        float, typer.Option("--keep-quality", min=0, max=1, help="Share of the default setting's quality to keep.")
    ] = 0.98,
    measure: Annotated[str, typer.Option("--measure", help="The quality, in the notation of ir_measures.")] = "nDCG@5",
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Also fit a map from logits to the probability that a page is relevant."),
    ] = False,
    method: Annotated[
        o.CalibrationMethod, typer.Option("--method", help="Of --calibrate: a logistic curve, or an increasing line.")
    ] = "platt",
    output: Annotated[
        Optional[Path],
        typer.Option("--output", help="Write the chosen setting to this TOML file, which mmrr.toml can be."),
    ] = None,
    plot: Annotated[
        Optional[Path], typer.Option("--plot", help="Draw quality over bytes and milliseconds to this PNG file.")
    ] = None,
    scorer_model: o.ScorerModel = None,
    scorer_revision: o.ScorerRevision = None,
    scorer: o.Scorer = o.SCORER,
    option: o.PrepareOptions = None,
    first_stage: o.FirstStageOption = None,
    channels: o.Channels = None,
    scope: o.ScopeOption = o.RETRIEVE.scope,
    candidates: o.Candidates = 20,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the division of the queries into two halves.")] = 0,
    json_: o.Json = False,
    device: o.Device = o.MACHINE.device,
    memory_budget: o.MemoryBudget = o.MEMORY_BUDGET,
    dtype: o.Dtype = o.DTYPE,
) -> None:
    """Find the best setting for your own pages.

    Half of the judged queries chooses band, exit layer, kept share, codec, candidates and fusion; the other half
    reports them. Nothing becomes current. docs/tuning.md says which settings are slices of one cache.

    Example: `mmrr tune --queries queries.jsonl --qrels qrels.trec --scorer-model reader-reranker --bytes 1MB`
    """
    with open_context(work, scoring_machine(device, memory_budget, o.RESIDENT, dtype)) as context:
        from mmrr import tuning
        from mmrr.evaluation.trec import read_qrels

        check_output(output)
        check_output(plot, is_picture=True)
        scoring = scoring_of(scorer, scorer_model, scorer_revision, None, pairs(option))
        _, weights = fusion_of(None, channels)
        goal = tuning.Goal(measure, memory_size("--bytes", bytes_) if bytes_ else None, ms, keep_quality)
        how = Retrieve(first_stage, scope, candidates, weights)
        found = tuning.tune(context, scoring, queries_from(None, queries), read_qrels(qrels), how, goal, seed)
        calibration = _calibration(found, method) if calibrate else None
        if output:
            _write(output, scoring, found, calibration)
        if plot:
            _draw(found, measure, plot)
        if json_:
            emit(_document(found, calibration))
        else:
            _show(found, measure, calibration)


def _calibration(found: Tuned, method: Method) -> Calibration:
    from mmrr.evaluation import calibration

    return calibration.fit(found.judged[0], method, found.made_for)


def _settings(point: Point, family: str) -> dict[str, Any]:
    """The keys of mmrr.toml; without those that are the family's own."""
    setting = point.setting
    found: dict[str, Any] = {"keep": setting.keep, "candidates": setting.candidates}
    if setting.band:
        found |= {"band": setting.band, "exit-layer": setting.exit_layer, "codec": setting.codec}
    if setting.fuse is not None:
        found["fuse"] = setting.fuse
    return {"scorer": family} | found


def _write(output: Path, scoring: Any, found: Tuned, calibration: Calibration | None) -> None:
    from mmrr.evaluation import calibration as calibrations
    from mmrr.workspace.files import write_atomically

    values = {**_settings(found.chosen, found.family), "scorer-model": scoring.model.name}
    if scoring.model.revision:
        values["scorer-revision"] = scoring.model.revision
    if calibration:
        place = output.with_suffix(".calibration.json")
        write_atomically(place, calibrations.as_text(calibration))
        if "fuse" in values:  # sums of two rankings are no logits
            note(f"{place} is not named in {output}: the chosen setting fuses, and a calibration needs --fuse left out")
        else:
            values["calibration"] = str(place.absolute())
    # A JSON string, number or boolean is one of TOML too.
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    write_atomically(output, "\n".join(["[mmrr]", *lines]) + "\n")


def _document(found: Tuned, calibration: Calibration | None) -> dict[str, Any]:
    points = {"chosen": found.chosen, "default": found.default}
    document: dict[str, Any] = {name: dataclasses.asdict(point) for name, point in points.items()}
    document["points"] = [dataclasses.asdict(point) for point in found.points]
    document |= {"met": found.met, "first_stage": found.first_stage, "queries": found.queries}
    document["difference"] = {"value": found.difference[0], "interval": found.difference[1:]}
    if calibration:
        from mmrr.evaluation import calibration as calibrations

        before, after = calibrations.errors(calibration, found.judged[1])
        relevant = [label for _, label in found.judged[1]]
        probabilities = [calibration.probability(logit) for logit, _ in found.judged[1]]
        document["calibration"] = {
            "method": calibration.method,
            "ece_before": before,
            "ece_after": after,
            "reliability": calibrations.bins(probabilities, relevant),
        }
    return document


def _show(found: Tuned, measure: str, calibration: Calibration | None) -> None:
    rows = [_row("first stage", None, found.first_stage), _row("default", found.default), _row("chosen", found.chosen)]
    rows += [_row("", point) for point in found.points if point not in (found.default, found.chosen)]
    columns = ["", "keep", "band", "exit", "codec", "candidates", "fuse", "a page", "ms a query"]
    n_choosing, n_reporting = found.queries
    table("", [*columns, f"{measure} ({n_choosing} chose)", f"({n_reporting} report)"], rows, to_stdout=True)
    value, low, high = found.difference
    note(f"chosen less default, over the {n_reporting} other queries: {value:+.3f} ({low:+.3f} to {high:+.3f}, 95 %)")
    if not found.met:
        note("no setting within the limits keeps that share of the quality: the best one within them is chosen")
    if found.first_stage[0] >= found.chosen.quality:
        note("the first stage alone is at least as good over the queries that chose: this reranker does not help here")
    if calibration:
        from mmrr.evaluation import calibration as calibrations

        before, after = calibrations.errors(calibration, found.judged[1])
        note(f"expected calibration error over the other queries: {before:.3f}, calibrated {after:.3f}")


def _row(name: str, point: Point | None, first: tuple[float, float] | None = None) -> list[str]:
    if point is None:
        assert first
        return [name, *[""] * 8, f"{first[0]:.3f}", f"{first[1]:.3f}"]
    one = point.setting
    fusion = "" if one.fuse is None else f"{one.fuse:g}"
    cells = [name, f"{one.keep:g}", one.band, str(one.exit_layer or ""), one.codec, str(one.candidates), fusion]
    return [*cells, size(point.page_bytes), f"{point.query_ms:.0f}", f"{point.quality:.3f}", f"{point.reported:.3f}"]


def _draw(found: Tuned, measure: str, picture: Path) -> None:
    from mmrr.plots import new_figure

    if picture.suffix.lower() != ".png":
        raise MmrrError(f"--plot {picture}: expected a file that ends in .png")
    figure = new_figure(figsize=(9.0, 4.2), layout="constrained")
    for place, (label, cost) in enumerate((("bytes a page", "page_bytes"), ("milliseconds a query", "query_ms")), 1):
        panel = figure.add_subplot(1, 2, place)
        costs = [getattr(point, cost) for point in found.points]
        panel.scatter(costs, [point.reported for point in found.points], color="grey", s=14)
        for name, point, mark in (("default", found.default, "s"), ("chosen", found.chosen, "D")):
            panel.scatter(getattr(point, cost), point.reported, marker=mark, label=name)
        panel.axhline(found.first_stage[1], color="grey", linestyle="--", label="first stage")
        panel.set(xscale="log", xlabel=label, ylabel=f"{measure}, reporting queries")
        panel.grid(alpha=0.3, which="both")
    panel.legend(fontsize="small")
    figure.savefig(picture, dpi=110)
