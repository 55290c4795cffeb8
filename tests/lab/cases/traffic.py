# SPDX-License-Identifier: Apache-2.0
"""Traffic of real hosts through the tunnel between Sallyport and Linux, both ways."""

import ipaddress
import secrets
import socket
import struct

from lab import traffic, wire
from lab.runner import case, check, equal, eventually
from lab.scapy_peer import vpn_packets
from lab.topology import PEER4, PEER6

GCM128 = "plain"   # AES-GCM-128, 32-bit sequence numbers, worker 0
GCM256_ESN = "esn"  # AES-GCM-256 with ESN, worker 1


def ping_both_ways(bench, gateway, name, count=5, size=56):
    """Pings through a tunnel from both ends: all answered, all encrypted, by the SA's worker."""
    lab, tunnel = bench.lab, bench.lab.tunnels[name]
    before = {d: gateway.sa(f"{name}-{d}")["packets"] for d in ("in", "out")}
    with wire.Wire(lab.peer_ns, "wanp") as w:
        for ns, source, destination in ((lab.lan, tunnel.local_host, tunnel.remote_host),
                                        (lab.far, tunnel.remote_host, tunnel.local_host)):
            equal(traffic.ping(ns, source, destination, count, size=size), count,
                  f"{name}: echo replies from {destination} to {source}")

        def sealed():
            return sum(1 for f in list(w.frames) if (wire.esp_of(f) or [0])[0] == tunnel.spi_out)

        eventually(lambda: sealed() == 2 * count,
                   lambda: f"{name}: {sealed()} ESP packets on the wire, expected {2 * count}")
    for direction in ("in", "out"):
        eventually(lambda d=direction: gateway.sa(f"{name}-{d}")["packets"] - before[d]
                   == 2 * count,
                   lambda d=direction: f"SA {name}-{d} counts "
                   f"{gateway.sa(f'{name}-{d}')['packets'] - before[d]} packets, not {2 * count}")
    check(not any(clear_between(f, tunnel) for f in w.frames),
          f"{name}: packets of the protected hosts were seen in clear on the unprotected side")


def clear_between(frame, tunnel):
    """Whether the frame carries, in clear, a packet between the tunnel's hosts."""
    local = ipaddress.ip_address(tunnel.local_host).packed
    remote = ipaddress.ip_address(tunnel.remote_host).packed
    addresses = frame[26:34] if len(local) == 4 else frame[22:54]
    return addresses in (local + remote, remote + local)


@case("ping both ways: AES-GCM-128, 32-bit sequence numbers")
def ping_plain(bench):
    bench.peer()
    ping_both_ways(bench, bench.gateway(), GCM128)


@case("ping both ways: AES-GCM-256 with ESN")
def ping_esn(bench):
    bench.peer()
    ping_both_ways(bench, bench.gateway(), GCM256_ESN)


@case("I1 ping both ways: IPv4 in IPv6, IPv6 in IPv4, IPv6 in IPv6")
def ping_families(bench):
    bench.peer()
    for name in ("4in6", "6in4", "6in6"):
        ping_both_ways(bench, bench.gateway(), name)


@case("D3 D5 ping both ways and TCP: ChaCha20-Poly1305 with ESN, AES-CCM-128 in IPv6, AES-CCM-256 with ESN", seconds=120)
def other_suites(bench):
    bench.peer()
    gateway = bench.gateway()
    notes = []
    for name in ("chacha", "ccm128", "ccm256"):
        ping_both_ways(bench, gateway, name)
        notes.append(f"{bench.lab.tunnels[name].suite}: {tcp_both_ways(bench, gateway, name)}")
    return "\n# ".join(notes)


@case("ping both ways: every size from small to the hosts' MTU")
def ping_sizes(bench):
    bench.peer()
    gateway = bench.gateway()
    for size in (0, 1, 2, 3, 4, 60, 511, 1000, 1371, 1372):
        ping_both_ways(bench, gateway, GCM128, count=1, size=size)


def tcp_both_ways(bench, gateway, name, seconds=3):
    lab, tunnel = bench.lab, bench.lab.tunnels[name]
    rates = []
    for reverse in (False, True):
        received, rate, again = traffic.tcp(lab.lan, tunnel.local_host, lab.far,
                                            tunnel.remote_host, seconds, reverse=reverse)
        # A stream asked for 20 Mbit/s that hardly moves is broken, how fast it is is not asked.
        check(received > 500_000, f"{name}: only {received} bytes in {seconds} s")
        rates.append(f"{rate / 1e6:.1f} Mbit/s ({again} retransmissions)")
    return f"{name}: out {rates[0]}, in {rates[1]}"


