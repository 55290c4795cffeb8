# SPDX-License-Identifier: Apache-2.0
"""What is lost after a program or a worker has let it go is counted, too."""

import contextlib
import ctypes
import os
import socket
import struct

from cases.closed import host_forwarding
from lab import netns, scapy_peer, wire
from lab.runner import case, check, equal, eventually


@contextlib.contextmanager
def forward_chain_that_drops(gw):
    gw.sh("nft", "add table inet sallyport_lab")
    gw.sh("nft", "add chain inet sallyport_lab forward { type filter hook forward priority 0; policy drop; }")
    try:
        yield
    finally:
        gw.sh("nft", "delete table inet sallyport_lab")


def lost(gateway, reason):
    """(in all, by the kernel's own reason) of a drop reason."""
    row = next(d for d in gateway.show("drops") if d["reason"] == reason)
    return row["count"], row["kernel"]


def sent_by_lan(lab, count, source, destination, payload):
    with wire.Wire(lab.lan, "eth0") as lan:
        frame = wire.ethernet(lab.gw.mac("lan0"), lab.lan.mac("eth0"),
                              bytes(scapy_peer.udp(source, destination, payload=payload)))
        for _ in range(count):
            lan.send(frame)


def kernel_drops(bench, **options):
    lab = bench.lab
    gateway = bench.gateway(fresh=True, **options)
    with host_forwarding(lab, 1), forward_chain_that_drops(lab.gw):
        # The kernel has to cut these in pieces, and its firewall forbids it to forward them.
        lab.gw.ip("route add 192.0.2.2/32 dev wan0 mtu lock 1000")
        try:
            sent_by_lan(lab, 25, "10.1.0.2", "192.0.2.2", bytes(1200))
            def by_the_firewall():
                return lost(gateway, "lost_in_kernel")[1].get("netfilter_drop", 0)

            eventually(lambda: by_the_firewall() == 25, lambda: f"lost: {lost(gateway, 'lost_in_kernel')}")
            check("netfilter_drop: " in gateway.table("drops"), gateway.table("drops"))
            # What a program of ours drops has its own reason, also where the kernel had a packet of it.
            discarded = gateway.drops()["policy_discard"]
            sent_by_lan(lab, 25, "10.1.0.2", "10.9.0.2", bytes(100))
            eventually(lambda: gateway.drops()["policy_discard"] == discarded + 25,
                       lambda: f"policy_discard: {gateway.drops()['policy_discard']}, before {discarded}")
            equal(by_the_firewall(), 25, "by the firewall after what a program dropped")
        finally:
            lab.gw.ip("route del 192.0.2.2/32 dev wan0 mtu lock 1000")


@case("dropped as lost_in_kernel: a firewall drops what was passed to the kernel, native and generic", seconds=90)
def lost_in_kernel(bench):
    kernel_drops(bench)
    kernel_drops(bench, xdp_mode="generic")


@case("dropped as lost_in_kernel: IPv6 neighbours that do not answer, native and generic", seconds=90)
def unanswered_neighbours(bench):
    """The kernel gives no reason for these, as for what a generic program drops."""
    lab = bench.lab
    open6 = ({"name": "open6", "action": "bypass", "local": "fd01::/16", "remote": "2001:db8::/64"},)
    for mode in ("auto", "generic"):
        gateway = bench.gateway(fresh=True, xdp_mode=mode, policies=open6)
        with host_forwarding(lab, 1):
            sent_by_lan(lab, 30, "fd01:0:0:3::2", "2001:db8::dead", bytes(100))
            eventually(lambda: lost(gateway, "lost_in_kernel")[0] == 30,
                       lambda: f"{mode}: {lost(gateway, 'lost_in_kernel')} of 30", 30)
            # Of the generic program itself it is none.
            discarded = gateway.drops()["policy_discard"]
            sent_by_lan(lab, 25, "10.1.0.2", "10.9.0.2", bytes(100))
            eventually(lambda: gateway.drops()["policy_discard"] == discarded + 25,
                       lambda: f"policy_discard: {gateway.drops()['policy_discard']}, before {discarded}")
            equal(lost(gateway, "lost_in_kernel")[0], 30, f"{mode}: after what a program dropped")


