// SPDX-License-Identifier: Apache-2.0
#include "dataplane/worker/worker.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <x86intrin.h>

#include <algorithm>
#include <cassert>
#include <cstring>
#include <ctime>
#include <semaphore>
#include <span>
#include <thread>
#include <utility>
#include <variant>

#include "dataplane/base/spsc_ring.h"
#include "dataplane/crypto/engine.h"
#include "dataplane/egress/egress.h"
#include "dataplane/exchange/event_channel.h"
#include "dataplane/io/packet_memory.h"
#include "dataplane/io/port_sockets.h"
#include "dataplane/io/tap.h"
#include "dataplane/pipeline/inbound.h"
#include "dataplane/pipeline/outbound.h"

namespace sallyport {
namespace {

// Commands that control can give before the worker takes one. What does not fit waits in control;
// larger costs memory in every worker.
constexpr uint32_t kCommandRingSize = 1024;
// A lost wake-up costs at most this; an idle worker turns its loop four times a second.
constexpr int kSleepMs = 250;
// As long, while something waits for us that no descriptor tells of: a queue of this home is short
// of FILL buffers, because none were free at the last look (and on an empty queue nobody receives
// who would wake us), or frames stand on a TX ring that could not take more.
constexpr int kShortSleepMs = 1;
// A worker that takes a thousand commands in one go leaves its rings alone for too long; with few a
// hand-over of many SAs takes more turns.
constexpr int kCommandsPerTurn = 64;
// While busy, the TAP is read only now and then unless it had something: each try is a system call.
// Longer, and what the kernel routes into a busy worker waits; a turn takes some microseconds.
constexpr uint32_t kTapEveryLoops = 64;
constexpr uint32_t kTapBurst = 32;

uint64_t monotonic_ns() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

// TSC cycles in a microsecond, from a short look at both clocks.
double cycles_per_us() {
    const uint64_t ns_begin = monotonic_ns();
    const uint64_t tsc_begin = __rdtsc();
    uint64_t ns_end = ns_begin;
    while (ns_end - ns_begin < 1'000'000) ns_end = monotonic_ns();
    const auto cycles = static_cast<double>(__rdtsc() - tsc_begin);
    return cycles / static_cast<double>(ns_end - ns_begin) * 1e3;
}

}  // namespace

struct Worker::Impl {
    WorkerSetup setup;
    WorkerCounters counters;
    SpscRing<Command> commands{kCommandRingSize};
    EventChannel events{counters};
    crypto::Aead aead;
    Sad sad;
    OutboundTable outbound_sas;
    InboundPipeline inbound;
    OutboundPipeline outbound;
    const Spd* spd = nullptr;
    const NextHops* next_hops = nullptr;

    std::vector<pollfd> poll_set;
    std::array<Frame, kBurstMax> burst;
    uint64_t spin_cycles = 0;
    uint64_t cycles_per_ms = 1;
    bool tap_has_more = false;
    bool new_inbound = false;  // what commands of this turn have brought
    bool new_outbound = false;
    std::atomic<bool> stopping = false;
    std::thread thread;

    Impl(WorkerSetup given, crypto::Aead context)
        : setup(std::move(given)),
          aead(std::move(context)),
          sad(setup.max_sas),
          outbound_sas(setup.max_policies),
          inbound(sad, aead, counters, events, setup.id, setup.hold_frames),
          outbound(outbound_sas, aead, counters, events, setup.id, setup.hold_frames) {
        outbound.set_outer_mtu(setup.outer_mtu);
        for (const auto& port : setup.ports) {
            for (uint16_t q = 0; q < port.sockets->queues(); ++q) {
                add_to_poll_set(port.sockets->fd(QueueId{q}, setup.id));
            }
        }
        add_to_poll_set(setup.tap->fd());
        add_to_poll_set(setup.wake_board->fd(setup.id));
    }

    void add_to_poll_set(int fd) { poll_set.push_back({.fd = fd, .events = POLLIN, .revents = 0}); }

