// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace sallyport::test {

// A shell command that returns when the kernel has made an IPv6 address that was added its own
// (it does so by a work queue, also without duplicate address detection), and fails after 10 s.
inline std::string until_own_address6(const std::string& address) {
    return "for i in $(seq 200); do ip -6 route show table local | grep -q '^local " + address +
           " ' && exit 0; sleep 0.05; done; exit 1";
}

}  // namespace sallyport::test
