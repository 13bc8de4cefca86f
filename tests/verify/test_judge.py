"""The judge: with set rates, with the packaged model, and on a server of this process."""

import asyncio
import itertools
import json
import logging
import math
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import yaml

from selfimprove.config import CONF
from selfimprove.datasets import arithmetic as data
from selfimprove.errors import ConfigError, RunError
from selfimprove.policy import Policy
from selfimprove.policy.hf import TransformersEngine
from selfimprove.policy.models import resolve
from selfimprove.policy.scripted import VERIFY, ScriptedEngine
from selfimprove.types import Problem, Sample, Trajectory
from selfimprove.verify import Context, Outcome, arithmetic, judge

KEY = "sk-4f9a-do-not-print"
ASK = [{"role": "user", "content": "Q: {question}\nA: {solution}"}, {"role": "assistant", "content": f"{VERIFY} "}]
WORDS = {"correct": "Yes", "incorrect": "No"}


def trajectory(text, problem_id="p"):
    return Trajectory(problem_id, [Sample([], [], [], text, "stop", 0)])


def run(groups, policy, resource=None, **options):
    async def all_of_them():
        found = await asyncio.gather(
            *(judge.verify(p, ts, Context(policy.for_problem(p), None, resource), **options) for p, ts in groups)
        )
        return list(itertools.chain.from_iterable(found))

    return asyncio.run(all_of_them())


# A policy of set rates


def scripted(count, tpr, fpr):
    """A policy, and `count` problems with a right and a wrong answer each."""
    problems = [Problem(f"p{i}", f"problem {i} of all", str(i)) for i in range(count)]
    engine = ScriptedEngine({p.prompt: p.gold for p in problems}, tpr=tpr, fpr=fpr)
    pairs = [[trajectory(f"The answer is {p.gold}"), trajectory(f"The answer is {int(p.gold) + 1}")] for p in problems]
    return Policy(engine, 0), list(zip(problems, pairs, strict=True))


def test_p_correct_is_what_the_judge_believes():
    policy, groups = scripted(3, 0.8, 0.3)
    outcomes = run(groups, policy, prompt=ASK, **WORDS)
    assert [o.reward for o in outcomes] == pytest.approx([0.8, 0.3] * 3)
    assert [o.status for o in outcomes] == ["correct", "wrong"] * 3
    assert outcomes[0].reason == "Yes"
    asked = policy.meter.take()
    assert (asked["calls"], asked["scored"]) == (12, 6 * (len("Yes") + len("No")))
    strict = run(groups, policy, prompt=ASK, **WORDS, threshold=0.9, reward="verdict")
    assert {(o.status, o.reward) for o in strict} == {("wrong", 0.0)}
    alone = run(groups, policy, prompt=ASK, correct="No", incorrect=None)
    assert [o.reward for o in alone] == pytest.approx([0.2, 0.7] * 3)


def test_written_verdicts_come_at_the_judges_rates():
    policy, groups = scripted(400, 0.8, 0.3)
    outcomes = run(groups, policy, prompt=ASK, **WORDS, reason=True, temperature=1.0)
    said = np.array([o.reason == "Yes" for o in outcomes]).reshape(-1, 2).mean(0)
    assert {o.reason for o in outcomes} == {"Yes", "No"}
    assert said == pytest.approx([0.8, 0.3], abs=0.08)  # 4 standard errors
    assert [o.reward for o in outcomes] == pytest.approx([0.8, 0.3] * 400)
    again = run(groups, policy, prompt=ASK, **WORDS, reason=True, temperature=1.0)
    assert again == outcomes  # seeds are the problem's own


def test_a_judge_that_says_something_else_blames_nobody():
    policy, groups = scripted(1, 0.5, 0.5)
    for options in ({}, {"reason": True}):
        outcomes = run(groups, policy, prompt=ASK, correct="Right", incorrect="False", **options)
        assert [o.status for o in outcomes] == ["unparseable"] * 2
    no_lead = run(groups, policy, prompt=ASK, **WORDS, reason=True, lead="Verdict: ")
    assert [o.status for o in no_lead] == ["unparseable"] * 2
    assert no_lead[0].reason.startswith("no readable verdict: ")


