// SPDX-License-Identifier: Apache-2.0
#include "dataplane/io/packet_memory.h"

#include <pthread.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

namespace sallyport::io {

namespace {

constexpr size_t kHugepageBytes = size_t{2} << 20;
constexpr uint32_t kMbufOffset = 64;
constexpr uint32_t kObjectBytes = kFrameBytes - kMbufOffset;
// EAL's own memory: the mempool's header, its ring and its caches. Never packets.
constexpr size_t kEalBytes = size_t{32} << 20;

static_assert(kMbufOffset + sizeof(rte_mbuf) == kFrameHeadroomOffset);
static_assert(kFrameHeadroomBytes == RTE_PKTMBUF_HEADROOM);

size_t round_up(size_t bytes, size_t unit) {
    return (bytes + unit - 1) / unit * unit;
}

size_t pool_bytes(uint32_t frame_count) {
    return round_up(size_t{frame_count} * kFrameBytes, kHugepageBytes);
}

size_t free_hugepage_bytes() {
    std::FILE* file = std::fopen("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "re");
    if (file == nullptr) return 0;
    unsigned long pages = 0;
    if (std::fscanf(file, "%lu", &pages) != 1) pages = 0;
    std::fclose(file);
    return pages * kHugepageBytes;
}

// Anonymous memory of our own.
class Mapping {
  public:
    Mapping() = default;
    Mapping(std::byte* address, size_t bytes, bool hugepages)
        : address_(address), bytes_(bytes), hugepages_(hugepages) {}
    Mapping(Mapping&& other) noexcept
        : address_(std::exchange(other.address_, nullptr)),
          bytes_(other.bytes_),
          hugepages_(other.hugepages_) {}
    Mapping& operator=(Mapping&&) = delete;
    ~Mapping() {
        if (address_ != nullptr) munmap(address_, bytes_);
    }

    [[nodiscard]] std::byte* address() const { return address_; }
    [[nodiscard]] size_t bytes() const { return bytes_; }
    [[nodiscard]] bool hugepages() const { return hugepages_; }

  private:
    std::byte* address_ = nullptr;
    size_t bytes_ = 0;
    bool hugepages_ = false;
};

std::expected<Mapping, std::string> map_pool(size_t bytes, bool hugepages) {
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS;
    constexpr int kProtection = PROT_READ | PROT_WRITE;
    void* address = MAP_FAILED;
    bool huge = false;
    if (hugepages) {
        constexpr int kHuge2M = 21 << MAP_HUGE_SHIFT;
        address = mmap(nullptr, bytes, kProtection, kFlags | MAP_HUGETLB | kHuge2M, -1, 0);
        huge = address != MAP_FAILED;
    }
    if (address == MAP_FAILED) {
        address = mmap(nullptr, bytes, kProtection, kFlags, -1, 0);
    }
    if (address == MAP_FAILED) {
        return std::unexpected("cannot get " + std::to_string(bytes >> 20) +
                               " MB of packet memory: " + std::strerror(errno) +
                               "; lower [memory] frames");
    }
    // Both are advice: a kernel without transparent hugepages refuses the first.
    if (!huge && hugepages) madvise(address, bytes, MADV_HUGEPAGE);
    madvise(address, bytes, MADV_DONTDUMP);
    return Mapping(static_cast<std::byte*>(address), bytes, huge);
}

// EAL pins the calling thread to its main lcore; which CPUs a thread runs on is our business.
class KeepAffinity {
  public:
    KeepAffinity() {
        CPU_ZERO(&set_);
        valid_ = pthread_getaffinity_np(pthread_self(), sizeof set_, &set_) == 0;
    }
    KeepAffinity(const KeepAffinity&) = delete;
    KeepAffinity& operator=(const KeepAffinity&) = delete;
    ~KeepAffinity() {
        if (valid_) pthread_setaffinity_np(pthread_self(), sizeof set_, &set_);
    }
    [[nodiscard]] int first_cpu() const {
        for (size_t cpu = 0; valid_ && cpu < CPU_SETSIZE; ++cpu) {
            if (CPU_ISSET(cpu, &set_)) return static_cast<int>(cpu);
        }
        return 0;
    }

  private:
    cpu_set_t set_;
    bool valid_ = false;
};

// Collects what EAL logs, so that it appears in our error text and nowhere else.
class LogCapture {
  public:
    LogCapture() : stream_(open_memstream(&text_, &bytes_)) {
        if (stream_ != nullptr) rte_openlog_stream(stream_);
    }
    LogCapture(const LogCapture&) = delete;
    LogCapture& operator=(const LogCapture&) = delete;
    ~LogCapture() {
        rte_openlog_stream(nullptr);  // back to stderr
        if (stream_ != nullptr) std::fclose(stream_);
        std::free(text_);
    }
    // One line, the last words first being the most useful ones to have.
    [[nodiscard]] std::string text() {
        if (stream_ == nullptr || std::fflush(stream_) != 0 || text_ == nullptr) return {};
        std::string line(text_, bytes_);
        std::replace(line.begin(), line.end(), '\n', ' ');
        while (line.ends_with(' ')) line.pop_back();
        return line;
    }

  private:
    char* text_ = nullptr;
    size_t bytes_ = 0;
    std::FILE* stream_;
};

}  // namespace

std::expected<void, std::string> start_eal(uint32_t frame_count, bool hugepages) {
    static bool started = false;
    if (started) return std::unexpected("DPDK's EAL was started before in this process");
    started = true;

    const KeepAffinity affinity;
    const size_t eal_bytes = kEalBytes + size_t{frame_count} * 128;
    const bool huge = hugepages && free_hugepage_bytes() >= pool_bytes(frame_count) + eal_bytes;

    std::vector<std::string> words = {
        "sallyport",      "--lcores=0@" + std::to_string(affinity.first_cpu()),
        "--iova-mode=va", "--no-pci",
        "--no-telemetry", "--log-level=*:error",
    };
    if (huge) {
        words.emplace_back("--in-memory");
    } else {
        words.emplace_back("--no-huge");
        words.emplace_back("--no-shconf");
        words.emplace_back("-m");
        words.emplace_back(std::to_string(eal_bytes >> 20));
    }
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());

