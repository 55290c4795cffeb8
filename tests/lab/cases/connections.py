# SPDX-License-Identifier: Apache-2.0
"""Connections that the kernel tracks (conntrack_in, conntrack_out, ct_mark), and bypass_cpus.

A host outside stands behind a third port, net0, with BYPASS between it and the hosts inside:

    lan 10.1.0.2 ---- lan0  gw  net0 ---- out 198.51.100.2
"""

import contextlib
import re
import shutil
import socket
import time

from lab import netns, scapy_peer, traffic, wire
from lab.runner import Skip, case, check, equal, eventually

HERE, OUT = "198.51.100.1", "198.51.100.2"
INSIDE = "10.1.0.2"
OPEN = {"name": "internet", "action": "bypass", "local": "10.1.0.0/16",
        "remote": "198.51.100.0/24"}

# What begins inside may pass, and what answers.
FIREWALL = """
    ct state established,related counter name kept accept
    iifname "lan0" tcp dport 9 drop
    iifname "lan0" counter name begun accept
"""


@contextlib.contextmanager
def outside(bench, rules=FIREWALL, nat="", policies=(OPEN,), lan_keys=None, xdp_mode="auto",
            **outside_keys):
    """(gateway, namespace of the host outside), the kernel's firewall in place."""
    lab = bench.lab
    if not shutil.which("nft"):
        raise Skip("needs nft (package nftables)")
    bench.stop_gateway()
    out = netns.Namespace("out")
    try:
        netns.veth(lab.gw, "net0", out, "eth0")
        netns.offloads_off(lab.gw, "net0")
        netns.offloads_off(out, "eth0")
        lab.gw.ip(f"addr add {HERE}/24 dev net0")
        out.ip(f"addr add {OUT}/24 dev eth0")
        out.ip(f"route add default via {HERE}")
        firewall(lab, rules, nat)
        gateway = bench.gateway(fresh=True, policies=list(policies), lan_keys=lan_keys,
                                outside_keys=outside_keys, xdp_mode=xdp_mode)
        equal(liberal(lab), "1" if asks(outside_keys) or asks(lan_keys or {}) else "0",
              "nf_conntrack_tcp_be_liberal while it runs")
        yield gateway, out
        conserved(gateway)
        bench.stop_gateway()
        equal(liberal(lab), "0", "nf_conntrack_tcp_be_liberal after the end")
    finally:
        bench.stop_gateway()
        lab.gw.sh("nft", "flush", "ruleset", check=False)
        lab.gw.ip("link del net0", check=False)
        out.close()


def asks(keys):
    return "conntrack_in" in keys


def liberal(lab):
    return lab.gw.sh("sysctl", "-n", "net.netfilter.nf_conntrack_tcp_be_liberal").strip()


def firewall(lab, rules, nat):
    nat_chain = f"chain nat {{ type nat hook postrouting priority 100; {nat}; }}" if nat else ""
    lab.gw.sh("nft", "flush", "ruleset")
    lab.gw.sh("nft", f"""table inet lab {{
        counter kept {{ }}
        counter begun {{ }}
        chain forward {{ type filter hook forward priority 0; policy drop; {rules}
        }}
        {nat_chain}
    }}""")


def kernel_saw(lab, counter):
    """Packets that passed this rule of the kernel's firewall."""
    listed = lab.gw.sh("nft", "list", "counter", "inet", "lab", counter)
    return int(re.search(r"packets (\d+)", listed).group(1))


def tracked(lab, words):
    """Lines of the kernel's table that have all these words."""
    lines = lab.gw.sh("cat", "/proc/net/nf_conntrack").splitlines()
    return [line for line in lines if all(word in line for word in words)]


def conserved(gateway):
    """Every frame of every port has one verdict, and none is on its way to another CPU."""
    def sums():
        return {name: p["rx_frames"] - p["passed"] - p["steered"] - p["redirected"] - p["dropped"]
                - p["bypass"]["handed_over"] + p["bypass"]["taken"]
                for name, p in gateway.ports().items()}
    eventually(lambda: not any(sums().values()), lambda: f"frames without a verdict: {sums()}")
    missing = {n: p["bypass"]["waiting_or_lost"] for n, p in gateway.ports().items()}
    check(not any(missing.values()), f"frames lost on the way to another CPU: {missing}")


def connections(gateway, *ports):
    """established, to_kernel, refused, summed over ports."""
    now = gateway.ports()
    return [sum(now[p]["conntrack"][key] for p in ports)
            for key in ("established", "to_kernel", "refused")]


