# SPDX-License-Identifier: Apache-2.0
"""Two IPsec connections of the kernel's behind one sallyportd, with the same network at both ends.

    host 10.1.1.10  eth0 --- lan0 gw wan0 192.0.2.1 --- 192.0.2.2 eth0 a   10.9.0.1, fd00:9::1 on lo
         10.1.2.10                                  198.51.100.1 eth1  |
                                                    198.51.100.2 eth0  b   the same two on lo

a is the router to b as well: ESP of the second connection goes through it.
The gateway's kernel has SAs and policies for both, for the same wide selectors: only the if_id (1 is
a, 2 is b) tells them apart. Which traffic is whose, sallyportd's policies alone say.
"""

import secrets
import socket
import threading

from lab import traffic
from lab.checks import equal

from . import gateway, net

MODULES = ("veth", "tun", "xfrm_user", "xfrm_interface", "esp4", "esp6", "aesni_intel", "seqiv",
           "echainiv")
FIRST, SECOND, FAR = "10.1.1.10", "10.1.2.10", "10.9.0.1"
FIRST6, SECOND6, FAR6 = "fd00:1::10", "fd00:2::10", "fd00:9::1"
PORT_OF_B = 8080  # TCP to it goes to b, whoever sends

POLICIES = f"""
[[policy]]
name = "first"
action = "protect"
local = "10.1.1.0/24"
remote = "10.9.0.0/24"
if_id = 1

[[policy]]
name = "second"
action = "protect"
local = "10.1.2.0/24"
remote = "10.9.0.0/24"
if_id = 2

[[policy]]
name = "by-port"
action = "protect"
local = "10.1.1.0/24"
remote = "10.9.0.0/24"
protocol = "tcp"
remote_port = {PORT_OF_B}
priority = 1
if_id = 2

[[policy]]
name = "first6"
action = "protect"
local = "fd00:1::/64"
remote = "fd00:9::/64"
if_id = 1

[[policy]]
name = "second6"
action = "protect"
local = "fd00:2::/64"
remote = "fd00:9::/64"
if_id = 2
"""

PORTS = """
[port.wan0]
role = "unprotected"
[port.lan0]
role = "protected"
"""


def _toml(folder):
    return (gateway.head(folder, cpus=(0,)).replace("[gateway]", '[gateway]\nxfrm_interface = "ipsec0"') +
            POLICIES + PORTS)


def _read_all(s):
    return b"".join(iter(lambda: s.recv(1 << 16), b""))


class _Tunnel:
    """SAs of both ends, and policies; near and far are the gateway's and the peer's address."""

    def __init__(self, if_id, near, far):
        self.if_id, self.near, self.far = if_id, near, far
        self._sas = [(src, dst, secrets.randbelow(2**32 - 512) + 256, secrets.token_hex(20))
                     for src, dst in ((near, far), (far, near))]

    def _states(self, words):
        return [f"xfrm state add src {src} dst {dst} proto esp spi {spi:#x} reqid {self.if_id} mode"
                f" tunnel replay-window 32 flag af-unspec aead rfc4106(gcm(aes)) 0x{key} 128 {words}"
                for src, dst, spi, key in self._sas]

    def _policies(self, near, far, nets, words):
        lines = []
        for local, remote in nets:
            for direction, src, dst, a, b in (("out", local, remote, near, far),
                                              ("in", remote, local, far, near),
                                              ("fwd", remote, local, far, near)):
                lines.append(f"xfrm policy add src {src} dst {dst} dir {direction} tmpl src {a} dst {b}"
                             f" proto esp reqid {self.if_id} mode tunnel {words}")
        return lines

    def gateway_lines(self):
        words = f"if_id {self.if_id}"
        return self._states(words) + self._policies(
            self.near, self.far, (("0.0.0.0/0", "10.9.0.0/24"), ("::/0", "fd00:9::/64")), words)

    def peer_lines(self):
        return self._states("") + self._policies(
            self.far, self.near, (("10.9.0.0/24", "10.1.0.0/16"), ("fd00:9::/64", "fd00::/16")), "")


