# SPDX-License-Identifier: Apache-2.0
"""Nothing that the SPD forbids is on a wire, whatever happens to the gateway and to its host."""

import contextlib
import ipaddress
import os
import threading
import time

from cases.life import foreign_program
from lab import netns, scapy_peer, topology, traffic, wire
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

    inside, outside: (namespace, its device, the gateway's device) of the two wires.
    """

    def __init__(self, lab, inside=None, outside=None, pairs=PROTECT + BYPASS + FORBIDDEN, pause=0.001):
        self._lab = lab
        self._pause = pause
        self._inside = inside or (lab.lan, "eth0", "lan0")
        self._outside = outside or (lab.peer_ns, "wanp", "wan0")
        self._pairs = pairs
        self._stop = threading.Event()

    def __enter__(self):
        self._wan = wire.Wire(*self._outside[:2])
        self._lan = wire.Wire(*self._inside[:2])
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(10)
        self._wan.close()
        self._lan.close()

    def _send(self):
        def frames_of(device, pairs):
            macs = self._lab.gw.mac(device), "02:00:00:00:00:02"
            return [wire.ethernet(*macs, bytes(scapy_peer.udp(a, b, payload=MARK)))
                    for a, b in pairs]

        outward = frames_of(self._inside[2], self._pairs)
        inward = frames_of(self._outside[2], [(b, a) for a, b in self._pairs])
        while not self._stop.is_set():
            for frames, side in ((outward, self._lan), (inward, self._wan)):
                for frame in frames:
                    with contextlib.suppress(OSError):  # the device is gone for a moment
                        side.send(frame)
            time.sleep(self._pause)

    def out(self):
        """(source, destination) -> count of what left by wan0."""
        return _count(self._wan.frames, self._pairs)

    def forbidden_out(self):
        """What of it the SPD forbids, as text."""
        return "; ".join(f"{count} of {a} to {b}" for (a, b), count in self.out().items()
                         if count and (a, b) not in BYPASS)

    def inward(self):
        """The same of what left by lan0."""
        return _count(self._lan.frames, [(b, a) for a, b in self._pairs])

    def esp(self):
        """How many ESP packets have left by wan0."""
        return sum(wire.esp_of(frame) is not None for frame in list(self._wan.frames))

    def clear(self):
        self._wan.frames.clear()
        self._lan.frames.clear()

    def leaks(self):
        """What has left though the SPD forbids it, as text; empty: nothing."""
        allowed = {pair for a, b in BYPASS for pair in ((a, b), (b, a))}
        return "; ".join(f"{count} of {a} to {b}" for seen in (self.out(), self.inward())
                         for (a, b), count in seen.items() if count and (a, b) not in allowed)

    def passes(self, seconds=20):
        """Waits until BYPASS gets through in both directions."""
        (a, b), = BYPASS
        first = self.out()[a, b], self.inward()[b, a]
        eventually(lambda: self.out()[a, b] > first[0] and self.inward()[b, a] > first[1],
                   lambda: f"BYPASS out {self.out()}, in {self.inward()}", seconds)


def packed(text):
    return ipaddress.ip_address(text).packed


def _count(frames, pairs):
    """How many of the flood's packets between each pair are among the frames."""
    wanted = {(packed(a), packed(b)): (a, b) for a, b in pairs}
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


# ---- the host changes while the gateway runs ----------------------------------------------------

def degraded(gateway):
    return " | ".join(gateway.show("status")["degraded"])


def says(gateway, words, since=0):
    eventually(lambda: words in gateway.log()[since:],
               lambda: f"the log does not say '{words}': {gateway.log()[since:]}", 30)


def is_whole(gateway):
    eventually(lambda: not degraded(gateway), lambda: f"still degraded: {degraded(gateway)}", 30)


def remove_program(bench, device, **options):
    """The program is taken off under a flood; what passed until that was known, as text."""
    lab = bench.lab
    gateway = bench.gateway(**options)
    generic = options.get("xdp_mode") == "generic"
    with host_forwarding(lab, 1), Flood(lab) as flood:
        flood.passes()
        judge(flood, "before")
        since = len(gateway.log())
        lab.gw.ip(f"link set dev {device} {'xdpgeneric' if generic else 'xdpdrv'} off")
        says(gateway, f"the XDP program was removed from {device}", since)
        says(gateway, f"mended: port {device}: the XDP program was removed", since)
        check(not (leaks := flood.forbidden_out()), f"until it was known: left by wan0 {leaks}")
        before = flood.leaks()
        flood.clear()
        flood.passes()
        is_whole(gateway)
        judge(flood, "once it is back")
        closed_rules(lab, "")
    return f"{device}: until it was known: {before or 'nothing'}"


def closed_rules(lab, *devices):
    """The devices that are closed to the kernel's forwarding, in both families."""
    wanted = set(devices) - {""}
    for family in ("-4", "-6"):
        def now(family=family):
            return {line.split(" iif ")[1].split()[0]
                    for line in lab.gw.ip(f"{family} rule show pref 1").splitlines()}
        eventually(lambda now=now: now() == wanted,
                   lambda now=now, family=family: f"closed ({family}): {now()}, not {wanted}", 30)


@case("A1 an XDP program is removed from a port: said, closed, attached again", seconds=120)
def program_removed(bench):
    return "; ".join([remove_program(bench, "lan0"), remove_program(bench, "wan0"),
                      remove_program(bench, "lan0", egress="direct"),
                      remove_program(bench, "lan0", xdp_mode="generic")])


@case("A1 another program takes a port's place: the port is closed until that has gone", seconds=90)
def program_replaced(bench):
    lab = bench.lab
    gateway = bench.gateway()
    with host_forwarding(lab, 1), Flood(lab) as flood:
        flood.passes()
        since = len(gateway.log())
        # In one moment, so that ours is not back before.
        fd = foreign_program(lab.gw, "lan0", "overwrite")
        try:
            says(gateway, "another XDP program is attached", since)
            closed_rules(lab, "lan0")
            flood.clear()
            time.sleep(1)
            equal(sum(flood.out().values()), 0, f"left by wan0 while lan0 is closed: {flood.out()}")
            check("somebody_elses" in degraded(gateway), f"status: {degraded(gateway)}")
        finally:
            lab.gw.ip("link set dev lan0 xdpdrv off")
            os.close(fd)
        says(gateway, "mended: port lan0: the XDP program", since)
        flood.clear()
        flood.passes()
        is_whole(gateway)
        judge(flood, "once it is back")
        closed_rules(lab, "")


class KernelErrors:
    """ICMP errors that the gateway's kernel could send by wan0: past its policies, as a frame."""

    PROTECTED = (("10.1.0.2", "10.2.0.2", topology.GW4), ("fd01:0:0:3::2", "fd02:0:0:3::2", topology.GW6))
    OPEN = ("10.1.0.2", "192.0.2.2", topology.GW4)

    def __init__(self, lab, wan):
        self._lab, self._wan = lab, wan

    def send(self, near, far, gateway):
        error = bytes(scapy_peer.time_exceeded(gateway, scapy_peer.udp(far, near, payload=MARK)))
        # ENOBUFS is how a packet socket hears of a frame that TC drops.
        with self._lab.gw.packet_socket("wan0", protocol=0) as s, contextlib.suppress(OSError):
            s.send(wire.ethernet("02:00:00:00:00:02", self._lab.gw.mac("wan0"), error))

    def stay(self, gateway, what):
        """Those about tunnels are counted; behind them comes one that may leave."""
        before = gateway.drops()["error_in_clear"]
        self._wan.frames.clear()
        for row in (*self.PROTECTED, self.OPEN):
            self.send(*row)
        check(self._wan.wait(lambda f: MARK in f), f"{what}: not even what may leave")
        seen = [f for f in self._wan.frames if MARK in f]
        check(len(seen) == 1 and packed(self.OPEN[0]) in seen[0], f"{what}: in clear {seen}")
        equal(gateway.drops()["error_in_clear"] - before, len(self.PROTECTED), f"{what}: error_in_clear")


@case("A1 the TC program is removed from a port: said, attached again; no ICMP error leaves", seconds=120)
def tc_program_removed(bench):
    lab = bench.lab
    gateway = bench.gateway(fresh=True)
    began = len(gateway.log())
    filters = lambda: lab.gw.sh("tc", "filter", "show", "dev", "wan0", "egress")  # noqa: E731
    with wire.Wire(lab.peer_ns, "wanp") as wan:
        errors = KernelErrors(lab, wan)
        errors.stay(gateway, "at first")
        for words in ("filter del dev wan0 egress", "qdisc del dev wan0 clsact"):
            since = len(gateway.log())
            lab.gw.sh("tc", *words.split())
            says(gateway, "the TC program was removed from wan0", since)
            says(gateway, "mended: port wan0: the TC program was removed", since)
            is_whole(gateway)
            closed_rules(lab, "")
            errors.stay(gateway, f"after tc {words}")
        check("the XDP program" not in gateway.log()[began:], "the XDP program was touched too")
        lab.gw.sh("tc", *"filter add dev wan0 egress prio 5 u32 match u32 0 0".split())
        try:
            gateway.kill()
            check("kernel_out" in filters(), f"gone with the process: {filters()}")
            gateway.start()
            errors.stay(gateway, "after a kill")
            equal(gateway.stop(), 0, "exit status")
            check("kernel_out" in filters(), f"after a stop with closed ports: {filters()}")
            gateway.run("--open")
            check("kernel_out" not in filters(), f"left after --open: {filters()}")
            check("pref 5 u32" in filters(), f"of another: {filters()}")
        finally:
            bench.stop_gateway()
            lab.gw.sh("tc", "qdisc", "del", "dev", "wan0", "clsact")


class ExtraPort:
    """A port ext0 of the gateway with a host behind it, which can be taken away and made again."""

    def __init__(self, lab, role):
        self.lab = lab
        self.role = role
        self.ns = netns.Namespace("ext")
        protected = role == "protected"
        self.addresses = ("10.1.5.1/24", "fd01:0:0:5::1/64") if protected else ("203.0.113.1/24",)
        self.make()
        self.set_up()

    def make(self):
        self._made = netns.veth(self.lab.gw, "ext0", self.ns, "eth0")
        for ns, device in ((self.lab.gw, "ext0"), (self.ns, "eth0")):
            netns.offloads_off(ns, device)

    def set_up(self):
        gw = self.lab.gw
        gw.ip("link set ext0 up")
        for address in self.addresses:
            gw.ip(f"addr add {address} dev ext0")
        if self.role == "protected":
            gw.ip(f"neigh replace 10.1.5.2 lladdr {self.ns.mac('eth0')} dev ext0 nud permanent")
            gw.ip(f"neigh replace fd01:0:0:5::2 lladdr {self.ns.mac('eth0')} dev ext0 nud permanent")

    def close(self):
        netns.sh("ip", "-netns", self.lab.gw.name, "link", "del", "ext0", check=False)
        self.ns.close()

    def flood(self):
        """A flood through ext0 and the lab's port of the other side."""
        here = (self.ns, "eth0", "ext0")
        if self.role == "protected":
            return Flood(self.lab, inside=here, pairs=(
                ("10.1.5.2", "10.9.0.2"), ("10.1.5.2", "198.51.100.7"),
                ("fd01:0:0:5::2", "2001:db8:9::7")))
        return Flood(self.lab, outside=here, pairs=(
            ("10.1.0.2", "10.9.0.2"), ("10.1.0.2", "203.0.113.2"),
            ("fd01:0:0:3::2", "2001:db8:9::7")))


def device_removed(bench, role, egress):
    lab = bench.lab
    bench.stop_gateway()
    with host_forwarding(lab, 1):
        port = ExtraPort(lab, role)
        try:
            gateway = bench.gateway(fresh=True, egress=egress, more_ports={"ext0": {"role": role}})
            since = len(gateway.log())
            lab.gw.ip("link del ext0")
            says(gateway, "ext0 is gone from this network namespace", since)
            closed_rules(lab, "ext0")
            port.make()
            with port.flood() as flood:
                port.set_up()
                says(gateway, "ext0 was removed and made again", since)
                time.sleep(1)
                judge(flood, f"{role} port made again")
                check("restart sallyportd" in degraded(gateway), f"status: {degraded(gateway)}")
                check("DEGRADED" in gateway.table("status"), gateway.table("status"))
                gateway.stop()
                judge(flood, f"{role} port after the stop")
                gateway.start()
                judge(flood, f"{role} port after the restart")
                closed_rules(lab, "")
                is_whole(gateway)
                judge(flood, f"{role} port served again")
                bench.stop_gateway()
        finally:
            bench.stop_gateway()
            port.close()
            gateway.run("--open")


@case("A1 what comes in by a device that is no port leaves by an unprotected port as the SPD says", seconds=120)
def beside_the_ports(bench):
    lab = bench.lab
    bench.stop_gateway()
    with host_forwarding(lab, 1):
        beside = ExtraPort(lab, "protected")
        try:
            gateway = bench.gateway(fresh=True)
            allowed = ("10.1.5.2", "192.0.2.2")
            forbidden = (("10.1.5.2", "10.2.0.2"), ("10.1.5.2", "10.9.0.2"), ("10.1.5.2", "198.51.100.7"),
                         ("fd01:0:0:5::2", "fd02:0:0:3::2"), ("fd01:0:0:5::2", "2001:db8:9::7"))
            with Flood(lab, inside=(beside.ns, "eth0", "ext0"), pairs=(allowed, *forbidden)) as flood:
                def nothing_forbidden(what):
                    equal({pair: flood.out()[pair] for pair in forbidden}, dict.fromkeys(forbidden, 0),
                          f"{what}: in clear")

                def passes_alone(what):
                    flood.clear()
                    eventually(lambda: flood.out()[allowed] > 200, lambda: f"what may leave: {flood.out()}")
                    nothing_forbidden(what)

                before = gateway.drops()
                passes_alone("running")
                now = gateway.drops()
                for reason in ("policy_discard", "no_policy"):
                    check(now[reason] > before[reason], f"{reason}: {before[reason]}, then {now[reason]}")
                equal(gateway.stop(), 0, "exit status")
                nothing_forbidden("at the stop")
                passes_alone("with closed ports")
                gateway.start()
                nothing_forbidden("started again")
        finally:
            bench.stop_gateway()
            beside.close()


@case("A1 a port's device is removed and made again: closed until the restart", seconds=180)
def device_made_again(bench):
    device_removed(bench, "protected", "devmap")
    device_removed(bench, "unprotected", "devmap")
    device_removed(bench, "protected", "direct")


@case("A1 a port's device goes to another network namespace and comes back: closed", seconds=90)
def device_moved(bench):
    lab = bench.lab
    bench.stop_gateway()
    with host_forwarding(lab, 1):
        port = ExtraPort(lab, "protected")
        elsewhere = netns.Namespace("else")
        try:
            gateway = bench.gateway(fresh=True, more_ports={"ext0": {"role": "protected"}})
            lab.gw.ip(f"link set ext0 netns {elsewhere.name}")
            says(gateway, "ext0 is gone from this network namespace")
            closed_rules(lab, "ext0")
            elsewhere.ip(f"link set ext0 netns {lab.gw.name}")
            with port.flood() as flood:
                port.set_up()
                eventually(lambda: "is back" in degraded(gateway) or "made again" in
                           degraded(gateway), lambda: f"status: {degraded(gateway)}", 30)
                time.sleep(1)
                judge(flood, "moved away and back")
                closed_rules(lab, "ext0")
                bench.stop_gateway()
        finally:
            bench.stop_gateway()
            elsewhere.close()
            port.close()
            gateway.run("--open")


@case("A1 xfrm policies are flushed, removed or changed: they are back at once", seconds=90)
def policies_flushed(bench):
    lab = bench.lab
    gateway = bench.gateway()
    gw = lab.gw

    def rows():
        """As they are listed, without their indices."""
        return sorted(" ".join(block.split()) for block in
                      gw.ip("xfrm policy").replace("\nsrc ", "\n\nsrc ").split("\n\n") if block)

    with host_forwarding(lab, 1), wire.Wire(lab.peer_ns, "wanp") as wan:
        before = rows()
        check(before, "there are no policies of ours")
        for words in ("policy flush",
                      "policy delete src 10.1.0.0/24 dst 10.2.0.0/24 dir out",
                      "policy update src 10.1.0.0/24 dst 10.2.0.0/24 dir out action allow"):
            since = len(gateway.log())
            gw.ip(f"xfrm {words}")
            says(gateway, "xfrm policies of ours were removed or changed", since)
            eventually(lambda: rows() == before, lambda: f"after {words}: {rows()}", 30)
            wan.frames.clear()
            for source, destination in (("10.1.0.1", "10.2.0.2"),
                                        ("fd01:0:0:3::1", "fd02:0:0:3::2")):
                equal(traffic.ping(gw, source, destination, 3), 0, "pings of the gateway itself")
            leaked = [frame for frame in wan.frames if _between(frame)]
            check(not leaked, f"after {words}: {len(leaked)} packets left in clear")
            is_whole(gateway)


def _between(frame):
    """Whether a frame is cleartext of the gateway towards a network that PROTECT covers."""
    packet = frame[14:]
    if packet[0] >> 4 == 6:
        return packet[24:32] == packed("fd02:0:0:3::")[:8]
    return frame[12:14] == b"\x08\x00" and packet[16:19] == packed("10.2.0.0")[:3]


@case("A1 settings, sp0, its program and an MTU are changed: mended, or followed and said",
      seconds=120)
def others_changed(bench):
    lab = bench.lab
    gateway = bench.gateway()
    gw = lab.gw

    def value(name):
        return gw.sh("sysctl", "-n", name).strip()

    def is_mended(name, wrong):
        right = value(name)
        gw.sysctl(name, wrong)
        says(gateway, f"the setting {name.replace('.', '/')} was changed")
        eventually(lambda: value(name) == right, f"{name} stays changed")

    with host_forwarding(lab, 1), Flood(lab) as flood:
        # While nobody mends it.
        with gateway.paused():
            for family in ("ipv4", "ipv6"):
                gw.sysctl(f"net.{family}.conf.lan0.forwarding", 0)
            before = gw.sh("cat", "/sys/class/net/lan0/statistics/rx_packets")
            eventually(lambda: int(gw.sh("cat", "/sys/class/net/lan0/statistics/rx_packets")) >
                       int(before) + 200, "the flood does not reach lan0")
        for family in ("ipv4", "ipv6"):
            eventually(lambda family=family: value(f"net.{family}.conf.lan0.forwarding") == "1",
                       f"lan0 does not forward {family} again", 30)
        is_whole(gateway)
        judge(flood, "while lan0 did not forward")
        check(gateway.drops().get("forwarding_off"), f"drops: {gateway.drops()}")
        # Of one device: its packets are none that the kernel keeps, though its FIB lookup says so.
        for name, wrong in (("net.ipv6.conf.lan0.forwarding", "0"),
                            ("net.ipv4.conf.lan0.forwarding", "0"), ("net.ipv4.ip_forward", "0"),
                            ("net.ipv6.conf.all.forwarding", "0"),
                            ("net.ipv4.conf.sp0.disable_policy", "0")):
            is_mended(name, wrong)
        gw.ip("link set sp0 down")
        says(gateway, "sp0: the device was set down")
        eventually(lambda: "UP" in gw.ip("link show dev sp0").split("<")[1].split(">")[0],
                   "sp0 stays down", 30)
        gw.ip("link set dev sp0 xdp off")
        says(gateway, "mended: sp0: our program was removed")
        check("prog/xdp" in gw.ip("link show dev sp0"), gw.ip("link show dev sp0"))
        is_whole(gateway)
        fd = foreign_program(gw, "sp0", "overwrite")
        try:
            # What workers decrypt comes in by sp0.
            closed_rules(lab, "sp0")
        finally:
            gw.ip("link set dev sp0 xdpdrv off")
            os.close(fd)
        closed_rules(lab, "")
        is_whole(gateway)
        gw.ip("link set lan0 mtu 1400")
        says(gateway, "port lan0: the MTU is 1400 now and was 1500")
        equal(gateway.ports()["lan0"]["mtu"], 1400, "MTU that show ports knows")
        gw.ip("link set lan0 mtu 1500")
        is_whole(gateway)
        judge(flood, "meanwhile")
        flood.passes()


def without_tap(bench, egress):
    lab = bench.lab
    gateway = bench.gateway(fresh=True, egress=egress)

    def wakings():
        """The most that an idle worker has woken up in a second."""
        before = [each["sleeps"] for each in gateway.show("workers")]
        time.sleep(1)
        return max(each["sleeps"] - was
                   for each, was in zip(gateway.show("workers"), before, strict=True))

    with host_forwarding(lab, 1):
        lab.gw.ip("link del sp0")
        says(gateway, "sp0: the device was removed")
        check("sp0: the device was removed" in degraded(gateway), f"status: {degraded(gateway)}")
        # Four times, and thousands where poll() does not wait.
        eventually(lambda: wakings() < 200, lambda: f"workers do not sleep: {wakings()}", 30)
        with Flood(lab) as flood:
            flood.passes()
            if egress == "direct":
                eventually(lambda: flood.esp() > 0, "workers send no ESP any more")
            judge(flood, f"without sp0, {egress}")
    bench.stop_gateway()


@case("A1 sp0 is deleted: said, workers sleep, and what does not need it goes on", seconds=180)
def tap_removed(bench):
    for egress in ("devmap", "direct"):
        without_tap(bench, egress)


def left_on(lab):
    """What a killed gateway leaves in its host, as text; empty: nothing."""
    gw = lab.gw
    found = [f"a program on {device}" for device in ("lan0", "wan0")
             if "prog/xdp" in gw.ip(f"-d link show dev {device}")]
    for family in ("-4", "-6"):
        found += [line for line in gw.ip(f"{family} rule show").splitlines() if "proto 83" in line]
    found += gw.ip("xfrm policy").splitlines() + gw.ip("xfrm state").splitlines()
    return "; ".join(found)


@case("A2 --open after kill -9 takes away all that the killed one has left", seconds=120)
def opened_after_a_kill(bench):
    lab = bench.lab
    names = (*FORWARDING, "net.ipv4.conf.lan0.forwarding", "net.ipv6.conf.lan0.forwarding",
             "net.ipv6.conf.wan0.forwarding")

    def settings():
        return {name: lab.gw.sh("sysctl", "-n", name).strip() for name in names}

    bench.stop_gateway()
    for forwarding in (0, 1):
        gateway = bench.prepare()
        gateway.run("--open")
        with host_forwarding(lab, forwarding):
            before = settings()
            equal(left_on(lab), "", "left before the start")
            gateway.start()
            equal(settings(), dict.fromkeys(names, "1"), "settings while it runs")
            status, said = gateway.run("--open", check=False)
            equal(status, 1, f"exit status while one runs; it said: {said}")
            with Flood(lab) as flood:
                flood.passes()
                gateway.kill()
                check(left_on(lab), "nothing is left of the killed one")
                judge(flood, "after the kill")
                gateway.run("--open")
                equal(left_on(lab), "", "left after --open")
                equal(settings(), before, "settings after --open")
                for note in ("sysctls", "link_features"):
                    check(not os.path.exists(f"{gateway.folder}/state/{note}"), f"{note} is there")
                if forwarding:  # a plain router, as before the start
                    eventually(flood.leaks, "nothing leaves, where the host forwards", 20)
                else:
                    flood.clear()
                    time.sleep(1)
                    judge(flood, "after --open of a host that does not forward")
                    check(not any(flood.out().values()), f"left by wan0: {flood.out()}")
            # Nothing is in the way of the next start.
            gateway.start()
            bench.stop_gateway()
            gateway.run("--open")
