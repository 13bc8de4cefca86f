"""`selfimprove serve method=NAME model=...`: a method that thinks longer, behind OpenAI's chat interface.

One request is one problem. The method's solver runs on it, `method.answer` chooses among its candidates, and the chosen
text is the reply. Requests that wait at the same time are answered in one batch, as in `selfimprove eval`. The server
listens on this machine alone. It logs and keeps no prompt and no answer.

A method can be served if it needs only the question. If it reads gold answers, rewards, options or a memory, it is
refused before the model loads.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfimprove import config as configuration
from selfimprove import seeds, store
from selfimprove.binding import asks_for, module_of, options_of
from selfimprove.errors import ConfigError
from selfimprove.heldout import answer_rule
from selfimprove.plan import Pass, plan
from selfimprove.policy import Policy
from selfimprove.ready import require_engine
from selfimprove.report.display import Display, setup_logging
from selfimprove.schema import Config
from selfimprove.session import Session, base_policies
from selfimprove.supplies import supplied
from selfimprove.types import Attempt, Message, Problem, Trajectory, Verdict
from selfimprove.verify.consensus import answer

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
BODY = 1 << 20  # bytes of a request
_GIVEN = {"seed", "text", "step"}  # what a solver may ask for here
_RULES = ("first", "vote", "last")  # the rules of method.answer that need no reward
_READ = {"model", "messages", "seed", "n", "stream", "user"}


class Refused(Exception):
    """A request that is not answered: the HTTP status and what is wrong."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param


@dataclass(frozen=True)
class Limits:
    """`most` is how many requests are answered at once; more get 429.

    `seconds` is the limit of one; then it gets 504.
    """

    most: int = 256
    seconds: float = 600.0


def require(config: Config) -> None:
    """Raises ConfigError for a method whose solver needs more than the question."""
    node, rule = config.solver, config.method.answer
    name = f"serve: method={config.method.name}"
    if config.method.stages or any(stage.train for stage in config.stages.values()):
        raise ConfigError(f"{name} learns; serve takes methods that think longer (kind in `selfimprove methods`)")
    if lacking := sorted(asks_for(node) - _GIVEN):
        raise ConfigError(f"{name} asks for {', '.join(lacking)}, which only a run has")
    own = getattr(module_of(node), "needs", None)
    needs = set(own(**options_of(node)) if own else getattr(module_of(node), "NEEDS", ()))
    if lacking := sorted(needs - set(config.engine["gives"])):
        raise ConfigError(
            f"{name} needs {', '.join(lacking)}, which neither a question nor engine={config.engine['name']} gives"
        )
    chosen = rule["_target_"].rpartition(".")[2] if rule else "first"
    if chosen not in _RULES or "{gold}" in str(node):
        raise ConfigError(f"{name} chooses its answer by {chosen}, which needs rewards or gold answers")


def serve(overrides: Sequence[str], port: int, limits: Limits) -> None:
    """Load the model and answer until a signal comes. Raises ConfigError before anything is loaded."""
    setup_logging(None)
    try:
        import uvicorn
    except ImportError:
        raise ConfigError("serve: needs pip install 'selfimprove[serve]'") from None
    config = configuration.compose(overrides, needs=False)
    require(config)
    require_engine(config, trains=False)
    with tempfile.TemporaryDirectory(prefix="selfimprove-serve-") as scratch:
        session = open_session(config, Path(scratch))
        try:
            app = Service(session, limits).application()
            options = uvicorn.Config(app, host=HOST, port=port, log_level="warning", access_log=False)
            print(f"http://{HOST}:{port}/v1 answers as {config.method.name}; Ctrl-C ends it", flush=True)
            session.loop.run(uvicorn.Server(options).serve())
        except KeyboardInterrupt:
            pass
        finally:
            session.close()


def open_session(config: Config, folder: Path) -> Session:
    """A session without problems. Nothing is written to `folder` but what an engine may need."""
    return Session(config, store.Run(folder), Display(folder, config, outside="service"), [], [], base_policies(config))


