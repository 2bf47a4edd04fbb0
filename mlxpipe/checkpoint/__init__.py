"""What is on disk: checkpoints as headers and JSON, read strictly, without a byte of weights."""

from mlxpipe.checkpoint.directory import open_directory
from mlxpipe.checkpoint.hub import open_hub
from mlxpipe.checkpoint.inventory import Checkpoint, JsonDocument, Shard, Tensor
from mlxpipe.checkpoint.json_positions import json_pointer, pointer_position
from mlxpipe.checkpoint.json_reader import parse_json, read_json
from mlxpipe.checkpoint.ollama import open_ollama

__all__ = [
    "Checkpoint",
    "JsonDocument",
    "Shard",
    "Tensor",
    "json_pointer",
    "open_directory",
    "open_hub",
    "open_ollama",
    "parse_json",
    "pointer_position",
    "read_json",
]
