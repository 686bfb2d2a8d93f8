"""The tokenizer of a checkpoint that comes with mmrr, read without transformers, whose import takes seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer


class PlainTokenizer:
    """What ``ChatEncoder`` needs of a tokenizer of transformers, from ``tokenizer.json``."""

    def __init__(self, folder: Path) -> None:
        self.name_or_path = str(folder)
        self.backend_tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        #: {name: token}, such as ``{"eos_token": "<|im_end|>"}``.
        self.special_tokens_map = {
            name: token for name, token in settings.items() if name.endswith("_token") and isinstance(token, str)
        }

    def get_chat_template(self, template: str) -> str:
        """The template itself: these checkpoints have one each, in a file of its own."""
        return template

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        """The token of each id, as the vocabulary writes it."""
        return [self.backend_tokenizer.id_to_token(one) for one in ids]
