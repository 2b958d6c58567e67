// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_GOLDEN_GOLDEN_HPP
#define MOE_TESTS_GOLDEN_GOLDEN_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <moe/core/parameters.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/core/workspace.hpp>
#include <moe/io/file.hpp>
#include <moe/io/safetensors.hpp>
#include <moe/testing/compare.hpp>

/// Layers of published models with their inputs, outputs and gradients: see generate.py.
namespace golden {

inline std::string folder() {
#ifdef MOE_GOLDEN_DIR
    return MOE_GOLDEN_DIR "/";
#else
    const std::string_view file = __FILE__;
    return std::string(file.substr(0, file.find_last_of('/') + 1));
#endif
}

/// Where a parameter of a layer lies in a file: in the part-th of `parts` equal runs of rows of a
/// tensor.
struct Place {
    std::string name;
    moe::Index part = 0, parts = 1;
};

/// Names of a model's weights in its checkpoints.
struct Names {
    std::string prefix;
    std::string router = "gate.weight";
    std::string experts = "experts.";
    std::string gate = "gate_proj.weight", up = "up_proj.weight", down = "down_proj.weight";
    std::string shared = "shared_expert.", shared_gate = "shared_expert_gate.weight";
    bool up_holds_gate = false;  ///< `up` is [2 F, D], the rows of the gate first

    /// @param ours  as visit_parameters() of the layer says it
    /// @throws std::invalid_argument for a name no published layer here has
    Place place(std::string_view ours) const {
        if (ours == "router.weight") return {prefix + router};
        if (ours == "gate.bias") return {prefix + "gate.e_score_correction_bias"};
        const std::size_t first = ours.find('.'), last = ours.rfind('.');
        const std::string_view kind = ours.substr(0, first), what = ours.substr(last + 1);
        if (first < last && (kind == "experts" || kind == "shared")) {
            const std::string number(ours.substr(first + 1, last - first - 1));
            const std::string expert =
                prefix + (kind == "shared" ? shared : experts + number + ".");
            if (what == "gate")
                return {expert + (up_holds_gate ? up : gate), 0, up_holds_gate ? 2 : 1};
            if (what == "up") return {expert + up, up_holds_gate ? 1 : 0, up_holds_gate ? 2 : 1};
            if (what == "down") return {expert + down};
            if (what == "shared_gate") return {prefix + shared_gate};
            if (what == "mix") return {expert + "wg.weight"};
            if (what == "value") return {expert + "constant"};
        }
        throw std::invalid_argument("no published name for " + std::string(ours));
    }
};

/// One file.
class File {
public:
    explicit File(const std::string& name)
        : bytes_(moe::read_file(folder() + name + ".safetensors")), view_(bytes_) {}
    File(const File&) = delete;
    File& operator=(const File&) = delete;

    const moe::SafetensorsView& view() const { return view_; }

    template <class S>
    moe::Matrix<S> read(std::string_view name) const {
        return view_.copy<S>(name);
    }
    template <class S>
    moe::Matrix<S> read(const Place& place) const {
        const moe::Matrix<S> all = read<S>(place.name);
        const moe::Index rows = all.rows() / place.parts;
        return all.middleRows(place.part * rows, rows);
    }

    /// What a layer computing in S must find: of results that were published in float32 and made
    /// in float64 too, those of S.
    template <class S>
    moe::Matrix<double> expected(Place place) const {
        const std::string wide = place.name + ".f64";
        if (std::is_same_v<S, double> && view_.find(wide) != nullptr) place.name = wide;
        return read<double>(place);
    }

