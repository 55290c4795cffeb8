#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the seed corpus of the pipeline fuzzers: one valid record set for each mode.

Usage: tests/fuzz/make_corpus.py    (writes tests/fuzz/corpus/{inbound,outbound}/)
"""

import ipaddress
import pathlib
import struct

HERE = pathlib.Path(__file__).resolve().parent


def checksum(header):
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(source, destination, protocol, payload, flags=0, options=b"", ttl=64):
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45 + len(options) // 4, 0, 20 + len(options) + len(payload), 1, flags,
        ttl, protocol, 0, ipaddress.ip_address(source).packed,
        ipaddress.ip_address(destination).packed) + options
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def ipv6(source, destination, next_header, payload):
    return struct.pack("!IHBB16s16s", 0x60012345, len(payload), next_header, 64,
                       ipaddress.ip_address(source).packed,
                       ipaddress.ip_address(destination).packed) + payload


def udp(source, destination, size=20):
    return struct.pack("!HHHH", source, destination, 8 + size, 0) + b"a" * size


def chain(*headers, last, payload):
    """IPv6 extension headers; each is (type, body without its first byte)."""
    kinds = [kind for kind, _ in headers] + [last]
    content = b"".join(bytes([kinds[i + 1]]) + body for i, (_, body) in enumerate(headers))
    return kinds[0], content + payload


def ethernet(packet):
    return b"\x02" * 12 + (b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00") + packet


def text(packet):
    pad = -(len(packet) + 2) % 4
    return packet + bytes(range(1, pad + 1)) + bytes([pad, 41 if packet[0] >> 4 == 6 else 4])


def records(mode, items):
    return bytes([mode]) + b"".join(struct.pack("!H", len(item)) + item for item in items)


def write(folder, name, content):
    path = HERE / "corpus" / folder
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(content)


def main():
    hop_by_hop = (0, b"\x00\x01\x04\x00\x00\x00\x00")
    routing = (43, b"\x00\xfd\x00\x00\x00\x00\x00")
    first = (44, b"\x00\x00\x01\x00\x00\x00\x07")
    later = (44, b"\x00\x00\x18\x00\x00\x00\x07")
    inner = [
        ipv4("10.1.0.5", "10.4.0.9", 17, udp(1000, 2000)),
        ipv4("10.1.0.5", "10.2.0.9", 17, udp(1000, 53)),
        ipv4("10.1.0.5", "10.4.0.9", 6, b"\x00" * 20, options=b"\x01" * 8),
        ipv4("10.1.0.5", "10.2.0.9", 17, udp(1000, 53), flags=0x0003),
        ipv4("10.1.0.5", "10.4.0.9", 1, b"\x08" + b"\x00" * 7, ttl=1),
        ipv4("10.1.66.5", "10.4.0.9", 17, udp(1, 2)),
        ipv4("10.1.0.5", "10.99.0.9", 17, udp(1, 2)),
        ipv4("10.1.0.5", "10.3.0.9", 17, udp(1, 2)),
        ipv6("2001:db8:1::5", "2001:db8:2::9", 17, udp(1, 2)),
    ]
    for extensions in ([hop_by_hop], [hop_by_hop, routing, first], [later]):
        inner.append(ipv6("2001:db8:1::5", "2001:db8:2::9",
                          *chain(*extensions, last=17, payload=udp(1, 2))))

    esp = struct.pack("!II", 0x1001, 1) + b"\x00" * 60
    nat = struct.pack("!HHHH", 4500, 4500, 8 + len(esp), 0) + esp
    kind, content = chain(hop_by_hop, last=50, payload=esp)
    outer = [
        ipv4("192.0.2.1", "192.0.2.2", 50, esp),
        ipv4("192.0.2.1", "192.0.2.2", 50, esp, flags=0x2000),
        ipv4("192.0.2.1", "192.0.2.2", 50, esp, options=b"\x01" * 4),
        ipv4("192.0.2.1", "192.0.2.2", 17, nat),
        ipv6("2001:db8:ffff::1", "2001:db8:ffff::2", 50, esp),
        ipv6("2001:db8:ffff::1", "2001:db8:ffff::2", kind, content),
    ]
    for mode in range(8):
        write("outbound", f"mode{mode}", records(mode, [ethernet(packet) for packet in inner]))
        if mode % 2 == 0:
            write("inbound", f"mode{mode}", records(mode, [ethernet(packet) for packet in outer]))
        else:
            dummy = b"\x00" * 10 + bytes([0, 59])
            write("inbound", f"mode{mode}",
                  records(mode, [text(packet) for packet in inner] + [dummy]))


if __name__ == "__main__":
    main()
