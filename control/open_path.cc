// SPDX-License-Identifier: Apache-2.0
#include "control/open_path.h"

#include <net/if.h>

#include <boost/asio/io_context.hpp>
#include <cerrno>
#include <cstring>
#include <memory>

#include "control/bpf_objects/bpf_objects.h"
#include "control/host_traffic/host_traffic.h"
#include "control/sa/static/sequence_store.h"
#include "control/startup/link_features.h"
#include "control/startup/sysctls.h"
#include "control/watch/gate.h"
#include "control/xfrm/announcer.h"
#include "control/xfrm/guard.h"
#include "control/xfrm/interface.h"

namespace sallyport::control {

namespace {

using Step = std::expected<void, std::string>;

void put_settings_back(const config::Config& config) {
    // Forwarding may be among them, so they go first, in any order among themselves.
    Sysctls(config.state_dir / "sysctls").take_over();
    LinkFeatures(config.state_dir / "link_features").take_over();
}

Step remove_programs() {
    const std::unique_ptr<struct if_nameindex, decltype(&if_freenameindex)> devices(
        if_nameindex(), &if_freenameindex);
    if (!devices) {
        return std::unexpected(std::string("cannot list the devices: ") + std::strerror(errno));
    }
    for (const auto* each = devices.get(); each->if_index != 0; ++each) {
        auto done = bpf_objects::remove_leftovers(each->if_name, each->if_index);
        // The kernel removes sp0 of a killed run on its own time, and its program with it.
        const bool is_gone = if_nametoindex(each->if_name) != each->if_index;
        if (!done && !is_gone) return done;
    }
    return {};
}

Step remove_host_traffic(Log& log) {
    boost::asio::io_context context(1);
    // There is no tunnel device, and what led there went with it.
    return HostTraffic(context, log).open(0);
}

}  // namespace

std::expected<std::string, std::string> open_kernel_path(const config::Config& config, Log& log) {
    const auto lock = xfrm::NamespaceLock::acquire();
    if (!lock) return std::unexpected(lock.error());
    const auto state = SequenceStore::open(config.state_dir);
    if (!state) return std::unexpected(state.error());
    auto gate = watch::Gate::make();
    if (!gate) return std::unexpected(gate.error());

    put_settings_back(config);
    if (auto done = remove_programs(); !done) return std::unexpected(done.error());
    if (auto done = xfrm::Interface::remove_leftover(config.xfrm_interface); !done) {
        return std::unexpected(done.error());
    }
    if (auto done = remove_host_traffic(log); !done) return std::unexpected(done.error());
    if (const auto registry = xfrm::SaRegistry::open(config.state_dir); !registry) {
        return std::unexpected(registry.error());
    }
    auto guard = xfrm::PolicyGuard::install({});  // no rows in place of all
    if (!guard) return std::unexpected(guard.error());
    guard->at_end(xfrm::PolicyGuard::AtEnd::remove);
    if (auto done = gate->open_all(); !done) return std::unexpected(done.error());
    return "opened: what sallyportd had closed passes again, in clear, where this host forwards; "
           "settings and devices are as they were before it";
}

}  // namespace sallyport::control
