"""The spec's `quantize:`: a recipe, applied while compiling."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Strict, Tag, model_validator

from mlxpipe.spec.values import ModulePattern, Section, Words, only

Mode = Literal["affine", "mxfp4", "mxfp8", "nvfp4"]
PresetName = Literal["mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6", "nvfp4_router8"]

MATCH = "A glob over dotted module paths, or `re:` and a regular expression."

Bits = Annotated[int, Field(ge=1, le=8)]
GroupSize = Annotated[int, Field(ge=1, le=65536)]


class SchemeRule(Section):
    """A scheme for matching modules: what an override claims and a recipe's rule asks for."""

    match: ModulePattern = Field(description=MATCH)
    mode: Mode | None = Field(
        None, description="The quantisation mode; affine where only bits or group_size are given."
    )
    bits: Bits | None = Field(None, description="Bits per weight; default: the mode's.")
    group_size: GroupSize | None = Field(
        None, description="Weights per scale; default: the mode's."
    )

    @model_validator(mode="before")
    @classmethod
    def _affine_by_default(cls, data: Any) -> Any:
        """MLX's rule: a record without a mode is affine; it never inherits one."""
        if not isinstance(data, dict) or data.get("mode") is not None:
            return data
        if "dense" in data or "keep" in data:
            return data
        if data.get("bits") is None and data.get("group_size") is None:
            return data
        return {**data, "mode": "affine"}


class QuantizeRule(SchemeRule):
    """What the matching modules shall be: a scheme, dense, or as the checkpoint has them."""

    exactly_one: ClassVar = (("mode", "bits", "group_size"), ("dense",), ("keep",))

    dense: Annotated[Literal[True], only(bool)] | None = Field(
        None, description="The modules are dequantised."
    )
    keep: Annotated[Literal[True], only(bool)] | None = Field(
        None, description="The modules stay as the checkpoint has them."
    )


class PresetRule(Section):
    """A recipe with a name in the field, for all modules or those that match."""

    preset: PresetName = Field(
        description=(
            "mixed_2_6, mixed_3_4, mixed_3_6 and mixed_4_6 are mlx-lm's mixed affine recipes; "
            "nvfp4_router8 is nvfp4 with routers, embeddings and the output projection in 8 bits."
        )
    )
    match: ModulePattern = Field("*", description=MATCH)
    group_size: GroupSize | None = Field(
        None, description="Weights per scale of a mixed recipe; default: 64."
    )


def _preset_or_rule(value: object) -> str:
    named = "preset" in value if isinstance(value, dict) else isinstance(value, PresetRule)
    return "preset" if named else "rule"


Recipe = Annotated[
    tuple[
        Annotated[
            Annotated[PresetRule, Tag("preset")] | Annotated[QuantizeRule, Tag("rule")],
            Discriminator(_preset_or_rule),
        ],
        ...,
    ],
    Strict(False),
    Words("a list of rules"),
]
