# SPDX-License-Identifier: Apache-2.0
"""An unmodified strongSwan (charon-systemd of Debian 12) in a namespace of the guest.

Each has a mount namespace of its own, with its own /run, /etc/swanctl and /etc/strongswan.d, so that
files stand where an operator puts them. charon is asked by vici; swanctl() is for what is shown.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time

from lab.checks import check

from . import vici
from .net import sh

START_SECONDS = 180  # on a busy machine; normally 3
# Of strongSwan's plugins those that the packages of the README bring and these tunnels need. The guest
# has all packages, and loading everything takes charon and swanctl seconds here.
PLUGINS = ("aes constraints counters gcm hmac kdf kernel-netlink nonce openssl pem pkcs1 pkcs8 pubkey"
           " random revocation sha1 sha2 socket-default updown vici x509").split()

# What the tests want of charon besides the files of an operator: a log, and a dead peer found in
# seconds. charon gives up after the sum of timeout * base^n for n = 0 .. tries.
SETTINGS = """
charon {{
    filelog {{
        log {{
            path = {folder}/log
            flush_line = yes
            default = 1
            knl = 1
        }}
    }}
    retransmit_timeout = 3
    retransmit_base = 1
    retransmit_tries = 4
    {more}
}}
"""


class Charon:
    """files: path below /etc -> text. start() runs it and `swanctl --load-all`, as its unit does."""

    def __init__(self, ns, files=None, more=""):
        self.ns = ns
        self.folder = tempfile.mkdtemp(prefix=f"charon-{ns.name}-", dir="/var/tmp")  # not below /run
        for name in ("swanctl", "strongswan.d"):
            shutil.copytree(f"/etc/{name}", f"{self.folder}/{name}")
        for name in os.listdir(f"{self.folder}/strongswan.d/charon"):
            if name.removesuffix(".conf") not in PLUGINS:
                os.unlink(f"{self.folder}/strongswan.d/charon/{name}")
        for path, text in {"strongswan.d/tests.conf": SETTINGS.format(folder=self.folder, more=more),
                           **(files or {})}.items():
            self.write(path, text)
        self._process = None

    def write(self, path, text, mode=0o600):
        target = os.path.join(self.folder, path)
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as f:
            f.write(text)

    def start(self, load=True):
        script = ("mount -t tmpfs run /run && for d in swanctl strongswan.d; do"
                  f" mount --bind {self.folder}/$d /etc/$d || exit 1; done;"
                  " exec /usr/sbin/charon-systemd")
        with open(f"{self.folder}/stderr", "ab") as said:
            self._process = self.ns.start("sh", "-c", script, stdout=said, stderr=said)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            check(self._process.poll() is None and time.monotonic() < deadline,
                  f"charon in {self.ns.name} did not start\n{self.log()}")
            time.sleep(0.1)
        if load:
            self.swanctl("--load-all", "--noprompt")
        return self

    def _answers(self):
        try:
            with_socket = vici.Vici(self._path())
            with_socket.close()
            return True
        except OSError:
            return False

    def _path(self):
        seen_from_outside = os.path.join("/proc", str(self._process.pid), "root")
        return f"{seen_from_outside}/run/charon.vici"

    def vici(self, seconds=60):
        return vici.Vici(self._path(), seconds)

    def call(self, command, message=None, check=True, seconds=60):
        v = self.vici(seconds)
        try:
            return v.call(command, message, check)
        finally:
            v.close()

    def swanctl(self, *arguments):
        return sh("nsenter", "-t", self._process.pid, "-m", "-n", "swanctl", *arguments,
                  timeout=START_SECONDS)

    # ---- connections ---------------------------------------------------------------------------

    def load(self, name, connection):
        self.call("load-conn", {name: connection})

    def unload(self, name):
        self.call("unload-conn", {"name": name})

    def psk(self, owners, secret):
        self.call("load-shared", {"id": "-".join(owners), "type": "IKE", "data": secret,
                                  "owners": owners})

    def initiate(self, child, seconds=60):
        self.call("initiate", {"child": child, "timeout": seconds * 1000, "loglevel": -1},
                  seconds=seconds + 5)

    def terminate(self, seconds=60, check=True, **what):
        """ike="name", child="name", ...: see charon's command `terminate`."""
        return self.call("terminate", {"timeout": seconds * 1000, "loglevel": -1,
                                       **{k.replace("_", "-"): v for k, v in what.items()}},
                         check, seconds + 5)

    def rekey(self, **what):
        return self.call("rekey", what)

    def sas(self, ike=None):
        """IKE SAs: a list of (name, values); values["child-sas"] has the child SAs by unique name."""
        v = self.vici()
        try:
            events = v.stream("list-sas", "list-sa", {"ike": ike} if ike else {})
        finally:
            v.close()
        return [(name, values) for event in events for name, values in event.items()]

    def children(self, name=None, state="INSTALLED"):
        """Child SAs of that name (or all), newest last."""
        found = [child for _, ike in self.sas() for child in ike.get("child-sas", {}).values()
                 if name in (None, child["name"]) and state in (None, child["state"])]
        return sorted(found, key=lambda child: int(child["uniqueid"]))

    def log(self, size=6000):
        text = ""
        for name in ("stderr", "log"):
            try:
                with open(f"{self.folder}/{name}", encoding="utf-8", errors="replace") as f:
                    text += f.read()[-size:]
            except FileNotFoundError:
                pass
        return text

    # ---- its life ------------------------------------------------------------------------------

    def kill(self):
        """As a host that loses its power: nothing is said to the peer."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(20)

    def suspend(self):
        """Alive, but silent."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self):
        self._process.send_signal(signal.SIGCONT)

    def stop(self):
        if self._process and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
