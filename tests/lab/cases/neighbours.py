# SPDX-License-Identifier: Apache-2.0
"""Neighbours of the gateway that move, fail, or are the operator's: what XDP forwards uses no entry
of the kernel's, so that somebody else must keep them."""

import contextlib
import time

from lab import scapy_peer, wire
from lab.runner import case, check, eventually
from lab.station import Station

MAC_A, MAC_B, MAC_C = (f"02:00:00:00:77:{n:02x}" for n in (0xa, 0xb, 0xc))
HOST4, HOST6 = "10.1.0.77", "fd01:0:0:3::77"          # behind lan0
ROUTER4, ROUTER6 = "192.0.2.77", "2001:db8::77"       # behind wan0, on the way to the peer
# What is sent through a tunnel, and by whom it arrives: name of the flow -> tunnel, entry.
OUT = {"ESP over IPv4": ("plain", ("wan0", ROUTER4)), "ESP over IPv6": ("6in6", ("wan0", ROUTER6))}
IN = {"inner IPv4": ("craft0", ("lan0", HOST4)), "inner IPv6": ("craft6", ("lan0", HOST6))}


@contextlib.contextmanager
def short_times(ns, devices):
    """Neighbours age within a second or two: reachable for 0.5 to 1.5 s, then 1 s, then three
    questions of 0.2 s."""
    wanted = {"base_reachable_time_ms": 1000, "delay_first_probe_time": 1, "retrans_time_ms": 200}
    names = [f"net.{family}.neigh.{device}.{name}" for family in ("ipv4", "ipv6")
             for device in devices for name in wanted]
    before = {name: ns.sh("sysctl", "-n", name).strip() for name in names}
    try:
        for name in names:
            ns.sysctl(name, wanted[name.rsplit(".", 1)[1]])
        yield
    finally:
        for name, value in before.items():
            ns.sysctl(name, value)


class Flows:
    """One packet at a time through each tunnel, and where it arrives."""

    def __init__(self, bench, lan, wan):
        self._bench, self._lab = bench, bench.lab
        self._lan, self._wan = lan, wan
        self._to_lan0, self._to_wan0 = (self._lab.gw.mac(d) for d in ("lan0", "wan0"))
        self.sent = 0

    def send(self):
        for tunnel, _ in OUT.values():
            t = self._lab.tunnels[tunnel]
            packet = bytes(scapy_peer.udp(t.local_host, t.remote_host))
            self._lan.wire.send(wire.ethernet(self._to_lan0, MAC_C, packet))
        for tunnel, (_, host) in IN.values():
            t = self._lab.tunnels[tunnel]
            packet = self._bench.crafted(tunnel).seal(scapy_peer.udp(t.remote_host, host))
            self._wan.wire.send(wire.ethernet(self._to_wan0, MAC_C, packet))
        self.sent += 1

    def arrived(self, mac, since=(0, 0)):
        """By flow, how many packets have come to this MAC."""
        counts = {}
        for name, (tunnel, _) in OUT.items():
            spi = self._lab.tunnels[tunnel].spi_out
            counts[name] = self._wan.arrived(
                mac, lambda f, s=spi: (wire.esp_of(f) or [0])[0] == s, since[1])
        for name, (_, (_, host)) in IN.items():
            counts[name] = self._lan.arrived(mac, lambda f, h=host: _is_udp_to(f, h), since[0])
        return counts

    def mark(self):
        return len(self._lan.wire.frames), len(self._wan.wire.frames)


def _is_udp_to(frame, host):
    packet = scapy_peer.Ether(frame).payload
    return getattr(packet, "dst", None) == host and scapy_peer.UDP in packet


@contextlib.contextmanager
def stations(bench, mac):
    """The host behind lan0 and the router behind wan0, and the flows through them."""
    lab = bench.lab
    routes = ("192.0.2.2/32 via " + ROUTER4, "2001:db8::2/128 via " + ROUTER6)
    with Station(lab.lan, "eth0", (HOST4, HOST6), mac) as lan, \
            Station(lab.peer_ns, "wanp", (ROUTER4, ROUTER6), mac) as wan:
        for route in routes:
            lab.gw.ip(f"route replace {route} dev wan0")
        try:
            yield lan, wan, Flows(bench, lan, wan)
        finally:
            for route in routes:
                lab.gw.ip(f"route del {route} dev wan0", check=False)
            for device, address in (entry for _, entry in (*OUT.values(), *IN.values())):
                lab.gw.ip(f"neigh del {address} dev {device}", check=False)


def arrival_times(flows, mac, seconds, names=(*OUT, *IN)):
    """By flow, when the first packet came to this MAC, in seconds from now."""
    began, since, times = time.monotonic(), flows.mark(), {}
    while not times.keys() >= set(names):
        check(time.monotonic() - began < seconds,
              f"after {seconds} s at {mac}: {flows.arrived(mac, since)}, of {flows.sent} sent")
        flows.send()
        time.sleep(0.05)
        for name, count in flows.arrived(mac, since).items():
            if count:
                times.setdefault(name, time.monotonic() - began)
    return times


def silent_change(bench, egress):
    bench.gateway(egress=egress)
    with short_times(bench.lab.gw, ("lan0", "wan0")), stations(bench, MAC_A) as (lan, wan, flows):
        arrival_times(flows, MAC_A, 10)
        lan.mac = wan.mac = MAC_B
        times = arrival_times(flows, MAC_B, 12)
    return ", ".join(f"{name}: {seconds:.1f} s" for name, seconds in times.items())


