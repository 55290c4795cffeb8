# SPDX-License-Identifier: Apache-2.0
"""Every packet that must not pass is dropped, and `show drops` says why.

One table: each row sends frames and names the only counters that may move.
"""

import ipaddress
import secrets
import time

from cases.traffic import clear_between
from lab import netns, scapy_peer, topology, wire
from lab.runner import case, check, equal, eventually
from lab.scapy_peer import ip, udp

OUTSIDE, INSIDE = "10.3.0.2", "10.1.0.2"
FROM_WAN, FROM_LAN = "wan", "lan"


def good():
    return udp(OUTSIDE, INSIDE)


def unknown_spi(end):
    return [end.seal(good(), spi=end.tunnel.spi_in ^ secrets.randbits(16) << 8 ^ 0x80000000)]


def tampered(end):
    packet = bytearray(end.seal(good()))
    packet[-1] ^= 1
    return [bytes(packet)]


def tampered_payload(end):
    packet = bytearray(end.seal(good()))
    packet[40] ^= 0x80
    return [bytes(packet)]


def replayed(end):
    return [end.seal(good())] * 2


def before_window(end):
    end.sequence += 1
    old = end.seal(good(), sequence=end.sequence)
    end.sequence += end.tunnel.window
    return [end.seal(good()), old]


def wrong_selectors(end):
    # 10.2.0.2 is a right source, in another tunnel.
    return [end.seal(udp("10.2.0.2", INSIDE)), end.seal(udp(OUTSIDE, "10.1.1.2"))]


def fragment(end):
    return [end.seal(good(), flags="MF")]


def dummy(end):
    return [end.seal(b"\0" * 40, next_header=59)]


def transport_payload(end):
    return [end.seal(bytes(good().payload), next_header=17)]


def bad_padding(end):
    inner = udp(OUTSIDE, INSIDE, payload=b"x")  # 29 bytes: pad bytes are needed
    return [end.seal(inner, pad_bytes=lambda pad: b"\x07" * len(pad))]


def malformed_inner(end):
    return [end.seal(b"\x4f" + b"\xff" * 27, next_header=4)]


def congestion(end):
    return [end.seal(good(), tos=3)]


def cleartext(_end):
    return [bytes(good())]


def cleartext_v6(_end):
    return [bytes(udp("fd02:0:0:3::2", "fd01:0:0:3::2"))]


def short_esp(end):
    return [bytes(ip(end.tunnel.peer, end.tunnel.near, proto=50) / end.seal(good())[20:44])]


def damaged(packet):
    """Its IPv4 header checksum is wrong."""
    packet = bytearray(bytes(packet))
    packet[10] ^= 0x20
    return bytes(packet)


def wrong_outer_checksum(end):
    return [damaged(end.seal(good()))]


def wrong_inner_checksum(end):
    return [end.seal(damaged(good()), next_header=4)]


def wrong_checksum_to_protect(_end):
    return [damaged(udp(INSIDE, OUTSIDE))]


def to_discarded(_end):
    return [bytes(udp(INSIDE, "10.9.0.2"))]


def to_nowhere(_end):
    return [bytes(udp(INSIDE, "10.8.0.2"))]


