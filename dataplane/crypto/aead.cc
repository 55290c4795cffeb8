// SPDX-License-Identifier: Apache-2.0
#include "dataplane/crypto/aead.h"

#include <intel-ipsec-mb.h>

#include <cstring>

namespace sallyport::crypto {

static_assert(sizeof(gcm_key_data) <= sizeof(AeadKey));
static_assert(alignof(gcm_key_data) == alignof(AeadKey),
              "ipsec-mb aligns its key structure only when LINUX is defined");

namespace {

struct ManagerDeleter {
    void operator()(IMB_MGR* manager) const { free_mb_mgr(manager); }
};

gcm_key_data* library_key(AeadKey& key) {
    return reinterpret_cast<gcm_key_data*>(key.expanded);
}
const gcm_key_data* library_key(const AeadKey& key) {
    return reinterpret_cast<const gcm_key_data*>(key.expanded);
}
uint8_t* octets(std::byte* bytes) {
    return reinterpret_cast<uint8_t*>(bytes);
}

// Takes the same time wherever the first difference is.
bool equal_icv(const std::byte* a, const std::byte* b) {
    static_assert(kGcmIcvBytes == 16);
    uint64_t left[2];
    uint64_t right[2];
    std::memcpy(left, a, sizeof left);
    std::memcpy(right, b, sizeof right);
    return ((left[0] ^ right[0]) | (left[1] ^ right[1])) == 0;
}

// Keys of coming packets are fetched this many packets ahead: far enough to arrive in time, near
// enough not to push out of the first-level cache what is still to be used.
constexpr size_t kPrefetchAhead = 3;

void prefetch_ahead(std::span<AeadJob* const> jobs, size_t i) {
    if (i + kPrefetchAhead >= jobs.size()) return;
    const AeadJob& coming = *jobs[i + kPrefetchAhead];
    if (coming.key != jobs[i]->key) prefetch_key(*coming.key, coming.text_bytes);
}

const char* architecture_name(IMB_ARCH architecture) {
    switch (architecture) {
        case IMB_ARCH_SSE:
            return "sse";
        case IMB_ARCH_AVX:
            return "avx";
        case IMB_ARCH_AVX2:
            return "avx2";
        case IMB_ARCH_AVX512:
            return "avx512";
        case IMB_ARCH_NOAESNI:
            return "without aes-ni";
        default:
            return "unknown";
    }
}

}  // namespace

struct Aead::Impl {
    std::unique_ptr<IMB_MGR, ManagerDeleter> manager;
    IMB_ARCH architecture = IMB_ARCH_NONE;
    // By suite, so that the loop below has no switch.
    aes_gcm_enc_dec_t seal[3] = {};
    aes_gcm_enc_dec_t open[3] = {};
    // Scratch of the library, valid within one call.
    alignas(64) gcm_context_data context = {};
};

Aead::Aead(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Aead::Aead(Aead&&) noexcept = default;
Aead& Aead::operator=(Aead&&) noexcept = default;
Aead::~Aead() = default;

std::expected<Aead, std::string> Aead::create() {
    auto impl = std::make_unique<Impl>();
    impl->manager.reset(alloc_mb_mgr(0));
    if (!impl->manager) return std::unexpected("ipsec-mb: no memory for its manager");
    IMB_MGR* manager = impl->manager.get();
    init_mb_mgr_auto(manager, &impl->architecture);
    if (const int error = imb_get_errno(manager); error != 0) {
        return std::unexpected(std::string("ipsec-mb does not start: ") + imb_get_strerror(error));
    }
    if ((manager->features & IMB_FEATURE_SELF_TEST) != 0 &&
        (manager->features & IMB_FEATURE_SELF_TEST_PASS) == 0) {
        return std::unexpected("ipsec-mb fails its self-test: do not use this machine or library");
    }
    constexpr auto index = [](Suite suite) { return static_cast<size_t>(suite); };
    impl->seal[index(Suite::aes_gcm_16_128)] = manager->gcm128_enc;
    impl->seal[index(Suite::aes_gcm_16_192)] = manager->gcm192_enc;
    impl->seal[index(Suite::aes_gcm_16_256)] = manager->gcm256_enc;
    impl->open[index(Suite::aes_gcm_16_128)] = manager->gcm128_dec;
    impl->open[index(Suite::aes_gcm_16_192)] = manager->gcm192_dec;
    impl->open[index(Suite::aes_gcm_16_256)] = manager->gcm256_dec;
    return Aead(std::move(impl));
}

void Aead::seal(std::span<AeadJob* const> jobs) const {
    for (size_t i = 0; i < jobs.size(); ++i) {
        AeadJob* job = jobs[i];
        prefetch_ahead(jobs, i);
        impl_->seal[static_cast<size_t>(job->suite)](
            library_key(*job->key), &impl_->context, octets(job->text), octets(job->text),
            job->text_bytes, octets(job->nonce), octets(job->aad), job->aad_bytes, octets(job->icv),
            kGcmIcvBytes);
    }
}

void Aead::open(std::span<AeadJob* const> jobs) const {
    for (size_t i = 0; i < jobs.size(); ++i) {
        AeadJob* job = jobs[i];
        prefetch_ahead(jobs, i);
        std::byte computed[kGcmIcvBytes];
        impl_->open[static_cast<size_t>(job->suite)](
            library_key(*job->key), &impl_->context, octets(job->text), octets(job->text),
            job->text_bytes, octets(job->nonce), octets(job->aad), job->aad_bytes, octets(computed),
            kGcmIcvBytes);
        job->authentic = equal_icv(computed, job->icv);
        // Plaintext that is not authentic must not be seen, not even by a later bug.
        if (!job->authentic) wipe(job->text, job->text_bytes);
    }
}

std::string Aead::description() const {
    return std::string("ipsec-mb ") + imb_get_version_str() + ", " +
           architecture_name(impl_->architecture) +
           ((impl_->manager->features & IMB_FEATURE_VAES) != 0 ? " with vaes" : "");
}

void expand_key(const Aead& aead, Suite suite, std::span<const std::byte> key, AeadKey& out) {
    IMB_MGR* manager = aead.impl_->manager.get();
    switch (suite) {
        case Suite::aes_gcm_16_128:
            IMB_AES128_GCM_PRE(manager, key.data(), library_key(out));
            return;
        case Suite::aes_gcm_16_192:
            IMB_AES192_GCM_PRE(manager, key.data(), library_key(out));
            return;
        case Suite::aes_gcm_16_256:
            IMB_AES256_GCM_PRE(manager, key.data(), library_key(out));
            return;
    }
}

void wipe_key(AeadKey& key) {
    wipe(&key, sizeof key);
}

}  // namespace sallyport::crypto
