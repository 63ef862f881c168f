// Batch norm in training, channels last and float32, alone, with ReLU, or with residual addition and ReLU: PyTorch's own bits in
// fewer readings of memory. Plain C interface, false where memory is short; cpp_path.py loads it, and residual.py asks first whether
// the bits are PyTorch's.
//
// Order of operations: that of aten/src/ATen/native/cpu/batch_norm_kernel.cpp (PyTorch 2.13) with one thread. Sums of a channel
// are float and run over the pixels in order; more threads take channels, so that the bits stay. Where PyTorch's kernels were
// compiled with fused multiply and add, `fused` does the same.

#ifdef __clang__
#pragma clang fp contract(off) reassociate(off)
#elif defined(__GNUC__)
#pragma GCC optimize("-fno-associative-math", "-fsigned-zeros", "-ffp-contract=off")
#endif

#include <algorithm>
#include <cmath>
#include <vector>

#include "shares.h"

namespace {

constexpr i64 BLOCK = 16;         // channels that one thread takes at least: a line of the cache
constexpr i64 TILE = 1 << 14;     // values that a thread takes at a time, about
constexpr i64 ROWS = 4;           // pixels whose values are added before a sum goes back to memory

// Calls run(begin, end) for stretches of the channels [0, c), one for each thread.
template <class Run> void by_channels(const Run& run, i64 c, int threads) {
    const i64 blocks = (c + BLOCK - 1) / BLOCK, parts = std::max<i64>(1, std::min<i64>(threads, blocks));
    shared_out([&](i64 k) { run(k * blocks / parts * BLOCK, std::min(c, (k + 1) * blocks / parts * BLOCK)); }, parts, threads);
}

// Calls run(begin, end) for stretches of the rows [0, m), the last first where `backwards`: it is still in the cache.
template <class Run> void by_rows(const Run& run, i64 m, i64 c, int threads, bool backwards) {
    const i64 rows = std::max<i64>(1, TILE / c), parts = (m + rows - 1) / rows;
    shared_out([&](i64 k) {
        const i64 part = backwards ? parts - 1 - k : k;
        run(part * rows, std::min(m, (part + 1) * rows));
    }, parts, threads);
}

template <bool FUSED> INLINE float multiply_add(float a, float b, float c) { return FUSED ? __builtin_fmaf(a, b, c) : a * b + c; }

struct Norm {
    const float *x, *above, *out, *identity;  // above: upstream gradient; out: what the forward gave; absent ones are null
    i64 m, c;
    const float *mean, *inverse, *scale, *shift, *slope, *constant, *weight;
};

// ---- sums of channels [begin, end) over all m rows -----------------------------------------------------------------------------

INLINE void add_values(const float* __restrict x, i64 m, i64 c, i64 begin, i64 end, float* __restrict sum) {
    i64 i = 0;
    for (; i + ROWS <= m; i += ROWS) {
        const float *a = x + i * c, *b = a + c, *d = b + c, *e = d + c;
        for (i64 k = begin; k < end; k++) sum[k] = (((sum[k] + a[k]) + b[k]) + d[k]) + e[k];
    }
    for (; i < m; i++)
        for (i64 k = begin; k < end; k++) sum[k] += x[i * c + k];
}

template <bool FUSED>
INLINE void add_squares(const float* __restrict x, i64 m, i64 c, i64 begin, i64 end, const float* __restrict mean,
                        float* __restrict sum) {
    i64 i = 0;
    for (; i + ROWS <= m; i += ROWS) {
        const float *a = x + i * c, *b = a + c, *d = b + c, *e = d + c;
        for (i64 k = begin; k < end; k++) {
            const float u = mean[k], p = a[k] - u, q = b[k] - u, r = d[k] - u, s = e[k] - u;
            float v = multiply_add<FUSED>(p, p, sum[k]);
            v = multiply_add<FUSED>(q, q, v);
            v = multiply_add<FUSED>(r, r, v);
            sum[k] = multiply_add<FUSED>(s, s, v);
        }
    }
    for (; i < m; i++)
        for (i64 k = begin; k < end; k++) {
            const float d = x[i * c + k] - mean[k];
            sum[k] = multiply_add<FUSED>(d, d, sum[k]);
        }
}

enum Activation { NONE, RELU, RESIDUAL };  // y, relu(y), relu(y + identity)

// The gradient before the activation at one value. For RELU the forward is computed again, for RESIDUAL it is read.
template <bool FUSED, int KIND> INLINE float passed(float above, float x, float scale, float shift, float out) {
    if (KIND == NONE) return above;
    const float v = KIND == RELU ? multiply_add<FUSED>(x, scale, shift) : out;
    return v <= 0.0f ? 0.0f : above;  // NaN lets it through
}

// `N` rows from row i on: sum += g, product += (x - mean) g, both [c]; RESIDUAL writes g to `kept`.
template <bool FUSED, int KIND, int N>
INLINE void add_gradient_rows(const Norm& j, i64 i, i64 begin, i64 end, float* __restrict sum, float* __restrict product,
                              float* __restrict kept) {
    const float *__restrict scale = j.scale, *__restrict shift = j.shift, *__restrict mean = j.mean;
    const i64 c = j.c;
    const float *__restrict x = j.x + i * c, *__restrict above = j.above + i * c;
    const float* __restrict out = KIND == RESIDUAL ? j.out + i * c : nullptr;
    float* __restrict g = KIND == RESIDUAL ? kept + i * c : nullptr;
    for (i64 k = begin; k < end; k++) {
        float s = sum[k], p = product[k];
#pragma GCC unroll 4
        for (int r = 0; r < N; r++) {
            const float value = passed<FUSED, KIND>(above[r * c + k], x[r * c + k], KIND == RELU ? scale[k] : 0.0f,
                                                    KIND == RELU ? shift[k] : 0.0f, KIND == RESIDUAL ? out[r * c + k] : 0.0f);
            if (KIND == RESIDUAL) g[r * c + k] = value;
            s += value;
            p = multiply_add<FUSED>(x[r * c + k] - mean[k], value, p);
        }
        sum[k] = s;
        product[k] = p;
    }
}

template <bool FUSED, int KIND>
INLINE void add_gradients(const Norm& j, i64 begin, i64 end, float* sum, float* product, float* kept) {
    i64 i = 0;
    constexpr int N = KIND == RESIDUAL ? 1 : ROWS;  // with a fourth array, which is written, several rows are slower
    for (; i + N <= j.m; i += N) add_gradient_rows<FUSED, KIND, N>(j, i, begin, end, sum, product, kept);
    for (; i < j.m; i++) add_gradient_rows<FUSED, KIND, 1>(j, i, begin, end, sum, product, kept);
}

// ---- every value of rows [begin, end) ------------------------------------------------------------------------------------------

template <bool FUSED, int KIND> INLINE void normalise(const Norm& j, i64 begin, i64 end, float* y) {
    const float *__restrict scale = j.scale, *__restrict shift = j.shift;
    for (i64 i = begin; i < end; i++) {
        const float* __restrict x = j.x + i * j.c;
        const float* __restrict other = KIND == RESIDUAL ? j.identity + i * j.c : nullptr;
        float* __restrict to = y + i * j.c;
        for (i64 k = 0; k < j.c; k++) {
            const float v = multiply_add<FUSED>(x[k], scale[k], shift[k]);
            to[k] = KIND == NONE ? v : rectified(KIND == RESIDUAL ? v + other[k] : v);
        }
    }
}

// `above` is the gradient before the activation, but for RELU, where it is masked here.
template <bool FUSED, int KIND> INLINE void input_gradient(const Norm& j, i64 begin, i64 end, float* to_x) {
    const float *__restrict scale = j.scale, *__restrict shift = j.shift, *__restrict mean = j.mean;
    const float *__restrict inverse = j.inverse, *__restrict slope = j.slope, *__restrict constant = j.constant;
    const float* __restrict weight = j.weight;
    for (i64 i = begin; i < end; i++) {
        const float *__restrict x = j.x + i * j.c, *__restrict above = j.above + i * j.c;
        float* __restrict to = to_x + i * j.c;
        for (i64 k = 0; k < j.c; k++) {
            const float g = passed<FUSED, KIND>(above[k], x[k], KIND == RELU ? scale[k] : 0.0f, KIND == RELU ? shift[k] : 0.0f, 0.0f);
            const float v = multiply_add<FUSED>(-(x[k] - mean[k]), slope[k], g - constant[k]);
            to[k] = v * inverse[k] * weight[k];
        }
    }
}

// ---- one copy per instruction set ----------------------------------------------------------------------------------------------

CLONES void add_values_(const Norm& j, i64 begin, i64 end, float* sum) { add_values(j.x, j.m, j.c, begin, end, sum); }
CLONES void add_squares_fused(const Norm& j, i64 begin, i64 end, float* sum) {
    add_squares<true>(j.x, j.m, j.c, begin, end, j.mean, sum);
}
CLONES void add_squares_plain(const Norm& j, i64 begin, i64 end, float* sum) {
    add_squares<false>(j.x, j.m, j.c, begin, end, j.mean, sum);
}

#define COPIES(NAME, FUSED, KIND)                                                                                                 \
    CLONES void gradients_##NAME(const Norm& j, i64 begin, i64 end, float* sum, float* product, float* kept) {                    \
        add_gradients<FUSED, KIND>(j, begin, end, sum, product, kept);                                                            \
    }                                                                                                                             \
    CLONES void normalise_##NAME(const Norm& j, i64 begin, i64 end, float* y) { normalise<FUSED, KIND>(j, begin, end, y); }       \
    CLONES void input_##NAME(const Norm& j, i64 begin, i64 end, float* y) {                                                       \
        input_gradient<FUSED, KIND == RELU ? RELU : NONE>(j, begin, end, y);                                                      \
    }
