#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The rules of the source tree, checked: who may include whom, SPDX lines, headers that stand alone.

Usage: layers_test.py ROOT [COMPILER [ARGUMENT...]]

Include rules: bpf/abi.h <- dataplane <- control, config <- control, one header of control <- ctl, and
the rooms of each (the tables below); each library has one door.
A source includes the header of its name first, so the build compiles that one alone; with a compiler,
this test does so for the other C++ headers.
"""

import concurrent.futures
import pathlib
import re
import subprocess
import sys

SOURCES = {".cc", ".h", ".c", ".py", ".sh", ".build", ".toml", ".service"}
INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]', re.MULTILINE)

# Folder of the including file -> folders of this project that it may include from.
MAY_INCLUDE = {
    "bpf": {"bpf"},
    "dataplane": {"dataplane", "bpf"},
    "config": {"config", "dataplane", "bpf"},
    "control": {"control", "config", "dataplane", "bpf"},
    "ctl": {"ctl", "control"},
    "bench": {"bench", "control", "dataplane", "bpf", "config"},
    "tests": None,  # anything
}
# Rooms of dataplane: a room includes itself and what its line names.
DATAPLANE = {
    "base": set(),
    "wire": {"base"},
    "exchange": {"base", "wire"},
    "spd": {"base", "wire"},
    "crypto": {"base", "wire"},
    "sa": {"base", "wire", "exchange", "spd", "crypto"},
    "esp": {"base", "wire", "exchange", "spd", "crypto", "sa"},
    "pipeline": {"base", "wire", "exchange", "spd", "crypto", "sa", "esp"},
    "io": {"base", "wire"},
    "egress": {"base", "wire", "io"},
    "worker": {"base", "wire", "exchange", "spd", "crypto", "sa", "esp", "pipeline", "io",
               "egress"},
}
# Rooms of control, likewise; what stands in no room is named as `*.h` of control itself. `ctl`
# includes one header.
CONTROL = {
    "log": set(),
    "host": set(),
    "netlink": {"log"},
    "xfrm": {"log", "host", "netlink"},
    "route": {"log", "netlink"},
    "host_traffic": {"log", "netlink"},
    "policy": set(),
    "bpf_objects": {"host"},
    "adoption": {"policy", "xfrm"},
    "watch": {"log", "netlink", "xfrm", "bpf_objects"},
    "sa": {"log", "netlink", "xfrm", "host_traffic", "policy", "bpf_objects", "adoption"},
    "startup": {"log", "host", "netlink", "xfrm", "policy", "bpf_objects", "sa"},
    "appliance": {"log", "netlink", "xfrm", "route", "host_traffic", "policy", "bpf_objects", "adoption", "sa",
                  "startup", "watch"},
    "operator": {"log", "xfrm", "host_traffic", "policy", "bpf_objects", "adoption", "sa", "appliance", "watch"},
    "daemon": {"log", "xfrm", "route", "host_traffic", "policy", "bpf_objects", "adoption", "sa", "startup",
               "appliance", "operator"},
    "open_path": {"log", "xfrm", "host_traffic", "bpf_objects", "sa", "startup", "watch"},
    "main": {"log", "sa", "startup", "open_path", "daemon"},
}
# The operator sees values of xfrm, never what talks to it: answers must not wait for the kernel.
XFRM_SOCKETS = re.compile(r"control/xfrm/\w*socket\.h$")
# Header of a library -> where it may be included.
DOORS = [
    (r"intel-ipsec-mb\.h$", ("dataplane/crypto/", "bench/", "tests/")),
    (r"bpf/(libbpf|bpf|btf)\.h$|xdp/libxdp\.h$", ("control/bpf_objects", "bench/", "tests/")),
    (r"xdp/xsk\.h$|linux/if_xdp\.h$|linux/if_tun\.h$|liburing\.h$", ("dataplane/io/", "tests/")),
    (r"boost/", ("bench/", "control/", "ctl/", "tests/")),
    (r"toml(\+\+|plusplus|\.hpp)", ("config/", "tests/")),
    (r"rte_\w+\.h$", ("dataplane/io/", "tests/")),
    (r"seccomp\.h$", ("control/startup/confinement.cc", "tests/")),
    (r"openssl/", ("control/sa/key_digest.cc", "tests/")),
]


def source_files(root):
    listed = subprocess.run(["git", "-C", root, "ls-files", "-co", "--exclude-standard"],
                            capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        paths = [pathlib.Path(line) for line in listed.stdout.splitlines()]
    else:  # an exported tree
        paths = [path.relative_to(root) for path in pathlib.Path(root).rglob("*")
                 if not any(part.startswith(("build", ".")) for part in
                            path.relative_to(root).parts)]
    return sorted(path for path in paths if (pathlib.Path(root) / path).is_file())


def room_of(path):
    """The folder below the top one; a file that stands in none is a room of its own."""
    return path.parts[1] if len(path.parts) > 2 else path.stem


def check_includes(path, text):
    top = path.parts[0]
    if path.suffix not in {".cc", ".h", ".c"} or len(path.parts) == 1:
        return
    for quote, included in INCLUDE.findall(text):
        name = str(path)
        for pattern, doors in DOORS:
            if quote == "<" and re.search(pattern, included) and not name.startswith(doors):
                yield f"{name}: <{included}> may be included only in {', '.join(doors)}"
        if quote != '"':
            continue
        target = included.split("/")[0]
        allowed = MAY_INCLUDE.get(top, set())
        if allowed is None or target not in MAY_INCLUDE:
            if "/" not in included and top != "bpf":
                yield f'{name}: "{included}" is not written from the root of the project'
            continue
        if target not in allowed:
            yield f'{name}: "{included}": {top} may not include from {target}'
        if target == "bpf" and included != "bpf/abi.h" and top not in {"bpf", "control"}:
            yield f'{name}: "{included}": of bpf only abi.h is for others'
        if top == "ctl" and target == "control" and included != "control/operator/request.h":
            yield f'{name}: "{included}": of control only operator/request.h is for ctl'
        if name.startswith("control/operator/") and XFRM_SOCKETS.match(included):
            yield f'{name}: "{included}": the operator may not include sockets of xfrm'
        rooms = {"dataplane": DATAPLANE, "control": CONTROL}.get(top, {})
        if target == top and rooms:
            room, other = room_of(path), room_of(pathlib.Path(included))
            if other != room and other not in rooms.get(room, set()):
                yield f'{name}: "{included}": {top}/{room} may not include from {other}'


def check_own_header(root, path, text):
    """The build shows that a header stands alone where nothing is included before it."""
    own = path.with_suffix(".h")
    if path.suffix == ".cc" and (pathlib.Path(root) / own).exists():
        first = INCLUDE.search(text)
        if first is None or first.group(2) != str(own):
            yield f'{path}: its first #include must be "{own}"'


def check_spdx(path, text):
    named = path.name in {"run", "meson_options.txt"}
    if not (path.suffix in SOURCES or named):
        return
    expected = ("GPL-2.0-only OR BSD-2-Clause"
                if path.parts[0] == "bpf" and path.suffix in {".c", ".h"} else "Apache-2.0")
    first = "\n".join(text.splitlines()[:3])
    if f"SPDX-License-Identifier: {expected}" not in first:
        yield f"{path}: no line SPDX-License-Identifier: {expected} at its beginning"


def compile_alone(root, header, compiler):
    run = subprocess.run([*compiler, "-fsyntax-only", "-x", "c++", "-I", root, "-include",
                          str(pathlib.Path(root) / header), "/dev/null"],
                         capture_output=True, text=True, check=False)
    if run.returncode == 0:
        return []
    return [f"{header} does not compile alone:\n{run.stderr.strip()}"]


# One line against each rule; all must be found, or the checks above are blind.
FORBIDDEN = [
    ("dataplane/pipeline/a.cc", '#include "control/log.h"'),
    ("dataplane/pipeline/a.cc", "#include <boost/json.hpp>"),
    ("dataplane/sa/a.h", '#include "dataplane/pipeline/burst.h"'),
    ("dataplane/sa/a.h", '#include "dataplane/io/tap.h"'),
    ("dataplane/exchange/a.h", '#include "dataplane/sa/sa.h"'),
    ("dataplane/io/a.h", '#include "dataplane/egress/egress.h"'),
    ("control/operator/a.cc", '#include "control/daemon.h"'),
    ("control/sa/kernel/a.cc", '#include "control/operator/report.h"'),
    ("control/policy/a.cc", '#include "control/xfrm/values.h"'),
    ("control/operator/a.cc", '#include "control/route/mirror.h"'),
    ("control/operator/a.cc", '#include "control/xfrm/mirror_socket.h"'),
    ("control/log.cc", '#include "control/appliance.h"'),
    ("ctl/a.cc", '#include "control/operator/report.h"'),
    ("ctl/a.cc", '#include "dataplane/base/ids.h"'),
    ("dataplane/worker/a.cc", "#include <intel-ipsec-mb.h>"),
    ("dataplane/worker/a.cc", "#include <rte_mempool.h>"),
    ("dataplane/worker/a.cc", "#include <linux/if_xdp.h>"),
    ("dataplane/worker/a.cc", '#include "worker.h"'),
    ("control/operator/a.cc", "#include <bpf/libbpf.h>"),
    ("control/operator/a.cc", "#include <toml++/toml.h>"),
    ("config/config.cc", '#include "control/log.h"'),
    ("config/config.cc", "#include <openssl/evp.h>"),
    ("dataplane/io/a.cc", '#include "bpf/maps.h"'),
    ("bpf/steer.bpf.c", '#include "dataplane/base/ip.h"'),
]


def self_check(root):
    for name, line in FORBIDDEN:
        if not list(check_includes(pathlib.Path(name), line + "\n")):
            yield f"the include rules do not notice {line} in {name}"
    if not list(check_own_header(root, pathlib.Path("control/log.cc"),
                                 '#include <string>\n#include "control/log.h"\n')):
        yield "the rule of the first include does not notice another one"
    if not list(check_spdx(pathlib.Path("bpf/a.c"), "// SPDX-License-Identifier: Apache-2.0\n")):
        yield "the SPDX rule does not notice the wrong licence in bpf/"


def main():
    root, compiler = sys.argv[1], sys.argv[2:]
    files = source_files(root)
    mistakes = list(self_check(root))
    headers = []
    for path in files:
        if path.suffix not in SOURCES and path.name not in {"run", "meson_options.txt"}:
            continue
        text = (pathlib.Path(root) / path).read_text(encoding="utf-8")
        mistakes += check_includes(path, text)
        mistakes += check_own_header(root, path, text)
        mistakes += check_spdx(path, text)
        # Headers for BPF programs include what only their compiler has.
        if path.suffix == ".h" and (path.parts[0] != "bpf" or path.name == "abi.h"):
            if not (pathlib.Path(root) / path.with_suffix(".cc")).exists():
                headers.append(path)
    if compiler:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for found in pool.map(lambda header: compile_alone(root, header, compiler), headers):
                mistakes += found
    for mistake in mistakes:
        print(mistake)
    print(f"{len(files)} files, {len(headers)} headers compiled, {len(mistakes)} mistakes")
    return 1 if mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
