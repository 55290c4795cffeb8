#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs again, alone, what failed among meson's tests while other jobs kept the machine busy.

    again.py FOLDER

FOLDER holds NAME.json of each step, meson's log. A case of a TAP program runs again by its title, other
programs as a whole. What passes TIMES times in a row goes into FOLDER/unsteady, a line each: STEP, test,
title, with tabs between them. summary.py still shows it, with its words. A fault that shows each time, or
mostly, fails as before; where more than FEW have failed, nothing runs again.
"""

import glob
import json
import os
import re
import subprocess
import sys

TIMES = 3
FEW = 3
SECONDS_MAX = 600  # one time
NOT_OK = re.compile(r"^not ok \d+ - (.*?)(?: # .*)?$", re.MULTILINE)


def failures(folder):
    """[(step, test, title, command, environment)]; the title is empty where the whole program failed."""
    found = []
    for path in sorted(glob.glob(os.path.join(folder, "*.json"))):
        step = os.path.basename(path).removesuffix(".json")
        with open(path, encoding="utf-8") as f:
            for test in map(json.loads, f):
                if test["result"] in ("OK", "SKIP", "EXPECTEDFAIL"):
                    continue
                titles = NOT_OK.findall(test.get("stdout", ""))
                for title in titles or [""]:
                    found.append((step, test["name"], title, test["command"] + ([title] if title else []),
                                  test["env"]))
    return found


def passes(command, environment):
    try:
        done = subprocess.run(command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS_MAX,
                              check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        print(e)
        return False
    if done.returncode != 0:
        print(done.stdout.decode(errors="replace")[-4000:])
    return done.returncode == 0


def main():
    folder = sys.argv[1]
    failed = failures(folder)
    if len(failed) > FEW:
        return 0
    for step, test, title, command, environment in failed:
        print(f"\n== again, alone: {test} {title}", flush=True)
        if all(passes(command, environment) for _ in range(TIMES)):
            print(f"passed {TIMES} of {TIMES} times", flush=True)
            with open(os.path.join(folder, "unsteady"), "a", encoding="utf-8") as f:
                f.write("\t".join((step, test, title)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
