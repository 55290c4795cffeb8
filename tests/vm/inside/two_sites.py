# SPDX-License-Identifier: Apache-2.0
"""Two sites with unmodified strongSwan; the gateway of one is Sallyport.

    a 10.1.N.2 --- lan0 g wan0 192.0.2.1 === w === 192.0.2.2 wan0 p lan0 --- 10.2.N.2 b
                   charon, sallyportd                charon, kernel ESP

N is 0 to 2; beside 10.1.N.2 there is fd00:1:N::2, and so on. w is a bridge: at the ends of the wan no recording shows what is on the wire (XDP takes frames
before it, and the kernel shows decrypted packets once more). All of it lives as long as the guest; every
frame is recorded, and every key that the peer's kernel was given is known by its digest.
"""

import ipaddress
import os
import re
import signal
import socket
import tempfile
import threading
import time

import check_ivs
from lab import traffic
from lab.checks import check, equal, eventually
from lab.wire import esp_of

from . import capture, charon, net, sallyport, xfrm

MODULES = ("veth", "bridge", "tun", "xfrm_user", "esp4", "aesni_intel", "gcm", "seqiv", "echainiv",
           "authenc", "cbc", "sha256_generic", "nf_conntrack")
GATEWAY, PEER = "192.0.2.1", "192.0.2.2"
GATEWAY6, PEER6 = "2001:db8::1", "2001:db8::2"
NETWORKS = range(3)
CONFIG = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "config",
                      "first-tunnel")
# Only with 0 is there no Sallyport: for trying what the kernel alone does.
FAST = os.environ.get("SALLYPORT_IKE_FAST", "1") != "0"


SECRETS = 'secrets {\n    ike-branch {\n        secret = "of this guest alone"\n    }\n}\n'


def example(name):
    with open(os.path.join(CONFIG, name), encoding="utf-8") as f:
        return f.read()


def first_tunnel(guest):
    """Both sites with the files of config/first-tunnel, as the README says; the daemons run."""
    s = Sites(guest.build)
    s.attend(guest)
    if s.fast:
        s.fast.configure(example("sallyport.toml"))
        s.fast.start()
    secret = {"swanctl/conf.d/branch-secret.conf": SECRETS}
    s.start_ike({"swanctl/conf.d/branch.conf": example("gateway.conf"),
                 "strongswan.d/sallyport.conf": example("charon.conf"), **secret},
                {"swanctl/conf.d/branch.conf": example("peer.conf"), **secret})
    s.attend(guest)
    return s


def _addresses(site, host, device):
    return [line for i in NETWORKS for line in (f"addr add 10.{site}.{i}.{host}/24 dev {device}",
                                                f"addr add fd00:{site}:{i}::{host}/64 dev {device}")]


