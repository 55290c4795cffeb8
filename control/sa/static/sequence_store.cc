// SPDX-License-Identifier: Apache-2.0
#include "control/sa/static/sequence_store.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "control/sa/static/state_file.h"
#include "dataplane/base/unique_fd.h"

namespace sallyport::control {

namespace {

constexpr std::string_view kFirstLine = "sallyport-sequences 2";
constexpr std::string_view kFirstLineUncounted = "sallyport-sequences 1";  // without a generation
constexpr std::string_view kGenerationWord = "generation";
constexpr std::string_view kFileName = "sequences";
constexpr std::string_view kNewFileName = "sequences.new";
constexpr std::string_view kLockName = "lock";
constexpr int64_t kNsPerSecond = 1'000'000'000;

std::string errno_text() {
    return std::strerror(errno);
}

int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::system_clock::now().time_since_epoch())
        .count();
}

struct FileStatus {
    FileIdentity identity;
    int64_t changed_ns = 0;
    uint64_t bytes = 0;
    bool regular = false;
};

std::expected<FileStatus, std::string> status_of(int fd) {
    struct statx status{};
    if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &status) != 0) {
        return std::unexpected(errno_text());
    }
    FileStatus out;
    out.identity.inode = status.stx_ino;
    if ((status.stx_mask & STATX_BTIME) != 0) {
        out.identity.birth_ns = status.stx_btime.tv_sec * kNsPerSecond + status.stx_btime.tv_nsec;
    }
    out.changed_ns = status.stx_ctime.tv_sec * kNsPerSecond + status.stx_ctime.tv_nsec;
    out.bytes = status.stx_size;
    out.regular = S_ISREG(status.stx_mode);
    return out;
}

std::string how_to_accept() {
    return "give the SA a new key on both ends (best), or run 'sallyportd -c FILE --accept-key "
           "NAME=SEQUENCE' with a sequence number certainly above everything ever sent with this "
           "key";
}

}  // namespace

std::string encode_sequence_file(const SequenceFile& file) {
    std::string text(file.generation == 0 ? kFirstLineUncounted : kFirstLine);
    text += "\nfile " + std::to_string(file.identity.inode) + " " +
            std::to_string(file.identity.birth_ns) + "\nwritten " +
            std::to_string(file.written_ns) + "\n";
    if (file.generation != 0) {
        text += std::string(kGenerationWord) + " " + std::to_string(file.generation) + "\n";
    }
    if (file.incomplete) text += "incomplete\n";
    for (const auto& [key, record] : file.records) {
        text += "key " + key.to_hex() + " " + std::to_string(record.reserved_until) +
                (record.suspect ? " suspect\n" : " trusted\n");
    }
    text += checksum_line(text);
    return text;
}

std::expected<SequenceFile, std::string> decode_sequence_file(std::string_view text) {
    const auto damaged = [](const std::string& what) {
        return std::unexpected("it is damaged: " + what);
    };
    if (!text.ends_with('\n')) return damaged("its end is missing");
    const size_t last_line = text.rfind('\n', text.size() - 2);
    if (last_line == std::string_view::npos) return damaged("its end is missing");
    const std::string_view body = text.substr(0, last_line + 1);
    if (text.substr(last_line + 1) != checksum_line(body)) {
        return damaged("the checksum does not fit");
    }

    SequenceFile file;
    bool counted = false;
    uint32_t line_number = 0;
    for (std::string_view rest = body; !rest.empty();) {
        std::string_view line = rest.substr(0, rest.find('\n'));
        rest.remove_prefix(line.size() + 1);
        ++line_number;
        const std::string at = "line " + std::to_string(line_number);
        if (line_number == 1) {
            counted = line == kFirstLine;
            if (!counted && line != kFirstLineUncounted) return damaged("it is of another version");
            continue;
        }
        const uint32_t first_key_line = counted ? 5 : 4;
        const std::string_view word = next_word(line);
        if (line_number == 2 && word == "file") {
            const auto inode = parse_number<uint64_t>(next_word(line));
            const auto birth = parse_number<int64_t>(next_word(line));
            if (!inode || !birth || !line.empty()) return damaged(at);
            file.identity = {.inode = *inode, .birth_ns = *birth};
        } else if (line_number == 3 && word == "written") {
            const auto written = parse_number<int64_t>(next_word(line));
            if (!written || !line.empty()) return damaged(at);
            file.written_ns = *written;
        } else if (line_number == 4 && counted && word == kGenerationWord) {
            const auto generation = parse_number<uint64_t>(next_word(line));
            if (!generation || *generation == 0 || !line.empty()) return damaged(at);
            file.generation = *generation;
        } else if (line_number == first_key_line && word == "incomplete" && line.empty()) {
            file.incomplete = true;
        } else if (line_number >= first_key_line && word == "key") {
            const auto key = digest_from_hex(next_word(line));
            const auto reserved = parse_number<uint64_t>(next_word(line));
            const std::string_view trust = next_word(line);
            if (!key || !reserved || *reserved == 0 || !line.empty() ||
                (trust != "trusted" && trust != "suspect")) {
                return damaged(at);
            }
            const SequenceRecord record{.reserved_until = *reserved, .suspect = trust == "suspect"};
            if (!file.records.emplace(*key, record).second) return damaged(at);
        } else {
            return damaged(at);
        }
    }
    if (line_number < (counted ? 4u : 3u)) return damaged("lines are missing");
    return file;
}

