// SPDX-License-Identifier: Apache-2.0
#pragma once

// What one process at a time may hold in a network namespace: its register of xfrm, a device.
//
// A lock of a file in a folder that nobody but root can write into: a name that any user can take
// (an abstract socket, a file in /run/lock) would let any user refuse every start. The kernel gives
// the lock back when the process ends in whatever way, so who holds it knows that what is left of
// another is left of a dead one.

#include <expected>
#include <filesystem>
#include <string>

#include "dataplane/base/unique_fd.h"

namespace sallyport::host {

inline constexpr const char* kLockFolder = "/run/sallyport/locks";

class Lock {
  public:
    enum class Refusal : uint8_t { held, failed };
    struct Error {
        Refusal refusal = Refusal::failed;
        std::string text;  // of one that failed: what cannot be done, and why
    };
    // `name`: part of a file name. Of the namespace of the calling thread. Makes the folder.
    static std::expected<Lock, Error> take(const std::string& name,
                                           const std::filesystem::path& folder = kLockFolder);
    Lock(Lock&&) = default;
    Lock& operator=(Lock&&) = delete;
    ~Lock();  // removes the file

  private:
    Lock(UniqueFd file, std::filesystem::path path)
        : file_(std::move(file)), path_(std::move(path)) {}

    UniqueFd file_;
    std::filesystem::path path_;
};

}  // namespace sallyport::host
