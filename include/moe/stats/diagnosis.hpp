// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_DIAGNOSIS_HPP
#define MOE_STATS_DIAGNOSIS_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/workspace.hpp>
#include <moe/stats/finding.hpp>
#include <moe/stats/format.hpp>
#include <moe/stats/layer_evidence.hpp>
#include <moe/stats/load.hpp>
#include <moe/stats/router.hpp>
#include <moe/stats/trace.hpp>

namespace moe::inline MOE_ABI {

/// From where on something is worth a finding.
struct DiagnosisOptions {
    /// Assignments per expert, in the mean, below which a layer has too few tokens to tell: only
    /// NaN is reported then. At 32, a router that chooses at random leaves an expert without any
    /// with odds of e^-32, and gives one of 256 twice the mean with odds of 1 in 9000
    double least_load = 32;
    /// The k busiest experts, k being the assignments per token: how far their share of the load is
    /// on the way from balance (0) to everything (1). Past the middle the others are spare
    double collapse = 0.5;
    /// Load of the busiest expert over the mean. Devices that wait for it idle half of the time
    double max_over_mean = 2;
    /// Share of assignments that are refused for capacity. Trained models lose less than that
    double dropped = 0.02;
    /// Share of tokens that reach no expert: no more than the assignments that may be dropped
    double unrouted = 0.02;
    /// Of refused assignments, those in the second half of their sequences, or batches, from where
    /// on the order decides who is refused: half of them would be if it did not
    double late = 2.0 / 3;
    /// Weight of a last slot over that of a mean one. At a tenth, with k = 4, a quarter of the
    /// products makes less than 1 / 40 of the output
    double slot_weight = 0.1;
    /// Router entropy over its largest value from where on a router is undecided. At 0.95 of log 8
    /// the best of 8 experts has a probability of 0.3 at most
    double undecided = 0.95;
    /// And up to where it is saturated: no gradient comes through its softmax. Exactly 0 is a rule
    /// with one choice rather than a router, and not reported
    double saturated = 0.001;
};

namespace detail {

inline std::string in_words(Index n) {
    static constexpr const char* words[] = {"no",   "one", "two",   "three", "four",
                                            "five", "six", "seven", "eight", "nine"};
    return n >= 0 && n < 10 ? words[n] : std::to_string(n);
}

/// "3, 5, 6", of a long list its beginning.
inline std::string listed(const std::vector<Index>& numbers) {
    constexpr std::size_t most = 8;
    std::string text;
    for (std::size_t i = 0; i < std::min(numbers.size(), most); ++i)
        text += (i == 0 ? "" : ", ") + std::to_string(numbers[i]);
    return numbers.size() > most ? text + ", ..." : text;
}

inline double ratio(Index part, Index all) {
    return all == 0 ? 0 : static_cast<double>(part) / static_cast<double>(all);
}

/// The rules, for one layer. Another one is a FindingKind with its figures, a threshold in
/// DiagnosisOptions, what it looks at in LayerEvidence, and a look_at_...() here.
class LayerDiagnosis {
public:
    LayerDiagnosis(const LayerEvidence& evidence, const DiagnosisOptions& options)
        : e_(evidence), options_(options), assignments_(evidence.num_assignments()) {
        for (Index i = 0; i < e_.num_experts(); ++i) by_load_.push_back(i);
        std::stable_sort(by_load_.begin(), by_load_.end(),
                         [this](Index a, Index b) { return load(a) > load(b); });
    }

    /// How many tokens it takes to tell.
    Index needed() const {
        const double per_token = std::max(1.0, ratio(assignments_, e_.num_tokens));
        return static_cast<Index>(
            std::ceil(options_.least_load * static_cast<double>(e_.num_experts()) / per_token));
    }
    /// Load of the busiest expert over the mean; 0 without any.
    double max_over_mean() const {
        return assignments_ == 0 ? 0
                                 : ratio(load(by_load_.front()), assignments_) *
                                       static_cast<double>(e_.num_experts());
    }

