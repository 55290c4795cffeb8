# SPDX-License-Identifier: Apache-2.0
"""Frames sent and seen at one end of a link, by AF_PACKET."""

import os
import select
import socket
import struct
import threading
import time

SOL_PACKET = 263
PACKET_QDISC_BYPASS = 20
PACKET_OUTGOING = 4
ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86DD


def ethernet(destination, source, packet):
    """An Ethernet frame around an IP packet (bytes)."""
    kind = ETH_P_IPV6 if packet[0] >> 4 == 6 else ETH_P_IP
    mac = [bytes.fromhex(m.replace(":", "")) for m in (destination, source)]
    return mac[0] + mac[1] + struct.pack("!H", kind) + packet


def esp_of(frame):
    """(SPI, sequence, IV) of an ESP frame, or None."""
    kind = struct.unpack_from("!H", frame, 12)[0]
    if kind == ETH_P_IP and len(frame) >= 50 and frame[23] == 50:
        return struct.unpack_from("!II8s", frame, 14 + (frame[14] & 15) * 4)
    if kind == ETH_P_IPV6 and len(frame) >= 70 and frame[20] == 50:
        return struct.unpack_from("!II8s", frame, 54)
    return None


class Wire:
    """Sends on a device and records what arrives there, until close()."""

    def __init__(self, ns, device):
        self.frames = []  # of what arrives: whole Ethernet frames, in order
        self._news = threading.Condition()
        self._in = ns.packet_socket(device)
        self._in.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._out = ns.packet_socket(device, protocol=0)
        # No qdisc: the driver's transmit queue is then chosen by the CPU that sends.
        self._out.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        self._stop = False
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._stop = True
        self._thread.join(2)
        self._in.close()
        self._out.close()

    def _receive(self):
        while not self._stop:
            if not select.select([self._in], [], [], 0.1)[0]:
                continue
            try:
                frame, address = self._in.recvfrom(65535)
            except OSError:
                return
            if address[2] != PACKET_OUTGOING:
                with self._news:
                    self.frames.append(frame)
                    self._news.notify_all()

    def send(self, frame, queue=None):
        """Sends; with `queue`, from the CPU of that number, so that it leaves on that queue."""
        if queue is None:
            self._out.send(frame)
            return
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {queue})
        try:
            self._out.send(frame)
        finally:
            os.sched_setaffinity(0, before)

    def wait(self, wanted, seconds=20, first=0):
        """The first frame from index `first` on for which wanted(frame), or None in time."""
        deadline = time.monotonic() + seconds
        with self._news:
            i = first
            while True:
                while i < len(self.frames):
                    if wanted(self.frames[i]):
                        return self.frames[i]
                    i += 1
                if not self._news.wait(max(0.0, deadline - time.monotonic())):
                    return None


def can_pin(queues=2):
    """Whether CPUs 0 .. queues-1 are ours to send from."""
    return set(range(queues)) <= os.sched_getaffinity(0)
