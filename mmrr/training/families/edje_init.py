"""An EDJE to train: network, word pieces, checkpoints. Its forward is the scorer's own, over the trained tensors."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import xxhash
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM
from transformers.models.bert.modeling_bert import BertPooler

from mmrr.backbones import edje as backbone
from mmrr.errors import MmrrError
from mmrr.modeling.checkpoints import Checkpoint
from mmrr.scorers import edje as scorer
from mmrr.training.data.cell_targets import fold
from mmrr.training.loop import mixed
from mmrr.training.synthetic.sources import Document
from mmrr.workspace.tensor_files import save_tensors

#: Called with (number of the text, numbers of the pages, layer, input of the layer (P, n, d)).
Watch = Callable[[int, Sequence[int], int, Tensor], None]

#: The tensor of the word vectors.
WORDS = "language_model.bert.embeddings.word_embeddings.weight"
ALPHABET = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
#: Hash buckets for the letter bigrams and trigrams of word pieces.
N_GRAMS = 4096
#: Scale of the letter vectors. With larger ones, masked words are predicted at chance.
SMALL = 0.05


class Compressed(nn.Module):
    """The adapter's tensors under the paper's names. The backbone computes its forward."""

    def __init__(self, tokens: int, width: int, inner: int, out: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, tokens, width))
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.attention = nn.MultiheadAttention(width, 1)  # the number of heads changes no tensor
        self.layernorm = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})
        self.projection = nn.Linear(width, out)


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a network's tensors."""

    tokens: int
    vision_width: int
    adapter_heads: int
    adapter_mlp: int
    layers: int
    hidden: int
    heads: int
    mlp: int
    words: int  # word pieces
    positions: int

    def config(self) -> dict[str, Any]:
        """The sizes that the tensors' shapes do not tell, for config.json."""
        return {"num_attention_heads": self.heads, "adapter_attention_heads": self.adapter_heads}


class Network(nn.Module):
    """EDJE in training: the tensors of a checkpoint under their names, with the scorer's forward."""

    def __init__(self, sizes: Sizes) -> None:
        """Random weights. Raises MmrrError if a width is not a multiple of its number of heads."""
        super().__init__()
        self.sizes, width, inner = sizes, sizes.vision_width, sizes.adapter_mlp
        if sizes.hidden % sizes.heads:
            raise MmrrError(
                f"hidden = {sizes.hidden} cannot have heads = {sizes.heads}; expected a divisor of {sizes.hidden}"
            )
        if sizes.tokens and width % sizes.adapter_heads:
            raise MmrrError(
                f"an adapter of the vision encoder's width {width} cannot have adapter_heads = {sizes.adapter_heads}; "
                f"expected a divisor of {width}"
            )
        config = BertConfig(
            vocab_size=sizes.words,
            hidden_size=sizes.hidden,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            intermediate_size=sizes.mlp,
            max_position_embeddings=sizes.positions,
        )
        self.vision_projection = (
            Compressed(sizes.tokens, width, inner, sizes.hidden)
            if sizes.tokens
            else nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, sizes.hidden))
        )
        self.language_model = BertForMaskedLM(config)
        self.classification_head = nn.Sequential(
            BertPooler(config),  # type: ignore[no-untyped-call]
            nn.Linear(sizes.hidden, 1),
        )
        self.letters: Letters | None = None
        self.layout = backbone.layout({name: tuple(tensor.shape) for name, tensor in self.tensors().items()})

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.language_model.device

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint: all but the head of masked language modelling."""
        found: dict[str, Tensor] = {
            name: tensor
            for name, tensor in self.named_parameters()
            if ".cls." not in name and not name.startswith("letters.")
        }
        if self.letters:
            found[WORDS] = self.letters(found[WORDS])
        return found

    def parts(self) -> tuple[backbone.Adapter, backbone.JointEncoder]:
        """Adapter and joint encoder over the current weights, with gradients."""
        tensors, sizes = self.tensors(), self.sizes
        return (
            backbone.Adapter(tensors, self.layout, sizes.adapter_heads, self.device, torch.float32),
            backbone.JointEncoder(tensors, self.layout, sizes.heads, self.device, torch.float32),
        )

    def check(self, pages: Sequence[Tensor], texts: Sequence[Sequence[int]]) -> None:
        """Raises MmrrError if the longest text and page have more tokens than the network has positions."""
        longest = max(map(len, texts)) + 1 + (self.sizes.tokens or max(map(len, pages)))
        if longest > self.sizes.positions:
            raise MmrrError(
                f"a text and a page have {longest} tokens, which do not fit {self.sizes.positions} positions; "
                "raise max_tokens"
            )

    def scores(self, pages: Sequence[Tensor], texts: Sequence[Sequence[int]], last: int) -> Tensor:
        """Logits (Q, P) of texts (ids of ``[CLS] text [SEP]``) for pages (T, D); ``last``: id of the last ``[SEP]``."""
        return self.against(self.parts(), pages, texts, last)[0]

    def against(
        self,
        parts: tuple[backbone.Adapter, backbone.JointEncoder],
        pages: Sequence[Tensor],
        texts: Sequence[Sequence[int]],
        last: int,
        watch: Watch | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """``scores`` with given ``parts``, and each page's Z (m, d). ``watch`` gets the input of each layer."""
        adapter, encoder = parts
        self.check(pages, texts)
        z = [adapter(page[None].float())[0].float() for page in pages]
        states = torch.stack([_first_states(encoder, n, texts[n], last, z, watch) for n in range(len(texts))])
        with mixed(self.device, None):  # the head computes in float32, as in the scorer
            return encoder.logits(states.flatten(0, 1).float()).view(states.shape[:2]), z


