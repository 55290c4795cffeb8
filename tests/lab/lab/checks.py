# SPDX-License-Identifier: Apache-2.0
"""What a case says of what it saw; for the lab and for the guests of tests/vm."""

import time


class Skip(Exception):
    """This machine cannot run the case; the text says why."""


def check(condition, text):
    if not condition:
        raise AssertionError(text)


def equal(got, wanted, what):
    check(got == wanted, f"{what}: {got!r}, expected {wanted!r}")


def eventually(condition, text, seconds=20):
    """Waits until condition() is true; counters follow the packets by a moment, on a busy machine by more."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(text() if callable(text) else text)
        time.sleep(0.05)
    return value


def read_log(path):
    """What a program has written so far; empty before its first line."""
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return f.read()
    except FileNotFoundError:
        return ""
