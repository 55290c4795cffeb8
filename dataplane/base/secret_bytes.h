// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace sallyport {

// Overwrites memory in a way the compiler may not drop.
inline void wipe(void* memory, size_t bytes) {
    std::memset(memory, 0, bytes);
    __asm__ volatile("" : : "r"(memory) : "memory");
}

// Key material: wiped on destruction and on move, not copyable, not printable.
//
// Fixed capacity, so that no heap block with key bytes is ever left behind by growth.
class SecretBytes {
  public:
    static constexpr size_t kCapacity = 128;

    SecretBytes() = default;
    // `bytes` beyond kCapacity are a caller's error and leave the object empty.
    explicit SecretBytes(std::span<const std::byte> bytes) {
        if (bytes.size() > kCapacity) return;
        std::memcpy(bytes_.data(), bytes.data(), bytes.size());
        size_ = bytes.size();
    }
    SecretBytes(SecretBytes&& other) noexcept { take(other); }
    SecretBytes& operator=(SecretBytes&& other) noexcept {
        if (this != &other) {
            clear();
            take(other);
        }
        return *this;
    }
    SecretBytes(const SecretBytes&) = delete;
    SecretBytes& operator=(const SecretBytes&) = delete;
    ~SecretBytes() { clear(); }

    [[nodiscard]] std::span<const std::byte> bytes() const { return {bytes_.data(), size_}; }
    [[nodiscard]] size_t size() const { return size_; }
    [[nodiscard]] bool empty() const { return size_ == 0; }
    // Copying a key is possible, but only by saying so.
    [[nodiscard]] SecretBytes duplicate() const { return SecretBytes(bytes()); }

    void clear() {
        wipe(bytes_.data(), bytes_.size());
        size_ = 0;
    }

    // Takes the same time wherever the first difference is.
    friend bool operator==(const SecretBytes& a, const SecretBytes& b) {
        if (a.size_ != b.size_) return false;
        uint8_t difference = 0;
        for (size_t i = 0; i < a.size_; ++i) {
            difference =
                static_cast<uint8_t>(difference | static_cast<uint8_t>(a.bytes_[i] ^ b.bytes_[i]));
        }
        return difference == 0;
    }

  private:
    void take(SecretBytes& other) {
        std::memcpy(bytes_.data(), other.bytes_.data(), other.size_);
        size_ = other.size_;
        other.clear();
    }

    std::array<std::byte, kCapacity> bytes_{};
    size_t size_ = 0;
};

}  // namespace sallyport
