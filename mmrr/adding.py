"""Adds documents to a collection with the models that it was made with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrr.config import Model, OcrMode, Prune, PruneBy, Render
from mmrr.context import Context
from mmrr.indexing import build, check, followed
from mmrr.modeling import families
from mmrr.pipeline import Collected, Scoring, cache_pages, make_current, render_documents
from mmrr.workspace import manifests


def add_documents(context: Context, inputs: Sequence[Path], options: Render) -> Collected:
    """Step: documents -> ``pages``, ``index`` and, where there are page caches, ``precache``, all as the current ones.

    ``options`` are those of a new collection, and the language of OCR. Index and page caches become current together
    at the end. Raises MmrrError as the steps do.
    """
    plan, cached, options = followed(context), cached_as(context), rendered_as(context, options)
    found = render_documents(context, inputs, options, check=lambda: check(context, plan))
    made = build(context, found.manifest, plan)
    if cached:
        scoring, pruning = cached.scoring, None
        keep = scoring.keep
        if keep is not None and keep < 1:
            scoring, pruning = dataclasses.replace(scoring, keep=None), Prune(keep, cached.by)
        made += cache_pages(context, scoring, made[-1], pruning=pruning)
    make_current(context, *made)
    return found


def rendered_as(context: Context, options: Render) -> Render:
    """How the current pages were rendered, to render others; ``options`` if there are none."""
    pages = context.workspace.current("pages")
    if pages is None:
        return options
    config = manifests.as_json(manifests.config(pages, "pages"))
    names = {field.name for field in dataclasses.fields(Render)} - {"ocr", "ocr_language"}
    drawn = {name: value for name, value in config.items() if name in names}
    read: OcrMode = "never" if "ocr" not in config else "force" if "every page" in config["ocr"] else "auto"
    return dataclasses.replace(options, **drawn, ocr=read)


@dataclass(frozen=True)
class Cached:
    """How the current page caches were made."""

    scoring: Scoring
    dtype: str
    by: PruneBy


def cached_as(context: Context) -> Cached | None:
    """How the current page caches were made, to make those of other pages; None if there are none."""
    made = context.workspace.current("precache")
    if made is None or made.model is None:
        return None
    config = manifests.config(made, "precache")
    commit, _, _ = made.model["revision"].partition("+")
    model = Model(made.model["id"], None if commit.startswith("sha256:") else commit)
    module = families.load("scorers", config["family"])
    prepare = families.make_options(module.Prepare, config["options"])
    options = {name: str(value) for name, value in dataclasses.asdict(prepare).items()}
    pruned = context.workspace.find("prune", made.inputs["prune"]) if "prune" in made.inputs else None
    keep = manifests.content(made, "precache")["keep"] if module.SPEC.accepts_pruning else None
    by: PruneBy = manifests.config(pruned, "prune")["by"] if pruned else "attention"
    return Cached(Scoring(config["family"], model, options, keep), made.model["dtype"], by)
