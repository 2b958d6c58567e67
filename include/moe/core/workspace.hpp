// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_WORKSPACE_HPP
#define MOE_CORE_WORKSPACE_HPP

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <moe/core/context.hpp>
#include <moe/core/error.hpp>
#include <moe/core/executor.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/plan.hpp>
#include <moe/core/random.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// What forward leaves behind for backward.
enum class Keep {
    everything,  ///< what backward needs
    nothing,     ///< inference: backward throws
    recompute,   ///< the inputs' and the routing's share: feed-forward experts compute again what
                 ///< they had before their nonlinearity, with the same bits. A step takes a fifth
                 ///< longer and no room for [N, F]; other parts keep what they need
};

template <class S>
class Workspace;

/// The part of a workspace that does not depend on the scalar.
class WorkspaceBase {
public:
    virtual ~WorkspaceBase() = default;

    /// The T that the part owning this node put here; made by its default constructor the first
    /// time. A node holds one object of each type.
    template <class T>
    T& state() {
        if (T* present = find<T>()) return *present;
        states_.push_back({&type_tag<T>, std::unique_ptr<void, void (*)(void*)>(
                                             new T(), [](void* p) { delete static_cast<T*>(p); })});
        return *static_cast<T*>(states_.back().object.get());
    }
    /// The T that is here, or null.
    template <class T>
    T* find() const {
        for (const State& state : states_)
            if (state.type == &type_tag<T>) return static_cast<T*>(state.object.get());
        return nullptr;
    }

    /// This workspace if it is one of layers of scalar S, else null.
    template <class S>
    Workspace<S>* as() {
        return scalar_ == &type_tag<S> ? static_cast<Workspace<S>*>(this) : nullptr;
    }

protected:
    /// @param scalar  type_tag<S> of Workspace<S>
    explicit WorkspaceBase(const char* scalar) : scalar_(scalar) {}
    WorkspaceBase(WorkspaceBase&&) = default;
    WorkspaceBase& operator=(WorkspaceBase&&) = default;

    template <class T>
    static inline char type_tag = 0;

private:
    struct State {
        const char* type;
        std::unique_ptr<void, void (*)(void*)> object;
    };
    const char* scalar_;
    std::vector<State> states_;
};

/// What routing a batch leaves behind; see Workspace::routing().
template <class S>
struct Routed {
    Routing routing;
    Buffer<S> logits, dlogits;  // [T, L]
    Buffer<S> raw_logits;       // [T, L] without the offset, only if backward may follow and the
                                // offset is in standard deviations
    Index num_logits = 0;
    Index other_logits = 0;          // the last of those, which are not the experts' own
    Context context;                 // views as the caller gave them
    std::vector<ExpertFacts> facts;  // [E] what context.experts views
    Buffer<S> dx;                    // [T, D] the router's share
    Buffer<S> tokens;                // [T, D] x with padding as 0, only if there is padding
    std::uint64_t fingerprint = 0;   // of who filled this with what; 0: not for backward
};

/// Everything a call leaves behind: routing, logits, what backward needs, scratch, and who runs
/// the parallel parts. It grows to the largest batch seen and then allocates nothing.
///
/// A workspace is a tree: a part of a layer gets a node of its own, keeps its state there and
/// hands children to its own parts. One workspace per thread makes one layer usable from many.
template <class S>
class Workspace : public WorkspaceBase {
    static_assert(is_scalar<S>, "moe::Workspace: the scalar must be float or double");

public:
    /// OpenMP's threads if OpenMP is enabled, else the calling thread.
    Workspace() : Workspace(std::make_shared<Settings>()) {}
    /// @param executor  runs the parallel parts; must outlive the workspace
    explicit Workspace(Executor& executor) : Workspace() { use(executor); }

    /// What was moved from is empty, has the same settings, and may be used again.
    Workspace(Workspace&& other) noexcept
        : WorkspaceBase(std::move(other)),
          settings_(other.settings_),
          children_(std::move(other.children_)),
          path_(other.path_) {}
    Workspace& operator=(Workspace&& other) noexcept {
        WorkspaceBase::operator=(std::move(other));
        settings_ = other.settings_;
        children_ = std::move(other.children_);
        path_ = other.path_;
        return *this;
    }
    ~Workspace() override = default;

    /// Runs the parallel parts from now on; must outlive the workspace.
    /// @throws std::invalid_argument if its concurrency() is below 1
    Workspace& use(Executor& executor) {
        detail::check_executor("moe::Workspace", executor);
        settings_->executor = &executor;
        if (settings_->planned != nullptr) plan(settings_->plan);
        return *this;
    }
    /// Uses `count` threads of its own: an OpenMP team if OpenMP is enabled, else a pool.
    Workspace& threads(int count) {
        if (count < 1) detail::fail("moe::Workspace: threads is ", count, ", it must be >= 1");
#if defined(_OPENMP)
        settings_->own = std::make_unique<OpenMpExecutor>(count);
#else
        settings_->own = std::make_unique<ThreadPool>(count);
#endif
        return use(*settings_->own);
    }
    /// Who runs them. With a plan it is another object, which passes everything on.
    Executor& executor() const {
        return settings_->planned != nullptr ? *settings_->planned : *settings_->executor;
    }

    /// Calls go by this plan from now on: how long they take depends on it, no result does. What
    /// it says of threads goes before what the executor says.
    /// @throws std::invalid_argument if a member is negative, NaN, or a number of tile rows 0
    Workspace& plan(const Plan& plan) {
        detail::check_plan("moe::Workspace", plan);
        settings_->planned =
            std::make_unique<detail::PlannedExecutor>(*settings_->executor, plan.serial_flops);
        settings_->plan = plan;
        return *this;
    }
    const Plan& plan() const { return settings_->plan; }

