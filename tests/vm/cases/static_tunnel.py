# SPDX-License-Identifier: Apache-2.0
"""sallyportd on a stock kernel, static SAs, against that kernel's own ESP in another namespace."""

import time

from inside import boot, capture, tunnel
from lab import traffic
from lab.checks import check, equal

# As on hosts with a firewall that asks for connections.
BOOT = boot.Boot(kernels=("newest", "6.12"), modules=(*tunnel.MODULES, "nf_conntrack"))

PINGS = 5


@BOOT.case("static SAs with ESN against the kernel's ESP: pings through the fast path", seconds=60, everywhere=True)
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


@BOOT.case("connection tracking is a module of the kernel: a port that asks for connections",
           seconds=60, everywhere=True)
def connections(guest):
    t = tunnel.StaticTunnel(guest, lan='conntrack_in = "drop"\nconntrack_out = "drop"')
    t.gw.start()
    equal(traffic.ping(t.n.lan, tunnel.HOST, tunnel.FAR, 2), 0, "pings without a connection")
    equal(t.gw.drops()["not_established"], 2, "drops as not_established")
    equal(t.gw.stop(), 0, "exit status of sallyportd")


@BOOT.case("the clock jumps by days, forwards and back: tunnels go on, and after a restart no number is used again",
           seconds=120)
def clock_jumps(guest):
    t = tunnel.StaticTunnel(guest, esn=True)
    began = time.time() - time.monotonic()

    def jump(days):
        time.clock_settime(time.CLOCK_REALTIME, time.monotonic() + began + days * 86400)

    with capture.Capture(guest, t.n.peer, "wanp", "proto 50") as ciphertext:
        try:
            t.gw.start()
            t.ping(PINGS)
            for days in (1, -1, 400, 0):
                jump(days)
                t.ping(PINGS)
                equal(t.gw.show("status")["degraded"], [], f"DEGRADED, {days} days away")
                equal(t.gw.stop(), 0, "exit status of sallyportd")
                t.gw.start()
                t.ping(PINGS)
                jump(days - 2)  # while it runs
                t.ping(PINGS)
                equal([row["name"] for row in t.gw.show("sa") if row["state"] != "active"], [],
                      f"SAs that stand still, {days} days away")
        finally:
            jump(0)
        equal(t.gw.stop(), 0, "exit status of sallyportd")
        esp = ciphertext.esp()
    equal(t.n.peer.xfrm_statistics(), {}, "what the peer's kernel refused")
    sent = [row for row in esp if row[0] == t.pair.spi_out]
    check(len(sent) >= 13 * PINGS, f"only {len(sent)} ESP packets captured")
    equal(len({row[1] for row in sent}), len(sent), "sequence numbers, each once")
