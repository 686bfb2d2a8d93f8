"""EDJE's network (arXiv 2510.06820): frozen vision tokens, the adapter that compresses them, a small joint encoder.

Written on plain tensors under the checkpoint's own names, so that gradients flow to tensors that ask for them;
transformers gives the vision encoder, its image processor and the word-piece tokenizer. It knows no files but
checkpoints, no pages and no cleaning of text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoImageProcessor, BertTokenizer, SiglipVisionConfig, SiglipVisionModel
from transformers.utils import logging as transformers_logging

from mmrr.backbones import qwen3_vl
from mmrr.errors import MmrrError

#: What a checkpoint may hold beside: training's heads and its two copies of the vision encoder, which is frozen.
_UNUSED = (
    "language_model.cls.",
    "text_projection.",
    "vision_encoder.",
    "clip.",
    "language_model.bert.embeddings.position_ids",
)
_WORDS = "language_model.bert.embeddings.word_embeddings.weight"
_LAYER = re.compile(r"language_model\.bert\.encoder\.layer\.(\d+)\.")
#: Layer norms of BERT and of SigLIP.
_BERT_EPS, _VISION_EPS = 1e-12, 1e-6
#: Heads of the joint encoder where no config.json says: MiniLM-L12-H384 and BERT-base have twelve.
_HEADS = 12


@dataclass(frozen=True, slots=True)
class Layout:
    """What a checkpoint is, told from the names and shapes of its tensors."""

    prefix: str  # before every name
    queries: int  # m, learned queries of the adapter; 0: the Local variant, which kept every vision token
    vision_width: int  # D
    width: int  # d, of Z and of the joint encoder
    layers: int
    positions: int
    words: int  # rows of the word table
    tiles: int  # rows of a learned tile embedding; 0: it has none
    names: frozenset[str]  # all that is loaded, without the prefix


def layout(shapes: Mapping[str, Sequence[int]]) -> Layout:
    """Infer the variant and all sizes from ``{name: shape}``, whatever prefix the names share.

    Raises MmrrError naming tensors that are missing, unknown or of another shape.
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
            f"{'both' if local else 'neither'} of vision_projection.query (compressed) and vision_projection.0.weight "
            "(Local) found; an EDJE checkpoint has one of them"
        )

    def size(name: str, axis: int) -> int:
        shape = found.get(name, ())
        return shape[axis] if axis < len(shape) else 0  # a missing tensor is named below

    width = size(_WORDS, 1)
    queries = 0 if local else size("vision_projection.query", 1)
    vision_width = size("vision_projection.0.weight", 1) if local else size("vision_projection.query", 2)
    layers = 1 + max((int(match[1]) for name in found if (match := _LAYER.match(name))), default=-1)
    embeddings = "language_model.bert.embeddings."
    made = Layout(
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
    expected = _joint_shapes(made, size("language_model.bert.encoder.layer.0.intermediate.dense.weight", 0))
    inner = size("vision_projection.0.weight" if local else "vision_projection.mlp.fc1.weight", 0)
    expected |= _adapter_shapes(made, inner)
    for what, names in (
        ("lacks", sorted(expected.keys() - found.keys())),
        ("has unknown tensors:", sorted(found.keys() - expected.keys())),
    ):
        if names:
            raise MmrrError(f"the EDJE checkpoint {what} {len(names)} tensors, among them: {', '.join(names[:3])}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise MmrrError(f"the EDJE checkpoint's {name} is of shape {found[name]}; expected {shape}")
    return made


def _linear(name: str, n_out: int, n_in: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def _norm(name: str, n: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (n,), f"{name}.bias": (n,)}


def _adapter_shapes(made: Layout, inner: int) -> dict[str, tuple[int, ...]]:
    own, D, d = "vision_projection.", made.vision_width, made.width
    tiles: dict[str, tuple[int, ...]] = {"tile_embedding.weight": (made.tiles, d)} if made.tiles else {}
    if not made.queries:
        return tiles | _linear(own + "0", inner, D) | _linear(own + "2", d, inner)
    return (
        tiles
        | {own + "query": (1, made.queries, D)}
        | _linear(own + "key", D, D)
        | _linear(own + "value", D, D)
        | {own + "attention.in_proj_weight": (3 * D, D), own + "attention.in_proj_bias": (3 * D,)}
        | _linear(own + "attention.out_proj", D, D)
        | _norm(own + "layernorm", D)
        | _linear(own + "mlp.fc1", inner, D)
        | _linear(own + "mlp.fc2", D, inner)
        | _linear(own + "projection", d, D)
    )


def _joint_shapes(made: Layout, inner: int) -> dict[str, tuple[int, ...]]:
    d, embeddings = made.width, "language_model.bert.embeddings."
    shapes: dict[str, tuple[int, ...]] = {
        _WORDS: (made.words, d),
        embeddings + "position_embeddings.weight": (made.positions, d),
        embeddings + "token_type_embeddings.weight": (2, d),
        **_norm(embeddings + "LayerNorm", d),
        **_linear("classification_head.0.dense", d, d),
        **_linear("classification_head.1", 1, d),
    }
    for i in range(made.layers):
        layer = f"language_model.bert.encoder.layer.{i}."
        for part in ("query", "key", "value"):
            shapes |= _linear(f"{layer}attention.self.{part}", d, d)
        shapes |= _linear(layer + "attention.output.dense", d, d) | _norm(layer + "attention.output.LayerNorm", d)
        shapes |= _linear(layer + "intermediate.dense", inner, d) | _linear(layer + "output.dense", d, inner)
        shapes |= _norm(layer + "output.LayerNorm", d)
    return shapes


def load(path: Path, made: Layout) -> dict[str, Tensor]:
    """The tensors of a layout in float32, by their names without the prefix. Raises MmrrError if a file is damaged."""
    tensors: dict[str, Tensor] = {}
    for file_path in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file_path, framework="pt") as file:
                names = file.keys()
                for name in names:
                    own = name.removeprefix(made.prefix)
                    if own in made.names:
                        tensors[own] = file.get_tensor(name).float()
        except (OSError, SafetensorError) as error:
            raise MmrrError(f"{file_path} is no readable safetensors file ({error})") from error
    return tensors


def joint_heads(config: Mapping[str, Any]) -> int:
    """Attention heads of the joint encoder: config.json's, if it says, else twelve."""
    for part in (config, *(config.get(name) for name in ("language_config", "text_config", "bert_config"))):
        if isinstance(part, Mapping) and "num_attention_heads" in part:
            return int(part["num_attention_heads"])
    return _HEADS


def adapter_heads(config: Mapping[str, Any], vision_heads: int) -> int:
    """Attention heads of the adapter: config.json's ``adapter_attention_heads``, if it says, else the vision's."""
    return int(config.get("adapter_attention_heads", vision_heads))


class Adapter:
    """Vision tokens to Z: learned queries attend to them, or (Local) each goes through an MLP of its own."""

    def __init__(
        self, weights: Mapping[str, Tensor], made: Layout, heads: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        """``weights`` in float32; ``heads``: see ``adapter_heads``.

        Keys and values each pass two linear maps with nothing between, so they are folded into one, in float64; the
        queries are constants, so they are projected here.
        """
        if made.vision_width % heads:
            raise MmrrError(f"an adapter of width {made.vision_width} cannot have {heads} attention heads")
        self.heads, self.local = heads, not made.queries
        own = {
            name.removeprefix("vision_projection."): tensor
            for name, tensor in weights.items()
            if name.startswith("vision_projection.")
        }
        if not self.local:
            in_query, in_key, in_value = own.pop("attention.in_proj_weight").double().chunk(3)
            to_query, to_key, to_value = own.pop("attention.in_proj_bias").double().chunk(3)
            query = own.pop("query")[0].double() @ in_query.T + to_query
            for part, weight, bias in (("key", in_key, to_key), ("value", in_value, to_value)):
                own[f"{part}.bias"] = weight @ own[f"{part}.bias"].double() + bias
                own[f"{part}.weight"] = weight @ own[f"{part}.weight"].double()
            own["query"] = query.unflatten(-1, (heads, -1)).transpose(0, 1)  # (H, m, D/H)
        self.weights = {name: tensor.to(device, dtype) for name, tensor in own.items()}

    def __call__(self, x: Tensor) -> Tensor:
        """(n, T, D) -> Z (n, m, d); of the Local variant (n, T, d)."""
        if self.local:
            return self._linear("2", F.gelu(self._linear("0", x)))
        key, value = (
            self._linear(part, x).unflatten(-1, (self.heads, -1)).transpose(-2, -3) for part in ("key", "value")
        )
        query = self.weights["query"].expand(len(x), -1, -1, -1)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(-2, -3).flatten(-2)
        hidden = self._linear("attention.out_proj", attended)
        normed = F.layer_norm(
            hidden, hidden.shape[-1:], self.weights["layernorm.weight"], self.weights["layernorm.bias"], _VISION_EPS
        )
        hidden = hidden + self._linear("mlp.fc2", F.gelu(self._linear("mlp.fc1", normed)))
        return self._linear("projection", hidden)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])


class JointEncoder:
    """BERT over ``[CLS] text [SEP] z [SEP]``: the page's vectors stand where word embeddings would, behind the text."""

    def __init__(
        self, weights: Mapping[str, Tensor], made: Layout, heads: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Raises MmrrError if the width cannot be cut into ``heads``."""
        if made.width % heads:
            raise MmrrError(f"a joint encoder of width {made.width} cannot have {heads} attention heads")
        self.heads, self.layers = heads, made.layers
        self.weights = {
            name.removeprefix("language_model.bert."): tensor.to(device, dtype)
            for name, tensor in weights.items()
            if name.startswith("language_model.bert.")
        }
        # The head's two products are tiny: taken in float32 whatever the encoder's format.
        self.head = {
            name.removeprefix("classification_head."): tensor.to(device)
            for name, tensor in weights.items()
            if name.startswith("classification_head.")
        }

    def score(self, first: Sequence[int], last: int, z: Tensor) -> Tensor:
        """Logits (N,) float32 of one text against N pages; no sequence is padded, because all are of one length.

        ``first``: token ids of ``[CLS] text [SEP]``; ``last``: of the final ``[SEP]``; ``z`` (N, V, d).
        """
        return self.logits(self.states(first, last, z, 1)[:, 0])

    def states(self, first: Sequence[int], last: int, z: Tensor, rows: int) -> Tensor:
        """The last layer's states of the first ``rows`` tokens, (N, rows, d); of them alone it asks."""
        x = self.embed(first, last, z)
        for index in range(self.layers):
            x = self.layer(index, x[:, :rows] if index == self.layers - 1 else x, x)
        return x

    def logits(self, state: Tensor) -> Tensor:
        """The classification head over states of ``[CLS]`` (N, d): (N,) float32."""
        pooled = torch.tanh(F.linear(state.float(), self.head["0.dense.weight"], self.head["0.dense.bias"]))
        return F.linear(pooled, self.head["1.weight"], self.head["1.bias"])[:, 0]

    def embed(self, first: Sequence[int], last: int, z: Tensor) -> Tensor:
        """What enters the first layer, (N, len(first) + V + 1, d). The text's rows are computed once."""
        n, n_first, n_page = len(z), len(first), z.shape[1]
        words, positions, types = (
            self.weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
        )
        rows = words[[*first, last]]  # at once: each look-up's gradient is as large as the table
        text = self._norm("embeddings", rows[:-1] + positions[:n_first] + types[0])
        stop = n_first + n_page
        page = self._norm("embeddings", z.to(words) + positions[n_first:stop] + types[1])
        end = self._norm("embeddings", rows[-1] + positions[stop] + types[1])
        return torch.cat([text.expand(n, -1, -1), page, end.expand(n, 1, -1)], dim=1)

    def layer(self, index: int, rows: Tensor, x: Tensor) -> Tensor:
        """One layer for ``rows`` of ``x``, which see all of ``x``."""
        own = f"encoder.layer.{index}."
        query, key, value = (self.heads_of(index, *of) for of in (("query", rows), ("key", x), ("value", x)))
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = self._linear(own + "attention.output.dense", attended.transpose(1, 2).flatten(-2))
        rows = self._norm(own + "attention.output", rows + attended)
        inner = F.gelu(self._linear(own + "intermediate.dense", rows))
        return self._norm(own + "output", rows + self._linear(own + "output.dense", inner))

    def heads_of(self, index: int, part: str, x: Tensor) -> Tensor:
        """A layer's ``query``, ``key`` or ``value`` of states (N, n, d): (N, H, n, d / H)."""
        projected = self._linear(f"encoder.layer.{index}.attention.self.{part}", x)
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = (self.weights[f"{name}.LayerNorm.{part}"] for part in ("weight", "bias"))
        return F.layer_norm(x, x.shape[-1:], weight, bias, _BERT_EPS)


class WordPieces:
    """A checkpoint's uncased word-piece tokenizer."""

    def __init__(self, path: Path, words: int) -> None:
        """``words``: rows of the word table. Raises MmrrError if ``path`` has no tokenizer that fits it."""
        # transformers makes an empty tokenizer up where there is none.
        if not any((path / name).exists() for name in ("tokenizer.json", "vocab.txt")):
            raise MmrrError(
                f"{path} has neither tokenizer.json nor vocab.txt; name a checkpoint that has, such as "
                "-o language=microsoft/MiniLM-L12-H384-uncased"
            )
        try:
            tokenizer = BertTokenizer.from_pretrained(path, local_files_only=True)
            backend = tokenizer.backend_tokenizer
            # Without added tokens: text can spell none.
            plain = json.dumps({**json.loads(backend.to_str()), "added_tokens": [], "post_processor": None})
            self._plain = type(backend).from_str(plain)
        except Exception as error:  # the tokenizers library raises plain Exception for a damaged file
            raise MmrrError(f"{path}: the tokenizer does not load: {error}") from error
        self.cls, self.sep = (int(tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]"))
        self.mask: int | None = self._plain.token_to_id("[MASK]")  # training alone asks for it
        if self._plain.get_vocab_size() > words or {self.cls, self.sep} & {tokenizer.unk_token_id, None}:
            raise MmrrError(
                f"{path}: a tokenizer of {self._plain.get_vocab_size()} pieces does not fit a table of {words} words "
                "with [CLS] and [SEP] among them"
            )

    def encode(self, text: str) -> list[int]:
        """Ids of the pieces of ``text`` alone."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)


def vision_config(config: Mapping[str, Any]) -> SiglipVisionConfig:
    """The vision part of a SigLIP checkpoint's config.json. Its pooling head is not wanted here."""
    values = dict(config.get("vision_config") or (config if config.get("model_type") != "siglip" else {}))
    return SiglipVisionConfig(**{**values, "vision_use_head": False})


def reads_any_size(config: Mapping[str, Any]) -> bool:
    """Whether a vision checkpoint reads pages as they are rendered, as Qwen3-VL does, or squeezed to a square."""
    return config.get("model_type") == "qwen3_vl"


def vision_tokens(config: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens an image and their width D, from a vision checkpoint's config.json; 0 tokens: it depends on the image."""
    if reads_any_size(config):
        return 0, int(config["vision_config"]["out_hidden_size"])
    vision = vision_config(config)
    return (_side(vision.image_size) // _side(vision.patch_size)) ** 2, int(vision.hidden_size)


def vision_heads(config: Mapping[str, Any]) -> int:
    """Attention heads of a vision checkpoint's layers, from its config.json."""
    if reads_any_size(config):
        return int(config["vision_config"]["num_heads"])
    return int(vision_config(config).num_attention_heads)


def _side(size: Any) -> int:
    if not isinstance(size, int):
        raise MmrrError(f"the vision encoder's config.json gives a size of {size}; expected the side of a square")
    return size


class Vision:
    """A frozen SigLIP vision encoder of fixed resolution, with its own image processor."""

    def __init__(self, path: Path, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        """Raises MmrrError if weights are missing or the image processor does not fit."""
        made = vision_config(config)
        self.heads = vision_heads(config)
        self.side = _side(made.image_size)
        try:
            with _quiet():  # it would list the text tower, which is left out on purpose
                model, report = SiglipVisionModel.from_pretrained(
                    path,
                    config=made,
                    dtype=dtype,
                    attn_implementation="sdpa",
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                )
            self.processor = AutoImageProcessor.from_pretrained(
                path, local_files_only=True, trust_remote_code=False, backend="pil"
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise MmrrError(f"{path} does not load as a SigLIP vision encoder: {str(error).splitlines()[0]}") from error
        if lacking := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
            raise MmrrError(f"{path} lacks {len(lacking)} tensors of a SigLIP vision encoder, among them: {lacking[0]}")
        self.model = model.to(device).eval().requires_grad_(False)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """(n, 3, S, S): each image squeezed to the encoder's square, as its own preprocessor_config.json says."""
        pixels: Tensor = self.processor(images=[image.convert("RGB") for image in images], return_tensors="pt")[
            "pixel_values"
        ]
        if pixels.shape[-2:] != (self.side, self.side):
            found = " x ".join(map(str, pixels.shape[-2:]))
            raise MmrrError(f"the image processor makes {found} pixels; the vision encoder reads {self.side} squared")
        return pixels

    @torch.inference_mode()
    def tokens(self, images: Sequence[Image.Image]) -> Tensor:
        """(n, T, D) behind the final norm, row by row of the image."""
        pixels = self.pixels(images).to(self.model.device, self.model.dtype)
        hidden: Tensor = self.model(pixel_values=pixels).last_hidden_state
        return hidden


class PageVision:
    """The frozen vision tower of a Qwen3-VL: a page as rendered, a token for each 32 x 32 pixels.

    The tokens are what the tower gives the language model, without DeepStack's.
    """

    def __init__(
        self, path: Path, config: Mapping[str, Any], max_tokens: int | None, device: torch.device, dtype: torch.dtype
    ) -> None:
        """``max_tokens`` an image, a larger one is made smaller; None: as many as Qwen3-VL takes.

        Raises MmrrError if the checkpoint does not load.
        """
        self.backbone = qwen3_vl.Backbone(path, None, device, dtype, needs_head=False)
        self.heads = vision_heads(config)
        self.max_tokens = max_tokens

    def tokens(self, images: Sequence[Image.Image]) -> list[Tensor]:
        """(T, D) of each image, row by row."""
        return [visual.tokens for visual in self.backbone.vision(images, self.max_tokens)]


@contextmanager
def _quiet() -> Iterator[None]:
    before = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
