// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "bpf/abi.h"

namespace sallyport {

// One buffer of packet memory is 4096 bytes, aligned to its size, so that the buffer a pointer
// belongs to is found by masking:
//
//   +0     mempool object header and mbuf header (DPDK's; not touched on the hot path)
//   +192   headroom: outer headers are written here without moving the packet
//   +320   where receive puts the Ethernet header
//   +4096  end
inline constexpr uint32_t kFrameBytes = 4096;
inline constexpr uint32_t kFrameHeadroomOffset = 192;
inline constexpr uint32_t kFrameDataOffset = 320;
inline constexpr uint32_t kFrameHeadroomBytes = kFrameDataOffset - kFrameHeadroomOffset;
inline constexpr uint32_t kFrameDataBytesMax = kFrameBytes - kFrameDataOffset;

inline constexpr uint32_t kBurstMax = 64;

// A frame in somebody's hands: bytes [data, data + bytes) are the packet, beginning with its
// Ethernet header. Plain value; whoever holds it owns the buffer.
struct Frame {
    std::byte* data = nullptr;
    uint32_t bytes = 0;
};

// What a finished frame is, which decides who decrements its TTL (bpf/abi.h, SP_KIND_*).
enum class FrameKind : uint8_t {
    originated = SP_KIND_ORIGINATED,  // outer ESP packet of ours
    transit = SP_KIND_TRANSIT,        // decrypted packet that we forward
};

struct OutgoingFrame {
    Frame frame;  // 14 bytes of Ethernet header are reserved in front; ethertype is set
    FrameKind kind = FrameKind::originated;
};

// The buffer that `data` points into.
inline std::byte* frame_base(std::byte* data) {
    return data - (reinterpret_cast<uintptr_t>(data) & (kFrameBytes - 1));
}
inline const std::byte* frame_base(const std::byte* data) {
    return data - (reinterpret_cast<uintptr_t>(data) & (kFrameBytes - 1));
}

}  // namespace sallyport
