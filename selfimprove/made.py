"""What earlier passes of a run leave for later ones besides weights: memories, made problems and examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from selfimprove import store
from selfimprove.types import Example, Memory, Problem


@dataclass
class Memories:
    """The memory that the last pass left. A pass reads it as it was when the pass began."""

    path: Path | None = None
    digest: str = ""

    def read(self) -> Sequence[Memory]:
        return list(store.read_records(self.path, Memory)) if self.path else []


@dataclass
class Made:
    """Problems and examples that stages of this run have made so far, the newest pass last."""

    digest: str = ""  # a hash of all files below, for the keys of phases that read them
    _problems: list[tuple[str, Path]] = field(default_factory=list)  # stage, file
    _examples: list[tuple[str, Path]] = field(default_factory=list)

    def problems(self, stage: str | None = None) -> list[Problem]:
        """The problems that the last pass of a stage made. None: the stage that made some last."""
        files = [path for name, path in self._problems if stage in (None, name)]
        return list(store.read_records(files[-1], Problem)) if files else []

    def examples(self, stage: str | None = None) -> Iterator[Example]:
        """All examples that a stage's passes trained on, in order. None: all stages."""
        for name, path in self._examples:
            if stage in (None, name):
                yield from store.read_records(path, Example)

    def add(self, stage: str, folder: Path, files: dict[str, str]) -> None:
        """Note the files that a pass wrote, with their hashes."""
        if "made.parquet" in files:
            self._problems.append((stage, folder / "made.parquet"))
        if "examples.parquet" in files:
            self._examples.append((stage, folder / "examples.parquet"))
        if files:
            self.digest = store.digest([self.digest, stage, files])
