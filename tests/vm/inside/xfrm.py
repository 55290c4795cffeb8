# SPDX-License-Identifier: Apache-2.0
"""The kernel's register of SAs by NETLINK_XFRM, without `ip`: what is in it, and SAs by the thousand.

Written from the kernel's UAPI for the tests alone: nothing of the daemon's own reading is used.
"""

import dataclasses
import errno
import hashlib
import ipaddress
import os
import socket
import struct
import threading

NEWSA, DELSA, GETSA, NEWPOLICY, DELPOLICY, GETPOLICY = 0x10, 0x11, 0x12, 0x13, 0x14, 0x15
UPDSA, FLUSHSA = 0x1A, 0x1C
GROUP_SA = 3
A_AUTH, A_CRYPT, A_ENCAP, A_TMPL, A_LTIME, A_REPLAY = 1, 2, 4, 5, 9, 10
A_AEAD, A_ESN, A_DIRECTION, A_PCPU = 18, 23, 33, 35
AF_UNSPEC, ESN = 32, 128  # flags of a state
IN, OUT = 1, 2            # its direction
INFINITE = (1 << 64) - 1


class Failed(OSError):
    """The kernel refused; with its own words where it has some."""


def _check(payload, fine=()):
    """Of NLMSG_ERROR: errno, the header of the request, attributes."""
    number = -struct.unpack_from("=i", payload)[0]
    if number not in (0, *fine):
        words = attributes(payload[20:]).get(1, b"").rstrip(b"\0").decode()
        raise Failed(number, words or os.strerror(number))


def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def attributes(raw):
    found, at = {}, 0
    while at + 4 <= len(raw):
        size, kind = struct.unpack_from("=HH", raw, at)
        if size < 4:
            break
        found[kind & 0x3FFF] = raw[at + 4:at + size]
        at += (size + 3) & ~3
    return found


def address(text):
    return ipaddress.ip_address(text).packed.ljust(16, b"\0")


@dataclasses.dataclass
class State:
    source: str
    destination: str
    spi: int
    protocol: int = 50
    reqid: int = 0
    mode: int = 1
    flags: int = 0
    bytes: int = 0
    packets: int = 0
    sent: int = 0          # the last sequence number used
    top: int = 0           # the highest one received
    direction: int = 0
    pcpu: int | None = None
    key: str = ""          # a digest: keys themselves are in no file of the tests


def read_state(raw):
    """Payload of NEWSA, UPDSA."""
    spi, = struct.unpack_from("!I", raw, 72)
    used = struct.unpack_from("=QQ", raw, 160)
    reqid, family = struct.unpack_from("=IH", raw, 208)
    mode, flags = raw[214], raw[216]
    size = 4 if family == socket.AF_INET else 16
    a = attributes(raw[224:])
    sent = top = 0
    if A_ESN in a:
        _, low, low_top, high, high_top, _ = struct.unpack_from("=6I", a[A_ESN])
        sent, top = high << 32 | low, high_top << 32 | low_top
    elif A_REPLAY in a:
        sent, top = struct.unpack_from("=II", a[A_REPLAY])
    secret = b"".join(a.get(kind, b"") for kind in (A_AEAD, A_CRYPT, A_AUTH))
    return State(source=str(ipaddress.ip_address(raw[80:80 + size])),
                 destination=str(ipaddress.ip_address(raw[56:56 + size])), spi=spi,
                 protocol=raw[76], reqid=reqid, mode=mode, flags=flags,
                 bytes=used[0], packets=used[1], sent=sent, top=top,
                 direction=a.get(A_DIRECTION, b"\0")[0],
                 pcpu=struct.unpack("=I", a[A_PCPU])[0] if A_PCPU in a else None,
                 key=hashlib.sha256(secret).hexdigest()[:32] if secret else "")


