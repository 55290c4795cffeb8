// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the configuration needs to know of the network devices it runs on.

#include <cstdint>
#include <expected>
#include <string>
#include <vector>

#include "config/config.h"

struct ifreq;

namespace sallyport::config {

// Asks the kernel one question about a device of this network namespace: an ioctl of sockets, with
// what else it takes in `request`. False: errno says why. Any thread.
[[nodiscard]] bool ask_device(const std::string& device, unsigned long question, ifreq& request);

// Receive queues that `device` uses now (combined and receive-only channels together, as
// ethtool -l shows them). Fails with a sentence when there is no such device or it does not say.
std::expected<uint16_t, std::string> device_queue_count(const std::string& device);

// Slots of one receive ring of the card, 0 where the driver does not say (virtual devices have
// none). With zero-copy each holds a frame of packet memory.
[[nodiscard]] uint32_t receive_ring_slots(const std::string& device);

// CPUs this process may use, in ascending order. Empty when the system does not say.
[[nodiscard]] std::vector<uint16_t> usable_cpus();

// Frames that `queues` receive queues (of all ports together) and `workers` workers need so that
// no queue runs dry; what cards hold with zero-copy comes on top. See system_check.cc for the sum.
[[nodiscard]] uint64_t frames_needed(uint64_t queues, uint64_t workers, bool follows_xfrm);

}  // namespace sallyport::config