class Sites:
    def __init__(self, build):
        self.build, self.cleanups, self.logs = build, [], {}
        self.folder = tempfile.mkdtemp(prefix="sites-", dir="/var/tmp")  # each charon has its own /run
        n = net.Net(self, "a", "g", "w", "p", "b")
        self.a, self.g, self.p, self.b = n["a"], n["g"], n["p"], n["b"]
        n.veth("a:eth0 g:lan0", "g:wan0 w:g", "w:p p:wan0", "p:lan0 b:eth0")
        self.w = n["w"]
        self.w.batch(["link add wire type bridge", "link set g master wire", "link set p master wire",
                      "link set wire up"])
        self.a.batch(["link set eth0 mtu 1400", *_addresses(1, 2, "eth0"),
                      "route add default via 10.1.0.1", "route add ::/0 via fd00:1:0::1"])
        self.b.batch(["link set eth0 mtu 1400", *_addresses(2, 2, "eth0"),
                      "route add default via 10.2.0.1", "route add ::/0 via fd00:2:0::1"])
        self.g.batch([*_addresses(1, 1, "lan0"),
                      f"addr add {GATEWAY}/24 dev wan0", f"addr add {GATEWAY6}/64 dev wan0",
                      f"route add default via {PEER}", f"route add ::/0 via {PEER6}"])
        self.p.batch([*_addresses(2, 1, "lan0"),
                      f"addr add {PEER}/24 dev wan0", f"addr add {PEER6}/64 dev wan0",
                      f"route add default via {GATEWAY}", f"route add ::/0 via {GATEWAY6}"])
        for ns in (self.g, self.p):
            ns.sysctl("net.ipv4.ip_forward", 1)
            ns.sysctl("net.ipv6.conf.all.forwarding", 1)
            # Without their primary address the others stay (MOBIKE).
            ns.sysctl("net.ipv4.conf.all.promote_secondaries", 1)
        self.keys = xfrm.KeyLog(self.p)
        self.wire = capture.Capture(self, self.w, "g").start()
        self.gateway_mac = bytes.fromhex(self.g.mac("wan0").replace(":", ""))
        self.register = xfrm.Register(self.g)
        self.peer_register = xfrm.Register(self.p)
        self.gateway_ike = self.peer_ike = None
        self._pings = []
        self.fast = sallyport.Sallyport(self, self.g) if FAST else None

    def later(self, function):
        self.cleanups.append(function)

    def start_ike(self, gateway_files, peer_files, more=""):
        self.gateway_ike = charon.Charon(self.g, gateway_files, more)
        self.peer_ike = charon.Charon(self.p, peer_files, more)
        starts = [threading.Thread(target=c.start) for c in (self.gateway_ike, self.peer_ike)]
        for t in starts:
            t.start()
        for t in starts:
            t.join()

    def attend(self, guest):
        """For the case that runs now: whose words are shown when it fails, and what ends with it."""
        self._refused_before = self.p.xfrm_statistics()
        guest.later(self._end_pings)
        for name, of in (("charon of the gateway", self.gateway_ike), ("charon of the peer", self.peer_ike),
                         ("sallyportd", self.fast)):
            if of is not None:
                guest.logs[name] = of.log
        if self.fast and self.fast.running:
            guest.logs["sallyportctl"] = self.fast.tables

    # ---- traffic -------------------------------------------------------------------------------

    def ping(self, count=5, network=0, interval=0.1, size=56):
        """How many echo requests from a to b were answered."""
        return traffic.ping(self.a, f"10.1.{network}.2", f"10.2.{network}.2", count, interval, size)

    def pings(self, **options):
        self._pings.append(Pings(self, **options))
        return self._pings[-1]

    def _end_pings(self):
        while self._pings:
            self._pings.pop().end()

    def tcp(self, network=0, size=200_000, seconds=60, port=0):
        """Bytes from a to b and back, checked at both ends."""
        sent = os.urandom(1 << 16) * (size >> 16) + os.urandom(size & 0xFFFF)
        server = self.b.run_inside(lambda: _listener(f"10.2.{network}.2", port))
        got = []

        def answer():
            with server, server.accept()[0] as s:
                s.settimeout(seconds)
                got.append(_receive(s, size))
                s.sendall(got[0])
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        began = time.monotonic()
        with self.a.run_inside(lambda: _connection(f"10.1.{network}.2", f"10.2.{network}.2",
                                                   server.getsockname()[1], seconds)) as s:
            writer = threading.Thread(target=s.sendall, args=(sent,), daemon=True)
            writer.start()
            back = _receive(s, size)
        thread.join(seconds)
        check(got and got[0] == sent and back == sent, "TCP brought other bytes than were sent")
        return time.monotonic() - began

    def udp_echo(self, flows, network=0, seconds=10):
        """How many of so many UDP flows from a to b are answered."""
        def bound(address):
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            s.bind((address, 0))
            s.settimeout(seconds)
            return s
        server = self.b.run_inside(lambda: bound(f"10.2.{network}.2"))
        clients = self.a.run_inside(lambda: [bound(f"10.1.{network}.2") for _ in range(flows)])
        ended = threading.Event()

        def answer():
            server.settimeout(0.2)
            while not ended.is_set():
                try:
                    server.sendto(*server.recvfrom(2000))
                except TimeoutError:
                    pass
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        answered = 0
        for number, client in enumerate(clients):
            client.sendto(b"flow %d" % number, server.getsockname())
        for number, client in enumerate(clients):
            try:
                answered += client.recv(2000) == b"flow %d" % number
            except TimeoutError:
                pass
            client.close()
        ended.set()
        thread.join(5)
        server.close()
        return answered

    def frames_since(self, mark=0):
        return self.wire.frames()[mark:]

    def in_clear(self, mark=0):
        """Frames that the gateway sent on the wan, from number `mark` on, that go from site to site as they
        are. What the peer's kernel sends in clear, e.g. while strongSwan there has taken a policy away and
        not yet put the next one, is its own affair: clear_of_peer()."""
        return [f.hex() for f in self._site_to_site(mark) if f[6:12] == self.gateway_mac]

    def clear_of_peer(self, mark=0):
        return [f.hex() for f in self._site_to_site(mark) if f[6:12] != self.gateway_mac]

    def _site_to_site(self, mark):
        return [f for _, f in self.frames_since(mark)
                if f[12:14] == b"\x08\x00" and f[26] == f[30] == 10
                or f[12:14] == b"\x86\xdd" and f[22] == f[38] == 0xfd]

    # ---- what the SAs say ----------------------------------------------------------------------

    def child(self, name, seconds=20):
        """The newest child SA of that name at the gateway, as charon has it."""
        found = eventually(lambda: self.gateway_ike.children(name), f"no child SA {name}", seconds)
        return found[-1]

    def kernel_packets(self, name):
        """What the kernel's own counters of the child SA say: packets in, out."""
        child, states = self.child(name), self.register.esp()
        return [next(state.packets for (_, spi), state in states.items() if spi == int(child[key], 16))
                for key in ("spi-in", "spi-out")]

    def look_at_wire(self, recording=None):
        """What check_ivs.py says of all frames so far; it must be good."""
        found = check_ivs.examine(recording or self.wire.path, self._key_names(),
                                  [ipaddress.ip_network(net) for net in ("10.0.0.0/8", "fd00::/8")]
                                  if self.fast else [],
                                  self.gateway_mac)
        check(found.good(), f"{found}\n{found.details()}")
        return str(found)

    def _key_names(self):
        path = os.path.join(self.folder, "keys")
        with open(path, "w", encoding="ascii") as f:
            f.writelines(f"{destination} {spi:#x} {key}\n"
                         for destination, spi, key in list(self.keys.keys))
        return check_ivs.read_keys(path)

    def carried(self, name, network=0, count=5, seconds=60):
        """Pings through the child SA that is there now; checks that workers carried them and that charon
        counts what they count. A note. An SA that the kernel was the first to use is soon replaced, so
        the one that is looked at may go meanwhile: then once more with the next."""
        deadline, state = time.monotonic() + seconds, None
        while time.monotonic() < deadline:
            child = self.child(name)
            if self.fast and not all(row and row["state"] == "active" for row in self._rows(child)):
                state = f"not with workers: {self._rows(child)}"
                time.sleep(0.2)
                continue
            before = self.fast.delivered() if self.fast else (0, 0)
            equal(self.ping(count, network), count, f"{name}: pings answered")
            after = self.fast.delivered() if self.fast else (count, count)
            check(min(now - then for now, then in zip(after, before)) >= count,
                  f"{name}: workers delivered {before}, then {after}")
            until = min(deadline, time.monotonic() + 5)  # counters go to the kernel once a second
            while time.monotonic() < until:
                told = self.child(name)
                if told["uniqueid"] != child["uniqueid"]:
                    break
                charon_says = [int(told["packets-in"]), int(told["packets-out"]),
                               int(told["bytes-in"]), int(told["bytes-out"])]
                rows = self._rows(told) if self.fast else []
                shown = [row[what] for what in ("packets", "bytes") for row in rows if row]
                # With other traffic on its way charon is a second behind.
                same = all(then <= now for then, now in zip(charon_says, shown)) if self._busy() else \
                    shown == charon_says
                if min(charon_says[:2]) >= count and (not self.fast or (all(rows) and same)):
                    return f"{name}: workers {[row['worker'] for row in rows]}, packets and bytes in" \
                           f" and out: {charon_says}"
                state = f"charon says {charon_says}, sallyportd {shown}"
                time.sleep(0.2)
        raise AssertionError(f"{name}: {state}")

    def initiate(self, name, seconds=20):
        """Makes the child SA, and waits until sallyportd has decided who serves it: until its policies are
        published, which takes some milliseconds, or a second where the machine is busy, XDP knows nothing
        of them and drops what they are for."""
        self.gateway_ike.initiate(name)
        if self.fast:
            eventually(lambda: all(row and row.get("reason") != "about to be taken over"
                                   for row in self._rows(self.child(name))),
                       lambda: f"{name} is not decided about: {self._rows(self.child(name))}", seconds)

    def adopted(self, name, seconds=20):
        """Waits until workers have the child SA."""
        if self.fast:
            eventually(lambda: all(row and row["state"] == "active" for row in self._rows(self.child(name))),
                       lambda: f"{name} is not with workers: {self._rows(self.child(name))}", seconds)

    def _busy(self):
        return any(pings.running for pings in self._pings)

    def _rows(self, child):
        return [self.fast.sa(child["spi-in"]), self.fast.sa(child["spi-out"])]

    def refused_by_peer(self):
        """Errors of the peer's kernel ESP by name, since this case began."""
        return {name: more for name, count in self.p.xfrm_statistics().items()
                if (more := count - self._refused_before.get(name, 0))}

    def no_replays(self, mark=0, refused=None):
        """The peer took nothing for a replay that the gateway sent, by its numbers from frame `mark` on: of each
        SPI they rise. Returns what the peer counted all the same (its kernel does so now and then when its
        own charon replaces a state), for the notes."""
        seen = (self.refused_by_peer() if refused is None else refused).get("XfrmInStateSeqError", 0)
        numbers = self._numbers(mark) if seen else {}
        falls = [f"{spi:08x}: {now} after {then}, of {len(of)} packets from number {of[0]}"
                 for spi, of in numbers.items() for then, now in zip(of, of[1:]) if now <= then]
        check(seen == 0 or numbers and not falls,
              f"the peer took {seen} packets for replays; of {len(numbers)} SPIs: {'; '.join(falls)}")
        return f"the peer counted {seen} replays, and the numbers on the wire rise" if seen else None

    def _numbers(self, mark):
        """Of the ESP packets that the gateway sent, in their order, by SPI."""
        numbers = {}
        for _, frame in self.frames_since(mark):
            if frame[6:12] == self.gateway_mac and (found := esp_of(frame)):
                numbers.setdefault(found[0], []).append(found[1])
        return numbers


