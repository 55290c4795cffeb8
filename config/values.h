// SPDX-License-Identifier: Apache-2.0
#pragma once

// Values that several sections share: names, devices, paths, addresses, protocols, port ranges.
// Like the calls of TableReader they report what is wrong and return nothing then.

#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "config/reader.h"
#include "dataplane/base/ip.h"

namespace sallyport::config {

// Longest name of a port, policy or SA.
inline constexpr size_t kNameBytesMax = 63;
// Longest list of prefixes of one policy and side.
inline constexpr size_t kPrefixesMax = 256;

// Empty when `name` can name a port, policy or SA, else what is allowed.
[[nodiscard]] std::string name_problem(std::string_view name);
// Empty when the kernel takes `device` as a device name, else what is allowed.
[[nodiscard]] std::string device_problem(std::string_view device);

std::optional<std::string> read_name(TableReader& table, std::string_view key);
std::optional<std::string> read_device(TableReader& table, std::string_view key);
// A list of devices, at most `count_max`, none twice.
std::vector<std::string> read_devices(TableReader& table, std::string_view key, size_t count_max);
// An absolute path of at most `bytes_max` bytes.
std::optional<std::filesystem::path> read_absolute_path(TableReader& table, std::string_view key,
                                                        size_t bytes_max);
// An address that can stand in an outer header: one host, on the wire.
std::optional<IpAddress> read_outer_address(TableReader& table, std::string_view key);
std::optional<IpPrefix> read_prefix(TableReader& table, std::string_view key);
// One prefix or a list; all of one family. Empty: absent or wrong.
std::vector<IpPrefix> read_prefixes(TableReader& table, std::string_view key);
// 1 .. 255 by name or number.
std::optional<uint8_t> read_protocol(TableReader& table, std::string_view key);
[[nodiscard]] bool has_ports(uint8_t protocol);
// "25", 25 or "1000-2000"; inclusive.
std::optional<std::pair<uint16_t, uint16_t>> read_port_range(TableReader& table,
                                                             std::string_view key);

}  // namespace sallyport::config
