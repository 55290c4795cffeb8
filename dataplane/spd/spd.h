// SPDX-License-Identifier: Apache-2.0
#pragma once

// The SPD: an ordered list of entries, compiled for lookup by longest prefix.
//
// An ordered list of N entries costs N comparisons per packet. Entries with the same destination
// prefix are a *class*. The longest destination prefix that covers a packet's destination names a
// class, the longest source prefix in it that covers the source a short run of candidates in SPD
// order (a *cell*), of which protocol and ports pick the first. Entries with wider destinations
// compete too: either the class holds them as well and stands alone, or the lookup goes on with the
// class above it (the next wider destination) until no entry there can come earlier in the list
// than what was found. Few are held as well, so that one lookup decides; many are not, because
// rows would be a product: with a thousand sites and a thousand clients whose own side is
// 0.0.0.0/0 every site would hold every client. The compiled form gives the verdict of the ordered
// list in every case (RFC 4301 4.4.1; the property test proves it).
//
// The same compiled rows go into the BPF maps (bpf/abi.h, "SPD") and into Spd, the form workers
// read, so both sides of the socket agree by construction.

#include <cstdint>
#include <expected>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "dataplane/base/ids.h"
#include "dataplane/base/ip.h"
#include "dataplane/base/pages.h"
#include "dataplane/base/prefix_trie.h"

namespace sallyport {

enum class SpdDirection : uint8_t { outbound = 0, inbound = 1 };
enum class SpdAction : uint8_t { protect = 0, bypass = 1, discard = 2 };

// One entry in one direction, seen as the packet stands: source and destination.
struct SpdEntry {
    PolicyId policy{};
    SpdAction action = SpdAction::discard;
    IpPrefix source;
    IpPrefix destination;  // same family as source
    uint8_t protocol = 0;  // 0: any
    bool has_ports = false;
    uint16_t source_port_lo = 0;  // host order, inclusive
    uint16_t source_port_hi = 65535;
    uint16_t destination_port_lo = 0;
    uint16_t destination_port_hi = 65535;
    // Mark of the packet's connection, where the mask has bits. Only XDP sees connections: such
    // entries are in the rows for the BPF maps and never in those for workers.
    uint32_t ct_mark = 0;
    uint32_t ct_mark_mask = 0;

    friend bool operator==(const SpdEntry&, const SpdEntry&) = default;

    // Of packets with its addresses: no entry behind it decides about one of them.
    [[nodiscard]] bool takes_all() const {
        return protocol == 0 && !has_ports && ct_mark_mask == 0;
    }
};

// The compiled rows of one direction. Plain data: what control writes into the BPF maps.
struct CompiledSpd {
    static constexpr uint32_t kNone = 0xffffffff;
    struct DestinationRow {
        IpPrefix destination;
        uint32_t destination_class;    // 0 .. class_count - 1
        uint32_t above = kNone;        // class of the next wider destination; none: it stands alone
        uint32_t order_above = kNone;  // the earliest entry of all classes above
    };
    struct SourceRow {
        uint32_t destination_class;
        IpPrefix source;
        uint32_t cell_first;  // index into entries
        uint32_t cell_count;
    };
    std::vector<DestinationRow> destinations;
    std::vector<SourceRow> sources;
    struct Candidate {
        SpdEntry entry;
        uint32_t order = 0;  // ascending as the SPD is; compared between classes only
    };
    std::vector<Candidate> entries;  // runs of candidates, each run in SPD order
    uint32_t class_count = 0;
    uint32_t first_entry = 0;  // index of entries[0] where both directions are counted together
};

// A class holds the entries of wider destinations too where all together are at most this many.
inline constexpr size_t kAloneEntriesMax = 3;
inline constexpr size_t kCellEntriesMax = 16;  // SP_CELL_ENTRIES_MAX

// Rows a compiled direction may have: bounds memory and the time to write them into BPF maps.
inline constexpr size_t kSpdRowsMax = 1 << 20;

// `ordered`: SPD order, first match decides. Entries behind one that matches every protocol and
// port of an address pair can never match there and are left out. Fails, with the prefixes in the
// text, when more than SP_CELL_ENTRIES_MAX entries compete in one cell or the result has more than
// kSpdRowsMax rows. Rows grow with the entries and not with their product, as long as destinations
// are nested less than SP_SPD_CLASSES_MAX deep.
std::expected<CompiledSpd, std::string> compile_spd(std::span<const SpdEntry> ordered);
// What it says when it fails.
std::string too_many_in_cell(const IpPrefix& source, const IpPrefix& destination);
std::string too_many_rows(const IpPrefix& destination);

// What a lookup needs to know of a packet. Addresses point at 4 or 16 bytes in network order.
struct SpdKey {
    Family family = Family::v4;
    const std::byte* source = nullptr;
    const std::byte* destination = nullptr;
    uint8_t protocol = 0;
    bool protocol_known = true;  // false: a later fragment that begins inside extension headers
    bool ports_known = false;    // false: a later fragment, or a protocol without ports
    uint16_t source_port = 0;    // host order
    uint16_t destination_port = 0;
};

struct SpdVerdict {
    enum class Kind : uint8_t {
        matched,
        no_match,       // the list's implicit end
        ports_unknown,  // a fragment met an entry whose protocol or ports it does not show
                        // (RFC 4301 7)
    };
    Kind kind = Kind::no_match;
    SpdAction action = SpdAction::discard;
    PolicyId policy{};
};

class SpdClasses;

// One published SPD, both directions. Immutable: control builds it, workers only read it, control
// frees it when every worker has taken the next one.
//
// The next one shares what has not changed with it: a copy costs references to pages, and a change
// new pages for its classes and candidates and new nodes of the trie on the way to its addresses.
// Pages and nodes count their holders without atomics: copies are made, changed and destroyed by
// one thread.
//
// Entries with marks do not count: what XDP hands to a worker has passed them by.
class Spd {
  public:
    Spd() = default;
    Spd(const CompiledSpd& outbound, const CompiledSpd& inbound);

