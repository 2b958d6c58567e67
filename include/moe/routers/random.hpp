// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_RANDOM_HPP
#define MOE_ROUTERS_RANDOM_HPP

#include <algorithm>
#include <cstdint>

#include <moe/core/concepts.hpp>
#include <moe/core/error.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/random.hpp>
#include <moe/core/sequences.hpp>
#include <moe/routers/decide.hpp>

namespace moe::inline MOE_ABI {

template <class S>
class RandomRouterModule;

/// Recipe of a router that draws experts uniformly: stochastic experts, and the baseline that every
/// learned router must beat. The gate beside it takes the same k, without weights:
/// TopK{.k = k, .ones = true}.
///
///     logits(t, e) = 0 if e is one of k different experts drawn for t, else -inf
///
/// THOR trains with one draw per layer call, two passes per step (a Context::stream each) and a
/// loss on their difference, and infers with one draw per token or per sequence. Its ensemble of
/// all experts is .k = E beside TopK{.k = E, .scale = 1.0 / E, .ones = true}. Training by a
/// random partition (each expert gets an equal part of the shuffled tokens) is
/// .training = Scope::token, .balanced = true.
///
/// Source: THOR (arXiv:2110.04260) section 3; random uniform partition: Experts weights averaging
/// (arXiv:2308.06093) section 3.
struct RandomRouter {
    /// Tokens that share a draw.
    enum class Scope {
        batch,     ///< all of a call
        sequence,  ///< those of a sequence; needs Context::sequence_offsets
        token,     ///< none
    };

    Index k = 1;                     ///< different experts per token, 1 to L
    Scope training = Scope::batch;   ///< with Context::training
    Scope inference = Scope::token;  ///< without
    /// Tokens (or sequences, as the scope says) are shuffled and dealt to the experts like cards,
    /// instead of each drawing for itself: experts get equally many, give or take one.
    bool balanced = false;

    /// @throws std::invalid_argument if k or a scope is out of range, logits are not one per
    ///         expert, or balanced and a scope is the batch, which leaves nothing to deal
    template <class S>
    RandomRouterModule<S> build(const Shape& shape, Random&) const {
        detail::check_expert_logits("moe::RandomRouter", shape);
        return RandomRouterModule<S>(*this, shape.num_logits);
    }
};

/// The router that RandomRouter describes.
///
/// Draws are keyed by Context::seed, stream and step and by the number of the token in the whole
/// batch (of its sequence's first token; of nothing for Scope::batch): a split batch draws what the
/// whole one does, as long as sequences stay whole and nothing is dealt. Dealing looks at the batch
/// of the call:
///
///     tokens in a random order t_0, t_1, ..., experts in a random order p_0 .. p_(L-1):
///     t_i gets p_((i k + j) mod L)       j = 0 .. k - 1
///
/// Padding is not dealt and gets nothing. What a mask (Context::allowed) takes away is not drawn
/// again.
template <class S>
class RandomRouterModule {
    using Scope = RandomRouter::Scope;

public:
    using Scalar = S;
    static constexpr bool skips_empty_gradients = true;

    /// Holds nothing; a gradient like this is not wanted.
    RandomRouterModule() = default;
    /// @throws std::invalid_argument as RandomRouter::build() does
    RandomRouterModule(const RandomRouter& settings, Index num_logits)
        : settings_(settings), num_logits_(num_logits) {
        detail::check_k(name, settings.k, num_logits);
        detail::check_choice(name, "training", settings.training, Scope::token);
        detail::check_choice(name, "inference", settings.inference, Scope::token);
        const bool deals_nothing =
            settings.training == Scope::batch || settings.inference == Scope::batch;
        if (settings.balanced && deals_nothing)
            detail::fail(name, ": balanced is true and ",
                         settings.training == Scope::batch ? "training" : "inference",
                         " is Scope::batch, where all tokens share a draw and nothing is dealt; "
                         "set it to Scope::token or Scope::sequence");
    }

    const RandomRouter& settings() const { return settings_; }

