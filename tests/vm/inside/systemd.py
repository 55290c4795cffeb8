# SPDX-License-Identifier: Apache-2.0
"""systemd as init of a PID namespace inside a network namespace, with sallyportd's own unit.

It sees only units of its own folder: targets without anything in them, and config/sallyportd.service as it
is in the tree. Programs are at their places in the guest's root, which nobody else sees.
"""

import os
import shutil
import subprocess
import time

from lab.checks import eventually, read_log

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
UNIT = "sallyportd.service"
TARGETS = ("default", "sysinit", "basic", "shutdown", "network-pre", "network", "emergency",
           "umount", "final", "exit", "reboot", "poweroff", "halt")

# The namespace's /sys is a new one; systemd wants a cgroup of its own at the root of what it sees.
START = """
mount -t bpf b /sys/fs/bpf
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 c /sys/fs/cgroup
mkdir -p /sys/fs/cgroup/init && echo $$ >/sys/fs/cgroup/init/cgroup.procs
exec unshare --pid --mount --cgroup --uts --ipc --fork --kill-child --mount-proc sh -c '
mount -t cgroup2 c /sys/fs/cgroup
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=guest SYSTEMD_UNIT_PATH="$0" SYSTEMD_LOG_TARGET=console \
    /lib/systemd/systemd --system --unit=default.target --log-level=info' "$0"
"""


def outer_pid(inner):
    """Of the process that has this number in the PID namespace."""
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/status", encoding="ascii") as f:
                ids = next((line.split()[1:] for line in f if line.startswith("NSpid:")), [])
        except OSError:
            continue
        if len(ids) > 1 and ids[-1] == inner:
            return int(process)
    raise LookupError(f"no process {inner} in the PID namespace")


class Systemd:
    """text: the configuration. start() boots; systemctl(...) asks; log() is what sallyportd said."""

    def __init__(self, guest, ns, text):
        self._ns = ns
        self.folder = os.path.join(guest.folder, "units")
        self.log_path = os.path.join(guest.folder, "sallyportd.log")
        os.makedirs(os.path.join(self.folder, f"{UNIT}.d"))
        for target in TARGETS:
            self._write(f"{target}.target", f"[Unit]\nDescription={target}\nDefaultDependencies=no\n")
        self._write("default.target", f"[Unit]\nDescription=all\nRequires={UNIT}\nAfter={UNIT}\n")
        shutil.copy(os.path.join(ROOT, "config", UNIT), self.folder)
        # There is no journal.
        self._write(f"{UNIT}.d/log.conf", f"[Service]\nStandardOutput=append:{self.log_path}\n"
                                          f"StandardError=append:{self.log_path}\n")
        shutil.copy(os.path.join(guest.build, "control/sallyportd"), "/usr/sbin/sallyportd")
        os.makedirs("/etc/sallyport", exist_ok=True)
        self.config = "/etc/sallyport/sallyport.toml"
        with open(os.open(self.config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w",
                  encoding="ascii") as f:
            f.write(text)
        self._console = os.path.join(guest.folder, "systemd.log")
        self._process = None
        guest.logs["sallyportd under systemd"] = self.log
        guest.logs["systemd"] = lambda: open(self._console, encoding="utf-8", errors="replace").read()
        guest.later(self.end)

    def _write(self, name, text):
        with open(os.path.join(self.folder, name), "w", encoding="ascii") as f:
            f.write(text)

    def boot(self):
        with open(self._console, "ab") as console:
            self._process = self._ns.start("sh", "-c", START, self.folder, stdout=console,
                                           stderr=console)
        answer = []
        eventually(lambda: answer.append(self._answer()) or answer[-1] in
                   ("initializing", "starting", "running", "degraded"),
                   lambda: f"systemd answers, last: {answer[-1]}", 120)

    def _answer(self):
        try:
            return self.systemctl("is-system-running", check=False)
        except LookupError as e:
            return str(e)

    def systemctl(self, *words, check=True):
        # From inside: it does not listen to processes that it cannot see.
        done = subprocess.run(["nsenter", "--target", str(outer_pid("1")), "--all", "systemctl", *words], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=300, check=False)
        if check and done.returncode != 0:
            raise AssertionError(f"systemctl {' '.join(words)}: {done.stdout}")
        return done.stdout.strip()

    def value(self, name):
        return self.systemctl("show", "--value", "-p", name, UNIT)

    def is_active(self):
        return self.value("ActiveState") == "active"

    def active_soon(self, what, seconds=300):
        eventually(self.is_active, what, seconds)

    def pid(self):
        """Of sallyportd, as the guest counts."""
        return outer_pid(self.value("MainPID"))

    def log(self):
        return read_log(self.log_path)

    def end(self):
        if self._process and self._process.poll() is None:
            self._process.kill()  # what it has started goes with its PID namespace
            self._process.wait(60)
        time.sleep(0.5)