def _first_states(
    encoder: backbone.JointEncoder,
    number: int,
    text: Sequence[int],
    last: int,
    z: Sequence[Tensor],
    watch: Watch | None,
) -> Tensor:
    """States (P, d) of ``[CLS]`` of one text for each page; pages of equal length share a batch, as in the scorer."""
    every = list(range(len(z)))
    groups = [every] if len({len(page) for page in z}) == 1 else [[page] for page in every]
    states = []
    for pages in groups:
        x = encoder.embed(text, last, torch.stack([z[page] for page in pages]))
        for index in range(encoder.layers):
            if watch:
                watch(number, pages, index, x)
            x = encoder.layer(index, x[:, :1] if index == encoder.layers - 1 else x, x)
        states.append(x[:, 0])
    return torch.cat(states)


class Letters(nn.Module):
    """Vectors of word pieces: each piece's own vector plus the vectors of its letter bigrams and trigrams.

    A rare piece thereby learns from all pieces with the same letters. A checkpoint holds the sums.
    """

    numbers: Tensor
    letters: Tensor
    offsets: Tensor

    def __init__(self, pieces: Sequence[str], table: Tensor) -> None:
        """``table`` (N_GRAMS, d): the initial letter vectors."""
        super().__init__()
        self.table = nn.Parameter(table)
        lettered = [(number, grams(piece)) for number, piece in enumerate(pieces) if piece not in SPECIALS]
        lettered = [(number, letters) for number, letters in lettered if letters]
        values = {
            "numbers": [number for number, _ in lettered],
            "letters": [letter for _, letters in lettered for letter in letters],
            "offsets": [0, *itertools.accumulate(len(letters) for _, letters in lettered)][:-1],
        }
        for name, value in values.items():
            self.register_buffer(name, torch.tensor(value), persistent=False)

    def forward(self, own: Tensor) -> Tensor:
        """The vectors (words, d) of all pieces; ``own``: the part of each without its letters."""
        sums = F.embedding_bag(self.letters, self.table, self.offsets, mode="sum")
        return own.index_add(0, self.numbers, F.layer_norm(sums, sums.shape[1:]) * SMALL)


def grams(piece: str) -> list[int]:
    """Hash buckets of a word piece's letter bigrams and trigrams; the start of a word counts as a letter."""
    letters = fold(piece.removeprefix("##"))
    if not letters:
        return []
    marked = letters if piece.startswith("##") else f"^{letters}"
    found = {marked[i : i + n] for n in (2, 3) for i in range(len(marked) - n + 1)} or {marked}
    return sorted({xxhash.xxh32_intdigest(gram.encode()) % N_GRAMS for gram in found})


