# SPDX-License-Identifier: Apache-2.0
"""Kinds of devices as ports: the rows of docs/ports.md that this kernel has devices for.

Each row makes such a device of what lan0 or wan0 is to the rest of the lab, gives it the addresses,
and pings through a tunnel from both ends, and past the tunnels (BYPASS). tests/vm/cases/ports.py has
the rows for which a guest's kernel is needed.
"""

import contextlib
import time

from cases.closed import degraded, host_forwarding
from lab import daemon, netns, scapy_peer, traffic, wire
from lab.runner import Skip, case, check, equal, eventually

LAN = [f"10.1.{i}.1/24" for i in range(3)]
WAN = ["192.0.2.1/24"]
PINGS = 5


def make(lab, words):
    """`ip link add` in the gateway's namespace; SKIP where the kernel has no such device."""
    try:
        lab.gw.ip(f"link add {words}")
    except netns.CommandFailed as e:
        if "Unknown device type" in str(e) or "not supported" in str(e):
            raise Skip(f"this kernel has no devices of that kind: {words.split('type ')[1]}") from None
        raise


def macvlan(lab, below, device):
    make(lab, f"link {below} name {device} type macvlan mode bridge")
    # Else it answers for the address that is on the macvlan now, with its own MAC.
    lab.gw.sysctl(f"net.ipv4.conf.{below}.arp_ignore", 1)


def bridge(lab, below, device):
    make(lab, f"name {device} type bridge")
    lab.gw.ip(f"link set {below} master {device}")


@contextlib.contextmanager
def device_of(bench, kind, below):
    """A device on `below`, with its addresses."""
    lab, device = bench.lab, "kind0"
    addresses = LAN if below == "lan0" else WAN
    bench.stop_gateway()
    try:
        kind(lab, below, device)
        for address in addresses:
            lab.gw.ip(f"addr del {address} dev {below}")
            lab.gw.ip(f"addr add {address} dev {device}")
        lab.gw.ip(f"link set {device} up")
        if below == "wan0":
            lab.gw.ip("route add default via 192.0.2.2")
        forget_neighbours(bench)
        yield device
    finally:
        bench.stop_gateway()
        lab.gw.ip(f"link del {device}", check=False)
        lab.gw.sysctl(f"net.ipv4.conf.{below}.arp_ignore", 0)
        for address in addresses:
            lab.gw.ip(f"addr add {address} dev {below}", check=False)
        lab.gw.ip("route add default via 192.0.2.2", check=False)
        forget_neighbours(bench)


def forget_neighbours(bench):
    """The gateway's MAC is another one now."""
    bench.lab.lan.ip("neigh flush all")
    bench.peer().sh("ip neigh flush all; true")


def delivers(bench, gateway):
    """Tunnel and BYPASS, from both ends, and the gateway counts what was sent and received there."""
    lab = bench.lab

    def sums():
        workers = gateway.show("workers")
        return [sum(w[way]["delivered"] for w in workers) for way in ("inbound", "outbound")]

    before, drops = sums(), gateway.drops()
    equal(traffic.ping(lab.lan, "10.1.0.2", "10.2.0.2", PINGS), PINGS, "pings from inside")
    equal(traffic.ping(lab.far, "10.2.0.2", "10.1.0.2", PINGS), PINGS, "pings from the far end")
    equal(traffic.ping(lab.lan, "10.1.0.2", "192.0.2.2", PINGS), PINGS, "pings by BYPASS")
    for reverse in (False, True):  # what a device below has merged is too big for all that follows
        traffic.tcp(lab.lan, "10.1.0.2", lab.far, "10.2.0.2", seconds=1, reverse=reverse)
    moved = [now - then for now, then in zip(sums(), before)]
    check(min(moved) >= 2 * PINGS, f"workers delivered {moved}, expected {2 * PINGS} each way")
    after = gateway.drops()
    for reason in ("redirect_failed", "steer_failed", "too_big"):
        equal(after[reason] - drops[reason], 0, reason)
    ports = {name: (port["xdp_mode"], port["attached_reason"])
             for name, port in gateway.ports().items()}
    return "; ".join(f"{name} {mode}" for name, (mode, _) in ports.items())


def all_generic(gateway, because):
    for name, port in gateway.ports().items():
        equal(port["xdp_mode"], "generic", f"mode of {name}")
    check(because in gateway.log(), f"the log does not say '{because}': {gateway.log()}")


def port_row(bench, kind, below):
    with device_of(bench, kind, below) as device:
        options = {"lan_device": device} if below == "lan0" else {"wan_device": device}
        gateway = bench.gateway(fresh=True, **options)
        said = delivers(bench, gateway)
        all_generic(gateway, f"cannot send out of port {below} (device {device}")
        prepared = bench.prepare(xdp_mode="native", **options)
        try:
            prepared.start()
            raise AssertionError(f"started in native mode: {prepared.log()}")
        except daemon.DaemonFailed as e:
            check('Write xdp_mode = "auto"' in str(e), f"it says no remedy: {e}")
        delivers(bench, bench.gateway(fresh=True, egress="direct", **options))
        return said


