"""The stages of a data-science pipeline, each a function that a model wrote and its unit tests. It runs in the sandbox.

The file is sent as it is and run beside `request.json`. So it imports the standard library alone, and numpy for the
stages that need it. It writes a line of JSON when a stage begins, when it asks for hyper-parameters (which it reads
from standard input), and at its end: `done`, `broken` (with the stage to blame) or `fault`, which is one of this file.
Each line begins with a secret word, the first line of standard input: what else is written is not this file's. What
model-written code prints goes to standard error.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

SETUP = ("fetch", "modality", "maps", "metric", "form")
SOLUTION = ("features", "model", "space", "ensemble")
CONTRACTS = {  # what each stage's function is given and gives, as a model is told
    "fetch": "def fetch(text): of a CSV file's text a dict with `columns`, its header, and `rows`, lists of texts",
    "modality": "def modality(columns, rows): a dict from each column to `number`, `category` or `identifier`",
    "maps": "def maps(columns, kinds, target, values): a dict with `inputs`, the columns to predict from, and "
    "`classes`, the sorted different values of the target; None in a regression",
    "metric": "def metric(description): the metric by which submissions are scored, `accuracy` or `r2`",
    "form": "def form(identifier, target, ids, answers): the submission as CSV text: a header, then a row each",
    "features": "def features(train, other): two numpy arrays of floats out of two such; what is fitted is fitted on "
    "the first",
    "model": "def model(**options): a new scikit-learn estimator with these hyper-parameters",
    "space": 'def space(): the search space of `model`, such as {"C": ["log", 0.01, 100.0], "k": ["int", 1, 9]}; '
    "kinds are float, log, int and choice",
    "ensemble": "def ensemble(predictions): one array out of a list of arrays, best model first, of the same shape "
    "(rows, classes), or (rows, 1) in a regression",
}
KINDS = ("number", "category", "identifier")
METRICS = ("accuracy", "r2")
FIT = 2 / 3  # share of the labelled rows that a candidate is fitted on; the rest is for validation

Ask = Callable[[dict[str, Any], float | None], dict[str, Any]]  # space, last score -> the next hyper-parameters


class Broken(Exception):
    """A stage's function failed, or a test of what it gave. `stage` is the one to blame."""

    def __init__(self, stage: str, said: str) -> None:
        super().__init__(said)
        self.stage = stage


@contextmanager
def blaming(stage: str) -> Iterator[None]:
    """Raises Broken for any exception inside, and blames `stage`."""
    try:
        yield
    except Broken:
        raise
    except BaseException as error:  # SystemExit too: it is the stage's own
        raise Broken(stage, f"{type(error).__name__}: {error}"[:300]) from None


def require(stage: str, holds: bool, said: str) -> None:
    """A unit test: raises Broken that blames `stage`, unless it holds."""
    if not holds:
        raise Broken(stage, said)


