// SPDX-License-Identifier: Apache-2.0
//
// The kernel's register of SAs: any bytes as a dump, followed by any bytes as the notifications
// after it. What the mirror then holds and reports must fit together, and what is written back
// about each state must say what was meant.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>

#include "control/xfrm/messages.h"
#include "control/xfrm/mirror.h"

using namespace sallyport;
using namespace sallyport::xfrm;

namespace {

constexpr uint32_t kOwnPort = 4711;

void require(bool holds) {
    if (!holds) std::abort();
}

// Calls `take` for each message; returns how many there were.
template <typename Take>
uint64_t for_each_message(std::span<const std::byte> rest, Take take) {
    for (uint64_t count = 0;; ++count) {
        const auto message = netlink::next_message(rest);
        if (!message || !*message) return count;
        take(**message);
    }
}

void check_state(const SaName& name, const KernelSa& state) {
    require(state.name == name);
    require(name.spi != Spi{});
    require(state.reqid >> 16 != 0x5350);
    require(state.key.empty() || (state.aead && !state.keys_hidden && !state.larval));
    require(state.replay.bitmap_words <= 128);
    require(state.esn || (state.replay.sent >> 32 == 0 && state.replay.top >> 32 == 0));
    require(state.algorithm.size() <= 3 * 64 + 6);
}

std::span<const std::byte> payload_of(const RequestBuffer& request) {
    std::span<const std::byte> rest = request.bytes();
    const auto message = netlink::next_message(rest);
    require(message && *message && rest.empty());
    return (*message)->payload;
}

void check_requests(const KernelSa& state) {
    const CounterUpdate update = {.replay = state.replay, .usage = state.usage};
    const RequestBuffer counters = encode_counters(state, update, 1);
    const auto event = decode_counter_event(payload_of(counters));
    require(event && event->name == state.name && event->replay && event->usage);
    require(event->replay->sent == state.replay.sent && event->replay->top == state.replay.top);
    require(event->replay->bitmap_words == state.replay.bitmap_words);
    require(event->replay->esn_form == state.replay.esn_form);
    require(*event->usage == state.usage);
    const RequestBuffer expire = encode_expire(state, true, 1);
    const auto expiry = decode_expire(payload_of(expire));
    require(expiry && expiry->name == state.name && expiry->hard);
    const RequestBuffer get = encode_get_sa(state.name, 1);
    const auto deletion = decode_deleted_sa(payload_of(get));
    require(deletion && deletion->name == state.name && !deletion->last);
}

void check(const RegisterMirror& mirror, const RegisterChanges& changes, uint64_t messages) {
    for (const auto& [name, state] : mirror.states()) {
        check_state(name, state);
        check_requests(state);
    }
    for (const auto& [index, policy] : mirror.policies()) {
        require(policy.row.index == index && index >> 24 != 0x53);
        require(policy.templates.size() <= 6);
    }
    for (const SaName& name : changes.added) require(mirror.find(name) != nullptr);
    for (const SaName& name : changes.used) require(mirror.find(name) != nullptr);
    for (const SaName& name : changes.removed) {
        require(changes.added.contains(name) || mirror.find(name) == nullptr);
    }
    require(changes.acquires.size() <= RegisterChanges::kAcquiresMax);
    const RegisterMirror::Counters& c = mirror.counters();
    require(c.messages == messages);
    require(c.messages == c.applied + c.own + c.malformed + c.ignored);
    require(mirror.states().size() + mirror.policies().size() <= c.applied);
}

uint64_t dump(RegisterMirror& mirror, RegisterChanges& changes, std::span<const std::byte> bytes) {
    mirror.begin_dump();
    const uint64_t count =
        for_each_message(bytes, [&](const Message& message) { mirror.load(message); });
    mirror.end_dump(changes);
    return count;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const auto bytes = std::as_bytes(std::span(data + 1, size - 1));
    const auto first = bytes.first(std::min(data[0] * size_t{16}, bytes.size()));
    const auto second = bytes.subspan(first.size());

    RegisterMirror mirror(kOwnPort);
    RegisterChanges changes;
    uint64_t messages = dump(mirror, changes, first);
    check(mirror, changes, messages);
    require(!changes.resync && changes.removed.empty());

    changes = {};
    messages +=
        for_each_message(second, [&](const Message& message) { mirror.apply(message, changes); });
    check(mirror, changes, messages);

    changes = {};
    messages += dump(mirror, changes, first);
    check(mirror, changes, messages);
    // The same dump once more changes nothing.
    changes = {};
    messages += dump(mirror, changes, first);
    check(mirror, changes, messages);
    require(changes.empty());
    return 0;
}
