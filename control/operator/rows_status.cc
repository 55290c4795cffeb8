// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <chrono>
#include <utility>

#include "config/choices.h"
#include "control/operator/rows.h"
#include "control/sa/source.h"

namespace sallyport::control {

namespace json = boost::json;

namespace {

std::string_view name_of(xfrm::SaRegistry::Method method) {
    switch (method) {
        case xfrm::SaRegistry::Method::undecided:
            return "none";
        case xfrm::SaRegistry::Method::full:
            return "full";
        case xfrm::SaRegistry::Method::larval:
            return "larval";
    }
    return "";
}

}  // namespace

Rows status_object(const Appliance& appliance, const Log& log, std::chrono::seconds uptime) {
    const config::Config& config = appliance.config();
    const FrameCensus frames = appliance.census();
    const uint64_t known = frames.pool + frames.in_kernel;
    const SourceCounts counts = appliance.source().counts();
    json::array degraded;
    for (const std::string& sentence : appliance.watch().degraded()) {
        degraded.emplace_back(text(sentence));
    }
    json::array notes;
    for (const std::string& note : log.notes()) notes.emplace_back(text(note));
    return json::object{{"version", SALLYPORT_VERSION},
                        {"pid", getpid()},
                        {"uptime_s", uptime.count()},
                        {"config", text(config.file.native())},
                        {"egress", text(config::word_of(config::kEgressModes, config.egress))},
                        {"sa_lookup", appliance.sa_lookup().kfunc ? "kfunc" : "owner map"},
                        {"sa_lookup_reason", text(appliance.sa_lookup().reason)},
                        {"xfrm_registration", text(name_of(appliance.registry().method()))},
                        {"xfrm_registration_reason", text(appliance.registry().reason())},
                        {"crypto", text(appliance.crypto())},
                        {"workers", appliance.workers().size()},
                        {"sa_source", config.follows_xfrm() ? "xfrm" : "configuration"},
                        {"policies", config.policies.size() + counts.policies},
                        {"sas", counts.sas},
                        {"sas_with_kernel", counts.sas_with_kernel},
                        {"not_published", counts.not_published},
                        {"bypass_lapses", counts.bypass_lapses},
                        {"host_traffic",
                         {{"routes", appliance.host_traffic().route_count()},
                          {"refused", appliance.host_traffic().refused_count()},
                          {"left_to_kernel", appliance.host_traffic().left_count()}}},
                        {"frames",
                         {{"total", frames.total},
                          {"pool", frames.pool},
                          {"in_kernel", frames.in_kernel},
                          {"in_workers", frames.total > known ? frames.total - known : 0},
                          {"hugepages", appliance.memory().on_hugepages()}}},
                        {"degraded", std::move(degraded)},
                        {"log_lines_lost", log.lines_lost()},
                        {"notes", std::move(notes)}};
}

}  // namespace sallyport::control