class Pings:
    """Echo requests from a to b without an end; stop() says what became of them. `ends`: other addresses
    than those of a and b in the network, `ns`: who sends instead of a; without a near end the kernel there
    chooses the source."""

    def __init__(self, sites, network=0, interval=0.1, size=56, ends=None, ns=None):
        near, far = ends or (f"10.1.{network}.2", f"10.2.{network}.2")
        self._path = os.path.join(sites.folder, f"pings-{time.monotonic_ns()}")
        self._from = 1
        with open(self._path, "wb") as out:
            self._process = (ns or sites.a).start("ping", "-n", "-i", interval, "-s", size,
                                                  *(["-I", near] if near else []), far,
                                                  stdout=out, stderr=out)

    def answered(self):
        with open(self._path, encoding="ascii", errors="replace") as f:
            return {int(n) for n in re.findall(r"bytes from .*icmp_seq=(\d+)", f.read())}

    def flowing(self, more=5, seconds=30):
        """Waits for answers to `more` further requests."""
        before = max(self.answered(), default=0)
        eventually(lambda: max(self.answered(), default=0) >= before + more,
                   lambda: f"pings are not answered any more after number {before}", seconds)
        return self

    def missing(self):
        """Numbers without answer, since the last forget(), though a later one was answered."""
        answered = self.answered()
        return [n for n in range(self._from, max(answered, default=0)) if n not in answered]

    def forget(self):
        self._from = max(self.answered())

    def stop(self):
        """(sent, missing()); call it while they flow."""
        self.end()
        with open(self._path, encoding="ascii", errors="replace") as f:
            text = f.read()
        found = re.search(r"(\d+) packets transmitted", text)
        check(found, f"ping said: {text[-500:]}")
        self._from = 1
        return int(found.group(1)), self.missing()

    @property
    def running(self):
        return self._process.poll() is None

    def end(self):
        if self.running:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(20)


