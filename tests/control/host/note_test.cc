// SPDX-License-Identifier: Apache-2.0
//
// A note says what the run before has changed, and nothing in its place is followed or waited for.

#include "control/host/note.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace sallyport::host {
namespace {

class NoteTest : public testing::Test {
  protected:
    void SetUp() override {
        std::string name = testing::TempDir() + "/sallyport-note-XXXXXX";
        ASSERT_NE(mkdtemp(name.data()), nullptr);
        folder_ = name;
        note_ = folder_ / "sysctls";
        new_ = folder_ / "sysctls.new";
    }
    void TearDown() override { std::filesystem::remove_all(folder_); }

    std::filesystem::path folder_;
    std::filesystem::path note_;
    std::filesystem::path new_;
    std::vector<std::string> lines_ = {"net/ipv4/ip_forward 0", "net/core/xfrm_larval_drop 1"};
};

TEST_F(NoteTest, IsReadAsItWasWritten) {
    EXPECT_TRUE(read_note(note_).empty());
    ASSERT_TRUE(write_note(note_, lines_));
    EXPECT_EQ(read_note(note_), lines_);
    struct stat status{};
    ASSERT_EQ(stat(note_.c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777u, 0600u);
    remove_note(note_);
    EXPECT_TRUE(read_note(note_).empty());
}

TEST_F(NoteTest, OfAnotherBootOrNamespaceSaysNothing) {
    std::ofstream(note_) << "0e8f4d4e-0000-0000-0000-000000000000 1\n" << lines_[0] << "\n";
    EXPECT_TRUE(read_note(note_).empty());
}

TEST_F(NoteTest, SymbolicLinksAreNotFollowed) {
    const std::filesystem::path victim = folder_ / "victim";
    std::ofstream(victim) << "untouched";
    for (const auto& link : {note_, new_}) {
        std::filesystem::create_symlink(victim, link);
        ASSERT_TRUE(write_note(note_, lines_));
        EXPECT_EQ(read_note(note_), lines_);
        EXPECT_EQ(std::filesystem::file_size(victim), 9u);
        remove_note(note_);
    }
    std::filesystem::create_symlink(victim, note_);
    EXPECT_TRUE(read_note(note_).empty());
}

TEST_F(NoteTest, FifosAreNotWaitedFor) {
    ASSERT_EQ(mkfifo(note_.c_str(), 0600), 0);
    ASSERT_EQ(mkfifo(new_.c_str(), 0600), 0);
    EXPECT_TRUE(read_note(note_).empty());
    ASSERT_TRUE(write_note(note_, lines_));
    EXPECT_EQ(read_note(note_), lines_);
}

TEST_F(NoteTest, FailureNamesTheFile) {
    const auto written = write_note(folder_ / "none" / "sysctls", lines_);
    ASSERT_FALSE(written);
    EXPECT_TRUE(written.error().contains("none/sysctls")) << written.error();
}

}  // namespace
}  // namespace sallyport::host
