# SPDX-License-Identifier: Apache-2.0
"""Policies of one priority that share packets: which of them holds only the kernel knows.

Two gateways get the same states and policies: gw has sallyportd, ref the kernel alone, and what
is sent through both is looked at behind them.
"""

import contextlib
import os
import socket
import struct

from inside import boot, gateway, net, packets, register, tunnel
from lab.checks import check, equal, eventually

BOOT = boot.Boot(kernels=("newest",), modules=register.MODULES)

NEAR, FAR = register.NEAR_END, register.FAR_END
UDP, TCP = 17, 6
ETHERTYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}
HOSTS = {4: ("10.1.0.2", "10.2.0.2"), 6: ("fd01::2", "fd02::2")}
NETS = {4: ("10.1.0.0/24", "10.2.0.0/24"), 6: ("fd01::/64", "fd02::/64")}
HALVES = {4: ("10.1.0.0/25", "10.2.0.0/25"), 6: ("fd01::/65", "fd02::/65")}
MARKER = b"in clear, by one of the rivals"


def ip_packet(version, source, destination, protocol):
    ports = struct.pack("!HH", 5000, 7001)
    upper = ports + (struct.pack("!HH", 8 + len(MARKER), 0xffff) if protocol == UDP else
                     struct.pack("!IIBBHHH", 1, 0, 0x50, 2, 100, 0, 0)) + MARKER
    if version == 4:
        return packets.ipv4(source, destination, protocol, upper)
    return (struct.pack("!IHBB", 6 << 28, len(upper), protocol, 64)
            + socket.inet_pton(socket.AF_INET6, source)
            + socket.inet_pton(socket.AF_INET6, destination) + upper)


class Side:
    """One gateway between a host and a peer that only looks."""

    def __init__(self, n, lan, gw, peer):
        n.veth(f"{lan}:eth0 {gw}:lan0", f"{gw}:wan0 {peer}:wanp")
        self.gw = n[gw]
        self.gw.batch([f"addr add {NEAR}/24 dev wan0",
                       "addr add 10.1.0.1/24 dev lan0", "addr add fd01::1/64 dev lan0 nodad",
                       f"neigh add {FAR} lladdr {n[peer].mac('wanp')} dev wan0 nud permanent",
                       f"neigh add fe80::99 lladdr {n[peer].mac('wanp')} dev wan0 nud permanent",
                       f"route add default via {FAR}", "route add ::/0 via fe80::99 dev wan0"]
                      + [f"neigh add {HOSTS[v][0]} lladdr {n[lan].mac('eth0')} dev lan0 nud permanent"
                         for v in (4, 6)])
        self.gw.sysctl("net.ipv4.ip_forward", 1)
        self.gw.sysctl("net.ipv6.conf.all.forwarding", 1)
        self.sockets = {"out": n[lan].packet_socket("eth0"), "in": n[peer].packet_socket("wanp")}
        for each in self.sockets.values():
            each.setblocking(False)
        macs = {"out": (self.gw.mac("lan0"), n[lan].mac("eth0")),
                "in": (self.gw.mac("wan0"), n[peer].mac("wanp"))}
        self.heads = {way: bytes.fromhex("".join(pair).replace(":", ""))
                      for way, pair in macs.items()}

    def drain(self, way):
        frames = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, address = self.sockets[way].recvfrom(2000)
                if address[2] != socket.PACKET_OUTGOING:
                    frames.append(frame)
        return frames

    def fate(self, way, version, protocol, seconds=10):
        """What becomes of one packet: "clear", "spi ...", or "" when none has come in that time."""
        beyond = "in" if way == "out" else "out"
        self.drain(beyond)
        source, destination = HOSTS[version] if way == "out" else HOSTS[version][::-1]
        packet = ip_packet(version, source, destination, protocol)
        self.sockets[way].send(self.heads[way] + ETHERTYPES[version] + packet)
        found = []

        def some():
            for frame in self.drain(beyond):
                if MARKER in frame:
                    found.append("clear")
                elif frame[12:14] == ETHERTYPES[4] and frame[23] == 50:
                    found.append(f"spi {struct.unpack_from('!I', frame, 34)[0]:#x}")
            return found
        with contextlib.suppress(AssertionError):
            eventually(some, "", seconds)
        return found[0] if found else ""


