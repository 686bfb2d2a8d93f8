"""The number of floating-point operations of a miniReranker, counted from the sizes in its config."""

from __future__ import annotations

from typing import Any


class Cost:
    """FLOPs of matrix products and attention: two per multiply-add pair. Terms linear in the width are left out."""

    # Any: transformers does not type its configs.
    def __init__(self, config: Any, query: int, instruction: int, band: tuple[int, int]) -> None:
        """``query`` and ``instruction``: number of tokens of the query suffix and of the instruction."""
        self.text, self.vision = config.text_config, config.vision_config
        self.query, self.instruction, self.band = query, instruction, band
        heads, width = self.text.num_attention_heads, self.text.head_dim
        self.keys = 2 * 2 * self.text.hidden_size * self.text.num_key_value_heads * width  # keys and values, per token
        self.queries = 2 * self.text.hidden_size * heads * width  # query projection, per token
        self.rest = 2 * self.text.hidden_size * (heads * width + 3 * self.text.intermediate_size)
        self.attend = 4 * heads * width  # per pair of tokens that attend

    def cached(self, kept: int, band: tuple[int, int]) -> float:
        """FLOPs per extra candidate that is scored from its cache; the last layer computes one token.

        The projections of the first layer are left out: all candidates share them.
        """
        seen = self.instruction + kept + 2 + self.query  # the suffix in full: a causal mask saves no arithmetic
        layers = band[1] - band[0]
        layer = self.query * (self.keys + self.queries + self.rest + self.attend * seen)
        last = self.query * self.keys + self.queries + self.rest + self.attend * seen
        shared = self.query * self.keys + (self.query if layers > 1 else 1) * self.queries
        return (layers - 1) * layer + last - shared

    def prefix(self, kept: int) -> float:
        """FLOPs of the language model over a page without a query, to the end of the band.

        Of the last layer, only the key and value projections count.
        """
        tokens = self.instruction + kept + 2
        layer = self.keys + self.queries + self.rest + self.attend * tokens / 2
        return float(tokens * ((self.band[1] - 1) * layer + self.keys))

    def dense(self, grid: tuple[int, int]) -> float:
        """FLOPs of one page and query, including the vision tower."""
        tokens = self.instruction + grid[0] * grid[1] + 2 + self.query
        layer = self.keys + self.queries + self.rest + self.attend * tokens / 2
        return self.tower(grid) + self.text.num_hidden_layers * tokens * layer

    def tower(self, grid: tuple[int, int]) -> float:
        """FLOPs of the vision tower and its mergers for one page."""
        merge, vision = self.vision.spatial_merge_size, self.vision
        patches = grid[0] * grid[1] * merge**2
        block = 2 * vision.hidden_size * (4 * vision.hidden_size + 2 * vision.intermediate_size)
        tower = vision.depth * patches * (block + 4 * vision.hidden_size * patches)
        tower += (
            patches * 2 * vision.hidden_size * vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        )
        merged = vision.hidden_size * merge**2
        mergers = 1 + len(vision.deepstack_visual_indexes)
        return float(tower + mergers * patches // merge**2 * 2 * merged * (merged + vision.out_hidden_size))
