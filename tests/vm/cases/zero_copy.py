# SPDX-License-Identifier: Apache-2.0
"""AF_XDP zero-copy on emulated network cards: virtio-net on a tap with two queues, and igb.

        gw wan0: virtio-net (zero-copy) --- tap, bridge on the host, tap --- virtio-net: wanp peer
        gw lan0: igb        (zero-copy) --- a hub in QEMU ---------------- virtio-net: eth0 lan

The cards of peer and lan are virtio-net without `iommu_platform`: their driver knows zero-copy, but
has no memory of its own to map for it, and refuses.
"""

import time

from inside import boot, packets, tunnel
from lab import checks, daemon, netns, traffic, wire
from lab.checks import check, equal, eventually

WAN, LAN, PEER, HOST = (f"52:54:00:5a:11:0{i}" for i in range(1, 5))


def card(number, model, netdev, mac):
    return ["-device", f"pcie-root-port,id=p{number},chassis={number}",
            "-device", f"{model},netdev={netdev},mac={mac},bus=p{number},romfile="]


# The bridge hands frames on as they are: checksums have to be whole.
PLAIN = "virtio-net-pci,csum=off,gso=off,guest_csum=off,guest_tso4=off,guest_tso6=off"
DEVICES = [
    "-netdev", "tap,id=wan,ifname=vmwan,script=no,downscript=no,queues=2",
    *card(1, f"{PLAIN},mq=on,vectors=6,iommu_platform=on,disable-legacy=on", "wan", WAN),
    "-netdev", "hubport,id=lan,hubid=1", *card(2, "igb", "lan", LAN),
    "-netdev", "tap,id=peer,ifname=vmpeer,script=no,downscript=no",
    *card(3, PLAIN, "peer", PEER),
    "-netdev", "hubport,id=host,hubid=1", *card(4, PLAIN, "host", HOST),
]


def network(_guest):
    """On the host: two taps and a bridge between them, in the enclosure's namespace."""
    try:
        netns.sh("ip", "link", "show", "vmbr")
        return
    except netns.CommandFailed:
        pass
    for words in ("link add vmbr type bridge", "tuntap add dev vmwan mode tap multi_queue",
                  "tuntap add dev vmpeer mode tap"):
        try:
            netns.sh("ip", *words.split())
        except netns.CommandFailed as e:
            raise checks.Skip(f"this host cannot join two taps: {e}") from None
    for device in ("vmbr", "vmwan", "vmpeer"):
        netns.sh("sysctl", "-qw", f"net.ipv6.conf.{device}.disable_ipv6=1")
        if device != "vmbr":
            netns.sh("ip", "link", "set", device, "master", "vmbr")
        netns.sh("ip", "link", "set", device, "up")


BOOT = boot.Boot(kernels=("newest",), devices=DEVICES, network=network,
                 modules=(*tunnel.MODULES, "virtio_net", "igb"))


def cards(n):
    n.card(WAN, "gw", "wan0")
    n.card(LAN, "gw", "lan0")
    n.card(PEER, "peer", "wanp")
    n.card(HOST, "lan", "eth0")


def wait_for_carrier(t):
    """igb takes its link down for seconds when an XDP program comes."""
    eventually(lambda: traffic.ping(t.n.lan, tunnel.HOST, tunnel.FAR, 1), "no ping passes", 40)


def modes(t):
    return {name: (port["bind_mode"], port["queues"]) for name, port in t.gw.ports().items()
            if name != "sp0"}


def sources(t, port):
    """How many frames each queue of a port has brought to workers."""
    return [sum(row) for row in t.gw.ports()[port]["steered_by_queue_worker"]]


def send(ns, device, to, frames):
    own = ns.mac(device)
    with ns.packet_socket(device, protocol=0) as s:
        for frame in frames:
            s.send(wire.ethernet(to, own, frame))
            time.sleep(0.02)  # igb's emulation loses frames of bursts


@BOOT.case("zero-copy: chosen on virtio-net and igb, both queues of each bring frames", seconds=90)
def chosen(guest):
    t = tunnel.StaticTunnel(guest, link=cards)
    t.gw.start()
    equal(modes(t), {"wan0": ("zero-copy", 2), "lan0": ("zero-copy", 2)}, "bind modes and queues")
    check("zero-copy" in t.gw.table("ports"), "`show ports` does not say so")
    wait_for_carrier(t)
    t.ping(10)
    # Inbound: the tap spreads flows. Nobody has the key, so all are dropped for a wrong ICV.
    bad = t.gw.drops().get("icv_mismatch", 0)
    frames = [packets.esp(f"198.18.0.{i}", "192.0.2.1", t.pair.spi_in, 1000 + i)
              for i in range(1, 33)]
    send(t.n.peer, "wanp", t.n.gw.mac("wan0"), frames)
    eventually(lambda: t.gw.drops().get("icv_mismatch", 0) == bad + len(frames),
               lambda: f"of {len(frames)} frames came: {t.gw.drops()}")
    # Outbound: igb's own RSS spreads addresses.
    sent = t.gw.sa("branch-out")["packets"]
    frames = [packets.udp(f"10.1.0.{i}", tunnel.FAR, 7000, 9) for i in range(10, 42)]
    send(t.n.lan, "eth0", t.n.gw.mac("lan0"), frames)
    eventually(lambda: t.gw.sa("branch-out")["packets"] >= sent + len(frames),
               lambda: f"of {len(frames)} packets came: {t.gw.sa('branch-out')['packets'] - sent}")
    spread = {port: sources(t, port) for port in ("wan0", "lan0")}
    check(all(min(queues) > 0 for queues in spread.values()), f"frames by queue: {spread}")
    equal(t.n.peer.xfrm_statistics(), {}, "what the peer's kernel refused")
    equal(t.gw.stop(), 0, "exit status")
    check("frames are conserved" in t.gw.log(), "frames are not conserved")
    return f"frames by queue: {spread}"