class World:
    """n: the namespaces host, gw, a, b; gw: sallyportd, not started."""

    def __init__(self, guest):
        self.n = n = net.Net(guest, "host", "gw", "a", "b")
        n.veth("host:eth0 gw:lan0", "gw:wan0 a:eth0", "a:eth1 b:eth0", queues=1)
        n.host.batch([*(f"addr add {address}/24 dev eth0" for address in (FIRST, SECOND)),
                      *(f"addr add {address}/64 dev eth0 nodad" for address in (FIRST6, SECOND6)),
                      "route add default via 10.1.1.1", "route add ::/0 via fd00:1::1"])
        n.gw.batch(["addr add 10.1.1.1/24 dev lan0", "addr add 10.1.2.1/24 dev lan0",
                    "addr add fd00:1::1/64 dev lan0 nodad", "addr add fd00:2::1/64 dev lan0 nodad",
                    "addr add 192.0.2.1/24 dev wan0", "route add 198.51.100.0/24 via 192.0.2.2"])
        n.a.sysctl("net.ipv4.ip_forward", 1)
        n.a.batch("addr add 198.51.100.1/24 dev eth1")
        lines = []
        for if_id, name, peer, router in ((1, "a", "192.0.2.2", "192.0.2.1"),
                                          (2, "b", "198.51.100.2", "198.51.100.1")):
            tunnel = _Tunnel(if_id, "192.0.2.1", peer)
            lines += tunnel.gateway_lines()
            n[name].batch([f"addr add {peer}/24 dev eth0", f"addr add {FAR}/32 dev lo",
                           f"addr add {FAR6}/128 dev lo nodad",
                           f"route add 10.1.0.0/16 via {router} src {FAR}",
                           f"route add fd00::/16 via fd00:f::1 dev eth0 src {FAR6} onlink",
                           *tunnel.peer_lines()])
        n.b.batch("route add 192.0.2.0/24 via 198.51.100.1")
        n.gw.batch(lines)
        self.gw = gateway.Gateway(guest, n.gw, _toml)
        guest.logs["xfrm of gw"] = lambda: n.gw.ip("xfrm policy") + str(n.gw.xfrm_statistics())
        self._guest = guest

    def route(self):
        """What the operator does when the interface is there."""
        self.n.gw.batch("route replace 10.9.0.0/24 dev ipsec0\n"
                        "route replace fd00:9::/64 dev ipsec0")

    def connection(self, if_id):
        return next(c for c in self.gw.show("connections") if c["if_id"] == if_id)

    def serve(self, port):
        """On both peers: who connects is told which one it is."""
        for name in ("a", "b"):
            def listen(name=name):
                s = socket.create_server((FAR, port))
                s.settimeout(120)
                return s
            listener = self.n[name].run_inside(listen)

            def answer(listener=listener, name=name):
                try:
                    while True:
                        connection, _ = listener.accept()
                        with connection:
                            connection.sendall(name.encode() + _read_all(connection))
                except OSError:
                    pass  # closed
            threading.Thread(target=answer, daemon=True).start()
            self._guest.later(listener.close)

    def ask(self, source, port, said=b"?"):
        """Which peer answers a TCP connection of the host's."""
        def connect():
            with socket.create_connection((FAR, port), timeout=30, source_address=(source, 0)) as s:
                s.sendall(said)
                s.shutdown(socket.SHUT_WR)
                return _read_all(s)
        answer = self.n.host.run_inside(connect)
        equal(answer[1:] == said, True, "what was said came back")
        return answer[:1].decode()

    def ping(self, source, target, wanted=3):
        equal(traffic.ping(self.n.host, source, target, 3), wanted, f"pings {source} to {target}")
