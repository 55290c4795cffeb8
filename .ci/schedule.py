#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the jobs of `./run test`: what does not depend on one another side by side.

    schedule.py RESULTS < TABLE

A line of TABLE is `NAME NEEDS SHARE COMMAND...`: NEEDS is a job that must have succeeded before, or
`-`. SHARE is how many CPUs the job counts on: those that run together do not count on more than there
are, so that what is judged by time has its own. With `rest` a job takes what the others leave: it
runs at the lowest priority, one of them at a time (compilers, clang-tidy). COMMAND is a function of
`run`. Jobs start in the order of the table when they can.

What a job printed is shown when it ends and stays in RESULTS/NAME.log; how long each took is shown at
the end. Jobs write their own results there; a job that failed without a word, or whose NEEDS failed, is
noted as failed in RESULTS/NAME.txt. The exit status says only whether all jobs came to their end.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import time

RUN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "run")
REST = "rest"
LOWEST = 19


@dataclasses.dataclass
class Job:
    name: str
    needs: str
    share: str
    command: list
    began: float = 0.0
    seconds: float = 0.0
    process: subprocess.Popen | None = None
    outcome: str = "waits"  # then runs, then ok, failed or skipped

    @property
    def cpus(self):
        return 0 if self.share == REST else int(self.share)


def read_table(lines):
    jobs = []
    for line in lines:
        if words := line.split("#")[0].split():
            name, needs, share, *command = words
            if needs != "-" and needs not in [job.name for job in jobs]:
                sys.exit(f"schedule: {name} needs {needs}, which does not stand above it")
            jobs.append(Job(name, needs, share, command))
    return jobs


def may_start(job, jobs, cpus):
    running = [other for other in jobs if other.outcome == "runs"]
    if job.share == REST:
        return not any(other.share == REST for other in running)
    # Alone, a job may count on more CPUs than there are.
    used = sum(other.cpus for other in running)
    return used == 0 or used + job.cpus <= cpus


class Schedule:
    def __init__(self, jobs, results, command=(RUN, "job")):
        self.jobs, self.results, self.command = jobs, results, command
        self.by_name = {job.name: job for job in jobs}
        self.cpus = len(os.sched_getaffinity(0))

    def log(self, job):
        return os.path.join(self.results, f"{job.name}.log")

    def start(self, job):
        job.began, job.outcome = time.monotonic(), "runs"
        nice = ["nice", "-n", str(LOWEST)] if job.share == REST else []
        with open(self.log(job), "wb") as log:
            # A group of its own, which stop() can end as a whole.
            job.process = subprocess.Popen([*nice, *self.command, *job.command], stdout=log,
                                           stderr=log, stdin=subprocess.DEVNULL,
                                           start_new_session=True)
        print(f"-- {job.name} begins", flush=True)

    def end(self, job):
        job.seconds = time.monotonic() - job.began
        job.outcome = "ok" if job.process.returncode == 0 else "failed"
        print(f"\n== {job.name}: {job.outcome} after {job.seconds:.0f} s", flush=True)
        with open(self.log(job), encoding="utf-8", errors="replace") as log:
            sys.stdout.write(log.read())
        sys.stdout.flush()
        if job.outcome == "failed":
            self.note_failure(job)

    def skip(self, job):
        job.outcome = "skipped"
        print(f"-- {job.name} does not run, because {job.needs} did not succeed", flush=True)
        self.note_failure(job)

    def note_failure(self, job):
        with open(os.path.join(self.results, f"{job.name}.txt"), "a+", encoding="utf-8") as f:
            f.seek(0)
            if "fail " not in f.read():
                f.write(f"fail {job.name}\n")

    def step(self):
        for job in self.jobs:
            if job.outcome == "runs" and job.process.poll() is not None:
                self.end(job)
        for job in self.jobs:
            if job.outcome != "waits":
                continue
            needed = "ok" if job.needs == "-" else self.by_name[job.needs].outcome
            if needed in ("failed", "skipped"):
                self.skip(job)
            elif needed == "ok" and may_start(job, self.jobs, self.cpus):
                self.start(job)

    def run(self):
        try:
            while any(job.outcome in ("waits", "runs") for job in self.jobs):
                self.step()
                time.sleep(0.2)
        finally:
            self.stop()

    def stop(self):
        """Ends what still runs: somebody has interrupted us."""
        for job in self.jobs:
            if job.outcome == "runs":
                os.killpg(job.process.pid, signal.SIGTERM)
                job.process.wait(60)


def main():
    results = sys.argv[1]
    schedule = Schedule(read_table(sys.stdin), results)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    began = time.monotonic()
    schedule.run()
    print("\n== seconds")
    for job in sorted(schedule.jobs, key=lambda job: job.began):
        print(f"{job.name:12} {job.began - began if job.began else 0:6.0f} to "
              f"{job.began - began + job.seconds if job.began else 0:6.0f}: {job.seconds:5.0f}")
    print(f"{'together':12} {time.monotonic() - began:24.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