    void measure_clock() {
        const double per_us = cycles_per_us();
        spin_cycles = static_cast<uint64_t>(per_us * setup.spin_us);
        cycles_per_ms = static_cast<uint64_t>(per_us * 1e3);
        inbound.on_hold().set_age_max(cycles_per_ms * setup.hold_ms);
        outbound.on_hold().set_age_max(cycles_per_ms * setup.hold_ms);
    }

    std::expected<void, std::string> pin() const {
        cpu_set_t cpus;
        CPU_ZERO(&cpus);
        CPU_SET(setup.cpu, &cpus);
        if (const int error = pthread_setaffinity_np(pthread_self(), sizeof cpus, &cpus);
            error != 0) {
            return std::unexpected("worker " + std::to_string(to_index(setup.id)) +
                                   " cannot be pinned to CPU " + std::to_string(setup.cpu) + ": " +
                                   std::strerror(error));
        }
        pthread_setname_np(pthread_self(),
                           ("sp-worker-" + std::to_string(to_index(setup.id))).c_str());
        return {};
    }

    void loop() {
        refill_homes();
        uint64_t last_work = __rdtsc();
        for (uint32_t turn = 0; !stopping.load(std::memory_order_relaxed); ++turn) {
            const uint64_t begin = __rdtsc();
            take_commands();
            drop_expired(inbound, begin);
            drop_expired(outbound, begin);
            uint32_t frames = receive_from_ports();
            if (tap_has_more || turn % kTapEveryLoops == 0) frames += receive_from_kernel();
            setup.egress->flush();
            refill_homes();
            events.notify();
            counters.loops.add(1);
            if (frames != 0) {
                last_work = __rdtsc();
                counters.busy_cycles.add(last_work - begin);
            } else if (begin - last_work > spin_cycles && begin > last_work) {
                sleep();
                last_work = __rdtsc();
            }
        }
        // Nothing stays in hand: what the last burst produced has been flushed above, and what
        // waits for an SA will get none.
        run_held(inbound, inbound.on_hold().count(), HoldList::Round::last);
        run_held(outbound, outbound.on_hold().count(), HoldList::Round::last);
        setup.egress->flush();
        events.notify();
        setup.memory->unregister_thread();
    }

    uint32_t receive_from_ports() {
        uint32_t frames = 0;
        for (const auto& port : setup.ports) {
            for (uint16_t q = 0; q < port.sockets->queues(); ++q) {
                const QueueId queue{q};
                const uint32_t count = port.sockets->receive(queue, setup.id, burst);
                if (count == 0) continue;
                frames += count;
                const std::span received(burst.data(), count);
                if (port.unprotected_side) {
                    inbound.run(received);
                    finish(inbound.delivered(), inbound.discarded());
                } else {
                    outbound.run(received, OutboundSource::port);
                    finish(outbound.delivered(), outbound.discarded());
                }
                wake_starving_home(*port.sockets, queue);
            }
        }
        return frames;
    }

    uint32_t receive_from_kernel() {
        std::array<std::byte*, kTapBurst> buffers;
        tap_has_more = false;
        if (!setup.memory->take(buffers)) return 0;
        const uint32_t count = setup.tap->read(buffers, std::span(burst).first(kTapBurst));
        setup.memory->give(std::span(buffers).subspan(count));
        if (count == 0) return 0;
        tap_has_more = count == kTapBurst;
        counters.from_kernel.add(count);
        outbound.run({burst.data(), count}, OutboundSource::kernel);
        finish(outbound.delivered(), outbound.discarded());
        return count;
    }

    // `count` of the frames that wait for an SA, the oldest.
    template <typename Pipeline>
    void run_held(Pipeline& pipeline, uint32_t count, HoldList::Round round) {
        while (count != 0) {
            count -= pipeline.run_held(count, round);
            finish(pipeline.delivered(), pipeline.discarded());
        }
    }

    template <typename Pipeline>
    void drop_expired(Pipeline& pipeline, uint64_t now) {
        HoldList& held = pipeline.on_hold();
        held.set_now(now);
        if (!held.empty()) run_held(pipeline, held.expired(), HoldList::Round::last);
    }

