// SPDX-License-Identifier: Apache-2.0
//
// For user-mode Linux, by LD_PRELOAD: lets it write the registers of its processes on any CPU.
//
// It runs each process of its guest under ptrace, and keeps the vector registers of one in 2696
// bytes: all that the XSAVE area of a CPU without AMX has. The host gives as much of the area as
// there is room for, but takes it whole or not at all (EFAULT); on a CPU with AMX, where it has
// 11 KB, the guest's first process is its last. So a part is laid over what the process has now,
// and written whole. What lies behind the part is nothing that the guest knows of, and stays.

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <dlfcn.h>
#include <elf.h>
#include <linux/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

namespace {

using Ptrace = long (*)(int request, ...);

// Not on the stack: the guest's kernel has 16 KB of it. One at a time is enough, since that kernel
// has one CPU, is not preempted, and touches no process from an interrupt.
std::array<std::byte, 65536> whole_area;

const auto libc_ptrace = reinterpret_cast<Ptrace>(dlsym(RTLD_NEXT, "ptrace"));

// What ptrace() returns for PTRACE_SETREGSET of NT_X86_XSTATE, errno too. `part` stays the
// caller's.
long write_part(pid_t pid, void* kind, iovec* part) {
    iovec whole{whole_area.data(), whole_area.size()};
    if (const long result = libc_ptrace(PTRACE_GETREGSET, pid, kind, &whole); result != 0)
        return result;
    if (part->iov_len >= whole.iov_len) return libc_ptrace(PTRACE_SETREGSET, pid, kind, part);
    std::memcpy(whole_area.data(), part->iov_base, part->iov_len);
    return libc_ptrace(PTRACE_SETREGSET, pid, kind, &whole);
}

}  // namespace

// As in ptrace(2), where it is variadic: on x86-64 the four arguments arrive the same.
// <sys/ptrace.h> would not have it so.
extern "C" long ptrace(int request, pid_t pid, void* address, void* data) noexcept {
    if (request == PTRACE_SETREGSET && reinterpret_cast<std::uintptr_t>(address) == NT_X86_XSTATE)
        return write_part(pid, address, static_cast<iovec*>(data));
    return libc_ptrace(request, pid, address, data);
}
