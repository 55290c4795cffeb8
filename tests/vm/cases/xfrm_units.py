# SPDX-License-Identifier: Apache-2.0
"""The unit tests that talk to the kernel's xfrm, on kernels that have ESP with AES-GCM."""

import os
import subprocess

from inside import boot
from lab.checks import check

BOOT = boot.Boot(kernels=("newest", "6.12"),
                 modules=("veth", "xfrm_user", "esp4", "esp6", "aesni_intel", "seqiv",
                          "echainiv"))


def run(guest, program, tests="*"):
    done = subprocess.run([os.path.join(guest.build, "tests/control", program), "--gtest_color=no",
                           "--gtest_filter=" + tests], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False)
    check(done.returncode == 0 and "  SKIPPED ]" not in done.stdout, done.stdout[-4000:])
    return f"{done.stdout.count('       OK ]')} tests"


@BOOT.case("counters and expiries are written into whole states", seconds=120)
def feedback(guest):
    return run(guest, "xfrm_register_feedback_test")


# Ten thousand pairs take minutes on an emulated CPU.
@BOOT.case("the mirror follows states and policies", seconds=120)
def mirror(guest):
    return run(guest, "xfrm_register_kernel_test", "-*TenThousand*")


@BOOT.case("static SAs are registered whole", seconds=60)
def registry(guest):
    return run(guest, "xfrm_kernel_test", "*States*:*OutboundSa*")
