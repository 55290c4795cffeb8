# SPDX-License-Identifier: Apache-2.0
"""Named cases, each bounded in time, reported one by one in the TAP format."""

import signal
import sys
import time
import traceback

from . import daemon, scapy_peer, topology, uml
from .checks import Skip, check, equal, eventually  # noqa: F401  (for the cases)

CASES = []  # (name, seconds, function), in the order they run


def case(name, seconds=60):
    def register(function):
        CASES.append((name, seconds, function))
        return function
    return register


class Bench:
    """What the cases share: one lab, and one gateway in it that restarts only when it must."""

    def __init__(self, build_dir, slow=1):
        self.build_dir = build_dir
        self.slow = slow  # factor on time limits: sanitizer builds
        self.lab = topology.Lab(build_dir)
        self._gateway = None
        self._crafted = {}
        self.failed = False

    def crafted(self, name):
        """Scapy as the far end of a crafted tunnel; its sequence numbers go on over all cases."""
        tunnel = self.lab.tunnels[name]
        if tunnel.spi_in not in self._crafted:
            self._crafted[tunnel.spi_in] = scapy_peer.EspEnd(tunnel)
        return self._crafted[tunnel.spi_in]

    def peer(self):
        left = signal.alarm(0)  # its boot has a limit of its own, and is not the case's affair
        try:
            return self.lab.peer()
        except uml.PeerUnavailable as e:
            raise Skip(str(e)) from None
        finally:
            signal.alarm(left)

    def gateway(self, fresh=False, **options):
        """A running sallyportd with these options of daemon.config_text()."""
        g = self._gateway
        if g and g.running and not fresh and g.options == options:
            return g
        return self.prepare(**options).start()

    def prepare(self, **options):
        """A sallyportd with these options that the case starts and ends itself."""
        self.stop_gateway()
        self._gateway = daemon.Daemon(self.lab, self.build_dir, **options)
        if options.get("at_stop") == "open":
            self._gateway.run("--open")  # what the one before has left closed
        return self._gateway

    def stop_gateway(self):
        gateway, self._gateway = self._gateway, None
        if gateway and gateway.running:
            equal(gateway.stop(), 0, "exit status of sallyportd after SIGTERM")

    def discard_gateway(self):
        """Nothing of a case that failed goes on into the next."""
        self.failed = False
        gateway, self._gateway = self._gateway, None
        if gateway:
            gateway.kill()

    def log_tail(self):
        return self._gateway.log()[-2000:] if self._gateway else ""

    def close(self):
        if self._gateway:
            self._gateway.kill()
        self.lab.close()


def run(build_dir, wanted, slow):
    chosen = [c for c in CASES if not wanted or c[0] in wanted]
    for name in set(wanted) - {c[0] for c in chosen}:
        print(f"no case is called '{name}': see --list", file=sys.stderr)
        return 2
    print(f"1..{len(chosen)}", flush=True)
    bench = Bench(build_dir, slow)
    failed = 0
    try:
        for number, (name, seconds, function) in enumerate(chosen, 1):
            began = time.monotonic()
            verdict, notes = _run_one(bench, function, seconds * slow)
            failed += verdict.startswith("not ok")
            head, hash_, reason = verdict.partition(" # ")
            print(f"{head} {number} - {name}{hash_}{reason}")
            for line in notes:
                print(f"# {line}")
            if verdict.startswith("not ok"):  # meson shows the error stream of what failed
                print(f"{name}:", *notes, sep="\n  ", file=sys.stderr, flush=True)
            print(f"# {time.monotonic() - began:.1f} s", flush=True)
    finally:
        bench.close()
    return 1 if failed else 0


def _run_one(bench, function, seconds):
    """(TAP verdict, comment lines)"""
    def too_long(*_):
        raise TimeoutError(f"the case took more than {seconds} s")

    notes = []
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(int(seconds))
    try:
        note = function(bench)
        if note:
            notes.append(note)
        return "ok", notes
    except Skip as e:
        return f"ok # SKIP {str(e).splitlines()[0]}", notes
    except Exception:
        bench.failed = True
        text = traceback.format_exc() + ("\nsallyportd said:\n" + bench.log_tail()
                                         if bench.log_tail() else "")
        return "not ok", notes + text.splitlines()
    finally:
        signal.alarm(0)
        if bench.failed:
            bench.discard_gateway()
