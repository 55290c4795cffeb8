# SPDX-License-Identifier: Apache-2.0
"""Boots guests for files of cases and reports their verdicts in the TAP format."""

import glob
import importlib.util
import json
import os
import secrets
import sys
import time

from lab import checks

from . import guest, trees

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Job:
    """The cases of one file on one kernel."""

    def __init__(self, path, boot, kernel):
        self.path, self.boot, self.kernel = path, boot, kernel
        self.suffix = f" [{kernel}]"
        self.cases = list(boot.cases)

    def titles(self):
        return [case.name + self.suffix for case in self.cases]


def jobs():
    found = []
    for path in sorted(glob.glob(f"{HERE}/cases/*.py")):
        spec = importlib.util.spec_from_file_location("vm_case", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += [Job(path, module.BOOT, kernel) for kernel in module.BOOT.kernels]
    return found


def choose(found, wanted):
    """Only cases that are named, with or without their kernel; also by the name of their file."""
    for job in found:
        stem = os.path.basename(job.path)[:-3]
        job.cases = [c for c in job.cases if not wanted or
                     {c.name, c.name + job.suffix, stem, stem + job.suffix} & set(wanted)]
    return [job for job in found if job.cases]


class Report:
    """Lines of TAP; meson shows the error stream of what failed."""

    def __init__(self, count):
        self.number, self.failed = 0, 0
        print(f"1..{count}", flush=True)

    def line(self, title, verdict, notes=(), seconds=None):
        self.number += 1
        reason = f" # {verdict}" if verdict.startswith("SKIP") else ""
        print(f"{'not ok' if verdict == 'FAIL' else 'ok'} {self.number} - {title}{reason}")
        lines = [line for note in notes for line in note.splitlines()]
        for line in lines:
            print(f"# {line}")
        if seconds is not None:
            print(f"# {seconds} s")
        sys.stdout.flush()
        if verdict == "FAIL":
            self.failed += 1
            print(f"{title}:", *lines, sep="\n  ", file=sys.stderr, flush=True)


def run_job(job, build, slow, report):
    began = time.monotonic()
    try:
        g = guest.Guest(job.kernel, job.boot.cpus, job.boot.memory, job.boot.devices,
                        job.boot.modules)
    except trees.Unavailable as e:
        for title in job.titles():
            report.line(title, f"SKIP {e}")
        return
    left = list(job.cases)

    def collect():
        for line in g.results()[len(job.cases) - len(left):]:
            result = json.loads(line)
            left.pop(0)
            report.line(result["case"] + job.suffix, result["verdict"], result["notes"],
                        result["seconds"])

    try:
        if job.boot.network:
            job.boot.network(g)
        limit = 180 + sum(3 * slow * case.seconds for case in job.cases)
        g.start(["/usr/bin/python3", "-B", f"{HERE}/inside/main.py", job.path, build, str(slow),
                 secrets.token_hex(32), *(case.name for case in job.cases)])
        g.wait(limit, collect)
        if left:
            raise guest.GuestFailed(f"the guest ran only {len(job.cases) - len(left)} of "
                                    f"{len(job.cases)} cases\n{g.last_words()}")
    except checks.Skip as e:
        for case in left:
            report.line(case.name + job.suffix, f"SKIP {e}")
    except guest.GuestFailed as e:
        for case in left:
            report.line(case.name + job.suffix, "FAIL", [str(e)])
    finally:
        g.kill()
        print(f"# {os.path.basename(job.path)} on {g.release}: {time.monotonic() - began:.1f} s",
              flush=True)


def run(build, wanted, slow):
    chosen = choose(jobs(), wanted)
    if not chosen:
        print("no such case: see --list", file=sys.stderr)
        return 2
    report = Report(sum(len(job.cases) for job in chosen))
    for job in chosen:
        run_job(job, build, slow, report)
    return 1 if report.failed else 0


def execute(kernel, command, modules=()):
    """One command in a guest, for trying things by hand."""
    status, said = guest.Guest(kernel, modules=modules).run(["sh", "-c", command], 3600)
    print(said, end="")
    return status
