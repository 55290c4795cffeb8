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

// Any that makes system calls of its own.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SP_TEST_WITH_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define SP_TEST_WITH_SANITIZER 1
#endif
#endif
#ifndef SP_TEST_WITH_SANITIZER
#define SP_TEST_WITH_SANITIZER 0
#endif

// Under AddressSanitizer touching a poisoned region ends the test; otherwise nothing happens.
#if SP_TEST_WITH_ASAN
#include <sanitizer/asan_interface.h>
#define SP_TEST_POISON(at, bytes) __asan_poison_memory_region(at, bytes)
#define SP_TEST_UNPOISON(at, bytes) __asan_unpoison_memory_region(at, bytes)
#else
#define SP_TEST_POISON(at, bytes) static_cast<void>(0)
#define SP_TEST_UNPOISON(at, bytes) static_cast<void>(0)
#endif
