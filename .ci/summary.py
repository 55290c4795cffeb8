#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Adds up what every step of `./run test` reported; prints one line for each and the total.

    summary.py FOLDER

FOLDER holds the reports of each step: NAME.xml is meson's JUnit report and NAME.json its log of exit
statuses; NAME.txt has lines `pass NAME`, `fail NAME` or `skip NAME: REASON`. The last line printed is
`N passed, N failed, N skipped`; the exit status is 1 if anything failed, or nothing passed. What failed
is said once more before it, with the beginning of its own words, and so is what is unsteady: it failed
beside other jobs and then passed alone, each time (again.py). That counts as passed.
"""

import json
import os
import sys
import xml.etree.ElementTree as ET

WORDS_MAX = 30  # lines of what one failure said
WENT_WELL = ("[ RUN ", "[       OK ]", "[------", "[======", "[  PASSED")


def from_junit(path):
    """[(verdict, name, reason)]: gtest cases and TAP lines one by one, other tests whole."""
    found = []
    for suite in ET.parse(path).getroot().iter("testsuite"):
        said_by_all = (suite.findtext("system-err") or "").splitlines()
        for case in suite.iter("testcase"):
            name = f"{suite.get('name').removeprefix('sallyport.')}: {case.get('name')}"
            skipped, said = case.find("skipped"), case.find("system-out")
            if case.find("failure") is not None or case.find("error") is not None:
                found.append(("fail", name, words_of(case) or words_among(said_by_all, case.get("name"))))
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


def words_of(case):
    """Of one with a report of its own."""
    return "\n".join(text for kind in ("failure", "error", "system-out", "system-err")
                     for part in case.iter(kind) if (text := part.text or part.get("message") or ""))


def words_among(lines, name):
    """Of a line of TAP: what stands indented behind its title in the error stream, from where it went wrong."""
    title = name.partition(" - ")[2] + ":"
    at = next((i for i, line in enumerate(lines) if line.strip() == title), None)
    if at is None:
        return ""
    end = next((i for i in range(at + 1, len(lines)) if not lines[i].startswith("  ")), len(lines))
    wrong = next((i for i in range(at + 1, end) if "Traceback" in lines[i]), at + 1)
    return "\n".join(lines[wrong:end])


def from_lines(path):
    found = []
    with open(path, encoding="utf-8") as f:
        for line in f.read().splitlines():
            verdict, _, rest = line.partition(" ")
            name, _, reason = rest.partition(": ")
            found.append((verdict, name, reason))
    return found


def read_unsteady(folder):
    """[(step, test, title)], see again.py."""
    try:
        with open(os.path.join(folder, "unsteady"), encoding="utf-8") as f:
            return [tuple(line.rstrip("\n").split("\t")) for line in f]
    except FileNotFoundError:
        return []


def main():
    folder = sys.argv[1]
    total = {"pass": 0, "fail": 0, "skip": 0}
    failures = []
    steady_alone = read_unsteady(folder)
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
        again = [(test, title) for of, test, title in steady_alone if of == step]
        unsteady = [r for r in results if r[0] == "fail" and
                    any(test in r[1] and title in r[1] for test, title in again)]
        failures += [("UNSTEADY", name, words) for _, name, words in unsteady]
        results = [("pass", *r[1:]) if r in unsteady else r for r in results]
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
                failures.append(("FAIL", name, reason))
            elif verdict == "skip":
                print(f"  SKIP {name}: {reason or 'no reason given'}")
    for verdict, name, words in failures:
        print(f"\n== {verdict} {name}")
        said = [line for line in words.splitlines() if line.strip() and not line.startswith(WENT_WELL)]
        for line in said[:WORDS_MAX]:
            print(f"   {line[:300]}")
    print(f"{total['pass']} passed, {total['fail']} failed, {total['skip']} skipped", flush=True)
    return 1 if total["fail"] or not total["pass"] else 0


if __name__ == "__main__":
    sys.exit(main())
