"""A first spec for a checkpoint: short, commented, ready to run.

Headers and JSON are read and the plan is made without an architecture, so that the comments can
say what was found and which line would settle what is open. MLX is not imported.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from mlxpipe.checkpoint import Checkpoint
from mlxpipe.checkpoint.source import open_source
from mlxpipe.errors import PlanError, UsageError, did_you_mean, nearest
from mlxpipe.plan.plan import Plan
from mlxpipe.plan.planner import plan_checkpoint
from mlxpipe.spec import LoadedSpec, Source, parse_spec
from mlxpipe.spec.scalars import plain_value

_FORMS = "a directory, hub:ORG/NAME[@REVISION] or ollama:NAME[:TAG]"

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)

#: A text that may stand without quotes: nothing in it means something to YAML or to a reader.
_PLAIN = re.compile(r"[A-Za-z0-9._/][A-Za-z0-9._/+-]*")

#: Raw, these are refused in a spec, or invisible in it.
_ESCAPED = re.compile(
    "[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)

#: Parts of a checkpoint that a text model leaves aside.
_SIDE_PARTS = (
    "audio_tower",
    "mtp",
    "multi_modal_projector",
    "vision_model",
    "vision_tower",
    "visual",
)

_MOST = 4
_WIDTH = 96

_PIN = (
    "  # A branch moves; a commit gives the same model next year:",
    "  # revision: <commit>",
)

_TASKS = """\
tasks:
  - {type: generate, prompt: "The capital of France is", max_tokens: 64}
  # - {type: perplexity, data: text.txt, context: 512}
"""


def starter_spec(model: str, output: str | None = None) -> str:
    """A spec for a checkpoint, as text.

    Args:
        model: A directory, `hub:org/name[@revision]` or `ollama:name[:tag]`.
        output: The file it is meant for: a directory's path is written relative to that file, or
            to the current directory where there is none.

    Raises:
        UsageError: `model` is none of these, or a spec cannot hold its path.
        SourceError: the checkpoint cannot be read.
    """
    place = Path(output) if output else Path("spec.yaml")
    if not place.parent.is_dir():
        raise UsageError("missing-directory", f"there is no directory {place.parent} to write to")
    source = _source(model, place.parent)
    lines = _source_lines(source)
    loaded = parse_spec("\n".join(["version: 1", *lines, ""]), place.name, place.parent)
    if source.kind == "hub":
        return _join(_hub_head(source), lines, ())
    checkpoint = open_source(loaded)
    head, remarks = _findings(loaded, checkpoint)
    return _join(head, lines, remarks)


def write_spec(path: str | Path, text: str, force: bool = False) -> None:
    """Write a spec, whole or not at all.

    Raises:
        UsageError: `exists`, unless `force`; `cannot-write`.
    """
    path = Path(path)
    if os.path.lexists(path) and not force:
        raise UsageError("exists", f"{path} exists already", help="--force overwrites it")
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise UsageError(
            "cannot-write", f"{path} cannot be written", found=error.strerror or str(error)
        ) from error
    finally:
        _discard(draft)


def _discard(draft: Path) -> None:
    try:
        draft.unlink(missing_ok=True)
    except OSError:  # its directory is not there, or is none
        return


def _join(head: Iterable[str], source: Iterable[str], remarks: Iterable[str]) -> str:
    top = [_comment(part) for line in head for part in _wrapped(line)]
    lines = [*top, "version: 1", *source, *remarks]
    return "\n".join(lines) + "\n" + _TASKS


# --- which checkpoint is meant ---------------------------------------------------------------


def _source(model: str, base: Path) -> Source:
    """The spec's `source` for what the user typed."""
    kind, _, name = model.partition(":")
    if kind == "hub":
        repo, _, revision = name.partition("@")
        return _validated(model, {"hub": repo, "revision": revision or None})
    if kind == "ollama":
        return _validated(model, {"ollama": name})
    directory = _directory(model)
    if directory is None:
        raise _unknown(model)
    return _validated(model, {"path": _relative(directory, base)})


