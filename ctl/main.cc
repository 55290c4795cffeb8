// SPDX-License-Identifier: Apache-2.0
//
// sallyportctl: shows what the daemon is doing. Exit status: 0 done, 1 the daemon refused or cannot
// be reached, 2 wrong usage.

#include <algorithm>
#include <cstdio>
#include <exception>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "ctl/client.h"
#include "ctl/tables.h"

namespace {

using namespace sallyport;

constexpr char kUsage[] =
    "usage: sallyportctl [--socket PATH] show WHAT [--json] [--all]\n"
    "\n"
    "  status    versions, memory, and which fallbacks are in use and why\n"
    "  ports     frames by port, queue and worker\n"
    "  workers   frames and CPU time by worker\n"
    "  sa        security associations with their counters (never keys)\n"
    "  policy    the SPD in its order\n"
    "  drops     why packets were dropped, and where\n"
    "  connections  packets of the kernel's IPsec connections (policies with an if_id)\n"
    "\n"
    "  --json         print the daemon's answer as JSON\n"
    "  --all          show drops: also the reasons that did not occur\n"
    "  --socket PATH  the daemon's control_socket (default /run/sallyport/control.sock)\n";

struct Arguments {
    std::string socket = "/run/sallyport/control.sock";
    std::optional<rpc::Show> show;
    bool as_json = false;
    bool all = false;
    bool help = false;
};

// Empty: the error has been printed.
std::optional<Arguments> parse_arguments(std::span<char* const> words) {
    const auto wrong = [](const std::string& what) {
        std::fprintf(stderr, "error: %s\n\n%s", what.c_str(), kUsage);
        return std::nullopt;
    };
    Arguments out;
    for (size_t i = 1; i < words.size(); ++i) {
        const std::string_view word = words[i];
        if (word == "--help" || word == "-h") {
            out.help = true;
            return out;
        }
        if (word == "--json") {
            out.as_json = true;
        } else if (word == "--all") {
            out.all = true;
        } else if (word == "--socket") {
            if (++i == words.size()) return wrong("--socket needs a path");
            out.socket = words[i];
        } else if (word == "show" && !out.show) {
            if (++i == words.size()) return wrong("show what?");
            const auto found = std::ranges::find(rpc::kShowNames, std::string_view(words[i]));
            if (found == rpc::kShowNames.end()) {
                return wrong("cannot show '" + std::string(words[i]) + "'");
            }
            out.show = static_cast<rpc::Show>(found - rpc::kShowNames.begin());
        } else {
            return wrong("unknown argument '" + std::string(word) + "'");
        }
    }
    if (!out.show) return wrong("nothing to do");
    return out;
}

int run(const Arguments& arguments) {
    const auto result = ctl::ask(arguments.socket, {*arguments.show});
    if (!result) {
        std::fprintf(stderr, "error: %s\n", result.error().c_str());
        return 1;
    }
    const std::string text =
        arguments.as_json
            ? ctl::format_json(*result)
            : ctl::format_table(*arguments.show, *result,
                                arguments.all ? ctl::DropRows::all : ctl::DropRows::occurred);
    std::fputs(text.c_str(), stdout);
    return std::fflush(stdout) == 0 ? 0 : 1;
}

}  // namespace

int main(int count, char** words) {
    try {
        const auto arguments = parse_arguments({words, static_cast<size_t>(count)});
        if (!arguments) return 2;
        if (arguments->help) {
            std::fputs(kUsage, stdout);
            return 0;
        }
        return run(*arguments);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
