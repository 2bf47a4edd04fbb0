"""From pydantic's errors to diagnostics at a line and column, in words for a person.

Pydantic names a place by a path that also contains the tags of unions. `_locate` walks the models
along that path: it leaves the tags out, and knows which keys are allowed where the error is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mlxpipe.errors import Diagnostic, Origin, did_you_mean
from mlxpipe.spec.kinds import arm, child, is_model, is_union, key_type, unwrap
from mlxpipe.spec.model import Quantization, Spec, split_offsets
from mlxpipe.spec.positions import Document, Path
from mlxpipe.spec.problems import PROBLEM_TYPE, Problem, either, spell
from mlxpipe.spec.tasks import TASK_TYPES
from mlxpipe.spec.tree import COMPOSING_KEYS

# A person reads no more, and a suggestion for each of 50 000 keys would take seconds.
MAX_ERRORS = 100
_KEY = "[key]"  # pydantic's mark of an error about a mapping's key

_YAML_1_1 = {"yes": True, "on": True, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class _Case:
    """One of pydantic's errors, located.

    Attributes:
        error: Pydantic's record: type, input, ctx.
        path: Keys and indexes, without union tags.
        kind: The type that is expected at `path`, None where nothing is.
        words: What to call that type.
        owner: The innermost model around `path`.
        key: The error is about the key itself.
        document: The document.
    """

    error: Any
    path: Path
    kind: Any
    words: str
    owner: type[BaseModel]
    key: bool
    document: Document

    @property
    def found(self) -> str:
        return describe(self.error["input"])

    @property
    def subject(self) -> str:
        """What the error is about, for a message."""
        if not self.path:
            return "the spec"
        last = self.path[-1]
        if isinstance(last, str):
            return repr(last)
        return f"item {last + 1} of {self.path[-2]!r}"

    def origin(self, key: bool = False) -> Origin:
        return self.document.positions.origin(self.path, key=key or self.key)


def diagnose(error: ValidationError, document: Document) -> list[Diagnostic]:
    """The errors of a failed validation as diagnostics, in pydantic's order."""
    found: list[Diagnostic] = []
    records = error.errors(include_url=False)
    # Pydantic counts only the valid items of a list, and calls it too short without the others.
    with_bad_items = {record["loc"][:-1] for record in records}
    for record in records[:MAX_ERRORS]:
        if record["type"] == "too_short" and record["loc"] in with_bad_items:
            continue
        case = _locate(record, document)
        found += _HANDLERS.get(record["type"], _other)(case)
    if len(records) > MAX_ERRORS:
        found.append(Diagnostic("too-many-errors", f"and {len(records) - MAX_ERRORS} more errors"))
    return found


def describe(value: object) -> str:
    """A value in words, for the `found` line."""
    match value:
        case None:
            return "nothing"
        case bool():
            return spell(value)
        case str():
            return f"the text {spell(value)}"
        case int():
            return f"the whole number {spell(value)}"
        case float():
            return f"the number {value}"
        case dict():
            return "a mapping"
        case _:
            return "a list"


def _locate(error: Any, document: Document) -> _Case:
    path: list[str | int] = []
    kind, words = unwrap(Spec)
    owner: type[BaseModel] = Spec
    data: Any = document.data
    parent: Any = None
    for part in error["loc"]:
        if part == _KEY:
            kind, words = unwrap(parent)
        elif is_union(kind):
            kind, inner = unwrap(arm(kind, part))
            words = words or inner
        else:
            owner = kind if is_model(kind) else owner
            parent = key_type(kind)
            kind, words = unwrap(child(kind, part))
            # A text that stands for a list of one has no items in the document.
            if isinstance(data, (dict, list)):
                path.append(part)
                data = data.get(part) if isinstance(data, dict) else data[part]
    return _Case(error, tuple(path), kind, words, owner, _KEY in error["loc"][-1:], document)


def _unknown_key(case: _Case) -> list[Diagnostic]:
    key, origin = str(case.path[-1]), case.origin(key=True)
    known = [*case.owner.model_fields, *(COMPOSING_KEYS if case.owner is Spec else ())]
    label = did_you_mean(key, known)
    expected = "" if label else either(known)
    return [Diagnostic("unknown-key", f"unknown key {key!r}", origin, label, expected=expected)]


def _missing_key(case: _Case) -> list[Diagnostic]:
    key = case.path[-1] if case.error["type"] == "missing" else "type"
    path = case.path if case.error["type"] == "missing" else (*case.path, key)
    field = case.owner.model_fields.get(str(key))
    return [
        Diagnostic(
            "missing-key",
            f"the key {key!r} is missing",
            case.document.positions.origin(path, key=True),
            expected=either(list(TASK_TYPES)) if key == "type" and field is None else "",
            help=field.description or "" if field else "",
        )
    ]


def _wrong_type(default: str) -> Callable[[_Case], list[Diagnostic]]:
    def handle(case: _Case) -> list[Diagnostic]:
        message = f"{case.subject} has the wrong type"
        expected = case.words or default
        label, advice = _type_hints(case)
        origin = case.origin()
        return [Diagnostic("wrong-type", message, origin, label, case.found, expected, help=advice)]

    return handle