    /// What forward leaves for backward from now on.
    Workspace& keep(Keep keep) {
        settings_->keep = keep;
        return *this;
    }
    Keep keep() const { return settings_->keep; }
    /// Whether backward may follow.
    bool keeps() const { return settings_->keep != Keep::nothing; }

    /// The node of part `index`, made the first time.
    Workspace& child(std::size_t index) {
        while (children_.size() <= index)
            children_.push_back(std::unique_ptr<Workspace>(
                new Workspace(settings_, detail::mix(path_ ^ (children_.size() + 1)))));
        return *children_[index];
    }
    /// A number of this node's place in the tree, the same in every workspace; 0 at the top. It
    /// keeps the random numbers of a layer's parts apart.
    std::uint64_t path() const { return path_; }

    /// The routing of the last batch routed on this node.
    /// @throws std::logic_error if nothing was
    const Routing& routing() const { return routed().routing; }
    /// The same, to be edited before apply(); call group() on it if assignments change.
    Routing& edit_routing() { return routed().routing; }
    /// [T, L] logits of the last batch: offset and masks (-inf) applied, no noise.
    View<S> logits() const { return matrix(routed().logits); }
    /// [T, L] gradient of the losses at the logits: cleared by routing, added to by losses,
    /// consumed by backward.
    View<S> dlogits() const { return matrix(routed().dlogits); }
    /// [T, E] of both, the columns that are the experts' own: without the logits that a gate wants
    /// besides; [T, 0] if none are.
    View<S> expert_logits() const { return matrix(routed().logits, routed().other_logits); }
    View<S> expert_dlogits() const { return matrix(routed().dlogits, routed().other_logits); }
    /// The context of the last batch.
    const Context& context() const { return routed().context; }

    /// Room for batches of up to `tokens` tokens and `assignments` assignments, so that not even
    /// the first call allocates there, whatever its context asks for, except for what
    /// ProductKeyTopK's comment names.
    template <class Layer>
    void reserve(const Layer& layer, Index tokens, Index assignments) {
        layer.reserve(tokens, assignments, *this);
    }

private:
    struct Settings {
        Keep keep = Keep::everything;
#if defined(_OPENMP)
        OpenMpExecutor standard;
#else
        SerialExecutor standard;
#endif
        Executor* executor = &standard;
        std::unique_ptr<Executor> own;
        Plan plan{};
        std::unique_ptr<Executor>
            planned;  // executor with the plan's serial_flops, if there is one
    };

    explicit Workspace(std::shared_ptr<Settings> settings, std::uint64_t path = 0)
        : WorkspaceBase(&type_tag<S>), settings_(std::move(settings)), path_(path) {}

    Routed<S>& routed() const {
        Routed<S>* routed = find<Routed<S>>();
        if (routed == nullptr)
            detail::fail<std::logic_error>(
                "moe::Workspace: no batch has been routed here; call forward() or route() of a "
                "layer with this workspace first");
        return *routed;
    }
    View<S> matrix(Buffer<S>& buffer, Index without = 0) const {
        const Index all = routed().num_logits, rows = all == 0 ? 0 : buffer.size() / all;
        return View<S>(buffer.data(), rows, all - without, Eigen::OuterStride<>(all));
    }

    std::shared_ptr<Settings> settings_;
    std::vector<std::unique_ptr<Workspace>> children_;
    std::uint64_t path_ = 0;
};

namespace detail {

/// Children of the node that a head or a layer works in.
inline constexpr std::size_t router_node = 0, gate_node = 1, bank_node = 2;

/// What backward throws where forward has not left what it needs.
template <class S>
[[noreturn]] void fail_without_batch(const Workspace<S>& ws) {
    if (!ws.keeps())
        fail<std::logic_error>(
            "moe::Layer::backward: the workspace keeps nothing for backward: call "
            "ws.keep(moe::Keep::everything), or Keep::recompute, and forward() again before it");
    fail<std::logic_error>(
        "moe::Layer::backward: the workspace does not hold this batch: call forward() of the same "
        "layer with the same x and context first");
}

}  // namespace detail

/// What a hook gets besides its matrices: the context of the call and the part's own node.
template <class S>
struct Call {
    const Context& context;
    Workspace<S>& ws;
    std::span<const std::int64_t> ids{};  ///< numbers of the rows' tokens; empty: see token()
    Index expert = 0;                     ///< number within its group, of an expert of each()

    /// The same call for a part of this part.
    Call child(std::size_t index) const { return {context, ws.child(index), ids, expert}; }

    /// The number within the whole batch of the token in a row, as random numbers are keyed by it.
    std::int64_t token(Index row) const {
        return ids.empty() ? context.first_token + row : ids[static_cast<std::size_t>(row)];
    }
    /// Random numbers of this part in this call: random().uniform(token(row), expert). Layers and
    /// passes differ by Context::stream, the parts of one layer by their place in it.
    CounterRandom random() const {
        return CounterRandom(context.seed, detail::mix(context.stream) ^ ws.path(), context.step);
    }

    /// The workspace of Context::previous, where an earlier layer left its logits.
    /// @throws std::invalid_argument if none was given, or that of a layer of the other scalar
    Workspace<S>& previous() const {
        auto* const earlier =
            context.previous == nullptr ? nullptr : context.previous->template as<S>();
        if (earlier == nullptr)
            detail::fail("moe::Context: previous is ",
                         context.previous == nullptr ? "empty" : "of another scalar",
                         ", the part that reads it wants the workspace of an earlier layer of ",
                         sizeof(S) == 4 ? "float" : "double");
        return *earlier;
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_WORKSPACE_HPP
