// SPDX-License-Identifier: Apache-2.0
// The layouts that clang gave the BPF programs are those that g++ gives the daemon.

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <set>

#include "bpf/abi.h"
#include "bpf/losses.h"
#include "bpf/lost.h"
#include "bpf/next_hop.h"
#include "control/bpf_objects/program_object.h"

namespace sallyport::bpf_objects {
namespace {

struct Member {
    const char* structure;
    const char* name;
    size_t offset;
    size_t bytes;
};

#define SP_MEMBER(structure, member)                                                \
    Member {                                                                        \
        #structure, #member, offsetof(structure, member), sizeof(structure::member) \
    }

const Member kMembers[] = {
#define SP_PORT_COUNTER(name) SP_MEMBER(sp_port_counters, name),
    SP_PORT_COUNTERS(SP_PORT_COUNTER)
#undef SP_PORT_COUNTER
        SP_MEMBER(sp_spread_counters, handed_over),
    SP_MEMBER(sp_spread_counters, taken),
    SP_MEMBER(sp_conntrack_counters, established),
    SP_MEMBER(sp_conntrack_counters, to_kernel),
    SP_MEMBER(sp_conntrack_counters, refused),
    SP_MEMBER(sp_owner_key, spi),
    SP_MEMBER(sp_owner_key, family),
    SP_MEMBER(sp_owner_key, protocol),
    SP_MEMBER(sp_owner_key, pad),
    SP_MEMBER(sp_owner_key, daddr),
    SP_MEMBER(sp_owner, worker),
    SP_MEMBER(sp_owner, pad),
    SP_MEMBER(sp_lpm_key, prefix_bits),
    SP_MEMBER(sp_lpm_key, table),
    SP_MEMBER(sp_lpm_key, address),
    SP_MEMBER(sp_spd_class, id),
    SP_MEMBER(sp_spd_class, prefix_bits),
    SP_MEMBER(sp_spd_class, order_above),
    SP_MEMBER(sp_spd_cell, first),
    SP_MEMBER(sp_spd_cell, count),
    SP_MEMBER(sp_spd_entry, policy),
    SP_MEMBER(sp_spd_entry, action),
    SP_MEMBER(sp_spd_entry, protocol),
    SP_MEMBER(sp_spd_entry, has_ports),
    SP_MEMBER(sp_spd_entry, owner_count),
    SP_MEMBER(sp_spd_entry, src_port_lo),
    SP_MEMBER(sp_spd_entry, src_port_hi),
    SP_MEMBER(sp_spd_entry, dst_port_lo),
    SP_MEMBER(sp_spd_entry, dst_port_hi),
    SP_MEMBER(sp_spd_entry, owners),
    SP_MEMBER(sp_spd_entry, ct_mark),
    SP_MEMBER(sp_spd_entry, ct_mark_mask),
    SP_MEMBER(sp_spd_entry, if_id),
    SP_MEMBER(sp_spd_entry, order),
    SP_MEMBER(sp_if_id_counters, in_packets),
    SP_MEMBER(sp_if_id_counters, in_bytes),
    SP_MEMBER(sp_if_id_counters, in_dropped),
    SP_MEMBER(sp_if_id_counters, out_packets),
    SP_MEMBER(sp_if_id_counters, out_bytes),
    SP_MEMBER(sp_spd_active, generation),
    SP_MEMBER(sp_spd_active, enabled),
    SP_MEMBER(sp_spd_active, bypass_until_ns),
    SP_MEMBER(sp_egress_rule, family),
    SP_MEMBER(sp_egress_rule, protocol),
    SP_MEMBER(sp_egress_rule, src_bits),
    SP_MEMBER(sp_egress_rule, dst_bits),
    SP_MEMBER(sp_egress_rule, dst_port_lo),
    SP_MEMBER(sp_egress_rule, dst_port_hi),
    SP_MEMBER(sp_egress_rule, src),
    SP_MEMBER(sp_egress_rule, dst),
    SP_MEMBER(sp_port_info, ifindex),
    SP_MEMBER(sp_port_info, mtu),
    SP_MEMBER(sp_port_info, role),
    SP_MEMBER(sp_port_info, rule_count),
    SP_MEMBER(sp_port_info, conntrack_in),
    SP_MEMBER(sp_port_info, conntrack_out),
    SP_MEMBER(sp_port_info, mac),
    SP_MEMBER(sp_own_address, family),
    SP_MEMBER(sp_own_address, address),
    SP_MEMBER(sp_tunables, port),
    SP_MEMBER(sp_tunables, queues),
    SP_MEMBER(sp_tunables, workers),
    SP_MEMBER(sp_tunables, use_kfunc),
    SP_MEMBER(sp_tunables, punt_unknown_spi),
    SP_MEMBER(sp_tunables, register_mode),
    SP_MEMBER(sp_tunables, conntrack),
    SP_MEMBER(sp_tunables, ct_marks),
    SP_MEMBER(sp_tunables, ct_refresh),
    SP_MEMBER(sp_tunables, bypass_cpu_count),
    SP_MEMBER(sp_tunables, bypass_cpus),
    SP_MEMBER(sp_next_hop, ifindex),
    SP_MEMBER(sp_next_hop, family),
    SP_MEMBER(sp_next_hop, pad),
    SP_MEMBER(sp_next_hop, address),
    SP_MEMBER(sp_unresolved, since_ns),
    SP_MEMBER(sp_unresolved, waiting),
    SP_MEMBER(sp_unresolved, waiting_bytes),
    SP_MEMBER(sp_loss_device, port),
    SP_MEMBER(sp_loss_device, netns_inode),
    SP_MEMBER(sp_loss_device, generic),
    SP_MEMBER(sp_loss_key, port),
    SP_MEMBER(sp_loss_key, drop),
    SP_MEMBER(sp_loss_key, reason),
    SP_MEMBER(sp_lost_setup, netns),
    SP_MEMBER(sp_lost_setup, tx_ports),
};

const std::pair<const char*, size_t> kSizes[] = {
    {"sp_port_counters", sizeof(sp_port_counters)},
    {"sp_spread_counters", sizeof(sp_spread_counters)},
    {"sp_conntrack_counters", sizeof(sp_conntrack_counters)},
    {"sp_owner_key", sizeof(sp_owner_key)},
    {"sp_owner", sizeof(sp_owner)},
    {"sp_lpm_key", sizeof(sp_lpm_key)},
    {"sp_spd_class", sizeof(sp_spd_class)},
    {"sp_spd_cell", sizeof(sp_spd_cell)},
    {"sp_spd_entry", sizeof(sp_spd_entry)},
    {"sp_if_id_counters", sizeof(sp_if_id_counters)},
    {"sp_spd_active", sizeof(sp_spd_active)},
    {"sp_egress_rule", sizeof(sp_egress_rule)},
    {"sp_port_info", sizeof(sp_port_info)},
    {"sp_own_address", sizeof(sp_own_address)},
    {"sp_tunables", sizeof(sp_tunables)},
    {"sp_next_hop", sizeof(sp_next_hop)},
    {"sp_unresolved", sizeof(sp_unresolved)},
    {"sp_loss_device", sizeof(sp_loss_device)},
    {"sp_loss_key", sizeof(sp_loss_key)},
    {"sp_lost_setup", sizeof(sp_lost_setup)},
};

TEST(Abi, layouts_agree) {
    std::set<std::string> seen;
    for (const Program program : kAllPrograms) {
        SCOPED_TRACE(program_name(program));
        const auto bytes = program_bytes(program);
        const ObjectHandle object(bpf_object__open_mem(bytes.data(), bytes.size(), nullptr));
        ASSERT_NE(object, nullptr);
        const btf* types = bpf_object__btf(object.get());
        ASSERT_NE(types, nullptr);
        for (const auto& [name, size] : kSizes) {
            SCOPED_TRACE(name);
            const int id = btf__find_by_name_kind(types, name, BTF_KIND_STRUCT);
            if (id < 0) continue;  // this program does not use it
            seen.insert(name);
            const btf_type* type = btf__type_by_id(types, static_cast<uint32_t>(id));
            EXPECT_EQ(type->size, size);
            size_t members = 0;
            for (const Member& member : kMembers) {
                if (std::string_view(member.structure) != name) continue;
                ASSERT_LT(members, btf_vlen(type)) << member.name;
                const btf_member* in_btf = btf_members(type) + members;
                EXPECT_STREQ(btf__name_by_offset(types, in_btf->name_off), member.name);
                EXPECT_EQ(in_btf->offset, member.offset * 8) << member.name;
                EXPECT_EQ(btf__resolve_size(types, in_btf->type),
                          static_cast<int64_t>(member.bytes))
                    << member.name;
                ++members;
            }
            EXPECT_EQ(members, btf_vlen(type)) << "the test does not name all members";
        }
    }
    EXPECT_EQ(seen.size(), std::size(kSizes)) << "no program uses one of the structures";
}

// Sizes of keys and values are those of the structures.
TEST(Abi, maps_hold_the_structures) {
    const std::map<std::string, std::pair<size_t, size_t>> expected = {
        {"port_counters", {4, sizeof(sp_port_counters)}},
        {"drop_counters", {4, 8}},
        {"steer_counters", {4, 8}},
        {"port_info", {4, sizeof(sp_port_info)}},
        {"egress_rules", {4, sizeof(sp_egress_rule)}},
        {"owner_map", {sizeof(sp_owner_key), sizeof(sp_owner)}},
        {"cpu_worker", {4, 4}},
        {"spd_dst", {sizeof(sp_lpm_key), sizeof(sp_spd_class)}},
        {"spd_src", {sizeof(sp_lpm_key), sizeof(sp_spd_cell)}},
        {"spd_entries", {4, sizeof(sp_spd_entry)}},
        {"spd_active", {4, sizeof(sp_spd_active)}},
        {"port_by_ifindex", {4, 4}},
        {"egress_verdicts", {4, 8}},
        {"lost_setup", {4, sizeof(sp_lost_setup)}},
        {"partial_checksums", {4, 8}},
        {"loss_devices", {4, sizeof(sp_loss_device)}},
        {"kernel_losses_by_reason", {sizeof(sp_loss_key), 8}},
        {"own_addresses", {sizeof(sp_own_address), 1}},
        {"unresolved_hops", {sizeof(sp_next_hop), sizeof(sp_unresolved)}},
        {"if_id_counters", {4, sizeof(sp_if_id_counters)}},
        {"tx_ports", {4, sizeof(bpf_devmap_val)}},
        {"xsks", {4, 4}},
        {"conntrack_counters", {4, sizeof(sp_conntrack_counters)}},
        {"spread_counters", {4, sizeof(sp_spread_counters)}},
        {"bypass_queues", {4, sizeof(bpf_cpumap_val)}},
    };
    std::set<std::string> seen;
    for (const Program program : kAllPrograms) {
        const auto bytes = program_bytes(program);
        const ObjectHandle object(bpf_object__open_mem(bytes.data(), bytes.size(), nullptr));
        ASSERT_NE(object, nullptr);
        const bpf_map* map = nullptr;
        bpf_object__for_each_map(map, object.get()) {
            if (bpf_map__is_internal(map)) continue;
            const std::string name = bpf_map__name(map);
            SCOPED_TRACE(name);
            ASSERT_TRUE(expected.contains(name));
            EXPECT_EQ(bpf_map__key_size(map), expected.at(name).first);
            EXPECT_EQ(bpf_map__value_size(map), expected.at(name).second);
            seen.insert(name);
        }
    }
    EXPECT_EQ(seen.size(), expected.size());
}

}  // namespace
}  // namespace sallyport::bpf_objects
