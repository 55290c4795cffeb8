// SPDX-License-Identifier: Apache-2.0
// What a new row in the table of suites needs elsewhere: nothing. A row that nobody has heard of is
// read from a file, written to the kernel, taken over from it, shown to the operator and documented
// by the functions that do so for the others, given the table with that row.

#include <gtest/gtest.h>
#include <linux/xfrm.h>

#include <vector>

#include "config/config.h"
#include "control/adoption/suites.h"
#include "control/xfrm/messages.h"
#include "dataplane/crypto/suite.h"
#include "tests/conformance/suites_page.h"
#include "tests/control/adoption/support.h"

namespace sallyport::control {
namespace {

using crypto::Suite;

constexpr std::string_view kName = "aes-gcm-16-xyz";
constexpr std::string_view kKernelName = "rfc9999(xyz(aes))";
constexpr uint16_t kKeyBytes = 48;
constexpr uint8_t kSaltBytes = 3;
constexpr uint8_t kIcvBytes = 12;

std::vector<Suite> table_with_one_more() {
    std::vector<Suite> table(crypto::suites().begin(), crypto::suites().end());
    Suite row = table.back();
    row.name = kName;
    row.family = "AES-XYZ";
    row.kernel = {.aead = kKernelName};
    row.key_bytes = kKeyBytes;
    row.form.salt_bytes = kSaltBytes;
    row.form.icv_bytes = kIcvBytes;
    row.rfc = "RFC 9999";
    row.rfc_8221 = "MAY";
    table.push_back(row);
    return table;
}

class NewSuite : public ::testing::Test {
  protected:
    [[nodiscard]] const Suite& added() const { return table_.back(); }

    // As the kernel answers when the announcer's message made the state.
    [[nodiscard]] xfrm::KernelSa kernel_sa() const {
        const adoption_test::Tunnel tunnel;
        const std::vector<std::byte> key(added().key_material_bytes(), std::byte{0x5a});
        const auto request = xfrm::encode_new_state({.id = {Spi{0x1001}, tunnel.local},
                                                     .source = tunnel.remote,
                                                     .reqid = tunnel.reqid,
                                                     .suite = &added(),
                                                     .key = key},
                                                    xfrm::StateAttributes::all, 1);
        auto bytes = request.bytes();
        auto message = netlink::next_message(bytes).value();
        return xfrm::decode_kernel_sa(message->payload).value();
    }

