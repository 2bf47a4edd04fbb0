"""The pictures that a spec names, looked at before a model is loaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from mlxpipe.errors import Origin, UsageError, missing_extra
from mlxpipe.spec import PICTURE_TASKS, LoadedSpec


def check_pictures(loaded: LoadedSpec, number: int) -> None:
    """Decode every picture of a task, if it has any.

    Raises:
        UsageError: `missing-file`, `not-an-image`.
        ExecutionError: `no-mlx-vlm`, with which comes what decodes pictures.
    """
    paths = picture_paths(loaded, number)
    if paths and find_spec("mlx_vlm") is None:
        origin = loaded.origin("tasks", number, "images")
        raise missing_extra("mlx-vlm", "vision", "pictures need mlx-vlm", origin=origin)
    for index, path in enumerate(paths):
        _check(path, loaded.origin("tasks", number, "images", index))


def picture_paths(loaded: LoadedSpec, number: int) -> list[Path]:
    """The files of a task's pictures, () for a task of a type that has none."""
    task = loaded.spec.tasks[number]
    images = task.images if isinstance(task, PICTURE_TASKS) else None
    return [loaded.resolve(path) for path in images or ()]


def _check(path: Path, origin: Origin) -> None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise _not_an_image(path, origin, error) from None
    except OSError as error:
        if error.errno is None:  # Pillow's own words for data that end early
            raise _not_an_image(path, origin, error) from None
        raise UsageError(
            "missing-file",
            f"{path.name} cannot be read",
            origin=origin,
            found=error.strerror or str(error),
            help="pictures are local files, their paths relative to the spec",
        ) from None


def _not_an_image(path: Path, origin: Origin, error: Exception) -> UsageError:
    return UsageError(
        "not-an-image",
        f"{path.name} is no picture that can be read",
        origin=origin,
        found=str(error).replace(str(path), path.name),
        expected="a PNG, JPEG, WebP or other file that Pillow decodes",
    )
