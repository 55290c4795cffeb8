// SPDX-License-Identifier: Apache-2.0
//
// A (key, sequence number) pair is handed out once, whatever happens to the process or the file.

#include "control/sa/static/sequence_store.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>

namespace sallyport::control {
namespace {

constexpr uint64_t kEnd32 = uint64_t{1} << 32;

KeyDigest key(uint8_t n) {
    const std::vector<std::byte> bytes(20, std::byte{n});
    return digest_of_key(bytes);
}

std::string contents(const std::filesystem::path& file) {
    std::ostringstream out;
    out << std::ifstream(file).rdbuf();
    return out.str();
}

class SequenceStoreTest : public testing::Test {
  protected:
    void SetUp() override {
        std::string name = testing::TempDir() + "/sallyport-sequences-XXXXXX";
        ASSERT_NE(mkdtemp(name.data()), nullptr);
        dir_ = name;
        file_ = dir_ / "sequences";
    }
    void TearDown() override { std::filesystem::remove_all(dir_); }

    SequenceStore open() {
        auto store = SequenceStore::open(dir_);
        EXPECT_TRUE(store) << store.error();
        return std::move(*store);
    }
    std::expected<SequenceStore::Range, std::string> reserve_one(SequenceStore& store, uint8_t n,
                                                                 uint64_t count,
                                                                 uint64_t end = kEnd32) {
        const SequenceStore::Request request{.key = key(n), .count = count, .end = end};
        return store.reserve(std::span(&request, 1)).front();
    }
    // A store that has handed out 1 .. 1000 of key 1 and ended without a word.
    void use_a_thousand() {
        auto store = open();
        ASSERT_TRUE(store.accept(key(1), std::nullopt));
        ASSERT_TRUE(reserve_one(store, 1, 1000));
    }
    // What is written within the slack of the change time is told apart by inode and birth time
    // only; tests about the change time wait it out by making the file's own time older.
    void age_beyond_slack() {
        auto decoded = decode_sequence_file(contents(file_));
        ASSERT_TRUE(decoded);
        decoded->written_ns -= 2 * SequenceStore::kCtimeSlackNs;
        std::ofstream(file_) << encode_sequence_file(*decoded);
    }

