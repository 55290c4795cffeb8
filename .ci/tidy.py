#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""clang-tidy over our sources, as many at a time as there are CPUs.

    tidy.py BUILD [FILE...]

Without FILE: all that BUILD's compilation database has in the folders below. A file takes 10 to 30 s,
nearly all of it for the headers of others, so what was clean is remembered in BUILD/tidy: by the
contents of the file and of all headers of ours that it includes, its command, the checks and the
version of clang-tidy. A new machine has no memory and looks at everything.
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


def commands(build):
    """{source: its words}; a source that is compiled twice stands for both."""
    with open(os.path.join(build, "compile_commands.json"), encoding="utf-8") as f:
        entries = json.load(f)
    found = {os.path.relpath(os.path.join(build, e["file"])): shlex.split(e["command"]) for e in entries}
    return {source: words for source, words in sorted(found.items()) if source.startswith(FOLDERS)}


def headers_of(build, words):
    """The source and the headers that are no system's, by the compiler."""
    at = words.index("-o")
    bare = [w for w in words[:at] + words[at + 2:] if w not in ("-c", "-MD", "-MQ", "-MF")
            and not w.endswith((".o", ".o.d"))]
    listed = subprocess.run([*bare, "-MM"], cwd=build, stdout=subprocess.PIPE, text=True, check=True).stdout
    return sorted(set(listed.partition(":")[2].replace("\\\n", " ").split()))


def digest(build, words, common):
    total = hashlib.sha256(common + shlex.join(words).encode())
    for path in headers_of(build, words):
        with open(os.path.join(build, path), "rb") as f:
            total.update(path.encode() + b"\0" + f.read() + b"\0")
    return total.hexdigest()


def look_at(build, source, words, common):
    """What clang-tidy says of it; empty: nothing."""
    seen = os.path.join(build, "tidy", digest(build, words, common))
    if os.path.exists(seen):
        return ""
    # The flags that only g++ knows are not clang-tidy's business.
    done = subprocess.run([TIDY, "-p", build, "--quiet", "--extra-arg=-Wno-unknown-warning-option", source],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode == 0:
        open(seen, "w", encoding="ascii").close()
        return ""
    return done.stdout or done.stderr


def main():
    build, wanted = sys.argv[1], sys.argv[2:]
    os.makedirs(os.path.join(build, "tidy"), exist_ok=True)
    version = subprocess.run([TIDY, "--version"], stdout=subprocess.PIPE, check=True).stdout
    with open(".clang-tidy", "rb") as f:
        common = version + f.read()
    chosen = {s: w for s, w in commands(build).items() if not wanted or s in wanted}
    bad = 0
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for said in pool.map(lambda item: look_at(build, *item, common), chosen.items()):
            if said:
                bad += 1
                print(said, flush=True)
    print(f"clang-tidy: {len(chosen)} files, {bad} with findings")
    return 1 if bad or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
