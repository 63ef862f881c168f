// Two training steps of convolutional networks that PyTorch is slow at on CPUs, channels last and float32: batch norm with the
// activation after it, and the weight gradient of a depthwise convolution. Plain C interface, false where memory is short;
// cpp_path.py loads them.
//
// Work is cut into parts that do not depend on the number of threads, and partial sums are added in the order of the parts.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <vector>

#include "shares.h"

namespace {

constexpr i64 WIDTH = 512;       // at least so many values are handled at a time: several pixels where channels are few
constexpr i64 TILE = 1 << 15;    // values of a part, about

// ---- batch norm and activation: y = clamp(w (x - mean) / std + b, low, high) over rows [m, c] ---------------------------------

struct Norm {
    const float *x, *above;  // above: upstream gradient, of the backward
    float* out;              // y, or the gradient to x
    i64 m, c;
    float low, high;
};

struct Shape {  // pixels are taken `pixels` at a time as one row of `width` values; a part has `rows` such rows
    i64 pixels, width, rows, parts;
    explicit Shape(const Norm& j) {
        pixels = std::max<i64>(1, WIDTH / j.c);
        width = pixels * j.c;
        rows = std::max<i64>(1, TILE / width);
        parts = (j.m + pixels * rows - 1) / (pixels * rows);
    }
};

std::vector<float> repeated(const float* v, i64 c, i64 pixels) {
    std::vector<float> out;
    out.reserve((size_t)(c * pixels));
    for (i64 i = 0; i < pixels; i++) out.insert(out.end(), v, v + c);
    return out;
}

CLONES void add_moments(const float* __restrict x, const float* __restrict pilot, float* __restrict first, float* __restrict second,
                        i64 n) {
    for (i64 i = 0; i < n; i++) { const float d = x[i] - pilot[i]; first[i] += d; second[i] += d * d; }
}

CLONES void normalise(const float* __restrict x, const float* __restrict scale, const float* __restrict shift, float low, float high,
                      float* __restrict y, i64 n) {
    for (i64 i = 0; i < n; i++) {
        const float v = x[i] * scale[i] + shift[i];
        const float w = v < low ? low : v;  // NaN stays
        y[i] = w > high ? high : w;
    }
}

CLONES void add_gradients(const float* __restrict x, const float* __restrict above, const float* __restrict scale,
                          const float* __restrict shift, const float* __restrict mean, float low, float high,
                          float* __restrict first, float* __restrict second, i64 n) {
    for (i64 i = 0; i < n; i++) {
        const float v = x[i] * scale[i] + shift[i];
        const float g = v <= low || v >= high ? 0.0f : above[i];
        first[i] += g;
        second[i] += g * (x[i] - mean[i]);
    }
}

CLONES void input_gradient(const float* __restrict x, const float* __restrict above, const float* __restrict scale,
                           const float* __restrict shift, const float* __restrict mean, const float* __restrict constant,
                           const float* __restrict slope, float low, float high, float* __restrict out, i64 n) {
    for (i64 i = 0; i < n; i++) {
        const float v = x[i] * scale[i] + shift[i];
        const float g = v <= low || v >= high ? 0.0f : above[i];
        out[i] = scale[i] * g - constant[i] - slope[i] * (x[i] - mean[i]);
    }
}

// Adds two sums per channel over all pixels, by `add(values, at, first, second)` for a run of values from offset `at`.
template <class Add> void channel_sums(const Norm& j, const Shape& shape, int threads, const Add& add, double* first, double* second) {
    std::vector<double> partial((size_t)shape.parts * 2 * j.c, 0.0);
    shared_out([&](i64 part) {
        std::vector<float> a(shape.width, 0.0f), b(shape.width, 0.0f);
        const i64 begin = part * shape.rows * shape.pixels, end = std::min(j.m, begin + shape.rows * shape.pixels);
        for (i64 p = begin; p < end; p += shape.pixels)
            add(std::min(shape.pixels, end - p) * j.c, p * j.c, a.data(), b.data());
        double* sums = partial.data() + part * 2 * j.c;
        for (i64 i = 0; i < shape.width; i++) { sums[i % j.c] += a[i]; sums[j.c + i % j.c] += b[i]; }
    }, shape.parts, threads);
    for (i64 part = 0; part < shape.parts; part++)
        for (i64 c = 0; c < j.c; c++) {
            first[c] += partial[(part * 2) * j.c + c];
            second[c] += partial[(part * 2 + 1) * j.c + c];
        }
}

template <class Run> void all_rows(const Norm& j, const Shape& shape, int threads, const Run& run) {
    shared_out([&](i64 part) {
        const i64 begin = part * shape.rows * shape.pixels, end = std::min(j.m, begin + shape.rows * shape.pixels);
        for (i64 p = begin; p < end; p += shape.pixels) run(std::min(shape.pixels, end - p) * j.c, p * j.c);
    }, shape.parts, threads);
}

// From `old` towards `to`. Where much of the old value goes, it is its rounding that would be left of a smaller one in a difference,
// and no number of an infinite one.
float moved(float old, double to, double momentum) {
    if (momentum < 0.5 && std::fabs(old) <= FLT_MAX) return old + (float)(momentum * (to - old));
    return (float)(momentum * to + (1 - momentum) * (double)old);
}

// ---- weight gradient of a depthwise convolution --------------------------------------------------------------------------------

struct Depthwise {
    const float *x, *above;  // [n, h, w, c], [n, oh, ow, c]
    float* out;              // [c, K, K]
    i64 n, h, w, oh, ow, c, stride, top, left;
};

#ifdef LANES
// One sample. For every row of taps the sums of sixteen channels stay in registers; the rows they read stay in the cache until
// all channels have been through. sums [c / 16, K, K, 16].
template <int K> INLINE void weight_gradient(const Depthwise& d, i64 n, float* sums) {
    i64 begin[K], end[K], first = 0, last = d.ow;  // output columns that see tap k, and those that see every tap
    for (int k = 0; k < K; k++) {
        const i64 offset = k - d.left;
        begin[k] = std::min(d.ow, offset < 0 ? (-offset + d.stride - 1) / d.stride : 0);
        end[k] = offset >= d.w ? begin[k] : std::max(begin[k], std::min(d.ow, (d.w - 1 - offset) / d.stride + 1));
        first = std::max(first, begin[k]); last = std::min(last, end[k]);
    }
    last = std::max(first, last);
    for (i64 oh = 0; oh < d.oh; oh++) {
        const float* above = d.above + (n * d.oh + oh) * d.ow * d.c;
        for (int i = 0; i < K; i++) {
            const i64 row = oh * d.stride + i - d.top;
            if (row < 0 || row >= d.h) continue;
            const float* image = d.x + ((n * d.h + row) * d.w - d.left) * d.c;
            for (i64 c = 0; c < d.c; c += 16) {
                float* sum = sums + (c * K + 16 * i) * K;
                V8 low[K], high[K];  // channels c to c + 7, and the next eight
#pragma GCC unroll 5
                for (int k = 0; k < K; k++) { low[k] = at(sum + 16 * k); high[k] = at(sum + 16 * k + 8); }
                for (i64 o = first; o < last; o++) {
                    const V8 g = at(above + o * d.c + c), h = at(above + o * d.c + c + 8);
                    const float* x = image + o * d.stride * d.c + c;
#pragma GCC unroll 5
                    for (int k = 0; k < K; k++) { low[k] += g * at(x + k * d.c); high[k] += h * at(x + k * d.c + 8); }
                }
#pragma GCC unroll 5
                for (int k = 0; k < K; k++) {
                    const auto edge = [&](i64 from, i64 to) {
                        for (i64 o = from; o < to; o++) {
                            const float *g = above + o * d.c + c, *x = image + (o * d.stride + k) * d.c + c;
                            low[k] += at(g) * at(x); high[k] += at(g + 8) * at(x + 8);
                        }
                    };
                    edge(begin[k], std::min(first, end[k]));
                    edge(std::max(last, begin[k]), end[k]);
                    *(V8*)(sum + 16 * k) = low[k]; *(V8*)(sum + 16 * k + 8) = high[k];
                }
            }
        }
    }
}

CLONES void weight_gradient_3(const Depthwise& d, i64 n, float* sums) { weight_gradient<3>(d, n, sums); }
CLONES void weight_gradient_5(const Depthwise& d, i64 n, float* sums) { weight_gradient<5>(d, n, sums); }
#endif

}  // namespace

