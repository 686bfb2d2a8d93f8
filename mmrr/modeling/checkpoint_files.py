"""Reads and checks the files of a checkpoint before anything is allocated: config.json and the safetensors headers.

The files come from somebody else. Whatever is wrong with them is one line that names the file.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mmrr.errors import MmrrError

#: Keys of config.json, at any depth, whose value is a whole number from 1 to _MOST: sizes and counts of a network.
_COUNTS = frozenset(
    {
        "depth",
        "head_dim",
        "hidden_size",
        "in_channels",
        "intermediate_size",
        "mm_tokens_per_image",
        "num_attention_heads",
        "num_channels",
        "num_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "num_position_embeddings",
        "out_hidden_size",
        "spatial_merge_size",
        "temporal_patch_size",
        "vocab_size",
    }
)
_MOST = 10_000_000
#: Counts of layers. Each layer has tensors of its own, so there are at most as many as tensors.
_LAYERS = ("depth", "num_hidden_layers")
#: Keys whose value is a list of layer numbers, and keys of control tokens.
_LISTS = ("deepstack_visual_indexes",)
_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
#: Keys whose value is an object: the configurations of the parts of a model.
_SECTIONS = ("encoder", "decoder", "text_config", "vision_config")
#: Number formats of weights. Others, such as int8 or float8, need scales that the families do not know.
_FORMATS = ("F64", "F32", "F16", "BF16")
#: Names of the linear layer of late interaction in published checkpoints. mmrr writes the first.
PROJECTIONS = ("custom_text_proj", "embedding_proj_layer")
#: Keys of the fewest and the most pixels of an image, as older and as newer processor files write them.
_PIXEL_KEYS = (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))
#: A network may have this many times the parameters of its weights: embeddings are shared, unused parts are left out.
_SHARED, _SMALL = 8, 10_000_000


class Section(dict[str, Any]):
    """An object of config.json. A key that it lacks is an MmrrError that names the file and the key."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        super().__init__(values)
        self._where = where

    def __missing__(self, key: str) -> Any:
        raise MmrrError(f"{self._where} has no '{key}'; expected the config.json of a complete checkpoint")


