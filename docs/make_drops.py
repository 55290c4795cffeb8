#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints docs/drops.md: every drop reason of bpf/abi.h, and what an operator can do about it.

Usage: make_drops.py [--write | --check]
    --write: into docs/drops.md, which stays as it is when there is a mistake
    --check: compare with docs/drops.md, exit status 1 if they differ
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

WHAT_TO_DO = {
    "truncated": "Single ones: nothing. Many: look for a broken sender or cable on the port that counts them.",
    "malformed_ip": "Find the sender with tcpdump in front of the port. Scans and attacks look like this too.",
    "malformed_esp": "Check that both ends use the same suite. Single ones from strangers: nothing.",
    "unknown_spi": "It was for an address of this host: compare SPI and destination with the peer's outbound SA. If this host ends other tunnels itself: "
                   "`unknown_spi = \"punt\"`.",
    "outer_fragment": "Lower the tunnel MTU at the peer, so that its ESP packets fit the path in one piece.",
    "unexpected_encapsulation": "ESP in UDP is not supported yet: switch it off (NAT traversal) at the peer.",
    "replayed": "Single ones: the network duplicates packets. Many: somebody replays, or the peer started again with "
                "its old key; give the SA a new key on both ends.",
    "before_window": "If the path reorders: a larger `replay_window`. If the peer started again at 1: a new key on "
                     "both ends.",
    "icv_mismatch": "Every packet of an SA: compare key, salt, suite and `esn` on both ends. Some: damage or forgery "
                    "on the path.",
    "bad_padding": "The peer builds ESP wrongly, since the packet is authentic: report it to the peer's vendor.",
    "dummy_packet": "Nothing: the peer hides its traffic pattern with filler.",
    "bad_next_header": "Set the peer's SA to tunnel mode: transport mode is not supported yet.",
    "malformed_inner": "The packet is authentic: look for a broken sender in the peer's network.",
    "selector_mismatch": "Make `local`, `remote`, protocol and ports of the policy agree with the peer's policy.",
    "ecn_not_capable": "Find the router on the path that sets CE, or a peer that does not follow RFC 6040 when it "
                       "encapsulates.",
    "cleartext_for_protect": "Check that the peer protects this traffic. If it does: somebody sends with forged "
                             "addresses. Or the port has generic XDP and the kernel has decrypted it, for an SA that is not with a worker: such "
                             "SAs do not receive there ([why](ports.md#generic-xdp-and-sas-of-the-kernel)).",
    "policy_discard": "As configured. If it is not what you mean: `show policy` has the order, the first match decides.",
    "no_policy": "If the traffic is wanted: add a [[policy]] that covers it. With an IKE daemon what a tunnel carries is in its "
                 "file (swanctl.conf: `local_ts`, `remote_ts`), and [[policy]] is for `bypass`.",
    "no_sa": "Keys set by hand: `show sa` says why the SA is refused; often `--accept-key` is what it waits for. Or add the "
             "outbound [[sa]]. With an IKE daemon: single ones while SAs are replaced; many: it has no SA for the policy, or a "
             "[[policy]] in the file protects, and then no SA of the daemon's is used.",
    "bypass_in_tunnel": "Correct the route into sp0: what a BYPASS policy covers must leave through a port.",
    "sequence_exhausted": "A new key and SPI on both ends; `esn = true` there makes it last. With an IKE daemon: its log says why "
                          "it did not rekey.",
    "sequence_unreserved": "The log says why `state_dir` cannot be written. A full or slow disk is the usual reason.",
    "ttl_exceeded": "Look for a routing loop. traceroute makes single ones.",
    "too_big": "Lower the MTU or the TCP MSS of the hosts: no ICMP \"too big\" is sent yet. WHERE tells whether the "
               "SA's `mtu` (a worker) or a port's MTU was too small. At the port it came in by: a worker's frame holds 3762 bytes, so lower "
               "the MTU of that port's network.",
    "fragment_without_ports": "Avoid fragments (MTU of the hosts), or use a policy without ports.",
    "egress_denied": "As configured in [[port.NAME.deny]]. If it is not what you mean: correct the rule. WHERE is the port that it was to leave by, or "
                     "the one that it came in by, where the kernel was to send it (no MAC of the next hop yet, a checksum left to the device).",
    "no_route": "`ip route get DESTINATION`: the route must lead through a port.",
    "injector_full": "The way out is slower than the workers: look for `generic` in `show ports`, and for ports or "
                     "CPUs at their limit.",
    "no_frame": "Raise `memory.frames`.",
    "steer_failed": "The device has queues that sallyportd does not serve (`ethtool -l`), or its frames come from another device (a bond's): "
                    "restart it after a change. At a protected port also ESP of an SA that a worker has: it must come by an unprotected port.",
    "unsupported_packet": "Priority-tagged frames (VLAN 0): switch the tags off at the neighbour. Others: tcpdump in front of the port shows them.",
    "rx_ring_full": "Raise the number of workers, or give the SAs of the busy one another `worker`.",
    "protect_in_clear": "If it is traffic from one tunnel into another: a route through sp0 for the far network.",
    "kernel_multicast": "Nothing.",
    "not_established": "As configured by `conntrack_in` and `conntrack_out`. If the traffic is wanted: `show ports` tells "
                       "whether the kernel tracks anything at all ([docs/config.md](config.md#connection-tracking)).",
    "no_connection": "Give the policy the `if_id` of its connection, or, if workers protect it, correct the route into the xfrm "
                     "interface.",
    "martian": "Somebody sends with an address that cannot be his (loopback, multicast, class E, unspecified, link-local IPv6, one of this gateway): "
    "tcpdump in front of the port, or behind the tunnel.",
    "other_station": "Nothing, if the port is promiscuous or its switch floods. If it is traffic that should be forwarded: the neighbour has an "
                     "old MAC for this port (`ip neigh` there), or the port is under a bridge or macvlan, which gets no IP packets from it.",
    "not_a_port": "`ip route get DESTINATION` names the device. If packets should be routed there: make it a port, or put it into "
                  "`forward_to` ([docs/config.md](config.md#gateway)).",
    "forwarding_off": "`sysctl net.ipv4.conf.DEV.forwarding net.ipv6.conf.DEV.forwarding` of the port that counts them (or of sp0): somebody has "
                      "switched it off. sallyportd switches it on again and says so; at its start and its stop single ones are in order.",
    "error_in_clear": "Nothing: as it should be. The kernel had to tell a host behind a tunnel of its packet (TTL, no such host, too big), and would have "
                      "quoted it in clear. Many: look for that host.",
    "bad_ip_checksum": "At a worker: the far end of the tunnel has sent it so. At a port: damage on the path, or a broken sender: tcpdump -v in front of the port names the sender. A switch or cable that damages frames "
                       "shows in the error counters of its port.",
    "redirect_failed": "The port's device is down, its transmit ring was full, or its driver takes no frames of XDP any more (on a veth: GRO of its peer "
                       "was switched off). After a restart the mode fits again ([docs/ports.md](ports.md)).",
    "fill_ring_empty": "Its worker was too late to give frames back: a burst longer than the ring, or a worker or CPU at its limit. More frames in "
                       "`memory.frames` do not help.",
    "no_neighbour": "`ip neigh` on the gateway: the router towards the peer, or the peer on the link, is down, or its address is wrong. Only packets of tunnels are counted, "
                    "at sp0: some wait for the answer, and are counted when the next packet finds that none came. [How neighbours are kept](operation.md#neighbours).",
    "lost_in_kernel": "The kernel's own rules: a forward chain of the firewall, rp_filter, a route that blocks; also no route at all (`ip_innoroutes`) and a TTL "
                      "that ended here (`ip_inhdr`). `show drops` says how the kernel calls it ([what that means](operation.md#how-the-kernel-calls-what-it-drops)).",
    "lost_in_device": "`ip -s -s link show` of the device: its transmit ring was full, or it is down. Of a VLAN, macvlan or bond what the device below it "
                      "drops is not counted.",
    "wrong_connection": "Make `if_id` of the policy agree with that of the SA (`ip xfrm state`). If it does: the peer sends what "
                        "is not its own.",
}

