# SPDX-License-Identifier: Apache-2.0
"""Two unmodified strongSwans, one behind Sallyport: tunnels, rekeying, deletion, what the kernel keeps.

All cases share two_sites.Sites: the daemons start in the first one and run to the end of the guest.
"""

import collections
import os
import re
import subprocess
import time

from inside import boot, ike_connections, two_sites
from inside.ike_connections import child, connection
from lab import traffic
from lab.checks import Skip, check, equal, eventually
from lab.wire import esp_of

BOOT = boot.Boot(kernels=("newest",), modules=two_sites.MODULES)
world = None


def sites(guest):
    if world is None:
        raise Skip("the daemons did not start: see the first case")
    world.attend(guest)
    return world


@BOOT.case("the first tunnel of the README: its files, its commands", seconds=90)
def first_tunnel(guest):
    global world
    s = two_sites.first_tunnel(guest)
    world = s
    pings = s.pings().flowing()
    sent, missing = pings.stop()
    guest.note(f"trap: {sent} pings, without answer while the SA was made: {missing}")
    equal(missing, list(range(1, len(missing) + 1)), "pings without answer, only at the beginning")
    s.tcp()
    guest.note(s.carried("branch"))
    listed = s.gateway_ike.swanctl("--list-sas")
    guest.note(listed)
    c = s.child("branch")
    for way in ("in", "out"):
        check(re.search(rf"\b{way} +{c['spi-' + way]}, +[1-9]\d* bytes, +[1-9]\d* packets", listed),
              f"swanctl does not tell of {c['spi-' + way]} and its traffic")
    equal(s.in_clear(), [], "frames in clear on the wan")
    if s.fast:
        for what in ("status", "sa", "policy", "workers"):
            guest.note(f"$ sallyportctl show {what}\n{s.fast.table(what)}")
    for c in (s.gateway_ike, s.peer_ike):
        c.unload("branch")
    s.gateway_ike.terminate(ike="branch")


@BOOT.case("certificates, ESN", seconds=60)
def certificates(guest):
    s = sites(guest)
    make_certificates(s)
    esn = {"c": child(esp_proposals=["aes256gcm16-x25519-esn"])}
    with connection(s, "certs", esn, auth="pubkey"):
        s.initiate("c")
        equal(s.ping(), 5, "pings answered")
        s.tcp()
        c = s.child("c")
        equal((c["encr-alg"], c["encr-keysize"], c.get("esn")), ("AES_GCM_16", "256", "1"), "suite")
        guest.note(s.carried("c"))
    equal(s.in_clear(), [], "frames in clear on the wan")


def make_certificates(s):
    folder = os.path.join(s.folder, "pki")
    os.mkdir(folder)

    def pki(words, out):
        with open(f"{folder}/{out}", "wb") as f:
            subprocess.run(["pki", *words.split()], cwd=folder, stdout=f, check=True,
                           stderr=subprocess.DEVNULL, timeout=60)
        with open(f"{folder}/{out}", encoding="ascii") as f:
            return f.read()

    pki("--gen --type ecdsa --size 256 --outform pem", "ca.key")
    authority = pki("--self --ca --in ca.key --type ecdsa --dn CN=ca --lifetime 2 --outform pem", "ca.pem")
    s.certificates = []
    for c, name in zip((s.gateway_ike, s.peer_ike), ike_connections.IDS):
        key = pki("--gen --type ecdsa --size 256 --outform pem", f"{name}.key")
        cert = pki(f"--issue --in {name}.key --type ecdsa --cacert ca.pem --cakey ca.key --dn CN={name}"
                   f" --san {name} --lifetime 1 --outform pem", f"{name}.pem")
        s.certificates.append(cert)
        c.call("load-key", {"type": "any", "data": key})
        c.call("load-cert", {"type": "x509", "flag": "ca", "data": authority})


REKEYINGS = 2
# by-time: long enough for carried() to look at one SA, also on a slow machine.
LIMITS = {"by-time": {"rekey_time": "8s", "life_time": "120s"},
          "by-bytes": {"rekey_bytes": "30000", "life_bytes": "3000000", "rand_bytes": "0"},
          "by-packets": {"rekey_packets": "30", "life_packets": "3000", "rand_packets": "0"}}


