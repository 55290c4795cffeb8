// SPDX-License-Identifier: Apache-2.0
// What the process gives away, each in a process of its own, which cannot take it back.

#include "control/startup/confinement.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <fstream>
#include <functional>
#include <set>
#include <string>
#include <thread>

#include "tests/support/sanitizers.h"

namespace sallyport::control::confinement {
namespace {

constexpr bool kHasLists = SP_TEST_WITH_SANITIZER == 0;

// The exit status of `body` in a child: 0 is what it wants.
int status_of(const std::function<int()>& body) {
    const pid_t child = fork();
    if (child == 0) _exit(body());
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

uint64_t capability_mask(const std::string& key, const std::string& thread = "thread-self") {
    std::ifstream in("/proc/" + thread + "/status");
    for (std::string line; std::getline(in, line);) {
        if (line.starts_with(key)) return std::stoull(line.substr(key.size()), nullptr, 16);
    }
    return ~uint64_t{0};
}

constexpr uint64_t kNetAdmin = 1ull << 12;
constexpr uint64_t kNetRaw = 1ull << 13;
constexpr uint64_t kIpcLock = 1ull << 14;
constexpr uint64_t kSysAdmin = 1ull << 21;
constexpr uint64_t kBpf = 1ull << 39;

class Confinement : public ::testing::Test {
  protected:
    void SetUp() override {
        if (geteuid() != 0) GTEST_SKIP() << "needs root to have something to give away";
    }
};

TEST_F(Confinement, AWorkerHasItsCallsOnly) {
    EXPECT_EQ(
        status_of([] {
            if (!confine_worker(Lists::loaded)) return 1;
            if (kHasLists) {
                if (syscall(SYS_openat, -100, "/etc/passwd", 0) != -1 || errno != EPERM) return 2;
                if (syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0) != -1 || errno != EPERM) return 3;
                if (syscall(SYS_execve, "/bin/true", nullptr, nullptr) != -1 || errno != EPERM)
                    return 4;
            }
            return getpid() > 0 ? 0 : 5;
        }),
        0);
}

// What a socket says about itself.
TEST_F(Confinement, AWorkerMayAskItsSockets) {
    EXPECT_EQ(status_of([] {
                  std::array<int, 2> ends{};
                  if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()) != 0) return 1;
                  if (!confine_worker(Lists::loaded)) return 2;
                  int type = 0;
                  socklen_t size = sizeof type;
                  if (getsockopt(ends[0], SOL_SOCKET, SO_TYPE, &type, &size) != 0) return 3;
                  return type == SOCK_STREAM ? 0 : 4;
              }),
              0);
}

// All memory of the process is locked, and below a limit only CAP_IPC_LOCK lets a worker have more.
TEST_F(Confinement, AWorkerGetsMemoryBelowALimitOfWhatMayBeLocked) {
    if ((capability_mask("CapPrm:") & kIpcLock) == 0) GTEST_SKIP() << "CAP_IPC_LOCK is missing";
    EXPECT_EQ(status_of([] {
                  const rlimit limit{.rlim_cur = 65536, .rlim_max = 65536};
                  if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0) return 1;
                  if (!keep_memory().empty()) return 2;
                  int result = 3;
                  std::thread([&] {
                      if (!confine_worker(Lists::loaded)) return;
                      void* page = mmap(nullptr, 1 << 20, PROT_READ | PROT_WRITE,
                                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                      result = page == MAP_FAILED ? 4 : 0;
                  }).join();
                  return result;
              }),
              0);
}

// Seen from outside: a worker with its list cannot look itself.
int has_no_capability_but_the_process_has(Lists lists) {
    std::atomic<pid_t> worker{0};
    std::atomic<bool> seen{false};
    std::thread thread([&] {
        const bool done = confine_worker(lists).has_value();
        worker = done ? gettid() : -1;
        while (!seen) std::this_thread::yield();
    });
    while (worker == 0) std::this_thread::yield();
    const std::string name = "self/task/" + std::to_string(worker);
    const uint64_t left = capability_mask("CapEff:", name) | capability_mask("CapPrm:", name);
    const bool confined = worker > 0;
    seen = true;
    thread.join();
    if (!confined) return 1;
    if ((left & ~kIpcLock) != 0) return 2;  // which stays where memory has a limit
    return capability_mask("CapEff:") != 0 ? 0 : 3;
}

TEST_F(Confinement, ItIsTheThreadThatIsConfined) {
    EXPECT_EQ(status_of([] { return has_no_capability_but_the_process_has(Lists::loaded); }), 0);
}