@case("dropped as lost_in_device: direct egress sends what the device does not take", seconds=60)
def lost_in_device(bench):
    refused_by_the_device(bench)
    refused_by_the_device(bench, xdp_mode="generic")


def refused_by_the_device(bench, **options):
    lab = bench.lab
    gateway = bench.gateway(fresh=True, egress="direct", **options)
    with host_forwarding(lab, 1):
        before = lost(gateway, "lost_in_device")[0]
        sent = gateway.sa("plain-out")["packets"]
        lab.peer_ns.ip("link set wanp mtu 1000")  # the far end of the line takes no more, and tells nobody
        try:
            sent_by_lan(lab, 25, "10.1.0.2", "10.2.0.2", bytes(1200))
            eventually(lambda: gateway.sa("plain-out")["packets"] == sent + 25,
                       lambda: f"packets of the SA: {gateway.sa('plain-out')['packets']}, before {sent}")
            eventually(lambda: lost(gateway, "lost_in_device")[0] - before == 25,
                       lambda: f"lost_in_device: {lost(gateway, 'lost_in_device')}, before {before}; "
                       f"drops: {[d for d in gateway.show('drops') if d['count']]}")
        finally:
            lab.peer_ns.ip("link set wanp mtu 1500")


def slept_through(bench, **options):
    """What was sent while sallyportd stood still: each frame is on the wire afterwards, or counted."""
    lab = bench.lab
    gateway = bench.gateway(fresh=True, **options)
    count = 6000
    reasons = ("rx_ring_full", "fill_ring_empty", "no_frame")
    with host_forwarding(lab, 1):
        before = gateway.drops()
        sent = gateway.sa("plain-out")["packets"]
        with gateway.paused():
            sent_by_lan(lab, count, "10.1.0.2", "10.2.0.2", bytes(100))

        def accounted():
            now = gateway.drops()
            drops = {reason: now[reason] - before[reason] for reason in reasons}
            return gateway.sa("plain-out")["packets"] - sent, drops

        eventually(lambda: (got := accounted())[0] + sum(got[1].values()) == count,
                   lambda: f"{accounted()} of {count}")
        packets, drops = accounted()
        check(drops["rx_ring_full"] or drops["fill_ring_empty"], f"nothing was lost: {packets} of {count}")
        equal(drops["no_frame"], 0, "no_frame, and thousands of frames are free")
        return f"{options}: of {count} frames {packets} encrypted, {drops}"


@case("dropped as rx_ring_full or fill_ring_empty: workers that stand still, each frame counted once", seconds=90)
def workers_that_stand_still(bench):
    return "\n# ".join([slept_through(bench), slept_through(bench, xdp_mode="generic")])


class FarEnd:
    """Counts at the peer's end of the line, by the kernel's own statistics of a packet socket that nobody reads.

    IPv4 of one protocol and two lengths: hosts of earlier cases may still have something to say.
    """

    STATISTICS = 6  # PACKET_STATISTICS: (packets that the filter let in, of those not kept); reading it clears it

    def __init__(self, lab, protocol, lengths):
        # ldh [12]; jeq 0x0800; ldb [23]; jeq PROTOCOL; ldh [16]; jeq either length; ret all, ret none
        code = [(0x28, 0, 0, 12), (0x15, 0, 6, 0x0800), (0x30, 0, 0, 23), (0x15, 0, 4, protocol),
                (0x28, 0, 0, 16), (0x15, 1, 0, lengths[0]), (0x15, 0, 1, lengths[1]),
                (0x06, 0, 0, 0x40000), (0x06, 0, 0, 0)]
        program = b"".join(struct.pack("HBBI", *each) for each in code)
        self._program = ctypes.create_string_buffer(program)
        self._socket = lab.peer_ns.packet_socket("wanp")
        self._socket.setsockopt(socket.SOL_SOCKET, 26, struct.pack(  # SO_ATTACH_FILTER
            "HL", len(code), ctypes.addressof(self._program)))
        self._total = 0
        self.read()
        self._total = 0

    def read(self):
        packets, _ = struct.unpack("II", self._socket.getsockopt(wire.SOL_PACKET, self.STATISTICS, 8))
        self._total += packets
        return self._total

    def close(self):
        self._socket.close()