    // An idle worker must wake up when a frame on hold is due.
    [[nodiscard]] int sleep_ms() const {
        if (a_home_starves() || setup.egress->has_unsent() || events.has_unsent()) {
            return kShortSleepMs;
        }
        uint64_t sleep = kSleepMs;
        for (const HoldList* held : {&inbound.on_hold(), &outbound.on_hold()}) {
            if (!held->empty()) sleep = std::min(sleep, held->time_left() / cycles_per_ms + 1);
        }
        return static_cast<int>(sleep);
    }

    void finish(std::span<OutgoingFrame> delivered, std::span<std::byte* const> discarded) {
        if (!discarded.empty()) setup.memory->give(discarded);
        if (delivered.empty()) return;
        counters.egress_frames.add(delivered.size());
        setup.egress->send(delivered);
    }

    // A queue whose home sleeps would run out of FILL buffers while others are busy on it.
    void wake_starving_home(const io::PortSockets& sockets, QueueId queue) const {
        const WorkerId home = sockets.home(queue);
        if (home != setup.id && sockets.fill_level(queue) < sockets.fill_low_water(queue)) {
            setup.wake_board->wake(home);
        }
    }

    void refill_homes() {
        for (const auto& port : setup.ports) {
            for (uint16_t q = 0; q < port.sockets->queues(); ++q) {
                const QueueId queue{q};
                if (port.sockets->home(queue) != setup.id) continue;
                port.sockets->reclaim(queue);
                port.sockets->refill(queue);
            }
        }
    }

    [[nodiscard]] bool a_home_starves() const {
        for (const auto& port : setup.ports) {
            for (uint16_t q = 0; q < port.sockets->queues(); ++q) {
                const QueueId queue{q};
                if (port.sockets->home(queue) == setup.id &&
                    port.sockets->fill_level(queue) < port.sockets->fill_low_water(queue)) {
                    return true;
                }
            }
        }
        return false;
    }

    void sleep() {
        setup.wake_board->fall_asleep(setup.id);
        // Sockets need no second look: poll() returns at once for them. FILL levels do: a call that
        // came since our refill found us awake.
        if (commands.empty() && !stopping.load(std::memory_order_relaxed)) {
            counters.sleeps.add(1);
            poll(poll_set.data(), poll_set.size(), sleep_ms());
            pollfd& tap = poll_set[poll_set.size() - 2];
            tap_has_more = (tap.revents & POLLIN) != 0;
            // Its device was removed, and does not come back to this queue: poll() would never wait
            // again. It takes no notice of what is below 0.
            if ((tap.revents & (POLLERR | POLLNVAL)) != 0) tap.fd = -1;
        }
        setup.wake_board->woke_up(setup.id);
    }

    void take_commands() {
        Command command;
        new_inbound = new_outbound = false;
        for (int i = 0; i < kCommandsPerTurn && commands.pop(command); ++i) {
            std::visit([this](const auto& order) { apply(order); }, command);
        }
        // Before newer frames are received: a flow keeps its order.
        if (new_inbound) run_held(inbound, inbound.on_hold().count(), HoldList::Round::again);
        if (new_outbound) run_held(outbound, outbound.on_hold().count(), HoldList::Round::again);
    }

