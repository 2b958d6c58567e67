// SPDX-License-Identifier: MIT
#include <moe/compose/slot_logits.hpp>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/testing/compare.hpp>
#include <moe/testing/finite_difference.hpp>
#include <moe/testing/random.hpp>

#include "support/allocations.hpp"
#include "support/message.hpp"

namespace {

using moe::Buffer;
using moe::Index;
using moe::Matrix;
using moe::SlotNorm;
using moe::testing::check_gradient;
using moe::testing::random_matrix;

constexpr Index tokens = 5, slots = 4, dim = 3;
constexpr double epsilon = 0.01;

/// What SoftSlotsModule sees of its base.
struct Slots : moe::detail::SlotLogits<double> {
    using Base = moe::detail::SlotLogits<double>;
    using State = Base::LogitState;
    using Base::logits, Base::logits_backward;

    Slots() = default;
    explicit Slots(SlotNorm norm) : Slots(norm, moe::Random(3, 1)) {}

private:
    Slots(SlotNorm norm, moe::Random random) : Base(norm, epsilon, 1.5, slots, dim, random) {
        if (norm == SlotNorm::length) return;
        for (Index d = 0; d < dim; ++d)
            token_gain(0, d) = 1 + 0.25 * double(d), slot_gain(0, d) = 1 - 0.125 * double(d);
    }
};

Matrix<double> logits_of(const Slots& part, const Matrix<double>& x, Slots::State& state) {
    moe::SerialExecutor serial;
    Matrix<double> values(x.rows(), slots);
    part.logits(x, values.data(), state, serial);
    return values;
}

TEST(SlotLogits, AreTheFormula) {
    const auto x = random_matrix<double>(tokens, dim, 1);
    for (const SlotNorm norm : {SlotNorm::length, SlotNorm::rms}) {
        const bool has_gains = norm == SlotNorm::rms;
        const Slots part(norm);
        Slots::State state;
        Matrix<double> wanted = Matrix<double>::Zero(tokens, slots);
        for (Index t = 0; t < tokens; ++t)
            for (Index p = 0; p < slots; ++p) {
                double of_token = epsilon, of_slot = epsilon;
                for (Index d = 0; d < dim; ++d) {
                    of_token += x(t, d) * x(t, d);
                    of_slot += part.phi(p, d) * part.phi(p, d);
                }
                for (Index d = 0; d < dim; ++d)
                    wanted(t, p) += x(t, d) * part.phi(p, d) / std::sqrt(of_token * of_slot) *
                                    (has_gains ? dim * part.token_gain(0, d) * part.slot_gain(0, d)
                                               : part.scale(0, 0));
            }
        EXPECT_TRUE(moe::testing::compare(logits_of(part, x, state), wanted, 1e-14));
    }
}

TEST(SlotLogits, GradientsAreExactAndAddToWhatIsThere) {
    for (const SlotNorm norm : {SlotNorm::length, SlotNorm::rms})
        for (const bool has_du : {false, true}) {
            Slots part(norm);
            Matrix<double> x = random_matrix<double>(tokens, dim, 1);
            const auto dlogits = random_matrix<double>(tokens, slots, 2);
            const auto du = random_matrix<double>(tokens, dim, 4);
            const auto before = random_matrix<double>(tokens, dim, 5);
            Slots::State state;
            moe::SerialExecutor serial;
            const auto loss = [&] {
                double sum = (logits_of(part, x, state).array() * dlogits.array()).sum();
                for (Index i = 0; i < du.size() && has_du; ++i)
                    sum += state.units[i] * du.data()[i];
                return sum;
            };
            loss();
            Buffer<double> given;
            given.matrix(tokens, slots) = dlogits;
            if (has_du) state.dunits.matrix(tokens, dim) = du;
            Slots grad = part;
            for (auto* matrix : {&grad.phi, &grad.scale, &grad.token_gain, &grad.slot_gain})
                std::fill_n(matrix->data(), matrix->size(), 0.0);
            Matrix<double> dx = before;
            part.logits_backward(x, given, has_du, dx, grad, state, serial, {});
            dx -= before;
            EXPECT_TRUE(check_gradient(loss, x, dx));
            EXPECT_TRUE(check_gradient(loss, part.phi.view(), grad.phi.view()));
            if (norm == SlotNorm::length) {
                EXPECT_TRUE(check_gradient(loss, part.scale.view(), grad.scale.view()));
                continue;
            }
            EXPECT_TRUE(check_gradient(loss, part.token_gain.view(), grad.token_gain.view()));
            EXPECT_TRUE(check_gradient(loss, part.slot_gain.view(), grad.slot_gain.view()));
        }
}

TEST(SlotLogits, PaddingHasNoGradientAndMatricesThatAreNotWantedNone) {
    const Slots part(SlotNorm::rms);
    Matrix<double> x = random_matrix<double>(tokens, dim, 1);
    x.row(2).setZero();
    const std::vector<std::uint8_t> padding{0, 0, 1, 0, 0};
    Slots::State state;
    moe::SerialExecutor serial;
    logits_of(part, x, state);
    Buffer<double> given;
    given.matrix(tokens, slots) = random_matrix<double>(tokens, slots, 2);
    given.data()[2 * slots] = NAN;
    Matrix<double> dx = Matrix<double>::Zero(tokens, dim);
    Slots nothing;
    part.logits_backward(x, given, false, dx, nothing, state, serial, {.padding = padding});
    EXPECT_TRUE((dx.row(2).array() == 0).all());
    EXPECT_TRUE(dx.allFinite());
    EXPECT_TRUE(nothing.phi.empty() && nothing.token_gain.empty());
}

TEST(SlotLogits, RefuseTheGradientOfAnotherLayerByTheNameOfTheMatrix) {
    const Slots part(SlotNorm::rms);
    Slots other(SlotNorm::rms);
    part.check_gradient(other);
    part.check_gradient(Slots());
    other.slot_gain = moe::Parameter<double>(1, dim + 1);
    const std::string found = support::message([&] { part.check_gradient(other); });
    EXPECT_NE(found.find("its slot_gain is [1, 4], the layer's is [1, 3]"), std::string::npos)
        << found;
}

TEST(SlotLogits, SayHowManyBytesTheyReserve) {
    if (!allocations::are_counted) GTEST_SKIP() << "a sanitizer brings its own operator new";
    for (const moe::Keep keep : {moe::Keep::nothing, moe::Keep::everything})
        for (const int workers : {1, 3}) {
            moe::Workspace<double> ws;
            ws.threads(workers).keep(keep);
            Slots::State state;
            const long before = allocations::bytes_asked_for.load();
            state.reserve(900, 8, 16, ws);
            const long spent = allocations::bytes_asked_for.load() - before;
            const Index said = Slots::State::bytes(900, 8, 16, keep, workers);
            EXPECT_GE(spent, said);
            EXPECT_LE(spent, said + 256);  // a list of the workers' buffers
        }
}

}  // namespace
