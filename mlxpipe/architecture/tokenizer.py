"""A checkpoint's tokenizer, through mlx-lm."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxpipe.architecture.mlxlm import model_classes, submodule
from mlxpipe.architecture.shown import shown
from mlxpipe.errors import ExecutionError, MlxpipeError, SourceError


def load_tokenizer(files: Mapping[str, Path], config: Mapping[str, Any], label: str) -> Any:
    """mlx-lm's tokenizer wrapper, as `mlx_lm.load` gives it.

    Args:
        files: The checkpoint's files by their own names.
        config: The parsed config.json, for the end-of-sequence tokens.
        label: What diagnostics call the checkpoint.

    Raises:
        SourceError: `no-tokenizer`.
        ExecutionError: `tokenizer-failed`, with the library's words.
    """
    require_tokenizer(files, label)
    with shown(files) as folder:
        return _load(folder, config, label)


def require_tokenizer(files: Mapping[str, Path], label: str) -> None:
    """Refuse a checkpoint without a tokenizer's files.

    Raises:
        SourceError: `no-tokenizer`.
    """
    if not any(name in files for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise SourceError(
            "no-tokenizer",
            f"{label} has no tokenizer",
            expected="tokenizer.json or tokenizer.model beside the weights",
            help="tasks that are given token ids (logits with `tokens`) need none",
        )


def _load(folder: Path, config: Mapping[str, Any], label: str) -> Any:
    utilities = submodule("tokenizer_utils")
    try:
        return utilities.load(
            folder,
            # transformers must neither run a checkpoint's code nor ask whether it may.
            tokenizer_config_extra={"trust_remote_code": False},
            eos_token_ids=end_tokens(folder, config.get("eos_token_id")),
            defaults=_defaults(config),
        )
    except Exception as error:  # the library raises whatever its many tokenizers raise
        raise ExecutionError(
            "tokenizer-failed",
            f"the tokenizer of {label} cannot be loaded",
            found=f"{type(error).__name__}: {error}".splitlines()[0],
            help="load(…, tokenizer=False) and tasks with `tokens` work without one",
        ) from error


def end_tokens(folder: Path, configured: Any) -> Any:
    """generation_config.json's end tokens over those that config.json names, as mlx-lm has it."""
    path = folder / "generation_config.json"
    generation: Any = {}
    if path.is_file():
        try:
            generation = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            generation = {}
    own = generation.get("eos_token_id") if isinstance(generation, dict) else None
    return own or configured


def _defaults(config: Mapping[str, Any]) -> Any:
    try:
        name = model_classes(config).name
    except MlxpipeError:
        return None
    return getattr(submodule(f"models.{name}"), "TOKENIZER_DEFAULTS", None)
