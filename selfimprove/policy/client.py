"""A client of servers with OpenAI's interface, and what their errors mean. engine=openai and the judge use it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from selfimprove.errors import ConfigError, RunError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

CONNECT = 10.0  # seconds to connect
AT_ONCE = 60.0  # seconds for a request before a run begins
TRIES = 2  # retries of such a request
_Reply = TypeVar("_Reply")


def require(section: str, key_env: str | None) -> None:
    """Raises ConfigError if the key or the client library is missing. `section` of the config names the server."""
    if key_env and not os.environ.get(key_env):
        raise ConfigError(
            f"{section}.key_env={key_env}: no such environment variable; export the server's key in it, or set "
            f"{section}.key_env=null if the server needs none",
            section,
        )
    try:
        import openai  # noqa: F401
    except ImportError:
        raise ConfigError(
            f"{section}: a server needs the client library: pip install 'selfimprove[openai]'", section
        ) from None


class Refused(ValueError):
    """The server answered a request with an error. `status` is the HTTP status."""

    def __init__(self, status: int, reply: str) -> None:
        super().__init__(f"the server said {reply}")
        self.status = status


class Client:
    """A client of the server at `url`, with at most `concurrency` requests at once.

    A request that the server is too busy for, or does not answer, is sent up to `retries` more times, with growing
    pauses. The environment variable `key_env` holds the key, which no message shows. Messages call the client `who`;
    `section` of the config names the server.

    Every request raises ConfigError when the key is refused, RunError when the server cannot be reached, and Refused
    when the server answers with another error.
    """

    def __init__(
        self,
        who: str,
        section: str,
        url: str,
        key_env: str | None,
        *,
        concurrency: int,
        timeout: float,
        retries: int,
    ) -> None:
        from openai import AsyncOpenAI, Timeout

        self.who, self.url, self._section, self._key_env = who, url, section, key_env
        self._key = os.environ.get(key_env, "") if key_env else ""
        self._options: dict[str, Any] = {
            "api_key": self._key or "none",
            "base_url": url,
            "timeout": Timeout(timeout, connect=CONNECT),
        }
        self._openai = AsyncOpenAI(**self._options, max_retries=retries)
        self._free = asyncio.Semaphore(concurrency)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def ask(self, call: Callable[[AsyncOpenAI], Awaitable[_Reply]]) -> _Reply:
        """The result of `call`, which is given the OpenAI client."""
        self._loop = asyncio.get_running_loop()
        async with self._free:
            with self._explained():
                return await call(self._openai)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """Post to `path`, relative to the server's address or a full URL. Returns the reply's JSON, else its text."""
        return await self.ask(lambda openai: openai.post(path, body=body, cast_to=object))

    def ask_now(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send a request outside an event loop, with few retries, before a run begins. Without a body it is a GET."""
        from openai import OpenAI, Timeout

        options = self._options | {"timeout": Timeout(AT_ONCE, connect=CONNECT), "max_retries": TRIES}
        with self._explained(), OpenAI(**options) as openai:
            return openai.get(path, cast_to=object) if body is None else openai.post(path, body=body, cast_to=object)

    def close(self) -> None:
        """Close the connections."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.run_until_complete(self._openai.close())

    @contextmanager
    def _explained(self) -> Iterator[None]:
        import openai

        try:
            yield
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            where = f"the environment variable {self._key_env}" if self._key_env else f"{self._section}.key_env=null"
            raise ConfigError(
                f"{self.who}: {self.url} refused the key ({error.status_code}); it is from {where}", self._section
            ) from None
        except openai.APIConnectionError as error:  # time-outs too
            cause = error.__cause__ or error
            raise RunError(
                f"{self.who}: {self.url} cannot be reached ({type(cause).__name__}); is it running?"
            ) from None
        except openai.APIStatusError as error:
            raise Refused(error.status_code, self._brief(error)) from None

    def _brief(self, error: Exception) -> str:
        """An error on one line, of reasonable length, without the key."""
        text = str(error).replace(self._key, "<removed>") if self._key else str(error)
        return " ".join(text.split())[:200]
