// SPDX-License-Identifier: MIT
#ifndef MOE_IO_TRACE_HPP
#define MOE_IO_TRACE_HPP

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moe/core/dtype.hpp>
#include <moe/core/error.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/io/safetensors.hpp>
#include <moe/io/safetensors_writer.hpp>
#include <moe/io/text.hpp>
#include <moe/stats/trace.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// The bits of batch.given.
enum TraceGiven : std::uint8_t { token_ids_given = 1, token_groups_given = 2, padding_given = 4 };

/// What a trace holds, each kind of number in one list.
class TraceWriter {
public:
    explicit TraceWriter(const Trace& trace) {
        for (const TraceBatch& batch : trace.batches()) add(batch);
        for (const TraceRecord& record : trace.records()) add(record);
    }

    std::vector<std::byte> bytes() const {
        SafetensorsWriter writer;
        writer.add_metadata("format", "moe.trace");
        writer.add_metadata("version", "1");
        add_integers(writer, "batch.tokens", tokens_);
        if (!steps_.empty()) writer.add("batch.step", steps_);
        add_integers(writer, "batch.first_token", first_tokens_);
        add_integers(writer, "batch.given", given_);
        add_integers(writer, "batch.offsets", offset_counts_);
        add_integers(writer, "token_ids", token_ids_);
        add_integers(writer, "token_groups", token_groups_);
        add_integers(writer, "padding", padding_);
        add_integers(writer, "sequence_offsets", sequence_offsets_);
        add_integers(writer, "record.batch", batches_);
        add_integers(writer, "record.layer", layers_);
        add_integers(writer, "record.experts", num_experts_);
        add_integers(writer, "slots", slots_);
        add_integers(writer, "experts", experts_);
        add_weights(writer, "weights", weights_);
        const auto is_one = [](double weight) { return weight == 1; };
        if (!std::all_of(input_weights_.begin(), input_weights_.end(), is_one))
            add_weights(writer, "input_weights", input_weights_);
        const auto is_kept = [](std::uint8_t reason) { return reason == 0; };
        if (!std::all_of(dropped_.begin(), dropped_.end(), is_kept))
            add_integers(writer, "dropped", dropped_);
        return writer.bytes();
    }

private:
    template <class To, class From>
    static void append(std::vector<To>& to, const std::vector<From>& from) {
        to.insert(to.end(), from.begin(), from.end());
    }

    void add(const TraceBatch& batch) {
        tokens_.push_back(batch.num_tokens);
        steps_.push_back(batch.step);
        first_tokens_.push_back(batch.first_token);
        const int given = (batch.token_ids.empty() ? 0 : token_ids_given) |
                          (batch.token_groups.empty() ? 0 : token_groups_given) |
                          (batch.padding.empty() ? 0 : padding_given);
        given_.push_back(static_cast<std::uint8_t>(given));
        offset_counts_.push_back(static_cast<std::int64_t>(batch.sequence_offsets.size()));
        append(token_ids_, batch.token_ids);
        append(token_groups_, batch.token_groups);
        append(padding_, batch.padding);
        append(sequence_offsets_, batch.sequence_offsets);
    }

    void add(const TraceRecord& record) {
        batches_.push_back(record.batch);
        layers_.push_back(record.layer);
        num_experts_.push_back(record.num_experts);
        for (Index t = 0; t < record.num_tokens(); ++t)
            slots_.push_back(static_cast<std::int32_t>(record.first(t + 1) - record.first(t)));
        append(experts_, record.experts);
        append(weights_, record.weights);
        append(input_weights_, record.input_weights);
        input_weights_.resize(experts_.size(), 1);
        append(dropped_, record.dropped);
        dropped_.resize(experts_.size(), 0);
    }

