"""docqa: its world, its questions, its teacher; and questions over real corpora."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from selfimprove.datasets import boolq, wordnet
from selfimprove.datasets.docqa import documents, known, load, sentence, triples, world
from selfimprove.datasets.docqa_teachers import NOTHING, agent, teacher
from selfimprove.errors import ConfigError
from selfimprove.types import Problem

PROMPT = "{question}"


def problems(**options: object) -> list[Problem]:
    return load(**{"seed": 0, "prompt": PROMPT, "train_size": 90, "dev_size": 30, "heldout_size": 60, **options})  # type: ignore[arg-type]


def test_a_questions_facts_lead_to_its_answer_and_are_in_the_corpus() -> None:
    corpus = set(documents())
    for problem in problems():
        facts = problem.metadata["facts"]
        assert len(facts) == problem.metadata["hops"] == str(problem.metadata["question"]).count("the ")
        assert corpus.issuperset(facts)
        assert facts[-1].endswith(f" is {problem.gold}.")
        for fact, name in zip(facts[1:], problem.metadata["sub_answers"], strict=False):
            assert f" of {name} is " in fact


def test_hops_come_in_equal_parts_and_sides_have_no_robot_in_common() -> None:
    found = problems()
    counts = [sum(p.metadata["hops"] == hops for p in found if p.split == "train") for hops in (1, 2, 3)]
    assert counts == [30, 30, 30]
    sides = [{name for key, name in own.items()} | {robot for _, robot in own} for own in world().values()]
    assert not any(one & other for i, one in enumerate(sides) for other in sides[i + 1 :])


def test_seeds_change_training_problems_alone() -> None:
    first, second = problems(), problems(seed=1)
    assert [p.id for p in first if p.split != "train"] == [p.id for p in second if p.split != "train"]
    assert {p.id for p in first if p.split == "train"} != {p.id for p in second if p.split == "train"}


def test_removed_facts_stand_in_no_document() -> None:
    corpus = documents(removed=0.3)
    assert 0.65 < len(corpus) / len(documents()) < 0.75
    missing = [sum(f not in set(corpus) for f in p.metadata["facts"]) for p in problems(removed=0.3)]
    assert missing == [p.metadata["missing"] for p in problems(removed=0.3)]
    assert any(missing)


def test_a_size_that_is_too_large_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.heldout_size=10000: there are only"):
        problems(heldout_size=10000)


def say(chat: list[str], **options: float) -> str:
    roles = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(chat)]
    own = teacher(**{"wrong_queries": 0.0, "misreads": 0.0, **options})
    return asyncio.run(own(roles, temperature=1.0, max_tokens=None, seed=1))


def test_the_teacher_asks_reads_and_answers() -> None:
    chat = ["Who is the boss of the aide of 471?"]
    assert say(chat) == "Query: aide of 471"
    chat += [say(chat), "Document 1: The pal of 471 is 777."]
    assert say(chat) == f"{NOTHING}\nRefined Query: aide of 471"
    chat += [say(chat), "Document 2: The pal of 471 is 777. The aide of 471 is 208."]
    assert say(chat) == "The aide of 471 is 208.\nQuery: boss of 208"
    chat += [say(chat), "Document 3: The boss of 208 is 356."]
    assert say(chat) == "The boss of 208 is 356.\nFinal Answer: 356"


def test_the_teacher_errs_as_often_as_it_is_told() -> None:
    chat = ["Who is the boss of 471?"]
    assert say(chat, wrong_queries=1.0) in {f"Query: {r} of 471" for r in ("aide", "pal", "heir")}
    chat += ["Query: boss of 471", f"Document 1: {sentence(('boss', '471', '208'))} {sentence(('pal', '777', '356'))}"]
    answers = {say([f"{chat[0]}", *chat[1:]], misreads=1.0)}
    assert answers <= {f"The boss of 471 is {name}.\nFinal Answer: {name}" for name in ("208", "356")}
    with pytest.raises(ValueError, match="only questions of dataset=docqa"):
        say(["What is 2 + 2?"])


@pytest.mark.skipif(not Path(wordnet.FOLDER).is_dir(), reason="Debian's wordnet-base is not installed")
def test_wordnets_glosses_lead_to_the_answer() -> None:
    found = wordnet.load(seed=0, prompt=PROMPT, heldout_size=50)
    assert {p.metadata["hops"] for p in found} == {1, 2, 3}
    corpus = wordnet.documents()
    assert len(corpus) == 82115  # noun synsets of WordNet 3.0
    (paris,) = (synset for synset in wordnet.nouns().values() if "City of Light" in synset.names)
    assert paris.gloss.startswith("the capital and largest city of France")
    for problem in found[:20]:
        assert problem.gold == problem.metadata["sub_answers"][-1] == problem.metadata["answers"][0]


def test_a_missing_wordnet_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="apt-get install wordnet-base"):
        wordnet.load(path=str(tmp_path), seed=0, prompt=PROMPT)


def test_wordnets_format_is_read(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(
        "  1 the licence\n"
        "00000001 15 n 02 Nice 0 Nizza 0 002 @i 00000003 n 0000 #p 00000002 n 0000 | a city in France; it is sunny  \n"
        "00000002 15 n 01 French_Republic 0 000 | a republic  \n"
        "00000003 15 n 01 city 0 001 ~i 00000001 n 0000 | a large town  \n",
        encoding="utf-8",
    )
    assert wordnet.documents(path=str(tmp_path))[:2] == [
        "Nice, Nizza: a city in France; it is sunny",
        "French Republic: a republic",
    ]
    synset = wordnet.nouns(str(tmp_path))["00000001"]
    assert synset.links == [("instance_of", "00000003"), ("part_of", "00000002")]
    with pytest.raises(ConfigError, match="no problem"):  # its gloss does not name the whole
        wordnet.load(path=str(tmp_path), seed=0, prompt=PROMPT)


def test_boolqs_passages_are_a_corpus(tmp_path: Path) -> None:
    file = tmp_path / "boolq.jsonl"
    file.write_text(
        '{"question": "is water wet", "passage": "Water is wet.", "label": true}\n'
        '{"question": "is ice hot", "passage": "Ice is cold.", "label": false}\n'
        '{"question": "is it", "passage": "Water is wet."}\n'
    )
    found = boolq.load(path=str(file), seed=0, prompt=PROMPT, heldout_share=1.0)
    assert sorted((p.metadata["question"], p.gold) for p in found) == [("is ice hot?", "No"), ("is water wet?", "Yes")]
    assert boolq.documents(path=str(file)) == ["Water is wet.", "Ice is cold."]


def test_the_teacher_reads_all_that_it_was_shown() -> None:
    chat = ["Who is the boss of the aide of 471?", "Query: aide of 471", "Document 1: The boss of 208 is 356."]
    chat += [say(chat), "Document 2: The aide of 471 is 208."]
    assert say(chat) == "The aide of 471 is 208.\nThe boss of 208 is 356.\nFinal Answer: 356"


def test_the_graph_lacks_what_is_removed_and_known_questions_are_of_the_training_side() -> None:
    found = {sentence((relation, one, other)) for one, relation, other in triples(removed=0.3)}
    assert found == set(documents(removed=0.3))
    questions = known(count=30)
    assert len(questions) == 30
    assert all(entity in question for question, entity, _ in questions)
    train = {robot for _, robot in world()["train"]}
    assert {entity for _, entity, _ in questions} | {answer for *_, answer in questions} <= train


def test_the_agent_searches_documents_where_the_graph_has_nothing() -> None:
    chat = ["Who is the boss of the aide of 471?"]
    for observed, said in (
        ("", "getReasoningPath(q)"),
        ("...", "aide(x, z1) & boss(z1, y)\nsearchNeighbor(471, aide)"),
        ("208", "searchNeighbor(208, boss)"),
        ("none", "wikiSearch(208, boss)"),
        ("The boss of 208 is 356. The pal of 208 is 111.", "(208, boss, 356)\nfinish(356)"),
    ):
        chat += [observed] * bool(observed)
        roles = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(chat)]
        assert asyncio.run(agent()(roles, temperature=1.0, max_tokens=None, seed=0)) == said
        chat.append(said)
