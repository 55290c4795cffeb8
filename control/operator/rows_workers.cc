// SPDX-License-Identifier: Apache-2.0
#include "control/operator/drop_counts.h"
#include "control/operator/rows.h"

namespace sallyport::control {

namespace json = boost::json;

namespace {

json::object direction(const DirectionCounters& counters) {
    return {{"frames", counters.frames.read()},       {"bytes", counters.bytes.read()},
            {"delivered", counters.delivered.read()}, {"bursts", counters.bursts.read()},
            {"held", counters.held.read()},           {"on_hold", counters.on_hold.read()}};
}

}  // namespace

Rows worker_rows(const Appliance& appliance) {
    json::array out;
    for (const auto& worker : appliance.workers()) {
        const WorkerCounters& counters = worker->counters();
        out.push_back(json::object{{"worker", to_index(worker->id())},
                                   {"cpu", worker->cpu()},
                                   {"inbound", direction(counters.inbound)},
                                   {"outbound", direction(counters.outbound)},
                                   {"dropped", sum(drops_of(*worker))},
                                   {"egress_frames", counters.egress_frames.read()},
                                   {"from_kernel", counters.from_kernel.read()},
                                   {"checksums_completed", counters.checksums_completed.read()},
                                   {"loops", counters.loops.read()},
                                   {"sleeps", counters.sleeps.read()},
                                   {"busy_cycles", counters.busy_cycles.read()},
                                   {"cpu_time_ms", worker->cpu_time_ns() / 1'000'000},
                                   {"sas", appliance.source().served_by(worker->id())}});
    }
    return out;
}

}  // namespace sallyport::control