    std::vector<Finding> find() {
        if (e_.nan_tokens > 0)
            add(FindingKind::not_a_number, 1,
                {{"tokens", wide(e_.nan_tokens)}, {"of", wide(e_.num_tokens)}},
                "NaN in " + counted(e_.nan_tokens, "token") + " of " +
                    std::to_string(e_.num_tokens),
                "look at x and at the router's weights first; z_loss keeps logits small");
        if (e_.num_tokens < needed()) return std::move(findings_);
        look_at_load();
        look_at_drops();
        look_at_slots();
        if (e_.router) look_at_router(*e_.router);
        return std::move(findings_);
    }

private:
    static double wide(Index n) { return static_cast<double>(n); }
    Index load(Index expert) const { return e_.chosen[at(expert)]; }

    void add(FindingKind kind, double severity, std::vector<Figure> figures, std::string text,
             std::string remedy) {
        findings_.push_back({.kind = kind,
                             .layer = e_.layer,
                             .severity = severity,
                             .figures = std::move(figures),
                             .text = std::move(text),
                             .remedy = std::move(remedy)});
    }

    void look_at_load() {
        const Index experts = e_.num_experts();
        if (assignments_ == 0) return;
        std::vector<Index> dead;
        for (Index i = 0; i < experts; ++i)
            if (load(i) == 0) dead.push_back(i);
        if (!dead.empty()) {
            const auto count = static_cast<Index>(dead.size());
            add(FindingKind::dead_experts, ratio(count, experts),
                {{"experts", wide(count)}, {"of", wide(experts)}},
                in_words(count) + " dead expert" + (count == 1 ? "" : "s") + ": " + listed(dead),
                "revive with update_bias and SignUpdate, or with QuantileUpdate");
        }
        if (!is_collapsed() && max_over_mean() >= options_.max_over_mean)
            add(FindingKind::unbalanced, (1 - 1 / max_over_mean()) / 2,
                {{"expert", wide(by_load_.front())}, {"max_over_mean", max_over_mean()}},
                "unbalanced: expert " + std::to_string(by_load_.front()) + " " + gets() + " " +
                    fixed(max_over_mean(), 1) + " times the mean load",
                "a larger weight of load_balance_loss, or update_bias with SignUpdate");
    }

    bool is_collapsed() {
        const Index experts = e_.num_experts();
        const auto k = std::max<Index>(1, std::lround(ratio(assignments_, e_.num_tokens)));
        if (k >= experts) return false;
        Index taken = 0;
        for (Index i = 0; i < k; ++i) taken += load(by_load_[at(i)]);
        double share = ratio(taken, assignments_), mean = ratio(k, experts);
        const double way = (share - mean) / (1 - mean);
        if (!(way >= options_.collapse)) return false;
        std::string text = "collapsed: ";
        if (k == 1) {
            share = ratio(taken, e_.num_tokens);
            mean = ratio(assignments_, e_.num_tokens) / wide(experts);
            text += "expert " + std::to_string(by_load_.front()) + " " + gets() + " " +
                    percent(share) + " of the tokens";
        } else {
            std::vector<Index> busiest(by_load_.begin(), by_load_.begin() + k);
            std::sort(busiest.begin(), busiest.end());
            text += in_words(k) + " of " + in_words(experts) + " experts (" + listed(busiest) +
                    ") have " + percent(share) + " of the load";
        }
        add(FindingKind::collapsed, way, {{"experts", wide(k)}, {"share", share}, {"mean", mean}},
            text + " (mean " + percent(mean) + ")",
            "pull the loads together with load_balance_loss, or with update_bias and SignUpdate");
        return true;
    }
    /// An expert that is full does not get what chooses it.
    std::string gets() const { return e_.refused > 0 ? "is chosen by" : "gets"; }

    void look_at_drops() {
        const double share = ratio(e_.refused, assignments_);
        const double in_sequence = ratio(e_.late_in_sequence, e_.refused),
                     in_batch = ratio(e_.late_in_batch, e_.refused);
        const bool is_late = std::max(in_sequence, in_batch) >= options_.late;
        if (e_.refused > 0 && share >= options_.dropped)
            add(FindingKind::dropped, share,
                {{"share", share}, {"late", std::max(in_sequence, in_batch)}},
                "drops " + percent(share) + " of assignments" +
                    (!is_late                       ? ""
                     : in_sequence >= options_.late ? ", most of them late in the sequence"
                                                    : ", most of them late in the batch"),
                is_late ? "a larger Capacity::limit, or Capacity::Priority::probability, which "
                          "does not favour early tokens"
                        : "a larger Capacity::limit, or load_balance_loss, so that fewer experts "
                          "are full");
        const double nowhere = ratio(e_.unrouted, e_.num_tokens);
        if (e_.unrouted > 0 && nowhere >= options_.unrouted)
            add(FindingKind::unrouted, nowhere, {{"share", nowhere}},
                percent(nowhere) + " of the tokens reach no expert",
                e_.refused > 0 ? "Capacity::Overflow::next_choice, or a larger Capacity::limit"
                               : "a gate that always chooses, such as TopK, or a lower threshold");
    }

