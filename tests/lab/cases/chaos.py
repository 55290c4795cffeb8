# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to the host, in whatever order: nothing forbidden leaves, each outage is said and ends."""

import functools
import os
import random
import threading
import time

from cases.closed import Flood, closed_rules, degraded, packed
from cases.life import foreign_program
from cases.neighbours import short_times
from lab import traffic, wire
from lab.runner import case, check, equal, eventually

# SALLYPORT_CHAOS_SECONDS=600 for a long look; SALLYPORT_CHAOS_SEED=N for the same order again;
# SALLYPORT_CHAOS_ONLY=killed,tap_set_down for these things alone.
SECONDS = int(os.environ.get("SALLYPORT_CHAOS_SECONDS", "120"))
SEED = os.environ.get("SALLYPORT_CHAOS_SEED")
ONLY = [name for name in os.environ.get("SALLYPORT_CHAOS_ONLY", "").split(",") if name]
# Printed as what they are; on a machine that others load, more than the goals of 3 s and 5 s.
SAID_SECONDS = 20
ENDED_SECONDS = 60


class Probe:
    """Echo requests between two hosts, twenty a second, and which of them were answered."""

    def __init__(self, ns, source, destination):
        self.name = f"{source} to {destination}"
        self._v6 = ":" in destination
        self._destination = destination
        self._identity = random.getrandbits(16)
        self._sent = {}
        self._answered = 0.0  # when the latest request that was answered was sent
        self.sent = self.answered = 0
        self._stop = threading.Event()
        self._socket = ns.run_inside(lambda: traffic.icmp_socket(source, self._v6))
        self._socket.settimeout(0.05)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        due = 0.0
        while not self._stop.is_set():
            now = time.monotonic()
            if now >= due:
                due = now + 0.05
                number = self.sent & 0xFFFF
                self._sent[number] = now
                self.sent += 1
                try:
                    self._socket.sendto(traffic.echo_request(self._identity, number, 56, self._v6),
                                        (self._destination, 0))
                except OSError:  # its route or its device is away
                    pass
            try:
                packet = self._socket.recv(65535)
            except (TimeoutError, BlockingIOError):
                continue
            except OSError:
                continue
            answer = traffic.echo_answer(packet, self._v6)
            if answer and answer[0] == self._identity and answer[1] in self._sent:
                self._answered = max(self._answered, self._sent.pop(answer[1]))
                self.answered += 1

    def alive_since(self, when):
        """Whether a request that was sent after `when` was answered."""
        return self._answered > when

    def runs(self):
        return self._thread.is_alive()

    def close(self):
        self._stop.set()
        self._thread.join(5)
        self._socket.close()


class Host:
    """The lab's gateway and its host, for the things that happen to them."""

    def __init__(self, bench, chosen, **options):
        self.bench, self.lab, self.gw = bench, bench.lab, bench.lab.gw
        self.random = chosen
        self.options = options
        self.gateway = bench.gateway(fresh=True, **options)
        self._expected = []
        self.said = []  # seconds from each cause until the log named it

    def expect(self, words):
        """The log names what has just been done, where there is somebody to say it."""
        if not self.gateway.running or self.gateway.is_paused:
            return
        began = time.monotonic()
        # The log has the same five times a minute at most; what holds on stands in `show status`, and of
        # what is mended at once there is nothing to say then.
        self._expected = [(when, what) for when, what in self._expected if began - when < 90]
        often = sum(what == words for _, what in self._expected) >= 3
        self._expected.append((began, words))
        eventually(lambda: words in self.gateway.log()[self.log_mark:] or words in degraded(self.gateway) or often,
                   lambda: f"not in the log in {SAID_SECONDS} s: '{words}'; there: {self.gateway.log()[self.log_mark:]}",
                   SAID_SECONDS)
        self.said.append((time.monotonic() - began, words))

    def mark(self):
        self.log_mark = len(self.gateway.log())

    def restart(self):
        if self.gateway.running:
            equal(self.gateway.stop(), 0, "exit status")
        eventually(lambda: not self.gw.exists("sp0"), "sp0 of the one before is there", 20)
        self.gateway.start()


# Each does something to the host, yields what it was and what the log must say of it, and takes it back.
# LIFE: those in which the gateway ends or stands still, one at a time; they are taken back last.
ANYTIME, LIFE = [], []
NO_SP0 = "nothing, without sp0", None


def happens(function):
    ANYTIME.append(function)
    return function


def ends_a_life(function):
    LIFE.append(function)
    return function


def needs_sp0(function):
    @functools.wraps(function)
    def unless_it_is_gone(host):
        if host.gw.exists("sp0"):
            yield from function(host)
        else:
            yield NO_SP0
    return unless_it_is_gone