@BOOT.case("rekeying by time, by bytes and by packets at once loses nothing", seconds=150)
def rekeying(guest):
    s = sites(guest)
    loses_nothing(guest, s, lambda: rekey_all(guest, s))


def loses_nothing(guest, s, attempt):
    """`attempt` returns how many pings had no answer. A worker holds frames for 0.2 s until it has the new SA:
    a machine on which sallyportd does not come to run for so long drops them, and says so. And a
    peer whose charon has taken its old SA away before the new one is in its policy sends nothing. Then
    once more. Any other loss is one."""
    mark = len(s.frames_since())
    for _ in range(3):
        before = excused(s)
        if not (lost := attempt()):
            break
        overdue = excused(s) - before
        guest.note(f"pings without answer: {lost}; dropped because the SA did not come in time: {overdue}")
        check(lost <= overdue, f"{lost} pings without answer, {overdue} of them because no SA came in time;"
                               f" the peer's kernel refused {s.refused_by_peer()}")
    equal(lost, 0, "pings without answer, in the last of three rounds")
    s.no_replays(mark)


def excused(s):
    """Frames that found no SA, and none came while they were held; packets of the peer that had none."""
    ours = sum(d["count"] for d in s.fast.show("drops") if d["reason"] in ("no_sa", "unknown_spi")) \
        if s.fast else 0
    return ours + s.refused_by_peer().get("XfrmOutNoStates", 0)


def rekey_all(guest, s):
    """Each child is replaced some times under pings: how many had no answer."""
    children = {name: child(network, rand_time="0s", **limit)
                for network, (name, limit) in enumerate(LIMITS.items())}
    with connection(s, "rekeying", children):
        for name in children:
            s.initiate(name)
            s.adopted(name)
        seen = {name: [s.child(name)["uniqueid"]] for name in children}
        pings = {name: s.pings(network=network, size=1000 if name == "by-bytes" else 56)
                 for network, name in enumerate(children)}

        def replaced():
            for name, ids in seen.items():
                if (now := s.child(name)["uniqueid"]) != ids[-1]:
                    ids.append(now)
            return all(len(ids) > REKEYINGS for ids in seen.values())
        eventually(replaced, lambda: f"not each was replaced {REKEYINGS} times: {seen}", 90)
        lost = 0
        for name, ping in pings.items():
            sent, missing = ping.flowing().stop()
            guest.note(f"{name}: {len(seen[name]) - 1} rekeyings, {sent} pings,"
                       f" without answer: {missing}")
            lost += len(missing)
        for network, name in enumerate(children):
            guest.note(s.carried(name, network, seconds=180))
    return lost


@BOOT.case("the hard limit ends an SA; a new one takes its place", seconds=60)
def hard_limit(guest):
    s = sites(guest)
    limit = 20
    with connection(s, "limited", {"l": child(start_action="trap", life_packets=str(limit),
                                              rekey_packets="0")}):
        mark = len(s.frames_since())
        pings = s.pings()
        seen = set()

        def spis():
            seen.update(c["spi-out"] for c in s.gateway_ike.children("l", state=None))
            return seen
        eventually(lambda: len(spis()) > 3, "no SA took the place of one at its end", 60)
        sent, missing = pings.flowing().stop()
        used = collections.Counter(f"{e[0]:08x}" for _, e in esp_from(s, mark))
        guest.note(f"limit of {limit} packets; sent by SA: {[used[spi] for spi in seen]}; of {sent} pings"
                   f" without answer: {missing}")
        # sallyportd looks at the limits ten times a second; five are for a guest that is slow.
        check(limit - 1 <= max(used[spi] for spi in seen) <= limit + 5, "an SA ended too late or too soon")
        equal(s.in_clear(mark), [], "frames in clear on the wan")


def gone(s, c, seconds=10):
    """Neither the kernel nor a worker has this child SA any more."""
    spis = {int(c["spi-in"], 16), int(c["spi-out"], 16)}
    eventually(lambda: not spis & {spi for _, spi in s.register.esp()}, "the kernel still has the SA",
               seconds)
    if s.fast:
        eventually(lambda: not spis & {int(row["spi"], 16) for row in s.fast.show("sa")},
                   "a worker still has the SA", 10)


