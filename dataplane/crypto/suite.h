// SPDX-License-Identifier: Apache-2.0
#pragma once

// THE table of suites: what ESP encrypts and authenticates with. One row says all that the rest of
// the gateway must know of a suite:
//
//   name, key lengths      config: what `suite = "..."` may be, and how long its key is
//   kernel names, ICV      adoption and xfrm messages: which states of the kernel are this suite
//   name, RFC, RFC 8221    `show sa`, docs/suites.md
//   form                   workers: each SA has a copy of it beside its other hot fields
//
// They all loop over the table or follow a pointer to a row, so a new row needs no change there.
// Functions that look suites up take the table as a parameter, which lets a test add a row.
//
// Rows are constant, and so is where they lie: an address of one names the suite for as long as the
// process runs.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace sallyport::crypto {

// The way to call ipsec-mb: each has a file here and a lane in a burst (engine.h).
enum class Engine : uint8_t {
    gcm,   // AES-GCM: direct calls, one packet at a time
    jobs,  // ChaCha20-Poly1305, AES-CCM: the job interface
};

// How a sender makes IVs.
enum class IvRule : uint8_t {
    counter,  // sequence number XOR a mask of the SA: unique, and may be guessed
};

// What is authenticated beside the ciphertext.
enum class AadForm : uint8_t {
    sequence,  // SPI, then the sequence number, all of it with ESN: 8 or 12 bytes (RFC 4106 5)
};

// Of a suite, what the stages need for each packet. All are bytes, so that a copy is one move.
struct SuiteForm {
    Engine engine = Engine::gcm;
    uint8_t variant = 0;  // which of the engine's functions, as it numbers them
    uint8_t salt_bytes = 0;
    uint8_t iv_bytes = 0;   // explicit in the packet, behind the ESP header
    uint8_t icv_bytes = 0;  // at the packet's end
    uint8_t alignment = 0;  // ciphertext is a multiple of it (RFC 4303 2.4: 4 at least)
    IvRule iv_rule = IvRule::counter;
    AadForm aad = AadForm::sequence;

    friend bool operator==(const SuiteForm&, const SuiteForm&) = default;
};
static_assert(sizeof(SuiteForm) == 8);

// Names in the kernel's crypto API, as `ip xfrm state` shows them. A combined algorithm has `aead`;
// others have the two that follow instead.
struct KernelNames {
    std::string_view aead;
    std::string_view cipher;
    std::string_view integrity;
};

struct Suite {
    std::string_view name;    // in the configuration and for the operator
    std::string_view family;  // of those that differ in key and ICV length only
    KernelNames kernel;
    uint16_t key_bytes = 0;        // without salt
    uint16_t key_block_bytes = 0;  // of the expanded key in an SA, a multiple of 64
    SuiteForm form;
    std::string_view rfc;       // that says how ESP uses it
    std::string_view rfc_8221;  // what RFC 8221 (5, 6) asks of implementations

    // Key and salt together, as the configuration and the kernel have them.
    [[nodiscard]] constexpr size_t key_material_bytes() const {
        return size_t{key_bytes} + form.salt_bytes;
    }
    [[nodiscard]] constexpr uint32_t icv_bits() const { return uint32_t{form.icv_bytes} * 8; }
};

// The suites of this version, in the order in which messages and documents name them.
std::span<const Suite> suites();

// Null: the table has no suite of that name.
const Suite* find_suite(std::string_view name, std::span<const Suite> table = suites());

// ---- combined algorithms with an 8-byte IV and a 16-byte ICV ----------------------------------

inline constexpr size_t kSaltBytesMax = 4;
inline constexpr size_t kIvBytes = 8;
inline constexpr size_t kIcvBytesMax = 16;
// Salt, then IV. A shorter salt stands at the end of its 4 bytes: the nonce begins with it.
inline constexpr size_t kNonceBytesMax = kSaltBytesMax + kIvBytes;

// Round keys at the beginning, powers of the hash key at the end.
inline constexpr size_t kGcmKeyBlockBytes = 1024;
enum GcmVariant : uint8_t { kGcm128, kGcm192, kGcm256 };  // by key length
inline constexpr size_t kGcmVariantCount = 3;

inline constexpr size_t kChaCha20KeyBlockBytes = 64;  // the key as it is
inline constexpr size_t kCcmKeyBlockBytes = 256;      // round keys
enum JobsVariant : uint8_t { kChaCha20Poly1305, kCcm128, kCcm256 };

}  // namespace sallyport::crypto
