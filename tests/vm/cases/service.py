# SPDX-License-Identifier: Apache-2.0
"""sallyportd as systemd starts it: config/sallyportd.service as it is, with all its restrictions."""

import os
import signal
import subprocess
import sys

from inside import boot, gateway, kernel_esp, net, systemd, tunnel
from lab import traffic
from lab.checks import check, equal, eventually

BOOT = boot.Boot(kernels=("newest",), memory=3072,
                 modules=(*tunnel.MODULES, "bonding", "8021q"), audit=True)

# A VLAN has no XDP of its own and takes no frame that XDP redirects: generic, and by AF_XDP out.
PORTS = """
[port.wan0]
device = "bond0.42"
role = "unprotected"
xdp_mode = "generic"

[port.lan0]
role = "protected"
"""


def make_wan(n):
    """The wire of the gateway's bond, which is not made yet, and the peer's end with its VLAN."""
    n.veth("gw:wire0 peer:wire1")
    n.peer.batch("link add link wire1 name wanp type vlan id 42\nlink set wanp up")


def make_bond(n):
    n.gw.batch("link set wire0 down\nlink add bond0 type bond mode active-backup miimon 100\n"
               "link set wire0 master bond0\nlink set bond0 up\n"
               "link add link bond0 name bond0.42 type vlan id 42\n"
               "addr add 192.0.2.1/24 dev bond0.42\nlink set bond0.42 up\n"
               "route add default via 192.0.2.2")


# A process with a list of libseccomp, and a call that is not in it.
FORBIDDEN = """
import ctypes, os
seccomp = ctypes.CDLL("libseccomp.so.2")
seccomp.seccomp_init.restype = ctypes.c_void_p
rules = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(0x7fff0000)))  # all are allowed
assert seccomp.seccomp_attr_set(rules, 6, ctypes.c_uint32(1)) == 0  # SCMP_FLTATR_CTL_LOG
number = seccomp.seccomp_syscall_resolve_name(b"getppid")
refuse = ctypes.c_uint32(0x00050001)  # EPERM
assert seccomp.seccomp_rule_add_array(rules, refuse, number, ctypes.c_uint(0), None) == 0
assert seccomp.seccomp_load(rules) == 0
assert os.getppid() == -1
"""


def refused_calls():
    """Records of the audit log (SECCOMP), of all processes."""
    return [line for line in net.sh("dmesg").splitlines() if "type=1326" in line]


def pings(n):
    return traffic.ping(n.lan, tunnel.HOST, tunnel.FAR, 2) == 2


@BOOT.case("a VLAN on a bond that comes late, a crash, the watchdog, a stop", seconds=240)
def life(guest):
    n = net.Net(guest, "lan", "gw", "peer")
    n.veth("lan:eth0 gw:lan0")
    make_wan(n)
    n.lan.batch(f"addr add {tunnel.HOST}/24 dev eth0\nroute add default via 10.1.0.1\n"
                "link set eth0 mtu 1300")
    n.gw.batch("addr add 10.1.0.1/24 dev lan0")
    pair = kernel_esp.Pair("branch", "10.1.0.0/24", "10.2.0.0/24", "192.0.2.1", "192.0.2.2")
    n.peer.batch(["addr add 192.0.2.2/24 dev wanp", f"addr add {tunnel.FAR}/32 dev lo",
                  f"route add 10.1.0.0/24 via 192.0.2.1 src {tunnel.FAR}", *pair.peer_lines()])
    text = gateway.head("/run/sallyport", egress="direct").replace(
        '/run/sallyport/state"', '/var/lib/sallyport"') + pair.toml() + PORTS
    service = systemd.Systemd(guest, n.gw, text)
    subprocess.run(n.gw.argv("/usr/sbin/sallyportd", "-c", service.config, "--accept-key",
                             "branch-out"), check=True, timeout=120)

    service.boot()
    eventually(lambda: "waiting up to 30 s" in service.log(), "it waits for its device", 120)
    equal(service.value("ActiveState"), "activating", "state while the device is missing")
    make_bond(n)
    service.active_soon("active once the device is there")
    eventually(lambda: pings(n), "pings through the tunnel", 60)
    check("system calls are not limited" not in service.log(), "the lists are in force")
    check("may be swapped" not in service.log(), "memory is locked")
    restarts = int(service.value("NRestarts"))

    os.kill(service.pid(), signal.SIGKILL)
    eventually(lambda: int(service.value("NRestarts")) > restarts and service.is_active(),
               "started again after a crash", 300)
    eventually(lambda: pings(n), "pings after a crash", 60)

    restarts = int(service.value("NRestarts"))
    stopped = service.pid()
    os.kill(stopped, signal.SIGSTOP)
    eventually(lambda: int(service.value("NRestarts")) > restarts and service.is_active(),
               "started again by the watchdog", 300)
    check(not os.path.exists(f"/proc/{stopped}"), "the one that hung is gone")
    eventually(lambda: pings(n), "pings after the watchdog", 60)

    service.systemctl("stop", systemd.UNIT)
    equal(service.value("ActiveState"), "inactive", "state after a stop")
    equal(service.value("ExecMainStatus"), "0", "exit status")
    rules = n.gw.sh("ip", "rule")
    for device in ("lan0", "bond0.42"):
        check(f"iif {device} blackhole" in rules, f"{device} is closed: {rules}")

    # One that is in no list is on record here, and those before it were too.
    eventually(lambda: subprocess.run([sys.executable, "-c", FORBIDDEN], check=True, timeout=60)
               and any("python" in line for line in refused_calls()), "a refused call is on record", 60)
    equal([line for line in refused_calls() if "python" not in line], [],
          "calls that are in no list")

    with open(service.config, "a", encoding="ascii") as f:
        f.write("\n[nonsense]\n")
    service.systemctl("start", systemd.UNIT, check=False)
    eventually(lambda: service.value("ActiveState") == "failed", "a wrong file is given up", 60)
    equal(service.value("ExecMainStatus"), "2", "exit status of a wrong file")
