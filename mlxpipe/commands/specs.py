"""`show`, `init` and `schema`: specs themselves."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from mlxpipe.commands.common import (
    all_specs,
    print_json,
)
from mlxpipe.errors import (
    ExitCode,
)

if TYPE_CHECKING:
    from mlxpipe.spec import LoadedSpec


def show(options: Namespace) -> int:
    """`mlxpipe show`."""
    from mlxpipe.spec import resolved_yaml, resolved_yaml_with_origins

    specs = all_specs(options)
    if options.format == "json":
        several = len(specs) > 1
        shown = [_shown(loaded, labelled=several, with_origins=options.origins) for loaded in specs]
        print_json({"name": specs[0].name, "combinations": shown} if several else shown[0])
        return int(ExitCode.OK)
    write = resolved_yaml_with_origins if options.origins else resolved_yaml
    for loaded in specs:
        if len(specs) > 1:
            print(f"--- # {loaded.label}")
        print(write(loaded), end="")
    return int(ExitCode.OK)


def _shown(loaded: LoadedSpec, *, labelled: bool, with_origins: bool) -> dict[str, Any]:
    """The resolved spec, alone or beside its label and its origins."""
    from mlxpipe.spec import origins, resolved

    spec = resolved(loaded)
    label = {"label": loaded.label, "matrix": dict(loaded.matrix)} if labelled else {}
    beside = {**label, "origins": origins(loaded)} if with_origins else label
    return {**beside, "spec": spec} if beside else spec


def schema(options: Namespace) -> int:
    """`mlxpipe schema`."""
    from mlxpipe.spec import json_schema

    print_json(json_schema())
    return int(ExitCode.OK)


def init(options: Namespace) -> int:
    """`mlxpipe init`."""
    from mlxpipe.starter import starter_spec, write_spec

    text = starter_spec(options.model, options.output)
    if options.output is None:
        print(text, end="")
    else:
        write_spec(options.output, text, force=options.force)
        print(f"wrote {options.output}; next: mlxpipe plan {options.output}", file=sys.stderr)
    return int(ExitCode.OK)
