// SPDX-License-Identifier: MIT
#include <moe/gates/capacity.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/copy.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/gradient_check.hpp>
#include <moe/testing/random.hpp>

#include "gates/batch.hpp"

namespace {

using gates_test::batch;
using moe::Capacity;
using moe::CapacityLimit;
using moe::Dropped;
using moe::Index;
using moe::Matrix;
using moe::TopK;
using moe::WithCapacity;
using moe::testing::random_matrix;
using Overflow = Capacity::Overflow;
using Priority = Capacity::Priority;
using Scope = Capacity::Scope;

static_assert(moe::Recipe<WithCapacity<TopK>>);
static_assert(moe::TrainableGate<moe::CapacityModule<float, moe::TopKModule<float>>, float>);
static_assert(!moe::CapacityModule<float, moe::TopKModule<float>>::per_token);

CapacityLimit places(Index count) { return CapacityLimit::constant(count); }

/// Assignments in the order in which they are served, worked out from the definition: pairs of
/// token and slot.
struct Request {
    Index token, slot, expert;
    double weight, logit, importance;
};
std::vector<Request> requests_of(const moe::Routing& routing, const Matrix<double>& z) {
    std::vector<Request> all;
    for (const moe::Assignment& a : routing.assignments()) {
        double sum = 0;
        for (Index e = 0; e < z.cols(); ++e)
            sum += std::exp(z(a.token, e) - z.row(a.token).maxCoeff());
        all.push_back({a.token, a.slot, a.expert, a.weight, z(a.token, a.expert), 1 / sum});
    }
    return all;
}
void serve(std::vector<Request>& all, Priority priority) {
    std::stable_sort(all.begin(), all.end(), [priority](const Request& a, const Request& b) {
        if (priority == Priority::k_major) return a.slot < b.slot;
        if (priority == Priority::probability) return a.weight > b.weight;
        if (priority == Priority::logit) return a.logit > b.logit;
        if (priority == Priority::batch_prioritized)
            return a.slot != b.slot ? a.slot < b.slot : a.importance > b.importance;
        return false;
    });
}

TEST(Capacity, KeepsThoseWhoComeFirstByEveryPriority) {
    const Matrix<double> z = random_matrix<double>(40, 5, 1, 2);
    for (const Priority priority : {Priority::k_major, Priority::token_major, Priority::probability,
                                    Priority::logit, Priority::batch_prioritized})
        for (const Index k : {1, 2, 3})
            for (const Index capacity : {0, 1, 7, 16, 40}) {
                auto free = batch<double>(TopK{.k = k}, 5);
                free.route(z);
                auto all = requests_of(free.routing, z);
                serve(all, priority);
                std::vector<Index> taken(5, 0);
                std::set<std::pair<Index, Index>> kept;
                for (const Request& r : all)
                    if (taken[static_cast<std::size_t>(r.expert)]++ < capacity)
                        kept.insert({r.token, r.expert});

                auto tokens = batch<double>(
                    WithCapacity{TopK{.k = k}, {.limit = places(capacity), .priority = priority}},
                    5);
                tokens.route(z);
                ASSERT_EQ(tokens.routing.num_assignments(), 40 * k);
                for (const moe::Assignment& a : tokens.routing.assignments())
                    EXPECT_EQ(a.dropped == Dropped::no, kept.count({a.token, a.expert}) == 1)
                        << static_cast<int>(priority) << " " << k << " " << capacity;
            }
}

}  // namespace
