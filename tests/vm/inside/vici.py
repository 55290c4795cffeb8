# SPDX-License-Identifier: Apache-2.0
"""strongSwan's control protocol (vici), the little of it that the cases need.

swanctl says the same, but each call of it costs half a second here. A message is a dict: values are
text, lists of text, or dicts again; what comes back has text for bytes.
"""

import socket
import struct

REQUEST, RESPONSE, UNKNOWN, REGISTER, UNREGISTER, CONFIRM, NO_EVENT, EVENT = range(8)
SECTION_START, SECTION_END, KEY_VALUE, LIST_START, LIST_ITEM, LIST_END = range(1, 7)


class Refused(Exception):
    """charon did not do it; the text is its reason."""


def _name(text):
    raw = text.encode()
    return bytes([len(raw)]) + raw


def _value(value):
    raw = value if isinstance(value, bytes) else str(value).encode()
    return struct.pack("!H", len(raw)) + raw


def encode(message):
    out = b""
    for key, value in message.items():
        if isinstance(value, dict):
            out += bytes([SECTION_START]) + _name(key) + encode(value) + bytes([SECTION_END])
        elif isinstance(value, (list, tuple)):
            items = b"".join(bytes([LIST_ITEM]) + _value(item) for item in value)
            out += bytes([LIST_START]) + _name(key) + items + bytes([LIST_END])
        else:
            out += bytes([KEY_VALUE]) + _name(key) + _value(value)
    return out


def decode(raw):
    root, at = {}, 0
    sections, items = [root], None

    def take(form):
        nonlocal at
        size, = struct.unpack_from(form, raw, at)
        at += struct.calcsize(form)
        piece = raw[at:at + size]
        at += size
        return piece.decode(errors="replace")

    while at < len(raw):
        kind = raw[at]
        at += 1
        if kind == SECTION_START:
            sections.append(sections[-1].setdefault(take("!B"), {}))
        elif kind == SECTION_END:
            sections.pop()
        elif kind == KEY_VALUE:
            key = take("!B")
            sections[-1][key] = take("!H")
        elif kind == LIST_START:
            items = sections[-1].setdefault(take("!B"), [])
        elif kind == LIST_ITEM:
            items.append(take("!H"))
        elif kind != LIST_END:
            raise Refused(f"element {kind} in a message of charon")
    return root


class Vici:
    def __init__(self, path, seconds=60):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(seconds)
        self._socket.connect(path)

    def close(self):
        self._socket.close()

    def _send(self, kind, name, message=b""):
        body = bytes([kind]) + _name(name) + message
        self._socket.sendall(struct.pack("!I", len(body)) + body)

    def _receive(self):
        size, = struct.unpack("!I", self._exactly(4))
        return self._exactly(size)

    def _exactly(self, size):
        got = b""
        while len(got) < size:
            piece = self._socket.recv(size - len(got))
            if not piece:
                raise Refused("charon closed the connection")
            got += piece
        return got

    def _answer(self, wanted, events=None):
        while True:
            raw = self._receive()
            if raw[0] == EVENT:
                if events is not None:
                    events.append(decode(raw[2 + raw[1]:]))
            elif raw[0] == wanted:
                return decode(raw[1:])
            else:
                raise Refused(f"charon answers with message {raw[0]}")

    def call(self, command, message=None, check=True):
        self._send(REQUEST, command, encode(message or {}))
        answer = self._answer(RESPONSE)
        if check and answer.get("success", "yes") != "yes":
            raise Refused(f"{command}: {answer.get('errmsg', answer)}")
        return answer

    def stream(self, command, event, message=None):
        """A command whose result comes as events."""
        events = []
        self._send(REGISTER, event)
        self._answer(CONFIRM)
        self._send(REQUEST, command, encode(message or {}))
        self._answer(RESPONSE, events)
        self._send(UNREGISTER, event)
        self._answer(CONFIRM, events)
        return events
