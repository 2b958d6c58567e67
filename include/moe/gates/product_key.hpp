// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_PRODUCT_KEY_HPP
#define MOE_GATES_PRODUCT_KEY_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include <moe/core/concepts.hpp>
#include <moe/core/executor.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/random.hpp>
#include <moe/gates/product_key_rule.hpp>
#include <moe/gates/score.hpp>
#include <moe/gates/select.hpp>
#include <moe/gates/tokens.hpp>
#include <moe/gates/weights.hpp>

namespace moe::inline MOE_ABI {

template <class S>
class ProductKeyTopKModule;

/// Recipe for a gate over very many small experts, E = n^2: expert i n + j is the pair of half-keys
/// i and j, so that 2 n logits per head stand for n^2 experts and k^2 pairs are looked at.
///
/// Sources: product keys (arXiv:1907.05242) section 3, PEER (arXiv:2407.04153) section 2, Monet
/// (arXiv:2412.04139) section 3.
struct ProductKeyTopK {
    enum class Combine {
        sum_top_k,     ///< the k best of z1_i + z2_j, weighed among themselves (product keys, PEER)
        axis_softmax,  ///< all pairs of the half-keys that each axis keeps; the weight is the
                       ///< product of two softmaxes, one over what each axis keeps (Monet)
    };

    Index k = 0;      ///< half-keys that an axis keeps per head, 1 to n; required
    Index heads = 1;  ///< H; what they choose is added up
    Combine combine = Combine::sum_top_k;
    /// Of the sums: softmax_of_selected (product keys), or sigmoid (PEER's other choice).
    Score score = Score::softmax_of_selected;
    /// With axis_softmax: an axis keeps what lies above the quantile 1 - k / n of a normal
    /// distribution with the mean and variance of the head's logits, and its best, so about k
    /// (Monet). See ProductKeyTopKModule::update_statistics().
    bool by_quantile = false;

    /// @throws std::invalid_argument if a setting is out of range or E is no square
    template <class S>
    ProductKeyTopKModule<S> build(const Shape& shape, Random&) const {
        return ProductKeyTopKModule<S>(*this, shape.num_experts);
    }
};

/// The gate that ProductKeyTopK describes. Logits are [T, H 2 n]: head by head, z1 [n] and z2 [n].
///
///     K1, K2 = the k best of z1, of z2                               of each head
///     sum_top_k     P = the k best (i, j) of K1 x K2 by z1_i + z2_j, w_ij = softmax of those sums
///     axis_softmax  P = K1 x K2, w_ij = softmax(z1[K1])_i softmax(z2[K2])_j
///     w_t[i n + j]  = sum of w_ij over the heads whose P holds (i, j)
///
/// P of sum_top_k is what the k best of all n^2 sums are. An expert that several heads choose is
/// one assignment. Slots are in the order of experts; ties go to the lower index. A half-key at
/// -inf is never kept, and a head without any chooses nothing; so does a token whose row is -inf.
/// A row that holds a NaN ranks it last and has NaN weights. Null experts weigh 0 and are left out
/// of the softmax over sums.
///
/// Context::allowed forbids pairs, which no logit can: the k best sums are then those of the pairs
/// that are allowed, found by looking at all n^2; axis_softmax leaves pairs out as they are.
///
/// weigh() chooses again, from the logits that it gets: an assignment that no head would make
/// weighs 0. The gradient is exact, for all H 2 n logits and the choice as constant.
template <class S>
class ProductKeyTopKModule {
public:
    using Scalar = S;
    static constexpr bool skips_empty_gradients = true;

    ProductKeyTopKModule() = default;
    /// @throws std::invalid_argument if a setting is out of range or the experts are no square
    ProductKeyTopKModule(const ProductKeyTopK& settings, Index experts)
        : settings_(settings), num_experts_(experts) {
        while ((n_ + 1) * (n_ + 1) <= experts) ++n_;
        check_settings();
        if (!settings.by_quantile) return;
        mean_ = Parameter<S>(settings.heads, 2);
        variance_ = Parameter<S>(settings.heads, 2);
        for (Index i = 0; i < variance_.size(); ++i) variance_.data()[i] = 1;
        quantile_ = settings.k == n_ ? -std::numeric_limits<double>::infinity()
                                     : detail::normal_quantile(1 - static_cast<double>(settings.k) /
                                                                       static_cast<double>(n_));
    }

    const ProductKeyTopK& settings() const { return settings_; }
    Index num_experts() const { return num_experts_; }
    Index num_logits(Index) const { return settings_.heads * 2 * n_; }
    /// None, also where there are as many half-keys as experts.
    Index expert_logits(Index) const { return 0; }

    /// @throws std::invalid_argument if the layer has another number of experts
    void check(const Shape& shape) const { detail::check_gate(name, num_experts_, shape); }

