// SPDX-License-Identifier: Apache-2.0
#include "control/startup/confinement.h"

#include <linux/capability.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <span>

#ifndef CAP_BPF  // headers of before 5.8
#define CAP_BPF 39
#endif

namespace sallyport::control::confinement {

namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kHasSanitizer = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
constexpr bool kHasSanitizer = true;
#else
constexpr bool kHasSanitizer = false;
#endif
#else
constexpr bool kHasSanitizer = false;
#endif

// The loop, its end, an assertion that fails, and what the C library does by itself: memory, locks
// of its own, clocks where the vDSO has none (a guest without a steady TSC).
constexpr const char* kWorkerCalls[] = {
    "read",
    "write",
    "readv",
    "writev",
    "sendto",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "getsockopt",  // what the kernel counted of its sockets, when memory is used up
    "poll",
    "ppoll",
    "io_uring_enter",
    "futex",
    "futex_wait",
    "futex_wake",
    "madvise",
    "mmap",
    "munmap",
    "mprotect",
    "mremap",
    "brk",
    "clock_gettime",
    "clock_nanosleep",
    "gettimeofday",
    "nanosleep",
    "sched_yield",
    "getpid",
    "gettid",
    "getcpu",
    "tgkill",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "restart_syscall",
    "rseq",
    "set_robust_list",
    "exit",
    "exit_group",
    "sched_getaffinity",
    "close",
    "fstat",
    "newfstatat",
    "prctl",
};

// What control does beside that: files of its state, sockets, programs and maps, timers, threads of
// others' libraries. Newer calls that a C library prefers stand beside older ones, since it takes
// only ENOSYS, never EPERM, for "not there".
constexpr const char* kControlCalls[] = {
    // files
    "open",
    "openat",
    "openat2",
    "stat",
    "lstat",
    "statx",
    "statfs",
    "fstatfs",
    "access",
    "faccessat",
    "faccessat2",
    "lseek",
    "pread64",
    "pwrite64",
    "preadv",
    "pwritev",
    "ftruncate",
    "fsync",
    "fdatasync",
    "sync_file_range",
    "flock",
    "fcntl",
    "dup",
    "dup2",
    "dup3",
    "pipe2",
    "getdents64",
    "readlink",
    "readlinkat",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "rmdir",
    "chmod",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "chown",
    "fchown",
    "fchownat",
    "umask",
    "getcwd",
    "ioctl",
    "close_range",
    "getxattr",
    "lgetxattr",
    "inotify_init1",
    "inotify_add_watch",
    // sockets
    "socket",
    "socketpair",
    "bind",
    "listen",
    "accept",
    "accept4",
    "connect",
    "getsockname",
    "getpeername",
    "setsockopt",
    "shutdown",
    "sendmmsg",
    "recvmmsg",
    // waiting
    "select",
    "pselect6",
    "epoll_create1",
    "epoll_ctl",
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "eventfd2",
    "timerfd_create",
    "timerfd_settime",
    "timerfd_gettime",
    "signalfd4",
    "alarm",
    "setitimer",
    "timer_create",
    "timer_settime",
    "timer_delete",
    "pause",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigsuspend",
    "sigaltstack",
    "kill",
    "futex_waitv",
    "membarrier",
    // programs, maps and rings; bpffs is mounted where it was not
    "bpf",
    "io_uring_setup",
    "io_uring_register",
    "mount",
    // threads and limits
    "clone",
    "clone3",
    "set_tid_address",
    "sched_setaffinity",
    "sched_getparam",
    "sched_getscheduler",
    "getpriority",
    "prlimit64",
    "getrlimit",
    "setrlimit",
    "getrusage",
    "times",
    "sysinfo",
    "uname",
    "getrandom",
    "getppid",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "getresuid",
    "getresgid",
    "capget",
    "capset",
    "mlock",
    "mlock2",
    "mlockall",
    "munlock",
    "munlockall",
    "mincore",
    "msync",
    "memfd_create",
    "clock_getres",
    "time",
    "wait4",
    "waitid",
    "arch_prctl",
    "seccomp",
    "get_mempolicy",
};

using Filter = std::unique_ptr<void, decltype(&seccomp_release)>;

std::expected<void, std::string> load(std::span<const std::span<const char* const>> lists,
                                      bool all_threads) {
    if (kHasSanitizer) return {};
    const auto failed = [](const char* what, int error) {
        return std::unexpected(std::string("cannot ") + what +
                               " the list of system calls (seccomp): " + std::strerror(-error));
    };
    const Filter filter(seccomp_init(SCMP_ACT_ERRNO(EPERM)), &seccomp_release);
    if (!filter) return failed("make", -ENOMEM);
    seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_LOG, 1);  // a wish: old kernels log nothing
    if (all_threads) {
        if (const int error = seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_TSYNC, 1);
            error != 0) {
            return failed("give all threads", error);
        }
    }
    for (const auto& list : lists) {
        for (const char* name : list) {
            const int number = seccomp_syscall_resolve_name(name);
            // This library does not know it, and the machine that has it would be newer.
            if (number == __NR_SCMP_ERROR) continue;
            if (const int error =
                    seccomp_rule_add_array(filter.get(), SCMP_ACT_ALLOW, number, 0, nullptr);
                error != 0 && error != -EEXIST) {
                return failed("write", error);
            }
        }
    }
    if (const int error = seccomp_load(filter.get()); error != 0) return failed("load", error);
    return {};
}

