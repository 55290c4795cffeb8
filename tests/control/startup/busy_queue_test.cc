// SPDX-License-Identifier: Apache-2.0
// Queues of a dead process are waited for, those of a living one are not, and the words fit.

#include "control/startup/busy_queue.h"

#include <sys/socket.h>

#include <cstring>
#include <memory>
#include <optional>
#include <thread>

#include "dataplane/io/packet_memory.h"
#include "dataplane/io/port_sockets.h"
#include "tests/dataplane/io/support.h"

namespace sallyport::control {
namespace {

using std::chrono::milliseconds;
using Socket = QueueHolder::Socket;

std::string said(const QueueHolder& holder, milliseconds waited) {
    const auto judged = judge_busy_queue("wan0", 3, holder, waited);
    return judged ? "" : judged.error();
}

TEST(BusyQueue, ALivingProcessIsBlamedSoonAndByName) {
    const QueueHolder holder{.socket = Socket::there, .process = "77 (suricata)"};
    EXPECT_EQ(said(holder, milliseconds(500)), "");
    EXPECT_TRUE(said(holder, milliseconds(1000)).starts_with("wan0 queue 3: process 77 (suricata)"))
        << said(holder, milliseconds(1000));
}

TEST(BusyQueue, WhatNobodyCanBeSeenToHaveIsWaitedForAndNobodyIsBlamed) {
    for (const QueueHolder& holder :
         {QueueHolder{.socket = Socket::none}, QueueHolder{.socket = Socket::there, .user = 12},
          QueueHolder{}}) {
        EXPECT_EQ(said(holder, milliseconds(14900)), "");
        EXPECT_NE(said(holder, milliseconds(15000)).find("15 s"), std::string::npos);
    }
    EXPECT_EQ(said({.socket = Socket::none}, kReleaseMax).find("another program"),
              std::string::npos);
    EXPECT_NE(said({.socket = Socket::there, .user = 12}, kReleaseMax).find("user 12"),
              std::string::npos);
}

class BusyQueueInTheKernel : public test::NamespaceTest {
  protected:
    static constexpr uint32_t kFrames = 4096;

    static void SetUpTestSuite() {
        static const auto started = io::start_eal(kFrames, false);
        ASSERT_TRUE(started) << started.error();
    }
    void SetUp() override {
        NamespaceTest::SetUp();
        if (IsSkipped()) return;
        auto memory = io::PacketMemory::create(kFrames, false);
        ASSERT_TRUE(memory) << memory.error();
        memory_.emplace(std::move(*memory));
        test::make_veth(1);
    }
    auto open(const io::WhenBusy& when_busy) {
        return io::PortSockets::create({.device = "va",
                                        .ifindex = if_nametoindex("va"),
                                        .queues = 1,
                                        .workers = 1,
                                        .fill_entries = 256,
                                        .rx_entries = 256,
                                        .when_busy = when_busy},
                                       *memory_);
    }

    std::optional<io::PacketMemory> memory_;
};

// A descriptor on its way through a socket is in no process, as those that io_uring still has.
class OnItsWay {
  public:
    explicit OnItsWay(int fd) {
        std::array<int, 2> ends{};
        EXPECT_EQ(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, ends.data()), 0);
        from_ = UniqueFd(ends[0]);
        to_ = UniqueFd(ends[1]);
        char byte = 0;
        iovec data{.iov_base = &byte, .iov_len = 1};
        alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof fd)> control{};
        msghdr message{};
        message.msg_iov = &data;
        message.msg_iovlen = 1;
        message.msg_control = control.data();
        message.msg_controllen = control.size();
        cmsghdr* header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof fd);
        std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
        EXPECT_EQ(sendmsg(from_.get(), &message, 0), 1);
    }
    void drop() {
        from_ = UniqueFd();
        to_ = UniqueFd();
    }

  private:
    UniqueFd from_;
    UniqueFd to_;
};

TEST_F(BusyQueueInTheKernel, WhatTheKernelStillHasOfADeadProcessIsWaitedFor) {
    std::optional<OnItsWay> left;
    {
        auto before = open({});
        ASSERT_TRUE(before) << before.error();
        left.emplace((*before)->fd(QueueId{0}, WorkerId{0}));
    }
    Log log;
    BusyQueues busy(log);
    const auto look = [&](uint16_t queue, milliseconds waited) {
        return busy.look("va", if_nametoindex("va"), queue, waited);
    };
    EXPECT_FALSE(open({})) << "by itself a second is all it gets";
    const auto began = std::chrono::steady_clock::now();
    std::thread kernel([&] {
        std::this_thread::sleep_for(milliseconds(2500));
        left->drop();
    });
    const auto opened = open(look);
    const auto took = std::chrono::steady_clock::now() - began;
    kernel.join();
    ASSERT_TRUE(opened) << opened.error();
    EXPECT_GE(took, milliseconds(2300));
    EXPECT_LE(took, kReleaseMax);
}

}  // namespace
}  // namespace sallyport::control
