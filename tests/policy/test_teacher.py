"""The teacher: its words as the learner's ids, another role, and a server of this process."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from selfimprove.errors import ConfigError, RunError
from selfimprove.policy import Policy
from selfimprove.policy.scripted import ScriptedEngine
from selfimprove.policy.teacher import hear, server, teacher_of
from selfimprove.types import Message, Sample

CHAT: list[Message] = [{"role": "user", "content": "Question?"}]
HOW: dict[str, Any] = {"temperature": 0.5, "max_tokens": 9, "seed": 3}


def learner(max_length: int = 100) -> Policy:
    return Policy(ScriptedEngine({"Question?": "7"}, p_correct=1.0, max_length=max_length), 0)


async def say(chat: list[Message], *, temperature: float, max_tokens: int | None, seed: int) -> str:
    return f" {chat[-1]['content']} {temperature} {max_tokens} {seed}\n"


def test_words_become_the_learners_ids_once_with_its_log_probabilities() -> None:
    policy = learner()
    sample = asyncio.run(hear(say, policy, CHAT, **HOW))
    assert sample.text == "Question? 0.5 9 3"
    assert "".join(map(chr, sample.prompt_ids)) == "Question?"
    assert sample.completion_ids == [*map(ord, sample.text), policy.engine.end]
    assert (sample.role, sample.finish, sample.temperature) == ("teacher", "stop", 0.5)
    assert len(sample.logprobs) == len(sample.completion_ids)
    taken = policy.meter.take()
    assert (taken["calls@teacher"], taken["sampled@teacher"]) == (1, len(sample.completion_ids))


def test_words_that_do_not_fit_are_cut_and_a_full_window_is_an_error() -> None:
    sample = asyncio.run(hear(say, learner(12), CHAT, **HOW))
    assert (len(sample.completion_ids), sample.finish) == (3, "length")
    with pytest.raises(ValueError, match="leaves no room"):
        asyncio.run(hear(say, learner(9), CHAT, **HOW))


def test_another_role_is_a_teacher_and_a_tool_goes_before_it() -> None:
    policy, other = learner(), learner()
    assert teacher_of({}, {"teacher": other}) is other
    assert teacher_of({"teacher": say}, {"teacher": other}) is say
    sample = asyncio.run(hear(other, policy, CHAT, temperature=0.5, max_tokens=30, seed=3))
    assert (sample.text, sample.role) == ("The answer is 7", "teacher")
    assert policy.meter.take()["sampled"] == 0, "the role's own meter counts"


def test_a_role_that_was_cut_off_gives_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, other = learner(), learner()

    async def cut(*args: Any, **options: Any) -> list[Sample]:
        return [Sample([], [], [], "The answer", "length", 0)]

    monkeypatch.setattr(other, "sample", cut)
    sample = asyncio.run(hear(other, policy, CHAT, **HOW))
    assert (sample.finish, "".join(map(chr, sample.completion_ids))) == ("length", "The answer")


class Handler(BaseHTTPRequestHandler):
    """Repeats what it was asked; the model `none` is not there, and an empty chat is refused."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = 404 if asked["model"] == "none" else 200 if asked["messages"] else 400
        body = json.dumps({"choices": [{"message": {"content": json.dumps(asked, sort_keys=True)}}]}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}/v1"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def asked(teacher: Any, chat: list[Message]) -> str:
    with asyncio.Runner() as loop:
        try:
            return str(loop.run(teacher(chat, **HOW)))
        finally:
            teacher._client._loop = None


def test_a_server_is_asked_for_a_chat(url: str) -> None:
    found = json.loads(asked(server(url=url, model="m"), CHAT))
    assert found == {"model": "m", "messages": CHAT, "temperature": 0.5, "seed": 3, "max_tokens": 9}


def test_a_server_without_the_model_or_that_refuses_is_one_line(url: str) -> None:
    with pytest.raises(ConfigError, match=r"method\.tools\.teacher\.model=none: .* has no such model"):
        asked(server(url=url, model="none"), CHAT)
    with pytest.raises(RunError, match="the server said"):
        asked(server(url=url, model="m"), [])
