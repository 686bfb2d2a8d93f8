"""Turns chat messages into token ids through the checkpoint's own template, so that no text can forge a control token.

The template is rendered with placeholders where text belongs; special tokens are read only from what the template
itself wrote. Text, whoever wrote it, is encoded by a copy of the tokenizer that has no added tokens at all: a query
that says ``<|im_end|>`` becomes the letters of ``<|im_end|>``. Also where the words of a text end, in its bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from enum import Enum
from typing import Any

from tokenizers import Tokenizer


class Mark(Enum):
    """What a message can hold beside text."""

    IMAGE = "image"
    SPLIT = "split"  # the end of one segment and the beginning of the next


Part = str | Mark
Message = tuple[str, Sequence[Part]]  # role, parts

_SLOT = re.compile("\ue000(\\d+)\ue001")
_WORD = re.compile(r"\S+")


class ChatEncoder:
    """Encodes chats for one checkpoint. Knows the tokenizer and the template, nothing about the model."""

    def __init__(self, tokenizer: Any, template: str | None) -> None:
        self._tokenizer = tokenizer  # a transformers fast tokenizer
        self._template = template
        specification = json.loads(tokenizer.backend_tokenizer.to_str())
        added = specification.pop("added_tokens")
        self._control = {token["content"]: int(token["id"]) for token in added}
        self._plain = Tokenizer.from_str(json.dumps({**specification, "added_tokens": [], "post_processor": None}))
        longest_first = sorted(self._control, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def encode(self, messages: Sequence[Message]) -> list[list[int]]:
        """Token ids of the chat with the generation prompt, one list per segment (``Mark.SPLIT`` ends one).

        The image stands as the template's single image token; whoever calls repeats it once per visual token.
        """
        slots: list[Part] = []
        chat = [{"role": role, "content": [self._slot(part, slots) for part in parts]} for role, parts in messages]
        rendered = self._tokenizer.apply_chat_template(
            chat, chat_template=self._template, tokenize=False, add_generation_prompt=True
        )
        segments: list[list[int]] = [[]]
        at = 0
        for control in self._pattern.finditer(rendered):
            self._append(segments, rendered[at : control.start()], slots)
            segments[-1].append(self._control[control.group()])
            at = control.end()
        self._append(segments, rendered[at:], slots)
        return segments

    def with_template(self, template: str) -> ChatEncoder:
        """The same tokenizer under another template."""
        return ChatEncoder(self._tokenizer, template)

    def lengths(self, ids: Sequence[int]) -> list[int]:
        """Bytes of text that each token of a byte-level tokenizer stands for; a control token's name is its text."""
        return [len(token) for token in self._tokenizer.convert_ids_to_tokens(list(ids))]

    def token_id(self, word: str) -> int:
        """The id of a word that is one token (``yes``, ``no``). Raises ValueError if it is not."""
        ids = self._encode_plain(word)
        if len(ids) != 1:
            raise ValueError(f"'{word}' is {len(ids)} tokens, expected 1")
        return ids[0]

    @staticmethod
    def _slot(part: Part, slots: list[Part]) -> dict[str, str]:
        if part is Mark.IMAGE:
            return {"type": "image"}
        slots.append(part)
        return {"type": "text", "text": f"\ue000{len(slots) - 1}\ue001"}

    def _append(self, segments: list[list[int]], run: str, slots: list[Part]) -> None:
        """Encode one run between two control tokens: the template's own letters joined with the texts put in."""
        letters, *rest = _SLOT.split(run)  # letters, index, letters, index, letters
        for index, after in zip(rest[::2], rest[1::2], strict=True):
            part = slots[int(index)]
            if isinstance(part, str):
                letters += part
            else:
                segments[-1].extend(self._encode_plain(letters))
                segments.append([])
                letters = ""
            letters += after
        segments[-1].extend(self._encode_plain(letters))

    def _encode_plain(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids)


def word_ends(text: str) -> list[tuple[str, int]]:
    """Words of an NFC text, up to their last letter or digit, and the byte at which each ends, counted from 0."""
    ends = []
    for match in _WORD.finditer(text):
        last = max((i for i, character in enumerate(match.group()) if character.isalnum()), default=-1)
        if last >= 0:
            end = match.start() + last + 1
            ends.append((text[match.start() : end], len(text[:end].encode()) - 1))
    return ends