namespace {

// "generation N", as wide as any number: written in one piece over the one before.
std::string generation_line(uint64_t generation) {
    std::string number = std::to_string(generation);
    number.insert(0, 20 - number.size(), '0');
    return std::string(kGenerationWord) + " " + number + "\n";
}

// What the lock file says; nullopt: nothing, or nonsense.
std::optional<uint64_t> read_generation(int lock_fd) {
    std::string text(generation_line(0).size(), '\0');
    if (pread(lock_fd, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size())) {
        return std::nullopt;
    }
    std::string_view line(text);
    if (next_word(line) != kGenerationWord || !line.ends_with('\n')) return std::nullopt;
    line.remove_suffix(1);
    return parse_number<uint64_t>(line);
}

// Who may write there can put old numbers back, checksum and all.
std::expected<void, std::string> prepare_directory(const std::filesystem::path& state_dir) {
    const auto failed = [&](const std::string& what) {
        return std::unexpected("cannot create the state directory " + state_dir.string() + ": " +
                               what);
    };
    std::error_code error;
    std::filesystem::create_directories(state_dir.parent_path(), error);
    if (error) return failed(error.message());
    if (mkdir(state_dir.c_str(), 0700) != 0 && errno != EEXIST) return failed(errno_text());
    struct stat status{};
    if (stat(state_dir.c_str(), &status) != 0) return failed(errno_text());
    if (!S_ISDIR(status.st_mode)) return failed("something else has that name");
    if (status.st_uid != 0 && status.st_uid != geteuid()) {
        return std::unexpected("the state directory " + state_dir.string() +
                               " belongs to another user (uid " + std::to_string(status.st_uid) +
                               "): it must belong to root or to the user who runs this");
    }
    if ((status.st_mode & 022) != 0) {
        return std::unexpected("others may write in the state directory " + state_dir.string() +
                               ", and put old sequence numbers back: chmod 700 it");
    }
    return {};
}

}  // namespace

std::expected<SequenceStore, std::string> SequenceStore::open(
    const std::filesystem::path& state_dir) {
    if (auto prepared = prepare_directory(state_dir); !prepared) {
        return std::unexpected(prepared.error());
    }
    const std::filesystem::path lock_file = state_dir / kLockName;
    UniqueFd lock(
        ::open(lock_file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600));
    if (!lock) {
        return std::unexpected("cannot open " + lock_file.string() + ": " + errno_text());
    }
    if (const auto status = status_of(lock.get()); !status || !status->regular) {
        return std::unexpected(lock_file.string() + " is no regular file: remove it");
    }
    if (flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
        return std::unexpected("another sallyportd uses the state directory " + state_dir.string() +
                               ": stop it first, or set another state_dir");
    }
    SequenceStore store(state_dir, lock.release());
    if (auto loaded = store.load(); !loaded) return std::unexpected(loaded.error());
    return store;
}

SequenceStore::SequenceStore(SequenceStore&& other) noexcept
    : dir_(std::move(other.dir_)),
      lock_fd_(std::exchange(other.lock_fd_, -1)),
      records_(std::move(other.records_)),
      floor_(std::move(other.floor_)),
      distrust_(std::move(other.distrust_)),
      incomplete_(other.incomplete_),
      lock_generation_(other.lock_generation_),
      generation_(other.generation_) {}

SequenceStore::~SequenceStore() {
    if (lock_fd_ >= 0) close(lock_fd_);
}

bool SequenceStore::holds_lock() const {
    struct stat held{};
    struct stat named{};
    return fstat(lock_fd_, &held) == 0 && lstat((dir_ / kLockName).c_str(), &named) == 0 &&
           held.st_dev == named.st_dev && held.st_ino == named.st_ino;
}