def test_gold_in_the_prompt():
    problem = Problem("p", "why?", "42", metadata={"question": "why {solution}?"})
    assert judge.fill([{"role": "user", "content": "{question} {gold}: {solution}"}], problem, "{gold} ") == [
        {"role": "user", "content": "why {solution}? 42: {gold}"}
    ]
    policy, groups = scripted(1, 1.0, 0.0)
    groups[0][0].gold = None
    outcomes = run(groups, policy, prompt=[{"role": "user", "content": "{gold} {solution}"}], **WORDS)
    assert [o.status for o in outcomes] == ["error"] * 2
    assert "no gold answer" in outcomes[0].reason


# The packaged model


@pytest.fixture(scope="module")
def tiny():
    engine = TransformersEngine(resolve("tiny", "package"), device="cpu")
    yield engine
    engine.close()


def options_of(name):
    options = {}
    for file in ("judge", name):
        options |= yaml.safe_load((CONF / "verifier" / f"{file}.yaml").read_text())
    return {key: value for key, value in options.items() if key not in ("_target_", "defaults")}


def auc(scores, right):
    scores, right = np.array(scores), np.array(right)
    above = scores[right][:, None] - scores[~right][None]
    return float((above > 0).mean() + (above == 0).mean() / 2)


def test_the_packaged_model_knows_right_from_wrong(tiny):
    rng = random.Random(1)
    problems = [data.problem(data.random_chain(rng, 2 + i % 3), "solve") for i in range(60)]
    policy = Policy(tiny, 0, max_tokens=96)

    async def solve():
        return await asyncio.gather(*(policy.for_problem(p).sample(p.prompt, 2) for p in problems))

    samples = asyncio.run(solve())
    groups = [(p, [Trajectory(p.id, [s]) for s in found]) for p, found in zip(problems, samples, strict=True)]
    right = [arithmetic.check(t.text, p.gold, p.metadata).status == "correct" for p, group in groups for t in group]
    options = options_of("judge_arithmetic")
    outcomes = run(groups, policy, **options)
    assert auc([o.reward for o in outcomes], right) > 0.85
    written = {"lead": "Verdict: ", "correct": "correct", "incorrect": "incorrect", "reason": True}
    reasoned = run(groups, policy, **options | written)
    assert {o.reason.rpartition("\n")[2] for o in reasoned} == {"Verdict: correct", "Verdict: incorrect"}
    assert [o.status == "correct" for o in reasoned] == [o.reason.endswith(" correct") for o in reasoned]
    assert np.mean([(o.status == "correct") == r for o, r in zip(reasoned, right, strict=True)]) > 0.8
    straight = run(groups, policy, **options | written | {"reason": False})  # it never gives a verdict without a reason
    assert sum(o.status == "unparseable" for o in straight) > 30


def test_p_correct_is_the_words_share_by_the_model_called_by_hand(tiny):
    import torch

    problem = data.problem(data.Chain(7, (("+", 5), ("*", 3))), "solve")
    solution = "7 + 5 = 12\n12 * 3 = 35\nThe answer is 35."
    options = options_of("judge_arithmetic")
    (outcome,) = run([(problem, [trajectory(solution, problem.id)])], Policy(tiny, 0), **options)
    chat = data.verify_prompt(problem.metadata["question"], solution)
    prompt = tiny.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    masses = []
    for word in (options["correct"], options["incorrect"]):
        ids = tiny.tokenizer(word, add_special_tokens=False).input_ids
        with torch.no_grad():
            logprobs = tiny.model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        masses.append(math.exp(sum(logprobs[len(prompt) - 1 + i, token].item() for i, token in enumerate(ids))))
    assert outcome.reward == pytest.approx(masses[0] / sum(masses), rel=1e-4)


def test_a_judge_of_its_own_is_opened_and_a_prompt_too_long_for_it_is_an_error(opening, tmp_path):
    problem = data.problem(data.Chain(7, (("+", 5), ("*", 3))), "solve")
    texts = ["7 + 5 = 12\n12 * 3 = 36\nThe answer is 36.", "7 + 5 = 12\n" * 200]
    options = options_of("judge_arithmetic")
    policy = Policy(ScriptedEngine({}), 0)  # which could not answer
    for model in ("base", resolve("tiny", "package")):
        engine = judge.resource(opening(), **options | {"model": model})
        outcomes = run([(problem, [trajectory(t) for t in texts])], policy, engine, **options)
        engine.close()
        assert [o.status for o in outcomes] == ["correct", "error"]
        assert "window of 512" in outcomes[1].reason
    assert policy.meter.calls == 4
    with pytest.raises(ConfigError, match="no such folder"):
        judge.resource(opening(), **options | {"model": str(tmp_path / "nowhere")})


