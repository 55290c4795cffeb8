# SPDX-License-Identifier: Apache-2.0
"""Many SAs go to the workers and back while packets flow: what is lost, and for how long nothing comes.

    SALLYPORT_PAIRS=10000   so many tunnels in place of a few hundred: some minutes

The gateway has all tunnels, and its peer (kernel ESP) those with traffic. Packets are numbered UDP, in both directions, counted where
they arrive.
"""

import os
import secrets
import socket
import struct
import threading
import time

from inside import boot, gateway, net, register, tunnel, xfrm
from lab import netns
from lab.checks import check, equal, eventually

PAIRS = int(os.environ.get("SALLYPORT_PAIRS", "300"))
BOOT = boot.Boot(kernels=("newest",), cpus=2, memory=1536 if PAIRS <= 1000 else 3072, modules=register.MODULES)
FLOWS, RATE, PORT = 32, 10, 7000  # packets a second of each flow and direction
REKEYS, REKEYING = (50, 5) if PAIRS <= 1000 else (500, 10)  # wished a second, for so many seconds
NEAR, FAR, HOST = register.NEAR_END, register.FAR_END, register.HOST


def network(i):
    return f"10.{64 + (i >> 8)}.{i & 255}"


class Flows:
    """Numbered packets from `ns` to `to`, from and to these addresses."""

    def __init__(self, ns, to, pairs):
        self._senders = [ns.run_inside(lambda a=a: self._bound(a, 0)) for a, _ in pairs]
        self._to = [(b, PORT) for _, b in pairs]
        self._receiver = to.run_inside(lambda: self._bound("0.0.0.0", PORT))
        self._ended, self._lock, self._number, self.arrived = threading.Event(), threading.Lock(), 0, []
        for run in (self._send, self._receive):
            threading.Thread(target=run, daemon=True).start()

    @staticmethod
    def _bound(address, port):
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        s.bind((address, port))
        s.settimeout(0.5)
        return s

    def _send(self):
        while not self._ended.wait(1 / RATE):
            for flow, sender in enumerate(self._senders):
                try:
                    sender.sendto(struct.pack("!II", flow, self._number), self._to[flow])
                except OSError:
                    pass  # lost, and counted as such
            self._number += 1

    def _receive(self):
        while not self._ended.is_set():
            try:
                data = self._receiver.recv(100)
            except TimeoutError:
                continue
            with self._lock:
                self.arrived.append((*struct.unpack("!II", data), time.monotonic()))

    def mark(self):
        return self._number

    def since(self, mark):
        """Packets that are lost, of how many, and the longest time in which a flow had none."""
        end = self._number
        def last_have_come():
            with self._lock:
                return len({flow for flow, number, _ in self.arrived if number >= end}) == len(self._senders)
        eventually(last_have_come, "some flows do not arrive", 60)
        with self._lock:
            arrived = list(self.arrived)
        times = [{} for _ in self._senders]
        for flow, number, at in arrived:
            if number >= mark - 1:
                times[flow][number] = at
        lost = sum(number not in of for of in times for number in range(mark, end))
        gap = 0
        for of in times:
            at = sorted(of.values())
            gap = max([gap, *(b - a for a, b in zip(at, at[1:]))])
        return lost, (end - mark) * len(times), gap

    def stop(self):
        self._ended.set()


class Answers:
    """Asks the control socket all the time; the longest time until it answered."""

    def __init__(self, gw):
        self._path, self._ended, self.longest = f"{gw.folder}/control.sock", threading.Event(), 0
        threading.Thread(target=self._ask, daemon=True).start()

    def _ask(self):
        while not self._ended.wait(0.02):
            try:
                with socket.socket(socket.AF_UNIX) as s:
                    s.settimeout(30)
                    s.connect(self._path)
                    for _ in range(50):
                        began = time.monotonic()
                        s.sendall(b'{"show": "status"}\n')
                        if not s.recv(1 << 16):
                            break
                        self.longest = max(self.longest, time.monotonic() - began)
                        time.sleep(0.02)
            except OSError:
                pass  # not running

    def worst(self):
        """Since it was asked last, in ms."""
        longest, self.longest = self.longest, 0
        return longest * 1000

    def stop(self):
        self._ended.set()