@BOOT.case("deleted by swanctl: traffic stops, nothing leaves in clear", seconds=60)
def delete(guest):
    s = sites(guest)
    with connection(s, "deleted", {"d": child()}):
        s.initiate("d")
        equal(s.ping(), 5, "pings answered")
        c, mark = s.child("d"), len(s.frames_since())
        pings = s.pings().flowing()
        guest.note(s.gateway_ike.swanctl("--terminate", "--child", "d").splitlines()[-1])
        gone(s, c)
        if s.fast:  # the kernel alone, without a policy, forwards in clear
            eventually(lambda: no_answer(pings), "answers after the SA was deleted", 30)
        pings.stop()
        if s.fast:
            equal(s.in_clear(mark), [], "frames in clear on the wan")
            guest.note(f"frames in clear that the peer's kernel sent without a policy: {len(s.clear_of_peer(mark))}")


def no_answer(pings, seconds=2):
    """None in so many seconds: what was on its way at first has come before."""
    before = len(pings.answered())
    time.sleep(seconds)
    return len(pings.answered()) == before


@BOOT.case("two child SAs of one IKE SA keep apart", seconds=60)
def two_children(guest):
    s = sites(guest)
    with connection(s, "two", {"one": child(0), "other": child(1)}):
        s.initiate("one")
        s.initiate("other")
        s.adopted("one")
        s.adopted("other")
        equal(len([n for n, _ in s.gateway_ike.sas() if n == "two"]), 1, "IKE SAs")
        equal(s.ping(count=4, network=0), 4, "pings of the first")
        equal(s.ping(count=7, network=1), 7, "pings of the second")
        for name, count in (("one", 4), ("other", 7)):
            eventually(lambda: int(s.child(name)["packets-in"]) == count,
                       lambda: f"{name}: {s.child(name)['packets-in']} packets, sent {count}", 10)
        guest.note(s.carried("one", 0))
        guest.note(s.carried("other", 1))


@BOOT.case("a child of two networks on each side and both families: workers carry it, a rekey loses nothing",
           seconds=120)
def several_networks(guest):
    s = sites(guest)
    loses_nothing(guest, s, lambda: rekey_several(guest, s))


def rekey_several(guest, s):
    many = child(local_ts=["10.1.0.0/24", "10.1.1.0/24", "fd00:1:0::/64"],
                 remote_ts=["10.2.0.0/24", "10.2.1.0/24", "fd00:2:0::/64"])
    pairs = [(f"10.1.{near}.2", f"10.2.{far}.2") for near in (0, 1) for far in (0, 1)]
    pairs.append(("fd00:1:0::2", "fd00:2:0::2"))
    with connection(s, "several", {"many": many}):
        s.initiate("many")
        s.adopted("many")
        mark = len(s.frames_since())
        before = s.fast.delivered() if s.fast else None
        pings = [s.pings(ends=ends) for ends in pairs]
        seen = [s.child("many")["uniqueid"]]
        for _ in range(REKEYINGS):
            for ping in pings:
                ping.flowing()
            s.gateway_ike.rekey(child="many")
            eventually(lambda: s.child("many")["uniqueid"] != seen[-1], "the child is not replaced", 30)
            seen.append(s.child("many")["uniqueid"])
            s.adopted("many")
        sent = lost = 0
        for ping in pings:
            count, missing = ping.flowing().stop()
            sent += count
            lost += len(missing)
        guest.note(f"{len(seen) - 1} rekeyings, {sent} pings of {len(pairs)} pairs of networks, without answer: {lost}")
        if s.fast:
            carried = [now - then for now, then in zip(s.fast.delivered(), before)]
            check(min(carried) >= sent - lost - len(pairs), f"of {sent} pings workers carried {carried}")
        guest.note(s.carried("many"))
        equal(s.in_clear(mark), [], "frames in clear on the wan")
    return lost


GREEDY_PORTS = range(1001, 1018)