def _type_hints(case: _Case) -> tuple[str, str]:
    """What probably happened: (label, help)."""
    value, choices = case.error["input"], _choices(case.kind)
    wants = {type(choice) for choice in choices} or {case.kind}
    if isinstance(value, str):
        meant = _YAML_1_1.get(value.lower())
        if meant is not None and (meant in choices or (bool in wants and not choices)):
            advice = "yes, no, on and off are texts in YAML 1.2"
            return f"did you mean {spell(meant)}?", advice
        if int in wants and value.isdecimal():
            return "", "write it without quotes"
        if get_origin(case.kind) is tuple and unwrap(get_args(case.kind)[0])[0] is str:
            return "", "put it in brackets: [...]"
    elif isinstance(value, (bool, int, float)) and str in wants and not choices:
        return "", "put it in quotes"
    return "", ""


def _choices(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def _literal(case: _Case) -> list[Diagnostic]:
    value, choices = case.error["input"], _choices(case.kind)
    expected = case.words or either(choices)
    if type(value) not in {type(choice) for choice in choices}:
        return _wrong_type(expected)(case)
    label, advice = _type_hints(case)
    if not label and isinstance(value, str):
        label = did_you_mean(value, [choice for choice in choices if isinstance(choice, str)])
    message = f"unknown value {spell(value)} for {case.subject}"
    return [
        Diagnostic("unknown-value", message, case.origin(), label, expected=expected, help=advice)
    ]


def _out_of_range(words: str) -> Callable[[_Case], list[Diagnostic]]:
    def handle(case: _Case) -> list[Diagnostic]:
        value = case.error["input"]
        empty = isinstance(value, (str, list, tuple)) and not value
        message = f"{case.subject} is {'empty' if empty else 'out of range'}"
        context = {key: _bound(limit) for key, limit in case.error.get("ctx", {}).items()}
        found = "" if empty else spell(value)
        expected = words.format(**context)
        return [Diagnostic("out-of-range", message, case.origin(), found=found, expected=expected)]

    return handle


def _bound(limit: Any) -> str:
    return str(int(limit) if isinstance(limit, float) and limit.is_integer() else limit)


def _bad_name(case: _Case) -> list[Diagnostic]:
    message = f"{spell(case.error['input'])} is not allowed here"
    return [Diagnostic("bad-name", message, case.origin(), expected=case.words)]


def _unknown_task(case: _Case) -> list[Diagnostic]:
    written = case.error["input"]["type"]
    origin = case.document.positions.origin((*case.path, "type"))
    expected = either(list(TASK_TYPES))
    if not isinstance(written, str):
        message, found = "'type' has the wrong type", describe(written)
        return [Diagnostic("wrong-type", message, origin, found=found, expected=expected)]
    message, label = f"unknown task type {spell(written)}", did_you_mean(written, TASK_TYPES)
    return [Diagnostic("unknown-task", message, origin, label, expected=expected)]


def _ours(case: _Case) -> list[Diagnostic]:
    return [_from_problem(case, problem) for problem in case.error["ctx"]["found"]]


def _from_problem(case: _Case, problem: Problem) -> Diagnostic:
    return Diagnostic(
        problem.code,
        problem.message,
        _problem_origin(case, problem),
        problem.label,
        problem.found,
        problem.expected,
        problem.help,
    )


def _problem_origin(case: _Case, problem: Problem) -> Origin:
    positions, path = case.document.positions, (*case.path, *problem.at)
    if problem.span is not None:
        return positions.within(path, problem.text, *problem.span)
    if case.owner is Quantization and case.path[-1] == "precedence":
        written = case.document.value(case.path)
        if isinstance(written, str):
            start, width = split_offsets(written)[int(problem.at[0])]
            return positions.within(case.path, written, start, width)
    if not problem.at and problem.key:
        # About the mapping as a whole: its contents are its `parent`.
        return positions.origin((*path, ""), key=True)
    return positions.origin(path, key=problem.key or case.key)


def _other(case: _Case) -> list[Diagnostic]:
    message = f"{case.subject} is not valid"
    return [
        Diagnostic("invalid-value", message, case.origin(), found=case.found, expected=case.words)
    ]


_HANDLERS: dict[str, Callable[[_Case], list[Diagnostic]]] = {
    PROBLEM_TYPE: _ours,
    "extra_forbidden": _unknown_key,
    "missing": _missing_key,
    "union_tag_not_found": _missing_key,
    "union_tag_invalid": _unknown_task,
    "string_type": _wrong_type("a text"),
    "int_type": _wrong_type("a whole number"),
    "float_type": _wrong_type("a number"),
    "bool_type": _wrong_type("true or false"),
    "tuple_type": _wrong_type("a list"),
    "dict_type": _wrong_type("a mapping"),
    "model_type": _wrong_type("a mapping"),
    "model_attributes_type": _wrong_type("a mapping"),
    "literal_error": _literal,
    "greater_than": _out_of_range("more than {gt}"),
    "greater_than_equal": _out_of_range("at least {ge}"),
    "less_than": _out_of_range("less than {lt}"),
    "less_than_equal": _out_of_range("at most {le}"),
    "finite_number": _out_of_range("a finite number"),
    "too_short": _out_of_range("at least {min_length} item"),
    "too_long": _out_of_range("at most {max_length} items"),
    "string_too_short": _out_of_range("at least {min_length} character"),
    "string_too_long": _out_of_range("at most {max_length} characters"),
    "string_pattern_mismatch": _bad_name,
    "string_unicode": _bad_name,
}
