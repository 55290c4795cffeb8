# SPDX-License-Identifier: Apache-2.0
"""The devmap egress programs: they see every frame the workers send, and they filter."""

from lab import scapy_peer, traffic, wire
from lab.runner import case, check, equal, eventually


def account(gateway):
    """What workers handed over, what sp0 saw, what was redirected, what egress programs met."""
    ports = gateway.ports()
    return {"workers sent": sum(w["egress_frames"] for w in gateway.show("workers")),
            "sp0 received": ports["sp0"]["rx_frames"],
            "sp0 accounted": (ports["sp0"]["passed"] + ports["sp0"]["redirected"]
                              + ports["sp0"]["dropped"]),
            "passed to the kernel": ports["sp0"]["passed"],
            "redirected": sum(p["redirected"] for p in ports.values()),
            "egress programs": sum(p["egress_frames"] for p in ports.values()),
            "egress sent": sum(p["egress_sent"] for p in ports.values())}


@case("egress: the egress programs see every frame the workers send")
def sees_all(bench):
    lab = bench.lab
    bench.peer()
    gateway = bench.gateway(fresh=True)
    traffic.ping(lab.lan, "10.1.0.2", "10.2.0.2", 2)  # neighbours are known from here on
    traffic.ping(lab.lan, "10.1.1.2", "10.2.1.2", 2)
    start = account(gateway)
    for number in (0, 1):
        source, destination = f"10.1.{number}.2", f"10.2.{number}.2"
        equal(traffic.ping(lab.lan, source, destination, 20, interval=0.02), 20, "echo replies")
        traffic.tcp(lab.lan, source, lab.far, destination, seconds=1)

    def settled():
        now = account(gateway)
        moved = {key: now[key] - start[key] for key in now}
        same = {moved[key] for key in ("workers sent", "sp0 received", "sp0 accounted")}
        to_ports = {moved["redirected"], moved["egress programs"], moved["egress sent"]}
        fits = (len(same) == 1 and len(to_ports) == 1
                and moved["workers sent"] - moved["passed to the kernel"] == moved["redirected"])
        return moved if fits else None

    moved = eventually(settled, lambda: f"the counts do not agree: {start} then {account(gateway)}")
    check(moved["workers sent"] > 1000, f"only {moved['workers sent']} frames were sent")
    check(moved["passed to the kernel"] < 20, f"{moved['passed to the kernel']} frames missed the "
          "devmap, with all neighbours known")
    return ", ".join(f"{key}: {value}" for key, value in moved.items())


@case("egress: the deny list drops, and only what it names")
def deny_list(bench):
    lab = bench.lab
    bench.peer()
    gateway = bench.gateway(deny_wan=[{"protocol": "esp", "destination": "192.0.2.2/32"},
                                      {"protocol": "udp", "port": "7000-7010"}])
    before = gateway.drops()
    sent = gateway.ports()["wan0"]
    equal(traffic.ping(lab.lan, "10.1.0.2", "10.2.0.2", 3), 0, "echo replies through a denied port")
    after = gateway.drops()
    equal(after["egress_denied"] - before["egress_denied"], 3, "egress_denied")
    now = gateway.ports()["wan0"]
    equal((now["egress_frames"] - sent["egress_frames"], now["egress_sent"] - sent["egress_sent"]),
          (3, 0), "frames that met the egress program, and that it sent")
    # Not named by it: IPv6 outside, and BYPASS traffic to another port.
    equal(traffic.ping(lab.lan, "10.1.2.2", "10.2.2.2", 3), 3, "echo replies over IPv6 outside")
    with wire.Wire(lab.peer_ns, "wanp") as wan, wire.Wire(lab.lan, "eth0") as lan:
        traffic.ping(lab.lan, "10.1.0.2", "192.0.2.2", 1)
        denied = gateway.drops()["egress_denied"]
        for port in (6999, 7000, 7010, 7011):
            packet = bytes(scapy_peer.udp("10.1.0.2", "192.0.2.2", port=port))
            lan.send(wire.ethernet(lab.gw.mac("lan0"), lab.lan.mac("eth0"), packet))
        eventually(lambda: gateway.drops()["egress_denied"] - denied == 2,
                   lambda: f"egress_denied {gateway.drops()['egress_denied'] - denied}, expected 2")

        def ports_seen():
            return {int.from_bytes(f[36:38], "big") for f in list(wan.frames)
                    if f[12:14] == b"\x08\x00" and f[23] == 17}

        eventually(lambda: ports_seen() == {6999, 7011},
                   lambda: f"UDP ports seen outside: {ports_seen()}, expected 6999 and 7011")
