"""KnowRL: a model writes tasks that it thinks it can do, or cannot, and learns to say the same of a task each time.

KnowRL: Teaching Language Models to Know What They Know (Kale and Dhami 2025, arXiv 2510.11407).

    seeds      D: tasks of which it is known whether they are feasible for the policy, half of them
    ask        x ~ pi_v(. | some of D with one label l, "another task that is l")        half of the requests for each l
               without near-duplicates
    assess     a_1..a_k ~ pi_v(. | x, "can you do this?")
               maj(x) = the label that most of them say, share(x) = how many do
               r(a_j) = 1 where a_j = maj(x), else 0
               guards: tasks with share(x) below a bound are dropped, and as many of each label are kept
               train pi on r, by REINFORCE with a leave-one-out baseline and advantages scaled over the batch
    propose    r(x) = share(x) where maj(x) = l, else 0; train pi on it in the same way
    remember   D gets tasks with a high share(x), under the label maj(x); repeat

No label and no solution is looked at but those of the seeds.

What of this is the paper's, what notes on it say and what is our own choice is said in docs/methods/know_rl.md.

*Wrong when* most assessments of a task are wrong: agreement is rewarded, and not truth. Without the guards the label
that is said more often is rewarded more often, until nothing else is said.
"""

from __future__ import annotations

import random
import string
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from selfimprove.datasets import messages
from selfimprove.datasets.overlap import overlap
from selfimprove.errors import ConfigError
from selfimprove.filter.advantages import Baseline, Scale, advantages
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.generate.recite import recite as held_reply
from selfimprove.policy import Policy
from selfimprove.scores import Scores
from selfimprove.train.policy_gradient import policy_gradient
from selfimprove.train.sft import sft
from selfimprove.types import Attempt, Count, Example, Memory, Problem, Share, Trajectory
from selfimprove.verify import Context, Outcome
from selfimprove.verify.choice import choose

generate, compared, learn_words, train = best_of_n, advantages, sft, policy_gradient

NGRAM = 5  # words that a piece of a task has, of which near-duplicates share most


# Words that the policy has to know


def lessons(problems: list[Problem], *, ask: str, shots: Count, seed: int) -> list[Problem]:
    """Three problems of each seed: to assess it, to write it, and the task itself.

    Of the first two metadata["reply"] is the reply to learn: the label's letter, and the seed's text where `ask` shows
    up to `shots` others with its label.
    """
    rng, pool, found = random.Random(seed), by_label(problems), list[Problem]()
    for problem in problems:
        label, task = label_of(problem), str(problem.metadata["question"])
        others = [text for text in pool[label] if text != task]
        write = request(f"write-{problem.id}", ask, label, rng.sample(others, min(shots, len(others))))
        write.metadata["reply"] = task
        letter = lettered(problem.metadata["options"])[label]
        assess = Problem(problem.id, problem.prompt, metadata=problem.metadata | {"reply": letter})
        found += [assess, write, Problem(f"solve-{problem.id}", task, metadata={"question": task})]
    return found


async def recite(problem: Problem, policy: Policy, *, n: Count) -> list[Trajectory]:
    """The reply that the problem holds, with what the policy says of it; else n answers of the policy's own."""
    if "reply" not in problem.metadata:
        return await best_of_n(problem, policy, n=n, temperature=1.0)
    return await held_reply(problem, policy)


def imitated(groups: Iterable[list[Attempt]]) -> Iterator[Example]:
    """Every attempt that ended by itself as a row."""
    for attempt in (attempt for group in groups for attempt in group):
        (sample,) = attempt.trajectory.samples
        if sample.finish == "stop":
            yield Example(attempt.problem.id, [attempt.trajectory.id], sample.prompt_ids, sample.completion_ids)


# Introspection


def introspections(
    problems: list[Problem], *, ask: str, count: Count, shots: Count, share: Share, memory: Sequence[Memory], seed: int
) -> list[Problem]:
    """`count` requests for a task, half of them for each label.

    `ask` shows `shots` tasks of that label ({tasks}) and names it ({label}). Tasks are the seeds, and those of earlier
    rounds on whose label at least a `share` of the assessments agreed. Raises ConfigError if there are too few.
    """
    rng, pool = random.Random(seed), by_label(problems)
    for known in memory:
        if known.metadata["share"] >= share:
            pool[known.metadata["label"]].append(str(known.text))
    labels = problems[0].metadata["options"]
    if few := [label for label in labels if len(pool[label]) < shots]:
        raise ConfigError(f"dataset.train_size: there are {len(pool[few[0]])} {few[0]} tasks, and {shots} are shown")
    chosen = [labels[number % len(labels)] for number in range(count)]
    return [request(f"ask-{i}", ask, label, rng.sample(pool[label], shots)) for i, label in enumerate(chosen)]


def request(name: str, ask: str, label: str, tasks: list[str]) -> Problem:
    """A request for another task with a label."""
    said = ask.replace("{tasks}", "\n".join(tasks)).replace("{label}", label)
    return Problem(name, said, metadata={"question": said, "wanted": label, "shown": tasks})


def by_label(problems: Iterable[Problem]) -> dict[str, list[str]]:
    """The questions of problems with gold answers, by label."""
    found = defaultdict[str, list[str]](list)
    for problem in problems:
        found[label_of(problem)].append(str(problem.metadata["question"]))
    return found


