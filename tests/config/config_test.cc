// SPDX-License-Identifier: Apache-2.0

// The configuration file: every refusal with its line, defaults, order, key files, the system
// check, and that no message ever contains a part of a key.

#include "config/config.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "bpf/abi.h"
#include "config/system.h"
#include "tests/config/texts.h"

namespace sallyport::config {
namespace {

constexpr std::string_view kPorts =
    "[port.wan0]\n"
    "role = \"unprotected\"\n"
    "[port.lan0]\n"
    "role = \"protected\"\n";

constexpr std::string_view kPolicy =
    "[[policy]]\n"
    "name = \"branch\"\n"
    "action = \"protect\"\n"
    "local = \"10.1.0.0/24\"\n"
    "remote = \"10.2.0.0/24\"\n";

constexpr std::string_view kOut =
    "[[sa]]\n"
    "name = \"out\"\n"
    "direction = \"outbound\"\n"
    "spi = 0x1001\n"
    "source = \"192.0.2.1\"\n"
    "destination = \"192.0.2.2\"\n"
    "suite = \"aes-gcm-16-128\"\n"
    "key = \"4aed13fb0b7c5e9a2d6f8813c0a7b5e41f2e3d4c\"\n"
    "policy = \"branch\"\n";

constexpr std::string_view kIn =
    "[[sa]]\n"
    "name = \"in\"\n"
    "direction = \"inbound\"\n"
    "spi = 0x2001\n"
    "source = \"192.0.2.2\"\n"
    "destination = \"192.0.2.1\"\n"
    "suite = \"aes-gcm-16-128\"\n"
    "key = \"91c3d5f70213243546576879a8b9cadb7d6c5b4a\"\n"
    "policy = \"branch\"\n";

std::string_view key_of(std::string_view line) {
    return line.substr(0, line.starts_with('[') ? line.rfind(']') + 1 : line.find(" ="));
}

// `table` with lines replaced, added ("key = value") or removed ("-key").
std::string edited(std::string_view table, const std::vector<std::string>& edits) {
    std::vector<std::string> lines;
    std::istringstream stream{std::string(table)};
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    for (const std::string& edit : edits) {
        const bool removes = edit.starts_with('-');
        const std::string key(removes ? std::string_view(edit).substr(1) : key_of(edit));
        const auto found =
            std::ranges::find_if(lines, [&](const auto& line) { return key_of(line) == key; });
        if (removes) {
            EXPECT_NE(found, lines.end()) << edit;
            lines.erase(found);
        } else if (found != lines.end()) {
            *found = edit;
        } else {
            lines.push_back(edit);
        }
    }
    std::string text;
    for (const std::string& line : lines) text += line + "\n";
    return text;
}

std::string with(std::string_view text) {
    return std::string(kPorts) + std::string(text);
}
std::string port(const std::vector<std::string>& edits) {
    return "[port.lan0]\nrole = \"protected\"\n" +
           edited("[port.wan0]\nrole = \"unprotected\"\n", edits);
}
std::string deny(std::string_view rule) {
    return with("[[port.wan0.deny]]\n" + std::string(rule) + "\n");
}
std::string policy(const std::vector<std::string>& edits) {
    return with(edited(kPolicy, edits));
}
std::string out(const std::vector<std::string>& edits) {
    return with(std::string(kPolicy) + edited(kOut, edits));
}
std::string in(const std::vector<std::string>& edits) {
    return with(std::string(kPolicy) + edited(kIn, edits));
}
std::string both(const std::vector<std::string>& in_edits) {
    return with(std::string(kPolicy) + std::string(kOut) + edited(kIn, in_edits));
}

struct Row {
    const char* name;
    std::string text;  // "#!" marks the line the error must name
    const char* says;
};

std::vector<Row> rows() {
    const std::string q65 = [] {
        std::string list;
        for (int i = 0; i < 65; ++i) list += std::to_string(i) + ", ";
        return list;
    }();
    std::string many_rules;
    for (int i = 0; i <= SP_EGRESS_RULES_MAX; ++i) {
        many_rules += "[[port.wan0.deny]]" + std::string(i == 0 ? " #!" : "") + "\nprotocol = 6\n";
    }
    std::string many_ports = "[port.p0] #!\nrole = \"protected\"\n";
    for (int i = 1; i <= SP_PORTS_MAX; ++i) {
        many_ports += "[port.p" + std::to_string(i) + "]\nrole = \"unprotected\"\n";
    }
    std::string many_devices = "[gateway]\nforward_to = [";
    for (int i = 0; i <= SP_FORWARD_TO_MAX; ++i) {
        many_devices += "\"d" + std::to_string(i) + "\", ";
    }
    many_devices = with(many_devices + "] #!\n");
    std::string many_pairs = "local = [";
    for (int i = 0; i < 33; ++i) many_pairs += "\"10.9." + std::to_string(i) + ".0/24\", ";
    many_pairs += "]";
    return {
        // --- not TOML, and what the parser must be kept from ---
        {"syntax", with("[gateway #!\n"), "not valid TOML"},
        {"no value", with("[gateway]\ndevice = #!\n"), "not valid TOML"},
        {"header without name", with("[gateway]\n[# #!\n"), "expected the name of a table"},
        {"list header without name", with("[[ = ]] #!\n"), "expected the name of a table"},
        {"letter outside strings", with("[gateway]\nmax_sas = 1\xd1\x98 #!\n"), "not ASCII"},
        {"letter in string", with("[gateway]\nstate_dir = \"/\xd1\x98\" #!\n"), "not ASCII"},
        {"key twice", with("[gateway]\nmax_sas = 1\nmax_sas = 2 #!\n"), "defined a second time"},
        {"table twice", with("[gateway]\n[memory]\n[gateway] #!\n"), "defined a second time"},
        {"deep name", with("a.b.c.d.e.f.g.h.i.j = 1 #!\n"), "more than 8 dots"},
        {"deep list", with("x = [[[[[[[[[[[[[[[[[[ #!\n"), "nested more than 16 deep"},
        // --- keys that do not exist ---
        {"unknown section", with("[gatway] #!\n"), "did you mean 'gateway'?"},
        {"unknown top key", "verbose = true #!\n" + std::string(kPorts), "the file has no key"},
        {"unknown gateway key", with("[gateway]\ndevise = \"x\" #!\n"), "did you mean 'device'?"},
        {"unknown workers key", with("[workers]\nzzz = 1 #!\n"), "allowed are cpus or spin_us"},
        {"unknown memory key", with("[memory]\nhuge_pages = true #!\n"),
         "did you mean 'hugepages'?"},
        {"unknown port key", port({"mtu = 5 #!"}), "[port.wan0] has no key 'mtu'"},
        {"unknown deny key", deny("src = \"10.0.0.0/8\" #!"), "has no key 'src'"},
        {"unknown policy key", policy({"prio = 1 #!"}), "[[policy]] 'branch' has no key 'prio'"},
        {"unknown sa key", out({"replay = 1 #!"}), "[[sa]] 'out' has no key 'replay'"},
        // --- wrong types ---
        {"gateway no table", "gateway = 1 #!\n" + std::string(kPorts), "must be a table"},
        {"policy no list", with("[policy] #!\nname = \"x\"\n"), "must be written [[policy]]"},
        {"sa no list", with("[sa] #!\n"), "must be written [[sa]]"},
        {"port no table", "port.x = 1 #!\nport.wan0.role = \"unprotected\"\n", "is not a table"},
        {"string wanted", with("[gateway]\ndevice = 1 #!\n"), "is an integer, must be a string"},
        {"integer wanted", with("[gateway]\nmax_sas = \"1\" #!\n"), "is a string, must be an int"},
        {"boolean wanted", with("[memory]\nhugepages = 1 #!\n"), "must be true or false"},
        {"fraction", with("[workers]\nspin_us = 1.5 #!\n"), "is a number with a fraction"},
        {"date", with("[workers]\nspin_us = 2020-01-01 #!\n"), "is a date or time"},
        // --- gateway ---
        {"device long", with("[gateway]\ndevice = \"a234567890123456\" #!\n"), "1 to 15"},
        {"device slash", with("[gateway]\ndevice = \"a/b\" #!\n"), "without space, '/'"},
        {"device pattern", with("[gateway]\ndevice = \"sp%d\" #!\n"), "cannot be a device"},
        {"egress", with("[gateway]\negress = \"tc\" #!\n"), "allowed are devmap or direct"},
        {"at_stop", with("[gateway]\nat_stop = \"ajar\" #!\n"), "allowed are closed or open"},
        {"unknown_spi", with("[gateway]\nunknown_spi = \"x\" #!\n"), "allowed are drop or punt"},
        {"state_dir", with("[gateway]\nstate_dir = \"var\" #!\n"), "absolute path"},
        {"socket long", with("[gateway]\ncontrol_socket = \"/" + std::string(108, 'x') + "\" #!\n"),
         "at most 107 bytes"},
        {"max_sas 0", with("[gateway]\nmax_sas = 0 #!\n"), "allowed are 1 to 262144"},
        // --- workers, memory ---
        {"cpus word", with("[workers]\ncpus = \"all\" #!\n"), "allowed are \"auto\" or a list"},
        {"cpus number", with("[workers]\ncpus = 2 #!\n"), "must be \"auto\" or a list"},
        {"cpus empty", with("[workers]\ncpus = [] #!\n"), "allowed are 1 to 64"},
        {"cpus many", with("[workers]\ncpus = [" + q65 + "] #!\n"), "allowed are 1 to 64"},
        {"cpu twice", with("[workers]\ncpus = [1, 1] #!\n"), "twice"},
        {"cpu range", with("[workers]\ncpus = [1024] #!\n"), "0 to 1023"},
        {"spin", with("[workers]\nspin_us = 100001 #!\n"), "allowed are 0 to 100000 microseconds"},
        {"frames few", with("[memory]\nframes = 512 #!\n"), "allowed are 1024 to 1048576"},
        {"frames many", with("[memory]\nframes = 2097152 #!\n"), "allowed are 1024 to 1048576"},
        {"frames power", with("[memory]\nframes = 3000 #!\n"), "no power of two"},
        // --- ports ---
        {"no ports", "[gateway]\n", "no port has role = \"unprotected\""},
        {"no protected", "[port.wan0] #!\nrole = \"unprotected\"\n", "role = \"protected\""},
        {"no unprotected", "[port.lan0] #!\nrole = \"protected\"\n", "role = \"unprotected\""},
        {"many ports", many_ports, "17 ports: allowed are at most 14"},
        {"forward_to type", with("[gateway]\nforward_to = \"eth2\" #!\n"), "a list of device"},
        {"forward_to element", with("[gateway]\nforward_to = [2] #!\n"), "every element"},
        {"forward_to name", with("[gateway]\nforward_to = [\"a b\"] #!\n"), "a device name has"},
        {"forward_to twice", with("[gateway]\nforward_to = [\"a\", \"b\", \"a\"] #!\n"), "twice"},
        {"forward_to many", many_devices, "names 33 devices: allowed are at most 32"},
        {"forward_to a port",
         with("[gateway]\nforward_to = [\"x\"]\n[port.dmz]\nrole = \"protected\"\n"
              "device = \"x\" #!\n"),
         "is in gateway.forward_to"},
        {"interface is the tap", with("[gateway]\nxfrm_interface = \"sp0\" #!\n"),
         "is the name of gateway.device too"},
        {"port is the interface",
         with("[gateway]\nxfrm_interface = \"ipsec0\"\n[port.dmz] #!\nrole = \"protected\"\n"
              "device = \"ipsec0\"\n"),
         "gateway.xfrm_interface"},
        {"role missing", port({"[port.wan0] #!", "-role"}), "lacks 'role'"},
        {"role", port({"role = \"outside\" #!"}), "allowed are unprotected or protected"},
        {"port name", with("[port.\"a b\"] #!\nrole = \"protected\"\ndevice = \"x\"\n"),
         "no valid name"},
        {"port name as device", with("[port.a234567890123456] #!\nrole = \"protected\"\n"),
         "add 'device'"},
        {"same device", with("[port.dmz]\nrole = \"protected\"\ndevice = \"wan0\" #!\n"),
         "used by another port in line 1"},
        {"port named like tap", with("[port.sp0] #!\nrole = \"protected\"\n"), "gateway.device"},
        {"device like tap", port({"device = \"sp0\" #!"}), "is gateway.device"},
        {"queues word", port({"queues = \"all\" #!"}), "\"auto\" or 1 to 64"},
        {"queues 0", port({"queues = 0 #!"}), "allowed are 1 to 64"},
        {"queues 65", port({"queues = 65 #!"}), "allowed are 1 to 64"},
        {"xdp_mode", port({"xdp_mode = \"hw\" #!"}), "allowed are auto, native or generic"},
        {"bind_mode", port({"bind_mode = \"zc\" #!"}), "allowed are auto, copy or zero-copy"},
        {"generic zero-copy", port({"xdp_mode = \"generic\"", "bind_mode = \"zero-copy\" #!"}),
         "needs the driver's own XDP"},
        // --- egress filter ---
        {"deny not list", port({"deny = 1 #!"}), "must be written [[port.wan0.deny]]"},
        {"deny empty", with("[[port.wan0.deny]] #!\n"), "would deny everything"},
        {"deny many", with(many_rules), "33 rules: allowed are at most 32"},
        {"deny families", deny("source = \"10.0.0.0/8\"\ndestination = \"2001:db8::/32\" #!"),
         "another family"},
        {"deny port alone", deny("port = 25 #!"), "ports need protocol"},
        {"deny port icmp", deny("protocol = \"icmp\"\nport = 25 #!"), "ports need protocol"},
        {"deny prefix", deny("source = \"10.0.0.1/8\" #!"), "write 10.0.0.0/8"},
        {"deny icmp v6", deny("source = \"2001:db8::/32\"\nprotocol = \"icmp\" #!"), "icmpv6"},
        {"deny icmpv6 v4", deny("source = \"10.0.0.0/8\"\nprotocol = 58 #!"), "write \"icmp\""},
        {"port range", deny("protocol = 6\nport = \"30-20\" #!"), "the lower one first"},
        {"port word", deny("protocol = 6\nport = \"smtp\" #!"), "no port or range"},
        {"port high", deny("protocol = 6\nport = 65536 #!"), "allowed are 0 to 65535"},
        {"port type", deny("protocol = 6\nport = [1] #!"), "is a list"},
        // --- policies ---
        {"policy name missing", policy({"[[policy]] #!", "-name"}), "lacks 'name'"},
        {"policy name", policy({"name = \"a b\" #!"}), "no valid name"},
        {"policy name twice",
         with(std::string(kPolicy) + edited(kPolicy, {"name = \"branch\" #!"})),
         "name of another policy in line 6"},
        {"if_id 0", policy({"if_id = 0 #!"}), "allowed are 1 to 4294967295"},
        {"if_id without interface", policy({"[[policy]] #!", "if_id = 7"}), "write xfrm_interface"},
        {"if_id of bypass", policy({"action = \"bypass\"", "if_id = 7 #!"}), "is for action"},
        {"action missing", policy({"[[policy]] #!", "-action"}), "protect, bypass or discard"},
        {"action", policy({"action = \"accept\" #!"}), "protect, bypass or discard"},
        {"local missing", policy({"[[policy]] #!", "-local"}), "lacks 'local'"},
        {"remote missing", policy({"[[policy]] #!", "-remote"}), "lacks 'remote'"},
        {"local type", policy({"local = 10 #!"}), "a prefix in quotes or a list"},
        {"local empty", policy({"local = [] #!"}), "0 prefixes"},
        {"local element", policy({"local = [\"10.0.0.0/8\",\n 5] #!"}), "must be a prefix"},
        {"local host bits", policy({"local = \"10.1.0.1/24\" #!"}), "write 10.1.0.0/24"},
        {"local bits", policy({"local = \"10.1.0.0/33\" #!"}), "0 to 32"},
        {"local nul", policy({"local = \"10.1.0.0\\u0000x/24\" #!"}), "not an IPv4 or IPv6 prefix"},
        {"local families", policy({"local = [\"10.0.0.0/8\", \"2001:db8::/32\"] #!"}),
         "another family than the prefixes before it"},
        {"local twice", policy({"local = [\"10.0.0.0/8\", \"10.0.0.0/8\"] #!"}), "twice"},
        {"families", policy({"remote = \"2001:db8::/32\" #!"}), "another family than local"},
        {"pairs", policy({many_pairs, "remote = \"10.8.0.0/16\" #!"}), "33 pairs"},
        {"protocol word", policy({"protocol = \"gre\" #!"}), "is no protocol"},
        {"protocol 0", policy({"protocol = 0 #!"}), "leave it out for any"},
        {"protocol 256", policy({"protocol = 256 #!"}), "1 to 255"},
        {"protocol family", policy({"protocol = \"icmpv6\" #!"}), "not used with IPv4"},
        {"ports of any", policy({"local_port = 80 #!"}), "ports need protocol"},
        {"ports of esp", policy({"protocol = \"esp\"", "remote_port = 80 #!"}),
         "ports need protocol"},
        {"priority", policy({"priority = -1 #!"}), "allowed are 0 to 4294967295"},
        // --- SAs ---
        {"sa name missing", out({"[[sa]] #!", "-name"}), "lacks 'name'"},
        {"sa name twice", both({"name = \"out\" #!"}), "name of another SA in line 11"},
        {"direction missing", out({"[[sa]] #!", "-direction"}), "lacks 'direction'"},
        {"direction", out({"direction = \"both\" #!"}), "inbound or outbound"},
        {"spi missing", out({"[[sa]] #!", "-spi"}), "lacks 'spi'"},
        {"spi reserved", out({"spi = 255 #!"}), "255 is out of range: allowed are 256"},
        {"spi 0", out({"spi = 0 #!"}), "RFC 4303 2.1"},
        {"spi wide", out({"spi = 0x100000000 #!"}), "to 4294967295"},
        {"spi twice inbound",
         with(std::string(kPolicy) + std::string(kIn) +
              edited(kIn, {"name = \"in2\"", "spi = 8193 #!",
                           "key = \"0102030405060708090a0b0c0d0e0f1011121314\""})),
         "another SA to 192.0.2.1 has this SPI in line 13"},
        {"spi twice outbound",
         with(std::string(kPolicy) + edited(kPolicy, {"name = \"b2\""}) + std::string(kOut) +
              edited(kOut, {"name = \"out2\"", "spi = 0x1001 #!", "policy = \"b2\"",
                            "key = \"0102030405060708090a0b0c0d0e0f1011121314\""})),
         "another SA to 192.0.2.2 has this SPI"},
        {"protect multicast", policy({"remote = [\"10.2.0.0/24\", \"239.1.0.0/16\"] #!"}),
         "'239.1.0.0/16' is multicast"},
        {"protect broadcast", policy({"remote = \"255.255.255.255/32\" #!"}), "is the broadcast"},
        {"protect multicast v6",
         policy({"local = \"2001:db8:1::/48\"", "remote = \"ff0e::/16\" #!"}), "is multicast"},
        {"protect link-local", policy({"local = \"fe80::/64\" #!", "remote = \"2001:db8:2::/48\""}),
         "is link-local"},
        {"source missing", out({"[[sa]] #!", "-source"}), "lacks 'source'"},
        {"destination missing", out({"[[sa]] #!", "-destination"}), "lacks 'destination'"},
        {"source", out({"source = \"192.0.2\" #!"}), "not an IPv4 or IPv6 address"},
        {"source prefix", out({"source = \"192.0.2.1/32\" #!"}), "not an IPv4 or IPv6 address"},
        {"outer families", out({"destination = \"2001:db8::1\" #!"}), "another family"},
        {"outer equal", out({"destination = \"192.0.2.1\" #!"}), "equals source"},
        {"unspecified", out({"source = \"0.0.0.0\" #!"}), "unspecified"},
        {"multicast", out({"destination = \"224.0.0.1\" #!"}), "multicast"},
        {"broadcast", out({"destination = \"255.255.255.255\" #!"}), "broadcast"},
        {"loopback", out({"source = \"127.0.0.1\" #!"}), "loopback"},
        {"this network", out({"source = \"0.1.2.3\" #!"}), "this network"},
        {"unspecified v6", out({"source = \"::\" #!", "destination = \"2001:db8::2\""}),
         "unspecified"},
        {"multicast v6", out({"source = \"2001:db8::1\"", "destination = \"ff02::1\" #!"}),
         "multicast"},
        {"link-local v6", out({"source = \"2001:db8::1\"", "destination = \"febf::2\" #!"}),
         "link-local"},
        {"mapped v6", out({"source = \"::ffff:192.0.2.1\" #!", "destination = \"2001:db8::2\""}),
         "IPv4-mapped"},
        {"suite missing", out({"[[sa]] #!", "-suite"}), "lacks 'suite'"},
        {"suite unknown", out({"suite = \"rot13\" #!"}),
         "is not known: allowed are aes-gcm-16-128"},
        {"suite near", out({"suite = \"aes-gcm-16-182\" #!"}), "did you mean 'aes-gcm-16-1"},
        {"des", out({"suite = \"des-cbc\" #!"}), "refused: a 56-bit key"},
        {"3des", out({"suite = \"3DES\" #!"}), "refused: its 64-bit blocks"},
        {"des-ede3", out({"suite = \"des-ede3-cbc\" #!"}), "refused: its 64-bit blocks"},
        {"md5", out({"suite = \"aes-cbc-128+hmac-md5\" #!"}), "refused: collisions of MD5"},
        {"blowfish", out({"suite = \"blowfish\" #!"}), "refused: its 64-bit blocks"},
        {"cast", out({"suite = \"cast128-cbc\" #!"}), "refused: its 64-bit blocks"},
        {"rc4", out({"suite = \"rc4\" #!"}), "use aes-gcm-16-128"},
        {"null", out({"suite = \"null\" #!"}), "refused: without encryption and integrity"},
        {"cbc", out({"suite = \"aes-cbc-128-hmac-sha-256\" #!"}),
         "not supported by this version; use aes-gcm-16-128"},
        {"camellia", out({"suite = \"camellia-cbc-128\" #!"}), "not supported by this version"},
        {"key of ChaCha20", out({"suite = \"chacha20-poly1305\"", "key = \"4aed13fb\" #!"}),
         "chacha20-poly1305 takes 72"},
        {"key of AES-CCM", out({"suite = \"aes-ccm-16-128\"", "key = \"4aed13fb\" #!"}),
         "aes-ccm-16-128 takes 38"},
        {"key missing", out({"[[sa]] #!", "-key"}), "give key"},
        {"key and file", out({"key_file = \"k\" #!"}), "stands beside key"},
        {"key short", out({"key = \"4aed13fb\" #!"}), "has 8 hex digits; aes-gcm-16-128 takes 40"},
        {"key of other suite",
         out({"suite = \"aes-gcm-16-256\"",
              "key = \"4aed13fb0b7c5e9a2d6f8813c0a7b5e41f2e3d4c\" #!"}),
         "takes 72"},
        {"key not hex", out({"key = \"4aed13fb0b7c5e9a2d6f8813c0a7b5e41f2e3d4g\" #!"}),
         "hex digits"},
        {"key 0x", out({"key = \"0x4aed13fb0b7c5e9a2d6f8813c0a7b5e41f2e3d4c\" #!"}), "without 0x"},
        {"key zero", out({"key = \"0000000000000000000000000000000001020304\" #!"}), "all zero"},
        {"key type", out({"key = 1234 #!"}), "is an integer, must be a string"},
        {"key_file none", out({"-key", "key_file = \"none.key\" #!"}), "cannot be read: No such"},
        {"key_file device", out({"-key", "key_file = \"/dev/zero\" #!"}), "not a regular file"},
        {"key_file empty", out({"-key", "key_file = \"\" #!"}), "is not a path"},
        {"key shared by directions",
         both({"key = \"4aed13fb0b7c5e9a2d6f8813c0a7b5e41f2e3d4c\" #!"}),
         "the SA in line 10 has the same one: this side and the peer"},
        {"key shared, other salt", both({"key = \"4aed13fb0b7c5e9a2d6f8813c0a7b5e4ffffffff\" #!"}),
         "has the same one"},
        {"key shared by outbound",
         with(std::string(kPolicy) + edited(kPolicy, {"name = \"b2\""}) + std::string(kOut) +
              edited(kOut, {"name = \"out2\"", "spi = 0x1002", "policy = \"b2\"",
                            "key = \"4aed13fb0b7c5e9a2d6f8813c0a7b5e41f2e3d4c\" #!"})),
         "both SAs would encrypt"},
        {"key shared by inbound",
         with(std::string(kPolicy) + std::string(kIn) +
              edited(kIn, {"name = \"in2\"", "spi = 0x2002",
                           "key = \"91c3d5f70213243546576879a8b9cadb7d6c5b4a\" #!"})),
         "senders of both SAs"},
        {"esn type", out({"esn = \"yes\" #!"}), "must be true or false"},
        {"window of outbound", out({"replay_window = 64 #!"}), "for inbound SAs only"},
        {"window small", in({"replay_window = 31 #!"}), "0 (off) and 32 to 4096"},
        {"window large", in({"replay_window = 4097 #!"}), "0 to 4096"},
        {"esn without window", in({"esn = true", "replay_window = 0 #!"}), "RFC 4303 3.3.3"},
        {"mtu of inbound", in({"mtu = 1500 #!"}), "for outbound SAs only"},
        {"df of inbound", in({"df = \"set\" #!"}), "for outbound SAs only"},
        {"dscp of inbound", in({"copy_dscp = true #!"}), "for outbound SAs only"},
        {"ttl of inbound", in({"outer_ttl = 5 #!"}), "for outbound SAs only"},
        {"df", out({"df = \"keep\" #!"}), "allowed are copy, set or clear"},
        {"ttl 0", out({"outer_ttl = 0 #!"}), "allowed are 1 to 255"},
        {"mtu small", out({"mtu = 500 #!"}), "allowed are 576 to"},
        {"mtu small v6",
         out({"source = \"2001:db8::1\"", "destination = \"2001:db8::2\"", "mtu = 1279 #!"}),
         "allowed are 1280 to"},
        {"mtu large", out({"mtu = 9000 #!"}), "allowed are 576 to 3762"},
        {"policy missing", out({"[[sa]] #!", "-policy"}), "lacks 'policy'"},
        {"policy absent", out({"policy = \"brunch\" #!"}), "did you mean 'branch'?"},
        {"policy absent, none near", out({"policy = \"elsewhere\" #!"}),
         "no policy is named 'elsewhere'. Write"},
        {"policy bypasses",
         with(edited(kPolicy, {"action = \"bypass\""}) + edited(kOut, {"policy = \"branch\" #!"})),
         "does not protect"},
        {"two outbound",
         with(std::string(kPolicy) + std::string(kOut) +
              edited(kOut, {"name = \"out2\"", "spi = 0x1002", "policy = \"branch\" #!",
                            "key = \"0102030405060708090a0b0c0d0e0f1011121314\""})),
         "one outbound SA for each policy"},
        {"worker", out({"worker = 2 #!"}) + "[workers]\ncpus = [0, 1]\n", "allowed are 0 to 1"},
        {"worker range", out({"worker = 64 #!"}), "allowed are 0 to 63"},
        {"max_sas", both({"[[sa]] #!"}) + "[gateway]\nmax_sas = 1\n", "room for 1"},
    };
}

TEST(ConfigErrors, EachIsOneErrorWithItsLine) {
    for (const Row& row : rows()) {
        SCOPED_TRACE(row.name);
        const auto config = parse(row.text, "test.toml");
        ASSERT_FALSE(config.has_value()) << row.text;
        // A file without any port lacks two things.
        const size_t expected = std::string_view(row.name) == "no ports" ? 2 : 1;
        EXPECT_EQ(config.error().size(), expected) << all_text(config.error());
        const Error& error = config.error()[0];
        EXPECT_EQ(error.line, marked_line(row.text)) << error.to_string() << "\n" << row.text;
        EXPECT_NE(error.text.find(row.says), std::string::npos) << error.to_string();
        const std::string prefix =
            error.line == 0 ? "test.toml: " : "test.toml:" + std::to_string(error.line) + ": ";
        EXPECT_TRUE(error.to_string().starts_with(prefix)) << error.to_string();
    }
}

TEST(ConfigErrors, AllOfAFileAreReportedInOrder) {
    const auto config = parse(
        "[gateway]\n"
        "egress = \"x\"\n"
        "bogus = 1\n"
        "[port.wan0]\n"
        "role = \"x\"\n"
        "[[sa]]\n"
        "spi = 1\n"
        "[memory]\n"
        "frames = 1\n",
        "f");
    ASSERT_FALSE(config.has_value());
    std::vector<uint32_t> lines;
    for (const Error& error : config.error()) lines.push_back(error.line);
    // The SA lacks name, direction, source, destination, suite, key and policy, and its SPI is
    // wrong.
    EXPECT_EQ(lines, (std::vector<uint32_t>{2, 3, 5, 6, 6, 6, 6, 6, 6, 6, 7, 9}))
        << all_text(config.error());
}

TEST(ConfigErrors, ManyAreCutOffWithANote) {
    std::string text;
    for (int i = 0; i < 1500; ++i) text += "zz" + std::to_string(i) + " = 1\n";
    const auto config = parse(text, "f");
    ASSERT_FALSE(config.has_value());
    EXPECT_EQ(config.error().size(), 1001u);
    EXPECT_NE(config.error().back().text.find("more errors"), std::string::npos);
}

TEST(ConfigErrors, ControlCharactersDoNotReachTheTerminal) {
    const auto config = parse(out({"df = \"\\u001b[2J\\n\""}), "f");
    ASSERT_FALSE(config.has_value());
    EXPECT_NE(config.error()[0].text.find("'\\x1b[2J\\x0a'"), std::string::npos);
}

TEST(ConfigErrors, HostileNestingIsRefusedQuickly) {
    std::string name = "a";
    for (int i = 0; i < 500'000; ++i) name += ".a";
    EXPECT_FALSE(parse(name + " = 1\n", "f").has_value());
    EXPECT_FALSE(parse("[" + name + "]\n", "f").has_value());
    EXPECT_FALSE(parse("x = " + std::string(1'000'000, '['), "f").has_value());
    // What looks deep but is text: strings of all four kinds, and comments.
    const std::string dots(40, '.');
    const std::string brackets(40, '[');
    const auto harmless = parse("# " + dots + brackets + "\n" +
                                    "[gateway]\n"
                                    "state_dir = \"/x" +
                                    dots + "\\\"" + brackets +
                                    "\"\n"
                                    "control_socket = '''/x" +
                                    dots + "\n'" + "'''\n",
                                "f");
    EXPECT_EQ(all_text(harmless.error()).find("dots"), std::string::npos);
    EXPECT_EQ(all_text(harmless.error()).find("deep"), std::string::npos);
    EXPECT_FALSE(parse(std::string((4u << 20) + 1, '\n'), "f").has_value());
}

TEST(ConfigDefaults, AreThoseOfTheReference) {
    const auto config = parse(kPorts, "/etc/x.toml");
    ASSERT_TRUE(config.has_value()) << all_text(config.error());
    EXPECT_EQ(config->file, "/etc/x.toml");
    EXPECT_EQ(config->device, "sp0");
    EXPECT_TRUE(config->forward_to.empty());
    EXPECT_EQ(config->egress, EgressMode::devmap);
    EXPECT_EQ(config->unknown_spi, UnknownSpi::drop);
    EXPECT_FALSE(config->at_stop.has_value());
    EXPECT_FALSE(config->closes_at_stop()) << "the kernel goes on with the SAs of an IKE daemon";
    EXPECT_EQ(config->state_dir, "/var/lib/sallyport");
    EXPECT_EQ(config->control_socket, "/run/sallyport/control.sock");
    EXPECT_EQ(config->max_sas, 4096u);
    EXPECT_TRUE(config->workers.cpus.empty());
    EXPECT_EQ(config->workers.spin_us, 50u);
    EXPECT_EQ(config->memory.frames, 16384u);
    EXPECT_TRUE(config->memory.hugepages);
    ASSERT_EQ(config->ports.size(), 2u);
    EXPECT_EQ(config->ports[0].name, "wan0");  // file order, not by name
    EXPECT_EQ(config->ports[0].device, "wan0");
    EXPECT_EQ(config->ports[0].role, PortRole::unprotected_side);
    EXPECT_FALSE(config->ports[0].queues.has_value());
    EXPECT_EQ(config->ports[0].xdp_mode, XdpMode::automatic);
    EXPECT_EQ(config->ports[0].bind_mode, BindMode::automatic);
    EXPECT_EQ(config->ports[1].name, "lan0");
    EXPECT_EQ(config->ports[1].location.line, 3u);
    EXPECT_TRUE(config->policies.empty());
}

TEST(ConfigDefaults, OfAnSa) {
    const auto config = parse(both({}), "f");
    ASSERT_TRUE(config.has_value()) << all_text(config.error());
    ASSERT_EQ(config->sas.size(), 2u);
    EXPECT_TRUE(config->closes_at_stop()) << "nobody else has static SAs";
    const StaticSa& sa = config->sas[0];
    EXPECT_EQ(sa.spi, Spi{0x1001});
    EXPECT_EQ(to_string(sa.source), "192.0.2.1");
    EXPECT_EQ(sa.key.size(), 20u);
    EXPECT_EQ(sa.key.bytes()[0], std::byte{0x4a});
    EXPECT_EQ(sa.key.bytes()[19], std::byte{0x4c});
    EXPECT_FALSE(sa.esn);
    EXPECT_FALSE(sa.worker.has_value());
    EXPECT_EQ(sa.df, DfPolicy::copy);
    EXPECT_TRUE(sa.copy_dscp);
    EXPECT_EQ(sa.outer_ttl, 64);
    EXPECT_EQ(sa.mtu, 0);
    EXPECT_EQ(config->sas[1].direction, SaDirection::inbound);
    EXPECT_EQ(config->sas[1].replay_window, 64u);
}

TEST(ConfigGood, EverythingAtOnce) {
    const auto config = parse(R"(
[gateway]
device = "spx"
forward_to = ["docker0", "eth2"]
egress = "direct"
unknown_spi = "punt"
at_stop = "open"
state_dir = "/tmp/state"
control_socket = "/tmp/c.sock"
max_sas = 10
[workers]
cpus = [3, 1]
spin_us = 0
[memory]
frames = 1024
hugepages = false
[port.outside]
role = "unprotected"
device = "eth1"
queues = 2
xdp_mode = "native"
bind_mode = "zero-copy"
[[port.outside.deny]]
source = "10.0.0.0/8"
destination = "203.0.113.0/24"
protocol = "tcp"
port = "1000-2000"
[[port.outside.deny]]
protocol = 17
port = 53
[port.inside]
role = "protected"
queues = "auto"
xdp_mode = "generic"
bind_mode = "copy"
[[policy]]
name = "p"
action = "protect"
local = ["10.1.0.0/24", "10.1.1.0/24"]
remote = ["10.2.0.0/16"]
protocol = "tcp"
local_port = 80
remote_port = "1024-65535"
priority = 7
[[sa]]
name = "o"
direction = "outbound"
spi = 4294967295
source = "2001:db8::1"
destination = "2001:db8::2"
suite = "aes-gcm-16-256"
key = "4AED13FB0b7c5e9a2d6f8813c0a7b5e44aed13fb0b7c5e9a2d6f8813c0a7b5e401020304"
esn = true
policy = "p"
worker = 1
df = "set"
copy_dscp = false
outer_ttl = 255
mtu = 1400
[[sa]]
name = "i"
direction = "inbound"
spi = 256
source = "2001:db8::2"
destination = "2001:db8::1"
suite = "aes-gcm-16-192"
key = "5aed13fb0b7c5e9a2d6f8813c0a7b5e44aed13fb0b7c5e9a01020304"
esn = true
replay_window = 4096
policy = "p"
)",
                              "f");
    ASSERT_TRUE(config.has_value()) << all_text(config.error());
    EXPECT_EQ(config->device, "spx");
    EXPECT_EQ(config->egress, EgressMode::direct);
    EXPECT_EQ(config->forward_to, (std::vector<std::string>{"docker0", "eth2"}));
    EXPECT_EQ(config->unknown_spi, UnknownSpi::punt);
    EXPECT_EQ(config->at_stop, AtStop::open);
    EXPECT_FALSE(config->closes_at_stop());
    EXPECT_EQ(config->workers.cpus, (std::vector<uint16_t>{3, 1}));
    EXPECT_EQ(config->workers.spin_us, 0u);
    EXPECT_FALSE(config->memory.hugepages);
    const Port& outside = config->ports.at(0);
    EXPECT_EQ(outside.device, "eth1");
    EXPECT_EQ(outside.queues, 2);
    EXPECT_EQ(outside.xdp_mode, XdpMode::native);
    EXPECT_EQ(outside.bind_mode, BindMode::zero_copy);
    ASSERT_EQ(outside.egress_deny.size(), 2u);
    EXPECT_EQ(to_string(*outside.egress_deny[0].source), "10.0.0.0/8");
    EXPECT_EQ(to_string(*outside.egress_deny[0].destination), "203.0.113.0/24");
    EXPECT_EQ(outside.egress_deny[0].protocol, IPPROTO_TCP);
    EXPECT_EQ(outside.egress_deny[0].port_lo, 1000);
    EXPECT_EQ(outside.egress_deny[0].port_hi, 2000);
    EXPECT_FALSE(outside.egress_deny[1].source.has_value());
    EXPECT_EQ(outside.egress_deny[1].port_lo, 53);
    EXPECT_EQ(outside.egress_deny[1].port_hi, 53);
    EXPECT_EQ(config->ports.at(1).xdp_mode, XdpMode::generic);
    const Policy& policy = config->policies.at(0);
    EXPECT_EQ(policy.local.size(), 2u);
    EXPECT_EQ(policy.local_ports, std::pair(uint16_t{80}, uint16_t{80}));
    EXPECT_EQ(policy.remote_ports, std::pair(uint16_t{1024}, uint16_t{65535}));
    EXPECT_EQ(policy.priority, 7u);
    const StaticSa& sa = config->sas.at(0);
    EXPECT_EQ(sa.spi, Spi{0xffffffff});
    EXPECT_EQ(sa.suite->name, "aes-gcm-16-256");
    EXPECT_EQ(sa.key.size(), 36u);
    EXPECT_TRUE(sa.esn);
    EXPECT_EQ(sa.worker, WorkerId{1});
    EXPECT_EQ(sa.df, DfPolicy::set);
    EXPECT_FALSE(sa.copy_dscp);
    EXPECT_EQ(sa.outer_ttl, 255);
    EXPECT_EQ(sa.mtu, 1400);
    EXPECT_EQ(config->sas.at(1).replay_window, 4096u);
    EXPECT_EQ(config->sas.at(1).suite->name, "aes-gcm-16-192");
}

TEST(ConfigGood, LettersOfTheWorldInComments) {
    const auto config = parse(with("# \xd1\x98\n[gateway] # \xd1\x98\n"), "f");
    EXPECT_TRUE(config.has_value()) << all_text(config.error());
}

TEST(ConfigGood, TheSameSpiToTwoDestinationsIsTwoSas) {
    EXPECT_TRUE(parse(both({"spi = 0x1001"}), "f").has_value());
}

TEST(ConfigGood, ReplayWindowOffIsAllowed) {
    const auto config = parse(in({"replay_window = 0"}), "f");
    ASSERT_TRUE(config.has_value()) << all_text(config.error());
    EXPECT_EQ(config->sas[0].replay_window, 0u);
}

TEST(ConfigOrder, IsSpdOrder) {
    const auto entry = [](const char* name, const char* local, const char* remote,
                          const std::string& priority) {
        return "[[policy]]\nname = \"" + std::string(name) +
               "\"\naction = \"discard\"\nlocal = " + local + "\nremote = " + remote + "\n" +
               priority + "\n";
    };
    const auto config =
        parse(with(entry("short", "\"10.0.0.0/8\"", "\"0.0.0.0/0\"", "") +
                   entry("p20-first", "\"10.0.0.0/8\"", "\"10.0.0.0/8\"", "priority = 20") +
                   entry("long-a", "\"10.1.0.0/24\"", "\"10.2.0.0/16\"", "") +
                   entry("long-b", "\"10.1.0.0/16\"", "[\"10.3.0.0/16\", \"10.2.0.0/24\"]", "") +
                   entry("p20-second", "\"10.1.1.1/32\"", "\"10.1.1.2/32\"", "priority = 20") +
                   entry("p0", "\"0.0.0.0/0\"", "\"0.0.0.0/0\"", "priority = 0") +
                   entry("host", "\"10.1.0.1\"", "\"10.2.0.1\"", "")),
              "f");
    ASSERT_TRUE(config.has_value()) << all_text(config.error());
    std::vector<std::string> names;
    for (const Policy& policy : config->policies) names.push_back(policy.name);
    EXPECT_EQ(names, (std::vector<std::string>{"p0", "p20-first", "p20-second", "host", "long-a",
                                               "long-b", "short"}));
}

// --- keys in messages -------------------------------------------------------------------------

// No eight digits in a row of `key`, in any case.
void expect_no_key(const std::vector<Error>& errors, std::string_view key) {
    std::string text = all_text(errors);
    std::ranges::transform(text, text.begin(), [](char c) {
        return static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
    });
    for (size_t i = 0; i + 8 <= key.size(); ++i) {
        const auto part = key.substr(i, 8);
        EXPECT_EQ(text.find(part), std::string::npos) << "'" << part << "' in " << text;
    }
}

constexpr std::string_view kMarker = "e7d41c92b05fa83667c1d9e0f4a25b7813cd84f6";

TEST(ConfigSecrecy, ABrokenFileNeverShowsAKey) {
    const std::string marker(kMarker);
    std::string good = with(std::string(kPolicy) + edited(kOut, {"key = \"" + marker + "\""}));
    ASSERT_TRUE(parse(good, "f").has_value());
    // Break the text at every place in every way: cut, drop a byte, put another there.
    size_t refused = 0;
    const auto try_text = [&](const std::string& text) {
        const auto config = parse(text, "f");
        if (config) return;
        ++refused;
        expect_no_key(config.error(), kMarker);
    };
    for (size_t i = 0; i <= good.size(); ++i) {
        try_text(good.substr(0, i));
        try_text(good.substr(0, i) + good.substr(std::min(i + 1, good.size())));
        for (const char c :
             {'"', '\'', '\n', '\\', '=', '.', '[', '{', '#', '_', '-', 'g', '\0', '\x80'}) {
            std::string inserted = good;
            inserted.insert(i, 1, c);
            try_text(inserted);
            std::string replaced = good;
            if (i < replaced.size()) replaced[i] = c;
            try_text(replaced);
        }
    }
    EXPECT_GT(refused, 2000u);
}

TEST(ConfigSecrecy, AKeyInTheWrongPlaceIsNotShown) {
    const std::string key(kMarker);
    std::string grouped;
    for (size_t i = 0; i < key.size(); i += 2) grouped += (i == 0 ? "" : ":") + key.substr(i, 2);
    // As the value of every key that takes a string, as an integer, a name, a list, a fraction.
    const std::vector<std::string> keys = {"name",  "direction", "spi",    "source", "destination",
                                           "suite", "key_file",  "policy", "worker", "df",
                                           "mtu",   "esn",       "bogus",  "key",    "outer_ttl"};
    std::vector<std::string> texts;
    for (const std::string& where : keys) {
        for (const std::string& what : std::vector<std::string>{
                 "\"" + key + "\"", "\"0x" + key + "\"", "\"" + grouped + "\"", key, "0x" + key,
                 "0x" + key.substr(0, 15), "'" + key, "\"" + key, "[\"" + key + "\"]",
                 "\"\\" + key + "\"", "{ " + key + " = 1 }", "\"\"\"" + key + "\n",
                 "1" + key.substr(1), "\"" + key + "\" \"" + key + "\"", "\"" + key + "z\""}) {
            texts.push_back(out({where + " = " + what}));
            texts.push_back(out({where + " = " + what, "name = 1"}));
        }
    }
    texts.push_back(out({key + " = 1"}));
    texts.push_back(out({key + " = 1\n" + key + " = 1"}));
    texts.push_back(out({"\"" + key + "\" = 1\n\"" + key + "\".x = 1"}));
    texts.push_back(with("[" + key + "]\n[" + key + "]\n"));
    texts.push_back(with("[[" + key + "]]\n[" + key + "]\n"));
    texts.push_back(with("[" + key + "]\n"));
    texts.push_back(with("[port." + key + "]\nrole = \"" + key + "\"\ndevice = \"" + key + "\"\n"));
    texts.push_back(with("[port." + key + "]\n"));
    texts.push_back(with("[port." + key + "]\n[[port." + key + ".deny]]\n"));
    texts.push_back(with("[port]\n" + key + " = 1\n"));
    texts.push_back(with("[workers]\ncpus = \"" + key + "\"\n"));
    texts.push_back(with("[gateway]\nstate_dir = \"" + key + "\"\n"));
    texts.push_back(with("[gateway]\ndevice = \"" + key + "\"\n"));
    texts.push_back(policy({"local = \"" + key + "\""}));
    texts.push_back(policy({"remote = [\"" + key + "\"]"}));
    texts.push_back(policy({"protocol = \"" + key + "\""}));
    texts.push_back(policy({"local_port = \"" + key + "\""}));
    texts.push_back(key + "\n");
    texts.push_back("= " + key + "\n");
    size_t refused = 0;
    for (const std::string& text : texts) {
        const auto config = parse(text, "f");
        if (config) continue;  // as a name it is only a strange one
        ++refused;
        SCOPED_TRACE(text);
        expect_no_key(config.error(), kMarker);
        EXPECT_EQ(all_text(config.error()).find(grouped.substr(0, 11)), std::string::npos);
    }
    EXPECT_GT(refused, 400u);
    // Two SAs that clash while a key is their name.
    const auto clash = parse(with(std::string(kPolicy) + edited(kOut, {"name = \"" + key + "\""}) +
                                  edited(kOut, {"name = \"" + key + "\""})),
                             "f");
    ASSERT_FALSE(clash.has_value());
    expect_no_key(clash.error(), kMarker);
}

// --- files ------------------------------------------------------------------------------------

class ConfigFiles : public testing::Test {
  protected:
    void SetUp() override {
        char name[] = "/tmp/sallyport-config-XXXXXX";
        ASSERT_NE(mkdtemp(name), nullptr);
        directory_ = name;
    }
    void TearDown() override { std::filesystem::remove_all(directory_); }