for kind_ in (macvlan, bridge):
    for below_ in ("lan0", "wan0"):
        side = "protected" if below_ == "lan0" else "unprotected"
        case(f"ports: a {kind_.__name__} as the {side} port delivers, and native XDP is refused in words",
             seconds=240)(lambda bench, kind=kind_, below=below_: port_row(bench, kind, below))


def far_end_sends(lab, mac, source, count=10):
    """How many of `count` packets from the far end of wan0's wire come to a host behind lan0."""
    payload = source.encode() + b" to a host inside"
    inside = "fd01:0:0:3::2" if ":" in source else "10.1.0.2"
    with wire.Wire(lab.lan, "eth0") as lan, wire.Wire(lab.peer_ns, "wanp") as wan:
        for _ in range(count):
            wan.send(wire.ethernet(mac, "02:00:00:00:00:02", bytes(scapy_peer.udp(source, inside, payload=payload))))
        time.sleep(0.5)
        return sum(payload in frame for frame in list(lan.frames))


@case("ports: what is for the device below an unprotected port comes in nowhere", seconds=180)
def below_unprotected(bench):
    lab = bench.lab
    with device_of(bench, macvlan, "wan0") as device:
        def comes_in(what):
            for source in ("198.51.100.7", "10.9.0.2", "10.2.0.2", "2001:db8:9::7"):  # no policy, DISCARD, PROTECT
                for name in (device, "wan0"):
                    equal(far_end_sends(lab, lab.gw.mac(name), source), 0, f"{what}: from {source} to {name}")

        with host_forwarding(lab, 1):
            bench.prepare(wan_device=device, at_stop="open")  # what the case before has left closed
            equal(far_end_sends(lab, lab.gw.mac("wan0"), "198.51.100.7"), 10, "before there is a gateway")
            gateway = bench.gateway(fresh=True, wan_device=device)
            check("what comes in by wan0 itself, below it, is not forwarded" in gateway.log(), gateway.log())
            comes_in("while it runs")
            lab.gw.sh("sh", "-c", "ip rule del pref 1 iif wan0; ip -6 rule del pref 1 iif wan0")
            eventually(lambda: "iif wan0" in lab.gw.ip("rule") and "iif wan0" in lab.gw.ip("-6 rule"),
                       "a removed rule does not come back")
            comes_in("after its rule was removed")
            gateway.kill()
            comes_in("after kill -9")
            gateway.start()
            comes_in("started again")
            equal(gateway.stop(), 0, "exit status")
            comes_in("stopped, ports closed")


@case("ports: a port that is put into a bridge while it runs is said, and refused at a start", seconds=60)
def enslaved(bench):
    gw = bench.lab.gw
    bench.peer()
    gateway = bench.gateway(fresh=True)
    make(bench.lab, "name kind0 type bridge")
    try:
        for device in ("lan0", "wan0"):
            gw.ip(f"link set {device} master kind0")
            eventually(lambda device=device: f"the device {device} belongs to a bridge now" in degraded(gateway),
                       f"{device} in a bridge is not said")
            gw.ip(f"link set {device} nomaster")
            eventually(lambda: not degraded(gateway), lambda: f"still {degraded(gateway)}")
        delivers(bench, gateway)
        bench.stop_gateway()
        gw.ip("link set lan0 master kind0")
        for arguments in (("--check",), ()):
            status, said = gateway.run(*arguments, check=False)
            equal(status, 2, f"exit status of a start with {arguments}; it said: {said}")
            check("the device lan0 belongs to a bridge" in said and f"{gateway.config}:" in said, said)
    finally:
        gw.ip("link del kind0")


@case("ports: a veth whose peer has no GRO is sent to by generic XDP", seconds=120)
def veth_without_gro(bench):
    lab = bench.lab
    bench.peer()
    bench.stop_gateway()
    lab.lan.sh("ethtool", "-K", "eth0", "gro", "off")
    try:
        gateway = bench.gateway(fresh=True)
        said = delivers(bench, gateway)
        all_generic(gateway, "switch GRO of its peer on")
        return said
    finally:
        bench.stop_gateway()
        lab.lan.sh("ethtool", "-K", "eth0", "gro", "on")


@case("ports: a generic port beside native ones delivers, the others stay native", seconds=120)
def mixed(bench):
    bench.peer()
    gateway = bench.gateway(fresh=True, lan_keys={"xdp_mode": "generic"})
    said = delivers(bench, gateway)
    equal([gateway.ports()[name]["xdp_mode"] for name in ("wan0", "lan0", "sp0")],
          ["native", "generic", "native"], "modes")
    return said


