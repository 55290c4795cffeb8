// SPDX-License-Identifier: Apache-2.0
// Whole ESP packets that other implementations made or accepted, both ways through the pipelines:
// inbound each yields exactly its inner packet; outbound the same inner packet, SPI, sequence
// number and IV give back the ESP bytes, padding and ICV included.

#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>
#include <fstream>
#include <map>
#include <sstream>

#include "tests/support/tunnel_world.h"

namespace sallyport::test {
namespace {

struct Vector {
    std::string name;
    std::string algorithm;
    Bytes key;
    bool esn = false;
    uint64_t sequence = 0;
    Bytes outer;
    Bytes inner;
    uint32_t spi = 0;
};

std::string text_of(const boost::json::object& object, const char* name) {
    const auto* value = object.if_contains(name);
    return value == nullptr ? std::string() : std::string(value->as_string());
}

std::vector<Vector> read_vectors() {
    std::ifstream file(SP_TEST_VECTORS_FILE);
    std::stringstream content;
    content << file.rdbuf();
    std::vector<Vector> vectors;
    const boost::json::value document = boost::json::parse(content.str());
    for (const auto& value : document.as_array()) {
        const auto& object = value.as_object();
        Vector vector{.name = text_of(object, "name"), .algorithm = text_of(object, "alg")};
        vector.key = from_hex(text_of(object, "key"));
        vector.outer = from_hex(text_of(object, "outer"));
        if (const Bytes esp = from_hex(text_of(object, "esp")); !esp.empty()) {
            vector.outer = ipv4({.source = "192.0.2.2", .destination = "192.0.2.1"}, raw(50, esp));
        }
        vector.inner = from_hex(text_of(object, "inner"));
        vector.spi = get32(from_hex(text_of(object, "spi")), 0);
        vector.sequence = value.at("seq").to_number<uint64_t>();
        if (const auto* esn = object.if_contains("esn"); esn != nullptr && esn->as_bool()) {
            vector.esn = true;
            vector.sequence |= value.at("esn_hi").to_number<uint64_t>() << 32;
        }
        vectors.push_back(std::move(vector));
    }
    return vectors;
}

std::string outer_address(const Bytes& packet, size_t at) {
    return std::to_string(get8(packet, at)) + "." + std::to_string(get8(packet, at + 1)) + "." +
           std::to_string(get8(packet, at + 2)) + "." + std::to_string(get8(packet, at + 3));
}

// Null: none of ours.
const crypto::Suite* suite_of(const Vector& vector) {
    const std::map<std::string, std::string_view> families = {
        {"AES-GCM", "AES-GCM"},
        {"AES-CCM", "AES-CCM"},
        {"CHACHA20-POLY1305", "ChaCha20-Poly1305"},
        {"chacha20poly1305", "ChaCha20-Poly1305"}};
    const auto family = families.find(vector.algorithm);
    for (const crypto::Suite& suite : crypto::suites()) {
        if (family != families.end() && suite.family == family->second &&
            suite.key_material_bytes() == vector.key.size()) {
            return &suite;
        }
    }
    return nullptr;
}

// The SA that the vector's outer header and key describe.
TestSa sa_of(const Vector& vector) {
    TestSa sa;
    sa.spi = vector.spi;
    sa.source = outer_address(vector.outer, 12);
    sa.destination = outer_address(vector.outer, 16);
    sa.key = vector.key;
    sa.esn = vector.esn;
    sa.suite = suite_of(vector);
    sa.selectors = {any_selector(Family::v4), any_selector(Family::v6)};
    return sa;
}

class EspKat : public ::testing::TestWithParam<Vector> {};

TEST_P(EspKat, Inbound) {
    const Vector& vector = GetParam();
    if (suite_of(vector) == nullptr) GTEST_SKIP() << vector.algorithm << " is not supported yet";
    TunnelWorld world;
    world.add_inbound(sa_of(vector));
    const auto outcomes = world.run_inbound({ethernet(vector.outer)});
    ASSERT_TRUE(outcomes[0].delivered) << world.counters().begin()->first;
    EXPECT_EQ(to_hex(std::span(*outcomes[0].delivered).subspan(14)), to_hex(vector.inner));
}

TEST_P(EspKat, Outbound) {
    const Vector& vector = GetParam();
    if (suite_of(vector) == nullptr) GTEST_SKIP() << vector.algorithm << " is not supported yet";
    const size_t header_bytes = (get8(vector.outer, 0) & 15u) * 4;
    const std::span<const std::byte> esp = std::span(vector.outer).subspan(header_bytes);
    const uint64_t iv = uint64_t{get32(esp, 8)} << 32 | get32(esp, 12);
    TestSa sa = sa_of(vector);
    sa.sequence_next = vector.sequence;
    sa.iv_mask = vector.sequence ^ iv;
    TunnelWorld world;
    world.add_outbound(sa);
    world.set_policies({{.policy = PolicyId{sa.policy},
                         .action = SpdAction::protect,
                         .source = prefix("0.0.0.0/0"),
                         .destination = prefix("0.0.0.0/0")}});
    // As from the kernel, so that the TTL stays as it is in the vector.
    const auto outcomes = world.run_outbound({ethernet(vector.inner)}, OutboundSource::kernel);
    ASSERT_TRUE(outcomes[0].delivered);
    EXPECT_EQ(to_hex(std::span(*outcomes[0].delivered).subspan(14 + 20)), to_hex(esp));
}

std::string vector_name(const ::testing::TestParamInfo<Vector>& info) {
    std::string name = info.param.name;
    for (char& c : name) {
        if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
    }
    return name;
}

INSTANTIATE_TEST_SUITE_P(Vectors, EspKat, ::testing::ValuesIn(read_vectors()), vector_name);

// The file is there and holds what this test is for.
TEST(EspKatFile, HasAllOfTheTable) {
    std::map<std::string_view, int> packets;
    int with_esn = 0;
    for (const Vector& vector : read_vectors()) {
        const crypto::Suite* suite = suite_of(vector);
        if (suite == nullptr) {
            std::printf("skipped: %s (%s is not supported yet)\n", vector.name.c_str(),
                        vector.algorithm.c_str());
            continue;
        }
        ++packets[suite->family];
        if (vector.esn) ++with_esn;
    }
    for (const crypto::Suite& suite : crypto::suites()) EXPECT_GE(packets[suite.family], 2);
    EXPECT_GE(with_esn, 2);
}

}  // namespace
}  // namespace sallyport::test
