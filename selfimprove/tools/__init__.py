"""Tools: what a solver may call while it answers, by the keyword `tools`.

`method.tools.NAME` names the function that opens a tool, with its options. A tool is opened once a session. It takes a
text and returns a text, the observation. A program that fails or hangs gives an observation too. A solver's module
names the tools that it calls in `TOOLS`.

A tool that is an object may also have `close()` and `take()`. `take()` counts the calls since the last `take()` by how
they ended, and the counts become figures of the phase. If there is a function `require_NAME(**options)` beside the
function NAME, it is called before a run begins. It raises ConfigError if this machine lacks what the tool needs. What
it returns stands in the run's environment.json.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

Tool = Callable[[str], Awaitable[str]]