    /// @param x       [T, D], not read
    /// @param logits  [T, L], overwritten
    /// @throws std::invalid_argument if Context::sequence_offsets is needed and not there
    void forward(In<S> x, Out<S> logits, const Call<S>& call) const {
        detail::check_router_extents<S>(name, x, logits, num_logits_);
        if (x.rows() == 0) return;
        if (scope(call.context) == Scope::sequence)
            detail::required_sequences(name, call.context.sequence_offsets, x.rows());
        if (settings_.balanced)
            deal(logits, call);
        else
            draw(logits, call);
    }

    /// dx = 0
    void backward(In<S> x, In<S>, Out<S> dx, RandomRouterModule&, const Call<S>&) const {
        detail::write_no_gradient<S>(name, x, dx);
    }

    /// @throws std::invalid_argument if the layer has another number of logits, or they are not
    ///         one per expert
    void check(const Shape& shape) const {
        detail::check_deciding_router(name, num_logits_, shape);
    }

    void reserve(Index tokens, Index, Workspace<S>& ws) const {
        if (settings_.balanced) ws.template state<State>().reserve(tokens, num_logits_);
    }
    /// Bytes of workspace.
    Index workspace_bytes(Index tokens, Index, Keep, int) const {
        if (!settings_.balanced) return 0;
        return (tokens + num_logits_) * static_cast<Index>(sizeof(Card)) +
               tokens * static_cast<Index>(sizeof(Index));
    }

private:
    static constexpr const char* name = "moe::RandomRouter";
    enum Draw : std::uint32_t { of_expert, of_token_order, of_expert_order };

    /// What is shuffled: cards are sorted by random keys.
    struct Card {
        double key;
        Index number;

        bool operator<(const Card& other) const {
            return key < other.key || (key == other.key && number < other.number);
        }
    };
    struct State {
        Buffer<Card> tokens;   // [up to T] first tokens of what shares a draw
        Buffer<Card> experts;  // [L]
        Buffer<Index> place;   // [T] of the card that begins at a token

        void reserve(Index count, Index num_logits) {
            tokens.resize(count), place.resize(count), experts.resize(num_logits);
        }
    };

    Scope scope(const Context& context) const {
        return context.training ? settings_.training : settings_.inference;
    }

    /// The first of the tokens that share a draw with t.
    Index first(Index t, const Context& context) const {
        switch (scope(context)) {
            case Scope::batch:
                return 0;
            case Scope::sequence: {
                const detail::Sequences sequences{context.sequence_offsets};
                return sequences.first(sequences.of(t));
            }
            case Scope::token:
                break;
        }
        return t;
    }

    void draw(Out<S> logits, const Call<S>& call) const {
        const CounterRandom random = call.random();
        const bool by_token = scope(call.context) != Scope::batch;
        detail::decide<S>(logits, call, [&](Index t, S* row) {
            const std::int64_t key = by_token ? call.token(first(t, call.context)) : 0;
            detail::choose_different(settings_.k, num_logits_, row, [&](Index j, Index bound) {
                // Below bound after rounding too: uniform() is at most 1 - 2^-53.
                return static_cast<Index>(random.uniform(key, j, of_expert) *
                                          static_cast<double>(bound));
            });
        });
    }

    void deal(Out<S> logits, const Call<S>& call) const {
        const CounterRandom random = call.random();
        State& state = call.ws.template state<State>();
        state.reserve(logits.rows(), num_logits_);
        Card* const cards = state.tokens.data();
        Index count = 0;
        for (Index t = 0; t < logits.rows(); ++t) {
            const Index begin = first(t, call.context);
            if (call.context.is_padding(t) || (count > 0 && cards[count - 1].number == begin))
                continue;
            cards[count++] = {random.uniform(call.token(begin), 0, of_token_order), begin};
        }
        std::sort(cards, cards + count);
        for (Index i = 0; i < count; ++i) state.place[cards[i].number] = i;
        Card* const experts = state.experts.data();
        for (Index e = 0; e < num_logits_; ++e)
            experts[e] = {random.uniform(0, e, of_expert_order), e};
        std::sort(experts, experts + num_logits_);
        detail::decide<S>(logits, call, [&](Index t, S* row) {
            const Index turn = state.place[first(t, call.context)] * settings_.k;
            for (Index j = 0; j < settings_.k; ++j)
                row[experts[(turn + j) % num_logits_].number] = S(0);
        });
    }

    RandomRouter settings_;
    Index num_logits_ = 0;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_ROUTERS_RANDOM_HPP
