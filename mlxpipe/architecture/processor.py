"""A vision-language checkpoint's processor, through mlx-vlm: pictures and text to arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxpipe.architecture import mlxvlm
from mlxpipe.architecture.shown import shown
from mlxpipe.architecture.tokenizer import end_tokens, require_tokenizer
from mlxpipe.errors import ExecutionError, SourceError

#: Files that say how pictures are scaled, cut and normalised; any of them will do.
SETTINGS = ("preprocessor_config.json", "processor_config.json", "image_processor_config.json")


def load_processor(files: Mapping[str, Path], config: Mapping[str, Any], label: str) -> Any:
    """mlx-vlm's processor, as `mlx_vlm.load` gives it.

    Args:
        files: The checkpoint's files by their own names.
        config: The parsed config.json.
        label: What diagnostics call the checkpoint.

    Raises:
        SourceError: `no-tokenizer`, `no-processor`.
        PlanError: as `mlxvlm.build` does.
        ExecutionError: `no-mlx-vlm`; `processor-failed`, with the library's words.
    """
    require_tokenizer(files, label)
    # Imported first: it tells transformers of its processors.
    module = mlxvlm.module_of(config)
    if not (any(name in files for name in SETTINGS) or hasattr(module, "ImageProcessor")):
        raise SourceError(
            "no-processor",
            f"{label} does not say how its pictures are prepared",
            expected="preprocessor_config.json or processor_config.json beside the weights",
            help="copy it from the original checkpoint",
        )
    configured = getattr(mlxvlm.settings_of(config), "eos_token_id", None)
    try:
        # mlx-vlm's processors trust a checkpoint's code unless told not to, some even then.
        with shown(files, without_code=True) as folder:
            return _load(folder, configured)
    except Exception as error:  # the libraries raise whatever their many processors raise
        raise ExecutionError(
            "processor-failed",
            f"the processor of {label} cannot be loaded",
            found=f"{type(error).__name__}: {error}".splitlines()[0],
            help="tasks without `images` need none",
        ) from error


def _load(folder: Path, configured: Any) -> Any:
    utilities = mlxvlm.submodule("utils")
    own = utilities.load_image_processor(folder)
    processor = utilities.load_processor(
        folder, eos_token_ids=end_tokens(folder, configured), trust_remote_code=False
    )
    if own is not None:
        processor.image_processor = own
    return processor