def read_json(name: str, path: Path) -> dict[str, Any]:
    """A JSON object. Raises MmrrError for a file that cannot be read and for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = "its brackets are nested too deep" if isinstance(error, RecursionError) else error
        raise MmrrError(f"{name}: {path.name} is not readable JSON ({why})") from error
    if not isinstance(value, dict):
        raise MmrrError(f"{name}: {path.name} is not a JSON object")
    return value


def read_config(name: str, path: Path, shapes: Mapping[str, list[int]]) -> Section:
    """config.json with checked sizes, counts and sections. ``shapes``: those of the checkpoint's tensors.

    Raises MmrrError for a size or a count that is no whole number above 0, for more layers than tensors, and for a
    section that is no object.
    """
    return _section(read_json(name, path), f"{name}: {path.name}", len(shapes))


def _section(values: Mapping[str, Any], where: str, n_tensors: int) -> Section:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found[key] = _section(value, f"{where}: {key}", n_tensors)
        elif value is not None:
            _check_value(key, value, where, n_tensors)
            found[key] = value
        elif key not in _COUNTS:  # null is the same as no size
            found[key] = None
    return Section(found, where)


def _check_value(key: str, value: object, where: str, n_tensors: int) -> None:
    if key in _SECTIONS:
        raise MmrrError(f"{where}: {key} is {_short(value)}; expected an object")
    if key in _COUNTS and not (type(value) is int and 1 <= value <= _MOST):
        raise MmrrError(f"{where}: {key} is {_short(value)}; expected a whole number from 1 to {_MOST:,}")
    if key in _LAYERS and isinstance(value, int) and value > n_tensors:
        raise MmrrError(
            f"{where}: {key} is {value}; expected at most {n_tensors}, the number of tensors of the weights"
        )
    if key in _IDS and not (type(value) is int and 0 <= value <= _MOST):
        raise MmrrError(f"{where}: {key} is {_short(value)}; expected the number of a token")
    if key in _LISTS and not (isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)):
        raise MmrrError(f"{where}: {key} is {_short(value)}; expected a list of layer numbers")


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python does not print whole numbers of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 40 else f"{text[:30]}... ({len(text)} characters)"


def tensor_shapes(name: str, folder: Path) -> dict[str, list[int]]:
    """The shape of every tensor, from the headers of the safetensors files.

    Raises MmrrError for a damaged file, for a tensor that two files contain, for weights in a format that is not read,
    and for an index of the files that names a file that is missing or outside the folder.
    """
    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found: dict[str, list[int]] = {}
        try:
            with safe_open(path, framework="pt") as file:
                for tensor in file.keys():  # noqa: SIM118  (a safetensors file is no dict)
                    part = file.get_slice(tensor)
                    found[tensor] = list(part.get_shape())
                    if part.get_dtype() not in _FORMATS and tensor.endswith((".weight", ".bias")):
                        raise MmrrError(
                            f"{name}: {path.name}: {tensor} is in the format {part.get_dtype()}; expected one of "
                            f"{', '.join(_FORMATS)}: use weights that are not quantised"
                        )
        except (OSError, SafetensorError) as error:
            raise MmrrError(
                f"{name}: {path.name} is not a readable safetensors file ({error}); download it again"
            ) from error
        if twice := shapes.keys() & found.keys():
            raise MmrrError(
                f"{name}: {path.name} and another file of {folder} both contain {min(twice)}; keep the files of one "
                "checkpoint only"
            )
        shapes |= found
    for path in sorted(folder.glob("*.safetensors.index.json")):
        _check_index(name, path, shapes)
    return shapes


def _check_index(name: str, path: Path, shapes: Mapping[str, list[int]]) -> None:
    places = read_json(name, path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise MmrrError(f"{name}: {path.name} has no weight_map of file names; download it again")
    for file in sorted(set(places.values())):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise MmrrError(f"{name}: {path.name} names '{file[:80]}'; expected a safetensors file of this folder")
        if not (path.parent / file).is_file():
            raise MmrrError(f"{name}: {file}, which {path.name} names, is missing; download it again")
    if lacking := sorted(set(places) - shapes.keys()):
        raise MmrrError(f"{name}: {len(lacking)} tensors of {path.name} are in no file, among them {lacking[0]}")


def pixel_limits(name: str, folder: Path) -> tuple[int, int] | None:
    """Fewest and most pixels of a resized image, from the checkpoint's own processor file; None if it has none.

    The file is preprocessor_config.json, or processor_config.json of newer versions of transformers. Raises MmrrError
    for limits that are no whole numbers.
    """
    for file, key in (("preprocessor_config.json", ""), ("processor_config.json", "image_processor")):
        if not (folder / file).exists():
            continue
        whole = read_json(name, folder / file)
        values = whole.get(key) if key else whole
        if not isinstance(values, dict):
            continue
        size = values.get("size")
        size = size if isinstance(size, dict) else {}
        found = [values.get(old) or size.get(new) for old, new in _PIXEL_KEYS]
        if found == [None, None]:
            return None
        least, most = found
        if type(least) is not int or type(most) is not int or not 0 < least <= most:
            raise MmrrError(
                f"{name}: {file}: the limits of an image are {_short(least)} and {_short(most)} pixels; expected two "
                "whole numbers above 0, the fewest first"
            )
        return least, most
    return None


def expect_size(path: Path, described: int, shapes: Mapping[str, list[int]]) -> None:
    """Raise MmrrError if config.json describes far more parameters than there are weights, before memory is taken.

    ``described``: the number of parameters of the network that config.json describes.
    """
    stored = sum(_elements(shape) for shape in shapes.values())
    if described > _SHARED * stored + _SMALL:
        raise MmrrError(
            f"{path}: config.json describes a model of {described:,} parameters, and the weights have {stored:,}; "
            "expected files of one checkpoint"
        )


def projection_of(name: str) -> str | None:
    """``weight`` or ``bias`` if a tensor of this name belongs to the linear layer of late interaction, else None."""
    layer, _, kind = name.rpartition(".")
    return kind if layer.rpartition(".")[2] in PROJECTIONS and kind in ("weight", "bias") else None


def is_late_interaction(name: str) -> bool:
    """Whether a tensor of this name belongs to the linear layer of late interaction, or to a LoRA of it."""
    return any(part in PROJECTIONS for part in name.split("."))


def expect_tensors(
    where: str,
    network: str,
    expected: Mapping[str, Sequence[int]],
    found: Mapping[str, Sequence[int]],
    may_lack: Collection[str] = (),
) -> None:
    """Raise MmrrError if the tensors of a checkpoint are not those of the network that config.json describes.

    ``expected``, ``found``: shapes by name. ``network``: its name in the message, with an article. ``may_lack``: names
    that may be missing. Tensors that the network does not have are an error too: the weights may be another model's.
    """
    lacking = sorted(expected.keys() - found.keys() - set(may_lack))
    if lacking:
        raise MmrrError(f"{where} lacks {len(lacking)} tensors of {network}, among them: {', '.join(lacking[:3])}")
    if other := [name for name in sorted(expected.keys() & found.keys()) if list(expected[name]) != list(found[name])]:
        first = other[0]
        raise MmrrError(
            f"{where} has {len(other)} tensors of another shape than its config.json says, among them: {first} is "
            f"{list(found[first])}, expected {list(expected[first])}"
        )
    if unknown := sorted(found.keys() - expected.keys()):
        raise MmrrError(
            f"{where} has {len(unknown)} tensors that {network.replace('a ', 'no ', 1)} has, among them: "
            f"{', '.join(unknown[:3])}; expected the files of one checkpoint"
        )


def _elements(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


@contextlib.contextmanager
def loading(problem: str) -> Iterator[None]:
    """Turn what other libraries raise while they read a checkpoint into one line: ``problem`` and the error's own.

    ``problem`` names the files. These are somebody else's, and the libraries raise whatever their code meets, from
    KeyError to the panics of tokenizers, which are no Exception.
    """
    try:
        yield
    except (MmrrError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise MmrrError(f"{problem}: {described(error)}") from error


def described(error: BaseException) -> str:
    """The first line of an error message that says something, with the error's type where the line says little."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # The first line of an error of torch's load_state_dict is a heading.
    line = lines[1] if lines[0].startswith("Error(s) in loading") and len(lines) > 1 else lines[0]
    line = line if len(line) <= 300 else f"{line[:300]}..."
    plain = isinstance(error, OSError | ValueError | RuntimeError) or type(error) in (Exception, SafetensorError)
    return line if plain else f"{type(error).__name__}: {line}"