@happens
def program_removed(host):
    device = host.random.choice(("lan0", "wan0"))
    host.gw.ip(f"link set dev {device} xdpdrv off")
    yield f"XDP program of {device} removed", f"the XDP program was removed from {device}"


@happens
def program_replaced(host):
    fd = foreign_program(host.gw, "lan0", "overwrite")
    yield "XDP program of lan0 replaced", "another XDP program is attached"
    host.gw.ip("link set dev lan0 xdpdrv off")
    os.close(fd)


@happens
def tc_program_removed(host):
    host.gw.sh("tc", "qdisc", "del", "dev", "wan0", "clsact")
    yield "TC program of wan0 removed", "the TC program was removed from wan0"


@happens
def policies_flushed(host):
    host.gw.ip("xfrm policy flush")
    yield "xfrm policies flushed", "xfrm policies of ours were removed or changed"


@happens
def setting_changed(host):
    name, wrong = host.random.choice((
        ("net.ipv4.ip_forward", 0), ("net.ipv6.conf.all.forwarding", 0), ("net.ipv4.conf.lan0.forwarding", 0),
        ("net.ipv6.conf.wan0.forwarding", 0), ("net.ipv4.conf.sp0.disable_policy", 0)))
    if "sp0" in name and not host.gw.exists("sp0"):
        yield NO_SP0
        return
    host.gw.sysctl(name, wrong)
    yield f"{name} = {wrong}", f"the setting {name.replace('.', '/')} was changed"


@happens
@needs_sp0
def tap_set_down(host):
    host.gw.ip("link set sp0 down")
    yield "sp0 down", "sp0: the device was set down"


@happens
@needs_sp0
def tap_program_removed(host):
    host.gw.ip("link set dev sp0 xdp off")
    yield "XDP program of sp0 removed", "sp0: our program was removed"


@happens
def mtu_lowered(host):
    device = host.random.choice(("lan0", "wan0"))
    host.gw.ip(f"link set {device} mtu 1400")
    yield f"MTU of {device} lowered", f"port {device}: the MTU is 1400 now"
    host.gw.ip(f"link set {device} mtu 1500")


@happens
def port_set_down(host):
    host.gw.ip("link set lan0 down")
    yield "lan0 down", "is down"
    host.gw.ip("link set lan0 up")
    for i in (3, 4):  # the kernel keeps those of IPv4 alone
        host.gw.ip(f"addr replace fd01:0:0:{i}::1/64 dev lan0 nodad")


@happens
def neighbours_flushed(host):
    for device in ("lan0", "wan0"):
        host.gw.ip(f"neigh flush dev {device}")
    yield "neighbours flushed", None


@happens
def neighbour_moved(host):
    """A host that has another MAC from now on, and tells nobody."""
    before = host.lab.lan.mac("eth0")
    host.lab.lan.ip("link set eth0 address 02:00:00:00:aa:%02x" % host.random.randrange(256))
    yield "the MAC of the host behind lan0 changed", None
    host.lab.lan.ip(f"link set eth0 address {before}")


@happens
def peer_blocked_by_a_rule(host):
    host.gw.ip("rule add pref 50 to 192.0.2.2 blackhole")
    yield "a rule blocks the way to the peer", None
    host.gw.ip("rule del pref 50")


@happens
def peer_routed_away(host):
    """A better route leads nowhere near the peer."""
    host.gw.ip("route add unreachable 192.0.2.2/32")
    yield "the route to the peer is unreachable", None
    host.gw.ip("route del unreachable 192.0.2.2/32")


@ends_a_life
def paused(host):
    """The clock jumps, as sallyportd sees it; XDP programs go on."""
    with host.gateway.paused():
        yield "sallyportd paused", None


@ends_a_life
def killed(host):
    host.gateway.kill()
    yield "kill -9", None
    host.restart()


@ends_a_life
def stopped(host):
    equal(host.gateway.stop(), 0, "exit status")
    yield "stop", None
    host.restart()


@ends_a_life
def tap_deleted(host):
    host.gw.ip("link del sp0")
    yield "sp0 deleted", "sp0: the device was removed"
    host.restart()


@ends_a_life
def port_made_again(host):
    lab = host.lab
    host.gw.ip("link del lan0")
    yield "lan0 deleted and made again", "lan0 is gone from this network namespace"
    lab.link_lan()
    host.restart()


def counters(gateway):
    """{name: count} of SAs and drop reasons."""
    return {**{row["name"]: row["packets"] for row in gateway.show("sa")}, **gateway.drops()}


