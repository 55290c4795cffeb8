// SPDX-License-Identifier: Apache-2.0
#include "dataplane/exchange/wake_board.h"

#include <unistd.h>

#include "dataplane/exchange/event_fd.h"

namespace sallyport {

WakeBoard::WakeBoard(uint16_t workers) : seats_(workers) {
    for (Seat& seat : seats_) seat.fd = make_event_fd();
}

WakeBoard::~WakeBoard() {
    for (const Seat& seat : seats_) {
        if (seat.fd >= 0) close(seat.fd);
    }
}

void WakeBoard::wake(WorkerId worker) {
    const Seat& seat = seats_[to_index(worker)];
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (seat.asleep.load(std::memory_order_relaxed)) signal_event_fd(seat.fd);
}

void WakeBoard::fall_asleep(WorkerId worker) {
    seats_[to_index(worker)].asleep.store(true, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);
}

void WakeBoard::woke_up(WorkerId worker) {
    Seat& seat = seats_[to_index(worker)];
    seat.asleep.store(false, std::memory_order_relaxed);
    drain_event_fd(seat.fd);
}

}  // namespace sallyport
