// SPDX-License-Identifier: Apache-2.0
#include <liburing.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "dataplane/egress/tap_egress.h"

namespace sallyport::io {

namespace {

class TapEgress final : public Egress {
  public:
    TapEgress(MacAddress mac, PacketMemory& memory) : memory_(memory) {
        for (size_t kind = 0; kind < addresses_.size(); ++kind) {
            std::ranges::copy(mac, addresses_[kind].begin());
            const MacAddress source = {0x02, 0x53, 0x50, 0x00, 0x00, static_cast<uint8_t>(kind)};
            std::ranges::copy(source, addresses_[kind].begin() + mac.size());
        }
    }
    ~TapEgress() override {
        if (!ready_) return;
        flush();
        io_uring_queue_exit(&ring_);
    }
    TapEgress(const TapEgress&) = delete;
    TapEgress& operator=(const TapEgress&) = delete;

    std::expected<void, std::string> open(int fd);

    void send(std::span<OutgoingFrame> frames) override;
    void flush() override;
    uint32_t in_flight() const override { return in_flight_; }

  private:
    // Destination and source address of a frame, by kind.
    std::array<std::array<uint8_t, 12>, SP_KIND_TRANSIT + 1> addresses_{};
    PacketMemory& memory_;
    io_uring ring_{};
    bool ready_ = false;
    uint32_t in_flight_ = 0;
};

std::expected<void, std::string> TapEgress::open(int fd) {
    if (const int error = io_uring_queue_init(kBurstMax, &ring_, 0); error < 0) {
        return std::unexpected(std::string("cannot make an io_uring: ") + std::strerror(-error) +
                               "; kernel.io_uring_disabled must be 0");
    }
    ready_ = true;
    // A registered file saves the reference counting on every write.
    if (const int error = io_uring_register_files(&ring_, &fd, 1); error < 0) {
        return std::unexpected(std::string("cannot register the TAP queue with io_uring: ") +
                               std::strerror(-error));
    }
    return {};
}

void TapEgress::send(std::span<OutgoingFrame> frames) {
    for (const OutgoingFrame& out : frames) {
        io_uring_sqe* entry = io_uring_get_sqe(&ring_);
        if (entry == nullptr) {  // a batch is full
            flush();
            entry = io_uring_get_sqe(&ring_);
        }
        std::byte* data = out.frame.data;
        if (entry == nullptr) {  // the kernel took nothing: out of memory
            memory_.give({&data, 1});
            count_drop(DropReason::injector_full);
            continue;
        }
        std::memcpy(data, addresses_[static_cast<size_t>(out.kind)].data(), addresses_[0].size());
        io_uring_prep_write(entry, 0, data, out.frame.bytes, 0);
        io_uring_sqe_set_flags(entry, IOSQE_FIXED_FILE);
        // Buffers are aligned to 4096, so their low 12 bits have room for the length.
        static_assert(kFrameDataBytesMax < kFrameBytes);
        entry->user_data = reinterpret_cast<uintptr_t>(frame_base(data)) | out.frame.bytes;
        ++in_flight_;
    }
}

void TapEgress::flush() {
    if (in_flight_ == 0) return;
    std::array<std::byte*, kBurstMax> done;
    std::array<io_uring_cqe*, kBurstMax> completions;
    // An interrupted submission leaves the rest in the queue for the next round.
    io_uring_submit(&ring_);
    for (;;) {
        const unsigned count = io_uring_peek_batch_cqe(&ring_, completions.data(), kBurstMax);
        if (count == 0) break;
        uint64_t written = 0;
        for (unsigned i = 0; i < count; ++i) {
            const uint64_t tag = completions[i]->user_data;
            const auto bytes = static_cast<int32_t>(tag & (kFrameBytes - 1));
            done[i] = reinterpret_cast<std::byte*>(tag & ~uint64_t{kFrameBytes - 1});
            if (completions[i]->res == bytes) ++written;
        }
        io_uring_cq_advance(&ring_, count);
        memory_.give(std::span(done).first(count));
        in_flight_ -= count;
        sent_.add(written);
        if (written != count) count_drop(DropReason::injector_full, count - written);
    }
}

}  // namespace

std::expected<std::unique_ptr<Egress>, std::string> make_tap_egress(TapQueue& queue, MacAddress mac,
                                                                    PacketMemory& memory) {
    auto egress = std::make_unique<TapEgress>(mac, memory);
    if (auto opened = egress->open(queue.fd()); !opened) return std::unexpected(opened.error());
    return egress;
}

}  // namespace sallyport::io