@case("ports: frames that the device of a port does not take are counted as redirect_failed", seconds=120)
def redirect_failed(bench):
    lab = bench.lab
    bench.peer()
    gateway = bench.gateway(fresh=True)
    traffic.ping(lab.lan, "10.1.0.2", "10.2.0.2", 2)  # neighbours are known from here on
    traffic.ping(lab.lan, "10.1.0.2", "192.0.2.2", 2)
    start, drops = gateway.ports(), gateway.drops()
    lab.peer_ns.sh("ethtool", "-K", "wanp", "gro", "off")
    try:
        equal(traffic.ping(lab.lan, "10.1.0.2", "10.2.0.2", 4), 0, "pings by ESP")
        equal(traffic.ping(lab.lan, "10.1.0.2", "192.0.2.2", 3), 0, "pings by BYPASS")
        eventually(lambda: gateway.drops()["redirect_failed"] - drops["redirect_failed"] == 7,
                   lambda: f"redirect_failed {gateway.drops()['redirect_failed']}")
        where = next(d["where"] for d in gateway.show("drops") if d["reason"] == "redirect_failed")
        equal(list(where), ["port wan0"], "counted at")
        now = gateway.ports()
        for name, port in now.items():
            moved = {key: port[key] - start[name][key] for key in
                     ("rx_frames", "passed", "steered", "redirected", "dropped")}
            equal(moved["rx_frames"], sum(moved.values()) - moved["rx_frames"], f"frames of {name}")
    finally:
        lab.peer_ns.sh("ethtool", "-K", "wanp", "gro", "on")
    equal(traffic.ping(lab.lan, "10.1.0.2", "10.2.0.2", 3), 3, "pings when it takes them again")


@case("ports: a device that belongs to a bridge is refused in words", seconds=120)
def slave_of_bridge(bench):
    lab = bench.lab
    bench.stop_gateway()
    make(lab, "name kind0 type bridge")
    try:
        lab.gw.ip("link set lan0 master kind0")
        prepared = bench.prepare()
        try:
            prepared.start()
            raise AssertionError("started on a device of a bridge")
        except daemon.DaemonFailed as e:
            check("belongs to a bridge" in str(e) and "nomaster" in str(e), f"it says: {e}")
    finally:
        bench.stop_gateway()
        lab.gw.ip("link del kind0", check=False)


def mtu_followed(bench, egress):
    """Inner packets of 1400 bytes make outer ones of more than 1400: they need the MTU of 1500."""
    lab = bench.lab
    large = 1400 - 28

    def device_mtu(device):
        return int(lab.gw.sh("cat", f"/sys/class/net/{device}/mtu"))

    def passes(what):
        # With direct egress the next hops follow a moment later.
        eventually(lambda: traffic.ping(lab.lan, "10.1.0.2", "10.2.0.2", 1, size=large) == 1, f"{what}: no answer")
        equal(traffic.ping(lab.lan, "10.1.0.2", "10.2.0.2", PINGS, size=large), PINGS, what)

    def is_dropped(what):
        before = gateway.drops()["too_big"]
        equal(traffic.ping(lab.lan, "10.1.0.2", "10.2.0.2", PINGS, size=large), 0, what)
        equal(gateway.drops()["too_big"] - before, PINGS, f"{what}: counted as too_big")
        equal(traffic.ping(lab.lan, "10.1.0.2", "10.2.0.2", PINGS, size=1200), PINGS, f"{what}: smaller ones")

    lab.gw.ip("link set wan0 mtu 1400")
    try:
        gateway = bench.gateway(fresh=True, egress=egress)
        inner = device_mtu("sp0")
        is_dropped("started with an MTU of 1400")
        lab.gw.ip("link set wan0 mtu 1500")
        eventually(lambda: "the MTU is 1500 now and was 1400" in gateway.log(), "a raised MTU is not said")
        eventually(lambda: device_mtu("sp0") == inner + 100, lambda: f"sp0 has {device_mtu('sp0')}")
        equal(gateway.ports()["sp0"]["mtu"], inner + 100, "MTU of sp0 in show ports")
        passes("raised to 1500")
        lab.gw.ip("link set wan0 mtu 1400")
        eventually(lambda: device_mtu("sp0") == inner, lambda: f"sp0 has {device_mtu('sp0')}")
        is_dropped("lowered to 1400")
        equal(gateway.show("status")["degraded"], [], "a port's MTU is no fault")
    finally:
        bench.stop_gateway()
        lab.gw.ip("link set wan0 mtu 1500")


@case("ports: an MTU that is raised or lowered while it runs is followed by tunnels and sp0", seconds=120)
def mtu_at_run_time(bench):
    bench.peer()
    for egress in ("devmap", "direct"):
        mtu_followed(bench, egress)
