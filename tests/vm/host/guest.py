# SPDX-License-Identifier: Apache-2.0
"""One guest: an unmodified Debian kernel under QEMU's own CPU emulation (no KVM is asked for).

It sees the host's root file system (read-only, over 9p) with a tmpfs above it, and one folder, /out,
that both sides write. Its memory as it is just before it mounts anything is kept as a file for each
kernel and set of devices, and later guests go on from there: a boot takes 3 s instead of 10.
"""

import hashlib
import json
import os
import shlex
import socket
import subprocess
import tempfile
import time

from . import image, trees

BOOT_SECONDS = 180  # a cold boot on a busy machine; normally 10
CONSOLE = "console=ttyS0 loglevel=6 panic=-1 nokaslr mitigations=off random.trust_cpu=on"

START = """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TERM=dumb LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
busybox hostname guest; busybox ip link set lo up; : >/out/started
for module in {modules}; do modprobe $module || echo "no module $module" >>/out/output; done
cd /out; ( exec /usr/bin/env {command} ) </dev/null >>/out/output 2>&1
echo $? >/out/status.new; mv /out/status.new /out/status; sync
printf '\\000' | busybox dd of=/dev/port bs=1 seek=244 count=1 2>/dev/null; busybox poweroff -f
"""


class GuestFailed(Exception):
    """The guest did not come up, died, or did not end in time; the text has its last words."""


class Guest:
    """kernel: one of trees.KERNELS. devices: more words for QEMU, e.g. network cards. audit: the
    kernel's audit records go to its log, as on any machine without auditd."""

    def __init__(self, kernel, cpus=2, memory=2048, devices=(), modules=(), audit=False):
        self.image = image.Image(kernel)
        self.qemu = trees.tree("qemu")
        self.cpus, self.memory = cpus, memory
        self.devices, self.modules = list(devices), list(modules)
        self.words = CONSOLE if audit else f"{CONSOLE} audit=0"
        self.folder = tempfile.mkdtemp(prefix="sallyport-vm-")  # /out of the guest
        self._process = None

    @property
    def release(self):
        return self.image.release

    def run(self, argv, seconds):
        """Runs one command in the guest to its end: (exit status, what it printed)."""
        self.start(argv)
        self.wait(seconds)
        return self.status(), self.output()

    def start(self, argv):
        self._write("modules", self.image.modules)
        self._write("start", START.format(command=shlex.join(argv), modules=" ".join(self.modules)))
        self._write("output", "")
        state = self._snapshot()
        self._launch("-incoming", f"file:{state}")

    def wait(self, seconds, poll=lambda: None):
        """Until the guest has ended; poll() is called meanwhile, ten times a second."""
        deadline, told = time.monotonic() + seconds, 0.0
        while self._process.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise GuestFailed(f"the guest did not end in {seconds} s\n{self.last_words()}")
            if time.monotonic() - told > 0.2 and not os.path.exists(f"{self.folder}/started"):
                told = time.monotonic()
                self._tell_time()
            poll()
            time.sleep(0.1)
        self._process.stdin.close()
        poll()
        if self.status() is None:
            raise GuestFailed(f"the guest died, QEMU's status {self._process.returncode}\n"
                              f"{self.last_words()}")

    def kill(self):
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait(20)

    def status(self):
        text = self._read("status").strip()
        return int(text) if text else None

    def output(self):
        return self._read("output")

    def results(self):
        """Whole lines of /out/results so far."""
        return self._read("results").split("\n")[:-1]

    def last_words(self, lines=40):
        """What the guest's kernel, its command and QEMU said last."""
        return "\n".join(f"-- {name}:\n" + "\n".join(self._read(name).splitlines()[-lines:])
                         for name in ("console", "output", "qemu"))

    # ---- the machine ---------------------------------------------------------------------------

    def _argv(self, *more):
        q, img = self.qemu, self.image
        argv = [f"{q}/usr/bin/qemu-system-x86_64", "-L", f"{q}/usr/share/qemu",
                "-L", f"{q}/usr/share/seabios", "-accel", "tcg,thread=multi,tb-size=512",
                "-machine", "q35", "-cpu", "max", "-smp", str(self.cpus), "-m", str(self.memory),
                "-nodefaults", "-no-reboot", "-display", "none", "-nic", "none",
                "-chardev", f"file,id=c0,path={self.folder}/console", "-serial", "chardev:c0",
                "-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x01",
                "-device", "virtio-rng-pci"]
        for tag, path, mode in (("host", "/", ",readonly=on,multidevs=remap"),
                                ("extra", img.extra, ",readonly=on,multidevs=remap"),
                                ("out", self.folder, "")):
            argv += ["-fsdev", f"local,id={tag},path={path},security_model=none{mode}",
                     "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
        return [*argv, *self.devices, "-kernel", img.vmlinux, "-initrd", img.initramfs,
                "-append", self.words, *more]

    def _launch(self, *more):
        libraries = ":".join(f"{self.qemu}/{p}/x86_64-linux-gnu" for p in ("usr/lib", "lib"))
        with open(f"{self.folder}/qemu", "wb") as said:
            self._process = subprocess.Popen(
                self._argv(*more), stdin=subprocess.PIPE, stdout=said, stderr=said,
                env={**os.environ, "LD_LIBRARY_PATH": libraries}, start_new_session=True)

    def _tell_time(self):
        try:
            self._process.stdin.write(b"T%dE\n" % time.time())
            self._process.stdin.flush()
        except (BrokenPipeError, BlockingIOError):
            pass

    def _snapshot(self):
        """The file with the memory of a guest like this one before its first mount."""
        key = json.dumps([self.cpus, self.memory, self.devices, self.words, _read(f"{self.qemu}/packages")])
        state = f"{self.image.folder}/snapshot-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        if not os.path.exists(state):
            with trees.locked("images"):
                if not os.path.exists(state):
                    self._make_snapshot(state)
        os.utime(state)
        return state

    def _make_snapshot(self, state):
        trees.drop_unused("images/*/snapshot-*")  # of devices that no test asks for any more
        monitor = f"{self.folder}/monitor"
        self._launch("-monitor", f"unix:{monitor},server=on,wait=off")
        try:
            self._until(lambda: "snapshot point" in self._read("console"), "did not boot")
            time.sleep(0.3)  # it has come to its read
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(monitor)
                s.settimeout(20)

                def ask(words):
                    s.sendall(words.encode() + b"\n")
                    time.sleep(0.2)
                    return s.recv(1 << 16).decode(errors="replace")

                ask("migrate_set_parameter max-bandwidth 10G")
                ask(f"migrate -d file:{state}.part")
                self._until(lambda: "completed" in ask("info migrate"), "was not saved")
        finally:
            self.kill()
            self._process.stdin.close()
        os.rename(f"{state}.part", state)
        for name in ("console", "monitor"):
            os.unlink(f"{self.folder}/{name}")

    def _until(self, condition, what):
        deadline = time.monotonic() + BOOT_SECONDS
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise GuestFailed(f"the guest {what}\n{self.last_words()}")
            time.sleep(0.1)

    # ---- files of /out -------------------------------------------------------------------------

    def _write(self, name, text):
        with open(os.path.join(self.folder, name), "w", encoding="utf-8") as f:
            f.write(text)

    def _read(self, name):
        return _read(os.path.join(self.folder, name))


def _read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return f.read()
    except FileNotFoundError:
        return ""
