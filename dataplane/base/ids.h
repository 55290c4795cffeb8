// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

namespace sallyport {

// Ids that must not be mixed up are types. All are small dense indexes given by control, except
// Spi, which is the number on the wire in host order, and SaId, which has more to it.
enum class Spi : uint32_t {};
enum class WorkerId : uint16_t {};
enum class PortId : uint16_t {};
enum class QueueId : uint16_t {};
enum class PolicyId : uint32_t {};

// Names one SA for the life of the daemon and is never reused: the index (low half) says where
// control keeps the SA, the generation (high half) how often that place was given away before. So
// what a worker says late of an SA that has gone does not meet the one that has its place now.
enum class SaId : uint64_t {};

template <typename Id>
    requires std::is_enum_v<Id>
constexpr auto to_index(Id id) {
    return static_cast<std::underlying_type_t<Id>>(id);
}

constexpr SaId make_sa_id(uint32_t index, uint32_t generation) {
    return SaId{uint64_t{generation} << 32 | index};
}
constexpr uint32_t to_index(SaId id) {
    return static_cast<uint32_t>(id);
}
constexpr uint32_t generation_of(SaId id) {
    return static_cast<uint32_t>(static_cast<uint64_t>(id) >> 32);
}

}  // namespace sallyport
