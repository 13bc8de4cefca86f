"""The embedded shop: find an article that fits an instruction, choose its options and buy it. It needs no download.

It is a small WebShop (Yao et al. 2022, arXiv 2207.01206), whose data cannot be had. Actions are `search[quiet kettle]`,
and `click[...]` with an article's number, an option, `features`, `next`, `back` or `buy`. Buying ends the episode. Its
reward is graded by the paper's formula, see `reward`. The 400 articles are the same in each task.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from selfimprove import seeds
from selfimprove.datasets import Row, Side, distinct
from selfimprove.env import Seen

PAGE = 5  # articles on a page of results
TYPES = {  # of article, by department
    "clothing": ("shirt", "jacket", "dress", "hat", "scarf"),
    "home": ("lamp", "rug", "pillow", "curtain", "blanket"),
    "kitchen": ("kettle", "pan", "mug", "bowl", "jug"),
    "travel": ("suitcase", "backpack", "tent", "bottle", "umbrella"),
}
ATTRIBUTES = {
    "clothing": ("cotton", "woollen", "slim", "loose", "striped", "lined", "washable", "light"),
    "home": ("soft", "washable", "handmade", "modern", "rustic", "linen", "dimmable", "thick"),
    "kitchen": ("steel", "ceramic", "quiet", "stackable", "insulated", "heavy", "unbreakable", "glass"),
    "travel": ("waterproof", "light", "foldable", "lockable", "padded", "recycled", "rugged", "compact"),
}
COLOURS = ("red", "blue", "green", "black", "white", "yellow")
SIZES = ("small", "medium", "large")
BRANDS = ("Alda", "Bram", "Corvo", "Dalen", "Esk", "Fjord")
EACH = 20  # articles of a type
_ACTION = re.compile(r"(search|click)\[(.+)\]")
_SIDES: dict[int, Side] = {0: "test", 1: "dev"}


@dataclass(frozen=True, slots=True)
class Article:
    number: str
    department: str
    type: str
    brand: str
    attributes: tuple[str, ...]
    colours: tuple[str, ...]
    sizes: tuple[str, ...]
    price: int  # dollars

    @property
    def title(self) -> str:
        """What a page of results shows. It names one of the article's attributes."""
        return f"{self.brand} {self.attributes[0]} {self.type}"


@cache
def stock() -> dict[str, Article]:
    """All articles by number."""
    rng, found = random.Random(seeds.derive(0, "shop")), dict[str, Article]()
    for department, types in TYPES.items():
        for kind in types:
            for _ in range(EACH):
                number = f"a{len(found):03}"
                attributes = tuple(rng.sample(ATTRIBUTES[department], 3))
                colours, sizes = (tuple(sorted(rng.sample(all_, n))) for all_, n in ((COLOURS, 3), (SIZES, 2)))
                brand, price = rng.choice(BRANDS), rng.randrange(5, 100)
                found[number] = Article(number, department, kind, brand, attributes, colours, sizes, price)
    return found


def results(words: str) -> list[Article]:
    """The articles that share a word with a query, those with most words first, then by number."""
    asked = set(re.findall(r"\w+", words.lower()))
    known = {a: asked & {a.type, a.brand.lower(), *a.attributes, *a.colours, *a.sizes} for a in stock().values()}
    return sorted((a for a in known if known[a]), key=lambda a: (-len(known[a]), a.number))


def reward(task: dict[str, Any], bought: Article, chosen: Iterable[str]) -> float:
    """How well an article with the chosen options fits, from 0 to 1.

    r = r_type (|U_att ∩ Y_att| + |U_opt ∩ Y_opt| + 1[y_price <= u_price]) / (|U_att| + |U_opt| + 1), as in the
    paper. The values of r_type are our own: 1 for the wanted type, .5 for another of its department, else 0.
    """
    options = {task["colour"], task["size"]}
    department = next(name for name, types in TYPES.items() if task["type"] in types)
    fit = 1.0 if bought.type == task["type"] else 0.5 if bought.department == department else 0.0
    attributes = len(set(task["attributes"]) & set(bought.attributes))
    right = attributes + len(options & set(chosen)) + int(bought.price <= task["price"])
    return float(fit * right / (len(task["attributes"]) + len(options) + 1))


def instruction(task: dict[str, Any]) -> str:
    return (
        f"Wanted: {task['type']}, {', '.join(task['attributes'])}. Color: {task['colour']}. Size: {task['size']}. "
        f"Price: at most {task['price']} dollars."
    )


