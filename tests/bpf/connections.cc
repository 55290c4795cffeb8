// SPDX-License-Identifier: Apache-2.0
#include "tests/bpf/connections.h"

#include <arpa/inet.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace sallyport::packet {
namespace {

using Buffer = std::vector<uint8_t>;

void attribute(Buffer& out, int type, const Buffer& value) {
    nlattr header{};
    header.nla_type = static_cast<uint16_t>(type);
    header.nla_len = static_cast<uint16_t>(sizeof header + value.size());
    const auto* bytes = reinterpret_cast<const uint8_t*>(&header);
    out.insert(out.end(), bytes, bytes + sizeof header);
    out.insert(out.end(), value.begin(), value.end());
    out.resize((out.size() + NLA_ALIGNTO - 1) / NLA_ALIGNTO * NLA_ALIGNTO);
}

void nested(Buffer& out, int type, const Buffer& value) {
    attribute(out, type | NLA_F_NESTED, value);
}

Buffer be16(uint16_t value) {
    return {static_cast<uint8_t>(value >> 8), static_cast<uint8_t>(value)};
}
Buffer be32(uint32_t value) {
    return {static_cast<uint8_t>(value >> 24), static_cast<uint8_t>(value >> 16),
            static_cast<uint8_t>(value >> 8), static_cast<uint8_t>(value)};
}

bool is_v6(const std::string& address) {
    return address.find(':') != std::string::npos;
}
Buffer address_bytes(const std::string& text) {
    Buffer bytes(is_v6(text) ? 16 : 4);
    inet_pton(is_v6(text) ? AF_INET6 : AF_INET, text.c_str(), bytes.data());
    return bytes;
}

Buffer tuple(const std::string& source, const std::string& destination, uint8_t protocol,
             uint16_t source_port, uint16_t destination_port) {
    const bool v6 = is_v6(source);
    Buffer ip;
    attribute(ip, v6 ? CTA_IP_V6_SRC : CTA_IP_V4_SRC, address_bytes(source));
    attribute(ip, v6 ? CTA_IP_V6_DST : CTA_IP_V4_DST, address_bytes(destination));
    Buffer upper;
    attribute(upper, CTA_PROTO_NUM, {protocol});
    attribute(upper, CTA_PROTO_SRC_PORT, be16(source_port));
    attribute(upper, CTA_PROTO_DST_PORT, be16(destination_port));
    Buffer out;
    nested(out, CTA_TUPLE_IP, ip);
    nested(out, CTA_TUPLE_PROTO, upper);
    return out;
}

// The kernel's answer: 0 or an errno.
int ask(uint16_t type, uint16_t flags, uint8_t family, const Buffer& attributes) {
    struct {
        nlmsghdr header;
        nfgenmsg body;
    } head{};
    head.header.nlmsg_len = static_cast<uint32_t>(sizeof head + attributes.size());
    head.header.nlmsg_type = static_cast<uint16_t>(NFNL_SUBSYS_CTNETLINK << 8 | type);
    head.header.nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | NLM_F_ACK | flags);
    head.body.nfgen_family = family;
    Buffer message(sizeof head);
    std::memcpy(message.data(), &head, sizeof head);
    message.insert(message.end(), attributes.begin(), attributes.end());

    const int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
    if (fd < 0) return errno;
    alignas(nlmsghdr) char answer[4096];
    const bool sent = send(fd, message.data(), message.size(), 0) >= 0;
    const ssize_t size = sent ? recv(fd, answer, sizeof answer, 0) : -1;
    close(fd);
    if (size < static_cast<ssize_t>(sizeof(nlmsghdr) + sizeof(nlmsgerr))) return EIO;
    nlmsgerr error{};
    std::memcpy(&error, answer + sizeof(nlmsghdr), sizeof error);
    return -error.error;
}

void must(int error, const char* what) {
    if (error == 0) return;
    std::fprintf(stderr, "FATAL: %s: %s\n", what, std::strerror(error));
    std::exit(1);
}

}  // namespace

void set_connection(const Connection& c) {
    Buffer out;
    nested(out, CTA_TUPLE_ORIG,
           tuple(c.source, c.destination, c.protocol, c.source_port, c.destination_port));
    const uint8_t family = is_v6(c.source) ? AF_INET6 : AF_INET;
    const int gone = ask(IPCTNL_MSG_CT_DELETE, 0, family, out);
    if (gone != ENOENT) must(gone, "cannot delete a connection");
    nested(out, CTA_TUPLE_REPLY,
           tuple(c.destination, c.source, c.protocol, c.destination_port, c.source_port));
    attribute(out, CTA_STATUS, be32(c.status | IPS_CONFIRMED));
    attribute(out, CTA_TIMEOUT, be32(c.life_seconds));
    attribute(out, CTA_MARK, be32(c.mark));
    if (c.protocol == 6) {
        constexpr uint8_t kEstablished = 3;  // enum tcp_conntrack
        Buffer tcp;
        attribute(tcp, CTA_PROTOINFO_TCP_STATE, {kEstablished});
        Buffer info;
        nested(info, CTA_PROTOINFO_TCP, tcp);
        nested(out, CTA_PROTOINFO, info);
    }
    if (!c.translated_source.empty()) {  // the kernel changes the reply's tuple itself
        Buffer nat;
        attribute(nat, CTA_NAT_V4_MINIP, address_bytes(c.translated_source));
        attribute(nat, CTA_NAT_V4_MAXIP, address_bytes(c.translated_source));
        nested(out, CTA_NAT_SRC, nat);
    }
    must(ask(IPCTNL_MSG_CT_NEW, NLM_F_CREATE | NLM_F_EXCL, family, out),
         "cannot make a connection");
}

void forget_connections() {
    for (const uint8_t family : {uint8_t{AF_INET}, uint8_t{AF_INET6}}) {
        must(ask(IPCTNL_MSG_CT_DELETE, 0, family, {}), "cannot forget connections");
    }
}

}  // namespace sallyport::packet
