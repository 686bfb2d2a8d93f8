"""Loads models of the sentence-transformers library: nothing is downloaded, and only code of the library runs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from mmrr.errors import MmrrError
from mmrr.modeling.checkpoint_files import expect_size, expect_tensors, tensor_shapes
from mmrr.modeling.checkpoints import Checkpoint

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

#: Most characters of the library's message in an error.
_MOST_CHARS = 200


def embedder(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> SentenceTransformer:
    """A ``SentenceTransformer``. Raises MmrrError if the library cannot load it, or only with code of its own."""
    _check_modules(checkpoint)
    with _loading(checkpoint):
        from sentence_transformers import SentenceTransformer  # the import takes seconds

        _expect_shapes(checkpoint)
        return SentenceTransformer(str(checkpoint.path), **_how(device, dtype)).eval()


def cross_encoder(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> CrossEncoder:
    """A ``CrossEncoder``. Raises MmrrError as ``embedder``."""
    _check_modules(checkpoint)
    with _loading(checkpoint):
        from sentence_transformers import CrossEncoder

        _expect_shapes(checkpoint)
        return CrossEncoder(str(checkpoint.path), **_how(device, dtype)).eval()


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text, without special tokens. ``tokenizer``: of transformers, or of tokenizers."""
    if not texts:
        return []
    if hasattr(tokenizer, "encode_batch"):
        return [found.ids for found in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _how(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "device": str(device),
        "trust_remote_code": False,
        "local_files_only": True,
        "model_kwargs": {"dtype": dtype, "use_safetensors": True},
    }


@contextlib.contextmanager
def _loading(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn any error of the library into one line, and hide its progress bar and its table of tensors."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    except MmrrError:
        raise
    except Exception as error:  # a damaged checkpoint raises whatever the code that reads it happens to raise
        why = " ".join(str(error).split())[:_MOST_CHARS]
        raise MmrrError(
            f"{checkpoint.id}: sentence-transformers cannot load it ({type(error).__name__}: {why}); expected a "
            "checkpoint of the library, complete and in safetensors format"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def _expect_shapes(checkpoint: Checkpoint) -> None:
    """Raise MmrrError if the tensors have other shapes than config.json describes, before memory is taken.

    The names of the network's trunk are compared: those of a head differ between tasks.
    """
    folder = checkpoint.path
    if not (folder / "config.json").exists() or not any(folder.glob("*.safetensors")):
        return  # the modules lie in folders of their own
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        empty = AutoModel.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    shapes = tensor_shapes(checkpoint.id, folder)
    expect_size(folder, empty.num_parameters(), shapes)
    prefix = f"{empty.base_model_prefix}."
    found = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
    expected = {name: list(tensor.shape) for name, tensor in empty.state_dict().items() if name in found}
    expect_tensors(checkpoint.id, "a model", expected, {name: found[name] for name in expected})


def _check_modules(checkpoint: Checkpoint) -> None:
    """Raise MmrrError if modules.json names code that is not the library's, or weights that are no safetensors."""
    path = checkpoint.path / "modules.json"
    if not path.exists():
        return
    try:
        modules = [(str(one["type"]), str(one["path"])) for one in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MmrrError(f"{checkpoint.id}: modules.json is not readable ({error}); download it again") from error
    for kind, name in modules:
        if not kind.startswith("sentence_transformers."):
            raise MmrrError(
                f"{checkpoint.id} needs code of its own ({kind}), which mmrr does not run; expected modules of "
                "sentence-transformers alone"
            )
        folder = checkpoint.path / name
        if not folder.resolve().is_relative_to(checkpoint.path.resolve()):
            raise MmrrError(f"{checkpoint.id}: modules.json names {name}; expected a folder inside the checkpoint")
        if any(folder.glob("pytorch_model*.bin")) and not any(folder.glob("*.safetensors")):
            raise MmrrError(
                f"{checkpoint.id}: no *.safetensors in {folder}; other weight formats are not read, because they can "
                "run code"
            )
