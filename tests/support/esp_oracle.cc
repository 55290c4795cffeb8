// SPDX-License-Identifier: Apache-2.0
#include "tests/support/esp_oracle.h"

#include <openssl/evp.h>

#include <cstdio>
#include <cstdlib>
#include <memory>

namespace sallyport::test {
namespace {

constexpr size_t kTagBytes = 16;
constexpr size_t kSaltBytes = 4;

struct ContextDeleter {
    void operator()(EVP_CIPHER_CTX* context) const { EVP_CIPHER_CTX_free(context); }
};
using Context = std::unique_ptr<EVP_CIPHER_CTX, ContextDeleter>;

const EVP_CIPHER* cipher_for(Algorithm algorithm, size_t key_bytes) {
    switch (algorithm) {
        case Algorithm::chacha20_poly1305:
            return EVP_chacha20_poly1305();
        case Algorithm::aes_ccm:
            if (key_bytes == 16) return EVP_aes_128_ccm();
            if (key_bytes == 32) return EVP_aes_256_ccm();
            break;
        case Algorithm::aes_gcm:
            if (key_bytes == 16) return EVP_aes_128_gcm();
            if (key_bytes == 24) return EVP_aes_192_gcm();
            if (key_bytes == 32) return EVP_aes_256_gcm();
            break;
    }
    std::fprintf(stderr, "no key of the algorithm has %zu bytes\n", key_bytes);
    std::abort();
}

const unsigned char* octets(std::span<const std::byte> bytes) {
    return reinterpret_cast<const unsigned char*>(bytes.data());
}
unsigned char* octets(Bytes& bytes) {
    return reinterpret_cast<unsigned char*>(bytes.data());
}

void must(int result) {
    if (result == 1) return;
    std::fprintf(stderr, "OpenSSL refuses what the oracle asks of it\n");
    std::abort();
}

struct EspParts {
    std::span<const std::byte> key;
    Bytes nonce;
    Bytes aad;
};

EspParts parts_of(const Bytes& key, bool esn, uint32_t sequence_high,
                  std::span<const std::byte> header_and_iv) {
    const std::span<const std::byte> all(key);
    EspParts parts{.key = all.first(all.size() - kSaltBytes), .nonce = {}, .aad = {}};
    append(parts.nonce, all.last(kSaltBytes));
    append(parts.nonce, header_and_iv.subspan(8, 8));
    append(parts.aad, header_and_iv.first(4));
    if (esn) {
        Bytes high(4);
        put32(high, 0, sequence_high);
        append(parts.aad, high);
    }
    append(parts.aad, header_and_iv.subspan(4, 4));
    return parts;
}

}  // namespace

Bytes aead_seal(Algorithm algorithm, std::span<const std::byte> key,
                std::span<const std::byte> nonce, std::span<const std::byte> aad,
                std::span<const std::byte> plaintext) {
    const Context context(EVP_CIPHER_CTX_new());
    must(EVP_EncryptInit_ex(context.get(), cipher_for(algorithm, key.size()), nullptr, nullptr,
                            nullptr));
    must(EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_SET_IVLEN, static_cast<int>(nonce.size()),
                             nullptr));
    // AES-CCM must know the lengths of tag and text beforehand.
    const bool is_ccm = algorithm == Algorithm::aes_ccm;
    if (is_ccm) {
        must(EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_SET_TAG, kTagBytes, nullptr));
    }
    must(EVP_EncryptInit_ex(context.get(), nullptr, nullptr, octets(key), octets(nonce)));
    int written = 0;
    if (is_ccm) {
        must(EVP_EncryptUpdate(context.get(), nullptr, &written, nullptr,
                               static_cast<int>(plaintext.size())));
    }
    if (!aad.empty()) {
        must(EVP_EncryptUpdate(context.get(), nullptr, &written, octets(aad),
                               static_cast<int>(aad.size())));
    }
    Bytes out(plaintext.size() + kTagBytes);
    if (!plaintext.empty()) {
        must(EVP_EncryptUpdate(context.get(), octets(out), &written, octets(plaintext),
                               static_cast<int>(plaintext.size())));
    }
    must(EVP_EncryptFinal_ex(context.get(), octets(out) + plaintext.size(), &written));
    must(EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_GET_TAG, kTagBytes,
                             octets(out) + plaintext.size()));
    return out;
}

