"""Work that is counted: the same on every machine, however busy it is."""

import sys


def lines(call, *modules):
    """How many lines of these modules' code `call()` runs, each pass of a loop anew. A loop inside C code is none."""
    files = {module.__file__ for module in modules}
    count = 0

    def line(frame, event, argument):
        nonlocal count
        count += event == "line"
        return line

    def enter(frame, event, argument):
        return line if frame.f_code.co_filename in files else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        call()
    finally:
        sys.settrace(before)
    return count
