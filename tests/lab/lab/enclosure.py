# SPDX-License-Identifier: Apache-2.0
"""A place that nothing can leave: everything the lab makes ends when the lab does.

The lab runs as the first process of its own PID, mount and network namespace. Should it be killed,
even with SIGKILL, the kernel ends every process it started, and with them go the mounts, the files
(also those with keys: they are in a tmpfs), the named network namespaces (their names live on a
private /run/netns), devices, XDP programs and SAs. The machine's own interfaces cannot even be seen
from here.

To look inside while it runs: nsenter --target PID --all, then ip netns exec NAME ...
"""

import ctypes
import os
import signal
import sys
import tempfile

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
MS_REC_PRIVATE = 0x4000 | (1 << 18)
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result, what):
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(source, target, kind, flags=0):
    _check(_libc.mount(source.encode(), target.encode(), kind.encode() if kind else None,
                       ctypes.c_ulong(flags), None), f"mount {target}")


def run(main):
    """Calls main() inside and returns its exit status. SIGINT, SIGTERM and SIGHUP reach it."""
    if os.geteuid() != 0:
        print("the lab needs root: it makes network namespaces", file=sys.stderr)
        return 1
    _check(_libc.unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET), "unshare")
    folder = tempfile.mkdtemp(prefix="sallyport-lab-")  # outside it stays empty
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os._exit(_inside(main, folder))
    asked = []

    def forward(number, _frame):
        asked.append(number)
        os.kill(child, signal.SIGTERM if len(asked) < 3 else signal.SIGKILL)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    _, status = os.waitpid(child, 0)
    _libc.umount2(folder.encode(), MNT_DETACH)
    os.rmdir(folder)
    return os.waitstatus_to_exitcode(status) & 0xFF


def _inside(main, folder):
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # A terminal sends Ctrl-C to the whole group; the parent passes on exactly one signal.
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)

    def stop(_number, _frame):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # let the clean-up run
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    status = 1
    try:
        mount("none", "/", None, MS_REC_PRIVATE)
        mount("proc", "/proc", "proc", MS_NOSUID_NODEV_NOEXEC)
        os.makedirs("/run/netns", exist_ok=True)
        mount("tmpfs", "/run/netns", "tmpfs")
        mount("tmpfs", folder, "tmpfs")
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        status = main()
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        status = 130
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else 1
    except BaseException:  # the only place that ends the process
        import traceback
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return status
