"""The parts of a Qwen3-VL checkpoint: what a query needs is loaded at once, the rest when it is used."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mmrr.backbones import _qwen3_vl_text
from mmrr.backbones._qwen3_vl_vision import VisionTower
from mmrr.modeling.chat import ChatEncoder
from mmrr.modeling.checkpoints import comes_with_mmrr
from mmrr.modeling.plain_tokenizer import PlainTokenizer


class Parts:
    """The language model, its head, the chat encoder, the whole model and the vision tower of a checkpoint."""

    def __init__(
        self, path: Path, adapter: Path | None, device: torch.device, dtype: torch.dtype, *, needs_head: bool
    ) -> None:
        """Raises MmrrError as ``Backbone``."""
        self.device, self.dtype = device, dtype
        self._path, self._adapter, self._needs_head = path, adapter, needs_head
        if adapter is None and comes_with_mmrr(path):
            self._load_text()
        else:
            self._load_whole()

    def _load_text(self) -> None:
        """Load the language model without transformers. ``model`` and ``tower`` are loaded when they are used."""
        self.config: Any = _qwen3_vl_text.read_config(self._path)  # Any: transformers types no configuration
        text, head = _qwen3_vl_text.load(self._path, self.config, self.dtype)
        self.text: Any = text.to(self.device).eval().requires_grad_(False)
        self._head: Any = head.to(self.device).requires_grad_(False)
        template = (self._path / "chat_template.jinja").read_text("utf-8")
        self.chat = ChatEncoder(PlainTokenizer(self._path), template, own=True)

    def _load_whole(self) -> None:
        from mmrr.backbones._qwen3_vl_loading import chat_template, load_processors

        self.model = self._load_model()
        self.config, self.text, self._head = self.model.config, self.model.model.language_model, self.model.lm_head
        tokenizer, image_processor = load_processors(self._path, self.config)
        self.chat = ChatEncoder(tokenizer, chat_template(self._path, tokenizer))
        self.tower = VisionTower(self.model, image_processor, self.device, self.dtype)

    def _load_model(self) -> Any:  # Any: the model of transformers has no type
        from mmrr.backbones._qwen3_vl_loading import load_model

        model = load_model(self._path, self._adapter, self.dtype, needs_head=self._needs_head)
        return model.to(self.device).eval().requires_grad_(False)

    @cached_property
    def model(self) -> Any:
        """The model of transformers. It has the very parameters of ``text``, which may have been trained."""
        model = self._load_model()
        whole = model.model.language_model
        tied = model.lm_head.weight is whole.embed_tokens.weight
        for name, parameter in self.text.named_parameters():
            owner, _, leaf = name.rpartition(".")
            setattr(whole.get_submodule(owner), leaf, parameter)
        if tied:
            model.lm_head.weight = whole.embed_tokens.weight
        self.config, self.text, self._head = model.config, whole, model.lm_head
        return model

    @cached_property
    def tower(self) -> VisionTower:
        from mmrr.backbones._qwen3_vl_loading import load_processors

        _, image_processor = load_processors(self._path, self.model.config)
        return VisionTower(self.model, image_processor, self.device, self.dtype)
