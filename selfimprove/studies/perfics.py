"""Three models of different sizes refine their own answers, and are ranked: by the formula, and against plain votes."""

from __future__ import annotations

import math
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from selfimprove import store
from selfimprove.binding import bind
from selfimprove.config import compose
from selfimprove.datasets import arithmetic as data
from selfimprove.datasets.arithmetic import Chain
from selfimprove.methods.perfics import Figures, Weights, ranking, table
from selfimprove.report.statistics import Estimate, difference
from selfimprove.studies import Claim, Lab, code
from selfimprove.studies.solving import attempts, plain, solve, traces
from selfimprove.types import Attempt, Example, Message, Problem
from selfimprove.verify import Outcome, arithmetic
from selfimprove.verify.answers import last, vote

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMMAND = "selfimprove study perfics"
SIZES = {"0.1 M": (64, 6e-3), "0.5 M": (128, 4e-3), "2 M": (256, 4e-3)}  # hidden size, learning rate
DOCUMENTS = 6000
ROLES = {"solve": 0.5, "verify": 0.25, "refine": 0.25}
GAMMAS = tuple(np.linspace(0, 4, 81).tolist())


def study(lab: Lab) -> Iterator[Claim]:
    problems = heldout(20 if lab.quick else 150)
    folders = {name: make(lab.folder, name, 400 if lab.quick else DOCUMENTS) for name in SIZES}
    measured = {name: measure(name, folder, problems, lab.seeds) for name, folder in folders.items()}
    figures = [m.figures for m in measured.values()]
    lab.note(table(figures, Weights()))
    lab.note(wins(measured))

    for name, m in measured.items():
        yield _better(f"{name}: refining raises accuracy", difference(m.refined, m.first), "its first answers")
    for name, m in measured.items():
        control = f"majority of plain answers, as many tokens: {np.mean([list(v.values()) for v in m.voted]):.3f}"
        yield _better(f"{name}: refining beats voting", difference(m.refined, m.voted), control)

    agreed = sum(order(figures, gamma) == closed_form(figures, gamma) for gamma in GAMMAS)
    text = "the ranking is that of the closed form for gamma from 0 to 4"
    shares = f"{agreed} of {len(GAMMAS)}"
    yield Claim(text, agreed == len(GAMMAS), shares, None, "pairs compared by their crossing points", COMMAND)
    most, smallest = (max(figures, key=lambda f: f.refined), min(figures, key=lambda f: f.memory))
    free = ranking(figures, Weights(gamma=0))[0][0]
    text = "gamma 0 picks the model that is best after refinement"
    yield Claim(text, free.refined == most.refined, free.model, None, f"accuracies {_listed(figures)}", COMMAND)
    takes_over = crossing(figures, smallest)
    control = "memory " + ", ".join(f"{f.model} {f.memory / 1e6:.1f} MB" for f in figures)
    if takes_over is None:
        yield Claim("a large gamma picks the smallest", None, "it solves nothing", None, control, COMMAND)
        return
    dear = ranking(figures, Weights(gamma=takes_over + 0.01))[0][0]
    text = f"a large gamma picks the smallest, here from {takes_over:.2f} on"
    yield Claim(text, dear is smallest, dear.model, None, control, COMMAND)


def _better(text: str, found: Estimate, control: str) -> Claim:
    """A claim of a gain: it holds above 0 with its whole interval, fails below, and is else not clear."""
    holds = True if found.low > 0 else False if found.high < 0 else None
    return Claim(text, holds, found.value, (found.low, found.high), control, COMMAND)


def _listed(figures: Sequence[Figures]) -> str:
    return ", ".join(f"{f.model} {f.refined:.3f}" for f in figures)


# The ranking, by hand


def order(figures: Sequence[Figures], gamma: float) -> list[str]:
    return [f.model for f, _ in ranking(figures, Weights(gamma=gamma))]


