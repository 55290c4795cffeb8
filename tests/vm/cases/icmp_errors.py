# SPDX-License-Identifier: Apache-2.0
"""What the kernel says about decrypted packets does not leave in clear, with policies of xfrm that
do not say so themselves (`flag icmp`).

The protected networks are behind a router, so that the gateway has no address in them:

    10.5.0.2 (lo) lan 10.1.0.2 --- 10.1.0.1 gw 192.0.2.1 --- 192.0.2.2 peer 10.2.0.2 (lo)
"""

import socket

from inside import boot, capture, register, tunnel
from lab import traffic
from lab.checks import check, equal, eventually

BOOT = boot.Boot(kernels=("newest", "6.12"), modules=register.MODULES)

MARK = b"sallyport plaintext "
FAR, FAR6 = register.FAR, "fd02:0:0:1::2"
HOST, HOST6 = "10.5.0.2", "fd05:0:0:1::2"
ABSENT, ABSENT6 = "10.5.1.2", "fd05:0:0:2::2"      # behind a router that is not there
LOCAL, REMOTE = "10.5.0.0/16", "10.2.0.0/24"
LOCAL6, REMOTE6 = "fd05::/32", "fd02:0:0:1::/64"
NEAR6, PEER6 = "2001:db8::1", "2001:db8::2"
LAN_MTU = 1300
OPEN = """
[[policy]]
name = "open"
action = "bypass"
local = "192.0.2.1/32"
remote = "192.0.2.2/32"
"""


class World(register.RegisterTunnel):
    """Its tunnel carries IPv6 too, and the LAN takes smaller packets than the tunnel."""

    def __init__(self, guest):
        super().__init__(guest, more=OPEN)
        n = self.n
        n.lan.batch(f"addr add fd01::2/64 dev eth0\naddr add {HOST}/32 dev lo\n"
                    f"addr add {HOST6}/128 dev lo\nroute add ::/0 via fd01::1")
        n.lan.sysctl("net.ipv4.ip_forward", 1)
        n.gw.batch(f"addr add fd01::1/64 dev lan0\nlink set lan0 mtu {LAN_MTU}\n"
                   f"addr add {NEAR6}/64 dev wan0\nroute add {REMOTE6} via {PEER6}\n"
                   f"route add 10.5.0.0/24 via {register.HOST}\nroute add 10.5.1.0/24 via 10.1.0.77\n"
                   "route add fd05:0:0:1::/64 via fd01::2\nroute add fd05:0:0:2::/64 via fd01::77")
        p = self.pair
        n.peer.batch([f"addr add {PEER6}/64 dev wanp", f"addr add {FAR6}/128 dev lo",
                      f"route add {LOCAL} via {register.NEAR_END} src {FAR}",
                      f"route add {LOCAL6} via {NEAR6}"] +
                     [line for local, remote in ((LOCAL, REMOTE), (LOCAL6, REMOTE6))
                      for line in register.policy_lines(remote, local, register.FAR_END,
                                                        register.NEAR_END, p.spi_out, p.spi_in)])
        n.gw.sysctl("net.ipv6.conf.all.forwarding", 1)
        for name, value in (("ipv4.icmp_ratelimit", 0), ("ipv6.icmp.ratelimit", 0)):
            n.gw.sysctl("net." + name, value)
        guest.logs["capture at the peer"] = lambda: "\n".join(map(bytes.hex, self.errors()))
        self.wire = capture.Capture(guest, n.peer, "wanp", "icmp or icmp6")

    def policies(self, verb="add"):
        for local, remote in ((LOCAL, REMOTE), (LOCAL6, REMOTE6)):
            self.n.gw.batch(register.policy_lines(local, remote, register.NEAR_END,
                                                  register.FAR_END, self.reqid, self.reqid, verb))

    def ping(self, count=2):
        for host, far in ((HOST, FAR), (HOST6, FAR6)):
            equal(traffic.ping(self.n.lan, host, far, count), count, f"pings of {host} answered")

    def cbc_states(self):
        """At both ends a suite that workers do not have."""
        p = self.pair
        suite = f"enc cbc(aes) 0x{p.key_out[:16].hex()} auth-trunc hmac(sha256) 0x{(p.key_out * 2)[:32].hex()} 128"
        for ns, reqids in ((self.n.peer, (p.spi_out, p.spi_in)), (self.n.gw, (self.reqid,) * 2)):
            ns.batch(["xfrm state flush"] + [
                f"xfrm state add src {a} dst {b} proto esp spi {spi:#x} reqid {reqid:#x} mode tunnel"
                f" replay-window 64 flag af-unspec {suite}"
                for a, b, spi, reqid in
                ((register.NEAR_END, register.FAR_END, p.spi_out, reqids[0]),
                 (register.FAR_END, register.NEAR_END, p.spi_in, reqids[1]))])

    def send(self, source, destination, ttl=64, size=100):
        """A datagram that may not be fragmented, from the peer: into the tunnel, if policies say so."""
        v6 = ":" in destination
        def opened():
            return socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
        with self.n.peer.run_inside(opened) as s:
            s.bind((source, 0))
            if v6:
                s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
            else:
                s.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
                s.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
            s.sendto((MARK * 100)[:size], (destination, 7777))

    def provoke(self):
        """TTL 1, a host that is not there, too large for the LAN; returns when all had their way."""
        for hop in ("10.1.0.77", "fd01::77"):
            self.n.gw.sh("ip", "neigh", "flush", "to", hop, "dev", "lan0", check=False)
        for far, host, absent in ((FAR, HOST, ABSENT), (FAR6, HOST6, ABSENT6)):
            self.send(far, host, ttl=1)
            self.send(far, host, size=LAN_MTU)
            self.send(far, absent)

        def unanswered():
            return self.n.gw.sh("ip", "neigh", "show", "dev", "lan0", "nud", "failed")
        eventually(lambda: "10.1.0.77" in unanswered() and "fd01::77" in unanswered(),
                   lambda: f"neighbours that did not answer: {unanswered()}", 60)

    def said(self):
        """ICMP errors that the gateway's kernel has made, as it counts them itself."""
        rows = [line.split() for line in self.n.gw.read("/proc/net/snmp").splitlines()
                if line.startswith("Icmp:")]
        v4 = dict(zip(rows[0][1:], rows[1][1:]))
        v6 = dict(line.split() for line in self.n.gw.read("/proc/net/snmp6").splitlines())
        names = ("DestUnreachs", "TimeExcds")
        return sum(int(v4["Out" + name]) + int(v6["Icmp6Out" + name]) for name in names) + \
            int(v6["Icmp6OutPktTooBigs"])

    def errors(self):
        """Those that are on the wire in clear."""
        return [f for _, f in self.wire.frames()
                if (f[12:14] == b"\x08\x00" and f[34] in (3, 5, 11, 12))
                or (f[12:14] == b"\x86\xdd" and f[54] < 128)]

    def nothing_leaves(self, what):
        """Of six errors. Behind them comes one that may leave: about what BYPASS covers."""
        before, allowed = self.said(), len(self.errors())
        self.provoke()
        eventually(lambda: self.said() >= before + 6,
                   lambda: f"{what}: {self.said() - before} errors were made", 60)
        self.send(register.FAR_END, register.NEAR_END)
        eventually(lambda: len(self.errors()) > allowed, f"{what}: not even what may leave", 30)
        leaked = [f for f in self.errors() if not may_leave(f)]
        equal([f.hex() for f in leaked], [], f"{what}: errors in clear")

    def dropped(self):
        return self.gw.drops()["error_in_clear"]