std::expected<void, std::string> SequenceStore::load() {
    std::error_code ignored;
    std::filesystem::remove(dir_ / kNewFileName,
                            ignored);  // of a run that was killed while writing
    const std::filesystem::path path = dir_ / kFileName;
    lock_generation_ = read_generation(lock_fd_);
    generation_ = lock_generation_.value_or(0);
    const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (!file) {
        if (errno != ENOENT) {
            return std::unexpected("cannot open " + path.string() + ": " + errno_text());
        }
        if (lock_generation_) {
            distrust_ = path.string() + " has gone";
            incomplete_ = true;
        }
        return {};
    }
    const auto status = status_of(file.get());
    if (!status) return std::unexpected("cannot read " + path.string() + ": " + status.error());
    if (!status->regular) return std::unexpected(path.string() + " is no regular file: remove it");
    const auto text = read_all(file.get(), status->bytes, kSequenceFileBytesMax);
    auto decoded = text ? decode_sequence_file(*text)
                        : std::expected<SequenceFile, std::string>(std::unexpected(text.error()));
    if (!decoded) {
        distrust_ = path.string() + " cannot be used, " + decoded.error();
        incomplete_ = true;
        return {};
    }
    incomplete_ = decoded->incomplete;
    generation_ = std::max(generation_, decoded->generation);
    distrust_ = doubts_about(*decoded, status->identity, status->changed_ns);
    records_ = std::move(decoded->records);
    if (!distrust_.empty()) {
        incomplete_ = true;
        for (auto& [key, record] : records_) record.suspect = true;
    }
    return {};
}

std::string SequenceStore::doubts_about(const SequenceFile& file, const FileIdentity& found,
                                        int64_t changed_ns) const {
    const std::string name = (dir_ / kFileName).string();
    // A kernel update can begin to show birth times that were not known when the file was written.
    const bool births_known = file.identity.birth_ns != 0 && found.birth_ns != 0;
    if (file.identity.inode != found.inode ||
        (births_known && file.identity.birth_ns != found.birth_ns)) {
        return name +
               " is not the file that sallyportd wrote last: it was copied or restored, so its "
               "numbers may be too low";
    }
    if (changed_ns > file.written_ns + kCtimeSlackNs) {
        return name +
               " was touched after sallyportd wrote it (moved back, overwritten, or its attributes "
               "changed), so its numbers may be too low";
    }
    if (lock_generation_ && file.generation < *lock_generation_) {
        return name + " is older than the one that sallyportd wrote last, by " +
               (dir_ / kLockName).string() + ", so its numbers may be too low";
    }
    if (!lock_generation_ && file.written_ns > now_ns() + kCtimeSlackNs) {
        return name +
               " says that it was written in the future: the clock was set back, and nothing tells "
               "whether it is the one that sallyportd wrote last, so its numbers may be too low";
    }
    return {};
}

bool SequenceStore::write_generation(uint64_t generation) const {
    const std::string line = generation_line(generation);
    return pwrite(lock_fd_, line.data(), line.size(), 0) == static_cast<ssize_t>(line.size()) &&
           fdatasync(lock_fd_) == 0;
}

std::expected<void, std::string> SequenceStore::save(
    const std::map<KeyDigest, SequenceRecord>& records) {
    if (!holds_lock()) {
        return std::unexpected(
            (dir_ / kLockName).string() +
            " was removed or replaced while this sallyportd runs, so that a second one may use the "
            "same numbers: make sure that none does, then restart sallyportd");
    }
    // A disk that stalls longer than the slack would make the file look touched at the next start.
    constexpr int kAttempts = 3;
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
        const auto late = write_file(records);
        if (!late) return std::unexpected(late.error());
        if (!*late) {
            records_ = records;
            return {};
        }
    }
    return std::unexpected("writing " + (dir_ / kFileName).string() +
                           " takes longer than 5 seconds: the disk is too slow or overloaded; no "
                           "sequence numbers can be reserved until that is better");
}