@BOOT.case("a peer asks for 17 children of single ports: nobody else's tunnel notices", seconds=120)
def greedy_peer(guest):
    s = sites(guest)
    children = {"honest": child(0), "later": child(1), "wide": child(2)}
    of_peer = {name: {**child(), "local_ts": [f"10.2.{network}.0/24"], "remote_ts": [f"10.1.{network}.0/24"]}
               for network, name in enumerate(children)}
    of_peer |= {f"port-{port}": {**of_peer["wide"], "local_ts": [f"10.2.2.0/24[tcp/{port}]"]}
                for port in GREEDY_PORTS}
    mark = len(s.frames_since())
    with connection(s, "greedy", children, peer={"children": of_peer}):
        s.initiate("honest")
        pings = s.pings().flowing()
        guest.note(s.carried("honest"))
        pings.forget()
        for port in GREEDY_PORTS:
            s.peer_ike.initiate(f"port-{port}")
        equal(len(s.gateway_ike.children("wide")), len(GREEDY_PORTS), "children that the gateway agreed to")
        if s.fast:
            why = "more than 16 policies for 10.1.2.0/24 to 10.2.2.0/24"
            eventually(lambda: [row["reason"] for row in s.fast.show("policy")].count(why) >= len(GREEDY_PORTS),
                       lambda: f"shown as {s.fast.show('policy')}", 30)
            equal(s.fast.show("status")["not_published"], "", "why earlier policies are in force")
        s.tcp(network=2, size=50_000, port=GREEDY_PORTS[0])
        s.initiate("later")
        guest.note(s.carried("later", 1))
        guest.note(s.carried("honest"))
        sent, missing = pings.flowing().stop()
        guest.note(f"{len(GREEDY_PORTS)} children beside them: {sent} pings by the first tunnel")
        equal(missing, [], "pings without answer")
        gone_next = s.child("honest")
        pings = s.pings().flowing()
        s.gateway_ike.terminate(child="honest")
        gone(s, gone_next)
        if s.fast:
            eventually(lambda: no_answer(pings), "answers after the SA was deleted", 30)
        pings.stop()
        guest.note(s.carried("later", 1))
        equal(s.in_clear(mark), [], "frames in clear on the wan")


@BOOT.case("dead peer: SAs go, the tunnel comes back with the peer", seconds=90)
def dead_peer(guest):
    s = sites(guest)
    trap = child(start_action="trap", dpd_action="trap")
    with connection(s, "dpd", {"dpd": trap}, dpd_delay="2s", peer={"dpd_delay": "0s"}):
        s.initiate("dpd")
        equal(s.ping(), 5, "pings answered")
        c, mark = s.child("dpd"), len(s.frames_since())
        s.peer_ike.suspend()
        try:
            eventually(lambda: not s.gateway_ike.children("dpd"), "the dead peer's SA stays", 90)
            gone(s, c)
        finally:
            s.peer_ike.resume()
        pings = s.pings().flowing(seconds=60)
        sent, missing = pings.stop()
        guest.note(f"after the peer came back: {sent} pings, without answer: {missing}")
        guest.note(s.carried("dpd"))
        equal(s.in_clear(mark), [], "frames in clear on the wan")


@BOOT.case("reauthentication: a new IKE SA, the traffic goes on", seconds=60)
def reauthentication(guest):
    s = sites(guest)
    with connection(s, "reauth", {"again": child(start_action="trap")}):
        s.initiate("again")
        pings, mark = s.pings().flowing(), len(s.frames_since())
        old, c = [v["uniqueid"] for n, v in s.gateway_ike.sas() if n == "reauth"], s.child("again")
        s.gateway_ike.rekey(ike="reauth", reauth="yes")
        eventually(lambda: (now := [v["uniqueid"] for n, v in s.gateway_ike.sas()
                                    if n == "reauth" and v["state"] == "ESTABLISHED"]) and now != old,
                   "no new IKE SA", 60)
        gone(s, c)
        pings.flowing()
        sent, missing = pings.stop()
        guest.note(f"{sent} pings, without answer while the SAs were made anew: {missing}")
        guest.note(s.carried("again"))
        equal(s.in_clear(mark), [], "frames in clear on the wan")
        # Break before make: strongSwan of the peer takes its policies away before it has new ones.
        guest.note(f"frames in clear that the peer's kernel sent: {len(s.clear_of_peer(mark))}")


