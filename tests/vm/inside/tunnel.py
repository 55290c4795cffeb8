# SPDX-License-Identifier: Apache-2.0
"""The smallest network with a tunnel: sallyportd in gw, the kernel's own ESP in peer.

    lan 10.1.0.2 --- lan0 gw wan0 192.0.2.1 --- 192.0.2.2 wanp peer (10.2.0.2 on its lo)
"""

from lab import traffic
from lab.checks import equal

from . import gateway, kernel_esp, net

MODULES = ("veth", "tun", "xfrm_user", "esp4", "aesni_intel", "seqiv", "echainiv")
HOST, FAR = "10.1.0.2", "10.2.0.2"

PORTS = """
[port.wan0]
role = "unprotected"
{wan}
[port.lan0]
role = "protected"
{lan}
"""


class StaticTunnel:
    """n: the namespaces; pair: keys and SPIs; gw: sallyportd, not started.

    wan, lan: more lines for the ports of the configuration; mtu: of wan0 and its other end.
    link: called with the namespaces to make the links, if these are not to be veth.
    """

    def __init__(self, guest, esn=False, mtu=1500, wan="", lan="", link=None):
        self.n = n = net.Net(guest, "lan", "gw", "peer")
        if link:
            link(n)
        else:
            n.veth("lan:eth0 gw:lan0")
            n.veth("gw:wan0 peer:wanp", mtu=mtu)
        n.lan.batch(f"addr add {HOST}/24 dev eth0\nroute add default via 10.1.0.1\n"
                    "link set eth0 mtu 1400")
        n.gw.batch("addr add 10.1.0.1/24 dev lan0\naddr add 192.0.2.1/24 dev wan0\n"
                   "route add default via 192.0.2.2")
        self.pair = kernel_esp.Pair("branch", "10.1.0.0/24", "10.2.0.0/24", "192.0.2.1",
                                    "192.0.2.2", esn=esn)
        n.peer.batch(["addr add 192.0.2.2/24 dev wanp", f"addr add {FAR}/32 dev lo",
                      f"route add 10.1.0.0/24 via 192.0.2.1 src {FAR}", *self.pair.peer_lines()])
        self.gw = gateway.Gateway(
            guest, n.gw, lambda folder: gateway.head(folder) + self.pair.toml() +
            PORTS.format(wan=wan, lan=lan), accept_keys=["branch-out"])

    def ping(self, count=5):
        equal(traffic.ping(self.n.lan, HOST, FAR, count), count, "pings answered")
