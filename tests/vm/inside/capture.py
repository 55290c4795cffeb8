# SPDX-License-Identifier: Apache-2.0
"""Frames seen on a device, recorded from the first moment on: tcpdump into a file."""

import os
import signal
import struct
import time

from lab import netns, wire


class Capture:
    """With `with`, or start() and stop(); then frames() and esp()."""

    def __init__(self, guest, ns, device, words="", seconds=60):
        self.path = os.path.join(guest.folder, f"{ns.name}-{device}-{len(guest.cleanups)}.pcap")
        self._argv = ["tcpdump", "-i", device, "-n", "-U", "-s", "0", "-B", "8192",
                      "--immediate-mode",  # else the last block of the ring is lost
                      "-w", self.path,
                      *words.split()]
        self._ns, self._process, self._seconds = ns, None, seconds
        guest.later(self.stop)

    def start(self):
        self._process = self._ns.start(*self._argv, stdout=-3, stderr=-3)
        deadline = time.monotonic() + self._seconds
        while not (os.path.exists(self.path) and os.path.getsize(self.path) >= 24):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise netns.CommandFailed("tcpdump did not start")
            time.sleep(0.05)
        return self

    def stop(self):
        if self._running():
            self._until_written()
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)

    def _running(self):
        return self._process is not None and self._process.poll() is None

    def _until_written(self):
        """tcpdump sleeps when its ring is empty; while it has frames it runs, or would like to."""
        deadline, asleep = time.monotonic() + 20, 0
        while asleep < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
            with open(f"/proc/{self._process.pid}/stat", encoding="ascii") as f:
                asleep = asleep + 1 if f.read().rpartition(") ")[2][:1] == "S" else 0

    __enter__ = start

    def __exit__(self, *_):
        self.stop()

    def frames(self):
        """[(seconds, frame)] of all that the device has seen so far."""
        if self._running():
            self._until_written()
        with open(self.path, "rb") as f:
            data = f.read()
        found, at = [], 24
        while at + 16 <= len(data):
            second, micro, kept, _ = struct.unpack_from("<IIII", data, at)
            found.append((second + micro / 1e6, data[at + 16:at + 16 + kept]))
            at += 16 + kept
        return found

    def esp(self):
        """[(SPI, sequence, IV)] of the ESP frames so far."""
        return [e for _, frame in self.frames() if (e := wire.esp_of(frame))]
