// SPDX-License-Identifier: Apache-2.0
// The loader on real devices: attaching, leftovers, foreign programs, the devmap's egress program.
//
// Each test has its own network namespace with wan0 = wanp and lan0 = lanp (veth) and the TAP sp0.

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>

#include "control/bpf_objects/bpf_objects.h"
#include "control/bpf_objects/file_descriptor.h"
#include "dataplane/spd/spd.h"
#include "tests/bpf/packet_builder.h"

namespace sallyport::bpf_objects {
namespace {

using packet::Bytes;

constexpr PortId kWan{0};
constexpr PortId kLan{1};
constexpr packet::Mac kTapMac = {0x02, 0, 0, 0, 9, 9};
constexpr packet::Link kOriginated{.dst = kTapMac,
                                   .src = {0x02, 0x53, 0x50, 0, 0, SP_KIND_ORIGINATED}};

void run(const std::string& command) {
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
}

// Id of the program on a device in either mode, 0: none.
uint32_t attached_id(const char* device) {
    LIBBPF_OPTS(bpf_xdp_query_opts, options);
    const int error = bpf_xdp_query(static_cast<int>(if_nametoindex(device)), 0, &options);
    EXPECT_EQ(error, 0);
    return options.prog_id != 0       ? options.prog_id
           : options.drv_prog_id != 0 ? options.drv_prog_id
                                      : options.skb_prog_id;
}

// Id of the program behind a TC filter, 0: none.
uint32_t filter_id(const char* device, bpf_tc_attach_point point, uint32_t handle = 0x5350) {
    bpf_tc_hook hook{};
    hook.sz = sizeof hook;
    hook.ifindex = static_cast<int>(if_nametoindex(device));
    hook.attach_point = point;
    bpf_tc_opts options{};
    options.sz = sizeof options;
    options.handle = handle;
    options.priority = 1;
    return bpf_tc_query(&hook, &options) == 0 ? options.prog_id : 0;
}
uint32_t egress_id(const char* device) {
    return filter_id(device, BPF_TC_EGRESS);
}

IpPrefix prefix(const char* text) {
    return *parse_ip_prefix(text);
}

class Loader : public ::testing::Test {
  protected:
    void SetUp() override {
        if (geteuid() != 0) GTEST_SKIP() << "loading XDP programs needs root";
        ASSERT_EQ(unshare(CLONE_NEWNET), 0);
        run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.default.disable_ipv6=1");
        for (const char* name : {"wan", "lan"}) {
            const std::string device = name;
            run("ip link add " + device + "0 numrxqueues 2 numtxqueues 2 type veth peer name " +
                device + "p numrxqueues 2 numtxqueues 2");
            run("ip link set " + device + "0 up");
            run("ip link set " + device + "p up");
            // Without NAPI on the peer, redirected frames vanish.
            run("ethtool -K " + device + "p gro on 2>/dev/null");
        }
        run("ip addr add 192.0.2.1/24 dev wan0 && ip addr add 10.1.0.1/24 dev lan0");
        run("ip neigh add 192.0.2.2 lladdr 02:00:00:00:01:02 dev wan0 nud permanent");
        run("ip neigh add 10.1.0.10 lladdr 02:00:00:00:02:02 dev lan0 nud permanent");
        tap = FileDescriptor(open("/dev/net/tun", O_RDWR | O_NONBLOCK));
        ASSERT_TRUE(tap);
        ifreq request{};
        std::snprintf(request.ifr_name, sizeof request.ifr_name, "sp0");
        request.ifr_flags = static_cast<short>(IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE);
        ASSERT_EQ(ioctl(tap.get(), TUNSETIFF, &request), 0);
        run("ip link set sp0 address 02:00:00:00:09:09 up");
    }

    static PortSetup setup(PortId id) {
        const bool is_wan = id == kWan;
        return {
            .id = id,
            .device = is_wan ? "wan0" : "lan0",
            .ifindex = if_nametoindex(is_wan ? "wan0" : "lan0"),
            .role = is_wan ? config::PortRole::unprotected_side : config::PortRole::protected_side,
            .queues = 2,
            .workers = 2,
            .mac = mac_of(is_wan ? "wan0" : "lan0"),
            .egress_deny = {}};
    }
    static MacAddress mac_of(const char* device) {
        ifreq request{};
        std::snprintf(request.ifr_name, sizeof request.ifr_name, "%s", device);
        const FileDescriptor any(::socket(AF_INET, SOCK_DGRAM, 0));
        EXPECT_EQ(ioctl(any.get(), SIOCGIFHWADDR, &request), 0) << device;
        MacAddress mac{};
        std::memcpy(mac.data(), request.ifr_hwaddr.sa_data, mac.size());
        return mac;
    }
    static BpfObjects make() {
        auto objects = BpfObjects::create(
            {.inbound_sas = 64, .spd_destinations = 64, .spd_sources = 64, .spd_entries = 64});
        if (!objects) {
            ADD_FAILURE() << objects.error();
            std::abort();
        }
        return std::move(*objects);
    }
    static InjectorSetup injector() { return {.device = "sp0", .ifindex = if_nametoindex("sp0")}; }

