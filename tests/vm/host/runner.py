# SPDX-License-Identifier: Apache-2.0
"""Boots guests for files of cases and reports their verdicts in the TAP format."""

import contextlib
import glob
import importlib.util
import json
import os
import secrets
import sys
import threading
import time
import traceback

from inside import boot
from lab import checks

from . import guest, trees

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Job:
    """The cases of one file on one kernel."""

    def __init__(self, path, boot, kernel, whole):
        self.path, self.boot, self.kernel = path, boot, kernel
        self.suffix = f" [{kernel}]"
        self.cases = [case for case in boot.cases if whole or case.everywhere or kernel == boot.kernels[0]]

    def titles(self):
        return [case.name + self.suffix for case in self.cases]


def jobs(kernel=None):
    """One for each file and kernel, or only for `kernel`, then with all cases."""
    found = []
    whole = bool(kernel or os.environ.get("SALLYPORT_VM_EVERYWHERE"))
    for path in sorted(glob.glob(f"{HERE}/cases/*.py")):
        spec = importlib.util.spec_from_file_location("vm_case", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += [Job(path, module.BOOT, k, whole) for k in module.BOOT.kernels]
    if kernel:
        found = [Job(path, job.boot, kernel, whole)
                 for path, job in {job.path: job for job in found}.items()]
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
        self.planned = count
        self.number, self.failed, self._lock = 0, 0, threading.Lock()
        print(f"1..{count}", flush=True)

    def line(self, title, verdict, notes=(), seconds=None):
        with self._lock:
            self._line(title, verdict, notes, seconds)

    def comment(self, text):
        with self._lock:
            print(f"# {text}", flush=True)

    def _line(self, title, verdict, notes, seconds):
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


def asked_for():
    """What cases read of the environment (SALLYPORT_PAIRS=10000), in words for env(1)."""
    return [f"{name}={value}" for name, value in os.environ.items() if name.startswith("SALLYPORT_")]


def run_job(job, build, slow, report):
    began = time.monotonic()
    try:
        g = guest.Guest(job.kernel, job.boot.cpus, job.boot.memory, job.boot.devices,
                        job.boot.modules, job.boot.audit)
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
        limit = 180 + sum(boot.PATIENCE * slow * case.seconds for case in job.cases)
        g.start([*asked_for(), "/usr/bin/python3", "-B", f"{HERE}/inside/main.py", job.path, build,
                 str(slow), secrets.token_hex(32), *(case.name for case in job.cases)])
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
        report.comment(f"{os.path.basename(job.path)} on {g.release}: "
                       f"{time.monotonic() - began:.1f} s")


def run(build, wanted, slow, at_once=2, kernel=None):
    chosen = choose(jobs(kernel), wanted)
    if not chosen:
        print("no such case: see --list", file=sys.stderr)
        return 2
    report = Report(sum(len(job.cases) for job in chosen))
    # The longest first; from the end of this list.
    waiting = sorted(chosen, key=lambda job: sum(case.seconds for case in job.cases))
    network = threading.Lock()  # the host's side of cards: one guest at a time has it

    def work():
        while True:
            try:
                job = waiting.pop()
            except IndexError:
                return
            try:
                with network if job.boot.network else contextlib.nullcontext():
                    run_job(job, build, slow, report)
            except Exception:
                report.line(f"{os.path.basename(job.path)}{job.suffix}", "FAIL",
                            [traceback.format_exc()])

    # A guest keeps about one CPU busy. Daemons: should we be stopped, the enclosure ends them.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.5)
    return 1 if report.failed or report.number != report.planned else 0


def execute(kernel, command, modules=()):
    """One command in a guest, for trying things by hand."""
    status, said = guest.Guest(kernel, modules=modules).run(["sh", "-c", command], 3600)
    print(said, end="")
    return status
