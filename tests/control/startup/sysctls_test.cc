// SPDX-License-Identifier: Apache-2.0
//
// Settings of the kernel are put back, those of a killed run too.

#include "control/startup/sysctls.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "control/host/note.h"

namespace sallyport::control {
namespace {

constexpr const char* kForwarding = "net/ipv4/ip_forward";
constexpr const char* kRedirects = "net/ipv4/conf/all/accept_redirects";

void put(const std::string& name, const std::string& value) {
    std::ofstream("/proc/sys/" + name) << value << '\n';
}

// The second run needs other settings than the first: SAs of the file after SAs of xfrm, for one.
TEST(Sysctls, WhatAKilledRunHasChangedIsPutBackByOneThatDoesNotNeedIt) {
    std::string folder = testing::TempDir() + "/sallyport-sysctls-XXXXXX";
    ASSERT_NE(mkdtemp(folder.data()), nullptr);
    const std::filesystem::path note = std::filesystem::path(folder) / "sysctls";
    bool skipped = false;
    std::thread([&] {  // its network namespace ends with it
        skipped = unshare(CLONE_NEWNET) != 0;
        if (skipped) return;
        put(kForwarding, "0");
        put(kRedirects, "0");  // was 1
        const std::vector<std::string> lines = {std::string(kRedirects) + " 1"};
        ASSERT_TRUE(host::write_note(note, lines));
        {
            Sysctls sysctls(note);
            ASSERT_TRUE(sysctls.set(kForwarding, "1"));
            EXPECT_EQ(Sysctls::get(kForwarding), "1");
        }
        EXPECT_EQ(Sysctls::get(kForwarding), "0");
        EXPECT_EQ(Sysctls::get(kRedirects), "1");
    })
        .join();
    const bool note_left = std::filesystem::exists(note);
    std::filesystem::remove_all(folder);
    if (skipped) GTEST_SKIP() << "needs root, for a network namespace";
    EXPECT_FALSE(note_left);
}

}  // namespace
}  // namespace sallyport::control