@case("TCP both ways at 20 Mbit/s: AES-GCM-128")
def tcp_plain(bench):
    bench.peer()
    return tcp_both_ways(bench, bench.gateway(), GCM128)


@case("TCP both ways at 20 Mbit/s: AES-GCM-256 with ESN")
def tcp_esn(bench):
    bench.peer()
    return tcp_both_ways(bench, bench.gateway(), GCM256_ESN)


@case("the gateway's own traffic: routed into sp0, encrypted by a worker")
def own_traffic(bench):
    bench.peer()
    gateway = bench.gateway()
    lab = bench.lab
    with wire.Wire(lab.peer_ns, "wanp") as w:
        equal(traffic.ping(lab.gw, "10.1.0.1", "10.2.0.2", 2), 0,
              "echo replies without a route into sp0")
        check(not any(f[30:34] == bytes((10, 2, 0, 2)) for f in w.frames),
              "the gateway's own packets left in clear though a PROTECT policy covers them")
    lab.gw.ip("route add 10.2.0.0/24 dev sp0 src 10.1.0.1")
    before = gateway.sa("plain-out")["packets"]
    equal(traffic.ping(lab.gw, "10.1.0.1", "10.2.0.2", 3), 3, "echo replies")
    eventually(lambda: gateway.sa("plain-out")["packets"] - before >= 3,
               "the SA did not count the gateway's own packets")
    lab.gw.ip("route del 10.2.0.0/24 dev sp0")


@case("neighbours unknown: the kernel resolves them and nothing is lost")
def no_neighbour(bench):
    bench.peer()
    bench.gateway()
    bench.lab.gw.ip("neigh flush all")
    equal(traffic.ping(bench.lab.lan, "10.1.0.2", "10.2.0.2", 5), 5, "echo replies")


@case("BYPASS: hosts talk in clear where the SPD says so")
def bypass(bench):
    bench.peer()
    bench.gateway()
    equal(traffic.ping(bench.lab.lan, "10.1.0.2", "192.0.2.2", 3), 3, "echo replies")


OUTSIDE4, OUTSIDE6 = "198.51.100.7", "2001:db8:9::7"


def upper_of(packet):
    return packet[40 if packet[0] >> 4 == 6 else 20:]


@case("ESP of hosts behind the gateway: both ways in clear by BYPASS, in ESP by PROTECT")
def transit_esp(bench):
    lab = bench.lab
    bench.peer()
    gateway = bench.gateway(policies=[
        {"name": "vpns4", "action": "bypass", "local": "10.1.0.0/16", "remote": "198.51.100.0/24"},
        # The guest too, which has no route for it and says so.
        {"name": "vpns6", "action": "bypass", "local": "fd01:0:0:3::/64", "remote": "2001:db8::/32"}])
    end = bench.crafted("craft0")
    drops = gateway.drops()

    def cross(send, receive, device, mac, packets, opened=lambda frame: frame):
        for packet in packets:
            send.send(wire.ethernet(lab.gw.mac(device), mac, packet))

        def missing():
            seen = [opened(frame) or b"" for frame in list(receive.frames)]
            return [p for p in packets if not any(upper_of(p) in frame for frame in seen)]
        eventually(lambda: not missing(), lambda: f"{len(missing())} of {len(packets)} did not come")

    with wire.Wire(lab.peer_ns, "wanp") as wan, wire.Wire(lab.lan, "eth0") as lan:
        lan_mac = lab.lan.mac("eth0")
        for inside, outside in (("10.1.0.2", OUTSIDE4), ("fd01:0:0:3::2", OUTSIDE6)):
            cross(lan, wan, "lan0", lan_mac, vpn_packets(inside, outside))
            cross(wan, lan, "wan0", "02:00:00:00:00:02", vpn_packets(outside, inside))
        sealed = vpn_packets("10.1.0.2", "10.3.0.2")
        cross(lan, wan, "lan0", lan_mac, sealed, lambda frame: bytes(end.open(frame) or b""))
        check(not any(upper_of(p) in f for p in sealed for f in wan.frames),
              "ESP that PROTECT covers left without another ESP around it")
    after = gateway.drops()
    moved = {r: n - drops[r] for r, n in after.items() if n != drops[r] and r != "kernel_multicast"}
    equal(moved, {}, "drops")


