"""``mmrr merge``: a LoRA adapter into its base model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from . import options as o
from .terminal import emit, note


def merge(
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="RUN_DIR/adapter of a training, or a Hub id.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", help="New folder for the checkpoint.", show_default=False)],
    revision: Annotated[
        Optional[str], typer.Option("--revision", help="Commit, branch or tag of the adapter on the Hub.")
    ] = None,
    dtype: Annotated[
        o.DtypeName, typer.Option("--dtype", help="Number format of the checkpoint. auto: that of the base model.")
    ] = "auto",
    json_: o.Json = False,
) -> None:
    """Merge a LoRA adapter into its base model.

    The result is a whole checkpoint with the base's files: config, tokenizer, processor, and the same shards with the
    merged weights. --scorer-model, --embedder and the key `model` of a training take it. A second training on top of
    a first one, as ZipRerank's two stages, starts from it.
    """
    from mmrr.training.merge import merge as merge_adapter

    merged = merge_adapter(adapter, output, revision, dtype)
    if json_:
        emit(
            {
                "output": str(merged.output),
                "base": merged.base,
                "dtype": merged.dtype,
                "tensors_changed": merged.changed,
                "bytes": merged.bytes,
            }
        )
        return
    note(f"{merged.changed} tensors of {merged.base} changed, {merged.bytes / 1e9:.2f} GB in {merged.dtype}")
    typer.echo(merged.output)
