# SPDX-License-Identifier: Apache-2.0
"""Starting, crashing, refusing and leaving."""

import contextlib
import ctypes
import os
import shutil
import socket
import struct
import threading
import time

from cases.traffic import clear_between, ping_both_ways
from lab import scapy_peer, traffic, wire
from lab.runner import Skip, case, check, equal, eventually


def host_state(lab):
    """All of gw that a daemon could leave something in, as text that can be compared."""
    gw = lab.gw
    links = gw.ip("-o link").splitlines()
    return {
        "devices": sorted(line.split(": ")[1].split("@")[0] for line in links),
        "XDP programs": [line for line in links if "xdp" in line],
        "routes": sorted(gw.ip("route show table all").splitlines()),
        "rules": gw.ip("rule").splitlines() + gw.ip("-6 rule").splitlines(),
        "xfrm states": gw.ip("xfrm state").splitlines(),
        "xfrm policies": [line for line in gw.ip("xfrm policy").splitlines()
                          if line.startswith("src")],
        "xfrm_acq_expires": gw.sh("sysctl", "-n", "net.core.xfrm_acq_expires").split(),
        "wan0 and lan0 settings": gw.sh("sh", "-c", "cd /proc/sys/net && grep -r . ipv4/conf/wan0 "
                                        "ipv4/conf/lan0 ipv4/conf/all ipv4/ip_forward").splitlines(),
        "BPF filesystem": [name for _, folders, files in
                           os.walk(os.path.join(lab.folder, "bpffs")) for name in files],
        "control socket": os.path.exists(os.path.join(lab.folder, "gateway", "control.sock")),
    }


def differences(before, after):
    return "; ".join(f"{key}: before {before[key]}, after {after[key]}"
                     for key in before if before[key] != after[key])


@case("a clean exit leaves no program, SA, policy, TAP, route or setting behind")
def clean_exit(bench):
    lab = bench.lab
    bench.peer()
    gateway = bench.prepare(at_stop="open")
    before = host_state(lab)
    gateway.start()
    during = host_state(lab)
    check("sp0" in during["devices"] and during["XDP programs"] and during["xfrm states"],
          f"the running gateway should be visible in its host's state: {during}")
    equal(traffic.ping(lab.lan, "10.1.0.2", "10.2.0.2", 2), 2, "echo replies")
    equal(gateway.stop(), 0, "exit status")
    check(not (left := differences(before, host_state(lab))), f"left behind: {left}")


@case("after kill -9 it starts again without cleaning by hand")
def restart_after_kill(bench):
    lab = bench.lab
    bench.peer()
    gateway = bench.prepare(at_stop="open")
    before = host_state(lab)
    for _ in range(3):
        gateway.start()
        ping_both_ways(bench, gateway, "plain", count=2)
        gateway.kill()
    gateway.start()
    ping_both_ways(bench, gateway, "esn", count=2)
    equal(gateway.stop(), 0, "exit status")
    check(not (left := differences(before, host_state(lab))),
          f"left behind after three crashes and a clean exit: {left}")


@case("A2 after kill -9 nothing that a PROTECT policy covers passes in clear")
def closed_after_kill(bench):
    lab = bench.lab
    bench.peer()
    gateway = bench.prepare().start()
    equal(traffic.ping(lab.lan, "10.1.0.2", "10.2.0.2", 2), 2, "echo replies")
    gateway.kill()
    tunnel = lab.tunnels["plain"]
    try:
        with wire.Wire(lab.peer_ns, "wanp") as wan, wire.Wire(lab.lan, "eth0") as lan:
            equal(traffic.ping(lab.lan, "10.1.0.2", "10.2.0.2", 3), 0, "echo replies")
            inward = bytes(scapy_peer.udp("10.2.0.2", "10.1.0.2"))
            wan.send(wire.ethernet(lab.gw.mac("wan0"), "02:00:00:00:00:02", inward))
            time.sleep(0.3)
            for side, seen in (("left", wan.frames), ("came in", lan.frames)):
                leaked = [f for f in seen if clear_between(f, tunnel)]
                check(not leaked, f"{len(leaked)} packets {side} in clear after the crash")
    finally:
        gateway.start()
        gateway.stop()


