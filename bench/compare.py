#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares two builds of pipeline_bench: which of them needs fewer cycles for a packet?

Usage: compare.py BEFORE AFTER [--rounds N] [--bytes 64,1400] [--bursts 32,64]

BEFORE and AFTER are two binaries. Each round runs both once, in turn with the other first, so that
what else the machine does meets both alike. A figure of a binary is the median of its rounds; beside
it stands the least, which a busy machine disturbs least.
"""

import argparse
import re
import statistics
import subprocess
import sys

# dir bytes SAs burst raw (lo-hi) raw_keys median (lo-hi) ratio ...
ROW = re.compile(r"^(out|in)\s+(\d+)\s+(\d+)\s+(\d+)\s+\d+ \([\s\d]+-[\s\d]+\)\s+\d+\s+(\d+) \(")


def measure(binary, wanted):
    """Cycles per packet by (direction, bytes, SAs, burst); ends when the rows that are wanted are
    there, or when the binary does."""
    rows = {}
    with subprocess.Popen(["stdbuf", "-oL", binary], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if match := ROW.match(line):
                row = (match[1], int(match[2]), int(match[3]), int(match[4]))
                rows[row] = int(match[5])
            elif rows:
                break
            if wanted <= {row[1::2] for row in rows if row[0] == "in" and row[2] > 1}:
                break
        process.kill()
    if not rows:
        sys.exit(f"{binary} printed no rows that compare.py knows")
    return {row: cycles for row, cycles in rows.items() if row[1::2] in wanted}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bytes", default="64,1400")
    parser.add_argument("--bursts", default="32,64")
    arguments = parser.parse_args()
    wanted = {(int(size), int(burst)) for size in arguments.bytes.split(",")
              for burst in arguments.bursts.split(",")}

    before, after = {}, {}
    for number in range(arguments.rounds):
        turn = [(arguments.before, before), (arguments.after, after)]
        for binary, results in turn if number % 2 == 0 else reversed(turn):
            for row, cycles in measure(binary, wanted).items():
                results.setdefault(row, []).append(cycles)

    print(f"cycles per packet, median (least) of {arguments.rounds} rounds, interleaved")
    print("dir  bytes   SAs  burst   before          after         median   least")
    for row in before:
        direction, size, sas, burst = row
        old, new = before[row], after[row]
        change = statistics.median(new) / statistics.median(old) - 1
        least = min(new) / min(old) - 1
        print(f"{direction:4} {size:5} {sas:5} {burst:6}  {statistics.median(old):6.0f} ({min(old):4})"
              f"  {statistics.median(new):6.0f} ({min(new):4})  {change:+7.1%} {least:+7.1%}")


if __name__ == "__main__":
    main()