extern "C" {

// Adds to first and second, double [c], the sums of x - pilot and of its square. A pilot, some pixel, keeps the variance of a far
// mean; of one that lies far from the others itself, each part of a sum loses digits of their variance, as of a mean without a pilot.
EXPORT bool kdad_norm_moments(const float* x, i64 m, i64 c, const float* pilot, double* first, double* second, int threads) {
    const Norm j{x, nullptr, nullptr, m, c, 0, 0};
    const Shape shape(j);
    return had_memory([&] {
        const std::vector<float> pilots = repeated(pilot, c, shape.pixels);
        channel_sums(j, shape, threads, [&](i64 n, i64 at, float* a, float* b) { add_moments(x + at, pilots.data(), a, b, n); },
                     first, second);
    });
}

// From the sums over m pixels: float [4, c] mean, variance (biased), scale and shift, which give y = clamp(x scale + shift). The
// running statistics move by `momentum` towards mean and unbiased variance.
EXPORT void kdad_norm_finish(i64 m, i64 c, const float* weight, const float* bias, double epsilon, const float* pilot,
                             const double* first, const double* second, float* found, float* running_mean, float* running_variance,
                             double momentum) {
    float *mean = found, *variance = found + c, *scale = found + 2 * c, *shift = found + 3 * c;
    for (i64 k = 0; k < c; k++) {
        const double off = first[k] / (double)m, centre = pilot[k] + off, moment = second[k] / (double)m - off * off;
        const double spread = moment < 0 ? 0 : moment;  // NaN stays
        const double s = weight[k] / std::sqrt(spread + epsilon);
        mean[k] = (float)centre; variance[k] = (float)spread;
        scale[k] = (float)s; shift[k] = (float)(bias[k] - s * centre);
        running_mean[k] = moved(running_mean[k], centre, momentum);
        running_variance[k] = moved(running_variance[k], spread * ((double)m / (double)(m - 1)), momentum);
    }
}

EXPORT bool kdad_norm_apply(const float* x, float* y, i64 m, i64 c, const float* scale, const float* shift, double low, double high,
                            int threads) {
    const Norm j{x, nullptr, y, m, c, (float)low, (float)high};
    const Shape shape(j);
    return had_memory([&] {
        const std::vector<float> scales = repeated(scale, c, shape.pixels), shifts = repeated(shift, c, shape.pixels);
        all_rows(j, shape, threads, [&](i64 n, i64 at) { normalise(x + at, scales.data(), shifts.data(), j.low, j.high, y + at, n); });
    });
}

// Float [7, c]: the gradients to weight and bias, and what the gradient to x needs: scale, shift, mean, constant, slope.
// `statistics`: what kdad_norm_finish found.
EXPORT bool kdad_norm_sums(const float* x, const float* above, i64 m, i64 c, const float* statistics, double epsilon, double low,
                           double high, float* found, int threads) {
    const Norm j{x, above, nullptr, m, c, (float)low, (float)high};
    const Shape shape(j);
    const float *mean = statistics, *variance = statistics + c;
    float *to_weight = found, *to_bias = found + c, *scale = found + 2 * c, *shift = found + 3 * c, *centre = found + 4 * c;
    float *constant = found + 5 * c, *slope = found + 6 * c;
    std::copy(statistics + 2 * c, statistics + 4 * c, scale);  // and shift
    std::copy(mean, mean + c, centre);
    return had_memory([&] {
        const std::vector<float> scales = repeated(scale, c, shape.pixels), shifts = repeated(shift, c, shape.pixels),
                                 centres = repeated(centre, c, shape.pixels);
        std::vector<double> first(c, 0.0), second(c, 0.0);
        channel_sums(j, shape, threads, [&](i64 n, i64 at, float* a, float* b) {
            add_gradients(x + at, above + at, scales.data(), shifts.data(), centres.data(), j.low, j.high, a, b, n);
        }, first.data(), second.data());
        for (i64 k = 0; k < c; k++) {
            const double inverse = 1.0 / std::sqrt((double)variance[k] + epsilon), s = scale[k];
            to_bias[k] = (float)first[k];
            to_weight[k] = (float)(second[k] * inverse);
            constant[k] = (float)(s * first[k] / (double)m);
            slope[k] = (float)(s * inverse * inverse * second[k] / (double)m);
        }
    });
}

// The gradient to x of m pixels; `terms`: the last five rows of what kdad_norm_sums found.
EXPORT bool kdad_norm_input_gradient(const float* x, const float* above, float* out, i64 m, i64 c, const float* terms, double low,
                                     double high, int threads) {
    const Norm j{x, above, out, m, c, (float)low, (float)high};
    const Shape shape(j);
    return had_memory([&] {
        std::vector<float> wide[5];
        for (int k = 0; k < 5; k++) wide[k] = repeated(terms + k * c, c, shape.pixels);
        all_rows(j, shape, threads, [&](i64 n, i64 at) {
            input_gradient(x + at, above + at, wide[0].data(), wide[1].data(), wide[2].data(), wide[3].data(), wide[4].data(), j.low, j.high,
                           out + at, n);
        });
    });
}

// Channels must be a multiple of 16 and K 3 or 5; returns 0 if it cannot, then nothing is written, and -1 where memory is short.
EXPORT int kdad_depthwise_weight_gradient(const float* x, const float* above, float* out, i64 n, i64 h, i64 w, i64 oh, i64 ow, i64 c,
                                          i64 size, i64 stride, i64 top, i64 left, int threads) {
#ifdef LANES
    if (c % 16 || (size != 3 && size != 5)) return 0;
    const Depthwise d{x, above, out, n, h, w, oh, ow, c, stride, top, left};
    const i64 values = c * size * size;
    std::vector<float> sums;
    const bool found = had_memory([&] {
        sums.resize((size_t)n * values, 0.0f);
        shared_out([&](i64 k) {
            if (size == 3) weight_gradient_3(d, k, sums.data() + k * values);
            else weight_gradient_5(d, k, sums.data() + k * values);
        }, n, threads);
    });
    if (!found) return -1;
    std::fill(out, out + values, 0.0f);
    const i64 taps = size * size;
    for (i64 k = 0; k < n; k++)
        for (i64 block = 0; block < c; block += 16)
            for (i64 tap = 0; tap < taps; tap++)
                for (i64 lane = 0; lane < 16; lane++)
                    out[(block + lane) * taps + tap] += sums[k * values + (block * taps) + tap * 16 + lane];
    return 1;
#else
    return 0;
#endif
}

}  // extern "C"
