// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <expected>
#include <filesystem>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sallyport::control {

// Features of devices that are switched off while the appliance runs.
//
// How a device hands VLAN tags on.
// Most cards take the tag out of the frame and put it beside it (rx-vlan-offload, on by default),
// where no XDP program sees it: what a host in VLAN 5 sends looks as if it came from the port's own
// network. So reception of C-tags and S-tags by the card is switched off while the appliance runs,
// and put back on destruction. After a kill it stays off; a note in the state directory, as for
// sysctls, lets the end of the next run put it back. That is about the device itself: what comes to
// a bond, a bridge or a macvlan has lost its tags at the devices below, where the kernel's own
// stack takes them off, and no feature changes that (docs/ports.md).
//
// How devices below a port hand frames on: what they merge (GRO, LRO) is one packet of up to 64 KB
// to the port above them, larger than its MTU. Merging there is switched off too, and put back in
// the same way. On the port itself the kernel leaves it while there is an XDP program.
//
// Owner: control thread, under the lock of the state directory from the first call of switch_off()
// on.
class LinkFeatures {
  public:
    enum class Change : uint8_t { none, changed };

    explicit LinkFeatures(std::filesystem::path note) : note_(std::move(note)) {}
    LinkFeatures(const LinkFeatures&) = delete;
    ~LinkFeatures();

    // Before the device gets sockets and programs: some cards start anew. The error says that the
    // driver keeps the tags beside frames, whatever it is told.
    std::expected<Change, std::string> switch_off(const std::string& device);

    // Of a device below a port: merges no frames any more, if it can be told not to.
    enum class Merging : uint8_t { none, stopped, goes_on };
    std::expected<Merging, std::string> stop_merging(const std::string& device);

    // What a killed run has switched off is put back by the destructor; switch_off() does so too.
    void take_over() { read_note(); }

  private:
    struct Changed {
        std::string device;
        std::string feature;
        friend auto operator<=>(const Changed&, const Changed&) = default;
    };
    void read_note();
    // Switches off those of `features` that are on.
    std::expected<Change, std::string> switch_off(const std::string& device,
                                                  std::span<const std::string_view> features);
    [[nodiscard]] std::expected<void, std::string> write_note() const;

    std::filesystem::path note_;
    bool note_read_ = false;
    std::set<Changed> changed_;  // by this run or a killed one: were on
};

// The features of the kind that are on now; empty: tags stay in frames. Any thread.
std::expected<std::vector<std::string>, std::string> tags_beside_frames(const std::string& device);

}  // namespace sallyport::control
