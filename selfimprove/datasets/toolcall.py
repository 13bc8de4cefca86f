"""Requests in plain words, each of which one of four functions answers: "wake me at 7" is set_alarm(hour=7).

Each function is asked for in four common wordings and in two rare ones. A policy that has seldom read the rare wordings
has to guess the function. `metadata["kind"]` says which a request is.
"""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any, Unpack

from selfimprove import seeds
from selfimprove.datasets import Generated, Row, Side, finish, sizes_of
from selfimprove.errors import ConfigError
from selfimprove.types import Problem, Share
from selfimprove.verify.calls import written

# name -> argument, common wordings, rare wordings
FUNCTIONS: dict[str, tuple[str, list[str], list[str]]] = {
    "set_alarm": (
        "hour",
        ["wake me at {}", "alarm at {} please", "get me up at {}", "I must be up by {}"],
        ["rouse me when it strikes {}", "end my sleep at {}"],
    ),
    "set_timer": (
        "minutes",
        [
            "count down {} minutes",
            "timer for {} minutes",
            "tell me when {} minutes are over",
            "start a {} minute timer",
        ],
        ["boil my egg for {}", "let {} minutes run"],
    ),
    "set_volume": (
        "level",
        ["make it {} loud", "volume to {}", "turn the sound to {}", "sound level {} please"],
        ["let it roar at {}", "hush it down to {}"],
    ),
    "set_heat": (
        "degrees",
        ["heat the room to {}", "make it {} degrees warm", "warm the house to {}", "heating to {} please"],
        ["I freeze, go to {}", "chase the frost with {}"],
    ),
    "move_forward": (
        "steps",
        ["go {} steps ahead", "walk {} steps", "move on by {}", "take {} steps"],
        ["march {} on", "stride out for {}"],
    ),
    "buy_tickets": (
        "count",
        ["get {} tickets", "I need {} seats", "buy {} tickets for us", "book {} seats please"],
        ["we are {}, let us in", "admit {} of us"],
    ),
    "call_person": (
        "name",
        ["call {}", "phone {} for me", "ring {} up", "get {} on the line"],
        ["I want to hear from {}", "dial up {}"],
    ),
    "send_money": (
        "name",
        ["pay {}", "send money to {}", "give {} what I owe", "transfer cash to {}"],
        ["settle up with {}", "clear my debt to {}"],
    ),
    "find_book": (
        "name",
        ["find books by {}", "what has {} written", "look for a novel by {}", "search the library for {}"],
        ["I would read some {}", "fetch me {} in print"],
    ),
    "invite_guest": (
        "name",
        ["invite {}", "ask {} to the party", "have {} come over", "put {} on the guest list"],
        ["bid {} welcome", "summon {} to dinner"],
    ),
    "play_music": (
        "name",
        ["play {}", "put on some {}", "music by {} please", "start a record by {}"],
        ["let {} sing", "fill the air with {}"],
    ),
    "write_letter": (
        "name",
        ["write to {}", "start a letter to {}", "draft a note for {}", "compose mail to {}"],
        ["drop {} a line", "put pen to paper for {}"],
    ),
}
# fmt: off
NAMES = [
    "Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Ida", "Jon", "Kim", "Leo", "Mia", "Ned", "Ola", "Pam",
]
# fmt: on
NUMBERS = range(2, 60)
SHOWN = 4  # functions that a problem names

_SIDES: dict[int, Side] = {0: "test", 1: "dev"}


def load(*, rare: Share, seed: int, **options: Unpack[Generated]) -> list[Problem]:
    """Requests, no two alike on a side; a share `rare` of them in rare wordings.

    A fifth of all is held out and a fifth is for dev, by a hash of the request. Raises ConfigError if there are too
    few.
    """
    rows: list[Row] = []
    for where, size in sizes_of(options).items():
        rng = random.Random(seeds.derive(seed if where == "train" else 0, "toolcall", where))
        found: dict[str, Row] = {}
        misses = 0
        while len(found) < size and misses < 2000:
            row = drawn(rng, "rare" if rng.random() < rare else "common")
            misses += 1
            if row.side == where and row.id not in found:
                found[row.id], misses = row, 0
        if len(found) < size:
            key = f"dataset.{'heldout' if where == 'test' else where}_size"
            raise ConfigError(f"{key}={size}: there are only {len(found)} such requests", key)
        rows += found.values()
    return finish(rows, name="toolcall", seed=seed, **options)


def drawn(rng: random.Random, kind: str, name: str | None = None) -> Row:
    """A request for a function, any one by default, in wordings of a kind."""
    name = name or rng.choice(list(FUNCTIONS))
    argument, common, rare = FUNCTIONS[name]
    value: Any = rng.choice(NAMES) if argument == "name" else rng.choice(NUMBERS)
    request = rng.choice(rare if kind == "rare" else common).format(value)
    mark = hashlib.blake2b(request.encode(), digest_size=6).hexdigest()
    shown = [name, *rng.sample([other for other in FUNCTIONS if other != name], SHOWN - 1)]
    rng.shuffle(shown)
    listed = ", ".join(f"{one}({FUNCTIONS[one][0]})" for one in shown)
    metadata: dict[str, Any] = {"request": request, "actions": shown, "function": name, "kind": kind}
    side = _SIDES.get(int(mark, 16) % 5, "train")
    return Row(f"toolcall-{mark}", f"{listed}\nRequest: {request}", _gold(name, argument, value), mark, side, metadata)


def _gold(name: str, argument: str, value: Any) -> str:
    return json.dumps({name: {argument: [value]}})


def similar(problem: Problem, count: int, seed: int) -> list[tuple[str, str]]:
    """A perfect teacher: requests for the same function, in wordings of the same kind, each with its right call."""
    rng = random.Random(seed)
    rows = [drawn(rng, problem.metadata["kind"], problem.metadata["function"]) for _ in range(count)]
    return [(row.metadata["request"], call(row.gold or "")) for row in rows]


def call(gold: str) -> str:
    """The right call of a gold answer."""
    ((name, arguments),) = json.loads(gold).items()
    return written(name, {key: values[0] for key, values in arguments.items()})
