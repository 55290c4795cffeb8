// SPDX-License-Identifier: Apache-2.0
#include "dataplane/sa/sa_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace sallyport::sa_memory {
namespace {

constexpr size_t kBlockBytes = size_t{2} << 20;
// What pieces of one size take at a time. Smaller, and sizes stand mixed: their pieces begin in a
// part of the cache's sets only. Larger, and a size that is rare keeps that much locked memory.
constexpr size_t kRunBytes = size_t{256} << 10;
static_assert(kBlockBytes % kRunBytes == 0);

struct Run {
    std::byte* next = nullptr;
    size_t left = 0;

    std::byte* take(size_t bytes) {
        if (left < bytes) return nullptr;
        left -= bytes;
        return std::exchange(next, next + bytes);
    }
};
struct Size {
    Run run;
    std::vector<void*> free;
};
struct Arena {
    std::mutex mutex;
    Run block;
    std::map<size_t, Size> sizes;
};

Arena& arena() {
    static auto* instance = new Arena;  // outlives every SA, also those in other statics
    return *instance;
}

std::byte* map_block() {
    // Twice the size, so that an aligned block lies within; the rest is never touched.
    void* mapped = mmap(nullptr, 2 * kBlockBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    const auto address = reinterpret_cast<uintptr_t>(mapped);
    const uintptr_t aligned = (address + kBlockBytes - 1) & ~(kBlockBytes - 1);
    auto* block = static_cast<std::byte*>(mapped) + (aligned - address);
    // All three are wishes: without them SAs work, slower or less secret.
    (void)madvise(block, kBlockBytes, MADV_HUGEPAGE);
    (void)madvise(block, kBlockBytes, MADV_DONTDUMP);
    (void)mlock(block, kBlockBytes);
    return block;
}

}  // namespace

void* allocate(size_t bytes) {
    Arena& all = arena();
    const std::lock_guard lock(all.mutex);
    Size& size = all.sizes[bytes];
    if (!size.free.empty()) {
        void* memory = size.free.back();
        size.free.pop_back();
        return memory;
    }
    if (std::byte* memory = size.run.take(bytes)) return memory;
    if (bytes > kRunBytes) return nullptr;
    if (all.block.left == 0) {
        std::byte* block = map_block();
        if (block == nullptr) return nullptr;
        all.block = {.next = block, .left = kBlockBytes};
    }
    size.run = {.next = all.block.take(kRunBytes), .left = kRunBytes};
    return size.run.take(bytes);
}

void release(void* memory, size_t bytes) {
    Arena& all = arena();
    const std::lock_guard lock(all.mutex);
    all.sizes[bytes].free.push_back(memory);
}

}  // namespace sallyport::sa_memory
