"""LoRA on the language model of a loaded backbone, saved in PEFT's format. Knows linears and files, not losses."""

from __future__ import annotations

import math
import shutil
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from mmrr.backbones.qwen3_vl import Backbone
from mmrr.errors import MmrrError
from mmrr.modeling.checkpoints import Checkpoint, resolve
from mmrr.training.distributed import ProcessGroup
from mmrr.training.loop import Losses, MakeBatch, Records, RunFolder, Schedule, Tell, Training, train
from mmrr.workspace.files import HashCache

#: Every linear of a decoder layer. The layers of the vision tower have another prefix.
_LINEARS = r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


class LoraSettings(Protocol):
    """What a LoRA run reads of its config."""

    @property
    def steps(self) -> int:
        """Optimizer steps; 0: as many as the epochs take."""

    @property
    def epochs(self) -> float: ...

    @property
    def evaluate_every(self) -> int: ...

    @property
    def workers(self) -> int: ...

    @property
    def accumulate(self) -> int: ...

    def schedule(self, steps: int) -> Schedule: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRun:
    """A training of LoRA weights: the model with its adapter, the batches and the measurement."""

    model: nn.Module
    adapted: PeftModel
    dtype: torch.dtype  # of the base weights
    make_batch: MakeBatch
    losses: Callable[[Any], Losses]  # Any: the batch that ``make_batch`` makes
    examples: int  # in an epoch
    examples_a_batch: int
    evaluate: Callable[[], dict[str, float]] | None = None


def find_base(name: str, revision: str, hashes: HashCache) -> Checkpoint:
    """The checkpoint to adapt. Raises MmrrError for an adapter: adapter_config.json can only name a base model."""
    checkpoint = resolve(name, revision or None, hashes)
    if checkpoint.adapter:
        raise MmrrError(
            f"{name} is a LoRA adapter; merge it into its base model first: mmrr merge {name} --output DIR, then train "
            "on DIR"
        )
    return checkpoint


def adapt(backbone: Backbone, checkpoint: Checkpoint, rank: int, alpha: int, layers: int, seed: int) -> PeftModel:
    """Add LoRA to the linears of the first ``layers`` of the language model; all other weights are frozen.

    The modules of ``backbone`` are replaced in place, so it computes with the adapter from now on.
    """
    numbers = "|".join(map(str, range(layers)))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,  # no randomness in a step, so that a resumed run repeats itself
        target_modules=rf".*\.language_model\.layers\.({numbers})\.{_LINEARS}",
        base_model_name_or_path=checkpoint.id,
        revision=None if checkpoint.revision.startswith("sha256:") else checkpoint.revision,
    )
    torch.manual_seed(seed)
    with warnings.catch_warnings(action="ignore"):  # peft uses a deprecated function of transformers
        adapted = get_peft_model(backbone.model, config)
    # peft has replaced the base's name by the folder that the weights were read from. In the cache of the Hub this
    # folder is a snapshot of this machine.
    config.base_model_name_or_path = checkpoint.id
    adapted.eval()
    return adapted


def count(model: nn.Module) -> tuple[int, int]:
    """The number of trained parameters, and of all parameters."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def train_adapter(
    settings: LoraSettings, run: LoraRun, group: ProcessGroup, folder: Path, adapter: Path, tell: Tell
) -> Records:
    """Train, yield the log's records, and write the adapter to the folder ``adapter``."""
    trained, every = count(run.adapted)
    a_step = run.examples_a_batch * settings.accumulate * group.size
    steps = settings.steps or max(1, math.ceil(settings.epochs * (run.examples / a_step)))
    number_format = str(run.dtype).removeprefix("torch.")
    tell(
        f"{trained / 1e6:.1f} of {every / 1e6:.1f} million weights, {steps} steps on {group.describe()} in "
        f"{number_format}"
    )
    training = Training(
        model=run.model,
        schedule=settings.schedule(steps),
        make_batch=run.make_batch,
        losses=run.losses,
        evaluate=run.evaluate,
        evaluate_every=settings.evaluate_every,
        workers=settings.workers,
        accumulate=settings.accumulate,
        autocast=torch.bfloat16 if run.dtype == torch.bfloat16 else None,
        log_every=1,
    )
    yield from train(RunFolder(folder, trained_only=True), training, group)
    if group.is_main:
        save(run.adapted, adapter)
    group.close()


def save(adapted: PeftModel, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors. A failure leaves no half-written folder."""
    scratch = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        # save_embedding_layers=False: peft would ask the Hub whether the vocabulary has grown.
        adapted.save_pretrained(str(scratch), save_embedding_layers=False)
        (scratch / "README.md").unlink(missing_ok=True)  # an empty template
        if folder.exists():
            shutil.rmtree(folder)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
