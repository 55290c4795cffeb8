// SPDX-License-Identifier: Apache-2.0
#include "dataplane/sa/sa_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

namespace sallyport::sa_memory {
namespace {

constexpr size_t kBlockBytes = size_t{2} << 20;

struct Arena {
    std::mutex mutex;
    std::byte* next = nullptr;
    size_t left = 0;
    std::map<size_t, std::vector<void*>> free_by_size;
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
    if (auto& free = all.free_by_size[bytes]; !free.empty()) {
        void* memory = free.back();
        free.pop_back();
        return memory;
    }
    if (all.left < bytes) {
        std::byte* block = map_block();
        if (block == nullptr || bytes > kBlockBytes) return nullptr;
        all.next = block;
        all.left = kBlockBytes;
    }
    void* memory = all.next;
    all.next += bytes;
    all.left -= bytes;
    return memory;
}

void release(void* memory, size_t bytes) {
    Arena& all = arena();
    const std::lock_guard lock(all.mutex);
    all.free_by_size[bytes].push_back(memory);
}

}  // namespace sallyport::sa_memory
