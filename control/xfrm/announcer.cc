// SPDX-License-Identifier: Apache-2.0
#include "control/xfrm/announcer.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <span>
#include <utility>

#include "control/host/note.h"

namespace sallyport::xfrm {

namespace {

constexpr uint32_t kReqidFirst = 0x53500000;
constexpr uint32_t kReqidLast = 0x5350ffff;

constexpr char kAcquireExpiryFile[] = "/proc/sys/net/core/xfrm_acq_expires";
// Ten years: longer than any daemon runs, and far from overflowing the kernel's timer.
constexpr char kRaisedExpiry[] = "315360000";

std::string first_line(const std::filesystem::path& file) {
    std::ifstream in(file);
    std::string line;
    std::getline(in, line);
    return line;
}

bool write_line(const std::filesystem::path& file, const std::string& line) {
    std::ofstream out(file);
    out << line << '\n';
    out.flush();
    return out.good();
}

std::string name_of(const StateId& id) {
    return "SPI " + to_text(id.spi) + " to " + to_string(id.destination);
}

bool is_ours(const KernelSa& state) {
    return state.name.protocol == kProtocolEsp && state.reqid >= kReqidFirst &&
           state.reqid <= kReqidLast;
}

}  // namespace

std::expected<NamespaceLock, std::string> NamespaceLock::acquire() {
    auto lock = host::Lock::take("xfrm");
    if (lock) return NamespaceLock(std::move(*lock));
    if (lock.error().refusal != host::Lock::Refusal::held) {
        return std::unexpected(lock.error().text);
    }
    return std::unexpected(
        "another sallyportd runs in this network namespace: stop it first, or start this one in a "
        "namespace of its own");
}

std::expected<RaisedAcquireExpiry, std::string> RaisedAcquireExpiry::raise(
    std::filesystem::path note) {
    const std::string original = first_line(kAcquireExpiryFile);
    // The note comes first: with it, whoever finds the raised value knows the original.
    if (auto noted = host::write_note(note, std::span(&original, 1)); !noted) {
        return std::unexpected(noted.error());
    }
    if (!write_line(kAcquireExpiryFile, kRaisedExpiry)) {
        const std::string text = std::strerror(errno);
        host::remove_note(note);
        return std::unexpected(std::string("cannot write ") + kAcquireExpiryFile + ": " + text);
    }
    return RaisedAcquireExpiry(std::move(note), original);
}

void RaisedAcquireExpiry::recover(const std::filesystem::path& note) {
    const std::vector<std::string> lines = host::read_note(note);
    if (!lines.empty() && first_line(kAcquireExpiryFile) == kRaisedExpiry) {
        write_line(kAcquireExpiryFile, lines.front());
    }
    host::remove_note(note);
}

RaisedAcquireExpiry::RaisedAcquireExpiry(RaisedAcquireExpiry&& other) noexcept
    : note_(std::move(other.note_)), original_(std::exchange(other.original_, {})) {}

RaisedAcquireExpiry::~RaisedAcquireExpiry() {
    if (original_.empty()) return;
    write_line(kAcquireExpiryFile, original_);
    host::remove_note(note_);
}

std::expected<SaRegistry, std::string> SaRegistry::open(const std::filesystem::path& state_dir) {
    auto socket = netlink::Socket::open(netlink::Protocol::xfrm);
    if (!socket) return std::unexpected(socket.error());
    SaRegistry registry(std::move(*socket), state_dir / "xfrm_acq_expires");
    RaisedAcquireExpiry::recover(registry.note_);
    if (auto done = registry.remove_stale(); !done) return std::unexpected(done.error());
    return registry;
}

SaRegistry::~SaRegistry() {
    for (const StateId& id : registered_) {
        const auto removed = delete_state(id);
        static_cast<void>(removed);  // somebody else removed it: that is as good
    }
}

std::expected<void, netlink::Error> SaRegistry::delete_state(const StateId& id) {
    return socket_.exchange(encode_delete_state(id, socket_.next_sequence()));
}

std::expected<void, std::string> SaRegistry::remove_stale() {
    std::vector<StateId> stale;
    const auto dumped =
        socket_.exchange(encode_dump_states(socket_.next_sequence()), [&](const Message& message) {
            const auto state = decode_kernel_sa(message.payload);
            // One without SPI cannot be named to the kernel; it expires by itself.
            if (state && is_ours(*state) && state->name.spi != Spi{}) {
                stale.push_back({.spi = state->name.spi, .destination = state->name.destination});
            }
        });
    if (!dumped) return std::unexpected("cannot list xfrm states: " + dumped.error().text);
    for (const StateId& id : stale) {
        if (const auto removed = delete_state(id); !removed && removed.error().number != ESRCH) {
            return std::unexpected("cannot remove the xfrm state of a killed run (" + name_of(id) +
                                   "): " + removed.error().text);
        }
    }
    return {};
}

std::expected<void, std::string> SaRegistry::refuse_foreign(const StateId& id) {
    uint32_t reqid = 0;
    const SaName name{.spi = id.spi, .destination = id.destination};
    const auto found =
        socket_.exchange(encode_get_sa(name, socket_.next_sequence()), [&](const Message& message) {
            if (const auto state = decode_kernel_sa(message.payload)) reqid = state->reqid;
        });
    if (found) {
        return std::unexpected(
            name_of(id) + " is already registered in xfrm by another program (reqid " +
            std::to_string(reqid) + "): remove it there, or choose another SPI for this SA");
    }
    if (found.error().number == ESRCH) return {};
    return std::unexpected("cannot ask xfrm for " + name_of(id) + ": " + found.error().text);
}

std::expected<void, netlink::Error> SaRegistry::try_full(const NewState& state) {
    return socket_.exchange(encode_new_state(state, attributes_, socket_.next_sequence()));
}

std::expected<void, netlink::Error> SaRegistry::try_larval(const NewState& state) {
    return socket_.exchange(encode_allocate_spi(state, attributes_, socket_.next_sequence()));
}

std::expected<void, std::string> SaRegistry::learn_spis() {
    if (spis_) return {};
    std::set<Spi> spis;
    const auto dumped =
        socket_.exchange(encode_dump_states(socket_.next_sequence()), [&](const Message& message) {
            const auto state = decode_kernel_sa(message.payload);
            if (state && state->name.protocol == kProtocolEsp) spis.insert(state->name.spi);
        });
    if (!dumped) return std::unexpected("cannot list xfrm states: " + dumped.error().text);
    spis_ = std::move(spis);
    return {};
}

std::expected<SaRegistry::Registered, std::string> SaRegistry::add_one(const NewState& state) {
    if (auto free = refuse_foreign(state.id); !free) return std::unexpected(free.error());
    // An unknown attribute is EINVAL (or EOPNOTSUPP from a strict kernel): try with fewer. Only the
    // first SA meets this; what worked is kept.
    std::expected<void, netlink::Error> result;
    while (true) {
        if (method_ != Method::larval) {
            result = try_full(state);
            if (!result && method_ == Method::undecided &&
                (result.error().number == EPROTONOSUPPORT || result.error().number == ENOSYS ||
                 result.error().number == ENOENT)) {
                method_ = Method::larval;
                reason_ = "the kernel has no ESP with " + std::string(state.suite->family) + ": " +
                          result.error().text;
            }
        }
        if (method_ == Method::larval) {
            if (state.direction == StateDirection::outbound) return Registered::nothing_to_do;
            if (auto known = learn_spis(); !known) return std::unexpected(known.error());
            if (spis_->contains(state.id.spi)) return Registered::beside_another;
            if (!raised_) {
                auto raised = RaisedAcquireExpiry::raise(note_);
                if (!raised) return std::unexpected(raised.error());
                raised_.emplace(std::move(*raised));
            }
            result = try_larval(state);
        }
        const bool refused =
            !result && (result.error().number == EINVAL || result.error().number == EOPNOTSUPP);
        if (!refused || !registered_.empty() || attributes_ == StateAttributes::none) break;
        attributes_ = attributes_ == StateAttributes::all ? StateAttributes::direction_only
                                                          : StateAttributes::none;
    }
    if (!result) {
        return std::unexpected("cannot register " + name_of(state.id) +
                               " in xfrm: " + result.error().text);
    }
    if (method_ == Method::undecided) {
        method_ = Method::full;
        reason_ = "the kernel has ESP with " + std::string(state.suite->family);
    }
    registered_.push_back(state.id);
    if (spis_) spis_->insert(state.id.spi);
    return Registered::in_xfrm;
}

std::vector<std::expected<SaRegistry::Registered, std::string>> SaRegistry::add(
    std::span<NewState> states) {
    std::vector<std::expected<Registered, std::string>> results;
    results.reserve(states.size());
    for (NewState& state : states) {
        // ALLOCSPI looks for a larval state of the same reqid first, so each gets its own.
        state.reqid = kReqidFirst + (reqids_used_++ & 0xffff);
        results.push_back(add_one(state));
    }
    raised_.reset();
    return results;
}

void SaRegistry::remove(const StateId& id) {
    const auto found = std::ranges::find(registered_, id);
    if (found == registered_.end()) return;
    registered_.erase(found);
    if (spis_) spis_->erase(id.spi);
    const auto removed = delete_state(id);
    static_cast<void>(removed);
}

}  // namespace sallyport::xfrm
