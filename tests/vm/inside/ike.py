# SPDX-License-Identifier: Apache-2.0
"""An unmodified strongSwan charon in a namespace, with its own files and its own vici socket.

    left = ike.Charon(guest, net.left, SWANCTL_CONF)
    left.start()                      # swanctl.conf is loaded too
    left.initiate("tunnel")
    print(left.swanctl("--list-sas"))
"""

import os
import signal
import subprocess
import time

from . import net

CHARON = "/usr/lib/ipsec/charon"
START_SECONDS = 90

STRONGSWAN_CONF = """
charon {{
    load = {load}
    install_routes = no
    retransmit_tries = 4
    retransmit_timeout = 4
    plugins {{
        vici {{ socket = unix://{folder}/vici }}
        {plugins}
    }}
    filelog {{ log {{ path = {folder}/log
                  default = 1
                  {log}
                  time_format = %H:%M:%S
                  flush_line = yes }} }}
    {more}
}}
"""


# Without this list charon loads every plugin there is, which takes ten seconds here.
PLUGINS = ("random nonce drbg aes sha1 sha2 hmac kdf gcm x509 revocation constraints pubkey pkcs1 pkcs8"
           " pkcs7 pem openssl curve25519 kernel-netlink socket-default vici updown counters")


class Charon:
    """conf: text of swanctl.conf. more: lines for strongswan.conf's section charon; plugins: for its
    section plugins; load: names of more plugins."""

    def __init__(self, guest, ns, conf, more="", plugins="", load="", log="knl = 1"):
        self.ns = ns
        self.folder = os.path.join(guest.folder, f"{ns.name}-ike")
        for name in ("x509", "x509ca", "private", "ecdsa", "rsa", "pkcs8", "pkcs12", "pubkey"):
            os.makedirs(f"{self.folder}/{name}", mode=0o700)
        self.write("strongswan.conf", STRONGSWAN_CONF.format(folder=self.folder, more=more,
                                                             plugins=plugins, log=log,
                                                             load=f"{PLUGINS} {load}"))
        self.write("swanctl.conf", conf)
        self._process = None
        guest.logs[f"charon in {ns.name}"] = self.log
        guest.later(self.stop)

    def write(self, name, text):
        """A file of this daemon's: swanctl.conf, "x509ca/ca.pem", ... (str or bytes)."""
        with open(os.path.join(self.folder, name), "wb") as f:
            f.write(text.encode() if isinstance(text, str) else text)

    def _environment(self):
        return {**os.environ, "STRONGSWAN_CONF": f"{self.folder}/strongswan.conf",
                "SWANCTL_DIR": self.folder}

    def start(self, load=True):
        # Its PID file would be found by the other daemon: each gets a /run of its own, below which
        # only the case's folder is what it was.
        words = ("mkdir /dev/shm/keep-$$; mount --bind \"$0\" /dev/shm/keep-$$; mount -t tmpfs r /run;"
                 " mkdir -p \"$0\"; mount --move /dev/shm/keep-$$ \"$0\"; exec \"$@\"")
        with open(f"{self.folder}/said", "ab") as said:
            self._process = subprocess.Popen(
                self.ns.argv("unshare", "-m", "sh", "-c", words, os.path.dirname(self.folder),
                             CHARON),
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=self._environment())
        deadline = time.monotonic() + START_SECONDS
        while not os.path.exists(f"{self.folder}/vici"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise net.CommandFailed(f"charon did not start:\n{self.log()}")
            time.sleep(0.1)
        if load:
            self.load()
        return self

    @property
    def pid(self):
        return self._process.pid

    def swanctl(self, *words, timeout=60, check=True):
        return net.sh("swanctl", *words, "--uri", f"unix://{self.folder}/vici", timeout=timeout,
                      check=check, env=self._environment())

    def load(self):
        return self.swanctl("--load-all", "--noprompt", "--file", f"{self.folder}/swanctl.conf")

    def initiate(self, child, timeout=60):
        return self.swanctl("--initiate", "--child", child, "--timeout", timeout, timeout=timeout + 20)

    def terminate(self, ike, timeout=60):
        return self.swanctl("--terminate", "--ike", ike, "--timeout", timeout, timeout=timeout + 20)

    def sas(self):
        """`swanctl --list-sas`, the machine's form."""
        return self.swanctl("--list-sas", "--raw")

    def log(self):
        text = ""
        for name in ("said", "log"):
            if os.path.exists(path := f"{self.folder}/{name}"):
                with open(path, encoding="utf-8", errors="replace") as f:
                    text += f.read()
        return text

    def stop(self):
        self._end(signal.SIGTERM)

    def kill(self):
        self._end(signal.SIGKILL)

    def _end(self, number):
        if self._process and self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(40)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
