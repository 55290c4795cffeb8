// SPDX-License-Identifier: Apache-2.0
#include "dataplane/crypto/jobs.h"

#include <cstdint>

#include "dataplane/base/secret_bytes.h"
#include "dataplane/crypto/octets.h"

namespace sallyport::crypto {

namespace {

constexpr size_t kRoundKeyBytes = 15 * 16;  // of the longest AES key
static_assert(kRoundKeyBytes <= kCcmKeyBlockBytes);

// What differs between the algorithms.
void name_algorithm(IMB_JOB& to, const AeadJob& from, bool seals) {
    to.enc_keys = from.key;
    to.dec_keys = from.key;
    switch (static_cast<JobsVariant>(from.form.variant)) {
        case kChaCha20Poly1305:
            to.cipher_mode = IMB_CIPHER_CHACHA20_POLY1305;
            to.hash_alg = IMB_AUTH_CHACHA20_POLY1305;
            to.chain_order = seals ? IMB_ORDER_CIPHER_HASH : IMB_ORDER_HASH_CIPHER;
            to.key_len_in_bytes = IMB_KEY_256_BYTES;
            to.u.CHACHA20_POLY1305.aad = from.aad;
            to.u.CHACHA20_POLY1305.aad_len_in_bytes = from.aad_bytes;
            to.u.CHACHA20_POLY1305.ctx = nullptr;
            return;
        case kCcm128:
        case kCcm256:
            // The ICV is that of the plaintext (RFC 4309 2): CBC-MAC comes first.
            to.cipher_mode = IMB_CIPHER_CCM;
            to.hash_alg = IMB_AUTH_AES_CCM;
            to.chain_order = seals ? IMB_ORDER_HASH_CIPHER : IMB_ORDER_CIPHER_HASH;
            to.key_len_in_bytes =
                from.form.variant == kCcm128 ? IMB_KEY_128_BYTES : IMB_KEY_256_BYTES;
            to.u.CCM.aad = from.aad;
            to.u.CCM.aad_len_in_bytes = from.aad_bytes;
            return;
    }
}

void fill(IMB_JOB& to, const AeadJob& from, bool seals, std::byte* icv) {
    // A salt of 3 bytes stands at the end of its 4.
    const size_t unused = kSaltBytesMax - from.form.salt_bytes;
    to.cipher_direction = seals ? IMB_DIR_ENCRYPT : IMB_DIR_DECRYPT;
    to.iv = octets(from.nonce + unused);
    to.iv_len_in_bytes = sizeof from.nonce - unused;
    to.src = octets(from.text);
    to.dst = octets(from.text);
    to.cipher_start_src_offset_in_bytes = 0;
    to.hash_start_src_offset_in_bytes = 0;
    to.msg_len_to_cipher_in_bytes = from.text_bytes;
    to.msg_len_to_hash_in_bytes = from.text_bytes;
    to.auth_tag_output = octets(icv);
    to.auth_tag_output_len_in_bytes = from.form.icv_bytes;
    name_algorithm(to, from, seals);
}

}  // namespace

void Jobs::seal(std::span<AeadJob* const> jobs) {
    for (const AeadJob* job : jobs) {
        fill(*IMB_GET_NEXT_JOB(&manager_), *job, true, job->icv);
        IMB_SUBMIT_JOB_NOCHECK(&manager_);
    }
    while (IMB_FLUSH_JOB(&manager_) != nullptr) {
    }
}

void Jobs::open(std::span<AeadJob* const> jobs) {
    for (size_t i = 0; i < jobs.size(); ++i) {
        fill(*IMB_GET_NEXT_JOB(&manager_), *jobs[i], false, computed_[i].data());
        IMB_SUBMIT_JOB_NOCHECK(&manager_);
    }
    while (IMB_FLUSH_JOB(&manager_) != nullptr) {
    }
    for (size_t i = 0; i < jobs.size(); ++i) judge(*jobs[i], computed_[i].data());
}

void Jobs::expand_key(JobsVariant variant, std::span<const std::byte> key, std::byte* block) const {
    // For decryption of blocks, which none of these do.
    alignas(16) std::byte unused[kRoundKeyBytes];
    switch (variant) {
        case kChaCha20Poly1305:
            std::memcpy(block, key.data(), key.size());
            return;
        case kCcm128:
            IMB_AES_KEYEXP_128(&manager_, key.data(), block, unused);
            break;
        case kCcm256:
            IMB_AES_KEYEXP_256(&manager_, key.data(), block, unused);
            break;
    }
    wipe(unused, sizeof unused);
}

}  // namespace sallyport::crypto