def trail(host, probes, before):
    """For who looks for a fault: what has counted since, and where everybody believes the others to be."""
    now = counters(host.gateway)
    moved = {name: now[name] - was for name, was in before.items() if now[name] != was}
    answers = {probe.name: (probe.sent, probe.answered, probe.runs()) for probe in probes}
    try:
        peer = host.bench.peer().sh("ip neigh; grep -v ' 0$' /proc/net/xfrm_stat; true")
    except (TimeoutError, RuntimeError, OSError) as e:
        peer = f"does not answer at its console ({e})"
    return (f"peer: {peer}; sent, answered: {answers}; counted since: {moved}; DEGRADED: {degraded(host.gateway)}; "
            f"neighbours: {host.gw.ip('neigh')}; rules: {host.gw.ip('rule')}; routes: {host.gw.ip('route')}")


def happen(host, probes, flood, wan):
    """Some things at once, taken back in any order; then all is as before. What, and for how long."""
    draw = host.random
    anytime, life = ([each for each in kind if not ONLY or each.__name__ in ONLY] for kind in (ANYTIME, LIFE))
    chosen = draw.sample(anytime, min(draw.randint(1, 3), len(anytime)))
    chosen += draw.sample(life, min(draw.random() < (0.3 if chosen else 1), len(life)))
    if port_made_again in chosen:  # the others need the device
        chosen = [port_made_again]
    draw.shuffle(chosen)
    host.mark()
    names, undo = [], []
    try:
        for function in chosen:
            running = function(host)
            undo.append((function in LIFE, draw.random(), running))
            what, words = next(running)
            names.append(what)
            if words:
                host.expect(words)
            time.sleep(draw.uniform(0, 0.5))
        time.sleep(draw.uniform(0, 1.5))
    finally:
        for _, _, running in sorted(undo, key=lambda each: each[:2]):
            next(running, None)
    ended = time.monotonic()
    what = ", ".join(names)
    before = counters(host.gateway)
    for probe in probes:
        eventually(lambda probe=probe: probe.alive_since(ended),
                   lambda probe=probe: f"{what}: no answer from {probe.name}; {trail(host, probes, before)}",
                   ENDED_SECONDS)
    eventually(lambda: not degraded(host.gateway), lambda: f"{what}: still {degraded(host.gateway)}", ENDED_SECONDS)
    took = time.monotonic() - ended
    closed_rules(host.lab, "")
    check(not (leaks := flood.forbidden_out()), f"{what}: in clear by wan0 {leaks}")
    clear = sum(between(frame) for frame in list(wan.frames))
    equal(clear, 0, f"{what}: packets of the protected hosts in clear by wan0")
    flood.clear()
    wan.frames.clear()
    return what, took


def between(frame):
    """Whether a frame carries in clear what one of the protected hosts sends to another, either way."""
    if frame[12:14] == b"\x08\x00":
        return {frame[26:29], frame[30:33]} == {packed("10.1.0.0")[:3], packed("10.2.0.0")[:3]}
    return frame[12:14] == b"\x86\xdd" and {frame[22:30], frame[38:46]} == {
        packed("fd01:0:0:3::")[:8], packed("fd02:0:0:3::")[:8]}


def chaos(bench, seed, seconds, **options):
    lab = bench.lab
    bench.peer()
    bench.stop_gateway()
    chosen = random.Random(seed)
    host = Host(bench, chosen, **options)
    probes = [Probe(lab.lan, "10.1.0.2", "10.2.0.2"), Probe(lab.far, "10.2.0.2", "10.1.0.2"),
              Probe(lab.lan, "fd01:0:0:3::2", "fd02:0:0:3::2"), Probe(lab.lan, "10.1.0.2", "192.0.2.2")]
    rounds, longest = 0, (0, "")
    try:
        with (short_times(lab.gw, ("lan0", "wan0")), wire.Wire(lab.peer_ns, "wanp") as wan,
              Flood(lab, pause=0.02) as flood):
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                what, took = happen(host, probes, flood, wan)
                rounds += 1
                longest = max(longest, (took, what))
    finally:
        for probe in probes:
            probe.close()
    said = max(host.said, default=(0, ""))
    return (f"{options}, seed {seed}: {rounds} rounds; the longest outage after its cause ended {longest[0]:.1f} s "
            f"({longest[1]}); said after {said[0]:.1f} s at most ({said[1]}); "
            + ", ".join(f"{p.name}: {p.answered} of {p.sent} answered" for p in probes))


@case("A1 chaos: whatever happens to the host, nothing forbidden leaves, and all is said and ends",
      seconds=SECONDS * 3 + 600)
def chaos_of_the_host(bench):
    seed = int(SEED) if SEED else random.randrange(2**32)
    print(f"# SALLYPORT_CHAOS_SEED={seed}", flush=True)
    each = SECONDS / 2 / bench.slow  # sanitizers look at fewer rounds
    notes = [chaos(bench, seed, each), chaos(bench, seed + 1, each, egress="direct")]
    return "\n# ".join(notes)
