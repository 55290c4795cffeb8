#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the cases of one file in the guest; each verdict is a line of JSON in /out/results.

    main.py FILE BUILD SLOW SEED [case ...]
"""

import fcntl
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.append(os.path.join(sys.path[0], "..", "lab"))

from inside import boot  # noqa: E402
from lab import checks  # noqa: E402

RNDRESEEDCRNG = 0x5207


class Here:
    """What a case is given: the guest it runs in."""

    def __init__(self, build, slow):
        self.build = build      # meson's build directory on the host
        self.slow = slow        # factor on time limits
        self.out = "/out"       # files left here are shown to nobody, but survive the guest
        self.folder = tempfile.mkdtemp(prefix="case-", dir="/run")  # a new one for each case
        self.cleanups = []      # called when the case is over, last first
        self.logs = {}          # name -> function that returns text, shown when the case fails
        self.notes = []

    def note(self, text):
        """A line that is printed below the verdict."""
        self.notes.append(str(text))

    def later(self, function):
        self.cleanups.append(function)


def load(path):
    spec = importlib.util.spec_from_file_location("vm_case", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.BOOT


def run_one(case, build, slow):
    here = Here(build, slow)
    limit = int(case.seconds * boot.PATIENCE * slow)

    def too_long(*_):
        raise TimeoutError(f"the case took more than {limit} s")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(limit)
    began, verdict = time.monotonic(), "ok"
    try:
        here.note(text) if (text := case.function(here)) else None
    except checks.Skip as e:
        verdict = f"SKIP {str(e).splitlines()[0]}"
    except Exception:
        verdict = "FAIL"
        signal.alarm(60)  # the logs may have to be asked for
        here.note(traceback.format_exc())
        for name, text in here.logs.items():
            try:
                here.note(f"{name} said:\n{text()[-6000:]}")
            except Exception as e:
                here.note(f"{name}: {e}")
    signal.alarm(90)
    for clean in reversed(here.cleanups):
        try:
            clean()
        except Exception:
            verdict = "FAIL"
            here.note(traceback.format_exc())
    signal.alarm(0)
    return {"case": case.name, "verdict": verdict, "notes": here.notes,
            "seconds": round(time.monotonic() - began, 1)}


def reseed(seed):
    """Guests that go on from one saved memory would otherwise all draw the same random numbers."""
    with open("/dev/urandom", "wb") as f:
        f.write(bytes.fromhex(seed))
        f.flush()
        fcntl.ioctl(f, RNDRESEEDCRNG)


def main():
    path, build, slow, seed, *wanted = sys.argv[1:]
    reseed(seed)
    for case in load(path).cases:
        if case.name in wanted:
            result = run_one(case, build, int(slow))
            with open("/out/results", "a", encoding="utf-8") as f:
                f.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