    /// As the narrowest type that holds all of them.
    template <class T>
    static void add_integers(SafetensorsWriter& writer, const char* name,
                             const std::vector<T>& values) {
        if (values.empty()) return;
        const auto [least, most] = std::minmax_element(values.begin(), values.end());
        const T low = *least, high = *most;
        const auto fits = [low, high](auto number) {
            return std::in_range<decltype(number)>(low) && std::in_range<decltype(number)>(high);
        };
        const auto add_as = [&](auto number) {
            std::vector<decltype(number)> narrow;
            narrow.reserve(values.size());
            for (const T value : values) narrow.push_back(static_cast<decltype(number)>(value));
            writer.add(name, narrow);
        };
        if (fits(std::uint8_t{}))
            add_as(std::uint8_t{});
        else if (fits(std::uint16_t{}))
            add_as(std::uint16_t{});
        else if (fits(std::int32_t{}))
            add_as(std::int32_t{});
        else
            add_as(std::int64_t{});
    }

    /// As floats if that keeps the bits of all of them.
    static void add_weights(SafetensorsWriter& writer, const char* name,
                            const std::vector<double>& values) {
        const auto is_float = [](double value) {
            const double back = static_cast<double>(static_cast<float>(value));
            return std::bit_cast<std::uint64_t>(back) == std::bit_cast<std::uint64_t>(value);
        };
        if (values.empty()) return;
        if (std::all_of(values.begin(), values.end(), is_float)) {
            std::vector<float> narrow;
            narrow.reserve(values.size());
            for (const double value : values) narrow.push_back(static_cast<float>(value));
            writer.add(name, narrow);
        } else {
            writer.add(name, values);
        }
    }

    std::vector<std::int64_t> tokens_, first_tokens_, offset_counts_, token_ids_, sequence_offsets_,
        batches_, layers_, num_experts_;
    std::vector<std::uint64_t> steps_;
    std::vector<std::uint8_t> given_, padding_, dropped_;
    std::vector<std::int32_t> token_groups_, slots_, experts_;
    std::vector<double> weights_, input_weights_;
};

/// The way back; every number is checked before it is used.
class TraceReader {
public:
    explicit TraceReader(std::span<const std::byte> bytes) : file_(bytes) {}

    Trace read() const {
        check_names();
        std::vector<TraceBatch> batches = read_batches();
        std::vector<TraceRecord> records = read_records(batches);
        return Trace(std::move(batches), std::move(records),
                     [](const std::string& fault) { refuse("contradicts itself: ", fault); });
    }

private:
    /// A list that is read from its beginning to its end, in pieces.
    template <class T>
    struct List {
        const char* name;
        Matrix<T> values;  // [1, n]
        Index place = 0;

        Index left() const { return values.cols() - place; }
        T next() { return values(0, place++); }
        std::vector<T> take(Index count) {
            if (count < 0 || count > left())
                refuse("has ", left(), " ", name, " left where ", count, " are wanted");
            const T* from = values.data() + place;
            place += count;
            return std::vector<T>(from, from + count);
        }
        void finish() const {
            if (left() != 0) refuse("has ", left(), " ", name, " more than are wanted");
        }
    };

    void check_names() const {
        const auto says = [this](const char* key, const char* value) {
            const auto entry = file_.metadata().find(key);
            return entry != file_.metadata().end() && entry->second == value;
        };
        if (!says("format", "moe.trace")) refuse("is no moe.trace by its metadata");
        if (!says("version", "1"))
            refuse("is of another version by its metadata, this library reads version 1");
        static constexpr std::array<std::string_view, 17> known{
            "batch.first_token", "batch.given",  "batch.offsets",    "batch.step", "batch.tokens",
            "dropped",           "experts",      "input_weights",    "padding",    "record.batch",
            "record.experts",    "record.layer", "sequence_offsets", "slots",      "token_groups",
            "token_ids",         "weights"};
        for (const TensorView& tensor : file_) {
            if (!std::binary_search(known.begin(), known.end(), tensor.name))
                refuse("has an unknown tensor ", in_quotes(tensor.name));
            if (tensor.shape.size() != 1)
                refuse("has ", in_quotes(tensor.name), " of ", to_string(tensor.shape),
                       ", it must have one dimension");
        }
    }

