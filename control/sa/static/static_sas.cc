// SPDX-License-Identifier: Apache-2.0
#include "control/sa/static/static_sas.h"

#include <algorithm>
#include <map>
#include <span>
#include <utility>

#include "control/sa/audit.h"
#include "control/sa/sequence_block.h"
#include "control/sa/static/rows.h"

namespace sallyport::control {

namespace {

WorkerId owner_of(const config::StaticSa& sa, uint16_t worker_count) {
    if (sa.worker) return *sa.worker;
    const uint32_t hash = sp_sa_hash(Be32(to_index(sa.spi)).raw(), sa.destination.last_word());
    return WorkerId{static_cast<uint16_t>(hash % worker_count)};
}

std::vector<uint32_t> if_ids_of(const std::vector<config::Policy>& policies) {
    std::vector<uint32_t> out;
    for (const config::Policy& policy : policies) out.push_back(policy.if_id);
    return out;
}

}  // namespace

std::expected<std::unique_ptr<StaticSas>, std::string> StaticSas::make(
    Log& log, const config::Config& config, Setup setup, const crypto::Aead& aead,
    SequenceStore& store, xfrm::SaRegistry& registry, WorkerCommands& commands) {
    auto spd = compile_policies(config.policies);
    if (!spd) return std::unexpected(spd.error());
    return std::unique_ptr<StaticSas>(new StaticSas(log, config, std::move(setup), aead, store,
                                                    registry, commands, std::move(*spd)));
}

StaticSas::StaticSas(Log& log, const config::Config& config, Setup setup, const crypto::Aead& aead,
                     SequenceStore& store, xfrm::SaRegistry& registry, WorkerCommands& commands,
                     PublishedSpd spd)
    : log_(log),
      config_(config),
      setup_(std::move(setup)),
      aead_(aead),
      store_(store),
      registry_(registry),
      commands_(commands),
      spd_(std::move(spd)),
      tops_(config.state_dir) {
    for (size_t i = 0; i < config.sas.size(); ++i) {
        const config::StaticSa& sa = config.sas[i];
        ManagedSa managed;
        managed.id = SaId{static_cast<uint32_t>(i)};
        managed.config = &sa;
        managed.owner = owner_of(sa, static_cast<uint16_t>(setup_.cpus.size()));
        const auto policy = std::ranges::find(config.policies, sa.policy, &config::Policy::name);
        managed.policy = PolicyId{static_cast<uint32_t>(policy - config.policies.begin())};
        if (managed.is_outbound()) far_ends_.insert(sa.destination);
        sas_.push_back(std::move(managed));
    }
}

void StaticSas::refuse(ManagedSa& sa, const std::string& reason) {
    sa.refusal = reason;
    log_.error("SA '" + sa.config->name + "' is refused: " + reason);
}

SourceNeeds StaticSas::needs() const {
    const bpf_objects::Limits least;
    const auto room = [](size_t outbound, size_t inbound, uint32_t at_least) {
        return std::max(static_cast<uint32_t>(outbound + inbound), at_least);
    };
    const CompiledSpd& out = spd_.outbound;
    const CompiledSpd& in = spd_.inbound;
    SourceNeeds needs;
    needs.maps = {.inbound_sas = config_.max_sas,
                  .spd_destinations =
                      room(out.destinations.size(), in.destinations.size(), least.spd_destinations),
                  .spd_sources = room(out.sources.size(), in.sources.size(), least.spd_sources),
                  .spd_entries = room(out.entries.size(), in.entries.size(), least.spd_entries)};
    needs.policies = static_cast<uint32_t>(config_.policies.size());
    return needs;
}

std::expected<void, std::string> StaticSas::open(bpf_objects::BpfObjects& bpf) {
    if (!store_.distrust().empty()) log_.warning(store_.distrust());
    if (const auto loaded = tops_.load(); !loaded) log_.warning(loaded.error());
    for (ManagedSa& sa : sas_) sa.key = digest_of_key(sa.config->key.bytes());
    refuse_shared_keys();
    reserve_first();
    for (ManagedSa& sa : sas_) {
        if (sa.active()) build_one(sa);
    }
    note_unserved();
    announce(bpf);
    if (registry_.method() == xfrm::SaRegistry::Method::larval) {
        log_.note("inbound SAs are registered in xfrm as larval states: " + registry_.reason());
    }
    install();
    return publish(bpf);
}

std::expected<void, std::string> StaticSas::publish(bpf_objects::BpfObjects& bpf) {
    commands_.publish(std::move(spd_.spd));
    return bpf.publish_spd(
        spd_.outbound, spd_.inbound, owners_by_policy(),
        setup_.kernel_connections ? if_ids_of(config_.policies) : std::vector<uint32_t>{});
}

void StaticSas::note_unserved() {
    const std::vector<std::vector<WorkerId>> owners = owners_by_policy();
    for (size_t i = 0; i < config_.policies.size(); ++i) {
        const config::Policy& policy = config_.policies[i];
        if (policy.action != SpdAction::protect || policy.if_id != 0 || !owners[i].empty()) {
            continue;
        }
        log_.warning("policy '" + policy.name +
                     "' protects and no outbound SA serves it: what it covers is dropped (no_sa)");
    }
}

void StaticSas::refuse_shared_keys() {
    // Two senders under one key repeat each other's IVs; the peer sends with our inbound keys.
    std::map<KeyDigest, const ManagedSa*> by_key;
    for (ManagedSa& sa : sas_) {
        const auto [first, is_new] = by_key.try_emplace(sa.key, &sa);
        if (is_new) continue;
        for (const ManagedSa* one : {first->second, static_cast<const ManagedSa*>(&sa)}) {
            ManagedSa& affected = sas_[to_index(one->id)];
            const ManagedSa& other = one == &sa ? *first->second : sa;
            if (!affected.is_outbound() || !affected.active()) continue;
            refuse(affected, "SA '" + other.config->name +
                                 "' has the same key, and two senders under one key break AES-GCM: "
                                 "give each SA a key of its own, on both ends");
        }
    }
}

void StaticSas::reserve_first() {
    std::vector<SequenceStore::Request> requests;
    std::vector<ManagedSa*> asking;
    for (ManagedSa& sa : sas_) {
        if (!sa.is_outbound() || !sa.active()) continue;
        requests.push_back({.key = sa.key,
                            .count = sequence_block(sa.config->esn),
                            .end = sequence_end(sa.config->esn)});
        asking.push_back(&sa);
    }
    const auto results = store_.reserve(requests);
    for (size_t i = 0; i < results.size(); ++i) {
        ManagedSa& sa = *asking[i];
        if (!results[i]) {
            std::string reason = results[i].error();
            // The store knows keys by digest only; the operator knows them by the SA's name.
            constexpr std::string_view kName = "--accept-key NAME";
            for (size_t at = reason.find(kName); at != std::string::npos;
                 at = reason.find(kName, at + 1)) {
                reason.replace(at + kName.size() - 4, 4, sa.config->name);
            }
            refuse(sa, reason);
            continue;
        }
        sa.sequence_told = results[i]->first;
        sa.sequence_reserved = results[i]->end;
    }
}

void StaticSas::build_outbound(ManagedSa& sa) {
    const config::StaticSa& config = *sa.config;
    // No port would send what it makes.
    if (config.mtu > setup_.mtu_max) {
        return refuse(sa, "its mtu of " + std::to_string(config.mtu) +
                              " is more than any unprotected port carries (" +
                              std::to_string(setup_.mtu_max) +
                              "): leave it out, or raise the MTU of the port");
    }
    const SequenceStore::Range range{.first = sa.sequence_told, .end = sa.sequence_reserved};
    auto made =
        make_outbound_sa(aead_, {.id = sa.id,
                                 .policy = sa.policy,
                                 .spi = config.spi,
                                 .source = config.source,
                                 .destination = config.destination,
                                 .suite = config.suite,
                                 .key = config.key.bytes(),
                                 .esn = config.esn,
                                 .sequence_next = range.first,
                                 .sequence_reserved = range.end,
                                 .sequence_low_water = low_water(range, sequence_end(config.esn)),
                                 .iv_mask = 0,
                                 .owner = sa.owner,
                                 .mtu = config.mtu,
                                 .df = config.df,
                                 .copy_dscp = config.copy_dscp,
                                 .outer_ttl = config.outer_ttl});
    if (!made) return refuse(sa, made.error());
    sa.outbound = std::move(*made);
    sa.sequence_told = range.end;
}

void StaticSas::build_one(ManagedSa& sa) {
    if (sa.is_outbound()) return build_outbound(sa);
    const config::StaticSa& config = *sa.config;
    const std::vector<Selector> selectors =
        inbound_selectors(config_.policies[to_index(sa.policy)]);
    uint64_t top = tops_.find({config.spi, sa.key});
    if (top >= sequence_end(config.esn)) {
        log_.warning("SA '" + config.name + "': replay_tops has a number that it cannot have; " +
                     "it begins with an empty window");
        top = 0;
    }
    auto made = make_inbound_sa(aead_, {.id = sa.id,
                                        .policy = sa.policy,
                                        .spi = config.spi,
                                        .source = config.source,
                                        .destination = config.destination,
                                        .suite = config.suite,
                                        .key = config.key.bytes(),
                                        .esn = config.esn,
                                        .replay_window = config.replay_window,
                                        .replay_top = top,
                                        .owner = sa.owner,
                                        .selectors = selectors});
    if (!made) return refuse(sa, made.error());
    sa.inbound = std::move(*made);
}

void StaticSas::announce(bpf_objects::BpfObjects& bpf) {
    std::vector<xfrm::NewState> states;
    std::vector<ManagedSa*> announced;
    for (ManagedSa& sa : sas_) {
        if (!sa.active()) continue;
        const config::StaticSa& config = *sa.config;
        states.push_back({.id = {config.spi, config.destination},
                          .source = config.source,
                          .direction = sa.is_outbound() ? xfrm::StateDirection::outbound
                                                        : xfrm::StateDirection::inbound,
                          .suite = config.suite,
                          .key = config.key.bytes(),
                          .esn = config.esn,
                          .replay_window = config.replay_window,
                          .pcpu = setup_.cpus[to_index(sa.owner)]});
        announced.push_back(&sa);
    }
    const auto results = registry_.add(states);
    for (size_t i = 0; i < results.size(); ++i) {
        ManagedSa& sa = *announced[i];
        if (sa.is_outbound()) {
            // Only for show; the worker sends without it.
            if (!results[i]) log_.warning("SA '" + sa.config->name + "': " + results[i].error());
            continue;
        }
        if (!results[i]) {
            refuse(sa, results[i].error());
            continue;
        }
        if (*results[i] == xfrm::SaRegistry::Registered::beside_another) {
            log_.note("SA '" + sa.config->name + "' is not in xfrm, because another SA has " +
                      xfrm::to_text(sa.config->spi) +
                      " too and kernels without ESP may take an SPI once only: it works all the "
                      "same");
        }
        const auto inserted = bpf.insert_owner(sa.config->spi, sa.config->destination, sa.owner);
        if (!inserted) refuse(sa, inserted.error());
    }
}

void StaticSas::install() {
    for (ManagedSa& sa : sas_) {
        if (!sa.active()) continue;
        if (sa.is_outbound()) {
            commands_.send(sa.owner, command::InstallOutbound{sa.outbound.get()});
        } else {
            commands_.send(sa.owner, command::InstallInbound{sa.inbound.get()});
        }
    }
}

void StaticSas::handle(const Event& event) {
    if (const auto* low = std::get_if<event::SequenceLow>(&event)) {
        ManagedSa& sa = sas_[to_index(low->id)];
        sa.extension_due = true;
        extend(sa);
    } else if (const auto* news = std::get_if<event::SequenceExhausted>(&event)) {
        exhausted(*news);
    } else if (const auto* inbound = std::get_if<event::InboundRetired>(&event)) {
        no_room_for(inbound->id);
    } else if (const auto* outbound = std::get_if<event::OutboundRetired>(&event)) {
        no_room_for(outbound->id);
    }
}

void StaticSas::exhausted(const event::SequenceExhausted& news) {
    ManagedSa& sa = sas_[to_index(news.id)];
    if (!sa.active()) return;  // each further packet says so again
    log_.audit(audit_text({.reason = DropReason::sequence_exhausted,
                           .spi = news.spi,
                           .sequence = news.next,
                           .source = sa.config->source,
                           .destination = sa.config->destination}));
    refuse(sa, "it has used its last sequence number: give it a new key on both ends");
}

// Nobody retires static SAs: the worker refused it.
void StaticSas::no_room_for(SaId id) {
    refuse(sas_[to_index(id)], "its worker has no room for it: raise max_sas");
}

void StaticSas::extend(ManagedSa& sa) {
    const uint64_t end = sequence_end(sa.config->esn);
    if (sa.sequence_told == sa.sequence_reserved) {
        if (sa.sequence_reserved >= end) {
            sa.extension_due = false;
            return;
        }
        if (!reserve_more(sa)) return;  // tried again
    }
    const SequenceStore::Range told{.first = sa.sequence_told, .end = sa.sequence_reserved};
    commands_.send(sa.owner, command::ExtendSequence{.sa = sa.outbound.get(),
                                                     .reserved = sa.sequence_reserved,
                                                     .low_water = low_water(told, end)});
    sa.sequence_told = sa.sequence_reserved;
    sa.extension_due = false;
}

bool StaticSas::reserve_more(ManagedSa& sa) {
    const SequenceStore::Request request{.key = sa.key,
                                         .count = sequence_block(sa.config->esn),
                                         .end = sequence_end(sa.config->esn)};
    const auto range = store_.reserve(std::span(&request, 1)).front();
    if (!range) {
        if (range.error() != sa.extension_error) {
            log_.error("SA '" + sa.config->name +
                       "' will stop when its sequence numbers are used up: " + range.error());
        }
        sa.extension_error = range.error();
        return false;
    }
    if (!std::exchange(sa.extension_error, {}).empty()) {
        log_.info("SA '" + sa.config->name + "' has sequence numbers again");
    }
    sa.sequence_reserved = range->end;
    return true;
}

void StaticSas::tick() {
    for (ManagedSa& sa : sas_) {
        // A worker asks once. Where its event ring was full, the numbers themselves tell: those
        // left of what it has been given.
        if (sa.outbound && sa.active() && sa.sequence_told < sequence_end(sa.config->esn)) {
            const uint64_t next = sa.outbound->sequence_next.read();
            const uint64_t left = sa.sequence_told - std::min(next, sa.sequence_told);
            if (left < sequence_left_min(sa.config->esn)) sa.extension_due = true;
        }
        if (sa.extension_due) extend(sa);
    }
    save_tops(ReplayTops::Sync::later);
}

void StaticSas::save_tops(ReplayTops::Sync sync) {
    for (const ManagedSa& sa : sas_) {
        if (!sa.inbound || sa.inbound->replay.window() == 0) continue;
        tops_.raise({sa.config->spi, sa.key}, sa.inbound->replay.top());
    }
    const auto saved = tops_.save(sync);
    const std::string error = saved ? "" : saved.error();
    if (!error.empty() && error != tops_error_) {
        log_.warning(error + "; until that works packets are accepted once more after a restart");
    }
    tops_error_ = error;
}

void StaticSas::give_back() {
    std::vector<SequenceStore::Next> exact;
    for (const ManagedSa& sa : sas_) {
        if (!sa.outbound) continue;
        exact.push_back({.key = sa.key, .next = sa.outbound->sequence_next.read()});
    }
    save_tops(ReplayTops::Sync::now);
    if (const auto done = store_.give_back(exact); !done) {
        // Safe, but the rest of the reserved blocks is lost.
        log_.warning("sequence numbers are not written back: " + done.error());
    }
}

std::vector<std::vector<WorkerId>> StaticSas::owners_by_policy() const {
    std::vector<std::vector<WorkerId>> owners(config_.policies.size());
    for (const ManagedSa& sa : sas_) {
        if (!sa.is_outbound() || !sa.active()) continue;
        auto& list = owners[to_index(sa.policy)];
        if (std::ranges::find(list, sa.owner) == list.end()) list.push_back(sa.owner);
    }
    return owners;
}

std::optional<IpAddress> StaticSas::far_end_after(const std::optional<IpAddress>& last) const {
    const auto next = last ? far_ends_.upper_bound(*last) : far_ends_.begin();
    return next == far_ends_.end() ? std::nullopt : std::optional(*next);
}

std::vector<SaRow> StaticSas::sas() const {
    std::vector<SaRow> out;
    for (const ManagedSa& sa : sas_) out.push_back(row_of(sa));
    return out;
}

size_t StaticSas::served_by(WorkerId worker) const {
    return static_cast<size_t>(std::ranges::count_if(
        sas_, [worker](const ManagedSa& sa) { return sa.active() && sa.owner == worker; }));
}

std::string StaticSas::inventory() const {
    const auto refused =
        std::ranges::count_if(sas_, [](const ManagedSa& sa) { return !sa.active(); });
    return std::to_string(config_.policies.size()) + " policies, " + std::to_string(sas_.size()) +
           " SAs" + (refused == 0 ? "" : " (" + std::to_string(refused) + " refused)");
}

}  // namespace sallyport::control
