"""The spec: strict YAML in, frozen and validated values out.

Read in this order: `model` (what a spec can say), `reader` (strict YAML with positions), `compose`
(extends, vars, settings, matrix), `diagnose` (errors at a line and column), `load` (from a file to
a `LoadedSpec`).
"""

from mlxpipe.spec.dump import resolved, resolved_yaml
from mlxpipe.spec.expect import Expectation
from mlxpipe.spec.load import LoadedSpec, load_spec, load_specs, parse_spec, spec_for_source
from mlxpipe.spec.model import (
    BUILT_IN_SOURCES,
    FileSource,
    Model,
    Naming,
    Outputs,
    Override,
    Quantization,
    RenameRule,
    Run,
    Source,
    Spec,
)
from mlxpipe.spec.positions import Document, Positions
from mlxpipe.spec.quantize import PresetRule, QuantizeRule
from mlxpipe.spec.reader import read_text, read_yaml
from mlxpipe.spec.schema import json_schema
from mlxpipe.spec.tasks import TASK_TYPES, GenerateTask, LogitsTask, PerplexityTask, Task

__all__ = [
    "BUILT_IN_SOURCES",
    "TASK_TYPES",
    "Document",
    "Expectation",
    "FileSource",
    "GenerateTask",
    "LoadedSpec",
    "LogitsTask",
    "Model",
    "Naming",
    "Outputs",
    "Override",
    "PerplexityTask",
    "Positions",
    "PresetRule",
    "Quantization",
    "QuantizeRule",
    "RenameRule",
    "Run",
    "Source",
    "Spec",
    "Task",
    "json_schema",
    "load_spec",
    "load_specs",
    "parse_spec",
    "read_text",
    "read_yaml",
    "resolved",
    "resolved_yaml",
    "spec_for_source",
]
