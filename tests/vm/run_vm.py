#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs Sallyport in guests: what needs a kernel that this machine may not have. See README.md.

    run_vm.py [--build DIR] [--slow FACTOR] [--jobs N] [--kernel K] [--list] [case or file ...]
    run_vm.py [--kernel K] --exec 'COMMAND'

Prints TAP. Needs root, for the namespaces of tests/lab/lab/enclosure.py, in which QEMU runs, and to
share this machine's root file system.
"""

import argparse
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.append(os.path.join(HERE, "..", "lab"))

from host import runner, trees  # noqa: E402
from lab import enclosure  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", default=os.path.join(HERE, "..", "..", "build"),
                        help="meson's build directory (default: build)")
    parser.add_argument("--slow", type=int, default=1, help="factor on all time limits")
    parser.add_argument("--jobs", type=int, default=max(1, len(os.sched_getaffinity(0)) // 2),
                        help="guests at a time (default: half as many as there are CPUs)")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--kernel", choices=trees.KERNELS,
                        help="on this kernel instead of those that the cases name")
    parser.add_argument("--exec", metavar="COMMAND", help="run one shell command in a guest")
    parser.add_argument("cases", nargs="*", help="names of cases or of files; default: all")
    args = parser.parse_args()

    if args.list:
        print("\n".join(title for job in runner.jobs(args.kernel) for title in job.titles()))
        return 0
    trees.fetch_all()  # while there is a network: the enclosure has none
    if args.exec:
        return enclosure.run(lambda: runner.execute(args.kernel or "newest", args.exec))
    build = os.path.abspath(args.build)
    return enclosure.run(lambda: runner.run(build, args.cases, args.slow, args.jobs,
                                            args.kernel))


if __name__ == "__main__":
    sys.exit(main())
