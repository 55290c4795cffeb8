// SPDX-License-Identifier: Apache-2.0
#include "control/adoption/suites.h"

#include <algorithm>
#include <cctype>

namespace sallyport::control::adoption {

namespace {

bool has_algorithm(const crypto::Suite& suite, const xfrm::KernelSa& sa) {
    return sa.aead && sa.algorithm == suite.kernel.aead;
}

bool has_icv(const crypto::Suite& suite, const xfrm::KernelSa& sa) {
    return has_algorithm(suite, sa) && sa.icv_bits == suite.icv_bits();
}

bool is_suite(const crypto::Suite& suite, const xfrm::KernelSa& sa) {
    return has_icv(suite, sa) && sa.key.size() == suite.key_material_bytes();
}

const crypto::Suite* find_if(std::span<const crypto::Suite> table, const xfrm::KernelSa& sa,
                             bool (*holds)(const crypto::Suite&, const xfrm::KernelSa&)) {
    const auto found =
        std::ranges::find_if(table, [&](const crypto::Suite& suite) { return holds(suite, sa); });
    return found == table.end() ? nullptr : &*found;
}

}  // namespace

const crypto::Suite* suite_of(const xfrm::KernelSa& sa, std::span<const crypto::Suite> table) {
    return find_if(table, sa, is_suite);
}

std::string obstacle_of_cipher(const xfrm::KernelSa& sa, std::span<const crypto::Suite> table) {
    if (find_if(table, sa, has_algorithm) == nullptr) return "cipher " + sa.algorithm;
    if (find_if(table, sa, has_icv) == nullptr) {
        return "ICV of " + std::to_string(sa.icv_bits) + " bits";
    }
    const auto key = sa.key.bytes();
    std::byte any{};
    for (const std::byte byte : key) any |= byte;
    if (any == std::byte{}) return "its keys are hidden (lockdown)";
    if (suite_of(sa, table) == nullptr) return "key of " + std::to_string(key.size()) + " bytes";
    return {};
}

std::string shown_suite(const xfrm::KernelSa& sa, std::span<const crypto::Suite> table) {
    if (const crypto::Suite* suite = suite_of(sa, table)) return std::string(suite->name);
    const crypto::Suite* kin = find_if(table, sa, has_algorithm);
    if (kin == nullptr || sa.key.size() <= kin->form.salt_bytes) {
        return sa.algorithm.empty() ? "none" : sa.algorithm;
    }
    std::string name(kin->family);
    std::ranges::transform(name, name.begin(),
                           [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return name + "-" + std::to_string(sa.icv_bits / 8) + "-" +
           std::to_string((sa.key.size() - kin->form.salt_bytes) * 8);
}

}  // namespace sallyport::control::adoption
