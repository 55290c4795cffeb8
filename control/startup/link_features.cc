// SPDX-License-Identifier: Apache-2.0
#include "control/startup/link_features.h"

#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "config/system.h"
#include "control/host/note.h"

namespace sallyport::control {

namespace {

// The kernel's names: ethtool calls the first one rxvlan.
constexpr std::array<std::string_view, 2> kTagFeatures = {"rx-vlan-hw-parse",
                                                          "rx-vlan-stag-hw-parse"};

constexpr std::array<std::string_view, 3> kMergeFeatures = {"rx-gro", "rx-gro-hw", "rx-lro"};

bool is_one_of(std::span<const std::string_view> names, std::string_view name) {
    return std::ranges::find(names, name) != names.end();
}

// Requests of ethtool are a structure with a list behind it.
template <typename Head>
class Request {
  public:
    Request(uint32_t command, size_t list_bytes) : bytes_(sizeof(Head) + list_bytes) {
        head().cmd = command;
    }
    [[nodiscard]] Head& head() { return *reinterpret_cast<Head*>(bytes_.data()); }
    // False: errno says why.
    [[nodiscard]] bool ask(const std::string& device) {
        ifreq request{};
        request.ifr_data = bytes_.data();
        return config::ask_device(device, SIOCETHTOOL, request);
    }

  private:
    std::vector<char> bytes_;
};

std::unexpected<std::string> cannot(const char* what, const std::string& device) {
    return std::unexpected(std::string("cannot ") + what + " the features of " + device + ": " +
                           std::strerror(errno));
}

struct Feature {
    std::string name;
    uint32_t index = 0;  // bit in the kernel's list
    bool on = false;
};

struct FeatureList {
    uint32_t count = 0;  // of all features, not only of ours
    std::vector<Feature> ours;
};

uint32_t blocks_of(uint32_t features) {
    return (features + 31) / 32;
}

// Those of kTagFeatures and kMergeFeatures that the kernel knows.
std::expected<FeatureList, std::string> list_features(const std::string& device) {
    FeatureList list;
    Request<ethtool_sset_info> sizes(ETHTOOL_GSSET_INFO, sizeof(uint32_t));
    sizes.head().sset_mask = uint64_t{1} << ETH_SS_FEATURES;
    if (!sizes.ask(device)) return cannot("count", device);
    list.count = sizes.head().sset_mask == 0 ? 0 : sizes.head().data[0];

    Request<ethtool_gstrings> names(ETHTOOL_GSTRINGS, size_t{list.count} * ETH_GSTRING_LEN);
    names.head().string_set = ETH_SS_FEATURES;
    names.head().len = list.count;
    if (!names.ask(device)) return cannot("list", device);
    const uint32_t blocks = blocks_of(list.count);
    Request<ethtool_gfeatures> features(ETHTOOL_GFEATURES,
                                        blocks * sizeof(ethtool_get_features_block));
    features.head().size = blocks;
    if (!features.ask(device)) return cannot("read", device);
    for (uint32_t i = 0; i < list.count; ++i) {
        const char* text = reinterpret_cast<const char*>(names.head().data) + i * ETH_GSTRING_LEN;
        const std::string_view name(text, strnlen(text, ETH_GSTRING_LEN));
        if (!is_one_of(kTagFeatures, name) && !is_one_of(kMergeFeatures, name)) continue;
        list.ours.push_back({.name = std::string(name),
                             .index = i,
                             .on = (features.head().features[i / 32].active >> i % 32 & 1) != 0});
    }
    return list;
}

std::expected<void, std::string> set_feature(const std::string& device, const FeatureList& list,
                                             const Feature& feature, bool on) {
    const uint32_t blocks = blocks_of(list.count);
    Request<ethtool_sfeatures> request(ETHTOOL_SFEATURES,
                                       blocks * sizeof(ethtool_set_features_block));
    request.head().size = blocks;
    ethtool_set_features_block& block = request.head().features[feature.index / 32];
    block.valid = 1U << feature.index % 32;
    block.requested = on ? block.valid : 0;
    if (!request.ask(device)) return cannot("set", device);
    return {};
}

using Names = std::vector<std::string>;

// Those of `features` that are on now.
std::expected<Names, std::string> those_on(const std::string& device,
                                           std::span<const std::string_view> features) {
    const auto list = list_features(device);
    if (!list) return std::unexpected(list.error());
    Names on;
    for (const Feature& feature : list->ours) {
        if (feature.on && is_one_of(features, feature.name)) on.push_back(feature.name);
    }
    return on;
}

}  // namespace

std::expected<std::vector<std::string>, std::string> tags_beside_frames(const std::string& device) {
    return those_on(device, kTagFeatures);
}

std::expected<LinkFeatures::Change, std::string> LinkFeatures::switch_off(
    const std::string& device, std::span<const std::string_view> features) {
    read_note();
    const auto list = list_features(device);
    if (!list) return std::unexpected(list.error());
    Change change = Change::none;
    for (const Feature& feature : list->ours) {
        if (!feature.on || !is_one_of(features, feature.name)) continue;
        changed_.insert({.device = device, .feature = feature.name});
        // The note comes first, as for sysctls.
        if (auto written = write_note(); !written) return std::unexpected(written.error());
        if (auto set = set_feature(device, *list, feature, false); !set) {
            return std::unexpected(set.error());
        }
        change = Change::changed;
    }
    return change;
}

std::expected<LinkFeatures::Merging, std::string> LinkFeatures::stop_merging(
    const std::string& device) {
    const auto change = switch_off(device, kMergeFeatures);
    // The kernel says that it is done, also where the driver keeps it on.
    const auto left = change ? those_on(device, kMergeFeatures)
                             : std::expected<Names, std::string>(std::unexpected(change.error()));
    if (!left) {
        // One that went meanwhile hands nothing on.
        if (if_nametoindex(device.c_str()) == 0) return Merging::none;
        return std::unexpected(left.error());
    }
    if (!left->empty()) return Merging::goes_on;
    return *change == Change::changed ? Merging::stopped : Merging::none;
}

std::expected<LinkFeatures::Change, std::string> LinkFeatures::switch_off(
    const std::string& device) {
    const auto change = switch_off(device, kTagFeatures);
    if (!change) return change;
    const auto left = tags_beside_frames(device);
    if (!left) return std::unexpected(left.error());
    if (!left->empty()) {
        return std::unexpected(device + " takes VLAN tags out of frames (" + left->front() +
                               "), and its driver cannot be told not to: what comes in a VLAN "
                               "would be taken for the port's own. It cannot be a port");
    }
    return change;
}

void LinkFeatures::read_note() {
    if (std::exchange(note_read_, true)) return;
    for (const std::string& line : host::read_note(note_)) {
        const size_t space = line.find(' ');
        if (space == std::string::npos) continue;
        changed_.insert({.device = line.substr(0, space), .feature = line.substr(space + 1)});
    }
}

std::expected<void, std::string> LinkFeatures::write_note() const {
    std::vector<std::string> lines;
    for (const Changed& changed : changed_) lines.push_back(changed.device + " " + changed.feature);
    return host::write_note(note_, lines);
}

LinkFeatures::~LinkFeatures() {
    for (const Changed& changed : changed_) {
        // A device that is gone, or another one of its name, may have nothing to switch on.
        const auto list = list_features(changed.device);
        if (!list) continue;
        for (const Feature& feature : list->ours) {
            if (feature.name != changed.feature || feature.on) continue;
            static_cast<void>(set_feature(changed.device, *list, feature, true));
        }
    }
    if (note_read_) host::remove_note(note_);
}

}  // namespace sallyport::control
