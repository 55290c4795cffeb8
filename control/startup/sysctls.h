// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expected>
#include <filesystem>
#include <string>
#include <vector>

namespace sallyport::control {

// Kernel settings (/proc/sys) that the appliance needs while it runs, put back in reverse order on
// destruction. A setting that already has the wanted value is left alone, also at the end; after a
// kill the settings stay as they are.
class Sysctls {
  public:
    enum class Change : uint8_t { none, changed };

    Sysctls() = default;
    Sysctls(Sysctls&&) = default;
    Sysctls& operator=(Sysctls&&) = delete;
    ~Sysctls();

    // `name` with slashes: "net/ipv4/ip_forward".
    std::expected<Change, std::string> set(const std::string& name, const std::string& value);
    // Empty when there is no such setting.
    static std::string get(const std::string& name);

  private:
    struct Saved {
        std::filesystem::path file;
        std::string value;
    };
    std::vector<Saved> saved_;
};

}  // namespace sallyport::control
