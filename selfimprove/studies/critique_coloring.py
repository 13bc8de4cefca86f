"""Does criticism help on graph colouring, and what it says? A script of known rates, then a tiny model trained for it.

The paper's claims (Stechly et al. 2023, arXiv 2310.12397): a model that criticises its own colourings ends below its
first answers; with a sound verifier it does better, whatever the verifier says, and no better than plain samples of
which the verifier picks a right one.
"""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from selfimprove import seeds, store
from selfimprove.datasets import colouring
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.methods.critique_coloring import Critic, Feedback, clash, critic_alone, generate
from selfimprove.policy import Engine
from selfimprove.policy.scripted import VERIFY, YES, ScriptedEngine
from selfimprove.report.metrics import mean_over_problems
from selfimprove.report.statistics import Estimate
from selfimprove.studies import Claim, Lab, difference
from selfimprove.studies.solving import at_tokens, attempts, plain, solve
from selfimprove.types import Attempt, Example, Message, Problem, Trajectory
from selfimprove.verify import Outcome
from selfimprove.verify.answers import vote
from selfimprove.verify.colouring import check

log = logging.getLogger("selfimprove")

COMMAND = "selfimprove study critique_coloring"
ROUNDS = 15
TEMPERATURE = 0.7
ARMS: dict[str, tuple[Critic, Feedback]] = {
    "direct": ("none", "pass"),
    "self-critique": ("self", "pass"),
    "verifier, pass/fail": ("verifier", "pass"),
    "verifier, first error": ("verifier", "first"),
    "verifier, all errors": ("verifier", "all"),
    "verifier, misleading": ("verifier", "misleading"),
}
VERIFIED = [name for name, (critic, _) in ARMS.items() if critic == "verifier"]
CONTROL = "samples, verifier picks"
VERIFY_PROMPT: list[Message] = [{"role": "user", "content": f"{{question}}\n{{solution}}\n{VERIFY}"}]
RETRY = "{review}\nColour it again."
REFUSE = "This is not correct."
ACCEPT = "Verifier confirmed success."

P, ACCEPT_RIGHT, ACCEPT_WRONG = 0.16, 0.02, 0.05  # of the script: GPT-4's first answers, and about its critic


@dataclass(frozen=True)
class Arm:
    """One way of answering, one seed: each problem's answers in order, with verdicts, and what they cost."""

    groups: list[list[Attempt]]
    picks: bool  # whether a verifier says which answer is right; else the last one counts
    seconds: float

    def success(self, rounds: int = ROUNDS) -> dict[str, float]:
        """Problem -> 1.0 where it is solved after so many rounds of criticism, success@k."""
        return {group[0].problem.id: float(self._solved(group[: rounds + 1])) for group in self.groups}

    def _solved(self, group: Sequence[Attempt]) -> bool:
        right = [attempt.verdict.status == "correct" for attempt in group]
        return any(right) if self.picks else right[-1]

    @property
    def seen(self) -> float:
        """Share of problems with a right answer anywhere."""
        return float(np.mean([any(a.verdict.status == "correct" for a in group) for group in self.groups]))

    @property
    def rejected(self) -> float:
        """Share of problems that had a right answer and did not end with one."""
        return self.seen - float(np.mean(list(self.success().values())))


def study(lab: Lab) -> Iterator[Claim]:
    yield from scripted(lab, copies=25 if lab.quick else 60)

    from selfimprove.policy.hf import TransformersEngine

    made = lab.folder / "colourer"  # made once; remove it to have it made again
    if not made.exists():
        make_colourer(made, documents=400 if lab.quick else DOCUMENTS)
    engine = TransformersEngine(str(made), device="cpu", max_batch=64, max_length=WINDOW)
    yield from trained(lab, engine, size=8 if lab.quick else 60)


def run(engine: Engine, problems: Sequence[Problem], name: str, seed: int, said: str) -> Arm:
    """One arm; `said` is what the self-critic says of an answer that it accepts."""
    began = time.monotonic()
    # Each arm draws for itself: with shared seeds the script's arms would be alike by construction.
    draws = seeds.derive(seed, name)
    if name == CONTROL:
        solver: Any = partial(best_of_n, n=ROUNDS + 1, temperature=TEMPERATURE)
        found = solve(solver, engine, problems, seed=draws, max_tokens=LONGEST)
    else:
        critic, feedback = ARMS[name]
        solver = partial(generate, critic=critic, feedback=feedback, rounds=ROUNDS, **asked(said))
        found = solve(solver, engine, problems, seed=draws, check=graded, max_tokens=LONGEST)
    picks = name == CONTROL or name in VERIFIED
    return Arm(attempts(problems, found, graded), picks, time.monotonic() - began)