    /// Names of the layer's weights.
    std::set<std::string> weights() const {
        static const std::set<std::string> others = {
            "input",          "grad_output", "router_logits", "expert_ids",
            "expert_weights", "output",      "grad_input"};
        std::set<std::string> names;
        for (const moe::TensorView& tensor : view_) {
            std::string name(tensor.name);
            if (name.ends_with(".f64")) name.resize(name.size() - 4);
            if (!name.starts_with("grad.") && !others.contains(name)) names.insert(name);
        }
        return names;
    }

private:
    std::vector<std::byte> bytes_;
    moe::SafetensorsView view_;
};

/// Gives the layer the weights of the file.
/// @throws std::invalid_argument if a shape differs, or if the file holds a weight that the layer
///         has not
template <class Layer>
void load(const File& file, const Names& names, Layer& layer) {
    std::set<std::string> unused = file.weights();
    moe::visit_parameters(layer, [&](std::string_view name, auto& matrix, moe::Role) {
        using S = typename Layer::Scalar;
        const Place place = names.place(name);
        const moe::Matrix<S> values = file.read<S>(place);
        if (values.rows() != matrix.rows() || values.cols() != matrix.cols())
            throw std::invalid_argument(std::string(name) + " has another shape than " +
                                        place.name);
        std::copy_n(values.data(), values.size(), matrix.data());
        if (place.part + 1 == place.parts) unused.erase(place.name);
    });
    if (!unused.empty())
        throw std::invalid_argument("the layer has no place for " + *unused.begin());
}

/// A tensor of the file and how the layer's own compares with it.
struct Finding {
    std::string name;
    moe::testing::Comparison comparison;
};

/// Experts of a routing as the files hold them: [T, K], -1 where a token has fewer.
inline moe::Matrix<std::int64_t> expert_ids(const moe::Routing& routing, moe::Index slots) {
    moe::Matrix<std::int64_t> ids =
        moe::Matrix<std::int64_t>::Constant(routing.num_tokens(), slots, -1);
    for (const moe::Assignment& a : routing.assignments())
        if (a.slot < slots) ids(a.token, a.slot) = a.expert;
    return ids;
}

/// Combine weights [T, K], 0 where a token has fewer.
inline moe::Matrix<double> expert_weights(const moe::Routing& routing, moe::Index slots) {
    moe::Matrix<double> weights = moe::Matrix<double>::Zero(routing.num_tokens(), slots);
    for (const moe::Assignment& a : routing.assignments())
        if (a.slot < slots) weights(a.token, a.slot) = a.weight;
    return weights;
}

/// Runs the layer forward and backward on the file's batch and compares all that it computes: who
/// works on which token in which slot, and every tensor to a relative error.
template <class Layer>
std::vector<Finding> compare(const File& file, const Names& names, const Layer& layer,
                             double tolerance) {
    using S = typename Layer::Scalar;
    const moe::Matrix<S> x = file.read<S>("input"), dy = file.read<S>("grad_output");
    moe::Matrix<S> y(x.rows(), layer.output_dim()), dx(x.rows(), x.cols());
    moe::Workspace<S> ws;
    Layer grad = moe::zeros_like(layer);
    layer.forward(x, y, ws);

    std::vector<Finding> findings;
    const auto compare_one = [&](const Place& place, const auto& actual) {
        const std::string part = place.parts == 1 ? "" : ", part " + std::to_string(place.part);
        findings.push_back(
            {place.name + part, moe::testing::compare(actual, file.expected<S>(place), tolerance)});
    };
    const moe::Matrix<std::int64_t> ids = file.view().integers("expert_ids");
    // One slot more than there should be, so that a token with more is found out.
    moe::Matrix<std::int64_t> padded =
        moe::Matrix<std::int64_t>::Constant(ids.rows(), ids.cols() + 1, -1);
    padded.leftCols(ids.cols()) = ids;
    findings.push_back(
        {"expert_ids", moe::testing::same_bits(expert_ids(ws.routing(), ids.cols() + 1), padded)});
    compare_one({"expert_weights"}, expert_weights(ws.routing(), ids.cols()));
    compare_one({"router_logits"}, ws.logits());
    compare_one({"output"}, y);

    layer.backward(x, dy, dx, grad, ws);
    compare_one({"grad_input"}, dx);
    moe::visit_parameters(std::as_const(grad),
                          [&](std::string_view name, const auto& matrix, moe::Role role) {
                              if (role != moe::Role::trainable) return;
                              Place place = names.place(name);
                              place.name = "grad." + place.name;
                              compare_one(place, Eigen::Map<const moe::Matrix<S>>(
                                                     matrix.data(), matrix.rows(), matrix.cols()));
                          });
    return findings;
}

}  // namespace golden

#endif  // MOE_TESTS_GOLDEN_GOLDEN_HPP
