// SPDX-License-Identifier: Apache-2.0
#include "control/host/lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "control/host/identity.h"

namespace sallyport::host {

namespace {

std::unexpected<Lock::Error> failed(const std::string& what) {
    return std::unexpected(Lock::Error{.text = "cannot " + what + ": " + std::strerror(errno)});
}

// Who may write into it can put another file there, and have a second process hold the lock too.
std::expected<void, Lock::Error> prepare(const std::filesystem::path& folder) {
    for (const auto& [path, mode] :
         {std::pair(folder.parent_path(), mode_t{0755}), std::pair(folder, mode_t{0700})}) {
        if (mkdir(path.c_str(), mode) != 0 && errno != EEXIST) {
            return failed("create " + path.string());
        }
        struct stat status{};
        if (lstat(path.c_str(), &status) != 0) return failed("look at " + path.string());
        if (!S_ISDIR(status.st_mode) || (status.st_uid != 0 && status.st_uid != geteuid()) ||
            (status.st_mode & 022) != 0) {
            return std::unexpected(Lock::Error{
                .text = path.string() +
                        " must be a folder of root that others cannot write into: remove it"});
        }
    }
    return {};
}

// The one before may have removed it meanwhile.
bool is_in_place(int fd, const std::filesystem::path& path) {
    struct stat held{};
    struct stat named{};
    return fstat(fd, &held) == 0 && lstat(path.c_str(), &named) == 0 &&
           held.st_dev == named.st_dev && held.st_ino == named.st_ino;
}

}  // namespace

std::expected<Lock, Lock::Error> Lock::take(const std::string& name,
                                            const std::filesystem::path& folder) {
    if (auto prepared = prepare(folder); !prepared) return std::unexpected(prepared.error());
    const std::filesystem::path path =
        folder / ("namespace-" + std::to_string(namespace_inode()) + "." + name);
    for (;;) {
        UniqueFd file(
            open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600));
        if (!file) return failed("open " + path.string());
        if (flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
            if (errno == EINTR) continue;
            if (errno != EWOULDBLOCK) return failed("lock " + path.string());
            return std::unexpected(Error{.refusal = Refusal::held, .text = {}});
        }
        if (is_in_place(file.get(), path)) return Lock(std::move(file), path);
    }
}

Lock::~Lock() {
    if (file_ && is_in_place(file_.get(), path_)) unlink(path_.c_str());
}

}  // namespace sallyport::host
