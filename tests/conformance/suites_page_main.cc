// SPDX-License-Identifier: Apache-2.0
// suites_page               prints docs/suites.md
// suites_page --check FILE  compares it with FILE: exit status 1 if they differ

#include <cstdio>
#include <fstream>
#include <iterator>
#include <string_view>

#include "tests/conformance/suites_page.h"

int main(int argc, char** argv) {
    const auto table = sallyport::crypto::suites();
    const std::string page = sallyport::test::suites_page(table);
    if (argc == 1) {
        std::fputs(page.c_str(), stdout);
        return 0;
    }
    if (argc != 3 || std::string_view(argv[1]) != "--check") {
        std::fputs("usage: suites_page [--check FILE]\n", stderr);
        return 2;
    }
    std::ifstream file(argv[2]);
    const std::string found{std::istreambuf_iterator(file), {}};
    std::printf("%zu suites\n", table.size());
    if (found == page) return 0;
    std::fprintf(stderr, "%s is not what suites_page prints: run it again\n", argv[2]);
    return 1;
}
