// SPDX-License-Identifier: Apache-2.0
#include "control/watch/differences.h"

namespace sallyport::watch {

namespace {

constexpr const char* kClosed =
    "what comes in by it is not forwarded, and its tunnels stand still: restart sallyportd";

std::string subject(const PortShould& should) {
    return "port " + should.port + ": ";
}

}  // namespace

PortVerdict judge_port(const PortShould& should, const DeviceNow& now, uint32_t namesake) {
    PortVerdict out;
    const auto differs = [&](const std::string& what, const std::string& text) {
        out.differences.push_back({.key = subject(should) + what, .text = subject(should) + text});
    };
    for (const netlink::LinkInfo& below : should.below) out.closed.insert(below.name);
    out.closed.insert(now.below.begin(), now.below.end());
    const bool is_gone = now.ifindex != should.ifindex;
    if (is_gone || should.lost) {
        out.lost = true;
        out.closed.insert(should.device);
        if (!is_gone) {
            out.closed.insert(now.name);
            differs("gone", "the device " + now.name + " was away and is back; " + kClosed);
        } else if (namesake != 0) {
            differs("gone", "the device " + should.device +
                                " was removed and made again, and has no program; " + kClosed);
        } else {
            differs("gone", "the device " + should.device +
                                " is gone from this network namespace; what comes in by one of "
                                "that name is not forwarded, and its tunnels stand still: restart "
                                "sallyportd when it is back");
        }
        return out;
    }
    if (now.name != should.device) {
        out.closed.insert(should.device);
        differs("name", "the device " + should.device + " is called " + now.name +
                            " now and is still served; what comes in by another one of the old "
                            "name is not forwarded. Rename it, or change the configuration and "
                            "restart");
    }
    if (!now.has_program) {
        out.attach = true;
        out.closed.insert(now.name);
        differs("program", "the XDP program was removed from " + now.name +
                               "; what comes in there is not forwarded until it is back");
    }
    if (!now.has_kernel_out) {
        out.attach_out = true;
        differs("TC program", "the TC program was removed from " + now.name +
                                  "; until it is back, what came in by devices that are no "
                                  "ports and ICMP errors of the kernel's about protected packets "
                                  "may leave there in clear");
    }
    if (!now.up) {
        differs("up", "the device " + now.name + " is down: set it up (ip link)");
    } else if (!now.has_carrier) {
        differs("carrier", "the device " + now.name +
                               " has no carrier; what is sent there is lost: look at its cable, or "
                               "the devices that it is made of");
    }
    if (!now.keeps_tags) {
        differs("tags", "the device " + now.name +
                            " takes VLAN tags off frames again; what comes in tagged passes for "
                            "the port's own traffic: switch it off (ethtool -K " +
                            now.name + " rxvlan off rx-vlan-stag-hw-parse off)");
    }
    if (!now.slave_kind.empty()) {
        differs("master", "the device " + now.name + " belongs to a " + now.slave_kind +
                              " now, so the kernel sends nothing there for the port's addresses: "
                              "take it out (ip link set dev " +
                              now.name + " nomaster)");
    }
    if (now.queues != 0 && now.queues != should.queues) {
        differs("queues", std::to_string(now.queues) + " receive queues now and " +
                              std::to_string(should.queues) +
                              " at the start; what comes in by others than those is dropped "
                              "(steer_failed): restart sallyportd, or set them back (ethtool -L)");
    }
    return out;
}

InnerVerdict judge_inner(const InnerShould& should, const DeviceNow& now) {
    InnerVerdict out;
    const std::string& device = should.device;
    const auto differs = [&](const std::string& what, const std::string& text) {
        out.differences.push_back({.key = device + ": " + what, .text = device + ": " + text});
    };
    if (now.ifindex != should.ifindex) {
        differs("gone", "the device was removed; without it stands still " + should.needed_by +
                            ": restart sallyportd");
        return out;
    }
    if (!now.up) {
        out.set_up = true;
        differs("up", "the device was set down; it is set up again");
    }
    if (!now.has_program) {
        out.attach = true;
        out.close = true;
        differs("program",
                "our program was removed from the device; what comes in by it is not forwarded "
                "until it is back");
    }
    return out;
}

}  // namespace sallyport::watch
