# SPDX-License-Identifier: Apache-2.0
"""A device shared with somebody else's XDP program, by libxdp's dispatcher.

The foreign program (foreign.bpf.c) stands on wan0, put there by xdp-loader. With priority 10 it runs
before ours and sees every frame, with 90 after ours and sees what we leave to the kernel.
"""

import json
import socket
import threading
import time

from inside import boot, packets, tunnel
from lab import daemon, traffic, wire
from lab.checks import check, equal, eventually

BOOT = boot.Boot(kernels=("newest",), modules=tunnel.MODULES)

KINDS = ("all", "esp", "icmp", "refused")
OURS = "steer_unprotected"
REFUSED_PORT = 9999


class Foreign:
    def __init__(self, guest, gw, priority, frags=""):
        self.gw, self.device, self._map = gw, "wan0", None
        self.path = f"{guest.build}/tests/vm/foreign{priority}{frags}.bpf.o"
        guest.logs["xdp-loader"] = self.status

    def load(self):
        self.gw.beside("xdp-loader", "load", "-m", "native", self.device, self.path, timeout=60)
        return self

    def status(self):
        return self.gw.beside("xdp-loader", "status", self.device)

    def rows(self):
        rows = (line.split() for line in self.status().splitlines())
        return [row for row in rows if row and row[0] == "=>"]  # =>, priority, name, id, ...

    def order(self):
        """Names of the programs on the device in the order in which they run."""
        return [row[2] for row in self.rows()]

    def seen(self):
        if self._map is None:  # by the program: an earlier case's map may have the same name
            program = next(row[3] for row in self.rows() if row[2] == "foreign")
            shown = json.loads(self.gw.beside("bpftool", "-j", "prog", "show", "id", program))
            self._map = shown["map_ids"][0]
        rows = json.loads(self.gw.beside("bpftool", "-j", "map", "dump", "id", self._map))
        return dict(zip(KINDS, (row["formatted"]["value"] for row in rows)))


def udp_frame(t):
    """UDP in clear from the peer to the port that the foreign program refuses."""
    return wire.ethernet(t.n.gw.mac("wan0"), t.n.peer.mac("wanp"),
                         packets.udp("192.0.2.2", "192.0.2.1", 5, REFUSED_PORT))


class Sender:
    """The same frame, again and again, until stop()."""

    def __init__(self, t, pause=0.02):
        self.sent, self._pause, self._stop = 0, pause, False
        self._socket = t.n.peer.packet_socket("wanp", protocol=0)
        self._frame = udp_frame(t)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stop:
            self._socket.send(self._frame)
            self.sent += 1
            time.sleep(self._pause)

    def stop(self):
        self._stop = True
        self._thread.join(10)
        self._socket.close()
        return self.sent


@BOOT.case("dispatcher: a foreign program before ours sees and may refuse every frame", seconds=60)
def before(guest):
    t = tunnel.StaticTunnel(guest)
    foreign = Foreign(guest, t.gw, 10).load()
    t.gw.start()
    equal(foreign.order(), ["foreign", OURS], "programs on wan0")
    t.ping()
    t.check_registered()
    seen = foreign.seen()
    check(seen["esp"] >= 5, f"the foreign program saw {seen}")
    ours = t.gw.ports()["wan0"]["rx_frames"]
    sender = Sender(t)
    eventually(lambda: sender.sent > 20, "nothing is sent")
    sent = sender.stop()
    eventually(lambda: foreign.seen()["refused"] == sent,
               lambda: f"sent {sent}, the foreign program refused {foreign.seen()}")
    check(t.gw.ports()["wan0"]["rx_frames"] - ours < sent,
          "what the foreign program refused came to ours")
    equal(t.gw.stop(), 0, "exit status")
    equal(foreign.order(), ["foreign"], "programs on wan0 after the stop")
    return f"the foreign program saw {seen}, then refused {sent}"


@BOOT.case("dispatcher: a foreign program after ours sees what is left to the kernel", seconds=60)
def after(guest):
    t = tunnel.StaticTunnel(guest)
    t.gw.start()
    foreign = Foreign(guest, t.gw, 90).load()
    equal(foreign.order(), [OURS, "foreign"], "programs on wan0")
    t.ping()
    equal(traffic.ping(t.n.peer, "192.0.2.2", "192.0.2.1", 3), 3, "pings to the gateway itself")
    seen = foreign.seen()
    equal((seen["esp"], seen["icmp"]), (0, 3), f"ESP and ICMP that the foreign program saw ({seen})")
    equal(t.gw.stop(), 0, "exit status")
    equal(foreign.order(), ["foreign"], "programs on wan0 after the stop")
    return f"the foreign program saw {seen}"


