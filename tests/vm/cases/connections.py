# SPDX-License-Identifier: Apache-2.0
"""IPsec connections that stay with the kernel, chosen by sallyportd's policies: one xfrm interface,
two tunnels with the same inner address behind them (inside/connections.py has the picture)."""

from inside import boot, capture, connections
from inside.connections import FAR, FAR6, FIRST, FIRST6, PORT_OF_B, SECOND, SECOND6
from lab import traffic
from lab.checks import check, equal, eventually

BOOT = boot.Boot(kernels=("newest", "6.12"), modules=connections.MODULES)

MTU = 1500 - 77  # of ipsec0: what sallyportd leaves for the tunnel


def started(guest):
    w = connections.World(guest)
    w.gw.start()
    w.route()
    return w


def counted(w, if_id):
    c = w.connection(if_id)
    return c["out_packets"], c["in_packets"], c["in_dropped"]


@BOOT.case("connections: traffic goes where the policies say, both ways, and nowhere else",
           seconds=200, everywhere=True)
def both_ways(guest):
    w = started(guest)
    with capture.Capture(guest, w.n.a, "eth0", "proto 50 and host 192.0.2.2") as of_a, \
            capture.Capture(guest, w.n.b, "eth0", "proto 50") as of_b:
        w.ping(FIRST, FAR)
        equal((counted(w, 1), counted(w, 2)), ((3, 3, 0), (0, 0, 0)), "packets of 1 and 2")
        w.ping(SECOND, FAR)
        w.ping(SECOND, FAR)
        equal((counted(w, 1), counted(w, 2)), ((3, 3, 0), (6, 6, 0)), "packets of 1 and 2")
    equal((len(of_a.esp()), len(of_b.esp())), (6, 12), "ESP frames of a and b")
    w.ping(FIRST6, FAR6)
    w.ping(SECOND6, FAR6)
    equal((counted(w, 1), counted(w, 2)), ((6, 6, 0), (9, 9, 0)), "packets with IPv6")
    for name, host in (("a", FIRST), ("b", SECOND)):
        equal(traffic.ping(w.n[name], FAR, host, 3), 3, f"pings {name} to {host}")
    equal((counted(w, 1), counted(w, 2)), ((9, 9, 0), (12, 12, 0)), "packets from outside")
    equal(w.gw.drops()["wrong_connection"], 0, "wrong_connection")
    wrong_connection(guest, w)
    guest.note(w.gw.table("connections"))
    equal(w.n.a.xfrm_statistics() | w.n.b.xfrm_statistics(), {}, "what the peers' kernels refused")
    equal(w.gw.stop(), 0, "exit status")
    check("ipsec0" not in w.n.gw.ip("-br link"), "ipsec0 is still there")


def wrong_connection(guest, w):
    """b sends into networks of connection 1, and of none."""
    first, second = counted(w, 1), counted(w, 2)
    with capture.Capture(guest, w.n.host, "eth0", "icmp or icmp6 and ip6[40] >= 128") as seen:
        equal(traffic.ping(w.n.b, FAR, FIRST, 3), 0, "pings of b to a host of connection 1")
        equal(traffic.ping(w.n.b, FAR6, FIRST6, 3), 0, "the same with IPv6")
        w.n.gw.batch("addr add 10.1.3.1/24 dev lan0")
        equal(traffic.ping(w.n.b, FAR, "10.1.3.1", 2), 0, "pings of b to what no policy covers")
    equal([f for _, f in seen.frames() if b"\x0a\x09\x00\x01" in f], [], "frames of b at the host")
    equal((counted(w, 1), counted(w, 2)), (first, (second[0], second[1], second[2] + 8)),
          "packets of 1 and 2")
    drops = {d["reason"]: d["where"] for d in w.gw.show("drops") if d["count"]}
    equal((drops["wrong_connection"], drops["no_policy"]), ({"port ipsec0": 6}, {"port ipsec0": 2}),
          "drops by reason")


