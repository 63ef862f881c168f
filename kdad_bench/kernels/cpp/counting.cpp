// How many scores lie between and at the entries of a sorted list, and the sums of the metrics over it: the inner loops of
// kdad_bench.metrics, behind a plain C interface that counting.py loads.
//
// Scores are compared by integer keys in the order of the floats. A table in two steps says where to start in the list of wanted
// keys: the leading bits of (key - smallest wanted key) choose a part, which has entries for the bits that follow, the more the
// more wanted keys lie in it. So there are some two entries per wanted key wherever they lie, and one comparison mostly ends the
// search: also for scores of both signs, whose keys crowd at both ends, and for evenly spread ones, which crowd at the upper end.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <thread>
#include <vector>

#include "shares.h"

namespace {

constexpr i64 BLOCK = 512;  // scores handled at a time: keys, buckets and positions stay in the L1 cache

template <class Key, class Unsigned> INLINE Key key_of(Unsigned bits) {
    Key x = (Key)bits;
    x ^= (x >> (8 * sizeof(Key) - 1)) & (Key)(~(Unsigned)0 >> 1);
    return x == -1 ? 0 : x;  // -0.0 shares the key of 0.0
}

// The first of the entries of a part, and by how many bits the rest of a key is shifted to find its own.
struct Part {
    int32_t begin, shift;
};

// wanted: m ascending distinct keys and a last one that no finite score exceeds; parts: [number + 1] over the bits of a key from
// `shift` on, table: where the wanted keys of each entry begin; counts [2 m + 2], added to: scores between wanted[j - 1] and
// wanted[j] at 2 j, equal to it at 2 j + 1. Returns whether all scores are finite.
template <class Score, class Key, class Unsigned>
INLINE int count(const Score* scores, i64 n, const Key* wanted, const Part* parts, i64 number, int shift, const int32_t* table,
                 Unsigned infinity, uint32_t* counts) {
    Key keys[BLOCK], smallest = 0, largest = 0;
    int32_t bucket[BLOCK], at[BLOCK];
    Unsigned within[BLOCK];
    const Key first = wanted[0];
    const Unsigned rest = ((Unsigned)1 << shift) - 1;
    for (i64 start = 0; start < n; start += BLOCK) {
        const i64 length = std::min(BLOCK, n - start);
        for (i64 i = 0; i < length; i++) {
            Unsigned bits;
            std::memcpy(&bits, scores + start + i, sizeof bits);
            const Key x = key_of<Key, Unsigned>(bits);
            smallest = std::min(smallest, x); largest = std::max(largest, x);
            const Unsigned above = x < first ? 0 : (Unsigned)x - (Unsigned)first;
            keys[i] = x;
            within[i] = above & rest;
            bucket[i] = (int32_t)std::min<Unsigned>(above >> shift, (Unsigned)number);
        }
        for (i64 i = 0; i < length; i++) {
            const Part& part = parts[bucket[i]];
            bucket[i] = part.begin + (int32_t)(within[i] >> part.shift);
        }
        for (i64 i = 0; i < length; i++) at[i] = table[bucket[i]];
        for (i64 i = 0; i < length; i++) at[i] += wanted[at[i]] < keys[i];
        for (i64 i = 0; i < length; i++) {
            i64 j = at[i];
            const Key x = keys[i];
            if (__builtin_expect(wanted[j] < x, 0)) j = std::lower_bound(wanted + j, wanted + table[bucket[i] + 1], x) - wanted;
            counts[2 * j + (wanted[j] == x)]++;
        }
    }
    return smallest > key_of<Key, Unsigned>(infinity | ~(~(Unsigned)0 >> 1)) && largest < (Key)infinity;
}

i64 power_of_two_up_to(i64 x) {
    i64 power = 1;
    while (2 * power <= x) power *= 2;
    return power;
}

// Fills parts [number + 1] and table; the table has `entries` for the m wanted keys in proportion, and one for each empty part.
// After the last part lie two entries for keys beyond the last wanted one.
template <class Key, class Unsigned>
INLINE void tabulate(const Key* wanted, i64 m, i64 entries, Part* parts, i64 number, int shift, int32_t* table) {
    i64 j = 0;
    int32_t place = 0;
    for (i64 p = 0; p < number; p++) {
        i64 end = j;
        while (end < m && (i64)(((Unsigned)wanted[end] - (Unsigned)wanted[0]) >> shift) <= p) end++;
        int own = shift;
        for (i64 some = power_of_two_up_to((end - j) * entries / m); some > 1 && own > 0; some /= 2) own--;
        parts[p] = {place, own};
        const Unsigned rest = ((Unsigned)1 << shift) - 1;
        for (i64 k = 0; k < (i64)1 << (shift - own); k++) {
            while (j < end && (i64)((((Unsigned)wanted[j] - (Unsigned)wanted[0]) & rest) >> own) < k) j++;
            table[place++] = (int32_t)j;
        }
        j = end;
    }
    parts[number] = {place, 8 * (int)sizeof(Key) - 1};
    table[place] = table[place + 1] = (int32_t)m;
}

CLONES int count_float(const float* scores, i64 n, const int32_t* wanted, const Part* parts, i64 number, int shift,
                       const int32_t* table, uint32_t* counts) {
    return count<float, int32_t, uint32_t>(scores, n, wanted, parts, number, shift, table, 0x7f800000u, counts);
}

CLONES int count_double(const double* scores, i64 n, const i64* wanted, const Part* parts, i64 number, int shift,
                        const int32_t* table, uint32_t* counts) {
    return count<double, i64, uint64_t>(scores, n, wanted, parts, number, shift, table, 0x7ff0000000000000u, counts);
}

constexpr i64 PIECE = 1 << 16;  // scores a thread takes at a time

// Counts by at most so many threads; returns whether all scores are finite, or -1 where there is no memory to count in.
template <class Score, class Key, class Inner>
int count_by_threads(Inner inner, const Score* scores, i64 n, const Key* wanted, i64 m, const Part* parts, i64 number, int shift,
                     const int32_t* table, int threads, i64* total) {
    std::atomic<i64> next(0);
    std::atomic<int> finite(1);
    threads = (int)std::max<i64>(1, std::min<i64>(threads, (n + PIECE - 1) / PIECE));
    std::vector<std::unique_ptr<uint32_t, decltype(&std::free)>> counts;  // n < 2^32: none can overflow
    auto work = [&](int mine) {
        for (i64 start; (start = next.fetch_add(PIECE)) < n;)
            if (!inner(scores + start, std::min(PIECE, n - start), wanted, parts, number, shift, table, counts[mine].get())) finite = 0;
    };
    std::vector<std::thread> others;
    try {  // fewer threads, where there is no more memory or no more of them, count the same
        counts.reserve(threads); others.reserve(threads);
        while ((int)counts.size() < threads) {
            uint32_t* own = (uint32_t*)std::calloc(2 * m + 2, sizeof(uint32_t));
            if (!own) break;
            counts.emplace_back(own, &std::free);
        }
        for (size_t i = 1; i < counts.size(); i++) others.emplace_back(work, (int)i);
    } catch (const std::exception&) {}
    if (counts.empty()) return -1;
    work(0);
    for (auto& other : others) other.join();
    for (const auto& some : counts)
        for (i64 k = 0; k < 2 * m + 1; k++) total[k] += some.get()[k];
    return finite;
}

// Sorts n words, as signed numbers ascending, by one stable pass for each byte in which they differ; spare holds as many.
void sort_words(uint64_t* words, uint64_t* spare, i64 n) {
    std::vector<i64> places(8 * 256, 0);
    for (i64 i = 0; i < n; i++) {
        words[i] ^= (uint64_t)1 << 63;
        for (int byte = 0; byte < 8; byte++) places[256 * byte + (words[i] >> (8 * byte) & 255)]++;
    }
    uint64_t *from = words, *to = spare;
    for (int byte = 0; byte < 8; byte++) {
        i64* place = &places[256 * byte];
        if (n && place[from[0] >> (8 * byte) & 255] == n) continue;
        i64 begin = 0;
        for (int value = 0; value < 256; value++) {
            const i64 own = place[value];
            place[value] = begin;
            begin += own;
        }
        for (i64 i = 0; i < n; i++) to[place[from[i] >> (8 * byte) & 255]++] = from[i];
        std::swap(from, to);
    }
    for (i64 i = 0; i < n; i++) words[i] = from[i] ^ (uint64_t)1 << 63;
}

// The formulas of kdad_bench.metrics.exact over the distinct scores of the positives, ascending. counts [2 m + 1] as above, of all pixels;
// ranks [m + 1]: positives below each, and finally all of them; mass [m] or null. out: the sums of AUROC and AP, the maximum of
// F1, the sum of AUPRO for each limit. Blocks are added up one after the other, so that little is lost to rounding.
CLONES void add_up(const i64* counts, const i64* ranks, const double* mass, i64 m, i64 pixels, const double* limits, int nlimits,
                   double* out) {
    double own[BLOCK], positives_above[BLOCK], negatives_above[BLOCK], tied[BLOCK];
    const double P = (double)ranks[m], N = (double)(pixels - ranks[m]);
    i64 below = 0;
    for (int k = 0; k < 3 + nlimits; k++) out[k] = 0;
    for (i64 start = 0; start < m; start += BLOCK) {
        const i64 length = std::min(BLOCK, m - start);
        for (i64 i = 0; i < length; i++) {
            const i64 j = start + i, here = ranks[j + 1] - ranks[j];
            below += counts[2 * j];
            own[i] = (double)here;
            positives_above[i] = (double)(ranks[m] - ranks[j]);
            negatives_above[i] = (double)(pixels - below - (ranks[m] - ranks[j]));
            tied[i] = (double)(counts[2 * j + 1] - here);
            below += counts[2 * j + 1];
        }
        double auroc = 0, ap = 0, f1 = out[2];
        for (i64 i = 0; i < length; i++) {
            const double TP = positives_above[i], FP = negatives_above[i];
            auroc += own[i] * (N - FP + tied[i] / 2);
            ap += own[i] * TP / (TP + FP);
            f1 = std::max(f1, 2 * TP / (TP + FP + P));
        }
        out[0] += auroc; out[1] += ap; out[2] = f1;
        for (int k = 0; k < nlimits; k++) {
            const double limit = limits[k];
            double area = 0;
            for (i64 i = 0; i < length; i++) {
                const double x1 = negatives_above[i] / N, x0 = x1 - tied[i] / N, top = std::min(x1, limit), width = top - x0;
                const double rise = std::max(x1 - x0, 1e-300);  // without a tie the ramp is a step: width 0, no triangle
                area += x0 < limit ? mass[start + i] * (limit - top + width * width / (2 * rise)) : 0;
            }
            out[3 + k] += area;
        }
    }
}

}  // namespace