    // A raw socket on a device.
    static FileDescriptor tapped(const char* device) {
        FileDescriptor socket(::socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, htons(ETH_P_ALL)));
        sockaddr_ll address{};
        address.sll_family = AF_PACKET;
        address.sll_protocol = htons(ETH_P_ALL);
        address.sll_ifindex = static_cast<int>(if_nametoindex(device));
        EXPECT_EQ(bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address),
                  0);
        return socket;
    }
    // Frames that arrive with this destination MAC within the time.
    static size_t count_frames(const FileDescriptor& socket, const packet::Mac& mac,
                               size_t wanted) {
        size_t count = 0;
        for (int quiet = 0; quiet < 5 && count < wanted;) {
            pollfd poller{.fd = socket.get(), .events = POLLIN, .revents = 0};
            if (poll(&poller, 1, 50) <= 0) {
                ++quiet;
                continue;
            }
            uint8_t frame[2048];
            const ssize_t size = recv(socket.get(), frame, sizeof frame, 0);
            if (size >= 14 && std::memcmp(frame, mac.data(), mac.size()) == 0) ++count;
        }
        return count;
    }
    // Programs on both ports, of a daemon that was killed after `while_it_lives`.
    static void leave_programs(const std::function<void()>& while_it_lives) {
        int ready[2];
        ASSERT_EQ(pipe(ready), 0);
        const pid_t child = fork();
        if (child == 0) {
            BpfObjects objects = make();
            const bool done = objects.add_port(setup(kWan)) && objects.attach_port(kWan) &&
                              objects.add_port(setup(kLan)) && objects.attach_port(kLan);
            const char answer = done ? 'y' : 'n';
            if (write(ready[1], &answer, 1) == 1) pause();
            _exit(1);
        }
        char answer = 0;
        EXPECT_EQ(read(ready[0], &answer, 1), 1);
        EXPECT_EQ(answer, 'y');
        while_it_lives();
        kill(child, SIGKILL);
        waitpid(child, nullptr, 0);
        close(ready[0]);
        close(ready[1]);
    }
    void inject(const Bytes& frame) const {
        ASSERT_EQ(write(tap.get(), frame.data(), frame.size()), static_cast<ssize_t>(frame.size()));
    }

    FileDescriptor tap;
};

// A program that is not ours, with or without a name like one of ours.
FileDescriptor foreign_program(const char* name, bpf_prog_type type = BPF_PROG_TYPE_XDP) {
    const bpf_insn instructions[] = {
        {.code = BPF_ALU64 | BPF_MOV | BPF_K,
         .dst_reg = 0,
         .src_reg = 0,
         .off = 0,
         .imm = XDP_PASS},
        {.code = BPF_JMP | BPF_EXIT, .dst_reg = 0, .src_reg = 0, .off = 0, .imm = 0},
    };
    const int fd = bpf_prog_load(type, name, "GPL", instructions, std::size(instructions), nullptr);
    EXPECT_GE(fd, 0);
    return FileDescriptor(fd);
}

TEST_F(Loader, attaches_and_detaches_everything) {
    {
        BpfObjects objects = make();
        for (const PortId id : {kWan, kLan}) {
            const auto added = objects.add_port(setup(id));
            ASSERT_TRUE(added) << added.error();
            EXPECT_EQ(attached_id(id == kWan ? "wan0" : "lan0"), 0u) << "add_port attached";
        }
        for (const PortId id : {kWan, kLan}) {
            const auto attachment = objects.attach_port(id);
            ASSERT_TRUE(attachment) << attachment.error();
            EXPECT_EQ(attachment->mode, config::XdpMode::native);
            EXPECT_FALSE(attachment->reason.empty());
            EXPECT_FALSE(attachment->replaced_stale);
            std::printf("%s: %s\n", attachment->attached(), attachment->reason.c_str());
        }
        const auto injected = objects.add_injector(injector());
        ASSERT_TRUE(injected) << injected.error();
        for (const char* device : {"wan0", "lan0", "sp0"}) {
            EXPECT_NE(attached_id(device), 0u) << device;
        }
    }
    for (const char* device : {"wan0", "lan0", "sp0"}) EXPECT_EQ(attached_id(device), 0u) << device;
}

TEST_F(Loader, generic_mode_when_asked) {
    BpfObjects objects = make();
    PortSetup wan = setup(kWan);
    wan.mode = config::XdpMode::generic;
    ASSERT_TRUE(objects.add_port(wan));
    const auto attachment = objects.attach_port(kWan);
    ASSERT_TRUE(attachment) << attachment.error();
    EXPECT_EQ(attachment->mode, config::XdpMode::generic);
}

// lo has no native XDP.
TEST_F(Loader, automatic_mode_falls_back_to_generic) {
    run("ip link set lo up");
    BpfObjects objects = make();
    PortSetup port = setup(kWan);
    port.device = "lo";
    port.ifindex = if_nametoindex("lo");
    ASSERT_TRUE(objects.add_port(port));
    const auto attachment = objects.attach_port(kWan);
    ASSERT_TRUE(attachment) << attachment.error();
    EXPECT_EQ(attachment->mode, config::XdpMode::generic);
    EXPECT_NE(attachment->reason.find("native failed"), std::string::npos) << attachment->reason;
}

TEST_F(Loader, replaces_what_a_killed_daemon_left) {
    uint32_t stale = 0;
    leave_programs([&stale] {
        // While it lives, its device is its own.
        stale = attached_id("wan0");
        BpfObjects second = make();
        const auto refused = second.add_port(setup(kWan));
        ASSERT_FALSE(refused);
        EXPECT_NE(refused.error().find("another sallyportd"), std::string::npos) << refused.error();
        EXPECT_EQ(attached_id("wan0"), stale);
    });
    ASSERT_EQ(attached_id("wan0"), stale) << "the kernel keeps it";

    {
        BpfObjects objects = make();
        for (const PortId id : {kWan, kLan}) {
            ASSERT_TRUE(objects.add_port(setup(id)));
            const auto attachment = objects.attach_port(id);
            ASSERT_TRUE(attachment) << attachment.error();
            EXPECT_TRUE(attachment->replaced_stale);
        }
        EXPECT_NE(attached_id("wan0"), stale);
        EXPECT_NE(attached_id("wan0"), 0u);
    }
    EXPECT_EQ(attached_id("wan0"), 0u);
    EXPECT_EQ(attached_id("lan0"), 0u);
}

TEST_F(Loader, takes_away_what_a_killed_daemon_left) {
    const auto remove = [](const char* device) {
        return bpf_objects::remove_leftovers(device, if_nametoindex(device));
    };
    leave_programs([&] {
        const auto refused = remove("wan0");
        ASSERT_FALSE(refused);
        EXPECT_NE(refused.error().find("another sallyportd"), std::string::npos) << refused.error();
        EXPECT_NE(attached_id("wan0"), 0u);
    });
    for (const char* device : {"wan0", "lan0"}) {
        ASSERT_NE(attached_id(device), 0u);
        for (int twice = 0; twice < 2; ++twice) {
            const auto removed = remove(device);
            EXPECT_TRUE(removed) << removed.error();
            EXPECT_EQ(attached_id(device), 0u);
        }
    }
    // And nothing of others.
    const FileDescriptor program = foreign_program("firewall");
    ASSERT_EQ(bpf_xdp_attach(static_cast<int>(if_nametoindex("wan0")), program.get(), 0, nullptr),
              0);
    const uint32_t id = attached_id("wan0");
    EXPECT_TRUE(remove("wan0"));
    EXPECT_EQ(attached_id("wan0"), id);
    run("ip link set dev wan0 xdp off");
}

