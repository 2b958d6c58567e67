// SPDX-License-Identifier: MIT
// Whole layers against the same layer around other libraries, and against the machine.
//
//   forward/VARIANT/SHAPE/T:n/threads:m    a frozen layer, routing included
//   training/fp32/SHAPE/T:n/threads:m      forward and backward, all gradients; training/bf16
//                                          likewise with Compute::bf16
//   freeze/VARIANT/SHAPE/threads:m         packing, the first call, and the memory it takes
//   skew/VARIANT/SHAPE/...                 half of all tokens on one expert
//   free/VARIANT/SHAPE/tau:x/...           a third of the experts cost next to nothing
//   growth/fp32/SHAPE/...                  one number doubles from row to row
//   stages/fp32_forward/SHAPE/...          a frozen layer and the share of its time that each stage
//                                          takes by itself; fp32_backward likewise
//
// VARIANT is how weights are stored and, if not exactly, how they are multiplied: bf16, int4_int8.
// Competitors run in turn; figures are medians of 7 runs, of 3 from 1024 tokens on.
//
//   of_limit         time over max(FLOP / peak, bytes / read bandwidth), both measured here; bytes
//                    are the stored ones of the experts that were used
//   vs_naive         time of a loop over experts written with Eigen over ours, vs_onednn and
//                    vs_openblas likewise; those two are there if the libraries were found.
//                    vs_torch, of training/fp32, if it was configured with -DMOE_TORCH
//   vs_exact         time of a step with exact products over one in bf16
//   max_error        against double on the weights as stored, over the largest output; of_trained
//                    likewise on the weights before they were rounded
//   overhead         share of the layer outside its matrix products, these timed alone on gathered
//                    rows
//   rows_per_expert  mean of those that have rows
//
// Weights of `tiny` stay in the caches, and its limit is their bandwidth; before every run of the
// other shapes the caches are emptied.
//
// Another kind of row is a file layer/..._rows.hpp whose add_..._rows() registers it with add_row()
// of layer/race.hpp; main below calls it. Another variant is a line of `variants` in
// layer/shapes.hpp, another shape one of `shapes`; the rows, and the pictures that plot.py makes of
// them, follow.

#include <string>

#include <benchmark/benchmark.h>

#include "layer/forward_rows.hpp"
#include "layer/free_rows.hpp"
#include "layer/freeze_rows.hpp"
#include "layer/growth_rows.hpp"
#include "layer/skew_rows.hpp"
#include "layer/stage_rows.hpp"
#include "layer/training_rows.hpp"
#include "machine.hpp"

int main(int argc, char** argv) {
    bench::add_forward_rows();
    bench::add_freeze_rows();
    bench::add_training_rows();
    bench::add_skew_rows();
    bench::add_free_rows();
    bench::add_growth_rows();
    bench::add_stage_rows();
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
    benchmark::AddCustomContext("isa", moe::name(moe::isa()));
    for (const int threads : bench::thread_counts()) {
        const auto add = [threads](const std::string& what, const machine::Rate& rate) {
            benchmark::AddCustomContext(what + "/threads:" + std::to_string(threads),
                                        std::to_string(rate.per_second) + " " + rate.how);
        };
        for (const moe::Compute compute :
             {moe::Compute::exact, moe::Compute::bf16, moe::Compute::int8})
            add(std::string("peak_") + moe::name(compute), machine::peak(compute, threads));
        add("read_bandwidth", machine::read_bandwidth(threads));
    }
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
}
