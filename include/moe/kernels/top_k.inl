// SPDX-License-Identifier: MIT
// What rows are chosen from by: are all numbers finite, which are the best. Included in body.inl,
// in the same namespace.

/// 0 times x is 0, or NaN where x is not finite. Four sums, because each step waits for the last.
inline bool is_finite(Index n, const S* x) {
    const E zero = each(0);
    E sum[4] = {zero, zero, zero, zero};
    Index i = 0;
    for (; i + 4 * elements <= n; i += 4 * elements)
        for (int p = 0; p < 4; ++p)
            sum[p] = fma(load_each(x + i + p * elements, elements), zero, sum[p]);
    for (; i < n; i += elements) sum[0] = fma(load_each(x + i, n - i), zero, sum[0]);
    Partials total(0);
    total.part[0] = add(add(sum[0], sum[1]), add(sum[2], sum[3]));
    return total.fold() == 0;
}

/// NaN counts as -inf: it is behind every number, and comparisons stay an order.
inline S comparable(S key) { return key == key ? key : -std::numeric_limits<S>::infinity(); }

/// top_k one key after the other.
inline Index top_k_by_insertion(Index n, const S* keys, Index k, std::int32_t* best) {
    Index count = 0;
    for (Index i = 0; i < n; ++i) {
        if (keys[i] == -std::numeric_limits<S>::infinity()) continue;
        const S key = comparable(keys[i]);
        if (count == k && (k == 0 || !(key > comparable(keys[best[k - 1]])))) continue;
        Index place = count < k ? count++ : k - 1;
        for (; place > 0 && comparable(keys[best[place - 1]]) < key; --place)
            best[place] = best[place - 1];
        best[place] = static_cast<std::int32_t>(i);
    }
    return count;
}

// Where an E is 16 lanes. Templates, because others have not all that they call.

/// Most keys that sort_few() takes.
inline constexpr Index few = 32;

/// order = 0, 1, ... n - 1 by falling x, equal ones as they come: an element's place is the number
/// of larger ones. At most `few` elements.
template <class Lanes>
[[gnu::always_inline]] inline void sort_few(Index n, const S* x, std::int32_t* order) {
    std::int32_t larger[few];
    for (Index i = 0; i < n; i += elements) {
        const Lanes mine = load_each(x + i, n - i);
        Lanes count = each(0);
        for (Index j = 0; j < n; ++j) count = count_less(count, mine, each(x[j]));
        store_words(larger + i, count);
    }
    std::uint64_t places = 0;
    for (Index i = 0; i < n; ++i) {
        order[larger[i]] = static_cast<std::int32_t>(i);
        places |= std::uint64_t(1) << larger[i];
    }
    if (places == (std::uint64_t(1) << n) - 1) return;  // no two are equal
    std::uint8_t equal[few] = {};
    for (Index i = 0; i < n; ++i)
        order[larger[i] + equal[larger[i]]++] = static_cast<std::int32_t>(i);
}

/// No larger than the k-th largest of n >= 16 keys, and above -inf: the k-th largest of the maxima
/// of 16 columns that keys are dealt to; for k > 8 of 32. It is the least of those that fewer than
/// k are larger than.
template <class Lanes>
[[gnu::always_inline]] inline S bound_by_columns(Index n, const S* keys, Index k) {
    S most[2 * lanes];
    const Index columns = k > lanes / 2 ? 2 * lanes : lanes;
    for (Index c = 0; c < columns; c += elements) {
        Lanes column = each(std::numeric_limits<S>::lowest());
        Index i = c;
        for (; i + elements <= n; i += columns) column = max(load_each(keys + i, elements), column);
        if (i < n) column = first(n - i, max(load_each(keys + i, n - i), column), column);
        store(most + c, column, elements);
    }
    Lanes bound = each(std::numeric_limits<S>::max());
    for (Index c = 0; c < columns; c += elements) {
        const Lanes mine = load_each(most + c, elements);
        Lanes larger = each(0);
        for (Index j = 0; j < columns; ++j)
            larger = where_le(each(most[j]), mine, larger, add(larger, each(1)));
        bound = where_le(larger, each(static_cast<S>(k - 1)), min(mine, bound), bound);
    }
    S least[lanes];
    store(least, bound, elements);
    for (int l = 0; l < 8; ++l) least[l] = smaller(least[l], least[l + 8]);
    for (int l = 0; l < 4; ++l) least[l] = smaller(least[l], least[l + 4]);
    return smaller(smaller(least[0], least[2]), smaller(least[1], least[3]));
}

/// Bit l is set where keys[l] >= bound; of up to 16.
template <class Lanes>
[[gnu::always_inline]] inline std::uint32_t not_below(Lanes bound, Index n, const S* keys) {
    const std::uint32_t bits = where_le_bits(bound, load_each(keys, n));
    return n < elements ? bits & ((1U << n) - 1) : bits;
}