def _directory(model: str) -> Path | None:
    path = Path(model)
    if model.startswith("~") and not path.is_dir():
        path = Path(os.path.expanduser(model))  # noqa: PTH111 - an unknown user is no error here
    return path if model and path.is_dir() else None


def _validated(model: str, fields: Mapping[str, str | None]) -> Source:
    try:
        source = Source.model_validate(dict(fields))
    except ValidationError:
        raise UsageError("bad-model", f"{model!r} names no model", expected=_FORMS) from None
    if source.path is not None:
        _check_writable(source.path)
    return source


def _check_writable(path: str) -> None:
    problem = "'${', which a spec reads as a variable" if "${" in path else ""
    if any("\ud800" <= character <= "\udfff" for character in path):
        problem = "bytes that are not UTF-8"
    if problem:
        raise UsageError(
            "bad-path",
            "a spec cannot name this directory",
            found=f"{path!r} holds {problem}",
            help="rename the directory, or reach it through a link with a plain name",
        )


def _relative(directory: Path, base: Path) -> str:
    """The directory as seen from `base`, in a form that a spec reads as a path."""
    target = os.path.abspath(directory)  # noqa: PTH100 - `resolve` would follow the user's links
    if not Path(target).samefile(directory):
        target = str(directory.resolve())
    path = os.path.relpath(target, base.resolve())
    return f"./{path}" if path.startswith("~") else path


def _unknown(model: str) -> UsageError:
    path = Path(model)
    if path.is_file():
        advice = f"give the directory that holds it: {path.parent}"
        if path.suffix in (".yaml", ".yml"):
            advice = f"this looks like a spec already: mlxpipe plan {path}"
        return UsageError("not-a-directory", f"{model} is a file", expected=_FORMS, help=advice)
    near = _near_directories(path)
    if near:
        advice = did_you_mean(model, near) or f"did you mean '{near[0]}'?"
    elif _HUB_NAME.fullmatch(model):
        advice = f"for the Hugging Face Hub: hub:{model}"
    else:
        advice = f"for an Ollama store: ollama:{model}" if model else ""
    return UsageError(
        "unknown-model", f"there is no directory {model!r}", expected=_FORMS, help=advice
    )


def _near_directories(path: Path) -> list[str]:
    try:
        siblings = [each.name for each in path.parent.iterdir() if each.is_dir()]
    except OSError:
        return []
    found = nearest(path.name, siblings, 3)
    return [str(path.with_name(name)) for name in found]


# --- the lines of the spec -------------------------------------------------------------------


def _scalar(text: str) -> str:
    """A text as a YAML scalar, in quotes wherever plain would mean something else."""
    if _PLAIN.fullmatch(text) and plain_value(text) == text:
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)


def _comment(text: str) -> str:
    """A comment line: what a name holds cannot end it."""
    return "# " + _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _source_lines(source: Source) -> list[str]:
    fields = source.model_dump(exclude_none=True)
    lines = ["source:", *(f"  {key}: {_scalar(value)}" for key, value in fields.items())]
    if source.kind == "hub" and source.revision is None:
        lines += _PIN
    if source.kind == "ollama":
        lines.append("  # store: a directory; default: $OLLAMA_MODELS, else ~/.ollama/models")
    return lines


def _hub_head(source: Source) -> list[str]:
    return [
        f"{source.hub}, from the Hugging Face Hub; nothing was fetched to write this.",
        "`mlxpipe plan` on this file fetches the model and says what every tensor is.",
    ]


# --- what was found --------------------------------------------------------------------------