def lines_of(verb, sources, destinations, what, more="", directions=("out", "fwd", "in")):
    """One policy, and its way back. `what`: a reqid, or "allow"."""
    lines = []
    for direction in directions:
        out = direction == "out"
        src, dst = (sources, destinations) if out else (destinations, sources)
        a, b = (NEAR, FAR) if out else (FAR, NEAR)
        does = (f"action {what}" if isinstance(what, str) else
                f"tmpl src {a} dst {b} proto esp reqid {what} mode tunnel")
        lines.append(f"xfrm policy {verb} src {src} dst {dst} {more} dir {direction} priority 100 {does}")
    return lines


@BOOT.case("policies of one priority that share packets hold as in a kernel without a gateway", seconds=400)
def rivals(guest):
    n = net.Net(guest, "lan", "gw", "peer", "lanr", "ref", "peerr")
    sides = [Side(n, "lan", "gw", "peer"), Side(n, "lanr", "ref", "peerr")]
    gw = gateway.Gateway(guest, n.gw, lambda folder: gateway.head(folder)
                         + tunnel.PORTS.format(wan="", lan=""))
    gw.start()

    def both(lines):
        for side in sides:
            side.gw.batch(lines)
    for reqid in (1, 2):
        both([register.state_line(src, dst, spi + reqid, reqid, os.urandom(20))
              for src, dst, spi in ((NEAR, FAR, 0x2000), (FAR, NEAR, 0x1000))])

    def fates(version):
        return [[side.fate("out", version, protocol) for protocol in (UDP, TCP)] for side in sides]

    def enters_as_in_the_kernel(version, protocol):
        if sides[0].fate("in", version, protocol, 0.5) == "":
            return True
        return sides[1].fate("in", version, protocol) == "clear"

    def hold(what):
        for version in (4, 6):
            def as_the_kernels(version=version):
                ours, kernels = fates(version)
                return ours == kernels
            eventually(as_the_kernels, f"{what}: not as without a gateway, IPv{version}", 20)
            for _ in range(2):
                ours, kernels = fates(version)
                equal(ours, kernels, f"{what}: outbound, IPv{version}")
            for protocol in (UDP, TCP):
                check(enters_as_in_the_kernel(version, protocol),
                      f"{what}: enters in clear, IPv{version}, protocol {protocol}")

    def rows():
        return {row["reason"] for row in gw.show("sa") if row["state"] != "active"}
    wide, narrow = NETS, {v: (HALVES[v][0], NETS[v][1]) for v in NETS}
    across = {v: (NETS[v][0], HALVES[v][1]) for v in NETS}
    for what, first, second, more, does in (
            ("UDP goes in clear by another", wide, wide, "proto udp", "allow"),
            ("two tunnels across each other", narrow, across, "", 2),
            ("a tunnel and a way in clear across each other", narrow, across, "", "allow")):
        for version in (4, 6):
            both(lines_of("add", *first[version], 1) + lines_of("add", *second[version], does, more))
        eventually(lambda: "its policy: overlaps another of its priority" in rows(),
                   f"{what}: no SA is with the kernel for it", 20)
        hold(what)
        for version in (4, 6):
            both(lines_of("update", *first[version], 1))
        hold(what + ", the first one updated")
        both(["xfrm policy set hthresh4 0 0 hthresh6 0 0", "xfrm policy set hthresh4 32 32 hthresh6 128 128"])
        hold(what + ", sorted anew")
        for version in (4, 6):
            both([line.split(" priority ")[0] for line in
                  lines_of("delete", *second[version], does, more)])
        eventually(lambda: not rows() - {"no policy for it yet"}, f"{what}: an SA is still with the kernel", 20)
        hold(what + ", the first one alone")
        both(["xfrm policy flush"])
        eventually(lambda: not gw.show("policy"), "policies are left", 20)
    equal(gw.stop(), 0, "exit status of sallyportd")
