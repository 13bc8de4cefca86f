"""An environment whose actions are what can go wrong: for the tests of what a world that hangs or dies does."""

from __future__ import annotations

import os
import time
from typing import Any

from selfimprove.env import Seen


class Odd:
    def __init__(self, task: dict[str, Any]) -> None:
        self.steps = 0

    def reset(self) -> Seen:
        self.steps = 0
        return Seen("Begin.")

    def step(self, action: str) -> Seen:
        self.steps += 1
        if action == "hang":
            time.sleep(60)
        if action == "die":
            os._exit(3)
        if action == "raise":
            raise RuntimeError("broken")
        if action == "say":
            return Seen("\x1b[2J" + "x" * 500)
        return Seen(f"Step {self.steps}.", 0.25, action == "end")
