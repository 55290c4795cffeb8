// SPDX-License-Identifier: Apache-2.0
#pragma once

// Values by prefix, to find those of all prefixes around another: there are at most 129 lengths to
// try, however many prefixes. Control computes with it; packets are looked up in prefix_table.h.

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "dataplane/base/ip.h"

namespace sallyport {

template <typename Value>
class PrefixMap {
    // Wider ones first.
    struct Less {
        bool operator()(const IpPrefix& a, const IpPrefix& b) const {
            return std::tie(a.address.family, a.bits, a.address.bytes) <
                   std::tie(b.address.family, b.bits, b.address.bytes);
        }
    };

  public:
    using Item = std::pair<const IpPrefix, Value>;

    Value& operator[](const IpPrefix& prefix) {
        lengths_.insert(prefix.bits);
        return values_[prefix];
    }
    // Of each family those around others come before them.
    [[nodiscard]] const std::map<IpPrefix, Value, Less>& items() const { return values_; }

    // Those that contain `prefix`, itself included, the widest first; until `visit` says true.
    template <typename Visit>
    bool any_around(const IpPrefix& prefix, Visit visit) const {
        for (const uint8_t bits : lengths_) {
            if (bits > prefix.bits) break;
            const auto found = values_.find(shortened(prefix, bits));
            if (found != values_.end() && visit(found->second)) return true;
        }
        return false;
    }
    template <typename Visit>
    void for_each_around(const IpPrefix& prefix, Visit visit) const {
        any_around(prefix, [&visit](const Value& value) {
            visit(value);
            return false;
        });
    }

    // Those inside `prefix`, itself included, the widest first.
    template <typename Visit>
    void for_each_inside(const IpPrefix& prefix, Visit visit) const {
        for (auto bits = lengths_.lower_bound(prefix.bits); bits != lengths_.end(); ++bits) {
            auto it = values_.lower_bound({.address = prefix.address, .bits = *bits});
            for (; it != values_.end() && it->first.bits == *bits && prefix.contains(it->first);
                 ++it) {
                visit(*it);
            }
        }
    }

    // The longest that contains `prefix` and is shorter; null: none.
    [[nodiscard]] const Item* next_wider(const IpPrefix& prefix) const {
        for (auto bits = lengths_.lower_bound(prefix.bits); bits != lengths_.begin();) {
            const auto found = values_.find(shortened(prefix, *--bits));
            if (found != values_.end()) return &*found;
        }
        return nullptr;
    }

  private:
    std::map<IpPrefix, Value, Less> values_;
    std::set<uint8_t> lengths_;
};

// Positions in a list, by a prefix of the entries there.
using PrefixPositions = PrefixMap<std::vector<uint32_t>>;

// Of all entries whose prefix contains `prefix`, ascending.
inline std::vector<uint32_t> positions_around(const PrefixPositions& positions,
                                              const IpPrefix& prefix) {
    std::vector<uint32_t> found;
    positions.for_each_around(prefix, [&found](const std::vector<uint32_t>& some) {
        found.insert(found.end(), some.begin(), some.end());
    });
    std::ranges::sort(found);
    return found;
}

}  // namespace sallyport
