// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>

#include <Eigen/Core>
#include <oneapi/dnnl/dnnl.hpp>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "peer_layer.hpp"
#include "peer_routing.hpp"

namespace {

using Index = std::ptrdiff_t;
using Type = dnnl::memory::data_type;
using Tag = dnnl::memory::format_tag;
using Description = dnnl::memory::desc;

dnnl::matmul::primitive_desc describe(const dnnl::engine& engine, const Description& a,
                                      const Description& b, const Description& c) {
#if DNNL_VERSION_MAJOR >= 3
    return dnnl::matmul::primitive_desc(engine, a, b, c);
#else
    return dnnl::matmul::primitive_desc(dnnl::matmul::desc(a, b, c), engine);
#endif
}

/// The products [n, in] x [in, out] with matrices of one extent: their order in memory is chosen
/// once, for blocks of 64 rows; one primitive for each n, made when it is first met.
class Product {
public:
    Product(const dnnl::engine& engine, Type type, Index in, Index out)
        : engine_(engine), type_(type), in_(in), out_(out) {
        weights_ = describe(engine, rows(type, 64, in), {{in, out}, type, Tag::any},
                            rows(Type::f32, 64, out))
                       .weights_desc();
    }

    /// @param matrix  [out, in], float
    dnnl::memory prepare(dnnl::stream& stream, const float* matrix) const {
        dnnl::memory from({{in_, out_}, Type::f32, Tag::ba}, engine_, const_cast<float*>(matrix));
        dnnl::memory to(weights_, engine_);
        dnnl::reorder(from, to).execute(stream, from, to);
        stream.wait();
        return to;
    }

    /// c [n, out] = a [n, in] times a prepared matrix
    void run(dnnl::stream& stream, Index n, void* a, const dnnl::memory& matrix, float* c) {
        auto found = primitives_.find(n);
        if (found == primitives_.end()) {
            const dnnl::matmul primitive(
                describe(engine_, rows(type_, n, in_), weights_, rows(Type::f32, n, out_)));
            found = primitives_.emplace(n, primitive).first;
        }
        found->second.execute(stream,
                              {{DNNL_ARG_SRC, dnnl::memory(rows(type_, n, in_), engine_, a)},
                               {DNNL_ARG_WEIGHTS, matrix},
                               {DNNL_ARG_DST, dnnl::memory(rows(Type::f32, n, out_), engine_, c)}});
        stream.wait();
    }

    /// Primitives are made for a number of threads.
    void forget() { primitives_.clear(); }

private:
    static Description rows(Type type, Index n, Index columns) {
        return {{n, columns}, type, Tag::ab};
    }

    dnnl::engine engine_;
    Type type_;
    Index in_, out_;
    Description weights_;
    std::map<Index, dnnl::matmul> primitives_;
};

/// @tparam Input  what products read: float or Eigen::bfloat16
template <class Input>
class OneDnnLayer final : public PeerLayer {
    static constexpr Type type = sizeof(Input) == 2 ? Type::bf16 : Type::f32;

public:
    OneDnnLayer(const Shape& shape, const Weights& weights)
        : shape_(shape),
          stream_(engine_),
          router_(engine_, Type::f32, shape.dim, shape.experts),
          in_(engine_, type, shape.dim, 2 * shape.ffn),
          out_(engine_, type, shape.ffn, shape.dim) {
        router_weight_ = router_.prepare(stream_, weights.router);
        const Index size = shape.dim * shape.ffn;
        std::vector<float> both(static_cast<std::size_t>(2 * size));  // gate above up
        for (std::size_t e = 0; e < weights.gate.size(); ++e) {
            std::copy_n(weights.gate[e], size, both.data());
            std::copy_n(weights.up[e], size, both.data() + size);
            gate_up_.push_back(in_.prepare(stream_, both.data()));
            down_.push_back(out_.prepare(stream_, weights.down[e]));
        }
    }

    void set_threads(int threads) override {
#if defined(_OPENMP)
        omp_set_num_threads(threads);
#endif
        router_.forget(), in_.forget(), out_.forget();
    }

    void forward(const float* x, float* y, Index count) override {
        const Index dim = shape_.dim, ffn = shape_.ffn;
        logits_.resize(static_cast<std::size_t>(count * shape_.experts));
        router_.run(stream_, count, const_cast<float*>(x), router_weight_, logits_.data());
        routing_.route(logits_.data(), count, shape_.experts, shape_.k);
        std::fill_n(y, count * dim, 0.0f);
        for (std::size_t e = 0; e < routing_.tokens.size(); ++e) {
            const Index rows = static_cast<Index>(routing_.tokens[e].size());
            if (rows == 0) continue;
            const Index* const tokens = routing_.tokens[e].data();
            const float* const weights = routing_.weights[e].data();
            grow(rows);
#pragma omp parallel for
            for (Index i = 0; i < rows; ++i)
                input(gathered_, i, dim) = floats(x, tokens[i], dim).template cast<Input>();
            in_.run(stream_, rows, gathered_.data(), gate_up_[e], hidden_.data());
#pragma omp parallel for
            for (Index i = 0; i < rows; ++i) {
                const auto gate = floats(hidden_.data(), 2 * i, ffn),
                           up = floats(hidden_.data(), 2 * i + 1, ffn);
                input(activated_, i, ffn) =
                    (gate / (1 + (-gate).exp()) * up).template cast<Input>();
            }
            out_.run(stream_, rows, activated_.data(), down_[e], outputs_.data());
#pragma omp parallel for
            for (Index i = 0; i < rows; ++i)
                Eigen::Map<Eigen::ArrayXf>(y + tokens[i] * dim, dim) +=
                    weights[i] * floats(outputs_.data(), i, dim);
        }
    }

private:
    static Eigen::Map<const Eigen::ArrayXf> floats(const float* matrix, Index row, Index columns) {
        return {matrix + row * columns, columns};
    }
    static Eigen::Map<Eigen::Array<Input, Eigen::Dynamic, 1>> input(std::vector<Input>& matrix,
                                                                    Index row, Index columns) {
        return {matrix.data() + row * columns, columns};
    }
    void grow(Index rows) {
        const auto size = [rows](Index columns) {
            return static_cast<std::size_t>(rows * columns);
        };
        gathered_.resize(std::max(gathered_.size(), size(shape_.dim)));
        hidden_.resize(std::max(hidden_.size(), size(2 * shape_.ffn)));
        activated_.resize(std::max(activated_.size(), size(shape_.ffn)));
        outputs_.resize(std::max(outputs_.size(), size(shape_.dim)));
    }

    Shape shape_;
    dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
    dnnl::stream stream_;
    Product router_, in_, out_;
    dnnl::memory router_weight_;
    std::vector<dnnl::memory> gate_up_, down_;  // per expert
    PeerRouting routing_;
    std::vector<float> logits_, hidden_, outputs_;
    std::vector<Input> gathered_, activated_;
};

}  // namespace

std::unique_ptr<PeerLayer> make_onednn_layer(const PeerLayer::Shape& shape,
                                             const PeerLayer::Weights& weights, bool bf16) {
    try {
        if (bf16) return std::make_unique<OneDnnLayer<Eigen::bfloat16>>(shape, weights);
        return std::make_unique<OneDnnLayer<float>>(shape, weights);
    } catch (const dnnl::error&) {
        return nullptr;
    }
}