def connects(client_ns, client, server_ns, server, port, seconds=2):
    """Whether a TCP connection comes about."""
    def listen():
        s = socket.create_server((server, port))
        s.settimeout(seconds)
        return s

    def connect():
        try:
            with socket.create_connection((server, port), seconds, (client, 0)) as s:
                s.sendall(b"x")
                return True
        except OSError:
            return False

    with server_ns.run_inside(listen):
        return client_ns.run_inside(connect)


@case("conntrack: hosts inside begin connections and hosts outside do not")
def begin_inside(bench):
    lab = bench.lab
    with outside(bench, conntrack_in="drop", conntrack_out="punt") as (gateway, out):
        notes = []
        for reverse in (False, True):
            start = connections(gateway, "lan0", "net0")
            seen = kernel_saw(lab, "kept")
            received, rate, _ = traffic.tcp(lab.lan, INSIDE, out, OUT, 2, reverse=reverse)
            check(received > 500_000, f"only {received} bytes passed")
            established, to_kernel, refused = (
                b - a for a, b in zip(start, connections(gateway, "lan0", "net0")))
            seen = kernel_saw(lab, "kept") - seen
            equal(refused, 0, "refused frames of a connection that began inside")
            # Two connections of iperf3 begin and end; the rest goes past the kernel.
            check(established > 20 * to_kernel > 0 and seen <= to_kernel,
                  f"past the kernel {established}, to the kernel {to_kernel}, seen there {seen}")
            notes.append(f"{rate / 1e6:.1f} Mbit/s: {established} frames past the kernel, "
                         f"{to_kernel} to it")
        # The kernel saw how they ended.
        eventually(lambda: not tracked(lab, ("tcp", "dport=5201", " ESTABLISHED ")),
                   lambda: f"still open: {tracked(lab, ('tcp', 'dport=5201'))}")
        equal(connects(lab.lan, INSIDE, out, OUT, 80), True, "a connection from inside")
        before = gateway.drops()["not_established"]
        begun = kernel_saw(lab, "begun")
        equal(connects(out, OUT, lab.lan, INSIDE, 80), False, "a connection from outside")
        check(gateway.drops()["not_established"] > before, "not counted as not_established")
        equal(kernel_saw(lab, "begun"), begun, "packets from outside that the kernel forwarded")
        # The kernel's firewall has a word in what begins inside.
        equal(connects(lab.lan, INSIDE, out, OUT, 9), False, "a connection that nftables refuses")
        # ICMP has no connection that XDP could look up: out it is the kernel's, in it is refused.
        before = gateway.drops()["not_established"]
        equal(traffic.ping(lab.lan, INSIDE, OUT, 2), 0, "echo replies")
        equal(gateway.drops()["not_established"] - before, 2, "echo replies refused")
        said = gateway.table("ports")
        check("net0: connections (in drop, out punt): " in said, f"show ports says: {said}")
        return "; ".join(notes)


@case("conntrack: UDP, and a connection that the kernel must see in time")
def udp_life(bench):
    lab = bench.lab
    with outside(bench, conntrack_in="drop", conntrack_out="punt") as (gateway, out):
        # With 26 s of life all but the first 6 s of each connection are the kernel's.
        for name in ("udp_timeout", "udp_timeout_stream"):
            lab.gw.sysctl(f"net.netfilter.nf_conntrack_{name}", 26)

        def open_in(ns, address):
            def make():
                s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                s.bind((address, 7000))
                s.settimeout(2)
                return s
            return ns.run_inside(make)

        with open_in(lab.lan, INSIDE) as near, open_in(out, OUT) as far:
            def exchange():
                near.sendto(b"there", (OUT, 7000))
                equal(far.recv(100), b"there", "from inside")
                far.sendto(b"back", (INSIDE, 7000))
                equal(near.recv(100), b"back", "the answer")

            before = gateway.drops()["not_established"]
            far.sendto(b"first", (INSIDE, 7000))
            eventually(lambda: gateway.drops()["not_established"] == before + 1,
                       "a datagram from outside was not refused")
            exchange()  # both seen by the kernel
            equal(connections(gateway, "lan0", "net0")[0], 0, "frames past the kernel")
            exchange()
            eventually(lambda: connections(gateway, "lan0", "net0")[0] == 2,
                       "an answered connection should go past the kernel")
            start = connections(gateway, "lan0", "net0")[1]
            time.sleep(7)
            exchange()
            eventually(lambda: connections(gateway, "lan0", "net0")[1] > start,
                       "the kernel should have seen a connection with 19 s of life")
            exchange()
            equal(connections(gateway, "lan0", "net0")[2], 1, "refused")