    /// Adds the assignments of every token.
    /// @param logits  [T, H 2 n]
    void select(In<S> logits, Routing& routing, const Call<S>& call) const {
        check_extents(logits, routing, call.context);
        Executor& executor = call.ws.executor();
        const auto rule = this->rule();
        const Index tokens = logits.rows(), most = rule.most_experts(), wave = wave_of(tokens);
        auto& scratch = reserve(call, rule.most_entries());
        scratch.chosen.resize(detail::checked_product(wave, most));
        scratch.counts.resize(wave);
        for (Index first = 0; first < tokens; first += wave) {
            const Index here = std::min(wave, tokens - first);
            detail::for_tokens(executor, here, rule.flops(), [&](Index i, int worker) {
                const auto room = scratch.rooms.room(worker);
                const Index count = rule.merge(row_data(logits, first + i), first + i, call, room);
                scratch.counts[i] = static_cast<std::int32_t>(count);
                for (Index s = 0; s < count; ++s)
                    scratch.chosen[i * most + s] = room.entries[s].expert;
            });
            routing.add_lists(first, {scratch.counts.data(), detail::at(here)},
                              scratch.chosen.data(), most);
        }
    }

    /// Sets the weights of the assignments that are there, whoever made them.
    void weigh(In<S> logits, Routing& routing, const Call<S>& call) const {
        check_extents(logits, routing, call.context);
        const auto rule = this->rule();
        auto& rooms = reserve(call, rule.most_entries()).rooms;
        const auto assignments = routing.assignments();
        detail::for_tokens(
            call.ws.executor(), logits.rows(), rule.flops(), [&](Index t, int worker) {
                const auto room = rooms.room(worker);
                const Index count = rule.merge(row_data(logits, t), t, call, room);
                for (Index a = routing.first(t); a < routing.first(t + 1); ++a) {
                    const auto& own = assignments[detail::at(a)];
                    const S w = rule.find(room.entries, count, own.expert);
                    routing.set_weight(a,
                                       rule.is_null(own.expert, call) ? 0 : static_cast<double>(w));
                    routing.set_input_weight(a, 1);
                }
            });
    }

    /// Adds d(loss)/d(logits) to dlogits [T, H 2 n].
    void backward(In<S> logits, const Routing& routing, const WeightGradients<S>& dweights,
                  Out<S> dlogits, ProductKeyTopKModule&, const Call<S>& call) const {
        check_extents(logits, routing, call.context);
        const auto given =
            detail::gradients_at<S>(Placement::output, dweights, routing, logits, dlogits);
        Index longest = 0;
        for (Index t = 0; t < logits.rows(); ++t)
            longest = std::max(longest, routing.first(t + 1) - routing.first(t));
        const auto rule = this->rule();
        auto& rooms = reserve(call, longest).rooms;
        const auto assignments = routing.assignments();
        detail::for_tokens(
            call.ws.executor(), logits.rows(), rule.flops(), [&](Index t, int worker) {
                const auto room = rooms.room(worker);
                Index count = 0;
                for (Index a = routing.first(t); a < routing.first(t + 1); ++a) {
                    const auto& own = assignments[detail::at(a)];
                    if (rule.is_null(own.expert, call)) continue;
                    room.entries[count] = {own.expert, static_cast<std::int32_t>(count),
                                           given[detail::at(a)]};
                    ++count;
                }
                rule.add_gradient(row_data(logits, t), t, count, call, room, row_data(dlogits, t));
            });
    }

    /// Moves the mean and variance of ProductKeyTopK::by_quantile towards those of a batch, as
    /// batch normalisation moves its running ones: x += momentum (x of the batch - x), with the
    /// unbiased variance, of each head and axis over all tokens that are not padding and all n.
    /// Choices depend on these alone, never on the batch: unlike Monet's training, where the
    /// statistics of the batch are used at once, a token's choice stays its own.
    /// @param logits  [T, H 2 n]
    /// @throws std::invalid_argument if the gate has no statistics, or logits another extent
    void update_statistics(In<S> logits, double momentum = 0.1) {
        if (!settings_.by_quantile)
            detail::fail(name, ": there are no statistics without by_quantile");
        if (logits.cols() != num_logits(num_experts_))
            detail::fail(name, ": logits has ", logits.cols(), " columns, the gate takes ",
                         num_logits(num_experts_));
        for (Index a = 0; a < mean_.size(); ++a) {
            double count = 0, sum = 0, squares = 0;
            each_finite(logits, a, [&](double z) { count += 1, sum += z; });
            if (count < 2) continue;
            const double mean = sum / count;
            each_finite(logits, a,
                        [&](double z) { squares = std::fma(z - mean, z - mean, squares); });
            const auto move = [momentum](S& x, double target) {
                const auto wide = static_cast<double>(x);
                x = static_cast<S>(std::fma(momentum, target - wide, wide));
            };
            move(mean_.data()[a], mean);
            move(variance_.data()[a], squares / (count - 1));
        }
    }

