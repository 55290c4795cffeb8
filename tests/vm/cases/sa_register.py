# SPDX-License-Identifier: Apache-2.0
"""The kernel's register of SAs written by netlink, without an IKE daemon: thousands of SAs, and SAs of CPUs.

    a 10.1.N.2 --- lan0 g wan0 192.0.2.1 === w === 192.0.2.2 wan0 p lan0 --- 10.2.N.2 b
                   sallyportd                       kernel ESP
"""

import secrets
import socket
import time

from inside import boot, two_sites, xfrm
from inside.net import CommandFailed
from inside.two_sites import GATEWAY, PEER
from lab.checks import Skip, check, equal, eventually

BOOT = boot.Boot(kernels=("newest",), modules=two_sites.MODULES)
COUNT, PEERS = 10_000, 100
world = failed = None
CONFIG = """
[gateway]
max_sas = 16384
"""


def sites(guest):
    global world, failed
    if failed:
        raise Skip("sallyportd did not start: see the first case")
    if world is None:
        failed = True
        s = two_sites.Sites(guest.build)
        s.attend(guest)
        if s.fast:
            s.fast.configure(two_sites.example("sallyport.toml") + CONFIG)
            s.fast.start()
        world, failed = s, False
    world.attend(guest)
    return world


def random_spis(count):
    spis = set()
    while len(spis) < count:
        spis.add(secrets.randbelow(2**32 - 4096) + 4096)
    return sorted(spis, key=lambda _: secrets.randbits(32))


