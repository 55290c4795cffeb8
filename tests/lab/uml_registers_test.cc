// SPDX-License-Identifier: Apache-2.0
//
// This program has the ptrace() of uml_registers.cc, as user-mode Linux gets it by LD_PRELOAD.

#include <array>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <elf.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

namespace {

// The XSAVE area (Intel SDM 1, 13.4): x87 and SSE in 512 bytes, a header of 64, then the upper half
// of YMM0 to YMM15, wherever there is AVX.
constexpr size_t kXmm0 = 160;
constexpr size_t kHeader = 512;
constexpr size_t kUpperYmm0 = 576;
constexpr size_t kUpperYmmEnd = kUpperYmm0 + 256;
constexpr uint64_t kX87SseAvx = 7;

// A child that stands still under ptrace, until this object ends.
class StoppedChild {
  public:
    StoppedChild() : pid_(fork()) {
        if (pid_ == 0) {
            ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
            raise(SIGSTOP);
            _exit(0);
        }
        int status = 0;
        stopped_ = waitpid(pid_, &status, 0) == pid_ && WIFSTOPPED(status);
    }
    ~StoppedChild() {
        kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
    }
    StoppedChild(const StoppedChild&) = delete;
    StoppedChild& operator=(const StoppedChild&) = delete;

    [[nodiscard]] bool stopped() const { return stopped_; }
    // The first `room` bytes of the area; fewer where it has fewer.
    [[nodiscard]] std::vector<std::byte> read(size_t room) const {
        std::vector<std::byte> bytes(room);
        iovec part{bytes.data(), bytes.size()};
        if (ptrace(PTRACE_GETREGSET, pid_, NT_X86_XSTATE, &part) != 0) part.iov_len = 0;
        bytes.resize(part.iov_len);
        return bytes;
    }
    [[nodiscard]] int write(std::vector<std::byte>& bytes) const {
        iovec part{bytes.data(), bytes.size()};
        return ptrace(PTRACE_SETREGSET, pid_, NT_X86_XSTATE, &part) == 0 ? 0 : errno;
    }

  private:
    pid_t pid_;
    bool stopped_ = false;
};

void put(std::vector<std::byte>& area, size_t at, uint64_t value) {
    std::memcpy(area.data() + at, &value, sizeof(value));
}

uint64_t get(const std::vector<std::byte>& area, size_t at) {
    uint64_t value = 0;
    std::memcpy(&value, area.data() + at, sizeof(value));
    return value;
}

TEST(UmlRegisters, APartIsWrittenAndTheRestStays) {
    const StoppedChild child;
    ASSERT_TRUE(child.stopped());
    auto whole = child.read(65536);
    ASSERT_GE(whole.size(), kUpperYmmEnd);
    put(whole, kHeader, kX87SseAvx);
    put(whole, kXmm0, 1);
    put(whole, kUpperYmm0, 2);
    ASSERT_EQ(child.write(whole), 0);

    auto part = child.read(kUpperYmm0);
    ASSERT_EQ(part.size(), kUpperYmm0);
    EXPECT_EQ(get(part, kXmm0), 1U);
    put(part, kXmm0, 3);
    EXPECT_EQ(child.write(part), 0);

    const auto after = child.read(65536);
    EXPECT_EQ(after.size(), whole.size());
    EXPECT_EQ(get(after, kXmm0), 3U);
    EXPECT_EQ(get(after, kUpperYmm0), 2U);
}

TEST(UmlRegisters, OfNoProcessIsTheKernelsError) {
    std::array<std::byte, kUpperYmm0> bytes{};
    iovec part{bytes.data(), bytes.size()};
    errno = 0;
    EXPECT_EQ(ptrace(PTRACE_SETREGSET, getpid(), NT_X86_XSTATE, &part), -1);
    EXPECT_EQ(errno, ESRCH);
}

}  // namespace