    /// The tensor in one of these types; without it, nothing.
    template <class T>
    List<T> list(const char* name, std::initializer_list<Dtype> types) const {
        const TensorView* tensor = file_.find(name);
        if (tensor == nullptr) return {name, Matrix<T>(1, 0)};
        if (std::find(types.begin(), types.end(), tensor->dtype) == types.end())
            refuse("has ", name, " of ", dtype_name(tensor->dtype), ", which it cannot be");
        return {name, tensor->copy<T>()};
    }
    template <class T>
    List<T> integers(const char* name) const {
        return list<T>(name, {Dtype::u8, Dtype::u16, Dtype::i32, Dtype::i64});
    }
    List<double> weights(const char* name) const {
        return list<double>(name, {Dtype::f32, Dtype::f64});
    }
    /// Some of the same length.
    template <class First, class... Others>
    static Index length(const List<First>& first, const List<Others>&... others) {
        const auto check = [&first](const auto& other) {
            if (other.left() != first.left())
                refuse("has ", first.left(), " ", first.name, " and ", other.left(), " ",
                       other.name);
        };
        (check(others), ...);
        return first.left();
    }

    std::vector<TraceBatch> read_batches() const {
        auto tokens = integers<std::int64_t>("batch.tokens");
        auto steps = list<std::uint64_t>("batch.step", {Dtype::u64});
        auto first_tokens = integers<std::int64_t>("batch.first_token");
        auto given = integers<std::uint8_t>("batch.given");
        auto offset_counts = integers<std::int64_t>("batch.offsets");
        auto token_ids = integers<std::int64_t>("token_ids");
        auto token_groups = integers<std::int32_t>("token_groups");
        auto padding = integers<std::uint8_t>("padding");
        auto sequence_offsets = integers<Index>("sequence_offsets");
        std::vector<TraceBatch> batches(
            at(length(tokens, steps, first_tokens, given, offset_counts)));
        for (TraceBatch& batch : batches) {
            batch.num_tokens = static_cast<Index>(tokens.next());
            batch.step = steps.next();
            batch.first_token = first_tokens.next();
            const int bits = given.next();
            if (bits > (token_ids_given | token_groups_given | padding_given))
                refuse("has an unknown bit in batch.given, ", bits);
            if (bits & token_ids_given) batch.token_ids = token_ids.take(batch.num_tokens);
            if (bits & token_groups_given) batch.token_groups = token_groups.take(batch.num_tokens);
            if (bits & padding_given) batch.padding = padding.take(batch.num_tokens);
            batch.sequence_offsets =
                sequence_offsets.take(static_cast<Index>(offset_counts.next()));
        }
        token_ids.finish(), token_groups.finish(), padding.finish(), sequence_offsets.finish();
        return batches;
    }

    std::vector<TraceRecord> read_records(const std::vector<TraceBatch>& batches) const {
        auto numbers = integers<std::int64_t>("record.batch");
        auto layers = integers<std::int64_t>("record.layer");
        auto num_experts = integers<std::int64_t>("record.experts");
        auto slots = integers<std::int32_t>("slots");
        auto experts = integers<std::int32_t>("experts");
        auto weights = this->weights("weights");
        auto input_weights = this->weights("input_weights");
        auto dropped = integers<std::uint8_t>("dropped");
        length(experts, weights);
        const bool weighs_input = input_weights.left() != 0, drops = dropped.left() != 0;
        if (weighs_input) length(experts, input_weights);
        if (drops) length(experts, dropped);
        std::vector<TraceRecord> records(at(length(numbers, layers, num_experts)));
        for (TraceRecord& record : records) {
            record.batch = static_cast<Index>(numbers.next());
            record.layer = static_cast<Index>(layers.next());
            record.num_experts = static_cast<Index>(num_experts.next());
            if (record.batch < 0 || record.batch >= static_cast<Index>(batches.size()))
                refuse("names batch ", record.batch, ", there are ", batches.size());
            record.offsets = sums(slots.take(batches[at(record.batch)].num_tokens), experts.left());
            const Index count = record.offsets.back();
            record.experts = experts.take(count);
            record.weights = weights.take(count);
            if (weighs_input) record.input_weights = input_weights.take(count);
            if (drops) record.dropped = dropped.take(count);
        }
        slots.finish(), experts.finish();
        return records;
    }