class Pipeline:
    """One run of the stages whose code is there, in order. `tests`: their unit tests are run too."""

    def __init__(self, request: dict[str, Any], ask: Ask, begin: Callable[[str], object]) -> None:
        self.task, self.codes, self.tests = request["task"], request["codes"], request["tests"]
        self.trials, self.members = request["trials"], request["members"]
        self.found: list[tuple[float, dict[str, Any]]] = [(s, o) for s, o in request.get("found") or []]
        self.ask, self.begin = ask, begin
        self.functions: dict[str, Callable[..., Any]] = {}

    def run(self) -> dict[str, Any]:
        """The submission and its validation score, or {} if only the setup's code is there. Raises Broken."""
        made = self.setup()
        return self.solution(*made) if "ensemble" in self.codes else {}

    def call(self, stage: str, *given: Any) -> Any:
        """What a stage's function returns. Raises Broken if it is missing or fails."""
        self.begin(stage)
        with blaming(stage):
            if stage not in self.functions:
                scope: dict[str, Any] = {"__name__": stage}
                exec(compile(self.codes[stage], f"<{stage}>", "exec"), scope)
                require(stage, callable(scope.get(stage)), f"the code defines no function {stage}")
                self.functions[stage] = scope[stage]
            random.seed(0)
            if "numpy" in sys.modules:
                sys.modules["numpy"].random.seed(0)
            return self.functions[stage](*given)

    def test(self, stage: str, holds: bool, said: str) -> None:
        if self.tests:
            require(stage, holds, said)

    def setup(self) -> tuple[Any, ...]:
        task, target = self.task, self.task["target"]
        tables = []
        for name in ("train", "test"):
            table, true = self.call("fetch", task[name]), list(csv.reader(io.StringIO(task[name])))
            with blaming("fetch"):
                columns, rows = list(table["columns"]), [list(map(str, row)) for row in table["rows"]]
                self.test("fetch", columns == true[0], f"{name}: columns are {columns[:5]}, not {true[0][:5]}")
                self.test("fetch", rows == true[1:], f"{name}: {len(rows)} rows differ from the file's {len(true) - 1}")
                tables.append([dict(zip(columns, row, strict=True)) for row in rows])
        train, test = tables
        columns = list(train[0]) if train else []
        kinds = self.call("modality", columns, [list(row.values()) for row in train])
        with blaming("modality"):
            self.test("modality", set(kinds) == set(columns), "not every column has a kind")
            self.test("modality", set(kinds.values()) <= set(KINDS), f"a kind is one of {KINDS}")
            for name in [name for name in columns if kinds[name] == "number" and self.tests]:
                for row in train:
                    self.test("modality", not row[name] or is_number(row[name]), f"{name} holds {row[name]!r}")
        maps = self.call("maps", columns, kinds, target, [row.get(target) for row in train])
        with blaming("maps"):
            inputs, classes = list(maps["inputs"]), maps["classes"]
            self.test("maps", target not in inputs, "the target is among the inputs")
            self.test("maps", bool(inputs) and set(inputs) <= set(columns), "inputs are not columns of the table")
            self.test("modality", task["identifier"] not in inputs, f"{task['identifier']} is an identifier, no input")
            values = sorted({row[target] for row in train}) if task["kind"] == "classification" else None
            self.test("maps", (classes and sorted(classes)) == values, "classes are not the values of the target")
        metric = self.call("metric", task["description"])
        self.test("metric", metric in METRICS, f"the metric is one of {METRICS}")
        self.test("metric", (metric == "accuracy") == bool(classes), f"{metric} does not suit the target")
        with blaming("form"):
            ids, answers = [row[task["identifier"]] for row in test], [train[0][target]] * len(test)
        written = self.call("form", task["identifier"], target, ids, answers)
        with blaming("form"):
            expected = [[task["identifier"], target], *map(list, zip(ids, answers, strict=True))]
            self.test("form", list(csv.reader(io.StringIO(written))) == expected, "the submission has another form")
        return train, test, kinds, inputs, classes, metric, ids

    def solution(
        self,
        train: list[dict[str, str]],
        test: list[dict[str, str]],
        kinds: dict[str, str],
        inputs: list[str],
        classes: list[str] | None,
        metric: str,
        ids: list[str],
    ) -> dict[str, Any]:
        import numpy as np

        with blaming("maps"):
            labelled, asked = arrays(train, test, kinds, inputs)
            y = targets([row[self.task["target"]] for row in train], classes)
        cut = round(FIT * len(y))
        fit, valid = self.features(labelled[:cut], labelled[cut:])
        first = self.predicted("model", {}, fit, y[:cut], valid, classes)
        self.begin("space")
        if not self.found:
            space = self.call("space")
            with blaming("space"):
                self.test("space", isinstance(space, dict), "a search space is a dict")
                last = None
                for _ in range(self.trials if space else 1):
                    options = self.ask(space, last) if space else {}
                    if "refused" in options:
                        raise Broken("space", str(options["refused"]))
                    guess = self.predicted("space", options, fit, y[:cut], valid, classes) if space else first
                    last = score(metric, y[cut:], decided(guess, classes))
                    self.found.append((last, options))
        best = sorted(self.found, key=lambda one: -one[0])[: self.members]
        whole, rest = self.features(labelled, asked)
        guesses = [self.predicted("space", options, whole, y, rest, classes) for _, options in best]
        joined = self.call("ensemble", guesses)
        with blaming("ensemble"):
            joined = np.asarray(joined, float)
            self.test("ensemble", joined.shape == guesses[0].shape, f"shape {joined.shape}, not {guesses[0].shape}")
            self.test("ensemble", bool(np.isfinite(joined).all()), "not all values are finite")
            chosen = decided(joined, classes)
            answers = [classes[int(i)] for i in chosen] if classes else [repr(float(v)) for v in chosen]
        submission = self.call("form", self.task["identifier"], self.task["target"], ids, answers)
        return {"submission": str(submission), "validation": best[0][0]}

    def features(self, some: Any, others: Any) -> tuple[Any, Any]:
        import numpy as np

        made = self.call("features", some.copy(), others.copy())
        with blaming("features"):
            one, two = (np.asarray(part, float) for part in made)
            self.test("features", one.ndim == 2 and two.ndim == 2, "features are tables")
            self.test("features", (len(one), len(two)) == (len(some), len(others)), "rows were lost")
            self.test("features", one.shape[1] == two.shape[1], "the two parts have different columns")
            self.test("features", bool(np.isfinite(one).all() and np.isfinite(two).all()), "not all are finite")
        return one, two

    def predicted(self, blamed: str, options: Any, x: Any, y: Any, asked: Any, classes: list[str] | None) -> Any:
        """Predictions of shape (rows, classes), 1 at the class, or (rows, 1): a new model is fitted with `options`."""
        import numpy as np

        with blaming("model"):
            if "model" not in self.functions:
                self.call("model")
        with blaming(blamed):
            model = self.functions["model"](**options)
            self.test("model", hasattr(model, "fit") and hasattr(model, "predict"), "it has no fit and predict")
            guess = np.asarray(model.fit(x, y).predict(asked), float)
            self.test(blamed, guess.shape == (len(asked),), f"predictions have the shape {guess.shape}")
            self.test(blamed, bool(np.isfinite(guess).all()), "not all predictions are finite")
            if not classes:
                return guess[:, None]
            self.test(blamed, set(guess) <= set(range(len(classes))), "predictions are not classes")
            return np.eye(len(classes))[guess.astype(int)]


