// SPDX-License-Identifier: Apache-2.0
#pragma once

// Programs of ours on one device by TC (clsact), at most one in each direction.
//
// They stand first (priority 1) under a handle of our own, and say nothing about what they let
// pass, so that filters of others behind them still have their turn.

#include <cstdint>
#include <expected>
#include <string>
#include <utility>

namespace sallyport::bpf_objects {

// Descriptors of loaded programs; -1: none in that direction.
struct TcPrograms {
    int ingress_fd = -1;
    int egress_fd = -1;
};

class TcAttachment {
  public:
    // Replaces what a killed run left in one step for each direction; another's filter under our
    // handle is an error. The caller holds the device's lock.
    static std::expected<TcAttachment, std::string> attach(const std::string& device,
                                                           uint32_t ifindex,
                                                           const TcPrograms& programs);
    // Takes off what a killed run left. The caller holds the device's lock.
    static void remove_leftovers(uint32_t ifindex);
    TcAttachment(TcAttachment&& other) noexcept
        : ifindex_(std::exchange(other.ifindex_, 0)),
          ingress_(other.ingress_),
          egress_(other.egress_),
          replaced_stale_(other.replaced_stale_) {}
    TcAttachment& operator=(TcAttachment&&) = delete;
    ~TcAttachment();  // detaches; clsact stays, it may have others' filters

    // Asks the kernel whether the filters are (still) there.
    [[nodiscard]] bool is_there() const;
    // Leaves the filters where they are: another object has them now.
    void release() { ifindex_ = 0; }
    [[nodiscard]] bool replaced_stale() const { return replaced_stale_; }

  private:
    TcAttachment(uint32_t ifindex, const TcPrograms& programs)
        : ifindex_(ifindex), ingress_(programs.ingress_fd >= 0), egress_(programs.egress_fd >= 0) {}

    uint32_t ifindex_;
    bool ingress_;
    bool egress_;
    bool replaced_stale_ = false;
};

}  // namespace sallyport::bpf_objects