def closed_form(figures: Sequence[Figures], gamma: float) -> list[str]:
    """i is before j where S_i > S_j (C_i / C_j)^gamma, S = P + dR: a model's place is the number of those before it."""
    behind = {f.model: 0 for f in figures}
    for a, b in combinations(figures, 2):
        ahead = a.refined - b.refined * (a.memory / b.memory) ** gamma
        behind[(b if ahead > 0 or (ahead == 0 and a.memory < b.memory) else a).model] += 1
    return sorted(behind, key=behind.__getitem__)


def crossing(figures: Sequence[Figures], smallest: Figures) -> float | None:
    """The gamma from which on the smallest model is the first: the largest of ln(S_j / S_i) / ln(C_j / C_i), or 0. None
    where it solves nothing, and is never the first."""
    if not smallest.refined:
        return None
    better = [f for f in figures if f.refined > smallest.refined]
    return max(
        (math.log(f.refined / smallest.refined) / math.log(f.memory / smallest.memory) for f in better), default=0.0
    )


# What a model shows


@dataclass(frozen=True, slots=True)
class Measured:
    """What a model showed; of each seed problem id -> 1 where the first answer is right, or the refined one, or the
    majority of plain ones of as many tokens."""

    figures: Figures
    first: list[dict[str, float]]
    refined: list[dict[str, float]]
    voted: list[dict[str, float]]


def check(text: str, problem: Problem) -> Outcome:
    return arithmetic.check(text, problem.gold, problem.metadata)


def measure(name: str, folder: Path, problems: list[Problem], seeds: Sequence[int]) -> Measured:
    from selfimprove.policy.hf import TransformersEngine

    node = compose(["method=perfics", "model=tiny"], needs=False).solver
    solver, heat = bind(node, "generate"), node["temperature"]
    engine = TransformersEngine(str(folder), device="cpu", max_batch=64)
    first, refined, voted = list[dict[str, float]](), list[dict[str, float]](), list[dict[str, float]]()
    tokens, seconds = list[float](), list[float]()
    for seed in seeds:
        began = time.monotonic()
        solutions = solve(solver, engine, problems, seed=seed, max_tokens=48)
        seconds.append((time.monotonic() - began) / len(problems))
        steps = traces(attempts(problems, solutions, check), last)
        tokens.append(float(np.mean([s[max(s)].tokens for s in steps])))
        samples = plain(engine, problems, check, tokens[-1], seed=seed, temperature=heat, max_tokens=48)
        first.append(_right(problems, [s[0].correct for s in steps]))
        refined.append(_right(problems, [s[max(s)].correct for s in steps]))
        voted.append(_right(problems, [_voted(group) for group in samples]))
    spent = float(np.mean(tokens)), float(np.mean(seconds))
    figures = Figures(name, _mean(first), _mean(refined), engine.memory, *spent)
    engine.close()
    return Measured(figures, first, refined, voted)


def _voted(group: Sequence[Attempt]) -> bool:
    return (chosen := vote(group)) is not None and group[chosen].verdict.status == "correct"


def _right(problems: Sequence[Problem], correct: Sequence[bool]) -> dict[str, float]:
    return {p.id: float(value) for p, value in zip(problems, correct, strict=True)}


def _mean(runs: Sequence[dict[str, float]]) -> float:
    return float(np.mean([list(run.values()) for run in runs]))


def wins(measured: dict[str, Measured]) -> Table:
    """How often a model's answer is better than the largest one's first answer; ties, which are most, count half."""
    *_, (rival, reference) = measured.items()
    shown = Table("model", "first answers", "refined", title=f"Win rate against first answers of {rival}, %")
    for name, m in measured.items():
        rates = [
            np.mean([[0.5 + (a[p] - b[p]) / 2 for p in a] for a, b in zip(runs, reference.first, strict=True)])
            for runs in (m.first, m.refined)
        ]
        shown.add_row(name, *(f"{100 * rate:.1f}" for rate in rates))
    return shown


