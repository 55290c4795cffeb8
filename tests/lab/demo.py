#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Sallyport at work: a tunnel to a real Linux gateway, traffic through it, and what the operator sees.

    demo.py [--build DIR]

Everything is inside namespaces that end with this program, also after Ctrl-C.
"""

import argparse
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from lab import daemon, enclosure, scapy_peer, topology, traffic, uml, wire  # noqa: E402

PICTURE = """
     lan                    gw                          peer                    far
  10.1.x.2 ──────── lan0 Sallyport wan0 ════════ Linux (user mode) ──────── 10.2.x.2
  clear text          10.1.x.1  192.0.2.1   ESP   192.0.2.2  10.2.x.1     clear text

Each name above is a network namespace. Of the eight tunnels the Linux gateway ends five: 'plain'
and 'esn', used below, and IPv4 in IPv6, IPv6 in IPv4, IPv6 in IPv6. The three called craft... end
in scapy, which also sends what no honest gateway would.
"""


def headline(text):
    print(f"\n== {text}", flush=True)


def indent(text):
    print("\n".join("   " + line for line in text.rstrip().splitlines()), flush=True)


def say(text):
    print("   " + text, flush=True)


def counters(gateway):
    """Packets by SA and by worker, for a comparison before and after."""
    return ({s["name"]: s["packets"] for s in gateway.show("sa")},
            [(w["inbound"]["delivered"], w["outbound"]["delivered"])
             for w in gateway.show("workers")])


def moved(gateway, before):
    sas, workers = counters(gateway)
    for name in sas:
        if count := sas[name] - before[0][name]:
            say(f"SA {name:10} {count:+7} packets")
    for number, (inbound, outbound) in enumerate(workers):
        was_in, was_out = before[1][number]
        say(f"worker {number}      {inbound - was_in:+7} inbound, {outbound - was_out:+7} outbound")


def show(lab, gateway):
    headline("what the gateway says of itself (sallyportctl show status)")
    indent(gateway.table("status"))
    say("(reasons and notes are about this machine's kernel and drivers; the demo works with any)")

    for name, what in (("plain", "AES-GCM-128, worker 0"), ("esn", "AES-GCM-256 with ESN, worker 1")):
        tunnel = lab.tunnels[name]
        headline(f"ping both ways through '{name}' ({what})")
        before = counters(gateway)
        for ns, source, destination in ((lab.lan, tunnel.local_host, tunnel.remote_host),
                                        (lab.far, tunnel.remote_host, tunnel.local_host)):
            say(f"{source} to {destination}: "
                f"{traffic.ping(ns, source, destination, 5)} of 5 answered")
        moved(gateway, before)

        headline(f"TCP both ways through '{name}': iperf3 at 20 Mbit/s, 2 s each")
        before = counters(gateway)
        for reverse, way in ((False, "lan to far"), (True, "far to lan")):
            received, rate, again = traffic.tcp(lab.lan, tunnel.local_host, lab.far,
                                                tunnel.remote_host, seconds=2, reverse=reverse)
            say(f"{way}: {received / 1e6:.1f} MB, {rate / 1e6:.1f} Mbit/s, {again} retransmissions")
        moved(gateway, before)

    headline("a packet that must pass, and those that must not (made by scapy, the lab's second gateway)")
    attack(lab, gateway)

    headline("what the operator sees: workers (sallyportctl show workers)")
    indent(gateway.table("workers"))
    headline("what the operator sees: SAs (sallyportctl show sa)")
    indent(gateway.table("sa"))
    headline("what the operator sees: drops, each with its reason (sallyportctl show drops)")
    indent(gateway.table("drops"))


def attack(lab, gateway):
    """One good packet, and what an attacker would make of it; says what Sallyport answered."""
    end = scapy_peer.EspEnd(lab.tunnels["craft0"])
    clear = scapy_peer.udp("10.3.0.2", "10.1.0.2")
    good = end.seal(clear)
    damaged = bytearray(end.seal(clear))
    damaged[-1] ^= 1
    with wire.Wire(lab.peer_ns, "wanp") as peer, wire.Wire(lab.lan, "eth0") as lan:
        for what, packet in (("a good packet", good), ("the same packet again", good),
                             ("one with a damaged ICV", bytes(damaged)),
                             ("one with an unknown SPI", end.seal(clear, spi=0x1234)),
                             ("one from another tunnel's host",
                              end.seal(scapy_peer.udp("10.2.0.2", "10.1.0.2"))),
                             ("the same in clear", bytes(clear))):
            before, first = gateway.drops(), len(lan.frames)
            peer.send(wire.ethernet(lab.gw.mac("wan0"), "02:00:00:00:00:02", packet))
            arrived = lan.wait(lambda f: f[12:14] == b"\x08\x00" and f[23] == 17, 0.5, first)
            dropped = [r for r, count in gateway.drops().items() if count > before[r]]
            say(f"{what + ':':32}" + ("delivered" if arrived else
                                      f"dropped, {' '.join(dropped) or 'without a reason'}"))


def main(build):
    print(PICTURE)
    started = time.monotonic()
    lab = topology.Lab(build)
    gateway = None
    try:
        headline("booting the peer gateway: a Linux kernel with its own ESP, as a process")
        say(f"Linux {lab.peer().kernel}, in {time.monotonic() - started:.1f} s")
        headline("starting sallyportd: 2 queues, 2 workers, keys made for this run")
        gateway = daemon.Daemon(lab, build).start()
        show(lab, gateway)
        headline("stopping: programs, SAs, TAP and routes are taken away again")
        say(f"sallyportd ended with status {gateway.stop()}")
        return 0
    except (uml.PeerUnavailable, daemon.DaemonFailed) as e:
        print(f"demo: {e}", file=sys.stderr)
        return 1
    finally:
        if gateway:
            gateway.kill()
        lab.close()
        headline("everything is down again; a tunnel of your own: README.md, The first tunnel")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", default="build", help="meson's build directory")
    build_dir = os.path.abspath(parser.parse_args().build)
    sys.exit(enclosure.run(lambda: main(build_dir)))
