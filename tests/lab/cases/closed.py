# SPDX-License-Identifier: Apache-2.0
"""Nothing that the SPD forbids is on a wire, whatever happens to the gateway and to its host."""

import contextlib
import ipaddress
import os
import threading
import time

from lab import netns, scapy_peer, wire
from lab.runner import case, check, equal, eventually

# Lives of the gateway in each case; SALLYPORT_CYCLES=20 for a long look.
CYCLES = int(os.environ.get("SALLYPORT_CYCLES", "2"))
MARK = b"sallyport flood "
FORWARDING = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
# (source, destination) of the lab's lan, as the policies of lab/daemon.py see them.
PROTECT = (("10.1.0.2", "10.2.0.2"), ("fd01:0:0:3::2", "fd02:0:0:3::2"))
BYPASS = (("10.1.0.2", "192.0.2.2"),)
FORBIDDEN = (("10.1.0.2", "10.9.0.2"),      # DISCARD
             ("10.1.0.2", "198.51.100.7"),  # no policy
             ("fd01:0:0:3::2", "2001:db8:9::7"))


class Flood:
    """All kinds of packets in both directions, some thousand a second, and what of them arrives.

    `lan` and `wan` count, by (source, destination), what left by that side in clear.
    """

    def __init__(self, lab):
        self._lab = lab
        self._stop = threading.Event()
        self.failures = []

    def __enter__(self):
        self._wan = wire.Wire(self._lab.peer_ns, "wanp")
        self._lan = wire.Wire(self._lab.lan, "eth0")
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(10)
        self._wan.close()
        self._lan.close()

    def _send(self):
        lan_macs = self._lab.gw.mac("lan0"), self._lab.lan.mac("eth0")
        wan_macs = self._lab.gw.mac("wan0"), "02:00:00:00:00:02"
        pairs = PROTECT + BYPASS + FORBIDDEN
        outward = [wire.ethernet(*lan_macs, bytes(scapy_peer.udp(a, b, payload=MARK))) for a, b in pairs]
        inward = [wire.ethernet(*wan_macs, bytes(scapy_peer.udp(b, a, payload=MARK))) for a, b in pairs]
        while not self._stop.is_set():
            for frames, side in ((outward, self._lan), (inward, self._wan)):
                for frame in frames:
                    with contextlib.suppress(OSError):  # the device is gone for a moment
                        side.send(frame)
            time.sleep(0.001)

    def out(self):
        """(source, destination) -> count of what left by wan0."""
        return _count(self._wan.frames, PROTECT + BYPASS + FORBIDDEN)

    def inward(self):
        return _count(self._lan.frames, [(b, a) for a, b in PROTECT + BYPASS + FORBIDDEN])

    def clear(self):
        self._wan.frames.clear()
        self._lan.frames.clear()

    def leaks(self):
        """What has left though the SPD forbids it, as text; empty: nothing."""
        allowed = {*BYPASS, *((b, a) for a, b in BYPASS)}
        return "; ".join(f"{count} of {a} to {b}" for seen in (self.out(), self.inward())
                         for (a, b), count in seen.items() if count and (a, b) not in allowed)

    def passes(self, seconds=20):
        """Waits until BYPASS gets through in both directions."""
        (a, b), = BYPASS
        first = self.out()[a, b], self.inward()[b, a]
        eventually(lambda: self.out()[a, b] > first[0] and self.inward()[b, a] > first[1],
                   lambda: f"BYPASS out {self.out()}, in {self.inward()}", seconds)


def _packed(text):
    return ipaddress.ip_address(text).packed


def _count(frames, pairs):
    """How many of the flood's packets between each pair are among the frames."""
    wanted = {(_packed(a), _packed(b)): (a, b) for a, b in pairs}
    seen = dict.fromkeys(pairs, 0)
    for frame in list(frames):
        packet = frame[14:]
        if MARK not in packet:
            continue
        # UDP only: an ICMP error that quotes one may come through the tunnel.
        if packet[0] >> 4 == 6:
            key, protocol = (packet[8:24], packet[24:40]), packet[6]
        else:
            key, protocol = (packet[12:16], packet[16:20]), packet[9]
        if key in wanted and protocol == 17:
            seen[wanted[key]] += 1
    return seen


