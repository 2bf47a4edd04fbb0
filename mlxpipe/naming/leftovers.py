"""Tensors that a model without their part has no use for: a table of rules.

A checkpoint may hold more than the language model that runs: towers that see and hear, layers that
draft tokens ahead, an output head where the embedding is the head. Some architectures' `sanitize`
drops them, by names that it knows, and often the weights alone: of a packed layer the scales stay
behind. So they are set aside before `sanitize`, packed or not, companions and all; each is reported
as not loaded. A tensor that no rule names remains an error.

A rule holds only where the architecture has no module under the name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlxpipe.naming.names import core

#: First segments, wrappers aside -> what they hold.
PARTS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "visual",
            "vision",
            "vision_tower",
            "vision_model",
            "vision_encoder",
            "vision_embedder",
            "vision_adapter",
            "vision_projection",
            "vision_embed_tokens",
            "embed_vision",
            "multi_modal_projector",
            "mm_projector",
            "patch_merge_mlp",
            "image_newline",
            "aligner",
        ),
        "sees images",
    ),
    **dict.fromkeys(
        ("audio_tower", "audio_model", "audio_encoder", "audio_projector", "embed_audio"),
        "hears",
    ),
    **dict.fromkeys(
        (
            "mtp",
            "mtp_block",
            "mtp_emb_norm",
            "mtp_hidden_norm",
            "mtp_linear_proj",
            "mtp_layers",
            "nextn",
        ),
        "drafts tokens ahead",
    ),
}

#: Keys of config.json that count layers which draft tokens, stored behind the others.
DRAFT_COUNTS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_layers", "num_mtp_modules")

#: Keys that count the model's own layers.
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")

#: What holds the layers.
LAYERS = "layers"

#: The output projection, which a model with tied embeddings does not have.
HEAD = "lm_head"

DRAFTS = "drafts tokens ahead"
TIED = "is tied to the embedding"


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Finds what is left over.

    Attributes:
        own: First segments of the architecture's own modules, wrappers aside.
        layers: How many layers it has, None where the config does not tell.
        drafts: How many more the checkpoint may have for drafting.
        tied: Whether the output projection is the embedding.
    """

    own: frozenset[str]
    layers: int | None
    drafts: int
    tied: bool

    def reason(self, path: str) -> str:
        """What the layer at a path does that the model does not want, "" where it may want it."""
        first, _, rest = core(path).partition(".")
        if first not in self.own:
            return TIED if first == HEAD and self.tied else PARTS.get(first, "")
        number, dot, _ = rest.partition(".")
        if first != LAYERS or self.layers is None or not (dot and number.isdecimal()):
            return ""
        return DRAFTS if self.layers <= int(number) < self.layers + self.drafts else ""


def leftovers(config: Mapping[str, Any], paths: Iterable[str]) -> Leftovers:
    """What a config says of the parts that an architecture leaves out.

    Args:
        config: config.json.
        paths: The architecture's module paths.
    """
    text = config.get("text_config")
    sections = [text, config] if isinstance(text, Mapping) else [config]

    def first(keys: Iterable[str], wanted: Callable[[Any], bool]) -> Any:
        found = (section.get(key) for section in sections for key in keys)
        return next((value for value in found if wanted(value)), None)

    own = frozenset(core(path).partition(".")[0] for path in paths)
    tied = first(("tie_word_embeddings",), lambda value: value is True)
    drafts = first(DRAFT_COUNTS, _is_count)
    return Leftovers(own, first(LAYER_COUNTS, _is_count), drafts or 0, bool(tied))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