@case("forwarding that was off is off again after kill -9, a restart and a clean exit")
def forwarding_put_back(bench):
    lab = bench.lab
    gateway = bench.prepare(at_stop="open")
    settings = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")

    def forwarding():
        return lab.gw.sh("sysctl", "-n", *settings).split()

    try:
        for name in settings:
            lab.gw.sysctl(name, 0)
        for _ in range(2):
            gateway.start()
            equal(forwarding(), ["1", "1"], "forwarding while it runs")
            gateway.kill()
        gateway.start()
        equal(gateway.stop(), 0, "exit status")
        equal(forwarding(), ["0", "0"], "forwarding after the clean exit")
        check("sysctls" not in os.listdir(f"{gateway.folder}/state"), "the note is still there")
    finally:
        for name in settings:
            lab.gw.sysctl(name, 1)


def router_of(ns, device):
    """The default route that a host has learnt from a router there; "": none."""
    shown = ns.ip(f"-6 route show default dev {device} proto ra")
    return shown.split(" expires")[0].strip()


@case("a default route from a router advertisement stays, and IPv6 alone where the file has none",
      seconds=150)
def router_advertisements(bench):
    lab = bench.lab
    settings = ("net.ipv6.conf.all.forwarding", "net.ipv6.conf.wan0.accept_ra")

    def values():
        return [lab.gw.sh("sysctl", "-n", name).strip() for name in settings]

    advertisement = wire.ethernet("33:33:00:00:00:01", "02:00:00:00:00:09",
                                  bytes(scapy_peer.router_advertisement("fe80::9")))
    gateway = bench.prepare(at_stop="open", families=(4,))
    try:
        lab.gw.sysctl(settings[0], 0)
        equal(values(), ["0", "1"], "settings before the start")
        with wire.Wire(lab.peer_ns, "wanp") as wan:
            eventually(lambda: wan.send(advertisement) or router_of(lab.gw, "wan0"),
                       "the host learns a default route")
        learnt = router_of(lab.gw, "wan0")
        gateway.start()
        equal(values(), ["0", "1"], "settings with a file without IPv6")
        equal(router_of(lab.gw, "wan0"), learnt, "the learnt route with a file without IPv6")
        equal(gateway.stop(), 0, "exit status")
        gateway.options.pop("families")
        gateway.write_config()
        gateway.accept_keys()
        gateway.start()
        equal(values(), ["1", "2"], "settings while it forwards IPv6")
        equal(router_of(lab.gw, "wan0"), learnt, "the learnt route while it forwards IPv6")
        check("accept_ra was 1 and is 2" in gateway.log(), "the log says so")
        gateway.kill()
        gateway.start()
        equal(values(), ["1", "2"], "settings after a crash")
        equal(gateway.stop(), 0, "exit status")
        equal(values(), ["0", "1"], "settings after the end")
        equal(router_of(lab.gw, "wan0"), learnt, "the learnt route after the end")
        # A network manager that reads advertisements itself writes 0, and has it.
        gateway.start()
        lab.gw.sysctl(settings[1], 0)
        time.sleep(2.5)  # twice as long as what is mended takes
        equal(values(), ["1", "0"], "settings that a network manager has changed")
        gateway.kill()
        # Without IPv6 in the file nothing forwards it any more, before all is in place.
        gateway.options["families"] = (4,)
        gateway.write_config()
        gateway.accept_keys()
        gateway.start()
        equal(values(), ["0", "0"], "settings after a crash, with a file without IPv6")
        equal(gateway.stop(), 0, "exit status")
        equal(values(), ["0", "0"], "settings of the network manager after the end")
    finally:
        bench.discard_gateway()
        lab.gw.sysctl(settings[0], 1)
        lab.gw.sysctl(settings[1], 1)
        lab.gw.sh("ip", "-6", "route", "flush", "proto", "ra", "dev", "wan0", check=False)


@case("A2 a start that fails after kill -9 opens nothing")
def closed_after_failed_restart(bench):
    lab = bench.lab
    gateway = bench.prepare(at_stop="open").start()
    gateway.kill()
    # The kernel closes the queues of the killed one on its own time.
    eventually(lambda: not lab.gw.exists("sp0"), "sp0 of the killed gateway is still there", 10)
    lab.gw.ip("tuntap add dev sp0 mode tap")  # in the way
    try:
        status, said = gateway.run(check=False)
        equal(status, 1, f"exit status; it said: {said}")
        policies = lab.gw.ip("xfrm policy")
        check("src 10.1.0.0/24 dst 10.2.0.0/24" in policies and "action block" in policies,
              f"the policies that block cleartext are gone: {policies!r}; it said: {said}")
    finally:
        lab.gw.ip("link del sp0")
        gateway.start()
        equal(gateway.stop(), 0, "exit status")
    equal(lab.gw.ip("xfrm policy").count("action block"), 0, "policies after a clean exit")


