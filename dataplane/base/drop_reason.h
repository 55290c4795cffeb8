// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "bpf/abi.h"

namespace sallyport {

// Why a packet was discarded. Generated from the one list in bpf/abi.h, which XDP programs use too.
#define SP_DROP_ENUMERATOR(name, help) name,
enum class DropReason : uint8_t { SP_DROP_REASONS(SP_DROP_ENUMERATOR) };
#undef SP_DROP_ENUMERATOR

inline constexpr size_t kDropReasonCount = SP_DROP_COUNT;

#define SP_DROP_LABEL(name, help) std::string_view{#name},
inline constexpr std::array<std::string_view, kDropReasonCount> kDropReasonLabels = {
    SP_DROP_REASONS(SP_DROP_LABEL)};
#undef SP_DROP_LABEL

#define SP_DROP_HELP(name, help) std::string_view{help},
inline constexpr std::array<std::string_view, kDropReasonCount> kDropReasonHelp = {
    SP_DROP_REASONS(SP_DROP_HELP)};
#undef SP_DROP_HELP

constexpr std::string_view label(DropReason reason) {
    return kDropReasonLabels[static_cast<size_t>(reason)];
}
constexpr std::string_view help(DropReason reason) {
    return kDropReasonHelp[static_cast<size_t>(reason)];
}

}  // namespace sallyport
