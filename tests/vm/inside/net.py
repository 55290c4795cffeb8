# SPDX-License-Identifier: Apache-2.0
"""Network namespaces of a guest. As tests/lab/lab/netns.py, but with few forks: each costs 0.2 s here."""

import fcntl
import os
import socket
import struct
import subprocess

from lab import netns
from lab.netns import CommandFailed, sh  # noqa: F401  (for the cases)

SIOCSIFFLAGS, IFF_UP = 0x8914, 1
SIOCGIFFLAGS = 0x8913


class Namespace(netns.Namespace):
    """One network namespace, made with Net()."""

    def __init__(self, name):  # does not call the lab's, which forks five times
        self.short = self.name = name

    def prepare(self):
        def inside():
            for key in ("all", "default"):
                _write(f"/proc/sys/net/ipv6/conf/{key}/accept_dad", 0)
                _write(f"/proc/sys/net/ipv4/conf/{key}/rp_filter", 0)
            _write("/proc/sys/net/ipv6/conf/default/router_solicitations", 0)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
        self.run_inside(inside)

    def batch(self, lines):
        """Lines of words for `ip`, e.g. "addr add 10.1.0.1/24 dev lan0", in one process."""
        _batch(["-netns", self.name], lines)

    def sysctl(self, name, value):
        self.run_inside(lambda: _write("/proc/sys/" + name.replace(".", "/"), value))

    def read(self, path):
        """A file of /proc/sys/net or /proc/net as it is in this namespace."""
        def inside():
            with open(path.replace("/proc/net/", "/proc/thread-self/net/"), encoding="ascii") as f:
                return f.read()
        return self.run_inside(inside)

    def mac(self, device):
        def inside():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                raw = fcntl.ioctl(s, 0x8927, struct.pack("16s16x", device.encode()))  # SIOCGIFHWADDR
            return ":".join(f"{b:02x}" for b in raw[18:24])
        return self.run_inside(inside)

    def xfrm_statistics(self):
        """What the kernel's own IPsec dropped, by reason, without the zeros."""
        rows = (line.split() for line in self.read("/proc/net/xfrm_stat").splitlines())
        return {name: int(value) for name, value in rows if int(value)}


def _write(path, value):
    with open(path, "w", encoding="ascii") as f:
        f.write(str(value))


def _batch(options, lines):
    text = "\n".join(line.strip() for line in (lines.splitlines() if isinstance(lines, str) else lines)
                     if line.strip())
    done = subprocess.run(["/usr/sbin/ip", *options, "-batch", "-"], input=text + "\n", text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=False)
    if done.returncode != 0:
        raise CommandFailed(f"ip -batch: {done.stdout.strip()}\nof:\n{text}")


class Net(dict):
    """Namespaces by name: Net(guest, "lan", "gw", ...). They end with the case."""

    def __init__(self, guest, *names):
        super().__init__((name, Namespace(name)) for name in names)
        self.__dict__["_cards"] = []  # (namespace, name) of what card() has moved
        _batch([], [f"netns add {name}" for name in names])
        guest.later(self.close)
        for ns in self.values():
            ns.prepare()

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def veth(self, *links, queues=2, mtu=1500):
        """Each link: "gw:wan0 peer:wan0"; up, no offloads, GRO on (see lab's offloads_off)."""
        n = f"numrxqueues {queues} numtxqueues {queues}"
        ends = [[end.split(":") for end in link.split()] for link in links]
        _batch([], [f"link add {a[1]} netns {a[0]} mtu {mtu} {n} type veth"
                    f" peer name {b[1]} netns {b[0]} mtu {mtu} {n}" for a, b in ends])
        by_ns = {}
        for ns, device in (end for link in ends for end in link):
            by_ns.setdefault(ns, []).append(device)
        for ns, devices in by_ns.items():
            # In the order of the lab: up first, then GRO, which makes the other end a redirect target.
            self[ns].sh("sh", "-c", "; ".join(
                [f"ethtool -L {d} rx {queues} tx {queues} 2>&1 | grep -v unmodified" for d in devices]
                + [f"ip link set {d} up" for d in devices]
                + [f"ethtool -K {d} tx off tso off gso off gro off; ethtool -K {d} gro on"
                   for d in devices]), timeout=120)

    def card(self, mac, ns, name):
        """Moves the guest's card with this address into a namespace, under this name; up."""
        for device in os.listdir("/sys/class/net"):
            with open(f"/sys/class/net/{device}/address", encoding="ascii") as f:
                if f.read().strip() == mac:
                    _batch([], [f"link set {device} down",
                                f"link set {device} netns {ns} name {name}"])
                    self[ns].sh("ethtool", "-K", name, "tx", "off", "tso", "off", "gso", "off",
                                check=False)
                    self[ns].batch([f"link set {name} up"])
                    self._cards.append((ns, name))
                    return
        raise CommandFailed(f"no card has the address {mac}")

    def close(self):
        # Cards go back to where they came from, for the next case; the others end here.
        for number, (ns, name) in enumerate(self._cards):
            self[ns].batch([f"link set {name} down", f"link set {name} netns 1 name card{number}"])
        _batch(["-force"], [f"netns del {name}" for name in self])
