// SPDX-License-Identifier: Apache-2.0
#pragma once

// How far the peers of static SAs have come, over restarts: a static key outlives the process, so a
// window that began empty would accept recorded packets once more (RFC 4303 3.4.3).
//
// One text file, state_dir/replay_tops, a line per inbound SA with the highest number that was
// authenticated. It is written each second that something changed, and not synced: it survives the
// process, and what the last second before a crash brought can be replayed once. A clean stop syncs
// it. A window starts with everything up to its number counted as received.
//
// Not in state_dir/sequences (sequence_store.h): that one may never be late or damaged, or nothing
// is sent any more. This one may: without it windows start empty, and an older copy of it lets pass
// what came since. So it is not asked who it is.
//
// SAs are named by SPI and digest of the key, never by the key. Owner: control, which has the lock
// of the directory (SequenceStore).

#include <cstdint>
#include <expected>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "control/sa/key_digest.h"
#include "dataplane/base/ids.h"

namespace sallyport::control {

class ReplayTops {
  public:
    struct Name {
        Spi spi{};
        KeyDigest key;
        friend auto operator<=>(const Name&, const Name&) = default;
    };
    using Tops = std::map<Name, uint64_t>;
    enum class Sync : uint8_t { later, now };

    // `state_dir` exists. Nothing is known before load().
    explicit ReplayTops(std::filesystem::path state_dir) : dir_(std::move(state_dir)) {}
    // Without a file there is nothing to know. On error nothing is known either; the text says why.
    // A file that is damaged is replaced by the next save(), one that cannot be read is left alone.
    std::expected<void, std::string> load();

    // 0: nothing is known.
    [[nodiscard]] uint64_t find(const Name& name) const;
    // Only moves up.
    void raise(const Name& name, uint64_t top);
    // Writes what changed since the last time that succeeded. `now`: it is on the disk afterwards.
    // Nothing before load(): a start that failed earlier knows less than the file.
    std::expected<void, std::string> save(Sync sync);

  private:
    enum class File : uint8_t { not_asked, unreadable, ours };

    std::expected<void, std::string> read(const std::filesystem::path& path);

    std::filesystem::path dir_;
    File file_ = File::not_asked;
    Tops tops_;
    bool changed_ = false;
};

// The file's text: pure functions.
std::string encode_replay_tops(const ReplayTops::Tops& tops);
std::expected<ReplayTops::Tops, std::string> decode_replay_tops(std::string_view text);

}  // namespace sallyport::control
