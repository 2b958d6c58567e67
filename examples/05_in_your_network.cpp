// SPDX-License-Identifier: MIT
// A layer inside a network that has its own buffers, raw pointers and threads: views of memory, one
// workspace per thread, a frozen copy for inference.
//     g++ -std=c++20 -O2 -I include -I /usr/include/eigen3 examples/05_in_your_network.cpp -o net && ./net
// prints: 2 threads, one layer, the same bits: yes
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include <moe/moe.hpp>

using Layer = moe::Layer<float, moe::LinearRouter, moe::TopK, moe::Swiglu>;  // as a class member

struct Block {  // y = x + moe(x), over plain arrays
    Layer layer{moe::Config{.model_dim = 48}, moe::LinearRouter{}, moe::TopK{.k = 2},
                moe::Swiglu{.count = 4, .ffn_dim = 96}};

    /// x, y: `tokens` rows of 48 floats, `stride` floats apart
    void forward(const float* x, float* y, long tokens, long stride, moe::Workspace<float>& ws) const {
        const moe::ConstView<float> in(x, tokens, 48, Eigen::OuterStride<>(stride));
        moe::View<float> out(y, tokens, 48, Eigen::OuterStride<>(stride));
        layer.forward(in, out, ws);
        out += in;
    }
};

int main() {
    const Block block;
    std::vector<float> x(10 * 64, 0.5f), y0(x), y1(x);

    moe::SerialExecutor serial;  // your threads are yours: ours stay out of the way
    const auto work = [&](std::vector<float>& y) {
        moe::Workspace<float> ws(serial);
        ws.keep(moe::Keep::nothing);
        block.forward(x.data(), y.data(), 10, 64, ws);
    };
    std::thread other([&] { work(y1); });
    work(y0);
    other.join();
    const bool same = std::memcmp(y0.data(), y1.data(), y0.size() * sizeof(float)) == 0;
    std::printf("2 threads, one layer, the same bits: %s\n", same ? "yes" : "no");

    const auto frozen = moe::freeze(block.layer);  // weights packed for this machine, same bits
    Eigen::MatrixXf columns = Eigen::MatrixXf::Random(48, 3), out(48, 3);  // tokens are columns here
    moe::Workspace<float> ws;
    frozen.forward(columns.transpose(), out.transpose(), ws);
    std::printf("out(0, 0) = %g\n", static_cast<double>(out(0, 0)));
}
