// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_TASK_HPP
#define MOE_ROUTERS_TASK_HPP

#include <cstdint>
#include <utility>
#include <vector>

#include <moe/routers/linear.hpp>
#include <moe/routers/router_set.hpp>

namespace moe::inline MOE_ABI {

/// One router per task, over the same experts.
///
///     logits[t] = inner_task(x[t])        -inf outside the task's experts, if it has a window
///
/// The task is Context::task for the whole batch or, where that is not set, each token's
/// Context::token_groups. Routers of tasks that no token has are not run and get no gradient. With
/// Context::task a router sees the batch as it is. With token_groups each sees the tokens of its
/// own task as a batch of their own: what a context says of tokens, of sequences or of the layer
/// before does not reach it, and a router inside that needs such a field throws, be the tokens of
/// one task or of several.
///
/// Source: M3ViT (arXiv:2210.14793) section 3.2, multi-gate routing.
template <class S, class Inner>
class PerTaskModule : public detail::RouterSet<S, Inner> {
    using Base = detail::RouterSet<S, Inner>;

public:
    using Base::Base;

    Index num_tasks() const { return this->num_groups(); }

    void forward(In<S> x, Out<S> logits, const Call<S>& call) const {
        Base::forward(x, logits, tasks(x.rows(), call.context), call);
    }
    void backward(In<S> x, In<S> dlogits, Out<S> dx, PerTaskModule& grad,
                  const Call<S>& call) const requires Router<Inner, S> {
        Base::backward(x, dlogits, dx, grad, tasks(x.rows(), call.context), call);
    }

    auto freeze(const FreezeOptions& options) const {
        using Frozen = detail::frozen_t<Inner>;
        return PerTaskModule<S, Frozen>(this->frozen_routers(options), this->is_shared(),
                                        this->ranges(), this->shape());
    }

private:
    detail::TokenGroups tasks(Index tokens, const Context& context) const {
        if (!context.task)
            return this->groups_of_tokens(tokens, context, "moe::PerTask without Context::task",
                                          "task");
        if (*context.task < 0 || *context.task >= num_tasks())
            detail::fail("moe::Context: task is ", *context.task, ", moe::PerTask has ",
                         num_tasks(), " tasks: it must be in [0, ", num_tasks(), ")");
        return {.of_batch = *context.task};
    }
};

/// Recipe: a router for each task, and if wanted a window of the experts for each.
///
///     moe::PerTask{moe::LinearRouter{}, 3}           3 tasks
///     moe::PerTask{moe::LinearRouter{}, 3, 8}        each with 8 of the experts
///     moe::PerTask<>{.num_tasks = 3}
///
/// For one network that does several jobs: tasks share experts where that helps and part where it
/// does not. For one task alone only its router and the experts that it picks are touched. Routers
/// are named "0.weight", "1.weight" and so on.
///
///     window of task i: experts [start, start + experts_per_task)
///     start = floor(i (E - experts_per_task) / (num_tasks - 1)), 0 if there is one task
template <class Inner = LinearRouter>
struct PerTask {
    Inner inner{};
    Index num_tasks = 0;         ///< required
    Index experts_per_task = 0;  ///< 0: all

    template <class S>
    auto build(const Shape& shape, Random& random) const {
        if (num_tasks < 1)
            detail::fail("moe::PerTask: num_tasks is ", num_tasks,
                         ", it must be >= 1; set it: moe::PerTask{moe::LinearRouter{}, 3}");
        if (experts_per_task < 0 || experts_per_task > shape.num_experts)
            detail::fail("moe::PerTask: experts_per_task is ", experts_per_task,
                         ", it must be in [0, ", shape.num_experts,
                         "], the experts of the layer (0: all)");
        if (experts_per_task > 0)
            detail::check_expert_logits("moe::PerTask with experts_per_task", shape);
        using Router = detail::built_t<Inner, S>;
        std::vector<Router> routers;
        std::vector<ExpertRange> ranges;
        const Index window = experts_per_task > 0 ? experts_per_task : shape.num_logits;
        for (Index task = 0; task < num_tasks; ++task) {
            Random of_task = random.child(static_cast<std::uint64_t>(task));
            routers.push_back(detail::built_router<Inner, S>(inner, shape, of_task));
            const Index free = shape.num_logits - window;
            const Index start = num_tasks == 1 ? 0 : task * free / (num_tasks - 1);
            ranges.push_back({start, start + window});
        }
        return PerTaskModule<S, Router>(std::move(routers), false, std::move(ranges), shape);
    }
};

PerTask()->PerTask<>;
template <class Inner>
PerTask(Inner) -> PerTask<Inner>;
template <class Inner>
PerTask(Inner, Index) -> PerTask<Inner>;
template <class Inner>
PerTask(Inner, Index, Index) -> PerTask<Inner>;

}  // namespace moe::inline MOE_ABI

#endif  // MOE_ROUTERS_TASK_HPP