TEST_F(Loader, knows_when_a_program_was_taken_off_and_attaches_it_again) {
    BpfObjects objects = make();
    ASSERT_TRUE(objects.add_port(setup(kWan)));
    EXPECT_FALSE(objects.is_port_attached(kWan)) << "not attached yet";
    ASSERT_TRUE(objects.attach_port(kWan));
    ASSERT_TRUE(objects.add_injector(injector()));
    EXPECT_TRUE(objects.is_port_attached(kWan));
    EXPECT_TRUE(objects.is_injector_attached());
    run("ip link set dev wan0 xdp off && ip link set dev sp0 xdp off");
    EXPECT_FALSE(objects.is_port_attached(kWan));
    EXPECT_FALSE(objects.is_injector_attached());
    ASSERT_TRUE(objects.attach_port(kWan));
    ASSERT_TRUE(objects.attach_injector());
    EXPECT_TRUE(objects.is_port_attached(kWan));
    EXPECT_TRUE(objects.is_injector_attached());
    // On sp0 two belong together; the one that is left stays.
    const uint32_t route = attached_id("sp0");
    run("tc qdisc del dev sp0 clsact");
    EXPECT_FALSE(objects.is_injector_attached());
    ASSERT_TRUE(objects.attach_injector());
    EXPECT_TRUE(objects.is_injector_attached());
    EXPECT_EQ(attached_id("sp0"), route);
    EXPECT_TRUE(objects.unresolved_hops().empty());

    // What others put there instead is not taken for ours, and not touched.
    run("ip link set dev wan0 xdp off");
    const FileDescriptor program = foreign_program("firewall");
    ASSERT_EQ(bpf_xdp_attach(static_cast<int>(if_nametoindex("wan0")), program.get(), 0, nullptr),
              0);
    const uint32_t id = attached_id("wan0");
    EXPECT_FALSE(objects.is_port_attached(kWan));
    EXPECT_FALSE(objects.attach_port(kWan));
    EXPECT_EQ(attached_id("wan0"), id);
    run("ip link set dev wan0 xdp off");
}

TEST_F(Loader, kernel_out_is_on_unprotected_ports_as_long_as_workers_may_write) {
    {
        BpfObjects objects = make();
        ASSERT_TRUE(objects.add_port(setup(kWan)));
        ASSERT_TRUE(objects.add_port(setup(kLan)));
        EXPECT_FALSE(objects.is_kernel_out_attached(kWan)) << "not attached yet";
        EXPECT_TRUE(objects.is_kernel_out_attached(kLan)) << "nothing is to be there";
        for (const PortId id : {kWan, kLan}) {
            const auto attached = objects.attach_kernel_out(id);
            ASSERT_TRUE(attached) << attached.error();
            ASSERT_TRUE(objects.attach_port(id));
        }
        EXPECT_NE(egress_id("wan0"), 0u);
        EXPECT_EQ(egress_id("lan0"), 0u);
        EXPECT_EQ(filter_id("wan0", BPF_TC_INGRESS), 0u);
        EXPECT_TRUE(objects.is_kernel_out_attached(kWan));
        objects.detach_ports();
        EXPECT_NE(egress_id("wan0"), 0u) << "the kernel may still tell of what came before";
    }
    EXPECT_EQ(egress_id("wan0"), 0u);
}

TEST_F(Loader, knows_when_kernel_out_was_taken_off_and_attaches_it_again) {
    BpfObjects objects = make();
    ASSERT_TRUE(objects.add_port(setup(kWan)));
    ASSERT_TRUE(objects.attach_kernel_out(kWan));
    for (const char* command : {"tc filter del dev wan0 egress", "tc qdisc del dev wan0 clsact"}) {
        SCOPED_TRACE(command);
        run(command);
        EXPECT_FALSE(objects.is_kernel_out_attached(kWan));
        const auto attached = objects.attach_kernel_out(kWan);
        ASSERT_TRUE(attached) << attached.error();
        EXPECT_TRUE(objects.is_kernel_out_attached(kWan));
    }
}

TEST_F(Loader, kernel_out_of_a_killed_daemon_is_replaced_or_goes) {
    const auto leave_kernel_out = [] {
        const pid_t child = fork();
        if (child == 0) {
            BpfObjects objects = make();
            const bool done = objects.add_port(setup(kWan)) && objects.attach_kernel_out(kWan);
            _exit(done ? 0 : 1);  // without the end of `objects`
        }
        int status = 0;
        ASSERT_EQ(waitpid(child, &status, 0), child);
        ASSERT_EQ(status, 0);
    };
    ASSERT_NO_FATAL_FAILURE(leave_kernel_out());
    const uint32_t stale = egress_id("wan0");
    ASSERT_NE(stale, 0u) << "the kernel keeps it";
    {
        BpfObjects objects = make();
        ASSERT_TRUE(objects.add_port(setup(kWan)));
        ASSERT_TRUE(objects.attach_kernel_out(kWan));
        EXPECT_NE(egress_id("wan0"), stale);
        EXPECT_TRUE(objects.is_kernel_out_attached(kWan));
        // A second time it takes its own place, and what goes then leaves it there.
        ASSERT_TRUE(objects.attach_kernel_out(kWan));
        EXPECT_TRUE(objects.is_kernel_out_attached(kWan));
    }
    EXPECT_EQ(egress_id("wan0"), 0u);

    ASSERT_NO_FATAL_FAILURE(leave_kernel_out());
    BpfObjects objects = make();
    PortSetup turned = setup(kWan);
    turned.role = config::PortRole::protected_side;
    ASSERT_TRUE(objects.add_port(turned));
    ASSERT_NE(egress_id("wan0"), 0u);
    ASSERT_TRUE(objects.attach_kernel_out(kWan));
    EXPECT_EQ(egress_id("wan0"), 0u) << "a port that is protected now";
}

