// Fusion of maps, blur and image score, behind a plain C interface that cpp_path.py loads.

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <vector>

#include "shares.h"

namespace {

constexpr i64 BAND = 1 << 20;  // values of a band, about: 4 MiB

struct Epilogue {  // laid out as cpp_path.py packs it
    i64 n, h, w;
    i64 out;                      // float [n, h, w], or 0
    i64 scores;                   // float [n], or 0
    i64 weights, radius;          // float [2 radius + 1]; radius < 0: no blur
    i64 product, align_corners, torch_border, mean;
    i64 maps;                     // how many of the following are there
    i64 data[8], mh[8], mw[8];    // float [n, mh, mw]
};

struct Axis { std::vector<i64> low, high; std::vector<float> part; };  // value = low * (1 - part) + high * part

Axis bilinear(i64 in, i64 out, bool align_corners) {
    Axis axis;
    axis.low.resize(out); axis.high.resize(out); axis.part.resize(out);
    for (i64 i = 0; i < out; i++) {
        double x = align_corners ? (out > 1 ? (double)i * (double)(in - 1) / (double)(out - 1) : 0.0)
                                 : std::max(0.0, ((double)i + 0.5) * (double)in / (double)out - 0.5);
        const i64 low = std::min<i64>((i64)x, in - 1);
        axis.low[i] = low;
        axis.high[i] = std::min<i64>(low + 1, in - 1);
        axis.part[i] = (float)(x - (double)low);
    }
    return axis;
}

std::vector<i64> reflected(i64 length, i64 radius, bool torch_border) {
    std::vector<i64> index(length + 2 * radius);
    const i64 period = torch_border ? std::max<i64>(2 * length - 2, 1) : 2 * length;
    for (i64 i = 0; i < (i64)index.size(); i++) {
        const i64 k = (((i - radius) % period) + period) % period;
        index[i] = std::min(k, period - (torch_border ? 0 : 1) - k);
        if (length == 1) index[i] = 0;
    }
    return index;
}

CLONES void stretch_row(const float* __restrict in, const i64* __restrict low, const i64* __restrict high,
                        const float* __restrict part, float* __restrict out, i64 n) {
    for (i64 x = 0; x < n; x++) {
        const float a = in[low[x]];
        out[x] = a + part[x] * (in[high[x]] - a);
    }
}

CLONES void blend_rows(const float* __restrict a, const float* __restrict b, float part, float* __restrict out, i64 n, int how) {
    if (how == 0) for (i64 x = 0; x < n; x++) out[x] = a[x] + part * (b[x] - a[x]);
    else if (how == 1) for (i64 x = 0; x < n; x++) out[x] += a[x] + part * (b[x] - a[x]);
    else for (i64 x = 0; x < n; x++) out[x] *= a[x] + part * (b[x] - a[x]);
}

CLONES bool all_finite(const float* in, i64 n) {
    int beyond = 0;
    for (i64 x = 0; x < n; x++) beyond |= !(std::fabs(in[x]) <= FLT_MAX);
    return !beyond;
}

// Infinity less infinity is no number, where shares of both are infinite: what the differences above made NaN of, by shares. Slow,
// for rows that are not finite alone; `before` is what `out` held. What has no share counts for nothing, as in a copy.
float by_shares(float a, float b, float part) {
    if (part == 0) return a;
    const volatile float rest = 1 - part, low = a * rest, high = b * part;  // else a compiler may make differences of it again
    return low + high;
}

void mend_stretched(const float* in, const Axis& axis, float* out, i64 n) {
    for (i64 x = 0; x < n; x++)
        if (out[x] != out[x]) out[x] = by_shares(in[axis.low[x]], in[axis.high[x]], axis.part[x]);
}

void mend_blended(const float* a, const float* b, float part, const float* before, float* out, i64 n, int how) {
    for (i64 x = 0; x < n; x++)
        if (out[x] != out[x]) {
            const float v = by_shares(a[x], b[x], part);
            out[x] = how == 0 ? v : how == 1 ? before[x] + v : before[x] * v;
        }
}

CLONES void blur_along_row(const float* __restrict padded, const float* __restrict weights, i64 taps, float* __restrict out, i64 n) {
    i64 x = 0;
#ifdef LANES
    for (; x + 64 <= n; x += 64) {
        V8 s[8] = {};
        const float* in = padded + x;
        for (i64 k = 0; k < taps; k++, in++) {
            const float w = weights[k];
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) s[i] += w * *(const V8*)(in + 8 * i);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) *(V8*)(out + x + 8 * i) = s[i];
    }
#endif
    for (; x < n; x++) {
        float s = 0;
        for (i64 k = 0; k < taps; k++) s += weights[k] * padded[x + k];
        out[x] = s;
    }
}