def asked(said: str) -> dict[str, Any]:
    return {"verify": VERIFY_PROMPT, "accept": said, "refuse": REFUSE, "retry": RETRY, "temperature": TEMPERATURE}


def graded(text: str, problem: Problem) -> Outcome:
    return check(text, problem.gold, problem.metadata)


# The script: a policy that draws every answer afresh


def scripted(lab: Lab, copies: int) -> Iterator[Claim]:
    """Every arm against its closed form, of a policy whose answers are independent whatever it is told."""
    problems, engine = script(copies)
    arms = {name: run(engine, problems, name, 0, YES) for name in (*ARMS, CONTROL)}
    title = (
        f"Script: right with p = {P}, its critic accepts {ACCEPT_RIGHT} of right and {ACCEPT_WRONG} of wrong answers"
    )
    lab.note(success_table(title, {name: [arm] for name, arm in arms.items()}))
    truth = {"direct": P, "self-critique": self_critique(P, ACCEPT_RIGHT, ACCEPT_WRONG, ROUNDS)}
    for name, arm in arms.items():
        expected = truth.get(name, 1 - (1 - P) ** (ROUNDS + 1))
        found = mean_over_problems(list(arm.success().values()))
        yield Claim(
            f"scripted: {name}: success@{ROUNDS} is the closed form's {expected:.3f}",
            found.low <= expected <= found.high,
            found.value,
            (found.low, found.high),
            "closed form",
            COMMAND,
        )
    for name in VERIFIED:
        gap = difference([arms[name].success()], [arms[CONTROL].success()])
        yield Claim(
            f"scripted: {name} is no better than independent samples",
            not gap.apart,
            gap.value,
            (gap.low, gap.high),
            CONTROL,
            COMMAND,
        )
    yield from below(arms["self-critique"], arms["direct"], "scripted: self-critique ends below the first answers")
    yield from below(
        arms["direct"], arms["verifier, pass/fail"], "scripted: the first answers are below a sound verifier"
    )


def below(low: Arm, high: Arm, claim: str) -> Iterator[Claim]:
    gap = difference([low.success()], [high.success()])
    yield Claim(claim, gap.high < 0 if gap.apart else None, gap.value, (gap.low, gap.high), "the other", COMMAND)


def self_critique(p: float, right: float, wrong: float, rounds: int) -> float:
    """Probability that the last answer is right, of independent answers that are right with probability p, when the
    critic accepts a right one with probability `right` and a wrong one with `wrong`, and is asked `rounds` times."""
    stops = p * right + (1 - p) * wrong
    goes_on: float = (1 - stops) ** rounds
    return p * right * (1 - goes_on) / stops + goes_on * p


def script(copies: int) -> tuple[list[Problem], ScriptedEngine]:
    """20 graphs, each as `copies` problems, and a policy that knows them: an answer is right with probability P."""
    graphs = graphs_of(20)
    right = {content(p): one_line(colours_of(p.gold or "")) for p in graphs}
    wrong = {content(p): [one_line([1] * len(p.metadata["vertices"])), spoilt(p)] for p in graphs}
    engine = ScriptedEngine(
        right, P, p_improve=P, p_degrade=1 - P, tpr=ACCEPT_RIGHT, fpr=ACCEPT_WRONG, wrong_values=wrong
    )
    return [replace(p, id=f"{p.id}-{i}") for p in graphs for i in range(copies)], engine


def content(problem: Problem) -> str:
    return problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1]["content"]


def one_line(colours: Sequence[int]) -> str:
    """A colouring without white space, as the script's answers have to be."""
    return "{" + ",".join(f"{v}:{colour}" for v, colour in enumerate(colours, start=1)) + "}"


def spoilt(problem: Problem) -> str:
    colours = colours_of(problem.gold or "")
    u, v = problem.metadata["edges"][0]
    colours[u - 1] = colours[v - 1]
    return one_line(colours)


# A tiny model


