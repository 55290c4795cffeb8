# SPDX-License-Identifier: Apache-2.0
"""What a file of cases declares. The host imports it for the names, the guest to run them.

    from inside import boot
    BOOT = boot.Boot(kernels=("newest", "6.12"), modules=("esp4",))

    @BOOT.case("ping through a tunnel", seconds=60)
    def ping(guest):
        ...

All cases of a file run in one guest, in order; with two kernels, in two guests. On those behind the first
one only the cases that say so run, because a guest takes its time: `everywhere`, for what the kernels do
differently. All on all: SALLYPORT_VM_EVERYWHERE=1.
"""

import dataclasses
from typing import Callable

# A case may take so many times what it takes on an idle machine.
PATIENCE = 6


@dataclasses.dataclass
class Case:
    name: str
    seconds: int
    function: Callable
    everywhere: bool = False


class Boot:
    """kernels: of host/trees.py. modules: loaded at boot (forking modprobe later costs 0.3 s each)."""

    def __init__(self, kernels=("newest",), cpus=2, memory=2048, devices=(), modules=(),
                 network=None, audit=False):
        self.kernels, self.cpus, self.memory = kernels, cpus, memory
        self.devices = devices    # QEMU's words for more hardware
        self.modules = modules
        self.audit = audit        # whether the kernel logs what a list of system calls refuses
        self.network = network    # called on the host with the Guest before it starts, e.g. for taps
        self.cases = []

    def case(self, name, seconds=60, everywhere=False):
        """`seconds` as on an idle machine: the runner gives PATIENCE times as long."""
        def register(function):
            self.cases.append(Case(name, seconds, function, everywhere))
            return function
        return register
