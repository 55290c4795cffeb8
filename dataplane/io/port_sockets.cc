// SPDX-License-Identifier: Apache-2.0
#include "dataplane/io/port_sockets.h"

#include <linux/if_xdp.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <xdp/xsk.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#include "dataplane/base/single_writer.h"
#include "dataplane/base/unique_fd.h"

namespace sallyport::io {

namespace {

// The kernel puts a received packet behind its own XDP headroom and ours.
constexpr uint32_t kUmemHeadroom = kFrameDataOffset - XDP_PACKET_HEADROOM;

// The kernel frees a closed socket's queue a moment after close(): a daemon that was killed may
// still hold it when the next one starts. Where nobody says how long that may take:
constexpr std::chrono::milliseconds kBusyMax{1000};
constexpr std::chrono::milliseconds kBusyPause{10};

std::expected<void, std::string> wait_a_second(uint16_t /*queue*/,
                                               std::chrono::milliseconds waited) {
    if (waited < kBusyMax) return {};
    return std::unexpected("");
}

// A ring shared with the kernel.
class RingMapping {
  public:
    RingMapping() = default;
    RingMapping(RingMapping&& other) noexcept
        : address_(std::exchange(other.address_, nullptr)), bytes_(other.bytes_) {}
    RingMapping& operator=(RingMapping&& other) noexcept {
        std::swap(address_, other.address_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    ~RingMapping() {
        if (address_ != nullptr) munmap(address_, bytes_);
    }

    // errno tells why it failed.
    [[nodiscard]] bool map(int fd, size_t bytes, uint64_t page_offset) {
        void* address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd,
                             static_cast<off_t>(page_offset));
        if (address == MAP_FAILED) return false;
        address_ = address;
        bytes_ = bytes;
        return true;
    }
    template <typename T>
    [[nodiscard]] T* at(uint64_t offset) const {
        return reinterpret_cast<T*>(static_cast<std::byte*>(address_) + offset);
    }

  private:
    void* address_ = nullptr;
    size_t bytes_ = 0;
};

// Sets up the accessors of xdp/xsk.h over a mapped ring.
template <typename Descriptor, typename Ring>
bool map_ring(int fd, RingMapping& mapping, Ring& ring, const xdp_ring_offset& offset,
              uint32_t entries, uint64_t page_offset) {
    if (!mapping.map(fd, offset.desc + size_t{entries} * sizeof(Descriptor), page_offset)) {
        return false;
    }
    ring.mask = entries - 1;
    ring.size = entries;
    ring.producer = mapping.at<uint32_t>(offset.producer);
    ring.consumer = mapping.at<uint32_t>(offset.consumer);
    ring.flags = mapping.at<uint32_t>(offset.flags);
    ring.ring = mapping.at<void>(offset.desc);
    ring.cached_prod = *ring.producer;
    ring.cached_cons = *ring.consumer;
    return true;
}

uint32_t ring_level(const uint32_t* producer, const uint32_t* consumer) {
    const uint32_t taken = __atomic_load_n(consumer, __ATOMIC_RELAXED);
    return __atomic_load_n(producer, __ATOMIC_RELAXED) - taken;
}

// writer: the owning worker; reader: anyone.
struct alignas(128) Socket {
    UniqueFd fd;
    RingMapping rx_mapping;
    RingMapping tx_mapping;
    xsk_ring_cons rx{};
    xsk_ring_prod tx{};
    Counter received;
    Counter transmitted;
};

constexpr uint64_t kMemoryHasFrames = UINT64_MAX;

// writer: the home; reader: anyone.
struct alignas(128) Queue {
    RingMapping fill_mapping;
    RingMapping completion_mapping;
    xsk_ring_prod fill{};
    xsk_ring_cons completion{};
    Counter filled;
    Counter reclaimed;
    // Misses of the FILL ring while packet memory had no frame: of such times that are over, and
    // the kernel's count when one began that is not.
    Counter misses_without_memory;
    SingleWriter<uint64_t> misses_before{kMemoryHasFrames};
};

// Why sockets could not be made; `error` is an errno, 0 where none is to blame.
struct Failure {
    std::string text;
    int error = 0;
};

std::string explain_bind(const PortSocketsSetup& setup, uint16_t queue, int error) {
    const std::string where = setup.device + " queue " + std::to_string(queue) + ": ";
    switch (error) {
        case EBUSY:
            return where +
                   "another program has AF_XDP sockets on it; stop that program or give this one "
                   "other queues";
        case EOPNOTSUPP:
            return where +
                   "the driver has no zero-copy AF_XDP: set bind_mode = \"copy\" or \"auto\"";
        case ENOBUFS:
        case ENOMEM:
            return where +
                   "the kernel may not lock that much memory: raise RLIMIT_MEMLOCK or run with "
                   "CAP_IPC_LOCK, or lower [memory] frames";
        case EINVAL:
            return where +
                   "the kernel refuses the socket: the device has no such queue, or its "
                   "MTU does not fit a frame of 4096 bytes" +
                   (setup.bind == Bind::zero_copy
                        ? ", or its driver refuses zero-copy: try bind_mode = \"auto\""
                        : "");
        case ENETDOWN:
            return where + "the device is down: set it up first (ip link set " + setup.device +
                   " up)";
        case EPERM:
            return where + "not permitted: CAP_NET_RAW and CAP_NET_ADMIN are needed";
        case ENODEV:
            return where + "the device is gone";
        default:
            return where + "AF_XDP bind failed: " + std::strerror(error);
    }
}

// Packet memory is locked into RAM. CAP_IPC_LOCK makes the limit irrelevant; where only
// CAP_SYS_RESOURCE is there, this helps. Otherwise the bind says what to do.
void raise_memlock_limit() {
    const rlimit unlimited{.rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY};
    setrlimit(RLIMIT_MEMLOCK, &unlimited);
}

}  // namespace

struct PortSockets::Impl {
    PortSocketsSetup setup;
    PacketMemory* memory = nullptr;
    std::byte* base = nullptr;
    uint32_t completion_entries = 0;
    bool zero_copy = false;
    std::string mode_reason;
    std::unique_ptr<Queue[]> queues;
    std::unique_ptr<Socket[]> sockets;  // [queue * workers + worker]