class Shop:
    """One task: {"type", "attributes", "colour", "size", "price": the most to pay, in dollars}."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = task
        self.reset()

    def reset(self) -> Seen:
        self.found, self.page = list[Article](), 0
        self.article: Article | None = None
        self.chosen = dict[str, str]()
        return Seen(f"{instruction(self.task)}\nYou can search.")

    def step(self, action: str) -> Seen:
        if not (match := _ACTION.fullmatch(action)):
            return Seen("That cannot be done.")
        verb, what = match[1], match[2].strip().lower()
        if verb == "search":
            self.found, self.page, self.article = results(what), 0, None
            return self._results()
        if self.article is None:
            return self._click_result(what)
        return self._click_article(self.article, what)

    def _results(self) -> Seen:
        begin = self.page * PAGE
        lines = [f"[{a.number}] {a.title}, {a.price} dollars" for a in self.found[begin : begin + PAGE]]
        return Seen(
            "\n".join([f"{len(self.found)} articles, from {begin + 1}:", *lines] if lines else ["Nothing found."])
        )

    def _click_result(self, what: str) -> Seen:
        last = (len(self.found) - 1) // PAGE
        if what in ("next", "back") and 0 <= (page := self.page + (1 if what == "next" else -1)) <= last:
            self.page = page
            return self._results()
        shown = {a.number: a for a in self.found[self.page * PAGE : (self.page + 1) * PAGE]}
        if what not in shown:
            return Seen("That cannot be clicked.")
        self.article, self.chosen = shown[what], {}
        return self._page(self.article)

    def _page(self, article: Article) -> Seen:
        options = f"color: {', '.join(article.colours)}; size: {', '.join(article.sizes)}"
        picked = f" Chosen: {', '.join(self.chosen.values())}." if self.chosen else ""
        return Seen(f"{article.title}, {article.price} dollars; {options}.{picked}")

    def _click_article(self, article: Article, what: str) -> Seen:
        if what == "back":
            self.article = None
            return self._results()
        if what == "features":
            return Seen(f"It is {', '.join(article.attributes)}.")
        if what == "buy":
            gained = reward(self.task, article, self.chosen.values())
            return Seen(f"You bought {article.number}. Score: {gained:.2f}.", gained, True)
        for name, values in (("color", article.colours), ("size", article.sizes)):
            if what in values:
                self.chosen[name] = what
                return self._page(article)
        return Seen("That cannot be clicked.")


def plan(task: dict[str, Any]) -> list[str]:
    """Actions that gain all: they find and buy the first article that fits in everything."""
    query = " ".join([*task["attributes"], task["type"], task["colour"], task["size"]])
    options, found = [task["colour"], task["size"]], results(query)
    fitting = [
        place
        for place, article in enumerate(found)
        if reward(task, article, options) == 1 and set(options) <= {*article.colours, *article.sizes}
    ]
    words = [*["next"] * (fitting[0] // PAGE), found[fitting[0]].number, *options, "buy"]
    return [f"search[{query}]", *(f"click[{word}]" for word in words)]


def tasks(side: Side, count: int, seed: int) -> Iterator[Row]:
    """`count` different tasks of a side, or as many as are found. The seed chooses only train tasks.

    A hash of the wanted type and attributes decides a task's side: a fifth is held out, and a fifth is for dev.
    """
    rng = random.Random(seeds.derive(seed if side == "train" else 0, "shop", side))
    return distinct(partial(_drawn, rng), side, count)


def _drawn(rng: random.Random) -> Row:
    article = rng.choice(list(stock().values()))
    attributes = sorted(rng.sample(article.attributes, 2))
    task = {
        "type": article.type,
        "attributes": attributes,
        "colour": rng.choice(article.colours),
        "size": rng.choice(article.sizes),
        "price": -(-(article.price + 1) // 10) * 10,
    }
    mark = hashlib.blake2b(instruction(task).encode(), digest_size=6).hexdigest()
    wanted = " ".join([article.type, *attributes])
    place = int(hashlib.blake2b(wanted.encode(), digest_size=6).hexdigest(), 16)
    gold = "\n".join(f"Action: {action}" for action in plan(task))
    question = Shop(task).reset().text
    return Row(f"shop-{mark}", question, gold, article.number, _SIDES.get(place % 5, "train"), {"task": task})
