# SPDX-License-Identifier: Apache-2.0
"""Two unmodified charons, kernel to kernel: what the other cases of IKE build on works without us.

    left 192.0.2.1 (10.1.0.1 on its lo) --- 192.0.2.2 right (10.2.0.1 on its lo)
"""

from inside import boot, capture, charon, net
from lab import traffic
from lab.checks import check, equal

BOOT = boot.Boot(kernels=("newest", "6.12"),
                 modules=("veth", "xfrm_user", "esp4", "aesni_intel", "seqiv", "echainiv"))

CONF = """
connections {{
    branch {{
        version = 2
        proposals = aes128gcm16-prfsha256-x25519
        local_addrs = {here}
        remote_addrs = {there}
        local {{ auth = psk
                 id = {here} }}
        remote {{ auth = psk
                  id = {there} }}
        children {{
            net {{ local_ts = {near}
                   remote_ts = {far}
                   esp_proposals = aes128gcm16 }}
        }}
    }}
}}
secrets {{
    ike-1 {{ secret = "of this test only" }}
}}
"""


@BOOT.case("two charons: a tunnel between two kernels, ESP in the capture", seconds=60, everywhere=True)
def tunnel(guest):
    n = net.Net(guest, "left", "right")
    n.veth("left:eth0 right:eth0")
    ends = {"left": ("192.0.2.1", "10.1.0.1"), "right": ("192.0.2.2", "10.2.0.1")}
    daemons = {}
    for name, other in (("left", "right"), ("right", "left")):
        (here, near), (there, far) = ends[name], ends[other]
        n[name].batch(f"addr add {here}/24 dev eth0\naddr add {near}/32 dev lo\n"
                      f"route add {far}/32 via {there} src {near}")
        daemons[name] = charon.Charon(n[name], {"swanctl/conf.d/branch.conf": CONF.format(
            here=here, there=there, near=f"{near}/32", far=f"{far}/32")})
        guest.logs[f"charon in {name}"] = daemons[name].log
        guest.later(daemons[name].stop)
    for daemon in daemons.values():
        daemon.start()
    with capture.Capture(guest, n.right, "eth0", "proto 50") as seen:
        daemons["left"].initiate("net")
        equal(traffic.ping(n.left, "10.1.0.1", "10.2.0.1", 3), 3, "pings answered")
    check(len(seen.esp()) >= 6, f"ESP frames in the capture: {seen.esp()}")
    equal(len(daemons["right"].children("net")), 1, "child SAs of the other end")
    return f"{len(seen.esp())} ESP frames, {len(set(e[0] for e in seen.esp()))} SPIs"