@case("a neighbour's MAC changes silently: traffic follows within the kernel's time, devmap")
def silent_change_devmap(bench):
    return silent_change(bench, "devmap")


@case("a neighbour's MAC changes silently: traffic follows within the kernel's time, direct")
def silent_change_direct(bench):
    return silent_change(bench, "direct")


def static_entries(bench, egress):
    lab = bench.lab
    bench.gateway(egress=egress)
    entries = [entry for _, entry in (*OUT.values(), *IN.values())]

    def state(device, address):
        return lab.gw.ip(f"neigh show {address} dev {device} nud all").strip()

    # Nobody answers: an entry that the kernel asks about is lost.
    with short_times(lab.gw, ("lan0", "wan0")), stations(bench, None) as (_, _, flows):
        for mac in (MAC_A, MAC_B):  # made, and then changed
            for device, address in entries:
                lab.gw.ip(f"neigh replace {address} lladdr {mac} dev {device} nud permanent")
            arrival_times(flows, mac, 5)
            since, sent = flows.mark(), flows.sent
            end = time.monotonic() + 6
            while time.monotonic() < end:
                flows.send()
                time.sleep(0.1)
            sent = flows.sent - sent
            eventually(lambda s=since, n=sent, m=mac: set(flows.arrived(m, s).values()) == {n},
                       lambda s=since, n=sent, m=mac: f"of {n} packets came to the static "
                       f"{m}: {flows.arrived(m, s)}")
            for device, address in entries:
                check("PERMANENT" in state(device, address) and mac in state(device, address),
                      f"the operator's entry is {state(device, address)!r}")
    return f"{flows.sent} packets by static entries"


@case("a static neighbour stays static, and what the operator makes of it is followed, devmap")
def static_devmap(bench):
    return static_entries(bench, "devmap")


@case("a static neighbour stays static, and what the operator makes of it is followed, direct")
def static_direct(bench):
    return static_entries(bench, "direct")


@contextlib.contextmanager
def forwards_nothing(gw):
    """The host as Docker and cautious distributions leave it: the kernel's own forwarding drops, and
    what comes in must come by the way back to its source."""
    names = [f"net.ipv4.conf.{device}.rp_filter" for device in ("all", "default", "lan0", "wan0")]
    before = {name: gw.sh("sysctl", "-n", name).strip() for name in names}
    try:
        for name in names:
            gw.sysctl(name, 1)
        gw.sh("nft", "add table inet strict")
        gw.sh("nft", "add chain inet strict forward { type filter hook forward priority 0; "
              "policy drop; }")
        yield
    finally:
        gw.sh("nft", "delete table inet strict", check=False)
        for name, value in before.items():
            gw.sysctl(name, value)


def no_kernel_forwarding(bench, egress):
    lab = bench.lab
    with forwards_nothing(lab.gw), stations(bench, MAC_A) as (lan, wan, flows):
        lab.gw.ip("neigh flush all")
        gateway = bench.gateway(fresh=True, egress=egress)
        notes = []
        for what, flush in (("from the start", lambda: None),
                            ("after a flush", lambda: lab.gw.ip("neigh flush all"))):
            flush()
            since, sent, before = flows.mark(), flows.sent, gateway.drops()["no_neighbour"]
            for _ in range(30):
                flows.send()
                time.sleep(0.05)
            sent = flows.sent - sent
            # Not one packet of the tunnels' own is lost, and of decrypted ones those until the
            # kernel has resolved their host.
            eventually(lambda s=since, n=sent: all(flows.arrived(MAC_A, s)[f] == n for f in OUT),
                       lambda s=since, n=sent, w=what: f"{w}, of {n} ESP packets arrived: "
                       f"{flows.arrived(MAC_A, s)}")
            eventually(lambda s=since, n=sent: all(flows.arrived(MAC_A, s)[f] >= n - 20 for f in IN),
                       lambda s=since, n=sent, w=what: f"{w}, of {n} decrypted packets arrived: "
                       f"{flows.arrived(MAC_A, s)}")
            arrived = flows.arrived(MAC_A, since)
            notes.append(f"{what}, lost of {sent}: " + ", ".join(
                f"{name} {sent - count}" for name, count in arrived.items()))
            check(gateway.drops()["no_neighbour"] == before, "no_neighbour counts though all answer")
        # A next hop that does not answer: a few packets wait in vain, and each of them has its name.
        wan.mac = None
        lab.gw.ip("neigh flush all")
        since, sent, before = flows.mark(), flows.sent, gateway.drops()["no_neighbour"]
        end = time.monotonic() + 6
        while time.monotonic() < end:
            flows.send()
            time.sleep(0.02)
        sent = 2 * (flows.sent - sent)
        lost = gateway.drops()["no_neighbour"] - before
        check(sent // 2 < lost <= sent, f"{lost} counted as no_neighbour of {sent} that were lost")
        notes.append(f"to a dead next hop {sent}, no_neighbour {lost}")
        wan.mac = MAC_B
        times = arrival_times(flows, MAC_B, 10, OUT)
        notes.append("back after " + ", ".join(f"{s:.1f} s" for s in times.values()))
    return "; ".join(notes)


@case("the kernel forwards nothing, rp_filter is on: tunnels work from the first packet, devmap",
      seconds=90)
def no_kernel_forwarding_devmap(bench):
    return no_kernel_forwarding(bench, "devmap")


@case("the kernel forwards nothing, rp_filter is on: tunnels work from the first packet, direct",
      seconds=90)
def no_kernel_forwarding_direct(bench):
    return no_kernel_forwarding(bench, "direct")
