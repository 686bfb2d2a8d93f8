"""The layout of an EDJE checkpoint, inferred from names and shapes of its tensors; loading of the tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmrr.errors import MmrrError

#: Tensors that a checkpoint may hold and inference does not load: training's heads, and copies of the vision encoder.
_UNUSED = (
    "language_model.cls.",
    "text_projection.",
    "vision_encoder.",
    "clip.",
    "language_model.bert.embeddings.position_ids",
)
_WORDS = "language_model.bert.embeddings.word_embeddings.weight"
_LAYER = re.compile(r"language_model\.bert\.encoder\.layer\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Layout:
    """The variant and all sizes of a checkpoint, inferred from the names and shapes of its tensors."""

    prefix: str  # common prefix of all tensor names
    queries: int  # m, learned queries of the adapter; 0: the Local variant, which keeps all vision tokens
    vision_width: int  # D
    width: int  # d, width of Z and of the joint encoder
    layers: int
    positions: int
    words: int  # rows of the word embedding table
    tiles: int  # rows of the learned tile embedding; 0: there is none
    names: frozenset[str]  # names of all tensors that are loaded, without the prefix


def layout(shapes: Mapping[str, Sequence[int]]) -> Layout:
    """Infer the variant and all sizes from ``{name: shape}``. The names may share any prefix.

    Raises MmrrError that names missing tensors, unknown tensors or tensors of another shape.
    """
    anchors = [name for name in shapes if name.endswith(_WORDS)]
    if len(anchors) != 1:
        raise MmrrError(f"{len(anchors)} tensors are named ...{_WORDS}; an EDJE checkpoint has one")
    prefix = anchors[0].removesuffix(_WORDS)
    found = {name.removeprefix(prefix): tuple(shape) for name, shape in shapes.items()}
    found = {name: shape for name, shape in found.items() if not name.startswith(_UNUSED)}
    local, compressed = ("vision_projection." + name in found for name in ("0.weight", "query"))
    if local == compressed:
        raise MmrrError(
            f"found {'both' if local else 'neither'} of vision_projection.query (compressed) and "
            "vision_projection.0.weight (Local); expected one of them in an EDJE checkpoint"
        )

    def size(name: str, axis: int) -> int:
        shape = found.get(name, ())
        return shape[axis] if axis < len(shape) else 0  # missing tensors are reported below

    width = size(_WORDS, 1)
    queries = 0 if local else size("vision_projection.query", 1)
    vision_width = size("vision_projection.0.weight", 1) if local else size("vision_projection.query", 2)
    layers = 1 + max((int(match[1]) for name in found if (match := _LAYER.match(name))), default=-1)
    embeddings = "language_model.bert.embeddings."
    sizes = Layout(
        prefix,
        queries,
        vision_width,
        width,
        layers,
        size(embeddings + "position_embeddings.weight", 0),
        size(_WORDS, 0),
        size("tile_embedding.weight", 0),
        frozenset(found),
    )
    expected = _joint_shapes(sizes, size("language_model.bert.encoder.layer.0.intermediate.dense.weight", 0))
    inner = size("vision_projection.0.weight" if local else "vision_projection.mlp.fc1.weight", 0)
    expected |= _adapter_shapes(sizes, inner)
    for what, names in (
        ("lacks", sorted(expected.keys() - found.keys())),
        ("has unknown tensors:", sorted(found.keys() - expected.keys())),
    ):
        if names:
            raise MmrrError(f"the EDJE checkpoint {what} {len(names)} tensors, among them: {', '.join(names[:3])}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise MmrrError(f"the EDJE checkpoint's {name} is of shape {found[name]}; expected {shape}")
    return sizes


def _linear(name: str, n_out: int, n_in: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def _norm(name: str, n: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (n,), f"{name}.bias": (n,)}


def _adapter_shapes(sizes: Layout, inner: int) -> dict[str, tuple[int, ...]]:
    own, D, d = "vision_projection.", sizes.vision_width, sizes.width
    tiles: dict[str, tuple[int, ...]] = {"tile_embedding.weight": (sizes.tiles, d)} if sizes.tiles else {}
    if not sizes.queries:
        return tiles | _linear(own + "0", inner, D) | _linear(own + "2", d, inner)
    return (
        tiles
        | {own + "query": (1, sizes.queries, D)}
        | _linear(own + "key", D, D)
        | _linear(own + "value", D, D)
        | {own + "attention.in_proj_weight": (3 * D, D), own + "attention.in_proj_bias": (3 * D,)}
        | _linear(own + "attention.out_proj", D, D)
        | _norm(own + "layernorm", D)
        | _linear(own + "mlp.fc1", inner, D)
        | _linear(own + "mlp.fc2", D, inner)
        | _linear(own + "projection", d, D)
    )


def _joint_shapes(sizes: Layout, inner: int) -> dict[str, tuple[int, ...]]:
    d, embeddings = sizes.width, "language_model.bert.embeddings."
    shapes: dict[str, tuple[int, ...]] = {
        _WORDS: (sizes.words, d),
        embeddings + "position_embeddings.weight": (sizes.positions, d),
        embeddings + "token_type_embeddings.weight": (2, d),
        **_norm(embeddings + "LayerNorm", d),
        **_linear("classification_head.0.dense", d, d),
        **_linear("classification_head.1", 1, d),
    }
    for i in range(sizes.layers):
        layer = f"language_model.bert.encoder.layer.{i}."
        for part in ("query", "key", "value"):
            shapes |= _linear(f"{layer}attention.self.{part}", d, d)
        shapes |= _linear(layer + "attention.output.dense", d, d) | _norm(layer + "attention.output.LayerNorm", d)
        shapes |= _linear(layer + "intermediate.dense", inner, d) | _linear(layer + "output.dense", d, inner)
        shapes |= _norm(layer + "output.LayerNorm", d)
    return shapes


def load(path: Path, sizes: Layout) -> dict[str, Tensor]:
    """The tensors of a layout in float32, by name without the prefix. Raises MmrrError if a file is damaged."""
    tensors: dict[str, Tensor] = {}
    for file_path in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file_path, framework="pt") as file:
                names = file.keys()
                for name in names:
                    own = name.removeprefix(sizes.prefix)
                    if own in sizes.names:
                        tensors[own] = file.get_tensor(name).float()
        except (OSError, SafetensorError) as error:
            raise MmrrError(
                f"{file_path} is no readable safetensors file ({error}); copy or download it again"
            ) from error
    return tensors
