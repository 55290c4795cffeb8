# SPDX-License-Identifier: Apache-2.0
"""sallyportd follows the kernel's xfrm: SAs are taken over, given back, and never used twice."""

from inside import boot, capture, kernel_esp, register
from lab import traffic, wire
from lab.checks import check, equal, eventually

BOOT = boot.Boot(kernels=("newest", "6.12"), modules=register.MODULES)


@BOOT.case("SAs of xfrm are taken over, and their counters come back", seconds=60, everywhere=True)
def taken_over(guest):
    t = register.RegisterTunnel(guest)
    t.states()
    t.policies()
    t.gw.start()
    t.until_active()
    t.ping()
    t.checked_counters(5)
    equal(t.n.peer.xfrm_statistics(), {}, "what the peer's kernel refused")
    for row in t.gw.show("sa"):
        guest.note(f"{row['direction']} {row['spi']}: worker {row['worker']}, {row['packets']} packets")
    guest.note(t.gw.table("sa"))
    equal(t.gw.stop(), 0, "exit status of sallyportd")


@BOOT.case("SAs and policies that come and go while it runs", seconds=60)
def come_and_go(guest):
    t = register.RegisterTunnel(guest, esn=True)
    t.gw.start()
    equal(t.gw.show("sa"), [], "SAs before there are any")
    t.policies()
    t.states()
    t.until_active()
    t.ping()
    t.checked_counters(5)
    # In clear it must not go, whatever is missing.
    with capture.Capture(guest, t.n.peer, "wanp", "icmp") as clear:
        t.n.gw.batch([f"xfrm state delete src {register.NEAR_END} dst {register.FAR_END} proto esp"
                      f" spi {t.pair.spi_out:#x}"])
        eventually(lambda: len(t.gw.show("sa")) == 1, "the outbound SA is still there", 10)
        equal(traffic.ping(t.n.lan, register.HOST, register.FAR, 2), 0, "pings without an SA")
        t.policies("delete")
        eventually(lambda: t.gw.show("policy") == [], "policies are left", 10)
        equal(traffic.ping(t.n.lan, register.HOST, register.FAR, 2), 0, "pings without a policy")
        equal(len(clear.frames()), 0, "frames in clear")
    equal(t.gw.stop(), 0, "exit status of sallyportd")


@BOOT.case("D1 killed: the kernel goes on with the SAs; started again: workers do; no IV twice",
           seconds=90, everywhere=True)
def killed(guest):
    t = register.RegisterTunnel(guest)
    t.states()
    t.policies()
    with capture.Capture(guest, t.n.peer, "wanp", "proto 50") as ciphertext:
        t.gw.start()
        t.until_active()
        t.ping(10)
        t.checked_counters(10)
        t.gw.kill()
        answered = traffic.ping(t.n.lan, register.HOST, register.FAR, 20)
        guest.note(f"{answered} of 20 pings answered by the kernel after the kill")
        check(answered >= 19, f"only {answered} of 20 pings answered after the kill")
        t.gw.start()
        t.until_active()
        before = t.rows()["outbound"]["packets"]
        t.ping(10)
        after = t.rows()["outbound"]["packets"]
        check(after >= before + 10, f"workers sent {after - before} of 10 pings after the restart")
        equal(t.gw.stop(), 0, "exit status of sallyportd")
        t.ping(5)
        esp = ciphertext.esp()
    equal(t.n.peer.xfrm_statistics(), {}, "what the peer's kernel refused")
    for spi in (t.pair.spi_in, t.pair.spi_out):
        rows = [row for row in esp if row[0] == spi]
        check(len(rows) >= 25 + answered, f"only {len(rows)} ESP packets of {spi:#x} captured")
        equal(len({row[1] for row in rows}), len(rows), "sequence numbers, each once")
        equal(len({row[2] for row in rows}), len(rows), "IVs, each once")


@BOOT.case("D1 the gateway's own packets on a worker's SA: no number has two senders", seconds=120)
def two_senders(guest):
    t = register.RegisterTunnel(guest)
    t.states()
    t.policies()
    # What keeps the gateway's own packets away from workers, whatever routes there are.
    t.n.gw.batch([f"rule add pref 1 iif lo to {register.FAR} lookup main"])
    with capture.Capture(guest, t.n.peer, "wanp", "proto 50") as ciphertext:
        t.gw.start()
        t.until_active()
        site = t.n.lan.start("ping", "-n", "-i", "0.005", "-c", "2000", "-q", register.FAR,
                             stdout=-3, stderr=-3)
        own = t.n.gw.start("ping", "-n", "-f", "-c", "8000", "-q", "-I", "10.1.0.1", register.FAR,
                           stdout=-3, stderr=-3)
        for process in (site, own):
            process.wait(100)
        row = t.rows()["outbound"]
        equal(t.gw.stop(), 0, "exit status of sallyportd")
        esp = [e for e in ciphertext.esp() if e[0] == t.pair.spi_out]
    numbers = [e[1] for e in esp]
    guest.note(f"{len(esp)} packets, numbers up to {max(numbers)}, {len(numbers) - len(set(numbers))} of two senders;"
               f" in the end: {row['state']} {row['reason']}")
    check(len(esp) > 5000, f"only {len(esp)} ESP packets captured")
    # After two rounds above each other the kernel has it alone.
    equal((row["state"], row["reason"]), ("kernel", "traffic of this host uses it"), "who has the SA in the end")
    check(max(numbers) < 1 << 22, f"numbers up to {max(numbers)} for {len(esp)} packets")
    equal(len(set(numbers)), len(numbers), "sequence numbers, each once")
    equal(len({e[2] for e in esp}), len(esp), "IVs, each once")


