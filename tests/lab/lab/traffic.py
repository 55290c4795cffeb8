# SPDX-License-Identifier: Apache-2.0
"""Traffic between the hosts of the lab."""

import contextlib
import json
import random
import select
import socket
import struct
import subprocess
import time

from . import netns

PATIENCE = 15  # seconds for the answers that are still missing
SILENCE = 2    # seconds after which nobody answers


def ping(ns, source, destination, count=5, interval=0.1, size=56):
    """How many of `count` echo requests were answered.

    Not by the program ping: once one is answered, it gives the last of them no longer than
    `interval`, which a busy machine exceeds. Here each has PATIENCE; where none at all was answered,
    which is what cases about refusal expect, SILENCE is enough.
    """
    v6 = ":" in destination
    identity = random.getrandbits(16)
    answered = set()
    with ns.run_inside(lambda: icmp_socket(source, v6)) as s:
        began = time.monotonic()
        for number in range(count):
            with contextlib.suppress(OSError):  # no route, or the kernel's policies refuse it
                s.sendto(echo_request(identity, number, size, v6), (destination, 0))
            _collect(s, answered, identity, count, began + (number + 1) * interval, v6)
        last = time.monotonic()
        _collect(s, answered, identity, count, last + SILENCE, v6)
        if answered:
            _collect(s, answered, identity, count, last + PATIENCE, v6)
    return len(answered)


def icmp_socket(source, v6):
    family, protocol = ((socket.AF_INET6, socket.IPPROTO_ICMPV6) if v6 else
                        (socket.AF_INET, socket.IPPROTO_ICMP))
    s = socket.socket(family, socket.SOCK_RAW, protocol)
    if source:
        s.bind((source, 0))
    return s


def echo_request(identity, number, size, v6):
    head = struct.pack("!BBHHH", 128 if v6 else 8, 0, 0, identity, number)
    message = head + bytes(i & 0xFF for i in range(size))
    if v6:
        return message  # the kernel writes the sum, which has the addresses in it
    words = struct.unpack(f"!{(size + 9) // 2}H", message + bytes(size & 1))
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return message[:2] + struct.pack("!H", total) + message[4:]


def _collect(s, answered, identity, count, until, v6):
    """Numbers of the answers that come until then, or until all have come."""
    while len(answered) < count and (left := until - time.monotonic()) > 0:
        if not select.select([s], [], [], left)[0]:
            return
        answer = echo_answer(s.recv(65535), v6)
        if answer and answer[0] == identity and answer[1] < count:
            answered.add(answer[1])


def echo_answer(packet, v6):
    """(identity, number) of an echo reply; None: it is something else."""
    if not v6:
        packet = packet[(packet[0] & 15) * 4:]
    if len(packet) < 8 or packet[0] != (129 if v6 else 0):
        return None
    return struct.unpack_from("!HH", packet, 4)


def tcp(client_ns, client, server_ns, server, seconds=3, rate=20, reverse=False):
    """One iperf3 TCP stream: (bytes received, bits per second, retransmissions).

    So many bytes as `rate` Mbit/s are in `seconds`, however long a busy machine takes for them.
    """
    listener = server_ns.start("iperf3", "-s", "-1", "-B", server, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    try:
        _wait_listening(server_ns, 5201)
        output = client_ns.sh("iperf3", "-c", server, "-B", client, "-b", f"{rate}M", "-J",
                              "-n", rate * 125_000 * seconds, "--connect-timeout", 10_000,
                              *(["-R"] if reverse else []), timeout=seconds + 50, check=False)
        result = json.loads(output)
        if "error" in result:
            raise netns.CommandFailed(f"iperf3: {result['error']}")
        end = result["end"]
        return (end["sum_received"]["bytes"], end["sum_received"]["bits_per_second"],
                end["sum_sent"].get("retransmits", 0))
    finally:
        if listener.poll() is None:
            listener.terminate()
        listener.wait(5)


def _wait_listening(ns, port, seconds=20):
    deadline = time.monotonic() + seconds
    while f":{port} " not in ns.sh("ss", "-ltn"):
        if time.monotonic() > deadline:
            raise netns.CommandFailed(f"nothing listens on port {port}")
        time.sleep(0.05)