# The models: Llamas with the shipped tokenizer, trained on two-step sums to solve, verify and refine


def easy(rng: random.Random) -> Chain:
    """Two steps of adding or subtracting at most 5, from at most 9: what the smallest model learns in a minute."""
    while True:
        chain = data.random_chain(rng, 2)
        if chain.start <= 9 and all(op != "*" and operand <= 5 for op, operand in chain.steps):
            return chain


def heldout(count: int) -> list[Problem]:
    """`count` of the 300 or so such chains that nothing trains on."""
    rng, chains = random.Random(1), dict[str, Chain]()
    while len(chains) < count:
        chain = easy(rng)
        if chain.side != "train":
            chains[chain.digest] = chain
    return [data.problem(chain, "solve") for chain in chains.values()]


def slipped(rng: random.Random, chain: Chain) -> tuple[str, str]:
    """A solution with one line miscalculated, from which the rest follows, and the review that says so."""
    lines, value, slip = list[str](), chain.start, rng.randrange(len(chain.steps))
    for i, (op, operand) in enumerate(chain.steps):
        result = data.apply(value, (op, operand)) + (rng.choice((-2, -1, 1, 2)) if i == slip else 0)
        lines.append(f"{value} {op} {operand} = {result}")
        value = result
    right = data.solution(chain).splitlines()[slip]
    said = f"Line {slip + 1} is wrong: {right}.\nVerdict: incorrect"
    return "\n".join([*lines, f"The answer is {value}."]), said


def document(rng: random.Random) -> tuple[list[Message], str]:
    """A prompt in one of the roles, on a train-side chain, and the reply to learn."""
    while (chain := easy(rng)).side != "train":
        pass
    question, right = chain.question, data.solution(chain)
    (role,) = rng.choices(list(ROLES), list(ROLES.values()))
    if role == "solve":
        return data.solve_prompt(question), right
    shown, review = slipped(rng, chain) if rng.random() < 0.5 else (right, "Every line is right.\nVerdict: correct")
    if role == "verify":
        return data.verify_prompt(question, shown), review
    return data.refine_prompt(question, shown, review), right


def make(folder: Path, name: str, documents: int) -> Path:
    """The policy folder of the model called `name`, trained now unless it is there."""
    from transformers import AutoTokenizer

    from selfimprove.train import TrainContext
    from selfimprove.train.sft import sft

    hidden, rate = SIZES[name]
    home = folder / store.digest([code(), name, documents])
    policy = home / "policy"
    if policy.exists():
        return policy
    start = fresh(home / "start", hidden)
    tokenizer = AutoTokenizer.from_pretrained(start)
    rng = random.Random(0)
    rows = [row(tokenizer, *document(rng)) for _ in range(documents)]
    context = TrainContext(
        start=str(start),
        base=str(start),
        out=home / "unfinished",
        seed=0,
        device="cpu",
        dtype="float32",
        micro_batch=16,
        gradient_checkpointing=False,
        lora=None,
        log=lambda record: None,
    )
    sft(rows, context, learning_rate=rate, batch_size=16, schedule="cosine", warmup_ratio=0.03)
    context.out.rename(policy)
    return policy


def row(tokenizer: PreTrainedTokenizerBase, prompt: list[Message], reply: str) -> Example:
    from selfimprove.policy import chat

    completion = [*chat.encode(tokenizer, reply), tokenizer.eos_token_id]
    return Example("", [], chat.render(tokenizer, prompt), completion)


def fresh(folder: Path, hidden: int) -> Path:
    """A Llama of two layers with random weights and the shipped model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from selfimprove.policy.models import PACKAGED

    shutil.copytree(PACKAGED / "tiny", folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    config = LlamaConfig.from_pretrained(folder)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = hidden, 3 * hidden, 2
    config.num_attention_heads = config.num_key_value_heads = hidden // 32
    config.head_dim = 32
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder
