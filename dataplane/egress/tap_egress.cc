// SPDX-License-Identifier: Apache-2.0
#include "dataplane/egress/tap_egress.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>

#include "bpf/abi.h"
#include "dataplane/io/tap_writer.h"

namespace sallyport::egress {

namespace {

class TapEgress final : public Egress {
  public:
    TapEgress(io::MacAddress mac, io::PacketMemory& memory) : memory_(memory) {
        for (uint8_t kind = 0; kind < addresses_.size(); ++kind) {
            std::ranges::copy(mac, addresses_[kind].begin());
            sp_write_worker_mac(addresses_[kind].data() + mac.size(), kind);
        }
    }
    ~TapEgress() override { flush(); }
    TapEgress(const TapEgress&) = delete;
    TapEgress& operator=(const TapEgress&) = delete;

    std::expected<void, std::string> open(const io::TapQueue& queue) { return writer_.open(queue); }

    void send(std::span<OutgoingFrame> frames) override;
    void flush() override;
    uint32_t in_flight() const override { return writer_.in_flight(); }

  private:
    // Destination and source address of a frame, by kind.
    std::array<std::array<uint8_t, 12>, SP_KIND_TRANSIT + 1> addresses_{};
    io::PacketMemory& memory_;
    io::TapWriter writer_;
};

void TapEgress::send(std::span<OutgoingFrame> frames) {
    for (const OutgoingFrame& out : frames) {
        std::byte* data = out.frame.data;
        std::memcpy(data, addresses_[static_cast<size_t>(out.kind)].data(), addresses_[0].size());
        if (writer_.add(out.frame)) continue;
        flush();  // the batch was full
        if (writer_.add(out.frame)) continue;
        // The kernel took nothing: out of memory.
        memory_.give({&data, 1});
        count_drop(DropReason::injector_full);
    }
}

void TapEgress::flush() {
    if (writer_.in_flight() == 0) return;
    std::array<std::byte*, kBurstMax> done;
    writer_.submit();
    for (;;) {
        const auto [count, written] = writer_.collect(done);
        if (count == 0) break;
        memory_.give(std::span(done).first(count));
        sent_.add(written);
        if (written != count) count_drop(DropReason::injector_full, count - written);
    }
}

}  // namespace

std::expected<std::unique_ptr<Egress>, std::string> make_tap_egress(io::TapQueue& queue,
                                                                    io::MacAddress mac,
                                                                    io::PacketMemory& memory) {
    auto egress = std::make_unique<TapEgress>(mac, memory);
    if (auto opened = egress->open(queue); !opened) return std::unexpected(opened.error());
    return egress;
}

}  // namespace sallyport::egress
