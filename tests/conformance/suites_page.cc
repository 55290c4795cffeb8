// SPDX-License-Identifier: Apache-2.0
#include "tests/conformance/suites_page.h"

namespace sallyport::test {

namespace {

constexpr std::string_view kHead =
    "<!-- SPDX-License-Identifier: Apache-2.0 -->\n"
    "<!-- Made by tests/conformance/suites_page from dataplane/crypto/suite.cc. Do not edit: "
    "change "
    "that and run it again. -->\n"
    "# Suites\n"
    "\n"
    "What workers encrypt and authenticate ESP with. The first column is what `suite` of an "
    "`[[sa]]` may be, and what\n"
    "`sallyportctl show sa` says. Where SAs come from the kernel, a worker takes those whose "
    "algorithm, ICV and key length are\n"
    "those of a row; `ip xfrm state` shows the algorithm by the kernel's name, then key and salt "
    "together, then the ICV in bits.\n"
    "\n"
    "Lengths are bytes. `key` and `key_file` have the hex digits of the key, then those of the "
    "salt.\n"
    "\n"
    "| suite | key | salt | hex digits of both | IV | ICV | in the kernel | ESP | RFC 8221 |\n"
    "|---|---|---|---|---|---|---|---|---|\n";

std::string row(const crypto::Suite& suite) {
    const auto cell = [](auto number) { return std::to_string(number) + " | "; };
    const crypto::SuiteForm& form = suite.form;
    return "| `" + std::string(suite.name) + "` | " + cell(suite.key_bytes) +
           cell(form.salt_bytes) + cell(2 * suite.key_material_bytes()) + cell(form.iv_bytes) +
           cell(form.icv_bytes) + "`" + std::string(suite.kernel.aead) + "`, " +
           cell(suite.icv_bits()) + std::string(suite.rfc) + " | " + std::string(suite.rfc_8221) +
           " |\n";
}

}  // namespace

std::string suites_page(std::span<const crypto::Suite> table) {
    std::string page(kHead);
    for (const crypto::Suite& suite : table) page += row(suite);
    return page;
}

}  // namespace sallyport::test