    /// The slots at the end that carry next to nothing.
    void look_at_slots() {
        const auto k = static_cast<Index>(e_.slot_weights.size());
        const double all = std::accumulate(e_.slot_weights.begin(), e_.slot_weights.end(), 0.0);
        if (k < 2 || !(all > 0) || !std::isfinite(all)) return;
        Index idle = 0;
        double weight = 0;
        while (idle < k - 1 && e_.slot_weights[at(k - 1 - idle)] <
                                   options_.slot_weight * all / static_cast<double>(k))
            weight += e_.slot_weights[at(k - 1 - idle++)];
        if (idle == 0) return;
        add(FindingKind::wide_selection, 0.2 * ratio(idle, k),
            {{"slots", wide(idle)}, {"of", wide(k)}, {"share", weight / all}},
            "k is larger than it needs to be: the last " +
                (idle == 1 ? std::string("of ") : in_words(idle) + " of ") + std::to_string(k) +
                " slots " + (idle == 1 ? "carries " : "carry ") + percent(weight / all) +
                " of the weight",
            "TopK{.k = " + std::to_string(k - idle) +
                "}, or TopP, which takes few where few matter");
    }

    void look_at_router(const RouterStats& router) {
        const double most = std::log(static_cast<double>(e_.num_logits));
        if (e_.num_logits < 2) return;
        const std::vector<Figure> figures{{"entropy", router.entropy}, {"of", most}};
        const std::string entropy =
            "entropy " + fixed(router.entropy, 2) + " of " + fixed(most, 2) + " nats";
        if (router.entropy >= options_.undecided * most)
            add(FindingKind::undecided, 0.25, figures, "router undecided: " + entropy,
                "entropy_loss, if it has been trained for a while");
        else if (router.entropy > 0 && router.entropy <= options_.saturated * most)
            add(FindingKind::saturated, 0.15, figures,
                "router saturated: entropy " + significant(router.entropy, 2) + " of " +
                    fixed(most, 2) + " nats, hardly any gradient",
                "z_loss, which keeps logits small");
    }