    std::filesystem::path dir_;
    std::filesystem::path file_;
};

TEST_F(SequenceStoreTest, UnknownKeyIsRefusedAndTheWayOutIsSaid) {
    auto store = open();
    const auto range = reserve_one(store, 1, 10);
    ASSERT_FALSE(range);
    EXPECT_TRUE(range.error().contains("--accept-key NAME")) << range.error();
    EXPECT_TRUE(range.error().contains("the file was lost: give the SA a new key"))
        << range.error();
    ASSERT_TRUE(store.accept(key(1), std::nullopt));
    const auto after = reserve_one(store, 1, 10);
    ASSERT_TRUE(after) << after.error();
    EXPECT_EQ(after->first, 1u);
    EXPECT_EQ(after->end, 11u);
}

TEST_F(SequenceStoreTest, GoesOnAboveEverythingReserved) {
    use_a_thousand();
    auto store = open();
    EXPECT_EQ(store.distrust(), "");
    const auto range = reserve_one(store, 1, 50);
    ASSERT_TRUE(range) << range.error();
    EXPECT_EQ(range->first, 1001u);
    EXPECT_EQ(range->end, 1051u);
}

TEST_F(SequenceStoreTest, CleanStopWastesNothing) {
    {
        auto store = open();
        ASSERT_TRUE(store.accept(key(1), std::nullopt));
        ASSERT_TRUE(reserve_one(store, 1, 1000));
        ASSERT_TRUE(reserve_one(store, 1, 1000));
        const SequenceStore::Next next{.key = key(1), .next = 1234};
        ASSERT_TRUE(store.give_back(std::span(&next, 1)));
    }
    auto store = open();
    EXPECT_EQ(reserve_one(store, 1, 1)->first, 1234u);
}

TEST_F(SequenceStoreTest, GiveBackNeverReachesBelowThisRunOrAboveItsReservation) {
    use_a_thousand();
    {
        auto store = open();
        ASSERT_TRUE(reserve_one(store, 1, 100));  // 1001 .. 1100
        const SequenceStore::Next low{.key = key(1), .next = 5};
        ASSERT_TRUE(store.give_back(std::span(&low, 1)));
    }
    auto store = open();
    EXPECT_EQ(reserve_one(store, 1, 100)->first, 1001u);
    const SequenceStore::Next high{.key = key(1), .next = 99999};
    ASSERT_TRUE(store.give_back(std::span(&high, 1)));
    EXPECT_EQ(reserve_one(store, 1, 1)->first, 1101u);
}

TEST_F(SequenceStoreTest, LastBlockIsShorterAndThenTheKeyIsDone) {
    auto store = open();
    ASSERT_TRUE(store.accept(key(1), kEnd32 - 10));
    const auto range = reserve_one(store, 1, 1000);
    ASSERT_TRUE(range);
    EXPECT_EQ(range->end, kEnd32);
    const auto end = reserve_one(store, 1, 1000);
    ASSERT_FALSE(end);
    EXPECT_TRUE(end.error().contains("last sequence number")) << end.error();

    ASSERT_TRUE(store.accept(key(2), ~uint64_t{0} - 5));  // no overflow at the end of ESN
    const auto esn = reserve_one(store, 2, uint64_t{1} << 24, ~uint64_t{0});
    ASSERT_TRUE(esn);
    EXPECT_EQ(esn->end, ~uint64_t{0});
    EXPECT_FALSE(reserve_one(store, 2, 1, ~uint64_t{0}));
}

TEST_F(SequenceStoreTest, AcceptNeverGoesBack) {
    use_a_thousand();
    auto store = open();
    EXPECT_FALSE(store.accept(key(1), std::nullopt));
    EXPECT_FALSE(store.accept(key(1), 1000));
    EXPECT_FALSE(store.accept(key(9), 0));
    EXPECT_TRUE(store.accept(key(1), 5000));
    EXPECT_EQ(reserve_one(store, 1, 1)->first, 5000u);
}

TEST_F(SequenceStoreTest, TwoDaemonsCannotShareTheDirectory) {
    const auto first = open();
    const auto second = SequenceStore::open(dir_);
    ASSERT_FALSE(second);
    EXPECT_TRUE(second.error().contains("another sallyportd")) << second.error();
}

TEST_F(SequenceStoreTest, FileIsPrivateAndHoldsNoKey) {
    use_a_thousand();
    struct stat status{};
    ASSERT_EQ(stat(file_.c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777u, 0600u);
    EXPECT_FALSE(contents(file_).contains(std::string(8, '\1')));
    EXPECT_FALSE(contents(file_).contains("01010101"));
}

TEST_F(SequenceStoreTest, FailedWriteHandsOutNothing) {
    auto store = open();
    ASSERT_TRUE(store.accept(key(1), std::nullopt));
    ASSERT_TRUE(reserve_one(store, 1, 10));
    std::filesystem::create_directory(dir_ / "sequences.new");  // in the way of the new file
    const auto range = reserve_one(store, 1, 10);
    ASSERT_FALSE(range);
    EXPECT_TRUE(range.error().contains("cannot create")) << range.error();
    std::filesystem::remove(dir_ / "sequences.new");
    EXPECT_EQ(reserve_one(store, 1, 10)->first, 11u);
}

// Who deletes the lock of a running daemon lets a second one hand out the same numbers.
TEST_F(SequenceStoreTest, NothingIsHandedOutOnceTheLockIsGone) {
    auto first = open();
    ASSERT_TRUE(first.accept(key(1), std::nullopt));
    ASSERT_TRUE(reserve_one(first, 1, 10));
    std::filesystem::remove(dir_ / "lock");
    const auto without = reserve_one(first, 1, 10);
    ASSERT_FALSE(without);
    EXPECT_TRUE(without.error().contains("restart sallyportd")) << without.error();

    auto second = open();
    EXPECT_EQ(reserve_one(second, 1, 10)->first, 11u);
    EXPECT_FALSE(reserve_one(first, 1, 10));
    const SequenceStore::Next low{.key = key(1), .next = 5};
    EXPECT_FALSE(first.give_back(std::span(&low, 1)));
    EXPECT_EQ(reserve_one(second, 1, 10)->first, 21u);
}

TEST_F(SequenceStoreTest, DirectoryThatOthersMayWriteIsRefused) {
    for (const auto mode :
         {std::filesystem::perms::group_write, std::filesystem::perms::others_write}) {
        std::filesystem::permissions(dir_, std::filesystem::perms::owner_all | mode);
        const auto store = SequenceStore::open(dir_);
        ASSERT_FALSE(store);
        EXPECT_TRUE(store.error().contains("chmod")) << store.error();
    }
    std::filesystem::permissions(dir_, std::filesystem::perms::owner_all);
    EXPECT_TRUE(SequenceStore::open(dir_));
}

TEST_F(SequenceStoreTest, DirectoryItMakesIsPrivate) {
    ASSERT_TRUE(SequenceStore::open(dir_ / "a" / "b"));
    struct stat status{};
    ASSERT_EQ(stat((dir_ / "a" / "b").c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777u, 0700u);
}

// ---- a file that is not the last one written ----------------------------------------------------

// Key 1 must be refused with `hint` in the text until a number is accepted.
void expect_distrusted(SequenceStore store, const std::string& hint) {
    EXPECT_TRUE(store.distrust().contains(hint)) << store.distrust();
    const SequenceStore::Request request{.key = key(1), .count = 10, .end = kEnd32};
    const auto range = store.reserve(std::span(&request, 1)).front();
    ASSERT_FALSE(range);
    EXPECT_TRUE(range.error().contains("--accept-key NAME=SEQUENCE")) << range.error();
    EXPECT_FALSE(store.accept(key(1), std::nullopt));
    ASSERT_TRUE(store.accept(key(1), 100000));
    EXPECT_EQ(store.reserve(std::span(&request, 1)).front()->first, 100000u);
}

TEST_F(SequenceStoreTest, LostFileIsRefused) {
    use_a_thousand();
    std::filesystem::remove(file_);
    auto store = open();
    EXPECT_FALSE(reserve_one(store, 1, 10));
    // It may have been used: no beginning at 1 without a word about the number.
    EXPECT_FALSE(store.accept(key(1), std::nullopt));
    EXPECT_TRUE(store.accept(key(1), 5000));
}

TEST_F(SequenceStoreTest, CopyPutBackIsRefused) {
    use_a_thousand();
    std::filesystem::copy_file(file_, dir_ / "backup");
    {
        auto store = open();
        ASSERT_TRUE(reserve_one(store, 1, 1000));
    }
    std::filesystem::rename(dir_ / "backup", file_);
    expect_distrusted(open(), "copied or restored");
}

TEST_F(SequenceStoreTest, OldContentWrittenOverTheFileIsRefused) {
    use_a_thousand();
    const std::string old = contents(file_);
    {
        auto store = open();
        ASSERT_TRUE(reserve_one(store, 1, 1000));
    }
    std::ofstream(file_) << old;  // same inode as the file now there
    expect_distrusted(open(), "copied or restored");
}

TEST_F(SequenceStoreTest, OldFileMovedBackIsRefused) {
    use_a_thousand();
    age_beyond_slack();
    std::filesystem::create_hard_link(file_, dir_ / "backup");
    std::filesystem::rename(dir_ / "backup", dir_ / "elsewhere");
    std::filesystem::remove(file_);
    std::filesystem::rename(dir_ / "elsewhere", file_);  // the very inode
    expect_distrusted(open(), "touched after");
}

// All within the slack of the change time, as a script does it.
TEST_F(SequenceStoreTest, EarlierFileMovedBackAtOnceIsRefused) {
    use_a_thousand();
    std::filesystem::create_hard_link(file_, dir_ / "backup");
    {
        auto store = open();
        ASSERT_TRUE(reserve_one(store, 1, 1000));
    }
    std::filesystem::rename(dir_ / "backup", file_);
    expect_distrusted(open(), "older than the one that sallyportd wrote last");
}

// Killed behind the file and before the lock file: nobody heard of its numbers.
TEST_F(SequenceStoreTest, FileThatIsAheadOfTheLockFileIsBelieved) {
    use_a_thousand();
    const std::string before = contents(dir_ / "lock");
    {
        auto store = open();
        ASSERT_TRUE(reserve_one(store, 1, 1000));
    }
    std::fstream(dir_ / "lock") << before;
    {
        auto store = open();
        EXPECT_EQ(reserve_one(store, 1, 1)->first, 2001u);
    }
    auto store = open();
    EXPECT_EQ(reserve_one(store, 1, 1)->first, 2002u);
}

// The lock file is of an earlier version, or was removed: the time of change is what is left.
TEST_F(SequenceStoreTest, WithoutAGenerationInTheLockFileTheFutureIsNotBelieved) {
    for (const char* lock : {"", "generation 1", "generation 0000000000000000000x\n"}) {
        use_a_thousand();
        std::ofstream(dir_ / "lock") << lock;
        {
            auto store = open();
            EXPECT_EQ(reserve_one(store, 1, 1000)->first, 1001u);
        }
        auto decoded = decode_sequence_file(contents(file_));
        ASSERT_TRUE(decoded);
        decoded->written_ns += 3600'000'000'000;
        std::ofstream(file_) << encode_sequence_file(*decoded);
        std::ofstream(dir_ / "lock") << lock;
        expect_distrusted(open(), "written in the future");
        std::filesystem::remove(file_);
        std::filesystem::remove(dir_ / "lock");
    }
}

TEST_F(SequenceStoreTest, FileOfTheVersionBeforeGenerationsIsCountedFromThenOn) {
    use_a_thousand();
    auto decoded = decode_sequence_file(contents(file_));
    ASSERT_TRUE(decoded);
    decoded->generation = 0;
    std::ofstream(file_) << encode_sequence_file(*decoded);
    std::ofstream(dir_ / "lock") << "";
    std::filesystem::create_hard_link(file_, dir_ / "backup");
    {
        auto store = open();
        EXPECT_EQ(reserve_one(store, 1, 1000)->first, 1001u);
    }
    std::filesystem::rename(dir_ / "backup", file_);
    expect_distrusted(open(), "older than the one that sallyportd wrote last");
}

TEST_F(SequenceStoreTest, WhatIsNoFileIsAnErrorAndNoWait) {
    for (const char* name : {"sequences", "lock"}) {
        std::filesystem::remove(dir_ / name);
        ASSERT_EQ(mkfifo((dir_ / name).c_str(), 0600), 0);
        const auto store = SequenceStore::open(dir_);
        ASSERT_FALSE(store);
        EXPECT_TRUE(store.error().contains("no regular file")) << store.error();
        std::filesystem::remove(dir_ / name);
    }
}

TEST_F(SequenceStoreTest, ChangedAttributesAreRefused) {
    use_a_thousand();
    age_beyond_slack();
    ASSERT_EQ(chmod(file_.c_str(), 0640), 0);
    expect_distrusted(open(), "touched after");
}

TEST_F(SequenceStoreTest, EveryTruncationAndEveryFlippedByteIsRefused) {
    use_a_thousand();
    const std::string good = contents(file_);
    ASSERT_TRUE(decode_sequence_file(good));
    for (size_t bytes = 0; bytes < good.size(); ++bytes) {
        EXPECT_FALSE(decode_sequence_file(good.substr(0, bytes))) << bytes;
    }
    for (size_t at = 0; at < good.size(); ++at) {
        std::string bad = good;
        bad[at] = static_cast<char>(bad[at] ^ 1);
        EXPECT_FALSE(decode_sequence_file(bad)) << at;
    }
    std::ofstream(file_) << good.substr(0, good.size() / 2);
    auto store = open();
    EXPECT_TRUE(store.distrust().contains("damaged")) << store.distrust();
    EXPECT_FALSE(reserve_one(store, 1, 10));
    EXPECT_FALSE(store.accept(key(1), std::nullopt));
    EXPECT_TRUE(store.accept(key(1), 5000));
}

TEST_F(SequenceStoreTest, AcceptingOneKeyDoesNotBlessTheOthers) {
    {
        auto store = open();
        ASSERT_TRUE(store.accept(key(1), std::nullopt));
        ASSERT_TRUE(store.accept(key(2), std::nullopt));
        ASSERT_TRUE(reserve_one(store, 1, 10));
        ASSERT_TRUE(reserve_one(store, 2, 10));
    }
    std::filesystem::copy_file(file_, dir_ / "backup");
    std::filesystem::rename(dir_ / "backup", file_);
    {
        auto store = open();
        ASSERT_TRUE(store.accept(key(1), 500));
    }
    auto store = open();
    EXPECT_EQ(store.distrust(), "");
    EXPECT_EQ(reserve_one(store, 1, 10)->first, 500u);
    const auto other = reserve_one(store, 2, 10);
    ASSERT_FALSE(other);
    EXPECT_TRUE(other.error().contains("At least 10 were reserved")) << other.error();
}

// The record of key 2 went with the damaged file: accepting key 1 must not make key 2 look new.
TEST_F(SequenceStoreTest, LostRecordsAreRememberedAfterAnotherKeyIsAccepted) {
    {
        auto store = open();
        ASSERT_TRUE(store.accept(key(1), std::nullopt));
        ASSERT_TRUE(store.accept(key(2), std::nullopt));
        ASSERT_TRUE(reserve_one(store, 2, 10));
    }
    std::ofstream(file_) << "damaged\n";
    {
        auto store = open();
        ASSERT_TRUE(store.accept(key(1), 500));
    }
    for (int restart = 0; restart < 2; ++restart) {
        auto store = open();
        EXPECT_EQ(store.distrust(), "");
        EXPECT_FALSE(store.accept(key(2), std::nullopt));
        const auto range = reserve_one(store, 2, 10);
        ASSERT_FALSE(range);
        EXPECT_TRUE(range.error().contains("--accept-key NAME=SEQUENCE")) << range.error();
        EXPECT_FALSE(range.error().contains("--accept-key NAME'")) << range.error();
        ASSERT_TRUE(reserve_one(store, 1, 10));  // writes the file again
    }
    auto store = open();
    ASSERT_TRUE(store.accept(key(2), 9000));
    EXPECT_EQ(reserve_one(store, 2, 1)->first, 9000u);
}

// ---- killed at any moment -----------------------------------------------------------------------

TEST_F(SequenceStoreTest, NeverRepeatsOverRandomKillPoints) {
    {
        auto store = open();
        ASSERT_TRUE(store.accept(key(1), std::nullopt));
    }
    std::mt19937 random(20240229);
    uint64_t used_up_to = 0;  // highest number any child may have sent with
    int useful = 0;
    for (int round = 0; round < 60; ++round) {
        int pipe_fds[2];
        ASSERT_EQ(pipe(pipe_fds), 0);
        const pid_t child = fork();
        ASSERT_GE(child, 0);
        if (child == 0) {
            close(pipe_fds[0]);
            auto store = SequenceStore::open(dir_);
            const SequenceStore::Request request{.key = key(1), .count = 3, .end = kEnd32};
            while (store) {
                const auto range = store->reserve(std::span(&request, 1)).front();
                if (!range) break;
                // As soon as the range is known, numbers of it are "sent".
                const uint64_t told[2] = {range->first, range->end};
                if (write(pipe_fds[1], told, sizeof told) != sizeof told) break;
            }
            _exit(1);
        }
        close(pipe_fds[1]);
        // Every other child is known to work when its last moments begin.
        pollfd first_range{.fd = pipe_fds[0], .events = POLLIN, .revents = 0};
        if (round % 2 == 0) poll(&first_range, 1, 5000);
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 12000));
        kill(child, SIGKILL);
        int status = 0;
        waitpid(child, &status, 0);
        ASSERT_TRUE(WIFSIGNALED(status)) << "the child gave up by itself in round " << round;
        uint64_t told[2];
        while (read(pipe_fds[0], told, sizeof told) == sizeof told) {
            ASSERT_GT(told[0], used_up_to) << "a range was handed out twice in round " << round;
            used_up_to = told[1] - 1;
            ++useful;
        }
        close(pipe_fds[0]);
    }
    EXPECT_GE(useful, 30) << "the children were killed before they did anything";
}

TEST_F(SequenceStoreTest, LeftoverOfATornWriteIsIgnored) {
    use_a_thousand();
    std::ofstream(dir_ / "sequences.new") << "sallyport-sequences 1\nfile 1";
    auto store = open();
    EXPECT_EQ(reserve_one(store, 1, 1)->first, 1001u);
    EXPECT_FALSE(std::filesystem::exists(dir_ / "sequences.new"));
}

TEST(SequenceFile, TextRoundTrip) {
    SequenceFile file{.identity = {.inode = 77, .birth_ns = 123456789},
                      .written_ns = 1700000000000000000,
                      .generation = 7,
                      .incomplete = false,
                      .records = {}};
    file.records[key(1)] = {.reserved_until = ~uint64_t{0}, .suspect = false};
    file.records[key(2)] = {.reserved_until = 1, .suspect = true};
    for (const bool incomplete : {false, true}) {
        file.incomplete = incomplete;
        file.generation = incomplete ? 0 : ~uint64_t{0};
        const auto decoded = decode_sequence_file(encode_sequence_file(file));
        ASSERT_TRUE(decoded) << decoded.error();
        EXPECT_EQ(*decoded, file);
    }
}

TEST(SequenceFile, DigestsOfKeysDiffer) {
    EXPECT_NE(key(1), key(2));
    EXPECT_EQ(key(1), key(1));
    EXPECT_EQ(key(1).to_hex().size(), 32u);
}

}  // namespace
}  // namespace sallyport::control