TEST_F(Loader, leaves_filters_of_others_alone) {
    run("tc qdisc add dev wan0 clsact");
    run("tc filter add dev wan0 egress prio 1 handle 7 bpf da bytecode '1,6 0 0 4294967295'");
    run("tc filter add dev wan0 ingress prio 3 bpf da bytecode '1,6 0 0 4294967295'");
    run("tc filter add dev wan0 egress prio 5 u32 match u32 0 0");
    {
        BpfObjects objects = make();
        ASSERT_TRUE(objects.add_port(setup(kWan)));
        const auto attached = objects.attach_kernel_out(kWan);
        ASSERT_TRUE(attached) << attached.error();
        EXPECT_TRUE(objects.is_kernel_out_attached(kWan));
    }
    run("tc filter show dev wan0 egress | grep -q 'handle 0x7'");
    run("tc filter show dev wan0 ingress | grep -q 'pref 3 bpf'");
    run("tc filter show dev wan0 egress | grep -q 'pref 5 u32'");
    EXPECT_EQ(egress_id("wan0"), 0u);
}

TEST_F(Loader, a_foreign_filter_in_the_place_of_kernel_out_is_said) {
    run("tc qdisc add dev wan0 clsact");
    const FileDescriptor program = foreign_program("steer_unprotect", BPF_PROG_TYPE_SCHED_CLS);
    bpf_tc_hook hook{};
    hook.sz = sizeof hook;
    hook.ifindex = static_cast<int>(if_nametoindex("wan0"));
    hook.attach_point = BPF_TC_EGRESS;
    bpf_tc_opts options{};
    options.sz = sizeof options;
    options.handle = 0x5350;
    options.priority = 1;
    options.prog_fd = program.get();
    ASSERT_EQ(bpf_tc_attach(&hook, &options), 0);
    const uint32_t id = egress_id("wan0");

    BpfObjects objects = make();
    ASSERT_TRUE(objects.add_port(setup(kWan)));
    const auto refused = objects.attach_kernel_out(kWan);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().find("another program's TC filter"), std::string::npos)
        << refused.error();
    EXPECT_EQ(egress_id("wan0"), id);
    run("tc filter del dev wan0 egress");
    EXPECT_TRUE(objects.attach_kernel_out(kWan));

    // Or one of another kind, behind which nothing of ours can stand.
    run("tc filter del dev wan0 egress");
    run("tc filter add dev wan0 egress prio 1 u32 match u32 0 0");
    const auto behind = objects.attach_kernel_out(kWan);
    ASSERT_FALSE(behind);
    EXPECT_NE(behind.error().find("priority 1"), std::string::npos) << behind.error();
    run("tc filter show dev wan0 egress | grep -q 'pref 1 u32'");
}

TEST_F(Loader, an_ingress_qdisc_has_no_place_for_kernel_out) {
    run("tc qdisc add dev wan0 ingress");
    run("tc filter add dev wan0 ingress prio 3 bpf da bytecode '1,6 0 0 4294967295'");
    BpfObjects objects = make();
    ASSERT_TRUE(objects.add_port(setup(kWan)));
    const auto refused = objects.attach_kernel_out(kWan);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().find("ingress qdisc"), std::string::npos) << refused.error();
    EXPECT_FALSE(objects.is_kernel_out_attached(kWan));
    run("! tc filter show dev wan0 ingress | grep -q kernel_out");
    run("tc filter show dev wan0 ingress | grep -q 'pref 3 bpf'");

    run("tc qdisc del dev wan0 ingress");
    const auto attached = objects.attach_kernel_out(kWan);
    EXPECT_TRUE(attached) << attached.error();
}

TEST_F(Loader, kernel_out_can_stay) {
    {
        BpfObjects objects = make();
        ASSERT_TRUE(objects.add_port(setup(kWan)));
        ASSERT_TRUE(objects.attach_kernel_out(kWan));
        objects.leave_kernel_out();
    }
    EXPECT_NE(egress_id("wan0"), 0u);
}

TEST_F(Loader, leaves_foreign_programs_alone) {
    for (const char* name : {"firewall", "steer_unprotect"}) {
        SCOPED_TRACE(name);
        const FileDescriptor program = foreign_program(name);
        const int index = static_cast<int>(if_nametoindex("wan0"));
        ASSERT_EQ(bpf_xdp_attach(index, program.get(), 0, nullptr), 0);
        const uint32_t id = attached_id("wan0");
        {
            BpfObjects objects = make();
            ASSERT_TRUE(objects.add_port(setup(kWan)));
            const auto refused = objects.attach_port(kWan);
            ASSERT_FALSE(refused);
            EXPECT_NE(refused.error().find(name), std::string::npos) << refused.error();
            EXPECT_NE(refused.error().find(std::to_string(id)), std::string::npos);
            EXPECT_NE(refused.error().find("ip link set dev wan0 xdpdrv off"), std::string::npos);
            EXPECT_EQ(attached_id("wan0"), id);
        }
        EXPECT_EQ(attached_id("wan0"), id);
        // And the way out that the error names works.
        run("ip link set dev wan0 xdpdrv off");
        BpfObjects objects = make();
        ASSERT_TRUE(objects.add_port(setup(kWan)));
        EXPECT_TRUE(objects.attach_port(kWan));
    }
}