def _findings(loaded: LoadedSpec, checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """Comment lines for the top, and lines for below the source."""
    kind = checkpoint.config.data.get("model_type", "no model_type")
    head = [f"{kind}: {len(checkpoint.tensors)} tensors, {_size(checkpoint.total_bytes)}"]
    try:
        plan = plan_checkpoint(loaded, checkpoint, architecture=False)
    except PlanError as error:
        return [*head, f"It cannot be planned as it is: {error.diagnostics[0].message}"], []
    head += [_schemes(plan), *_unrecognised(plan, checkpoint), *_claims(plan)]
    parts = _side_parts(checkpoint)
    remarks = [line for remark in _remarks(plan, parts) for line in remark.lines()]
    head.append(
        "`mlxpipe plan` on this file also asks the architecture; `mlxpipe explain` says why."
    )
    return head, remarks


def _schemes(plan: Plan) -> str:
    counts = sorted(plan.totals.schemes.items(), key=lambda item: (-item[1], item[0]))
    return "Modules: " + ", ".join(f"{number} {scheme}" for scheme, number in counts)


def _unrecognised(plan: Plan, checkpoint: Checkpoint) -> Iterator[str]:
    """Says so where most of the checkpoint is in none of these modules."""
    known = sum(module.nbytes for module in plan.modules.values())
    if 2 * known < checkpoint.total_bytes:
        yield (
            f"They hold only {_size(known)}: the other tensors' names fit no convention that is "
            "read without the architecture."
        )


def _claims(plan: Plan) -> Iterator[str]:
    """One line on whether those who declare schemes agree."""
    counts = {
        "contradicted by the tensors": len(plan.problems) - _errors(plan),
        "in conflict": len(plan.conflicts),
        "stale (wrong, and overruled)": len(plan.stale),
        "unmatched": len(plan.unmatched),
    }
    told = [f"{number} {what}" for what, number in counts.items() if number > 0]
    claimed = any(module.verdict.judged for module in plan.modules.values())
    fine = "all agree, and the tensors bear them out" if claimed else "none; the shapes decide"
    yield "Claims: " + (", ".join(told) or fine)
    if plan.stale:
        yield f"A stale one: {plan.stale[0].message}"


def _errors(plan: Plan) -> int:
    """Problems that are counted under another name."""
    others = {item.message for item in (*plan.conflicts, *plan.unmatched)}
    return sum(problem.message in others for problem in plan.problems)


@dataclass(frozen=True, slots=True)
class _Remark:
    """What is open, and the line of the spec that would settle it."""

    text: str
    line: str = ""

    def lines(self) -> list[str]:
        """As comments below the source."""
        return [_comment(part) for part in (*_wrapped(self.text), self.line) if part]


def _remarks(plan: Plan, parts: Sequence[str]) -> Iterator[_Remark]:
    others = {item.message for item in (*plan.conflicts, *plan.unmatched)}
    fatal = [each for each in plan.problems if each.message not in others]
    if fatal:
        yield _Remark(f"This will not run: {fatal[0].message}. To settle it, {fatal[0].help}")
    if plan.conflicts:
        loser = plan.conflicts[0].message.partition(" says ")[0]
        yield _Remark(
            f"{plan.conflicts[0].message}; both fit the tensors. To believe {loser} instead:",
            f"quantization: {{precedence: spec > {loser}}}",
        )
    if plan.unmatched:
        globs = _globs(each.module for each in plan.unmatched)
        yield _Remark(
            f"{plan.unmatched[0].message}. If nothing is missing:",
            f"quantization: {{allow_unmatched: {_flow(globs)}}}",
        )
    if parts:
        globs = [f"*{part}.*" for part in parts]
        yield _Remark(
            f"A text model leaves {' and '.join(parts)} aside. Should `mlxpipe plan` object:",
            f"naming: {{drop: {_flow(globs)}}}",
        )


def _globs(patterns: Iterable[str]) -> list[str]:
    """Patterns of side parts as one glob for each part, the others as they are."""
    found = {f"*{part}.*" if (part := _side_part(each)) else each: None for each in patterns}
    return list(found)[:_MOST]


def _side_part(path: str) -> str | None:
    """The part of the checkpoint that a dotted path is in, None for the text model."""
    return next((segment for segment in path.split(".") if segment in _SIDE_PARTS), None)


def _side_parts(checkpoint: Checkpoint) -> list[str]:
    return sorted({part for name in checkpoint.tensors if (part := _side_part(name))})


def _flow(texts: Iterable[str]) -> str:
    return json.dumps(list(texts), ensure_ascii=False)


def _wrapped(text: str) -> list[str]:
    """The text in lines of at most `_WIDTH` characters, where its words allow it."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > _WIDTH:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".lstrip()
    return lines


def _size(nbytes: int) -> str:
    """Bytes in decimal units."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