    Socket& socket(QueueId queue, WorkerId worker) {
        return sockets[size_t{to_index(queue)} * setup.workers + to_index(worker)];
    }
    [[nodiscard]] std::optional<xdp_statistics> ask(QueueId queue, WorkerId worker) {
        xdp_statistics kernel{};
        socklen_t bytes = sizeof kernel;
        if (getsockopt(socket(queue, worker).fd.get(), SOL_XDP, XDP_STATISTICS, &kernel, &bytes) !=
            0) {
            return std::nullopt;
        }
        return kernel;
    }
    void note_memory(QueueId queue, bool has_frames);
    // All sockets in one mode; `mode_flag` is XDP_ZEROCOPY or XDP_COPY. A failure leaves none.
    std::expected<void, Failure> open(uint16_t mode_flag);
    std::expected<void, Failure> open_socket(uint16_t queue, uint16_t worker, int umem_fd,
                                             uint16_t mode_flag);
};

std::expected<void, Failure> PortSockets::Impl::open_socket(uint16_t queue, uint16_t worker,
                                                            int umem_fd, uint16_t mode_flag) {
    const auto failed = [&](const char* what) -> std::unexpected<Failure> {
        const int error = errno;
        if (error == ENOBUFS || error == EPERM) {
            return std::unexpected(Failure{explain_bind(setup, queue, error), error});
        }
        return std::unexpected(Failure{setup.device + " queue " + std::to_string(queue) + ": " +
                                           what + ": " + std::strerror(error),
                                       error});
    };
    Socket& s = socket(QueueId{queue}, WorkerId{worker});
    s.fd = UniqueFd(::socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0));
    if (!s.fd) {
        if (errno == EAFNOSUPPORT) {
            return std::unexpected(
                Failure{"this kernel has no AF_XDP (CONFIG_XDP_SOCKETS)", errno});
        }
        return failed("cannot open an AF_XDP socket");
    }
    const int fd = s.fd.get();
    const bool first_of_queue = worker == 0;
    const auto set_entries = [fd](int option, uint32_t entries) {
        return setsockopt(fd, SOL_XDP, option, &entries, sizeof entries) == 0;
    };

