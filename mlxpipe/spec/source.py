"""Where a checkpoint comes from: the spec's own, and one to compare it with."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from mlxpipe.spec.values import HubName, PathText, Section, Text, Words


class Source(Section):
    """Where the checkpoint comes from: exactly one of path, hub and ollama."""

    exactly_one: ClassVar[tuple[tuple[str, ...], ...]] = (("path",), ("hub",), ("ollama",))
    belongs_to: ClassVar = {"revision": "hub", "store": "ollama"}

    path: PathText | None = Field(None, description="A directory, relative to the spec.")
    hub: HubName | None = Field(None, description="A repository on the Hugging Face Hub.")
    revision: Text | None = Field(None, description="A commit, branch or tag of the repository.")
    ollama: (
        Annotated[
            str,
            Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$"),
            Words("an Ollama model as name or name:tag"),
        ]
        | None
    ) = Field(None, description="A model in an Ollama store, as name or name:tag.")
    store: PathText | None = Field(
        None, description="The Ollama store; default: $OLLAMA_MODELS, else ~/.ollama/models."
    )

    @property
    def kind(self) -> Literal["path", "hub", "ollama"]:
        """Which of the three it is."""
        if self.path is not None:
            return "path"
        return "hub" if self.hub is not None else "ollama"


class Reference(Source):
    """What a model is compared with: a checkpoint, another spec's model or an earlier run's."""

    exactly_one: ClassVar = (*Source.exactly_one, ("spec",), ("run",))

    spec: PathText | None = Field(
        None, description="Another spec, relative to this one; its tasks are not done."
    )
    run: PathText | None = Field(
        None, description="The directory of an earlier run, relative to the spec."
    )
