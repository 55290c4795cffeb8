// SPDX-License-Identifier: Apache-2.0
#include "bench/raw_gcm.h"

#include <intel-ipsec-mb.h>

#include <cstring>
#include <vector>

namespace sallyport::bench {

struct RawGcm::Impl {
    IMB_MGR* manager = nullptr;
    std::vector<gcm_key_data> keys;
    alignas(64) gcm_context_data context = {};
    uint8_t iv[16] = {};
    uint8_t aad[16] = {};
};

RawGcm::RawGcm(uint32_t keys) : impl_(std::make_unique<Impl>()) {
    impl_->manager = alloc_mb_mgr(0);
    init_mb_mgr_auto(impl_->manager, nullptr);
    impl_->keys.resize(keys);
    for (uint32_t i = 0; i < keys; ++i) {
        uint8_t key[16] = {};
        std::memcpy(key, &i, sizeof i);
        IMB_AES128_GCM_PRE(impl_->manager, key, &impl_->keys[i]);
    }
}

RawGcm::~RawGcm() {
    free_mb_mgr(impl_->manager);
}

void RawGcm::encrypt(std::span<const Text> texts) {
    for (const Text& text : texts) {
        auto* data = reinterpret_cast<uint8_t*>(text.data);
        IMB_AES128_GCM_ENC(impl_->manager, &impl_->keys[text.key], &impl_->context, data, data,
                           text.bytes, impl_->iv, impl_->aad, 8, data + text.bytes, 16);
    }
}

void RawGcm::decrypt(std::span<const Text> texts) {
    for (const Text& text : texts) {
        auto* data = reinterpret_cast<uint8_t*>(text.data);
        uint8_t tag[16];
        IMB_AES128_GCM_DEC(impl_->manager, &impl_->keys[text.key], &impl_->context, data, data,
                           text.bytes, impl_->iv, impl_->aad, 8, tag, 16);
    }
}

}  // namespace sallyport::bench
