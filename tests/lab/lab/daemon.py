# SPDX-License-Identifier: Apache-2.0
"""sallyportd in the lab: its configuration, its life, and what it says of itself."""

import contextlib
import json
import os
import signal
import subprocess
import time

from . import netns
from .checks import read_log

READY_SECONDS = 60  # an ASan build on a busy machine; normally well under one
STOP_SECONDS = 20


class DaemonFailed(Exception):
    pass



def _quoted(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_quoted(v) for v in value) + "]"
    return json.dumps(value)


def _table(header, values):
    return "\n".join([header, *(f"{key} = {_quoted(value)}" for key, value in values.items()
                                if value is not None), ""])


def _port_tables(name, values):
    deny = values.pop("deny", [])
    return [_table(f"[port.{name}]", values),
            *(_table(f"[[port.{name}.deny]]", rule) for rule in deny)]


def tunnels_of(lab, families=(4, 6)):
    """Those that have no address of another family, inside or outside."""
    return [t for t in lab.tunnels.values()
            if t.outer in families and (6 if ":" in t.local else 4) in families]


def config_text(lab, folder, egress="devmap", xdp_mode="auto", deny_wan=(), lan_device="lan0",
                at_stop=None, more_ports=None, lan_keys=None, outside_keys=None, policies=(),
                crafted_keys=None, plain_out_keys=None, forward_to=None, last_policies=(), families=(4, 6),
                wan_device=None):
    """The TOML file of the lab's gateway; keys are in it, so it is written with mode 0600.

    lan_keys: more keys of [port.lan0]. outside_keys: there is a port net0, with these keys.
    policies: stand before the others, last_policies behind them. crafted_keys: more keys of the policies of crafted tunnels.
    families: of the tunnels that are in the file. more_ports: their keys by name. plain_out_keys: more keys of the outbound
    SA of the tunnel `plain`.
    """
    parts = [
        _table("[gateway]", {"egress": egress, "state_dir": f"{folder}/state", "forward_to": forward_to,
                             "control_socket": f"{folder}/control.sock", "max_sas": 64,
                             "at_stop": at_stop}),
        _table("[workers]", {"cpus": [0, 1]}),
        _table("[memory]", {"frames": 16384, "hugepages": False}),
        *_port_tables("wan0", {"role": "unprotected", "device": wan_device, "xdp_mode": xdp_mode,
                               "deny": list(deny_wan)}),
        *_port_tables("lan0", {"role": "protected", "device": lan_device, "xdp_mode": xdp_mode,
                               **(lan_keys or {})}),
        *([] if outside_keys is None else
          _port_tables("net0", {"role": "unprotected", "xdp_mode": xdp_mode, **outside_keys})),
        *(line for name, keys in (more_ports or {}).items()
          for line in _port_tables(name, {"xdp_mode": xdp_mode, **keys})),
        *(_table("[[policy]]", policy) for policy in policies),
        _table("[[policy]]", {"name": "open", "action": "bypass", "local": "10.1.0.0/16",
                              "remote": "192.0.2.0/24"}),
        _table("[[policy]]", {"name": "closed", "action": "discard", "local": "10.1.0.0/16",
                              "remote": "10.9.0.0/16"}),
    ]
    for t in tunnels_of(lab, families):
        common = {"suite": t.suite, "esn": t.esn, "policy": t.name,
                  "worker": t.worker}
        parts += [
            _table("[[policy]]", {"name": t.name, "action": "protect", "local": t.local,
                                  "remote": t.remote, **(crafted_keys or {} if t.crafted else {})}),
            _table("[[sa]]", {"name": f"{t.name}-in", "direction": "inbound", "spi": t.spi_in,
                              "source": t.peer, "destination": t.near, "key": t.key_in.hex(),
                              "replay_window": t.window, **common}),
            _table("[[sa]]", {"name": f"{t.name}-out", "direction": "outbound", "spi": t.spi_out,
                              "source": t.near, "destination": t.peer, "key": t.key_out.hex(),
                              **(plain_out_keys or {} if t.name == "plain" else {}), **common}),
        ]
    parts += [_table("[[policy]]", policy) for policy in last_policies]
    return "\n".join(parts)


def _built(build_dir, path):
    found = os.path.join(build_dir, path)
    if not os.path.isfile(found):
        raise DaemonFailed(f"{path} is not in {build_dir}: build first (./run build)")
    return found