// From one wire to the other, over the queue to another CPU and its program.
TEST_F(Loader, BYPASS_frames_leave_by_another_CPU) {
    BpfObjects objects = make();
    PortSetup lan = setup(kLan);
    lan.bypass_cpus = {0};
    lan.mac = packet::Link{}.dst;
    ASSERT_TRUE(objects.add_port(setup(kWan)));
    const auto added = objects.add_port(lan);
    ASSERT_TRUE(added) << added.error();
    const SpdEntry open{.policy = PolicyId{0},
                        .action = SpdAction::bypass,
                        .source = prefix("10.1.0.0/24"),
                        .destination = prefix("192.0.2.0/24")};
    const auto outbound = compile_spd(std::span(&open, 1));
    const auto inbound = compile_spd({});
    ASSERT_TRUE(outbound && inbound);
    ASSERT_TRUE(objects.publish_spd(*outbound, *inbound, {}));
    ASSERT_TRUE(objects.attach_port(kWan));
    ASSERT_TRUE(objects.attach_port(kLan));
    const FileDescriptor host = tapped("lanp");
    const FileDescriptor peer = tapped("wanp");
    const Bytes frame = packet::eth(
        packet::ip4({.src = "10.1.0.10", .dst = "192.0.2.2"}, packet::udp({.dst = 80})));
    constexpr size_t kFrames = 200;
    for (size_t i = 0; i < kFrames; ++i) {
        ASSERT_EQ(send(host.get(), frame.data(), frame.size(), 0),
                  static_cast<ssize_t>(frame.size()));
    }
    EXPECT_EQ(count_frames(peer, {0x02, 0, 0, 0, 1, 2}, kFrames), kFrames);
    const auto counters = objects.counters(kLan);
    ASSERT_TRUE(counters);
    EXPECT_EQ(counters->spread.handed_over, kFrames);
    EXPECT_EQ(counters->spread.taken, kFrames);
    EXPECT_EQ(counters->taken_by_cpu, std::vector<uint64_t>{kFrames});
    EXPECT_EQ(counters->totals.redirected, kFrames);
    EXPECT_EQ(objects.counters(kWan)->totals.egress_sent, kFrames);
}

// Feeds a frame to the program of lan0, so many times, in the kernel's batches of so many: later
// ones get the pages of the first again, with what the program has written there. 0, or -errno.
int feed_lan(const char* destination, uint16_t port, uint32_t frames, uint32_t batch) {
    const FileDescriptor program(bpf_prog_get_fd_by_id(attached_id("lan0")));
    if (!program) return -errno;
    const Bytes frame = packet::eth(
        packet::ip4({.src = "10.1.0.10", .dst = destination}, packet::udp({.dst = port})));
    xdp_md context{};
    context.data_end = static_cast<uint32_t>(frame.size());
    context.ingress_ifindex = if_nametoindex("lan0");
    LIBBPF_OPTS(bpf_test_run_opts, options);
    options.data_in = frame.data();
    options.data_size_in = static_cast<uint32_t>(frame.size());
    options.ctx_in = &context;
    options.ctx_size_in = sizeof context;
    options.repeat = static_cast<int>(frames);
    options.batch_size = batch;
    options.flags = BPF_F_TEST_XDP_LIVE_FRAMES;
    return bpf_prog_test_run_opts(program.get(), &options);
}

