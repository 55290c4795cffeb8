// SPDX-License-Identifier: Apache-2.0
#include "ctl/arguments.h"

#include <algorithm>

namespace sallyport::ctl {

constexpr std::string_view kUsage =
    "usage: sallyportctl [--socket PATH] show WHAT [--json] [--all]\n"
    "\n"
    "  status         versions, memory, and which fallbacks are in use and why\n"
    "  ports          frames by port, queue and worker\n"
    "  workers        frames and CPU time by worker\n"
    "  sa             security associations with their counters (never keys)\n"
    "  policy         the SPD in its order\n"
    "  drops          why packets were dropped, and where\n"
    "  connections    packets of the kernel's IPsec connections (policies with an if_id)\n"
    "\n"
    "  --json         print the daemon's answer as JSON\n"
    "  --all          show drops: also the reasons that did not occur\n"
    "  --socket PATH  the daemon's control_socket (default /run/sallyport/control.sock)\n"
    "  --version\n";

namespace {

constexpr std::string_view kVersion = "sallyportctl " SALLYPORT_VERSION "\n";

bool asks_for_usage(std::string_view word) {
    return word == "--help" || word == "-h";
}

Arguments printing(std::string_view text) {
    Arguments out;
    out.only_print = text;
    return out;
}

}  // namespace

std::expected<Arguments, std::string> parse_arguments(std::span<const char* const> words) {
    Arguments out;
    for (size_t i = 1; i < words.size(); ++i) {
        const std::string_view word = words[i];
        if (asks_for_usage(word)) return printing(kUsage);
        if (word == "--version") return printing(kVersion);
        if (word == "--json") {
            out.as_json = true;
        } else if (word == "--all") {
            out.drop_rows = DropRows::all;
        } else if (word == "--socket") {
            if (++i == words.size()) return std::unexpected("--socket needs a path");
            out.socket = words[i];
        } else if (word == "show" && !out.show) {
            if (++i == words.size()) return std::unexpected("show what?");
            const std::string_view what = words[i];
            if (asks_for_usage(what)) return printing(kUsage);
            const auto found = std::ranges::find(rpc::kShowNames, what);
            if (found == rpc::kShowNames.end()) {
                return std::unexpected("cannot show '" + std::string(what) + "'");
            }
            out.show = static_cast<rpc::Show>(found - rpc::kShowNames.begin());
        } else {
            return std::unexpected("unknown argument '" + std::string(word) + "'");
        }
    }
    if (!out.show) return std::unexpected("nothing to do");
    return out;
}

}  // namespace sallyport::ctl