    /// 0, the first count, the sum of the first two, ...
    /// @param most  what the sum of all may be, if it fits the type
    static std::vector<std::int32_t> sums(const std::vector<std::int32_t>& counts, Index most) {
        std::vector<std::int32_t> sums;
        sums.reserve(counts.size() + 1);
        sums.push_back(0);
        const Index limit = std::min<Index>(most, std::numeric_limits<std::int32_t>::max());
        for (const std::int32_t count : counts) {
            if (count < 0 || count > limit - sums.back())
                refuse("has a token with ", count, " slots where ", limit - sums.back(),
                       " assignments are left");
            sums.push_back(sums.back() + count);
        }
        return sums;
    }

    template <class... Parts>
    [[noreturn]] static void refuse(const Parts&... parts) {
        fail<FormatError>("moe::load_trace: the file ", parts...);
    }

    SafetensorsView file_;
};

}  // namespace detail

/// A trace as the bytes of a safetensors file, for write_file().
///
///     name               shape    dtype      holds
///
///     batch.tokens       [B]      integer    T of each batch
///     batch.step         [B]      U64        Context::step
///     batch.first_token  [B]      integer    Context::first_token
///     batch.given        [B]      integer    the sum of 1 if it has token_ids, 2: token_groups,
///                                            4: padding
///     batch.offsets      [B]      integer    entries of its sequence_offsets, 0 without
///     token_ids          [sum]    integer    those of the batches that have them, end to end;
///                                            token_groups, padding, sequence_offsets likewise
///     record.batch       [R]      integer    number of the batch, ascending
///     record.layer       [R]      integer    number of the layer
///     record.experts     [R]      integer    E of the layer
///     slots              [sum T]  integer    assignments of each token of the first record, of the
///                                            second, ...
///     experts            [sum N]  integer    of every assignment, in the same order
///     weights            [sum N]  F32, F64   combine weights
///     input_weights      [sum N]  F32, F64   what experts' inputs are multiplied by; missing: 1
///     dropped            [sum N]  integer    0: no, 1: for capacity, 2: pruned, 3: passed;
///                                            missing: 0
///
/// Integers are of the narrowest of U8, U16, I32 and I64 that holds them all, weights F32 if each
/// is exactly a float, else F64; bits are kept, NaN included. What would be [0] is missing. The
/// metadata says "format": "moe.trace", "version": "1".
///
/// A trace of 64 experts, 8 per token, takes 5 1/8 bytes per assignment (expert 1, weight of a
/// float layer 4, count of the token's slots 1/8) where the trace itself takes 12 1/2, and besides
/// what is said of tokens, once per batch.
inline std::vector<std::byte> save_trace(const Trace& trace) {
    return detail::TraceWriter(trace).bytes();
}

/// The way back: equal, bit for bit. Takes memory in proportion to that of the file, and up to 32
/// MB for its highest number of a layer. What is made of the trace takes more: a routing() in
/// proportion to E, a matrix [layers, E]. A few bytes can name a large E, so look at num_experts()
/// of a file from strangers first.
///
/// To replay a layer with recorded weights:
///
///     const Trace trace = load_trace(file);
///     layer.bank().apply(x, trace.records()[0].routing(), y, ws);
///
/// @throws FormatError for anything that save_trace() cannot have written, but that integers may be
///         wider than need be and the metadata may say more
inline Trace load_trace(std::span<const std::byte> bytes) {
    return detail::TraceReader(bytes).read();
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_IO_TRACE_HPP
