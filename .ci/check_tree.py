#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Rules of the source tree that no compiler checks.

- every source file names its licence in the first two lines; bpf/ has its own
- layers: what a folder may include, so that dependencies point one way
- one door per dependency: who may include which library
- nothing in the tree names a path of one developer's machine
"""

import re
import subprocess
import sys

LICENCE = "SPDX-License-Identifier: Apache-2.0"
LICENCE_BPF = "SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause"
NEEDS_LICENCE = re.compile(r"(\.(cc|h|c|py|sh|toml|service)|meson\.build|meson_options\.txt|^run)$")

# A folder may include its own headers and those of the folders named here.
LAYERS = {
    "bpf": ["bpf/abi.h"],
    "dataplane": ["bpf/abi.h"],
    "config": ["dataplane", "bpf/abi.h"],
    "control": ["dataplane", "config", "bpf"],
}

# Library headers, and the only places that may include them.
DOORS = [
    (r"intel-ipsec-mb\.h", ["dataplane/crypto/", "bench/", "tests/"]),
    (r"boost/", ["control/", "tests/"]),
    (r"toml\+\+|toml\.hpp", ["config/", "tests/"]),
    (r"bpf/(libbpf|bpf)\.h", ["control/", "dataplane/io/", "tests/"]),
    (r"xdp/libxdp\.h", ["control/", "tests/"]),
    (r"liburing\.h", ["dataplane/io/", "tests/"]),
]

FORBIDDEN = [(re.compile(r"(?<![\w.])/(work|home|root)/\w"), "a path of one machine")]

INCLUDE = re.compile(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]', re.M)


def problems(path, text):
    top = path.split("/")[0]
    if NEEDS_LICENCE.search(path):
        head = "\n".join(text.splitlines()[:2])
        licence = LICENCE_BPF if top == "bpf" and re.search(r"\.(c|h)$", path) else LICENCE
        if licence not in head:
            yield f"1: the first lines should say {licence}"
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, what in FORBIDDEN:
            if pattern.search(line) and path != ".ci/check_tree.py":
                yield f"{number}: {what}: {line.strip()}"
        if line != line.rstrip() and not path.startswith("LICENSE"):
            yield f"{number}: white space at the end of the line"
    if not re.search(r"\.(cc|h|c)$", path):
        return
    for found in INCLUDE.finditer(text):
        number = text.count("\n", 0, found.start(2)) + 1
        kind, name = found.groups()
        if kind == '"' and top in LAYERS and "/" in name:
            allowed = [top + "/", *LAYERS[top]]
            if not any(name.startswith(a) for a in allowed):
                yield f"{number}: {top}/ may not include {name} (allowed: {', '.join(allowed)})"
        for pattern, doors in DOORS:
            if kind == "<" and re.match(pattern, name) and not path.startswith(tuple(doors)):
                if not path.startswith("bpf/"):
                    yield f"{number}: <{name}> is included only in {', '.join(doors)}"


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
