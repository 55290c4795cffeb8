// SPDX-License-Identifier: Apache-2.0
#include "control/sa/static/accept_key.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "control/sa/static/sequence_store.h"

namespace sallyport::control {

std::expected<std::string, std::string> accept_key(const config::Config& config,
                                                   std::string_view argument) {
    const size_t equals = argument.find('=');
    const std::string name(argument.substr(0, equals));
    std::optional<uint64_t> sequence;
    if (equals != std::string_view::npos) {
        const std::string_view digits = argument.substr(equals + 1);
        uint64_t number = 0;
        const auto [end, error] =
            std::from_chars(digits.data(), digits.data() + digits.size(), number);
        if (error != std::errc{} || end != digits.data() + digits.size()) {
            return std::unexpected("--accept-key " + std::string(argument) +
                                   ": the sequence number is not a decimal number");
        }
        sequence = number;
    }
    const auto sa = std::ranges::find(config.sas, name, &config::StaticSa::name);
    if (sa == config.sas.end() || sa->direction != config::SaDirection::outbound) {
        return std::unexpected("--accept-key " + name + ": " + config.file.string() +
                               " has no outbound SA of that name");
    }
    if (sequence && !sa->esn && *sequence > UINT32_MAX) {
        return std::unexpected("--accept-key " + std::string(argument) +
                               ": without ESN sequence numbers end at 4294967295");
    }
    auto store = SequenceStore::open(config.state_dir);
    if (!store) return std::unexpected(store.error());
    if (auto done = store->accept(digest_of_key(sa->key.bytes()), sequence); !done) {
        return std::unexpected("--accept-key " + name + ": " + done.error());
    }
    return "SA '" + name + "' goes on with sequence number " +
           std::to_string(sequence.value_or(1)) + " (state in " + config.state_dir.string() + ")";
}

}  // namespace sallyport::control
