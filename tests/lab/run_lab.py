#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the lab: Sallyport between real network namespaces, against independent peers.

    run_lab.py [--build DIR] [--slow FACTOR] [--without FILE,...] [--list] [case ...]

Prints TAP. Needs root; see lab/enclosure.py for why nothing of it can stay behind.
"""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from lab import enclosure, runner  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
    parser.add_argument("--build", default=os.path.join(root, "build"),
                        help="meson's build directory (default: build)")
    parser.add_argument("--slow", type=int, default=1, help="factor on all time limits")
    parser.add_argument("--without", default="", help="files of cases that are left out, with commas between them")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("cases", nargs="*", help="names of cases; default: all")
    args = parser.parse_args()

    # Imported here: scapy takes a second, and the cases register themselves.
    from cases import (  # noqa: F401
        oracles, traffic, steering, drops, egress, neighbours, ports, connections, life, closed, losses, chaos,
        unprivileged)

    left_out = {f"cases.{name}" for name in args.without.split(",")}
    runner.CASES[:] = [each for each in runner.CASES if each[2].__module__ not in left_out]
    if args.list:
        print("\n".join(name for name, _, _ in runner.CASES))
        return 0
    build = os.path.abspath(args.build)
    return enclosure.run(lambda: runner.run(build, args.cases, args.slow))


if __name__ == "__main__":
    sys.exit(main())