@BOOT.case("tunnels that their own traffic begins, one after another: workers keep them", seconds=120)
def begun_by_traffic(guest):
    s = sites(guest)
    with connection(s, "begun", {"b": child(start_action="trap")}):
        for turn in range(4):
            # Many wait in the kernel, and come out when a worker has the SA.
            pings = s.pings(interval=0.02).flowing(100)
            s.adopted("b")
            sent, missing = pings.stop()
            guest.note(f"{turn}: {sent} pings, without answer: {len(missing)}; " + s.carried("b"))
            c = s.child("b")
            s.gateway_ike.terminate(ike="begun")
            gone(s, c)
        if s.fast:
            blamed = [line for line in s.fast.log().splitlines() if "traffic of this host" in line and "SA 0x" in line]
            guest.note("\n".join(blamed))
            equal([line for line in blamed if "again and again" in line], [], "SAs that are left to the kernel")


@BOOT.case("MOBIKE: the gateway's address changes, the SA goes on with its key", seconds=90)
def mobike(guest):
    s = sites(guest)
    other = "192.0.2.11"
    with connection(s, "mobile", {"m": child(start_action="trap")}, mobike="yes",
                    local_addrs=["%any"], peer={"local_addrs": [two_sites.PEER],
                                                "remote_addrs": ["%any"]}) :
        s.initiate("m")
        s.g.ip(f"addr add {other}/24 dev wan0")
        guest.note(s.carried("m"))
        c, mark = s.child("m"), len(s.frames_since())
        pings = s.pings(interval=0.05).flowing()
        key_before = s.peer_register.esp()[(two_sites.PEER, int(c["spi-out"], 16))]
        s.g.ip(f"addr del {two_sites.GATEWAY}/24 dev wan0")
        try:
            eventually(lambda: any(st.source == other for st in s.peer_register.esp().values()),
                       "the peer does not learn of the new address", 60)
            pings.flowing()
            sent, missing = pings.stop()
            guest.note(f"{sent} pings, without answer while the address changed: {missing}")
            outbound = [(e, f) for f, e in esp_from(s, mark) if e[0] == int(c["spi-out"], 16)]
            by_source = {}
            for (_, sequence, _), frame in outbound:
                by_source.setdefault(".".join(map(str, frame[26:30])), []).append(sequence)
            check(set(by_source) == {two_sites.GATEWAY, other},
                  f"SPI {c['spi-out']} was sent from {set(by_source)}")
            guest.note(f"one SPI: sequence numbers {ends(by_source[two_sites.GATEWAY])} from the old"
                       f" address, {ends(by_source[other])} from the new one")
            check(min(by_source[other]) > max(by_source[two_sites.GATEWAY]), "a sequence number came again")
            keys = {k for _, spi, k in s.keys.keys if spi == int(c["spi-out"], 16)}
            equal(keys, {key_before.key}, "keys of that SPI")
            guest.note(s.carried("m"))
            s.no_replays(mark)
        finally:
            pings.stop()
            s.g.batch([f"addr add {two_sites.GATEWAY}/24 dev wan0", f"addr del {other}/24 dev wan0"])


def ends(numbers):
    return f"{min(numbers)} to {max(numbers)}"


def esp_from(s, mark):
    return [(f, e) for _, f in s.frames_since(mark) if (e := esp_of(f))]


def kept_by_kernel(guest, s, name, why, packets=3):
    """Traffic goes, charon counts it, and the daemon says why no worker has it."""
    c = s.child(name)
    check(min(int(c["packets-in"]), int(c["packets-out"])) >= packets,
          f"{name}: charon counts {c['packets-in']} in, {c['packets-out']} out")
    if s.fast:
        for spi in (c["spi-in"], c["spi-out"]):
            row = s.fast.sa(spi)
            check(row is not None and row["state"] == "kernel" and why in row["reason"],
                  f"{name}: shown as {row}")
            guest.note(f"{name} {spi}: kernel: {row['reason']}")


