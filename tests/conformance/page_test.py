#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""docs/conformance.md against the tests: a line that says it is tested has a test with its id.

Usage: page_test.py ROOT
"""

import pathlib
import re
import sys

STATES = {"tested", "part", "open"}


def main():
    root = pathlib.Path(sys.argv[1])
    names = set()
    for path in (root / "tests").rglob("*"):
        if path.suffix not in {".cc", ".py"} or path == pathlib.Path(__file__).resolve():
            continue
        text = path.read_text(encoding="utf-8")
        names |= set(re.findall(r"\bConformance_?([A-J]\d+)\b", text))
        # Rows of tables: "B3_TwiceInOneBurst", "D5_D2_Gcm".
        for row in re.findall(r'"((?:[A-J]\d+_)+)', text):
            names |= set(re.findall(r"[A-J]\d+", row))
        # Cases of the lab: "B3 packet replayed in one burst".
        if path.parent.name == "cases":
            names |= set(re.findall(r'"([A-J]\d+) ', text))

    mistakes = []
    listed = set()
    for line in (root / "docs/conformance.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) < 6 or not re.fullmatch(r"[A-J]\d+", cells[1]):
            continue
        identifier, state, where = cells[1], cells[4], cells[5]
        listed.add(identifier)
        if state not in STATES:
            mistakes.append(f"{identifier}: '{state}' is none of {', '.join(sorted(STATES))}")
        if state != "open" and identifier not in names:
            mistakes.append(f"{identifier}: said to be tested, and no test carries the id")
        if not where:
            mistakes.append(f"{identifier}: does not say where or why not")
    for identifier in sorted(names - listed):
        mistakes.append(f"{identifier}: tests carry this id, the page does not list it")
    for mistake in mistakes:
        print(mistake)
    print(f"{len(listed)} lines, {len(names)} ids in tests, {len(mistakes)} mistakes")
    return 1 if mistakes or not listed else 0


if __name__ == "__main__":
    sys.exit(main())
