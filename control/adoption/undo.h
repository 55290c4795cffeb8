// SPDX-License-Identifier: Apache-2.0
#pragma once

// Changes of maps and sets that can be taken back.

#include <functional>
#include <optional>
#include <utility>
#include <vector>

namespace sallyport::control::adoption {

class Undo {
  public:
    // Changes are not recorded until on() says so: what is filled for the first time is thrown away
    // as a whole.
    void on() { recording_ = true; }

    // The containers outlive the record.
    template <typename Map>
    void assign(Map& map, const typename Map::key_type& key, typename Map::mapped_type value) {
        const auto [at, is_new] = map.try_emplace(key);
        if (is_new) {
            add([&map, key] { map.erase(key); });
        } else {
            restore_value(map, key, std::move(at->second));
        }
        at->second = std::move(value);
    }
    template <typename Map>
    void erase_key(Map& map, const typename Map::key_type& key) {
        const auto at = map.find(key);
        if (at == map.end()) return;
        restore_value(map, key, std::move(at->second));
        map.erase(at);
    }
    // False: it was there, or was not.
    template <typename Set>
    bool insert(Set& set, const typename Set::value_type& value) {
        if (!set.insert(value).second) return false;
        add([&set, value] { set.erase(value); });
        return true;
    }
    template <typename Set>
    bool erase(Set& set, const typename Set::value_type& value) {
        if (set.erase(value) == 0) return false;
        add([&set, value] { set.insert(value); });
        return true;
    }
    void add(std::move_only_function<void()> back) {
        if (recording_) back_.push_back(std::move(back));
    }

    // All as before, the latest change first.
    void run() {
        while (!back_.empty()) {
            back_.back()();
            back_.pop_back();
        }
    }
    void forget() { back_.clear(); }

  private:
    template <typename Map>
    void restore_value(Map& map, const typename Map::key_type& key,
                       typename Map::mapped_type&& value) {
        add([&map, key, value = std::move(value)]() mutable {
            map.insert_or_assign(key, std::move(value));
        });
    }

    bool recording_ = false;
    std::vector<std::move_only_function<void()>> back_;
};

}  // namespace sallyport::control::adoption
