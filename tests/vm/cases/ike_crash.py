# SPDX-License-Identifier: Apache-2.0
"""sallyportd is killed while it carries a tunnel that strongSwan made, and starts again.

The kernel has the same SAs and goes on with them at numbers above all that workers used; the workers take
over again above all that the kernel used. See inside/two_sites.py for the network.
"""

import time

from inside import boot, two_sites
from lab.checks import check, equal, eventually

BOOT = boot.Boot(kernels=("newest", "6.12"), modules=two_sites.MODULES)
INTERVAL = 0.05
TIMES = 2


@BOOT.case("kill -9 and a stop under a ping and a TCP stream: the kernel carries on, then the workers again",
           seconds=150)
def kill(guest):
    s = two_sites.first_tunnel(guest)
    pings, stream = s.pings(interval=INTERVAL).flowing(), two_sites.Stream(s)
    guest.note(s.carried("branch"))
    pings.forget()
    for _ in range(TIMES if s.fast else 0):
        kill_and_restart(guest, s, pings, stream)
    if s.fast:
        stop_and_restart(guest, s, pings, stream)
    moved, broken = stream.stop()
    sent, missing = pings.stop()
    guest.note(f"TCP: {moved} bytes there and back; of {sent} pings {len(missing)} lost: {missing}"
               " (the first ones while the tunnel came up)")
    check(not broken, f"TCP: {broken}")
    equal(s.in_clear(), [], "frames in clear on the wan")
    s.no_replays()
    guest.note(s.look_at_wire())
    if s.fast:
        equal(s.fast.stop(), 0, "exit status of sallyportd")


def kill_and_restart(guest, s, pings, stream):
    began = time.monotonic()
    s.fast.kill()
    dying = time.monotonic() - began
    pings.flowing(10)
    before = s.kernel_packets("branch")
    stream.flowing()
    pings.flowing(10)
    after = s.kernel_packets("branch")
    check(all(now >= then + 10 for then, now in zip(before, after)),
          f"the kernel's SAs did not carry it: packets {before}, then {after}")
    # What was sent to sockets whose owner was dying is lost; nothing later is.
    lost = pings.missing()
    allowed = int((dying + 0.2) / INTERVAL) + 2
    guest.note(f"killed: gone after {dying * 1000:.0f} ms; pings lost: {lost} (in flight: {allowed})")
    check(len(lost) <= allowed, f"{len(lost)} pings lost, {allowed} were in flight")
    pings.forget()

    began = time.monotonic()
    s.fast.start()
    starting = time.monotonic() - began
    pings.flowing(20)
    stream.flowing()
    guest.note(s.carried("branch"))
    guest.note(f"started again in {starting:.1f} s; pings lost meanwhile: {pings.missing()}")
    check(len(pings.missing()) <= allowed, f"{len(pings.missing())} pings lost while it started")
    pings.forget()


def stop_and_restart(guest, s, pings, stream):
    """SAs go back to the kernel while the workers run, and charon is asked by the kernel itself to rekey."""
    child = s.child("branch")["uniqueid"]
    began = time.monotonic()
    equal(s.fast.stop(), 0, "exit status of sallyportd")
    stopping = time.monotonic() - began
    pings.flowing(10)
    lost = pings.missing()
    guest.note(f"stopped in {stopping:.1f} s; pings lost: {lost}")
    check(len(lost) <= 2, f"{len(lost)} pings lost by a stop")
    eventually(lambda: s.child("branch")["uniqueid"] != child,
               "charon has not rekeyed what the workers had used", 30)
    stream.flowing()
    pings.flowing(10)
    pings.forget()
    s.fast.start()
    pings.flowing(20)
    stream.flowing()
    guest.note(s.carried("branch"))
    pings.forget()