// The kernel tells no program of a full queue. Frames are fed on the CPU whose queue they go to, by
// a thread that the queue's own thread cannot displace, so they cannot be taken in time.
TEST_F(Loader, what_does_not_fit_into_the_queue_is_handed_over_and_not_taken) {
    cpu_set_t before;
    cpu_set_t first;
    CPU_ZERO(&first);
    CPU_SET(0, &first);
    const sched_param real_time{.sched_priority = 1};
    const sched_param normal{.sched_priority = 0};
    ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
    if (sched_setaffinity(0, sizeof first, &first) != 0 ||
        sched_setscheduler(0, SCHED_FIFO, &real_time) != 0) {
        GTEST_SKIP() << "SKIP: needs CPU 0 and a real-time priority";
    }
    BpfObjects objects = make();
    PortSetup lan = setup(kLan);
    lan.bypass_cpus = {0};
    lan.mac = packet::Link{}.dst;
    ASSERT_TRUE(objects.add_port(setup(kWan)) && objects.add_port(lan));
    const SpdEntry open{.policy = PolicyId{0},
                        .action = SpdAction::bypass,
                        .source = prefix("10.1.0.0/24"),
                        .destination = prefix("192.0.2.0/24")};
    ASSERT_TRUE(objects.publish_spd(*compile_spd(std::span(&open, 1)), *compile_spd({}), {}));
    ASSERT_TRUE(objects.attach_port(kWan) && objects.attach_port(kLan));
    constexpr uint32_t kFrames = 10000;
    const int error = feed_lan("192.0.2.2", 80, kFrames, 256);
    sched_setscheduler(0, SCHED_OTHER, &normal);
    sched_setaffinity(0, sizeof before, &before);
    ASSERT_EQ(error, 0) << std::strerror(-error);

    // All that fitted is taken, and nothing more for half a second. On a busy machine the queue's
    // thread may have to wait for its turn.
    constexpr uint64_t kRoom = 2048;
    uint64_t taken = 0;
    for (int tries = 0, still = 0; tries < 200 && still < 5; ++tries, usleep(100'000)) {
        const uint64_t now = objects.counters(kLan)->spread.taken;
        still = now >= kRoom && now == taken ? still + 1 : 0;
        taken = now;
    }
    const auto counters = objects.counters(kLan);
    EXPECT_EQ(counters->totals.rx_frames, kFrames);
    EXPECT_EQ(counters->spread.handed_over, kFrames);
    EXPECT_GE(taken, kRoom);
    EXPECT_LT(taken, kFrames);
    EXPECT_EQ(counters->totals.redirected, taken);
    std::printf("%u handed over, %lu taken, the rest did not fit\n", kFrames, taken);
}

// tp0, a TAP that nobody has open, has a way to send for native XDP and refuses every frame; wan0
// without GRO at its peer has none (since 6.3). Each loss is counted once, and only there.
TEST_F(Loader, what_was_redirected_and_not_taken_is_counted_at_the_port_out) {
    run("ip tuntap add dev tp0 mode tap multi_queue && ip link set tp0 up");
    run("ip addr add 198.51.100.1/24 dev tp0");
    run("ip neigh add 198.51.100.2 lladdr 02:00:00:00:03:02 dev tp0 nud permanent");
    run("ethtool -K wanp gro off 2>/dev/null");
    constexpr PortId kTap{2};
    BpfObjects objects = make();
    PortSetup tap_port = setup(kWan);
    tap_port.id = kTap;
    tap_port.device = "tp0";
    tap_port.ifindex = if_nametoindex("tp0");
    tap_port.egress_deny = {{.port_lo = 9, .port_hi = 9}};
    PortSetup lan = setup(kLan);
    lan.mac = packet::Link{}.dst;
    ASSERT_TRUE(objects.add_port(setup(kWan)) && objects.add_port(lan) &&
                objects.add_port(tap_port));
    const auto watched = objects.watch_redirects();
    ASSERT_TRUE(watched) << watched.error();
    std::vector<SpdEntry> open;
    for (const char* destination : {"192.0.2.0/24", "198.51.100.0/24"}) {
        open.push_back({.policy = PolicyId{0},
                        .action = SpdAction::bypass,
                        .source = prefix("10.1.0.0/24"),
                        .destination = prefix(destination)});
    }
    ASSERT_TRUE(objects.publish_spd(*compile_spd(open), *compile_spd({}), {}));
    ASSERT_TRUE(objects.attach_port(kLan));
    const auto failed = [&](PortId port) {
        return objects.counters(port)->drops[SP_DROP_redirect_failed];
    };

    ASSERT_EQ(feed_lan("198.51.100.2", 80, 60, 64), 0);
    EXPECT_EQ(failed(kTap), 60u);
    ASSERT_EQ(feed_lan("198.51.100.2", 9, 50, 64), 0);
    EXPECT_EQ(objects.counters(kTap)->drops[SP_DROP_egress_denied], 50u);
    EXPECT_EQ(failed(kTap), 60u) << "what the filter has dropped was not to be sent";
    ASSERT_EQ(feed_lan("198.51.100.2", 80, 3, 64), 0);
    EXPECT_EQ(failed(kTap), 63u);
    EXPECT_EQ(failed(kWan), 0u);

    ASSERT_EQ(feed_lan("192.0.2.2", 80, 20, 64), 0);
    EXPECT_EQ(failed(kWan), 20u);
    run("ethtool -K wanp gro on 2>/dev/null");
    ASSERT_EQ(feed_lan("192.0.2.2", 80, 20, 64), 0);
    EXPECT_EQ(failed(kWan), 20u) << "they are taken";
    EXPECT_EQ(failed(kTap), 63u);
    EXPECT_EQ(failed(kLan), 0u);
    const sp_port_counters totals = objects.counters(kLan)->totals;
    EXPECT_EQ(totals.rx_frames, 153u);
    EXPECT_EQ(totals.redirected, 153u);
}

TEST_F(Loader, native_sending_is_tried) {
    using Answer = NativeSending::Answer;
    run("ip tuntap add dev tp0 mode tap multi_queue && ip link set tp0 up");
    run("ip link add bridge0 type bridge && ip link set bridge0 up");
    run("ethtool -K lanp gro off 2>/dev/null");
    const auto tried = [](const char* device, bool running) {
        return prove_native_sending(if_nametoindex(device), mac_of(device), running);
    };
    const FileDescriptor peer = tapped("wanp");
    const NativeSending wan = tried("wan0", true);
    EXPECT_EQ(wan.answer, Answer::possible) << wan.why;
    packet::Mac mac{};
    std::ranges::copy(mac_of("wan0"), mac.begin());
    EXPECT_GE(count_frames(peer, mac, 1), 1u) << "it was a frame of those that it stands for";
    for (const char* device : {"lan0", "bridge0", "tp0"}) {
        const NativeSending sending = tried(device, true);
        EXPECT_EQ(sending.answer, Answer::impossible) << device << ": " << sending.why;
    }
    EXPECT_EQ(tried("tp0", false).answer, Answer::unknown) << "it has no carrier";
    run("ip link set wan0 down");
    EXPECT_EQ(tried("wan0", false).answer, Answer::unknown);
}

TEST_F(Loader, a_port_and_sp0_change_their_mode) {
    BpfObjects objects = make();
    ASSERT_TRUE(objects.add_port(setup(kWan)));
    ASSERT_TRUE(objects.attach_port(kWan));
    ASSERT_TRUE(objects.add_injector(injector()));
    const auto port = objects.change_mode(kWan, config::XdpMode::generic, "because it is asked");
    ASSERT_TRUE(port) << port.error();
    EXPECT_EQ(port->mode, config::XdpMode::generic);
    EXPECT_FALSE(port->replaced_stale);
    EXPECT_NE(port->reason.find("because it is asked"), std::string::npos) << port->reason;
    EXPECT_TRUE(objects.is_port_attached(kWan));
    const auto tap_mode = objects.change_injector_mode(config::XdpMode::generic, "so");
    ASSERT_TRUE(tap_mode) << tap_mode.error();
    EXPECT_EQ(tap_mode->mode, config::XdpMode::generic);
    EXPECT_TRUE(objects.is_injector_attached());
    run("ip link set dev wan0 xdpgeneric off");
    EXPECT_FALSE(objects.is_port_attached(kWan));
    const auto again = objects.attach_port(kWan);
    ASSERT_TRUE(again) << again.error();
    EXPECT_EQ(again->mode, config::XdpMode::generic) << "also from then on";
}

TEST_F(Loader, a_CPU_that_is_not_there_is_refused) {
    BpfObjects objects = make();
    PortSetup lan = setup(kLan);
    lan.bypass_cpus = {0, 1023};
    const auto refused = objects.add_port(lan);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().find("cannot make a queue to CPU 1023"), std::string::npos)
        << refused.error();
}

// With everything that asks for connections: the verifier takes it, and attaching works.
TEST_F(Loader, programs_that_ask_for_connections_attach) {
    const auto probe = probe_connection_lookup();
    if (!probe.possible) GTEST_SKIP() << "SKIP: " << probe.reason;
    auto objects = BpfObjects::create(
        {.inbound_sas = 64, .spd_destinations = 64, .spd_sources = 64, .spd_entries = 64},
        {.lookups = true, .marks = true});
    ASSERT_TRUE(objects) << objects.error();
    for (const PortId id : {kWan, kLan}) {
        PortSetup port = setup(id);
        port.conntrack_in = config::Conntrack::drop;
        port.conntrack_out = config::Conntrack::punt;
        port.bypass_cpus = {0};
        const auto added = objects->add_port(port);
        ASSERT_TRUE(added) << added.error();
    }
    for (const PortId id : {kWan, kLan}) {
        const auto attachment = objects->attach_port(id);
        ASSERT_TRUE(attachment) << attachment.error();
    }
    const auto injected = objects->add_injector(injector());
    ASSERT_TRUE(injected) << injected.error();
    EXPECT_TRUE(objects->load_injector_queue());
}