CLONES void blur_across_rows(const float* const* rows, const float* __restrict weights, i64 taps, float* __restrict out, i64 n) {
    i64 x = 0;
#ifdef LANES
    for (; x + 64 <= n; x += 64) {
        V8 s[8] = {};
        for (i64 k = 0; k < taps; k++) {
            const float w = weights[k];
            const float* in = rows[k] + x;
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) s[i] += w * *(const V8*)(in + 8 * i);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) *(V8*)(out + x + 8 * i) = s[i];
    }
#endif
    for (; x < n; x++) {
        float s = 0;
        for (i64 k = 0; k < taps; k++) s += weights[k] * rows[k][x];
        out[x] = s;
    }
}

CLONES float row_max(const float* in, i64 n, float start) {  // NaN if there is one
    float lanes[16];
    for (int i = 0; i < 16; i++) lanes[i] = start;
    i64 x = 0;
    for (; x + 16 <= n; x += 16)
        for (int i = 0; i < 16; i++) {
            const float v = in[x + i];
            lanes[i] = (v > lanes[i]) | (v != v) ? v : lanes[i];
        }
    for (; x < n; x++) { const float v = in[x]; lanes[0] = (v > lanes[0]) | (v != v) ? v : lanes[0]; }
    float most = lanes[0];
    for (int i = 1; i < 16; i++) { const float v = lanes[i]; most = (v > most) | (v != v) ? v : most; }
    return most;
}

CLONES double row_sum(const float* in, i64 n) {
    double s = 0;
    for (i64 x = 0; x < n; x++) s += in[x];
    return s;
}

struct Fusion {
    const Epilogue* e;
    std::vector<Axis> down, across;
    std::vector<i64> rows, columns;  // reflected indices, empty without blur
    bool early;                      // rows are blurred along x before they are blended
    i64 bands;
    std::vector<double> partial;     // [n, bands] maxima, or [n, h] sums of rows: added in order, whatever the bands
    std::atomic<i64> next;
    std::atomic<bool> complete;
};

void fuse_band(Fusion& f, i64 n, i64 y0, i64 y1, double* highest) {
    const Epilogue& e = *f.e;
    const i64 W = e.w, radius = e.radius, taps = 2 * radius + 1;
    const bool blurs = radius >= 0;
    const i64 lo = blurs ? std::max<i64>(0, y0 - radius) : y0, hi = blurs ? std::min(e.h, y1 + radius) : y1;
    static thread_local std::vector<float> stretched, fused, line, padded;
    static thread_local std::vector<const float*> window;
    static thread_local std::vector<char> finite;  // of the stretched rows

    i64 sources = 0;
    for (int k = 0; k < e.maps; k++) sources += f.down[k].high[hi - 1] - f.down[k].low[lo] + 1;
    if ((i64)stretched.size() < sources * W) stretched.resize(sources * W);
    if ((i64)finite.size() < sources) finite.resize(sources);
    if ((i64)fused.size() < (hi - lo) * W) fused.resize((hi - lo) * W);
    if ((i64)line.size() < W) line.resize(W);
    if (blurs && (i64)padded.size() < W + 2 * radius) padded.resize(W + 2 * radius);

    auto blur_row = [&](const float* in, float* out) {
        for (i64 i = 0; i < radius; i++) {
            padded[i] = in[f.columns[i]];
            padded[radius + W + i] = in[f.columns[radius + W + i]];
        }
        std::memcpy(padded.data() + radius, in, W * sizeof(float));
        blur_along_row(padded.data(), (const float*)e.weights, taps, out, W);
    };

    i64 at = 0;
    for (int k = 0; k < e.maps; k++) {
        const i64 first = f.down[k].low[lo], last = f.down[k].high[hi - 1];
        const float* map = (const float*)e.data[k] + n * e.mh[k] * e.mw[k];
        float* base = stretched.data() + at * W;
        for (i64 r = first; r <= last; r++) {
            const float* in = map + r * e.mw[k];
            float* out = base + (r - first) * W;
            if (e.mw[k] == W) std::memcpy(out, in, W * sizeof(float));
            else stretch_row(in, f.across[k].low.data(), f.across[k].high.data(), f.across[k].part.data(), out, W);
            finite[at + r - first] = all_finite(in, e.mw[k]);
            if (!finite[at + r - first] && e.mw[k] != W) mend_stretched(in, f.across[k], out, W);
            if (f.early) { blur_row(out, line.data()); std::memcpy(out, line.data(), W * sizeof(float)); }
        }
        const int how = k == 0 ? 0 : e.product ? 2 : 1;
        for (i64 y = lo; y < hi; y++) {
            const i64 low = f.down[k].low[y] - first, high = f.down[k].high[y] - first;
            const float *a = base + low * W, *b = base + high * W;
            const float part = f.down[k].part[y];
            float* out = fused.data() + (y - lo) * W;
            const bool mends = !finite[at + low] || !finite[at + high];
            if (mends && how) std::memcpy(line.data(), out, W * sizeof(float));
            blend_rows(a, b, part, out, W, how);
            if (mends) mend_blended(a, b, part, line.data(), out, W, how);
        }
        at += last - first + 1;
    }
    if (blurs && !f.early)
        for (i64 y = lo; y < hi; y++) {
            float* row = fused.data() + (y - lo) * W;
            blur_row(row, line.data());
            std::memcpy(row, line.data(), W * sizeof(float));
        }
    if (blurs && (i64)window.size() < y1 - y0 + 2 * radius) window.resize(y1 - y0 + 2 * radius);
    if (blurs)
        for (i64 i = 0; i < y1 - y0 + 2 * radius; i++) window[i] = fused.data() + (f.rows[y0 + i] - lo) * W;
    float most = -INFINITY;
    for (i64 y = y0; y < y1; y++) {
        float* out = e.out ? (float*)e.out + (n * e.h + y) * W : line.data();
        if (blurs) blur_across_rows(window.data() + (y - y0), (const float*)e.weights, taps, out, W);
        else std::memcpy(out, fused.data() + (y - lo) * W, W * sizeof(float));
        if (!e.scores) continue;
        if (e.mean) f.partial[n * e.h + y] = row_sum(out, W);
        else most = row_max(out, W, most);
    }
    if (!e.mean) *highest = most;
}

