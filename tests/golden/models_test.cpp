// SPDX-License-Identifier: MIT
// The program run_layer on every folder of models/: from config.json and safetensors files as they
// are published to what the published code computes. See generate_models.py.

#include <sys/wait.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/checkpoint.hpp>
#include <moe/io/file.hpp>
#include <moe/io/routing.hpp>
#include <moe/io/safetensors_writer.hpp>
#include <moe/testing/compare.hpp>

namespace models_test {
namespace {

#ifdef MOE_RUN_LAYER
const std::string program = MOE_RUN_LAYER;
#else
const std::string program;  // it is not built without nlohmann-json
#endif

using moe::Checkpoint, moe::Index, moe::Matrix;
using moe::testing::compare;
namespace fs = std::filesystem;

const fs::path models = "tests/golden/models";
const std::vector<std::string> names = {"dbrx",
                                        "deepseek",
                                        "deepseek_v2",
                                        "deepseek_v3",
                                        "deepseek_v3_fp8",
                                        "dynamic_moe",
                                        "ernie4_5_moe",
                                        "glm4_moe",
                                        "gpt_oss",
                                        "gpt_oss_mxfp4",
                                        "granitemoe",
                                        "granitemoeshared",
                                        "hunyuan_v1_moe",
                                        "jamba",
                                        "kimi_k2",
                                        "llama4",
                                        "longcat_flash",
                                        "minimax",
                                        "minimax_m2",
                                        "mixtral",
                                        "moe_plus_plus",
                                        "nllb_moe",
                                        "olmoe",
                                        "phimoe",
                                        "qwen2_moe",
                                        "qwen3_moe",
                                        "qwen3_next",
                                        "qwen3_vl_moe",
                                        "qwen3_vl_moe_saved",
                                        "switch_transformers",
                                        "uni_moe_2"};

/// Of 8 bits per weight; the models are so narrow that nothing averages out.
constexpr double int8_tolerance = 0.05;

/// A file in this program's temporary folder.
std::string temporary(const std::string& name) { return ::testing::TempDir() + "/models_" + name; }

struct Result {
    int status = -1;
    std::string text;  ///< of stdout and stderr
};

Result run(const std::string& arguments) {
    const std::string command = program + " " + arguments + " 2>&1";
    Result result;
    FILE* const pipe = popen(command.c_str(), "r");
    if (pipe == nullptr) return result;
    std::array<char, 4096> part{};
    while (const std::size_t size = std::fread(part.data(), 1, part.size(), pipe))
        result.text.append(part.data(), size);
    const int status = pclose(pipe);
    if (WIFEXITED(status)) result.status = WEXITSTATUS(status);
    return result;
}

void write(const std::string& path, const moe::SafetensorsWriter& writer) {
    moe::write_file(path, writer.bytes());
}

/// A batch that was recorded of a layer.
struct Batch {
    std::string at;   ///< begins the names of its tensors: "t7.", "decoder.t1."
    Index layer = 0;  ///< as run_layer counts: the decoder's behind those of the encoder
};

/// A folder: what the model's own code computed.
class Model {
public:
    explicit Model(const std::string& name)
        : name_(name),
          bytes_(moe::read_file((models / name / "expected.safetensors").string())),
          file_(bytes_) {
        for (const auto& [key, value] : file_.metadata())
            if (key == "golden") golden_ = value;
        constexpr std::string_view layer = "\"layer\": ", begin = "\"at\": \"";
        for (std::size_t i = golden_.find(layer); i != golden_.npos;
             i = golden_.find(layer, i + 1)) {
            Index number = std::atoi(golden_.c_str() + i + layer.size());
            const std::size_t from = golden_.find(begin, i) + begin.size();
            const std::string at = golden_.substr(from, golden_.find('"', from) - from);
            if (at == "decoder.") number += 2;  // layers of the encoder
            for (const char* const batch : {"t7.", "t1."}) batches_.push_back({at + batch, number});
        }
    }

    std::string folder() const { return (models / name_).string(); }
    const moe::SafetensorsView& file() const { return file_; }
    const std::vector<Batch>& batches() const { return batches_; }
    bool has_slots() const { return golden_.find("\"slots\": \"not defined\"") == golden_.npos; }