// From a worker's write to the peer's end of the wire, with the filter in the devmap.
TEST_F(Loader, egress_program_filters_and_counts) {
    BpfObjects objects = make();
    PortSetup wan = setup(kWan);
    wan.egress_deny.push_back({.source = {},
                               .destination = prefix("192.0.2.2/32"),
                               .protocol = uint8_t{17},
                               .port_lo = 25,
                               .port_hi = 25});
    ASSERT_TRUE(objects.add_port(wan));
    ASSERT_TRUE(objects.add_port(setup(kLan)));
    ASSERT_TRUE(objects.add_injector(injector()));
    const FileDescriptor peer = tapped("wanp");
    const packet::Mac peer_mac = {0x02, 0, 0, 0, 1, 2};
    const auto frame = [](uint16_t port, size_t bytes) {
        return packet::eth(packet::ip4({.src = "192.0.2.1", .dst = "192.0.2.2"},
                                       packet::udp({.dst = port}, Bytes(bytes))),
                           kOriginated);
    };

    for (int i = 0; i < 10; ++i) inject(frame(80, 100));
    EXPECT_EQ(count_frames(peer, peer_mac, 10), 10u);
    for (int i = 0; i < 7; ++i) inject(frame(25, 100));
    EXPECT_EQ(count_frames(peer, peer_mac, 1), 0u);
    ASSERT_TRUE(objects.set_mtu(kWan, 1000));
    for (int i = 0; i < 3; ++i) inject(frame(80, 1000));
    EXPECT_EQ(count_frames(peer, peer_mac, 1), 0u);

    auto counters = objects.counters(kWan);
    ASSERT_TRUE(counters);
    EXPECT_EQ(counters->totals.egress_frames, 17u);
    EXPECT_EQ(counters->totals.egress_sent, 10u);
    EXPECT_EQ(counters->drops[SP_DROP_egress_denied], 7u);
    EXPECT_EQ(counters->totals.rx_frames, 0u);
    EXPECT_EQ(counters->steered.size(), 2u);
    const auto sp0 = objects.counters(kInjectorPort);
    ASSERT_TRUE(sp0);
    EXPECT_EQ(sp0->totals.rx_frames, 20u);
    EXPECT_EQ(sp0->totals.redirected, 17u);
    EXPECT_EQ(sp0->drops[SP_DROP_too_big], 3u);

    // A new filter in place of the old one, longer and shorter.
    ASSERT_TRUE(objects.set_mtu(kWan, 1500));
    std::vector<config::EgressRule> rules(SP_EGRESS_RULES_MAX,
                                          {.destination = prefix("203.0.113.0/24")});
    rules.back() = {.protocol = uint8_t{17}, .port_lo = 80, .port_hi = 80};
    ASSERT_TRUE(objects.set_egress_deny(kWan, rules));
    inject(frame(80, 100));
    EXPECT_EQ(count_frames(peer, peer_mac, 1), 0u);
    inject(frame(25, 100));
    EXPECT_EQ(count_frames(peer, peer_mac, 1), 1u);
    ASSERT_TRUE(objects.set_egress_deny(kWan, {}));
    inject(frame(80, 100));
    EXPECT_EQ(count_frames(peer, peer_mac, 1), 1u);
    rules.push_back(rules.front());
    EXPECT_FALSE(objects.set_egress_deny(kWan, rules)) << "one rule too many";
}

// Over the wire: cleartext from the protected side that BYPASS lets through.
TEST_F(Loader, bypass_crosses_the_appliance) {
    BpfObjects objects = make();
    ASSERT_TRUE(objects.add_port(setup(kWan)));
    ASSERT_TRUE(objects.add_port(setup(kLan)));
    ASSERT_TRUE(objects.attach_port(kWan));
    ASSERT_TRUE(objects.attach_port(kLan));
    const FileDescriptor lan = tapped("lanp");
    const FileDescriptor wan = tapped("wanp");
    const packet::Mac peer_mac = {0x02, 0, 0, 0, 1, 2};
    packet::Mac lan_mac{};
    {
        ifreq request{};
        std::snprintf(request.ifr_name, sizeof request.ifr_name, "lan0");
        ASSERT_EQ(ioctl(lan.get(), SIOCGIFHWADDR, &request), 0);
        std::memcpy(lan_mac.data(), request.ifr_hwaddr.sa_data, lan_mac.size());
    }
    const Bytes frame = packet::eth(
        packet::ip4({.src = "10.1.0.10", .dst = "192.0.2.2"}, packet::icmp()), {.dst = lan_mac});
    const auto send_frame = [&] {
        ASSERT_EQ(send(lan.get(), frame.data(), frame.size(), 0),
                  static_cast<ssize_t>(frame.size()));
    };

    send_frame();
    EXPECT_EQ(count_frames(wan, peer_mac, 1), 0u) << "forwarded without an SPD";
    EXPECT_EQ(objects.counters(kLan)->drops[SP_DROP_no_policy], 1u);

    CompiledSpd spd;
    spd.class_count = 1;
    spd.destinations.push_back({prefix("192.0.2.0/24"), 0});
    spd.sources.push_back({0, prefix("10.1.0.0/24"), 0, 1});
    spd.entries.push_back({.entry = {.policy = PolicyId{0},
                                     .action = SpdAction::bypass,
                                     .source = prefix("10.1.0.0/24"),
                                     .destination = prefix("192.0.2.0/24")}});
    ASSERT_TRUE(objects.publish_spd(spd, {}, {}));
    for (int i = 0; i < 5; ++i) send_frame();
    EXPECT_EQ(count_frames(wan, peer_mac, 5), 5u);
    EXPECT_EQ(objects.counters(kLan)->totals.redirected, 5u);
    EXPECT_EQ(objects.counters(kWan)->totals.egress_sent, 5u);

    spd.entries[0].entry.action = SpdAction::protect;
    ASSERT_TRUE(objects.publish_spd(spd, {}, {}));
    send_frame();
    EXPECT_EQ(count_frames(wan, peer_mac, 1), 0u);
    EXPECT_EQ(objects.counters(kLan)->drops[SP_DROP_no_sa], 1u);
}