@BOOT.case("B3 ESP that was received is not accepted again by the protected port, where the kernel has the key", seconds=60)
def repeated_inside(guest):
    t = register.RegisterTunnel(guest)
    t.states()
    t.policies()
    with capture.Capture(guest, t.n.peer, "wanp", "proto 50") as ciphertext, wire.Wire(t.n.lan, "eth0") as lan:
        t.gw.start()
        t.until_active()
        t.ping(20)
        recorded = [frame for _, frame in ciphertext.frames() if (wire.esp_of(frame) or [0])[0] == t.pair.spi_in]
        check(len(recorded) >= 20, f"only {len(recorded)} ESP packets were recorded")
        arrived, before = len(lan.frames), t.gw.drops()["steer_failed"]
        to_lan0 = bytes.fromhex(t.n.gw.mac("lan0").replace(":", ""))
        for frame in recorded:
            lan.send(to_lan0 + frame[6:])
        eventually(lambda: t.gw.drops()["steer_failed"] == before + len(recorded),
                   lambda: f"drops: {t.gw.drops()['steer_failed'] - before} of {len(recorded)}", 20)
        again = [frame for frame in lan.frames[arrived:] if frame[12:14] == b"\x08\x00" and frame[23] == 1]
        equal(len(again), 0, "inner packets that arrived once more")
    equal(t.n.gw.xfrm_statistics(), {}, "what the gateway's kernel saw of it")
    equal(t.gw.stop(), 0, "exit status of sallyportd")


@BOOT.case("packets that waited in the kernel for an SA come out when a worker has it: it stays there", seconds=90)
def waited(guest):
    t = register.RegisterTunnel(guest)
    t.gw.start()
    t.policies()
    for turn in range(4):
        def sent():
            rows = (line.split() for line in t.n.lan.read("/proc/net/dev").splitlines())
            return next(int(row[10]) for row in rows if row[0] == "eth0:")
        before = sent()
        pings = t.n.lan.start("ping", "-n", "-i", "0.02", "-q", register.FAR, stdout=-3, stderr=-3)
        guest.later(pings.kill)
        # The kernel looks whether there is an SA after 0.1, 0.3, 0.7, 1.5 s.
        eventually(lambda b=before: sent() >= b + 50, "pings are not sent", 20)
        t.states()
        t.until_active()
        eventually(lambda: t.rows()["outbound"]["packets"] > 50, "the worker sends no pings", 30)
        row = t.rows()["outbound"]
        equal((row["state"], row["reason"]), ("active", ""), "who has the SA")
        guest.note(f"number {row['sequence']} after {row['packets']} packets of the worker, {sent() - before} pings")
        pings.kill()
        pings.wait()
        t.n.gw.batch(["xfrm state flush"])
        t.n.peer.batch(["xfrm state flush", "xfrm policy flush"])
        eventually(lambda: t.gw.show("sa") == [], "SAs are left", 10)
        t.pair = kernel_esp.Pair("branch", "10.1.0.0/24", "10.2.0.0/24", register.NEAR_END, register.FAR_END)
        t.n.peer.batch(t.pair.peer_lines())
    check("traffic of this host uses it" not in t.gw.log(), "an SA was left to the kernel")
    equal(t.gw.stop(), 0, "exit status of sallyportd")


@BOOT.case("an SA that workers do not speak stays with the kernel, and works", seconds=60)
def stays(guest):
    t = register.RegisterTunnel(guest)
    p = t.pair
    suite = f"enc cbc(aes) 0x{p.key_out[:16].hex()} auth-trunc hmac(sha256) 0x{(p.key_out * 2)[:32].hex()} 128"
    states = [f"xfrm state add src {a} dst {b} proto esp spi {spi:#x} reqid {reqid} mode tunnel"
              f" replay-window 64 flag af-unspec {suite}"
              for a, b, spi, reqid in ((register.NEAR_END, register.FAR_END, p.spi_out, p.spi_out),
                                       (register.FAR_END, register.NEAR_END, p.spi_in, p.spi_in))]
    t.n.peer.batch(["xfrm state flush", *states])
    t.n.gw.batch(states)
    t.n.gw.batch(register.policy_lines(p.local, p.remote, register.NEAR_END, register.FAR_END,
                                       p.spi_in, p.spi_out))
    t.gw.start()
    t.ping()
    rows = t.gw.show("sa")
    equal({row["state"] for row in rows}, {"kernel"}, "who serves the SAs")
    for row in rows:
        check("cbc(aes)" in row["reason"], f"the reason is {row['reason']!r}")
    guest.note("kernel: " + rows[0]["reason"])
    equal(t.gw.stop(), 0, "exit status of sallyportd")
