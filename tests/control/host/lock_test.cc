// SPDX-License-Identifier: Apache-2.0
//
// One process holds a lock; nobody but root can be in the way; and who was killed is not.

#include "control/host/lock.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace sallyport::host {
namespace {

class LockTest : public testing::Test {
  protected:
    void SetUp() override {
        std::string name = testing::TempDir() + "/sallyport-locks-XXXXXX";
        ASSERT_NE(mkdtemp(name.data()), nullptr);
        parent_ = name;
        folder_ = parent_ / "locks";
    }
    void TearDown() override { std::filesystem::remove_all(parent_); }

    std::expected<Lock, Lock::Error> take(const std::string& name = "xfrm") const {
        return Lock::take(name, folder_);
    }
    std::filesystem::path parent_;
    std::filesystem::path folder_;
};

TEST_F(LockTest, IsHeldOnceAndLeavesNothing) {
    {
        const auto first = take();
        ASSERT_TRUE(first) << first.error().text;
        const auto second = take();
        ASSERT_FALSE(second);
        EXPECT_EQ(second.error().refusal, Lock::Refusal::held);
        EXPECT_TRUE(take("device-7"));
    }
    EXPECT_TRUE(std::filesystem::is_empty(folder_));
    EXPECT_TRUE(take());
}

TEST_F(LockTest, OfAKilledProcessIsTaken) {
    int ready[2];
    ASSERT_EQ(pipe(ready), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        const auto lock = take();
        const char answer = lock ? 'y' : 'n';
        if (write(ready[1], &answer, 1) == 1) pause();
        _exit(1);
    }
    char answer = 0;
    ASSERT_EQ(read(ready[0], &answer, 1), 1);
    ASSERT_EQ(answer, 'y');
    EXPECT_FALSE(take());
    kill(child, SIGKILL);
    ASSERT_EQ(waitpid(child, nullptr, 0), child);
    EXPECT_FALSE(std::filesystem::is_empty(folder_));
    EXPECT_TRUE(take());
    close(ready[0]);
    close(ready[1]);
}

TEST_F(LockTest, FolderThatOthersMayWriteIntoIsRefused) {
    for (const auto& folder : {folder_, parent_}) {
        ASSERT_TRUE(take());
        ASSERT_EQ(chmod(folder.c_str(), 0777), 0);
        const auto lock = take();
        ASSERT_FALSE(lock);
        EXPECT_EQ(lock.error().refusal, Lock::Refusal::failed);
        EXPECT_TRUE(lock.error().text.contains("others cannot write")) << lock.error().text;
        ASSERT_EQ(chmod(folder.c_str(), 0700), 0);
    }
}

TEST_F(LockTest, SymbolicLinksAreNotFollowed) {
    std::filesystem::create_directory(parent_ / "elsewhere");
    std::filesystem::create_symlink(parent_ / "elsewhere", folder_);
    EXPECT_FALSE(take());
    EXPECT_TRUE(std::filesystem::is_empty(parent_ / "elsewhere"));
}

}  // namespace
}  // namespace sallyport::host