@case("D1 no (SPI, IV) pair repeats on the wire over three crashes under load", seconds=120)
def iv_never_repeats(bench):
    lab = bench.lab
    bench.peer()
    gateway = bench.prepare()
    ours = {lab.tunnels[name].spi_out: name for name in ("plain", "esn")}
    with wire.Wire(lab.peer_ns, "wanp") as wan:
        for life in range(4):
            gateway.start()
            seen = len(wan.frames)
            stop = threading.Event()
            sender = threading.Thread(target=_keep_sending, args=(lab, stop))
            sender.start()
            try:
                eventually(lambda: min(of_each(ours, wan.frames[seen:])) > 100,
                           lambda: f"ESP packets in life {life}: {of_each(ours, wan.frames[seen:])}", 30)
                gateway.kill()  # while packets are on their way
            finally:
                stop.set()
                sender.join()
        packets = [e for e in map(wire.esp_of, list(wan.frames)) if e and e[0] in ours]
    gateway.start()
    gateway.stop()
    return check_sequences(packets, ours)


def of_each(spis, frames):
    """How many ESP packets of each SPI are among the frames."""
    seen = [e[0] for e in map(wire.esp_of, frames) if e]
    return [seen.count(spi) for spi in spis]


def _keep_sending(lab, stop):
    """UDP from both protected addresses, a few thousand packets a second."""
    with wire.Wire(lab.lan, "eth0") as lan:
        macs = lab.gw.mac("lan0"), lab.lan.mac("eth0")
        frames = [wire.ethernet(*macs, bytes(scapy_peer.udp(f"10.1.{i}.2", f"10.2.{i}.2")))
                  for i in (0, 1)]
        while not stop.is_set():
            for frame in frames:
                lan.send(frame)
            time.sleep(0.0005)


def check_sequences(packets, names):
    """Judges (SPI, sequence, IV) of one direction: no IV twice, sequences only grow."""
    notes = []
    for spi, name in names.items():
        ivs = [iv for s, _, iv in packets if s == spi]
        sequences = [sequence for s, sequence, _ in packets if s == spi]
        check(len(ivs) > 100, f"{name}: only {len(ivs)} packets were captured")
        equal(len(set(ivs)), len(ivs), f"{name}: distinct IVs of {len(ivs)} packets")
        falls = [(a, b) for a, b in zip(sequences, sequences[1:]) if b <= a]
        check(not falls, f"{name}: sequence numbers fell: {falls[:3]}")
        jumps = sum(b - a > 1 for a, b in zip(sequences, sequences[1:]))
        notes.append(f"{name}: {len(ivs)} packets, sequence {sequences[0]} to {sequences[-1]}, "
                     f"{jumps} gaps")
    return "; ".join(notes)


@case("a key without sequence state: refused in words, usable after --accept-key")
def missing_sequence_state(bench):
    lab = bench.lab
    bench.peer()
    bench.stop_gateway()
    lab.new_keys()
    gateway = bench.prepare(accept_keys=False)
    gateway.start()
    sa = gateway.sa("plain-out")
    equal(sa["state"], "refused", "state of plain-out")
    check("--accept-key" in sa["reason"], f"the reason should name the way out: {sa['reason']}")
    check("plain-out" in gateway.log() and "--accept-key" in gateway.log(),
          f"the log should say so too: {gateway.log()}")
    before = gateway.drops()["no_sa"]
    equal(traffic.ping(lab.lan, "10.1.0.2", "10.2.0.2", 2), 0, "echo replies")
    equal(gateway.drops()["no_sa"] - before, 2, "drops as no_sa")
    equal(gateway.stop(), 0, "exit status")
    gateway.accept_keys()
    gateway.start()
    ping_both_ways(bench, gateway, "plain")
    equal(gateway.stop(), 0, "exit status")
    status, said = gateway.run("--accept-key", "plain-out", check=False)
    check(status != 0, f"a key whose state is there must not be started again: {said}")


