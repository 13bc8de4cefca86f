"""Waiting for what another process or thread does. No test is judged by how long it takes: the limit only ends one
whose condition never comes true."""

import time

PATIENCE = 600.0  # seconds


def wait_for(condition):
    """The value of `condition()` once it is true."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
    return found
