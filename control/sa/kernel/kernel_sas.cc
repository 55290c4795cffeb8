// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/kernel_sas.h"

#include <ifaddrs.h>
#include <netinet/in.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "control/policy/compile.h"
#include "control/sa/sequence_block.h"

namespace sallyport::control {

namespace {

using ErrorCode = boost::system::error_code;
using xfrm::StateDirection;

// Drawn for each SA that is built: see "Never a nonce twice".
std::expected<uint64_t, std::string> random_mask() {
    uint64_t mask = 0;
    if (getrandom(&mask, sizeof mask, 0) != sizeof mask) {
        return std::unexpected("the kernel gives no random numbers");
    }
    return mask;
}

constexpr const char* kNoRoom = "there is no room for it: raise gateway.max_sas";

bool used_by_kernel(const xfrm::KernelSa& state) {
    return state.replay.sent > 0 || state.replay.top > 0 || state.usage.packets > 0;
}

}  // namespace

KernelSas::KernelSas(boost::asio::io_context& context, Log& log, const config::Config& config,
                     Setup setup, const crypto::Aead& aead, xfrm::PolicyGuard& guard,
                     WorkerCommands& commands)
    : log_(log),
      config_(config),
      setup_(std::move(setup)),
      aead_(aead),
      guard_(guard),
      commands_(commands),
      groups_(config.max_sas),
      context_(context),
      settle_timer_(context),
      finish_timer_(context),
      tick_timer_(context) {}

KernelSas::~KernelSas() = default;

SourceNeeds KernelSas::needs() const {
    const bpf_objects::Limits least;
    const uint32_t rows = config_.max_sas * 4;
    return {.maps = {.inbound_sas = config_.max_sas,
                     .spd_destinations = std::max(least.spd_destinations, rows),
                     .spd_sources = std::max(least.spd_sources, rows),
                     .spd_entries = std::max(least.spd_entries, rows)},
            .register_mode = true,
            .policies = config_.max_sas,  // a group has at least one SA, or needs no number
            .hold_frames = config::kHoldFrames,
            .hold_ms = kHoldMs};
}

std::expected<void, std::string> KernelSas::open(bpf_objects::BpfObjects& bpf) {
    bpf_ = &bpf;
    auto socket = xfrm::RegisterSocket::open();
    if (!socket) return std::unexpected(socket.error());
    socket_.emplace(std::move(*socket));
    mirror_.set_own_port(socket_->own_port());
    readable_.emplace(context_, dup(socket_->fd()));
    if (auto dumped = socket_->dump(mirror_, changes_); !dumped) return dumped;
    read_local_addresses();
    Adoption now = decide_adoption(mirror_, adoption_setup(), groups_);
    return publish(std::move(now));
}

void KernelSas::start() {
    taking_over_ = true;
    settle();
    wait_for_changes();
    on_tick();
}

void KernelSas::stop() {
    stopped_ = true;
    ErrorCode ignored;
    if (readable_) readable_->close(ignored);
    settle_timer_.cancel();
    finish_timer_.cancel();
    tick_timer_.cancel();
}

// ---- following the register --------------------------------------------------------------------

void KernelSas::wait_for_changes() {
    readable_->async_wait(boost::asio::posix::stream_descriptor::wait_read,
                          [this](ErrorCode error) {
                              if (error || stopped_) return;
                              on_readable();
                              wait_for_changes();
                          });
}

void KernelSas::on_readable() {
    const auto received = socket_->receive(mirror_, changes_);
    if (!received) log_.warning("the register of SAs is read again: " + received.error());
    if (!received || changes_.resync) return read_again();
    // The kernel says so for every other packet of an SA that it serves itself: no reason to
    // decide about all of them anew.
    for (const xfrm::SaName& name : std::exchange(changes_.used, {})) kernel_used(name);
    changes_.acquires.clear();
    if (!changes_.empty()) settle_soon();
}

void KernelSas::read_again() {
    const auto dumped = socket_->dump(mirror_, changes_);
    read_again_due_ = !dumped.has_value();
    if (!dumped) {
        log_.error("what xfrm holds may be out of date here, it is read again in a second: " +
                   dumped.error());
        return;
    }
    changes_.resync = false;
    settle_soon();
}

void KernelSas::settle_soon(int ms) {
    const auto at = std::chrono::steady_clock::now() + std::chrono::milliseconds(ms);
    if (stopped_ || (settle_due_ && settle_timer_.expiry() <= at)) return;
    settle_due_ = true;
    settle_timer_.expires_at(at);
    settle_timer_.async_wait([this](ErrorCode error) {
        if (!error) settle();
    });
}

// One round: what the register is now, against what the workers have.
void KernelSas::settle() {
    settle_due_ = false;
    const xfrm::RegisterChanges changes = std::exchange(changes_, {});
    for (const auto* names : {&changes.added, &changes.removed}) {
        for (const xfrm::SaName& name : *names) kept_.erase(name);
    }
    std::erase_if(kept_, [](const auto& kept) { return kept.second == kNoRoom; });
    for (const xfrm::SaName& name : changes.used) kernel_used(name);
    read_local_addresses();
    Adoption now = decide_adoption(mirror_, adoption_setup(), groups_);
    const std::vector<Slot*> leaving = departed(now, changes);
    for (Slot* slot : leaving) {
        by_name_.erase(slot->name);
        slot->phase = Phase::retiring;
    }
    refresh_slots(now);
    name_marked_states();
    create_slots(now);
    if (const auto published = publish(std::move(now)); !published) {
        log_.error("the policies in xfrm cannot be used, the earlier ones stay: " +
                   published.error());
    }
    // Only now that no frame is steered to them any more.
    for (Slot* slot : leaving) retire(*slot);
    const auto steered_at = std::chrono::steady_clock::now();
    for (const auto& [name, slot] : by_name_) {
        if (!slot->steered_at) slot->steered_at = steered_at;
    }
    finish();
    finish_later();
}

std::vector<KernelSas::Slot*> KernelSas::departed(const Adoption& now,
                                                  const xfrm::RegisterChanges& changes) {
    std::vector<Slot*> leaving;
    for (const auto& [name, slot] : by_name_) {
        const xfrm::KernelSa* state = mirror_.find(name);
        const auto decision = now.sas.find(name);
        bool stays = state != nullptr && decision != now.sas.end() && decision->second.adopted() &&
                     !changes.removed.contains(name) &&
                     decision->second.direction == slot->direction &&
                     decision->second.owner == slot->owner && decision->second.group == slot->group;
        if (stays && changes.added.contains(name)) {
            stays = same_key(*slot, *state) && state->source == slot->source &&
                    state->esn == slot->esn && state->replay.window == slot->replay.window;
        }
        if (!stays) leaving.push_back(slot);
    }
    return leaving;
}

// SAs that stay, with what may change under way: limits, selectors, rank.
void KernelSas::refresh_slots(const Adoption& now) {
    for (const auto& [name, slot] : by_name_) {
        const xfrm::KernelSa* state = mirror_.find(name);
        if (slot->limits != state->limits) slot->soft_reported = slot->hard_reported = false;
        slot->limits = state->limits;
        const SaDecision& decision = now.sas.at(name);
        const bool other_selectors = decision.selectors != slot->decision.selectors;
        slot->decision = decision;
        if (other_selectors && slot->phase == Phase::installed && slot->inbound) {
            replace_inbound(*slot, *state);
        }
    }
}

void KernelSas::create_slots(const Adoption& now) {
    if (!taking_over_) return;
    // Where a worker serves a group already, the kernel sends nothing of it. Else packets may be on
    // their way through the kernel that will take the new SA, though it is unused until now.
    std::set<PolicyId> served;
    for (const auto& [name, slot] : by_name_) {
        if (slot->outbound && slot->phase == Phase::installed) served.insert(slot->group);
    }
    for (const auto& [name, decision] : now.sas) {
        if (!decision.adopted() || by_name_.contains(name)) continue;
        // One of that name is still on its way out: its counters are not known yet.
        if (retiring_.contains(name) || kept_.contains(name)) continue;
        const xfrm::KernelSa& state = *mirror_.find(name);
        // Those on their way out count too: a worker's table never refuses an SA.
        if (slots_.size() - free_slots_.size() >= config_.max_sas) {
            kept_.emplace(name, kNoRoom);
            continue;
        }
        uint32_t index = static_cast<uint32_t>(slots_.size());
        if (free_slots_.empty()) {
            slots_.emplace_back();
        } else {
            index = free_slots_.back();
            free_slots_.pop_back();
        }
        auto slot = std::make_unique<Slot>();
        slot->id = SaId{index};
        slot->name = name;
        slot->direction = *decision.direction;
        slot->owner = decision.owner;
        slot->group = decision.group;
        slot->decision = decision;
        slot->memory_name = {
            .spi = name.spi, .protocol = name.protocol, .key = digest_of_key(state.key.bytes())};
        slot->source = state.source;
        slot->esn = state.esn;
        slot->replay = state.replay;
        slot->limits = state.limits;
        slot->settle_first =
            used_by_kernel(state) ||
            (slot->direction == StateDirection::outbound && !served.contains(slot->group));
        if (slot->direction == StateDirection::inbound) {
            const auto inserted = bpf_->insert_owner(name.spi, name.destination, slot->owner);
            if (!inserted) {
                kept_.emplace(name, inserted.error());
                free_slots_.push_back(index);
                continue;
            }
        }
        by_name_.emplace(name, slot.get());
        slots_[index] = std::move(slot);
    }
}

// XDP asks the kernel for states without a mark. One with a mark would not be found, so the owner
// map says that it is the kernel's.
void KernelSas::name_marked_states() {
    std::set<std::pair<Spi, IpAddress>> marked;
    for (const auto& [name, state] : mirror_.states()) {
        if (name.mark.mask != 0 && name.protocol == xfrm::kProtocolEsp) {
            marked.emplace(name.spi, name.destination);
        }
    }
    for (const auto& [spi, destination] : marked_) {
        if (marked.contains({spi, destination})) continue;
        if (const auto done = bpf_->remove_owner(spi, destination); !done) {
            log_.error(done.error());
        }
    }
    for (const auto& [spi, destination] : marked) {
        if (marked_.contains({spi, destination})) continue;
        if (const auto done = bpf_->insert_owner(spi, destination, std::nullopt); !done) {
            log_.error("packets of an SA with a mark do not reach the kernel: " + done.error());
        }
    }
    marked_ = std::move(marked);
}

std::vector<std::vector<WorkerId>> KernelSas::owners() const {
    std::vector<std::vector<WorkerId>> out(groups_.upper_bound());
    for (const auto& [name, slot] : by_name_) {
        if (slot->direction != StateDirection::outbound) continue;
        auto& workers = out[to_index(slot->group)];
        if (std::ranges::find(workers, slot->owner) == workers.end()) {
            workers.push_back(slot->owner);
        }
    }
    for (auto& workers : out) {
        std::ranges::sort(workers);
        if (workers.size() > SP_OWNERS_MAX) workers.resize(SP_OWNERS_MAX);
    }
    return out;
}

std::expected<void, std::string> KernelSas::publish(Adoption now) {
    const bool other_policies = policies_due_ || now.outbound != adoption_.outbound ||
                                now.inbound != adoption_.inbound ||
                                now.if_id_by_group != adoption_.if_id_by_group;
    adoption_ = std::move(now);
    auto workers = owners();
    if (other_policies) {
        policies_due_ = true;  // until it is done
        auto compiled = compile_entries(adoption_.outbound, adoption_.inbound);
        if (!compiled) return std::unexpected(compiled.error());
        spd_ = compiled->spd.get();
        commands_.publish(std::move(compiled->spd));
        auto done = bpf_->publish_spd(compiled->outbound, compiled->inbound, workers,
                                      adoption_.if_id_by_group);
        if (!done) return done;
        policies_due_ = false;
    } else if (workers != published_owners_) {
        const auto done = bpf_->update_owners(workers);
        if (!done) return std::unexpected(done.error());
    }
    published_owners_ = std::move(workers);
    let_outer_packets_pass();
    return {};
}

// A worker's ESP packet that needs the kernel's help (no neighbour yet) must not be taken for
// traffic to protect, where a policy is wide enough to cover the tunnel's own addresses.
void KernelSas::let_outer_packets_pass() {
    std::set<std::pair<IpAddress, IpAddress>> pairs;
    for (const auto& [name, slot] : by_name_) {
        if (slot->direction != StateDirection::outbound) continue;
        const SpdVerdict verdict =
            spd_->lookup(SpdDirection::outbound,
                         {.family = name.destination.family,
                          .source = std::as_bytes(std::span(slot->source.bytes)).data(),
                          .destination = std::as_bytes(std::span(name.destination.bytes)).data(),
                          .protocol = IPPROTO_ESP});
        if (verdict.kind != SpdVerdict::Kind::no_match) {
            pairs.emplace(slot->source, name.destination);
        }
    }
    if (pairs == outer_pairs_) return;
    const std::vector<std::pair<IpAddress, IpAddress>> rows(pairs.begin(), pairs.end());
    if (const auto done = guard_.replace(xfrm::outer_esp_rows(rows)); !done) {
        log_.error("ESP packets that need the kernel's help may be encrypted twice: " +
                   done.error());
        return;
    }
    outer_pairs_ = std::move(pairs);
}

// ---- into the worker ---------------------------------------------------------------------------

void KernelSas::finish_later() {
    const bool some = std::ranges::any_of(
        by_name_, [](const auto& item) { return item.second->phase == Phase::steered; });
    if (!some || finish_due_ || stopped_) return;
    finish_due_ = true;
    finish_timer_.expires_after(std::chrono::milliseconds(kSettleMs));
    finish_timer_.async_wait([this](ErrorCode error) {
        if (error) return;
        finish_due_ = false;
        finish();
        finish_later();
    });
}

// Those that the kernel has used only when some time has passed since they were steered away from
// it, each by its own: a round that is due may be that of an earlier one.
void KernelSas::finish() {
    const auto steered_by = std::chrono::steady_clock::now() - std::chrono::milliseconds(kSettleMs);
    std::vector<Slot*> ready;
    for (const auto& [name, slot] : by_name_) {
        if (slot->phase == Phase::steered &&
            (!slot->settle_first || (slot->steered_at && *slot->steered_at <= steered_by))) {
            ready.push_back(slot);
        }
    }
    for (Slot* slot : ready) finish_one(*slot);
}

void KernelSas::finish_one(Slot& slot) {
    auto state = socket_->get(slot.name);
    if (!state) {
        if (state.error().number != ESRCH) return keep_with_kernel(slot, state.error().text);
        // It has gone meanwhile; the message about that is on its way.
        return keep_with_kernel(slot, "it was deleted");
    }
    if (!same_key(slot, *state)) return keep_with_kernel(slot, "it was replaced");
    // Its first packets came between the message about it and now: they too must have passed.
    if (!slot.settle_first && used_by_kernel(*state)) {
        slot.settle_first = true;
        return;
    }
    slot.replay = state->replay;
    slot.base = state->usage;
    if (slot.direction == StateDirection::inbound) {
        install_inbound(slot, *state);
    } else {
        install_outbound(slot, *state);
    }
    mirror_.refresh(*state);
}

InboundSaParameters KernelSas::inbound_parameters(const Slot& slot,
                                                  const xfrm::KernelSa& state) const {
    return {.id = slot.id,
            .policy = slot.group,
            .spi = slot.name.spi,
            .source = state.source,
            .destination = slot.name.destination,
            .suite = slot.decision.suite,
            .key = state.key.bytes(),
            .esn = state.esn,
            .replay_window = state.replay.window,
            .replay_top = std::max(state.replay.top, memory_.find(slot.memory_name).inbound_top),
            .owner = slot.owner,
            .selectors = slot.decision.selectors};
}

void KernelSas::install_inbound(Slot& slot, const xfrm::KernelSa& state) {
    auto made = make_inbound_sa(aead_, inbound_parameters(slot, state));
    if (!made) return keep_with_kernel(slot, made.error());
    slot.inbound = std::move(*made);
    slot.written_top = slot.inbound->replay.top();
    slot.phase = Phase::installed;
    commands_.send(slot.owner, command::InstallInbound{slot.inbound.get()});
}

void KernelSas::replace_inbound(Slot& slot, const xfrm::KernelSa& state) {
    if (slot.old_inbound) {
        settle_soon(kTickMs);  // one replacement at a time
        slot.decision.selectors.clear();
        return;
    }
    auto made = make_inbound_sa(aead_, inbound_parameters(slot, state));
    if (!made) {
        log_.error("an SA keeps its earlier selectors: " + made.error());
        return;
    }
    slot.old_inbound = std::move(slot.inbound);
    slot.inbound = std::move(*made);
    commands_.send(slot.owner, command::ReplaceInbound{.old = slot.old_inbound.get(),
                                                       .sa = slot.inbound.get()});
}

void KernelSas::install_outbound(Slot& slot, const xfrm::KernelSa& state) {
    const uint64_t end = sequence_end(state.esn);
    const uint64_t first =
        std::max(state.replay.sent + 1, memory_.find(slot.memory_name).outbound_next);
    if (first >= end) return keep_with_kernel(slot, "its sequence numbers are used up");
    const SequenceRange range = next_block(first, state.esn);
    const auto mask = random_mask();
    if (!mask) return keep_with_kernel(slot, mask.error());
    xfrm::CounterUpdate update{.replay = state.replay, .usage = state.usage};
    update.replay->sent = range.end - 1;
    if (const auto done = socket_->write_counters(state, update); !done) {
        return keep_with_kernel(slot,
                                "sequence numbers cannot be reserved in it: " + done.error().text);
    }
    memory_.raise(slot.memory_name, {.outbound_next = first});
    auto made = make_outbound_sa(aead_, {.id = slot.id,
                                         .policy = slot.group,
                                         .spi = slot.name.spi,
                                         .source = state.source,
                                         .destination = slot.name.destination,
                                         .suite = slot.decision.suite,
                                         .key = state.key.bytes(),
                                         .esn = state.esn,
                                         .sequence_next = range.first,
                                         .sequence_reserved = range.end,
                                         .sequence_low_water = low_water(range, end),
                                         .iv_mask = *mask,
                                         .rank = slot.decision.rank,
                                         .owner = slot.owner,
                                         .mtu = setup_.mtu,
                                         .df = slot.decision.df,
                                         .copy_dscp = slot.decision.copy_dscp,
                                         .outer_ttl = 64});
    if (!made) return keep_with_kernel(slot, made.error());
    slot.outbound = std::move(*made);
    slot.reserved = range.end;
    slot.told = range.end;
    slot.phase = Phase::installed;
    commands_.send(slot.owner, command::InstallOutbound{slot.outbound.get()});
    if (first > 1) ask_rekey(slot);  // another sender has used the key
}

// ---- and back ----------------------------------------------------------------------------------

void KernelSas::keep_with_kernel(Slot& slot, const std::string& reason) {
    kept_[slot.name] = reason;
    steer_away(slot);
    by_name_.erase(slot.name);
    free_slot(slot);
    settle_soon();  // the owners of its policy
}

// Inbound frames go to the kernel, if it has the state.
void KernelSas::steer_away(const Slot& slot) {
    if (slot.direction != StateDirection::inbound ||
        marked_.contains({slot.name.spi, slot.name.destination})) {
        return;
    }
    if (const auto done = bpf_->remove_owner(slot.name.spi, slot.name.destination); !done) {
        log_.error(done.error());
    }
}

// Outbound traffic is not steered to the SA any more. Inbound traffic is until the worker has let
// go and the kernel knows what it has accepted: earlier, the kernel would accept it once more.
void KernelSas::retire(Slot& slot) {
    if (!slot.inbound && !slot.outbound) {  // never installed
        steer_away(slot);
        return free_slot(slot);
    }
    ++retiring_[slot.name];
    if (slot.inbound) {
        commands_.send(slot.owner, command::RetireInbound{slot.inbound.get()});
    } else {
        commands_.send(slot.owner, command::RetireOutbound{slot.outbound.get()});
    }
}

void KernelSas::remember(const Slot& slot) {
    SequenceMemory::State used;
    if (slot.outbound) used.outbound_next = slot.outbound->sequence_next.read();
    if (slot.inbound) used.inbound_top = slot.inbound->replay.top();
    memory_.raise(slot.memory_name, used);
}

void KernelSas::free_slot(Slot& slot) {
    const uint32_t index = to_index(slot.id);
    slots_[index].reset();
    free_slots_.push_back(index);
}

KernelSas::Slot* KernelSas::slot_of(SaId id) {
    return to_index(id) < slots_.size() ? slots_[to_index(id)].get() : nullptr;
}

void KernelSas::handle(const Event& event) {
    std::visit([this](const auto& news) { take(news); }, event);
}

void KernelSas::take(const event::SequenceLow& news) {
    Slot* slot = slot_of(news.id);
    if (slot == nullptr) return;
    slot->extension_due = true;
    extend(*slot);
}

void KernelSas::take(const event::SequenceExhausted& news) {
    if (Slot* slot = slot_of(news.id)) ask_rekey(*slot);
}

void KernelSas::take(const event::InboundRetired& news) {
    Slot* slot = slot_of(news.id);
    if (slot == nullptr) return;
    if (slot->old_inbound && news.sa == slot->old_inbound.get()) {
        slot->old_inbound.reset();  // replaced
        return;
    }
    if (slot->old_inbound) {
        // The new form was refused: the earlier one is still in place, and leaves now.
        slot->inbound = std::move(slot->old_inbound);
        kept_[slot->name] = "its worker cannot change it";
        by_name_.erase(slot->name);
        slot->phase = Phase::retiring;
        retire(*slot);
        settle_soon();
        return;
    }
    let_go(*slot);
}

void KernelSas::take(const event::OutboundRetired& news) {
    if (Slot* slot = slot_of(news.id)) let_go(*slot);
}

// The worker is done with it.
void KernelSas::let_go(Slot& slot) {
    remember(slot);
    if (!hand_back(slot)) log_.warning("the counters of an SA are not written back");
    if (slot.phase != Phase::retiring) {
        return keep_with_kernel(slot, "its worker has no room: raise gateway.max_sas");
    }
    if (const auto count = retiring_.find(slot.name);
        count != retiring_.end() && --count->second == 0) {
        retiring_.erase(count);
    }
    // Where the kernel goes on with it, the key has a second sender.
    if (slot.outbound && slot.outbound->packets.read() > 0 && mirror_.find(slot.name) != nullptr) {
        ask_rekey(slot);
    }
    steer_away(slot);
    free_slot(slot);
    settle_soon();  // one of the same name may be waiting for this
}

AdoptionSetup KernelSas::adoption_setup() const {
    return {.cpus = setup_.cpus, .local_addresses = local_addresses_, .policies = config_.policies};
}

void KernelSas::read_local_addresses() {
    ifaddrs* list = nullptr;
    if (getifaddrs(&list) != 0) return;
    local_addresses_.clear();
    for (const ifaddrs* item = list; item != nullptr; item = item->ifa_next) {
        if (item->ifa_addr == nullptr) continue;
        IpAddress address;
        if (item->ifa_addr->sa_family == AF_INET) {
            sockaddr_in v4{};
            std::memcpy(&v4, item->ifa_addr, sizeof v4);
            std::memcpy(address.bytes.data(), &v4.sin_addr, 4);
        } else if (item->ifa_addr->sa_family == AF_INET6) {
            sockaddr_in6 v6{};
            std::memcpy(&v6, item->ifa_addr, sizeof v6);
            address.family = Family::v6;
            std::memcpy(address.bytes.data(), &v6.sin6_addr, 16);
        } else {
            continue;
        }
        local_addresses_.push_back(address);
    }
    freeifaddrs(list);
}

}  // namespace sallyport::control
