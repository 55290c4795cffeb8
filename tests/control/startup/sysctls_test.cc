// SPDX-License-Identifier: Apache-2.0
//
// Settings of the kernel are put back, those of a killed run too.

#include "control/startup/sysctls.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "control/host/note.h"

namespace sallyport::control {
namespace {

constexpr const char* kForwarding = "net/ipv4/ip_forward";
constexpr const char* kMartians = "net/ipv4/conf/all/log_martians";
constexpr const char* kRedirects = "net/ipv4/conf/all/accept_redirects";
constexpr const char* kRpFilter = "net/ipv4/conf/all/rp_filter";

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

TEST(Sysctls, WhatOthersChangeIsMendedAndForwardingCanBePutBackFirst) {
    std::string folder = testing::TempDir() + "/sallyport-sysctls-XXXXXX";
    ASSERT_NE(mkdtemp(folder.data()), nullptr);
    bool skipped = false;
    std::thread([&] {
        skipped = unshare(CLONE_NEWNET) != 0;
        if (skipped) return;
        put(kForwarding, "0");
        put(kMartians, "1");
        {
            Sysctls sysctls(std::filesystem::path(folder) / "sysctls");
            ASSERT_TRUE(sysctls.set(kMartians, "0"));
            ASSERT_TRUE(sysctls.set(kForwarding, "1"));
            EXPECT_TRUE(sysctls.mend().empty());
            put(kForwarding, "0");
            const auto mended = sysctls.mend();
            ASSERT_EQ(mended.size(), 1u);
            EXPECT_EQ(mended[0].name, kForwarding);
            EXPECT_EQ(mended[0].found, "0");
            EXPECT_EQ(mended[0].error, "");
            EXPECT_EQ(Sysctls::get(kForwarding), "1");

            sysctls.put_back(kForwarding);
            EXPECT_EQ(Sysctls::get(kForwarding), "0");
            EXPECT_EQ(Sysctls::get(kMartians), "0") << "ours until the end";
            EXPECT_TRUE(sysctls.mend().empty()) << "no setting of ours any more";
            put(kForwarding, "1");
        }
        EXPECT_EQ(Sysctls::get(kForwarding), "1") << "put back once";
        EXPECT_EQ(Sysctls::get(kMartians), "1");
    }).join();
    std::filesystem::remove_all(folder);
    if (skipped) GTEST_SKIP() << "needs root, for a network namespace";
}

// A network manager that reads router advertisements itself writes 0, and means it.
TEST(Sysctls, WhatIsNotInsistedOnIsWhoseItWasChangedBy) {
    std::string folder = testing::TempDir() + "/sallyport-sysctls-XXXXXX";
    ASSERT_NE(mkdtemp(folder.data()), nullptr);
    const std::filesystem::path note = std::filesystem::path(folder) / "sysctls";
    bool skipped = false;
    std::thread([&] {
        skipped = unshare(CLONE_NEWNET) != 0;
        if (skipped) return;
        using Insist = Sysctls::Insist;
        put(kRpFilter, "1");
        {
            Sysctls sysctls(note);
            ASSERT_TRUE(sysctls.set(kRpFilter, "2", Insist::no));
            EXPECT_EQ(Sysctls::get(kRpFilter), "2");
            EXPECT_TRUE(sysctls.mend().empty());
        }
        EXPECT_EQ(Sysctls::get(kRpFilter), "1") << "nobody has changed it";
        {
            Sysctls sysctls(note);
            ASSERT_TRUE(sysctls.set(kRpFilter, "2", Insist::no));
            put(kRpFilter, "0");
            EXPECT_TRUE(sysctls.mend().empty());
            EXPECT_EQ(Sysctls::get(kRpFilter), "0");
        }
        EXPECT_EQ(Sysctls::get(kRpFilter), "0");
        {
            Sysctls sysctls(note);
            ASSERT_TRUE(sysctls.set(kRpFilter, "2", Insist::no));
            put(kRpFilter, "1");
            sysctls.put_back(kRpFilter);
            EXPECT_EQ(Sysctls::get(kRpFilter), "1");
        }

        put(kMartians, "0");
        // Of a killed run: the third word is what it has written.
        const std::vector<std::string> lines = {std::string(kRpFilter) + " 1 2",
                                                std::string(kRedirects) + " 1"};
        for (const auto& [found, left] : {std::pair("2", "1"), std::pair("0", "0")}) {
            put(kRpFilter, found);
            put(kRedirects, "0");
            ASSERT_TRUE(host::write_note(note, lines));
            {
                Sysctls sysctls(note);
                ASSERT_TRUE(sysctls.set(kMartians, "1"));
                EXPECT_EQ(host::read_note(note).back(), lines.front()) << "for the next, too";
            }
            EXPECT_EQ(Sysctls::get(kRpFilter), left);
            EXPECT_EQ(Sysctls::get(kRedirects), "1") << "old notes have two words";
        }
        // Taken up by a run that wants the same.
        put(kRpFilter, "2");
        ASSERT_TRUE(host::write_note(note, lines));
        {
            Sysctls sysctls(note);
            ASSERT_TRUE(sysctls.set(kRpFilter, "2", Insist::no));
        }
        EXPECT_EQ(Sysctls::get(kRpFilter), "1");
    }).join();
    std::filesystem::remove_all(folder);
    if (skipped) GTEST_SKIP() << "needs root, for a network namespace";
}

// Somebody has put a file in its place that cannot be written, as containers do.
TEST(Sysctls, WhatCannotBeMendedIsSaidWithTheReason) {
    std::string folder = testing::TempDir() + "/sallyport-sysctls-XXXXXX";
    ASSERT_NE(mkdtemp(folder.data()), nullptr);
    const std::string in_the_way = folder + "/in_the_way";
    std::ofstream(in_the_way) << "1\n";
    bool skipped = false;
    std::thread([&] {
        skipped = unshare(CLONE_NEWNET | CLONE_NEWNS) != 0 ||
                  mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0;
        if (skipped) return;
        put(kMartians, "0");
        Sysctls sysctls(std::filesystem::path(folder) / "sysctls");
        ASSERT_TRUE(sysctls.set(kMartians, "0"));
        const std::string file = std::string("/proc/sys/") + kMartians;
        ASSERT_EQ(mount(in_the_way.c_str(), file.c_str(), nullptr, MS_BIND, nullptr), 0);
        ASSERT_EQ(mount(nullptr, file.c_str(), nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr),
                  0);
        for (int look = 0; look < 2; ++look) {
            const auto changed = sysctls.mend();
            ASSERT_EQ(changed.size(), 1u);
            EXPECT_EQ(changed[0].found, "1");
            EXPECT_EQ(changed[0].error, "Read-only file system");
        }
        ASSERT_EQ(umount2(file.c_str(), MNT_DETACH), 0);
        EXPECT_TRUE(sysctls.mend().empty());
    }).join();
    std::filesystem::remove_all(folder);
    if (skipped) GTEST_SKIP() << "needs root, for namespaces of its own";
}

}  // namespace
}  // namespace sallyport::control