def trained(lab: Lab, engine: Engine, size: int) -> Iterator[Claim]:
    """The same arms with a model that learnt to colour, to criticise, and to mend what it is told."""
    problems = graphs_of(size)
    arms = {name: [run(engine, problems, name, seed, ACCEPT) for seed in lab.seeds] for name in (*ARMS, CONTROL)}
    lab.note(success_table("A model of a million parameters, means over seeds", arms))
    lab.note(cost_table(engine, arms))
    alone = partial(critic_alone, verify=VERIFY_PROMPT, accept=ACCEPT, temperature=TEMPERATURE)
    critics = [solve(alone, engine, problems, seed=seed, max_tokens=LONGEST) for seed in lab.seeds]
    lab.note(critic_table([pair for found in critics for pair in zip(problems, found, strict=True)]))

    def gap(name: str, other: str) -> Estimate:
        return difference([a.success() for a in arms[name]], [a.success() for a in arms[other]])

    def compared(claim: str, holds: Callable[[Estimate], bool], name: str, other: str) -> Claim:
        found = gap(name, other)
        return Claim(claim, holds(found) if found.apart else None, found.value, (found.low, found.high), other, COMMAND)

    yield compared(
        "trained: self-critique ends below the first answers", lambda e: e.high < 0, "self-critique", "direct"
    )
    first = VERIFIED[0]
    yield compared("trained: a sound verifier is above the first answers", lambda e: e.low > 0, first, "direct")
    for name in VERIFIED[1:]:
        found = gap(name, first)
        yield Claim(
            f"trained: {name}: what is said makes no difference of more than 0.1",
            True if found.low > -0.1 and found.high < 0.1 else False if found.apart else None,
            found.value,
            (found.low, found.high),
            first,
            COMMAND,
        )
    for name in VERIFIED:
        yield compared(f"trained: {name} is no better than independent samples", lambda e: e.high < 0, name, CONTROL)


def graphs_of(size: int) -> list[Problem]:
    """Held-out graphs of 5 and 6 vertices, as the tiny model reads them: each vertex with its earlier neighbours."""
    found = colouring.load(
        vertices=VERTICES,
        colours=COLOURS,
        probability=PROBABILITY,
        seed=0,
        prompt="{question}",
        train_size=0,
        heldout_size=size,
    )
    shown = [neighbours(len(p.metadata["vertices"]), p.metadata["edges"]) for p in found]
    return [
        replace(p, prompt=[{"role": "user", "content": text}], metadata={**p.metadata, "question": text})
        for p, text in zip(found, shown, strict=True)
    ]


# How it is made: a Llama of a million parameters, on train-side graphs, by the package's own SFT

VERTICES, COLOURS, PROBABILITY = (5, 6), 3, 0.6
DOCUMENTS = 9_000
WINDOW, LONGEST = 2048, 96  # tokens of a dialogue, and of an answer
SHARES = {"solve": 0.6, "verify": 0.12, "mend": 0.28}
MORE = 0.5  # probability that a dialogue has one more wrong answer, up to ROUNDS of them


@dataclass(frozen=True)
class Document:
    """A dialogue, and how much of each assistant's turn is learnt: a start of its text, all of the last."""

    messages: list[Message]
    learnt: list[str]


def neighbours(vertices: int, edges: colouring.Edges) -> str:
    """A graph, one vertex a line, with those of its neighbours that come before it."""
    earlier = [[str(min(e)) for e in edges if max(e) == v] for v in range(1, vertices + 1)]
    return "\n".join(f"{v} by {' '.join(us) or 'none'}" for v, us in enumerate(earlier, start=1))


def worked(colours: Sequence[int], edges: colouring.Edges) -> str:
    """A colouring, with each vertex's earlier neighbours and their colours in the line above it."""
    lines = []
    for v, colour in enumerate(colours, start=1):
        earlier = [min(e) for e in edges if max(e) == v]
        lines.append(f"({' '.join(f'{u}: {colours[u - 1]}' for u in earlier)})")  # which no checker takes for an answer
        lines.append(f"{v}: {colour}")
    return "\n".join(lines)


def colours_of(text: str) -> list[int]:
    """The colours of "1: 3" and so on, one a line."""
    return [int(line.split()[1]) for line in text.splitlines()]


def clashes(colours: Sequence[int], edges: colouring.Edges) -> list[str]:
    """What a verifier that names all errors says."""
    return [clash(str(u), str(v), str(colours[u - 1])) for u, v in edges if colours[u - 1] == colours[v - 1]]


