#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Reads a capture and says whether an ESP sender ever used one (key, IV) twice (RFC 4106 section 3).

    check_ivs.py CAPTURE.pcap [KEYS] [--clear PREFIX ...] [--sender MAC]

KEYS: lines "destination SPI key", the key as any text that names it (a digest). An SA that was taken
away and put back with its key, or under another destination, is one key; without KEYS each
(destination, SPI) counts as a key of its own. --clear: networks whose traffic with each other belongs into
a tunnel, so that no packet between them may be seen. --sender: only frames from this MAC are judged by --clear; those in
clear of others are counted and reported beside it. Exit status 0: nothing twice, nothing in clear, something seen.

Plain Python on the bytes of the file; nothing of the project is used.
"""

import argparse
import collections
import functools
import ipaddress
import struct
import sys

ESP, UDP, NAT_T = 50, 17, 4500


def frames(path):
    with open(path, "rb") as f:
        data = f.read()
    order = {b"\xd4\xc3\xb2\xa1": "<", b"\xa1\xb2\xc3\xd4": ">"}.get(data[:4])
    if order is None:
        sys.exit(f"{path} is no pcap file with microseconds")
    if struct.unpack_from(order + "I", data, 20)[0] & 0xFFFF != 1:
        sys.exit(f"{path} is not of an Ethernet device")
    at = 24
    while at + 16 <= len(data):
        _, _, kept, size = struct.unpack_from(order + "IIII", data, at)
        yield data[at + 16:at + 16 + kept], size
        at += 16 + kept


def packet(frame):
    """(source, destination, protocol, payload) or None for what is not IP."""
    if len(frame) < 34:
        return None
    kind, at = struct.unpack_from("!H", frame, 12)[0], 14
    while kind in (0x8100, 0x88A8):
        kind, at = struct.unpack_from("!H", frame, at + 2)[0], at + 4
    if kind == 0x0800:
        length = (frame[at] & 15) * 4
        if struct.unpack_from("!H", frame, at + 6)[0] & 0x1FFF:
            return frame[at + 12:at + 16], frame[at + 16:at + 20], -1, b""  # a later fragment
        return (frame[at + 12:at + 16], frame[at + 16:at + 20], frame[at + 9], frame[at + length:])
    if kind == 0x86DD and len(frame) >= at + 40:
        return frame[at + 8:at + 24], frame[at + 24:at + 40], frame[at + 6], frame[at + 40:]
    return None


def esp(protocol, payload):
    """(SPI, sequence number, IV) or None."""
    if protocol == UDP and len(payload) >= 8 + 16:
        if NAT_T not in struct.unpack_from("!HH", payload):
            return None
        payload = payload[8:]
        if payload[:4] == bytes(4):  # non-ESP marker: IKE
            return None
    elif protocol != ESP or len(payload) < 16:
        return None
    return struct.unpack_from("!II8s", payload)


class Result:
    def __init__(self):
        self.packets = 0
        self.spis = set()
        self.keys = set()
        self.repeated = []
        self.clear = []
        self.clear_of_others = []  # reported, not judged: what another sender did
        self.unknown = set()

    def good(self):
        return self.packets and not (self.repeated or self.clear or self.unknown)

    def details(self):
        return "\n".join(
            [f"SPI {spi}: IV {iv} in packet {before[0]} (sequence {before[1]})"
             f" and again in packet {now[0]} (sequence {now[1]})"
             for spi, iv, before, now in self.repeated[:20]]
            + [f"packet {number} in clear: {source} -> {destination}, protocol {protocol}"
               for number, source, destination, protocol in self.clear[:20]]
            + [f"packet {number} in clear, of another sender: {source} -> {destination}, protocol {protocol}"
               for number, source, destination, protocol in self.clear_of_others[:20]]
            + [f"SPI {spi:#010x} to {destination}: its key is not known"
               for destination, spi in sorted(self.unknown)[:20]])

    def __str__(self):
        return (f"{self.packets} ESP packets, {len(self.spis)} SPIs, {len(self.keys)} keys:"
                f" {len(self.repeated)} IVs twice, {len(self.clear)} packets in clear,"
                f" {len(self.unknown)} SPIs of unknown keys" +
                (f"; {len(self.clear_of_others)} packets in clear of other senders" if self.clear_of_others else ""))


@functools.lru_cache(maxsize=None)
def _address(raw):
    return ipaddress.ip_address(raw)


def examine(path, keys=None, clear=(), sender=None):
    """keys: {(destination, SPI): name of the key}; clear: networks; sender: MAC (bytes) of who is judged."""
    result, seen = Result(), collections.defaultdict(dict)
    for number, (frame, _) in enumerate(frames(path), 1):
        if (parts := packet(frame)) is None:
            continue
        source, destination = map(_address, parts[:2])
        if all(any(end in net for net in clear) for end in (source, destination)):
            own = sender is None or frame[6:12] == sender
            (result.clear if own else result.clear_of_others).append(
                (number, str(source), str(destination), parts[2]))
        if (found := esp(*parts[2:])) is None:
            continue
        spi, sequence, iv = found
        name = (str(destination), spi)
        if keys is not None and name not in keys:
            result.unknown.add(name)
        key = (keys or {}).get(name, name)
        result.packets += 1
        result.spis.add(name)
        result.keys.add(key)
        if (before := seen[key].get(iv)) is not None:
            result.repeated.append((f"{spi:#010x}", iv.hex(), before, (number, sequence)))
        else:
            seen[key][iv] = (number, sequence)
    return result


def read_keys(path):
    keys = {}
    with open(path, encoding="ascii") as f:
        for line in f:
            destination, spi, key = line.split()
            name = (str(ipaddress.ip_address(destination)), int(spi, 0))
            if keys.setdefault(name, key) != key:
                sys.exit(f"{path}: two keys for {destination} {spi}: the file must be of one run")
    return keys


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capture")
    parser.add_argument("keys", nargs="?")
    parser.add_argument("--clear", nargs="+", default=[], type=ipaddress.ip_network)
    parser.add_argument("--sender", type=lambda mac: bytes.fromhex(mac.replace(":", "")))
    args = parser.parse_args()
    keys = read_keys(args.keys) if args.keys else None
    result = examine(args.capture, keys, args.clear, args.sender)
    print(*filter(None, (result.details(), str(result))), sep="\n")
    return 0 if result.good() else 1


if __name__ == "__main__":
    sys.exit(main())
