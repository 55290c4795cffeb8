#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""clang-tidy over our sources, as many units at a time as there are CPUs.

    tidy.py BUILD

BUILD is configured as a unity build: nearly all of the time goes into the headers of others, which are
read once for all sources of a unit then: three minutes of two CPUs for the whole tree, where one source
alone takes 10 to 30 s.
What was clean is remembered in BUILD/tidy: by the contents of a unit's sources and of all headers of ours
that they include, its command, the checks and the version of clang-tidy.
"""

import concurrent.futures
import hashlib
import json
import os
import shlex
import subprocess
import sys

FOLDERS = ("config/", "control/", "ctl/", "dataplane/")
TIDY = "clang-tidy-19"
# A unit includes sources, and g++ has flags that clang does not know.
OPTIONS = ["--quiet", "--checks=-bugprone-suspicious-include", "--extra-arg=-Wno-unknown-warning-option"]


def units(build):
    """{unit: its words}"""
    with open(os.path.join(build, "compile_commands.json"), encoding="utf-8") as f:
        entries = json.load(f)
    return {e["file"]: shlex.split(e["command"]) for e in entries
            if e["file"].startswith(FOLDERS) and "-unity" in e["file"]}


def parts_of(build, words):
    """The unit, its sources and those of their headers that are no system's, by the compiler."""
    at = words.index("-o")
    bare = [w for w in words[:at] + words[at + 2:] if w not in ("-c", "-MD", "-MQ", "-MF")
            and not w.endswith((".o", ".o.d"))]
    listed = subprocess.run([*bare, "-MM"], cwd=build, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [os.path.normpath(os.path.join(build, path))
            for path in sorted(set(listed.partition(":")[2].replace("\\\n", " ").split()))]


def digest(parts, words, common):
    total = hashlib.sha256(common + shlex.join(words).encode())
    for path in parts:
        with open(path, "rb") as f:
            total.update(path.encode() + b"\0" + f.read() + b"\0")
    return total.hexdigest()


def look_at(build, unit, words, common):
    """(its parts, what clang-tidy says of them or nothing)"""
    parts = parts_of(build, words)
    seen = os.path.join(build, "tidy", digest(parts, words, common))
    if os.path.exists(seen):
        return parts, ""
    done = subprocess.run([TIDY, "-p", build, *OPTIONS, os.path.join(build, unit)],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode == 0:
        open(seen, "w", encoding="ascii").close()
        return parts, ""
    return parts, done.stdout or done.stderr


def main():
    build = os.path.abspath(sys.argv[1])
    os.makedirs(os.path.join(build, "tidy"), exist_ok=True)
    common = subprocess.run([TIDY, "--version"], stdout=subprocess.PIPE, check=True).stdout
    with open(".clang-tidy", "rb") as f:
        common += shlex.join(OPTIONS).encode() + f.read()
    listed = subprocess.run(["git", "ls-files", *(folder + "*.cc" for folder in FOLDERS)],
                            stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    left = {os.path.abspath(source) for source in listed}
    bad = 0
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for parts, said in pool.map(lambda item: look_at(build, *item, common), units(build).items()):
            left -= set(parts)
            if said:
                bad += 1
                print(said, flush=True)
    for source in sorted(left):
        print(f"{source} is in no unit of {build}")
    print(f"clang-tidy: {len(listed) - len(left)} sources, {bad} units with findings")
    return 1 if bad or left or not listed else 0


if __name__ == "__main__":
    sys.exit(main())
