# SPDX-License-Identifier: Apache-2.0
"""What the gateway itself sends through a tunnel that a worker carries for others.

The first tunnel as documented, and no route set by hand. See inside/two_sites.py for the network.
"""

import collections
import re

from inside import boot, two_sites
from inside.ike_connections import child, connection
from lab import traffic
from lab.checks import Skip, check, equal, eventually
from lab.wire import esp_of

BOOT = boot.Boot(kernels=("newest", "6.12"), modules=two_sites.MODULES)
world = None
FEW, MANY = 1, 0.05  # seconds between two pings
SECONDS = 15         # of traffic at least


def sites(guest):
    if world is None:
        raise Skip("the daemons did not start: see the first case")
    world.attend(guest)
    return world


def ways(s, family="-4"):
    """Rules of ours, and the routes in the tables that they name."""
    rules = [line for line in s.g.sh("ip", family, "rule").splitlines() if line.startswith("210:")]
    tables = sorted(set(re.findall(r"lookup (\d+)", " ".join(rules))))
    return rules, [line.strip() for table in tables
                   for line in s.g.sh("ip", family, "route", "show", "table", table, check=False).splitlines()]


def pairs_twice(s, mark):
    """(SPI, number) pairs that the gateway sent more than once."""
    sent = collections.Counter(e[:2] for _, f in s.frames_since(mark)
                               if f[6:12] == s.gateway_mac and (e := esp_of(f)))
    return [pair for pair, count in sent.items() if count > 1], len(sent)


@BOOT.case("a far host pings the gateway and it pings back: transit loses nothing, no SA is replaced",
           seconds=120, everywhere=True)
def beside_transit(guest):
    global world
    s = world = two_sites.first_tunnel(guest)
    settle(guest, s)
    beside(guest, s, "10.1.0.1", "10.2.0.2", ("10.1.0.2", "10.2.0.2"))
    equal(s.in_clear(), [], "frames in clear on the wan")
    stream = two_sites.Stream(s)
    stream.flowing()
    moved, error = stream.stop()
    equal(error, None, "what went wrong with TCP in transit")
    check(moved > 0, "nothing came by TCP")


def settle(guest, s):
    """The SA that the kernel was the first to use has been replaced."""
    pings = s.pings().flowing()
    guest.note(s.carried("branch"))

    def stays():
        spi = s.child("branch")["spi-out"]
        pings.flowing(40)
        return s.child("branch")["spi-out"] == spi
    eventually(stays, "the SA of the tunnel does not stay", 60)
    pings.stop()
    s.adopted("branch")


def beside(guest, s, gateway, far, transit):
    """A machine on which a worker does not come to run finds more than a replay window in one queue when it
    has emptied the other, and says so: then once more. Any other loss is one."""
    for _ in range(3):
        early = before_window(s)
        lost = one_round(guest, s, gateway, far, transit)
        if not lost:
            return
        early = before_window(s) - early
        check(lost <= early, f"{lost} pings without answer, {early} of them because queues overtook each other")
    equal(lost, 0, "pings without answer, in the last of three rounds")


def before_window(s):
    return sum(d["count"] for d in s.fast.show("drops") if d["reason"] == "before_window")


def one_round(guest, s, gateway, far, transit):
    """Pings without answer."""
    spi, mark = s.child("branch")["spi-out"], len(s.frames_since())
    through = s.pings(interval=MANY, ends=transit).flowing()
    others = {"far host, now and then": s.pings(interval=FEW, ends=(far, gateway), ns=s.b),
              "far host, often": s.pings(interval=MANY, ends=(far, gateway), ns=s.b),
              "gateway, by its address inside": s.pings(interval=MANY, ends=(gateway, far), ns=s.g),
              "gateway, without a source": s.pings(interval=FEW, ends=(None, far), ns=s.g)}
    through.flowing(int(SECONDS / MANY), seconds=SECONDS * 20)
    lost = 0
    for name, ping in {**others, "in transit": through}.items():
        sent, missing = ping.flowing(2).stop()
        guest.note(f"{name}: {sent} pings, without answer: {missing}")
        lost += len(missing)
    equal(s.child("branch")["spi-out"], spi, "the SA of the tunnel")
    twice, count = pairs_twice(s, mark)
    equal(twice, [], "(SPI, number) pairs that were sent twice")
    numbers = [e[1] for _, f in s.frames_since(mark)
               if f[6:12] == s.gateway_mac and (e := esp_of(f)) and e[0] == int(spi, 16)]
    guest.note(f"{count} ESP packets of the gateway, numbers {min(numbers)} to {max(numbers)} of its SA")
    check(max(numbers) - min(numbers) < 2 * len(numbers), "numbers of the SA were jumped over")
    return lost


