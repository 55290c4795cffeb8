# SPDX-License-Identifier: Apache-2.0
"""The network of the lab and the tunnels through it.

      lan                gw: Sallyport              peer               far
    10.1.x.2/24 ------ lan0          wan0 ------ user-mode Linux ------ 10.2.x.2/24
    fd01:x::2/64    10.1.x.1      192.0.2.1      192.0.2.2           fd02:x::2/64
                    fd01:x::1    2001:db8::1     2001:db8::2
                                                 10.2.x.1, fd02:x::1

Each line is a veth pair with two queues each way. The peer's ends (wanp, farp) have no address:
the guest opens them by AF_PACKET and has them as vec0 and vec1. Scapy can speak on wanp too, beside
the guest, and so send to Sallyport what no honest gateway would.
"""

import dataclasses
import os
import secrets
import shutil
import tempfile

from . import netns, uml

GW4, PEER4 = "192.0.2.1", "192.0.2.2"
GW6, PEER6 = "2001:db8::1", "2001:db8::2"
NETWORKS4 = {1: (0, 1, 2), 2: (0, 1, 2, 5, 6, 7)}  # of IPv4, by site: 10.SITE.N.0/24
HOST_MTU = 1400  # room for ESP in the 1500 of the outer path


# By name in the configuration: the kernel's name, scapy's, bytes of key and salt.
SUITES = {"aes-gcm-16-128": ("rfc4106(gcm(aes))", "AES-GCM", 16 + 4),
          "aes-gcm-16-192": ("rfc4106(gcm(aes))", "AES-GCM", 24 + 4),
          "aes-gcm-16-256": ("rfc4106(gcm(aes))", "AES-GCM", 32 + 4),
          "chacha20-poly1305": ("rfc7539esp(chacha20,poly1305)", "CHACHA20-POLY1305", 32 + 4),
          "aes-ccm-16-128": ("rfc4309(ccm(aes))", "AES-CCM", 16 + 3),
          "aes-ccm-16-256": ("rfc4309(ccm(aes))", "AES-CCM", 32 + 3)}


@dataclasses.dataclass
class Tunnel:
    """A policy and its pair of SAs. `local` and `remote` are seen from Sallyport."""
    name: str
    local: str
    remote: str
    suite: str = "aes-gcm-16-128"
    esn: bool = False
    worker: int = 0
    outer: int = 4
    crafted: bool = False  # the other end is scapy: the guest does not know these SAs
    window: int = 64
    spi_in: int = 0
    spi_out: int = 0
    key_in: bytes = b""   # key and salt
    key_out: bytes = b""

    def __post_init__(self):
        self.spi_in = secrets.randbelow(2**32 - 512) + 256
        self.spi_out = secrets.randbelow(2**32 - 512) + 256
        key_bytes = SUITES[self.suite][2]
        self.key_in = secrets.token_bytes(key_bytes)
        self.key_out = secrets.token_bytes(key_bytes)

    @property
    def kernel_name(self):
        return SUITES[self.suite][0]

    @property
    def scapy_name(self):
        return SUITES[self.suite][1]

    @property
    def near(self):
        return (GW4, GW6)[self.outer == 6]

    @property
    def peer(self):
        return (PEER4, PEER6)[self.outer == 6]

    @property
    def local_host(self):
        return host(self.local)

    @property
    def remote_host(self):
        return host(self.remote)


def host(prefix):
    """The lab's host in a prefix: its address that ends in 2."""
    address = prefix.split("/")[0]
    return address + "2" if ":" in address else address.rsplit(".", 1)[0] + ".2"