@case("conntrack: what the kernel translates goes through the kernel")
def translated(bench):
    lab = bench.lab
    with outside(bench, nat='oifname "net0" masquerade', conntrack_in="drop",
                 conntrack_out="punt") as (gateway, out):
        with wire.Wire(out, "eth0") as seen:
            received, rate, _ = traffic.tcp(lab.lan, INSIDE, out, OUT, 1)
            sources = {f[26:30] for f in list(seen.frames) if f[12:14] == b"\x08\x00"}
        check(received > 200_000, f"only {received} bytes passed")
        equal(sources, {socket.inet_aton(HERE)}, "source addresses outside")
        equal(connections(gateway, "lan0", "net0")[0], 0, "frames past the kernel")
        return f"{rate / 1e6:.1f} Mbit/s by the kernel"


@case("conntrack: through a tunnel, hosts inside begin and the others answer")
def tunnel(bench):
    lab = bench.lab
    bench.peer()
    with outside(bench, rules='iifname {"lan0", "sp0"} ct state new counter name begun accept\n'
                              "ct state established,related counter name kept accept",
                 lan_keys={"conntrack_in": "punt", "conntrack_out": "drop"}) as (gateway, _):
        # Without a route into sp0 the kernel could not carry on: nothing begins.
        before = gateway.drops()["not_established"]
        equal(connects(lab.lan, INSIDE, lab.far, "10.2.0.2", 80), False, "without a route into sp0")
        check(gateway.drops()["not_established"] > before, "not counted as not_established")
        lab.gw.ip("route add 10.2.0.0/24 dev sp0 src 10.1.0.1")
        with wire.Wire(lab.peer_ns, "wanp") as wan:
            received, rate, _ = traffic.tcp(lab.lan, INSIDE, lab.far, "10.2.0.2", 2)
            check(received > 500_000, f"only {received} bytes passed")
            begun = kernel_saw(lab, "begun")
            before = gateway.drops()["not_established"]
            equal(connects(lab.far, "10.2.0.2", lab.lan, INSIDE, 80), False,
                  "a connection from the other end of the tunnel")
            check(gateway.drops()["not_established"] > before, "not counted as not_established")
            equal(kernel_saw(lab, "begun"), begun, "connections that the kernel let begin")
            clear = [f for f in wan.frames if f[26:34] in (
                socket.inet_aton(INSIDE) + socket.inet_aton("10.2.0.2"),
                socket.inet_aton("10.2.0.2") + socket.inet_aton(INSIDE))]
            check(not clear, f"{len(clear)} packets were seen in clear on the unprotected side")
        established, to_kernel, _ = connections(gateway, "lan0", "sp0")
        check(established > 10 * to_kernel, f"past the kernel {established}, to it {to_kernel}")
        return (f"{rate / 1e6:.1f} Mbit/s: {established} frames past the kernel, "
                f"{to_kernel} to it")


@case("ct_mark: a connection that the firewall marks is discarded, and no other")
def marked(bench):
    lab = bench.lab
    policies = ({"name": "banned", "action": "discard", "ct_mark": 7, "local": "10.1.0.0/16",
                 "remote": "198.51.100.0/24"}, OPEN)
    with outside(bench, rules="udp dport 7007 ct mark set 7\n" + FIREWALL, policies=policies,
                 conntrack_in="punt", conntrack_out="punt") as (gateway, out):
        with wire.Wire(lab.lan, "eth0") as lan, wire.Wire(out, "eth0") as seen:
            before = gateway.drops()["policy_discard"]
            macs = lab.gw.mac("lan0"), lab.lan.mac("eth0")

            def received(port):
                return sum(f[12:14] == b"\x08\x00" and f[23] == 17
                           and f[36:38] == port.to_bytes(2, "big") for f in list(seen.frames))

            for port in (7007, 7008):
                frame = wire.ethernet(*macs, bytes(scapy_peer.udp(INSIDE, OUT, port=port)))
                for number in range(5):
                    lan.send(frame)
                    if number == 0:  # from here on the kernel has the connection, and its mark
                        eventually(lambda p=port: received(p) == 1, f"nothing came to port {port}")

            # The first of them gets the mark from the kernel, behind XDP.
            eventually(lambda: (received(7007), received(7008)) == (1, 5),
                       lambda: f"received {received(7007)} and {received(7008)}, expected 1 and 5")
            equal(gateway.drops()["policy_discard"] - before, 4, "policy_discard")
        row = next(p for p in gateway.show("policy") if p["name"] == "banned")
        equal(row["ct_mark"], "0x7", "ct_mark in show policy")
        check("0x7" in gateway.table("policy"), "the table shows the mark")