    if (umem_fd < 0) {
        xdp_umem_reg umem{};
        umem.addr = reinterpret_cast<uintptr_t>(base);
        umem.len = memory->bytes();
        umem.chunk_size = kFrameBytes;
        umem.headroom = kUmemHeadroom;
        if (setsockopt(fd, SOL_XDP, XDP_UMEM_REG, &umem, sizeof umem) != 0) {
            return failed("cannot register packet memory");
        }
    }
    if (first_of_queue) {
        if (!set_entries(XDP_UMEM_FILL_RING, setup.fill_entries) ||
            !set_entries(XDP_UMEM_COMPLETION_RING, completion_entries)) {
            return failed("cannot make the FILL and COMPLETION rings");
        }
    }
    if (!set_entries(XDP_RX_RING, setup.rx_entries)) return failed("cannot make the RX ring");
    if (setup.tx_entries != 0 && !set_entries(XDP_TX_RING, setup.tx_entries)) {
        return failed("cannot make the TX ring");
    }

    xdp_mmap_offsets offsets{};
    socklen_t offsets_bytes = sizeof offsets;
    if (getsockopt(fd, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &offsets_bytes) != 0) {
        return failed("cannot read the layout of the rings");
    }
    if (first_of_queue) {
        Queue& q = queues[queue];
        if (!map_ring<uint64_t>(fd, q.fill_mapping, q.fill, offsets.fr, setup.fill_entries,
                                XDP_UMEM_PGOFF_FILL_RING) ||
            !map_ring<uint64_t>(fd, q.completion_mapping, q.completion, offsets.cr,
                                completion_entries, XDP_UMEM_PGOFF_COMPLETION_RING)) {
            return failed("cannot map the FILL and COMPLETION rings");
        }
        q.fill.cached_cons = setup.fill_entries;  // xdp/xsk.h keeps it one ring size ahead
    }
    if (!map_ring<xdp_desc>(fd, s.rx_mapping, s.rx, offsets.rx, setup.rx_entries,
                            XDP_PGOFF_RX_RING)) {
        return failed("cannot map the RX ring");
    }
    if (setup.tx_entries != 0) {
        if (!map_ring<xdp_desc>(fd, s.tx_mapping, s.tx, offsets.tx, setup.tx_entries,
                                XDP_PGOFF_TX_RING)) {
            return failed("cannot map the TX ring");
        }
        s.tx.cached_cons = setup.tx_entries;
    }

