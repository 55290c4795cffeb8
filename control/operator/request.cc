// SPDX-License-Identifier: Apache-2.0
#include "control/operator/request.h"

#include <algorithm>
#include <boost/json.hpp>

namespace sallyport::rpc {

namespace json = boost::json;

namespace {

constexpr std::string_view kShowHelp =
    "show takes status, ports, workers, sa, policy, drops or connections";

// Enough of the peer's own words to recognise them, never a whole line of them.
std::string quote(std::string_view text) {
    constexpr size_t kQuotedBytesMax = 40;
    std::string out = "'";
    for (const char c : text.substr(0, kQuotedBytesMax)) {
        const bool printable = c >= ' ' && c <= '~';
        out += printable ? c : '?';
    }
    return out + (text.size() > kQuotedBytesMax ? "...'" : "'");
}

}  // namespace

std::expected<Request, RequestError> parse_request(std::string_view line) {
    json::error_code error;
    json::parse_options options;
    options.max_depth = 8;
    const json::value value = json::parse(json::string_view(line.data(), line.size()), error,
                                          json::storage_ptr{}, options);
    if (error) {
        return std::unexpected(RequestError{
            "the request is not one line of JSON, such as {\"show\": \"status\"}", true});
    }
    const json::object* object = value.if_object();
    if (object == nullptr || object->size() != 1 || object->begin()->key() != "show") {
        return std::unexpected(RequestError{
            "unknown request: it has one member, such as {\"show\": \"status\"}", false});
    }
    const json::string* what = object->begin()->value().if_string();
    if (what == nullptr) return std::unexpected(RequestError{std::string(kShowHelp), false});
    const std::string_view name(what->data(), what->size());
    const auto found = std::ranges::find(kShowNames, name);
    if (found == kShowNames.end()) {
        return std::unexpected(
            RequestError{"unknown request " + quote(name) + ": " + std::string(kShowHelp), false});
    }
    return Request{static_cast<Show>(found - kShowNames.begin())};
}

std::string encode_request(const Request& request) {
    const std::string_view name = kShowNames[static_cast<size_t>(request.show)];
    return json::serialize(json::object{{"show", json::string_view(name.data(), name.size())}}) +
           "\n";
}

std::string encode_result(json::value result) {
    return json::serialize(json::object{{"ok", true}, {"result", std::move(result)}}) + "\n";
}

std::string encode_error(std::string_view text) {
    return json::serialize(json::object{{"ok", false},
                                        {"error", json::string_view(text.data(), text.size())}}) +
           "\n";
}

std::expected<json::value, std::string> parse_answer(std::string_view line) {
    json::error_code error;
    json::value value = json::parse(json::string_view(line.data(), line.size()), error);
    const json::object* object = error ? nullptr : value.if_object();
    const json::value* ok = object == nullptr ? nullptr : object->if_contains("ok");
    if (ok == nullptr || !ok->is_bool()) {
        return std::unexpected(
            "what answers on this socket is not sallyportd: its answer is not "
            "understood");
    }
    if (!ok->get_bool()) {
        const json::value* text = object->if_contains("error");
        if (text == nullptr || !text->is_string()) {
            return std::unexpected("the daemon refused and did not say why");
        }
        return std::unexpected(std::string(text->get_string().c_str()));
    }
    const json::value* result = object->if_contains("result");
    if (result == nullptr) return std::unexpected("the daemon's answer has no result");
    return *result;
}

}  // namespace sallyport::rpc
