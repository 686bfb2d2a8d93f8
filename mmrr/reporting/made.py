"""How a run was made: its artifacts with models and options, its bytes a page and its milliseconds a query."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mmrr.evaluation.stored_runs import NamedRun, query_ms
from mmrr.workspace import manifests
from mmrr.workspace.files import digest
from mmrr.workspace.store import STAGES, Manifest, Workspace

#: Longest value of an option that is shown. Prompts are longer.
_MOST_CHARS = 200
_COUNTED = ("pages", "queries", "candidates")


@dataclass(frozen=True)
class Step:
    """An artifact that a run was made from."""

    stage: str
    fingerprint: str
    model: str  # id, revision and number format; "" without a model
    settings: list[tuple[str, str]]
    counts: str
    created: str  # UTC, to the minute


@dataclass(frozen=True)
class RunInfo:
    """A run in the report."""

    label: str
    what: str  # in a few words
    steps: list[Step]  # the last first; empty for a run made elsewhere
    origin: str  # the artifact, or the hash of the run
    file: str  # the name of the file; "" for an artifact
    page_bytes: int | None  # of a page's cache
    index_bytes: float | None  # of the index, a page
    query_ms: float | None
    no_bytes: str  # why ``page_bytes`` is None
    no_ms: str  # why ``query_ms`` is None


def run_info(workspace: Workspace, one: NamedRun) -> RunInfo:
    """What the workspace records of a run."""
    file = one.path.name if one.path else ""
    if one.made is None:
        unknown = "a run made elsewhere: not recorded"
        run = f"sha256 of the run {digest(one.run)[:12]}"
        return RunInfo(one.label, "made elsewhere", [], run, file, None, None, None, unknown, unknown)
    chain = _chain(workspace, one.made)
    by_stage = {step.stage: step for step in chain}
    bytes_, no_bytes, ms, no_ms = _costs(workspace, one.made, by_stage)
    index = by_stage.get("index")
    per_page = index.bytes / index.content["pages"] if index and index.content.get("pages") else None
    origin = f"{one.made.stage}/{one.made.fingerprint}"
    steps = [_step(step) for step in chain]
    return RunInfo(one.label, _what(one.made), steps, origin, file, bytes_, per_page, ms, no_bytes, no_ms)


def _chain(workspace: Workspace, made: Manifest) -> list[Manifest]:
    """The artifact and those it was made from, the last stage first. An artifact that was removed is left out."""
    found = {made.stage: made}
    waiting = [made]
    while waiting:
        for stage, fingerprint in waiting.pop().inputs.items():
            if stage in STAGES and stage not in found and (step := workspace.find(stage, fingerprint)):
                found[stage] = step
                waiting.append(step)
    return sorted(found.values(), key=lambda step: -STAGES.index(step.stage))


def _costs(
    workspace: Workspace, made: Manifest, by_stage: dict[str, Manifest]
) -> tuple[int | None, str, float | None, str]:
    if made.stage == "retrieve":
        return None, "a first stage keeps no page caches", None, "the time of a single query is not recorded"
    ms = query_ms(workspace, made)
    no_ms = "" if ms is not None else "no query was scored"
    if "dense" in manifests.config(made, "rerank"):
        return None, "a dense forward reads no caches", ms, no_ms
    cached = by_stage.get("precache")
    if cached is None:
        return None, "the page caches were removed, or held single candidates", ms, no_ms
    return manifests.content(cached, "precache")["page_bytes"], "", ms, no_ms


def _what(made: Manifest) -> str:
    if made.stage == "rerank":
        config = manifests.config(made, "rerank")
        model = f" ({made.model['id']})" if made.model else ""
        fused = f", fused {config['blend']:g}" if "blend" in config else ""
        return f"reranked by {config['family']}{model}{fused}"
    first = manifests.config(made, "retrieve")
    if first["first_stage"] == "run":
        return "candidates of another system"
    channels = [f"{weight:g} {name}" for name, weight in first.get("channels", {}).items()]
    return f"first stage: {' + '.join(channels) or first['first_stage']}"


def _step(made: Manifest) -> Step:
    model = made.model
    named = f"{model['id']}, revision {model['revision'][:19]}, {model['dtype']}" if model else ""
    counts = ", ".join(f"{made.content[name]:,} {name}" for name in _COUNTED if name in made.content)
    settings = list(_flat("", {key: value for key, value in made.config.items() if key != "wording"}))
    created = str(made.provenance.get("created", ""))[:16].replace("T", " ")
    return Step(made.stage, made.fingerprint, named, settings, counts, created)


def _flat(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    """Nested options as pairs of a dotted name and a text."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), one)
        return
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    yield prefix, text if len(text) <= _MOST_CHARS else text[:_MOST_CHARS] + "..."