# name, side it arrives on, frames, how often which reason, how many packets are still delivered
TABLE = [
    ("A3 unknown SPI", FROM_WAN, unknown_spi, {"unknown_spi": 1}, 0),
    ("tampered ICV", FROM_WAN, tampered, {"icv_mismatch": 1}, 0),
    ("tampered payload", FROM_WAN, tampered_payload, {"icv_mismatch": 1}, 0),
    ("B3 packet replayed in one burst", FROM_WAN, replayed, {"replayed": 1}, 1),
    ("B3 packet from before the window", FROM_WAN, before_window, {"before_window": 1}, 1),
    ("A1 inner packet outside the selectors", FROM_WAN, wrong_selectors,
     {"selector_mismatch": 2}, 0),
    ("A2 cleartext that a PROTECT policy covers", FROM_WAN, cleartext,
     {"cleartext_for_protect": 1}, 0),
    ("A2 cleartext that a PROTECT policy covers, IPv6", FROM_WAN, cleartext_v6,
     {"cleartext_for_protect": 1}, 0),
    ("B1 ESP packet that is a fragment", FROM_WAN, fragment, {"outer_fragment": 1}, 0),
    ("B5 dummy packet", FROM_WAN, dummy, {"dummy_packet": 1}, 0),
    ("B7 wrong pad bytes", FROM_WAN, bad_padding, {"bad_padding": 1}, 0),
    ("next header of transport mode", FROM_WAN, transport_payload, {"bad_next_header": 1}, 0),
    ("decrypted bytes that are no IP packet", FROM_WAN, malformed_inner, {"malformed_inner": 1}, 0),
    ("E1 congestion marked, flow not capable", FROM_WAN, congestion, {"ecn_not_capable": 1}, 0),
    ("ESP too short", FROM_WAN, short_esp, {"malformed_esp": 1}, 0),
    ("A12 wrong header checksum, outer", FROM_WAN, wrong_outer_checksum, {"bad_ip_checksum": 1}, 0),
    ("A12 wrong header checksum, inner", FROM_WAN, wrong_inner_checksum, {"bad_ip_checksum": 1}, 0),
    ("A12 wrong header checksum, to a tunnel", FROM_LAN, wrong_checksum_to_protect,
     {"bad_ip_checksum": 1}, 0),
    ("A6 DISCARD policy", FROM_LAN, to_discarded, {"policy_discard": 1}, 0),
    ("A6 no policy", FROM_LAN, to_nowhere, {"no_policy": 1}, 0),
]


def _row(side, make, reasons, delivered):
    def run(bench):
        lab = bench.lab
        gateway = bench.gateway()
        end = bench.crafted("craft0")
        # One good packet first: the path works, so that what is missing later was dropped.
        send(lab, FROM_WAN, [end.seal(good())], gateway, {}, 1)
        send(lab, side, make(end), gateway, reasons, delivered)
    return run


def send(lab, side, packets, gateway, reasons, delivered, to=None):
    """`to`: another MAC than the port's."""
    before = gateway.drops()
    wanted = {**dict.fromkeys(before, 0), **reasons}
    del wanted["kernel_multicast"], wanted["lost_in_kernel"]
    with wire.Wire(lab.peer_ns, "wanp") as wan, wire.Wire(lab.lan, "eth0") as lan:
        for packet in packets:
            if side == FROM_WAN:
                frame = wire.ethernet(to or lab.gw.mac("wan0"), "02:00:00:00:00:02", packet)
                wan.send(frame)
            else:
                frame = wire.ethernet(to or lab.gw.mac("lan0"), lab.lan.mac("eth0"), packet)
                lan.send(frame)

        def moved():
            counts = {reason: count - before[reason] for reason, count in gateway.drops().items()}
            # The kernel itself speaks on a new sp0 (multicast listener reports), and gives up packets of
            # earlier cases that waited for a host which does not answer.
            del counts["kernel_multicast"], counts["lost_in_kernel"]
            return counts

        def named():
            return {reason: count for reason, count in moved().items() if count}

        eventually(lambda: moved() == wanted, lambda: f"drops {named()}, expected {reasons}")
        if delivered:
            check(lan.wait(is_udp), "a packet that should pass was not delivered")
        time.sleep(0.1)  # what must not come has this long to come
        passed = [f for f in (lan if side == FROM_WAN else wan).frames if is_udp(f)]
        equal(len(passed), delivered, "packets that came out on the other side")
        equal(moved(), wanted, "drops a moment later")


def is_udp(frame):
    return (frame[12:14] == b"\x08\x00" and frame[23] == 17
            or frame[12:14] == b"\x86\xdd" and frame[20] == 17)


for _name, _side, _make, _reasons, _delivered in TABLE:
    case(f"dropped as {next(iter(_reasons))}: {_name}")(_row(_side, _make, _reasons, _delivered))