# A server


class Handler(BaseHTTPRequestHandler):
    """Odd prompts are right with probability 0.9, even ones with 0.2. The model's name says what else happens."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        state = self.server.state
        with state["lock"]:
            state["requests"].append(body)
            state["now"] += 1
            state["most"] = max(state["most"], state["now"])
        time.sleep(0.02)
        try:
            status, reply = self.reply(body, len(state["requests"]))
        finally:
            with state["lock"]:
                state["now"] -= 1
        payload = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(payload)

    def reply(self, body, count):
        model = body["model"]
        if self.headers["Authorization"] != f"Bearer {KEY}":
            return 401, {"error": {"message": f"bad key {self.headers['Authorization']}"}}
        if model == "busy" and count % 2:
            return 429, {"error": {"message": "slow down"}}
        if model == "broken":
            return 500, {"error": {"message": f"trouble\nwith {KEY}"}}
        if model == "strict":
            return 400, {"error": {"message": "logprobs are not supported"}}
        if model not in ("good", "busy", "mute", "reasoning", "chatty"):
            return 404, {"error": {"message": f"The model {model} does not exist"}}
        p = 0.9 if int(body["messages"][-1]["content"][-1]) % 2 else 0.2
        word = "Yes" if p > 0.5 else "No"
        tokens = {"reasoning": ["No", "?", " Well", ".\n", "Verdict", ":", " **"], "chatty": ["It", " depends"]}
        tokens = [(token, {token: 0.0}) for token in tokens.get(model, [])]
        if model != "chatty":
            spread = {"Yes": p * 0.8, " yes": p * 0.2, "No": (1 - p) * 0.7, "Not": (1 - p) * 0.1, " no": (1 - p) * 0.3}
            tokens.append((word, {token: math.log(mass * 0.9) for token, mass in spread.items()}))
        tokens.append((".", {".": 0.0}))
        content = [
            {
                "token": token,
                "logprob": 0.0,
                "bytes": None,
                "top_logprobs": [{"token": t, "logprob": p, "bytes": None} for t, p in tops.items()],
            }
            for token, tops in tokens
        ]
        message = {"role": "assistant", "content": "".join(token for token, _ in tokens)}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        choice["logprobs"] = None if model == "mute" else {"content": content}
        usage = {"prompt_tokens": 11, "completion_tokens": len(tokens), "total_tokens": 11 + len(tokens)}
        return 200, {"id": "x", "object": "chat.completion", "created": 0, "model": model, "choices": [choice]} | {
            "usage": usage
        }

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.state = {"lock": threading.Lock(), "requests": [], "now": 0, "most": 0}
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def ask(server, model, opening, count=3, concurrency=4, key_env="JUDGE_KEY", **more):
    """The outcomes of `count` problems, and the policy whose meter counted."""
    options = options_of("judge") | WORDS | {"server": f"http://127.0.0.1:{server.server_port}/v1", "model": model}
    options |= {"key_env": key_env, "concurrency": concurrency, "prompt": [{"role": "user", "content": "{solution}"}]}
    options |= more
    judge.require(**options)
    policy = Policy(ScriptedEngine({}), 0)
    groups = [(Problem(f"p{i}", "?"), [trajectory(f"odd: {i}")]) for i in range(count)]

    async def all_of_them():
        found = await asyncio.gather(
            *(judge.verify(p, ts, Context(policy.for_problem(p), None, resource), **options) for p, ts in groups)
        )
        return list(itertools.chain.from_iterable(found))

    resource = judge.resource(opening(), **options)
    with asyncio.Runner() as runner:
        try:
            return runner.run(all_of_them()), policy
        finally:
            resource.close()


def test_a_servers_alternatives_give_p_correct(server, opening):
    outcomes, policy = ask(server, "good", opening, count=4)
    # "Not" is no beginning of a verdict word, the others are, whatever their case and space
    expected = {True: 0.9 / (0.9 + 0.1), False: 0.2 / (0.2 + 0.8)}
    assert [o.reward for o in outcomes] == pytest.approx([expected[i % 2 == 1] for i in range(4)])
    assert [o.status for o in outcomes] == ["wrong", "correct"] * 2
    assert [o.reason for o in outcomes] == ["No.", "Yes."] * 2
    asked = policy.meter.take()
    assert (asked["calls"], asked["prompt"], asked["sampled"]) == (4, 44, 8)
    asked = server.state["requests"][0]
    assert asked["logprobs"] is True
    assert (asked["top_logprobs"], asked["temperature"]) == (20, 0.0)
    assert "seed" not in asked


def test_a_servers_verdict_is_read_behind_its_reason(server, opening):
    options = {"reason": True, "lead": "Verdict: ", "temperature": 0.7, "max_tokens": 50}
    outcomes, _ = ask(server, "reasoning", opening, count=2, **options | {"lead": "Verdict:"})
    assert [o.status for o in outcomes] == ["wrong", "correct"]
    assert outcomes[1].reward == pytest.approx(0.9)
    assert outcomes[1].reason == "No? Well.\nVerdict: **Yes."
    first, second = server.state["requests"]
    assert first["max_tokens"] == 50
    assert first["seed"] != second["seed"]
    outcomes, _ = ask(server, "chatty", opening, **options)
    assert [o.status for o in outcomes] == ["unparseable"] * 3
    assert outcomes[0].reason == "no readable verdict: It depends."


def test_no_more_requests_at_once_than_allowed(server, opening):
    ask(server, "good", opening, count=40, concurrency=5)
    assert len(server.state["requests"]) == 40
    assert 1 < server.state["most"] <= 5


def test_a_busy_server_is_asked_again(server, opening):
    outcomes, _ = ask(server, "busy", opening, count=3, concurrency=1)
    assert [o.status for o in outcomes] == ["wrong", "correct", "wrong"]
    assert len(server.state["requests"]) == 6


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("absent", "has no model 'absent'.*The model absent does not exist.*verifier.model"),
        ("mute", "gives no log-probabilities for 'mute'"),
        ("strict", "gives no log-probabilities for 'strict'"),
    ],
)
def test_a_server_that_cannot_judge_is_one_clear_line(server, opening, model, words):
    with pytest.raises(ConfigError, match=words) as caught:
        ask(server, model, opening)
    assert "\n" not in str(caught.value)


def test_a_refused_key_is_named_by_its_variable_and_never_printed(server, opening, monkeypatch, caplog):
    monkeypatch.setenv("OTHER_KEY", "sk-wrong-and-secret")
    with caplog.at_level(logging.DEBUG):
        with pytest.raises(ConfigError, match=r"refused the key \(401\); it is from .* OTHER_KEY") as caught:
            ask(server, "good", opening, key_env="OTHER_KEY")
        outcomes, _ = ask(server, "broken", opening, count=1)
    assert outcomes == [Outcome("error", 0.0, reason=outcomes[0].reason)]
    assert "500" in outcomes[0].reason
    for said in (str(caught.value), outcomes[0].reason, caplog.text):
        assert KEY not in said
        assert "sk-wrong-and-secret" not in said
    assert len(server.state["requests"]) > judge.RETRIES


def test_a_server_that_is_not_there_stops_the_run(server, opening, monkeypatch):
    monkeypatch.setattr(judge, "RETRIES", 0)
    server.server_close()
    with pytest.raises(RunError, match="cannot be reached"):
        ask(server, "good", opening)


def test_what_a_server_needs_is_asked_for_before_the_run(monkeypatch):
    options = options_of("judge") | {"server": "http://127.0.0.1:1/v1", "model": "m", "key_env": "NO_SUCH_KEY"}
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_KEY: no such environment variable"):
        judge.require(**options)
    options["key_env"] = None
    judge.require(**options)
    with pytest.raises(ConfigError, match=r"verifier\.model"):
        judge.require(**options | {"model": "policy"})
    with pytest.raises(ConfigError, match="user's turn"):
        judge.require(**options | {"prompt": ASK})
    with pytest.raises(ConfigError, match="both verdict words"):
        judge.require(**options | {"incorrect": None})