void fusion_body(void* raw) {
    Fusion& f = *(Fusion*)raw;
    const bool complete = had_memory([&] {
        for (i64 unit; (unit = f.next.fetch_add(1, std::memory_order_relaxed)) < f.e->n * f.bands;) {
            const i64 band = unit % f.bands, y0 = f.e->h * band / f.bands, y1 = f.e->h * (band + 1) / f.bands;
            fuse_band(f, unit / f.bands, y0, y1, f.e->mean ? nullptr : &f.partial[unit]);
        }
    });
    if (!complete) f.complete = false;
}

// Into how many bands of rows a map is cut: so many that threads have work, and none keeps much memory. A blur makes the rows beside a
// band once more, of which few are worth their while.
i64 bands_of(const Epilogue& e, int threads) {
    const i64 least = std::max<i64>(32, 8 * e.radius), small = std::min(e.h / least, (e.h * e.w + BAND - 1) / BAND);
    return std::max<i64>({1, small, e.n >= 2 * threads ? 1 : std::min<i64>(threads, e.h / 32)});
}

// Raises std::bad_alloc where memory is short.
void fuse(const Epilogue& e, int threads) {
    if (!e.n || !e.h || !e.w) return;
    Fusion f;
    f.e = &e;
    for (int k = 0; k < e.maps; k++) {
        f.down.push_back(bilinear(e.mh[k], e.h, e.align_corners));
        f.across.push_back(bilinear(e.mw[k], e.w, e.align_corners));
    }
    if (e.radius >= 0) {
        f.rows = reflected(e.h, e.radius, e.torch_border);
        f.columns = reflected(e.w, e.radius, e.torch_border);
    }
    f.bands = bands_of(e, threads);
    // A sum is linear: blurring the few stretched source rows along x costs less than blurring the output rows.
    i64 sources = 0;
    for (int k = 0; k < e.maps; k++) sources += f.down[k].high[e.h - 1] - f.down[k].low[0] + 1;
    f.early = e.radius >= 0 && !e.product && sources < e.h;
    const i64 parts = e.mean ? e.h : f.bands;
    f.partial.resize(e.n * parts);
    f.next = 0; f.complete = true;
    parallel(fusion_body, &f, (int)std::min<i64>(threads, e.n * f.bands));
    if (!f.complete) throw std::bad_alloc();
    if (!e.scores) return;
    for (i64 n = 0; n < e.n; n++) {
        double s = f.partial[n * parts];
        for (i64 b = 1; b < parts; b++) {
            const double v = f.partial[n * parts + b];
            s = e.mean ? s + v : v > s || v != v ? v : s;
        }
        ((float*)e.scores)[n] = (float)(e.mean ? s / (double)(e.h * e.w) : s);
    }
}

}  // namespace

extern "C" {

// False where memory is short.
EXPORT bool kdad_epilogue(const void* raw, int threads) {
    return had_memory([&] { fuse(*(const Epilogue*)raw, threads); });
}

}  // extern "C"
