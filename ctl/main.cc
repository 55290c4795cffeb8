// SPDX-License-Identifier: Apache-2.0
//
// sallyportctl: shows what the daemon is doing. Exit status: 0 done, 1 the daemon refused or cannot
// be reached, 2 wrong usage.

#include <cstdio>
#include <exception>
#include <string>
#include <string_view>

#include "ctl/arguments.h"
#include "ctl/client.h"
#include "ctl/tables.h"

namespace {

using namespace sallyport;

int print(std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    return std::fflush(stdout) == 0 ? 0 : 1;
}

int run(const ctl::Arguments& arguments) {
    if (!arguments.only_print.empty()) return print(arguments.only_print);
    const auto result = ctl::ask(arguments.socket, {*arguments.show});
    if (!result) {
        std::fprintf(stderr, "error: %s\n", result.error().c_str());
        return 1;
    }
    return print(arguments.as_json
                     ? ctl::format_json(*result)
                     : ctl::format_table(*arguments.show, *result, arguments.drop_rows));
}

}  // namespace

int main(int count, char** words) {
    try {
        const auto arguments = ctl::parse_arguments({words, static_cast<size_t>(count)});
        if (!arguments) {
            std::string text = "error: " + arguments.error() + "\n\n";
            std::fputs(text.append(ctl::kUsage).c_str(), stderr);
            return 2;
        }
        return run(*arguments);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
