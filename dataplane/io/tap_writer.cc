// SPDX-License-Identifier: Apache-2.0
#include "dataplane/io/tap_writer.h"

#include <array>
#include <cstring>

namespace sallyport::io {

TapWriter::~TapWriter() {
    if (ready_) io_uring_queue_exit(&ring_);
}

std::expected<void, std::string> TapWriter::open(const TapQueue& queue) {
    if (const int error = io_uring_queue_init(kBurstMax, &ring_, 0); error < 0) {
        return std::unexpected(std::string("cannot make an io_uring: ") + std::strerror(-error) +
                               "; kernel.io_uring_disabled must be 0");
    }
    ready_ = true;
    // A registered file saves the reference counting on every write.
    const int fd = queue.fd();
    if (const int error = io_uring_register_files(&ring_, &fd, 1); error < 0) {
        return std::unexpected(std::string("cannot register the TAP queue with io_uring: ") +
                               std::strerror(-error));
    }
    return {};
}

bool TapWriter::add(const Frame& frame) {
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    if (entry == nullptr) return false;
    io_uring_prep_write(entry, 0, frame.data, frame.bytes, 0);
    io_uring_sqe_set_flags(entry, IOSQE_FIXED_FILE);
    // Buffers are aligned to 4096, so their low 12 bits have room for the length.
    static_assert(kFrameDataBytesMax < kFrameBytes);
    entry->user_data = reinterpret_cast<uintptr_t>(frame_base(frame.data)) | frame.bytes;
    ++in_flight_;
    return true;
}

void TapWriter::submit() {
    io_uring_submit(&ring_);
}

TapWriter::Collected TapWriter::collect(std::span<std::byte*, kBurstMax> done) {
    std::array<io_uring_cqe*, kBurstMax> completions;
    Collected collected{.count = io_uring_peek_batch_cqe(&ring_, completions.data(), kBurstMax)};
    for (uint32_t i = 0; i < collected.count; ++i) {
        const uint64_t tag = completions[i]->user_data;
        const auto bytes = static_cast<int32_t>(tag & (kFrameBytes - 1));
        done[i] = reinterpret_cast<std::byte*>(tag & ~uint64_t{kFrameBytes - 1});
        if (completions[i]->res == bytes) ++collected.written;
    }
    io_uring_cq_advance(&ring_, collected.count);
    in_flight_ -= collected.count;
    return collected;
}

}  // namespace sallyport::io
