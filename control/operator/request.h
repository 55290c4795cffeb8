// SPDX-License-Identifier: Apache-2.0
#pragma once

// The control protocol of docs/rpc.md: one line of JSON in, one line of JSON out. Pure functions,
// away from the socket, because the request line comes from outside (fuzzed by rpc_fuzz).

#include <array>
#include <boost/json/value.hpp>
#include <cstdint>
#include <expected>
#include <string>
#include <string_view>

namespace sallyport::rpc {

enum class Show : uint8_t { status, ports, workers, sa, policy, drops, connections };

inline constexpr std::array<std::string_view, 7> kShowNames = {
    "status", "ports", "workers", "sa", "policy", "drops", "connections"};

struct Request {
    Show show = Show::status;

    friend bool operator==(const Request&, const Request&) = default;
};

struct RequestError {
    std::string text;
    // True: the line is not even JSON, so the peer does not speak this protocol.
    bool close = false;
};

// `line` without its newline.
std::expected<Request, RequestError> parse_request(std::string_view line);
std::string encode_request(const Request& request);

// Lines with their newline.
std::string encode_result(boost::json::value result);
std::string encode_error(std::string_view text);

// Client side: the result, or the daemon's error.
std::expected<boost::json::value, std::string> parse_answer(std::string_view line);

}  // namespace sallyport::rpc
