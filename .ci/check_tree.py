#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Rules for the text of every file of the tree.

- nothing names a path of one developer's machine
- no white space at the end of a line
- a file that a comment or a document names exists: from the top of the tree, from the folder of who
  names it or from a folder above that; a document may name any file without its folder
- an option, a command and a key of the configuration that a document names exists
- docs/architecture.md lists, for each stage of the pipelines, drop reasons that exist, and all that its source names
- docs/rpc.md names every field of an answer under the heading of its command

Includes and licences are checked by tests/layers_test.py. PLANTED at the end has one mistake against
each rule; all must be found, or the rules are blind.
"""

import ast
import os
import posixpath
import re
import subprocess
import sys

FORBIDDEN = [(re.compile(r"(?<![\w.])/(work|home|root)/\w"), "a path of one machine")]

FILE = re.compile(r"(?<![\w/.$<{}@*~-])((?:[\w.-]+/)*[\w-]+(?:\.bpf)?\.(?:h|cc|c|py|sh|md|toml|conf|service)|"
                  r"(?:[\w.-]+/)*meson\.build)\b(?![\w/(*])")
# Of other projects, or made when something runs.
OUTSIDE = {"xdp/xsk.h", "swanctl.conf", "swanctl/conf.d/x.conf", "generated.h"}

OPTION = re.compile(r"(?<![\w-])(--(?!gtest_|benchmark_)[a-z][a-z0-9_-]+)")
FOREIGN_OPTIONS = {"--list-sas", "--now", "--all",  # swanctl, systemctl, nsenter
                   "--buildtype", "--suite", "--list", "--print-errorlogs", "--no-rebuild", "--oneline", "--stat"}  # meson, git
KEY = re.compile(r"^\s*([a-z][a-z0-9_]*) = [\"\d\[tf]")
TABLE_ROW = re.compile(r"^\| ((?:`[a-z][a-z0-9_]*`(?:, )?)+) \|")
SHOW = re.compile(r"(?:sallyportctl|`)\s*show ([a-z]+)")
RUN = re.compile(r"\./run ([a-z]+)")
STAGE_ROW = re.compile(r"^\| `([a-z_]+)` \|.*\|([^|]*)\|$")
FIELD = re.compile(r'\{"([a-z0-9_]+)",|\["([a-z0-9_]+)"\]')
COMMANDS = {"sas": "sa", "policies": "policy"}  # rows_NAME.cc of a command with another name


def read(path):
    try:
        with open(path, encoding="utf-8") as f:
            return f.read()
    except (UnicodeDecodeError, FileNotFoundError):  # no text; or deleted, not yet committed
        return None


class Tree:
    """What there is: files, and the words that programs know."""

    def __init__(self, texts):
        self.texts = texts
        self.names = {posixpath.basename(path) for path in texts}
        python = "".join(t for p, t in texts.items() if p.endswith(".py"))
        mains = texts["control/main.cc"] + texts["ctl/arguments.cc"]
        self.options = (set(re.findall(r'"(--[a-z-]+)"', mains)) | FOREIGN_OPTIONS |
                        set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', python)) |
                        {o for p, t in texts.items() if p.startswith("docs/") and p.endswith(".py")
                         for o in re.findall(r'"(--[a-z-]+)"', t)})
        reader = "".join(t for p, t in texts.items() if p.startswith("config/") and p.endswith((".cc", ".h")))
        self.keys = set(re.findall(r'"([a-z][a-z0-9_]*)"', reader))
        operator = "".join(t for p, t in texts.items()
                           if p.startswith(("control/operator/", "ctl/")) and p.endswith((".cc", ".h")))
        self.shown = set(re.findall(r'"([a-z]+)"', operator))
        self.commands = set(re.findall(r"^    ([a-z]+)\)", texts["run"], re.M))
        # What the kernel's and the workers' programs share has a list of the drop reasons, and one of counters.
        listed = {name: re.findall(r"\bX\((\w+)", block) for name, block in
                  re.findall(r"#define (SP_\w+)\(X\)(.*?[^\\]\n)", texts["bpf/abi.h"], re.S)}
        self.reasons = set(listed["SP_DROP_REASONS"]) - {"none"}
        self.stages = {m.group(1): set(re.findall(r"\bDropReason::(\w+)", t)) - {"none"} for p, t in texts.items()
                       if (m := re.fullmatch(r"dataplane/pipeline/stages/(\w+)\.h", p))}
        self.fields = {COMMANDS.get(m.group(1), m.group(1)): {a or b for a, b in FIELD.findall(t)}
                       for p, t in texts.items() if (m := re.fullmatch(r"control/operator/rows_(\w+)\.cc", p))}
        self.fields["ports"] |= set(listed["SP_PORT_COUNTERS"])

    def has(self, name, path):
        """From the top, or from a folder above `path`; a document may leave folders away."""
        folder = posixpath.dirname(path)
        while True:
            if posixpath.normpath(posixpath.join(folder, name)) in self.texts:
                return True
            if not folder:
                break
            folder = posixpath.dirname(folder)
        return name in OUTSIDE or path.endswith(".md") and "/" not in name and name in self.names


def comments(path, text):
    """(line, what it says) of what the language takes for a comment; of a document all."""
    lines = list(enumerate(text.splitlines(), 1))
    if path.endswith(".md"):
        yield from lines
    elif path.endswith((".cc", ".h", ".c")):
        for number, line in lines:
            if found := re.search(r"(?:^|\s)//(.*)|/\*(.*)|^\s*\*\s(.*)", line):
                yield number, next(said for said in found.groups() if said is not None)
    else:
        for number, line in lines:
            if found := re.search(r"(?:^|\s)#\s(.*)", line):
                yield number, found.group(1)
    if path.endswith(".py"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
                first = node.body[0].lineno
                for offset, line in enumerate(node.body[0].value.value.splitlines()):
                    yield first + offset, line


def check_text(path, text):
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, what in FORBIDDEN:
            if pattern.search(line) and path != ".ci/check_tree.py":
                yield f"{number}: {what}: {line.strip()}"
        if line != line.rstrip() and not path.startswith("LICENSE"):
            yield f"{number}: white space at the end of the line"


def check_files(tree, path, text):
    for number, said in comments(path, text):
        if path != ".ci/check_tree.py" and "://" not in said:
            for name in FILE.findall(said):
                if "NAME" not in name and not tree.has(name, path):  # NAME: whoever reads puts his own
                    yield f"{number}: there is no {name}: {said.strip()}"


def check_words(tree, path, text):
    """Options, commands and keys in documents."""
    if not path.endswith(".md"):
        return
    fence, of_config = "", path == "docs/config.md"
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fence = "" if fence else line.strip("` ") or "text"
            continue
        for pattern, known, what in ((OPTION, tree.options, "option"), (SHOW, tree.shown, "table"),
                                     (RUN, tree.commands, "command of run")):
            for word in pattern.findall(line):
                if word not in known:
                    yield f"{number}: no {what} {word}: {line.strip()}"
        keys = [m.group(1) for m in [KEY.match(line)] if m and fence == "toml"]
        keys += [m.group(1) for code in re.findall(r"`([^`]+)`", line) if (m := KEY.match(code)) and '"' in code]
        if of_config and (row := TABLE_ROW.match(line)):
            keys += re.findall(r"`([a-z0-9_]+)`", row.group(1))
        for key in keys:
            if key not in tree.keys:
                yield f"{number}: the configuration has no key {key}: {line.strip()}"


def check_stages(tree, path, text):
    if path != "docs/architecture.md":
        return
    rows = [(number, *row.groups()) for number, line in enumerate(text.splitlines(), 1)
            if (row := STAGE_ROW.match(line)) and row.group(1) in tree.stages]
    for number, stage, cell in rows:
        said = set(re.findall(r"`(\w+)`", cell))
        for name in sorted(said - tree.reasons):
            yield f"{number}: there is no drop reason {name}"
        for name in sorted(tree.stages[stage] - said):
            yield f"{number}: {stage} may drop as {name}"
    for stage in sorted(tree.stages.keys() - {stage for _, stage, _ in rows}):
        if tree.stages[stage]:
            yield f"1: there is no row for the stage {stage}"


def check_fields(tree, path, text):
    if path != "docs/rpc.md":
        return
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    for command, fields in tree.fields.items():
        for name in sorted(fields - set(re.findall(r'["`](\w+)["`]', sections.get(command, "")))):
            yield f"1: {command} does not say what {name} is"


# path, a line with a mistake, words of what must be said of it
PLANTED = [
    ("a.md", "in /ro" "ot/x", "a path of one machine"),
    ("a.cc", "int a; ", "white space"),
    ("control/xfrm/guard.h", "// as control/guard.h says", "no control/guard.h"),
    ("control/xfrm/guard.h", "int a;  // see values_of_old.h", "no values_of_old.h"),
    ("tests/lab/run_lab.py", "# see lab/nothing.py", "no lab/nothing.py"),
    ("tests/lab/run_lab.py", '"""As lab/nothing.py."""', "no lab/nothing.py"),
    ("run", "    true # see tests/nothing.sh", "no tests/nothing.sh"),
    ("README.md", "[x](docs/nothing.md)", "no docs/nothing.md"),
    ("README.md", "`nothing.toml`", "no nothing.toml"),
    ("README.md", "    sallyportd --nothing", "no option --nothing"),
    ("README.md", "    sallyportctl show nothing", "no table nothing"),
    ("README.md", "`./run nothing`", "no command of run nothing"),
    ("docs/config.md", "| `nothing` | none | | |", "no key nothing"),
    ("README.md", "with `nothing = \"x\"` it", "no key nothing"),
    ("README.md", "```toml\nnothing = 1\n```", "no key nothing"),
    ("docs/architecture.md", "| `check_icv` | | `nothing` |", "no drop reason nothing"),
    ("docs/architecture.md", "| `check_icv` | | |", "check_icv may drop as icv_mismatch"),
    ("docs/architecture.md", "| `check_icv` | | `icv_mismatch` |", "no row for the stage lookup_sa"),
    ("docs/rpc.md", "\n## sa\n`pid`", "status does not say what pid is"),
    ("docs/rpc.md", "\n## ports\n`rx_bytes`", "ports does not say what rx_frames is"),
]


def problems(tree, path, text):
    yield from check_text(path, text)
    yield from check_files(tree, path, text)
    yield from check_words(tree, path, text)
    yield from check_stages(tree, path, text)
    yield from check_fields(tree, path, text)


def self_check(tree):
    for path, line, words in PLANTED:
        if not any(words in problem for problem in problems(tree, path, line)):
            yield f"{path}: the rules do not notice {line!r}"


def main():
    files = subprocess.run(["git", "ls-files", "-z"], stdout=subprocess.PIPE, text=True,
                           check=True).stdout.split("\0")
    texts = {path: text for path in files if path and os.path.isfile(path)
             and (text := read(path)) is not None}
    tree = Tree(texts)
    found = list(self_check(tree))
    for path, text in texts.items():
        found += [f"{path}:{problem}" for problem in problems(tree, path, text)]
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{len(texts)} files, {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