    const LayerEvidence& e_;
    const DiagnosisOptions& options_;
    Index assignments_;
    std::vector<Index> by_load_;  // experts, busiest first
    std::vector<Finding> findings_;
};

inline void check_diagnosis(const DiagnosisOptions& options) {
    const auto check = [](const char* field, double value, double least, double most) {
        if (!(value >= least && value <= most))
            fail("moe::DiagnosisOptions: ", field, " is ", value, ", it must lie in [", least, ", ",
                 most, "]");
    };
    check("least_load", options.least_load, 1, 1e9);
    check("collapse", options.collapse, 0, 1);
    check("max_over_mean", options.max_over_mean, 1, 1e9);
    check("dropped", options.dropped, 0, 1);
    check("unrouted", options.unrouted, 0, 1);
    check("late", options.late, 0, 1);
    check("slot_weight", options.slot_weight, 0, 1);
    check("undecided", options.undecided, 0, 1);
    check("saturated", options.saturated, 0, 1);
}

/// The findings of all layers, worst first; what can be said of many layers alike, once.
inline std::vector<Finding> diagnose(const std::vector<LayerEvidence>& layers,
                                     const DiagnosisOptions& options) {
    check_diagnosis(options);
    std::vector<Finding> findings;
    Index fine = 0, few = 0, needed = 0, tokens = 0, count = static_cast<Index>(layers.size());
    double busiest = 0;
    for (const LayerEvidence& evidence : layers) {
        LayerDiagnosis layer(evidence, options);
        std::vector<Finding> found = layer.find();
        if (evidence.num_tokens < layer.needed()) {
            if (few++ == 0 || layer.needed() > needed) {
                needed = layer.needed();
                tokens = evidence.num_tokens;
            }
        } else if (found.empty()) {
            ++fine;
            busiest = std::max(busiest, layer.max_over_mean());
        }
        std::move(found.begin(), found.end(), std::back_inserter(findings));
    }
    const Index only = count == 1 ? layers.front().layer : -1;
    const auto of_layers = [count](Index n) {
        return count == 1 ? std::string()
                          : " in " + std::to_string(n) + " of " + counted(count, "layer");
    };
    if (few > 0 || count == 0)
        findings.push_back({.kind = FindingKind::too_few_tokens,
                            .layer = only,
                            .severity = 0.1,
                            .figures = {{"tokens", static_cast<double>(tokens)},
                                        {"needed", static_cast<double>(needed)}},
                            .text = count == 0 ? "nothing to tell: the trace is empty"
                                               : "too few tokens to tell" + of_layers(few) + ": " +
                                                     std::to_string(tokens) + " of at least " +
                                                     std::to_string(needed),
                            .remedy = "record more batches"});
    if (fine > 0)
        findings.push_back(
            {.kind = FindingKind::balanced,
             .layer = only,
             .severity = 0,
             .figures = {{"layers", static_cast<double>(fine)}, {"max_over_mean", busiest}},
             .text = "balanced" + of_layers(fine) + ": the busiest expert has " +
                     (fine == 1 ? "" : "at most ") + fixed(busiest, 2) + " times the mean load",
             .remedy = ""});
    std::stable_sort(findings.begin(), findings.end(),
                     [](const Finding& a, const Finding& b) { return a.severity > b.severity; });
    return findings;
}

}  // namespace detail

/// What is wrong with the layers of a trace, in words and figures, worst first, and what to try.
///
///     std::cout << report(diagnose(trace));
///
///     layer 2: collapsed: expert 3 gets 94.1 % of the tokens (mean 12.5 %); pull the
///         loads together with load_balance_loss, or with update_bias and SignUpdate
///     layer 2: two dead experts: 1, 6; revive with update_bias and SignUpdate, or with
///         QuantileUpdate
///     balanced in 30 of 31 layers: the busiest expert has at most 1.31 times the mean
///         load
///
/// Loads are sums over all batches, and of what was chosen: an expert that is full is as busy as
/// one that takes everything. Nothing but NaN is said of a layer with few tokens, see
/// DiagnosisOptions::least_load. A trace has no logits, so that nothing is said of the router.
/// Assignments are late in the second half of their sequence, or of the batch if more are there.
/// @throws std::invalid_argument if an option is out of range
inline std::vector<Finding> diagnose(const Trace& trace, const DiagnosisOptions& options = {}) {
    std::vector<detail::LayerEvidence> layers;
    for (Index layer = 0; layer < trace.num_layers(); ++layer)
        if (trace.num_experts(layer) > 0) layers.push_back(detail::layer_evidence(trace, layer));
    return detail::diagnose(layers, options);
}

/// Of one batch.
/// @throws std::invalid_argument also as Trace::record; std::logic_error if it is not grouped
inline std::vector<Finding> diagnose(const Routing& routing, const Context& context = {},
                                     const DiagnosisOptions& options = {}) {
    return detail::diagnose({detail::layer_evidence(routing, context)}, options);
}

/// Of the batch that `ws` holds, its router included.
/// @throws std::logic_error if it holds none
template <class S>
std::vector<Finding> diagnose(const Workspace<S>& ws, const DiagnosisOptions& options = {}) {
    detail::LayerEvidence evidence = detail::layer_evidence(ws.routing(), ws.context());
    evidence.router = router_stats(ws);
    const auto own = ws.expert_logits();
    evidence.num_logits = own.cols() > 0 ? own.cols() : ws.logits().cols();
    const double with_nan =
        evidence.router->nan_fraction * static_cast<double>(ws.routing().num_tokens());
    evidence.nan_tokens = std::max<Index>(evidence.nan_tokens, std::lround(with_nan));
    return detail::diagnose({evidence}, options);
}

/// Of statistics, e.g. of several processes: what they hold, which is nothing of slots and places.
/// Logits are taken to be one per expert, and all drops to be for capacity.
inline std::vector<Finding> diagnose(const LoadStats& load, const RouterStats& router,
                                     const DiagnosisOptions& options = {}) {
    return detail::diagnose({detail::layer_evidence(load, router)}, options);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_DIAGNOSIS_HPP
