// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_PRODUCT_KEY_HPP
#define MOE_GATES_PRODUCT_KEY_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include <moe/core/concepts.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/random.hpp>
#include <moe/gates/score.hpp>
#include <moe/gates/select.hpp>
#include <moe/gates/weights.hpp>
#include <moe/kernels/dispatch.hpp>

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

    /// @throws std::invalid_argument if the layer has another number of experts
    void check(const Shape& shape) const { detail::check_gate(name, num_experts_, shape); }

    /// Adds the assignments of every token.
    /// @param logits  [T, H 2 n]
    void select(In<S> logits, Routing& routing, const Call<S>& call) const {
        check_extents(logits, routing);
        Executor& executor = call.ws.executor();
        const Index tokens = logits.rows(), most = most_experts(), wave = wave_of(tokens);
        auto& scratch = reserve(call, entries_of_heads());
        scratch.chosen.resize(detail::checked_product(wave, most));
        scratch.counts.resize(wave);
        for (Index first = 0; first < tokens; first += wave) {
            const Index here = std::min(wave, tokens - first);
            detail::for_tokens(executor, here, flops(), [&](Index i, int worker) {
                const Room room = scratch.room(worker);
                const Index count = merge(row_data(logits, first + i), first + i, call, room);
                scratch.counts[i] = static_cast<std::int32_t>(count);
                for (Index s = 0; s < count; ++s)
                    scratch.chosen[i * most + s] = room.entries[s].expert;
            });
            for (Index i = 0; i < here; ++i)
                for (Index s = 0; s < scratch.counts[i]; ++s)
                    routing.add(first + i, scratch.chosen[i * most + s]);
        }
    }

    /// Sets the weights of the assignments that are there, whoever made them.
    void weigh(In<S> logits, Routing& routing, const Call<S>& call) const {
        check_extents(logits, routing);
        auto& scratch = reserve(call, entries_of_heads());
        const auto assignments = routing.assignments();
        detail::for_tokens(call.ws.executor(), logits.rows(), flops(), [&](Index t, int worker) {
            const Room room = scratch.room(worker);
            const Index count = merge(row_data(logits, t), t, call, room);
            for (Index a = routing.first(t); a < routing.first(t + 1); ++a) {
                const auto& own = assignments[static_cast<std::size_t>(a)];
                const S w = find(room.entries, count, own.expert);
                routing.set_weight(a, is_null(own.expert, call) ? 0 : static_cast<double>(w));
                routing.set_input_weight(a, 1);
            }
        });
    }

    /// Adds d(loss)/d(logits) to dlogits [T, H 2 n].
    void backward(In<S> logits, const Routing& routing, const WeightGradients<S>& dweights,
                  Out<S> dlogits, ProductKeyTopKModule&, const Call<S>& call) const {
        check_extents(logits, routing);
        const auto given =
            detail::gradients_at<S>(Placement::output, dweights, routing, logits, dlogits);
        Index longest = 0;
        for (Index t = 0; t < logits.rows(); ++t)
            longest = std::max(longest, routing.first(t + 1) - routing.first(t));
        auto& scratch = reserve(call, longest);
        const auto assignments = routing.assignments();
        detail::for_tokens(call.ws.executor(), logits.rows(), flops(), [&](Index t, int worker) {
            const Room room = scratch.room(worker);
            const S* z = row_data(logits, t);
            S* dz = row_data(dlogits, t);
            if (is_broken(z)) {
                for (Index l = 0; l < logits.cols(); ++l)
                    if (z[l] != dead) dz[l] = std::numeric_limits<S>::quiet_NaN();
                return;
            }
            Index count = 0;
            for (Index a = routing.first(t); a < routing.first(t + 1); ++a) {
                const auto& own = assignments[static_cast<std::size_t>(a)];
                if (is_null(own.expert, call)) continue;
                room.entries[count] = {own.expert, static_cast<std::int32_t>(count),
                                       given[static_cast<std::size_t>(a)]};
                ++count;
            }
            std::sort(room.entries, room.entries + count);
            for (Index h = 0; h < settings_.heads; ++h) {
                const Head head = choose(z, h, t, call, room, false);
                if (is_sum())
                    add_sum_gradient(head, room, count, dz + h * 2 * n_);
                else
                    add_axis_gradient(head, room, count, t, call, dz + h * 2 * n_);
            }
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
        scratch.resize(*this, ws.executor().concurrency(), false,
                       std::max(entries_of_heads(), num_experts_));
        scratch.chosen.resize(detail::checked_product(wave_of(tokens), most_experts()));
        scratch.counts.resize(wave_of(tokens));
    }
    /// Bytes of workspace, without what calls with Context::allowed take.
    Index workspace_bytes(Index tokens, Index, Keep, int workers) const {
        return Scratch::bytes(*this, workers, std::max(entries_of_heads(), num_experts_)) +
               wave_of(tokens) * (most_experts() + 1) * static_cast<Index>(sizeof(std::int32_t));
    }

    /// mean and variance [H, 2], state, of ProductKeyTopK::by_quantile
    void visit_parameters(auto&& visit) {
        if (!settings_.by_quantile) return;
        visit("mean", mean_, Role::state);
        visit("variance", variance_, Role::state);
    }

private:
    static constexpr const char* name = "moe::ProductKeyTopK";
    static constexpr S dead = -std::numeric_limits<S>::infinity();

    /// A weight, or the gradient at one, of an expert.
    struct Entry {
        std::int32_t expert, order;  // order: head
        S value;

        bool operator<(const Entry& other) const {
            return expert < other.expert || (expert == other.expert && order < other.order);
        }
    };

    /// What one worker works in.
    struct Room {
        Entry* entries;
        detail::Ranked<S>* ranked;  // [max(n, pairs)]
        S *axis[2], *daxis[2];      // [kept]
        std::int32_t* index[2];     // [kept]
        S *sums, *weights;          // [pairs]
        std::int32_t* expert;       // [pairs]
    };

    struct Scratch {
        Buffer<Entry> all_entries;
        Buffer<detail::Ranked<S>> all_ranked;
        Buffer<S> values;
        Buffer<std::int32_t> indices;
        Buffer<std::int32_t> chosen, counts;
        Index entries = 0, ranked = 0, kept = 0, pairs = 0;  // per worker

        void resize(const ProductKeyTopKModule& gate, Index workers, bool masks, Index wanted) {
            const auto round = detail::round_up_16;
            entries = round(wanted);
            kept = round(gate.most_kept());
            pairs = gate.is_sum()
                        ? round(masks ? gate.num_experts_ : gate.most_kept() * gate.most_kept())
                        : 0;
            ranked = std::max(round(gate.n_), pairs);
            all_entries.resize(detail::checked_product(workers, entries));
            all_ranked.resize(detail::checked_product(workers, ranked));
            values.resize(detail::checked_product(workers, 4 * kept + 2 * pairs));
            indices.resize(detail::checked_product(workers, 2 * kept + pairs));
        }
        static Index bytes(const ProductKeyTopKModule& gate, Index workers, Index wanted) {
            const auto round = detail::round_up_16;
            const Index kept = round(gate.most_kept());
            const Index pairs = gate.is_sum() ? round(gate.most_kept() * gate.most_kept()) : 0;
            const auto size = [](std::size_t each) { return static_cast<Index>(each); };
            return workers * (round(wanted) * size(sizeof(Entry)) +
                              std::max(round(gate.n_), pairs) * size(sizeof(detail::Ranked<S>)) +
                              (4 * kept + 2 * pairs) * size(sizeof(S)) +
                              (2 * kept + pairs) * size(sizeof(std::int32_t)));
        }
        Room room(int worker) {
            S* v = values.data() + worker * (4 * kept + 2 * pairs);
            std::int32_t* i = indices.data() + worker * (2 * kept + pairs);
            return {.entries = all_entries.data() + worker * entries,
                    .ranked = all_ranked.data() + worker * ranked,
                    .axis = {v, v + kept},
                    .daxis = {v + 2 * kept, v + 3 * kept},
                    .index = {i, i + kept},
                    .sums = v + 4 * kept,
                    .weights = v + 4 * kept + pairs,
                    .expert = i + 2 * kept};
        }
    };

    /// What a head chose; the rest is in the room.
    struct Head {
        Index kept[2];  // axis_softmax: axis, index
        Index pairs;    // sum_top_k: sums, weights, expert, experts ascending
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
    Index most_kept() const { return settings_.by_quantile ? n_ : settings_.k; }
    Index entries_of_heads() const {
        return settings_.heads * (is_sum() ? settings_.k : most_kept() * most_kept());
    }
    Index most_experts() const { return std::min(num_experts_, entries_of_heads()); }
    /// Tokens that are chosen for at a time: as many as fit 4 MiB, within reason.
    Index wave_of(Index tokens) const {
        const Index fit = (Index(1) << 20) / most_experts();
        return std::min(std::max(Index(64), std::min(fit, detail::selection_wave)), tokens);
    }
    double flops() const {
        return static_cast<double>(settings_.heads) *
               (40.0 * static_cast<double>(n_) +
                20.0 * static_cast<double>(settings_.k * settings_.k));
    }

    void check_extents(In<S> logits, const Routing& routing) const {
        if (logits.rows() != routing.num_tokens() || logits.cols() != num_logits(num_experts_) ||
            routing.num_experts() != num_experts_)
            detail::fail(name, ": logits is [", logits.rows(), ", ", logits.cols(),
                         "], the routing is for ", routing.num_tokens(), " tokens and ",
                         routing.num_experts(), " experts, the gate was built for ", num_experts_,
                         " experts and ", num_logits(num_experts_), " logits per token");
    }

    Scratch& reserve(const Call<S>& call, Index entries) const {
        auto& scratch = call.ws.template state<Scratch>();
        scratch.resize(*this, call.ws.executor().concurrency(), !call.context.allowed.empty(),
                       std::max(entries, num_experts_));
        return scratch;
    }

    static bool is_null(Index expert, const Call<S>& call) {
        const auto e = static_cast<std::size_t>(expert);
        return e < call.context.experts.size() && call.context.experts[e].is_null;
    }
    bool is_allowed(Index t, Index expert, const Call<S>& call) const {
        const auto& allowed = call.context.allowed;
        return allowed.empty() || allowed[static_cast<std::size_t>(t * num_experts_ + expert)] != 0;
    }
    bool is_broken(const S* z) const {
        bool broken = false;
        for (Index l = 0; l < settings_.heads * 2 * n_; ++l) broken |= std::isnan(z[l]);
        return broken;
    }

    template <class F>
    void each_finite(In<S> logits, Index axis, F&& f) const {
        for (Index t = 0; t < logits.rows(); ++t)
            for (Index i = 0; i < n_; ++i)
                if (const auto z = static_cast<double>(logits(t, axis * n_ + i)); std::isfinite(z))
                    f(z);
    }

    /// The value of an expert among [count] ascending entries, 0 if it is not there.
    static S find(const Entry* entries, Index count, Index expert) {
        const auto at = std::lower_bound(
            entries, entries + count, expert,
            [](const Entry& entry, Index wanted) { return entry.expert < wanted; });
        return at != entries + count && at->expert == expert ? at->value : S(0);
    }

    /// The experts of a token and their weights, ascending, in room.entries.
    Index merge(const S* z, Index t, const Call<S>& call, const Room& room) const {
        const bool broken = is_broken(z);
        Index count = 0;
        const auto add = [&](Index expert, Index h, S weight) {
            room.entries[count++] = {static_cast<std::int32_t>(expert),
                                     static_cast<std::int32_t>(h),
                                     broken ? std::numeric_limits<S>::quiet_NaN() : weight};
        };
        for (Index h = 0; h < settings_.heads; ++h) {
            const Head head = choose(z, h, t, call, room, broken);
            for (Index p = 0; p < head.pairs; ++p) add(room.expert[p], h, room.weights[p]);
            if (is_sum()) continue;
            for (Index a = 0; a < head.kept[0]; ++a)
                for (Index b = 0; b < head.kept[1]; ++b) {
                    const Index expert = room.index[0][a] * n_ + room.index[1][b];
                    // An fma with 0, because a bare product could be fused into the sum of heads.
                    if (is_allowed(t, expert, call))
                        add(expert, h, std::fma(room.axis[0][a], room.axis[1][b], S(0)));
                }
        }
        if (settings_.heads == 1) return count;
        std::sort(room.entries, room.entries + count);
        Index merged = 0;
        for (Index i = 0; i < count; ++i) {
            if (merged > 0 && room.entries[merged - 1].expert == room.entries[i].expert)
                room.entries[merged - 1].value += room.entries[i].value;
            else
                room.entries[merged++] = room.entries[i];
        }
        return merged;
    }

    /// What head h of token t chooses, with weights.
    Head choose(const S* z, Index h, Index t, const Call<S>& call, const Room& room,
                bool broken) const {
        Head head{{0, 0}, 0};
        if (is_sum() && !call.context.allowed.empty()) {
            head.pairs = rank_pairs(offer_allowed(z + h * 2 * n_, t, call, room), call, room);
            return head;
        }
        for (Index a = 0; a < 2; ++a) {
            head.kept[a] = keep(z, 2 * h + a, broken, room, room.index[a]);
            for (Index i = 0; i < head.kept[a]; ++i)
                room.axis[a][i] = z[(2 * h + a) * n_ + room.index[a][i]];
        }
        if (is_sum()) {
            Index count = 0;
            for (Index a = 0; a < head.kept[0]; ++a)
                for (Index b = 0; b < head.kept[1]; ++b) {
                    room.sums[count] = room.axis[0][a] + room.axis[1][b];
                    room.expert[count++] =
                        static_cast<std::int32_t>(room.index[0][a] * n_) + room.index[1][b];
                }
            head.pairs = rank_pairs(count, call, room);
        } else {
            for (Index a = 0; a < 2; ++a)
                kernels<S>().softmax(head.kept[a], room.axis[a], room.axis[a]);
        }
        return head;
    }

    /// The half-keys that an axis keeps, ascending.
    Index keep(const S* z, Index axis, bool broken, const Room& room, std::int32_t* index) const {
        const S* own = z + axis * n_;
        if (settings_.by_quantile && !broken) {
            const auto mean = static_cast<double>(mean_.data()[axis]);
            const double spread = std::sqrt(static_cast<double>(variance_.data()[axis]) + 1e-5);
            const auto normal = [&](Index i) {
                return (static_cast<double>(own[i]) - mean) / spread;
            };
            double best = -std::numeric_limits<double>::infinity();
            for (Index i = 0; i < n_; ++i) best = std::max(best, normal(i));
            Index count = 0;
            for (Index i = 0; i < n_; ++i)
                if (own[i] != dead && normal(i) >= std::min(quantile_, best))
                    index[count++] = static_cast<std::int32_t>(i);
            return count;
        }
        const Index count = detail::rank_by_index(n_, own, settings_.k, room.ranked);
        for (Index i = 0; i < count; ++i) index[i] = room.ranked[i].index;
        std::sort(index, index + count);
        return count;
    }

    /// All pairs that a token may have, as candidates.
    Index offer_allowed(const S* z, Index t, const Call<S>& call, const Room& room) const {
        Index count = 0;
        for (Index i = 0; i < n_; ++i)
            for (Index j = 0; j < n_; ++j) {
                if (z[i] == dead || z[n_ + j] == dead || !is_allowed(t, i * n_ + j, call)) continue;
                room.sums[count] = z[i] + z[n_ + j];
                room.expert[count++] = static_cast<std::int32_t>(i * n_ + j);
            }
        return count;
    }

    /// Leaves the k best of [count] candidates, whose experts ascend; fills their weights.
    Index rank_pairs(Index count, const Call<S>& call, const Room& room) const {
        const Index found = detail::rank_by_index(count, room.sums, settings_.k, room.ranked);
        std::sort(room.ranked, room.ranked + found,
                  [](const auto& a, const auto& b) { return a.index < b.index; });
        for (Index p = 0; p < found; ++p) {
            room.sums[p] = room.sums[room.ranked[p].index];
            room.expert[p] = room.expert[room.ranked[p].index];
            room.weights[p] = is_null(room.expert[p], call) ? dead : room.sums[p];
        }
        if (settings_.score == Score::sigmoid)
            kernels<S>().sigmoid(found, room.weights, room.weights);
        else
            kernels<S>().softmax(found, room.weights, room.weights);
        return found;
    }

    /// softmax: dz = w (g - sum of w g); sigmoid: dz = w (1 - w) g; at both half-keys of a pair.
    void add_sum_gradient(const Head& head, const Room& room, Index count, S* dz) const {
        const bool is_sigmoid = settings_.score == Score::sigmoid;
        S mean = 0;
        for (Index p = 0; p < head.pairs && !is_sigmoid; ++p)
            mean = std::fma(room.weights[p], find(room.entries, count, room.expert[p]), mean);
        if (is_sigmoid) {
            for (Index p = 0; p < head.pairs; ++p) room.sums[p] = -room.sums[p];
            kernels<S>().sigmoid(head.pairs, room.sums, room.sums);  // 1 - w, without cancelling
        }
        for (Index p = 0; p < head.pairs; ++p) {
            const S g = find(room.entries, count, room.expert[p]);
            const S slope = is_sigmoid ? room.sums[p] * g : g - mean;
            S &first = dz[room.expert[p] / n_], &second = dz[n_ + room.expert[p] % n_];
            first = std::fma(room.weights[p], slope, first);
            second = std::fma(room.weights[p], slope, second);
        }
    }

    /// With w = p q: dp_i = sum of q_j g_ij over j, dz1_i = p_i (dp_i - sum of p dp); the same for
    /// q.
    void add_axis_gradient(const Head& head, const Room& room, Index count, Index t,
                           const Call<S>& call, S* dz) const {
        for (Index a = 0; a < 2; ++a) std::fill_n(room.daxis[a], head.kept[a], S(0));
        for (Index i = 0; i < head.kept[0]; ++i)
            for (Index j = 0; j < head.kept[1]; ++j) {
                const Index expert = room.index[0][i] * n_ + room.index[1][j];
                if (!is_allowed(t, expert, call)) continue;
                const S g = find(room.entries, count, expert);
                room.daxis[0][i] = std::fma(room.axis[1][j], g, room.daxis[0][i]);
                room.daxis[1][j] = std::fma(room.axis[0][i], g, room.daxis[1][j]);
            }
        for (Index a = 0; a < 2; ++a) {
            S mean = 0;
            for (Index i = 0; i < head.kept[a]; ++i)
                mean = std::fma(room.axis[a][i], room.daxis[a][i], mean);
            for (Index i = 0; i < head.kept[a]; ++i) {
                S& slot = dz[a * n_ + room.index[a][i]];
                slot = std::fma(room.axis[a][i], room.daxis[a][i] - mean, slot);
            }
        }
    }

    ProductKeyTopK settings_;
    Index num_experts_ = 0, n_ = 0;
    double quantile_ = 0;
    Parameter<S> mean_, variance_;  // [H, 2]
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_PRODUCT_KEY_HPP
