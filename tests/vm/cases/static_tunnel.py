# SPDX-License-Identifier: Apache-2.0
"""sallyportd on a stock kernel, static SAs, against that kernel's own ESP in another namespace."""

from inside import boot, tunnel
from lab import traffic
from lab.checks import check, equal

# As on hosts with a firewall that asks for connections.
BOOT = boot.Boot(kernels=("newest", "6.12"), modules=(*tunnel.MODULES, "nf_conntrack"))

PINGS = 5


@BOOT.case("static SAs with ESN against the kernel's ESP: pings through the fast path", seconds=60)
def pings(guest):
    t = tunnel.StaticTunnel(guest, esn=True)
    t.gw.start()
    t.ping(PINGS)
    for name in ("branch-in", "branch-out"):
        packets = t.gw.sa(name)["packets"]
        check(packets >= PINGS, f"{name}: only {packets} packets went through the workers")
    equal(t.n.peer.xfrm_statistics(), {}, "what the peer's kernel refused")
    t.check_registered()
    guest.note("; ".join(line.removeprefix("info: ") for line in t.gw.log().splitlines()
                         if "XDP" in line))
    equal(t.gw.stop(), 0, "exit status of sallyportd")


@BOOT.case("connection tracking is a module of the kernel: a port that asks for connections", seconds=60)
def connections(guest):
    t = tunnel.StaticTunnel(guest, lan='conntrack_in = "drop"\nconntrack_out = "drop"')
    t.gw.start()
    equal(traffic.ping(t.n.lan, tunnel.HOST, tunnel.FAR, 2), 0, "pings without a connection")
    equal(t.gw.drops()["not_established"], 2, "drops as not_established")
    equal(t.gw.stop(), 0, "exit status of sallyportd")
