// SPDX-License-Identifier: Apache-2.0
//
// Keys about connections and CPUs: conntrack_in, conntrack_out, bypass_cpus, ct_mark.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "config/config.h"
#include "tests/config/texts.h"

namespace sallyport::config {
namespace {

std::string file(const std::string& gateway, const std::string& wan, const std::string& policy) {
    return "[gateway]\n" + gateway + "[port.wan0]\nrole = \"unprotected\"\n" + wan +
           "[port.lan0]\nrole = \"protected\"\n" +
           (policy.empty() ? std::string()
                           : "[[policy]]\nname = \"p\"\nlocal = \"10.1.0.0/24\"\n"
                             "remote = \"10.2.0.0/24\"\n" +
                                 policy);
}

TEST(ConfigConnections, Defaults) {
    const auto config = parse(file("", "", "action = \"bypass\"\n"), "f");
    ASSERT_TRUE(config) << all_text(config.error());
    EXPECT_EQ(config->ports[0].conntrack_in, Conntrack::off);
    EXPECT_EQ(config->ports[0].conntrack_out, Conntrack::off);
    EXPECT_TRUE(config->ports[0].bypass_cpus.empty());
    EXPECT_FALSE(config->policies[0].ct_mark.has_value());
}

TEST(ConfigConnections, Good) {
    const auto config =
        parse(file("", "conntrack_in = \"drop\"\nconntrack_out = \"punt\"\nbypass_cpus = [3, 0]\n",
                   "action = \"discard\"\nct_mark = 0x700\nct_mark_mask = 0xff00\n"),
              "f");
    ASSERT_TRUE(config) << all_text(config.error());
    EXPECT_EQ(config->ports[0].conntrack_in, Conntrack::drop);
    EXPECT_EQ(config->ports[0].conntrack_out, Conntrack::punt);
    EXPECT_EQ(config->ports[1].conntrack_in, Conntrack::off);
    EXPECT_EQ(config->ports[0].bypass_cpus, (std::vector<uint16_t>{3, 0}));
    EXPECT_EQ(config->policies[0].ct_mark, 0x700u);
    EXPECT_EQ(config->policies[0].ct_mark_mask, 0xff00u);

    const auto whole =
        parse(file("", "", "action = \"bypass\"\nct_mark = 0\nprotocol = \"udp\"\n"), "f");
    ASSERT_TRUE(whole) << all_text(whole.error());
    EXPECT_EQ(whole->policies[0].ct_mark, 0u);
    EXPECT_EQ(whole->policies[0].ct_mark_mask, 0xffffffffu);
}

TEST(ConfigConnections, EachErrorWithItsLine) {
    const std::string discard = "action = \"discard\"\n";
    const struct {
        const char* name;
        std::string text;
        const char* says;
    } rows[] = {
        {"word", file("", "conntrack_in = \"new\" #!\nconntrack_out = \"drop\"\n", ""),
         "allowed are off, punt or drop"},
        {"in alone", file("", "conntrack_in = \"drop\" #!\n", ""), "needs conntrack_out"},
        {"out alone", file("", "conntrack_out = \"punt\" #!\n", ""), "needs conntrack_in"},
        {"in, out off", file("", "conntrack_in = \"drop\" #!\nconntrack_out = \"off\"\n", ""),
         "never established"},
        {"direct egress",
         "[gateway]\negress = \"direct\"\n[port.lan0]\nrole = \"protected\"\n"
         "[port.wan0] #!\nrole = \"unprotected\"\nconntrack_in = \"punt\"\n"
         "conntrack_out = \"punt\"\n",
         "needs gateway.egress = \"devmap\""},
        {"direct egress, mark",
         "[gateway]\negress = \"direct\"\n[port.lan0]\nrole = \"protected\"\n[port.wan0]\n"
         "role = \"unprotected\"\n[[policy]] #!\nname = \"p\"\nlocal = \"10.1.0.0/24\"\n"
         "remote = \"10.2.0.0/24\"\naction = \"bypass\"\nct_mark = 1\n",
         "needs gateway.egress = \"devmap\""},
        {"CPUs, word", file("", "bypass_cpus = \"auto\" #!\n", ""), "a list of CPU numbers"},
        {"CPUs, none", file("", "bypass_cpus = [] #!\n", ""), "allowed are 1 to 64"},
        {"CPUs, too large", file("", "bypass_cpus = [1024] #!\n", ""), "0 to 1023"},
        {"CPUs, twice", file("", "bypass_cpus = [1, 0, 1] #!\n", ""), "CPU 1 stands there twice"},
        {"mark in PROTECT", file("", "", "action = \"protect\"\nct_mark = 1 #!\n"),
         "cannot stand in a protect policy"},
        {"mark, negative", file("", "", discard + "ct_mark = -1 #!\n"), "0 to 4294967295"},
        {"mark, large", file("", "", discard + "ct_mark = 4294967296 #!\n"), "0 to 4294967295"},
        {"mask alone", file("", "", discard + "ct_mark_mask = 1 #!\n"), "without ct_mark"},
        {"mask 0", file("", "", discard + "ct_mark = 0\nct_mark_mask = 0 #!\n"), "1 to 4294967295"},
        {"mark outside its mask", file("", "", discard + "ct_mark = 3 #!\nct_mark_mask = 2\n"),
         "would never match"},
        {"mark of ICMP", file("", "", discard + "protocol = \"icmp\"\nct_mark = 3 #!\n"),
         "needs protocol tcp, udp or none"},
    };
    for (const auto& row : rows) {
        SCOPED_TRACE(row.name);
        const auto config = parse(row.text, "test.toml");
        ASSERT_FALSE(config.has_value()) << row.text;
        EXPECT_EQ(config.error().size(), 1u) << all_text(config.error());
        EXPECT_EQ(config.error()[0].line, marked_line(row.text)) << all_text(config.error());
        EXPECT_NE(config.error()[0].text.find(row.says), std::string::npos)
            << config.error()[0].to_string();
    }
}

TEST(ConfigConnections, CpusThatTheMachineLacks) {
    const auto config = parse(file("", "bypass_cpus = [0, 1023]\n", ""), "f");
    ASSERT_TRUE(config) << all_text(config.error());
    const std::string text = all_text(check_against_system(*config));
    EXPECT_NE(text.find("[port.wan0] bypass_cpus: this machine has no CPU 1023 online"),
              std::string::npos)
        << text;
    EXPECT_EQ(text.find("no CPU 0 online"), std::string::npos) << text;
}

}  // namespace
}  // namespace sallyport::config