COPIES(plain_none, false, NONE)
COPIES(plain_relu, false, RELU)
COPIES(plain_residual, false, RESIDUAL)
COPIES(fused_none, true, NONE)
COPIES(fused_relu, true, RELU)
COPIES(fused_residual, true, RESIDUAL)

constexpr decltype(&normalise_plain_none) NORMALISE[2][3] = {{normalise_plain_none, normalise_plain_relu, normalise_plain_residual},
                                                             {normalise_fused_none, normalise_fused_relu, normalise_fused_residual}};
constexpr decltype(&gradients_plain_none) GRADIENTS[2][3] = {{gradients_plain_none, gradients_plain_relu, gradients_plain_residual},
                                                             {gradients_fused_none, gradients_fused_relu, gradients_fused_residual}};
constexpr decltype(&input_plain_none) INPUT[2][3] = {{input_plain_none, input_plain_relu, input_plain_residual},
                                                     {input_fused_none, input_fused_relu, input_fused_residual}};

}  // namespace

extern "C" {

// Forward of m rows of c channels: `found` float [4, c] gets mean, 1 / deviation, scale and shift; the running statistics move by
// `momentum`; y = norm(x), relu(norm(x)) or relu(norm(x) + identity) for kind 0, 1, 2. m > 1.
EXPORT bool kdad_exact_norm(const float* x, const float* identity, float* y, i64 m, i64 c, const float* weight, const float* bias,
                            double epsilon, double momentum, float* running_mean, float* running_variance, float* found, int kind,
                            int fused, int threads) {
    float *mean = found, *inverse = found + c, *scale = found + 2 * c, *shift = found + 3 * c;
    Norm j{};
    j.x = x; j.identity = identity; j.m = m; j.c = c; j.mean = mean; j.scale = scale; j.shift = shift;
    return had_memory([&] {
        std::vector<float> sums(2 * c, 0.0f);
        float *first = sums.data(), *second = first + c;
        const float moved = (float)momentum;
        by_channels([&](i64 begin, i64 end) {
            add_values_(j, begin, end, first);
            for (i64 k = begin; k < end; k++) mean[k] = (float)((double)first[k] / (double)m);
            (fused ? add_squares_fused : add_squares_plain)(j, begin, end, second);
            for (i64 k = begin; k < end; k++) {
                const double variance = second[k] / (float)m;  // rounded to float first
                inverse[k] = variance != 0 || epsilon != 0 ? (float)(1.0 / std::sqrt(variance + epsilon)) : 0.0f;
                scale[k] = inverse[k] * weight[k];
                shift[k] = fused ? __builtin_fmaf(-mean[k], scale[k], bias[k]) : bias[k] - mean[k] * scale[k];
                running_mean[k] = moved * mean[k] + (1 - moved) * running_mean[k];
                const float unbiased = second[k] / (float)(m - 1), kept = (1 - moved) * running_variance[k];
                running_variance[k] = (float)((double)moved * unbiased + kept);
            }
        }, c, threads);
        by_rows([&](i64 begin, i64 end) { NORMALISE[fused != 0][kind](j, begin, end, y); }, m, c, threads, true);
    });
}

// Backward of the same: gradients to weight and bias [c] and, unless null, to x. `above` is the upstream gradient. Kind 2 reads
// what the forward gave, `out`, and writes the gradient to identity.
EXPORT bool kdad_exact_norm_gradients(const float* x, const float* above, const float* out, i64 m, i64 c, const float* weight,
                                      const float* found, float* to_x, float* to_identity, float* to_weight, float* to_bias, int kind,
                                      int fused, int threads) {
    return had_memory([&] {
        std::vector<float> sums(4 * c, 0.0f);
        float *sum = sums.data(), *product = sum + c, *slope = sum + 2 * c, *constant = sum + 3 * c;
        Norm j{};
        j.x = x; j.above = above; j.out = out; j.m = m; j.c = c; j.weight = weight;
        j.mean = found; j.inverse = found + c; j.scale = found + 2 * c; j.shift = found + 3 * c; j.slope = slope; j.constant = constant;
        by_channels([&](i64 begin, i64 end) {
            GRADIENTS[fused != 0][kind](j, begin, end, sum, product, to_identity);
            for (i64 k = begin; k < end; k++) {
                const float inverse = j.inverse[k];
                slope[k] = product[k] * inverse * inverse / (float)m;
                constant[k] = sum[k] / (float)m;
                to_weight[k] = product[k] * inverse;
                to_bias[k] = sum[k];
            }
        }, c, threads);
        if (!to_x) return;
        if (kind == RESIDUAL) j.above = to_identity;
        by_rows([&](i64 begin, i64 end) { INPUT[fused != 0][kind](j, begin, end, to_x); }, m, c, threads, true);
    });
}

}  // extern "C"
