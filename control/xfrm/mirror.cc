// SPDX-License-Identifier: Apache-2.0
#include "control/xfrm/mirror.h"

#include <linux/netlink.h>
#include <linux/xfrm.h>

#include <algorithm>
#include <tuple>
#include <utility>

namespace sallyport::xfrm {

namespace {

constexpr uint8_t kAnyProtocol = 255;  // IPSEC_PROTO_ANY: AH, ESP and IPComp
// XFRM_MSG_GETDEFAULT. Later types are of newer kernels, which may change the register by them
// (XFRM_MSG_MIGRATE_STATE of Linux 7.2 does).
constexpr uint16_t kLastKnownType = 0x28;

bool is_own_reqid(uint32_t reqid) {
    return reqid >> 16 == 0x5350;
}
bool is_own_index(uint32_t index) {
    return index >> 24 == 0x53;
}

// Everything but counters: what decides how a worker would use the state.
auto substance(const KernelSa& sa) {
    return std::tie(sa.source, sa.reqid, sa.family, sa.mode, sa.esn, sa.larval, sa.flags,
                    sa.extra_flags, sa.algorithm, sa.aead, sa.icv_bits, sa.key, sa.keys_hidden,
                    sa.encapsulated, sa.offloaded, sa.has_security_context, sa.has_care_of_address,
                    sa.if_id, sa.output_mark, sa.tfc_pad, sa.has_selector, sa.direction, sa.pcpu,
                    sa.limits, sa.replay.esn_form, sa.replay.bitmap_words, sa.replay.window);
}
bool same_sa(const KernelSa& a, const KernelSa& b) {
    return substance(a) == substance(b);
}

void raise_counters(KernelSa& sa, const Usage& usage) {
    const auto raise = [](uint64_t& value, uint64_t to) { value = std::max(value, to); };
    raise(sa.usage.bytes, usage.bytes);
    raise(sa.usage.packets, usage.packets);
    raise(sa.usage.add_time, usage.add_time);
    raise(sa.usage.use_time, usage.use_time);
}
void raise_counters(KernelSa& sa, const Replay& replay) {
    sa.replay.sent = std::max(sa.replay.sent, replay.sent);
    sa.replay.top = std::max(sa.replay.top, replay.top);
}

bool has_lower_numbers(const KernelSa& sa, const KernelSa& than) {
    return sa.replay.sent < than.replay.sent || sa.replay.top < than.replay.top;
}

// A dump begins with what came last. Gives each state of `dumped`, whose `arrival` is its position
// in the dump, a number that grows with the time of its arrival: the known one where that fits.
void number_arrivals(std::map<SaName, KernelSa>& dumped, const std::map<SaName, KernelSa>& known,
                     uint64_t& arrivals) {
    std::vector<std::pair<const SaName*, KernelSa*>> oldest_first;
    oldest_first.reserve(dumped.size());
    for (auto& [name, state] : dumped) oldest_first.emplace_back(&name, &state);
    std::ranges::sort(oldest_first, std::ranges::greater{},
                      [](const auto& item) { return item.second->arrival; });
    uint64_t last = 0;
    for (const auto& [name, state] : oldest_first) {
        const auto old = known.find(*name);
        const bool keep =
            old != known.end() && old->second.arrival > last && same_sa(old->second, *state);
        last = keep ? old->second.arrival : ++arrivals;
        state->arrival = last;
    }
}

}  // namespace

void RegisterMirror::count(Outcome outcome) {
    ++counters_.messages;
    switch (outcome) {
        case Outcome::applied:
            ++counters_.applied;
            return;
        case Outcome::own:
            ++counters_.own;
            return;
        case Outcome::malformed:
            ++counters_.malformed;
            return;
        case Outcome::ignored:
            ++counters_.ignored;
            return;
    }
}

void RegisterMirror::apply(const Message& message, RegisterChanges& changes) {
    count(dispatch(message, changes));
}

RegisterMirror::Outcome RegisterMirror::dispatch(const Message& message, RegisterChanges& changes) {
    switch (message.type) {
        case XFRM_MSG_NEWSA:
        case XFRM_MSG_UPDSA:
            return take_state(message, changes);
        case XFRM_MSG_DELSA:
            return take_deletion(message, changes);
        case XFRM_MSG_EXPIRE:
            return take_expiry(message, changes);
        case XFRM_MSG_FLUSHSA:
            return flush_states(message, changes);
        case XFRM_MSG_NEWAE:
            return take_counters(message, changes);
        case XFRM_MSG_NEWPOLICY:
        case XFRM_MSG_UPDPOLICY:
            return take_policy(message, changes);
        case XFRM_MSG_DELPOLICY: {
            const auto index = decode_deleted_policy(message.payload);
            if (!index) return Outcome::malformed;
            if (is_own_index(*index)) return Outcome::own;
            remove_policy(*index, changes);
            return Outcome::applied;
        }
        case XFRM_MSG_POLEXPIRE: {
            const auto expiry = decode_policy_expire(message.payload);
            if (!expiry) return Outcome::malformed;
            if (is_own_index(expiry->index)) return Outcome::own;
            if (expiry->hard) remove_policy(expiry->index, changes);
            return Outcome::applied;
        }
        case XFRM_MSG_FLUSHPOLICY:
            return flush_policies(message, changes);
        case XFRM_MSG_ACQUIRE:
            return take_acquire(message, changes);
        case XFRM_MSG_MAPPING:
            ++counters_.mappings;
            return Outcome::applied;
        case XFRM_MSG_MIGRATE:
        case NLMSG_OVERRUN:
            request_resync(changes);
            return Outcome::applied;
        default:
            break;
    }
    if (message.type <= kLastKnownType) return Outcome::ignored;
    request_resync(changes);
    return Outcome::applied;
}

void RegisterMirror::request_resync(RegisterChanges& changes) {
    changes.resync = true;
    ++counters_.resyncs;
}

// ---- states ----------------------------------------------------------------------------------

RegisterMirror::Outcome RegisterMirror::take_state(const Message& message,
                                                   RegisterChanges& changes) {
    auto state = decode_kernel_sa(message.payload);
    if (!state) return Outcome::malformed;
    if (is_own_reqid(state->reqid)) return Outcome::own;
    if (state->name.spi == Spi{}) return Outcome::ignored;

    const auto known = states_.find(state->name);
    if (known != states_.end() && same_sa(known->second, *state)) {
        // An UPDSA shows the counters of the request, not those that the kernel keeps.
        if (message.type == XFRM_MSG_NEWSA) {
            raise_counters(known->second, state->usage);
            raise_counters(known->second, state->replay);
        }
        return Outcome::applied;
    }
    if (known != states_.end() && !known->second.larval && message.type == XFRM_MSG_UPDSA) {
        request_resync(changes);
        return Outcome::applied;
    }
    if (known != states_.end()) tell_last(known->second);
    const SaName name = state->name;
    state->arrival = ++arrivals_;
    states_.insert_or_assign(name, std::move(*state));
    changes.added.insert(name);
    changes.used.erase(name);
    return Outcome::applied;
}

RegisterMirror::Outcome RegisterMirror::take_deletion(const Message& message,
                                                      RegisterChanges& changes) {
    const auto deletion = decode_deleted_sa(message.payload);
    if (!deletion) return Outcome::malformed;
    if (deletion->last && !is_own_reqid(deletion->last->reqid)) tell_last(*deletion->last);
    remove_state(deletion->name, changes);
    return Outcome::applied;
}

void RegisterMirror::tell_last(const KernelSa& state) const {
    if (tell_) tell_(state);
}

void RegisterMirror::remove_state(const SaName& name, RegisterChanges& changes) {
    const auto known = states_.find(name);
    if (known == states_.end()) return;
    tell_last(known->second);
    states_.erase(known);
    changes.added.erase(name);
    changes.used.erase(name);
    changes.removed.insert(name);
}

RegisterMirror::Outcome RegisterMirror::take_expiry(const Message& message,
                                                    RegisterChanges& changes) {
    const auto expiry = decode_expire(message.payload);
    if (!expiry) return Outcome::malformed;
    if (is_own_reqid(expiry->reqid)) return Outcome::own;
    if (expiry->hard) remove_state(expiry->name, changes);
    if (own_port_ != 0 && message.port == own_port_) return Outcome::own;
    if (!expiry->hard) ++counters_.soft_expiries;
    return Outcome::applied;
}

RegisterMirror::Outcome RegisterMirror::flush_states(const Message& message,
                                                     RegisterChanges& changes) {
    const auto protocol = decode_flush_states(message.payload);
    if (!protocol) return Outcome::malformed;
    const auto goes = [protocol = *protocol](uint8_t own) {
        return protocol == 0 || protocol == own ||
               (protocol == kAnyProtocol &&
                (own == kProtocolEsp || own == kProtocolAh || own == kProtocolIpcomp));
    };
    std::vector<SaName> names;
    for (const auto& [name, state] : states_) {
        if (goes(name.protocol)) names.push_back(name);
    }
    for (const SaName& name : names) remove_state(name, changes);
    return Outcome::applied;
}

RegisterMirror::Outcome RegisterMirror::take_counters(const Message& message,
                                                      RegisterChanges& changes) {
    const auto event = decode_counter_event(message.payload);
    if (!event) return Outcome::malformed;
    if (is_own_reqid(event->reqid)) return Outcome::own;
    // Some kernels leave the port of events of their own undefined, so it alone proves nothing.
    if (event->by_program && own_port_ != 0 && message.port == own_port_) return Outcome::own;
    const auto known = states_.find(event->name);
    if (known == states_.end()) return Outcome::ignored;
    KernelSa& state = known->second;
    if (event->replay) {
        Replay replay = *event->replay;
        if (!state.esn) {
            replay.sent &= 0xffffffff;
            replay.top &= 0xffffffff;
        }
        raise_counters(state, replay);
    }
    if (event->usage) raise_counters(state, *event->usage);
    if (!changes.added.contains(event->name)) changes.used.insert(event->name);
    return Outcome::applied;
}

const KernelSa* RegisterMirror::find(const SaName& name) const {
    const auto found = states_.find(name);
    return found == states_.end() ? nullptr : &found->second;
}

void RegisterMirror::refresh(const KernelSa& state) {
    const auto known = states_.find(state.name);
    if (known == states_.end()) return;
    if (has_lower_numbers(state, known->second)) tell_last(known->second);
    known->second.usage = state.usage;
    known->second.last_used = state.last_used;
    known->second.replay.sent = state.replay.sent;
    known->second.replay.top = state.replay.top;
}

// ---- policies --------------------------------------------------------------------------------

RegisterMirror::Outcome RegisterMirror::take_policy(const Message& message,
                                                    RegisterChanges& changes) {
    auto policy = decode_kernel_policy(message.payload);
    if (!policy) return Outcome::malformed;
    if (!*policy) return Outcome::ignored;
    if (is_own_index((*policy)->row.index)) return Outcome::own;
    const uint32_t index = (*policy)->row.index;
    const auto known = policies_.find(index);
    // An update without a difference, as of most policies at a rekey.
    if (known != policies_.end() && known->second == **policy) return Outcome::applied;
    policies_.insert_or_assign(index, std::move(**policy));
    changes.policies.insert(index);
    return Outcome::applied;
}

void RegisterMirror::remove_policy(uint32_t index, RegisterChanges& changes) {
    if (policies_.erase(index) != 0) changes.policies.insert(index);
}

RegisterMirror::Outcome RegisterMirror::flush_policies(const Message& message,
                                                       RegisterChanges& changes) {
    const auto main_type = decode_flush_policies(message.payload);
    if (!main_type) return Outcome::malformed;
    std::erase_if(policies_, [&](const auto& entry) {
        if (entry.second.main_type != *main_type) return false;
        changes.policies.insert(entry.first);
        return true;
    });
    return Outcome::applied;
}

RegisterMirror::Outcome RegisterMirror::take_acquire(const Message& message,
                                                     RegisterChanges& changes) {
    auto acquire = decode_acquire(message.payload);
    if (!acquire) return Outcome::malformed;
    ++counters_.acquires;
    if (changes.acquires.size() < RegisterChanges::kAcquiresMax) {
        changes.acquires.push_back({.policy = std::move(acquire->policy),
                                    .source = acquire->source,
                                    .destination = acquire->destination});
    }
    return Outcome::applied;
}

// ---- dump ------------------------------------------------------------------------------------

void RegisterMirror::begin_dump() {
    dump_position_ = 0;
    dumped_states_.clear();
    dumped_policies_.clear();
}

void RegisterMirror::load(const Message& message) {
    count(load_one(message));
}

// Of two entries with the same name the first is the newer one: it replaced the other meanwhile.
RegisterMirror::Outcome RegisterMirror::load_one(const Message& message) {
    if (message.type == XFRM_MSG_NEWSA) {
        auto state = decode_kernel_sa(message.payload);
        if (!state) return Outcome::malformed;
        if (is_own_reqid(state->reqid)) return Outcome::own;
        if (state->name.spi == Spi{}) return Outcome::ignored;
        state->arrival = ++dump_position_;
        const SaName name = state->name;
        dumped_states_.try_emplace(name, std::move(*state));
        return Outcome::applied;
    }
    if (message.type == XFRM_MSG_NEWPOLICY) {
        auto policy = decode_kernel_policy(message.payload);
        if (!policy) return Outcome::malformed;
        if (!*policy) return Outcome::ignored;
        const uint32_t index = (*policy)->row.index;
        if (is_own_index(index)) return Outcome::own;
        dumped_policies_.try_emplace(index, std::move(**policy));
        return Outcome::applied;
    }
    return Outcome::ignored;
}

void RegisterMirror::end_dump(RegisterChanges& changes) {
    number_arrivals(dumped_states_, states_, arrivals_);
    for (const auto& [name, state] : states_) {
        const auto dumped = dumped_states_.find(name);
        const bool there = dumped != dumped_states_.end();
        if (!there || !same_sa(state, dumped->second) || has_lower_numbers(dumped->second, state)) {
            tell_last(state);
        }
        if (there) continue;
        changes.added.erase(name);
        changes.used.erase(name);
        changes.removed.insert(name);
    }
    for (const auto& [name, state] : dumped_states_) {
        const auto known = states_.find(name);
        if (known == states_.end() || !same_sa(known->second, state)) {
            changes.added.insert(name);
        } else if (known->second.arrival != state.arrival ||
                   has_lower_numbers(state, known->second)) {
            changes.moved.insert(name);
        }
    }
    states_ = std::exchange(dumped_states_, {});

    for (const auto& [index, policy] : policies_) {
        if (!dumped_policies_.contains(index)) changes.policies.insert(index);
    }
    for (const auto& [index, policy] : dumped_policies_) {
        const auto known = policies_.find(index);
        if (known == policies_.end() || known->second != policy) changes.policies.insert(index);
    }
    policies_ = std::exchange(dumped_policies_, {});
    changes.resync = false;
}

}  // namespace sallyport::xfrm
