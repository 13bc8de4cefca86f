"""A policy by script that writes the stages of a data-science pipeline: it picks one of twelve templates.

It reads the kind of task, the stage, the cases that it is shown and the code so far out of the prompt. The code so far
decides the template. At its beginning that is the one of the best case, if that case came into the upper half of its
leaderboard, and else any of the twelve. With the probability `fault` it writes broken code instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from selfimprove import seeds
from selfimprove.policy import Request, require_plain
from selfimprove.policy.scripted import END, ScriptedEngine
from selfimprove.types import Sample

GOOD = 0.5  # the least score of a case whose template is taken over
_STAGE = re.compile(r"^Stage: (\w+)", re.MULTILINE)
_CASE = re.compile(r"^Case with a score of ([\d.]+):\n```python\n(.*?)```", re.MULTILINE | re.DOTALL)
_TEMPLATE = re.compile(r"^# template: (\w+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Template:
    """How features, models and search spaces are written: classifier, regressor and their options."""

    features: str  # a key of FEATURES
    module: str  # of scikit-learn
    models: tuple[str, str]
    options: tuple[str, str]
    spaces: tuple[str, str]


def _one(features: str, module: str, models: str, options: str, space: str) -> Template:
    """A template of two models with the same options and space."""
    classifier, regressor = models.split()
    return Template(features, module, (classifier, regressor), (options, options), (space, space))


_C, _ALPHA = '{"C": ["log", 0.001, 100.0]}', '{"alpha": ["log", 0.001, 1000.0]}'
_KERNEL = '{"C": ["log", 0.01, 1000.0], "gamma": ["log", 0.0001, 1.0]}'
_NEAR = '{"n_neighbors": ["int", 1, 20], "weights": ["choice", ["uniform", "distance"]]}'
_LEAF = '{"max_features": ["float", 0.1, 1.0], "min_samples_leaf": ["int", 1, 10]}'
_LINEAR = ("LogisticRegression", "Ridge"), ("max_iter=300, ", ""), (_C, _ALPHA)
TEMPLATES = {
    "linear": Template("scaled", "linear_model", *_LINEAR),
    "squares": Template("squares", "linear_model", *_LINEAR),
    "neighbours": _one("scaled", "neighbors", "KNeighborsClassifier KNeighborsRegressor", "", _NEAR),
    "raw_neighbours": _one("raw", "neighbors", "KNeighborsClassifier KNeighborsRegressor", "", _NEAR),
    "support": _one("scaled", "svm", "SVC SVR", "", _KERNEL),
    "raw_support": _one("raw", "svm", "SVC SVR", "", _KERNEL),
    "tree": _one(
        "raw",
        "tree",
        "DecisionTreeClassifier DecisionTreeRegressor",
        "random_state=0, ",
        '{"max_depth": ["int", 1, 12], "min_samples_leaf": ["int", 1, 20]}',
    ),
    "stump": _one(
        "raw",
        "tree",
        "DecisionTreeClassifier DecisionTreeRegressor",
        "max_depth=1, random_state=0, ",
        '{"min_samples_leaf": ["int", 1, 20]}',
    ),
    "forest": _one(
        "raw", "ensemble", "RandomForestClassifier RandomForestRegressor", "n_estimators=25, random_state=0, ", _LEAF
    ),
    "extra": _one(
        "raw", "ensemble", "ExtraTreesClassifier ExtraTreesRegressor", "n_estimators=25, random_state=0, ", _LEAF
    ),
    "boosting": _one(
        "raw",
        "ensemble",
        "GradientBoostingClassifier GradientBoostingRegressor",
        "n_estimators=20, max_features=0.3, random_state=0, ",
        '{"learning_rate": ["log", 0.02, 0.5], "max_depth": ["int", 1, 4]}',
    ),
    "bayes": Template(
        "scaled",
        "naive_bayes linear_model",
        ("GaussianNB", "BayesianRidge"),
        ("", ""),
        ('{"var_smoothing": ["log", 1e-12, 0.1]}', '{"lambda_1": ["log", 1e-8, 10.0]}'),
    ),
}

FEATURES = {
    "raw": "def features(train, other):\n    return train, other",
    "scaled": """def features(train, other):
    from sklearn.preprocessing import StandardScaler
    scaler = StandardScaler().fit(train)
    return scaler.transform(train), scaler.transform(other)""",
    "squares": """def features(train, other):
    import numpy as np
    from sklearn.preprocessing import StandardScaler
    scaler = StandardScaler().fit(train)
    parts = scaler.transform(train), scaler.transform(other)
    return tuple(np.hstack([part, part**2]) for part in parts)""",
}

_FETCH = """def fetch(text):
    import csv, io
    rows = list(csv.reader(io.StringIO(text)))
    return {"columns": rows[0], "rows": rows[1:]}"""
_MODALITY = """def modality(columns, rows):
    def number(text):
        try:
            return float(text) < float("inf")
        except ValueError:
            return not text
    kinds = {}
    for place, name in enumerate(columns):
        kinds[name] = "number" if all(number(row[place]) for row in rows) else "category"
        if name == "id":
            kinds[name] = "identifier"
    return kinds"""
_MAPS = """def maps(columns, kinds, target, values):
    inputs = [name for name in columns if name != target and kinds[name] != "identifier"]
    return {"inputs": inputs, "classes": CLASSES}"""
_FORM = """def form(identifier, target, ids, answers):
    import csv, io
    text = io.StringIO()
    csv.writer(text).writerows([[identifier, target], *zip(ids, answers)])
    return text.getvalue()"""
_MODEL = """def model(**options):
    from sklearn.{module} import {name}
    return {name}({options}**options)"""
_ENSEMBLE = """def ensemble(predictions):
    return sum(predictions) / len(predictions)"""

# What a fault makes of a stage's right code: the piece that is replaced, and by what. Each is really broken.
FAULTS = {
    "fetch": [
        ("rows[1:]", "rows[2:]"),
        ("StringIO(text)", "StringIO(txt)"),
        ("StringIO(text)", "StringIO(text), delimiter=';'"),
    ],
    "modality": [  # the first is seen where the inputs are mapped
        ('= "identifier"', '= "number"'),
        ("enumerate(columns)", "enumerate(columns[1:])"),
        ("row[place]", "row[name]"),
    ],
    "maps": [
        ("name != target and ", ""),
        ('"classes": ', '"classes": sorted(set(values))[1:] or '),
        ("kinds[name]", 'kinds["target_column"]'),
    ],
    "metric": [('return "', 'return "mean_'), ("return ", "return not "), ("return ", "return metric_name or ")],
    "form": [
        ("[identifier, target]", "[target, identifier]"),
        ("[identifier, target], ", ""),
        ("zip(ids", "zip(ids[1:]"),
    ],
    "features": [
        ("(train, other):", "(train, other):\n    other = other[1:]"),
        ("(train, other):", "(train, other):\n    train = train[:, 1:]"),
        ("(train, other):", '(train, other):\n    train[:, 0] = train["age"]'),
        ("(train, other):", "(train, other):\n    train[0, 0] = float('nan')"),
    ],
    "model": [
        ("from sklearn.", "from sklearn.models."),
        ("(**options):", "(**options):\n    options['strength'] = 1"),
        ("    return ", "    result "),
    ],
    "space": [
        ("def space():", "def space():\n    import hyper_parameters"),
        ('{"', '{"strength": ["float", 0.0, 1.0], "'),
        ("return ", 'return {"strength": ["float", 1, 0]} or '),
    ],
    "ensemble": [
        ("len(predictions)", "len(prediction)"),
        ("sum(predictions)", "sum(predictions)[1:]"),
        ("len(predictions)", "(0 * predictions[0])"),
    ],
}


class TemplatesEngine(ScriptedEngine):
    """Implements selfimprove.policy.Engine. Token ids are code points; a draw depends on the request's prompt and seed
    alone. It writes a function whole: temperature, stop and max_tokens change nothing."""

    def __init__(self, fault: float = 0.3) -> None:
        super().__init__({})
        self.fault = fault

    async def sample(self, request: Request) -> Sample:
        """Raises ValueError for a prompt that names no stage."""
        require_plain(request, "templates")
        text = write("".join(map(chr, request.prompt_ids)), self.fault, request.seed)
        ids = self.encode(text + END)
        return Sample(list(request.prompt_ids), ids, [0.0] * len(ids), text, "stop", request.seed, request.temperature)


def write(prompt: str, fault: float, seed: int) -> str:
    """A fenced block with the stage that the prompt asks for. Raises ValueError if it names none."""
    asked = _STAGE.findall(prompt)
    if not asked or asked[-1] not in FAULTS:
        raise ValueError(f"the prompt names no stage of a pipeline: {prompt[:80]!r}")
    stage, rng = asked[-1], np.random.default_rng(seeds.derive(seed, "templates"))
    code = written(stage, chosen(prompt, rng), "It is a classification" in prompt)
    if rng.random() < fault:
        old, new = FAULTS[stage][int(rng.integers(len(FAULTS[stage])))]
        code = code.replace(old, new)
    return f"```python\n{code}\n```"


def chosen(prompt: str, rng: np.random.Generator) -> str:
    """The template that the code so far has, or the best case; else one at random."""
    draw = list(TEMPLATES)[int(rng.integers(len(TEMPLATES)))]
    before, _, so_far = prompt.partition("Code so far:")
    if begun := _TEMPLATE.findall(so_far):
        return str(begun[0])
    cases = [(float(score), found[1]) for score, code in _CASE.findall(before) if (found := _TEMPLATE.search(code))]
    score, best = max(cases, default=(0.0, draw), key=lambda case: case[0])
    return best if score >= GOOD and best in TEMPLATES else draw


def written(stage: str, name: str, classify: bool) -> str:
    """A stage's right code by a template."""
    template, kind = TEMPLATES[name], 0 if classify else 1
    modules = template.module.split()
    return {
        "fetch": _FETCH,
        "modality": _MODALITY,
        "maps": _MAPS.replace("CLASSES", "sorted(set(values))" if classify else "None"),
        "metric": f'def metric(description):\n    return "{("accuracy", "r2")[kind]}"',
        "form": _FORM,
        "features": f"# template: {name}\n{FEATURES[template.features]}",
        "model": f"# template: {name}\n"
        + _MODEL.format(
            module=modules[kind % len(modules)], name=template.models[kind], options=template.options[kind]
        ),
        "space": f"# template: {name}\ndef space():\n    return {template.spaces[kind]}",
        "ensemble": _ENSEMBLE,
    }[stage]
