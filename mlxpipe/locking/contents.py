"""Which files a checkpoint consists of, as far as they decide what is computed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from mlxpipe.architecture.shown import SUFFIXES
from mlxpipe.checkpoint import Checkpoint
from mlxpipe.checkpoint.files import read_bytes
from mlxpipe.errors import MlxpipeError

#: Stems of texts for people.
FOR_PEOPLE = frozenset({"license", "licence", "notice", "readme", "use_policy"})

#: The tokenizer's files; other documents beside them belong to the model.
TOKENIZER_FILES = frozenset(
    {
        "added_tokens.json", "chat_template.jinja", "chat_template.json", "merges.txt",
        "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
        "vocab.txt",
    }
)  # fmt: skip
TOKENIZER_SUFFIXES = frozenset({".model", ".tiktoken"})

#: Documents that may hold a chat template; the first that does counts, as in transformers.
TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
TEMPLATE_KEY = "chat_template"

MAX_TEMPLATE_BYTES = 64 << 20


def shard_names(checkpoint: Checkpoint) -> list[str]:
    """A name for each shard, in their order: of the file, or of the layer in an Ollama store.

    A blob's own name is its digest, which is what a changed one would have lost.
    """
    names: dict[str, None] = {}
    for shard in checkpoint.shards:
        name = shard.layer or shard.label
        names[name if name not in names else shard.label] = None
    return list(names)


def source_files(checkpoint: Checkpoint) -> dict[str, Path]:
    """The weights, and the files beside them that decide what is computed."""
    paths = (shard.path for shard in checkpoint.shards)
    beside = {name: path for name, path in sorted(checkpoint.files.items()) if _decides(name)}
    return {**dict(zip(shard_names(checkpoint), paths, strict=True)), **beside}


def belongs_to_tokenizer(name: str) -> bool:
    """Whether a file is the tokenizer's."""
    return name in TOKENIZER_FILES or Path(name).suffix in TOKENIZER_SUFFIXES


def chat_template(files: Mapping[str, Path]) -> str | None:
    """The digest of the chat template, None without one."""
    for name in TEMPLATES:
        if name in files and (template := _template(name, files[name])) is not None:
            return sha256(template.encode("utf-8", "surrogatepass")).hexdigest()
    return None


def _decides(name: str) -> bool:
    path = Path(name)
    return path.suffix in SUFFIXES and path.stem.casefold() not in FOR_PEOPLE


def _template(name: str, path: Path) -> str | None:
    try:
        text = read_bytes(path, name, MAX_TEMPLATE_BYTES).decode("utf-8")
        found: Any = text if name.endswith(".jinja") else json.loads(text).get(TEMPLATE_KEY)
    except (MlxpipeError, ValueError, AttributeError, RecursionError):
        return None  # whoever reads the file for its own sake says what is wrong with it
    if found is None:
        return None
    # Several templates by name are a list; their text is as good as any other to compare.
    return found if isinstance(found, str) else json.dumps(found, sort_keys=True)
