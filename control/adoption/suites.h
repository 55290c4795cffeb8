// SPDX-License-Identifier: Apache-2.0
#pragma once

// The kernel's algorithms and our suites: which row of the table a state is, and what it lacks
// where it is none. Pure functions.

#include <span>
#include <string>

#include "control/xfrm/values.h"
#include "dataplane/crypto/suite.h"

namespace sallyport::control::adoption {

// What workers have for the state's algorithm, ICV and key. Null: nothing.
const crypto::Suite* suite_of(const xfrm::KernelSa& sa,
                              std::span<const crypto::Suite> table = crypto::suites());

// Why there is no suite for it, or its key is not to be had; empty: there is one.
std::string obstacle_of_cipher(const xfrm::KernelSa& sa, std::span<const crypto::Suite> table);

// What the operator reads as the suite of a state, also where no worker speaks it: "aes-gcm-8-128",
// "cbc(aes) + hmac(sha256)".
std::string shown_suite(const xfrm::KernelSa& sa,
                        std::span<const crypto::Suite> table = crypto::suites());

}  // namespace sallyport::control::adoption
