#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Adds up what every step of `./run test` reported; prints one line for each and the total.

    summary.py FOLDER

FOLDER holds one file per step: NAME.xml is meson's JUnit report, NAME.txt has lines
`pass NAME`, `fail NAME` or `skip NAME: REASON`. The last line printed is
`N passed, N failed, N skipped`; the exit status is 1 if anything failed, or nothing passed.
"""

import os
import sys
import xml.etree.ElementTree as ET


def from_junit(path):
    """[(verdict, name, reason)]: gtest cases and TAP lines one by one, other tests whole."""
    found = []
    for suite in ET.parse(path).getroot().iter("testsuite"):
        for case in suite.iter("testcase"):
            name = f"{suite.get('name')}: {case.get('name')}"
            skipped = case.find("skipped")
            if case.find("failure") is not None or case.find("error") is not None:
                found.append(("fail", name, ""))
            elif skipped is not None or case.get("status") == "notrun":
                reason = "" if skipped is None else (skipped.get("message") or skipped.text or "")
                found.append(("skip", name, " ".join(reason.split())))
            else:
                found.append(("pass", name, ""))
    return found


def from_lines(path):
    found = []
    with open(path, encoding="utf-8") as f:
        for line in f.read().splitlines():
            verdict, _, rest = line.partition(" ")
            name, _, reason = rest.partition(": ")
            found.append((verdict, name, reason))
    return found


def main():
    folder = sys.argv[1]
    total = {"pass": 0, "fail": 0, "skip": 0}
    print("\n== results")
    for file in sorted(os.listdir(folder)):
        step, kind = os.path.splitext(file)
        read = {".xml": from_junit, ".txt": from_lines}.get(kind)
        if read is None:
            continue
        try:
            results = read(os.path.join(folder, file))
        except ET.ParseError as e:
            results = [("fail", f"{step}: unreadable report: {e}", "")]
        counts = {v: sum(r[0] == v for r in results) for v in total}
        print(f"{step.partition('-')[2]:28} " + ", ".join(
            f"{counts[v]} {word}" for v, word in
            (("pass", "passed"), ("fail", "failed"), ("skip", "skipped"))))
        for verdict, name, reason in results:
            total[verdict] += 1
            if verdict == "fail":
                print(f"  FAIL {name}")
            elif verdict == "skip":
                print(f"  SKIP {name}: {reason or 'no reason given'}")
    print(f"{total['pass']} passed, {total['fail']} failed, {total['skip']} skipped", flush=True)
    return 1 if total["fail"] or not total["pass"] else 0


if __name__ == "__main__":
    sys.exit(main())