def slip(rng: random.Random, colours: Sequence[int], edges: colouring.Edges, most: int) -> list[int]:
    """A wrong colouring: up to `most` vertices of a right one have another colour."""
    wrong = list(colours)
    while not clashes(wrong, edges):
        wrong = list(colours)
        for vertex in rng.sample(range(len(wrong)), rng.randint(1, most)):
            wrong[vertex] = rng.randint(1, COLOURS)
    return wrong


def document(rng: random.Random) -> Document:
    """One train-side graph: coloured, a colouring of it criticised, or wrong ones mended as they are criticised.

    What is learnt is the first colouring in the order of the dictionary, and after a wrong one the right one that
    changes the fewest vertices, so that what is said of it can help; of the wrong one only what is before its slip.
    """
    while True:
        row = colouring.planted(rng, rng.randint(*VERTICES), COLOURS, PROBABILITY)
        edges = row.metadata["edges"]
        if row.side == "train" and edges:
            break
    size = len(row.metadata["vertices"])
    question = neighbours(size, edges)
    first = colouring.colouring(size, edges, COLOURS)
    assert first is not None, "it was made with a colouring"
    skill = rng.choices(list(SHARES), list(SHARES.values()))[0]
    if skill == "verify":
        shown = rng.choice([first, colours_of(row.gold or "")])
        if rng.random() < 0.5:
            shown = slip(rng, shown, edges, size)
        review = "\n".join(clashes(shown, edges)) or ACCEPT
        written = worked(shown, edges) if rng.random() < 0.5 else listed(shown)
        return Document([user(f"{question}\n{written}\n{VERIFY}"), assistant(review)], [review])
    messages, learnt = [user(question)], []
    right = first
    if skill == "mend":
        proper = every_colouring(size, edges)
        tells = rng.choice([lambda said: REFUSE, lambda said: said[0], "\n".join])
        for _ in range(1 + sum(1 for _ in itertools.takewhile(lambda _: rng.random() < MORE, range(ROUNDS - 1)))):
            wrong = slip(rng, right, edges, 3)
            text = worked(wrong, edges)
            learnt.append(common_lines(text, worked(right, edges)))
            messages += [assistant(text), user(RETRY.replace("{review}", tells(clashes(wrong, edges))))]
            right = [int(c) for c in proper[(proper != wrong).sum(axis=1).argmin()]]
    text = worked(right, edges)
    return Document([*messages, assistant(text)], [*learnt, text])


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def listed(colours: Sequence[int]) -> str:
    return "\n".join(f"{v}: {colour}" for v, colour in enumerate(colours, start=1))


def every_colouring(vertices: int, edges: colouring.Edges) -> np.ndarray:
    """All proper colourings, (colourings, vertices)."""
    every = np.array(list(itertools.product(range(1, COLOURS + 1), repeat=vertices)))
    return every[np.all([every[:, u - 1] != every[:, v - 1] for u, v in edges], axis=0)]