@BOOT.case("the way is put back when others remove it, and moves no other packet", seconds=60)
def put_back(guest):
    s = sites(guest)
    rules, routes = before = ways(s)
    guest.note("\n".join(rules + routes))
    equal((len(rules), len(routes)), (2, 2), "rules and routes")
    for what, words in (("rules", ["rule del priority 210", "rule del priority 210"]),
                        ("routes", [f"route flush table {table}" for table in
                                    re.findall(r"lookup (\d+)", " ".join(rules))])):
        s.g.batch(words)
        eventually(lambda: ways(s) == before, lambda: f"{what} are not put back: {ways(s)}", 10)
    s.g.batch(["link set sp0 down"])
    s.g.batch(["link set sp0 up"])
    eventually(lambda: ways(s) == before, lambda: f"routes of a device that was down: {ways(s)}", 10)
    s.g.batch(["addr del 10.1.0.1/24 dev lan0"])
    eventually(lambda: ways(s) == ([], []), lambda: f"ways without a source: {ways(s)}", 10)
    s.g.batch(["addr add 10.1.0.1/24 dev lan0"])
    eventually(lambda: sorted(ways(s)[1]) == sorted(routes), lambda: f"ways of an address that is back: {ways(s)}", 10)
    for source, device in (("10.1.0.1", "sp0"), ("10.1.1.1", "wan0"), (two_sites.GATEWAY, "wan0")):
        found = s.g.sh("ip", "route", "get", "10.2.0.2", "from", source)
        check(f"dev {device} " in found, f"from {source}: {found}")
    found = s.g.sh("ip", "route", "get", "10.2.0.2", "from", "10.1.0.2", "iif", "lan0")
    check("dev wan0 " in found, f"what is forwarded: {found}")
    status = s.fast.show("status")
    equal(status["host_traffic"]["routes"], 2, "routes that are shown")


@BOOT.case("killed: the kernel sends what the gateway has; started again and stopped: nothing is left", seconds=120)
def end(guest):
    s = sites(guest)
    s.fast.kill()
    equal(ways(s)[1], [], "routes of a killed gateway")
    equal(traffic.ping(s.g, "10.1.0.1", "10.2.0.2"), 5, "pings of the gateway, by the kernel alone")
    s.fast.start()
    eventually(lambda: [len(found) for found in ways(s)] == [2, 2], lambda: f"{ways(s)}", 20)
    guest.note(s.carried("branch"))
    equal(traffic.ping(s.g, "10.1.0.1", "10.2.0.2"), 5, "pings of the gateway, by the worker")
    mark = len(s.frames_since())
    equal(s.fast.stop(), 0, "exit status of sallyportd")
    equal(ways(s), ([], []), "what a stop leaves")
    equal(s.in_clear(mark), [], "frames in clear on the wan")
    guest.note(s.look_at_wire())


@BOOT.case("IPv6: what the gateway itself has for a tunnel is refused, and transit loses nothing",
           seconds=120, everywhere=True)
def ipv6(guest):
    s = sites(guest)
    for c in (s.gateway_ike, s.peer_ike):  # which has the same identities
        c.unload("branch")
    s.gateway_ike.terminate(ike="branch")
    eventually(lambda: ways(s) == ([], []), lambda: f"ways of a tunnel that has gone: {ways(s)}", 10)
    s.fast.stop()  # where the case before did not run
    s.fast.start()
    six = child(local_ts=["fd00:1:0::/64"], remote_ts=["fd00:2:0::/64"])
    with connection(s, "six", {"six": six}):
        s.initiate("six")
        s.adopted("six")
        eventually(lambda: len(ways(s, "-6")[1]) == 2, lambda: f"{ways(s, '-6')}", 10)
        guest.note("\n".join(sum(ways(s, "-6"), [])))
        spi, mark = s.child("six")["spi-out"], len(s.frames_since())
        through = s.pings(interval=MANY, ends=("fd00:1:0::2", "fd00:2:0::2")).flowing()
        others = [s.pings(interval=MANY, ends=("fd00:2:0::2", "fd00:1:0::1"), ns=s.b),
                  s.pings(interval=MANY, ends=("fd00:1:0::1", "fd00:2:0::2"), ns=s.g)]
        early = before_window(s)
        sent, missing = through.flowing(int(SECONDS / MANY), seconds=SECONDS * 20).stop()
        early = before_window(s) - early
        guest.note(f"in transit: {sent} pings, without answer: {missing}, of them overtaken: {early}")
        check(len(missing) <= early, f"transit pings without answer: {missing}")
        equal(sum((sorted(ping.answered()) for ping in others), []), [], "pings of the gateway's own that were answered")
        equal(s.child("six")["spi-out"], spi, "the SA of the tunnel")
        equal(pairs_twice(s, mark)[0], [], "(SPI, number) pairs that were sent twice")
        numbers = [e[1] for _, f in s.frames_since(mark)
                   if f[6:12] == s.gateway_mac and (e := esp_of(f)) and e[0] == int(spi, 16)]
        check(max(numbers) - min(numbers) < 2 * len(numbers), "numbers of the SA were jumped over")
        equal(s.in_clear(mark), [], "frames in clear on the wan")
    eventually(lambda: ways(s, "-6") == ([], []), lambda: f"ways of a tunnel that has gone: {ways(s, '-6')}", 10)
