# SPDX-License-Identifier: Apache-2.0
"""sallyportd in a namespace of the guest, with a configuration that the case writes itself."""

import os
import types

from lab import daemon

# ipsec-mb runs 30 times slower here, and everything else ten times.
daemon.READY_SECONDS = READY_SECONDS = 300  # on a busy machine; normally 5
daemon.STOP_SECONDS = 90

HEAD = """
[gateway]
egress = "{egress}"
state_dir = "{folder}/state"
control_socket = "{folder}/control.sock"
max_sas = 64

[workers]
cpus = [{cpus}]

[memory]
frames = 16384
hugepages = false
"""


def head(folder, cpus=(0, 1), egress="devmap"):
    """The tables that say nothing about the tunnels; `folder` is the gateway's own."""
    return HEAD.format(folder=folder, egress=egress,
                       cpus=", ".join(map(str, cpus)))


class Gateway(daemon.Daemon):
    """start(), stop(), kill(), log(), show("sa"), sa(name), drops(), ports(): see the lab's Daemon.

    text: the configuration, a string or a function of the gateway's folder.
    """

    def __init__(self, guest, ns, text, accept_keys=()):
        folder = os.path.join(guest.folder, ns.name)
        daemon.READY_SECONDS = READY_SECONDS * guest.slow
        self._text = text(os.path.join(folder, "gateway")) if callable(text) else text
        os.makedirs(folder, mode=0o700)
        super().__init__(types.SimpleNamespace(folder=folder, gw=ns, tunnels={}), guest.build)
        guest.logs[f"sallyportd in {ns.name}"] = self.log
        guest.logs[f"sallyportctl in {ns.name}"] = self.tables
        guest.later(self.kill)
        for name in accept_keys:
            self.run("--accept-key", name)

    def write_config(self):
        fd = os.open(self.config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w") as f:
            f.write(self._text)

    def beside(self, *argv, **kwargs):
        """Runs another program in the gateway's namespace, with the gateway's /sys/fs/bpf."""
        return self._lab.gw.sh("sh", "-c", 'mount --bind "$0" /sys/fs/bpf && exec "$@"',
                               self._bpffs, *argv, **kwargs)

    def tables(self):
        """All that sallyportctl shows, for the eyes of who looks for a fault."""
        return "".join(self.table(what) for what in ("ports", "workers", "sa", "drops")) \
            if self.running else "not running"
