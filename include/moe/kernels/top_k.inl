// SPDX-License-Identifier: MIT
// What rows are chosen from by: are all numbers finite, which are the best. Included in body.inl, in
// the same namespace.

/// 0 times x is 0, or NaN where x is not finite.
inline bool is_finite(Index n, const S* x) {
    E even = each(0), odd = even;
    const E zero = even;
    Index i = 0;
    for (; i + 2 * elements <= n; i += 2 * elements) {
        even = add(even, mul(load_each(x + i, elements), zero));
        odd = add(odd, mul(load_each(x + i + elements, elements), zero));
    }
    for (; i < n; i += elements) odd = add(odd, mul(load_each(x + i, n - i), zero));
    S rest[elements];
    store(rest, add(even, odd), elements);
    finish();
    bool result = true;
    for (Index l = 0; l < elements; ++l) result &= rest[l] == 0;
    return result;
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
    std::uint8_t equal[few] = {};
    for (Index i = 0; i < n; i += elements) {
        const Lanes mine = load_each(x + i, n - i);
        Lanes count = each(0);
        for (Index j = 0; j < n; ++j) count = count_less(count, mine, each(x[j]));
        store_words(larger + i, count);
    }
    for (Index i = 0; i < n; ++i)
        order[larger[i] + equal[larger[i]]++] = static_cast<std::int32_t>(i);
}

/// No larger than the k-th largest of n >= 16 keys, and above -inf: the k-th largest of the maxima
/// of 16 columns that keys are dealt to; for k > 8 of 32.
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
    std::int32_t order[2 * lanes];
    sort_few<Lanes>(columns, most, order);
    return most[order[k - 1]];
}

/// top_k for k of at most 16, with few branches. Keys that are not below bound_by_columns(), rarely
/// many more than k, become candidates: first a bit of a mask each, then an entry of a list that is
/// sorted. Where there are too many, as in a row of equal keys, all are inserted.
template <class Lanes>
Index top_k_by_columns(Index n, const S* keys, Index k, std::int32_t* best) {
    constexpr Index word = 64;
    constexpr S lowest = std::numeric_limits<S>::lowest();
    const Lanes bound = each(n > lanes ? bound_by_columns<Lanes>(n, keys, k) : lowest);
    S candidate[few + word];
    std::int32_t index[few + word], order[few];
    Index count = 0;
    for (Index from = 0; from < n; from += word) {
        std::uint64_t bits = 0;
        for (Index i = from; i < n && i < from + word; i += elements) {
            std::uint64_t mask = where_le_bits(bound, load_each(keys + i, n - i));
            if (n - i < elements) mask &= (1U << (n - i)) - 1;
            bits |= mask << (i - from);
        }
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

inline S larger(S a, S b) { return a > b ? a : b; }
inline S smaller(S a, S b) { return a < b ? a : b; }

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

/// top_two of runs whose size is a multiple of 16, from 16 pieces of 16 keys at a time: a lane is a
/// piece.
template <class Lanes>
void top_two_by_pieces(Index runs, Index size, const S* keys, S* first_of, S* second_of) {
    const Index pieces_of_run = size / lanes;
    Index piece = 0;
    for (; piece + lanes <= runs * pieces_of_run; piece += lanes) {
        const Lanes dead = each(-std::numeric_limits<S>::infinity());
        Lanes most = dead, next = dead;
        for (Index i = 0; i < lanes; i += 4) {
            Lanes key[4];
            read_columns(reinterpret_cast<const std::byte*>(keys + piece * lanes + i),
                         lanes * static_cast<Index>(sizeof(S)), key);
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
            const Index r = (piece + l) / pieces_of_run;
            if ((piece + l) % pieces_of_run == 0) {
                first_of[r] = mosts[l];
                second_of[r] = nexts[l];
                continue;
            }
            second_of[r] = larger(smaller(first_of[r], mosts[l]), larger(second_of[r], nexts[l]));
            first_of[r] = larger(first_of[r], mosts[l]);
        }
    }
    finish();
    const Index done = piece / pieces_of_run;
    top_two_by_element(runs - done, size, keys + done * size, first_of + done, second_of + done);
}

template <class All>
void top_two(Index runs, Index size, const S* keys, S* first, S* second) {
    if constexpr (elements == lanes)
        if (size >= lanes && size % lanes == 0)
            return top_two_by_pieces<E>(runs, size, keys, first, second);
    top_two_by_element(runs, size, keys, first, second);
}
