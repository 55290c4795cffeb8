#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Adds up what every step of `./run test` reported; prints one line for each and the total.

    summary.py FOLDER

FOLDER holds the reports of each step: NAME.xml is meson's JUnit report and NAME.json its log of exit
statuses; NAME.txt has lines `pass NAME`, `fail NAME` or `skip NAME: REASON`. The last line printed is
`N passed, N failed, N skipped`; the exit status is 1 if anything failed, or nothing passed.
"""

import json
import os
import sys
import xml.etree.ElementTree as ET


def from_junit(path):
    """[(verdict, name, reason)]: gtest cases and TAP lines one by one, other tests whole."""
    found = []
    for suite in ET.parse(path).getroot().iter("testsuite"):
        for case in suite.iter("testcase"):
            name = f"{suite.get('name').removeprefix('sallyport.')}: {case.get('name')}"
            skipped, said = case.find("skipped"), case.find("system-out")
            if case.find("failure") is not None or case.find("error") is not None:
                found.append(("fail", name, ""))
            elif skipped is not None or case.get("status") == "notrun":
                reason = "" if skipped is None else (skipped.get("message") or skipped.text or "")
                reason = reason or ("" if said is None else said.text or "")
                found.append(("skip", name, " ".join(reason.split())))
            else:
                found.append(("pass", name, ""))
    # A program can fail after its last test case has passed, e.g. when it leaks.
    with open(os.path.splitext(path)[0] + ".json", encoding="utf-8") as f:
        for line in f:
            test = json.loads(line)
            told = any(verdict == "fail" and test["name"] in name for verdict, name, _ in found)
            if test["result"] not in ("OK", "SKIP", "EXPECTEDFAIL") and not told:
                found.append(("fail", f"{test['name']}: {test['result']}, "
                              f"exit status {test['returncode']}", ""))
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
        except (ET.ParseError, OSError, ValueError) as e:
            results = [("fail", f"{step}: unreadable report: {e}", "")]
        counts = {v: sum(r[0] == v for r in results) for v in total}
        print(f"{step:28} " + ", ".join(
            f"{counts[v]} {word}" for v, word in
            (("pass", "passed"), ("fail", "failed"), ("skip", "skipped"))))
        for verdict, name, reason in results:
            total[verdict] += 1
            if verdict == "pass":
                print(f"  ok   {name}")
            elif verdict == "fail":
                print(f"  FAIL {name}")
            elif verdict == "skip":
                print(f"  SKIP {name}: {reason or 'no reason given'}")
    print(f"{total['pass']} passed, {total['fail']} failed, {total['skip']} skipped", flush=True)
    return 1 if total["fail"] or not total["pass"] else 0


if __name__ == "__main__":
    sys.exit(main())