    void reserve(Index tokens, Index, Workspace<S>& ws) const {
        auto& scratch = ws.template state<Scratch>();
        const auto rule = this->rule();
        scratch.rooms.resize(rule, ws.executor().concurrency(), false, rule.most_entries());
        scratch.chosen.resize(detail::checked_product(wave_of(tokens), rule.most_experts()));
        scratch.counts.resize(wave_of(tokens));
    }
    /// Bytes of workspace, without what calls with Context::allowed take.
    Index workspace_bytes(Index tokens, Index, Keep, int workers) const {
        const auto rule = this->rule();
        return detail::ProductKeyScratch<S>::bytes(rule, workers, rule.most_entries()) +
               wave_of(tokens) * (rule.most_experts() + 1) *
                   static_cast<Index>(sizeof(std::int32_t));
    }

    /// mean and variance [H, 2], state, of ProductKeyTopK::by_quantile
    void visit_parameters(auto&& visit) {
        if (!settings_.by_quantile) return;
        visit("mean", mean_, Role::state);
        visit("variance", variance_, Role::state);
    }

private:
    static constexpr const char* name = "moe::ProductKeyTopK";

    struct Scratch {
        detail::ProductKeyScratch<S> rooms;
        Buffer<std::int32_t> chosen;  // [wave, most experts]
        Buffer<std::int32_t> counts;  // [wave]
    };

    void check_settings() const {
        const ProductKeyTopK& s = settings_;
        if (num_experts_ < 1 || n_ * n_ != num_experts_)
            detail::fail(
                name, ": the layer has ", num_experts_,
                " experts, it must be a square n x n of pairs of half-keys; the nearest is ",
                std::max(n_, Index(1)) * std::max(n_, Index(1)));
        if (s.k < 1 || s.k > n_)
            detail::fail(name, ": k is ", s.k, ", it must be in [1, ", n_,
                         "], the half-keys of an axis; set it: moe::ProductKeyTopK{.k = 2}");
        if (s.heads < 1) detail::fail(name, ": heads is ", s.heads, ", it must be >= 1");
        detail::check_choice(name, "combine", s.combine, ProductKeyTopK::Combine::axis_softmax);
        detail::check_choice(name, "score", s.score, Score::sqrt_softplus);
        if (s.score != Score::softmax_of_selected && s.score != Score::sigmoid)
            detail::fail(name, ": score is number ", static_cast<int>(s.score),
                         " of its choices, it must be softmax_of_selected or sigmoid");
        if (!is_sum() && s.score != Score::softmax_of_selected)
            detail::fail(name, ": score is sigmoid, axis_softmax has its softmaxes; leave it out");
        if (is_sum() && s.by_quantile)
            detail::fail(name, ": by_quantile is set, it is for axis_softmax");
    }

    bool is_sum() const { return settings_.combine == ProductKeyTopK::Combine::sum_top_k; }
    detail::ProductKeyRule<S> rule() const {
        const bool has_statistics = settings_.by_quantile;
        return {.n = n_,
                .heads = settings_.heads,
                .k = settings_.k,
                .is_sum = is_sum(),
                .is_sigmoid = settings_.score == Score::sigmoid,
                .mean = has_statistics ? mean_.data() : nullptr,
                .variance = has_statistics ? variance_.data() : nullptr,
                .quantile = quantile_};
    }
    /// Tokens that are chosen for at a time: as many as fit 4 MiB, within reason.
    Index wave_of(Index tokens) const {
        const Index fit = (Index(1) << 20) / rule().most_experts();
        return std::min(std::max(Index(64), std::min(fit, detail::selection_wave)), tokens);
    }
    void check_extents(In<S> logits, const Routing& routing, const Context& context) const {
        if (logits.rows() != routing.num_tokens() || logits.cols() != num_logits(num_experts_) ||
            routing.num_experts() != num_experts_)
            detail::fail(name, ": logits is [", logits.rows(), ", ", logits.cols(),
                         "], the routing is for ", routing.num_tokens(), " tokens and ",
                         routing.num_experts(), " experts, the gate was built for ", num_experts_,
                         " experts and ", num_logits(num_experts_), " logits per token");
        detail::check_gate_context(context, logits.rows(), num_experts_, false);
    }

    Scratch& reserve(const Call<S>& call, Index entries) const {
        auto& scratch = call.ws.template state<Scratch>();
        scratch.rooms.resize(rule(), call.ws.executor().concurrency(), call.context.restricts(),
                             std::max(entries, rule().most_entries()));
        return scratch;
    }

    template <class F>
    void each_finite(In<S> logits, Index axis, F&& f) const {
        for (Index t = 0; t < logits.rows(); ++t)
            for (Index i = 0; i < n_; ++i)
                if (const auto z = static_cast<double>(logits(t, axis * n_ + i)); std::isfinite(z))
                    f(z);
    }

    ProductKeyTopK settings_;
    Index num_experts_ = 0, n_ = 0;
    double quantile_ = 0;
    Parameter<S> mean_, variance_;  // [H, 2]
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_PRODUCT_KEY_HPP
