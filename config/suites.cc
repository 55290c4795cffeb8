// SPDX-License-Identifier: Apache-2.0
#include "config/suites.h"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

namespace sallyport::config {

namespace {

// A word inside an algorithm's name and why nothing with that word is used.
struct Refusal {
    std::string_view word;
    std::string_view reason;
};

constexpr std::string_view kSmallBlock =
    "its 64-bit blocks repeat after a few gigabytes and give plaintext away";
constexpr std::string_view kDes = "a 56-bit key is found by trying them all (RFC 8221 5)";
constexpr std::string_view kNull =
    "without encryption and integrity anybody can read and forge packets";

// In order: "des-ede3" is 3DES.
constexpr std::array kRefused = {
    Refusal{"3des", kSmallBlock},
    Refusal{"tripledes", kSmallBlock},
    Refusal{"ede3", kSmallBlock},
    Refusal{"des", kDes},
    Refusal{"blowfish", kSmallBlock},
    Refusal{"cast", kSmallBlock},
    Refusal{"cast5", kSmallBlock},
    Refusal{"cast128", kSmallBlock},
    Refusal{"idea", kSmallBlock},
    Refusal{"rc2", kSmallBlock},
    Refusal{"rc4", "its key stream is biased"},
    Refusal{"arc4", "its key stream is biased"},
    Refusal{"md5", "collisions of MD5 are found in seconds (RFC 8221 6)"},
    Refusal{"none", kNull},
    Refusal{"null", kNull},
};

// Words of sound algorithms, and of names other tools give to ours.
constexpr std::array kLater = {
    std::string_view{"aes"},         std::string_view{"aes128"},
    std::string_view{"aes192"},      std::string_view{"aes256"},
    std::string_view{"chacha20"},    std::string_view{"chacha20poly1305"},
    std::string_view{"camellia"},    std::string_view{"camellia128"},
    std::string_view{"camellia256"}, std::string_view{"sha1"},
    std::string_view{"sha2"},        std::string_view{"sha256"},
    std::string_view{"sha384"},      std::string_view{"sha512"},
    std::string_view{"sm4"},
};

std::vector<std::string> words_of(std::string_view name) {
    std::vector<std::string> words(1);
    for (const char c : name) {
        if (c >= 'A' && c <= 'Z') {
            words.back() += static_cast<char>(c - 'A' + 'a');
        } else if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')) {
            words.back() += c;
        } else {
            words.emplace_back();
        }
    }
    return words;
}

}  // namespace

std::vector<std::string_view> suite_names(std::span<const crypto::Suite> suites) {
    std::vector<std::string_view> names;
    for (const crypto::Suite& suite : suites) names.push_back(suite.name);
    return names;
}

const crypto::Suite* read_suite(TableReader& table, std::string_view key,
                                std::span<const crypto::Suite> suites) {
    const auto name = table.string(key);
    if (!name) return nullptr;
    if (const crypto::Suite* suite = crypto::find_suite(*name, suites)) return suite;

    const std::vector<std::string_view> allowed = suite_names(suites);
    const auto words = words_of(*name);
    const auto has_word = [&](std::string_view word) {
        return std::ranges::find(words, word) != words.end();
    };
    for (const auto& refusal : kRefused) {
        if (!has_word(refusal.word)) continue;
        table.report(key, shown(*name) + " is refused: " + std::string(refusal.reason) + "; use " +
                              alternatives(allowed));
        return nullptr;
    }
    std::string text = shown(*name);
    const std::string_view meant = nearest(*name, allowed);
    if (!meant.empty()) {
        text += " is not known, did you mean '" + std::string(meant) + "'? Allowed are ";
    } else if (std::ranges::any_of(kLater, has_word)) {
        text += " is not supported by this version; use ";
    } else {
        text += " is not known: allowed are ";
    }
    table.report(key, text + alternatives(allowed));
    return nullptr;
}

}  // namespace sallyport::config
