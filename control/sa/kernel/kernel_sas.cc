// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/kernel_sas.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "control/adoption/names.h"
#include "control/netlink/addresses.h"
#include "control/sa/kernel/rows.h"

namespace sallyport::control {

using ErrorCode = boost::system::error_code;

KernelSas::KernelSas(boost::asio::io_context& context, Log& log, const config::Config& config,
                     Setup setup, const crypto::Aead& aead, xfrm::PolicyGuard& guard,
                     WorkerCommands& commands, HostTraffic& host_traffic)
    : log_(log),
      host_traffic_(host_traffic),
      config_(config),
      setup_(std::move(setup)),
      context_(context),
      next_round_(context, [this] { round(); }),
      next_step_(context, [this] { go_on(); }),
      next_tick_(context, [this] { on_tick(); }),
      next_slice_(context, [this] { tour(); }),
      next_numbers_(context, [this] { extend_some(); }),
      register_(changes_,
                {.forgotten = [this](const xfrm::KernelSa& last) { remember(memory_, last); },
                 .overheard = [this] { on_overheard(); }}),
      steering_(log),
      kernel_path_(guard),
      workers_(commands),
      notices_(log),
      around_{.kernel = register_,
              .steering = steering_,
              .workers = workers_,
              .clock = clock_,
              .random = random_,
              .notices = notices_,
              .another_round = [this](std::chrono::milliseconds in) { round_in(in); }},
      groups_(config.max_sas),
      adoption_(groups_),
      slots_(config.max_sas),
      pacer_(setup_.cpus.size()),
      feedback_(around_, pacer_),
      handover_(around_, {slots_, memory_, feedback_}, aead),
      reconciler_(around_, slots_, handover_),
      publication_(kernel_path_, commands, notices_, {.policies = config.policies}),
      lease_(clock_, notices_),
      rounds_(
          around_, {groups_, adoption_, reconciler_, publication_, lease_, commands},
          [this](const xfrm::RegisterChanges& changes, size_t entries_max) {
              decide(changes, entries_max);
          },
          [this](const GroupOwners& owners, const OwnerChanges& changed, bool other_spd) {
              lead_host_traffic(owners, changed, other_spd);
          }),
      tour_(clock_, slots_, handover_, feedback_),
      way_back_(clock_, slots_, handover_, reconciler_) {}

KernelSas::~KernelSas() = default;

SourceNeeds KernelSas::needs() const {
    const bpf_objects::Limits least;
    const uint32_t rows = config_.max_sas * 4;
    return {.maps = {.inbound_sas = config_.max_sas,
                     .spd_destinations = std::max(least.spd_destinations, rows),
                     .spd_sources = std::max(least.spd_sources, rows),
                     .spd_entries = std::max(least.spd_entries, rows)},
            .register_mode = true,
            .policies = config_.max_sas,  // a group has at least one SA, or needs no number
            .hold_frames = config::kHoldFrames,
            .hold_ms = kHoldMs};
}

std::expected<void, std::string> KernelSas::open(bpf_objects::BpfObjects& bpf) {
    steering_.open(bpf);
    programs_.open(bpf);
    publication_.open(programs_);
    lease_.open(programs_);
    if (auto opened = register_.open(); !opened) return opened;
    readable_.emplace(context_, dup(register_.fd()));
    if (auto read = register_.read_again(); !read) return read;
    return rounds_.run({});
}

void KernelSas::start() {
    reconciler_.take_over();
    host_traffic_.when_addresses_change([this] { round_in(kCoalesce); });
    round();
    wait_for_changes();
    on_tick();
}

void KernelSas::wind_down(std::function<void()> then) {
    when_back_ = std::move(then);
    way_back_.begin();
    left_ = slots_.size();
    left_since_ = clock_.now();
    go_back();
}

void KernelSas::stop() {
    stopped_ = true;
    host_traffic_.when_addresses_change({});
    ErrorCode ignored;
    if (readable_) readable_->close(ignored);
    for (Later* later : {&next_round_, &next_step_, &next_tick_, &next_slice_, &next_numbers_})
        later->stop();
}

void KernelSas::give_back() {
    if (!register_.is_open()) return;
    size_t failed = 0;
    slots_.for_each([this, &failed](Slot& slot) {  // those on their way out too
        if (!handover_.write_back(slot)) ++failed;
    });
    if (failed > 0) {
        log_.warning("the counters of " + std::to_string(failed) +
                     " SAs could not be written back to xfrm");
    }
    feedback_.leave_rekey_requests();
}

// ---- following the register --------------------------------------------------------------------

void KernelSas::wait_for_changes() {
    readable_->async_wait(boost::asio::posix::stream_descriptor::wait_read,
                          [this](ErrorCode error) {
                              if (error || stopped_) return;
                              on_readable();
                              wait_for_changes();
                          });
}

void KernelSas::on_readable() {
    const auto received = register_.receive();
    if (!received) log_.warning("the register of SAs is read again: " + received.error());
    if (!received || changes_.resync) return read_again();
    rounds_.heard(changes_);
    // The kernel says so for every other packet of an SA that it serves itself: no reason to
    // decide about all of them anew.
    note_acquires();
    look_at_used(std::exchange(changes_.used, {}));
    if (!changes_.empty()) round_in(kCoalesce);
}

// Of what has been said, all is heard.
void KernelSas::listen_to_the_end() {
    if (!read_again_due_) on_readable();
    if (!read_again_due_) rounds_.in_step(changes_);
}

void KernelSas::read_again() {
    lease_.take_away();
    const auto read = register_.read_again();
    read_again_due_ = !read.has_value();
    if (!read) {
        log_.error("what xfrm holds may be out of date here, it is read again in a second: " +
                   read.error());
        return;
    }
    changes_.resync = false;
    for (const auto& [name, slot] : slots_.by_name()) {
        if (const xfrm::KernelSa* state = register_.find(name)) handover_.compare(*slot, *state);
    }
    round_in(kCoalesce);
}

// That the kernel has used some can wait: on_tick() looks at them. Where it does so all the time,
// each look would make a round.
void KernelSas::on_overheard() {
    if (stopped_) return;
    note_acquires();
    rounds_.heard(changes_);
    if (changes_.resync || !changes_.policies.empty() || !changes_.added.empty() ||
        !changes_.removed.empty()) {
        round_in(kCoalesce);
    }
}

// More than there is room for in `changes_` count as traffic of the host.
void KernelSas::note_acquires() {
    for (const auto& acquire : changes_.acquires) {
        handover_.note_acquire(acquire.source, acquire.destination);
    }
    changes_.acquires.clear();
}

void KernelSas::look_at_used(const std::set<xfrm::SaName>& names) {
    std::vector<Slot*> used;
    for (const xfrm::SaName& name : names) {
        if (Slot* slot = slots_.find(name)) used.push_back(slot);
    }
    handover_.kernel_used(used);
}

void KernelSas::decide(const xfrm::RegisterChanges& changes, size_t entries_max) {
    if (auto addresses = netlink::local_addresses()) local_addresses_ = std::move(*addresses);
    ends_unchecked_ = true;
    adoption_.decide({register_.mirror().states(), register_.mirror().policies()}, changes,
                     {.cpus = setup_.cpus,
                      .local_addresses = local_addresses_,
                      .policies = config_.policies,
                      .entries_max = entries_max});
}

void KernelSas::round_in(std::chrono::milliseconds delay) {
    const auto paused =
        std::chrono::ceil<std::chrono::milliseconds>(next_round_not_before_ - clock_.now());
    next_round_.in(std::max(delay, paused));
}

void KernelSas::round() {
    look_at_used(std::exchange(changes_.used, {}));
    if (changes_.resync && !read_again_due_) return read_again();
    run_round();
    go_on();
    listen_to_the_end();
}

void KernelSas::run_round() {
    xfrm::RegisterChanges changes = std::exchange(changes_, {});
    changes_.used = std::move(changes.used);  // overheard: the next look is theirs
    steering_.name_marked(changes, register_.mirror().states());
    const bool failed_before = !rounds_.not_published().empty();
    const auto begun = clock_.now();
    const auto done = rounds_.run(std::move(changes));
    const auto ended = clock_.now();
    if (adoption_.decides_all()) next_round_not_before_ = ended + kPause * (ended - begun);
    if (!done && !failed_before) {
        log_.error("the policies in xfrm cannot be used, the earlier ones stay until they can: " +
                   done.error());
    } else if (done && failed_before) {
        log_.info("the policies in xfrm are in force again as they are there");
    }
}

// With the owners of a policy, what this host itself sends by it comes to the worker or does not:
// so an SA that is taken over settles for both.
void KernelSas::lead_host_traffic(const GroupOwners& owners, const OwnerChanges& changed,
                                  bool other_spd) {
    const bool others = other_spd && concerns_host();
    const bool new_ends = std::exchange(ends_unchecked_, false) && has_other_ends();
    if (!others && (of_host_.empty() || !new_ends)) {
        std::vector<std::pair<PolicyId, bool>> served;
        for (const auto& [group, workers] : changed) served.emplace_back(group, !workers.empty());
        return host_traffic_.serve(served);
    }
    host_traffic::Policies now{.outbound = adoption_.adoption().outbound, .served = {}};
    for (const auto& workers : owners) now.served.push_back(!workers.empty());
    // Also of SAs that the kernel keeps: their ESP and their IKE are this host's own packets.
    for (const auto& [name, decision] : adoption_.adoption().sas) {
        const xfrm::KernelSa* state = register_.find(name);
        if (state == nullptr || decision.direction != xfrm::StateDirection::outbound) continue;
        now.near_ends.insert(state->source);
        now.far_ends.insert(name.destination);
    }
    near_ends_ = now.near_ends;
    far_ends_ = now.far_ends;
    host_traffic_.follow(std::move(now));
}

// What was edited last has entries that an address of the host is inside of, or had.
bool KernelSas::concerns_host() {
    const Adoption& now = adoption_.adoption();
    const auto is_inside = [this](const SpdEntry& entry) {
        return std::ranges::any_of(local_addresses_, [&](const IpAddress& address) {
            return entry.source.contains(address);
        });
    };
    if (adoption_.change().whole || !now.edits) {
        of_host_.clear();
        for (size_t i = 0; i < now.outbound.size(); ++i) {
            if (is_inside(now.outbound[i])) of_host_.insert(now.outbound_places[i]);
        }
        return true;
    }
    bool concerns = false;
    for (const SpdEdit& edit : now.edits->outbound) {
        if (of_host_.erase(edit.place) != 0) concerns = true;
        if (!edit.entry || !is_inside(*edit.entry)) continue;
        of_host_.insert(edit.place);
        concerns = true;
    }
    return concerns;
}

// An SA came with an end that none had. One that went leaves its ends behind until policies change:
// a peer that is not led into a tunnel.
bool KernelSas::has_other_ends() const {
    const auto& decisions = adoption_.adoption().sas;
    return std::ranges::any_of(adoption_.change().sas, [&](const xfrm::SaName& name) {
        const auto decision = decisions.find(name);
        const xfrm::KernelSa* state = register_.find(name);
        return decision != decisions.end() && state != nullptr &&
               decision->second.direction == xfrm::StateDirection::outbound &&
               !(near_ends_.contains(state->source) && far_ends_.contains(name.destination));
    });
}

void KernelSas::go_on() {
    if (rounds_.go_on()) next_step_.in(Handover::kSettle);
    if (when_back_) go_back();
}

void KernelSas::go_back() {
    const bool more = rounds_.go_back(way_back_);
    if (std::exchange(left_, slots_.size()) != slots_.size()) left_since_ = clock_.now();
    if (more && clock_.now() - left_since_ < kWayBackMax) return next_step_.in(Handover::kSettle);
    if (more) {
        log_.warning("workers do not give " + std::to_string(slots_.size()) +
                     " SAs back: they are stopped as they are");
    }
    std::exchange(when_back_, {})();
}

void KernelSas::on_tick() {
    const bool second = ++ticks_ % kTicksOfSecond == 0;
    if (read_again_due_ && second) read_again();
    look_at_used(std::exchange(changes_.used, {}));
    tour_.begin();
    tour();
    if (second && !way_back_.has_begun()) feedback_.send_rekey_requests(RekeyPacer::kPerSecond);
    if (second) handover_.forget_old();
    next_tick_.in(kTick);
    listen_to_the_end();
}

void KernelSas::tour() {
    if (tour_.go_on()) next_slice_.in(std::chrono::milliseconds(0));
}

// Workers would stand still without them.
void KernelSas::extend_some() {
    if (handover_.extend_some()) next_numbers_.in(std::chrono::milliseconds(0));
}

void KernelSas::handle(const Event& event) {
    std::visit(
        [this](const auto& news) {
            if constexpr (requires { handover_.take(news); }) handover_.take(news);
        },
        event);
    if (handover_.some_are_low()) next_numbers_.in(std::chrono::milliseconds(0));
}

bool KernelSas::is_on_its_way(const event::Audit& record) const {
    if (record.reason != DropReason::unknown_spi) return false;
    const xfrm::SaName name{.spi = record.spi, .destination = record.destination, .mark = {}};
    const auto found = register_.mirror().states().lower_bound(name);  // of any mark
    return found != register_.mirror().states().end() && found->first.spi == name.spi &&
           found->first.destination == name.destination && found->first.protocol == name.protocol &&
           !found->second.larval;
}

// ---- views -------------------------------------------------------------------------------------

SaRow KernelSas::row_of_one(const xfrm::KernelSa& state) const {
    const auto& decisions = adoption_.adoption().sas;
    const auto decision = decisions.find(state.name);
    SaRow row = row_of(state, decision != decisions.end() ? &decision->second : nullptr);
    const Slot* slot = slots_.find(state.name);
    if (slot != nullptr && slot->phase == Phase::installed) {
        set_slot(row, *slot);
        return row;
    }
    const auto kept = handover_.kept().find(state.name);
    if (kept != handover_.kept().end()) row.reason = kept->second;
    if (slot != nullptr || row.reason.empty()) row.reason = "about to be taken over";
    return row;
}

std::optional<IpAddress> KernelSas::far_end_after(const std::optional<IpAddress>& last) const {
    return rounds_.far_end_after(last);
}

std::vector<SaRow> KernelSas::sas() const {
    std::vector<SaRow> out;
    for (const auto& [name, state] : register_.mirror().states()) out.push_back(row_of_one(state));
    return out;
}

std::vector<PolicyRow> KernelSas::policies() const {
    std::vector<PolicyRow> out;
    const auto& policies = register_.mirror().policies();
    const auto& views = adoption_.adoption().policies;
    std::vector<std::pair<SpdPlace, const PolicyView*>> ordered;
    for (const auto& [index, view] : views) {
        const auto found = policies.find(index);
        if (found != policies.end()) {
            ordered.emplace_back(adoption::place_of(adoption::judge(found->second)), &view);
        }
    }
    std::ranges::sort(ordered);
    for (const auto& [place, view] : ordered) {
        out.push_back(row_of(policies.at(view->index), *view));
    }
    return out;
}

SourceCounts KernelSas::counts() const {
    const auto adopted = static_cast<size_t>(std::ranges::count_if(
        slots_.by_name(), [](const auto& item) { return item.second->phase == Phase::installed; }));
    const size_t sas = register_.mirror().states().size();
    return {.policies = register_.mirror().policies().size(),
            .sas = sas,
            .sas_with_kernel = sas - std::min(sas, adopted),
            .not_published = rounds_.not_published(),
            .bypass_lapses = lease_.lapses()};
}

std::string KernelSas::inventory() const {
    return std::to_string(register_.mirror().policies().size()) + " policies and " +
           std::to_string(register_.mirror().states().size()) + " SAs in xfrm";
}

size_t KernelSas::served_by(WorkerId worker) const {
    return static_cast<size_t>(std::ranges::count_if(slots_.by_name(), [worker](const auto& item) {
        return item.second->phase == Phase::installed && item.second->owner() == worker;
    }));
}

}  // namespace sallyport::control
