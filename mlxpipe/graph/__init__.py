"""The MLX model graph: layers that compute what the plan decided, bound to the tensors."""

import mlxpipe.blas  # noqa: F401  # before MLX, or it keeps its own BLAS
