# SPDX-License-Identifier: Apache-2.0
"""A station of our own on a link: it answers for addresses, with a MAC that may change silently.

A kernel that gets another MAC asks for its own neighbours at once, and by that tells its own. This
one says nothing that it is not asked for, and then only the truth of that moment.
"""

import socket
import threading

from . import wire
from .scapy_peer import Ether

from scapy.layers.inet6 import (ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr,  # noqa: E402
                                IPv6)
from scapy.layers.l2 import ARP  # noqa: E402


class Station:
    """Until close(). `wire`: everything that arrives on the link."""

    def __init__(self, ns, device, addresses, mac):
        self.mac = mac  # None: it answers nobody
        self._addresses = set(addresses)
        self.wire = wire.Wire(ns, device)
        self._seen = 0
        self._stop = False
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stop = True
        self._thread.join(5)
        self.wire.close()

    def _answer(self):
        while not self._stop:
            frame = self.wire.wait(_asks, seconds=0.1, first=self._seen)
            if frame is None:
                continue
            self._seen = self.wire.frames.index(frame, self._seen) + 1
            answer = self._answer_to(Ether(frame))
            if answer:
                self.wire.send(bytes(answer))

    def _answer_to(self, frame):
        mac = self.mac
        # Not by a MAC that it does not have: a probe of the one before gets no answer.
        if mac is None or not (frame.dst == mac or int(frame.dst[:2], 16) & 1):
            return None
        if ARP in frame:
            asked = frame[ARP]
            if asked.op != 1 or asked.pdst not in self._addresses:
                return None
            return Ether(dst=asked.hwsrc, src=mac) / ARP(
                op=2, hwsrc=mac, psrc=asked.pdst, hwdst=asked.hwsrc, pdst=asked.psrc)
        asked = frame[ICMPv6ND_NS]
        if asked.tgt not in self._addresses:
            return None
        return (Ether(dst=frame.src, src=mac) / IPv6(src=asked.tgt, dst=frame[IPv6].src, hlim=255)
                / ICMPv6ND_NA(tgt=asked.tgt, R=0, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=mac))

    def arrived(self, mac, is_wanted, first=0):
        """How many wanted frames have come to a MAC, from frame number `first` on."""
        destination = bytes.fromhex(mac.replace(":", ""))
        return sum(1 for f in self.wire.frames[first:] if f[:6] == destination and is_wanted(f))


def _asks(frame):
    """Whether it may be an ARP request or a neighbour solicitation."""
    if frame[12:14] == b"\x08\x06":
        return True
    return frame[12:14] == b"\x86\xdd" and frame[20] == socket.IPPROTO_ICMPV6 and frame[54] == 135
