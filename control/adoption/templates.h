// SPDX-License-Identifier: Apache-2.0
#pragma once

// Policies of one direction by their template, to find those that fit an SA without asking all.

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "control/adoption/groups.h"
#include "control/xfrm/values.h"

namespace sallyport::control::adoption {

// What SAs are compared with: the policies of one direction that have one template. Policies that
// only the kernel can judge are each for themselves.
struct TemplateClass {
    GroupNumbers::Name name;
    xfrm::Template wanted;
    uint32_t if_id = 0;
    PolicyId group{};
    std::string obstacle;        // why no worker may serve it
    std::vector<uint32_t> rows;  // positions in the list of its direction
};

class TemplateClasses {
  public:
    explicit TemplateClasses(xfrm::StateDirection direction) : direction_(direction) {}

    // The class of `name`, made on its first use.
    uint32_t obtain(const GroupNumbers::Name& name, const xfrm::Template& wanted);
    TemplateClass& operator[](uint32_t index) { return classes_[index]; }

    // Ascending, so in the order of their first policies.
    [[nodiscard]] std::vector<uint32_t> fitting(const xfrm::KernelSa& sa) const;

  private:
    // The address that templates of the direction name, or leave out on purpose.
    struct End {
        uint32_t reqid = 0;
        IpAddress address;
        friend bool operator==(const End&, const End&) = default;
    };
    struct EndHash {
        size_t operator()(const End& end) const;
    };
    // The far end: of an outbound SA the destination, of an inbound one the source.
    [[nodiscard]] const IpAddress& far_end(const IpAddress& source,
                                           const IpAddress& destination) const;
    void look(const End& end, const xfrm::KernelSa& sa, std::vector<uint32_t>& found) const;

    xfrm::StateDirection direction_;
    std::vector<TemplateClass> classes_;
    std::map<GroupNumbers::Name, uint32_t> by_name_;
    std::unordered_map<End, std::vector<uint32_t>, EndHash> by_end_;
    bool some_name_no_end_ = false;  // rare, so most searches can be spared
    bool some_name_no_reqid_ = false;
};

}  // namespace sallyport::control::adoption