    Matrix<float> read(const std::string& name) const { return file_.copy<float>(name); }

private:
    std::string name_;
    std::vector<std::byte> bytes_;
    moe::SafetensorsView file_;
    std::string golden_;
    std::vector<Batch> batches_;
};

/// The same weights in bfloat16, which they all are; scales of codes may be more precise.
std::string bf16_copy(const std::string& folder, const std::string& name) {
    const std::string copy = temporary(name);
    fs::create_directories(copy);
    fs::copy_file(folder + "/config.json", copy + "/config.json",
                  fs::copy_options::overwrite_existing);
    const Checkpoint checkpoint = Checkpoint::open(folder);
    moe::SafetensorsWriter writer;
    for (const moe::TensorView& tensor : checkpoint) {
        bool is_exact = tensor.dtype == moe::Dtype::f32;
        std::vector<Eigen::bfloat16> values;
        if (is_exact) {
            const Matrix<float> wide = tensor.copy<float>();
            for (Index i = 0; i < wide.size(); ++i) {
                values.push_back(static_cast<Eigen::bfloat16>(wide.data()[i]));
                is_exact = is_exact && static_cast<float>(values.back()) == wide.data()[i];
            }
        }
        if (is_exact)
            writer.add(tensor.name, std::span<const Eigen::bfloat16>(values), tensor.shape);
        else
            writer.add_view(tensor);
    }
    write(copy + "/model.safetensors", writer);
    return copy;
}

/// Who works on which token, and with which weight: [T, L], 0 for who does not.
Matrix<double> weights_by_expert(const Matrix<std::int64_t>& ids, const Matrix<float>& weights,
                                 Index experts) {
    Matrix<double> all = Matrix<double>::Zero(ids.rows(), experts);
    for (Index t = 0; t < ids.rows(); ++t)
        for (Index k = 0; k < ids.cols(); ++k)
            if (ids(t, k) >= 0) all(t, ids(t, k)) += 1 + static_cast<double>(weights(t, k));
    return all;
}

/// The expert numbers of every token in ascending order.
Matrix<std::int64_t> sorted(Matrix<std::int64_t> ids) {
    for (Index t = 0; t < ids.rows(); ++t)
        std::sort(ids.data() + t * ids.cols(), ids.data() + (t + 1) * ids.cols());
    return ids;
}

class EveryModel : public ::testing::TestWithParam<std::string> {
protected:
    void SetUp() override {
        if (program.empty()) GTEST_SKIP() << "run_layer is not built: it needs nlohmann-json";
    }

    /// Runs one batch and reads what was written.
    std::vector<std::byte> outputs(const Model& model, const Batch& batch,
                                   const std::string& folder, const std::string& options) {
        const std::string in = temporary("in.safetensors"), out = temporary("out.safetensors");
        fs::remove(out);
        moe::SafetensorsWriter input;
        for (const char* const name : {"hidden_states", "grad_output"})
            input.add(name, model.read(batch.at + name));
        if (batch.at.starts_with("1."))  // MoE++
            input.add("previous_logits", model.read("0." + batch.at.substr(2) + "router_logits"));
        if (passed_.size() != 0 && batch.at.starts_with("0."))
            input.add("grad_router_logits", passed_);
        write(in, input);
        const Result result =
            run("--model " + folder + " --layer " + std::to_string(batch.layer) + " --input " + in +
                " --output " + out + " --threads 1 " + options);
        EXPECT_EQ(result.status, 0) << result.text;
        return result.status == 0 ? moe::read_file(out) : std::vector<std::byte>{};
    }

