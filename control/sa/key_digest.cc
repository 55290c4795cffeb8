// SPDX-License-Identifier: Apache-2.0
#include "control/sa/key_digest.h"

#include <openssl/evp.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

namespace sallyport::control {

// libcrypto can fail only for want of memory.
Sha256 sha256(std::initializer_list<std::span<const std::byte>> parts) {
    static const EVP_MD* const algorithm = EVP_MD_fetch(nullptr, "SHA256", nullptr);  // once
    Sha256 out{};
    EVP_MD_CTX* context = EVP_MD_CTX_new();
    bool ok = context != nullptr && algorithm != nullptr &&
              EVP_DigestInit_ex(context, algorithm, nullptr) == 1;
    for (const auto part : parts) {
        ok = ok && EVP_DigestUpdate(context, part.data(), part.size()) == 1;
    }
    ok = ok && EVP_DigestFinal_ex(context, out.data(), nullptr) == 1;
    EVP_MD_CTX_free(context);
    if (!ok) std::abort();  // going on would name two keys alike
    return out;
}

std::string to_hex(std::span<const uint8_t> bytes) {
    constexpr std::string_view kDigits = "0123456789abcdef";
    std::string out;
    for (const uint8_t byte : bytes) {
        out += kDigits[byte >> 4];
        out += kDigits[byte & 15];
    }
    return out;
}

std::string KeyDigest::to_hex() const {
    return control::to_hex(bytes);
}

KeyDigest digest_of_key(std::span<const std::byte> key) {
    constexpr std::string_view kLabel = "sallyport sequence store: key name, version 1";
    const Sha256 whole = sha256({std::as_bytes(std::span(kLabel)), key});
    KeyDigest digest;
    std::copy_n(whole.begin(), digest.bytes.size(), digest.bytes.begin());
    return digest;
}

}  // namespace sallyport::control
