// SPDX-License-Identifier: Apache-2.0
#include "control/sa/static/static_sas.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>
#include <utility>

#include "control/policy/compile.h"

namespace sallyport::control {

namespace {

crypto::Suite suite_of(config::Suite suite) {
    switch (suite) {
        case config::Suite::aes_gcm_16_128:
            return crypto::Suite::aes_gcm_16_128;
        case config::Suite::aes_gcm_16_192:
            return crypto::Suite::aes_gcm_16_192;
        case config::Suite::aes_gcm_16_256:
            return crypto::Suite::aes_gcm_16_256;
    }
    return crypto::Suite::aes_gcm_16_128;
}

DfPolicy df_of(config::DfPolicy df) {
    switch (df) {
        case config::DfPolicy::copy:
            return DfPolicy::copy;
        case config::DfPolicy::set:
            return DfPolicy::set;
        case config::DfPolicy::clear:
            return DfPolicy::clear;
    }
    return DfPolicy::copy;
}

bool is_outbound(const ManagedSa& sa) {
    return sa.config->direction == config::SaDirection::outbound;
}

WorkerId owner_of(const config::StaticSa& sa, uint16_t worker_count) {
    if (sa.worker) return *sa.worker;
    const uint32_t hash = sp_sa_hash(Be32(to_index(sa.spi)).raw(), sa.destination.last_word());
    return WorkerId{static_cast<uint16_t>(hash % worker_count)};
}

// Start-up only: a worker takes commands at least four times a second, so a full ring empties.
bool submit_patiently(Worker& worker, const Command& command) {
    for (int attempt = 0; attempt < 5000; ++attempt) {
        if (worker.submit(command)) return true;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
}

}  // namespace

uint64_t sequence_end(bool esn) {
    return esn ? kSequenceEndEsn : kSequenceEnd32;
}

uint64_t sequence_block(bool esn) {
    return esn ? kSequenceBlockEsn : kSequenceBlock32;
}

SequenceStore::Range next_block(uint64_t first, bool esn) {
    return {.first = first,
            .end = first + std::min(sequence_block(esn), sequence_end(esn) - first)};
}

uint64_t low_water(const SequenceStore::Range& range, uint64_t end) {
    return range.end >= end ? range.end : range.first + (range.end - range.first) / 2;
}

SaControl::SaControl(Log& log, const config::Config& config, uint16_t worker_count)
    : log_(log), config_(config) {
    for (size_t i = 0; i < config.sas.size(); ++i) {
        const config::StaticSa& sa = config.sas[i];
        ManagedSa managed;
        managed.id = SaId{static_cast<uint32_t>(i)};
        managed.config = &sa;
        managed.owner = owner_of(sa, worker_count);
        const auto policy = std::ranges::find(config.policies, sa.policy, &config::Policy::name);
        managed.policy = PolicyId{static_cast<uint32_t>(policy - config.policies.begin())};
        sas_.push_back(std::move(managed));
    }
}

void SaControl::refuse(ManagedSa& sa, const std::string& reason) {
    sa.refusal = reason;
    log_.error("SA '" + sa.config->name + "' is refused: " + reason);
}

void SaControl::build(const crypto::Aead& aead, SequenceStore& store, uint16_t mtu) {
    for (ManagedSa& sa : sas_) sa.key = digest_of_key(sa.config->key.bytes());
    // Two senders under one key repeat each other's IVs; the peer sends with our inbound keys.
    std::map<KeyDigest, const ManagedSa*> by_key;
    for (ManagedSa& sa : sas_) {
        const auto [first, is_new] = by_key.try_emplace(sa.key, &sa);
        if (is_new) continue;
        for (const ManagedSa* one : {first->second, static_cast<const ManagedSa*>(&sa)}) {
            ManagedSa& affected = sas_[to_index(one->id)];
            const ManagedSa& other = one == &sa ? *first->second : sa;
            if (!is_outbound(affected) || !affected.active()) continue;
            refuse(affected, "SA '" + other.config->name +
                                 "' has the same key, and two senders under one key break AES-GCM: "
                                 "give each SA a key of its own, on both ends");
        }
    }
    reserve_first(store);
    for (ManagedSa& sa : sas_) {
        if (sa.active()) build_one(sa, aead, mtu);
    }
}

void SaControl::reserve_first(SequenceStore& store) {
    std::vector<SequenceStore::Request> requests;
    std::vector<ManagedSa*> asking;
    for (ManagedSa& sa : sas_) {
        if (!is_outbound(sa) || !sa.active()) continue;
        requests.push_back({.key = sa.key,
                            .count = sequence_block(sa.config->esn),
                            .end = sequence_end(sa.config->esn)});
        asking.push_back(&sa);
    }
    const auto results = store.reserve(requests);
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

void SaControl::build_one(ManagedSa& sa, const crypto::Aead& aead, uint16_t mtu) {
    const config::StaticSa& config = *sa.config;
    if (is_outbound(sa)) {
        const SequenceStore::Range range{.first = sa.sequence_told, .end = sa.sequence_reserved};
        auto made = make_outbound_sa(
            aead, {.id = sa.id,
                   .policy = sa.policy,
                   .spi = config.spi,
                   .source = config.source,
                   .destination = config.destination,
                   .suite = suite_of(config.suite),
                   .key = config.key.bytes(),
                   .esn = config.esn,
                   .sequence_next = range.first,
                   .sequence_reserved = range.end,
                   .sequence_low_water = low_water(range, sequence_end(config.esn)),
                   .iv_mask = 0,
                   .owner = sa.owner,
                   .mtu = config.mtu != 0 ? config.mtu : mtu,
                   .df = df_of(config.df),
                   .copy_dscp = config.copy_dscp,
                   .outer_ttl = config.outer_ttl});
        if (!made) return refuse(sa, made.error());
        sa.outbound = std::move(*made);
        sa.sequence_told = range.end;
        return;
    }
    const std::vector<Selector> selectors =
        inbound_selectors(config_.policies[to_index(sa.policy)]);
    auto made = make_inbound_sa(aead, {.id = sa.id,
                                       .policy = sa.policy,
                                       .spi = config.spi,
                                       .source = config.source,
                                       .destination = config.destination,
                                       .suite = suite_of(config.suite),
                                       .key = config.key.bytes(),
                                       .esn = config.esn,
                                       .replay_window = config.replay_window,
                                       .replay_top = 0,
                                       .owner = sa.owner,
                                       .selectors = selectors});
    if (!made) return refuse(sa, made.error());
    sa.inbound = std::move(*made);
}

void SaControl::announce(xfrm::SaRegistry& registry, bpf_objects::BpfObjects& bpf,
                         std::span<const uint16_t> cpus) {
    std::vector<xfrm::NewState> states;
    std::vector<ManagedSa*> announced;
    for (ManagedSa& sa : sas_) {
        if (!sa.active()) continue;
        const config::StaticSa& config = *sa.config;
        states.push_back({.id = {config.spi, config.destination},
                          .source = config.source,
                          .direction = is_outbound(sa) ? xfrm::StateDirection::outbound
                                                       : xfrm::StateDirection::inbound,
                          .key = config.key.bytes(),
                          .esn = config.esn,
                          .replay_window = config.replay_window,
                          .pcpu = cpus[to_index(sa.owner)]});
        announced.push_back(&sa);
    }
    const auto results = registry.add(states);
    for (size_t i = 0; i < results.size(); ++i) {
        ManagedSa& sa = *announced[i];
        if (is_outbound(sa)) {
            // Only for show; the worker sends without it.
            if (!results[i]) log_.warning("SA '" + sa.config->name + "': " + results[i].error());
            continue;
        }
        if (!results[i]) {
            refuse(sa, results[i].error());
            continue;
        }
        const auto inserted = bpf.insert_owner(sa.config->spi, sa.config->destination, sa.owner);
        if (!inserted) refuse(sa, inserted.error());
    }
}

void SaControl::install(std::span<const std::unique_ptr<Worker>> workers) {
    for (ManagedSa& sa : sas_) {
        if (!sa.active()) continue;
        Command command = command::InstallInbound{sa.inbound.get()};
        if (is_outbound(sa)) command = command::InstallOutbound{sa.outbound.get()};
        if (!submit_patiently(*workers[to_index(sa.owner)], command)) {
            refuse(sa, "its worker does not take commands: the CPU is starved, restart sallyportd");
        }
    }
}

void SaControl::handle(const Event& event, SequenceStore& store,
                       std::span<const std::unique_ptr<Worker>> workers) {
    if (const auto* low = std::get_if<event::SequenceLow>(&event)) {
        ManagedSa& sa = sas_[to_index(low->id)];
        sa.extension_due = true;
        extend(sa, store, workers);
    } else if (const auto* exhausted = std::get_if<event::SequenceExhausted>(&event)) {
        ManagedSa& sa = sas_[to_index(exhausted->id)];
        if (sa.active()) {
            refuse(sa, "it has used its last sequence number: give it a new key on both ends");
        }
    } else if (const auto* inbound = std::get_if<event::InboundRetired>(&event)) {
        no_room_for(inbound->id);
    } else if (const auto* outbound = std::get_if<event::OutboundRetired>(&event)) {
        no_room_for(outbound->id);
    }
}

// Nobody retires static SAs: the worker refused it.
void SaControl::no_room_for(SaId id) {
    refuse(sas_[to_index(id)], "its worker has no room for it: raise max_sas");
}

void SaControl::extend(ManagedSa& sa, SequenceStore& store,
                       std::span<const std::unique_ptr<Worker>> workers) {
    const uint64_t end = sequence_end(sa.config->esn);
    if (sa.sequence_told == sa.sequence_reserved) {
        if (sa.sequence_reserved >= end) {
            sa.extension_due = false;
            return;
        }
        const SequenceStore::Request request{
            .key = sa.key, .count = sequence_block(sa.config->esn), .end = end};
        const auto range = store.reserve(std::span(&request, 1)).front();
        if (!range) {
            if (range.error() != sa.extension_error) {
                log_.error("SA '" + sa.config->name +
                           "' will stop when its sequence numbers are used up: " + range.error());
            }
            sa.extension_error = range.error();
            return;  // tried again
        }
        if (!std::exchange(sa.extension_error, {}).empty()) {
            log_.info("SA '" + sa.config->name + "' has sequence numbers again");
        }
        sa.sequence_reserved = range->end;
    }
    const SequenceStore::Range told{.first = sa.sequence_told, .end = sa.sequence_reserved};
    const command::ExtendSequence command{.sa = sa.outbound.get(),
                                          .reserved = sa.sequence_reserved,
                                          .low_water = low_water(told, end)};
    if (!workers[to_index(sa.owner)]->submit(command)) return;  // tried again
    sa.sequence_told = sa.sequence_reserved;
    sa.extension_due = false;
}

void SaControl::retry_extensions(SequenceStore& store,
                                 std::span<const std::unique_ptr<Worker>> workers) {
    for (ManagedSa& sa : sas_) {
        // A worker asks once. Where its event ring was full, the numbers themselves tell: those
        // left of what it has been given.
        if (sa.outbound && sa.active() && sa.sequence_told < sequence_end(sa.config->esn)) {
            const uint64_t next = __atomic_load_n(&sa.outbound->sequence_next, __ATOMIC_RELAXED);
            const uint64_t left = sa.sequence_told - std::min(next, sa.sequence_told);
            if (left < sequence_block(sa.config->esn) / 4) sa.extension_due = true;
        }
        if (sa.extension_due) extend(sa, store, workers);
    }
}

std::expected<void, std::string> SaControl::give_back(SequenceStore& store) {
    std::vector<SequenceStore::Next> exact;
    for (const ManagedSa& sa : sas_) {
        if (sa.outbound) exact.push_back({.key = sa.key, .next = sa.outbound->sequence_next});
    }
    return store.give_back(exact);
}

std::vector<std::vector<WorkerId>> SaControl::owners_by_policy() const {
    std::vector<std::vector<WorkerId>> owners(config_.policies.size());
    for (const ManagedSa& sa : sas_) {
        if (!is_outbound(sa) || !sa.active()) continue;
        auto& list = owners[to_index(sa.policy)];
        if (std::ranges::find(list, sa.owner) == list.end()) list.push_back(sa.owner);
    }
    return owners;
}

}  // namespace sallyport::control