@BOOT.case("D3 D5 ChaCha20-Poly1305 and AES-CCM are negotiated: workers carry them, also after a rekey", seconds=90)
def other_suites(guest):
    s = sites(guest)
    mark = len(s.frames_since())
    children = {"chacha": child(0, esp_proposals=["chacha20poly1305-x25519"]),
                "ccm": child(1, esp_proposals=["aes256ccm16-x25519-esn"])}
    with connection(s, "suites", children):
        for network, name in enumerate(children):
            s.initiate(name)
            equal(s.ping(network=network), 5, f"pings with {name}")
            guest.note(s.carried(name))
            before = s.child(name)["spi-in"]
            s.gateway_ike.rekey(child=name)
            eventually(lambda name=name, before=before: before not in
                       [c["spi-in"] for c in s.gateway_ike.children(name)], f"{name}: the old SA stays", 30)
            equal(s.ping(network=network), 5, f"pings with {name} after a rekey")
            if s.fast:
                eventually(lambda name=name: (row := s.fast.sa(s.child(name)["spi-in"])) and row["worker"] is not None
                           and row["packets"] > 0, f"{name}: the new SA is not with a worker", 30)
        if s.fast:
            suites = {row["suite"] for row in s.fast.show("sa")}
            check({"chacha20-poly1305", "aes-ccm-16-256"} <= suites, f"suites of the SAs: {suites}")
    equal(s.in_clear(mark), [], "frames in clear on the wan")


@BOOT.case("what workers do not speak stays with the kernel and works", seconds=90)
def kernel_keeps(guest):
    s = sites(guest)
    mark = len(s.frames_since())
    cbc = {"cbc": child(0, esp_proposals=["aes128-sha256-x25519"])}
    with connection(s, "suite", cbc):
        s.initiate("cbc")
        equal(s.ping(), 5, "pings with AES-CBC and HMAC-SHA-256")
        s.tcp(size=50_000)
        kept_by_kernel(guest, s, "cbc", "cbc(aes)", 30)
    with connection(s, "nat", {"udp": child(1)}, encap="yes"):
        s.initiate("udp")
        equal(s.ping(network=1), 5, "pings in UDP")
        kept_by_kernel(guest, s, "udp", "UDP encapsulation")
    ends_only = {"host": {"mode": "transport", "local_ts": ["dynamic"], "remote_ts": ["dynamic"],
                          "esp_proposals": [ike_connections.ESP]}}
    with connection(s, "between-gateways", ends_only):
        s.initiate("host")
        equal(traffic.ping(s.g, None, two_sites.PEER), 5, "pings in transport mode")
        kept_by_kernel(guest, s, "host", "transport mode")
    equal(s.in_clear(mark), [], "frames in clear on the wan")


@BOOT.case("D1 one (key, IV) pair never twice, nothing in clear: an independent look at the wire", seconds=60)
def wire(guest):
    s = sites(guest)
    s.wire.stop()
    guest.note(s.look_at_wire())
    refused = s.p.xfrm_statistics()  # in all cases
    guest.note(f"the peer's kernel refused: {refused}")
    if said := s.no_replays(refused=refused):
        guest.note(said)
    look_can_fail(s)


def look_can_fail(s):
    """One packet of the recording once more at its end, then one in clear: both are noticed, but not what
    another sender than the gateway sent in clear."""
    def add(frame):
        with open(s.wire.path, "ab") as f:
            f.write(bytes(8) + 2 * len(frame).to_bytes(4, "little") + frame)

    def found(words):
        try:
            said = s.look_at_wire()
        except AssertionError as e:
            said = str(e)
        check(words in said, f"{words!r} is not in {said!r}")

    ours = next(f for _, f in s.frames_since() if f[23] == 50 and f[6:12] == s.gateway_mac)
    between_sites = bytes((1,)) + bytes(2) + bytes((10, 1, 0, 2, 10, 2, 0, 2)) + bytes(64)
    of_peer = len(s.clear_of_peer())
    add(ours[6:12] + ours[:6] + ours[12:23] + between_sites)
    found(f" 0 IVs twice, 0 packets in clear, 0 SPIs of unknown keys; {of_peer + 1} packets in clear of other")
    add(ours)
    found(" 1 IVs twice, 0 packets in clear")
    add(ours[:23] + between_sites)
    found(" 1 IVs twice, 1 packets in clear")
