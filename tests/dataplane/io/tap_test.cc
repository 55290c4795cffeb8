// SPDX-License-Identifier: Apache-2.0
//
// Who may attach to sp0.

#include <grp.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include <cerrno>
#include <cstring>

#include "dataplane/io/tap.h"
#include "tests/dataplane/io/support.h"

namespace sallyport::io {
namespace {

class TapTest : public test::NamespaceTest {};

// What a user without any right gets who asks for a queue of the device: 0 or errno.
int attach_as_nobody(const char* device) {
    const pid_t child = fork();
    if (child == 0) {
        constexpr uid_t kNobody = 65534;
        if (setgroups(0, nullptr) != 0 || setgid(kNobody) != 0 || setuid(kNobody) != 0) _exit(255);
        const int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
        if (fd < 0) _exit(errno);
        ifreq request{};
        std::strncpy(request.ifr_name, device, IFNAMSIZ - 1);
        request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE;
        _exit(ioctl(fd, TUNSETIFF, &request) == 0 ? 0 : errno);
    }
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status));
    return WEXITSTATUS(status);
}

// A further queue would read the gateway's own traffic and write frames past the policies.
TEST_F(TapTest, NobodyElseMayAttach) {
    if (access("/dev/net/tun", R_OK | W_OK) != 0) GTEST_SKIP() << "no /dev/net/tun";
    for (const uint16_t queues : {uint16_t{1}, uint16_t{3}}) {
        const auto tap = Tap::create("sp0", queues);
        ASSERT_TRUE(tap) << tap.error();
        EXPECT_EQ(attach_as_nobody("sp0"), EPERM) << queues << " queues";
    }
}

}  // namespace
}  // namespace sallyport::io
