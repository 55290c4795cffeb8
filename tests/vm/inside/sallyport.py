# SPDX-License-Identifier: Apache-2.0
"""sallyportd as an operator runs it: its file in /etc/sallyport, its state and socket where they are
by default. The guest's root is its own, so nothing of it reaches the host.
"""

import json
import os
import signal
import subprocess
import time

from lab.checks import check, read_log

from .net import sh

CONFIG = "/etc/sallyport/sallyport.toml"
START_SECONDS = 300  # on a busy machine; normally 5


class Sallyport:
    """In a namespace of the guest. start(), stop(), kill(), show("sa"), table("sa")."""

    def __init__(self, sites, ns):
        self._ns = ns
        self._program = os.path.join(sites.build, "control", "sallyportd")
        self._ctl = os.path.join(sites.build, "ctl", "sallyportctl")
        self._log = os.path.join(sites.folder, "sallyportd.log")
        self._process = None
        # ip netns exec mounts a fresh /sys; a BPF filesystem outlives one daemon, as on a real host.
        self._bpffs = os.path.join(sites.folder, "bpffs")
        os.mkdir(self._bpffs)
        sh("mount", "-t", "bpf", "bpf", self._bpffs)
        for folder in ("/etc/sallyport", "/var/lib/sallyport", "/run/sallyport"):
            os.makedirs(folder, mode=0o700, exist_ok=True)

    def configure(self, text):
        with open(CONFIG, "w", encoding="utf-8") as f:
            f.write(text)

    def start(self):
        at = len(self.log())
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self._ns.argv("sh", "-c", 'mount --bind "$0" /sys/fs/bpf && exec "$@"',
                              self._bpffs, self._program, "-c", CONFIG),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while "ready" not in self.log()[at:]:
            check(self._process.poll() is None and time.monotonic() < deadline,
                  f"sallyportd did not start:\n{self.log()[-3000:]}")
            time.sleep(0.05)
        return self

    @property
    def running(self):
        return self._process is not None and self._process.poll() is None

    def _end(self, number, seconds):
        if not self.running:
            return None
        self._process.send_signal(number)
        return self._process.wait(seconds)

    def kill(self):
        return self._end(signal.SIGKILL, 30)

    def stop(self):
        return self._end(signal.SIGTERM, 90)

    def log(self):
        return read_log(self._log)

    # ---- what it says of itself ----------------------------------------------------------------

    def table(self, what):
        return sh(self._ctl, "show", what, timeout=60)

    def show(self, what):
        return json.loads(sh(self._ctl, "show", what, "--json", timeout=60))

    def sa(self, spi):
        """The row of an SPI, given as charon writes it (eight hex digits)."""
        return next((row for row in self.show("sa") if int(row["spi"], 16) == int(spi, 16)), None)

    def delivered(self):
        """Packets that workers sent on: inbound, outbound."""
        rows = self.show("workers")
        return tuple(sum(row[way]["delivered"] for row in rows) for way in ("inbound", "outbound"))

    def tables(self):
        """All that sallyportctl shows, for the eyes of who looks for a fault."""
        return "".join(self.table(what) for what in ("status", "ports", "workers", "policy", "sa", "drops")) \
            if self.running else "not running"