    LogCapture log;
    if (rte_eal_init(static_cast<int>(arguments.size()), arguments.data()) < 0) {
        return std::unexpected(std::string("DPDK's EAL does not start: ") +
                               rte_strerror(rte_errno) + " (" + log.text() + ")");
    }
    return {};
}

struct PacketMemory::Impl {
    struct FreePool {
        void operator()(rte_mempool* pool) const { rte_mempool_free(pool); }
    };

    Mapping mapping;  // outlives the pool that lies in it
    std::unique_ptr<rte_mempool, FreePool> pool;
    uint32_t frame_count = 0;
};

PacketMemory::PacketMemory(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
PacketMemory::PacketMemory(PacketMemory&&) noexcept = default;
PacketMemory& PacketMemory::operator=(PacketMemory&&) noexcept = default;
PacketMemory::~PacketMemory() = default;

std::expected<PacketMemory, std::string> PacketMemory::create(uint32_t frame_count,
                                                              bool hugepages) {
    if (frame_count < kBurstMax) {
        return std::unexpected("packet memory of " + std::to_string(frame_count) +
                               " frames is too small: at least " + std::to_string(kBurstMax) +
                               " are needed");
    }
    auto mapping = map_pool(pool_bytes(frame_count), hugepages);
    if (!mapping) return std::unexpected(mapping.error());

    // A cache may keep 1.5 times its size; leave a small pool mostly shared.
    static_assert(kThreadCacheMax * 2 / 3 <= RTE_MEMPOOL_CACHE_MAX_SIZE);
    const uint32_t cache = std::min(kThreadCacheMax * 2 / 3, frame_count / 16);

    static uint32_t pools_made = 0;  // names are unique in the process; control only
    const std::string name = "frames" + std::to_string(pools_made++);
    LogCapture log;
    auto impl = std::unique_ptr<Impl>(new Impl{.mapping = std::move(*mapping)});
    impl->frame_count = frame_count;
    // NO_SPREAD: without it the mempool pads objects to spread them over memory channels, and
    // they are no longer aligned chunks.
    impl->pool.reset(rte_mempool_create_empty(name.c_str(), frame_count, kObjectBytes, cache,
                                              sizeof(rte_pktmbuf_pool_private), SOCKET_ID_ANY,
                                              RTE_MEMPOOL_F_NO_SPREAD));
    if (impl->pool == nullptr) {
        return std::unexpected("DPDK cannot make a pool of " + std::to_string(frame_count) +
                               " frames: " + rte_strerror(rte_errno) + " (" + log.text() + ")");
    }

    rte_mempool* pool = impl->pool.get();
    // The default ring lets a thread wait for another one that was preempted within an operation,
    // for as long as that one does not run. Relaxed tail synchronisation was made against this.
    if (rte_mempool_set_ops_byname(pool, "ring_mt_rts", nullptr) != 0) {
        return std::unexpected(
            "DPDK's mempool driver 'ring' is not installed (Debian: librte-mempool-ring23)");
    }
    rte_pktmbuf_pool_private private_data{};
    private_data.mbuf_data_room_size = static_cast<uint16_t>(kObjectBytes - sizeof(rte_mbuf));
    rte_pktmbuf_pool_init(pool, &private_data);
    const size_t page = impl->mapping.hugepages() ? kHugepageBytes : kFrameBytes;
    const int populated =
        rte_mempool_populate_virt(pool, reinterpret_cast<char*>(impl->mapping.address()),
                                  impl->mapping.bytes(), page, nullptr, nullptr);
    if (populated != static_cast<int>(frame_count)) {
        return std::unexpected("DPDK filled the pool with " + std::to_string(populated) + " of " +
                               std::to_string(frame_count) + " frames: " + log.text());
    }
    rte_mempool_obj_iter(pool, rte_pktmbuf_init, nullptr);

    // AF_XDP and frame_base() rely on this layout; a DPDK built with other options must not pass.
    struct Layout {
        std::byte* base;
        uint32_t wrong;
    } layout{.base = impl->mapping.address(), .wrong = 0};
    const uint32_t seen = rte_mempool_obj_iter(
        pool,
        [](rte_mempool*, void* argument, void* object, unsigned index) {
            auto* check = static_cast<Layout*>(argument);
            const std::byte* expected = check->base + size_t{index} * kFrameBytes + kMbufOffset;
            const auto* buffer = static_cast<rte_mbuf*>(object);
            const bool right = object == expected &&
                               buffer->buf_addr ==
                                   check->base + size_t{index} * kFrameBytes + kFrameHeadroomOffset;
            check->wrong += right ? 0u : 1u;
        },
        &layout);
    if (seen != frame_count || layout.wrong != 0) {
        return std::unexpected(
            "this DPDK lays its pool out differently (mbufs are expected 4096 bytes apart): " +
            std::to_string(layout.wrong) + " of " + std::to_string(seen) + " frames");
    }
    return PacketMemory(std::move(impl));
}

bool PacketMemory::register_thread() {
    return rte_thread_register() == 0;
}

void PacketMemory::unregister_thread() {
    rte_mempool* pool = impl_->pool.get();
    rte_mempool_cache* cache = rte_mempool_default_cache(pool, rte_lcore_id());
    if (cache != nullptr) rte_mempool_cache_flush(cache, pool);
    rte_thread_unregister();
}

bool PacketMemory::take(std::span<std::byte*> out) {
    void** objects = reinterpret_cast<void**>(out.data());
    if (rte_mempool_get_bulk(impl_->pool.get(), objects, static_cast<unsigned>(out.size())) != 0) {
        return false;
    }
    for (std::byte*& frame : out) frame += kFrameDataOffset - kMbufOffset;
    return true;
}

void PacketMemory::give(std::span<std::byte* const> frames) {
    std::array<void*, kBurstMax> objects;
    while (!frames.empty()) {
        const size_t count = std::min(frames.size(), objects.size());
        for (size_t i = 0; i < count; ++i) objects[i] = frame_base(frames[i]) + kMbufOffset;
        rte_mempool_put_bulk(impl_->pool.get(), objects.data(), static_cast<unsigned>(count));
        frames = frames.subspan(count);
    }
}

std::byte* PacketMemory::base() const {
    return impl_->mapping.address();
}
size_t PacketMemory::bytes() const {
    return size_t{impl_->frame_count} * kFrameBytes;
}
uint32_t PacketMemory::frame_count() const {
    return impl_->frame_count;
}
uint32_t PacketMemory::available() const {
    return rte_mempool_avail_count(impl_->pool.get());
}
bool PacketMemory::on_hugepages() const {
    return impl_->mapping.hugepages();
}

uint32_t PacketMemory::recover() {
    rte_mempool* pool = impl_->pool.get();
    rte_mempool_cache* cache = rte_mempool_default_cache(pool, rte_lcore_id());
    if (cache != nullptr) rte_mempool_cache_flush(cache, pool);

    std::vector<bool> present(impl_->frame_count, false);
    std::vector<void*> objects;
    objects.reserve(impl_->frame_count);
    void* object = nullptr;
    while (rte_mempool_generic_get(pool, &object, 1, nullptr) == 0) {
        const auto offset = static_cast<size_t>(static_cast<std::byte*>(object) - base());
        present[offset / kFrameBytes] = true;
        objects.push_back(object);
    }
    const auto before = static_cast<uint32_t>(objects.size());
    for (uint32_t i = 0; i < impl_->frame_count; ++i) {
        if (!present[i]) objects.push_back(base() + size_t{i} * kFrameBytes + kMbufOffset);
    }
    for (void* each : objects) rte_mempool_generic_put(pool, &each, 1, nullptr);
    return impl_->frame_count - before;
}

}  // namespace sallyport::io