// Of one thread, as capset(2) has them: two words for 64 capabilities.
struct Capabilities {
    std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> words{};

    static constexpr uint32_t bit(unsigned capability) { return 1u << (capability % 32); }
    [[nodiscard]] bool may_have(unsigned capability) const {
        return (words.at(capability / 32).permitted & bit(capability)) != 0;
    }
    [[nodiscard]] bool has(unsigned capability) const {
        return (words.at(capability / 32).effective & bit(capability)) != 0;
    }
    void set_effective(unsigned capability, bool on) {
        auto& word = words.at(capability / 32);
        word.effective = on ? word.effective | bit(capability) : word.effective & ~bit(capability);
    }
};

__user_cap_header_struct header() {
    return {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
}

bool read(Capabilities& out) {
    auto about = header();
    return syscall(SYS_capget, &about, out.words.data()) == 0;
}

bool write(const Capabilities& wanted) {
    auto about = header();
    return syscall(SYS_capset, &about, wanted.words.data()) == 0;
}

std::unexpected<std::string> capabilities_failed() {
    return std::unexpected(std::string("cannot give capabilities away: ") + std::strerror(errno));
}

bool is_limited() {
    rlimit limit{};
    return getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur != RLIM_INFINITY;
}

// Of this thread: those of `wanted` that it has, SYS_ADMIN not effective.
std::expected<void, std::string> keep_only(std::span<const unsigned> wanted) {
    Capabilities now;
    if (!read(now)) return capabilities_failed();
    Capabilities kept;
    const auto keep = [&](unsigned capability) {
        if (!now.may_have(capability)) return;
        auto& word = kept.words.at(capability / 32);
        word.permitted |= Capabilities::bit(capability);
        word.effective |= Capabilities::bit(capability);
    };
    for (const unsigned capability : wanted) keep(capability);
    // What is mapped from now on is locked too, and would be refused.
    if (is_limited()) keep(CAP_IPC_LOCK);
    kept.set_effective(CAP_SYS_ADMIN, false);
    if (!write(kept)) return capabilities_failed();
    return {};
}

}  // namespace

std::string keep_memory() {
    if (kHasSanitizer) return {};  // their shadow is larger than any memory
    // Below a limit later mappings would fail, the process would lack memory that is there.
    Capabilities now;
    if (is_limited() && (!read(now) || !now.has(CAP_IPC_LOCK))) {
        return "RLIMIT_MEMLOCK is set and CAP_IPC_LOCK is missing";
    }
    // Only what is touched: DPDK reserves far more addresses than it uses.
    if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0) return std::strerror(errno);
    return {};
}

std::expected<void, std::string> confine_worker(Lists lists_wanted) {
    if (auto kept = keep_only({}); !kept) return kept;
    if (lists_wanted == Lists::none) return {};
    const std::span<const char* const> lists[] = {kWorkerCalls};
    return load(lists, false);
}

std::expected<void, std::string> confine_calls() {
    const std::span<const char* const> lists[] = {kWorkerCalls, kControlCalls};
    return load(lists, true);
}

std::expected<void, std::string> drop_capabilities() {
    constexpr unsigned kOfControl[] = {CAP_NET_ADMIN, CAP_BPF, CAP_SYS_ADMIN};
    return keep_only(kOfControl);
}

AsAdministrator::AsAdministrator() {
    Capabilities now;
    if (!read(now) || !now.may_have(CAP_SYS_ADMIN) || now.has(CAP_SYS_ADMIN)) return;
    now.set_effective(CAP_SYS_ADMIN, true);
    raised_ = write(now);
}

AsAdministrator::~AsAdministrator() {
    Capabilities now;
    if (!raised_ || !read(now)) return;
    now.set_effective(CAP_SYS_ADMIN, false);
    (void)write(now);
}

std::vector<std::string> worker_calls() {
    return {std::begin(kWorkerCalls), std::end(kWorkerCalls)};
}

std::vector<std::string> control_calls() {
    std::vector<std::string> out = worker_calls();
    out.insert(out.end(), std::begin(kControlCalls), std::end(kControlCalls));
    return out;
}

}  // namespace sallyport::control::confinement
