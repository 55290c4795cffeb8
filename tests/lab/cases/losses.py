# SPDX-License-Identifier: Apache-2.0
"""What is lost after a program or a worker has let it go is counted, too."""

import contextlib

from cases.closed import host_forwarding
from lab import scapy_peer, wire
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
            before = lost(gateway, "lost_in_kernel")
            sent_by_lan(lab, 25, "10.1.0.2", "192.0.2.2", bytes(1200))
            eventually(lambda: lost(gateway, "lost_in_kernel")[0] >= before[0] + 25,
                       lambda: f"lost_in_kernel: {lost(gateway, 'lost_in_kernel')}, before {before}")
            count, kernel = lost(gateway, "lost_in_kernel")
            equal(count - before[0], 25, f"lost_in_kernel ({kernel}, before {before[1]})")
            equal(kernel.get("netfilter_drop", 0) - before[1].get("netfilter_drop", 0), 25,
                  f"of these by the firewall; all: {kernel}")
            check("netfilter_drop: " in gateway.table("drops"), gateway.table("drops"))
            # What a program of ours drops has its own reason, also where the kernel had a packet of it.
            discarded = gateway.drops()["policy_discard"]
            sent_by_lan(lab, 25, "10.1.0.2", "10.9.0.2", bytes(100))
            eventually(lambda: gateway.drops()["policy_discard"] == discarded + 25,
                       lambda: f"policy_discard: {gateway.drops()['policy_discard']}, before {discarded}")
            equal(lost(gateway, "lost_in_kernel")[0], count, "lost_in_kernel after what a program dropped")
        finally:
            lab.gw.ip("route del 192.0.2.2/32 dev wan0 mtu lock 1000")


@case("dropped as lost_in_kernel: a firewall drops what was passed to the kernel, native and generic", seconds=90)
def lost_in_kernel(bench):
    kernel_drops(bench)
    kernel_drops(bench, xdp_mode="generic")


@case("dropped as lost_in_device: direct egress sends what the device does not take", seconds=60)
def lost_in_device(bench):
    lab = bench.lab
    gateway = bench.gateway(fresh=True, egress="direct")
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
