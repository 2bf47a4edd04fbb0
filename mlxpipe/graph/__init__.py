"""The MLX model graph: layers that compute what the plan decided, bound to the tensors."""