/// top_k for k of at most 16, with few branches. Keys that are not below bound_by_columns(), rarely
/// many more than k, become candidates: first a bit of a mask each, then an entry of a list that is
/// sorted. Where there are too many, as in a row of equal keys, all are inserted.
template <class Lanes>
Index top_k_by_columns(Index n, const S* keys, Index k, std::int32_t* best) {
    constexpr Index word = 64;
    constexpr S lowest = std::numeric_limits<S>::lowest();
    std::int32_t order[few];
    if (n <= lanes && not_below<Lanes>(each(lowest), n, keys) == (1U << n) - 1) {
        sort_few<Lanes>(n, keys, order);  // all are candidates
        const Index count = n < k ? n : k;
        for (Index i = 0; i < count; ++i) best[i] = order[i];
        finish();
        return count;
    }
    const Lanes bound = each(n > lanes ? bound_by_columns<Lanes>(n, keys, k) : lowest);
    S candidate[few + word];
    std::int32_t index[few + word];
    Index count = 0;
    for (Index from = 0; from < n; from += word) {
        std::uint64_t bits = 0;
        for (Index i = from; i < n && i < from + word; i += elements)
            bits |= std::uint64_t(not_below<Lanes>(bound, n - i, keys + i)) << (i - from);
        for (; bits != 0; bits &= bits - 1, ++count) {
            index[count] = static_cast<std::int32_t>(from + __builtin_ctzll(bits));
            candidate[count] = keys[index[count]];
        }
        if (count > few) return top_k_by_insertion(n, keys, k, best);
    }
    sort_few<Lanes>(count, candidate, order);
    count = count < k ? count : k;
    for (Index i = 0; i < count; ++i) best[i] = index[order[i]];
    for (Index i = 0; i < n && count < k; ++i)
        if (keys[i] != keys[i]) best[count++] = static_cast<std::int32_t>(i);
    finish();
    return count;
}

template <class All>
Index top_k(Index n, const S* keys, Index k, std::int32_t* best) {
    if constexpr (elements == lanes)
        if (0 < k && k <= lanes) return top_k_by_columns<E>(n, keys, k, best);
    return top_k_by_insertion(n, keys, k, best);
}

inline void top_two_by_element(Index runs, Index size, const S* keys, S* first, S* second) {
    for (Index r = 0; r < runs; ++r) {
        S most = -std::numeric_limits<S>::infinity(), next = most;
        for (Index i = 0; i < size; ++i) {
            const S key = comparable(keys[r * size + i]);
            next = larger(next, smaller(most, key));
            most = larger(most, key);
        }
        first[r] = most;
        second[r] = next;
    }
}

/// top_two of runs whose size is a multiple of `width`, 4 or 16, from 16 pieces of `width` keys at
/// a time: a lane is a piece.
template <class Lanes>
void top_two_by_pieces(Index width, Index runs, Index size, const S* keys, S* first_of,
                       S* second_of) {
    const Index pieces_of_run = size / width;
    Index piece = 0, r = 0, pieces_seen = 0;
    for (; piece + lanes <= runs * pieces_of_run; piece += lanes) {
        const Lanes dead = each(-std::numeric_limits<S>::infinity());
        Lanes most = dead, next = dead;
        for (Index i = 0; i < width; i += 4) {
            Lanes key[4];
            read_columns(reinterpret_cast<const std::byte*>(keys + piece * width + i),
                         width * static_cast<Index>(sizeof(S)), key);
            for (int p = 0; p < 4; ++p) {
                key[p] = max(key[p], dead);  // NaN
                next = max(next, min(most, key[p]));
                most = max(most, key[p]);
            }
        }
        S mosts[lanes], nexts[lanes];
        store(mosts, most, elements);
        store(nexts, next, elements);
        for (Index l = 0; l < lanes; ++l) {
            if (pieces_seen == 0) {
                first_of[r] = mosts[l];
                second_of[r] = nexts[l];
            } else {
                second_of[r] =
                    larger(smaller(first_of[r], mosts[l]), larger(second_of[r], nexts[l]));
                first_of[r] = larger(first_of[r], mosts[l]);
            }
            if (++pieces_seen < pieces_of_run) continue;
            pieces_seen = 0;
            ++r;
        }
    }
    finish();
    top_two_by_element(runs - r, size, keys + r * size, first_of + r, second_of + r);
}

template <class All>
void top_two(Index runs, Index size, const S* keys, S* first, S* second) {
    if constexpr (elements == lanes)
        if (size > 0 && size % 4 == 0)
            return top_two_by_pieces<E>(size % lanes == 0 ? lanes : 4, runs, size, keys, first,
                                        second);
    top_two_by_element(runs, size, keys, first, second);
}