class Register:
    """One request socket in a namespace."""

    def __init__(self, ns, groups=()):
        mask = sum(1 << (g - 1) for g in groups)

        def open_it():
            s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 6)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
            s.setsockopt(270, 11, 1)  # NETLINK_EXT_ACK: reasons in words
            s.setsockopt(270, 10, 1)  # NETLINK_CAP_ACK: without the request, which has a key
            s.bind((0, mask))
            return s
        self.socket = ns.run_inside(open_it)
        self._sequence = 0

    def close(self):
        self.socket.close()

    def _message(self, kind, flags, body):
        self._sequence += 1
        return struct.pack("=IHHII", 16 + len(body), kind, flags, self._sequence, 0) + body

    def messages(self, raw):
        at = 0
        while at + 16 <= len(raw):
            size, kind, _, _, _ = struct.unpack_from("=IHHII", raw, at)
            yield kind, raw[at + 16:at + size]
            at += (size + 3) & ~3

    def request(self, kind, body, flags=0, fine=()):
        """Sends and waits for the acknowledgement."""
        self.socket.send(self._message(kind, 5 | flags, body))
        for got, payload in self.messages(self.socket.recv(1 << 17)):
            if got == 2:
                _check(payload, fine)

    def requests(self, kind, bodies, flags=0, batch=200):
        """Many, in few system calls."""
        bodies = list(bodies)
        for first in range(0, len(bodies), batch):
            part = bodies[first:first + batch]
            self.socket.send(b"".join(
                (m := self._message(kind, 5 | flags, body)) + b"\0" * (-len(m) % 4)
                for body in part))
            left = len(part)
            while left:
                for got, payload in self.messages(self.socket.recv(1 << 17)):
                    if got != 2:
                        continue
                    left -= 1
                    _check(payload)

    def _dump(self):
        self.socket.send(self._message(GETSA, 0x301, b""))
        while True:
            for kind, payload in self.messages(self.socket.recv(1 << 17)):
                if kind == 3:
                    return
                if kind == 2:
                    _check(payload)
                yield payload

    def states(self):
        return [read_state(payload) for payload in self._dump()]

    def names(self):
        """(destination as 4 bytes, SPI) of all ESP states with IPv4; for thousands of them."""
        return {(raw[56:60], int.from_bytes(raw[72:76], "big")) for raw in self._dump() if raw[76] == 50}

    def flush(self):
        self.request(FLUSHSA, b"\xff")

    def esp(self):
        """States with keys, by (destination, SPI)."""
        return {(s.destination, s.spi): s for s in self.states() if s.protocol == 50 and s.key}

    def delete(self, state):
        self.request(DELSA, address(state.destination)
                     + struct.pack("!I", state.spi) + struct.pack("=HBx", _family(state), 50),
                     fine=(errno.ESRCH,))

    def delete_many(self, states):
        self.requests(DELSA, (address(s.destination) + struct.pack("!I", s.spi)
                              + struct.pack("=HBx", _family(s), 50) for s in states))


def _family(state):
    return socket.AF_INET6 if ":" in state.destination else socket.AF_INET


def new_state(state, key, window=32, esn_window=0):
    """Body of NEWSA: AES-GCM with a 16-byte ICV in tunnel mode; `key` with its salt."""
    head = (bytes(56) + address(state.destination) + struct.pack("!I", state.spi)
            + struct.pack("=B3x", 50) + address(state.source)
            + struct.pack("=8Q", *([INFINITE] * 4), 0, 0, 0, 0) + bytes(32) + bytes(12)
            + struct.pack("=IIHBBB7x", 0, state.reqid, _family(state), 1,
                          0 if esn_window or state.direction == OUT else window, state.flags | AF_UNSPEC))
    out = head + attribute(A_AEAD, b"rfc4106(gcm(aes))".ljust(64, b"\0")
                           + struct.pack("=II", len(key) * 8, 128) + key)
    if esn_window:
        words = (esn_window + 31) // 32
        out += attribute(A_ESN, struct.pack("=6I", words, 0, 0, 0, 0, esn_window) + bytes(4 * words))
    if state.direction:
        out += attribute(A_DIRECTION, bytes([state.direction]))
    if state.pcpu is not None:
        out += attribute(A_PCPU, struct.pack("=I", state.pcpu))
    return out


class KeyLog(threading.Thread):
    """Which key each (destination, SPI) of a namespace ever had, as digests, from its start on."""

    def __init__(self, ns):
        super().__init__(daemon=True)
        self._register = Register(ns, groups=(GROUP_SA,))
        self.keys = set()  # (destination, SPI, digest)
        self.start()

    def run(self):
        while True:
            try:
                raw = self._register.socket.recv(1 << 17)
            except OSError:
                return
            for kind, payload in self._register.messages(raw):
                if kind in (NEWSA, UPDSA):
                    s = read_state(payload)
                    if s.protocol == 50 and s.key:
                        self.keys.add((s.destination, s.spi, s.key))