@BOOT.case("zero-copy: a driver that refuses is copied from, beside a port with zero-copy", seconds=90)
def refused(guest):
    def swapped(n):  # the cards of the other ends become the gateway's unprotected side
        n.card(PEER, "gw", "wan0")
        n.card(WAN, "peer", "wanp")
        n.card(LAN, "gw", "lan0")
        n.card(HOST, "lan", "eth0")

    t = tunnel.StaticTunnel(guest, link=swapped)
    t.gw.start()
    equal({name: mode for name, (mode, _) in modes(t).items()},
          {"wan0": "copy", "lan0": "zero-copy"}, "bind modes")
    said = [line for line in t.gw.log().splitlines() if "port wan0" in line and "copy" in line]
    check(said and "refused zero-copy" in said[0], f"the log does not say why: {said}")
    wait_for_carrier(t)
    t.ping(10)
    equal(t.gw.stop(), 0, "exit status")
    with open(t.gw.config, encoding="utf-8") as f:
        text = f.read()
    with open(t.gw.config, "w", encoding="utf-8") as f:
        f.write(text.replace('role = "unprotected"', 'role = "unprotected"\nbind_mode = "zero-copy"'))
    try:
        t.gw.start()
        raise AssertionError("bind_mode = \"zero-copy\" started without zero-copy")
    except daemon.DaemonFailed as e:
        check("wan0" in str(e), str(e))
    return said[0].removeprefix("info: ")


@BOOT.case("zero-copy: direct egress sends from the same memory on both cards", seconds=90)
def direct(guest):
    t = tunnel.StaticTunnel(guest, link=cards, egress="direct")
    t.gw.start()
    equal(modes(t), {"wan0": ("zero-copy", 2), "lan0": ("zero-copy", 2)}, "bind modes and queues")
    wait_for_carrier(t)
    t.ping(20)
    sent = sum(worker["egress_frames"] for worker in t.gw.show("workers"))
    check(sent >= 40, f"frames sent by workers: {sent}")
    equal(t.n.peer.xfrm_statistics(), {}, "what the peer's kernel refused")
    equal(t.gw.stop(), 0, "exit status")
    check("frames are conserved" in t.gw.log(), "frames are not conserved")
    return f"{sent} frames sent"


def takes_tags_out(t, device):
    return "rx-vlan-offload: on" in t.n.gw.sh("ethtool", "-k", device)


@BOOT.case("VLAN: a card leaves tags in frames, and a host in VLAN 5 is not one of the port's network", seconds=90)
def tagged(guest):
    t = tunnel.StaticTunnel(guest, link=cards)
    # The card lets VLANs pass that have a device, or all of them.
    t.n.gw.sh("ethtool", "-K", "lan0", "rx-vlan-filter", "off", check=False)
    t.n.gw.ip("link add link lan0 name lan0.5 type vlan id 5")
    t.n.gw.ip("link set lan0.5 up")
    check(takes_tags_out(t, "lan0"), "igb has to take tags out at first")
    t.gw.start()
    check(not takes_tags_out(t, "lan0"), "the card still takes tags out")
    wait_for_carrier(t)
    passed, sent = t.gw.ports()["lan0"]["passed"], t.gw.sa("branch-out")["packets"]
    plain = [packets.udp(f"10.1.0.{i}", tunnel.FAR, 7000, 9) for i in range(10, 18)]
    with t.n.lan.packet_socket("eth0", protocol=0) as s:
        for packet in plain:
            frame = wire.ethernet(t.n.gw.mac("lan0"), t.n.lan.mac("eth0"), packet)
            s.send(frame[:12] + bytes.fromhex("81000005") + frame[12:])
            time.sleep(0.02)
    eventually(lambda: t.gw.ports()["lan0"]["passed"] >= passed + len(plain),
               lambda: f"tagged frames did not go to the kernel: {t.gw.ports()['lan0']}, {t.gw.sa('branch-out')}")
    send(t.n.lan, "eth0", t.n.gw.mac("lan0"), plain[:1])
    eventually(lambda: t.gw.sa("branch-out")["packets"] > sent, "an untagged packet did not pass")
    equal(t.gw.sa("branch-out")["packets"], sent + 1, "packets that the SA has sent")
    equal(t.gw.stop(), 0, "exit status")
    check(takes_tags_out(t, "lan0"), "the card does not take tags out any more after the end")
    # A run that is killed leaves it switched off, and the end of the next puts it back.
    t.gw.start().kill()
    check(not takes_tags_out(t, "lan0"), "the card takes tags out after kill -9")
    t.gw.start()
    equal(t.gw.stop(), 0, "exit status")
    check(takes_tags_out(t, "lan0"), "the card does not take tags out after kill -9, a start and an end")
