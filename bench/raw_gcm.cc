// SPDX-License-Identifier: Apache-2.0
#include "bench/raw_gcm.h"

#include <intel-ipsec-mb.h>

namespace sallyport::bench {

struct RawGcm::Impl {
    IMB_MGR* manager = nullptr;
    alignas(64) gcm_key_data key = {};
    alignas(64) gcm_context_data context = {};
    uint8_t iv[16] = {};
    uint8_t aad[16] = {};
    uint8_t tag[16] = {};
};

RawGcm::RawGcm() : impl_(std::make_unique<Impl>()) {
    impl_->manager = alloc_mb_mgr(0);
    init_mb_mgr_auto(impl_->manager, nullptr);
    const uint8_t key[16] = {1, 2, 3};
    IMB_AES128_GCM_PRE(impl_->manager, key, &impl_->key);
}

RawGcm::~RawGcm() {
    free_mb_mgr(impl_->manager);
}

void RawGcm::encrypt(std::span<const Text> texts) {
    for (const Text& text : texts) {
        auto* data = reinterpret_cast<uint8_t*>(text.data);
        ++impl_->iv[0];
        IMB_AES128_GCM_ENC(impl_->manager, &impl_->key, &impl_->context, data, data, text.bytes,
                           impl_->iv, impl_->aad, 8, impl_->tag, 16);
    }
}

void RawGcm::decrypt(std::span<const Text> texts) {
    for (const Text& text : texts) {
        auto* data = reinterpret_cast<uint8_t*>(text.data);
        ++impl_->iv[0];
        IMB_AES128_GCM_DEC(impl_->manager, &impl_->key, &impl_->context, data, data, text.bytes,
                           impl_->iv, impl_->aad, 8, impl_->tag, 16);
    }
}

}  // namespace sallyport::bench