def is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def arrays(
    train: Sequence[dict[str, str]], test: Sequence[dict[str, str]], kinds: dict[str, str], inputs: Sequence[str]
) -> tuple[Any, Any]:
    """Numbers of shape (rows, inputs) of both tables. A missing number is the mean of the first table's column; a
    category is its place among the first table's sorted values, and -1 where that has none."""
    import numpy as np

    first, second = list[list[float]](), list[list[float]]()
    for name in inputs:
        if kinds[name] == "number":
            columns = [[float(row[name]) if row[name] else math.nan for row in table] for table in (train, test)]
            known = [value for value in columns[0] if math.isfinite(value)]
            mean = sum(known) / len(known) if known else 0.0
            columns = [[value if math.isfinite(value) else mean for value in column] for column in columns]
        else:
            places = {value: float(i) for i, value in enumerate(sorted({row[name] for row in train}))}
            columns = [[places.get(row[name], -1.0) for row in table] for table in (train, test)]
        first.append(columns[0])
        second.append(columns[1])
    return np.array(first, float).T, np.array(second, float).T


def targets(values: Sequence[str], classes: Sequence[str] | None) -> Any:
    """The targets as numbers: the places of classes, or the values themselves."""
    import numpy as np

    return np.array([classes.index(v) for v in values]) if classes else np.array([float(v) for v in values])


def decided(guesses: Any, classes: Sequence[str] | None) -> Any:
    """Predictions of shape (rows, classes) or (rows, 1) as class numbers or values, of shape (rows,)."""
    return guesses.argmax(1) if classes else guesses[:, 0]


def score(metric: str, true: Any, guess: Any) -> float:
    """`accuracy`, or `r2`: one minus the squared error over that of the mean. Higher is better, 1 is best."""
    import numpy as np

    if metric == "accuracy":
        return float(np.mean(true == guess))
    spread = float(((true - true.mean()) ** 2).sum())
    return 1.0 - float(((true - guess) ** 2).sum()) / spread if spread else 0.0


def main() -> None:
    out, sys.stdout = sys.stdout, sys.stderr
    word = sys.stdin.readline().strip()

    def say(**said: Any) -> None:
        print(word + json.dumps(said), file=out, flush=True)

    def ask(space: dict[str, Any], last: float | None) -> dict[str, Any]:
        say(ask=space, last=last)
        return json.loads(sys.stdin.readline())  # type: ignore[no-any-return]

    try:
        with open("request.json", encoding="utf-8") as file:
            pipeline = Pipeline(json.load(file), ask, lambda stage: say(begin=stage))
        try:
            say(done=pipeline.run())
        except Broken as broken:
            say(broken=broken.stage, said=str(broken), found=pipeline.found if broken.stage == "ensemble" else None)
    except MemoryError:  # what the stages hold is too much: the process ends, and the last stage is blamed
        raise
    except Exception as error:
        say(fault=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