@case("D1 an older sequence state put back from a backup: refused, usable after --accept-key=N")
def older_sequence_state(bench):
    lab = bench.lab
    bench.peer()
    gateway = bench.prepare()
    state, backup = f"{gateway.folder}/state", f"{lab.folder}/backup"
    shutil.copytree(state, backup, copy_function=shutil.copy2)
    try:
        gateway.start()
        ping_both_ways(bench, gateway, "plain")
        equal(gateway.stop(), 0, "exit status")
        shutil.copytree(backup, state, copy_function=shutil.copy2, dirs_exist_ok=True)
        gateway.start()
        sa = gateway.sa("plain-out")
        equal(sa["state"], "refused", "state of plain-out")
        check("--accept-key" in sa["reason"], f"the reason should name the way out: {sa['reason']}")
        equal(traffic.ping(lab.lan, "10.1.0.2", "10.2.0.2", 2), 0, "echo replies")
        equal(gateway.stop(), 0, "exit status")
        gateway.run("--accept-key", "plain-out=1000000000")
        gateway.start()
        ping_both_ways(bench, gateway, "plain")
        check(gateway.sa("plain-out")["sequence"] > 1000000000, "the sequence goes on above")
        equal(gateway.stop(), 0, "exit status")
    finally:
        gateway.kill()
        shutil.rmtree(backup)
        # The other keys stay refused, and the file says for good that it has lost records: what
        # follows is a new gateway with new keys.
        shutil.rmtree(state)
        lab.new_keys()


def foreign_program(ns, device, *how):
    """Attaches a program that is not ours (it passes everything); returns its descriptor."""
    bpf_syscall, prog_load, type_xdp = 321, 5, 6
    code = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0)  # r0 = XDP_PASS; exit
    code_buffer = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack("<IIQQIIQII16s", type_xdp, len(code) // 8, ctypes.addressof(code_buffer),
                       ctypes.addressof(licence), 0, 0, 0, 0, 0, b"somebody_elses")
    attr_buffer = ctypes.create_string_buffer(attr, 128)
    fd = ctypes.CDLL(None, use_errno=True).syscall(bpf_syscall, prog_load, attr_buffer, 128)
    if fd < 0:
        raise Skip(f"cannot load a BPF program: {os.strerror(ctypes.get_errno())}")
    identity = next(line.split()[1] for line in open(f"/proc/self/fdinfo/{fd}", encoding="ascii")
                    if line.startswith("prog_id"))
    ns.sh("bpftool", "net", "attach", "xdpdrv", "id", identity, "dev", device, *how)
    return fd


@case("a foreign XDP program on a port: refused in words, and left alone")
def foreign_xdp(bench):
    lab = bench.lab
    gateway = bench.prepare()
    fd = foreign_program(lab.gw, "wan0")
    try:
        before = host_state(lab)
        status, said = gateway.run(check=False)
        equal(status, 1, f"exit status; it said: {said}")
        check("wan0" in said, f"the error should name the device: {said}")
        check(not (left := differences(before, host_state(lab))), f"changed: {left}")
    finally:
        lab.gw.ip("link set dev wan0 xdp off")
        os.close(fd)
    equal(bench.gateway().running, True, "running once the program is gone")


@case("an SA whose outer packets no port carries is refused, the others are not")
def mtu_above_the_port(bench):
    gateway = bench.gateway(plain_out_keys={"mtu": 1501})
    sa = gateway.sa("plain-out")
    equal(sa["state"], "refused", "state of plain-out")
    check("1501" in sa["reason"] and "(1500)" in sa["reason"], f"the reason: {sa['reason']}")
    equal(gateway.sa("plain-in")["state"], "active", "state of plain-in")
    equal(gateway.sa("esn-out")["state"], "active", "state of another SA")
    log = gateway.log()
    check("policy 'plain' protects and no outbound SA serves it" in log, "a warning in the log")
    check("(1 refused)" in log, "the line that says ready")


@case("a missing device: file and line, status 75, nothing changed; one that comes is waited for",
      seconds=120)
