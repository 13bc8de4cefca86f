"""Waiting for what another process or thread does. No test is judged by how long it takes: the limit only ends one
whose condition never comes true."""

import time

PATIENCE = 600.0  # seconds


def wait_for(condition, process=None):
    """The value of `condition()` once it is true; `process` is who is to make it true, and must not end before."""
    deadline = time.monotonic() + PATIENCE
    while True:
        ended = process is not None and process.poll() is not None
        if found := condition():
            return found
        assert not ended, "the process ended before"
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
