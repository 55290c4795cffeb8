# SPDX-License-Identifier: Apache-2.0
"""Kinds of devices as ports: the rows of docs/ports.md for which a stock kernel is needed.

Each row has a device of the kind as lan0 or wan0, and pings through a tunnel from both ends and past
it (BYPASS).
"""

from inside import boot, tunnel
from lab import daemon, traffic
from lab.checks import check, equal, eventually

BOOT = boot.Boot(kernels=("newest", "6.12"),
                 modules=(*tunnel.MODULES, "8021q", "bonding", "ipvlan", "macvlan", "bridge", "vrf"))

PINGS = 3
OPEN = """
[[policy]]
name = "open"
action = "bypass"
local = "10.1.0.0/24"
remote = "192.0.2.0/24"
"""


def vlan(ns, below, device):
    ns.batch([f"link add link {below} name {device} type vlan id 5", f"link set {device} up"])


def bond(ns, below, device):
    ns.batch([f"link add {device} numrxqueues 2 numtxqueues 2 type bond mode active-backup miimon 100",
              f"link set {below} down", f"link set {below} master {device}",
              f"link set {below} up", f"link set {device} up"])
    eventually(lambda: "LOWER_UP" in ns.sh("ip", "link", "show", device),
               lambda: f"the bond has no link: {ns.sh('ip', 'link')}")


def ipvlan(ns, below, device):
    ns.batch([f"link add link {below} name {device} type ipvlan mode l2", f"link set {device} up"])


def plain(ns, below, device):
    ns.batch([f"link set {below} down", f"link set {below} name {device}", f"link set {device} up"])


def vlan_on_bond(ns, below, device):
    bond(ns, below, "bond0")
    vlan(ns, "bond0", device)


def links(lan, wan):
    """Makes lan0 and wan0 of those kinds. The other ends of VLANs are VLANs too."""
    def far(kind):
        return vlan if kind in (vlan, vlan_on_bond) else plain

    def make(n):
        n.veth("lan:u0 gw:d0", "gw:d1 peer:u1")
        lan(n.gw, "d0", "lan0")
        wan(n.gw, "d1", "wan0")
        far(lan)(n.lan, "u0", "eth0")
        far(wan)(n.peer, "u1", "wanp")
    return make


def delivers(t):
    t.ping(PINGS)
    equal(traffic.ping(t.n.peer, tunnel.FAR, tunnel.HOST, PINGS), PINGS, "pings from the far end")
    equal(traffic.ping(t.n.lan, tunnel.HOST, "192.0.2.2", PINGS), PINGS, "pings by BYPASS")
    drops = t.gw.drops()
    for reason in ("redirect_failed", "steer_failed", "no_frame", "fill_ring_empty"):
        equal(drops[reason], 0, reason)
    for name in ("branch-in", "branch-out"):
        check(t.gw.sa(name)["packets"] >= 2 * PINGS, f"{name}: {t.gw.sa(name)}")


def row(guest, lan, wan):
    t = tunnel.StaticTunnel(guest, lan=OPEN, link=links(lan, wan))
    t.gw.start()
    delivers(t)
    ports = t.gw.ports()
    equal(t.gw.stop(), 0, "exit status")
    return "; ".join(f"{name}: {port['xdp_mode']}, {port['attached_reason']}"
                     for name, port in ports.items())


@BOOT.case("ports: VLAN devices on both sides deliver", seconds=60, everywhere=True)
def vlans(guest):
    return row(guest, vlan, vlan)


@BOOT.case("ports: a VLAN device as the unprotected port beside a native one delivers", seconds=60)
def vlan_outside(guest):
    return row(guest, plain, vlan)


@BOOT.case("ports: bonds on both sides deliver", seconds=60, everywhere=True)
def bonds(guest):
    return row(guest, bond, bond)


@BOOT.case("ports: a VLAN device on a bond as the protected port delivers", seconds=60)
def vlan_above_bond(guest):
    return row(guest, vlan_on_bond, bond)


def refused(guest, words, made=(), wan="", link=None):
    t = tunnel.StaticTunnel(guest, lan=OPEN, wan=wan, link=link)
    if made:
        t.n.gw.batch(made)
    try:
        t.gw.start()
        raise AssertionError(f"it started: {t.gw.log()}")
    except daemon.DaemonFailed as e:
        for each in words:
            check(each in str(e), f"it does not say '{each}': {e}")


@BOOT.case("ports: native XDP on a bond is refused in words", seconds=60, everywhere=True)
def native_bond(guest):
    refused(guest, ("runs on the devices in it", 'Write xdp_mode = "auto"'),
            wan='xdp_mode = "native"', link=links(plain, bond))


@BOOT.case("ports: an ipvlan device is refused in words", seconds=60)
def on_ipvlan(guest):
    refused(guest, ("gets only packets for its own addresses", "macvlan"), link=links(ipvlan, plain))


@BOOT.case("ports: a device in a VRF is refused in words", seconds=60)
def in_vrf(guest):
    refused(guest, ("is in a VRF", "nomaster"),
            ["link add blue type vrf table 10", "link set blue up", "link set lan0 master blue"])


@BOOT.case("ports: a device in a bond is refused in words", seconds=60)
def in_bond(guest):
    refused(guest, ("belongs to a bond", "nomaster"),
            ["link add bond0 type bond mode active-backup", "link set wan0 down",
             "link set wan0 master bond0", "link set wan0 up"])