@BOOT.case("connections: by port, large packets, the gateway's own; never in clear", seconds=200)
def ports(guest):
    w = started(guest)
    for port in (80, PORT_OF_B):
        w.serve(port)
    asked = {(source, port): w.ask(source, port, b"x" * 4000)
             for source in (FIRST, SECOND) for port in (80, PORT_OF_B)}
    equal(asked, {(FIRST, 80): "a", (FIRST, PORT_OF_B): "b",
                  (SECOND, 80): "b", (SECOND, PORT_OF_B): "b"}, "who answered")
    equal(traffic.ping(w.n.host, FIRST, FAR, 2, size=MTU - 28), 2, f"pings of {MTU} bytes")
    equal(traffic.ping(w.n.gw, "10.1.1.1", FAR, 3), 3, "pings of the gateway itself to a")
    equal(traffic.ping(w.n.gw, "10.1.2.1", FAR, 3), 3, "pings of the gateway itself to b")
    dropped = {reason: count for reason, count in w.gw.drops().items() if count}
    equal(dropped.keys() - {"kernel_multicast", "lost_in_kernel"}, set(), f"drops: {dropped}")
    # The kernel has told the sender of a segment that does not fit the tunnel.
    by_kernel = {reason for drop in w.gw.show("drops") for reason in drop["kernel"]}
    equal(by_kernel - {"pkt_too_big"}, set(), f"drops: {w.gw.show('drops')}")
    never_in_clear(guest, w)
    equal(w.gw.stop(), 0, "exit status")


def never_in_clear(guest, w):
    """Without the route into the interface, and without the interface. What goes through the tunnel
    must not be captured at a: its kernel shows there what it has decrypted, too."""
    with capture.Capture(guest, w.n.a, "eth0", "icmp") as seen:
        w.n.gw.batch("route replace 10.9.0.0/24 via 192.0.2.2")
        w.ping(FIRST, FAR, wanted=0)
        equal(w.gw.drops()["protect_in_clear"], 3, "protect_in_clear")
        traffic.ping(w.n.gw, "10.1.1.1", FAR, 2)  # past XDP, by the kernel's own path
        w.n.gw.batch("route del 10.9.0.0/24")
        w.ping(FIRST, FAR, wanted=0)
        equal(w.gw.drops()["no_route"], 3, "no_route")
        equal(traffic.ping(w.n.gw, "192.0.2.1", "192.0.2.2", 1), 1, "a ping that may pass")
    check(len(seen.frames()) == 2, f"ICMP in clear at a, without the route: {seen.frames()}")
    w.route()
    w.ping(FIRST, FAR)
    with capture.Capture(guest, w.n.a, "eth0", "icmp") as seen:
        w.n.gw.batch("link del ipsec0\nroute add default via 192.0.2.2")
        w.ping(FIRST, FAR, wanted=0)
    equal(seen.frames(), [], "ICMP in clear at a, without the interface")
    blocked = w.n.gw.xfrm_statistics().get("XfrmOutPolBlock", 0)
    check(blocked >= 2, f"the guard blocked {blocked} packets of the gateway")
    equal(w.gw.drops()["protect_in_clear"], 6, "protect_in_clear")


@BOOT.case("connections: SIGKILL stops nothing, a restart takes the interface over", seconds=300)
def killed(guest):
    w = started(guest)
    w.ping(FIRST, FAR)
    w.gw.kill()
    w.ping(FIRST, FAR)
    w.ping(SECOND6, FAR6)
    equal(traffic.ping(w.n.b, FAR, FIRST, 2), 0, "pings through the wrong one, without a daemon")
    w.gw.start()
    check("took over the xfrm interface ipsec0" in w.gw.log(), "not taken over")
    check("ipsec0: replaced the programs of a killed run" in w.gw.log(), "programs not replaced")
    w.ping(FIRST, FAR)
    w.ping(SECOND, FAR)
    equal((counted(w, 1), counted(w, 2)), ((3, 3, 0), (3, 3, 0)), "packets of 1 and 2, once each")
    # What others take off the interface is back, and said.
    for way in ("ingress", "egress"):
        since = len(w.gw.log())
        w.n.gw.sh("tc", "filter", "del", "dev", "ipsec0", way)
        eventually(lambda since=since: "mended: ipsec0: our program was removed" in w.gw.log()[since:],
                   lambda since=since: f"nothing is mended: {w.gw.log()[since:]}", 30)
    w.ping(FIRST, FAR)
    equal(counted(w, 1), (6, 6, 0), "packets of 1, once each")
    equal(w.gw.stop(), 0, "exit status")
    check("ipsec0" not in w.n.gw.ip("-br link"), "ipsec0 is still there")
    # The operator's own interface stays, with nothing of ours on it.
    w.n.gw.batch("link add ipsec0 type xfrm external")
    w.gw.start()
    w.route()
    w.ping(FIRST, FAR)
    equal(w.gw.stop(), 0, "exit status")
    check("ipsec0" in w.n.gw.ip("-br link"), "the operator's ipsec0 is gone")
    left = w.n.gw.sh("tc", "filter", "show", "dev", "ipsec0", "egress")
    check("interface_" not in left, f"left: {left}")
