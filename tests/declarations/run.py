"""The law over generated mutations of declarations, with real logits, and its counts.

    python tests/declarations/run.py
    python tests/declarations/run.py --examples 500 --seed 7 ollama

Prints, for every kind of mutation, how many checkpoints gave the same logits and how many each
named error; exits 1 if one gave anything else.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from counts import main

    sys.exit(main())