HEAD = """<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- Made by docs/make_drops.py from bpf/abi.h. Do not edit: change those and run it again. -->
# Drop reasons

Every dropped packet is counted under one of these reasons. `sallyportctl show drops` shows those that occurred, how often, and
where: `port NAME` is an XDP program or a socket of that port, `worker N` a worker. `--all` shows the others too. Drops of one SA are
in `show sa`. A policy or an SA of the file changes by editing it and restarting sallyportd, those of an IKE daemon in its own file. tcpdump on a
port of the gateway does not show what XDP drops: look in front of the port.

| reason | meaning | what to do |
|---|---|---|
"""


def reasons():
    """[(name, help)] of the X-list, without `none`, which is no drop."""
    text = (ROOT / "bpf/abi.h").read_text(encoding="utf-8")
    block = re.search(r"#define SP_DROP_REASONS\(X\)(.*?)\n\n", text, re.S).group(1)
    found = re.findall(r'X\((\w+),\s*"([^"]*)"\)', block)
    assert len(found) == len(re.findall(r"\bX\(", block)), "bpf/abi.h: an X() this script cannot read"
    return [(name, help_text) for name, help_text in found if name != "none"]


def produced():
    """The reasons that a test of packets, a case of the lab or of a guest expects by name."""
    spelled = re.compile(r'\b(?:SP_DROP_|DropReason::|R::)(\w+)|"(\w+)"')
    found = set()
    for folder in ("tests/bpf", "tests/dataplane", "tests/lab/cases", "tests/vm/cases"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".cc", ".h", ".py"):
                found |= {a or b for a, b in spelled.findall(path.read_text(encoding="utf-8"))}
    return found


def main():
    listed = reasons()
    names = {name for name, _ in listed}
    mistakes = [f"docs/make_drops.py: WHAT_TO_DO lacks {name}" for name in sorted(names - set(WHAT_TO_DO))]
    mistakes += [f"docs/make_drops.py: bpf/abi.h has no reason {name}" for name in sorted(set(WHAT_TO_DO) - names)]
    page = HEAD + "".join(f"| `{name}` | {help_text} | {WHAT_TO_DO.get(name, '')} |\n" for name, help_text in listed)
    path = ROOT / "docs/drops.md"
    if sys.argv[1:] == ["--check"]:
        if not path.exists() or path.read_text(encoding="utf-8") != page:
            mistakes.append("docs/drops.md is not what docs/make_drops.py makes: docs/make_drops.py --write")
        mistakes += [f"bpf/abi.h: no test produces {name}" for name in sorted(names - produced())]
        print(f"{len(listed)} reasons, {len(mistakes)} mistakes")
    elif mistakes:
        pass
    elif sys.argv[1:] == ["--write"]:
        path.write_text(page, encoding="utf-8")
    else:
        sys.stdout.write(page)
    for mistake in mistakes:
        print(mistake, file=sys.stderr)
    return 1 if mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
