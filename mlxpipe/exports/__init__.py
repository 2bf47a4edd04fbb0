"""Writing a planned model to disk: as mlx-lm's directory, or as an entry of an Ollama store."""
