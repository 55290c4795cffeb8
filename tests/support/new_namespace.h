// SPDX-License-Identifier: Apache-2.0
#pragma once

// Commands, and network namespaces that go with the thread they are made on.

#include <gtest/gtest.h>
#include <sched.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>

namespace sallyport::test {

// What a shell command prints, errors too.
inline std::string output_of(const std::string& command) {
    std::string out;
    FILE* pipe = popen((command + " 2>&1").c_str(), "r");
    if (pipe == nullptr) return "popen failed";
    char chunk[4096];
    while (fgets(chunk, sizeof chunk, pipe) != nullptr) out += chunk;
    pclose(pipe);
    return out;
}

inline bool succeeds(const std::string& command) {
    return std::system((command + " >/dev/null 2>&1").c_str()) == 0;
}

// Runs `body` on a thread in a fresh network namespace, which goes with it. Needs root.
inline void in_new_namespace(const std::function<void()>& body) {
    std::thread([&] {
        ASSERT_EQ(unshare(CLONE_NEWNET), 0);
        body();
    }).join();
}

}  // namespace sallyport::test
