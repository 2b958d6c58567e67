// SPDX-License-Identifier: MIT
// Trains a small image classifier on Fashion-MNIST three times: with a dense feed-forward block,
// with the top 2 of 8 experts, and with a dynamic number of experts of different kinds. Prints one
// table and writes a heat map of which expert sees which part of which image.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include <moe/io/file.hpp>
#include <moe/moe.hpp>
#include <moe/stats/svg.hpp>

#include "network.hpp"

namespace {

struct Options {
    std::string data = "/usr/share/datasets/fashion-mnist", out = "fashion_mnist.svg";
    std::uint64_t seed = 1;
    int epochs = 4, threads = 0;
};

/// What one model did on the test images.
struct Result {
    std::string name;
    double accuracy = 0, experts_per_token = 0, flops_per_token = 0, seconds = 0, max_over_mean = 0,
           router_entropy = 0;
    Matrix<double> by_patch, by_class;  // [E, P], [E, 10] share of the tokens that an expert got
};

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

void shuffle(std::vector<Index>& order, moe::Random random) {
    for (std::size_t i = order.size(); i > 1; --i)
        std::swap(order[i - 1],
                  order[static_cast<std::size_t>(random.uniform() * static_cast<double>(i))]);
}

/// Accuracy and routing statistics on `images`.
template <class Layer>
void evaluate(Network<Layer>& network, const Images& images, Result& result) {
    using Net = Network<Layer>;
    const Index experts = network.moe.num_experts();
    result.by_patch = Matrix<double>::Zero(experts, Net::tokens);
    result.by_class = Matrix<double>::Zero(experts, Images::classes);
    std::vector<Index> order(static_cast<std::size_t>(images.size()));
    std::iota(order.begin(), order.end(), Index{0});
    Eigen::VectorXd of_class = Eigen::VectorXd::Zero(Images::classes);
    const std::size_t batch = 500;
    double right = 0, routed = 0, flops = 0, entropy = 0;
    for (std::size_t first = 0; first < order.size(); first += batch) {
        const std::span part =
            std::span<const Index>(order).subspan(first, std::min(batch, order.size() - first));
        const Matrix<float>& logits = network.forward(images, part);
        const moe::Routing& routing = network.ws.routing();
        for (std::size_t b = 0; b < part.size(); ++b) {
            const auto label = static_cast<Index>(images.labels[static_cast<std::size_t>(part[b])]);
            Index guess = 0;
            logits.row(static_cast<Index>(b)).maxCoeff(&guess);
            right += guess == label;
            of_class(label) += static_cast<double>(Net::tokens);
            for (Index p = 0; p < Net::tokens; ++p)
                for (const moe::Assignment& a :
                     routing.of(static_cast<Index>(b) * Net::tokens + p)) {
                    result.by_patch(a.expert, p) += 1;
                    result.by_class(a.expert, label) += 1;
                }
        }
        const auto tokens = static_cast<double>(routing.num_tokens());
        routed += static_cast<double>(routing.num_kept());
        flops += moe::active_flops(network.moe, routing) * tokens;
        entropy += moe::router_stats(network.ws).entropy * tokens;
    }
    const auto count = static_cast<double>(images.size()),
               tokens = count * static_cast<double>(Net::tokens);
    const Eigen::VectorXd load = result.by_patch.rowwise().sum();
    result.accuracy = 100 * right / count;
    result.experts_per_token = routed / tokens;
    result.flops_per_token = flops / tokens;
    result.max_over_mean = load.maxCoeff() / load.mean();
    result.router_entropy = entropy / tokens;
    result.by_patch /= count;
    result.by_class.array().rowwise() /= of_class.transpose().array();
}

/// Trains `layer` and tests it. `losses` adds auxiliary losses after each forward pass.
template <class Layer, class Losses>
Result run(const std::string& name, const Layer& layer, const Images& train, const Images& test,
           const Options& options, const Losses& losses) {
    Network<Layer> network(layer, options.seed);
    if (options.threads > 0) network.ws.threads(options.threads);
    const Index batch = 125, steps = train.size() / batch;
    std::vector<Index> order(static_cast<std::size_t>(train.size()));
    std::iota(order.begin(), order.end(), Index{0});
    const double start = now();
    double loss = 0;
    for (int epoch = 0; epoch < options.epochs; ++epoch) {
        shuffle(order, moe::Random(options.seed, 1000 + static_cast<std::uint64_t>(epoch)));
        for (Index step = 0; step < steps; ++step) {
            const std::span part = std::span<const Index>(order).subspan(
                static_cast<std::size_t>(step * batch), static_cast<std::size_t>(batch));
            network.context.training = true;
            network.context.step = static_cast<std::uint64_t>(epoch * steps + step);
            network.forward(train, part);
            losses(network.ws);
            const double now_loss = network.backward(train, part);
            loss = step == 0 && epoch == 0 ? now_loss : 0.98 * loss + 0.02 * now_loss;
            const double done = static_cast<double>(epoch * steps + step) /
                                static_cast<double>(options.epochs * steps);
            network.step(static_cast<float>(2e-3 * 0.5 * (1 + std::cos(3.14159265 * done)) *
                                            std::min(1.0, 100 * done + 0.02)));
            if (step % 20 == 0) {
                std::printf("\r%-14s epoch %d/%d  %3.0f %%  loss %.3f  %.0f s ", name.c_str(),
                            epoch + 1, options.epochs, 100 * done, loss, now() - start);
                std::fflush(stdout);
            }
        }
    }
    Result result;
    result.name = name;
    result.seconds = now() - start;
    network.context.training = false;
    evaluate(network, test, result);
    std::printf("\r%70s\r", "");
    return result;
}

void print(const std::vector<Result>& results) {
    std::printf("%-16s %9s %12s %12s %9s %9s %9s\n", "model", "test acc", "experts/tok",
                "FLOP/token", "seconds", "max/mean", "entropy");
    for (const Result& r : results)
        std::printf("%-16s %7.2f %% %12.2f %12.0f %9.1f %9.2f %9.2f\n", r.name.c_str(), r.accuracy,
                    r.experts_per_token, r.flops_per_token, r.seconds, r.max_over_mean,
                    r.router_entropy);
}

/// Two pictures, one above the other.
std::string stacked(const std::string& above, const std::string& below) {
    const auto extent = [](const std::string& svg, const char* name) {
        return std::atof(svg.c_str() + svg.find(std::string(name) + "=\"") + std::strlen(name) + 2);
    };
    const double width = std::max(extent(above, "width"), extent(below, "width"));
    const double height = extent(above, "height");
    const std::string all = std::to_string(height + extent(below, "height"));
    return "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" + std::to_string(width) +
           "\" height=\"" + all + "\">\n" + above + "<g transform=\"translate(0 " +
           std::to_string(height) + ")\">\n" + below + "</g>\n</svg>\n";
}

/// Which expert sees which part of the image, and which class.
void draw(const Result& result, const std::vector<std::string>& experts, Index grid,
          const std::string& path) {
    std::vector<moe::HeatMapPanel> panels;
    for (std::size_t e = 0; e < experts.size(); ++e) {
        const auto row = static_cast<Index>(e);
        panels.push_back({experts[e], Eigen::Map<const Matrix<double>>(
                                          result.by_patch.row(row).data(), grid, grid)});
    }
    const std::string patches = moe::svg_heat_maps(
        panels, {.title = "Which expert looks where (" + result.name + ")",
                 .value_title = "share of the test images' patches that go to the expert",
                 .cell = 22,
                 .numbers = false,
                 .panels_per_row = 6});
    const std::string classes = moe::svg_heat_map(
        result.by_class, {.title = "Which expert works on what",
                          .row_labels = experts,
                          .column_labels = {Images::names.begin(), Images::names.end()},
                          .value_title = "share of the class's patches that go to the expert",
                          .cell = 46});
    const std::string svg = stacked(patches, classes);
    moe::write_file(path, std::as_bytes(std::span(svg)));
    std::printf("wrote %s\n", path.c_str());
}

Options parse(int argc, char** argv) {
    Options options;
    for (int i = 1; i < argc; i += 2) {
        const std::string_view flag = argv[i];
        if (i + 1 == argc) throw std::invalid_argument(std::string(flag) + " wants a value");
        const std::string value = argv[i + 1];
        const auto number = [&](long least) {
            char* end = nullptr;
            const long parsed = std::strtol(value.c_str(), &end, 10);
            if (value.empty() || *end != 0 || parsed < least || parsed > 1000000)
                throw std::invalid_argument(
                    std::string(flag) + " is " + value +
                    ", it must be a whole number >= " + std::to_string(least));
            return parsed;
        };
        if (flag == "--data")
            options.data = value;
        else if (flag == "--out")
            options.out = value;
        else if (flag == "--seed")
            options.seed = static_cast<std::uint64_t>(number(0));
        else if (flag == "--epochs")
            options.epochs = static_cast<int>(number(1));
        else if (flag == "--threads")
            options.threads = static_cast<int>(number(1));
        else
            throw std::invalid_argument(
                "unknown option " + std::string(flag) +
                "; known: --data DIR --out FILE --seed N --epochs N --threads N");
    }
    return options;
}

void demo(const Options& options) {
    const Images train = read_images(options.data, "train");
    const Images test = read_images(options.data, "t10k");
    std::printf("Fashion-MNIST: %td training and %td test images, seed %llu, %d epochs\n",
                train.size(), test.size(), static_cast<unsigned long long>(options.seed),
                options.epochs);

    const moe::Config config{.model_dim = 64, .seed = options.seed};
    std::vector<Result> results;

    const moe::Layer dense{config, moe::LinearRouter{}, moe::TopK{.k = 1},
                           moe::Swiglu{.count = 1, .ffn_dim = 256}};
    results.push_back(run("dense", dense, train, test, options, [](auto&) {}));

    const moe::Layer top2{config, moe::LinearRouter{}, moe::TopK{.k = 2},
                          moe::Swiglu{.count = 8, .ffn_dim = 128}};
    results.push_back(run("top-2 of 8", top2, train, test, options,
                          [](auto& ws) { moe::load_balance_loss(ws, 0.01); }));

    const moe::Layer dynamic{
        config,
        moe::LinearRouter{},
        moe::TopP{.p = 0.6f, .max_experts = 3},
        moe::Swiglu{.count = 8, .ffn_dim = 96},
        moe::Zero{},
        moe::Copy{},
        moe::Constant{.count = 2},
        moe::Shared{moe::Swiglu{.count = 1, .ffn_dim = 96}},
    };
    results.push_back(run("dynamic", dynamic, train, test, options, [](auto& ws) {
        moe::load_balance_loss(ws, 0.01);
        moe::entropy_loss(ws, 1e-3);
    }));
    print(results);
    draw(results.back(),
         {"SwiGLU 0", "SwiGLU 1", "SwiGLU 2", "SwiGLU 3", "SwiGLU 4", "SwiGLU 5", "SwiGLU 6",
          "SwiGLU 7", "zero", "copy", "constant 0", "constant 1"},
         Network<decltype(dynamic)>::grid, options.out);
}

}  // namespace

int main(int argc, char** argv) {
    try {
        demo(parse(argc, argv));
    } catch (const std::invalid_argument& error) {
        std::fprintf(stderr, "fashion_mnist: %s\n", error.what());
        return 2;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "fashion_mnist: %s\n", error.what());
        return 1;
    }
}
