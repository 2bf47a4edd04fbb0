"""The text: six novels of Jane Austen, one held out, and the tokenizer made from the rest."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HELD_OUT = "emma.txt"
END_OF_TEXT = "<|endoftext|>"
EDITORS_NOTE = "A NOTE ON THE TEXT"  # ends one edition of Northanger Abbey; not Austen's
WORDS = r"'(?:s|t|re|ve|m|ll|d)\b| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\n+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Score:
    """What a model makes of a text."""

    nats: float
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes

    def __str__(self) -> str:
        numbers = f"perplexity {self.perplexity:.3f}, {self.bits_per_byte:.4f} bits per byte"
        return f"{numbers}, {self.tokens} tokens"


def prepare_text(text: str) -> str:
    """One line per paragraph, a blank line between, no emphasis marks; idempotent."""
    text = text.split(EDITORS_NOTE)[0].replace("_", "")
    paragraphs = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def read_novels(folder: Path) -> tuple[list[str], str]:
    """The prepared training novels, sorted by file name, and the held-out one."""
    held_out = folder / HELD_OUT
    training = sorted(path for path in folder.glob("*.txt") if path.name != HELD_OUT)
    if not held_out.is_file() or not training:
        raise SystemExit(f"error: {folder} must hold {HELD_OUT} and other novels as .txt files")
    return [read_prepared(path) for path in training], read_prepared(held_out)


def read_prepared(path: Path) -> str:
    """A text file, prepared."""
    return prepare_text(path.read_text(encoding="utf-8"))


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE; runs of newlines are words of their own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    write_json(folder / "tokenizer_config.json", settings)


def token_bytes(tokenizer: Tokenizer) -> list[int]:
    """The number of bytes each token stands for, by id (0 for the end of text)."""
    names = (tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size()))
    return [0 if name == END_OF_TEXT else len(name) for name in names]


def write_json(path: Path, value: object) -> None:
    """JSON as people read it, with a final newline."""
    path.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")