def udp_bytes(payload):
    return 20 + 8 + payload


def esp_bytes(payload):
    """The outer packet: AES-GCM with 8 bytes of IV and 16 of ICV, padded to four."""
    return 20 + 8 + 8 + (udp_bytes(payload) + 2 + 3) // 4 * 4 + 16


# Frames of the case in all; SALLYPORT_FRAMES=1000000 for a long look.
FRAMES = int(os.environ.get("SALLYPORT_FRAMES", "120000"))


def conserved(bench, **options):
    """Each frame that enters by lan0 is on the wire behind wan0 or counted as a drop, whatever fails there."""
    lab = bench.lab
    gateway = bench.gateway(fresh=True, **options)
    peer = lab.peer_ns
    phases = [("all well", None, None),
              ("the far end takes nothing (no GRO)", lambda: netns.offloads_off(peer, "wanp", gro=False),
               lambda: netns.offloads_off(peer, "wanp")),
              ("the far end takes small frames alone", lambda: peer.ip("link set wanp mtu 400"),
               lambda: peer.ip("link set wanp mtu 1500")),
              ("the far end is down", lambda: peer.ip("link set wanp down"), lambda: peer.ip("link set wanp up")),
              ("the kernel forwards nothing", None, None)]
    kinds = [("10.1.0.2", "10.2.0.2", 100), ("10.1.0.2", "10.2.0.2", 1000),      # PROTECT
             ("10.1.0.2", "192.0.2.2", 100), ("10.1.0.2", "192.0.2.2", 1300),    # BYPASS; the kernel cuts the large ones
             ("10.1.0.2", "10.9.0.2", 100), ("10.1.0.2", "198.51.100.7", 100)]   # DISCARD, no policy
    notes = []
    with host_forwarding(lab, 1), contextlib.ExitStack() as stack:
        esp, udp = (stack.enter_context(contextlib.closing(FarEnd(lab, protocol, lengths)))
                    for protocol, lengths in ((50, (esp_bytes(100), esp_bytes(1000))),
                                              (17, (udp_bytes(100), udp_bytes(1300)))))
        lan = stack.enter_context(wire.Wire(lab.lan, "eth0"))
        frames = [wire.ethernet(lab.gw.mac("lan0"), lab.lan.mac("eth0"),
                                bytes(scapy_peer.udp(a, b, payload=bytes(size)))) for a, b, size in kinds]
        for what, begin, end in phases:
            if what == "the kernel forwards nothing":
                stack.enter_context(forward_chain_that_drops(lab.gw))
                lab.gw.ip("route add 192.0.2.2/32 dev wan0 mtu lock 1000")
                stack.callback(lab.gw.ip, "route del 192.0.2.2/32 dev wan0 mtu lock 1000")
            if begin:
                begin()
            before = gateway.drops()
            arrived = esp.read() + udp.read()
            sent = 0
            for _ in range(FRAMES // len(phases) // len(frames)):
                for frame in frames:
                    with contextlib.suppress(OSError):  # the line is full: not sent
                        lan.send(frame)
                        sent += 1

            def accounted():
                now = gateway.drops()
                drops = {r: n - before[r] for r, n in now.items() if n > before[r] and r != "kernel_multicast"}
                return esp.read() + udp.read() - arrived, drops

            eventually(lambda: (got := accounted())[0] + sum(got[1].values()) == sent,
                       lambda: f"{options}: {what}: arrived and dropped {accounted()} of {sent}")
            notes.append(f"{what}: {sent} = {accounted()[0]} on the wire + {accounted()[1]}")
            if end:
                end()
                eventually(lambda: "LOWER_UP" in lab.gw.ip("link show wan0"), "no carrier", 20)
    return f"{options}: " + "; ".join(notes)


@case("conservation: each frame is on the wire at the far end or counted, while the way out fails", seconds=600)
def conservation(bench):
    bench.stop_gateway()
    bench.lab.drop_peer()  # the line behind wan0 goes down
    return "\n# ".join([conserved(bench), conserved(bench, egress="direct"), conserved(bench, xdp_mode="generic"),
                         conserved(bench, egress="direct", xdp_mode="generic")])