@case("B3 recorded packets are replays after a restart, and after kill -9")
def replayed_after_restart(bench):
    lab = bench.lab
    gateway = bench.prepare().start()
    end = bench.crafted("craft0")
    recorded = []
    for leave in (gateway.stop, gateway.kill):
        new = [end.seal(good()) for _ in range(5)]
        send(lab, FROM_WAN, new, gateway, {}, 5)
        recorded += new
        if leave == gateway.kill:  # what the second before it brought is not kept
            eventually(lambda: f" {end.sequence}\n" in _tops(gateway), lambda: f"not kept: {_tops(gateway)}", 20)
        leave()
        gateway.start()
        send(lab, FROM_WAN, recorded, gateway, {"replayed": len(recorded)}, 0)
    send(lab, FROM_WAN, [end.seal(good())], gateway, {}, 1)


def _tops(gateway):
    try:
        with open(f"{gateway.folder}/state/replay_tops", encoding="ascii") as f:
            return f.read()
    except FileNotFoundError:
        return ""


def icmp_errors(frames, to):
    """ICMP and ICMPv6 messages to an address, in clear."""
    address = ipaddress.ip_address(to).packed
    if len(address) == 4:
        return [f for f in frames
                if f[12:14] == b"\x08\x00" and f[23] == 1 and f[30:34] == address]
    return [f for f in frames if f[12:14] == b"\x86\xdd" and f[20] == 58 and f[38:54] == address]


class Answers:
    """Packets of a crafted tunnel that the kernel would answer in clear by wan0, if it were let."""

    HOP = "02:00:00:00:00:02"  # there with the guest or without it
    PEERS = (topology.PEER4, topology.PEER6)

    def __init__(self, bench, gateway):
        self.bench, self.lab, self.gateway = bench, bench.lab, gateway

    def __enter__(self):
        for address in self.PEERS:
            self.lab.gw.ip(f"neigh replace {address} lladdr {self.HOP} dev wan0 nud permanent")
        return self

    def __exit__(self, *_):
        for address in self.PEERS:
            self.lab.gw.ip(f"neigh del {address} dev wan0")

    def stay(self, name, good, packets):
        """`good` is delivered to the LAN; none of `packets`, which the kernel gets, is answered."""
        end = self.bench.crafted(name)
        outside = end.tunnel.remote_host
        with wire.Wire(self.lab.peer_ns, "wanp") as wan, wire.Wire(self.lab.lan, "eth0") as lan:
            def arrive(packet):
                wan.send(wire.ethernet(self.lab.gw.mac("wan0"), self.HOP, end.seal(packet)))

            arrive(good)
            check(lan.wait(is_udp, 3), f"{name}: a good packet was not delivered")
            passed = self.gateway.ports()["sp0"]["passed"]
            for packet in packets:
                arrive(packet)
            eventually(lambda: self.gateway.ports()["sp0"]["passed"] == passed + len(packets),
                       f"{name}: the kernel did not get all packets")
            check(not (seen := icmp_errors(lan.frames, outside)), f"on the lan: {seen}")
            check(not wan.wait(lambda f: icmp_errors([f], outside), 4.5),
                  f"{name}: an ICMP error left in clear")
            check(not [f for f in wan.frames if clear_between(f, end.tunnel)], "clear text")


def last_hop(outside, inside):
    return ip(outside, inside, **{("hlim" if ":" in inside else "ttl"): 1}) / udp(outside, inside).payload


@case("A2 no ICMP error about a decrypted packet leaves in clear")
def icmp_errors_stay(bench):
    """TTL 1, and a host that is not there: the kernel answers from wan0's address."""
    with Answers(bench, bench.gateway()) as answers:
        for name, inside, absent in (("craft0", INSIDE, "10.1.0.77"),
                                     ("craft6", "fd01:0:0:3::2", "fd01:0:0:3::77")):
            outside = bench.crafted(name).tunnel.remote_host
            answers.stay(name, udp(outside, inside), [last_hop(outside, inside), udp(outside, absent)])