class Stream:
    """A TCP connection from a to b that echoes; it goes on until stop()."""

    PIECE, PAUSE, PATIENCE = 1000, 0.02, 60

    def __init__(self, sites, network=0):
        server = sites.b.run_inside(lambda: _listener(f"10.2.{network}.2"))
        self._ended, self._error, self.moved = threading.Event(), None, 0
        threading.Thread(target=self._echo, args=(server,), daemon=True).start()
        self._socket = sites.a.run_inside(lambda: _connection(
            f"10.1.{network}.2", f"10.2.{network}.2", server.getsockname()[1], self.PATIENCE))
        self._thread = threading.Thread(target=self._talk, daemon=True)
        self._thread.start()

    @staticmethod
    def _echo(server):
        with server, server.accept()[0] as s:
            while piece := s.recv(1 << 16):
                s.sendall(piece)

    def _talk(self):
        try:
            with self._socket as s:
                while not self._ended.is_set():
                    piece = os.urandom(self.PIECE)
                    s.sendall(piece)
                    if _receive(s, self.PIECE) != piece:
                        raise OSError("other bytes came back than were sent")
                    self.moved += self.PIECE
                    time.sleep(self.PAUSE)
        except OSError as e:
            self._error = e

    def flowing(self, more=5000, seconds=60):
        before = self.moved
        eventually(lambda: self._error or self.moved >= before + more, "the TCP stream stands still",
                   seconds)
        return self

    def stop(self):
        """(bytes there and back, what went wrong)"""
        self._ended.set()
        self._thread.join(self.PATIENCE)
        return self.moved, self._error


def _listener(address, port=0):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, port))
    s.listen(1)
    s.settimeout(60)
    return s


def _connection(near, far, port, seconds):
    s = socket.socket()
    s.settimeout(seconds)
    s.bind((near, 0))
    s.connect((far, port))
    return s


def _receive(s, size):
    parts, left = [], size
    while left:
        piece = s.recv(min(left, 1 << 16))
        if not piece:
            break
        parts.append(piece)
        left -= len(piece)
    return b"".join(parts)
