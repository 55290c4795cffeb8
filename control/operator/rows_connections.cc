// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "control/operator/rows.h"

namespace sallyport::control {

namespace json = boost::json;

Rows connection_rows(const Appliance& appliance) {
    json::array out;
    for (const bpf_objects::IfIdTraffic& connection : appliance.bpf().if_id_traffic()) {
        json::array names;
        for (const config::Policy& policy : appliance.config().policies) {
            if (policy.if_id == connection.if_id) names.emplace_back(text(policy.name));
        }
        const sp_if_id_counters& counters = connection.counters;
        out.push_back(json::object{{"if_id", connection.if_id},
                                   {"policies", std::move(names)},
                                   {"in_packets", counters.in_packets},
                                   {"in_bytes", counters.in_bytes},
                                   {"in_dropped", counters.in_dropped},
                                   {"out_packets", counters.out_packets},
                                   {"out_bytes", counters.out_bytes}});
    }
    return out;
}

}  // namespace sallyport::control