@case("A2 no ICMP error about a decrypted packet leaves in clear where the policy covers UDP alone")
def icmp_errors_of_narrow_policies(bench):
    """A closed port of the gateway's own address too: for that the kernel asks no policy of the packet."""
    gateway = bench.prepare(crafted_keys={"protocol": "udp"}).start()
    with Answers(bench, gateway) as answers:
        for name, inside, own in (("craft0", INSIDE, "10.1.0.1"),
                                  ("craft6", "fd01:0:0:3::2", "fd01:0:0:3::1")):
            outside = bench.crafted(name).tunnel.remote_host
            answers.stay(name, udp(outside, inside), [udp(outside, own), last_hop(outside, inside)])
    bench.stop_gateway()


@case("what says that the gateway itself has sent it is not forwarded, also by an address that is new")
def own_source(bench):
    lab = bench.lab
    for options in ({}, {"egress": "direct"}):
        gateway = bench.gateway(**options)
        send(lab, FROM_WAN, [bytes(udp("192.0.2.1", INSIDE))], gateway, {"martian": 1}, 0)
        send(lab, FROM_LAN, [bytes(udp("10.1.0.1", "192.0.2.200"))], gateway, {"martian": 1}, 0)
        new = [bytes(udp("192.0.2.77", INSIDE))]
        send(lab, FROM_WAN, new, gateway, {}, 1)
        lab.gw.ip("addr add 192.0.2.77/32 dev wan0")
        try:
            def is_refused():
                before = gateway.drops()["martian"]
                with wire.Wire(lab.peer_ns, "wanp") as wan:
                    wan.send(wire.ethernet(lab.gw.mac("wan0"), "02:00:00:00:00:02", new[0]))
                time.sleep(0.1)
                return gateway.drops()["martian"] > before
            eventually(is_refused, "the new address was not noticed", 20)
            send(lab, FROM_WAN, new, gateway, {"martian": 1}, 0)
        finally:
            lab.gw.ip("addr del 192.0.2.77/32 dev wan0")


OTHER_STATION = "02:00:00:00:00:77"


@case("frames for another station are neither decrypted, encrypted nor forwarded", seconds=120)
def other_station(bench):
    lab = bench.lab
    for options in ({"xdp_mode": "generic"}, {"egress": "direct"}, {}):
        gateway = bench.gateway(**options)
        end4, end6 = bench.crafted("craft0"), bench.crafted("craft6")
        inner6 = udp("fd03:0:0:3::2", "fd01:0:0:3::2")
        send(lab, FROM_WAN, [end4.seal(good()), end6.seal(inner6)], gateway, {}, 2)
        foreign = [end4.seal(good()), end6.seal(inner6), bytes(udp("192.0.2.2", INSIDE))]
        send(lab, FROM_WAN, foreign, gateway, {"other_station": 3}, 0, OTHER_STATION)
        # PROTECT, BYPASS, DISCARD and no policy.
        foreign = [bytes(udp(INSIDE, to)) for to in (OUTSIDE, "192.0.2.2", "10.9.0.2", "10.8.0.2")]
        foreign.append(bytes(udp("fd01:0:0:3::2", "fd03:0:0:3::2")))
        send(lab, FROM_LAN, foreign, gateway, {"other_station": 5}, 0, OTHER_STATION)
    # The MAC that counts is the one that the port has now.
    before = lab.gw.mac("wan0")
    try:
        for turn, mac in enumerate((OTHER_STATION, before), 1):
            other = lab.gw.mac("wan0")
            lab.gw.ip(f"link set wan0 address {mac}")
            eventually(lambda n=turn: gateway.log().count("port wan0 has another MAC: frames") == n,
                       "the new MAC was not noticed", 20)
            send(lab, FROM_WAN, [end4.seal(good())], gateway, {}, 1)
            send(lab, FROM_WAN, [end4.seal(good())], gateway, {"other_station": 1}, 0, other)
    finally:
        lab.gw.ip(f"link set wan0 address {before}")
        # With its MAC the device has lost its neighbours; the guest, where it runs, is one again.
        for address in (topology.PEER4, topology.PEER6):
            lab.gw.sh("ping", "-c", "1", "-W", "2", address, check=False)