def common_lines(text: str, other: str) -> str:
    """The first lines of `text` that are those of `other` too."""
    pairs = zip(text.splitlines(keepends=True), other.splitlines(keepends=True), strict=False)
    return "".join(line for line, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def example(tokenizer: Any, made: Document, number: int) -> Example:
    """Token ids of a document, and which bear loss."""
    ids = tokenizer.apply_chat_template(made.messages, return_dict=False)
    opened = tokenizer.convert_tokens_to_ids("<|assistant|>")
    starts = [i + 1 for i, token in enumerate(ids) if token == opened]
    mask = [0] * len(ids)
    for start, text in zip(starts, made.learnt, strict=True):
        length = len(tokenizer(text, add_special_tokens=False)["input_ids"]) + (
            start == starts[-1]
        )  # and the end token
        mask[start : start + length] = [1] * length
    cut = starts[0]
    return Example(f"document-{number}", [str(number)], ids[:cut], ids[cut:], mask=mask[cut:])


def make_colourer(out: Path, documents: int) -> None:
    """Train the tiny model into `out`. Some minutes on one core for 9 thousand documents."""
    import tempfile

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from selfimprove.train import TrainContext
    from selfimprove.train.sft import sft

    def progress(record: dict[str, float]) -> None:
        if record["step"] % 100 == 0:
            log.info("study: step %d, loss %.3f", record["step"], record["loss"])

    rng = random.Random(0)
    tokenizer = make_tokenizer(rng)
    torch.manual_seed(0)
    model = LlamaForCausalLM(  # type: ignore[no-untyped-call]
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=2,
            head_dim=64,
            max_position_embeddings=WINDOW,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    log.info("study: training a model of %d parameters on %d documents", model.num_parameters(), documents)
    with tempfile.TemporaryDirectory(prefix="selfimprove-") as start, store.new_folder(out) as folder:
        model.save_pretrained(start)
        tokenizer.save_pretrained(start)
        context = TrainContext(start, start, folder, 0, "cpu", "float32", 8, False, None, progress)
        rows = [example(tokenizer, document(rng), i) for i in range(documents)]
        figures = sft(rows, context, learning_rate=1.5e-3, batch_size=8, schedule="cosine", warmup_ratio=0.05)
    log.info("study: %s", ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))


def make_tokenizer(rng: random.Random) -> Any:
    """Byte-level BPE of these dialogues, in which digits and line breaks stand alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from selfimprove.policy.models import PACKAGED

    roles = ["<|system|>", "<|user|>", "<|assistant|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<bos>", "<eos>", *roles],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([m["content"] for _ in range(1000) for m in document(rng).messages], trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        additional_special_tokens=roles,
        model_max_length=WINDOW,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = (PACKAGED / "tiny" / "chat_template.jinja").read_text(encoding="utf-8")
    return tokenizer


# Tables


def success_table(title: str, arms: dict[str, list[Arm]]) -> Table:
    rounds = (0, 1, 3, 7, ROUNDS)
    shown = Table("arm", *(f"success@{k}" for k in rounds), "seen", "rejected", title=title)
    for name, each in arms.items():
        values = [float(np.mean([list(arm.success(k).values()) for arm in each])) for k in rounds]
        more = [float(np.mean([arm.seen for arm in each])), float(np.mean([arm.rejected for arm in each]))]
        shown.add_row(name, *(f"{value:.3f}" for value in (*values, *more)))
    return shown


def cost_table(engine: Engine, arms: dict[str, list[Arm]]) -> Table:
    """The last critique of a self-critic that accepts is in no trajectory and is not counted."""
    shown = Table(
        "arm", "tokens", "prompt tokens", "calls", "seconds", "success", "plain, pass@tokens", "plain, maj@tokens",
        title="Cost of a problem, means; beside it plain samples worth as many sampled tokens",
    )  # fmt: skip
    for name, each in arms.items():
        problems = [group[0].problem for group in each[0].groups]
        # A chain's last trajectory has all its samples; independent samples are a trajectory each.
        whole = [
            [a.trajectory for a in (group if name == CONTROL else group[-1:])] for arm in each for group in arm.groups
        ]
        tokens = float(np.mean([sum(t.sampled_tokens for t in group) for group in whole]))
        samples = plain(engine, problems, graded, tokens, temperature=TEMPERATURE, max_tokens=LONGEST)
        beside = at_tokens(samples, tokens, maj=vote)
        shown.add_row(
            name,
            f"{tokens:.0f}",
            f"{np.mean([sum(t.prompt_tokens for t in group) for group in whole]):.0f}",
            f"{np.mean([sum(len(t.samples) for t in group) for group in whole]):.1f}",
            f"{np.mean([arm.seconds for arm in each]) / len(problems):.2f}",
            f"{np.mean([list(arm.success().values()) for arm in each]):.3f}",
            f"{np.mean(beside['pass']):.3f}",
            f"{np.mean(beside['maj']):.3f}",
        )
    return shown


def critic_table(found: Sequence[tuple[Problem, list[Trajectory]]]) -> Table:
    """What the critic accepts of each kind of colouring, by whether it is right; and the edges it makes up."""
    shown = Table(
        "colourings", "right", "accepted, right (TPR)", "accepted, wrong (FPR)", "edges named", "made up",
        title="The critic alone",
    )  # fmt: skip
    asked_of = [(graded(t.metadata["colouring"], p).status == "correct", t.metadata) for p, ts in found for t in ts]
    for kind in (*dict.fromkeys(m["kind"] for _, m in asked_of), "all"):
        those = [(right, m) for right, m in asked_of if kind in (m["kind"], "all")]
        accepted = {was: [m["accepted"] for right, m in those if right is was] for was in (True, False)}
        named = sum(m["named"] for _, m in those)
        shown.add_row(
            kind,
            f"{len(accepted[True])} of {len(those)}",
            *(f"{np.mean(values):.3f}" if values else "" for values in accepted.values()),
            str(named),
            f"{sum(m['hallucinated'] for _, m in those) / named:.3f}" if named else "",
        )
    return shown