    Matrix<float> passed_;  ///< what a layer says of the logits of the one before
};

void expect_close(const Model& model, const Batch& batch, const moe::SafetensorsView& actual,
                  const std::string& name, double tolerance, bool allow_zeros) {
    EXPECT_TRUE(compare(actual.copy<float>(name), model.read(batch.at + name), tolerance,
                        {.allow_zeros = allow_zeros}))
        << name;
}

void expect_choices(const Model& model, const Batch& batch, const moe::SafetensorsView& actual) {
    const auto ids = actual.integers("expert_ids");
    const auto expected = model.file().integers(batch.at + "expert_ids");
    EXPECT_TRUE(moe::testing::same_bits(sorted(ids), sorted(expected), {.allow_zeros = true}));
    if (model.has_slots()) {
        EXPECT_TRUE(moe::testing::same_bits(ids, expected, {.allow_zeros = true}));
    }
    const Index experts = actual.at("router_logits").cols();
    EXPECT_TRUE(
        compare(weights_by_expert(ids, actual.copy<float>("expert_weights"), experts),
                weights_by_expert(expected, model.read(batch.at + "expert_weights"), experts), 1e-5,
                {.allow_zeros = true}));
}

TEST_P(EveryModel, choosesComputesAndLearnsAsPublished) {
    const Model model(GetParam());
    ASSERT_FALSE(model.batches().empty());
    std::vector<Batch> batches = model.batches();
    if (batches.front().at.starts_with("0."))  // a layer's gradient depends on those behind it
        batches = {batches[2], batches[0], batches[3], batches[1]};
    for (const Batch& batch : batches) {
        SCOPED_TRACE(batch.at);
        const bool one_token = batch.at.ends_with("t1.");
        const auto bytes = outputs(model, batch, model.folder(), "--backward");
        if (bytes.empty()) continue;
        const moe::SafetensorsView actual(bytes);
        expect_choices(model, batch, actual);
        expect_close(model, batch, actual, "router_logits", 1e-5, false);
        expect_close(model, batch, actual, "output", 1e-5, one_token);
        expect_close(model, batch, actual, "grad_input", 1e-4, one_token);
        Index gradients = 0;
        for (const moe::TensorView& tensor : model.file()) {
            if (!tensor.name.starts_with(batch.at + "grad.")) continue;
            const std::string name(tensor.name.substr(batch.at.size()));
            ++gradients;
            if (actual.find(name) != nullptr)
                expect_close(model, batch, actual, name, 1e-4, true);
            else  // the first layer of MoE++ has a matrix that it does not use
                EXPECT_EQ(tensor.copy<float>().cwiseAbs().maxCoeff(), 0) << name;
        }
        EXPECT_GT(gradients, 0);
        if (actual.find("grad_previous_logits") != nullptr)
            passed_ = actual.copy<float>("grad_previous_logits");
    }
}

TEST_P(EveryModel, computesTheSameFromBfloat16AsViewsAndPacked) {
    const Model model(GetParam());
    const std::string copy = bf16_copy(model.folder(), GetParam());
    // A code of FP8 times a scale has more bits than bfloat16.
    const double bf16_tolerance = GetParam() == "deepseek_v3_fp8" ? 1.0 / 256 : 1e-5;
    for (const Batch& batch : model.batches())
        for (const auto& [options, tolerance] :
             {std::pair{"", 1e-5}, std::pair{"--storage bf16", bf16_tolerance},
              std::pair{"--storage int8", int8_tolerance}}) {
            SCOPED_TRACE(batch.at + options);
            const auto bytes = outputs(model, batch, copy, options);
            if (bytes.empty()) continue;
            const moe::SafetensorsView actual(bytes);
            expect_choices(model, batch, actual);
            expect_close(model, batch, actual, "output", tolerance, batch.at.ends_with("t1."));
        }
}

INSTANTIATE_TEST_SUITE_P(Models, EveryModel, ::testing::ValuesIn(names),
                         [](const auto& of) { return of.param; });

TEST(Models, areThoseListedHere) {
    std::set<std::string> found;
    for (const auto& entry : fs::directory_iterator(models))
        found.insert(entry.path().filename().string());
    EXPECT_EQ(found, std::set<std::string>(names.begin(), names.end()));
}

/// What the program says of wrong input, and with which status it ends.
class RunLayer : public ::testing::Test {
protected:
    void SetUp() override {
        if (program.empty()) GTEST_SKIP() << "run_layer is not built: it needs nlohmann-json";
        fs::remove(output_);
    }

    /// A folder with a model's config.json, `text` in it replaced, and all tensors that `keep`.
    template <class Keep>
    std::string changed(const std::string& name, const std::string& text, const std::string& by,
                        const Keep& keep) {
        const std::string folder = temporary("changed");
        fs::create_directories(folder);
        const auto bytes = moe::read_file((models / name / "config.json").string());
        std::string config(reinterpret_cast<const char*>(bytes.data()), bytes.size());
        if (!text.empty()) config.replace(config.find(text), text.size(), by);
        moe::write_file(folder + "/config.json", std::as_bytes(std::span(config)));
        const Checkpoint checkpoint = Checkpoint::open((models / name).string());
        moe::SafetensorsWriter writer;
        for (const moe::TensorView& tensor : checkpoint)
            if (keep(tensor.name)) writer.add_view(tensor);
        write(folder + "/model.safetensors", writer);
        return folder;
    }
    std::string changed(const std::string& name, const std::string& text, const std::string& by) {
        return changed(name, text, by, [](std::string_view) { return true; });
    }

