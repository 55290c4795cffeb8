// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the tests of dataplane/io and control/route need of the system: a fresh network namespace
// for each test, device set-up, raw packets in and out.
//
// The namespace has no name. It belongs to the test's thread and goes with it, so nothing is left
// behind whatever the test does.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <expected>
#include <string>
#include <vector>

#include "dataplane/base/byte_order.h"
#include "dataplane/base/unique_fd.h"

namespace sallyport::test {

using Bytes = std::vector<uint8_t>;

inline bool write_file(const std::string& path, const std::string& text) {
    const UniqueFd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
    return fd && write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

// Runs a shell command in the namespace; the test fails with the command if it fails.
inline void run(const std::string& command) {
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
}

// A test in a namespace of its own. Needs root.
class NamespaceTest : public ::testing::Test {
  protected:
    void SetUp() override {
        if (geteuid() != 0) GTEST_SKIP() << "needs root to make a network namespace";
        if (unshare(CLONE_NEWNET) != 0) {
            GTEST_SKIP() << "cannot make a network namespace: " << std::strerror(errno);
        }
        // No neighbour discovery and no MLD between the frames we count.
        write_file("/proc/sys/net/ipv6/conf/default/disable_ipv6", no_ipv6_ ? "1" : "0");
        run("ip link set lo up");
    }
    bool no_ipv6_ = true;
};

// A veth pair va <-> vb with `queues` queues on both ends, both up.
inline void make_veth(int queues) {
    const std::string n = std::to_string(queues);
    const std::string counts = " numrxqueues " + n + " numtxqueues " + n;
    run("ip link add va" + counts + " type veth peer name vb" + counts);
    if (queues > 1) {
        run("ethtool -L va rx " + n + " tx " + n);
        run("ethtool -L vb rx " + n + " tx " + n);
    }
    run("ip link set va address 02:00:00:00:00:0a up");
    run("ip link set vb address 02:00:00:00:00:0b up");
}

// Sees the frames that arrive on a device.
class Capture {
  public:
    explicit Capture(const std::string& device)
        : fd_(socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, Be16(ETH_P_ALL).raw())) {
        sockaddr_ll address{};
        address.sll_family = AF_PACKET;
        address.sll_protocol = Be16(ETH_P_ALL).raw();
        address.sll_ifindex = static_cast<int>(if_nametoindex(device.c_str()));
        const int on = 1;
        const int room = 8 << 20;
        EXPECT_EQ(setsockopt(fd_.get(), SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof on), 0);
        setsockopt(fd_.get(), SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
        EXPECT_EQ(bind(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    }
    // The next frame; empty when none comes within the time.
    Bytes next(int timeout_ms = 1000) {
        pollfd wait{.fd = fd_.get(), .events = POLLIN, .revents = 0};
        Bytes frame(65536);
        if (poll(&wait, 1, timeout_ms) != 1) return {};
        const ssize_t bytes = recv(fd_.get(), frame.data(), frame.size(), 0);
        frame.resize(bytes > 0 ? static_cast<size_t>(bytes) : 0);
        return frame;
    }

  private:
    UniqueFd fd_;
};

inline void put16(Bytes& bytes, size_t at, uint16_t value) {
    bytes[at] = static_cast<uint8_t>(value >> 8);
    bytes[at + 1] = static_cast<uint8_t>(value);
}

// One's complement sum of an IPv4 header; 0 when its checksum is right.
inline uint16_t checksum(const uint8_t* bytes, size_t count) {
    uint32_t sum = 0;
    for (size_t i = 0; i < count; i += 2) sum += uint32_t{bytes[i]} << 8 | bytes[i + 1];
    while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
    return static_cast<uint16_t>(~sum);
}

}  // namespace sallyport::test
