// SPDX-License-Identifier: Apache-2.0
#include "control/startup/busy_queue.h"

#include <linux/sock_diag.h>
#include <linux/xdp_diag.h>
#include <sys/socket.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <string_view>
#include <system_error>

#include "control/netlink/socket.h"

namespace sallyport::control {

namespace {

// From here on somebody may wonder why nothing happens.
constexpr std::chrono::milliseconds kSayAfter{500};

struct Listed {
    uint32_t inode = 0;
    uint32_t user = 0;
};

netlink::RequestBuffer encode_list_xdp_sockets(uint32_t sequence) {
    netlink::Writer writer(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, sequence);
    xdp_diag_req body{};
    body.sdiag_family = AF_XDP;
    body.xdiag_show = XDP_SHOW_INFO;
    writer.put(body);
    return writer.take();
}

// The socket that a message is about, where it is on that queue.
std::optional<Listed> on_queue(const netlink::Message& message, uint32_t ifindex, uint16_t queue) {
    const auto header = netlink::peek<xdp_diag_msg>(message.payload);
    if (!header) return std::nullopt;
    netlink::Attributes attributes;
    if (!attributes.parse(netlink::behind<xdp_diag_msg>(message.payload))) return std::nullopt;
    const auto info = netlink::peek<xdp_diag_info>(attributes.value(XDP_DIAG_INFO));
    if (!info || info->ifindex != ifindex || info->queue_id != queue) return std::nullopt;
    const auto user = netlink::peek<uint32_t>(attributes.value(XDP_DIAG_UID));
    return Listed{.inode = header->xdiag_ino, .user = user.value_or(0)};
}

using Path = std::filesystem::path;
using IsWanted = std::function<bool(const Path& descriptor)>;

bool has_open(const Path& process, const IsWanted& is_wanted) {
    std::error_code error;
    std::filesystem::directory_iterator fds(process / "fd", error);
    for (; !error && fds != std::filesystem::directory_iterator(); fds.increment(error)) {
        if (is_wanted(fds->path())) return true;
    }
    return false;
}

// Another process of this network namespace that has such a descriptor, as "123 (name)"; empty:
// none that we may look at.
std::string process_with(const IsWanted& is_wanted) {
    std::error_code error;
    const Path here = std::filesystem::read_symlink("/proc/thread-self/ns/net", error);
    const std::string self = std::to_string(getpid());
    std::filesystem::directory_iterator processes("/proc", error);
    for (; !error && processes != std::filesystem::directory_iterator();
         processes.increment(error)) {
        std::string name = processes->path().filename().string();
        if (name == self || name.find_first_not_of("0123456789") != std::string::npos) continue;
        std::error_code unreadable;
        if (std::filesystem::read_symlink(processes->path() / "ns/net", unreadable) != here) {
            continue;
        }
        if (!has_open(processes->path(), is_wanted)) continue;
        std::string command;
        std::ifstream in(processes->path() / "comm");
        std::getline(in, command);
        name += " (";
        name += command;
        return name + ")";
    }
    return {};
}

bool is_xdp_socket(const Path& descriptor) {
    std::array<char, 16> name{};
    const ssize_t size =
        getxattr(descriptor.c_str(), "system.sockprotoname", name.data(), name.size() - 1);
    return size > 0 && std::string_view(name.data()) == "XDP";
}

std::string process_with_socket(uint32_t inode) {
    const Path link = "socket:[" + std::to_string(inode) + "]";
    return process_with([&](const Path& descriptor) {
        std::error_code unreadable;
        return std::filesystem::read_symlink(descriptor, unreadable) == link;
    });
}

}  // namespace

QueueHolder holder_of(uint32_t ifindex, uint16_t queue) {
    auto socket = netlink::Socket::open(netlink::Protocol::sock_diag);
    if (!socket) return {};
    std::optional<Listed> found;
    const auto listed = socket->exchange(
        encode_list_xdp_sockets(socket->next_sequence()), [&](const netlink::Message& message) {
            if (const auto here = on_queue(message, ifindex, queue)) found = here;
        });
    if (!listed) return {.process = process_with(is_xdp_socket)};
    if (!found) return {.socket = QueueHolder::Socket::none};
    return {.socket = QueueHolder::Socket::there,
            .user = found->user,
            .process = process_with_socket(found->inode)};
}

std::expected<void, std::string> judge_busy_queue(const std::string& device, uint16_t queue,
                                                  const QueueHolder& holder,
                                                  std::chrono::milliseconds waited) {
    const std::string where = device + " queue " + std::to_string(queue) + ": ";
    if (holder.socket == QueueHolder::Socket::there && !holder.process.empty()) {
        if (waited < kStrangerMax) return {};
        return std::unexpected(where + "process " + holder.process +
                               " has AF_XDP sockets on it: stop that program, or give this one "
                               "another device");
    }
    if (waited < kReleaseMax) return {};
    const std::string seconds = std::to_string(kReleaseMax.count()) + " s";
    switch (holder.socket) {
        case QueueHolder::Socket::none:
            return std::unexpected(where + "the kernel has not let go of the AF_XDP sockets of a " +
                                   "program that has ended, for " + seconds +
                                   ": start again later, or make the device anew");
        case QueueHolder::Socket::there:
            return std::unexpected(where + "a program of user " + std::to_string(holder.user) +
                                   " that cannot be seen from here has AF_XDP sockets on it, or " +
                                   "the kernel has not closed those of a dead one for " + seconds +
                                   " ('ss --xdp -e' lists them): stop it, or start again later");
        case QueueHolder::Socket::unknown:
            return std::unexpected(
                where + (holder.process.empty() ? "another program" : "process " + holder.process) +
                " has AF_XDP sockets on it, or the kernel has not let go of those of a dead one "
                "for " +
                seconds + ": stop it, or start again later");
    }
    return {};
}

std::expected<void, std::string> BusyQueues::look(const std::string& device, uint32_t ifindex,
                                                  uint16_t queue,
                                                  std::chrono::milliseconds waited) {
    const QueueHolder holder = holder_of(ifindex, queue);
    if (waited >= kSayAfter && !said_) {
        said_ = true;
        log_.info("waiting up to " + std::to_string(kReleaseMax.count()) + " s for " + device +
                  " queue " + std::to_string(queue) +
                  ": the kernel has not let go of the AF_XDP sockets of an earlier program yet, or "
                  "another has some there");
    }
    return judge_busy_queue(device, queue, holder, waited);
}

}  // namespace sallyport::control