def make_tunnels():
    return {t.name: t for t in (
        Tunnel("plain", "10.1.0.0/24", "10.2.0.0/24", worker=0),
        Tunnel("esn", "10.1.1.0/24", "10.2.1.0/24", "aes-gcm-16-256", esn=True, worker=1),
        Tunnel("4in6", "10.1.2.0/24", "10.2.2.0/24", "aes-gcm-16-192", worker=0, outer=6),
        Tunnel("6in4", "fd01:0:0:3::/64", "fd02:0:0:3::/64", esn=True, worker=1),
        Tunnel("6in6", "fd01:0:0:4::/64", "fd02:0:0:4::/64", "aes-gcm-16-256", worker=1, outer=6),
        Tunnel("chacha", "10.1.0.0/24", "10.2.5.0/24", "chacha20-poly1305", esn=True, worker=1),
        Tunnel("ccm128", "10.1.1.0/24", "10.2.6.0/24", "aes-ccm-16-128", worker=0, outer=6),
        Tunnel("ccm256", "10.1.2.0/24", "10.2.7.0/24", "aes-ccm-16-256", esn=True, worker=1),
        Tunnel("craft0", "10.1.0.0/24", "10.3.0.0/24", worker=0, crafted=True),
        Tunnel("craft1", "10.1.1.0/24", "10.3.1.0/24", esn=True, worker=1, crafted=True),
        Tunnel("craft6", "fd01:0:0:3::/64", "fd03:0:0:3::/64", worker=0, crafted=True),
    )}


