"""Commands that look at a workspace, the machine or the settings: ``ls``, ``rm``, ``verify``, ``doctor`` ..."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from mmrr.config import Machine
from mmrr.errors import MmrrError

from . import defaults, report, report_workspace
from . import options as o
from .candidate_options import Calibration
from .context import open_context
from .terminal import check_output


def list_artifacts(
    work: o.Work = o.WORK,
    documents: Annotated[bool, typer.Option("--documents", help="List the documents of the current index.")] = False,
    json_: o.Json = False,
) -> None:
    """List what a workspace holds.

    Shows each artifact with its options, size and age. A star marks the current artifact of a stage: the one that
    other commands use. A damaged artifact is named with the command that removes it; the exit code is then 1.
    """
    with open_context(work, reading=True) as context:
        if documents:
            report_workspace.document_list(context.current("pages"), as_json=json_)
        elif not report_workspace.artifacts(context.workspace, as_json=json_):
            raise typer.Exit(1)


def remove(
    names: Annotated[
        Optional[list[str]],
        typer.Argument(metavar="STAGE/FINGERPRINT", help="Artifacts as mmrr ls shows them.", show_default=False),
    ] = None,
    work: o.Work = o.WORK,
    document: Annotated[
        Optional[list[str]],
        typer.Option(
            "--document",
            help="Take this document out of the collection and the index: its id, or the name of its file, also "
            "without folder and ending. Repeatable.",
            show_default=False,
        ),
    ] = None,
    cascade: Annotated[bool, typer.Option("--cascade", help="Also remove what was made from them.")] = False,
) -> None:
    """Remove artifacts, documents and unused data.

    Without names it removes data that no artifact uses, such as the finished work of interrupted commands. With names
    it removes artifacts and the data that only they use. With --document it takes documents out of the collection, the
    index and the page caches, and deletes their pages, vectors and caches, and the rankings that were made with them.
    """
    if document and (names or cascade):
        raise MmrrError("--document takes documents out of the collection: leave out artifacts and --cascade")
    with open_context(work) as context:
        if document:
            from mmrr.removal import remove_documents

            found = remove_documents(context, document)
            report.documents(found.collected.manifest, found.collected.changes)
            report_workspace.removal(found.removal)
            typer.echo(found.collected.manifest.path)
            return
        from mmrr.workspace import gc

        report_workspace.removal(gc.remove(context.workspace, names or [], cascade=cascade))


def verify(
    work: o.Work = o.WORK,
    rescore: Annotated[
        int,
        typer.Option("--rescore", min=0, help="Also compute this many cached scores without caches and compare them."),
    ] = 0,
    json_: o.Json = False,
    device: o.Device = o.MACHINE.device,
) -> None:
    """Check every file of a workspace.

    Names each damaged or missing file and the command that makes it again. The exit code is 1 if there is one.
    """
    with open_context(work, Machine(device), reading=True) as context:
        from mmrr import pipeline
        from mmrr.workspace.verify import verify as verify_workspace

        checked = verify_workspace(context.workspace, context.progress)
        rescored = pipeline.rescore(context, rescore) if rescore and not checked.problems else None
        report_workspace.verification(checked, rescored, as_json=json_)
        if checked.problems:
            raise typer.Exit(1)


def view(
    page: o.PageName,
    work: o.Work = o.WORK,
    output: Annotated[Path, typer.Option("--output", help="PNG file to write.")] = Path("page.png"),
    show: o.Show = False,
    from_: o.From = None,
) -> None:
    """Draw a page and its kept tokens.

    The visual tokens that pruning dropped are faded. With --show a terminal that can shows the picture.

    Example: `mmrr view report.pdf/0007 --output page.png`
    """
    with open_context(work, chosen=from_, choices=("prune",), reading=True) as context:
        from mmrr import pipeline

        check_output(output, is_picture=True)
        picture = pipeline.kept_picture(context, page)
        report.picture(picture, output)
        report.show(picture, output, in_terminal=show)


def doctor(work: o.Work = o.WORK, json_: o.Json = False) -> None:
    """Show what this machine can do.

    Prints versions, device, number format, PDF renderer, network setting and free disk space.
    """
    report_workspace.doctor(work, as_json=json_)


def models(json_: o.Json = False) -> None:
    """List model families and their options.

    Prints the checkpoints of each family and the meaning, type and default of each option.
    """
    report_workspace.models(as_json=json_)


# The names are the keys of a defaults file. The values are read from the Typer context.
# One parameter per option.
def config(
    context: typer.Context,
    work: o.Work = o.WORK,
    embedder: o.Embedder = None,
    embedder_revision: o.EmbedderRevision = None,
    text_embedder: o.TextEmbedder = None,
    text_embedder_revision: o.TextEmbedderRevision = None,
    scorer: o.Scorer = o.SCORER,
    scorer_model: o.ScorerModel = None,
    scorer_revision: o.ScorerRevision = None,
    keep: o.KeptShare = None,
    band: o.Band = None,
    codec: o.Codec = None,
    exit_layer: o.ExitLayer = None,
    fuse: o.Fuse = None,
    calibration: Calibration = None,
    first_stage: o.FirstStageOption = None,
    channels: o.Channels = None,
    language: o.LanguageOption = o.INDEX.language,
    candidates: o.Candidates = o.RETRIEVE.depth,
    renderer: o.Renderer = o.RENDERER,
    dpi: o.Dpi = o.RENDER.dpi,
    max_tokens: o.MaxTokens = o.RENDER.max_tokens,
    ocr: o.Ocr = o.RENDER.ocr,
    ocr_language: o.OcrLanguage = o.RENDER.ocr_language,
    convert: o.Convert = o.RENDER.convert,
    device: o.Device = o.MACHINE.device,
    dtype: o.Dtype = o.DTYPE,
    workers: o.Workers = o.MACHINE.workers,
    memory_budget: o.MemoryBudget = o.MEMORY_BUDGET,
    resident: o.Resident = o.RESIDENT,
    json_: o.Json = False,
) -> None:
    """Show each default and its origin.

    A value comes from a flag, else from the environment, else from the table `[mmrr]` of `mmrr.toml` in the current
    folder, else from the user's file (on Linux `~/.config/mmrr/config.toml`), else it is built in. A key of the table
    is the name of an option without the dashes, for example `scorer-model = "reader-reranker"`.
    """
    report_workspace.defaults(defaults.effective(context), as_json=json_)