    /// A file with one tensor of ones.
    std::string input(const std::string& name, Index rows, Index cols) {
        const std::string path = temporary("input.safetensors");
        moe::SafetensorsWriter writer;
        writer.add(name, Matrix<float>::Ones(rows, cols));
        write(path, writer);
        return path;
    }
    Result run_model(const std::string& folder, const std::string& in, int layer = 1,
                     const std::string& options = "") {
        return run("--model " + folder + " --layer " + std::to_string(layer) + " --input " + in +
                   " --output " + output_ + " " + options);
    }

    /// Status 1, one sentence at the end that says `part`, and nothing written.
    void expect_refused(const Result& result, const std::string& part) {
        EXPECT_EQ(result.status, 1) << result.text;
        const std::size_t sentence = result.text.find("run_layer: ");
        ASSERT_NE(sentence, result.text.npos) << result.text;
        EXPECT_NE(result.text.find(part, sentence), result.text.npos) << result.text;
        EXPECT_EQ(result.text.find('\n', sentence), result.text.size() - 1) << result.text;
        EXPECT_FALSE(fs::exists(output_));
    }

    const std::string output_ = temporary("output.safetensors");
    const std::string mixtral_ = (models / "mixtral").string();
};

TEST_F(RunLayer, explainsItselfWhenCalledWrongly) {
    const std::string all = "--model m --layer 1 --input i --output o ";
    for (const auto& [arguments, message] : std::vector<std::pair<std::string, std::string>>{
             {"", "--model is missing"},
             {"--model m --input i --output o", "--layer is missing"},
             {"--model m --layer 1 --output o", "--input is missing"},
             {"--model m --layer 1 --input i", "--output is missing"},
             {"--model", "--model wants a value"},
             {all + "--modle m", "unknown option --modle"},
             {all + "--layer 1x", "--layer is 1x, it must be a whole number >= 0"},
             {all + "--layer -1", "--layer is -1, it must be a whole number >= 0"},
             {all + "--threads 0", "--threads is 0, it must be a whole number >= 1"},
             {all + "--storage int4", "--storage is int4, it must be fp32, bf16 or int8"},
             {all + "--storage bf16 --backward", "packed layers have no backward"}}) {
        const Result result = run(arguments);
        EXPECT_EQ(result.status, 2) << arguments;
        EXPECT_TRUE(result.text.starts_with("run_layer: " + message)) << result.text;
        EXPECT_NE(result.text.find("\nusage: run_layer --model DIR"), result.text.npos);
    }
    const Result help = run("--help");
    EXPECT_EQ(help.status, 0);
    EXPECT_TRUE(help.text.starts_with("usage: run_layer --model DIR")) << help.text;
}

TEST_F(RunLayer, refusesModelsThatItDoesNotKnow) {
    const std::string in = input("hidden_states", 2, 16);
    expect_refused(run_model("no/such/folder", in), "no/such/folder/config.json");
    const Result unknown = run_model(changed("mixtral", "\"mixtral\"", "\"gpt2\""), in);
    expect_refused(
        unknown,
        "the architecture \"gpt2\" is not known; known are MoE++, UniMoEV2_qwen2_vl, dbrx, ");
    expect_refused(run_model(changed("mixtral", "\"model_type\"", "\"type\""), in),
                   "\"model_type\" is missing");
    expect_refused(run_model(changed("mixtral", "\"num_local_experts\"", "\"experts\""), in),
                   "\"num_local_experts\" is missing");
    expect_refused(run_model(changed("mixtral", "{", "[{"), in), "config.json is no JSON object");
}

TEST_F(RunLayer, saysWhichLayersHaveExperts) {
    const std::string in = input("hidden_states", 2, 16);
    expect_refused(run_model((models / "qwen2_moe").string(), in, 0),
                   "layer 0 has no experts in this model; layers that have some: 1");
    expect_refused(run_model(mixtral_, in, 7),
                   "layer 7 has no experts in this model; layers that have some: 0 to 1");
    expect_refused(run_model((models / "nllb_moe").string(), in, 2),
                   "layer 2 has no experts in this model; layers that have some: 1, 3");
    const auto none = [](std::string_view name) { return name == "model.embed_tokens.weight"; };
    expect_refused(run_model(changed("mixtral", "", "", none), in),
                   "layer 1 has no experts in this model, nor has any other");
}

TEST_F(RunLayer, refusesCheckpointsThatAreNotWhole) {
    const std::string in = input("hidden_states", 2, 16);
    const std::string lost = "model.layers.1.block_sparse_moe.experts.4.w3.weight";
    const std::string folder =
        changed("mixtral", "", "", [&](std::string_view name) { return name != lost; });
    expect_refused(run_model(folder, in), lost);
    expect_refused(
        run_model(changed("mixtral", "\"num_local_experts\": 9", "\"num_local_experts\": 8"), in),
        "[9, 16]");
    const std::string file = folder + "/model.safetensors";
    fs::resize_file(file, fs::file_size(file) - 1);
    expect_refused(run_model(folder, in), "model.safetensors");
    fs::remove(file);
    expect_refused(run_model(folder, in), "has neither model.safetensors.index.json nor");
}

TEST_F(RunLayer, refusesInputThatDoesNotFit) {
    expect_refused(run_model(mixtral_, "no_such_file"), "no_such_file");
    expect_refused(run_model(mixtral_, mixtral_ + "/config.json"), "");
    expect_refused(run_model(mixtral_, input("hidden_state", 2, 16)), "\"hidden_states\"");
    expect_refused(run_model(mixtral_, input("hidden_states", 2, 15)),
                   "the input's hidden_states is [2, 15], it must be [2, 16]");
    expect_refused(run_model(mixtral_, input("hidden_states", 2, 16), 1, "--backward"),
                   "\"grad_output\"");
    expect_refused(run_model((models / "moe_plus_plus").string(), input("hidden_states", 2, 16)),
                   "the input has no previous_logits");
    const std::string in = input("hidden_states", 2, 16);
    const Result result = run("--model " + mixtral_ + " --layer 1 --input " + in +
                              " --output no/such/folder/output.safetensors");
    expect_refused(result, "no/such/folder/output.safetensors");
}

TEST_F(RunLayer, takesNoTokensAndNarrowTypes) {
    EXPECT_EQ(run_model(mixtral_, input("hidden_states", 0, 16)).status, 0);
    const auto empty = moe::read_file(output_);
    EXPECT_EQ(moe::SafetensorsView(empty).at("output").shape, (moe::Extents{0, 16}));

    const std::string path = temporary("narrow.safetensors");
    moe::SafetensorsWriter writer;
    writer.add("hidden_states", Matrix<Eigen::half>::Constant(3, 16, Eigen::half(0.5f)));
    write(path, writer);
    EXPECT_EQ(run_model(mixtral_, path).status, 0);
    const auto bytes = moe::read_file(output_);
    const auto y = moe::SafetensorsView(bytes).copy<float>("output");
    EXPECT_TRUE(moe::testing::same_bits(y.row(0), y.row(2)));
}

TEST_F(RunLayer, writesTheRoutingAndPrintsTheLoad) {
    const std::string routing = temporary("routing.safetensors");
    const Result result = run_model(mixtral_, input("hidden_states", 5, 16), 1,
                                    "--stats --threads 2 --routing " + routing);
    EXPECT_EQ(result.status, 0) << result.text;
    EXPECT_NE(result.text.find("5 tokens, 9 experts, 3.00 experts per token"), result.text.npos)
        << result.text;
    EXPECT_NE(result.text.find("model-00002-of-00002.safetensors (2 of 2)"), result.text.npos);
    const moe::Routing read = moe::load_routing(moe::read_file(routing));
    const auto bytes = moe::read_file(output_);
    const auto ids = moe::SafetensorsView(bytes).integers("expert_ids");
    ASSERT_EQ(read.num_tokens(), 5);
    for (const moe::Assignment& a : read.assignments()) EXPECT_EQ(a.expert, ids(a.token, a.slot));
}

}  // namespace
}  // namespace models_test