extern "C" {

EXPORT void kdad_tabulate(const void* wanted, i64 m, int bytes, i64 entries, void* parts, i64 number, int shift, int32_t* table) {
    if (bytes == 4) tabulate<int32_t, uint32_t>((const int32_t*)wanted, m, entries, (Part*)parts, number, shift, table);
    else tabulate<i64, uint64_t>((const i64*)wanted, m, entries, (Part*)parts, number, shift, table);
}

EXPORT int kdad_count(const void* scores, i64 n, int bytes, const void* wanted, i64 m, const void* parts, i64 number, int shift,
                      const int32_t* table, int threads, i64* total) {
    const Part* p = (const Part*)parts;
    if (bytes == 4)
        return count_by_threads(count_float, (const float*)scores, n, (const int32_t*)wanted, m, p, number, shift, table, threads, total);
    return count_by_threads(count_double, (const double*)scores, n, (const i64*)wanted, m, p, number, shift, table, threads, total);
}

EXPORT bool kdad_sort_words(void* words, void* spare, i64 n) {  // false where memory is short, the words then as they were
    return had_memory([&] { sort_words((uint64_t*)words, (uint64_t*)spare, n); });
}

EXPORT void kdad_add_up(const i64* counts, const i64* ranks, const double* mass, i64 m, i64 pixels, const double* limits,
                        int nlimits, double* out) {
    add_up(counts, ranks, mass, m, pixels, limits, nlimits, out);
}

}  // extern "C"
