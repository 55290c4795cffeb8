# SPDX-License-Identifier: Apache-2.0
"""Network namespaces, veth pairs and processes in them. Everything is bounded in time."""

import ctypes
import os
import socket
import subprocess
import threading

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class CommandFailed(Exception):
    pass


def sh(*argv, timeout=20, check=True, **kwargs):
    """Runs one command, returns its output; a failure carries what it printed."""
    done = subprocess.run([str(a) for a in argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          stdin=subprocess.DEVNULL, text=True, timeout=timeout, **kwargs)
    if check and done.returncode != 0:
        raise CommandFailed(f"{' '.join(str(a) for a in argv)}: status {done.returncode}\n"
                            f"{done.stdout.strip()}")
    return done.stdout


class Namespace:
    """One network namespace. Its name carries our pid, so that two labs never meet."""

    def __init__(self, short):
        self.short = short
        self.name = f"sp{os.getpid()}-{short}"
        sh("ip", "netns", "add", self.name)
        # Only what the lab configures may talk: no address of its own on any link.
        self.sysctl("net.ipv6.conf.all.accept_dad", 0)
        self.sysctl("net.ipv6.conf.default.accept_dad", 0)
        self.sysctl("net.ipv6.conf.default.router_solicitations", 0)
        self.sh("ip", "link", "set", "lo", "up")

    def close(self):
        sh("ip", "netns", "del", self.name, check=False)

    def argv(self, *argv):
        return ["ip", "netns", "exec", self.name, *[str(a) for a in argv]]

    def sh(self, *argv, **kwargs):
        return sh(*self.argv(*argv), **kwargs)

    def ip(self, words, **kwargs):
        """`ip` in this namespace, its arguments as one string."""
        return sh("ip", "-netns", self.name, *words.split(), **kwargs)

    def sysctl(self, name, value):
        self.sh("sysctl", "-qw", f"{name}={value}")

    def start(self, *argv, **kwargs):
        """Starts a process here; the caller ends it."""
        return subprocess.Popen(self.argv(*argv), stdin=subprocess.DEVNULL, **kwargs)

    def run_inside(self, function):
        """Calls function() with this namespace entered, e.g. to open a socket in it."""
        result = []

        def body():
            fd = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
            try:
                if _libc.setns(fd, CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
                result.append(function())
            except BaseException as e:
                result.append(e)
            finally:
                os.close(fd)

        # A thread of its own: the namespace is a property of the thread, and ends with it.
        thread = threading.Thread(target=body)
        thread.start()
        thread.join(30)
        if not result:
            raise CommandFailed("a call inside a namespace did not return")
        if isinstance(result[0], BaseException):
            raise result[0]
        return result[0]

    def packet_socket(self, device, protocol=3):
        """AF_PACKET socket on a device here; protocol 3 is ETH_P_ALL, 0 only sends."""
        def open_it():
            s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
            s.bind((device, protocol))
            return s
        return self.run_inside(open_it)

    def mac(self, device):
        return self.sh("cat", f"/sys/class/net/{device}/address").strip()

    def exists(self, device):
        return f"{device}" in self.ip("-br link show").split()


def veth(ns_a, dev_a, ns_b, dev_b, queues=2):
    """A pair of `queues` queues each way between two namespaces."""
    n = queues
    sh("ip", "link", "add", dev_a, "numrxqueues", n, "numtxqueues", n, "netns", ns_a.name,
       "type", "veth", "peer", "name", dev_b, "numrxqueues", n, "numtxqueues", n,
       "netns", ns_b.name)
    for ns, dev in ((ns_a, dev_a), (ns_b, dev_b)):
        ns.sh("ethtool", "-L", dev, "rx", n, "tx", n, check=False)  # says so where it is already n
        ns.ip(f"link set {dev} up")


def offloads_off(ns, device, gro=True):
    """The stack behind this device writes whole checksums and one packet per frame.

    GRO stays on where frames come that XDP redirected out of the other end: they are delivered by
    the NAPI that GRO brings with it, and vanish where there is none.
    """
    ns.sh("ethtool", "-K", device, "tx", "off", "tso", "off", "gso", "off",
          "gro", "on" if gro else "off")
