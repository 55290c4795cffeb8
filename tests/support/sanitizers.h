// SPDX-License-Identifier: Apache-2.0
#pragma once

// How a test was built, for those that do less work, or can look closer, under a sanitizer.

#if defined(__SANITIZE_ADDRESS__)
#define SP_TEST_WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SP_TEST_WITH_ASAN 1
#endif
#endif
#ifndef SP_TEST_WITH_ASAN
#define SP_TEST_WITH_ASAN 0
#endif
