// SPDX-License-Identifier: Apache-2.0
#include "dataplane/crypto/gcm.h"

#include <cstdint>

#include "dataplane/crypto/octets.h"

namespace sallyport::crypto {

static_assert(sizeof(gcm_key_data) <= kGcmKeyBlockBytes);
static_assert(alignof(gcm_key_data) == kKeyBlockAlignment,
              "ipsec-mb aligns its key structure only when LINUX is defined");

namespace {

const gcm_key_data* library_key(const std::byte* block) {
    return reinterpret_cast<const gcm_key_data*>(block);
}

// Brings to the cache what every packet needs first of the key: the round keys, which stand at the
// beginning, and the lowest hash powers, at the very end. A long packet needs more powers, but only
// later, and finds them by itself while it works: asking for all of them ahead costs more.
void prefetch_key(const std::byte* block, uint32_t text_bytes) {
    constexpr uint32_t kLines = kGcmKeyBlockBytes / 64;
    constexpr uint32_t kRoundKeyLines = 4;
    for (uint32_t i = 0; i < kRoundKeyLines; ++i) __builtin_prefetch(block + i * 64);
    __builtin_prefetch(block + (kLines - 1) * 64);
    if (text_bytes >= 64) __builtin_prefetch(block + (kLines - 2) * 64);
}

// Keys of coming packets are fetched this many packets ahead: far enough to arrive in time, near
// enough not to push out of the first-level cache what is still to be used.
constexpr size_t kPrefetchAhead = 3;

void prefetch_ahead(std::span<AeadJob* const> jobs, size_t i) {
    if (i + kPrefetchAhead >= jobs.size()) return;
    const AeadJob& coming = *jobs[i + kPrefetchAhead];
    if (coming.key != jobs[i]->key) prefetch_key(coming.key, coming.text_bytes);
}

}  // namespace

Gcm::Gcm(const IMB_MGR& manager)
    : seal_{manager.gcm128_enc, manager.gcm192_enc, manager.gcm256_enc},
      open_{manager.gcm128_dec, manager.gcm192_dec, manager.gcm256_dec},
      expand_{manager.gcm128_pre, manager.gcm192_pre, manager.gcm256_pre} {}

void Gcm::seal(std::span<AeadJob* const> jobs) {
    for (size_t i = 0; i < jobs.size(); ++i) {
        AeadJob* job = jobs[i];
        prefetch_ahead(jobs, i);
        seal_[job->form.variant](library_key(job->key), &context_, octets(job->text),
                                 octets(job->text), job->text_bytes, octets(job->nonce),
                                 octets(job->aad), job->aad_bytes, octets(job->icv), kIcvBytesMax);
    }
}

void Gcm::open(std::span<AeadJob* const> jobs) {
    for (size_t i = 0; i < jobs.size(); ++i) {
        AeadJob* job = jobs[i];
        prefetch_ahead(jobs, i);
        std::byte computed[kIcvBytesMax];
        open_[job->form.variant](library_key(job->key), &context_, octets(job->text),
                                 octets(job->text), job->text_bytes, octets(job->nonce),
                                 octets(job->aad), job->aad_bytes, octets(computed), kIcvBytesMax);
        judge(*job, computed);
    }
}

void Gcm::expand_key(GcmVariant variant, std::span<const std::byte> key, std::byte* block) const {
    expand_[variant](key.data(), reinterpret_cast<gcm_key_data*>(block));
}

}  // namespace sallyport::crypto
