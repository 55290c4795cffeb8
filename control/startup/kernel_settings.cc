// SPDX-License-Identifier: Apache-2.0
#include "control/startup/kernel_settings.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

namespace sallyport::control {

bool forwards_ipv6(const config::Config& config) {
    return config.follows_xfrm() ||
           std::ranges::any_of(config.policies,
                               [](const config::Policy& policy) {
                                   return policy.local.front().address.family == Family::v6;
                               }) ||
           std::ranges::any_of(config.sas, [](const config::StaticSa& sa) {
               return sa.source.family == Family::v6;
           });
}

std::vector<std::string> ipv6_forwarding(const config::Config& config) {
    std::vector<std::string> devices{"all", config.device};
    if (!config.xfrm_interface.empty()) devices.push_back(config.xfrm_interface);
    for (const config::Port& port : config.ports) devices.push_back(port.device);
    std::vector<std::string> out;
    out.reserve(devices.size());
    for (const std::string& device : devices) {
        out.push_back("net/ipv6/conf/" + device + "/forwarding");
    }
    return out;
}

std::vector<Setting> router_settings(const config::Config& config) {
    std::vector<Setting> out;
    if (!forwards_ipv6(config)) return out;
    const auto is_protected = [&config](const std::string& device) {
        return std::ranges::any_of(config.ports, [&device](const config::Port& port) {
            return port.device == device && port.role == config::PortRole::protected_side;
        });
    };
    std::error_code error;
    std::filesystem::directory_iterator devices("/proc/sys/net/ipv6/conf", error);
    for (; !error && devices != std::filesystem::directory_iterator(); devices.increment(error)) {
        const std::string device = devices->path().filename().string();
        // Nobody reads the one of `all`; `default` is for devices that come later.
        if (device == "all" || device == "default" || device == "lo") continue;
        if (is_protected(device)) continue;
        const std::string folder = "net/ipv6/conf/" + device + "/";
        // 1: where it does not forward. What forwards already believes nobody, or has 2.
        if (Sysctls::get(folder + "accept_ra") != "1") continue;
        if (Sysctls::get(folder + "forwarding") != "0") continue;
        out.push_back({.name = folder + "accept_ra", .value = "2", .insist = Sysctls::Insist::no});
    }
    return out;
}

std::vector<Setting> forwarding_settings(const config::Config& config) {
    const bool has_ipv6 = forwards_ipv6(config);
    std::vector<Setting> out{{.name = "net/ipv4/ip_forward", .value = "1", .noted = true}};
    if (has_ipv6) {
        out.push_back({.name = "net/ipv6/conf/all/forwarding", .value = "1", .noted = true});
    }
    for (const config::Port& port : config.ports) {
        out.push_back({.name = "net/ipv4/conf/" + port.device + "/forwarding", .value = "1"});
        if (!has_ipv6) continue;
        out.push_back({.name = "net/ipv6/conf/" + port.device + "/forwarding", .value = "1"});
    }
    return out;
}

std::vector<Setting> host_settings(const config::Config& config, bool asks_conntrack) {
    std::vector<Setting> out;
    // Packets that make the kernel ask the IKE daemon for an SA (acquire) wait for it in the
    // kernel's own queue, one for each policy and bounded, instead of being dropped.
    if (config.follows_xfrm()) out.push_back({.name = "net/core/xfrm_larval_drop", .value = "0"});
    // Most segments of a connection go past the kernel, which would take what follows for out of
    // its window, and the end of the connection with it.
    if (asks_conntrack) {
        out.push_back(
            {.name = "net/netfilter/nf_conntrack_tcp_be_liberal", .value = "1", .noted = true});
    }
    return out;
}

std::vector<Setting> tap_settings(const config::Config& config) {
    const std::string v4 = "net/ipv4/conf/" + config.device + "/";
    const std::string v6 = "net/ipv6/conf/" + config.device + "/";
    std::vector<Setting> out{
        {.name = v4 + "forwarding", .value = "1"},    // also where the default for new ones is off
        {.name = v4 + "rp_filter", .value = "0"},     // decrypted packets come from remote networks
        {.name = v4 + "accept_local", .value = "1"},  // outer packets: a source of this host
        {.name = v4 + "send_redirects", .value = "0"},
        {.name = v4 + "disable_policy", .value = "1"},  // checked by workers: not again by the
        {.name = v4 + "disable_xfrm", .value = "1"},    // policy guard, in neither direction
        {.name = v6 + "disable_policy", .value = "1"},
        // Whoever is behind a tunnel is no router of ours.
        {.name = v6 + "accept_ra", .value = "0"},
    };
    if (forwards_ipv6(config)) out.push_back({.name = v6 + "forwarding", .value = "1"});
    return out;
}

std::vector<Setting> interface_settings(const config::Config& config) {
    const std::string& device = config.xfrm_interface;
    const std::string v4 = "net/ipv4/conf/" + device + "/";
    // The interface itself looks for policies, by if_id, in both directions: disable_policy stays
    // off, and disable_xfrm is about the way towards the interface only.
    std::vector<Setting> out{{.name = v4 + "forwarding", .value = "1"},
                             {.name = v4 + "rp_filter", .value = "0"},
                             {.name = v4 + "send_redirects", .value = "0"},
                             {.name = v4 + "disable_xfrm", .value = "1"},
                             {.name = "net/ipv6/conf/" + device + "/accept_ra", .value = "0"}};
    if (forwards_ipv6(config)) {
        out.push_back({.name = "net/ipv6/conf/" + device + "/forwarding", .value = "1"});
    }
    return out;
}

std::expected<void, std::string> apply(std::span<const Setting> settings, Sysctls& sysctls,
                                       Log& log) {
    for (const Setting& setting : settings) {
        if (Sysctls::get(setting.name).empty()) continue;
        const auto change = sysctls.set(setting.name, setting.value, setting.insist);
        if (!change) return std::unexpected(change.error());
        if (setting.noted && *change == Sysctls::Change::changed) {
            log.note(setting.name + " was off and is on while sallyportd runs");
        }
    }
    return {};
}

void note_obstacles(Log& log) {
    // The stricter of `all` and the device's own counts, and workers' frames come in on sp0
    // whatever route leads back to their source.
    if (Sysctls::get("net/ipv4/conf/all/rp_filter") == "1") {
        log.note(
            "net/ipv4/conf/all/rp_filter is 1: the kernel drops decrypted packets that it "
            "has to forward itself; set it to 0 or 2 and set strict filtering per device");
    }
}

}  // namespace sallyport::control
