# SPDX-License-Identifier: Apache-2.0
"""What a local user without any capability gets at of a running gateway: nothing.

The table below is tried as uid 65534 in the gateway's network namespace; each row must be refused.
"""

import json
import os
import subprocess
import sys

from lab.runner import case, check, equal

# What is tried, by the user itself. Python of its own process: a capability lost stays lost.
PROGRAM = r'''
import ctypes, errno, fcntl, json, os, signal, socket, struct, subprocess, sys

folder, pid = sys.argv[1], int(sys.argv[2])
TUNSETIFF, TUNSETPERSIST, TUNSETSTEERINGEBPF = 0x400454CA, 0x400454CB, 0x800454E0
IFF_TUN, IFF_TAP, IFF_NO_PI, IFF_MULTI_QUEUE = 1, 2, 0x1000, 0x100
AF_XDP, SYS_BPF, SYS_PIDFD_OPEN, SYS_PIDFD_GETFD = 44, 321, 434, 438
libc = ctypes.CDLL(None, use_errno=True)


def call(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def tun(flags):
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"sp0", flags))
    return fd


def bpf(command, number):
    call(SYS_BPF, command, ctypes.create_string_buffer(struct.pack("II120x", number, 0)), 128)


def ip(words):
    done = subprocess.run(["ip", *words.split()], capture_output=True, text=True)
    if done.returncode == 0:
        return
    if "Operation not permitted" in done.stderr or "Permission denied" in done.stderr:
        raise PermissionError(errno.EPERM, done.stderr.strip())
    raise RuntimeError(done.stderr)


def connect():
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(f"{folder}/control.sock")


def write(path, text="0"):
    with open(path, "w") as f:
        f.write(text)


def steal_descriptor():
    pidfd = call(SYS_PIDFD_OPEN, pid, 0)
    for fd in range(3, 64):
        call(SYS_PIDFD_GETFD, pidfd, fd, 0)


ROWS = {
    "another queue of sp0": lambda: tun(IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE),
    "sp0 as a TAP with one queue": lambda: tun(IFF_TAP | IFF_NO_PI),
    "sp0 as a TUN": lambda: tun(IFF_TUN | IFF_NO_PI | IFF_MULTI_QUEUE),
    "sp0 made persistent": lambda: fcntl.ioctl(os.open("/dev/net/tun", os.O_RDWR), TUNSETPERSIST, 1),
    "the steering program of sp0 taken off": lambda: fcntl.ioctl(
        os.open("/dev/net/tun", os.O_RDWR), TUNSETSTEERINGEBPF, struct.pack("i", -1)),
    "the daemon's descriptors, by /proc": lambda: os.listdir(f"/proc/{pid}/fd"),
    "the daemon's descriptors, by pidfd": steal_descriptor,
    "the daemon's memory": lambda: open(f"/proc/{pid}/mem", "rb").read(1),
    "a signal to the daemon": lambda: os.kill(pid, signal.SIGTERM),
    "the control socket": connect,
    "the control socket removed": lambda: os.unlink(f"{folder}/control.sock"),
    "the configuration, with keys": lambda: open(f"{folder}/sallyport.toml").read(),
    "the state directory": lambda: os.listdir(f"{folder}/state"),
    "reserved numbers": lambda: open(f"{folder}/state/sequences").read(),
    "how far peers have come": lambda: open(f"{folder}/state/replay_tops").read(),
    "the lock of the state directory": lambda: open(f"{folder}/state/lock").read(),
    "a file in the state directory": lambda: write(f"{folder}/state/sysctls.new"),
    "the locks": lambda: os.listdir("/run/sallyport/locks"),
    "a lock of one's own": lambda: write("/run/sallyport/locks/net:1"),
    "a file beside the locks": lambda: write("/run/sallyport/other"),
    "the ids of maps": lambda: bpf(12, 0),       # BPF_MAP_GET_NEXT_ID
    "the ids of programs": lambda: bpf(11, 0),   # BPF_PROG_GET_NEXT_ID
    "a map by its id": lambda: bpf(14, 1),       # BPF_MAP_GET_FD_BY_ID
    "a program by its id": lambda: bpf(13, 1),   # BPF_PROG_GET_FD_BY_ID
    "the program of lan0 taken off": lambda: ip("link set dev lan0 xdp off"),
    "lan0 taken down": lambda: ip("link set dev lan0 down"),
    "an AF_XDP socket": lambda: socket.socket(AF_XDP, socket.SOCK_RAW, 0),
    "a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0),
    "a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 50),
    "a route into sp0": lambda: ip("route add 10.2.0.0/24 dev sp0"),
    "policies flushed": lambda: ip("xfrm policy flush"),
    "states read": lambda: ip("xfrm state"),
    "forwarding switched off": lambda: write("/proc/sys/net/ipv4/ip_forward"),
}
results = {}
for what, attempt in ROWS.items():
    try:
        attempt()
        results[what] = "done"
    except OSError as e:
        results[what] = errno.errorcode.get(e.errno, str(e.errno))
    except Exception as e:
        results[what] = f"{type(e).__name__}: {e}"
with open("/proc/self/status") as status:
    results["capabilities"] = next(line.split()[1] for line in status if line.startswith("CapEff"))
print(json.dumps(results))
'''

# EBADFD: a device node that is attached to nothing has no device to change. EINVAL: the kernel
# compares the kind of the device before it asks who comes.
REFUSALS = {"EPERM", "EACCES"}
BEFORE_THAT = {"sp0 made persistent": {"EBADFD"}, "the steering program of sp0 taken off": {"EBADFD"},
               "sp0 as a TAP with one queue": {"EINVAL"}, "sp0 as a TUN": {"EINVAL"}}


@case("an unprivileged user gets at no device, socket, file, lock, map or program of the gateway")
def unprivileged(bench):
    lab = bench.lab
    gateway = bench.gateway(fresh=True)
    folders = (lab.folder, gateway.folder)
    before = [os.stat(folder).st_mode for folder in folders]
    try:
        for folder in folders:  # what protects each file is its own affair here
            os.chmod(folder, 0o755)
        done = subprocess.run(
            lab.gw.argv("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
                        "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs",
                        sys.executable, "-c", PROGRAM, gateway.folder, gateway.pid),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    finally:
        for folder, mode in zip(folders, before):
            os.chmod(folder, mode & 0o7777)
    equal(done.returncode, 0, f"exit status of the attempts:\n{done.stderr}")
    results = json.loads(done.stdout)
    equal(int(results.pop("capabilities"), 16), 0, "capabilities of the user")
    wrong = {what: result for what, result in results.items()
             if result not in BEFORE_THAT.get(what, REFUSALS)}
    equal(wrong, {}, "what was not refused")
    check(gateway.running, "the daemon has ended")
    return f"{len(results)} attempts"
