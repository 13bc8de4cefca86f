"""`selfimprove serve`: a method behind OpenAI's chat interface, on this machine alone."""

from __future__ import annotations

import argparse
from typing import Any

from selfimprove.errors import ConfigError


def add(commands: Any) -> None:
    serve = commands.add_parser("serve", help="a method that thinks longer, behind OpenAI's chat interface")
    serve.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help="e.g. method=dser model=smollm2_135m")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--requests", type=int, default=256, metavar="N", help="most at once; others get status 429")
    serve.add_argument(
        "--seconds", type=float, default=600.0, metavar="S", help="most for one; then it gets status 504"
    )
    serve.set_defaults(do=serve_run)


def serve_run(chosen: argparse.Namespace) -> int:
    from selfimprove.serve import Limits, serve

    if not any(word.startswith("method=") for word in chosen.overrides):
        raise ConfigError("serve: which method? e.g. method=dser model=smollm2_135m")
    if not 0 < chosen.port < 65536 or chosen.requests < 1 or not chosen.seconds > 0:
        raise ConfigError("serve: --port is 1 to 65535, --requests 1 or more, --seconds above 0")
    serve(chosen.overrides, chosen.port, Limits(chosen.requests, chosen.seconds))
    return 0
