// SPDX-License-Identifier: Apache-2.0
//
// Who may attach to sp0.

#include <grp.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <optional>
#include <thread>

#include "control/netlink/link.h"
#include "dataplane/io/tap.h"
#include "tests/dataplane/io/support.h"

namespace sallyport::io {
namespace {

class TapTest : public test::NamespaceTest {};

// Of a process that asks for a queue of the device: 0 or errno.
int ask_for_queue(const char* device) {
    const int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (fd < 0) return errno;
    ifreq request{};
    std::strncpy(request.ifr_name, device, IFNAMSIZ - 1);
    request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE;
    const int result = ioctl(fd, TUNSETIFF, &request) == 0 ? 0 : errno;
    close(fd);
    return result;
}

// A process of a user without any right that exits with what `act` returns.
template <typename Act>
pid_t as_nobody(Act act) {
    const pid_t child = fork();
    if (child == 0) {
        constexpr uid_t kNobody = 65534;
        if (setgroups(0, nullptr) != 0 || setgid(kNobody) != 0 || setuid(kNobody) != 0) _exit(255);
        _exit(act());
    }
    return child;
}

int attach_as_nobody(const char* device) {
    const pid_t child = as_nobody([device] { return ask_for_queue(device); });
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status));
    return WEXITSTATUS(status);
}

// A further queue would read the gateway's own traffic and write frames past the policies.
TEST_F(TapTest, NobodyElseMayAttach) {
    if (access("/dev/net/tun", R_OK | W_OK) != 0) GTEST_SKIP() << "no /dev/net/tun";
    for (const uint16_t queues : {uint16_t{1}, uint16_t{3}}) {
        const auto tap = Tap::create("sp0", queues, netlink::move_link);
        ASSERT_TRUE(tap) << tap.error();
        EXPECT_EQ(attach_as_nobody("sp0"), EPERM) << queues << " queues";
    }
}

// Not in the moment of its creation either: they ask all the time.
TEST_F(TapTest, NobodyElseIsInFirst) {
    if (access("/dev/net/tun", R_OK | W_OK) != 0) GTEST_SKIP() << "no /dev/net/tun";
    std::array<pid_t, 4> children{};
    for (pid_t& child : children) {
        child = as_nobody([] {
            while (ask_for_queue("sp0") != 0) {
            }
            return 0;
        });
    }
    for (int round = 0; round < 30; ++round) {
        const auto tap = Tap::create("sp0", 2, netlink::move_link);
        ASSERT_TRUE(tap) << tap.error();
    }
    for (const pid_t child : children) {
        int status = 0;
        EXPECT_EQ(waitpid(child, &status, WNOHANG), 0) << "one has had a queue";
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
    }
}

// That of a killed gateway stays for some milliseconds more.
TEST_F(TapTest, OneThatIsOnItsWayOutIsWaitedFor) {
    if (access("/dev/net/tun", R_OK | W_OK) != 0) GTEST_SKIP() << "no /dev/net/tun";
    std::optional<std::expected<Tap, std::string>> before(
        Tap::create("sp0", 2, netlink::move_link));
    ASSERT_TRUE(*before) << before->error();
    std::thread leaving([&before] {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        before.reset();
    });
    const auto tap = Tap::create("sp0", 2, netlink::move_link);
    EXPECT_TRUE(tap) << tap.error();
    leaving.join();
}

TEST_F(TapTest, ADeviceOfThatNameIsNotTouched) {
    if (access("/dev/net/tun", R_OK | W_OK) != 0) GTEST_SKIP() << "no /dev/net/tun";
    test::run("ip link add sp0 type veth peer name other");
    const auto tap = Tap::create("sp0", 2, netlink::move_link);
    ASSERT_FALSE(tap);
    EXPECT_NE(tap.error().find("exists already"), std::string::npos) << tap.error();
    test::run("ip -d link show sp0 | grep -q veth");
}

}  // namespace
}  // namespace sallyport::io
