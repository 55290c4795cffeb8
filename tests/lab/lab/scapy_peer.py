# SPDX-License-Identifier: Apache-2.0
"""The second oracle: ESP made and opened by scapy, as the gateway at either end of a tunnel.

It makes what Linux would not: a damaged ICV, a sequence number twice, inner packets outside the
selectors. Its own checks (padding, next header, ICV) are what an opened packet has passed.
"""

import logging
import secrets

logging.getLogger("scapy").setLevel(logging.ERROR)

from scapy.layers.inet import ICMP, IP, UDP  # noqa: E402
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, ICMPv6ND_RA, ICMPv6TimeExceeded, IPv6  # noqa: E402
from scapy.layers.ipsec import ESP, SecurityAssociation, _ESPPlain  # noqa: E402
from scapy.layers.l2 import Ether  # noqa: E402
from scapy.packet import Raw  # noqa: E402

NEXT_HEADER_IPV4, NEXT_HEADER_IPV6, NEXT_HEADER_NONE = 4, 41, 59


def ip(source, destination, **fields):
    """An IP header of the addresses' family."""
    return (IPv6 if ":" in source else IP)(src=source, dst=destination, **fields)


def echo_request(source, destination, number):
    """A whole ICMP or ICMPv6 echo request."""
    header = ip(source, destination)
    if header.version == 6:
        return header / ICMPv6EchoRequest(id=0x5350, seq=number, data=b"sallyport lab")
    return header / ICMP(id=0x5350, seq=number) / Raw(b"sallyport lab")


def time_exceeded(source, packet):
    """What `source` tells the sender of a packet: an ICMP error that quotes it."""
    header = ip(source, packet.src)
    return header / (ICMPv6TimeExceeded() if header.version == 6 else ICMP(type=11)) / bytes(packet)


def router_advertisement(router):
    """What a router that is a default route for half an hour says to all hosts of its link."""
    return IPv6(src=router, dst="ff02::1", hlim=255) / ICMPv6ND_RA(routerlifetime=1800)


def is_echo_reply(packet, source, destination, number):
    layer = ICMPv6EchoReply if packet.version == 6 else ICMP
    return (packet.src == source and packet.dst == destination and layer in packet
            and packet[layer].seq == number
            and (packet.version == 6 or packet[ICMP].type == 0))


class EspEnd:
    """One end of a tunnel of topology.Tunnel.

    remote=True plays the peer (sends what Sallyport receives), False plays Sallyport itself.
    """

    def __init__(self, tunnel, remote=True):
        self.tunnel = tunnel
        ours, theirs = ((tunnel.peer, tunnel.near), (tunnel.near, tunnel.peer))[not remote]
        sending, receiving = (((tunnel.spi_in, tunnel.key_in), (tunnel.spi_out, tunnel.key_out)),
                              ((tunnel.spi_out, tunnel.key_out), (tunnel.spi_in, tunnel.key_in))
                              )[not remote]
        self._out = self._sa(*sending, ip(ours, theirs))
        self._in = self._sa(*receiving, ip(theirs, ours))
        self.sequence = 0  # last one used

    def _sa(self, spi, key, header):
        return SecurityAssociation(ESP, spi=spi, crypt_algo=self.tunnel.scapy_name, crypt_key=key,
                                   tunnel_header=header, esn_en=self.tunnel.esn)

    def seal(self, inner, sequence=None, next_header=None, spi=None, pad_bytes=None, **outer):
        """The outer packet (bytes) around `inner`, a scapy packet or bytes.

        outer: fields of the outer IP header to set, e.g. tos=3.
        """
        if sequence is None:
            self.sequence += 1
            sequence = self.sequence
        if next_header is None:
            next_header = (NEXT_HEADER_IPV4, NEXT_HEADER_IPV6)[bytes(inner)[0] >> 4 == 6]
        algorithm = self._out.crypt_algo
        plain = _ESPPlain(spi=spi or self._out.spi, seq=sequence & 0xFFFFFFFF,
                          iv=algorithm.generate_iv(), data=bytes(inner), nh=next_header)
        plain = algorithm.pad(plain)
        if pad_bytes is not None:
            plain.padding = pad_bytes(plain.padding)
        sealed = algorithm.encrypt(self._out, plain, self._out.crypt_key,
                                   esn_en=self.tunnel.esn, esn=sequence >> 32)
        header = self._out.tunnel_header.copy()
        setattr(header, "proto" if header.version == 4 else "nh", 50)
        for field, value in outer.items():
            setattr(header, field, value)
        return bytes(header / sealed)

    def open(self, frame):
        """The inner packet of an Ethernet frame, or None when it is not for this end's SA."""
        packet = Ether(frame).payload
        if ESP not in packet or packet[ESP].spi != self._in.spi:
            return None
        return self._in.decrypt(packet)


def udp(source, destination, port=9, payload=b"sallyport lab"):
    return ip(source, destination) / UDP(sport=4000, dport=port) / Raw(payload)


def vpn_packets(source, destination):
    """What the VPN of a host is made of: ESP whole and in pieces, too short for any SA, and in UDP."""
    protocol = "nh" if ":" in source else "proto"
    esp = [ip(source, destination, **{protocol: 50}) / Raw(secrets.token_bytes(size))
           for size in (64, 64, 1200, 7)]
    pieces = [] if ":" in source else [
        ip(source, destination, proto=50, **piece) / Raw(secrets.token_bytes(64))
        for piece in ({"flags": "MF"}, {"frag": 8})]
    in_udp = [ip(source, destination) / UDP(sport=4500, dport=4500) / Raw(secrets.token_bytes(64))]
    return [bytes(packet) for packet in (*esp, *pieces, *in_udp)]
