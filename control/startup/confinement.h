// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the process gives away once it has what it needs, so that who gets hold of it by a packet or
// a message gets little.
//
//   a worker   no capabilities, and the system calls of its loop where the kernel has seccomp
//   control    NET_ADMIN and BPF; SYS_ADMIN only while a program is looked for, attached or taken
//              off. The calls that it makes while it runs and ends, for all threads that there are;
//              none that starts a program or looks into another process
//
// Both keep IPC_LOCK where RLIMIT_MEMLOCK is a limit, since all of their memory is locked.
//
// A call beyond the list fails with EPERM and is in the audit log (`type=SECCOMP`): an error of one
// path is better than a gateway that is gone. Builds with sanitizers make other calls and have no
// lists.
//
// What DPDK's own thread (it sleeps) has of capabilities stays with it.

#include <cstdint>
#include <expected>
#include <optional>
#include <string>
#include <vector>

namespace sallyport::control::confinement {

// Pages that are touched from now on are not swapped out: keys are in buffers of control too.
// Empty: done; else why not.
std::string keep_memory();

// By a worker, of itself, before its first packet. Capabilities go in any case; its list needs a
// kernel with seccomp, or that confine_calls() has worked.
enum class Lists : uint8_t { none, loaded };
std::expected<void, std::string> confine_worker(Lists lists);
// Lists for all threads that there are; before workers, whose own are the narrower.
std::expected<void, std::string> confine_calls();
// Capabilities of the control thread, when everything is in place.
std::expected<void, std::string> drop_capabilities();

// libxdp looks for a program by its id, which needs CAP_SYS_ADMIN. Without effect where that was
// never there.
class AsAdministrator {
  public:
    AsAdministrator();
    AsAdministrator(const AsAdministrator&) = delete;
    ~AsAdministrator();

  private:
    bool raised_ = false;
};

// Names of system calls, for a test that holds them against each other.
std::vector<std::string> worker_calls();
std::vector<std::string> control_calls();

}  // namespace sallyport::control::confinement
