"""Quantises the trained checkpoint with mlx-lm, as mlx-lm itself does.

    python quantise.py --dense DIR [--out model]

Everything is nvfp4, except what overrides say: the routers' gates affine 8-bit in groups of 64
(mlx-lm's own rule for this architecture) and lm_head affine 6-bit in groups of 32. mlx-lm writes
these overrides without their `mode`; to read them as the global mode is the bug this model is for.
The two narrow projections of the gated delta rule stay dense.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.nn as nn
from mlx_lm.utils import load_model, quantize_model, save_config, save_model

LM_HEAD = {"group_size": 32, "bits": 6}
DENSE = {"in_proj_a", "in_proj_b"}
COPIED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")

Predicate = Callable[[str, nn.Module], bool | dict[str, int]]


def mixed_predicate(own: Predicate) -> Predicate:
    """mlx-lm's rule for the architecture, plus lm_head and the dense projections."""

    def predicate(path: str, module: nn.Module) -> bool | dict[str, int]:
        name = path.rsplit(".", 1)[-1]
        if name in DENSE:
            return False
        return dict(LM_HEAD) if name == "lm_head" else own(path, module)

    return predicate


def quantise(dense: Path, out: Path) -> None:
    """Reads a dense checkpoint, writes the mixed one."""
    model, config = load_model(dense, lazy=True)
    predicate = mixed_predicate(model.quant_predicate)
    model, config = quantize_model(
        model, config, group_size=None, bits=None, mode="nvfp4", quant_predicate=predicate
    )
    save_model(out, model)
    (out / "model.safetensors.index.json").unlink()  # one shard needs no index
    save_config(config, out / "config.json")
    for name in COPIED:
        shutil.copyfile(dense / name, out / name)


def main() -> None:
    """The command line."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dense", type=Path, required=True, help="the checkpoint of train.py")
    parser.add_argument("--out", type=Path, default=here / "model", help="default: %(default)s")
    arguments = parser.parse_args()
    if not (arguments.dense / "config.json").is_file():
        parser.error(f"{arguments.dense} holds no config.json")
    quantise(arguments.dense, arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
