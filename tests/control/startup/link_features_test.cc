// SPDX-License-Identifier: Apache-2.0
//
// VLAN tags stay in frames while it lives, and what was on before is on again, after a kill too.

#include "control/startup/link_features.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>

#include "control/host/note.h"

namespace sallyport::control {
namespace {

using Names = std::vector<std::string>;

// A veth takes both kinds of tags out, and can be told not to.
class LinkFeaturesTest : public ::testing::Test {
  protected:
    void SetUp() override {
        std::string folder = testing::TempDir() + "/sallyport-features-XXXXXX";
        ASSERT_NE(mkdtemp(folder.data()), nullptr);
        folder_ = folder;
    }
    void TearDown() override { std::filesystem::remove_all(folder_); }

    // In a network namespace that ends with the thread, with a device `port0`.
    template <typename Body>
    void in_namespace(Body body) {
        bool skipped = false;
        std::thread([&] {
            skipped = unshare(CLONE_NEWNET) != 0 ||
                      std::system("ip link add port0 type veth peer name far0") != 0;
            if (!skipped) body();
        }).join();
        if (skipped) GTEST_SKIP() << "needs root, for a network namespace with a veth";
    }
    static Names on() {
        const auto names = tags_beside_frames("port0");
        EXPECT_TRUE(names) << names.error();
        return names.value_or(Names{});
    }
    [[nodiscard]] std::filesystem::path note() const { return folder_ / "link_features"; }

    std::filesystem::path folder_;
    static inline const Names kBoth = {"rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"};
};

TEST_F(LinkFeaturesTest, AreOffWhileItLivesAndOnAgainAfterwards) {
    in_namespace([&] {
        ASSERT_EQ(on(), kBoth);
        {
            LinkFeatures features(note());
            const auto change = features.switch_off("port0");
            ASSERT_TRUE(change) << change.error();
            EXPECT_EQ(*change, LinkFeatures::Change::changed);
            EXPECT_EQ(on(), Names{});
            EXPECT_TRUE(std::filesystem::exists(note()));
        }
        EXPECT_EQ(on(), kBoth);
        EXPECT_FALSE(std::filesystem::exists(note()));
    });
}

TEST_F(LinkFeaturesTest, WhatWasOffStaysOff) {
    in_namespace([&] {
        ASSERT_EQ(std::system("ethtool -K port0 rxvlan off"), 0);
        {
            LinkFeatures features(note());
            ASSERT_TRUE(features.switch_off("port0"));
            EXPECT_EQ(on(), Names{});
        }
        EXPECT_EQ(on(), Names{"rx-vlan-stag-hw-parse"});
    });
}

TEST_F(LinkFeaturesTest, WhatAKilledRunHasSwitchedOffIsOnAgainAfterTheNext) {
    in_namespace([&] {
        ASSERT_EQ(std::system("ethtool -K port0 rxvlan off"), 0);
        const Names killed = {"port0 rx-vlan-hw-parse", "gone0 rx-vlan-hw-parse"};
        ASSERT_TRUE(host::write_note(note(), killed));
        {
            LinkFeatures features(note());
            ASSERT_TRUE(features.switch_off("port0"));
            EXPECT_EQ(on(), Names{});
        }
        EXPECT_EQ(on(), kBoth);
        EXPECT_FALSE(std::filesystem::exists(note()));
    });
}

TEST_F(LinkFeaturesTest, MergingStopsWhileItLivesAndADeviceThatWentIsNoError) {
    in_namespace([&] {
        const auto merges = [] {
            return std::system("ethtool -k port0 | grep -q 'generic-receive-offload: on'") == 0;
        };
        ASSERT_EQ(std::system("ethtool -K port0 gro on"), 0);
        ASSERT_TRUE(merges());
        using Merging = LinkFeatures::Merging;
        {
            LinkFeatures features(note());
            EXPECT_EQ(features.stop_merging("port0"), Merging::stopped);
            EXPECT_FALSE(merges());
            EXPECT_EQ(features.stop_merging("port0"), Merging::none) << "it is off by now";
            EXPECT_EQ(features.stop_merging("none0"), Merging::none);
        }
        EXPECT_TRUE(merges());
    });
}

TEST_F(LinkFeaturesTest, ADeviceThatIsNotThereIsAnError) {
    in_namespace([&] {
        LinkFeatures features(note());
        const auto change = features.switch_off("none0");
        ASSERT_FALSE(change);
        EXPECT_NE(change.error().find("none0"), std::string::npos) << change.error();
    });
}

}  // namespace
}  // namespace sallyport::control
