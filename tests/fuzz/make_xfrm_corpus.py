#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the seed corpus of xfrm_fuzz: valid messages of each kind, as dump and as notifications.

Usage: tests/fuzz/make_xfrm_corpus.py    (writes tests/fuzz/corpus/xfrm/)
"""

import ipaddress
import pathlib
import struct

HERE = pathlib.Path(__file__).resolve().parent
NEWSA, DELSA, NEWPOLICY, DELPOLICY = 0x10, 0x11, 0x13, 0x14
ACQUIRE, EXPIRE, UPDPOLICY, UPDSA, POLEXPIRE = 0x17, 0x18, 0x19, 0x1A, 0x1B
FLUSHSA, FLUSHPOLICY, NEWAE, MIGRATE, MAPPING = 0x1C, 0x1D, 0x1E, 0x21, 0x26
NO_LIMIT = (1 << 64) - 1


def address(text):
    return ipaddress.ip_address(text).packed.ljust(16, b"\0")


def family(text):
    return 10 if ":" in text else 2


def attribute(kind, value):
    return struct.pack("HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def message(kind, payload, port=0):
    payload += b"\0" * (-len(payload) % 4)
    return struct.pack("IHHII", 16 + len(payload), kind, 0, 0, port) + payload


def state(spi, dst="192.0.2.1", src="192.0.2.9", reqid=7, flags=0, proto=50):
    return (b"\0" * 56 + address(dst) + struct.pack(">IB3x", spi, proto) + address(src)
            + struct.pack("8Q", *[NO_LIMIT] * 4, 0, 0, 3000, 3600) + struct.pack("4Q", 1, 2, 3, 4)
            + b"\0" * 12 + struct.pack("IIHBBB7x", 0, reqid, family(dst), 1, 32, flags))


def aead(key=b"k" * 20):
    return attribute(18, b"rfc4106(gcm(aes))".ljust(64, b"\0")
                     + struct.pack("II", len(key) * 8, 128) + key)


def algorithm(kind, name, key, *trunc):
    return attribute(kind, name.ljust(64, b"\0") + struct.pack("I", len(key) * 8)
                     + b"".join(struct.pack("I", bits) for bits in trunc) + key)


def replay(words=2, sent=5, top=6, sent_high=0, top_high=0):
    return attribute(23, struct.pack("6I", words, sent, top, sent_high, top_high, words * 32)
                     + b"\0" * 4 * words)


def identity(spi, dst="192.0.2.1"):
    return address(dst) + struct.pack(">I", spi) + struct.pack("HBx", family(dst), 50)


def policy(index, priority=1000, action=0):
    selector = (address("10.2.0.0") + address("10.1.0.0") + b"\0" * 8
                + struct.pack("HBBB3xiI", 2, 16, 16, 0, 0, 0))
    return (selector + struct.pack("8Q", *[NO_LIMIT] * 4, 0, 0, 0, 0) + b"\0" * 32
            + struct.pack("IIBBBB4x", priority, index, index & 7, action, 0, 0))


def template():
    return attribute(5, address("192.0.2.1") + struct.pack(">IB3x", 0, 50)
                     + struct.pack("H2x", 2) + address("192.0.2.9")
                     + struct.pack("IBBBx3I", 7, 1, 0, 0, *[0xFFFFFFFF] * 3))


def seeds():
    full = message(NEWSA, state(0x1001) + aead() + replay() + attribute(33, b"\1")
                   + attribute(35, struct.pack("I", 1)) + attribute(15, struct.pack("Q", 9)))
    esn = message(NEWSA, state(0x1002, "2001:db8::1", "2001:db8::2", flags=128) + aead(b"k" * 36)
                  + replay(4, 5, 6, 1, 2) + attribute(21, struct.pack("II", 1, 3))
                  + attribute(31, struct.pack("I", 9)))
    cbc = message(NEWSA, state(0x1003) + algorithm(1, b"hmac(sha256)", b"a" * 32)
                  + algorithm(20, b"hmac(sha256)", b"a" * 32, 128)
                  + algorithm(2, b"cbc(aes)", b"c" * 16)
                  + attribute(10, struct.pack("III", 7, 8, 9)) + attribute(4, b"\0" * 24)
                  + attribute(14, b"\0" * 16) + attribute(29, struct.pack("I", 1))
                  + attribute(30, struct.pack("I", 1)) + attribute(22, struct.pack("I", 64)))
    larval = message(NEWSA, state(0x1004) + attribute(10, b"\0" * 12))
    hidden = message(NEWSA, state(0x1005) + aead(b"\0" * 20) + attribute(28, b"\0" * 8)
                     + attribute(8, b"\0" * 8) + attribute(24, struct.pack("I", 1)))
    own = message(NEWSA, state(0x1006, reqid=0x53500001) + aead())
    protect = message(NEWPOLICY, policy(9) + template() + attribute(16, b"\0" * 6)
                      + attribute(21, struct.pack("II", 1, 3)))
    block = message(NEWPOLICY, policy(17, 5, 1))
    guard = message(NEWPOLICY, policy(0x53000001))
    event = identity(0x1001) + address("192.0.2.9") + struct.pack("II", 16, 7)
    counters = replay() + attribute(9, struct.pack("4Q", 100, 2, 3, 4))
    deleted = message(DELSA, identity(0x1001) + attribute(6, state(0x1001)) + aead())
    everything = full + esn + cbc + larval + hidden + own + protect + block + guard
    return {
        "dump": (everything, b""),
        "states": (b"", full + esn + cbc + larval + hidden + own),
        "replaced": (full, deleted + full + message(UPDSA, state(0x1001) + aead(b"x" * 20))),
        "keyed": (larval, message(UPDSA, state(0x1004) + aead() + replay())),
        "events": (full + esn, message(NEWAE, event + counters)
                   + message(NEWAE, event[:40] + struct.pack("II", 64, 7) + counters, 4711)),
        "expiries": (full + cbc, message(EXPIRE, state(0x1001) + b"\0" * 8)
                     + message(EXPIRE, state(0x1001) + b"\1" + b"\0" * 7, 4711)
                     + message(EXPIRE, state(0x1003) + b"\1" + b"\0" * 7)),
        "flushes": (everything, message(FLUSHSA, b"\x32") + message(FLUSHPOLICY, b"")),
        "policies": (protect + block, message(UPDPOLICY, policy(9, 7) + template())
                     + message(DELPOLICY, b"\0" * 56 + struct.pack("IB3x", 0, 1)
                               + attribute(7, policy(9)))
                     + message(POLEXPIRE, policy(17) + b"\1" + b"\0" * 7)),
        "others": (full, message(ACQUIRE, address("192.0.2.1") + struct.pack(">IB3x", 0, 50)
                                 + address("192.0.2.9") + b"\0" * 56 + policy(9)
                                 + b"\0" * 16 + template())
                   + message(MAPPING, b"\0" * 64) + message(MIGRATE, b"\0" * 64)
                   + message(0x29, b"") + message(4, b"")),
    }


def main():
    folder = HERE / "corpus" / "xfrm"
    folder.mkdir(parents=True, exist_ok=True)
    for name, (dump, notifications) in seeds().items():
        dump += message(1, b"\0" * (-(len(dump) + 16) % 16)) if dump else b""  # to a whole unit
        assert len(dump) % 16 == 0 and len(dump) // 16 < 256, name
        (folder / name).write_bytes(bytes([len(dump) // 16]) + dump + notifications)


if __name__ == "__main__":
    main()
