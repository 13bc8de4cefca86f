"""A policy of set chances that mends bugs, and no weights: for searches through the actions of an agent.

It knows the gold actions of each problem: a search, a view, an edit and `finish`. Its next right action is the first of
them that it has not done; after a wrong edit it is to take the edit back. It acts rightly with probability p, whatever
it did before. Else it does one of four wrong things with equal chances: the search, the view or the edit at another
place that the problem's metadata names as `wrong`, or `finish` too early (`reject` if it should finish).

- A user's turn with FEEDBACK names actions that were tried. It repeats none that the turn says does not help.
- A turn with RATE asks what the last action is worth. Right ones are worth 25 for each gold action done, and 100 at the
  end. Wrong ones are worth -50, and an end without the solution -100. `noise` is the standard deviation of its answers.
- A turn with CHOOSE shows solutions. It gives each 100 or -100, with the same noise, and chooses the highest. If it
  reads the choices of others, it counts them together with its own. With CONCLUDE it only counts.

An action's log-probability stands with its first token.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from selfimprove import seeds
from selfimprove.policy import Request, require_plain
from selfimprove.policy.scripted import END, ScriptedEngine
from selfimprove.types import Message, Problem, Sample

TURN = "\x1e"
RATE, CHOOSE, CONCLUDE = "from -100 to 100", "Which solution", "the agents concluded"
USELESS = "does not help"
FEEDBACK = re.compile(rf"The action `(.*)` was tried here\..*?{USELESS}")
CHOSEN = re.compile(r"Choice: (\d+)")
SOLUTION = re.compile(r"^Solution (\d+),", re.MULTILINE)
FAILED = ("Error: ", "Nothing done: ")  # what is seen of an action that failed, in selfimprove.env.repository
CHANGE = re.compile(r"^(?:-(?!-- )|\+(?!\+\+ )).*$", re.MULTILINE)  # a line of a diff


@dataclass
class State:
    """How far a path has come."""

    right: Sequence[str]  # the gold actions
    wrong: Sequence[str]  # search, view, edit, and what takes the edit back
    done: list[bool] = field(default_factory=lambda: [False] * 4)
    spoilt: bool = False
    worth: float = 0.0  # of the last action

    def next(self) -> str:
        """The right action."""
        if self.spoilt:
            return self.wrong[3]
        return next((action for action, done in zip(self.right, self.done, strict=True) if not done), self.right[-1])

    def others(self) -> list[str]:
        """The wrong ones."""
        return [*self.wrong[:3], "reject" if self.next() == "finish" else "finish"]

    def act(self, action: str, seen: str) -> None:
        right = action == self.next()
        if not seen.startswith(FAILED):
            if action in self.right and (right or action != "finish"):
                self.done[self.right.index(action)] = True
            self.spoilt = action == self.wrong[2] or (self.spoilt and action != self.wrong[3])
        self.worth = 25.0 * sum(self.done) if right else -100.0 if action in ("finish", "reject") else -50.0


class Mender(ScriptedEngine):
    """Implements selfimprove.policy.Engine for the problems of `selfimprove.env.bugs`. Token ids are code points."""

    def __init__(self, problems: Sequence[Problem], p: float, noise: float, heeds: bool, max_length: int) -> None:
        super().__init__({}, max_length=max_length)
        self.problems = {str(problem.metadata["question"]): problem for problem in problems}
        self.p, self.noise, self.heeds = p, noise, heeds

    def render(self, prompt: str | list[Message]) -> list[int]:
        text = prompt if isinstance(prompt, str) else TURN.join(message["content"] for message in prompt)
        return self.encode(text + TURN)

    def turn(self, text: str, ended: bool) -> list[int]:
        return self.encode(TURN + text + TURN)

    async def sample(self, request: Request) -> Sample:
        """Raises ValueError if the prompt holds none of the problems."""
        require_plain(request, "mender")
        prompt = "".join(map(chr, request.prompt_ids))
        rng = random.Random(seeds.derive(request.seed, "mender"))
        text, chance = self._reply(prompt.removesuffix(TURN).split(TURN), rng)
        ids = self.encode(text + END)[: request.max_tokens]
        logprobs = [math.log(chance), *[0.0] * (len(ids) - 1)]
        ended = ids[-1] == self.end
        text = text if ended else "".join(map(chr, ids))
        finish = "stop" if ended else "length"
        return Sample(list(request.prompt_ids), ids, logprobs, text, finish, request.seed, request.temperature)  # type: ignore[arg-type]

    def _reply(self, parts: Sequence[str], rng: random.Random) -> tuple[str, float]:
        known = [question for question in self.problems if any(question in part for part in parts)]
        if not known:
            raise ValueError(f"the prompt holds none of the {len(self.problems)} problems: {parts[-1][:80]!r}")
        problem, last = self.problems[max(known, key=len)], parts[-1]
        if CONCLUDE in last:
            return f"Choice: {counted(CHOSEN.findall(last), '1')}", 1.0
        if any(CHOOSE in part for part in parts):
            return self._choice(problem, parts, rng), 1.0
        state = self._state(problem, parts)
        if RATE in last:
            value = round(min(100.0, max(-100.0, rng.gauss(state.worth, self.noise))))
            return f"It {'helps' if value > 0 else USELESS}. Value: {value}", 1.0
        return self._action(state, last, rng)

    def _state(self, problem: Problem, parts: Sequence[str]) -> State:
        """The state behind the actions of a prompt."""
        right = [line.removeprefix("Action: ") for line in (problem.gold or "").splitlines()]
        state = State(right, problem.metadata["wrong"])
        start = next(i for i, part in enumerate(parts) if str(problem.metadata["question"]) in part) + 1
        turns = parts[start:]
        for text, seen in zip(turns[::2], turns[1::2], strict=True):
            state.act(text.rstrip(END).removeprefix("Action: "), seen)
        return state

    def _action(self, state: State, last: str, rng: random.Random) -> tuple[str, float]:
        others = state.others()
        chances = {state.next(): self.p} | dict.fromkeys(others, (1 - self.p) / len(others))
        useless = set(FEEDBACK.findall(last)) if self.heeds else set[str]()
        left = {action: chance for action, chance in chances.items() if action not in useless}
        left = left if sum(left.values()) else chances
        (action,) = rng.choices(list(left), list(left.values()))
        return f"Action: {action}", left[action] / sum(left.values())

    def _choice(self, problem: Problem, parts: Sequence[str], rng: random.Random) -> str:
        shown = next(part for part in parts if CHOOSE in part)
        pieces = SOLUTION.split(shown)[1:]
        numbers, texts = pieces[::2], pieces[1::2]
        scores = [rng.gauss(100.0 if mends(text, problem) else -100.0, self.noise) for text in texts]
        own = numbers[max(range(len(scores)), key=scores.__getitem__)]
        return f"Choice: {counted([own, *CHOSEN.findall(parts[-1])], own)}"


def counted(choices: Sequence[str], first: str) -> str:
    """The most common choice; of equal ones `first`, else the one that comes first."""
    counts = Counter(choices)
    most = max(counts.values(), default=0)
    return first if counts[first] == most else next(name for name in choices if counts[name] == most)


def mends(diff: str, problem: Problem) -> bool:
    """Whether a diff changes the bug's lines back, and nothing else."""
    task = problem.metadata["task"]
    mended = [f"-{line}" for line in task["bad"]] + [f"+{line}" for line in task["good"]]
    return Counter(CHANGE.findall(diff)) == Counter(mended)
