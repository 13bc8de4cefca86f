"""Auto-RAG: a model sends query after query to a retriever, until it knows enough to answer.

Auto-RAG: Autonomous Retrieval-Augmented Generation for Large Language Models (Yu et al. 2024, arXiv 2411.19443; code
ictnlp/Auto-RAG).

    curation     for each question x, with a teacher:
        for t = 0 .. T
            r_t    the teacher says what the last documents have and what is missing; it is drawn several times
            q_t    the query in r_t; a draw whose documents hold a sub-answer is kept, otherwise any draw
            d_t    the documents that q_t finds
        until r_t states an answer
    filter       dialogues whose answer is the gold answer
    train        fine-tuning on the teacher's turns; x and d_t bear no loss
    inference    the same dialogue by the policy. No document is shown twice.
        after T queries   one more turn has to answer
        while it asks     the policy writes the document itself, from its own knowledge, at most E times

*Wrong when* a document that is needed has no word of the query: the retriever does not find it. Also wrong when the
policy takes something in the documents for an answer that it is not: then no query follows.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any

from annotated_types import Ge

from selfimprove import seeds
from selfimprove.filter.spans import whole
from selfimprove.generate.act import act
from selfimprove.generate.dialogue import Dialogue
from selfimprove.policy import Policy
from selfimprove.policy.chat import messages_of
from selfimprove.policy.teacher import asked, told
from selfimprove.tools import Tool
from selfimprove.train.sft import sft
from selfimprove.types import Attempt, Count, Example, Message, NonNegative, Problem, Trajectory

train = sft

TOOLS = ("retriever", "teacher")  # what its solvers call
QUERY, REFINED, ANSWER = "Query:", "Refined Query:", "Final Answer:"


async def unseen(retriever: Tool, query: str, seen: set[str], most: int) -> list[str]:
    """At most `most` passages for a query, best first, without those in `seen`."""
    return [passage for passage in (await retriever(query)).splitlines() if passage not in seen][:most]


async def curate(
    problem: Problem,
    policy: Policy,
    *,
    max_iter: Count,
    max_passages: Count,
    shown: str,
    queries: Count,
    tools: Mapping[str, Any],
    seed: int,
    instruction: str | None = None,
    temperature: NonNegative = 1.0,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """A dialogue by the tool `teacher`, whose words are tokenized once.

    The teacher gets a chat: `instruction` (a system message with examples of the form), the problem, and then its own
    turns, with the documents as the user's turns. Each turn is drawn `queries` times, and one draw is kept. It is a
    draw whose documents hold one of metadata["sub_answers"] that was not found yet; if there is none, any draw.
    """
    chat: list[Message] = [{"role": "system", "content": instruction}] if instruction else []
    chat += messages_of(problem.prompt)
    dialogue, seen = Dialogue(policy, problem.prompt), set[str]()
    wanted = [str(one) for one in problem.metadata.get("sub_answers", [])]
    for turn in range(max_iter + 1):
        draws = [seeds.derive(seed, turn, draw) for draw in range(queries)]
        say = partial(asked, tools["teacher"], policy, chat, dialogue.ids)
        said = await asyncio.gather(*(say(temperature=temperature, max_tokens=max_tokens, seed=draw) for draw in draws))
        searching = [(words, query) for words in said if (query := query_of(words))]
        found = [await unseen(tools["retriever"], query, seen, max_passages) for _, query in searching]
        helpful = [i for i, passages in enumerate(found) if any(holds(passages, one) for one in wanted)]
        kept = random.Random(draws[0]).choice(helpful or [*range(len(searching))]) if query_of(said[0]) else None
        sample = await told(policy, dialogue.ids, said[0] if kept is None else searching[kept][0], seed)
        if sample is None:
            break
        dialogue.take(sample)
        if turn == max_iter or kept is None:
            break
        seen.update(found[kept])
        wanted = [one for one in wanted if not holds(found[kept], one)]
        observation = filled(shown, number=turn + 1, documents=" ".join(found[kept]))
        dialogue.user(observation)
        chat = [*chat, {"role": "assistant", "content": sample.text}, {"role": "user", "content": observation}]
    return [Trajectory(problem.id, dialogue.samples)] if dialogue.samples else []


async def answer(
    problem: Problem,
    policy: Policy,
    *,
    max_iter: Count,
    elicit_max_iter: Annotated[int, Ge(0)],
    max_passages: Count,
    shown: str,
    document: str,
    tools: Mapping[str, Tool],
    temperature: NonNegative = 0.0,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """One dialogue with the retriever, for held-out problems.

    `shown` is the user's message that shows documents, with {number} and {documents} in it. `document` is the prompt
    for a document that the policy writes itself, with {question} and {query}. metadata["searches"] is the number of
    searches, and metadata["written"] has the documents that the policy wrote.
    """
    dialogue, seen = Dialogue(policy, problem.prompt), set[str]()
    question = str(problem.metadata.get("question", problem.prompt))
    queries, written = [question], list[str]()  # the question is the query if the first turn has none

    async def step(text: str) -> str | None:
        if query := query_of(text):
            queries.append(query)
        elif ANSWER.lower() in text.lower():
            return None
        found = await unseen(tools["retriever"], queries[-1], seen, max_passages)
        seen.update(found)
        return filled(shown, number=len(queries) - 1, documents=" ".join(found))

    options: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
    searches = len(await act(dialogue, step, actions=max_iter, **options))
    while REFINED in dialogue.samples[-1].text and len(written) < elicit_max_iter and not dialogue.full:
        asked = filled(document, question=question, query=query_of(dialogue.samples[-1].text))
        (own,) = await policy.sample([{"role": "user", "content": asked}], stop=("\n",), **options)
        written.append(own.text.strip())
        dialogue.user(filled(shown, number=searches + len(written), documents=written[-1]))
        if not dialogue.full:
            await dialogue.reply(**options)
    return [Trajectory(problem.id, dialogue.samples, {"searches": searches, "written": written})]


def filled(template: str, **fields: Any) -> str:
    """A template with its fields filled in; other braces stay."""
    for name, value in fields.items():
        template = template.replace(f"{{{name}}}", str(value))
    return template


def query_of(text: str) -> str:
    """The query at the end of a turn; "" if there is none."""
    return text.rpartition(QUERY)[2].strip() if QUERY in text else ""


def holds(passages: Iterable[str], words: str) -> bool:
    """Whether some passage has these words in it; case does not matter."""
    return any(re.search(rf"\b{re.escape(words)}\b", passage, re.IGNORECASE) for passage in passages)


def dialogues(groups: Iterable[list[Attempt]], *, right: bool = True) -> Iterator[Example]:
    """A row for each dialogue with an answer, with loss on its turns; with `right`, only if the answer is right."""
    for group in groups:
        for attempt in group:
            if (attempt.verdict.status == "correct" or not right) and ANSWER in attempt.trajectory.text:
                yield whole(attempt.trajectory)
