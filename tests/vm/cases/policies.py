# SPDX-License-Identifier: Apache-2.0
"""Policies of xfrm that come while sallyportd stands still, and more of them than there is room for."""

import os
import signal
import time

from inside import boot, capture, register
from lab import traffic
from lab.checks import check, equal, eventually

BOOT = boot.Boot(kernels=("newest",), modules=register.MODULES)

OPEN = """
[[policy]]
name = "open"
action = "bypass"
local = "10.1.0.0/24"
remote = "10.2.0.0/24"
"""
# BypassLease::kFor
LEASE_SECONDS = 1


def passed_by_xdp(t):
    return t.gw.ports()["lan0"]["redirected"]


@BOOT.case("a trap policy holds for a daemon that stands still, and for BYPASS within the lease", seconds=60)
def stands_still(guest):
    t = register.RegisterTunnel(guest, more=OPEN)
    # In clear and back: the peer's policies are none of this case's business.
    t.n.peer.batch(["xfrm policy flush", "xfrm state flush"])
    t.gw.start()
    pid = t.gw.show("status")["pid"]
    eventually(lambda: traffic.ping(t.n.lan, register.HOST, register.FAR, 2) == 2,
               "BYPASS does not let pings pass", 10)

    def past_the_kernel():
        before = passed_by_xdp(t)
        return traffic.ping(t.n.lan, register.HOST, register.FAR, 2) == 2 and passed_by_xdp(t) > before
    eventually(past_the_kernel, "BYPASS does not go past the kernel", 20)

    with capture.Capture(guest, t.n.peer, "wanp", "icmp") as clear:
        os.kill(pid, signal.SIGSTOP)
        try:
            t.policies()
            time.sleep(LEASE_SECONDS)  # what the promise names; the daemon has nothing to say about it
            before = len(clear.frames())
            equal(traffic.ping(t.n.lan, register.HOST, register.FAR, 5), 0, "pings answered")
            equal(len(clear.frames()) - before, 0, "frames in clear under a trap policy")
        finally:
            os.kill(pid, signal.SIGCONT)
        eventually(lambda: len(t.gw.show("policy")) > 1, "the policies are not heard of", 20)
        equal(traffic.ping(t.n.lan, register.HOST, register.FAR, 3), 0, "pings answered")
        equal(len(clear.frames()) - before, 0, "frames in clear when it goes on")
    status = t.gw.show("status")
    guest.note(f"the lease of BYPASS has lapsed {status['bypass_lapses']} times")
    check(status["bypass_lapses"] >= 1, "the lapse is not counted")
    t.policies("delete")
    eventually(past_the_kernel, "BYPASS does not go past the kernel again", 20)
    equal(t.gw.stop(), 0, "exit status of sallyportd")


def narrowed(ports, verb="add"):
    """What a peer has that asks for one CHILD_SA for each port of 10.7.0.0/24."""
    lines = []
    for port in ports:
        template = (f" tmpl src {register.NEAR_END} dst {register.FAR_END} proto esp"
                    f" reqid {1000 + port} mode tunnel" if verb == "add" else "")
        lines.append(f"xfrm policy {verb} src 10.1.0.0/24 dst 10.7.0.0/24 proto tcp dport {port}"
                     f" dir out{template}")
    return lines


@BOOT.case("a peer with 17 children for one address pair stops nobody's policies", seconds=90)
def greedy(guest):
    t = register.RegisterTunnel(guest)
    t.gw.start()
    t.policies()
    t.states()
    t.until_active()
    t.ping()
    t.n.gw.batch(narrowed(range(1001, 1018)))

    def of_the_greedy():
        return [row for row in t.gw.show("policy") if row.get("remote") == ["10.7.0.0/24"]]
    eventually(lambda: len(of_the_greedy()) == 17, "their policies are not heard of", 20)
    reasons = {row["reason"] for row in of_the_greedy()}
    equal(reasons, {"more than 16 policies for 10.1.0.0/24 to 10.7.0.0/24"}, "why the kernel has them")
    equal(t.gw.show("status")["not_published"], "", "why earlier policies are in force")
    t.ping()
    # Everybody else's go on to be followed: gone, and back.
    with capture.Capture(guest, t.n.peer, "wanp", "icmp or dst net 10.7.0.0/24") as clear:
        t.policies("delete")
        eventually(lambda: len(t.gw.show("policy")) == 17, "policies are left", 20)
        equal(traffic.ping(t.n.lan, register.HOST, register.FAR, 2), 0, "pings without a policy")
        # What the peer's policies cover waits for an SA, and what they do not has none to leave by.
        equal(traffic.ping(t.n.lan, register.HOST, "10.7.0.9", 2), 0, "pings that no policy covers")
        equal(len(clear.frames()), 0, "frames in clear")
    t.policies()
    t.until_active()
    t.ping()
    # A start in that state.
    equal(t.gw.stop(), 0, "exit status of sallyportd")
    t.gw.start()
    t.until_active()
    t.ping()
    t.n.gw.batch(narrowed([1017], "delete"))
    eventually(lambda: {row["reason"] for row in of_the_greedy()} in ({""}, {None}),
               "16 of them are still the kernel's", 20)
    equal(t.gw.stop(), 0, "exit status of sallyportd")