class Keys:
    """The SAs of all tunnels: in gw, of the first FLOWS in the peer too."""

    def __init__(self, n):
        self.here, self.there = xfrm.Register(n.gw), xfrm.Register(n.peer)
        self.now = {}

    def make(self, tunnels):
        """New ones: who receives with an SA has it first."""
        new = {i: [(state := xfrm.State(a, b, secrets.randbelow(2**32 - 512) + 256, reqid=i + 1),
                    xfrm.new_state(state, secrets.token_bytes(20), esn_window=64))
                   for a, b in ((FAR, NEAR), (NEAR, FAR))] for i in tunnels}
        for register, side in ((self.here, 0), (self.there, 1), (self.there, 0), (self.here, 1)):
            register.requests(xfrm.NEWSA, [sas[side][1] for i, sas in new.items()
                                           if register is self.here or i < FLOWS], flags=0x600)
        old = {i: self.now.get(i, []) for i in tunnels}
        self.now |= {i: [state for state, _ in sas] for i, sas in new.items()}
        return old

    def forget(self, old, sender):
        """Those of the SAs that one sends, or else receives, with."""
        for register, side in ((self.here, 1 if sender else 0), (self.there, 0 if sender else 1)):
            register.delete_many([states[side] for i, states in old.items() if states
                                  and (register is self.here or i < FLOWS)])

    def rekey(self):
        """REKEYS tunnels a second, if the guest is quick enough: how many, and in how long. A second later the SAs before are no
        longer sent with, then they go."""
        order = [i * PAIRS // (REKEYS * REKEYING) for i in range(REKEYS * REKEYING)]
        order[:FLOWS] = range(FLOWS)
        step, ways, began = REKEYS // 10, ([], []), time.monotonic()
        for first in range(0, len(order), step):
            old = self.make(dict.fromkeys(order[first:first + step]))
            for way, sender in zip(ways, (True, False)):
                way.append(old)
                if len(way) <= 10:
                    break
                self.forget(old := way.pop(0), sender)
            time.sleep(max(0, began + (first + step) / REKEYS - time.monotonic()))
        took = time.monotonic() - began
        for way, sender in zip(ways, (True, False)):
            time.sleep(1)
            for old in way:
                self.forget(old, sender)
            if sender:
                ways[1].extend(way)
        return len(order), took


def tunnels(n):
    keys = Keys(n)
    policies = {n.gw: [], n.peer: []}
    keys.make(range(PAIRS))
    for i in range(PAIRS):
        remote = network(i) + ".0/24"
        policies[n.gw] += register.policy_lines("10.1.0.0/24", remote, NEAR, FAR, i + 1, i + 1)
        if i < FLOWS:
            policies[n.peer] += register.policy_lines(remote, "10.1.0.0/24", FAR, NEAR, i + 1, i + 1)
    for ns, lines in policies.items():
        for first in range(0, len(lines), 3000):
            ns.batch(lines[first:first + 3000])
    return keys


def made(guest):
    n = net.Net(guest, "lan", "gw", "peer")
    n.veth("lan:eth0 gw:lan0", "gw:wan0 peer:wanp")
    n.lan.batch([f"addr add {HOST}/24 dev eth0", "route add default via 10.1.0.1"])
    n.gw.batch(["addr add 10.1.0.1/24 dev lan0", f"addr add {NEAR}/24 dev wan0", f"route add default via {FAR}"])
    n.peer.batch([f"addr add {FAR}/24 dev wanp", f"route add default via {NEAR}",
                  *(f"addr add {network(i)}.2/32 dev lo" for i in range(FLOWS))])
    n.gw.sysctl("net.ipv4.ip_forward", 1)
    keys = tunnels(n)
    room = 2 * PAIRS + 2 * REKEYS * REKEYING + 64
    return n, keys, gateway.Gateway(guest, n.gw, lambda folder: gateway.head(folder).replace(
        "max_sas = 64", f"max_sas = {room}") + tunnel.PORTS.format(wan="", lan=""))


@BOOT.case("many tunnels to the workers and back under traffic: start, rekeying, stop, start, kill -9",
           seconds=180 if PAIRS <= 1000 else 1200)
def to_and_fro(guest):
    n, keys, gw = made(guest)
    flows = {"out": Flows(n.lan, n.peer, [(HOST, network(i) + ".2") for i in range(FLOWS)]),
             "in": Flows(n.peer, n.lan, [(network(i) + ".2", HOST) for i in range(FLOWS)])}
    answers = Answers(gw)
    for each in (*flows.values(), answers):
        guest.later(each.stop)

    def taken_over():
        try:
            status = gw.show("status")
        except netns.CommandFailed:
            return False  # it says so after 5 s, which a busy guest may take: Answers tells how long
        return status["sas"] == 2 * PAIRS and status["sas_with_kernel"] == 0

    def control_ms():
        with open(f"/proc/{gw.pid}/schedstat", encoding="ascii") as f:
            return int(f.read().split()[0]) / 1e6

    def start():
        gw.start()
        until_ready = control_ms()
        eventually(taken_over, "not all SAs are with workers", 60 + PAIRS / 10)
        guest.note(f"the control thread used {until_ready:.0f} ms of CPU until it was ready, "
                   f"{control_ms() - until_ready:.0f} more until all SAs were with workers")

    def rekey():
        before = control_ms()
        count, took = keys.rekey()
        eventually(taken_over, "not all new SAs are with workers", 60 + PAIRS / 10)
        guest.note(f"{count} tunnels had new SAs in {took:.1f} s, {count / took:.0f} a second; the control thread used "
                   f"{(control_ms() - before) / count:.2f} ms of CPU for each")

    def counted(what, act):
        answers.worst()
        marks = {name: each.mark() for name, each in flows.items()}
        began = time.monotonic()
        act()
        took = time.monotonic() - began
        found = {name: each.since(marks[name]) for name, each in flows.items()}
        guest.note(f"{what}, {2 * PAIRS} SAs, {took:.1f} s: " + ", ".join(
            f"{name} {lost} of {sent} lost, longest gap {gap * 1000:.0f} ms" for name, (lost, sent, gap) in found.items())
            + f"; control answered within {answers.worst():.0f} ms")
        for name, (lost, sent, _) in found.items():
            check(lost < max(sent / 4, 8 * FLOWS), f"{what}, {name}: {lost} of {sent} lost")

    def dropped():
        guest.note(f"dropped by the gateway: {({name: count for name, count in gw.drops().items() if count})}")

    if PAIRS > 1000:
        guest.note("how slow this guest is (bench/README.md has the same of a real machine):\n"
                   + n.gw.sh(f"{guest.build}/bench/control_bench", "1000"))
    counted("the kernel alone", lambda: time.sleep(3))
    counted("start", start)
    dropped()
    counted("workers", lambda: time.sleep(3))
    dropped()
    counted("rekeying", rekey)
    dropped()
    counted("stop", lambda: equal(gw.stop(), 0, "exit status of sallyportd"))
    counted("start again", start)
    counted("kill -9", gw.kill)
    counted("start after the kill", start)
    for each in flows.values():
        each.stop()
    equal(gw.stop(), 0, "exit status of sallyportd")
    check("audit: unknown_spi" not in gw.log(), "SAs on their way are on record as unknown")
    refused = {name: count for name, count in n.peer.xfrm_statistics().items() if name != "XfrmInStateSeqError"}
    equal(refused, {}, "what the peer refused, but for numbers that came late")
    guest.note(f"numbers that the peer took for old: {n.peer.xfrm_statistics().get('XfrmInStateSeqError', 0)}")
