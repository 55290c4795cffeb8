// SPDX-License-Identifier: Apache-2.0
//
// What is known of inbound numbers comes back as it was, or not at all.

#include "control/sa/static/replay_tops.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <fstream>
#include <functional>
#include <sstream>
#include <vector>

namespace sallyport::control {
namespace {

ReplayTops::Name name(uint32_t spi, uint8_t key) {
    const std::vector<std::byte> bytes(20, std::byte{key});
    return {.spi = Spi{spi}, .key = digest_of_key(bytes)};
}

class ReplayTopsTest : public testing::Test {
  protected:
    void SetUp() override {
        std::string folder = testing::TempDir() + "/sallyport-tops-XXXXXX";
        ASSERT_NE(mkdtemp(folder.data()), nullptr);
        dir_ = folder;
    }
    void TearDown() override { std::filesystem::remove_all(dir_); }

    std::filesystem::path dir_;
};

TEST_F(ReplayTopsTest, AreThereAgain) {
    for (const auto sync : {ReplayTops::Sync::later, ReplayTops::Sync::now}) {
        ReplayTops tops(dir_);
        ASSERT_TRUE(tops.load());
        tops.raise(name(0x1001, 1), 7);
        tops.raise(name(0xffffffff, 2), ~uint64_t{0} - 1);
        tops.raise(name(0x1001, 1), 5);
        ASSERT_TRUE(tops.save(sync));
        ReplayTops again(dir_);
        ASSERT_TRUE(again.load());
        EXPECT_EQ(again.find(name(0x1001, 1)), 7u);
        EXPECT_EQ(again.find(name(0xffffffff, 2)), ~uint64_t{0} - 1);
        EXPECT_EQ(again.find(name(0x1001, 2)), 0u) << "another key";
        EXPECT_EQ(again.find(name(0x1002, 1)), 0u) << "another SPI";
    }
    EXPECT_FALSE(std::filesystem::exists(dir_ / "replay_tops.new"));
    struct stat status{};
    ASSERT_EQ(stat((dir_ / "replay_tops").c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 077, 0u);
}

TEST_F(ReplayTopsTest, WithoutAFileNothingIsKnown) {
    ReplayTops tops(dir_);
    EXPECT_TRUE(tops.load());
    EXPECT_EQ(tops.find(name(1, 1)), 0u);
}

TEST_F(ReplayTopsTest, NothingIsWrittenThatHasNotChanged) {
    ReplayTops tops(dir_);
    ASSERT_TRUE(tops.load());
    ASSERT_TRUE(tops.save(ReplayTops::Sync::later));
    EXPECT_FALSE(std::filesystem::exists(dir_ / "replay_tops"));
    tops.raise(name(1, 1), 3);
    ASSERT_TRUE(tops.save(ReplayTops::Sync::later));
    std::filesystem::remove(dir_ / "replay_tops");
    tops.raise(name(1, 1), 3);
    ASSERT_TRUE(tops.save(ReplayTops::Sync::later));
    EXPECT_FALSE(std::filesystem::exists(dir_ / "replay_tops"));
}

TEST_F(ReplayTopsTest, AWriteThatFailsIsMadeAgain) {
    ReplayTops tops(dir_ / "gone");
    ASSERT_TRUE(tops.load());
    tops.raise(name(1, 1), 3);
    const auto failed = tops.save(ReplayTops::Sync::later);
    ASSERT_FALSE(failed);
    EXPECT_TRUE(failed.error().contains("replay_tops")) << failed.error();
    std::filesystem::create_directory(dir_ / "gone");
    ASSERT_TRUE(tops.save(ReplayTops::Sync::later));
    EXPECT_TRUE(std::filesystem::exists(dir_ / "gone" / "replay_tops"));
}

// A start that fails before it has read the file ends as every run does.
TEST_F(ReplayTopsTest, WhatWasNotReadIsNotWritten) {
    const std::string text = encode_replay_tops({{name(1, 1), 3}});
    std::ofstream(dir_ / "replay_tops") << text;
    for (const auto sync : {ReplayTops::Sync::later, ReplayTops::Sync::now}) {
        ReplayTops tops(dir_);
        tops.raise(name(2, 2), 4);
        EXPECT_TRUE(tops.save(sync));
    }
    ReplayTops tops(dir_);
    ASSERT_TRUE(tops.load());
    EXPECT_EQ(tops.find(name(1, 1)), 3u);
}

TEST_F(ReplayTopsTest, WhatIsNoFileIsSaidAndLeftAlone) {
    const std::filesystem::path path = dir_ / "replay_tops";
    std::ofstream(dir_ / "other") << encode_replay_tops({{name(1, 1), 3}});
    const std::vector<std::function<void()>> kinds = {
        [&] { std::filesystem::create_directory(path); },
        [&] { ASSERT_EQ(mkfifo(path.c_str(), 0600), 0); },
        [&] { std::filesystem::create_symlink("other", path); },
        [&] {
            std::ofstream(path) << "x";
            std::filesystem::resize_file(path, uintmax_t{2} << 30);
        }};
    for (const auto& make : kinds) {
        make();
        const auto before = std::filesystem::symlink_status(path).type();
        ReplayTops tops(dir_);
        const auto loaded = tops.load();
        ASSERT_FALSE(loaded);
        EXPECT_TRUE(loaded.error().contains("cannot be used")) << loaded.error();
        tops.raise(name(2, 2), 4);
        EXPECT_FALSE(tops.save(ReplayTops::Sync::now));
        EXPECT_EQ(std::filesystem::symlink_status(path).type(), before);
        std::filesystem::remove(path);
    }
}

TEST_F(ReplayTopsTest, EveryTruncationAndEveryFlippedByteIsNoticed) {
    const std::string text = encode_replay_tops({{name(1, 1), 3}, {name(2, 2), 4}});
    ASSERT_EQ(decode_replay_tops(text), (ReplayTops::Tops{{name(1, 1), 3}, {name(2, 2), 4}}));
    for (size_t length = 0; length < text.size(); ++length) {
        EXPECT_FALSE(decode_replay_tops(std::string_view(text).substr(0, length))) << length;
    }
    for (size_t at = 0; at < text.size(); ++at) {
        std::string other = text;
        other[at] = static_cast<char>(other[at] ^ 1);
        EXPECT_FALSE(decode_replay_tops(other)) << at;
    }
    std::ofstream(dir_ / "replay_tops") << text << "more";
    ReplayTops tops(dir_);
    EXPECT_FALSE(tops.load());
    EXPECT_EQ(tops.find(name(1, 1)), 0u);
}

}  // namespace
}  // namespace sallyport::control
