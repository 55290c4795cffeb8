// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/kernel_surroundings.h"

#include <sys/random.h>

#include <utility>

namespace sallyport::control {

KernelRegister::KernelRegister(xfrm::RegisterChanges& changes, Listener listener)
    : changes_(changes), listener_(std::move(listener)) {
    mirror_.when_forgotten(listener_.forgotten);
}

std::expected<void, std::string> KernelRegister::open() {
    auto socket = xfrm::RegisterSocket::open();
    if (!socket) return std::unexpected(socket.error());
    socket_.emplace(std::move(*socket));
    mirror_.set_own_port(socket_->own_port());
    return {};
}

std::expected<void, std::string> KernelRegister::receive() {
    return socket_->receive(mirror_, changes_);
}

std::expected<void, std::string> KernelRegister::read_again() {
    return socket_->dump(mirror_, changes_);
}

const xfrm::KernelSa* KernelRegister::find(const xfrm::SaName& name) const {
    return mirror_.find(name);
}

std::expected<xfrm::KernelSa, netlink::Error> KernelRegister::get(const xfrm::SaName& name) {
    auto state = socket_->get(name);
    if (!receive()) mirror_.request_resync(changes_);
    listener_.overheard();
    return state;
}

void KernelRegister::note(const xfrm::KernelSa& state) {
    mirror_.refresh(state);
}

std::expected<void, netlink::Error> KernelRegister::write_counters(
    const xfrm::KernelSa& state, const xfrm::CounterUpdate& update) {
    return socket_->write_counters(state, update);
}

std::vector<std::expected<xfrm::KernelSa, netlink::Error>> KernelRegister::get_all(
    std::span<const xfrm::SaName> names) {
    auto states = socket_->get_all(names);
    if (!receive()) mirror_.request_resync(changes_);
    listener_.overheard();
    return states;
}

std::vector<std::expected<void, netlink::Error>> KernelRegister::write_all(
    std::span<const xfrm::CounterWrite> writes) {
    return socket_->write_all(writes);
}

std::vector<std::expected<void, netlink::Error>> KernelRegister::limit_all(
    std::span<const xfrm::LimitWrite> writes) {
    return socket_->limit_all(writes);
}

std::expected<void, netlink::Error> KernelRegister::expire(const xfrm::KernelSa& state, bool hard) {
    return socket_->expire(state, hard);
}

std::expected<void, std::string> OwnerSteering::insert(const xfrm::SaName& name, WorkerId worker) {
    return bpf_->insert_owner(name.spi, name.destination, worker);
}

void OwnerSteering::remove(const xfrm::SaName& name) {
    if (marked_.contains({name.spi, name.destination})) return;
    if (const auto done = bpf_->remove_owner(name.spi, name.destination); !done) {
        log_.error(done.error());
    }
}

void OwnerSteering::name_marked(const xfrm::RegisterChanges& changes,
                                const std::map<xfrm::SaName, xfrm::KernelSa>& states) {
    const auto is_marked = [](const xfrm::SaName& name) {
        return name.mark.mask != 0 && name.protocol == xfrm::kProtocolEsp;
    };
    std::set<std::pair<Spi, IpAddress>> doubtful;
    for (const auto* names : {&changes.added, &changes.removed}) {
        for (const xfrm::SaName& name : *names) {
            if (is_marked(name)) doubtful.emplace(name.spi, name.destination);
        }
    }
    for (const auto& [spi, destination] : doubtful) {
        bool marked = false;
        const xfrm::SaName first{
            .spi = spi, .destination = destination, .protocol = xfrm::kProtocolEsp, .mark = {}};
        for (auto it = states.lower_bound(first);
             it != states.end() && it->first.spi == spi && it->first.destination == destination;
             ++it) {
            marked = marked || is_marked(it->first);
        }
        set_marked(spi, destination, marked);
    }
}

void OwnerSteering::set_marked(Spi spi, const IpAddress& destination, bool marked) {
    if (marked_.contains({spi, destination}) == marked) return;
    if (!marked) {
        marked_.erase({spi, destination});
        if (const auto done = bpf_->remove_owner(spi, destination); !done) {
            log_.error(done.error());
        }
        return;
    }
    marked_.emplace(spi, destination);
    if (const auto done = bpf_->insert_owner(spi, destination, std::nullopt); !done) {
        log_.error("packets of an SA with a mark do not reach the kernel: " + done.error());
    }
}

SpdRoom BpfPrograms::room() const {
    const bpf_objects::Limits& limits = bpf_->limits();
    return {.destinations = limits.spd_destinations,
            .sources = limits.spd_sources,
            .entries = limits.spd_entries};
}

std::expected<void, std::string> BpfPrograms::publish(const SpdUpdate& spd,
                                                      const GroupOwners& owners,
                                                      std::span<const PolicyId> changed,
                                                      std::span<const uint32_t> if_ids,
                                                      const std::function<void()>& switched) {
    if (const auto* rows = std::get_if<SpdRowChanges>(&spd.rows)) {
        return bpf_->publish_spd_rows(*rows, owners, changed, if_ids, switched);
    }
    const auto& whole = std::get<SpdUpdate::Whole>(spd.rows);
    return bpf_->publish_spd(whole.outbound, whole.inbound, owners, if_ids, switched);
}

std::expected<void, std::string> BpfPrograms::update_owners(const GroupOwners& owners,
                                                            std::span<const PolicyId> changed) {
    auto done = bpf_->update_owners(owners, changed);
    if (!done) return std::unexpected(done.error());
    return {};
}

// The steady clock is CLOCK_MONOTONIC, as is bpf_ktime_get_ns().
std::expected<void, std::string> BpfPrograms::set_bypass_until(
    std::chrono::steady_clock::time_point until) {
    const auto ns = std::chrono::nanoseconds(until.time_since_epoch()).count();
    return bpf_->set_bypass_until(static_cast<uint64_t>(ns));
}

std::chrono::steady_clock::time_point SystemClock::now() const {
    return std::chrono::steady_clock::now();
}

uint64_t SystemClock::seconds() const {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::seconds>(now).count());
}

std::expected<uint64_t, std::string> KernelRandom::bits() {
    uint64_t bits = 0;
    if (getrandom(&bits, sizeof bits, 0) != sizeof bits) {
        return std::unexpected("the kernel gives no random numbers");
    }
    return bits;
}

}  // namespace sallyport::control