@BOOT.case("dispatcher: ours comes, goes and is killed while a foreign filter never has a gap",
           seconds=150)
def upgrade(guest):
    t = tunnel.StaticTunnel(guest)
    foreign = Foreign(guest, t.gw, 10).load()
    t.gw.start()
    t.ping()

    def listen():
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.bind(("192.0.2.1", REFUSED_PORT))
        s.setblocking(False)
        return s

    through = t.n.gw.run_inside(listen)
    sender = Sender(t)
    pinging = t.n.lan.start("ping", "-n", "-q", "-i", "0.1", "-w", "400", "-I", tunnel.HOST,
                            tunnel.FAR, stdout=-1, stderr=-2, text=True)
    guest.later(lambda: pinging.poll() is None and pinging.kill())
    equal(t.gw.stop(), 0, "exit status")
    equal(foreign.order(), ["foreign"], "programs on wan0 without sallyportd")
    t.gw.start()  # the new version
    equal(foreign.order(), ["foreign", OURS], "programs on wan0 after the upgrade")
    for _ in range(2):
        t.gw.kill()
        equal(foreign.order(), ["foreign", OURS], "programs on wan0 after SIGKILL")
        t.gw.start()
        equal(foreign.order(), ["foreign", OURS], "programs on wan0 after the restart: no second copy")
        check("replaced the program of a killed run" in t.gw.log(), "nothing said of the old program")
    t.ping()
    pinging.send_signal(2)
    counted = pinging.communicate(timeout=20)[0].strip().splitlines()[-2]
    sent = sender.stop()
    eventually(lambda: foreign.seen()["refused"] == sent,
               lambda: f"sent {sent}, the foreign program refused {foreign.seen()['refused']}")
    try:
        raise AssertionError(f"passed the foreign filter: {through.recv(100)}")
    except BlockingIOError:
        pass
    through.close()
    equal(t.gw.stop(), 0, "exit status")
    return f"{sent} frames, all refused by the filter; pings meanwhile: {counted}"


@BOOT.case("dispatcher: a foreign program with frags beside ours at an MTU of 1500", seconds=60)
def frags(guest):
    t = tunnel.StaticTunnel(guest)
    foreign = Foreign(guest, t.gw, 10, "_frags").load()
    t.gw.start()
    equal(foreign.order(), ["foreign", OURS], "programs on wan0")
    t.ping()
    check(foreign.seen()["esp"] >= 5, f"the foreign program saw {foreign.seen()}")
    equal(t.gw.stop(), 0, "exit status")


@BOOT.case("jumbo frames: a port with an MTU of 9000 works in generic mode, and says why", seconds=90)
def jumbo(guest):
    t = tunnel.StaticTunnel(guest, mtu=9000, wan='xdp_mode = "native"')
    try:
        t.gw.start()
        raise AssertionError(f"started in native mode: {t.gw.log()}")
    except daemon.DaemonFailed as e:
        check("MTU" in str(e), f"the MTU is not named: {e}")
    with open(t.gw.config, encoding="utf-8") as f:
        text = f.read()
    with open(t.gw.config, "w", encoding="utf-8") as f:
        f.write(text.replace('xdp_mode = "native"', 'xdp_mode = "auto"'))
    t.gw.start()
    port = t.gw.ports()["wan0"]
    equal((port["xdp_mode"], "MTU" in port["attached_reason"]), ("generic", True),
          f"mode of wan0 and whether the reason names the MTU ({port['attached_reason']})")
    t.ping()
    equal(traffic.ping(t.n.peer, "192.0.2.2", "192.0.2.1", 3, size=8000), 3,
          "large pings to the gateway itself")
    # ESP that does not fit a frame of packet memory is dropped at the socket, and counted there.
    dropped, counted = port["sockets"]["too_big"], t.gw.drops()["too_big"]
    equal(traffic.ping(t.n.peer, tunnel.FAR, tunnel.HOST, 2, size=5000), 0, "large pings by ESP")
    eventually(lambda: t.gw.ports()["wan0"]["sockets"]["too_big"] - dropped == 2,
               lambda: f"counted at the sockets: {t.gw.ports()['wan0']['sockets']}")
    equal(t.gw.drops()["too_big"] - counted, 2, "too_big")
    t.ping()
    equal(t.gw.stop(), 0, "exit status")
    return port["attached_reason"]
