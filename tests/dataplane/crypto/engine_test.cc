// SPDX-License-Identifier: Apache-2.0
// Every suite through the one door to ipsec-mb against OpenSSL: every key size, every text length
// up to several blocks, and the Wycheproof vectors where they are at hand (SALLYPORT_WYCHEPROOF
// names their folder; they are not part of this repository).

#include "dataplane/crypto/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <sstream>
#include <vector>

#include "tests/support/esp_oracle.h"

namespace sallyport::crypto {
namespace {

using test::Bytes;

// As in an SA.
struct alignas(kKeyBlockAlignment) KeyBlock {
    std::byte bytes[kGcmKeyBlockBytes];
};

Bytes random_bytes(std::mt19937& random, size_t count) {
    Bytes bytes(count);
    for (auto& byte : bytes) byte = static_cast<std::byte>(random() & 0xff);
    return bytes;
}

// By OpenSSL. `nonce`: as in a job.
Bytes sealed_by_openssl(const Suite& suite, const Bytes& key, const Bytes& nonce, const Bytes& aad,
                        const Bytes& text) {
    const auto algorithm = suite.family == "AES-GCM"   ? test::Algorithm::aes_gcm
                           : suite.family == "AES-CCM" ? test::Algorithm::aes_ccm
                                                       : test::Algorithm::chacha20_poly1305;
    return test::aead_seal(
        algorithm, key, std::span(nonce).subspan(kSaltBytesMax - suite.form.salt_bytes), aad, text);
}

// One packet with its text and ICV side by side, as in a frame.
struct Packet {
    Packet(const KeyBlock& key, const Suite& suite, const Bytes& nonce, const Bytes& aad,
           const Bytes& text)
        : bytes(text) {
        bytes.resize(text.size() + kIcvBytesMax);
        job.key = key.bytes;
        job.form = suite.form;
        job.text = bytes.data();
        job.text_bytes = static_cast<uint32_t>(text.size());
        job.aad_bytes = static_cast<uint8_t>(aad.size());
        std::memcpy(job.nonce, nonce.data(), sizeof job.nonce);
        std::ranges::copy(aad, job.aad);  // may be empty
        job.icv = bytes.data() + text.size();
    }
    Bytes bytes;
    AeadJob job{};
};

JobLanes only(AeadJob& job) {
    JobLanes jobs;
    jobs.add(job);
    return jobs;
}

TEST(ConformanceD5, EqualsOpensslForEveryKeySizeAndLength) {
    const Aead aead = Aead::create().value();
    std::mt19937 random(6);
    for (const Suite& suite : suites()) {
        for (const size_t aad_bytes : {8u, 12u}) {
            for (size_t text_bytes = 1; text_bytes <= 2000;
                 text_bytes += text_bytes < 300 ? 1 : 97) {
                const Bytes key_material = random_bytes(random, suite.key_bytes);
                const Bytes nonce = random_bytes(random, kNonceBytesMax);
                const Bytes aad = random_bytes(random, aad_bytes);
                const Bytes text = random_bytes(random, text_bytes);
                KeyBlock key;
                expand_key(aead, suite, key_material, key.bytes);
                Packet packet(key, suite, nonce, aad, text);
                JobLanes jobs = only(packet.job);
                aead.seal(jobs);
                ASSERT_EQ(test::to_hex(packet.bytes),
                          test::to_hex(sealed_by_openssl(suite, key_material, nonce, aad, text)))
                    << suite.name << ", " << text_bytes << " bytes of text";
                aead.open(jobs);
                ASSERT_TRUE(packet.job.authentic);
                ASSERT_EQ(test::to_hex(std::span(packet.bytes).first(text_bytes)),
                          test::to_hex(text));
            }
        }
    }
}

// A burst of several keys and suites: each job is its own.
TEST(Aead, ABurstOfMixedKeys) {
    const Aead aead = Aead::create().value();
    std::mt19937 random(7);
    std::vector<std::unique_ptr<KeyBlock>> keys;
    std::vector<Packet> packets;
    std::vector<Bytes> expected;
    for (int i = 0; i < 64; ++i) {
        const Suite& suite = suites()[random() % suites().size()];
        const Bytes key = random_bytes(random, suite.key_bytes);
        const Bytes nonce = random_bytes(random, kNonceBytesMax);
        const Bytes aad = random_bytes(random, random() % 2 == 0 ? 8 : 12);
        const Bytes text = random_bytes(random, 4 + random() % 1500);
        keys.push_back(std::make_unique<KeyBlock>());
        expand_key(aead, suite, key, keys.back()->bytes);
        packets.emplace_back(*keys.back(), suite, nonce, aad, text);
        expected.push_back(sealed_by_openssl(suite, key, nonce, aad, text));
    }
    JobLanes jobs;
    for (Packet& packet : packets) {
        // Growing the vector moved the bytes' owner, not the bytes.
        ASSERT_EQ(packet.job.text, packet.bytes.data());
        jobs.add(packet.job);
    }
    aead.seal(jobs);
    for (size_t i = 0; i < packets.size(); ++i) {
        ASSERT_EQ(test::to_hex(packets[i].bytes), test::to_hex(expected[i])) << i;
    }
    // Every third is damaged; the others are not touched by that.
    for (size_t i = 0; i < packets.size(); i += 3) packets[i].bytes[0] ^= std::byte{1};
    aead.open(jobs);
    for (size_t i = 0; i < packets.size(); ++i) {
        ASSERT_EQ(packets[i].job.authentic, i % 3 != 0) << i;
    }
}

// More engines than there are: what a lane is does not depend on what they do.
TEST(JobLanes, EachEngineHasItsJobsInOrder) {
    constexpr uint32_t kEngines = 3;
    std::mt19937 random(9);
    for (uint32_t mixed = 1; mixed <= kEngines; ++mixed) {
        std::array<AeadJob, kBurstMax> jobs{};
        std::array<std::vector<AeadJob*>, kEngines> expected;
        JobLanes lanes;
        for (AeadJob& job : jobs) {
            const auto engine = static_cast<uint32_t>(random() % mixed);
            job.form.engine = static_cast<Engine>(engine);
            lanes.add(job);
            expected[engine].push_back(&job);
        }
        for (uint32_t engine = 0; engine < kEngines; ++engine) {
            const auto lane = lanes.of(static_cast<Engine>(engine));
            ASSERT_EQ((std::vector<AeadJob*>{lane.begin(), lane.end()}), expected[engine])
                << mixed << " engines, " << engine;
        }
    }
    JobLanes none;
    ASSERT_TRUE(none.of(Engine::gcm).empty());
}

TEST(Aead, EachBitOfIcvNonceAadAndTextCountsAndFailureWipes) {
    const Aead aead = Aead::create().value();
    std::mt19937 random(8);
    for (const Suite& suite : suites()) {
        const Bytes key_material = random_bytes(random, suite.key_bytes);
        const Bytes nonce = random_bytes(random, kNonceBytesMax);
        const size_t unused = kSaltBytesMax - suite.form.salt_bytes;
        const Bytes aad = random_bytes(random, 12);
        const Bytes text = random_bytes(random, 40);
        KeyBlock key;
        expand_key(aead, suite, key_material, key.bytes);
        const Bytes sealed = sealed_by_openssl(suite, key_material, nonce, aad, text);
        const size_t bits = (sealed.size() + nonce.size() - unused + aad.size()) * 8;
        for (size_t bit = 0; bit < bits; ++bit) {
            Packet packet(key, suite, nonce, aad, text);
            std::memcpy(packet.bytes.data(), sealed.data(), sealed.size());
            const auto flip = static_cast<std::byte>(1u << bit % 8);
            size_t at = bit / 8;
            if (at < sealed.size()) {
                packet.bytes[at] ^= flip;
            } else if (at -= sealed.size(); at < nonce.size() - unused) {
                packet.job.nonce[unused + at] ^= flip;
            } else {
                packet.job.aad[at - (nonce.size() - unused)] ^= flip;
            }
            JobLanes jobs = only(packet.job);
            aead.open(jobs);
            ASSERT_FALSE(packet.job.authentic) << suite.name << ", " << bit;
            for (size_t i = 0; i < text.size(); ++i) ASSERT_EQ(packet.bytes[i], std::byte{0});
        }
    }
}

std::filesystem::path wycheproof_file(const std::string& name) {
    std::vector<std::filesystem::path> folders;
    if (const char* named = std::getenv("SALLYPORT_WYCHEPROOF"); named != nullptr) {
        folders.emplace_back(named);
    }
    // Beside a checkout of this repository, at any depth.
    for (auto folder = std::filesystem::path(SP_TEST_SOURCE_ROOT); folder != folder.root_path();
         folder = folder.parent_path()) {
        folders.push_back(folder.parent_path() / "shared/vectors/wycheproof");
    }
    for (const auto& folder : folders) {
        std::error_code error;
        if (std::filesystem::exists(folder / name, error)) {
            return folder / name;
        }
    }
    return {};
}

struct WycheproofFile {
    const char* name;
    std::string_view family;
    int nonce_bits_min;  // beside 96. ESP has 88 for AES-CCM, where most vectors have 96
    int least_valid;
    int least_invalid;
};

class ConformanceD5Wycheproof : public ::testing::TestWithParam<WycheproofFile> {};

TEST_P(ConformanceD5Wycheproof, Vectors) {
    const WycheproofFile& wanted = GetParam();
    const auto path = wycheproof_file(wanted.name);
    if (path.empty()) {
        GTEST_SKIP() << "no " << wanted.name
                     << ": set SALLYPORT_WYCHEPROOF to the folder that has it";
    }
    std::ifstream file(path);
    std::stringstream content;
    content << file.rdbuf();
    const boost::json::value document = boost::json::parse(content.str());
    const Aead aead = Aead::create().value();
    int valid = 0;
    int invalid = 0;
    int not_ours = 0;
    for (const auto& group : document.at("testGroups").as_array()) {
        const auto size = [&](const char* name) { return group.at(name).to_number<int>(); };
        for (const auto& item : group.at("tests").as_array()) {
            const auto bytes = [&](const char* name) {
                return test::from_hex(std::string(item.at(name).as_string()));
            };
            const Bytes aad = bytes("aad");
            const Bytes text = bytes("msg");
            // ESP has nothing but such nonces, 128-bit tags and 8 or 12 bytes of AAD;
            // shorter AAD fits the job as well, text without a byte does not occur.
            const Bytes key_material = bytes("key");
            const auto found = std::ranges::find_if(suites(), [&](const Suite& suite) {
                return suite.family == wanted.family && suite.key_bytes == key_material.size();
            });
            const int nonce_bits = size("ivSize");
            if (nonce_bits < wanted.nonce_bits_min || nonce_bits > 96 || size("tagSize") != 128 ||
                aad.size() > 12 || found == suites().end()) {
                ++not_ours;
                continue;
            }
            const Suite& suite = *found;
            KeyBlock key;
            expand_key(aead, suite, key_material, key.bytes);
            const Bytes iv = bytes("iv");
            Bytes nonce(kNonceBytesMax - iv.size());
            test::append(nonce, iv);
            Packet packet(key, suite, nonce, aad, text);
            packet.job.form.salt_bytes = static_cast<uint8_t>(iv.size() - kIvBytes);
            Bytes sealed = bytes("ct");
            test::append(sealed, bytes("tag"));
            const bool is_valid = item.at("result").as_string() == "valid";
            const int id = item.at("tcId").to_number<int>();
            JobLanes jobs = only(packet.job);
            if (is_valid) {
                aead.seal(jobs);
                EXPECT_EQ(test::to_hex(packet.bytes), test::to_hex(sealed)) << "tcId " << id;
            }
            ASSERT_EQ(packet.bytes.size(), sealed.size());
            std::memcpy(packet.bytes.data(), sealed.data(), sealed.size());
            aead.open(jobs);
            EXPECT_EQ(packet.job.authentic, is_valid) << "tcId " << id;
            ++(is_valid ? valid : invalid);
        }
    }
    std::printf("%s: %d valid, %d invalid, %d with other nonce, tag or AAD sizes left out\n",
                wanted.name, valid, invalid, not_ours);
    EXPECT_GE(valid, wanted.least_valid);
    EXPECT_GE(invalid, wanted.least_invalid);
}

INSTANTIATE_TEST_SUITE_P(
    Files, ConformanceD5Wycheproof,
    ::testing::Values(WycheproofFile{"aes_gcm_test.json", "AES-GCM", 96, 30, 20},
                      WycheproofFile{"chacha20_poly1305_test.json", "ChaCha20-Poly1305", 96, 30,
                                     20},
                      WycheproofFile{"aes_ccm_test.json", "AES-CCM", 88, 30, 20}),
    [](const auto& file) {
        std::string name;
        for (const char c : std::string_view(file.param.name)) {
            if (std::isalnum(static_cast<unsigned char>(c))) name += c;
        }
        return name;
    });

}  // namespace
}  // namespace sallyport::crypto
