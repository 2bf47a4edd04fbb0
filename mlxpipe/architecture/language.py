"""mlx-vlm's language model on its own, as mlx-lm's models are: token ids in, logits out."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn

from mlxpipe.architecture.mlxvlm import submodule

#: Where mlx-vlm's models keep the positions of the last prompt, pictures and all.
POSITIONS = ("_position_ids", "_rope_deltas")


class LanguageModel(nn.Module):
    """The language part of a vision-language model, for tasks without pictures.

    Args:
        model: mlx-vlm's whole model; its weights are shared.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.language_model = model.language_model

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        """Ids [B, T] -> logits [B, T, V]."""
        if cache is None:
            self._forget()
        logits: mx.array = self.language_model(tokens, cache=cache).logits
        return logits

    @property
    def layers(self) -> Any:
        """The blocks, as mlx-lm's generation asks for them."""
        return self.language_model.layers

    def make_cache(self) -> list[Any]:
        """An empty cache; with it a new sequence begins."""
        self._forget()
        cache: list[Any] = submodule("models.cache").make_prompt_cache(self.language_model)
        return cache

    def _forget(self) -> None:
        for name in POSITIONS:
            if hasattr(self.language_model, name):
                setattr(self.language_model, name, None)
