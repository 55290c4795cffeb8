// SPDX-License-Identifier: Apache-2.0
#include "dataplane/egress/direct_egress.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "dataplane/egress/filter.h"
#include "dataplane/wire/frame_ip.h"

namespace sallyport::egress {

namespace {

// The same reasons as the devmap program has (bpf/parse.h).
DropReason parse(const Frame& frame, wire::IpPacket& packet) {
    const DropReason reason = wire::parse_frame(frame, packet);
    if (reason != DropReason::none) return reason;
    const bool ports_expected = wire::has_port_numbers(packet.protocol) && !packet.later_fragment;
    return ports_expected && !packet.ports_known ? DropReason::truncated : DropReason::none;
}

bool is_martian(Family family, const std::byte* ip) {
    return sp_is_martian(family == Family::v4 ? SP_AF_INET : SP_AF_INET6,
                         reinterpret_cast<const uint8_t*>(wire::source_at(ip, family)),
                         reinterpret_cast<const uint8_t*>(wire::destination_at(ip, family))) != 0;
}

class DirectEgress final : public Egress {
  public:
    explicit DirectEgress(DirectEgressSetup setup)
        : setup_(std::move(setup)), port_states_(setup_.ports.size()) {}

    void send(std::span<OutgoingFrame> frames) override;
    void flush() override;
    void set_next_hops(const NextHops* next_hops) override { next_hops_ = next_hops; }
    // What stands on a TX ring is the kernel's (PortSockets::frames_in_kernel).
    uint32_t in_flight() const override { return setup_.fallback->in_flight(); }
    bool has_unsent() const override {
        return setup_.fallback->has_unsent() ||
               std::ranges::any_of(port_states_, [](const PortState& port) { return port.kick; });
    }

  private:
    enum class Way : uint8_t { port, kernel, drop };

    struct PortState {
        std::array<Frame, kBurstMax> batch;
        uint32_t batch_count = 0;
        bool kick = false;  // frames stand on the TX ring
    };

    Way decide(const OutgoingFrame& out, const NextHop*& hop, DropReason& reason) const;
    QueueId queue_of(const io::PortSockets& port) const {
        return QueueId{static_cast<uint16_t>(to_index(setup_.worker) % port.queues())};
    }
    bool leads_inside(PortId port) const {
        return to_index(port) < setup_.protected_side.size() &&
               setup_.protected_side[to_index(port)];
    }
    void transmit(size_t port);
    void push(size_t port);
    void drop(const Frame& frame, DropReason reason) {
        setup_.memory->give({&frame.data, 1});
        count_drop(reason);
    }
    void count_fallback();

