// SPDX-License-Identifier: Apache-2.0
//
// The hand-over of SAs between kernel and workers, in every order that dice come upon: see
// handover_simulation.h. One seed is one schedule.
//
//   HANDOVER_SEED=4711        only this schedule, step by step
//   HANDOVER_SCHEDULES=5000   how many (the default depends on how the test was built)
//   HANDOVER_FIRST=1000001    the first of them
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "tests/control/sa/kernel/handover_simulation.h"
#include "tests/support/sanitizers.h"

namespace sallyport::control::model {
namespace {

#if SP_TEST_WITH_ASAN || defined(__SANITIZE_THREAD__)
constexpr uint64_t kSchedules = 10'000;
#elif !defined(__OPTIMIZE__)
constexpr uint64_t kSchedules = 50'000;
#else
constexpr uint64_t kSchedules = 1'000'000;
#endif

std::optional<uint64_t> number_from(const char* variable) {
    const char* text = std::getenv(variable);
    if (text == nullptr) return std::nullopt;
    return std::strtoull(text, nullptr, 10);
}

const crypto::Aead& aead() {
    static const crypto::Aead instance = *crypto::Aead::create();
    return instance;
}

struct Finding {
    uint64_t seed = 0;
    std::string broken;
};

std::string to_text(const Finding& finding) {
    const std::string test = testing::UnitTest::GetInstance()->current_test_info()->name();
    return finding.broken + "\nagain, step by step: HANDOVER_SEED=" + std::to_string(finding.seed) +
           " handover_simulation_test --gtest_filter='*" + test + "'";
}

// The first schedule that breaks a promise, with `what` in its words.
std::optional<Finding> search(uint64_t schedules, Options options, const std::string& what = "") {
    uint64_t first = number_from("HANDOVER_FIRST").value_or(1);
    if (const auto seed = number_from("HANDOVER_SEED")) {
        first = *seed;
        schedules = 1;
        options.tell = true;
    }
    const auto begin = std::chrono::steady_clock::now();
    std::optional<Finding> finding;
    uint64_t seed = first;
    for (; seed < first + schedules && !finding; ++seed) {
        auto broken = Simulation(seed, aead(), options).run();
        if (broken && broken->contains(what)) finding = {seed, *broken};
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    std::printf("schedules %llu to %llu, %.0f a second\n", static_cast<unsigned long long>(first),
                static_cast<unsigned long long>(seed - 1),
                static_cast<double>(seed - first) / took.count());
    return finding;
}

TEST(HandoverSimulation, KeepsItsPromises) {
    const auto finding = search(number_from("HANDOVER_SCHEDULES").value_or(kSchedules), {});
    EXPECT_FALSE(finding) << to_text(*finding);
}

TEST(HandoverSimulation, AQuietHostIsNotBlamed) {
    const auto finding =
        search(number_from("HANDOVER_SCHEDULES").value_or(kSchedules / 10), {.quiet_host = true});
    EXPECT_FALSE(finding) << to_text(*finding);
}

// ---- the test of the test: each part of the order is needed ------------------------------------

void expect_found(const Options& options, const std::string& what) {
    const auto finding = search(20'000, options);
    ASSERT_TRUE(finding) << "the simulation did not notice";
    std::printf("%s\n", to_text(*finding).c_str());
    EXPECT_NE(finding->broken.find(what), std::string::npos) << "not what was expected: " << what;
}

constexpr const char* kSentTwice = "has sent number";
constexpr const char* kAcceptedTwice = "was accepted twice";

TEST(HandoverSimulation, NoticesThatNothingIsReserved) {
    expect_found({.mistake = Mistake::no_reservation}, kSentTwice);
}

TEST(HandoverSimulation, NoticesThatIsReservedAfterInstalling) {
    expect_found({.mistake = Mistake::reservation_after_install}, kSentTwice);
}

TEST(HandoverSimulation, NoticesThatIsWrittenBackBeforeTheWorkerLetGo) {
    expect_found({.mistake = Mistake::written_back_too_early}, "uses an SA that was freed");
}

TEST(HandoverSimulation, NoticesThatIsSteeredBackBeforeTheWorkerLetGo) {
    expect_found({.mistake = Mistake::steered_back_too_early}, kAcceptedTwice);
}

TEST(HandoverSimulation, NoticesThatLastCountersAreForgotten) {
    expect_found({.mistake = Mistake::last_counters_forgotten}, "twice");
}

TEST(HandoverSimulation, NoticesThatAStateWithTheKernelIsLeftBehind) {
    expect_found({.mistake = Mistake::kernel_left_behind}, "twice");
}

TEST(HandoverSimulation, NoticesThatWhatTheKernelSendsMeanwhileIsNotCounted) {
    expect_found({.mistake = Mistake::kernel_looks_quiet}, kSentTwice);
}

TEST(HandoverSimulation, NoticesThatAStateAddedAgainIsNotNoticed) {
    expect_found({.mistake = Mistake::replaced_unnoticed}, "twice");
}

// ---- known gaps: what needs another protocol with the kernel -----------------------------------
//
// Not promises: each shows what is left out above, and fails when it is there no more. Then it goes
// into the schedules of KeepsItsPromises.

TEST(HandoverSimulation, KnownGapKernelServesBeforeCountersAreRaised) {
    expect_found({.gap = KnownGap::kernel_serves_before_counters_are_raised}, kSentTwice);
}

TEST(HandoverSimulation, KnownGapDeletionIsMissed) {
    expect_found({.gap = KnownGap::deletion_is_missed}, "twice");
}

// It also puts the kernel's number down, which is the same gap seen earlier.
TEST(HandoverSimulation, KnownGapDeviceThatIsNoPort) {
    const auto finding = search(20'000, {.gap = KnownGap::device_that_is_no_port}, kAcceptedTwice);
    ASSERT_TRUE(finding) << "the simulation did not notice";
}

}  // namespace
}  // namespace sallyport::control::model
