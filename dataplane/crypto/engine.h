// SPDX-License-Identifier: Apache-2.0
#pragma once

// The one door to ipsec-mb: a burst of jobs is sealed or opened.
//
//   pipeline: job per packet -> JobLanes: one lane per engine -> Aead: each engine takes its lane
//
// An engine is one way to call the library and has a file of its own here (gcm.cc). The choice is
// made once for each packet by the lane that its job is put into, and once for each burst by Aead:
// no virtual call, no branch by suite in between. The loop over packets is inside the engine, so
// the call across the library boundary costs nothing visible.
//
// The library's own header stays inside this folder. Keys are expanded in place into the key block
// of an SA, so that one prefetch pattern covers both.

#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <memory>
#include <span>
#include <string>

#include "dataplane/base/frame.h"
#include "dataplane/crypto/suite.h"

namespace sallyport::crypto {

inline constexpr size_t kKeyBlockAlignment = 64;

// One packet to encrypt or decrypt in place. All pointers stay valid during the call.
struct AeadJob {
    const std::byte* key;  // block of an expanded key
    std::byte* text;       // plaintext in, ciphertext out (or the reverse)
    uint32_t text_bytes;
    SuiteForm form;
    uint8_t aad_bytes;                // 8, or 12 with ESN (RFC 4106 5, RFC 4309 5, RFC 7634 2.1)
    bool authentic;                   // written by open()
    std::byte nonce[kNonceBytesMax];  // from 4 - salt_bytes on
    std::byte aad[12];
    std::byte* icv;  // seal: written; open: compared
};

// The jobs of one burst, in the order of add(); each engine takes its own as one lane. Nearly every
// burst is of one engine: such a lane is the whole of it, and nothing is sorted.
class JobLanes {
  public:
    // At most kBurstMax in all. `job` stays where it is.
    void add(AeadJob& job) {
        jobs_[count_++] = &job;
        engines_ |= bit(job.form.engine);
    }
    [[nodiscard]] bool has(Engine engine) const { return (engines_ & bit(engine)) != 0; }
    // Valid until it is asked for another lane.
    [[nodiscard]] std::span<AeadJob* const> of(Engine engine) {
        if ((engines_ & ~bit(engine)) == 0) return {jobs_.data(), count_};
        uint32_t count = 0;
        for (uint32_t i = 0; i < count_; ++i) {
            if (jobs_[i]->form.engine == engine) lane_[count++] = jobs_[i];
        }
        return {lane_.data(), count};
    }

  private:
    static constexpr uint32_t bit(Engine engine) { return 1u << static_cast<uint32_t>(engine); }

    uint32_t count_ = 0;
    uint32_t engines_ = 0;  // a bit for each that has a job
    // Written before they are read.
    std::array<AeadJob*, kBurstMax> jobs_;
    std::array<AeadJob*, kBurstMax> lane_;
};

// A worker's own library context, with what each engine keeps. Owner: one thread.
class Aead {
  public:
    // Fails when the library's self-test does or the CPU lacks what it needs.
    static std::expected<Aead, std::string> create();
    Aead(Aead&&) noexcept;
    Aead& operator=(Aead&&) noexcept;
    ~Aead();

    // Encrypts and writes ICVs.
    void seal(JobLanes& jobs) const;
    // Decrypts, compares ICVs in constant time and says in each job whether it is authentic. The
    // text of a job that is not is wiped before this returns.
    void open(JobLanes& jobs) const;

    // Library version and instruction set, for the start-up log.
    [[nodiscard]] std::string description() const;

  private:
    friend void expand_key(const Aead& aead, const Suite& suite, std::span<const std::byte> key,
                           std::byte* block);
    struct Impl;
    explicit Aead(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

// Any thread. `key` without salt, of suite.key_bytes bytes; `block` has suite.key_block_bytes and
// begins a cache line. Wiping it is its owner's business.
void expand_key(const Aead& aead, const Suite& suite, std::span<const std::byte> key,
                std::byte* block);

}  // namespace sallyport::crypto
