# SPDX-License-Identifier: Apache-2.0
"""sallyportd on a stock kernel, static SAs, against that kernel's own ESP in another namespace.

    lan 10.1.0.2 --- lan0 gw wan0 192.0.2.1 --- 192.0.2.2 peer (10.2.0.2 on its lo)
"""

from inside import boot, gateway, kernel_esp, net
from lab import traffic
from lab.checks import check, equal

BOOT = boot.Boot(kernels=("newest", "6.12"),
                 modules=("veth", "tun", "xfrm_user", "esp4", "aesni_intel", "seqiv", "echainiv"))

PINGS = 5


@BOOT.case("static SAs against the kernel's ESP: pings through the fast path", seconds=60)
def pings(guest):
    n = net.Net(guest, "lan", "gw", "peer")
    n.veth("lan:eth0 gw:lan0", "gw:wan0 peer:wanp")
    n.lan.batch("addr add 10.1.0.2/24 dev eth0\nroute add default via 10.1.0.1")
    n.gw.batch("addr add 10.1.0.1/24 dev lan0\naddr add 192.0.2.1/24 dev wan0\n"
               "route add default via 192.0.2.2")
    pair = kernel_esp.Pair("branch", "10.1.0.0/24", "10.2.0.0/24", "192.0.2.1", "192.0.2.2")
    n.peer.batch(["addr add 192.0.2.2/24 dev wanp", "addr add 10.2.0.2/32 dev lo",
                  "route add 10.1.0.0/24 via 192.0.2.1 src 10.2.0.2", *pair.peer_lines()])
    gw = gateway.Gateway(guest, n.gw, lambda folder: gateway.head(folder) + pair.toml() + """
[port.wan0]
role = "unprotected"
[port.lan0]
role = "protected"
""", accept_keys=["branch-out"])
    gw.start()
    equal(traffic.ping(n.lan, "10.1.0.2", "10.2.0.2", PINGS), PINGS, "pings answered")
    sas = {name: gw.sa(name) for name in ("branch-in", "branch-out")}
    for name, sa in sas.items():
        check(sa["packets"] >= PINGS, f"{name}: {sa['packets']} packets went through the workers")
    equal(n.peer.xfrm_statistics(), {}, "what the peer's kernel refused")
    guest.note("; ".join(line.removeprefix("info: ") for line in gw.log().splitlines()
                         if "XDP" in line or "warning" in line))
    equal(gw.stop(), 0, "exit status of sallyportd")
