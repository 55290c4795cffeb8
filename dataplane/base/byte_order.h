// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <compare>
#include <concepts>
#include <cstdint>

namespace sallyport {

// An integer as it stands on the wire, most significant byte first.
//
// Byte order is part of the type: no implicit conversion either way and no arithmetic. Comparing
// for equality is free; anything else goes through host().
template <std::unsigned_integral T>
class BigEndian {
  public:
    BigEndian() = default;
    explicit constexpr BigEndian(T host_value) : raw_(swap(host_value)) {}

    // The bytes as they stand in memory or in a kernel structure.
    static constexpr BigEndian from_raw(T raw) {
        BigEndian value;
        value.raw_ = raw;
        return value;
    }

    [[nodiscard]] constexpr T host() const { return swap(raw_); }
    [[nodiscard]] constexpr T raw() const { return raw_; }

    friend constexpr bool operator==(BigEndian, BigEndian) = default;

  private:
    static constexpr T swap(T value) {
        static_assert(std::endian::native == std::endian::little);
        if constexpr (sizeof(T) == 2) {
            return __builtin_bswap16(value);
        } else if constexpr (sizeof(T) == 4) {
            return __builtin_bswap32(value);
        } else {
            return __builtin_bswap64(value);
        }
    }

    T raw_ = 0;
};

using Be16 = BigEndian<uint16_t>;
using Be32 = BigEndian<uint32_t>;
using Be64 = BigEndian<uint64_t>;

}  // namespace sallyport