def flows(gateway, lab, out, xdp_mode):
    """TCP and numbered datagrams through both CPUs; what came of it."""
    if not wire.can_pin():
        return None
    rates = []
    for reverse in (False, True):
        received, rate, _ = traffic.tcp(lab.lan, INSIDE, out, OUT, 2, reverse=reverse)
        check(received > 500_000, f"only {received} bytes passed")
        rates.append(f"{rate / 1e6:.1f} Mbit/s")
    with wire.Wire(lab.lan, "eth0") as lan, wire.Wire(out, "eth0") as seen:
        macs = lab.gw.mac("lan0"), lab.lan.mac("eth0")
        frames = {port: wire.ethernet(*macs, bytes(scapy_peer.udp(INSIDE, OUT, port=port)))
                  for port in range(7000, 7016)}
        before = gateway.ports()["lan0"]["bypass"]["taken_by_cpu"]
        for number in range(64):
            for frame in frames.values():
                lan.send(frame[:-2] + number.to_bytes(2, "big"), queue=0)

        def numbers(port):
            return [int.from_bytes(f[-2:], "big") for f in list(seen.frames)
                    if f[12:14] == b"\x08\x00" and f[23] == 17
                    and f[36:38] == port.to_bytes(2, "big")]

        for port in frames:
            eventually(lambda p=port: len(numbers(p)) == 64,
                       lambda p=port: f"{len(numbers(p))} of 64 datagrams to port {p}")
            equal(numbers(port), list(range(64)), f"order of the flow to port {port}")
    taken = [b - a for a, b in zip(before, gateway.ports()["lan0"]["bypass"]["taken_by_cpu"])]
    # All came in on one queue; 16 flows on one CPU of two would be a chance of 1 in 32768.
    check(min(taken) >= 64 and sum(taken) >= 1024, f"frames by CPU: {taken}")
    conserved(gateway)
    now = gateway.ports()
    equal(sum(p["redirected"] for p in now.values()), sum(p["egress_frames"] for p in now.values()),
          "redirected frames and frames that met an egress program")
    said = gateway.table("ports")
    check("lan0: BYPASS on CPUs 0 1: " in said, f"show ports says: {said}")
    return f"{', '.join(rates)}; datagrams by CPU: {taken}"


@case("bypass_cpus: one queue's BYPASS flows on both CPUs, each in order, none lost")
def spread(bench):
    with outside(bench, lan_keys={"bypass_cpus": [0, 1]}, bypass_cpus=[0, 1]) as (gateway, out):
        equal(traffic.ping(bench.lab.lan, INSIDE, OUT, 3), 3, "echo replies")
        equal(traffic.ping(bench.lab.lan, INSIDE, HERE, 3), 3, "echo replies of the gateway")
        return flows(gateway, bench.lab, out, "auto")


@case("bypass_cpus: generic XDP, and together with conntrack")
def spread_more(bench):
    lab = bench.lab
    with outside(bench, lan_keys={"bypass_cpus": [0, 1]}, xdp_mode="generic",
                 bypass_cpus=[1]) as (gateway, out):
        equal(traffic.ping(lab.lan, INSIDE, OUT, 3), 3, "echo replies")
        received, _, _ = traffic.tcp(lab.lan, INSIDE, out, OUT, 1)
        check(received > 200_000, f"only {received} bytes passed")
    with outside(bench, lan_keys={"bypass_cpus": [0, 1]}, conntrack_in="drop",
                 conntrack_out="punt", bypass_cpus=[1, 0]) as (gateway, out):
        received, _, _ = traffic.tcp(lab.lan, INSIDE, out, OUT, 2)
        check(received > 500_000, f"only {received} bytes passed")
        equal(connects(out, OUT, lab.lan, INSIDE, 80), False, "a connection from outside")
        established, to_kernel, refused = connections(gateway, "lan0", "net0")
        check(established > 20 * to_kernel > 0 and refused > 0,
              f"past the kernel {established}, to it {to_kernel}, refused {refused}")


@case("conntrack: where the kernel cannot be asked, the start is refused in words")
def refused(bench):
    lab = bench.lab
    keys = {"conntrack_in": "drop", "conntrack_out": "punt"}
    gateway = bench.prepare(lan_keys=keys)
    policies = lab.gw.ip("xfrm policy")
    # Without types the kernel does not say what functions it has.
    said = lab.gw.sh("sh", "-c", 'mount -t tmpfs none /sys/kernel/btf && "$@"; echo "status $?"',
                     "sh", gateway.program, "-c", gateway.config)
    check("status 1" in said and "[port.lan0] conntrack_in needs the kernel's connection tracking"
          in said and "BTF" in said, f"it said: {said}")
    equal(lab.gw.ip("xfrm policy"), policies, "policies after a start that was refused")
    check(not lab.gw.exists("sp0"), "sp0 is there")
