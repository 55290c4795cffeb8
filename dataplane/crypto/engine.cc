// SPDX-License-Identifier: Apache-2.0
#include "dataplane/crypto/engine.h"

#include <intel-ipsec-mb.h>

#include "dataplane/crypto/gcm.h"
#include "dataplane/crypto/jobs.h"

namespace sallyport::crypto {

namespace {

struct ManagerDeleter {
    void operator()(IMB_MGR* manager) const { free_mb_mgr(manager); }
};

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
    Impl(std::unique_ptr<IMB_MGR, ManagerDeleter> of, IMB_ARCH on)
        : manager(std::move(of)), architecture(on), gcm(*manager), jobs(*manager) {}

    std::unique_ptr<IMB_MGR, ManagerDeleter> manager;
    IMB_ARCH architecture;
    Gcm gcm;
    Jobs jobs;
};

Aead::Aead(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Aead::Aead(Aead&&) noexcept = default;
Aead& Aead::operator=(Aead&&) noexcept = default;
Aead::~Aead() = default;

std::expected<Aead, std::string> Aead::create() {
    std::unique_ptr<IMB_MGR, ManagerDeleter> manager(alloc_mb_mgr(0));
    if (!manager) return std::unexpected("ipsec-mb: no memory for its manager");
    IMB_ARCH architecture = IMB_ARCH_NONE;
    init_mb_mgr_auto(manager.get(), &architecture);
    if (const int error = imb_get_errno(manager.get()); error != 0) {
        return std::unexpected(std::string("ipsec-mb does not start: ") + imb_get_strerror(error));
    }
    if ((manager->features & IMB_FEATURE_SELF_TEST) != 0 &&
        (manager->features & IMB_FEATURE_SELF_TEST_PASS) == 0) {
        return std::unexpected("ipsec-mb fails its self-test: do not use this machine or library");
    }
    return Aead(std::make_unique<Impl>(std::move(manager), architecture));
}

void Aead::seal(JobLanes& jobs) const {
    impl_->gcm.seal(jobs.of(Engine::gcm));
    if (jobs.has(Engine::jobs)) impl_->jobs.seal(jobs.of(Engine::jobs));
}

void Aead::open(JobLanes& jobs) const {
    impl_->gcm.open(jobs.of(Engine::gcm));
    if (jobs.has(Engine::jobs)) impl_->jobs.open(jobs.of(Engine::jobs));
}

std::string Aead::description() const {
    return std::string("ipsec-mb ") + imb_get_version_str() + ", " +
           architecture_name(impl_->architecture) +
           ((impl_->manager->features & IMB_FEATURE_VAES) != 0 ? " with vaes" : "");
}

void expand_key(const Aead& aead, const Suite& suite, std::span<const std::byte> key,
                std::byte* block) {
    switch (suite.form.engine) {
        case Engine::gcm:
            aead.impl_->gcm.expand_key(static_cast<GcmVariant>(suite.form.variant), key, block);
            return;
        case Engine::jobs:
            aead.impl_->jobs.expand_key(static_cast<JobsVariant>(suite.form.variant), key, block);
            return;
    }
}

}  // namespace sallyport::crypto
