# SPDX-License-Identifier: Apache-2.0
"""sallyportd on a stock kernel, static SAs, against that kernel's own ESP in another namespace."""

from inside import boot, tunnel
from lab.checks import check, equal

BOOT = boot.Boot(kernels=("newest", "6.12"), modules=tunnel.MODULES)

PINGS = 5


@BOOT.case("static SAs against the kernel's ESP: pings through the fast path", seconds=60)
def pings(guest):
    t = tunnel.StaticTunnel(guest)
    t.gw.start()
    t.ping(PINGS)
    for name in ("branch-in", "branch-out"):
        packets = t.gw.sa(name)["packets"]
        check(packets >= PINGS, f"{name}: only {packets} packets went through the workers")
    equal(t.n.peer.xfrm_statistics(), {}, "what the peer's kernel refused")
    guest.note("; ".join(line.removeprefix("info: ") for line in t.gw.log().splitlines()
                         if "XDP" in line or "warning" in line))
    equal(t.gw.stop(), 0, "exit status of sallyportd")
