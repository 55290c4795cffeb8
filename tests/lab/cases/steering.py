# SPDX-License-Identifier: Apache-2.0
"""Two queues, two workers: a packet goes to the worker that owns its SA, whatever its queue."""

from lab import scapy_peer, wire
from lab.runner import Skip, case, equal, eventually

PACKETS = 20  # per queue and SA


@case("steering: two SAs (pcpu 0 and 1) from each of two queues reach workers 0 and 1")
def two_sas_two_queues(bench):
    if not wire.can_pin():
        raise Skip("needs CPUs 0 and 1")
    lab = bench.lab
    gateway = bench.gateway()
    for worker in (0, 1):
        sa = gateway.sa(f"craft{worker}-in")
        equal((sa["worker"], sa["pcpu"]), (worker, worker), f"worker and pcpu of craft{worker}-in")
    with wire.Wire(lab.peer_ns, "wanp") as wan, wire.Wire(lab.lan, "eth0") as lan:
        for queue in (0, 1):
            steered = gateway.ports()["wan0"]["steered_by_queue_worker"]
            inbound = [w["inbound"]["delivered"] for w in gateway.show("workers")]
            first = len(lan.frames)
            for number in range(PACKETS):
                for worker in (0, 1):
                    end = bench.crafted(f"craft{worker}")
                    packet = end.seal(scapy_peer.udp(f"10.3.{worker}.2", f"10.1.{worker}.2",
                                                     port=7000 + number))
                    wan.send(wire.ethernet(lab.gw.mac("wan0"), "02:00:00:00:00:02", packet), queue)

            def deltas():
                now = gateway.ports()["wan0"]["steered_by_queue_worker"]
                workers = gateway.show("workers")
                return ([[now[q][w] - steered[q][w] for w in (0, 1)] for q in (0, 1)],
                        [workers[w]["inbound"]["delivered"] - inbound[w] for w in (0, 1)])

            wanted = ([[PACKETS] * 2 if q == queue else [0, 0] for q in (0, 1)], [PACKETS] * 2)
            eventually(lambda: deltas() == wanted,
                       lambda: f"queue {queue}: steered[queue][worker] and packets per worker "
                               f"{deltas()}, expected {wanted}")
            eventually(lambda: sum(is_lab_udp(f) for f in lan.frames[first:]) == 2 * PACKETS,
                       lambda: f"queue {queue}: the protected host received "
                               f"{sum(is_lab_udp(f) for f in lan.frames[first:])} packets")


def is_lab_udp(frame):
    """An IPv4 UDP packet from the crafted far hosts 10.3.x.2."""
    return frame[12:14] == b"\x08\x00" and frame[23] == 17 and frame[26:28] == bytes((10, 3))


@case("outbound: a policy's packets leave by its SA and worker, and scapy opens them")
def outbound_workers(bench):
    lab = bench.lab
    gateway = bench.gateway()
    with wire.Wire(lab.peer_ns, "wanp") as wan, wire.Wire(lab.lan, "eth0") as lan:
        bench.peer()  # answers ARP for the outer destination
        for worker in (0, 1):
            end = bench.crafted(f"craft{worker}")
            before = [w["outbound"]["delivered"] for w in gateway.show("workers")]
            first = len(wan.frames)
            inner = scapy_peer.udp(f"10.1.{worker}.2", f"10.3.{worker}.2")
            for _ in range(PACKETS):
                lan.send(wire.ethernet(lab.gw.mac("lan0"), lab.lan.mac("eth0"), bytes(inner)))

            def opened():
                packets = [end.open(f) for f in list(wan.frames[first:]) if wire.esp_of(f)]
                return [p for p in packets if p is not None]

            eventually(lambda: len(opened()) == PACKETS,
                       lambda: f"scapy opened {len(opened())} of {PACKETS} packets")
            packet = opened()[0]
            equal((packet.src, packet.dst, packet.ttl, bytes(packet.payload)),
                  (inner.src, inner.dst, 63, bytes(inner.payload)[:6] + bytes(packet.payload)[6:8]
                   + bytes(inner.payload)[8:]), "inner packet (TTL one less, RFC 4301 5.1.2)")
            after = [w["outbound"]["delivered"] for w in gateway.show("workers")]
            equal(after[worker] - before[worker], PACKETS, f"packets of worker {worker}")
            equal(after[1 - worker], before[1 - worker], f"packets of worker {1 - worker}")
