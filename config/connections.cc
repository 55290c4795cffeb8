// SPDX-License-Identifier: Apache-2.0
#include "config/connections.h"

#include <netinet/in.h>

#include <algorithm>
#include <array>
#include <string>

#include "bpf/abi.h"
#include "config/diagnostics.h"

namespace sallyport::config {

std::vector<uint16_t> read_cpus(TableReader& table, std::string_view key, AutoCpus automatic,
                                size_t count_max, const std::string& use) {
    const Node* node = table.node(key);
    if (node == nullptr) return {};
    const bool auto_allowed = automatic == AutoCpus::allowed;
    if (auto_allowed && node->kind == Node::Kind::string && node->text == "auto") return {};
    const std::string allowed = (auto_allowed ? std::string("\"auto\" or ") : std::string()) +
                                "a list of CPU numbers such as [0, 1]";
    if (auto_allowed && node->kind == Node::Kind::string) {
        table.report(key, shown(node->text) + " is not known: allowed are " + allowed);
        return {};
    }
    if (node->kind != Node::Kind::array) {
        table.report_type(key, *node, allowed);
        return {};
    }
    if (node->elements.empty() || node->elements.size() > count_max) {
        table.report(key, "names " + std::to_string(node->elements.size()) +
                              " CPUs: allowed are 1 to " + std::to_string(count_max) + ", " + use +
                              " each" + (auto_allowed ? ", or \"auto\"" : ""));
        return {};
    }
    std::vector<uint16_t> cpus;
    for (const Node& element : node->elements) {
        if (element.kind != Node::Kind::integer || element.integer < 0 ||
            element.integer >= SP_CPUS_MAX) {
            table.report(
                key, "every element must be a CPU number, 0 to " + std::to_string(SP_CPUS_MAX - 1));
            return {};
        }
        const auto cpu = static_cast<uint16_t>(element.integer);
        if (std::ranges::find(cpus, cpu) != cpus.end()) {
            table.report(key, "CPU " + std::to_string(cpu) + " stands there twice: " + use +
                                  " needs a CPU of its own");
            return {};
        }
        cpus.push_back(cpu);
    }
    return cpus;
}

void read_conntrack(TableReader& table, Port& port) {
    const auto in = table.choice<Conntrack>("conntrack_in", kConntrackModes);
    const auto out = table.choice<Conntrack>("conntrack_out", kConntrackModes);
    port.conntrack_in = in.value_or(Conntrack::off);
    port.conntrack_out = out.value_or(Conntrack::off);
    if ((table.has("conntrack_in") && !in) || (table.has("conntrack_out") && !out)) return;
    const bool in_off = port.conntrack_in == Conntrack::off;
    if (in_off == (port.conntrack_out == Conntrack::off)) return;
    table.report(in_off ? "conntrack_out" : "conntrack_in",
                 std::string("needs ") + (in_off ? "conntrack_in" : "conntrack_out") +
                     " = \"punt\" or \"drop\" too: a connection that the kernel sees one way "
                     "only is never established");
}

void read_bypass_cpus(TableReader& table, Port& port) {
    port.bypass_cpus =
        read_cpus(table, "bypass_cpus", AutoCpus::refused, SP_BYPASS_CPUS_MAX, "a share of flows");
}

void read_ct_mark(TableReader& table, Policy& policy) {
    const auto mark = table.integer("ct_mark", 0, UINT32_MAX);
    const auto mask = table.integer("ct_mark_mask", 1, UINT32_MAX);
    if (!table.has("ct_mark")) {
        if (table.has("ct_mark_mask")) {
            table.report("ct_mark_mask", "stands there without ct_mark, to which it belongs");
        }
        return;
    }
    if (!mark || (table.has("ct_mark_mask") && !mask)) return;
    policy.ct_mark = static_cast<uint32_t>(*mark);
    policy.ct_mark_mask = static_cast<uint32_t>(mask.value_or(UINT32_MAX));
    if ((*policy.ct_mark & ~policy.ct_mark_mask) != 0) {
        table.report("ct_mark", "has bits that ct_mark_mask leaves out: it would never match");
    }
    if (policy.action == SpdAction::protect) {
        table.report("ct_mark",
                     "cannot stand in a protect policy: workers, who encrypt, do not see marks; "
                     "give the mark to a bypass or discard policy in front of it");
    }
    if (policy.protocol && *policy.protocol != IPPROTO_TCP && *policy.protocol != IPPROTO_UDP) {
        table.report("ct_mark",
                     "needs protocol tcp, udp or none: of others XDP cannot look connections up");
    }
}

void check_connections(const Draft& draft, Diagnostics& diagnostics) {
    if (draft.config.egress == EgressMode::devmap) return;
    constexpr const char* kReason =
        " needs gateway.egress = \"devmap\": with \"direct\" frames leave without meeting XDP";
    for (const PortDraft& item : draft.ports) {
        if (item.port.conntrack_in == Conntrack::off) continue;
        diagnostics.add(item.port.location.line,
                        "[port." + item.port.name + "] conntrack_in" + kReason);
    }
    for (const PolicyDraft& item : draft.policies) {
        if (!item.policy.ct_mark) continue;
        diagnostics.add(item.policy.location.line,
                        "[[policy]] " + shown(item.policy.name) + " ct_mark" + kReason);
    }
}

}  // namespace sallyport::config
