# SPDX-License-Identifier: Apache-2.0
"""A gateway that follows xfrm: its SAs and policies are the kernel's, put there by `ip xfrm`.

The network is that of tunnel.py; both ends have kernel states, and sallyportd takes gw's over.
"""

from lab import traffic
from lab.checks import check, equal, eventually

from . import gateway, kernel_esp, net, tunnel

MODULES = (*tunnel.MODULES, "cbc", "authenc")
HOST, FAR = tunnel.HOST, tunnel.FAR
NEAR_END, FAR_END = "192.0.2.1", "192.0.2.2"


def state_line(src, dst, spi, reqid, key, esn=False, extra=""):
    flags = "flag af-unspec" + (" flag esn" if esn else "")
    return (f"xfrm state add src {src} dst {dst} proto esp spi {spi:#x} reqid {reqid:#x} mode tunnel"
            f" replay-window 64 {flags} aead rfc4106(gcm(aes)) 0x{key.hex()} 128 {extra}")


def policy_lines(local, remote, near, far, reqid_in, reqid_out, verb="add"):
    lines = []
    for direction, src, dst, a, b, reqid in (("out", local, remote, near, far, reqid_out),
                                             ("in", remote, local, far, near, reqid_in),
                                             ("fwd", remote, local, far, near, reqid_in)):
        lines.append(f"xfrm policy {verb} src {src} dst {dst} dir {direction}" +
                     (f" tmpl src {a} dst {b} proto esp reqid {reqid:#x} mode tunnel"
                      if verb == "add" else ""))
    return lines


class RegisterTunnel:
    """n: the namespaces; pair: keys and SPIs; gw: sallyportd, not started. No states in gw yet."""

    def __init__(self, guest, esn=False, reqid=1, more=""):
        self.guest, self.reqid = guest, reqid
        self.n = n = net.Net(guest, "lan", "gw", "peer")
        n.veth("lan:eth0 gw:lan0")
        n.veth("gw:wan0 peer:wanp")
        n.lan.batch(f"addr add {HOST}/24 dev eth0\nroute add default via 10.1.0.1\n"
                    "link set eth0 mtu 1400")
        n.gw.batch(f"addr add 10.1.0.1/24 dev lan0\naddr add {NEAR_END}/24 dev wan0\n"
                   f"route add default via {FAR_END}")
        self.pair = kernel_esp.Pair("branch", "10.1.0.0/24", "10.2.0.0/24", NEAR_END, FAR_END,
                                    esn=esn)
        n.peer.batch([f"addr add {FAR_END}/24 dev wanp", f"addr add {FAR}/32 dev lo",
                      f"route add 10.1.0.0/24 via {NEAR_END} src {FAR}", *self.pair.peer_lines()])
        n.gw.sysctl("net.ipv4.ip_forward", 1)
        self.gw = gateway.Gateway(
            guest, n.gw, lambda folder: gateway.head(folder) + more +
            tunnel.PORTS.format(wan="", lan=""))

    def states(self, extra=""):
        p = self.pair
        self.n.gw.batch([state_line(NEAR_END, FAR_END, p.spi_out, self.reqid, p.key_out, p.esn, extra),
                         state_line(FAR_END, NEAR_END, p.spi_in, self.reqid, p.key_in, p.esn)])

    def policies(self, verb="add"):
        self.n.gw.batch(policy_lines(self.pair.local, self.pair.remote, NEAR_END, FAR_END,
                                     self.reqid, self.reqid, verb))

    def ping(self, count=5):
        equal(traffic.ping(self.n.lan, HOST, FAR, count), count, "pings answered")

    def rows(self):
        """show sa, by direction; of several the last."""
        return {row["direction"]: row for row in self.gw.show("sa")}

    def until_active(self, seconds=20):
        def all_active():
            rows = self.gw.show("sa")
            return len(rows) >= 2 and all(row["state"] == "active" for row in rows)
        eventually(all_active, "the SAs are not both taken over", seconds)

    def kernel_counters(self):
        """[(spi, packets)] as `ip -s xfrm state` has them."""
        spi, out = None, {}
        lines = iter(self.n.gw.sh("ip", "-s", "xfrm", "state").splitlines())
        for line in lines:
            words = line.replace("(", " ").replace(")", " ").split()
            if "spi" in words:
                spi = int(words[words.index("spi") + 1], 16)
            if line.strip() == "lifetime current:":
                out[spi] = int(next(lines).replace(",", " ").split()[1].split("(")[0])
        return out

    def checked_counters(self, least):
        for direction, spi in (("inbound", self.pair.spi_in), ("outbound", self.pair.spi_out)):
            packets = self.rows()[direction]["packets"]
            check(packets >= least, f"{direction}: only {packets} packets")
            eventually(lambda spi=spi, direction=direction:
                       self.kernel_counters().get(spi) == self.rows()[direction]["packets"],
                       f"the kernel's packet counter of the {direction} SA is behind", 10)