class Lab:
    """Namespaces, links and, when first asked for, the peer. close() takes everything down."""

    def __init__(self, build_dir):
        self._build_dir = build_dir
        self.folder = tempfile.mkdtemp(prefix="sallyport-lab-")
        os.chmod(self.folder, 0o700)
        self.tunnels = make_tunnels()
        self._peer = None
        self._peer_error = None
        self.namespaces = []
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _namespace(self, short):
        ns = netns.Namespace(short)
        self.namespaces.append(ns)
        return ns

    def _build(self):
        self.lan, self.gw, self.peer_ns, self.far = map(self._namespace,
                                                        ("lan", "gw", "peer", "far"))
        # Before the links come up: the peer's ends say nothing of their own.
        self.peer_ns.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
        netns.veth(self.gw, "wan0", self.peer_ns, "wanp")
        netns.veth(self.far, "eth0", self.peer_ns, "farp")
        for ns, device in ((self.gw, "wan0"), (self.peer_ns, "wanp"), (self.far, "eth0")):
            netns.offloads_off(ns, device)
        # Merged by GRO, TCP segments would be more than the guest takes for a frame.
        netns.offloads_off(self.peer_ns, "farp", gro=False)
        self.link_lan()
        self._set_up_host(self.far, 2)
        # Sallyport's host as an operator has it: addresses, forwarding, a default route.
        self.gw.ip(f"addr add {GW4}/24 dev wan0")
        self.gw.ip(f"addr add {GW6}/64 dev wan0")
        self.gw.sysctl("net.ipv4.ip_forward", 1)
        self.gw.sysctl("net.ipv6.conf.all.forwarding", 1)
        self.gw.ip(f"route add default via {PEER4}")
        self.gw.ip(f"route add default via {PEER6}")

    def link_lan(self):
        """The line between lan and gw, with its addresses: also again, after lan0 was deleted."""
        netns.veth(self.gw, "lan0", self.lan, "eth0")
        for ns, device in ((self.lan, "eth0"), (self.gw, "lan0")):
            netns.offloads_off(ns, device)
        self._set_up_host(self.lan, 1)
        for i in NETWORKS4[1]:
            self.gw.ip(f"addr add 10.1.{i}.1/24 dev lan0")
        for i in (3, 4):
            self.gw.ip(f"addr add fd01:0:0:{i}::1/64 dev lan0")

    @staticmethod
    def _set_up_host(ns, site):
        for i in NETWORKS4[site]:
            ns.ip(f"addr add 10.{site}.{i}.2/24 dev eth0")
        for i in (3, 4):
            ns.ip(f"addr add fd0{site}:0:0:{i}::2/64 dev eth0")
        ns.ip("link set eth0 mtu %d" % HOST_MTU)
        ns.ip(f"route add default via 10.{site}.0.1")
        ns.ip(f"route add default via fd0{site}:0:0:3::1")

    def peer(self):
        """The guest with its addresses, SAs and policies; booted on the first call."""
        if self._peer_error:
            raise self._peer_error
        if self._peer is None:
            try:
                self._peer = uml.UmlPeer(self.peer_ns, ["wanp", "farp"], self.folder,
                                          self._build_dir)
            except uml.PeerUnavailable as e:
                self._peer_error = e
                raise
            self._whole_or_none(lambda: self._configure_peer(self._peer))
        return self._peer

    def _whole_or_none(self, change):
        """A peer that was left half way (the case's time was over) is not for the next case."""
        try:
            change()
        except BaseException:
            peer, self._peer = self._peer, None
            if peer:
                peer.close()
            raise

    def _configure_peer(self, guest):
        guest.sh("for f in all default vec0 vec1; do echo 0 > /proc/sys/net/ipv4/conf/$f/rp_filter;"
                 " echo 0 > /proc/sys/net/ipv6/conf/$f/accept_dad; done;"
                 " echo 1 > /proc/sys/net/ipv4/ip_forward;"
                 " echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
        # One packet is one frame: with GRO on, the guest forwards merged segments of 30 KB.
        for device in ("vec0", "vec1"):
            for feature in ("gro", "gso", "tso", "sg", "tx"):
                guest.sh(f"ethtool -K {device} {feature} off", check=False)
        guest.ip_batch(["link set lo up", "link set vec0 up", "link set vec1 up",
                        f"addr add {PEER4}/24 dev vec0", f"addr add {PEER6}/64 dev vec0",
                        *(f"addr add 10.2.{i}.1/24 dev vec1" for i in NETWORKS4[2]),
                        *(f"addr add fd02:0:0:{i}::1/64 dev vec1" for i in (3, 4)),
                        f"route add 10.1.0.0/16 via {GW4}",
                        f"route add fd01::/16 via {GW6}"])
        self.reset_peer_sas()

    def drop_peer(self):
        """Without the guest from here on: peer() boots another one. For who takes its links down: it has
        them by sockets of this host, and does not always hear that they are up again. Its numbers begin
        anew, so all tunnels get new keys. The gateway must not be running."""
        peer, self._peer = self._peer, None
        if peer:
            peer.close()
            self.new_keys()

    def new_keys(self):
        """New SPIs and keys for all tunnels, on the peer too. The gateway must not be running."""
        self.tunnels = make_tunnels()
        if self._peer:
            self.reset_peer_sas()

    def reset_peer_sas(self):
        """The peer's SAs and policies as new: sequence numbers and replay windows at their start."""
        def change():
            self._peer.ip_batch(["xfrm policy flush", "xfrm state flush"])
            for t in self.tunnels.values():
                if not t.crafted:
                    self._add_tunnel(self._peer, t)
        self._whole_or_none(change)

    @staticmethod
    def _add_tunnel(guest, t):
        flags = "flag af-unspec" + (" flag esn" if t.esn else "")  # any inner family
        lines = [f"xfrm state add src {src} dst {dst} proto esp spi {spi:#x} reqid {spi:#x}"
                 f" mode tunnel replay-window 64 {flags} aead {t.kernel_name} 0x{key.hex()} 128"
                 for src, dst, spi, key in ((t.near, t.peer, t.spi_out, t.key_out),
                                            (t.peer, t.near, t.spi_in, t.key_in))]
        lines += [f"xfrm policy add src {src} dst {dst} dir {direction}"
                  f" tmpl src {a} dst {b} proto esp reqid {spi:#x} mode tunnel"
                  for direction, src, dst, a, b, spi in (
                      ("out", t.remote, t.local, t.peer, t.near, t.spi_in),
                      ("in", t.local, t.remote, t.near, t.peer, t.spi_out),
                      ("fwd", t.local, t.remote, t.near, t.peer, t.spi_out))]
        guest.ip_batch(lines)

    def close(self):
        if self._peer:
            self._peer.close()
        for ns in reversed(self.namespaces):
            ns.close()
        shutil.rmtree(self.folder, ignore_errors=True)