    // What the open change of `classes` has made different. Not while somebody reads it.
    void change(SpdDirection direction, const SpdClasses& classes);

    [[nodiscard]] SpdVerdict lookup(SpdDirection direction, const SpdKey& key) const;

  private:
    // What decides once the addresses have led to a run.
    struct Candidate {
        PolicyId policy;
        SpdAction action;
        uint8_t protocol;
        bool has_ports;
        bool last;  // ends its run
        uint16_t source_port_lo;
        uint16_t source_port_hi;
        uint16_t destination_port_lo;
        uint16_t destination_port_hi;
        uint32_t order;
    };
    static_assert(sizeof(Candidate) == 20);

    // Where a class has more than one source.
    struct Sources {
        PrefixTrie<RangeV4> v4;  // -> index of a candidate
        PrefixTrie<RangeV6> v6;
    };

    // One destination class. Nearly always its entries have one IPv4 source prefix, then the row
    // holds all there is to know: a lookup ends in this cache line.
    struct alignas(64) ClassRow {
        uint32_t only_v4_first = 1;  // addresses from .. to, host order; empty unless there is one
        uint32_t only_v4_last = 0;
        Candidate only;  // what they lead to; meaningless unless it is the last
        uint32_t above = CompiledSpd::kNone;  // as in CompiledSpd
        uint32_t order_above = CompiledSpd::kNone;
        Shared<Sources> sources;  // null: none but that
    };
    static_assert(sizeof(ClassRow) == 64);

    // What a class says, and by which of its candidates.
    struct Found {
        SpdVerdict verdict;
        const Candidate* by = nullptr;
    };

    class Side {
      public:
        Side() = default;
        explicit Side(const CompiledSpd& compiled);
        void change(const SpdClasses& classes);
        [[nodiscard]] SpdVerdict lookup(const SpdKey& key) const;

      private:
        // False: nothing of it is for workers.
        bool put_run(uint32_t index, std::span<const CompiledSpd::Candidate> run);
        // `runs`: indices of first candidates by source, as PrefixTrie::build() takes them.
        // `changed`: sources where they differ from what the class has; null: all.
        template <typename Runs>
        void put_class(uint32_t number, uint32_t above, uint32_t order_above, const Runs& runs,
                       const std::vector<IpPrefix>* changed);

        [[nodiscard]] const ClassRow* class_of(const SpdKey& key) const;  // null: none
        // The run of candidates for these addresses; null: none.
        [[nodiscard]] const Candidate* run_of(const ClassRow& row, const SpdKey& key) const;
        [[nodiscard]] Found find(const ClassRow& row, const SpdKey& key) const;
        [[nodiscard]] SpdVerdict find_in_all(const ClassRow* row, const SpdKey& key) const;

        PrefixTrie<RangeV4> v4_destinations_;  // -> class
        PrefixTrie<RangeV6> v6_destinations_;
        Pages<ClassRow, 512> classes_;
        // A run is all in the page where it begins.
        Pages<Candidate, 1024, kCellEntriesMax - 1> candidates_;
    };
    Side outbound_;
    Side inbound_;
};

}  // namespace sallyport
