"""The spec: strict YAML in, frozen and validated values out.

Read in this order: `model` (what a spec can say), `reader` (strict YAML with positions), `compose`
(extends, vars, settings, matrix), `diagnose` (errors at a line and column), `load` (from a file to
a `LoadedSpec`).
"""

from mlxpipe.spec.dump import OneLine, dump_yaml, resolved, resolved_yaml
from mlxpipe.spec.expect import Expectation
from mlxpipe.spec.load import (
    LOCK_SUFFIX,
    LoadedSpec,
    Settings,
    load_spec,
    load_specs,
    parse_spec,
    spec_beside,
    spec_for_source,
)
from mlxpipe.spec.matrix import require_one, shard
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
    Spec,
)
from mlxpipe.spec.origins import origins, resolved_yaml_with_origins
from mlxpipe.spec.path_values import PathValue, path_values
from mlxpipe.spec.positions import Document, Positions
from mlxpipe.spec.quantize import PresetRule, QuantizeRule
from mlxpipe.spec.reader import read_text, read_yaml
from mlxpipe.spec.schema import json_schema
from mlxpipe.spec.settings import Setting, parse_setting
from mlxpipe.spec.source import Reference, Source
from mlxpipe.spec.task_base import TextTask
from mlxpipe.spec.task_measuring import (
    BenchmarkTask,
    CompareTask,
    EvaluateTask,
    PerplexityTask,
    SensitivityTask,
)
from mlxpipe.spec.task_writing import ExportTask, GenerateTask, LogitsTask
from mlxpipe.spec.tasks import PICTURE_TASKS, TASK_TYPES, Task
from mlxpipe.spec.values import PathUse, Section

__all__ = [
    "BUILT_IN_SOURCES",
    "LOCK_SUFFIX",
    "PICTURE_TASKS",
    "TASK_TYPES",
    "BenchmarkTask",
    "CompareTask",
    "Document",
    "EvaluateTask",
    "Expectation",
    "ExportTask",
    "FileSource",
    "GenerateTask",
    "LoadedSpec",
    "LogitsTask",
    "Model",
    "Naming",
    "OneLine",
    "Outputs",
    "Override",
    "PathUse",
    "PathValue",
    "PerplexityTask",
    "Positions",
    "PresetRule",
    "Quantization",
    "QuantizeRule",
    "Reference",
    "RenameRule",
    "Run",
    "Section",
    "SensitivityTask",
    "Setting",
    "Settings",
    "Source",
    "Spec",
    "Task",
    "TextTask",
    "dump_yaml",
    "json_schema",
    "load_spec",
    "load_specs",
    "origins",
    "parse_setting",
    "parse_spec",
    "path_values",
    "read_text",
    "read_yaml",
    "require_one",
    "resolved",
    "resolved_yaml",
    "resolved_yaml_with_origins",
    "shard",
    "spec_beside",
    "spec_for_source",
]
