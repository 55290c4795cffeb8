// SPDX-License-Identifier: Apache-2.0
#include "control/watch/open_path.h"

#include "control/watch/gate.h"
#include "control/xfrm/announcer.h"
#include "control/xfrm/guard.h"

namespace sallyport::watch {

std::expected<std::string, std::string> open_kernel_path() {
    const auto lock = xfrm::NamespaceLock::acquire();
    if (!lock) return std::unexpected(lock.error());
    auto gate = watch::Gate::make();
    if (!gate) return std::unexpected(gate.error());
    auto guard = xfrm::PolicyGuard::install({});  // no rows in place of all
    if (!guard) return std::unexpected(guard.error());
    guard->at_end(xfrm::PolicyGuard::AtEnd::remove);
    if (auto done = gate->open_all(); !done) return std::unexpected(done.error());
    return "opened: what sallyportd had closed passes again, in clear, where this host forwards";
}

}  // namespace sallyport::watch
