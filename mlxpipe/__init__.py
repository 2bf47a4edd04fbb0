"""mlxpipe: run quantised language models on MLX from a YAML spec that says whom to believe."""

from mlxpipe._version import __version__

__all__ = ["__version__"]
