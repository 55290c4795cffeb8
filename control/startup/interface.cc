// SPDX-License-Identifier: Apache-2.0
#include "control/startup/interface.h"

#include <algorithm>
#include <utility>

#include "control/bpf_objects/bpf_objects.h"

namespace sallyport::control {

std::expected<std::optional<xfrm::Interface>, std::string> open_interface(
    const config::Config& config, uint32_t mtu, Log& log) {
    const std::string& name = config.xfrm_interface;
    if (name.empty()) return std::nullopt;
    // Policies that come from xfrm are not judged in the interface, where all of them would end.
    if (std::ranges::none_of(config.policies, [](const auto& policy) { return policy.if_id; })) {
        log.note("the xfrm interface " + name + " is not made: no [[policy]] has an if_id");
        return std::nullopt;
    }
    auto interface = xfrm::Interface::open(name, mtu);
    if (!interface && !interface.error().unsupported) {
        return std::unexpected(interface.error().text);
    }
    const std::string missing = interface ? bpf_objects::probe_if_ids() : interface.error().text;
    if (!missing.empty()) {
        log.note("no xfrm interface " + name + ", because " + missing +
                 ": packets of policies with an if_id are dropped (no_sa)");
        return std::nullopt;
    }
    switch (interface->origin()) {
        case xfrm::Interface::Origin::made:
            break;
        case xfrm::Interface::Origin::left_by_killed_run:
            log.info("took over the xfrm interface " + name + " of a killed run");
            break;
        case xfrm::Interface::Origin::of_the_operator:
            log.note("the xfrm interface " + name + " was there and stays when sallyportd ends");
    }
    return std::optional<xfrm::Interface>(std::move(*interface));
}

}  // namespace sallyport::control
