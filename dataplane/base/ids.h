// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

namespace sallyport {

// Ids that must not be mixed up are types. All are small dense indexes given by control,
// except Spi, which is the number on the wire in host order.
enum class Spi : uint32_t {};
enum class WorkerId : uint16_t {};
enum class PortId : uint16_t {};
enum class QueueId : uint16_t {};
enum class PolicyId : uint32_t {};
enum class SaId : uint32_t {};  // names one SA for the life of the daemon; never reused

template <typename Id>
    requires std::is_enum_v<Id>
constexpr auto to_index(Id id) {
    return static_cast<std::underlying_type_t<Id>>(id);
}

}  // namespace sallyport
