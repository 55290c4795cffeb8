# SPDX-License-Identifier: Apache-2.0
"""Small packets by hand: importing scapy takes ten seconds here."""

import socket
import struct


def ipv4(source, destination, protocol, payload):
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0,
                       socket.inet_aton(source), socket.inet_aton(destination))
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:] + payload


def udp(source, destination, source_port, port, data=b"x" * 18):
    """UDP without a checksum, which IPv4 allows."""
    return ipv4(source, destination, 17,
                struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data)


def esp(source, destination, spi, sequence=1, body=bytes(64)):
    """What looks like ESP; no key has made it."""
    return ipv4(source, destination, 50, struct.pack("!II", spi, sequence) + body)