class Service:
    """What answers requests, with the engine open."""

    def __init__(self, session: Session, limits: Limits) -> None:
        self.config, self.limits = session.config, limits
        self._policy: Policy = session.policy(session.base, "policy", "serve")
        step: Pass = plan(session.config)[0]
        node = session.config.solver
        self._solve = supplied(session, step, node, "generate", "generate", session.config.dataset.verifier)
        self._asks = asks_for(node)
        self._rule = answer_rule(session.config)
        self._numbers = itertools.count()
        self.running = 0

    def application(self) -> Starlette:
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.routing import Route

        # A page in a browser could otherwise reach this port under a name of its own.
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", HOST])
        routes = [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/health", self.health),
        ]
        return Starlette(routes=routes, middleware=[hosts])

    async def models(self, request: Request) -> Response:
        own = {"id": self.config.method.name, "object": "model", "owned_by": self.config.model.name, "created": 0}
        return _json({"object": "list", "data": [own]})

    async def health(self, request: Request) -> Response:
        return _json({"status": "ok", "running": self.running, "limit": self.limits.most})

    async def chat(self, request: Request) -> Response:
        try:
            if self.running >= self.limits.most:
                raise Refused(429, f"{self.limits.most} requests are being answered; try again later")
            self.running += 1
            try:
                return await self._answered(request)
            finally:
                self.running -= 1
        except Refused as refused:
            kind = "invalid_request_error" if refused.status < 429 else "server_busy"
            said = {"message": str(refused), "type": kind, "param": refused.param, "code": None}
            return _json({"error": said}, refused.status, {"Retry-After": "1"} if refused.status == 429 else {})

    async def _answered(self, request: Request) -> Response:
        problem = self._problem(read(await _body(request)))
        work = asyncio.ensure_future(self.solve(problem))
        gone = asyncio.ensure_future(_gone(request))
        try:
            done, _ = await asyncio.wait({work, gone}, timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if work in done:
                return _json(work.result())
            if not done:
                raise Refused(504, f"no answer within {self.limits.seconds:g} s")
            return _json({}, 499)  # nobody reads it
        except ValueError as error:  # of the engine: the prompt does not fit the window
            raise Refused(400, str(error), "messages") from None
        finally:
            for task in (work, gone):  # a client that went away or stopped waiting keeps no place in a batch
                task.cancel()

    def _problem(self, asked: dict[str, Any]) -> Problem:
        if asked["model"] != self.config.method.name:
            raise Refused(
                404, f"there is no model {asked['model']!r:.80}; this is {self.config.method.name!r}", "model"
            )
        messages: list[Message] = asked["messages"]
        seed = asked.get("seed")
        name = f"{next(self._numbers)}-{uuid.uuid4()}" if seed is None else f"seed {seed}"
        return Problem(name, messages, metadata={"question": messages[-1]["content"]})

    async def solve(self, problem: Problem) -> dict[str, Any]:
        """OpenAI's reply to one problem.

        Its field `selfimprove` has the extracted answer and the number of candidates.
        """
        own = self._policy.for_problem(problem)
        given = {"seed": seeds.derive(self.config.seed, "serve", problem.id)} if "seed" in self._asks else {}
        found: list[Trajectory] = await self._solve(problem, own, **given)
        if not found:
            raise Refused(500, "the method found no answer")
        group = [Attempt(problem, t, await _unjudged(problem, t)) for t in found]
        index = self._rule(group)
        chosen = group[0 if index is None else index]
        prompt, sampled = (sum(getattr(t, f"{kind}_tokens") for t in found) for kind in ("prompt", "sampled"))
        sample = chosen.trajectory.samples[-1]
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.config.method.name,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": sample.text},
                    "finish_reason": "length" if sample.finish == "length" else "stop",
                    "logprobs": None,
                }
            ],
            "usage": {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled},
            "selfimprove": {"answer": chosen.verdict.extracted, "candidates": len(found)},
        }


async def _unjudged(problem: Problem, trajectory: Trajectory) -> Verdict:
    """The verdict of a candidate without a check. It has only the answer that the text states."""
    said = await answer(problem, trajectory.text, None, "last_number")
    return Verdict(trajectory.id, "unparseable" if said is None else "wrong", 0.0, said)


async def _body(request: Request) -> bytes:
    """The request's body. Raises Refused as soon as it is too long."""
    found = b""
    async for chunk in request.stream():
        found += chunk
        if len(found) > BODY:
            raise Refused(413, f"the request is longer than {BODY} bytes")
    return found


async def _gone(request: Request) -> None:
    """Returns when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def read(body: bytes) -> dict[str, Any]:
    """A request as JSON. Raises Refused, with the field's name, for a wrong or unsupported field."""
    try:
        asked = json.loads(body)
    except ValueError:
        raise Refused(400, "the body is not JSON") from None
    if not isinstance(asked, dict):
        raise Refused(400, "the body is not an object")
    asked = {key: value for key, value in asked.items() if value is not None}
    if asked.get("stream"):
        raise Refused(400, "stream: must be off, since an answer is chosen when all candidates are there", "stream")
    if asked.get("n", 1) != 1:
        raise Refused(400, "n: must be 1; the number of candidates is an option of the method", "n")
    if other := sorted(asked.keys() - _READ):
        raise Refused(
            400, f"{other[0]}: the method's own options decide (selfimprove serve method.generate....)", other[0]
        )
    if not isinstance(asked.get("seed", 0), int):
        raise Refused(400, "seed: must be a whole number", "seed")
    messages = asked.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "messages: must be a list of messages", "messages")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise Refused(400, "messages: a message has a role and a text as its content", "messages")
        if message.get("role") not in ("system", "user", "assistant") or set(message) - {"role", "content"}:
            raise Refused(400, "messages: roles are system, user and assistant, with nothing but a content", "messages")
    if messages[-1]["role"] != "user":
        raise Refused(400, "messages: the last one must be the user's", "messages")
    return {"model": "", **asked}


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(value, status, headers)
