// SPDX-License-Identifier: Apache-2.0
#pragma once

// How a static SA's sequence numbers survive restarts and crashes.
//
// AES-GCM is broken for good, not just for one packet, when an IV is used twice under one key
// (RFC 4106 section 3). A static SA keeps its key for ever and its IV is its sequence number, so
// the number must never go back. Writing each number to disk would cost an fsync per packet;
// instead a range is *reserved ahead*:
//
//     numbers   1 ........ next ......... reserved_until ........
//               used        free to use   |  not to be used before the file says more
//                                         |
//     file      "reserved_until"  is on disk (fsync of file and directory) before the worker hears
//                                 of it; after a crash everything below it counts as used.
//
// One text file, state_dir/sequences, a record per key. Keys are named by a digest, never stored.
//
// When the file cannot be believed
// --------------------------------
// A file that is *older* than the last one written is as dangerous as none: it would hand out
// numbers again. It looks valid in itself, so the file says which file it is: its own inode number
// and birth time and the time of writing. What happens to it shows there:
//   - copied or restored from a backup (cp, tar, rsync): another inode, or a reused inode number
//     with another birth time, and a later change time (ctime), which no tool can set;
//   - an old file moved back (mv of a hard link or of an earlier rename): its inode matches, but
//     link and rename set its ctime, later than the time it says it was written;
//   - overwritten in place with older content (cp over it): the content names the inode and birth
//     time of the file it was first written to, and the ctime is later than the time it names;
//   - truncated, edited, half written: the checksum fails. (A crash of ours cannot cause that: a
//     new file is complete and synced before it is renamed over the old one.)
// The ctime may be kCtimeSlack later than the time of writing: that is the time an fsync and rename
// may take. Without a generation in the lock file (of an earlier version, or the lock file was
// removed) the time is all there is: then a file that says that it was written in the future is not
// believed, because the clock was set back and the ctime proves nothing.
// The clock is no part of the proof where the inode's birth time is kept (ext4, xfs, btrfs, tmpfs):
// set forward or back, a copy still has another birth time. Where it is not, a copy made after the
// clock was set back is found by its inode number alone.
// Harmless acts also change the ctime (chmod, chown, a relabel): they lead to a refusal too. The
// device number is not part of the identity, because it may change with every boot.
//
// What nothing in a file can show: a whole disk or virtual machine put back to an earlier snapshot,
// or two machines running from copies of one disk. Change the keys of static SAs then.
//
// Distrusted records become *suspect* and stay so until the operator accepts a number for that key
// (sallyportd --accept-key NAME=SEQUENCE); so does a key without a record (--accept-key NAME). A
// file that was distrusted once may lack records too. The next one written remembers that for ever
// ("incomplete"): from then on no key without a record begins at 1 without the number being said.
//
// One key, one SA: who gives a key to two SAs must not use give_back(). Control refuses such SAs.
//
// Owner: control, one process (lock file).

#include <cstdint>
#include <expected>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "control/sa/key_digest.h"
#include "control/sa/sequence_block.h"

namespace sallyport::control {

// ---- the file's text: pure functions -----------------------------------------------------------

// Which file the text was written into, and when.
struct FileIdentity {
    uint64_t inode = 0;
    int64_t birth_ns = 0;  // since the epoch; 0: the file system keeps none

    friend bool operator==(const FileIdentity&, const FileIdentity&) = default;
};

struct SequenceRecord {
    uint64_t reserved_until = 1;  // every number below may have been used
    bool suspect = false;         // true: it may be too low, nothing may be sent with the key

    friend bool operator==(const SequenceRecord&, const SequenceRecord&) = default;
};

struct SequenceFile {
    FileIdentity identity;
    int64_t written_ns = 0;
    uint64_t generation = 0;  // of its writing, from 1; 0: of a version that did not count
    bool incomplete = false;  // records were lost once: a key without one may have been used
    std::map<KeyDigest, SequenceRecord> records;

    friend bool operator==(const SequenceFile&, const SequenceFile&) = default;
};

inline constexpr size_t kSequenceFileBytesMax = size_t{16} << 20;

std::string encode_sequence_file(const SequenceFile& file);
std::expected<SequenceFile, std::string> decode_sequence_file(std::string_view text);

// ---- the store ---------------------------------------------------------------------------------

class SequenceStore {
  public:
    static constexpr int64_t kCtimeSlackNs = 5'000'000'000;

    // Takes the lock, reads and judges the file. A file that cannot be believed is no error here:
    // its keys are refused one by one, see reserve().
    static std::expected<SequenceStore, std::string> open(const std::filesystem::path& state_dir);
    SequenceStore(SequenceStore&& other) noexcept;
    SequenceStore& operator=(SequenceStore&&) = delete;
    ~SequenceStore();

    struct Request {
        KeyDigest key;
        uint64_t count = 0;  // numbers wanted
        uint64_t end = 0;    // past the last the protocol allows; the range is cut there
    };
    using Range = SequenceRange;
    // Reserves ranges that nobody has used and syncs them to disk, all with one write. The answer
    // to each request is a range or why that key may not send, with the way out. When the write
    // fails, every answer is that failure.
    std::vector<std::expected<Range, std::string>> reserve(std::span<const Request> requests);

    // At a clean stop, after the workers have stopped: the exact next numbers, so that nothing is
    // wasted. A number may only go back to what this run has reserved and not used.
    struct Next {
        KeyDigest key;
        uint64_t next = 0;
    };
    std::expected<void, std::string> give_back(std::span<const Next> exact);

    // The operator's word for a key: sending goes on at `next` (at least 1). Without a number a key
    // that was never seen begins at 1, unless records were lost. A number below what is known to be
    // used is refused.
    std::expected<void, std::string> accept(const KeyDigest& key, std::optional<uint64_t> next);

    // Why the file as a whole is not believed; empty when it is.
    [[nodiscard]] const std::string& distrust() const { return distrust_; }

  private:
    SequenceStore(std::filesystem::path dir, int lock_fd)
        : dir_(std::move(dir)), lock_fd_(lock_fd) {}

    // False: the lock file has gone from its place, and with it what keeps a second daemon out.
    [[nodiscard]] bool holds_lock() const;
    std::expected<void, std::string> load();
    // Empty: the file is the one that was written last.
    [[nodiscard]] std::string doubts_about(const SequenceFile& file, const FileIdentity& found,
                                           int64_t changed_ns) const;
    [[nodiscard]] bool write_generation(uint64_t generation) const;
    [[nodiscard]] std::string lost_records() const;  // why a key without a record may be used
    std::expected<void, std::string> save(const std::map<KeyDigest, SequenceRecord>& records);
    // True: it is on disk, but took longer than the slack.
    std::expected<bool, std::string> write_file(const std::map<KeyDigest, SequenceRecord>& records);

    std::filesystem::path dir_;
    int lock_fd_ = -1;
    std::map<KeyDigest, SequenceRecord> records_;
    std::map<KeyDigest, uint64_t> floor_;  // where this run's first range of the key began
    std::string distrust_;
    bool incomplete_ = false;
    std::optional<uint64_t> lock_generation_;  // that the lock file names; nullopt: none
    uint64_t generation_ = 0;                  // of the file as it is
};

}  // namespace sallyport::control
