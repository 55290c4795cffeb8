// SPDX-License-Identifier: Apache-2.0
#pragma once

// What versions of a large object share: arrays in pages, and single objects. Whoever changes one
// gets a copy of its own of that page alone.
//
// Holders are counted without atomics: versions are made, changed and destroyed by one thread (the
// control thread), however many read them.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace sallyport {

// An object that several hold, and that is changed by who holds it alone. Null: none.
template <typename T>
class Shared {
  public:
    Shared() = default;
    Shared(const Shared& other) : box_(other.box_) {
        if (box_ != nullptr) ++box_->holders;
    }
    Shared(Shared&& other) noexcept : box_(std::exchange(other.box_, nullptr)) {}
    Shared& operator=(Shared other) noexcept {
        std::swap(box_, other.box_);
        return *this;
    }
    ~Shared() {
        if (box_ != nullptr && --box_->holders == 0) delete box_;
    }

    explicit operator bool() const { return box_ != nullptr; }
    const T& operator*() const { return box_->object; }
    const T* operator->() const { return &box_->object; }
    // To be changed: a copy where others hold it too, a new one where there is none.
    T& own() {
        if (box_ == nullptr) {
            box_ = new Box;
        } else if (box_->holders > 1) {
            auto copy = std::make_unique<Box>(box_->object);
            --box_->holders;
            box_ = copy.release();
        }
        return box_->object;
    }

  private:
    struct Box {
        T object{};
        uint32_t holders = 1;
        Box() = default;
        explicit Box(const T& from) : object(from) {}
    };
    Box* box_ = nullptr;
};

// An array of any size. `kBehind`: elements that follow the last of each page, in its memory only.
template <typename T, size_t kPage, size_t kBehind = 0>
class Pages {
  public:
    // Meaningless where own() has never been on its page.
    const T& operator[](size_t index) const { return (*pages_[index / kPage])[index % kPage]; }
    // Of a page of its own.
    T& own(size_t index) {
        const size_t page = index / kPage;
        if (page >= pages_.size()) pages_.resize(page + 1);
        return pages_[page].own()[index % kPage];
    }

  private:
    std::vector<Shared<std::array<T, kPage + kBehind>>> pages_;
};

}  // namespace sallyport