@case("PROTECT to ::/0: hosts of the LAN find the gateway, and through it the far side")
def wide_ipv6(bench):
    lab = bench.lab
    bench.peer()
    gateway = bench.gateway(last_policies=[
        {"name": "wide6", "action": "protect", "local": "fd01:0:0:3::/64", "remote": "::/0"}])
    for ns, device in ((lab.lan, "eth0"), (lab.gw, "lan0")):
        ns.ip(f"-6 neigh flush dev {device}")
    ping_both_ways(bench, gateway, "6in4")
    check("lladdr" in lab.lan.ip("-6 neigh show fd01:0:0:3::1"), "the LAN does not know the gateway's MAC")


def checksum_is_right(frame):
    """Of UDP without IP options or extension headers."""
    is_v6 = frame[12:14] == b"\x86\xdd"
    addresses, upper = (frame[22:54], frame[54:]) if is_v6 else (frame[26:34], frame[34:])
    upper = upper[:struct.unpack_from("!H", upper, 4)[0]]
    data = addresses + struct.pack("!IHH", len(upper), 0, 17) + upper + b"\0" * (len(upper) % 2)
    return sum(struct.unpack(f"!{len(data) // 2}H", data)) % 0xFFFF == 0


@case("hosts that leave checksums to their device: TCP through tunnels, UDP by BYPASS", seconds=180)
def partial_checksums(bench):
    lab = bench.lab
    bench.peer()
    notes = []
    try:
        lab.lan.sh("ethtool", "-K", "eth0", "tx", "on")
        for mode in ("auto", "generic"):
            gateway = bench.gateway(xdp_mode=mode, policies=[
                {"name": "open6", "action": "bypass", "local": "fd01:0:0:3::/64",
                 "remote": "2001:db8::/64"}])
            notes += [f"{mode}: {tcp_both_ways(bench, gateway, name, 1)}"
                      for name in (GCM128, "6in4")]
            check(sum(w["checksums_completed"] for w in gateway.show("workers")) > 1000,
                  f"{mode}: workers have completed no checksums")
            eventually(lambda g=gateway: "leaves the checksums of TCP and UDP" in g.log(),
                       lambda: "the log does not say it")
            before = gateway.ports()["lan0"]["partial_checksums"]
            count = 10
            payloads = [secrets.token_bytes(30 + i) for i in range(2 * count)]
            with wire.Wire(lab.peer_ns, "wanp") as w:
                for family, host, peer, own in (
                        (socket.AF_INET, "10.1.0.2", PEER4, payloads[:count]),
                        (socket.AF_INET6, "fd01:0:0:3::2", PEER6, payloads[count:])):
                    with lab.lan.run_inside(lambda f=family: socket.socket(f, socket.SOCK_DGRAM)) as s:
                        s.bind((host, 0))
                        for payload in own:
                            s.sendto(payload, (peer, 9))

                def arrived():
                    return [f for f in list(w.frames) if any(p in f for p in payloads)]
                eventually(lambda: len(arrived()) == len(payloads),
                           lambda: f"{mode}: {len(arrived())} of {len(payloads)} came by BYPASS")
                wrong = sum(not checksum_is_right(f) for f in arrived())
            equal(wrong, 0, f"{mode}: wrong checksums by BYPASS")
            equal(gateway.ports()["lan0"]["partial_checksums"] - before, len(payloads),
                  f"{mode}: partial_checksums")
    finally:
        lab.lan.sh("ethtool", "-K", "eth0", "tx", "off")
    return "; ".join(notes)


@case("egress = direct: ping and TCP both ways", seconds=90)
def direct(bench):
    bench.peer()
    gateway = bench.gateway(egress="direct")
    equal(gateway.show("status")["egress"], "direct", "egress in show status")
    ping_both_ways(bench, gateway, GCM128)
    ping_both_ways(bench, gateway, "6in6")
    return tcp_both_ways(bench, gateway, GCM256_ESN)


@case("generic XDP: ping both ways")
def generic(bench):
    bench.peer()
    gateway = bench.gateway(xdp_mode="generic")
    equal({p["xdp_mode"] for p in gateway.show("ports") if p["role"] != "injector"}, {"generic"},
          "xdp_mode in show ports")
    ping_both_ways(bench, gateway, GCM128)
    ping_both_ways(bench, gateway, GCM256_ESN)
