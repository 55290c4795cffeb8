// SPDX-License-Identifier: Apache-2.0
#pragma once

// The crypto job of an ESP packet: the one place that says what is encrypted, with which nonce, and
// what else the ICV covers. Both directions come here, so sender and receiver cannot differ.
//
//   nonce  salt 4 | IV 8; salt 3 with AES-CCM                 (RFC 4106 4, RFC 4309 4, RFC 7634 2)
//   AAD    SPI 4 | sequence number 4, or all 8 of it with ESN (RFC 4106 5)
//
// Numbers come as values, although they stand in the packet: reading as one word what was just
// written as two would make the CPU wait.

#include "dataplane/base/byte_order.h"
#include "dataplane/crypto/engine.h"
#include "dataplane/esp/overhead.h"
#include "dataplane/wire/headers.h"

namespace sallyport::esp {

// `esp`: SPI to ICV, of `esp_bytes`, at least kBytesAroundText. `iv`: as it stands in the packet.
template <typename Sa>
[[gnu::always_inline]] inline void fill_job(crypto::AeadJob& job, const Sa& sa, std::byte* esp,
                                            uint32_t esp_bytes, uint64_t sequence, uint64_t iv) {
    job.key = sa.key();
    job.form = sa.form;
    job.text = esp + kHeaderBytes;
    job.text_bytes = esp_bytes - kBytesAroundText;
    job.icv = job.text + job.text_bytes;

    static_assert(sizeof sa.salt == crypto::kSaltBytesMax && sizeof iv == crypto::kIvBytes);
    std::memcpy(job.nonce, &sa.salt, sizeof sa.salt);
    std::memcpy(job.nonce + sizeof sa.salt, &iv, sizeof iv);

    wire::write(job.aad, sa.spi);
    if (sa.esn) {
        wire::write(job.aad + sizeof sa.spi, Be64(sequence));
        job.aad_bytes = sizeof sa.spi + sizeof(Be64);
    } else {
        wire::write(job.aad + sizeof sa.spi, Be32(static_cast<uint32_t>(sequence)));
        job.aad_bytes = sizeof sa.spi + sizeof(Be32);
    }
}

}  // namespace sallyport::esp