    sockaddr_xdp address{};
    address.sxdp_family = AF_XDP;
    address.sxdp_ifindex = setup.ifindex;
    address.sxdp_queue_id = queue;
    if (umem_fd >= 0) {
        // Mode and wake-up flag come from the socket that has the UMEM; naming them is an error.
        address.sxdp_flags = XDP_SHARED_UMEM;
        address.sxdp_shared_umem_fd = static_cast<uint32_t>(umem_fd);
    } else {
        // With neither flag the kernel would fall back by itself, but not say why, and not on the
        // queues that follow.
        address.sxdp_flags = static_cast<uint16_t>(XDP_USE_NEED_WAKEUP | mode_flag);
    }
    const WhenBusy when_busy = setup.when_busy ? setup.when_busy : wait_a_second;
    const auto began = std::chrono::steady_clock::now();
    while (bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
        const int error = errno;
        if (error != EBUSY) {
            return std::unexpected(Failure{explain_bind(setup, queue, error), error});
        }
        const auto waited = std::chrono::duration_cast<std::chrono::milliseconds>(
            std::chrono::steady_clock::now() - began);
        if (const auto go_on = when_busy(queue, waited); !go_on) {
            return std::unexpected(Failure{
                go_on.error().empty() ? explain_bind(setup, queue, error) : go_on.error(), error});
        }
        std::this_thread::sleep_for(kBusyPause);
    }
    return {};
}

std::expected<void, Failure> PortSockets::Impl::open(uint16_t mode_flag) {
    queues = std::make_unique<Queue[]>(setup.queues);
    sockets = std::make_unique<Socket[]>(size_t{setup.queues} * setup.workers);
    for (uint16_t queue = 0; queue < setup.queues; ++queue) {
        for (uint16_t worker = 0; worker < setup.workers; ++worker) {
            // The first socket of the port has the UMEM, the first of a queue its rings.
            int umem_fd = -1;
            if (worker > 0) {
                umem_fd = socket(QueueId{queue}, WorkerId{0}).fd.get();
            } else if (queue > 0) {
                umem_fd = socket(QueueId{0}, WorkerId{0}).fd.get();
            }
            if (auto opened = open_socket(queue, worker, umem_fd, mode_flag); !opened) {
                sockets.reset();
                queues.reset();
                return opened;
            }
        }
    }
    zero_copy = mode_flag == XDP_ZEROCOPY;
    return {};
}

PortSockets::PortSockets(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
PortSockets::~PortSockets() = default;

std::expected<std::unique_ptr<PortSockets>, std::string> PortSockets::create(
    const PortSocketsSetup& setup, PacketMemory& memory) {
    for (const uint32_t entries : {setup.fill_entries, setup.rx_entries}) {
        if (!std::has_single_bit(entries)) {
            return std::unexpected("ring sizes are powers of two, not " + std::to_string(entries));
        }
    }
    if (setup.tx_entries != 0 && !std::has_single_bit(setup.tx_entries)) {
        return std::unexpected("ring sizes are powers of two, not " +
                               std::to_string(setup.tx_entries));
    }
    if (setup.queues == 0 || setup.workers == 0) {
        return std::unexpected(setup.device + ": at least one queue and one worker are needed");
    }
    raise_memlock_limit();

    auto impl = std::make_unique<Impl>();
    impl->setup = setup;
    impl->memory = &memory;
    impl->base = memory.base();
    // Room for what all sockets of the queue can have on their TX rings at once: the kernel sends
    // nothing while COMPLETION is full.
    impl->completion_entries =
        std::bit_ceil(std::max(uint32_t{setup.workers} * setup.tx_entries, uint32_t{kBurstMax}));

    if (setup.bind != Bind::copy) {
        const auto opened = impl->open(XDP_ZEROCOPY);
        if (!opened) {
            const auto& [text, error] = opened.error();
            // These are not about the mode: copying would meet them again.
            const bool final = error == EBUSY || error == ENETDOWN || error == ENODEV ||
                               error == EPERM || error == EAFNOSUPPORT;
            if (final || setup.bind == Bind::zero_copy) return std::unexpected(text);
            impl->mode_reason = error == EOPNOTSUPP ? "the driver has no zero-copy AF_XDP"
                                                    : "the driver refused zero-copy: " +
                                                          std::string(std::strerror(error));
        } else {
            impl->mode_reason = "the driver has zero-copy AF_XDP";
        }
    } else {
        impl->mode_reason = setup.copy_reason.empty() ? "copying was asked for" : setup.copy_reason;
    }
    if (!impl->sockets) {
        if (const auto opened = impl->open(XDP_COPY); !opened) {
            return std::unexpected(opened.error().text);
        }
    }
    return std::unique_ptr<PortSockets>(new PortSockets(std::move(impl)));
}

uint16_t PortSockets::queues() const {
    return impl_->setup.queues;
}
uint16_t PortSockets::workers() const {
    return impl_->setup.workers;
}
bool PortSockets::zero_copy() const {
    return impl_->zero_copy;
}

const std::string& PortSockets::mode_reason() const {
    return impl_->mode_reason;
}

int PortSockets::fd(QueueId queue, WorkerId worker) const {
    return impl_->socket(queue, worker).fd.get();
}

WorkerId PortSockets::home(QueueId queue) const {
    return WorkerId{static_cast<uint16_t>(to_index(queue) % impl_->setup.workers)};
}

uint32_t PortSockets::receive(QueueId queue, WorkerId worker, std::span<Frame> out) {
    Socket& s = impl_->socket(queue, worker);
    uint32_t index = 0;
    const uint32_t count = xsk_ring_cons__peek(&s.rx, static_cast<uint32_t>(out.size()), &index);
    if (count == 0) return 0;
    for (uint32_t i = 0; i < count; ++i) {
        const xdp_desc* descriptor = xsk_ring_cons__rx_desc(&s.rx, index + i);
        std::byte* data = impl_->base + descriptor->addr;
        __builtin_prefetch(data);
        out[i] = Frame{.data = data, .bytes = descriptor->len};
    }
    xsk_ring_cons__release(&s.rx, count);
    s.received.add(count);
    return count;
}

uint32_t PortSockets::transmit(QueueId queue, WorkerId worker, std::span<const Frame> frames) {
    Socket& s = impl_->socket(queue, worker);
    if (s.tx.size == 0) return 0;
    const auto wanted = static_cast<uint32_t>(frames.size());
    const uint32_t count = std::min(wanted, xsk_prod_nb_free(&s.tx, wanted));
    uint32_t index = 0;
    if (count == 0 || xsk_ring_prod__reserve(&s.tx, count, &index) != count) return 0;
    for (uint32_t i = 0; i < count; ++i) {
        xdp_desc* descriptor = xsk_ring_prod__tx_desc(&s.tx, index + i);
        descriptor->addr = static_cast<uint64_t>(frames[i].data - impl_->base);
        descriptor->len = frames[i].bytes;
        descriptor->options = 0;
    }
    xsk_ring_prod__submit(&s.tx, count);
    s.transmitted.add(count);
    return count;
}

uint32_t PortSockets::kick_transmit(QueueId queue, WorkerId worker) {
    Socket& s = impl_->socket(queue, worker);
    if (s.tx.size == 0) return 0;
    // In copy mode one call sends a batch of the kernel's choice (32 by default) and says EAGAIN
    // when there is more. Without progress there is no room: later, then.
    uint32_t left = ring_level(s.tx.producer, s.tx.consumer);
    while (left != 0 && xsk_ring_prod__needs_wakeup(&s.tx)) {
        const ssize_t result = sendto(s.fd.get(), nullptr, 0, MSG_DONTWAIT, nullptr, 0);
        const uint32_t before = std::exchange(left, ring_level(s.tx.producer, s.tx.consumer));
        if (result >= 0 || left == before) break;
    }
    return left;
}

// Home. Two system calls for each time that memory is used up, however often it is looked for.
void PortSockets::Impl::note_memory(QueueId queue, bool has_frames) {
    Queue& q = queues[to_index(queue)];
    const uint64_t before = q.misses_before.read();
    if (has_frames == (before == kMemoryHasFrames)) return;
    const auto kernel = ask(queue, WorkerId{0});
    if (!kernel) return;
    const uint64_t misses = kernel->rx_fill_ring_empty_descs;
    if (has_frames) {
        q.misses_without_memory.add(misses - before);
        q.misses_before.set(kMemoryHasFrames);
    } else {
        q.misses_before.set(misses);
    }
}

uint32_t PortSockets::refill(QueueId queue) {
    Queue& q = impl_->queues[to_index(queue)];
    uint32_t added = 0;
    uint32_t room = xsk_prod_nb_free(&q.fill, q.fill.size);
    uint32_t batch = kBurstMax;
    std::array<std::byte*, kBurstMax> frames;
    while (room != 0 && batch != 0) {
        const uint32_t count = std::min(batch, room);
        if (!impl_->memory->take(std::span(frames).first(count))) {
            batch = count / 2;  // the last few of the pool
            continue;
        }
        uint32_t index = 0;
        xsk_ring_prod__reserve(&q.fill, count, &index);  // there is room: we are the only producer
        for (uint32_t i = 0; i < count; ++i) {
            *xsk_ring_prod__fill_addr(&q.fill, index + i) =
                static_cast<uint64_t>(frame_base(frames[i]) - impl_->base);
        }
        xsk_ring_prod__submit(&q.fill, count);
        room -= count;
        added += count;
    }
    if (added != 0) q.filled.add(added);
    // It has some again when the ring could be filled to the last slot.
    impl_->note_memory(queue, room == 0);
    if (xsk_ring_prod__needs_wakeup(&q.fill)) {
        recvfrom(fd(queue, WorkerId{0}), nullptr, 0, MSG_DONTWAIT, nullptr, nullptr);
    }
    return added;
}

uint32_t PortSockets::reclaim(QueueId queue) {
    Queue& q = impl_->queues[to_index(queue)];
    uint32_t total = 0;
    std::array<std::byte*, kBurstMax> frames;
    for (;;) {
        uint32_t index = 0;
        const uint32_t count = xsk_ring_cons__peek(&q.completion, kBurstMax, &index);
        if (count == 0) break;
        for (uint32_t i = 0; i < count; ++i) {
            frames[i] = impl_->base + *xsk_ring_cons__comp_addr(&q.completion, index + i);
        }
        xsk_ring_cons__release(&q.completion, count);
        impl_->memory->give(std::span(frames).first(count));
        total += count;
    }
    if (total != 0) q.reclaimed.add(total);
    return total;
}

uint32_t PortSockets::fill_level(QueueId queue) const {
    const xsk_ring_prod& fill = impl_->queues[to_index(queue)].fill;
    return ring_level(fill.producer, fill.consumer);
}

// A quarter: at a million frames per second and 2048 entries the home then has half a
// millisecond to wake up.
uint32_t PortSockets::fill_low_water(QueueId) const {
    return impl_->setup.fill_entries / 4;
}

uint32_t PortSockets::completion_level(QueueId queue) const {
    const xsk_ring_cons& completion = impl_->queues[to_index(queue)].completion;
    return ring_level(completion.producer, completion.consumer);
}

uint32_t PortSockets::completion_high_water(QueueId) const {
    return impl_->completion_entries / 4;
}

QueueStatistics PortSockets::statistics(QueueId queue) const {
    const Queue& q = impl_->queues[to_index(queue)];
    QueueStatistics out;
    uint64_t dropped = 0;
    for (uint16_t worker = 0; worker < impl_->setup.workers; ++worker) {
        const xdp_statistics kernel =
            impl_->ask(queue, WorkerId{worker}).value_or(xdp_statistics{});
        dropped += kernel.rx_dropped;
        out.rx_ring_full += kernel.rx_ring_full;
    }
    uint64_t before = q.misses_before.read();
    uint64_t without_memory = q.misses_without_memory.read();
    // Its home may have ended a shortage between the two, which is in both then.
    for (uint64_t now = 0; (now = q.misses_before.read()) != before; before = now) {
        without_memory = q.misses_without_memory.read();
    }
    // After the others: a frame that is lost meanwhile must not pass for one that is too big.
    out.fill_misses =
        impl_->ask(queue, WorkerId{0}).value_or(xdp_statistics{}).rx_fill_ring_empty_descs;
    if (before != kMemoryHasFrames && out.fill_misses > before) {
        without_memory += out.fill_misses - before;
    }
    const uint64_t missed = impl_->zero_copy ? 0 : std::min(dropped, out.fill_misses);
    out.too_big = dropped - missed;
    out.no_frame = std::min(missed, without_memory);
    out.fill_ring_empty = missed - out.no_frame;
    return out;
}

uint64_t PortSockets::frames_in_kernel() const {
    uint64_t given = 0;
    uint64_t returned = 0;
    for (uint16_t queue = 0; queue < impl_->setup.queues; ++queue) {
        const Queue& q = impl_->queues[queue];
        given += q.filled.read();
        returned += q.reclaimed.read();
        for (uint16_t worker = 0; worker < impl_->setup.workers; ++worker) {
            const Socket& s = impl_->socket(QueueId{queue}, WorkerId{worker});
            given += s.transmitted.read();
            returned += s.received.read();
        }
    }
    return given - returned;
}

}  // namespace sallyport::io
