// SPDX-License-Identifier: Apache-2.0
#include "control/startup/programs.h"

#include "control/startup/port_modes.h"

namespace sallyport::control {

namespace {

bpf_objects::PortSetup setup_of(PortId id, const RunningPort& port, const config::Config& config,
                                uint16_t workers, ProgramSetup programs) {
    return {.id = id,
            .device = port.config->device,
            .ifindex = port.ifindex,
            .role = port.config->role,
            .queues = port.queues,
            .workers = workers,
            .mtu = port.mtu,
            .mac = port.mac,
            .mode = port.xdp_mode,
            .mode_reason = port.mode_reason,
            .use_kfunc = programs.use_kfunc,
            .punt_unknown_spi = config.unknown_spi == config::UnknownSpi::punt,
            .register_mode = programs.register_mode,
            .conntrack_in = port.config->conntrack_in,
            .conntrack_out = port.config->conntrack_out,
            .bypass_cpus = port.config->bypass_cpus,
            .egress_deny = port.config->egress_deny};
}

}  // namespace

std::expected<bpf_objects::Connections, std::string> connections_for(const config::Config& config) {
    bpf_objects::Connections out;
    std::string who;
    for (const config::Port& port : config.ports) {
        if (port.conntrack_in != config::Conntrack::off) {
            who = "[port." + port.name + "] conntrack_in";
        }
    }
    for (const config::Policy& policy : config.policies) {
        if (!policy.ct_mark) continue;
        out.marks = true;
        who = "[[policy]] " + policy.name + ": ct_mark";
    }
    if (who.empty()) return out;
    const bpf_objects::ConnectionLookup lookup = bpf_objects::probe_connection_lookup();
    if (!lookup.possible) {
        return std::unexpected(who +
                               " needs the kernel's connection tracking in XDP: " + lookup.reason);
    }
    out.lookups = true;
    return out;
}

std::expected<void, std::string> load_ports(bpf_objects::BpfObjects& bpf,
                                            std::span<const RunningPort> ports,
                                            const config::Config& config,
                                            std::span<const uint16_t> cpus, ProgramSetup setup) {
    const auto workers = static_cast<uint16_t>(cpus.size());
    for (size_t i = 0; i < ports.size(); ++i) {
        const PortId id{static_cast<uint16_t>(i)};
        auto added = bpf.add_port(setup_of(id, ports[i], config, workers, setup));
        if (!added) return added;
        for (uint16_t q = 0; q < ports[i].queues; ++q) {
            for (uint16_t w = 0; w < workers; ++w) {
                const int fd = ports[i].sockets->fd(QueueId{q}, WorkerId{w});
                if (auto set = bpf.set_socket(id, QueueId{q}, WorkerId{w}, fd); !set) return set;
            }
        }
    }
    for (uint16_t w = 0; w < workers; ++w) {
        if (auto set = bpf.set_cpu_worker(cpus[w], WorkerId{w}); !set) return set;
    }
    return {};
}

std::expected<void, std::string> attach_ports(bpf_objects::BpfObjects& bpf,
                                              std::span<RunningPort> ports) {
    // Before anything is decrypted that the kernel might have to tell of.
    for (size_t i = 0; i < ports.size(); ++i) {
        auto attached = bpf.attach_kernel_out(PortId{static_cast<uint16_t>(i)});
        if (!attached) return attached;
    }
    for (size_t i = 0; i < ports.size(); ++i) {
        RunningPort& port = ports[i];
        auto attachment = bpf.attach_port(PortId{static_cast<uint16_t>(i)});
        if (!attachment) return std::unexpected(attachment.error());
        port.attachment = *attachment;
    }
    return {};
}

void report_ports(std::span<const RunningPort> ports, Log& log) {
    for (const RunningPort& port : ports) {
        const bpf_objects::Attachment& attachment = *port.attachment;
        if (attachment.replaced_stale) {
            log.info("port " + port.config->name + ": replaced the program of a killed run");
        }
        const char* mode = attachment.mode == config::XdpMode::generic ? "generic" : "native";
        log.note("port " + port.config->name + ": " + mode + " XDP, " + attachment.attached() +
                 (attachment.reason.empty() ? "" : " (" + attachment.reason + ")") + ", " +
                 (port.sockets->zero_copy() ? "zero-copy" : "copy mode") + " (" +
                 port.sockets->mode_reason() + "), " + std::to_string(port.queues) + " queues");
        const std::string& device = port.config->device;
        if (loses_tags_below(port.kind)) {
            log.note("port " + port.config->name + ": what comes in tagged to " + device +
                     " may be taken for untagged, because VLAN tags are taken off before a "
                     "program sees them: let no tagged frames reach it, or take VLAN devices as "
                     "ports");
        }
        if (is_kernel_tunnel(port.kind)) {
            log.note("port " + port.config->name + ": what is merged below the tunnel of " +
                     device +
                     " is dropped (too_big): switch merging off at the device that carries it "
                     "(ethtool -K DEV gro off)");
        }
    }
}

std::expected<void, std::string> attach_interface(bpf_objects::BpfObjects& bpf,
                                                  const std::string& device, Log& log) {
    const auto replaced = bpf.attach_interface();
    if (!replaced) return std::unexpected(replaced.error());
    if (*replaced) {
        log.info("xfrm interface " + device + ": replaced the programs of a killed run");
    }
    log.info("xfrm interface " + device + ": " + std::to_string(bpf.if_id_traffic().size()) +
             " IPsec connections of the kernel's");
    return {};
}

}  // namespace sallyport::control
