// SPDX-License-Identifier: Apache-2.0
#include "config/values.h"

#include <net/if.h>
#include <netinet/in.h>

#include <algorithm>
#include <array>
#include <charconv>

namespace sallyport::config {

namespace {

constexpr std::array kProtocols = {
    Choice<uint8_t>{"tcp", IPPROTO_TCP},   Choice<uint8_t>{"udp", IPPROTO_UDP},
    Choice<uint8_t>{"icmp", IPPROTO_ICMP}, Choice<uint8_t>{"icmpv6", IPPROTO_ICMPV6},
    Choice<uint8_t>{"esp", IPPROTO_ESP},   Choice<uint8_t>{"sctp", IPPROTO_SCTP},
};

bool is_alphanumeric(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

bool is_printable(std::string_view text) {
    return std::ranges::all_of(text, [](char c) { return c > 0x20 && c < 0x7f; });
}

template <typename T>
std::optional<T> whole_number(std::string_view text) {
    T value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
    return value;
}

std::expected<IpPrefix, std::string> prefix_from(std::string_view text) {
    if (!is_printable(text) || looks_like_key(text) || text.size() > 64) {
        return std::unexpected(shown(text) + " is not an IPv4 or IPv6 prefix such as 10.1.0.0/16");
    }
    return parse_ip_prefix(text);
}

// Why `address` cannot be the end of a tunnel.
std::string outer_problem(const IpAddress& address) {
    const auto& bytes = address.bytes;
    if (address == IpAddress{.family = address.family}) return "is the unspecified address";
    if (address.family == Family::v4) {
        if (bytes[0] >= 224 && bytes[0] <= 239) return "is a multicast address";
        if (bytes[0] >= 240) return "is a reserved or broadcast address";
        if (bytes[0] == 0) return "is an address of 'this network' (0.0.0.0/8)";
        if (bytes[0] == 127) return "is a loopback address";
        return {};
    }
    if (bytes[0] == 0xff) return "is a multicast address";
    if (bytes[0] == 0xfe && (bytes[1] & 0xc0) == 0x80) {
        return "is a link-local address, which means nothing without a device";
    }
    if (address == *parse_ip_address("::1")) return "is a loopback address";
    static const IpPrefix kMapped = *parse_ip_prefix("::ffff:0:0/96");
    if (kMapped.contains(address)) return "is an IPv4-mapped address, which no packet carries";
    return {};
}

}  // namespace

std::string name_problem(std::string_view name) {
    const bool valid = !name.empty() && name.size() <= kNameBytesMax && is_alphanumeric(name[0]) &&
                       std::ranges::all_of(name, [](char c) {
                           return is_alphanumeric(c) || c == '.' || c == '_' || c == '-';
                       });
    if (valid) return {};
    return "a name is 1 to " + std::to_string(kNameBytesMax) +
           " letters, digits, '.', '_' or '-' and begins with a letter or digit";
}

std::string device_problem(std::string_view device) {
    const bool valid = !device.empty() && device.size() < IFNAMSIZ && device != "." &&
                       device != ".." && is_printable(device) &&
                       device.find_first_of("/:%") == std::string_view::npos;
    if (valid) return {};
    return "a device name has 1 to " + std::to_string(IFNAMSIZ - 1) +
           " printable characters without space, '/', ':' or '%'";
}

std::optional<std::string> read_name(TableReader& table, std::string_view key) {
    const auto text = table.string(key);
    if (!text) return std::nullopt;
    if (const std::string problem = name_problem(*text); !problem.empty()) {
        table.report(key, shown(*text) + " is no valid name: " + problem);
        return std::nullopt;
    }
    return std::string(*text);
}

std::optional<std::string> read_device(TableReader& table, std::string_view key) {
    const auto text = table.string(key);
    if (!text) return std::nullopt;
    if (const std::string problem = device_problem(*text); !problem.empty()) {
        table.report(key, shown(*text) + " cannot be a device: " + problem);
        return std::nullopt;
    }
    return std::string(*text);
}

std::vector<std::string> read_devices(TableReader& table, std::string_view key, size_t count_max) {
    const Node* node = table.node(key);
    if (node == nullptr) return {};
    if (node->kind != Node::Kind::array) {
        table.report_type(key, *node, "a list of device names such as [\"eth2\"]");
        return {};
    }
    if (node->elements.size() > count_max) {
        table.report(key, "names " + std::to_string(node->elements.size()) +
                              " devices: allowed are at most " + std::to_string(count_max));
        return {};
    }
    std::vector<std::string> devices;
    for (const Node& element : node->elements) {
        const std::string problem = element.kind == Node::Kind::string
                                        ? device_problem(element.text)
                                        : "every element must be a device name in quotes";
        if (!problem.empty()) {
            table.report(key, problem);
            return {};
        }
        if (std::ranges::find(devices, element.text) != devices.end()) {
            table.report(key, shown(element.text) + " stands there twice");
            return {};
        }
        devices.push_back(element.text);
    }
    return devices;
}

std::optional<std::filesystem::path> read_absolute_path(TableReader& table, std::string_view key,
                                                        size_t bytes_max) {
    const auto text = table.string(key);
    if (!text) return std::nullopt;
    const bool has_control = std::ranges::any_of(
        *text, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
    if (!text->starts_with('/') || has_control || text->size() > bytes_max) {
        table.report(key, shown(*text) + " is not usable: write an absolute path of at most " +
                              std::to_string(bytes_max) + " bytes");
        return std::nullopt;
    }
    return std::filesystem::path(*text);
}

std::optional<IpAddress> read_outer_address(TableReader& table, std::string_view key) {
    const auto text = table.string(key);
    if (!text) return std::nullopt;
    const auto parsed = is_printable(*text) && text->find('/') == std::string_view::npos
                            ? parse_ip_address(*text)
                            : std::unexpected(std::string());
    if (!parsed) {
        table.report(key, shown(*text) + " is not an IPv4 or IPv6 address such as 192.0.2.1");
        return std::nullopt;
    }
    if (const std::string problem = outer_problem(*parsed); !problem.empty()) {
        table.report(key, shown(*text) + " " + problem +
                              ": the outer header needs the address of one gateway");
        return std::nullopt;
    }
    return *parsed;
}

std::optional<IpPrefix> read_prefix(TableReader& table, std::string_view key) {
    const auto text = table.string(key);
    if (!text) return std::nullopt;
    auto prefix = prefix_from(*text);
    if (prefix) return *prefix;
    table.report(key, prefix.error());
    return std::nullopt;
}

std::vector<IpPrefix> read_prefixes(TableReader& table, std::string_view key) {
    const Node* value = table.node(key);
    if (value == nullptr) return {};
    const bool is_list = value->kind == Node::Kind::array;
    if (!is_list && value->kind != Node::Kind::string) {
        table.report_type(key, *value, "a prefix in quotes or a list of such");
        return {};
    }
    const std::span<const Node> nodes =
        is_list ? std::span<const Node>(value->elements) : std::span(value, 1);
    if (nodes.empty() || nodes.size() > kPrefixesMax) {
        table.report(key, "has " + std::to_string(nodes.size()) + " prefixes: allowed are 1 to " +
                              std::to_string(kPrefixesMax));
        return {};
    }
    std::vector<IpPrefix> prefixes;
    bool valid = true;
    for (const Node& node : nodes) {
        // A list may span lines: its errors point to the element.
        const auto report = [&](const std::string& text) {
            table.diagnostics().add(node.line,
                                    table.label() + " " + std::string(key) + ": " + text);
            valid = false;
        };
        if (node.kind != Node::Kind::string) {
            report("an element is " + std::string(kind_name(node.kind)) +
                   ", must be a prefix in quotes");
            continue;
        }
        const auto prefix = prefix_from(node.text);
        if (!prefix) {
            report(prefix.error());
        } else if (!prefixes.empty() && prefixes[0].address.family != prefix->address.family) {
            report(shown(node.text) +
                   " is of another family than the prefixes before it: write one policy for IPv4 "
                   "and one for IPv6");
        } else if (std::ranges::find(prefixes, *prefix) != prefixes.end()) {
            report(shown(node.text) + " stands there twice");
        } else {
            prefixes.push_back(*prefix);
        }
    }
    return valid ? prefixes : std::vector<IpPrefix>{};
}

std::optional<uint8_t> read_protocol(TableReader& table, std::string_view key) {
    const Node* value = table.node(key);
    if (value == nullptr) return std::nullopt;
    std::optional<int64_t> number;
    if (value->kind == Node::Kind::integer) {
        number = value->integer;
    } else if (value->kind == Node::Kind::string) {
        const auto named = std::ranges::find(kProtocols, value->text, &Choice<uint8_t>::word);
        if (named != kProtocols.end()) return named->value;
        number = whole_number<int64_t>(value->text);
    }
    if (number && *number >= 1 && *number <= 255) return static_cast<uint8_t>(*number);
    std::vector<std::string_view> words;
    for (const auto& protocol : kProtocols) words.push_back(protocol.word);
    table.report(key, (value->kind == Node::Kind::string ? shown(value->text) + " is" : "is") +
                          std::string(" no protocol: allowed are the numbers 1 to 255 and ") +
                          alternatives(words) + "; leave it out for any protocol");
    return std::nullopt;
}

bool has_ports(uint8_t protocol) {
    return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

std::optional<std::pair<uint16_t, uint16_t>> read_port_range(TableReader& table,
                                                             std::string_view key) {
    const Node* value = table.node(key);
    if (value == nullptr) return std::nullopt;
    std::optional<uint16_t> low;
    std::optional<uint16_t> high;
    if (value->kind == Node::Kind::integer) {
        if (value->integer >= 0 && value->integer <= UINT16_MAX) {
            low = static_cast<uint16_t>(value->integer);
            high = low;
        }
    } else if (value->kind == Node::Kind::string) {
        const std::string_view text = value->text;
        const size_t dash = text.find('-');
        low = whole_number<uint16_t>(text.substr(0, dash));
        high = dash == std::string_view::npos ? low : whole_number<uint16_t>(text.substr(dash + 1));
    } else {
        table.report_type(key, *value, "a port such as 25 or a range such as \"1000-2000\"");
        return std::nullopt;
    }
    if (!low || !high || *low > *high) {
        table.report(key,
                     (value->kind == Node::Kind::string ? shown(value->text) + " is" : "is") +
                         std::string(" no port or range: allowed are 0 to 65535, such as 25 or "
                                     "\"1000-2000\" with the lower one first"));
        return std::nullopt;
    }
    return std::pair(*low, *high);
}

}  // namespace sallyport::config