def may_leave(frame):
    return frame[42 + 12:42 + 20] == socket.inet_aton(register.FAR_END) + socket.inet_aton(register.NEAR_END)


@BOOT.case("A2 ICMP errors about what workers have decrypted do not leave in clear, nor after a kill",
           seconds=120, everywhere=True)
def of_workers(guest):
    t = World(guest)
    t.states()
    t.policies()
    with t.wire:
        t.gw.start()
        t.until_active()
        t.ping()
        t.nothing_leaves("workers")
        equal(t.dropped(), 6, "error_in_clear")
        t.n.gw.sh("tc", "qdisc", "del", "dev", "wan0", "clsact")
        eventually(lambda: "mended: port wan0: the TC program" in t.gw.log(), "it is not mended", 30)
        t.nothing_leaves("after a repair")
        equal(t.dropped(), 12, "error_in_clear")
        t.gw.kill()
        t.nothing_leaves("after a kill")
        t.gw.start()
        t.until_active()
        t.nothing_leaves("started again")
        equal(t.dropped(), 6, "error_in_clear")
        equal(t.gw.stop(), 0, "exit status of sallyportd")
    left = t.n.gw.sh("tc", "filter", "show", "dev", "wan0", "egress")
    check("kernel_out" not in left, f"left: {left}")


@BOOT.case("A2 nor about what the kernel has decrypted itself", seconds=90)
def of_the_kernel(guest):
    t = World(guest)
    t.cbc_states()
    t.policies()
    with t.wire:
        t.gw.start()
        t.ping()
        equal({row["state"] for row in t.gw.show("sa")}, {"kernel"}, "who serves the SAs")
        t.nothing_leaves("the kernel's SAs")
        equal(t.dropped(), 6, "error_in_clear")
        equal(t.gw.stop(), 0, "exit status of sallyportd")


@BOOT.case("A2 with static SAs the guard's policies stop them already", seconds=60)
def of_static_sas(guest):
    t = tunnel.StaticTunnel(guest)
    t.gw.start()
    t.ping(2)
    with capture.Capture(guest, t.n.peer, "wanp", "icmp[0] = 11") as clear, \
            t.n.peer.run_inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as s:
        s.bind((tunnel.FAR, 0))
        s.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        before = t.n.gw.xfrm_statistics().get("XfrmOutPolBlock", 0)
        s.sendto(MARK, (tunnel.HOST, 7777))
        eventually(lambda: t.n.gw.xfrm_statistics().get("XfrmOutPolBlock", 0) > before,
                   "the guard blocks nothing", 20)
    equal(clear.frames(), [], "errors in clear")
    equal(t.gw.drops()["error_in_clear"], 0, "error_in_clear")
    equal(t.gw.stop(), 0, "exit status of sallyportd")