@contextlib.contextmanager
def host_forwarding(lab, value):
    """The host's forwarding as it is before the start, and neighbours that need no answer."""
    gw = lab.gw
    mac = lab.lan.mac("eth0")
    gw.ip("neigh replace 192.0.2.2 lladdr 02:00:00:00:00:02 dev wan0 nud permanent")
    gw.ip("neigh replace 2001:db8::2 lladdr 02:00:00:00:00:02 dev wan0 nud permanent")
    gw.ip(f"neigh replace 10.1.0.2 lladdr {mac} dev lan0 nud permanent")
    gw.ip(f"neigh replace fd01:0:0:3::2 lladdr {mac} dev lan0 nud permanent")
    for name in FORWARDING:
        gw.sysctl(name, value)
    try:
        yield
    finally:
        for name in FORWARDING:
            gw.sysctl(name, 1)
        for words in ("192.0.2.2 dev wan0", "2001:db8::2 dev wan0", "10.1.0.2 dev lan0",
                      "fd01:0:0:3::2 dev lan0"):
            netns.sh("ip", "-netns", gw.name, "neigh", "del", *words.split(), check=False)


def live(gateway, flood, end):
    """One life under the flood, with an end by `end`; nothing forbidden leaves in it."""
    gateway.start()
    flood.passes()
    end()


def judge(flood, what):
    check(not (leaks := flood.leaks()), f"{what}: in clear {leaks}")
    flood.clear()


def starts_and_stops(bench, forwarding, at_stop, **options):
    lab = bench.lab
    gateway = bench.prepare(at_stop=at_stop, **options)
    with host_forwarding(lab, forwarding):
        if forwarding:  # before it a router forwards, and that is its own affair
            gateway.start()
            equal(gateway.stop(), 0, "exit status")
        with Flood(lab) as flood:
            for life in range(CYCLES):
                live(gateway, flood, lambda: equal(gateway.stop(), 0, "exit status"))
                judge(flood, f"start and stop {life}")
            for life in range(CYCLES):
                live(gateway, flood, gateway.kill)
                judge(flood, f"start and kill -9 {life}")
            gateway.start()
            gateway.kill()
            eventually(lambda: not lab.gw.exists("sp0"), "sp0 of the killed one is there", 20)
            for life in range(CYCLES):
                fail_to_start(lab, gateway)
                judge(flood, f"failing start {life}")
            gateway.start()
            equal(gateway.stop(), 0, "exit status")
            judge(flood, "the last stop")
            gateway.run("--open")
            if forwarding:  # so the flood would have shown what was open before
                eventually(flood.leaks, "nothing leaves after --open, where the host forwards", 20)


def fail_to_start(lab, gateway):
    """Once before the programs are on the ports, once behind that."""
    lab.gw.ip("tuntap add dev sp0 mode tap")
    try:
        status, said = gateway.run(check=False)
        equal(status, 1, f"exit status; it said: {said}")
    finally:
        lab.gw.ip("link del sp0")
    in_the_way = f"{gateway.folder}/control.sock"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(in_the_way)
    os.makedirs(in_the_way)
    try:
        status, said = gateway.run(check=False)
        equal(status, 1, f"exit status; it said: {said}")
    finally:
        os.rmdir(in_the_way)


@case("A2 start, stop, kill -9 and failing starts of a host that forwards: nothing forbidden leaves",
      seconds=300)
def closed_where_forwarding_was_on(bench):
    starts_and_stops(bench, forwarding=1, at_stop=None)


@case("A2 the same of a host that does not forward, with at_stop = open and generic XDP", seconds=300)
def closed_where_forwarding_was_off(bench):
    starts_and_stops(bench, forwarding=0, at_stop="open", xdp_mode="generic")


@case("A2 the same with direct egress", seconds=300)
def closed_with_direct_egress(bench):
    starts_and_stops(bench, forwarding=1, at_stop="closed", egress="direct")
