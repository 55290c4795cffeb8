// SPDX-License-Identifier: Apache-2.0
//
// sallyportd. Exit status: 0 stopped by SIGINT or SIGTERM, 1 failed at start or while running,
// 2 wrong configuration or usage.

#include <sys/prctl.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <iterator>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/config.h"
#include "control/daemon.h"
#include "control/log.h"
#include "control/open_path.h"
#include "control/sa/static/accept_key.h"
#include "control/startup/confinement.h"
#include "control/startup/policy_check.h"
#include "control/startup/port_modes.h"
#include "control/startup/ready_system.h"

namespace {

using namespace sallyport;

constexpr int kStopped = 0;
constexpr int kFailed = 1;
constexpr int kUsage = 2;
// The file is right, the system is not ready for it: EX_TEMPFAIL of sysexits, which the unit does
// not count among the mistakes that stay.
constexpr int kNotYet = 75;

constexpr char kUsageText[] =
    "usage: sallyportd -c FILE [--check] [--open] [--accept-key NAME[=SEQUENCE]]\n"
    "\n"
    "  -c, --config FILE   the configuration (TOML)\n"
    "  --check             validate it, also against this system (devices, CPUs), and end\n"
    "  --open              take away what an earlier run has left in the host (programs,\n"
    "                      settings, what blocks), so that it forwards as before the first\n"
    "                      start, and end\n"
    "  --accept-key NAME   start the sequence numbers of the outbound SA NAME, whose key was\n"
    "                      never used, at 1, and end; with =SEQUENCE at that number, which must\n"
    "                      be above everything ever sent with the key. May be given more than\n"
    "                      once.\n"
    "  --version\n"
    "\n"
    "Exit status: 0 done or stopped, 1 failed, 2 the file or the command line is wrong, 75 the\n"
    "file is right and the system is not ready for it: a device or a queue is missing. A start\n"
    "waits 30 s for these.\n";

struct Arguments {
    std::string config;
    bool check = false;
    bool open = false;
    std::vector<std::string> accept_keys;
};

// Empty: the exit status is in `status`.
std::optional<Arguments> parse_arguments(std::span<char* const> words, int& status) {
    const auto wrong = [&](const std::string& what) {
        std::fprintf(stderr, "error: %s\n\n%s", what.c_str(), kUsageText);
        status = kUsage;
        return std::nullopt;
    };
    Arguments out;
    for (size_t i = 1; i < words.size(); ++i) {
        const std::string_view word = words[i];
        if (word == "-h" || word == "--help") {
            std::fputs(kUsageText, stdout);
            status = kStopped;
            return std::nullopt;
        }
        if (word == "--version") {
            std::puts("sallyportd " SALLYPORT_VERSION);
            status = kStopped;
            return std::nullopt;
        }
        if (word == "--check") {
            out.check = true;
        } else if (word == "--open") {
            out.open = true;
        } else if (word == "-c" || word == "--config") {
            if (++i == words.size()) return wrong(std::string(word) + " needs a file");
            out.config = words[i];
        } else if (word == "--accept-key") {
            if (++i == words.size()) return wrong("--accept-key needs the name of an SA");
            out.accept_keys.emplace_back(words[i]);
        } else {
            return wrong("unknown argument '" + std::string(word) + "'");
        }
    }
    if (out.config.empty()) return wrong("-c FILE is missing");
    if (int{out.check} + int{out.open} + int{!out.accept_keys.empty()} > 1) {
        return wrong("--check, --open and --accept-key do different things: give one of them");
    }
    return out;
}

// Keys are in this process from the moment the configuration is read.
void keep_keys_inside() {
    prctl(PR_SET_DUMPABLE, 0);
    const rlimit none{.rlim_cur = 0, .rlim_max = 0};
    setrlimit(RLIMIT_CORE, &none);
}

void report_errors(const std::vector<config::Error>& errors) {
    for (const config::Error& error : errors) {
        std::fprintf(stderr, "error: %s\n", error.to_string().c_str());
    }
}

int run(const Arguments& arguments, control::Log& log) {
    const bool starts = !arguments.check && !arguments.open && arguments.accept_keys.empty();
    if (starts) {
        // Packet memory is locked in RAM; where we may not raise the limit, the kernel says so.
        const rlimit unlimited{.rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY};
        setrlimit(RLIMIT_MEMLOCK, &unlimited);
        if (const std::string why = control::confinement::keep_memory(); !why.empty()) {
            log.note("keys may be swapped out with the memory of this process: " + why);
        }
    }
    auto config = config::load(arguments.config);
    if (!config) {
        report_errors(config.error());
        return kUsage;
    }
    if (arguments.open) {
        const auto opened = control::open_kernel_path(*config, log);
        if (!opened) {
            log.error(opened.error());
            return kFailed;
        }
        log.info(*opened);
        return kStopped;
    }
    if (arguments.accept_keys.empty()) {
        const auto unfit = control::check_policies(*config);
        const auto check = [&] {
            auto wrong = config::check_against_system(*config);
            std::ranges::copy(unfit, std::back_inserter(wrong));
            std::ranges::copy(control::check_devices(*config), std::back_inserter(wrong));
            return wrong;
        };
        const auto wrong = arguments.check ? check() : control::wait_for_system(check, log);
        if (!wrong.empty()) {
            report_errors(wrong);
            return control::may_heal(wrong) ? kNotYet : kUsage;
        }
    }
    if (arguments.check) return kStopped;
    for (const std::string& argument : arguments.accept_keys) {
        const auto done = control::accept_key(*config, argument);
        if (!done) {
            log.error(done.error());
            return kFailed;
        }
        log.info(*done);
    }
    if (!arguments.accept_keys.empty()) return kStopped;

    control::Daemon daemon(std::move(*config), log);
    const auto ended = daemon.run();
    if (!ended) {
        log.error(ended.error());
        return kFailed;
    }
    return *ended ? kStopped : kFailed;
}

}  // namespace

int main(int count, char** words) {
    control::Log log;
    try {
        int status = kStopped;
        const auto arguments = parse_arguments({words, static_cast<size_t>(count)}, status);
        if (!arguments) return status;
        keep_keys_inside();
        std::signal(SIGPIPE, SIG_IGN);  // a client that has gone is an error value, not the end
        return run(*arguments, log);
    } catch (const std::exception& error) {
        log.error(std::string("unexpected: ") + error.what());
        return kFailed;
    }
}