class Aside:
    """A device of the gateway that is no port, and routes to it from inside the tunnels' networks."""

    ROUTES = (("10.1.0.64/26", "10.1.0.77"), ("192.0.2.192/26", "192.0.2.200"),
              ("fd01:0:0:3::40/122", "fd01:0:0:3::77"))
    HOP = "02:00:00:00:00:05"

    def __init__(self, lab):
        self.lab = lab

    def __enter__(self):
        netns.veth(self.lab.gw, "mgmt0", self.lab.lan, "mgmt1")
        for route, host in self.ROUTES:
            self.lab.gw.ip(f"route add {route} dev mgmt0")
            self.lab.gw.ip(f"neigh add {host} lladdr {self.HOP} dev mgmt0 nud permanent")
        return self

    def __exit__(self, *_):
        self.lab.gw.ip("link del mgmt0", check=False)

    def packets(self, bench):
        """(side, packet): decrypted, IPv4 and IPv6, and in clear from the LAN."""
        return ((FROM_WAN, bench.crafted("craft0").seal(udp(OUTSIDE, "10.1.0.77"))),
                (FROM_WAN, bench.crafted("craft6").seal(udp("fd03:0:0:3::2", "fd01:0:0:3::77"))),
                (FROM_LAN, bytes(udp(INSIDE, "192.0.2.200"))))


@case("A6 packets reach no device that is no port, unless forward_to names it", seconds=120)
def not_a_port(bench):
    lab = bench.lab
    for options in ({}, {"egress": "direct"}):
        with Aside(lab) as aside, wire.Wire(lab.lan, "mgmt1") as mgmt:
            gateway = bench.prepare(**options).start()
            for side, packet in aside.packets(bench):
                send(lab, side, [packet], gateway, {"not_a_port": 1}, 0)
            check(not [f for f in mgmt.frames if is_udp(f)], "a packet left by a device that is no port")
        gateway = bench.prepare(forward_to=["mgmt0"], **options).start()
        with (Aside(lab) as aside, wire.Wire(lab.lan, "mgmt1") as mgmt,  # it comes after the start
              wire.Wire(lab.lan, "eth0") as lan):
            clear = wire.ethernet(lab.gw.mac("lan0"), lab.lan.mac("eth0"), aside.packets(bench)[2][1])
            eventually(lambda: lan.send(clear) or mgmt.wait(is_udp, 0.2), "mgmt0 was not noticed")
            for side, packet in aside.packets(bench):
                before = len(mgmt.frames)
                send(lab, side, [packet], gateway, {}, 0)
                check(mgmt.wait(is_udp, 20, before), "a packet did not reach the named device")
    bench.stop_gateway()


@case("drops are counted where they happened, with a sentence for the operator")
def drops_explained(bench):
    gateway = bench.gateway()
    end = bench.crafted("craft0")
    send(bench.lab, FROM_WAN, unknown_spi(end), gateway, {"unknown_spi": 1}, 0)
    send(bench.lab, FROM_WAN, tampered(end), gateway, {"icv_mismatch": 1}, 0)
    rows = {d["reason"]: d for d in gateway.show("drops")}
    check("port wan0" in rows["unknown_spi"]["where"], f"where: {rows['unknown_spi']['where']}")
    check("worker 0" in rows["icv_mismatch"]["where"], f"where: {rows['icv_mismatch']['where']}")
    check(all(d["help"] for d in rows.values()), "every reason has a help text")
    check(gateway.sa("craft0-in")["drops"].get("icv_mismatch", 0) >= 1, "the SA counts it too")
    check("unknown_spi" in gateway.table("drops"), "the table names the reason")
