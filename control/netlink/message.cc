// SPDX-License-Identifier: Apache-2.0
#include "control/netlink/message.h"

#include <cerrno>
#include <cstdlib>

namespace sallyport::netlink {

namespace {

// Numbers of errors end there (MAX_ERRNO of the kernel).
constexpr int kErrnoMax = 4095;
// Types without the NLA_F_ flags; NLA_TYPE_MASK is an int.
constexpr size_t kTypeMask = 0x3fff;

}  // namespace

std::byte* RequestBuffer::extend(size_t count) {
    // A bound that encode functions cannot reach: the largest state is below 1 KiB.
    if (count > kCapacity - size_) std::abort();
    std::byte* out = bytes_.data() + size_;
    size_ += count;
    return out;
}

Writer::Writer(uint16_t type, unsigned flags, uint32_t sequence) {
    put(nlmsghdr{.nlmsg_len = 0,
                 .nlmsg_type = type,
                 .nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | flags),
                 .nlmsg_seq = sequence,
                 .nlmsg_pid = 0});
}

void Writer::append(Bytes value) {
    std::ranges::copy(value, buffer_.extend(align4(value.size())));
    set_length();
}

void Writer::attribute_of(uint16_t type, Bytes head, Bytes tail) {
    const size_t bytes = sizeof(nlattr) + head.size() + tail.size();
    const nlattr header{.nla_len = static_cast<uint16_t>(bytes), .nla_type = type};
    std::byte* out = buffer_.extend(align4(bytes));
    std::memcpy(out, &header, sizeof header);
    std::ranges::copy(head, out + sizeof header);
    std::ranges::copy(tail, out + sizeof header + head.size());
    set_length();
}

size_t Writer::begin(uint16_t type) {
    const size_t begun = buffer_.size();
    flag(type);
    return begun;
}

void Writer::end(size_t begun) {
    const auto bytes = static_cast<uint16_t>(buffer_.size() - begun);
    std::memcpy(buffer_.data() + begun, &bytes, sizeof bytes);
}

void Writer::set_length() {
    const auto bytes = static_cast<uint32_t>(buffer_.size());
    std::memcpy(buffer_.data(), &bytes, sizeof bytes);
}

void sign_request(RequestBuffer& request, uint32_t port) {
    std::memcpy(request.data() + offsetof(nlmsghdr, nlmsg_pid), &port, sizeof port);
}

std::expected<std::optional<Message>, std::string> next_message(Bytes& rest) {
    if (rest.empty()) return std::nullopt;
    const auto header = peek<nlmsghdr>(rest);
    if (!header || header->nlmsg_len < sizeof(nlmsghdr) || header->nlmsg_len > rest.size()) {
        return std::unexpected("a netlink message is longer than what was received");
    }
    Message message{
        .type = header->nlmsg_type,
        .flags = header->nlmsg_flags,
        .sequence = header->nlmsg_seq,
        .port = header->nlmsg_pid,
        .payload = rest.subspan(sizeof(nlmsghdr), header->nlmsg_len - sizeof(nlmsghdr))};
    rest = rest.subspan(std::min(align4(header->nlmsg_len), rest.size()));
    return message;
}

std::string text_of(Bytes value) {
    std::string out;
    for (const std::byte b : value) {
        if (b == std::byte{0}) break;
        const auto c = static_cast<char>(b);
        out += c >= ' ' && c <= '~' ? c : '?';
    }
    return out;
}

bool Attributes::parse(Bytes bytes) {
    while (!bytes.empty()) {
        const auto header = peek<nlattr>(bytes);
        if (!header || header->nla_len < sizeof(nlattr) || header->nla_len > bytes.size()) {
            return false;
        }
        const size_t type = header->nla_type & kTypeMask;
        if (type < kTypes) {
            values_[type] = bytes.subspan(sizeof(nlattr), header->nla_len - sizeof(nlattr));
            present_[type] = true;
        } else {
            beyond_ = true;
        }
        bytes = bytes.subspan(std::min(align4(header->nla_len), bytes.size()));
    }
    return true;
}

bool Attributes::only(std::initializer_list<size_t> types) const {
    if (beyond_) return false;
    for (size_t type = 0; type < kTypes; ++type) {
        if (present_[type] && std::ranges::find(types, type) == types.end()) return false;
    }
    return true;
}

int decode_dump_end(Bytes payload) {
    const auto error = peek<int32_t>(payload);
    if (!error || *error >= 0) return 0;  // old kernels say nothing
    return *error >= -kErrnoMax ? -*error : EPROTO;
}

std::expected<Acknowledgement, std::string> decode_acknowledgement(const Message& message) {
    const auto body = peek<nlmsgerr>(message.payload);
    if (!body) return std::unexpected("a netlink acknowledgement is too short");
    Acknowledgement out;
    out.number = body->error <= 0 && body->error >= -kErrnoMax ? -body->error : EPROTO;
    if ((message.flags & NLM_F_ACK_TLVS) == 0) return out;
    // Behind the error stands our request, whole unless capped, then the kernel's attributes.
    size_t offset = sizeof(nlmsgerr);
    if ((message.flags & NLM_F_CAPPED) == 0) {
        if (body->msg.nlmsg_len < sizeof(nlmsghdr)) return out;
        offset += align4(body->msg.nlmsg_len - sizeof(nlmsghdr));
    }
    if (offset > message.payload.size()) {
        return std::unexpected("a netlink acknowledgement quotes more than it holds");
    }
    Attributes attributes;
    if (!attributes.parse(message.payload.subspan(offset))) {
        return std::unexpected("an attribute of an acknowledgement is too long");
    }
    out.text = text_of(attributes.value(NLMSGERR_ATTR_MSG));
    return out;
}

}  // namespace sallyport::netlink