    DirectEgressSetup setup_;
    const NextHops* next_hops_ = nullptr;
    std::vector<PortState> port_states_;
    // What of the fallback's counters is already in ours.
    uint64_t fallback_sent_seen_ = 0;
    std::array<uint64_t, kDropReasonCount> fallback_drops_seen_{};
};

DirectEgress::Way DirectEgress::decide(const OutgoingFrame& out, const NextHop*& hop,
                                       DropReason& reason) const {
    wire::IpPacket packet;
    reason = parse(out.frame, packet);
    if (reason != DropReason::none) return Way::drop;

    const std::byte* ip = out.frame.data + wire::kEthernetBytes;
    const std::byte* destination = wire::destination_at(ip, packet.family);
    hop = next_hops_ == nullptr ? nullptr : next_hops_->lookup(packet.family, destination);
    if (hop == nullptr) return Way::kernel;
    if (denies(next_hops_->filter(hop->port).rules, packet, ip)) {
        reason = DropReason::egress_denied;
        return Way::drop;
    }
    const bool transit = out.kind == FrameKind::transit;
    if (transit && is_martian(packet.family, ip)) {
        reason = DropReason::martian;
        return Way::drop;
    }
    if (!hop->resolved || (transit && packet.ttl <= 1)) return Way::kernel;
    // One tunnel's traffic must not continue in clear where another one belongs (RFC 4301 5.1).
    if (transit && !leads_inside(hop->port)) return Way::kernel;
    if (packet.total_bytes > hop->mtu) {
        if (transit || !packet.dont_fragment) return Way::kernel;
        reason = DropReason::too_big;
        return Way::drop;
    }
    return Way::port;
}

void DirectEgress::send(std::span<OutgoingFrame> frames) {
    std::array<OutgoingFrame, kBurstMax> to_kernel;
    uint32_t to_kernel_count = 0;
    for (const OutgoingFrame& out : frames) {
        const NextHop* hop = nullptr;
        DropReason reason{};
        switch (decide(out, hop, reason)) {
            case Way::drop:
                drop(out.frame, reason);
                break;
            case Way::kernel:
                to_kernel[to_kernel_count++] = out;
                if (to_kernel_count == to_kernel.size()) {
                    setup_.fallback->send(to_kernel);
                    to_kernel_count = 0;
                }
                break;
            case Way::port: {
                std::byte* data = out.frame.data;
                std::memcpy(data, hop->destination_mac.data(), 6);
                std::memcpy(data + 6, hop->source_mac.data(), 6);
                if (out.kind == FrameKind::transit) {
                    const bool v4 = wire::ether_type_at(data) == wire::kEtherTypeIpv4;
                    wire::decrement_ttl(data + wire::kEthernetBytes, v4 ? Family::v4 : Family::v6);
                }
                const size_t port = to_index(hop->port);
                PortState& state = port_states_[port];
                state.batch[state.batch_count++] = out.frame;
                if (state.batch_count == state.batch.size()) transmit(port);
                break;
            }
        }
    }
    if (to_kernel_count != 0) {
        setup_.fallback->send(std::span(to_kernel).first(to_kernel_count));
    }
    for (size_t port = 0; port < port_states_.size(); ++port) transmit(port);
    count_fallback();
}

void DirectEgress::transmit(size_t port) {
    PortState& state = port_states_[port];
    const uint32_t count = std::exchange(state.batch_count, 0);
    if (count == 0) return;
    io::PortSockets& sockets = *setup_.ports[port];
    const auto batch = std::span(state.batch).first(count);
    const QueueId queue = queue_of(sockets);
    uint32_t taken = sockets.transmit(queue, setup_.worker, batch);
    if (taken < count) {
        // The ring is full: let the kernel take what stands there, then try once more.
        push(port);
        taken += sockets.transmit(queue, setup_.worker, batch.subspan(taken));
    }
    state.kick = true;
    sent_.add(taken);
    for (const Frame& frame : batch.subspan(taken)) drop(frame, DropReason::injector_full);
}

// The kernel stops while COMPLETION is full, so what was sent is reclaimed before and after.
void DirectEgress::push(size_t port) {
    PortState& state = port_states_[port];
    io::PortSockets& sockets = *setup_.ports[port];
    const QueueId queue = queue_of(sockets);
    const WorkerId home = sockets.home(queue);
    uint32_t left = sockets.kick_transmit(queue, setup_.worker);
    if (home == setup_.worker) {
        while (sockets.reclaim(queue) != 0 && left != 0) {
            left = sockets.kick_transmit(queue, setup_.worker);
        }
    } else if (setup_.wake && (left != 0 || sockets.completion_level(queue) >
                                                sockets.completion_high_water(queue))) {
        setup_.wake(home);
    }
    state.kick = left != 0;
}

void DirectEgress::flush() {
    setup_.fallback->flush();
    count_fallback();
    for (size_t index = 0; index < port_states_.size(); ++index) {
        io::PortSockets& sockets = *setup_.ports[index];
        if (port_states_[index].kick) push(index);
        for (uint16_t queue = 0; queue < sockets.queues(); ++queue) {
            if (sockets.home(QueueId{queue}) == setup_.worker) sockets.reclaim(QueueId{queue});
        }
    }
}

// sent() and drops() of this object tell the whole story, so the fallback's growth is added.
void DirectEgress::count_fallback() {
    const uint64_t sent = setup_.fallback->sent().read();
    sent_.add(sent - std::exchange(fallback_sent_seen_, sent));
    for (size_t reason = 0; reason < kDropReasonCount; ++reason) {
        const uint64_t drops = setup_.fallback->drops()[reason].read();
        drops_[reason].add(drops - std::exchange(fallback_drops_seen_[reason], drops));
    }
}

}  // namespace

std::unique_ptr<Egress> make_direct_egress(DirectEgressSetup setup) {
    return std::make_unique<DirectEgress>(std::move(setup));
}

}  // namespace sallyport::egress
