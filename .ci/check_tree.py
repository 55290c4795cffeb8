#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Rules for the text of every file of the tree.

- nothing names a path of one developer's machine
- no white space at the end of a line

Includes and licences are checked by tests/layers_test.py.
"""

import re
import subprocess
import sys

FORBIDDEN = [(re.compile(r"(?<![\w.])/(work|home|root)/\w"), "a path of one machine")]


def problems(path, text):
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, what in FORBIDDEN:
            if pattern.search(line) and path != ".ci/check_tree.py":
                yield f"{number}: {what}: {line.strip()}"
        if line != line.rstrip() and not path.startswith("LICENSE"):
            yield f"{number}: white space at the end of the line"


def main():
    files = subprocess.run(["git", "ls-files", "-z"], stdout=subprocess.PIPE, text=True,
                           check=True).stdout.split("\0")
    count = 0
    for path in filter(None, files):
        try:
            with open(path, encoding="utf-8") as f:
                text = f.read()
        except UnicodeDecodeError:
            continue
        except FileNotFoundError:
            continue  # deleted, not yet committed
        for problem in problems(path, text):
            print(f"{path}:{problem}")
            count += 1
    print(f"{len(files) - 1} files, {count} problems")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