TEST_F(Confinement, WithoutListsAWorkerGivesItsCapabilitiesAwayToo) {
    EXPECT_EQ(status_of([] { return has_no_capability_but_the_process_has(Lists::none); }), 0);
    EXPECT_EQ(status_of([] {
                  if (!confine_worker(Lists::none)) return 1;
                  return std::ifstream("/proc/self/status") ? 0 : 2;
              }),
              0);
}

TEST_F(Confinement, ControlStartsNoProgramAndLooksIntoNoProcessInAnyThread) {
    if (!kHasLists) GTEST_SKIP() << "builds with sanitizers have no lists";
    EXPECT_EQ(
        status_of([] {
            std::atomic<bool> confined{false};
            int other = 0;
            std::thread before([&] {
                while (!confined) std::this_thread::yield();
                other = syscall(SYS_execve, "/bin/true", nullptr, nullptr) == -1 ? errno : 0;
            });
            const auto done = confine_calls();
            confined = true;
            before.join();
            if (!done) return 1;
            if (other != EPERM) return 2;
            if (syscall(SYS_ptrace, 0, 0, 0, 0) != -1 || errno != EPERM) return 3;
            if (syscall(SYS_process_vm_readv, 1, nullptr, 0, nullptr, 0, 0) != -1 || errno != EPERM)
                return 4;
            // What control goes on to do: files, sockets, threads, and workers of its own.
            if (!std::ifstream("/proc/self/status")) return 5;
            int worker = 1;
            std::thread([&] { worker = confine_worker(Lists::loaded) ? 0 : 1; }).join();
            return worker == 0 ? 0 : 6;
        }),
        0);
}

TEST_F(Confinement, ControlKeepsWhatItNeedsAndIsAdministratorOnlyWhereItSaysSo) {
    const uint64_t before = capability_mask("CapPrm:");
    if ((before & kSysAdmin) == 0) GTEST_SKIP() << "this process is no administrator";
    EXPECT_EQ(status_of([&] {
                  if (!drop_capabilities()) return 1;
                  const uint64_t wanted = (kNetAdmin | kBpf) & before;
                  if ((capability_mask("CapEff:") & (kNetAdmin | kBpf)) != wanted) return 2;
                  if ((capability_mask("CapPrm:") & kNetRaw) != 0) return 3;
                  if ((capability_mask("CapEff:") & kSysAdmin) != 0) return 4;
                  {
                      const AsAdministrator administrator;
                      if ((capability_mask("CapEff:") & kSysAdmin) == 0) return 5;
                      const AsAdministrator again;
                  }
                  return (capability_mask("CapEff:") & kSysAdmin) == 0 ? 0 : 6;
              }),
              0);
}

TEST_F(Confinement, MemoryIsKeptWhereItMayBe) {
    rlimit limit{};
    getrlimit(RLIMIT_MEMLOCK, &limit);
    if (limit.rlim_cur != RLIM_INFINITY && (capability_mask("CapEff:") & kIpcLock) == 0) {
        GTEST_SKIP() << "RLIMIT_MEMLOCK is set and CAP_IPC_LOCK is missing";
    }
    EXPECT_EQ(status_of([] {
                  if (!keep_memory().empty()) return 1;
                  if (!kHasLists) return 0;
                  constexpr size_t kBytes = 1 << 20;
                  auto* page = static_cast<char*>(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                                                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
                  page[0] = 1;
                  std::ifstream in("/proc/self/status");
                  for (std::string line; std::getline(in, line);) {
                      if (line.starts_with("VmLck:")) {
                          return std::stoul(line.substr(6)) * 1024 >= kBytes ? 0 : 2;
                      }
                  }
                  return 3;
              }),
              0);
}

TEST(ConfinementLists, AWorkersIsPartOfControlsAndNeitherStartsPrograms) {
    const auto worker = worker_calls();
    const auto control = control_calls();
    const std::set<std::string> all(control.begin(), control.end());
    EXPECT_EQ(all.size(), control.size()) << "a call stands there twice";
    EXPECT_TRUE(std::ranges::all_of(worker, [&](const auto& call) { return all.contains(call); }));
    for (const char* never : {"execve", "execveat", "ptrace", "process_vm_readv", "init_module",
                              "kexec_load", "setns", "unshare", "keyctl", "userfaultfd"}) {
        EXPECT_FALSE(all.contains(never)) << never;
    }
}

}  // namespace
}  // namespace sallyport::control::confinement
