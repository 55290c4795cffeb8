// SPDX-License-Identifier: Apache-2.0
//
// Parts of the control thread that need no running gateway.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "control/log.h"
#include "control/policy/compile.h"
#include "control/sa/sequence_block.h"
#include "control/sa/static/accept_key.h"

namespace sallyport::control {
namespace {

IpPrefix prefix(const char* text) {
    return *parse_ip_prefix(text);
}

config::Policy web_policy() {
    config::Policy policy;
    policy.name = "web";
    policy.action = config::SpdAction::protect;
    policy.local = {prefix("10.1.0.0/24"), prefix("10.1.1.0/24")};
    policy.remote = {prefix("10.2.0.0/16")};
    policy.protocol = 6;
    policy.remote_ports = {{443, 444}};
    return policy;
}

// What a pipe has to say, as far as it has it now.
std::string read_all(int fd) {
    std::string out;
    char chunk[4096];
    for (ssize_t bytes = 0; (bytes = read(fd, chunk, sizeof chunk)) > 0;) {
        out.append(chunk, static_cast<size_t>(bytes));
    }
    return out;
}

// A pager, a terminal under ^S, a journal that hangs: the gateway goes on.
TEST(Log, AReaderThatStandsStillDoesNotStopTheWriter) {
    int ends[2];
    ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
    ASSERT_EQ(fcntl(ends[0], F_SETFL, O_NONBLOCK), 0);
    const std::string text(1000, 'x');
    std::string seen;
    {
        Log log(ends[1]);
        const size_t lines = 65536 / text.size() + Log::kWaitingLinesMax + 500;
        for (size_t i = 0; i < lines; ++i) log.info(std::to_string(i) + " " + text);
        EXPECT_GT(log.lines_lost(), 400u);
        const std::string lost = std::to_string(log.lines_lost()) + " lines of this log are lost";
        std::string more;
        do {  // the reader goes on
            more = read_all(ends[0]);
            seen += more;
            log.flush();
        } while (!more.empty());
        EXPECT_NE(seen.find(lost), std::string::npos);
        log.info("and on");
        log.info(std::string(3 * Log::kLineBytesMax, 'y'));
    }
    seen += read_all(ends[0]);
    EXPECT_TRUE(seen.starts_with("info: 0 xxx"));
    EXPECT_NE(seen.find("info: 1000 xxx"), std::string::npos) << "it waited";
    EXPECT_NE(seen.find("info: and on\ninfo: yyy"), std::string::npos);
    EXPECT_TRUE(seen.ends_with("yyy...\n"));
    close(ends[0]);
    close(ends[1]);
}

TEST(PolicyControl, DirectionsMirrorEachOther) {
    const config::Policy policy = web_policy();
    const auto outbound = spd_entries(std::span(&policy, 1), SpdDirection::outbound);
    const auto inbound = spd_entries(std::span(&policy, 1), SpdDirection::inbound);
    ASSERT_EQ(outbound.size(), 2u);
    ASSERT_EQ(inbound.size(), 2u);
    EXPECT_EQ(outbound[1].source, prefix("10.1.1.0/24"));
    EXPECT_EQ(outbound[1].destination, prefix("10.2.0.0/16"));
    EXPECT_TRUE(outbound[0].has_ports);
    EXPECT_EQ(outbound[0].source_port_lo, 0);
    EXPECT_EQ(outbound[0].destination_port_lo, 443);
    EXPECT_EQ(outbound[0].destination_port_hi, 444);
    EXPECT_EQ(inbound[1].source, outbound[1].destination);
    EXPECT_EQ(inbound[1].destination, outbound[1].source);
    EXPECT_EQ(inbound[0].source_port_lo, 443);
    EXPECT_EQ(inbound[0].source_port_hi, 444);
    EXPECT_EQ(inbound[0].destination_port_hi, 65535);
}

TEST(PolicyControl, InboundSelectorsAreTheInboundEntries) {
    const config::Policy policy = web_policy();
    const auto selectors = inbound_selectors(policy);
    const auto entries = spd_entries(std::span(&policy, 1), SpdDirection::inbound);
    ASSERT_EQ(selectors.size(), entries.size());
    for (size_t i = 0; i < selectors.size(); ++i) {
        EXPECT_EQ(selectors[i].source, entries[i].source);
        EXPECT_EQ(selectors[i].destination, entries[i].destination);
        EXPECT_EQ(selectors[i].protocol, entries[i].protocol);
        EXPECT_EQ(selectors[i].source_port_lo, entries[i].source_port_lo);
        EXPECT_EQ(selectors[i].destination_port_hi, entries[i].destination_port_hi);
    }
}

TEST(PolicyControl, CompiledSpdDecidesAsTheListDoes) {
    config::Policy rest;
    rest.name = "rest";
    rest.action = config::SpdAction::discard;
    rest.local = {prefix("0.0.0.0/0")};
    rest.remote = {prefix("0.0.0.0/0")};
    const std::vector<config::Policy> policies = {web_policy(), rest};
    const auto compiled = compile_policies(policies);
    ASSERT_TRUE(compiled) << compiled.error();
    const auto lookup = [&](const char* source, const char* destination, uint16_t port) {
        const IpAddress from = *parse_ip_address(source);
        const IpAddress to = *parse_ip_address(destination);
        return compiled->spd->lookup(SpdDirection::outbound,
                                     {.family = Family::v4,
                                      .source = std::as_bytes(std::span(from.bytes)).data(),
                                      .destination = std::as_bytes(std::span(to.bytes)).data(),
                                      .protocol = 6,
                                      .ports_known = true,
                                      .source_port = 5555,
                                      .destination_port = port});
    };
    EXPECT_EQ(lookup("10.1.1.7", "10.2.3.4", 443).action, SpdAction::protect);
    EXPECT_EQ(lookup("10.1.1.7", "10.2.3.4", 445).action, SpdAction::discard);
    EXPECT_EQ(lookup("10.1.2.7", "10.2.3.4", 443).policy, PolicyId{1});
}

// XDP has judged the mark before a worker sees a packet; the worker's list goes on behind it.
TEST(PolicyControl, WorkersHaveNoPoliciesWithMarks) {
    config::Policy marked = web_policy();
    marked.name = "marked";
    marked.action = config::SpdAction::bypass;
    marked.protocol.reset();
    marked.remote_ports.reset();
    marked.ct_mark = 7;
    marked.ct_mark_mask = 0xff;
    const std::vector<config::Policy> policies = {marked, web_policy()};
    const auto compiled = compile_policies(policies);
    ASSERT_TRUE(compiled) << compiled.error();
    // In the rows for XDP both compete, though the first matches every protocol and port.
    ASSERT_EQ(compiled->outbound.entries.size(), 4u);
    EXPECT_EQ(compiled->outbound.entries[0].entry.policy, PolicyId{0});
    EXPECT_EQ(compiled->outbound.entries[0].entry.ct_mark, 7u);
    EXPECT_EQ(compiled->outbound.entries[0].entry.ct_mark_mask, 0xffu);
    EXPECT_EQ(compiled->outbound.entries[1].entry.policy, PolicyId{1});
    EXPECT_EQ(compiled->outbound.entries[1].entry.ct_mark_mask, 0u);
    ASSERT_EQ(compiled->inbound.entries.size(), 4u);
    EXPECT_EQ(compiled->inbound.entries[0].entry.ct_mark, 7u);

    const IpAddress from = *parse_ip_address("10.1.1.7");
    const IpAddress to = *parse_ip_address("10.2.3.4");
    const SpdVerdict verdict = compiled->spd->lookup(
        SpdDirection::outbound, {.family = Family::v4,
                                 .source = std::as_bytes(std::span(from.bytes)).data(),
                                 .destination = std::as_bytes(std::span(to.bytes)).data(),
                                 .protocol = 6,
                                 .ports_known = true,
                                 .source_port = 5555,
                                 .destination_port = 443});
    EXPECT_EQ(verdict.action, SpdAction::protect);
    EXPECT_EQ(verdict.policy, PolicyId{1}) << "ids are those of the whole list";

    const auto unmarked = policies_without_marks(policies);
    ASSERT_EQ(unmarked.size(), 1u);
    EXPECT_EQ(unmarked[0].name, "web");
}

// The worker checks the end of its reservation only from the low water on.
TEST(SequenceBlocks, LowWaterIsNeverBehindTheEndOfTheReservation) {
    EXPECT_EQ(low_water({.first = 1, .end = 1 + kSequenceBlock32}, kSequenceEnd32),
              1 + kSequenceBlock32 / 2);
    for (const uint64_t end : {kSequenceEnd32, kSequenceEndEsn}) {
        for (const uint64_t length : {1u, 2u, 3u, 1000u}) {
            for (const uint64_t distance : {0u, 1u, 5000u}) {
                const SequenceRange range{.first = end - distance - length, .end = end - distance};
                EXPECT_GE(low_water(range, end), range.first);
                EXPECT_LE(low_water(range, end), range.end);
            }
        }
    }
    EXPECT_EQ(low_water({.first = kSequenceEnd32 - 10, .end = kSequenceEnd32}, kSequenceEnd32),
              kSequenceEnd32)
        << "nothing is left to ask for";
}

TEST(SequenceBlocks, AreWhatAnSaSendsInTenSeconds) {
    using std::chrono::seconds;
    EXPECT_EQ(sequence_block(false, 0, seconds(1)), kSequenceBlockMin32);
    EXPECT_EQ(sequence_block(false, 0, seconds(0)), kSequenceBlockMin32);
    EXPECT_EQ(sequence_block(false, 50'000, seconds(1)), 500'000u);
    EXPECT_EQ(sequence_block(false, 500'000, seconds(10)), 500'000u);
    EXPECT_EQ(sequence_block(false, 100, seconds(0)), 1'000'000u) << "a millisecond at least";
    EXPECT_EQ(sequence_block(false, kSequenceEnd32, seconds(1)), kSequenceBlockMax32);
    EXPECT_EQ(sequence_block(true, 1, seconds(1)), kSequenceBlockEsn);
    EXPECT_EQ(sequence_block(true, 20'000'000, seconds(1)), 200'000'000u);
    EXPECT_EQ(sequence_block(true, ~uint64_t{0}, seconds(1)), kSequenceBlockMaxEsn);
}

TEST(SequenceBlocks, LowWaterBehindTheReservationIsCutBySaMemory) {
    const auto aead = crypto::Aead::create();
    ASSERT_TRUE(aead) << aead.error();
    const std::vector<std::byte> key(20, std::byte{7});
    const auto sa = make_outbound_sa(*aead, {.spi = Spi{0x1001},
                                             .source = *parse_ip_address("192.0.2.1"),
                                             .destination = *parse_ip_address("192.0.2.2"),
                                             .suite = crypto::find_suite("aes-gcm-16-128"),
                                             .key = key,
                                             .sequence_next = 5,
                                             .sequence_reserved = 100,
                                             .sequence_low_water = ~uint64_t{0}});
    ASSERT_TRUE(sa) << sa.error();
    EXPECT_EQ((*sa)->sequence_low_water, 100u);
}

class AcceptKey : public testing::Test {
  protected:
    void SetUp() override {
        std::string name = testing::TempDir() + "/sallyport-accept-XXXXXX";
        ASSERT_NE(mkdtemp(name.data()), nullptr);
        config_.state_dir = name;
        config_.file = "test.toml";
        for (const auto direction : {config::SaDirection::inbound, config::SaDirection::outbound}) {
            config::StaticSa sa;
            sa.direction = direction;
            sa.name = direction == config::SaDirection::inbound ? "in" : "out";
            const std::vector<std::byte> key(20, static_cast<std::byte>(sa.name.size()));
            sa.key = SecretBytes(key);
            config_.sas.push_back(std::move(sa));
        }
    }
    void TearDown() override { std::filesystem::remove_all(config_.state_dir); }

    config::Config config_;
};

TEST_F(AcceptKey, StartsAKeyOnce) {
    EXPECT_TRUE(accept_key(config_, "out"));
    const auto again = accept_key(config_, "out");
    ASSERT_FALSE(again);
    EXPECT_TRUE(again.error().contains("recorded already")) << again.error();
    EXPECT_TRUE(accept_key(config_, "out=77"));
    EXPECT_FALSE(accept_key(config_, "out=76"));
}

TEST_F(AcceptKey, WrongArgumentsAreNamed) {
    for (const char* argument : {"", "in", "in=5", "nobody", "out=", "out=x", "out=-1", "out=5x",
                                 "out=4294967296", "out=18446744073709551616", "out=0"}) {
        EXPECT_FALSE(accept_key(config_, argument)) << argument;
    }
    config_.sas[1].esn = true;
    EXPECT_TRUE(accept_key(config_, "out=4294967296"));
}

}  // namespace
}  // namespace sallyport::control