    void apply(const command::InstallInbound& order) {
        assert(order.sa->owner == setup.id);
        install(sad, order.sa, new_inbound);
    }
    void apply(const command::InstallOutbound& order) {
        assert(order.sa->owner == setup.id);
        install(outbound_sas, order.sa, new_outbound);
    }
    void apply(const command::RetireInbound& order) {
        sad.remove(order.sa);
        answer_retired(order.sa);
    }
    void apply(const command::RetireOutbound& order) {
        outbound_sas.remove(order.sa);
        answer_retired(order.sa);
    }
    void apply(const command::ReplaceInbound& order) {
        assert(order.sa->owner == setup.id);
        if (order.old == nullptr || !sad.contains(order.old, *order.sa)) {
            return install(sad, order.sa, new_inbound);
        }
        assert(order.old != order.sa);
        if (!sad.replace(order.old, order.sa)) return answer_retired(order.sa);
        order.sa->take_over(*order.old);
        answer_retired(order.old);
        new_inbound = true;
    }
    void apply(const command::SkipReplay& order) {
        InboundSa* sa = sad.find(order.spi, order.destination);
        if (sa != nullptr && sa->id == order.id) sa->replay.skip(order.last);
    }
    void apply(const command::ExtendSequence& order) {
        order.sa->reserve(order.reserved, order.low_water);
        order.sa->raise_sequence(order.next_at_least);
    }
    void apply(const command::PublishSpd& order) {
        const Spd* before = std::exchange(spd, order.spd);
        outbound.set_spd(spd);
        new_outbound = true;  // a packet may fall under a policy that has an SA
        if (before != nullptr) events.post(event::SpdReleased{before});
    }
    void apply(const command::PublishNextHops& order) {
        const NextHops* before = std::exchange(next_hops, order.next_hops);
        setup.egress->set_next_hops(next_hops);
        if (before != nullptr) events.post(event::NextHopsReleased{before});
    }
    void apply(const command::SetOuterMtu& order) { outbound.set_outer_mtu(order.bytes); }

    template <typename Table, typename Sa>
    void install(Table& table, Sa* sa, bool& is_new) {
        if (!table.insert(sa)) return answer_retired(sa);
        is_new = true;
    }

    void answer_retired(InboundSa* sa) {
        events.post(event::InboundRetired{.id = sa->id, .sa = sa});
    }
    void answer_retired(OutboundSa* sa) {
        events.post(event::OutboundRetired{.id = sa->id, .sa = sa});
    }
};

Worker::Worker(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Worker::~Worker() {
    stop();
}

std::expected<std::unique_ptr<Worker>, std::string> Worker::create(WorkerSetup setup) {
    auto aead = crypto::Aead::create();
    if (!aead) return std::unexpected(aead.error());
    return std::unique_ptr<Worker>(
        new Worker(std::make_unique<Impl>(std::move(setup), std::move(*aead))));
}

std::expected<void, std::string> Worker::start() {
    std::binary_semaphore ready(0);
    std::expected<void, std::string> result;
    impl_->measure_clock();
    impl_->thread = std::thread([&ready, &result, impl = impl_.get()] {
        result = impl->pin();
        if (result && !io::PacketMemory::register_thread()) {
            result = std::unexpected("worker " + std::to_string(to_index(impl->setup.id)) +
                                     ": DPDK takes no more threads");
        }
        if (result && impl->setup.confine) result = impl->setup.confine();
        const bool go = result.has_value();
        ready.release();  // `ready` and `result` are gone after this
        if (go) impl->loop();
    });
    ready.acquire();
    if (!result) impl_->thread.join();
    return result;
}

void Worker::stop() {
    if (!impl_->thread.joinable()) return;
    impl_->stopping.store(true, std::memory_order_relaxed);
    impl_->setup.wake_board->wake(impl_->setup.id);
    impl_->thread.join();
}

bool Worker::submit(const Command& command) {
    if (!impl_->commands.push(command)) return false;
    impl_->setup.wake_board->wake(impl_->setup.id);
    return true;
}

bool Worker::next_event(Event& event) {
    return impl_->events.pop(event);
}
int Worker::event_fd() const {
    return impl_->events.fd();
}
const WorkerCounters& Worker::counters() const {
    return impl_->counters;
}
const egress::Egress& Worker::egress() const {
    return *impl_->setup.egress;
}
WorkerId Worker::id() const {
    return impl_->setup.id;
}
uint16_t Worker::cpu() const {
    return impl_->setup.cpu;
}

uint64_t Worker::cpu_time_ns() const {
    clockid_t clock{};
    timespec used{};
    if (!impl_->thread.joinable() ||
        pthread_getcpuclockid(impl_->thread.native_handle(), &clock) != 0 ||
        clock_gettime(clock, &used) != 0) {
        return 0;
    }
    return static_cast<uint64_t>(used.tv_sec) * 1'000'000'000u +
           static_cast<uint64_t>(used.tv_nsec);
}

}  // namespace sallyport
