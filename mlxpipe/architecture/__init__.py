"""mlx-lm's model classes behind one door: what they expect, what they rename, how they tokenise."""

import mlxpipe.blas  # noqa: F401  # before MLX, or it keeps its own BLAS