Bytes gcm_seal(std::span<const std::byte> key, std::span<const std::byte> nonce,
               std::span<const std::byte> aad, std::span<const std::byte> plaintext) {
    return aead_seal(Algorithm::aes_gcm, key, nonce, aad, plaintext);
}

std::optional<Bytes> gcm_open(std::span<const std::byte> key, std::span<const std::byte> nonce,
                              std::span<const std::byte> aad,
                              std::span<const std::byte> ciphertext_and_tag) {
    if (ciphertext_and_tag.size() < kTagBytes) return {};
    const auto ciphertext = ciphertext_and_tag.first(ciphertext_and_tag.size() - kTagBytes);
    Bytes tag;
    append(tag, ciphertext_and_tag.last(kTagBytes));
    const Context context(EVP_CIPHER_CTX_new());
    must(EVP_DecryptInit_ex(context.get(), cipher_for(Algorithm::aes_gcm, key.size()), nullptr,
                            octets(key), octets(nonce)));
    int written = 0;
    if (!aad.empty()) {
        must(EVP_DecryptUpdate(context.get(), nullptr, &written, octets(aad),
                               static_cast<int>(aad.size())));
    }
    Bytes out(ciphertext.size());
    if (!ciphertext.empty()) {
        must(EVP_DecryptUpdate(context.get(), octets(out), &written, octets(ciphertext),
                               static_cast<int>(ciphertext.size())));
    }
    must(EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_GCM_SET_TAG, kTagBytes, octets(tag)));
    unsigned char none = 0;
    if (EVP_DecryptFinal_ex(context.get(), &none, &written) != 1) return {};
    return out;
}

Bytes esp_text(const Bytes& packet, uint8_t next_header, std::optional<uint8_t> pad_bytes,
               size_t tfc_bytes) {
    Bytes text = packet;
    text.resize(text.size() + tfc_bytes);
    const size_t needed = (4 - (text.size() + 2) % 4) % 4;
    const uint8_t pad = pad_bytes.value_or(static_cast<uint8_t>(needed));
    for (unsigned i = 1; i <= pad; ++i) text.push_back(static_cast<std::byte>(i));
    text.push_back(static_cast<std::byte>(pad));
    text.push_back(static_cast<std::byte>(next_header));
    return text;
}

Bytes esp_seal(const Bytes& key, bool esn, uint32_t spi, uint64_t sequence, uint64_t iv,
               const Bytes& text) {
    Bytes esp(16);
    put32(esp, 0, spi);
    put32(esp, 4, static_cast<uint32_t>(sequence));
    put32(esp, 8, static_cast<uint32_t>(iv >> 32));
    put32(esp, 12, static_cast<uint32_t>(iv));
    const EspParts parts = parts_of(key, esn, static_cast<uint32_t>(sequence >> 32), esp);
    append(esp, gcm_seal(parts.key, parts.nonce, parts.aad, text));
    return esp;
}

std::optional<Bytes> esp_open(const Bytes& key, bool esn, uint32_t sequence_high,
                              std::span<const std::byte> esp) {
    if (esp.size() < 16 + kTagBytes) return {};
    const EspParts parts = parts_of(key, esn, sequence_high, esp.first(16));
    return gcm_open(parts.key, parts.nonce, parts.aad, esp.subspan(16));
}

std::optional<OpenedText> read_text(const Bytes& text) {
    if (text.size() < 2) return {};
    const uint8_t pad_bytes = get8(text, text.size() - 2);
    if (size_t{pad_bytes} + 2 > text.size()) return {};
    const size_t content = text.size() - 2 - pad_bytes;
    for (size_t i = 0; i < pad_bytes; ++i) {
        if (get8(text, content + i) != i + 1) return {};
    }
    return OpenedText{.packet = Bytes(text.begin(), text.begin() + static_cast<ptrdiff_t>(content)),
                      .next_header = get8(text, text.size() - 1),
                      .pad_bytes = pad_bytes};
}

}  // namespace sallyport::test