def lettered(labels: Sequence[str]) -> dict[str, str]:
    """The letter of each label: what a verdict names it by."""
    return dict(zip(labels, string.ascii_uppercase, strict=False))


def label_of(problem: Problem) -> str:
    options: list[str] = problem.metadata["options"]
    (index,) = choose(problem.gold or "", options)
    return options[index]


def tasks(
    groups: Iterable[list[Attempt]], *, assess: str, labels: list[str], alike: Share | None, memory: Sequence[Memory]
) -> Iterator[Problem]:
    """A problem for each new task, which asks for one of `labels` by the template `assess`.

    A task that was cut off is left out. So is a task that has a share `alike` of its 5-grams in common with one that
    was shown, an earlier one, or one of this pass. None: no task is left out for this reason.
    """
    attempts = [attempt for group in groups for attempt in group]
    known = {str(m.text) for m in memory} | {text for a in attempts for text in a.problem.metadata["shown"]}
    kept = [Problem(text, text, metadata={"question": text}) for text in sorted(known)]
    for attempt in attempts:
        text = attempt.trajectory.text.strip()
        new = Problem("new", text, metadata={"question": text})
        if not text or attempt.trajectory.samples[-1].finish != "stop":
            continue
        if alike is not None and overlap([new], kept, NGRAM, alike):
            continue
        kept.append(new)
        more = {"options": labels, "wanted": attempt.problem.metadata["wanted"], "origin": attempt.trajectory.id}
        yield Problem("", messages(text, assess, None, (), labels), metadata={"question": text, **more})


# Consensus


def agreement(group: Sequence[Attempt]) -> tuple[str | None, float]:
    """maj(x) and share(x) of a task's assessments, judged by `verify.consensus`; (None, 0) where none has a label."""
    said = [attempt.verdict.extracted for attempt in group if attempt.verdict.status == "correct"]
    if not said or said[0] is None:
        return None, 0.0
    labels = {letter: label for label, letter in lettered(group[0].problem.metadata["options"]).items()}
    return labels[said[0]], len(said) / len(group)


def agreed(
    groups: Iterable[list[Attempt]],
    *,
    share: Share,
    balance: bool,
    seed: int,
    baseline: Baseline = "leave_one_out",
    scale: Scale = "batch",
) -> Iterator[Example]:
    """Rows with advantages (`filter.advantages`) of tasks on which at least a `share` of the assessments agree.

    `balance`: as many tasks of each label, drawn at random; none where a label has no task.
    """
    kept = defaultdict[str, list[list[Attempt]]](list)
    for group in groups:
        label, found = agreement(group)
        if label is not None and found >= share:
            kept[label].append(group)
    if balance:
        labels = {label for found in kept.values() for label in found[0][0].problem.metadata["options"]}
        size, rng = min((len(kept[label]) for label in sorted(labels)), default=0), random.Random(seed)
        kept = defaultdict(list, {label: rng.sample(found, size) for label, found in kept.items()})
    yield from advantages([group for found in kept.values() for group in found], baseline=baseline, scale=scale)


def assessed(groups: Iterable[list[Attempt]], *, memory: Sequence[Memory]) -> Iterator[Memory]:
    """All tasks so far with maj(x) and share(x), each under the id of the trajectory that proposed it."""
    yield from memory
    for group in groups:
        label, share = agreement(group)
        task = group[0].problem.metadata
        yield Memory(task["origin"], task["question"], metadata={"label": label, "share": share})


async def wanted(
    problem: Problem, trajectories: list[Trajectory], context: Context, *, memory: Sequence[Memory]
) -> list[Outcome]:
    """share(x) for each proposal x whose majority has the label that was asked for, else 0.

    A proposal that was left out before it was assessed is `unparseable`.
    """
    known = {m.key: m.metadata for m in memory}

    def outcome(found: dict[str, object] | None) -> Outcome:
        if found is None:
            return Outcome("unparseable", 0.0, reason="was cut off, or is like another task")
        right = found["label"] == problem.metadata["wanted"]
        return Outcome("correct" if right else "wrong", float(right) * float(str(found["share"])), str(found["label"]))

    return [outcome(known.get(t.id)) for t in trajectories]


# What is measured on held-out tasks


def figures(rounds: Sequence[Scores]) -> dict[str, float]:
    """Of the last evaluation: `f1` of the first label, and `said`, the share of answers that are that label.

    Both are of the problems that were answered, a share `answered` of all. The truth follows from answer and score.
    """
    last = rounds[-1]
    pairs = [(said, value == 1) for said, value in zip(last.answers, last.values, strict=True) if said is not None]
    hits = sum(said == "A" and right for said, right in pairs)
    said = sum(said == "A" for said, _ in pairs)
    true = sum((said == "A") == right for said, right in pairs)
    return {
        "f1": f1(hits, said, true),
        "said": said / max(1, len(pairs)),
        "answered": len(pairs) / max(1, len(last.values)),
    }


def f1(hits: float, said: float, true: float) -> float:
    """2 hits / (said + true): of a label that was said so often, is true so often, and both so often."""
    return 2 * hits / (said + true) if said + true else 0.0