@BOOT.case("10 000 SAs come and go; what is shown is what the kernel has", seconds=300)
def many(guest):
    s = sites(guest)
    lines, states, spis = [], [], random_spis(COUNT)
    for n in range(PEERS):
        peer, near, far = f"198.51.{n // 200}.{n % 200 + 1}", "10.1.0.0/24", f"10.9.{n}.0/24"
        lines += [f"xfrm policy add src {src} dst {dst} dir {way} tmpl src {here} dst {there} proto esp"
                  f" reqid {n + 1} mode tunnel"
                  for way, src, dst, here, there in (("out", near, far, GATEWAY, peer),
                                                     ("in", far, near, peer, GATEWAY),
                                                     ("fwd", far, near, peer, GATEWAY))]
        for i in range(COUNT // PEERS):
            out = i % 2 == 1
            states.append(xfrm.State(*((GATEWAY, peer) if out else (peer, GATEWAY)), spis.pop(),
                                     reqid=n + 1, direction=xfrm.OUT if out else xfrm.IN))
    guest.later(lambda: s.g.batch(["xfrm policy flush", "xfrm state flush"]))
    s.g.batch(lines)
    began = time.monotonic()
    s.register.requests(xfrm.NEWSA, (xfrm.new_state(st, secrets.token_bytes(20)) for st in states))
    guest.note(f"{COUNT} SAs installed in {time.monotonic() - began:.1f} s")
    same_as_kernel(guest, s, COUNT)
    # Half go one by one, as fast as netlink takes them; then all the rest at once.
    s.register.delete_many(states[::2])
    same_as_kernel(guest, s, COUNT // 2)
    s.register.flush()
    same_as_kernel(guest, s, 0)


def same_as_kernel(guest, s, count):
    """Names in `show sa` and in a dump of the kernel: equal, and as many as are expected."""
    kernel = s.register.names()
    equal(len(kernel), count, "SAs in the kernel")
    if not s.fast:
        return
    began = time.monotonic()

    last = set()

    def shown():
        try:
            rows = s.fast.show("sa")
        except CommandFailed:  # it has thousands of SAs to take over, on a slow CPU
            return False
        last.clear()
        last.update((socket.inet_aton(row["destination"]), int(row["spi"], 16)) for row in rows)
        return last == kernel and not any("about to be" in row["reason"] for row in rows)
    eventually(shown, lambda: difference(kernel, last), 600)
    guest.note(f"{count} SAs: shown as in the kernel after {time.monotonic() - began:.1f} s")


def difference(kernel, shown):
    return (f"{len(kernel)} in the kernel, {len(shown)} shown; only in the kernel:"
            f" {named(kernel - shown)}, only shown: {named(shown - kernel)}")


def named(names):
    return [f"{spi:#010x} to {socket.inet_ntoa(address)}" for address, spi in sorted(names)[:3]]


@BOOT.case("G1 SAs of CPUs: one tunnel, both workers; the SA without a CPU when one is missing", seconds=60)
def per_cpu(guest):
    s = sites(guest)
    flows = 24
    names = ("cpu 0", "cpu 1", "fallback")
    spis = dict(zip((*names, "in 0", "in 1"), random_spis(5)))
    keys = {name: secrets.token_bytes(20) for name in spis}
    reqid = 88

    def state(name, at_gateway):
        out = not name.startswith("in")
        source, destination = (GATEWAY, PEER) if out else (PEER, GATEWAY)
        cpu = int(name[-1]) if at_gateway and name[-1] in "01" else None
        # At the peer each inbound SA serves one network, with a reqid of its own.
        return xfrm.State(source, destination, spis[name], pcpu=cpu, direction=2 if out == at_gateway else 1,
                          reqid=reqid if at_gateway or out else reqid + int(name[-1]))

    try:
        for name in spis:
            s.register.request(xfrm.NEWSA, xfrm.new_state(state(name, True), keys[name]), 0x600)
    except xfrm.Failed as e:
        raise Skip(f"the kernel refuses an SA with a CPU: {e}") from None
    for name in spis:
        s.peer_register.request(xfrm.NEWSA, xfrm.new_state(state(name, False), keys[name]), 0x600)
    policies = []
    for ns, here, there, own, other in ((s.g, GATEWAY, PEER, 1, 2), (s.p, PEER, GATEWAY, 2, 1)):
        for network in (0, 1):
            out = reqid + (network if ns is s.p else 0)
            near, far = f"10.{own}.{network}.0/24", f"10.{other}.{network}.0/24"
            policies.append((ns, f"xfrm policy add src {near} dst {far} dir out tmpl src {here} dst"
                                 f" {there} proto esp reqid {out} mode tunnel"))
            policies += [(ns, f"xfrm policy add src {far} dst {near} dir {way} tmpl src {there} dst"
                              f" {here} proto esp reqid {reqid} mode tunnel") for way in ("in", "fwd")]
    for ns in (s.g, s.p):
        ns.batch([line for of, line in policies if of is ns])

    if s.fast:  # on a busy machine it may not have heard of all yet
        def known():
            rows = [s.fast.sa(f"{spi:08x}") for spi in spis.values()]
            return len(s.fast.show("policy")) == len(policies) // 2 and all(
                row and row["worker"] is not None for row in rows)

        eventually(known, "the SAs and policies are not with workers", 60)
    answered = [s.udp_echo(flows, network) for network in (0, 1)]
    equal(answered, [flows, flows], "flows answered")
    if s.fast:
        rows = {name: s.fast.sa(f"{spis[name]:08x}") for name in spis}
        guest.note("worker, packets: " + ", ".join(
            f"{name}: {row['worker']}, {row['packets']}" for name, row in rows.items()))
        for name in ("cpu 0", "cpu 1", "in 0", "in 1"):
            equal(rows[name]["worker"], int(name[-1]), f"worker of {name}")
            check(rows[name]["packets"] > 0, f"{name} carried nothing")
        equal(rows["fallback"]["packets"], 0, "packets of the SA without a CPU")
    s.register.delete(state("cpu 1", True))
    if s.fast:
        eventually(lambda: s.fast.sa(f"{spis['cpu 1']:08x}") is None, "the deleted SA is still shown")
    equal([s.udp_echo(flows, network) for network in (0, 1)], [flows, flows], "flows with one SA less")
    if s.fast:
        row = s.fast.sa(f"{spis['fallback']:08x}")
        guest.note(f"without the SA of CPU 1: fallback: worker {row['worker']}, {row['packets']} packets")
        check(row["packets"] > 0, "the SA without a CPU carried nothing")
    equal(s.refused_by_peer(), {}, "what the peer's kernel refused")
