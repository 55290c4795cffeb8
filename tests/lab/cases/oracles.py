# SPDX-License-Identifier: Apache-2.0
"""The lab checks itself first: its two oracles against one another, and its queues."""

from lab import scapy_peer, wire
from lab.runner import Skip, case, check, equal, eventually


def _ping_guest(bench, tunnel, wire_, macs):
    end = scapy_peer.EspEnd(tunnel, remote=False)
    for number in (1, 2, 3):
        first = len(wire_.frames)
        request = scapy_peer.echo_request(tunnel.local_host, tunnel.remote_host, number)
        wire_.send(wire.ethernet(macs[1], macs[0], end.seal(request)))

        def answers(frame):
            inner = end.open(frame)
            return inner is not None and scapy_peer.is_echo_reply(
                inner, tunnel.remote_host, tunnel.local_host, number)

        check(wire_.wait(answers, 5, first),
              f"{tunnel.name}: no answer to echo request {number} through the tunnel; the guest's "
              f"counters: {bench.lab.peer().sh('cat /proc/net/xfrm_stat | grep -v 0$', check=False)}")


@case("oracles: scapy and Linux understand one another (no Sallyport)")
def scapy_against_linux(bench):
    lab = bench.lab
    guest = bench.peer()
    bench.stop_gateway()
    with wire.Wire(lab.gw, "wan0") as w:
        for tunnel in lab.tunnels.values():
            if not tunnel.crafted:
                _ping_guest(bench, tunnel, w, (lab.gw.mac("wan0"), "02:00:00:00:00:02"))
    # Scapy's packets must not stand in the replay windows when Sallyport begins at 1.
    lab.reset_peer_sas()
    return f"user-mode Linux {guest.kernel}"


def xdp_frames(ns, device):
    """Frames per receive queue of a veth end."""
    counts = {}
    for line in ns.sh("ethtool", "-S", device).splitlines():
        name, _, value = line.strip().partition(": ")
        if name.startswith("rx_queue_") and name.endswith("_xdp_packets"):
            counts[int(name.split("_")[2])] = int(value)
    return counts


@case("oracles: a frame sent from CPU q arrives on queue q")
def queue_choice(bench):
    if not wire.can_pin():
        raise Skip("needs CPUs 0 and 1")
    lab = bench.lab
    bench.stop_gateway()
    end = scapy_peer.EspEnd(lab.tunnels["craft0"])
    packet = end.seal(scapy_peer.udp("10.3.0.2", "10.1.0.2"))
    frame = wire.ethernet(lab.gw.mac("wan0"), "02:00:00:00:00:02", packet)
    with wire.Wire(lab.peer_ns, "wanp") as w:
        for queue in (0, 1):
            before = xdp_frames(lab.gw, "wan0")
            for _ in range(10):
                w.send(frame, queue)
            eventually(lambda: xdp_frames(lab.gw, "wan0")[queue] - before[queue] >= 10,
                       f"queue {queue} did not see the frames sent from CPU {queue}")
            other = 1 - queue
            check(xdp_frames(lab.gw, "wan0")[other] - before[other] < 10,
                  f"frames sent from CPU {queue} also arrived on queue {other}")
