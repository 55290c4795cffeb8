// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where SAs live: 2 MiB blocks on huge pages where the kernel has them to give (thousands of SAs
// touched at random would otherwise miss the TLB as well as the cache), left out of core dumps,
// locked in memory where the limits allow it so that keys are not swapped out.
//
// Pieces of the same size follow one another and are reused; blocks are kept until the process
// ends. Not on the hot path: control allocates, workers only use.

#include <cstddef>

namespace sallyport::sa_memory {

// 64-byte aligned; null when there is no memory. `bytes` is a multiple of 64.
void* allocate(size_t bytes);
// `bytes` as allocated. The caller has wiped it.
void release(void* memory, size_t bytes);

}  // namespace sallyport::sa_memory
