// SPDX-License-Identifier: Apache-2.0

// One function per section of the file. Each reads every key of its section, so that all errors
// are found and TableReader::finish() knows which keys exist.

#include <netinet/in.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <bit>

#include "bpf/abi.h"
#include "config/connections.h"
#include "config/draft.h"
#include "config/key_material.h"
#include "config/reader.h"
#include "config/suites.h"
#include "config/values.h"
#include "dataplane/base/frame.h"
#include "dataplane/sa/replay_window.h"

namespace sallyport::config {

namespace {

constexpr uint32_t kSpinMicrosecondsMax = 100'000;
constexpr uint32_t kFramesMin = 1024;
constexpr uint32_t kSasMax = 262144;
constexpr uint32_t kReplayWindowMin = 32;
constexpr uint32_t kSpiMin = 256;  // RFC 4303 2.1: 1 .. 255 are IANA's, 0 is never on the wire
constexpr uint32_t kMtuMin = 576;
// An outer packet and its Ethernet header stand in one frame.
constexpr uint32_t kMtuMax = kFrameDataBytesMax - 14;
constexpr size_t kPathBytesMax = 4095;

// The table under `key`, when there is one.
const Node* read_table(TableReader& root, std::string_view key) {
    const Node* node = root.node(key);
    if (node == nullptr || node->kind == Node::Kind::table) return node;
    root.report_type(key, *node, "a table: [" + std::string(key) + "]");
    return nullptr;
}

// The tables under `key`, written [[key]]. False: something else stands there.
bool read_tables(TableReader& root, std::string_view key, const std::string& spelling,
                 std::vector<const Node*>& out) {
    const Node* node = root.node(key);
    if (node == nullptr) return true;
    const bool is_list = node->kind == Node::Kind::array &&
                         std::ranges::all_of(node->elements, [](const Node& element) {
                             return element.kind == Node::Kind::table;
                         });
    if (!is_list) {
        root.report(key, "must be written " + spelling + ", once for each");
        return false;
    }
    for (const Node& element : node->elements) out.push_back(&element);
    return true;
}

template <typename T, typename U>
void assign(T& to, const std::optional<U>& from) {
    if (from) to = static_cast<T>(*from);
}

void read_gateway(const Node& node, Config& config, Diagnostics& diagnostics) {
    TableReader table(node, "[gateway]", diagnostics);
    assign(config.device, read_device(table, "device"));
    assign(config.xfrm_interface, read_device(table, "xfrm_interface"));
    if (config.xfrm_interface == config.device) {
        table.report("xfrm_interface", "is the name of gateway.device too: give it another");
    }
    config.forward_to = read_devices(table, "forward_to", SP_FORWARD_TO_MAX);
    assign(config.egress, table.choice<EgressMode>("egress", kEgressModes));
    assign(config.unknown_spi, table.choice<UnknownSpi>("unknown_spi", kUnknownSpi));
    config.at_stop = table.choice<AtStop>("at_stop", kAtStop);
    assign(config.state_dir, read_absolute_path(table, "state_dir", kPathBytesMax));
    assign(config.control_socket,
           read_absolute_path(table, "control_socket", sizeof(sockaddr_un::sun_path) - 1));
    assign(config.max_sas, table.integer("max_sas", 1, kSasMax, "SAs, both directions together"));
    table.finish();
}

void read_workers(const Node& node, Workers& workers, Diagnostics& diagnostics) {
    TableReader table(node, "[workers]", diagnostics);
    workers.location.line = table.line();
    if (table.has("cpus")) workers.location.line = table.line_of("cpus");
    workers.cpus = read_cpus(table, "cpus", AutoCpus::allowed, SP_WORKERS_MAX, "one worker");
    assign(workers.spin_us, table.integer("spin_us", 0, kSpinMicrosecondsMax, "microseconds"));
    table.finish();
}

void read_memory(const Node& node, Memory& memory, Diagnostics& diagnostics) {
    TableReader table(node, "[memory]", diagnostics);
    memory.location.line = table.line_of("frames");
    if (const auto frames = table.integer("frames", kFramesMin, kFramesMax, "frames of 4 KiB")) {
        if (std::has_single_bit(static_cast<uint64_t>(*frames))) {
            memory.frames = static_cast<uint32_t>(*frames);
        } else {
            table.report("frames", std::to_string(*frames) +
                                       " is no power of two: allowed are 1024, 2048, ... 1048576");
        }
    }
    assign(memory.hugepages, table.boolean("hugepages"));
    table.finish();
}

// Protocols that exist in one family only would make a rule that never matches.
void check_protocol_family(TableReader& table, std::optional<uint8_t> protocol,
                           std::optional<Family> family) {
    if (!protocol || !family) return;
    if (*protocol == IPPROTO_ICMP && *family == Family::v6) {
        table.report("protocol", "icmp is not used with IPv6: write \"icmpv6\"");
    }
    if (*protocol == IPPROTO_ICMPV6 && *family == Family::v4) {
        table.report("protocol", "icmpv6 is not used with IPv4: write \"icmp\"");
    }
}

void check_ports_have_protocol(TableReader& table, std::string_view key,
                               std::optional<uint8_t> protocol) {
    if (!table.has(key) || (protocol && has_ports(*protocol))) return;
    // A protocol that is there and wrong has been reported.
    if (table.has("protocol") && !protocol) return;
    table.report(key, "ports need protocol = \"tcp\", \"udp\" or \"sctp\"");
}

EgressRule read_deny(const Node& node, const std::string& label, Diagnostics& diagnostics) {
    TableReader table(node, label, diagnostics);
    EgressRule rule{.source = read_prefix(table, "source"),
                    .destination = read_prefix(table, "destination"),
                    .protocol = read_protocol(table, "protocol"),
                    .location = {node.line}};
    if (const auto ports = read_port_range(table, "port")) {
        rule.port_lo = ports->first;
        rule.port_hi = ports->second;
    }
    check_ports_have_protocol(table, "port", rule.protocol);
    std::optional<Family> family;
    if (rule.destination) family = rule.destination->address.family;
    if (rule.source) family = rule.source->address.family;
    if (rule.source && rule.destination &&
        rule.source->address.family != rule.destination->address.family) {
        table.report("destination",
                     "is of another family than source: one rule is for IPv4 or IPv6");
    } else {
        check_protocol_family(table, rule.protocol, family);
    }
    if (node.entries.empty()) {
        diagnostics.add(node.line, label +
                                       " is empty and would deny everything: give at least one of "
                                       "source, destination, protocol, port");
    }
    table.finish();
    return rule;
}

PortDraft read_port(const Entry& entry, Diagnostics& diagnostics) {
    PortDraft draft;
    Port& port = draft.port;
    port.name = entry.key;
    port.location.line = entry.value.line;
    const std::string name = looks_like_key(entry.key) || !name_problem(entry.key).empty()
                                 ? shown(entry.key)
                                 : entry.key;
    TableReader table(entry.value, "[port." + name + "]", diagnostics);
    if (const std::string problem = name_problem(entry.key); !problem.empty()) {
        diagnostics.add(entry.line, table.label() + " is no valid name: " + problem);
    }

    table.require("role",
                  "allowed are unprotected (ciphertext side) or protected (cleartext side)");
    const auto role = table.choice<PortRole>("role", kPortRoles);
    draft.role_known = role.has_value();
    assign(port.role, role);

    const auto device = read_device(table, "device");
    draft.device_line = table.line_of("device");
    if (device) {
        port.device = *device;
    } else if (!table.has("device")) {
        port.device = port.name;
        if (name_problem(port.name).empty() && !device_problem(port.name).empty()) {
            diagnostics.add(port.location.line, table.label() +
                                                    " cannot name its device too: add 'device', " +
                                                    device_problem(port.name));
        }
    }

    if (const Node* queues = table.node("queues"); queues != nullptr) {
        if (queues->kind == Node::Kind::string && queues->text != "auto") {
            table.report("queues", shown(queues->text) +
                                       " is not known: allowed are \"auto\" or 1 to " +
                                       std::to_string(SP_QUEUES_MAX));
        } else if (queues->kind != Node::Kind::string) {
            assign(port.queues, table.integer("queues", 1, SP_QUEUES_MAX, "queues, or \"auto\""));
        }
    }
    assign(port.xdp_mode, table.choice<XdpMode>("xdp_mode", kXdpModes));
    assign(port.bind_mode, table.choice<BindMode>("bind_mode", kBindModes));
    if (port.xdp_mode == XdpMode::generic && port.bind_mode == BindMode::zero_copy) {
        table.report(
            "bind_mode",
            "zero-copy needs the driver's own XDP: write xdp_mode = \"native\" or \"auto\"");
    }
    read_conntrack(table, port);
    read_bypass_cpus(table, port);

    std::vector<const Node*> rules;
    const std::string deny = "[port." + name + ".deny]";
    read_tables(table, "deny", "[" + deny + "]", rules);
    if (rules.size() > SP_EGRESS_RULES_MAX) {
        table.report("deny", "has " + std::to_string(rules.size()) +
                                 " rules: allowed are at most " +
                                 std::to_string(SP_EGRESS_RULES_MAX) + " for one port");
    }
    for (const Node* rule : rules) {
        port.egress_deny.push_back(read_deny(*rule, "[" + deny + "]", diagnostics));
    }
    table.finish();
    return draft;
}

// Why no packet in transit is to or from an address of `prefix`: XDP leaves these to the host
// itself (bpf/parse.h), so that PROTECT would never protect them.
std::string host_scope_problem(const IpPrefix& prefix) {
    static const IpPrefix kBroadcast = *parse_ip_prefix("255.255.255.255/32");
    static const IpPrefix kMulticast = *parse_ip_prefix("224.0.0.0/4");
    static const IpPrefix kMulticastV6 = *parse_ip_prefix("ff00::/8");
    static const IpPrefix kLinkLocalV6 = *parse_ip_prefix("fe80::/10");
    if (kBroadcast.contains(prefix)) return "is the broadcast address";
    if (kMulticast.contains(prefix) || kMulticastV6.contains(prefix)) return "is multicast";
    if (kLinkLocalV6.contains(prefix)) return "is link-local";
    return {};
}

void check_can_be_protected(TableReader& table, std::string_view key,
                            const std::vector<IpPrefix>& prefixes) {
    for (const IpPrefix& prefix : prefixes) {
        const std::string problem = host_scope_problem(prefix);
        if (problem.empty()) continue;
        table.report(key, shown(to_string(prefix)) + " " + problem +
                              ": tunnels carry packets between single hosts that are routed; take "
                              "it out of this policy");
        return;
    }
}

PolicyDraft read_policy(const Node& node, Diagnostics& diagnostics) {
    PolicyDraft draft;
    Policy& policy = draft.policy;
    policy.location.line = node.line;
    TableReader table(node, "[[policy]]", diagnostics);
    table.require("name", "a name that no other policy has");
    if (const auto name = read_name(table, "name")) {
        policy.name = *name;
        table.set_label("[[policy]] " + shown(*name));
    }
    draft.name_line = table.line_of("name");

    table.require("action", "allowed are protect, bypass or discard");
    const auto action = table.choice<SpdAction>("action", kSpdActions);
    draft.action_known = action.has_value();
    assign(policy.action, action);

    table.require("local", "the prefix or prefixes on the protected side, such as \"10.1.0.0/24\"");
    table.require("remote", "the prefix or prefixes on the other side, such as \"10.2.0.0/24\"");
    policy.local = read_prefixes(table, "local");
    policy.remote = read_prefixes(table, "remote");
    policy.protocol = read_protocol(table, "protocol");
    policy.local_ports = read_port_range(table, "local_port");
    policy.remote_ports = read_port_range(table, "remote_port");
    check_ports_have_protocol(table, "local_port", policy.protocol);
    check_ports_have_protocol(table, "remote_port", policy.protocol);
    if (const auto priority = table.integer("priority", 0, UINT32_MAX)) {
        policy.priority = static_cast<uint32_t>(*priority);
    }
    read_ct_mark(table, policy);
    assign(policy.if_id, table.integer("if_id", 1, UINT32_MAX));
    if (policy.if_id != 0 && draft.action_known && policy.action != SpdAction::protect) {
        table.report("if_id", "is for action = \"protect\": nothing else has a connection");
    }
    if (policy.action == SpdAction::protect) {
        check_can_be_protected(table, "local", policy.local);
        check_can_be_protected(table, "remote", policy.remote);
    }
    if (!policy.local.empty() && !policy.remote.empty()) {
        if (policy.local[0].address.family != policy.remote[0].address.family) {
            table.report("remote",
                         "is of another family than local: both sides are IPv4 or both are IPv6");
        } else {
            check_protocol_family(table, policy.protocol, policy.local[0].address.family);
        }
        // Each pair is a selector of the policy's inbound SAs (dataplane/sa/sa.h).
        constexpr size_t kPairsMax = 32;
        const size_t pairs = policy.local.size() * policy.remote.size();
        if (policy.action == SpdAction::protect && pairs > kPairsMax) {
            table.report("remote", "local and remote make " + std::to_string(pairs) +
                                       " pairs of prefixes: allowed are at most " +
                                       std::to_string(kPairsMax) +
                                       " in a protect policy, write several");
        }
    }
    table.finish();
    return draft;
}

void read_key(TableReader& table, const std::filesystem::path& file, SaDraft& draft,
              uint32_t& inline_key_line) {
    const auto inline_key = table.string("key");
    const auto key_file = table.string("key_file");
    draft.key_line = table.line_of(table.has("key") ? "key" : "key_file");
    if (table.has("key") && inline_key_line == 0) inline_key_line = draft.key_line;
    if (table.has("key") && table.has("key_file")) {
        table.report("key_file", "stands beside key: give one of them");
        return;
    }
    if (!table.has("key") && !table.has("key_file")) {
        table.require("key", "give key (hex digits of key and salt) or key_file");
        return;
    }
    if (inline_key) {
        auto material = parse_key(*inline_key, draft.sa.suite);
        if (material) {
            draft.sa.key = std::move(*material);
        } else {
            table.report("key", material.error());
        }
    } else if (key_file) {
        const bool has_control = std::ranges::any_of(
            *key_file, [](char c) { return static_cast<unsigned char>(c) < 0x20; });
        if (key_file->empty() || has_control || key_file->size() > kPathBytesMax) {
            table.report("key_file", shown(*key_file) + " is not a path");
            return;
        }
        auto material = read_key_file(file.parent_path() / *key_file, draft.sa.suite);
        if (material) {
            draft.sa.key = std::move(*material);
        } else {
            table.report("key_file", shown(*key_file) + " " + material.error());
        }
    }
}

void refuse_other_direction(TableReader& table, SaDirection direction) {
    if (direction == SaDirection::outbound) {
        if (table.has("replay_window")) {
            table.report("replay_window",
                         "is for inbound SAs only: the receiver keeps the window; remove it here");
        }
        return;
    }
    for (const std::string_view key : {"df", "copy_dscp", "outer_ttl", "mtu"}) {
        if (!table.has(key)) continue;
        table.report(key,
                     "is for outbound SAs only: the sender writes the outer header; remove it "
                     "here");
    }
}

void read_sa_addresses(TableReader& table, SaDraft& draft) {
    table.require("source", "the outer source address");
    table.require("destination", "the outer destination address");
    draft.source = read_outer_address(table, "source");
    draft.destination = read_outer_address(table, "destination");
    assign(draft.sa.source, draft.source);
    assign(draft.sa.destination, draft.destination);
    if (!draft.source || !draft.destination) return;
    if (draft.source->family != draft.destination->family) {
        table.report("destination", "is of another family than source: both are IPv4 or both IPv6");
    } else if (*draft.source == *draft.destination) {
        table.report("destination", "equals source: a tunnel has two ends");
    }
}

SaDraft read_sa(const Node& node, const std::filesystem::path& file, uint32_t& inline_key_line,
                Diagnostics& diagnostics, std::span<const crypto::Suite> suites) {
    SaDraft draft;
    StaticSa& sa = draft.sa;
    sa.location.line = node.line;
    TableReader table(node, "[[sa]]", diagnostics);
    table.require("name", "a name that no other SA has");
    if (const auto name = read_name(table, "name")) {
        sa.name = *name;
        table.set_label("[[sa]] " + shown(*name));
    }
    draft.name_line = table.line_of("name");

    table.require("direction", "allowed are inbound (to us) or outbound (to the peer)");
    const auto direction = table.choice<SaDirection>("direction", kSaDirections);
    draft.direction_known = direction.has_value();
    assign(sa.direction, direction);

    table.require("spi", "256 to 4294967295, such as 0x1001");
    draft.spi_line = table.line_of("spi");
    if (const auto spi =
            table.integer("spi", kSpiMin, UINT32_MAX, "(lower ones are reserved, RFC 4303 2.1)")) {
        sa.spi = Spi{static_cast<uint32_t>(*spi)};
    }
    read_sa_addresses(table, draft);

    table.require("suite", "allowed are " + alternatives(suite_names(suites)));
    sa.suite = read_suite(table, "suite", suites);
    read_key(table, file, draft, inline_key_line);

    assign(sa.esn, table.boolean("esn"));
    const auto window =
        table.integer("replay_window", 0, kReplayWindowMax, "packets, without 1 to 31");
    if (window && *window != 0 && *window < kReplayWindowMin) {
        table.report("replay_window", std::to_string(*window) +
                                          " is too small: allowed are 0 (off) and 32 to " +
                                          std::to_string(kReplayWindowMax) + " packets");
    }
    assign(sa.replay_window, window);
    if (sa.esn && sa.direction == SaDirection::inbound && window == 0) {
        table.report("replay_window",
                     "0 cannot be used with esn = true: the upper half of the sequence number is "
                     "found by the window (RFC 4303 3.3.3)");
    }

    table.require("policy", "the name of the protect policy whose traffic it carries");
    assign(sa.policy, read_name(table, "policy"));
    draft.policy_line = table.line_of("policy");
    draft.worker_line = table.line_of("worker");
    if (const auto worker =
            table.integer("worker", 0, SP_WORKERS_MAX - 1, "(workers count from 0)")) {
        sa.worker = WorkerId{static_cast<uint16_t>(*worker)};
    }

    assign(sa.df, table.choice<DfPolicy>("df", kDfPolicies));
    assign(sa.copy_dscp, table.boolean("copy_dscp"));
    assign(sa.outer_ttl, table.integer("outer_ttl", 1, 255, "hops"));
    const bool is_v6 = draft.source && draft.source->family == Family::v6;
    assign(sa.mtu, table.integer("mtu", is_v6 ? 1280 : kMtuMin, kMtuMax,
                                 is_v6 ? "bytes of outer IPv6 packet" : "bytes of outer packet"));
    if (direction) refuse_other_direction(table, *direction);
    table.finish();
    return draft;
}

}  // namespace

Draft read_sections(const Node& root, const std::filesystem::path& file, Diagnostics& diagnostics,
                    std::span<const crypto::Suite> suites) {
    Draft draft;
    draft.config.file = file;
    TableReader table(root, "the file", diagnostics);
    if (const Node* gateway = read_table(table, "gateway")) {
        read_gateway(*gateway, draft.config, diagnostics);
    }
    if (const Node* workers = read_table(table, "workers")) {
        read_workers(*workers, draft.config.workers, diagnostics);
    }
    if (const Node* memory = read_table(table, "memory")) {
        read_memory(*memory, draft.config.memory, diagnostics);
    }
    if (const Node* ports = read_table(table, "port")) {
        draft.ports_line = table.line_of("port");
        for (const Entry& entry : ports->entries) {
            if (entry.value.kind != Node::Kind::table) {
                diagnostics.add(entry.line, "[port] " + shown(entry.key) +
                                                " is not a table: write [port.NAME] and the keys "
                                                "of that port below it");
                draft.sections_known = false;
                continue;
            }
            draft.ports.push_back(read_port(entry, diagnostics));
        }
    } else if (table.has("port")) {
        draft.sections_known = false;
    }
    std::vector<const Node*> policies;
    if (!read_tables(table, "policy", "[[policy]]", policies)) draft.sections_known = false;
    for (const Node* policy : policies) draft.policies.push_back(read_policy(*policy, diagnostics));
    std::vector<const Node*> sas;
    read_tables(table, "sa", "[[sa]]", sas);
    for (const Node* sa : sas) {
        draft.sas.push_back(read_sa(*sa, file, draft.inline_key_line, diagnostics, suites));
    }
    table.finish();
    return draft;
}

}  // namespace sallyport::config