class Daemon:
    """One sallyportd in the namespace gw. Options: those of config_text()."""

    def __init__(self, lab, build_dir, accept_keys=True, **options):
        self.options = options
        self._lab = lab
        self.program = _built(build_dir, "control/sallyportd")
        self._ctl = _built(build_dir, "ctl/sallyportctl")
        self.folder = os.path.join(lab.folder, "gateway")
        self.log_path = os.path.join(self.folder, "log")
        os.makedirs(os.path.join(self.folder, "state"), mode=0o700, exist_ok=True)
        self.config = os.path.join(self.folder, "sallyport.toml")
        self._process = None
        self.is_paused = False
        self._bpffs = os.path.join(lab.folder, "bpffs")
        self._mount_bpffs()
        self.write_config()
        if accept_keys:
            self.accept_keys()

    def write_config(self):
        fd = os.open(self.config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w") as f:
            f.write(config_text(self._lab, self.folder, **self.options))

    def _mount_bpffs(self):
        # ip netns exec mounts a fresh /sys; the gateway's BPF filesystem outlives one daemon,
        # as it does on a real host.
        if not os.path.ismount(self._bpffs):
            os.makedirs(self._bpffs, exist_ok=True)
            netns.sh("mount", "-t", "bpf", "bpf", self._bpffs)

    def _argv(self, *arguments):
        return self._lab.gw.argv("sh", "-c", 'mount --bind "$0" /sys/fs/bpf && exec "$@"',
                                 self._bpffs, self.program, *arguments)

    def accept_keys(self):
        """Starts the sequence state of every outbound SA whose key has none yet."""
        for t in tunnels_of(self._lab, self.options.get("families", (4, 6))):
            mark = os.path.join(self.folder, f"accepted-{t.spi_out:08x}")
            if not os.path.exists(mark):
                self.run("--accept-key", f"{t.name}-out")
                open(mark, "w").close()

    def run(self, *arguments, check=True):
        """Runs sallyportd to its end: (exit status, what it printed)."""
        done = subprocess.run(self._argv("-c", self.config, *arguments), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=60)
        if check and done.returncode != 0:
            raise DaemonFailed(f"sallyportd {' '.join(arguments)}: status {done.returncode}\n"
                               f"{done.stdout}")
        return done.returncode, done.stdout

    @property
    def running(self):
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self):
        return self._process.pid

    def start(self):
        with open(self.log_path, "ab") as log:
            before = log.tell()
            self._process = subprocess.Popen(self._argv("-c", self.config),
                                             stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + READY_SECONDS
        while "info: ready" not in self.log()[before:]:
            if self._process.poll() is not None:
                raise DaemonFailed(f"sallyportd ended with status {self._process.returncode}:\n"
                                   f"{self.log()[before:]}")
            if time.monotonic() > deadline:
                self.kill()
                raise DaemonFailed(f"sallyportd is not ready in {READY_SECONDS} s:\n"
                                   f"{self.log()[before:]}")
            time.sleep(0.02)
        return self

    def stop(self):
        """SIGTERM and its exit status; after STOP_SECONDS it is killed, and that is an error."""
        if not self.running:
            return self._process.returncode if self._process else 0
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise DaemonFailed(f"sallyportd did not stop in {STOP_SECONDS} s after SIGTERM") from None

    def kill(self):
        """SIGKILL: a crash."""
        if self.running:
            self._process.kill()
            self._process.wait(10)

    @contextlib.contextmanager
    def paused(self):
        """Stopped as a whole; XDP programs go on."""
        self._process.send_signal(signal.SIGSTOP)
        self.is_paused = True
        try:
            yield
        finally:
            self.is_paused = False
            self._process.send_signal(signal.SIGCONT)

    def log(self):
        return read_log(self.log_path)

    def cpu_seconds(self):
        with open(f"/proc/{self.pid}/stat", encoding="ascii") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    # ---- what it says of itself ----------------------------------------------------------------

    def table(self, what):
        """`sallyportctl show WHAT` as an operator sees it."""
        return netns.sh(self._ctl, "--socket", f"{self.folder}/control.sock", "show", what)

    def show(self, what):
        return json.loads(netns.sh(self._ctl, "--socket", f"{self.folder}/control.sock", "show",
                                   what, "--json"))

    def drops(self):
        return {d["reason"]: d["count"] for d in self.show("drops")}

    def ports(self):
        return {p["name"]: p for p in self.show("ports")}

    def sa(self, name):
        return next(s for s in self.show("sa") if s["name"] == name)