    const std::vector<Suite> table_ = table_with_one_more();
};

std::string file_with(std::string_view suite, size_t key_digits) {
    return "[port.wan0]\nrole = \"unprotected\"\n"
           "[port.lan0]\nrole = \"protected\"\n"
           "[[policy]]\nname = \"branch\"\naction = \"protect\"\n"
           "local = \"10.1.0.0/24\"\nremote = \"10.2.0.0/24\"\n"
           "[[sa]]\nname = \"out\"\ndirection = \"outbound\"\nspi = 0x1001\n"
           "source = \"192.0.2.1\"\ndestination = \"192.0.2.2\"\npolicy = \"branch\"\n"
           "suite = \"" +
           std::string(suite) + "\"\nkey = \"" + std::string(key_digits, '7') + "\"\n";
}

std::string first_error(std::string_view text, std::span<const Suite> table) {
    const auto config = config::parse(text, "test.toml", table);
    return config || config.error().empty() ? "" : config.error().front().text;
}

TEST_F(NewSuite, IsReadFromTheFile) {
    const std::string text = file_with(kName, 2 * (kKeyBytes + kSaltBytes));
    const auto config = config::parse(text, "test.toml", table_);
    ASSERT_TRUE(config) << config.error().front().to_string();
    EXPECT_EQ(config->sas.front().suite, &added());
    EXPECT_EQ(config->sas.front().key.size(), kKeyBytes + kSaltBytes);

    EXPECT_NE(first_error(file_with(kName, 40), table_)
                  .find("aes-gcm-16-xyz takes 102: 48 bytes of key, then 3 of salt"),
              std::string::npos);
    EXPECT_NE(first_error(file_with("rot13", 40), table_).find("or aes-gcm-16-xyz"),
              std::string::npos);
    // Only with the row.
    EXPECT_NE(first_error(text, crypto::suites()).find("is not supported by"), std::string::npos);
}

TEST_F(NewSuite, IsWrittenToTheKernel) {
    const xfrm::KernelSa sa = kernel_sa();
    EXPECT_TRUE(sa.aead);
    EXPECT_EQ(sa.algorithm, kKernelName);
    EXPECT_EQ(sa.icv_bits, kIcvBytes * 8u);
    EXPECT_EQ(sa.key.size(), kKeyBytes + kSaltBytes);
}

TEST_F(NewSuite, IsTakenOverFromTheKernel) {
    adoption_test::Register all;
    all.add_policies({});
    const xfrm::SaName name = all.add(kernel_sa());
    const auto decide = [&](std::span<const Suite> table) {
        GroupNumbers numbers(16);
        return decide_adoption(all.states, all.policies,
                               {.cpus = all.cpus,
                                .local_addresses = all.local,
                                .policies = all.config,
                                .suites = table},
                               numbers)
            .sas.at(name);
    };
    EXPECT_EQ(decide(table_).reason, "");
    EXPECT_EQ(decide(table_).suite, &added());
    EXPECT_EQ(decide(crypto::suites()).reason, "cipher " + std::string(kKernelName));

    xfrm::KernelSa& sa = all.states.at(name);
    sa.icv_bits = 64;
    EXPECT_EQ(decide(table_).reason, "ICV of 64 bits");
    sa.icv_bits = kIcvBytes * 8;
    sa.key = SecretBytes(std::vector<std::byte>(20, std::byte{7}));
    EXPECT_EQ(decide(table_).reason, "key of 20 bytes");
}

TEST_F(NewSuite, IsShownToTheOperator) {
    xfrm::KernelSa sa = kernel_sa();
    EXPECT_EQ(adoption::shown_suite(sa, table_), kName);
    EXPECT_EQ(adoption::shown_suite(sa, crypto::suites()), kKernelName);
    // One of its family that no row is.
    sa.icv_bits = 64;
    EXPECT_EQ(adoption::shown_suite(sa, table_), "aes-xyz-8-384");
}

TEST_F(NewSuite, IsInTheDocument) {
    const std::string with = test::suites_page(table_);
    const std::string without = test::suites_page(crypto::suites());
    ASSERT_TRUE(with.starts_with(without));
    EXPECT_EQ(with.substr(without.size()),
              "| `aes-gcm-16-xyz` | 48 | 3 | 102 | 8 | 12 | `rfc9999(xyz(aes))`, 96 | RFC 9999 | "
              "MAY |\n");
}

// What every row must hold for the code that reads it.
TEST(Suites, RowsAreSound) {
    for (const Suite& suite : crypto::suites()) {
        EXPECT_EQ(crypto::find_suite(suite.name), &suite) << suite.name;
        EXPECT_LE(suite.key_material_bytes(), SecretBytes::kCapacity) << suite.name;
        EXPECT_EQ(suite.key_block_bytes % 64, 0) << suite.name;
        EXPECT_GT(suite.key_block_bytes, 0) << suite.name;
        EXPECT_LE(suite.form.salt_bytes, sizeof(uint32_t)) << suite.name;  // of an SA's field
        EXPECT_EQ(suite.form.alignment % 4, 0) << suite.name;
        EXPECT_GE(suite.form.alignment, 4) << suite.name;
        EXPECT_LT(suite.kernel.aead.size(), sizeof(xfrm_algo_aead::alg_name)) << suite.name;
        EXPECT_FALSE(suite.kernel.aead.empty() && suite.kernel.cipher.empty()) << suite.name;
        EXPECT_FALSE(suite.rfc.empty() || suite.rfc_8221.empty()) << suite.name;
    }
    EXPECT_EQ(crypto::find_suite("aes-gcm-16-12"), nullptr);
    EXPECT_EQ(crypto::find_suite(""), nullptr);
}

}  // namespace
}  // namespace sallyport::control
