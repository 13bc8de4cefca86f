"""Tools: what a solver may call while it answers, by the keyword `tools`.

`method.tools.NAME` names the function that opens a tool, with its options. It is opened once a session. A tool takes a
text and gives back what was observed, which is text too. A program that fails is an observation like any other, and so
is one that hangs. A solver's module names in `TOOLS` the tools that it calls.

A tool that is an object may also have `take()`, the number of calls by how they ended since it was last asked, which
become figures of the phase; and `close()`. `require_NAME(**options)` beside the function NAME is called before a
run begins, where there is one. It raises ConfigError when this machine lacks what the tool needs, and may return what
the run's environment.json should say of the tool.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

Tool = Callable[[str], Awaitable[str]]