// Of those that were given last; the device does not forward, so that nothing else says so.
TEST_F(Loader, what_is_for_an_address_of_this_host_is_passed) {
    BpfObjects objects = make();
    PortSetup lan = setup(kLan);
    lan.mac = packet::Link{}.dst;
    ASSERT_TRUE(objects.add_port(lan));
    const auto outbound = compile_spd({});
    ASSERT_TRUE(objects.publish_spd(*outbound, *outbound, {}));
    ASSERT_TRUE(objects.attach_port(kLan));
    run("sysctl -qw net.ipv4.conf.lan0.forwarding=0");
    const FileDescriptor host = tapped("lanp");
    uint64_t sent = 0;
    const auto is_passed = [&](const char* destination) {
        const uint64_t before = objects.counters(kLan)->totals.passed;
        const Bytes frame =
            packet::eth(packet::ip4({.src = "10.1.0.10", .dst = destination}, packet::icmp()));
        EXPECT_EQ(send(host.get(), frame.data(), frame.size(), 0),
                  static_cast<ssize_t>(frame.size()));
        ++sent;
        for (int tries = 0; tries < 200; ++tries, usleep(10'000)) {
            if (objects.counters(kLan)->totals.rx_frames >= sent) break;
        }
        EXPECT_EQ(objects.counters(kLan)->totals.rx_frames, sent);
        return objects.counters(kLan)->totals.passed == before + 1;
    };
    const IpAddress first = *parse_ip_address("10.1.0.1");
    const IpAddress second = *parse_ip_address("10.1.0.2");
    EXPECT_FALSE(is_passed("10.1.0.1"));
    ASSERT_TRUE(objects.set_own_addresses(std::vector{first}));
    EXPECT_TRUE(is_passed("10.1.0.1"));
    EXPECT_FALSE(is_passed("10.1.0.2"));
    ASSERT_TRUE(objects.set_own_addresses(std::vector{first, second}));
    EXPECT_TRUE(is_passed("10.1.0.1"));
    EXPECT_TRUE(is_passed("10.1.0.2"));
    ASSERT_TRUE(objects.set_own_addresses(std::vector{second}));
    EXPECT_FALSE(is_passed("10.1.0.1"));
    EXPECT_TRUE(is_passed("10.1.0.2"));

    std::vector<IpAddress> many;
    for (uint32_t i = 0; i < SP_OWN_ADDRESSES_MAX; ++i) {
        many.push_back(first);
        many.back().bytes[1] = 2;
        many.back().bytes[2] = static_cast<uint8_t>(i >> 8);
        many.back().bytes[3] = static_cast<uint8_t>(i);
    }
    ASSERT_TRUE(objects.set_own_addresses(many)) << "those of before have made room";
    EXPECT_FALSE(is_passed("10.1.0.2"));
    many.push_back(second);
    const auto full = objects.set_own_addresses(many);
    ASSERT_FALSE(full);
    EXPECT_NE(full.error().find(std::to_string(SP_OWN_ADDRESSES_MAX)), std::string::npos)
        << full.error();
    many.erase(many.begin());
    EXPECT_TRUE(objects.set_own_addresses(many));
    EXPECT_TRUE(is_passed("10.1.0.2"));
}

TEST_F(Loader, limits_are_said) {
    BpfObjects objects = make();
    CompiledSpd spd;
    for (uint32_t i = 0; i < 65; ++i) {
        IpPrefix destination = prefix("10.0.0.0/24");
        destination.address.bytes[2] = static_cast<uint8_t>(i);
        spd.destinations.push_back({destination, i});
    }
    const auto too_many = objects.publish_spd(spd, {}, {});
    ASSERT_FALSE(too_many);
    EXPECT_NE(too_many.error().find("65 destination rows"), std::string::npos) << too_many.error();
    spd.destinations.pop_back();
    for (int i = 0; i < 4; ++i) {
        const auto fits = objects.publish_spd(spd, {}, {});
        EXPECT_TRUE(fits) << fits.error();
    }
    const std::vector<std::vector<WorkerId>> crowd = {
        std::vector<WorkerId>(SP_OWNERS_MAX + 1, WorkerId{0})};
    EXPECT_FALSE(objects.publish_spd(spd, {}, crowd));

    const IpAddress gateway = *parse_ip_address("192.0.2.1");
    for (uint32_t spi = 0; spi < 64; ++spi) {
        ASSERT_TRUE(objects.insert_owner(Spi{0x1000 + spi}, gateway, WorkerId{0}));
    }
    const auto full = objects.insert_owner(Spi{0x2000}, gateway, {});
    ASSERT_FALSE(full);
    EXPECT_NE(full.error().find("max_sas"), std::string::npos) << full.error();
    EXPECT_TRUE(objects.remove_owner(Spi{0x1000}, gateway));
    EXPECT_TRUE(objects.remove_owner(Spi{0x1000}, gateway)) << "nothing there is no error";
    EXPECT_TRUE(objects.insert_owner(Spi{0x2000}, gateway, {}));

    PortSetup port = setup(kWan);
    port.queues = SP_QUEUES_MAX + 1;
    EXPECT_FALSE(objects.add_port(port));
    port = setup(kWan);
    port.egress_deny.push_back(
        {.source = prefix("10.0.0.0/8"), .destination = prefix("2001:db8::/32"), .protocol = {}});
    EXPECT_FALSE(objects.add_port(port)) << "families mixed";
    EXPECT_TRUE(objects.add_port(setup(kWan))) << "the refused attempts left something behind";
    EXPECT_FALSE(objects.add_port(setup(kWan))) << "id taken";
    EXPECT_FALSE(objects.set_socket(kWan, QueueId{2}, WorkerId{0}, 0));
    EXPECT_FALSE(objects.attach_port(kLan)) << "never added";
    EXPECT_FALSE(objects.set_cpu_worker(SP_CPUS_MAX, WorkerId{0}));
}

TEST_F(Loader, probe_says_why) {
    const SaLookup lookup = probe_sa_lookup();
    EXPECT_FALSE(lookup.reason.empty());
    const bool in_kallsyms = std::system("grep -qw bpf_xdp_get_xfrm_state /proc/kallsyms") == 0;
    EXPECT_EQ(lookup.kfunc, in_kallsyms) << lookup.reason;
}

}  // namespace
}  // namespace sallyport::bpf_objects