def load(checkpoint: Checkpoint, vision: dict[str, Any], words: Path) -> tuple[Network, backbone.WordPieces, bool]:
    """A network with a checkpoint's weights, the word pieces of the folder ``words``, and whether it reads punctuation.

    ``vision``: the config.json of the vision encoder. Raises MmrrError for tensors that are not EDJE's, for another
    width of the vision encoder, and for a tile embedding.
    """
    config = checkpoint.config()
    made, (_, vision_width) = backbone.layout(config["tensors"]), backbone.vision_tokens(vision)
    if made.vision_width != vision_width:
        raise MmrrError(
            f"{checkpoint.id} reads vision tokens of width {made.vision_width}; those of `vision` have {vision_width}"
        )
    if made.tiles:
        raise MmrrError(f"{checkpoint.id} has a tile embedding, which cannot be trained; expected a checkpoint without")
    own = backbone.load(checkpoint.path, made)
    inner = "vision_projection.mlp.fc1.weight" if made.queries else "vision_projection.0.weight"
    sizes = Sizes(
        tokens=made.queries,
        vision_width=vision_width,
        adapter_heads=backbone.adapter_heads(config, backbone.vision_heads(vision)),
        adapter_mlp=len(own[inner]),
        layers=made.layers,
        hidden=made.width,
        heads=backbone.joint_heads(config),
        mlp=len(own["language_model.bert.encoder.layer.0.intermediate.dense.weight"]),
        words=made.words,
        positions=made.positions,
    )
    torch.manual_seed(0)  # for the head of masked language modelling, which no checkpoint holds
    network = Network(sizes)
    network.load_state_dict(own, strict=False)
    return network, backbone.WordPieces(words, made.words), bool(config.get("punctuation"))


def save(
    network: Network, words: Path, punctuation: bool, path: Path, vision: str = "", dtype: torch.dtype = torch.float16
) -> None:
    """Write a checkpoint that the scorer loads: weights under the paper's names, config.json, the word pieces.

    ``words``: the folder of the word pieces. ``vision``: the id of the vision encoder, for config.json. Raises
    MmrrError for weights that ``dtype`` cannot hold.
    """
    path.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in network.tensors().items()}
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise MmrrError(f"the weights overflow {dtype}; train with a lower lr")
    values = {"model_type": "edje", **network.sizes.config(), "punctuation": punctuation}
    if vision:
        values["vision"] = vision
    (path / "config.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        if (words / name).exists() and words != path:
            (path / name).write_bytes((words / name).read_bytes())
    save_tensors(tensors, path / "model.safetensors")


def learn_pieces(documents: Sequence[Document], n: int, *, punctuation: bool) -> list[str]:
    """At most ``n`` word pieces, learned from the documents' texts and questions, cleaned as in the scorer.

    They include the most frequent letters of the texts and all of a-z and 0-9, at the start of a word and inside.
    """

    def texts() -> Iterator[str]:
        for one in documents:
            yield one.title
            for block in one.blocks:
                yield block.text
                yield from (cell for row in block.rows for cell in row)
            yield from (question.text for question in one.questions)

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    corpus = [normalizer.normalize_str(scorer.canonical(text, punctuation=punctuation)) for text in texts() if text]
    counts = Counter(letter for text in corpus for letter in text if not letter.isspace())
    common = sorted(counts, key=lambda letter: (-counts[letter], letter))[: max(64, n // 16)]
    letters = sorted(ALPHABET | set(common))
    # Listed first, they have the same ids in every training: ids break ties between equal counts.
    first = [*SPECIALS, *letters, *(f"##{letter}" for letter in letters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=n, special_tokens=first, limit_alphabet=len(letters), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    learned = tokenizer.get_vocab()
    return sorted(learned, key=learned.__getitem__)


def write_pieces(pieces: Sequence[str], path: Path) -> None:
    """Write vocab.txt and tokenizer_config.json, in the format of MiniLM's repository."""
    (path / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    values = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (path / "tokenizer_config.json").write_text(json.dumps(values) + "\n", encoding="utf-8")
