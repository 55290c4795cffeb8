// SPDX-License-Identifier: Apache-2.0
#pragma once

// Keeps what sallyportd put into the kernel as it was put there, whatever others do to the host.
//
//   hears   links, TC filters, addresses, settings of forwarding, routing rules, xfrm policies
//           (netlink): at once
//   audits  devices, programs, settings and addresses each second, the guard's rows each ten and
//           more
//
// Each difference is one line in the log (what changed, what it means, what is done), stands in
// `show status` until it has gone, and is mended where that can be done: programs attached again,
// policies and settings written again, the MTU told to the programs. A port whose program is not
// there is closed (gate.h) from the moment that this is known; one whose device was away stays so,
// because its sockets went with it.
//
// Between the change and the kernel's message about it nothing can be done: some milliseconds.
//
// Owner: control thread.

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstdint>
#include <expected>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "control/log.h"
#include "control/netlink/socket.h"
#include "control/watch/differences.h"
#include "control/watch/gate.h"
#include "control/xfrm/guard.h"

namespace sallyport::watch {

// What the watch asks of who has built the gateway. Errors: sentences for the operator.
class Host {
  public:
    virtual ~Host() = default;
    // The programs of a port: the one that steers what comes in, and kernel_out.
    enum class Hook : uint8_t { in, out };
    [[nodiscard]] virtual bool is_attached(size_t port, Hook hook) const = 0;
    virtual std::expected<void, std::string> attach(size_t port, Hook hook) = 0;
    // Whether VLAN tags stay in the frames of a port's device, as they were told to at the start.
    [[nodiscard]] virtual bool keeps_tags(const std::string& device) const = 0;
    // The port's MTU is another one now: programs, SAs and the devices in front of tunnels follow.
    // Says so, and what fails.
    virtual bool set_mtu(size_t port, uint32_t mtu) = 0;
    // So is its MAC.
    virtual bool set_mac(size_t port, const netlink::MacAddress& mac) = 0;
    enum class Inner : uint8_t { tap, interface };
    [[nodiscard]] virtual bool is_attached(Inner device) const = 0;
    virtual std::expected<void, std::string> attach(Inner device) = 0;
    virtual std::expected<void, std::string> set_up(Inner device) = 0;
    // The programs are told which addresses are this host's now.
    virtual std::expected<void, std::string> follow_addresses() = 0;
    struct ChangedSetting {
        std::string name;
        std::string found;
        std::string error;  // empty: it has our value again
    };
    // Settings that had another value than ours.
    virtual std::vector<ChangedSetting> mend_settings() = 0;
};

class Watch {
  public:
    // Shorter, and an idle gateway does little else; longer, and what has no message is open that
    // much longer.
    static constexpr std::chrono::milliseconds kAudit{1000};
    // All policies of the kernel are read for it: at most so often, and not more than a hundredth
    // of the time.
    static constexpr std::chrono::milliseconds kGuardAudit{10000};
    // One difference is said so many times in so long; more often, and who can cause it fills the
    // log.
    static constexpr std::chrono::seconds kSaidAgain{60};
    static constexpr uint32_t kSaidMax = 5;

    // All outlive the object.
    Watch(boost::asio::io_context& context, control::Log& log, Host& host, Gate& gate,
          xfrm::PolicyGuard& guard);
    Watch(const Watch&) = delete;

    // `ports` in the order of PortId. Their programs are on them, and ports are open.
    std::expected<void, std::string> start(std::vector<PortShould> ports, const InnerShould& tap,
                                           const std::optional<InnerShould>& interface);
    void stop();

    // What is not as it should be, a sentence each.
    [[nodiscard]] std::vector<std::string> degraded() const;

  private:
    using Clock = std::chrono::steady_clock;
    using Descriptor = boost::asio::posix::stream_descriptor;
    enum class Subject : uint8_t { ports, inner, guard, settings, addresses };

    void wait_for_links();
    [[nodiscard]] bool may_take_tc_program(const netlink::Message& message) const;
    void wait_for_policies();
    void audit();
    [[nodiscard]] DeviceNow look_at_port(const PortShould& port);
    void look_at_devices();
    std::vector<PortVerdict> look_at_ports();
    void shut(const std::vector<PortVerdict>& verdicts);
    std::vector<Difference> mend_ports(const std::vector<PortVerdict>& verdicts);
    void look_at_inner();
    void look_at_guard();
    void look_at_settings();
    void look_at_addresses();
    void hold(Subject subject, const std::vector<Difference>& now);
    bool may_say(const std::string& key);

    boost::asio::io_context& context_;
    control::Log& log_;
    Host& host_;
    Gate& gate_;
    xfrm::PolicyGuard& guard_;
    boost::asio::steady_timer timer_;
    std::optional<netlink::Socket> questions_;
    std::optional<netlink::Notifications> links_;
    std::optional<netlink::Notifications> policies_;
    std::optional<Descriptor> links_readable_;
    std::optional<Descriptor> policies_readable_;
    std::vector<PortShould> ports_;
    std::vector<std::pair<Host::Inner, InnerShould>> inner_;
    std::set<std::string> closed_;                                    // ports, by us
    std::set<std::string> closed_inner_;                              // sp0, the xfrm interface
    std::map<Subject, std::map<std::string, std::string>> standing_;  // by key
    struct Said {
        Clock::time_point since;
        uint32_t times = 0;
    };
    std::map<std::string, Said> said_;  // by key, in the last kSaidAgain
    // All addresses are read for it: not more than a hundredth of the time.
    Clock::time_point next_addresses_audit_;
    // In the past after messages were lost: the next audit looks. Not at once, since that happens
    // when policies come by the thousand, and each look reads all of them.
    Clock::time_point next_guard_audit_;
};

}  // namespace sallyport::watch
