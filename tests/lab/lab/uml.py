# SPDX-License-Identifier: Apache-2.0
"""The peer gateway: a real Linux kernel with its own ESP, as a user-mode Linux process.

Debian's package user-mode-linux carries a whole kernel that runs as a program. It joins the lab by
AF_PACKET on ends of veth pairs (those ends have no address), so that its packets are made and
checked by an IPsec implementation that shares nothing with ours. Its disk is an archive in memory:
a static busybox, iproute2, and the kernel modules of xfrm and of the algorithms.
"""

import gzip
import os
import re
import shutil
import subprocess
import threading
import time

from .checks import check

KERNEL = "/usr/bin/linux.uml"
MODULE_ROOT = "/usr/lib/uml/modules"
BUSYBOX = "/bin/busybox"
PRELOAD = "tests/lab/uml_preload.so"  # what it is for, its sources say: uml_*.cc

# sha512_generic, hmac and drbg look out of place: without them no SA with an IV generator loads.
MODULES = """xfrm_user esp4 esp6 xfrm4_tunnel xfrm6_tunnel gcm ghash-generic ctr hmac
sha512_generic drbg jitterentropy_rng seqiv echainiv ccm chacha_generic poly1305_generic
chacha20poly1305""".split()

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/sbin:/bin
mount -t proc p /proc; mount -t sysfs s /sys
for m in /modules/*; do insmod $m; done
dmesg -n 1
stty -echo 2>/dev/null
echo "=== READY $(uname -r)"
while read -r line; do eval "$line" 2>&1; echo "=== RC $?"; done
poweroff -f
"""


class PeerUnavailable(Exception):
    """This machine cannot run the peer; the text says why."""


def _cpio(files):
    """An initramfs: newc archive of {path: (mode, bytes)}; directories are made as needed."""
    out = bytearray()
    seen = set()

    def entry(path, mode, data):
        name = path.encode() + b"\0"
        fields = [len(seen), mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0]
        out.extend(b"070701" + b"".join(b"%08X" % f for f in fields) + name)
        out.extend(b"\0" * (-len(out) % 4))
        out.extend(data)
        out.extend(b"\0" * (-len(out) % 4))
        seen.add(path)

    for path, (mode, data) in files.items():
        parts = path.split("/")
        for i in range(1, len(parts)):
            if (parent := "/".join(parts[:i])) not in seen:
                entry(parent, 0o040755, b"")
        entry(path, mode, data)
    entry("TRAILER!!!", 0, b"")
    return bytes(out)


def _read(path):
    with open(path, "rb") as f:
        return f.read()


def build_image(path):
    """Writes the guest's initramfs. Takes well under a second, so it is not cached anywhere."""
    for need, package in ((KERNEL, "user-mode-linux"), (BUSYBOX, "busybox-static")):
        if not os.path.exists(need):
            raise PeerUnavailable(f"{need} is missing: install {package} (./run deps)")
    files = {"init": (0o100755, INIT.encode()), "bin/busybox": (0o100755, _read(BUSYBOX)),
             "proc/.d": (0o100644, b""), "sys/.d": (0o100644, b""), "dev/.d": (0o100644, b""),
             "tmp/.d": (0o100644, b"")}
    for number, module in enumerate(_modules_in_order()):
        files[f"modules/{number:02}-{os.path.basename(module)}"] = (0o100644, _read(module))
    # busybox's shell prefers its own applet called ip, which knows no xfrm: say /sbin/ip.
    for name in ("ip", "ethtool"):
        program = os.path.realpath(shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin"))
        files[f"sbin/{name}"] = (0o100755, _read(program))
        linked = subprocess.run(["ldd", program], stdout=subprocess.PIPE, text=True,
                                check=True).stdout
        for library in re.findall(r"(/[^ ]+)", linked):
            files[library.lstrip("/")] = (0o100755, _read(os.path.realpath(library)))
    with open(path, "wb") as f:
        f.write(gzip.compress(_cpio(files), 1))


def _modules_in_order():
    """Paths of MODULES and of what they need, each after what it needs."""
    root = os.path.join(MODULE_ROOT, os.listdir(MODULE_ROOT)[0])
    needs = {}
    with open(os.path.join(root, "modules.dep"), encoding="ascii") as f:
        for line in f:
            module, _, others = line.partition(":")
            needs[os.path.basename(module)[:-3]] = [*reversed(others.split()), module]
    return list(dict.fromkeys(os.path.join(root, path)
                              for name in MODULES for path in needs.get(name, [])))


class UmlPeer:
    """One guest. devices: the veth ends in `ns` that become vec0, vec1, ... in the guest."""

    def __init__(self, ns, devices, folder, build_dir):
        self.folder = folder
        self._lines = []
        self._news = threading.Condition()
        image = os.path.join(folder, "uml.cpio.gz")
        build_image(image)
        # A copy: in LD_PRELOAD a path has no spaces, and what is missing is only warned of.
        preload = shutil.copy(os.path.join(build_dir, PRELOAD), folder)
        argv = [KERNEL, "mem=192M", f"initrd={image}", "root=/dev/ram0", "con=null",
                "con0=fd:0,fd:1", "ssl=null", "umid=peer", f"uml_dir={folder}"]
        for i, device in enumerate(devices):
            argv.append(f"vec{i}:transport=raw,ifname={device},depth=128,"
                        f"mac=02:00:00:00:0{i}:02")
        self._process = subprocess.Popen(ns.argv(*argv), stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                         env={**os.environ, "TMPDIR": folder,
                                              "LD_PRELOAD": preload},
                                         start_new_session=True)
        threading.Thread(target=self._read_console, daemon=True).start()
        ready = self._wait_for("=== READY ", 0, 60)
        if ready is None:
            self.close()
            raise PeerUnavailable("user-mode Linux did not boot:\n" +
                                  "\n".join(self._lines[-15:]))
        self.kernel = self._lines[ready].split()[-1]

    def _read_console(self):
        for line in self._process.stdout:
            with self._news:
                self._lines.append(line.decode(errors="replace").rstrip())
                self._news.notify_all()
        with self._news:
            self._lines.append("=== END")
            self._news.notify_all()

    def _wait_for(self, start, first, seconds):
        deadline = time.monotonic() + seconds
        with self._news:
            while True:
                for i in range(first, len(self._lines)):
                    if self._lines[i].startswith(start):
                        return i
                left = deadline - time.monotonic()
                if left <= 0 or (self._lines and self._lines[-1] == "=== END"):
                    return None
                self._news.wait(left)

    def sh(self, command, timeout=20, check=True):
        """Runs one line of shell in the guest, returns what it printed."""
        with self._news:
            first = len(self._lines)
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()
        end = self._wait_for("=== RC ", first, timeout)
        if end is None:
            raise TimeoutError(f"peer: no answer to: {command}")
        output = "\n".join(self._lines[first:end])
        if check and self._lines[end] != "=== RC 0":
            raise RuntimeError(f"peer: {command}: {self._lines[end]}\n{output}")
        return output

    def ip(self, words, **kwargs):
        return self.sh(f"/sbin/ip {words}", **kwargs)

    def ip_batch(self, lines):
        """As many ip commands in one go: a process in the guest takes long where the machine is busy."""
        batch = " ".join(f"'{line}'" for line in lines)
        check(len(batch) < 3800, "longer than a line of the guest's console may be")
        return self.sh(f"printf '%s\\n' {batch} | /sbin/ip -batch -")

    def close(self):
        """Ends the guest. It is a family of processes: all share the session we gave it."""
        if self._process.poll() is None:
            try:
                self._process.stdin.write(b"poweroff -f\n")
                self._process.stdin.flush()
                self._process.wait(5)
            except (OSError, subprocess.TimeoutExpired):
                pass
        self._end_session()

    def _end_session(self):
        session = self._process.pid
        for _ in range(50):
            members = [pid for pid in _pids() if pid != os.getpid() and _session_of(pid) == session]
            for pid in members:
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    pass
            if not members:
                break
            time.sleep(0.05)
        self._process.wait(5)


def _pids():
    return [int(p) for p in os.listdir("/proc") if p.isdigit()]


def _session_of(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            fields = f.read().rsplit(")", 1)[1].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[3])