std::expected<bool, std::string> SequenceStore::write_file(
    const std::map<KeyDigest, SequenceRecord>& records) {
    const std::filesystem::path path = dir_ / kFileName;
    const std::filesystem::path new_path = dir_ / kNewFileName;
    const auto failed = [&](const std::string& what) {
        const std::string text = "cannot " + what + ": " + errno_text() +
                                 "; no sequence numbers can be reserved until that works";
        unlink(new_path.c_str());
        return std::unexpected(text);
    };
    // A new file each time: its inode and birth time then belong to this content alone.
    unlink(new_path.c_str());
    const UniqueFd file(::open(new_path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!file) return failed("create " + new_path.string());
    const auto status = status_of(file.get());
    if (!status) return failed("read the status of " + new_path.string());
    const int64_t written_ns = now_ns();
    const std::string text = encode_sequence_file({.identity = status->identity,
                                                   .written_ns = written_ns,
                                                   .generation = generation_ + 1,
                                                   .incomplete = incomplete_,
                                                   .records = records});
    if (!write_all(file.get(), text)) return failed("write " + new_path.string());
    if (fsync(file.get()) != 0) return failed("sync " + new_path.string());
    if (rename(new_path.c_str(), path.c_str()) != 0) return failed("rename " + new_path.string());
    const UniqueFd directory(::open(dir_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!directory || fsync(directory.get()) != 0) return failed("sync " + dir_.string());
    ++generation_;
    // Before anybody hears of the numbers: from now on an earlier file is known to be one.
    if (!write_generation(generation_)) return failed("write " + (dir_ / kLockName).string());
    const auto renamed = status_of(file.get());
    if (!renamed) return failed("read the status of " + path.string());
    return renamed->changed_ns > written_ns + kCtimeSlackNs;
}

std::string SequenceStore::lost_records() const {
    if (!distrust_.empty()) return distrust_;
    return (dir_ / kFileName).string() +
           " has no record of this key and has lost records before, so the key may have been used";
}

std::vector<std::expected<SequenceStore::Range, std::string>> SequenceStore::reserve(
    std::span<const Request> requests) {
    std::vector<std::expected<Range, std::string>> results;
    auto records = records_;
    bool changed = false;
    for (const Request& request : requests) {
        const auto found = records.find(request.key);
        if (found == records.end()) {
            if (!incomplete_) {
                results.emplace_back(std::unexpected(
                    "no sequence numbers are recorded for this key in " +
                    (dir_ / kFileName).string() +
                    ". If the key has never been used, run 'sallyportd -c FILE --accept-key NAME'. "
                    "If the file was lost: " +
                    how_to_accept()));
            } else {
                results.emplace_back(std::unexpected(lost_records() + ": " + how_to_accept() +
                                                     " (1 if it was never used)"));
            }
            continue;
        }
        SequenceRecord& record = found->second;
        if (record.suspect) {
            results.emplace_back(std::unexpected(
                (distrust_.empty() ? "the recorded sequence number of this key was found "
                                     "untrustworthy at an earlier start"
                                   : distrust_) +
                ". At least " + std::to_string(record.reserved_until - 1) +
                " were reserved: " + how_to_accept()));
            continue;
        }
        if (record.reserved_until >= request.end) {
            results.emplace_back(std::unexpected(
                "the key has used its last sequence number: give the SA a new key on both ends"));
            continue;
        }
        const Range range{.first = record.reserved_until,
                          .end = record.reserved_until +
                                 std::min(request.count, request.end - record.reserved_until)};
        record.reserved_until = range.end;
        changed = true;
        results.emplace_back(range);
    }
    if (!changed) return results;
    if (auto saved = save(records); !saved) {
        for (auto& result : results) {
            if (result) result = std::unexpected(saved.error());
        }
        return results;
    }
    for (size_t i = 0; i < requests.size(); ++i) {
        if (results[i]) floor_.try_emplace(requests[i].key, results[i]->first);
    }
    return results;
}

std::expected<void, std::string> SequenceStore::give_back(std::span<const Next> exact) {
    auto records = records_;
    for (const Next& next : exact) {
        const auto record = records.find(next.key);
        const auto floor = floor_.find(next.key);
        if (record == records.end() || floor == floor_.end()) continue;
        record->second.reserved_until =
            std::clamp(next.next, floor->second, record->second.reserved_until);
    }
    if (records == records_) return {};
    return save(records);
}

std::expected<void, std::string> SequenceStore::accept(const KeyDigest& key,
                                                       std::optional<uint64_t> next) {
    auto records = records_;
    const auto found = records.find(key);
    if (found != records.end()) {
        const std::string known = std::to_string(found->second.reserved_until);
        if (!next) {
            return std::unexpected(
                found->second.suspect
                    ? "this key has been used before, at least up to " + known +
                          ": say NAME=SEQUENCE with a number certainly above everything ever sent"
                    : "this key is recorded already and continues at " + known +
                          ": nothing needs to be accepted");
        }
        if (*next < found->second.reserved_until) {
            return std::unexpected("sequence numbers below " + known +
                                   " may have been used with this key: accept " + known +
                                   " or more");
        }
    } else if (!next && incomplete_) {
        return std::unexpected(lost_records() +
                               ": say NAME=SEQUENCE with a number certainly above everything ever "
                               "sent with this key (1 if it was never used)");
    }
    if (next && *next == 0) return std::unexpected("sequence numbers begin at 1");
    records[key] = {.reserved_until = next.value_or(1), .suspect = false};
    return save(records);
}

}  // namespace sallyport::control