    std::filesystem::path write(const std::string& name, std::string_view text, mode_t mode) {
        const auto path = directory_ / name;
        std::ofstream(path) << text;
        EXPECT_EQ(chmod(path.c_str(), mode), 0);
        return path;
    }
    // The text of the only error of a file whose outbound SA has this key_file, or "".
    std::string with_key_file(const std::string& name) {
        const auto config =
            load(write("c.toml", out({"-key", "key_file = \"" + name + "\""}), 0644));
        if (config) return {};
        EXPECT_EQ(config.error().size(), 1u) << all_text(config.error());
        expect_no_key(config.error(), kMarker);
        EXPECT_EQ(config.error()[0].line, 18u);
        return config.error()[0].text;
    }

    std::filesystem::path directory_;
};

TEST_F(ConfigFiles, KeyFileIsReadRelativeToTheConfigFile) {
    write("k", std::string(kMarker) + "\n", 0600);
    const auto path = write("c.toml", out({"-key", "key_file = \"k\""}), 0644);
    const auto config = load(path);
    ASSERT_TRUE(config.has_value()) << all_text(config.error());
    EXPECT_EQ(config->sas[0].key.bytes()[0], std::byte{0xe7});
    EXPECT_EQ(config->sas[0].key.bytes()[19], std::byte{0xf6});
    write("k4", "  " + std::string(kMarker) + " \r\n", 0400);
    EXPECT_EQ(with_key_file("k4"), "");
    EXPECT_EQ(with_key_file((directory_ / "k4").string()), "");
}

TEST_F(ConfigFiles, KeyFileOpenToOthersIsRefused) {
    write("k", kMarker, 0600);
    for (const mode_t mode : {0640u, 0604u, 0620u, 0602u, 0660u, 0644u, 0700u, 04600u}) {
        ASSERT_EQ(chmod((directory_ / "k").c_str(), mode), 0);
        EXPECT_NE(with_key_file("k").find("0600 or stricter"), std::string::npos) << mode;
    }
}

TEST_F(ConfigFiles, KeyFileOfAnotherUserIsRefused) {
    if (geteuid() != 0) GTEST_SKIP() << "only root can give a file away";
    write("k", kMarker, 0600);
    ASSERT_EQ(chown((directory_ / "k").c_str(), 65534, 65534), 0);
    EXPECT_NE(with_key_file("k").find("belongs to another user"), std::string::npos);
}

TEST_F(ConfigFiles, KeyFileMustBeAPlainFile) {
    write("k", kMarker, 0600);
    ASSERT_EQ(symlink("k", (directory_ / "link").c_str()), 0);
    ASSERT_EQ(mkfifo((directory_ / "fifo").c_str(), 0600), 0);
    EXPECT_NE(with_key_file("link").find("symbolic link"), std::string::npos);
    EXPECT_NE(with_key_file("fifo").find("not a regular file"), std::string::npos);
    EXPECT_NE(with_key_file(".").find("not a regular file"), std::string::npos);
    EXPECT_NE(with_key_file("none").find("No such file"), std::string::npos);
}

TEST_F(ConfigFiles, KeyFileContentIsCheckedWithoutShowingIt) {
    write("short", kMarker.substr(2), 0600);
    EXPECT_NE(with_key_file("short").find("has 38 hex digits"), std::string::npos);
    write("words", "key = " + std::string(kMarker), 0600);
    EXPECT_NE(with_key_file("words").find("hex digits"), std::string::npos);
    write("long", std::string(2000, 'a'), 0600);
    EXPECT_NE(with_key_file("long").find("larger than 1024"), std::string::npos);
    write("empty", "", 0600);
    EXPECT_NE(with_key_file("empty").find("has 0 hex digits"), std::string::npos);
}

TEST_F(ConfigFiles, InlineKeysNeedAClosedConfigFile) {
    EXPECT_TRUE(load(write("c.toml", both({}), 0600)).has_value());
    EXPECT_TRUE(load(write("open.toml", kPorts, 0644)).has_value());  // no key, no secret
    for (const mode_t mode : {0640u, 0644u, 0666u}) {
        const auto config = load(write("c.toml", both({}), mode));
        ASSERT_FALSE(config.has_value());
        EXPECT_EQ(config.error().size(), 1u);
        EXPECT_EQ(config.error()[0].line, 17u);
        EXPECT_NE(config.error()[0].text.find("0600 or stricter"), std::string::npos);
    }
}

TEST_F(ConfigFiles, WhatCannotBeReadIsAnError) {
    const auto says = [](const std::filesystem::path& path, const char* text) {
        const auto config = load(path);
        return !config && config.error().size() == 1 && config.error()[0].line == 0 &&
               config.error()[0].text.find(text) != std::string::npos;
    };
    EXPECT_TRUE(says(directory_ / "none", "No such file"));
    EXPECT_TRUE(says(directory_, "not a regular file"));
    EXPECT_TRUE(says(write("big", std::string((4u << 20) + 1, '#'), 0600), "4 MiB"));
}

TEST_F(ConfigFiles, TheExampleIsValid) {
    const std::filesystem::path example = CONFIG_SOURCE_DIR "/sallyport.toml";
    std::ifstream stream(example);
    const std::string text{std::istreambuf_iterator<char>(stream), {}};
    ASSERT_FALSE(text.empty());
    // Its key files are for the operator to make.
    const auto path = write("sallyport.toml", text, 0644);
    write("branch-out.key", kMarker, 0600);
    write("branch-in.key", "00112233445566778899aabbccddeeff01020304", 0600);
    const auto config = parse(text, path);
    ASSERT_TRUE(config.has_value()) << all_text(config.error());
    EXPECT_EQ(config->sas.size(), 2u);
    EXPECT_GE(config->policies.size(), 2u);
    EXPECT_TRUE(load(path).has_value());
}

// --- the running system -----------------------------------------------------------------------

Config minimal() {
    auto config = parse(kPorts, "f");
    config->ports[0].device = "sp-none-0";
    config->ports[1].device = "sp-none-1";
    return std::move(*config);
}

TEST(ConfigSystem, MissingAndUnsuitableDevices) {
    Config config = minimal();
    config.ports[1].device = "lo";
    const std::string text = all_text(check_against_system(config));
    EXPECT_NE(text.find("f:1: [port.wan0] there is no network device 'sp-none-0'"),
              std::string::npos)
        << text;
    EXPECT_NE(text.find("f:3: [port.lan0] device 'lo' is not an Ethernet device"),
              std::string::npos)
        << text;
}

TEST(ConfigSystem, Cpus) {
    Config config = minimal();
    config.workers.cpus = {1023};
    config.workers.location.line = 9;
    const std::string text = all_text(check_against_system(config));
    EXPECT_NE(text.find("f:9: [workers] cpus: CPU 1023 is not available"), std::string::npos)
        << text;
}

TEST(ConfigSystem, WorkerOfAutomaticCpus) {
    auto config = parse(out({"worker = 63"}), "f");
    ASSERT_TRUE(config.has_value());
    cpu_set_t set;
    ASSERT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
    if (CPU_COUNT(&set) > 63) GTEST_SKIP() << "this machine has a worker 63";
    EXPECT_NE(all_text(check_against_system(*config)).find("worker: 63 does not exist"),
              std::string::npos);
}

TEST(ConfigSystem, FrameSum) {
    EXPECT_EQ(frames_needed(4, 2, false), 4u * 2048 + 2u * 1024);
    EXPECT_EQ(frames_needed(4, 2, true), 4u * 2048 + 2u * (1024 + 512));
    Config config = minimal();  // no device, no queue: workers alone
    config.workers.cpus = {0, 0};
    config.memory.frames = 1024;
    // Nothing protects here, so SAs come from xfrm, and frames may have to wait for one.
    EXPECT_NE(all_text(check_against_system(config)).find("write 4096 or more"), std::string::npos);
    config.policies.emplace_back().action = SpdAction::protect;
    EXPECT_NE(all_text(check_against_system(config)).find("write 2048 or more"), std::string::npos);
    config.memory.frames = 2048;
    EXPECT_EQ(all_text(check_against_system(config)).find("frames"), std::string::npos);
}

TEST(ConfigSystem, QueueCountOfADeviceWithoutChannels) {
    std::ifstream here("/sys/class/net/lo/ifindex");
    if (!here) GTEST_SKIP() << "/sys/class/net does not show lo";
    EXPECT_EQ(device_queue_count("lo"), 1);
    EXPECT_FALSE(device_queue_count("sp-none-0").has_value());
    EXPECT_FALSE(device_queue_count("a-name-longer-than-any-device").has_value());
}

// Real devices, in a network namespace of a child process that ends with it.
enum ChildResult { kChildGood = 0, kChildBad = 1, kChildCannot = 77 };

int check_in_namespace() {
    if (unshare(CLONE_NEWNET) != 0) return kChildCannot;
    const auto run = [](const char* command) { return std::system(command) == 0; };
    if (!run("ip link add wan0 numrxqueues 4 numtxqueues 4 type veth peer name lan0 numrxqueues 4 "
             "numtxqueues 4 2>/dev/null")) {
        return kChildCannot;
    }
    if (!run("ethtool -L wan0 rx 3 tx 3") || !run("ethtool -L lan0 rx 2 tx 2")) return kChildCannot;
    const auto fails = [](const std::string& what) {
        std::fprintf(stderr, "in the namespace: %s\n", what.c_str());
        return kChildBad;
    };
    if (device_queue_count("wan0") != 3) return fails("wan0 must have 3 queues");
    if (device_queue_count("lan0") != 2) return fails("lan0 must have 2 queues");
    auto config = parse(kPorts, "f");
    config->workers.cpus.clear();
    config->memory.frames = 1u << 17;
    std::string text = all_text(check_against_system(*config));
    if (!text.empty()) return fails(text);
    config->ports[0].queues = 4;
    text = all_text(check_against_system(*config));
    if (text.find("f:1: [port.wan0] queues: device 'wan0' has 3, not 4") != 0) return fails(text);
    config->ports[0].queues = 2;
    text = all_text(check_against_system(*config));
    if (text.find("of which 2 would be served") == std::string::npos) return fails(text);
    config->ports[0].queues = 3;
    config->memory.frames = 1024;
    text = all_text(check_against_system(*config));
    if (text.find("too few for 5 queues") == std::string::npos) return fails(text);
    // The TAP may exist already: control says so when it makes it.
    config->memory.frames = 1u << 17;
    config->device = "lan0";
    text = all_text(check_against_system(*config));
    if (!text.empty()) return fails(text);
    config->device = "sp0";
    if (run("ip link property add dev wan0 altname also-wan0")) {
        config->ports[1].device = "also-wan0";
        text = all_text(check_against_system(*config));
        if (text.find("is the device of [port.wan0] too") == std::string::npos) return fails(text);
    }
    return kChildGood;
}

TEST(ConfigSystem, DevicesWithQueues) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) _exit(check_in_namespace());
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status));
    if (WEXITSTATUS(status) == kChildCannot) {
        GTEST_SKIP() << "needs root (network namespace, veth) and ethtool";
    }
    EXPECT_EQ(WEXITSTATUS(status), kChildGood);
}

}  // namespace
}  // namespace sallyport::config