def missing_device(bench):
    lab = bench.lab
    gateway = bench.prepare(lan_device="late0")
    before = host_state(lab)
    # The file may be right, and the device be made a moment later: not the 2 that a unit gives up on.
    status, said = gateway.run("--check", check=False)
    equal(status, 75, f"exit status of --check; it said: {said}")
    check("late0" in said and f"{gateway.config}:" in said, f"it said: {said}")
    began = time.monotonic()
    status, said = gateway.run(check=False)
    equal(status, 75, f"exit status; it said: {said}")
    check("waiting up to 30 s" in said, f"it said: {said}")
    check(29 < time.monotonic() - began < 45, f"it ended after {time.monotonic() - began:.0f} s")
    check(not (left := differences(before, host_state(lab))), f"changed: {left}")
    seen = len(gateway.log())

    def waits():
        return "waiting up to 30 s" in gateway.log()[seen:]

    def come():
        eventually(waits, "it waits for the device", 25)
        lab.gw.ip("link add late0 numrxqueues 2 type veth peer name late1")

    comes = threading.Thread(target=come)
    comes.start()
    try:
        gateway.start()
        check(waits(), "it did not wait for the device")
        equal(gateway.stop(), 0, "exit status")
    finally:
        comes.join()
        lab.gw.sh("ip", "link", "del", "late0", check=False)
        bench.discard_gateway()
    # What is wrong in the file stays so, whatever else is missing.
    gateway = bench.prepare(accept_keys=False, lan_device="late0", lan_keys={"bypass_cpus": [1000]})
    status, said = gateway.run(check=False)
    equal(status, 2, f"exit status; it said: {said}")


@case("keys appear in no log, no answer and no table")
def keys_stay_secret(bench):
    gateway = bench.gateway()
    said = gateway.log() + "".join(
        gateway.table(what) + str(gateway.show(what))
        for what in ("status", "ports", "workers", "sa", "policy", "drops"))
    for t in bench.lab.tunnels.values():
        for key in (t.key_in, t.key_out):
            check(key.hex() not in said.lower(), f"a key of {t.name} was printed")


@contextlib.contextmanager
def stands_still(thread):
    """One thread of another process, held by ptrace."""
    seize, interrupt, detach, wait_all = 0x4206, 0x4207, 17, 0x40000000
    libc = ctypes.CDLL(None, use_errno=True)
    check(libc.ptrace(seize, thread, 0, 0) == 0 and libc.ptrace(interrupt, thread, 0, 0) == 0,
          f"cannot hold thread {thread}: {os.strerror(ctypes.get_errno())}")
    os.waitpid(thread, wait_all)
    try:
        yield
    finally:
        libc.ptrace(detach, thread, 0, 0)


def thread_named(process, name):
    for thread in os.listdir(f"/proc/{process}/task"):
        with open(f"/proc/{process}/task/{thread}/comm", encoding="ascii") as f:
            if f.read().strip() == name:
                return int(thread)
    raise LookupError(f"no thread {name} in {process}")


@case("a worker that hangs is said, and the service manager hears nothing until it moves again")
def hung_worker(bench):
    gateway = bench.prepare()
    path = os.path.join(gateway.folder, "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as manager:
        manager.bind(path)
        os.environ["NOTIFY_SOCKET"] = path
        try:
            gateway.start()
        finally:
            del os.environ["NOTIFY_SOCKET"]

        def heard():
            messages = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    messages.append(manager.recv(200).decode())
            return messages

        messages = []
        eventually(lambda: messages.extend(heard()) or {"READY=1", "WATCHDOG=1"} <= set(messages),
                   "the service manager hears that it is ready, and well")
        with stands_still(thread_named(gateway.pid, "sp-worker-1")):
            eventually(lambda: "worker 1 hangs" in gateway.log(), "a line in the log")
            heard()
            time.sleep(3)  # ticks that say nothing
            equal(heard(), [], "messages to the service manager while a worker hangs")
            check("worker 0 hangs" not in gateway.log(), "the other worker moves")
        eventually(lambda: "worker 1 moves again" in gateway.log(), "a line in the log")
        eventually(lambda: "WATCHDOG=1" in heard(), "the service manager hears again")
        bench.stop_gateway()
    os.unlink(path)


@case("idle: CPU time of a gateway without traffic (printed, not judged)")
def idle(bench):
    gateway = bench.gateway()
    time.sleep(1)
    began, cpu = time.monotonic(), gateway.cpu_seconds()
    time.sleep(3)
    used = (gateway.cpu_seconds() - cpu) / (time.monotonic() - began)
    return f"{used * 100:.1f} % of one CPU for all threads"
