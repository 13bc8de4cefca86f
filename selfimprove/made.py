"""What earlier passes of a run left for later ones besides weights: memories, and made problems and examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from selfimprove import store
from selfimprove.types import Example, Memory, Problem


@dataclass
class Memories:
    """The snapshot that the last pass left. A pass reads it as it was when the pass began."""

    path: Path | None = None
    digest: str = ""

    def read(self) -> Sequence[Memory]:
        return list(store.read_records(self.path, Memory)) if self.path else []


@dataclass
class Made:
    """Problems and examples that stages of this run have made so far, the newest pass last."""

    digest: str = ""  # of all files below: what a phase that reads them depends on
    _problems: list[tuple[str, Path]] = field(default_factory=list)  # stage, file
    _examples: list[tuple[str, Path]] = field(default_factory=list)

    def problems(self, stage: str | None = None) -> list[Problem]:
        """The problems that the last pass of a stage made; None: of whichever stage made some last."""
        files = [path for name, path in self._problems if stage in (None, name)]
        return list(store.read_records(files[-1], Problem)) if files else []

    def examples(self, stage: str | None = None) -> Iterator[Example]:
        """All examples that passes of a stage trained on, in the order of passes; None: of all stages."""
        for name, path in self._examples:
            if stage in (None, name):
                yield from store.read_records(path, Example)

    def add(self, stage: str, folder: Path, files: dict[str, str]) -> None:
        """Note what a pass wrote: its files with their hashes."""
        if "made.parquet" in files:
            self._problems.append((stage, folder / "made.parquet"))
        if "examples.parquet" in files:
            self._examples.append((stage, folder / "examples.parquet"))
        if files:
            self.digest = store.digest([self.digest, stage, files])
