"""`selfimprove serve` under load, asked by OpenAI's own client."""

import asyncio
import json
import signal
import socket
import struct
import urllib.error
import urllib.request

import pytest

from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.serve import BODY, Refused, read, require
from tests.conftest import environment_of
from tests.forks import Command
from tests.waiting import wait_for

KEY, SECRET = "sk-nobody-sees-this", "Start with 11. Add 8. Subtract 7. What is the result?"
DSER = ["method=dser", "model=tiny", "method.generate.chains=2", "method.generate.iterations=1"]
GOOD = {"model": "dser", "messages": [{"role": "user", "content": "1 + 1?"}]}


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"stream": True}, 400, "stream: must be off"),
        ({"n": 2}, 400, "n: must be 1"),
        ({"temperature": 0.5}, 400, "temperature: the method's own options decide"),
        ({"tools": []}, 400, "tools"),
        ({"seed": "x"}, 400, "seed"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400, "a text as its content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "roles are"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "the last one must be the user's"),
    ],
)
def test_what_is_not_to_be_had_is_named(change, status, words):
    with pytest.raises(Refused, match=words) as refused:
        read(json.dumps(GOOD | change).encode())
    assert refused.value.status == status


def test_fields_that_are_null_or_defaults_are_taken():
    assert read(json.dumps(GOOD | {"temperature": None, "n": 1, "stream": False}).encode())["model"] == "dser"
    for body in (b"{", b"[1]"):
        with pytest.raises(Refused):
            read(body)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method=rejection_sampling"], "learns"),
        (["method=iad"], "asks for|chooses its answer by best"),
        (["method=critique_coloring", "dataset=colouring"], "needs graph|asks for"),
    ],
)
def test_a_method_that_needs_more_than_a_question_is_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        require(compose(words, needs=False))


def test_methods_that_vote_or_take_the_last_are_served():
    for method in ("dser", "ids", "perfics"):
        require(compose([f"method={method}"], needs=False))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of a service, and its output."""
    folder = tmp_path_factory.mktemp("serve")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = folder / "output"
    words = ["serve", *DSER, "--port", str(port), "--requests", "80"]
    process = Command(folder, environment_of(folder / "home"), words, output)
    wait_for(lambda: health(port) is not None, process)
    yield port, output
    process.send_signal(signal.SIGTERM)
    assert process.wait() in (0, -15)
    assert [path.name for path in folder.iterdir()] == ["output"] or not list(folder.rglob("*.parquet"))


def health(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as reply:
            return json.load(reply)
    except OSError:
        return None


def client(port):
    from openai import AsyncOpenAI

    return AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0)


def kill_one(port):
    """What is left of a client that was killed in the middle: its connection is reset."""
    body = json.dumps({"model": "dser", "messages": [{"role": "user", "content": SECRET}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port)) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.sendall(head + body)


def asked_of(number):
    """One client's request, with a seed of its own."""
    question = f"Start with {number}. Add 8. What is the result?"
    return {"model": "dser", "messages": [{"role": "user", "content": question}], "seed": number}


def test_64_clients_of_which_one_is_killed(served):
    port, output = served

    async def ask_all():
        async with client(port) as openai:
            asked = [openai.chat.completions.create(**asked_of(i)) for i in range(10, 73)]
            killed = asyncio.get_running_loop().run_in_executor(None, kill_one, port)
            replies = await asyncio.gather(*asked)
            await killed
            return replies

    replies = asyncio.run(ask_all())
    assert len(replies) == 63
    for reply in replies:
        assert reply.choices[0].message.content
        assert reply.model == "dser"
        assert reply.usage.completion_tokens > 0
        assert reply.model_extra["selfimprove"]["candidates"] == 4  # two chains, before and after their one round
    texts = [reply.choices[0].message.content for reply in replies]
    alone = [i for i, text in enumerate(texts) if texts.count(text) == 1][:8]  # what no other client was told
    assert len(alone) == 8

    async def ask_again():
        async with client(port) as openai:
            return [
                (await openai.chat.completions.create(**asked_of(10 + i))).choices[0].message.content for i in alone
            ]

    same = [again == texts[i] for i, again in zip(alone, asyncio.run(ask_again()), strict=True)]
    assert sum(same) >= 7  # in a batch a draw may fall otherwise here and there
    wait_for(lambda: health(port)["running"] == 0)
    for word in (KEY, SECRET, "Start with", "What is"):
        assert word not in output.read_text()


def test_the_same_seed_gives_the_same_reply_and_errors_are_openais(served):
    import openai

    port, _ = served
    messages = [{"role": "user", "content": SECRET}]

    async def ask():
        async with client(port) as asking:
            create = asking.chat.completions.create
            first, second = [await create(model="dser", messages=messages, seed=3) for _ in range(2)]
            assert first.choices == second.choices
            assert [model.id for model in (await asking.models.list()).data] == ["dser"]
            with pytest.raises(openai.BadRequestError, match="stream: must be off") as refused:
                await create(model="dser", messages=messages, stream=True)
            assert refused.value.param == "stream"
            with pytest.raises(openai.NotFoundError, match="there is no model"):
                await create(model="other", messages=messages)
            with pytest.raises(openai.BadRequestError, match="window"):
                await create(model="dser", messages=[{"role": "user", "content": "Add 8. " * 1000}])
            with pytest.raises(openai.APIStatusError, match="longer than"):
                await create(model="dser", messages=[{"role": "user", "content": "x" * BODY}])

    asyncio.run(ask())


def test_another_host_name_is_refused(served):
    port, _ = served
    request = urllib.request.Request(f"http://127.0.0.1:{port}/health", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(request)
