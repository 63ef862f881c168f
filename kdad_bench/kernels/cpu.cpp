// One-sweep CPU kernels behind a plain C interface; native.py loads them. No Python or torch headers, no OpenMP library of its own.
//
// Work is cut into tiles that stay in the cache between the first sweep (the sums A = |t|^2, B = |s|^2, P = t.s per pixel) and
// the second (residual of the unit vectors, gradients). Where no gradient is wanted one sweep is enough: with planes the sums
// are double, with rows float, and there only the pixels whose 1 - c float cannot resolve are read again. Every tile has its
// own slot for partial results and these are added in order, so a result does not depend on the number of threads.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "cpu.h"

namespace {

constexpr float TINY = 7.888609052210118e-31f;  // 2^-100: vectors below it count as zero, as in reference.py
constexpr int MAX_PIXELS = 2048;                // pixels of a tile, at most; NCHW is read fastest in long rows
constexpr i64 PLANES_TILE = 65536;              // values of one tensor in a tile: NCHW (stays in L2 for the second sweep) ...
constexpr i64 ROWS_TILE = 32768;                // ... and channels_last
constexpr i64 SECOND_LOOK = 4096;               // values of one tensor that stay in L1
constexpr float NEAR = 0.03125f;                // below it 1 - c in float is off by more than about 1e-5 of itself

enum Kind { UNIT_L2 = 0, COSINE = 1, L2 = 2, FLAT_SUMS = 3, FLAT_GRADIENT = 4, ATTENTION = 5, FLAT_LOSS = 6 };
enum Dtype { F32 = 0, F16 = 1, BF16 = 2 };

struct View {  // strides in elements
    i64 data, sn, sc, sh, sw, dtype;
};

struct Job {  // laid out as native.py packs it
    i64 n, c, h, w;
    View teacher, student;
    i64 map;                    // float [n, h, w] contiguous, or 0
    View student_grad, teacher_grad;  // data 0: not wanted
    i64 upstream, un, uh, uw;   // float, any strides, or 0
    double factor;              // multiplies the gradients
    double weight;              // multiplies the map
    i64 sums;                   // double [n, 3] A, B, P per sample: written by FLAT_SUMS and FLAT_LOSS, read by FLAT_GRADIENT
    i64 chained;                // 1: same teacher and tiling as the job before it, so that its tile is still in the cache
};

// ---- 16-bit floats -------------------------------------------------------------------------------------------------

INLINE float from_bits(uint32_t x) { float f; std::memcpy(&f, &x, 4); return f; }
INLINE uint32_t to_bits(float f) { uint32_t x; std::memcpy(&x, &f, 4); return x; }

INLINE float half_to_float(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = h & 0x7fff;
    const uint32_t normal = (magnitude << 13) + (magnitude >= 0x7c00 ? (224u << 23) : (112u << 23));
    const uint32_t subnormal = to_bits((float)(int32_t)magnitude * 5.9604644775390625e-8f);  // 2^-24
    return from_bits(sign | (magnitude < 0x400 ? subnormal : normal));
}

INLINE uint16_t float_to_half(float f) {  // to nearest even
    const uint32_t x = to_bits(f), magnitude = x & 0x7fffffff;
    const uint32_t normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
    const uint32_t subnormal = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t r = magnitude < 0x38800000u ? subnormal : normal;
    r = magnitude >= 0x47800000u ? 0x7c00u : r;
    r = magnitude > 0x7f800000u ? 0x7e00u : r;
    return (uint16_t)(r | ((x >> 16) & 0x8000));
}

INLINE float bfloat_to_float(uint16_t h) { return from_bits((uint32_t)h << 16); }

INLINE uint16_t float_to_bfloat(float f) {
    const uint32_t x = to_bits(f), rounded = (x + 0x7fff + ((x >> 16) & 1)) >> 16;
    return (uint16_t)((x & 0x7fffffff) > 0x7f800000u ? 0x7fc0u : rounded);
}

CLONES void half_row_to_float(const uint16_t* __restrict in, float* __restrict out, i64 n) {
    for (i64 i = 0; i < n; i++) out[i] = half_to_float(in[i]);
}
CLONES void bfloat_row_to_float(const uint16_t* __restrict in, float* __restrict out, i64 n) {
    for (i64 i = 0; i < n; i++) out[i] = bfloat_to_float(in[i]);
}
CLONES void float_row_to_half(const float* __restrict in, uint16_t* __restrict out, i64 n) {
    for (i64 i = 0; i < n; i++) out[i] = float_to_half(in[i]);
}
CLONES void float_row_to_bfloat(const float* __restrict in, uint16_t* __restrict out, i64 n) {
    for (i64 i = 0; i < n; i++) out[i] = float_to_bfloat(in[i]);
}

// ---- tiles: `outer` rows of `inner` contiguous floats; planes: rows are channels, else rows are pixels ---------------------

struct Tile {
    const float* a; i64 sa;  // teacher and its row stride
    const float* b; i64 sb;  // student
    i64 c, p;                // channels, pixels
    bool planes;
};

CLONES void planes_sums(const Tile& t, float* __restrict A, float* __restrict B, float* __restrict P) {
    for (i64 p = 0; p < t.p; p++) A[p] = B[p] = P[p] = 0;
    i64 c = 0;
    for (; c + 4 <= t.c; c += 4) {
        const float* __restrict a = t.a + c * t.sa; const float* __restrict b = t.b + c * t.sb;
        const float* a1 = a + t.sa; const float* a2 = a1 + t.sa; const float* a3 = a2 + t.sa;
        const float* b1 = b + t.sb; const float* b2 = b1 + t.sb; const float* b3 = b2 + t.sb;
#pragma GCC ivdep
        for (i64 p = 0; p < t.p; p++) {
            A[p] += (a[p] * a[p] + a1[p] * a1[p]) + (a2[p] * a2[p] + a3[p] * a3[p]);
            B[p] += (b[p] * b[p] + b1[p] * b1[p]) + (b2[p] * b2[p] + b3[p] * b3[p]);
            P[p] += (a[p] * b[p] + a1[p] * b1[p]) + (a2[p] * b2[p] + a3[p] * b3[p]);
        }
    }
    for (; c < t.c; c++) {
        const float* __restrict a = t.a + c * t.sa; const float* __restrict b = t.b + c * t.sb;
        for (i64 p = 0; p < t.p; p++) { A[p] += a[p] * a[p]; B[p] += b[p] * b[p]; P[p] += a[p] * b[p]; }
    }
}

// Four pixels at a time, one accumulator of 16 lanes each, channels innermost so that memory is read in order; `collapse` adds the lanes of all four with one tree.
#ifdef LANES
INLINE void collapse(const V16* v, float* out) {
    V16 x[2];
    for (int i = 0; i < 2; i++)
        x[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               __builtin_shufflevector(v[2 * i], v[2 * i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    V16 y = __builtin_shufflevector(x[0], x[1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
            __builtin_shufflevector(x[0], x[1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    y += __builtin_shufflevector(y, y, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    y += __builtin_shufflevector(y, y, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    out[0] = y[0]; out[1] = y[4]; out[2] = y[8]; out[3] = y[12];
}
#endif

CLONES void rows_sums(const Tile& t, float* __restrict A, float* __restrict B, float* __restrict P) {
    i64 p = 0;
#ifdef LANES
    for (; p + 4 <= t.p; p += 4) {
        V16 x[4] = {}, y[4] = {}, z[4] = {};
        const i64 whole = t.c & ~(i64)15;
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const float* in_a = t.a + (p + i) * t.sa; const float* in_b = t.b + (p + i) * t.sb;
            for (i64 c = 0; c < whole; c += 16) {
                const V16 a = *(const V16*)(in_a + c), b = *(const V16*)(in_b + c);
                x[i] += a * a; y[i] += b * b; z[i] += a * b;
            }
        }
        collapse(x, A + p); collapse(y, B + p); collapse(z, P + p);
        if (whole < t.c)
            for (int i = 0; i < 4; i++)
                for (i64 k = whole; k < t.c; k++) {
                    const float a = t.a[(p + i) * t.sa + k], b = t.b[(p + i) * t.sb + k];
                    A[p + i] += a * a; B[p + i] += b * b; P[p + i] += a * b;
                }
    }
#endif
    for (; p < t.p; p++) {
        const float* __restrict a = t.a + p * t.sa; const float* __restrict b = t.b + p * t.sb;
        float x = 0, y = 0, z = 0;
        for (i64 c = 0; c < t.c; c++) { x += a[c] * a[c]; y += b[c] * b[c]; z += a[c] * b[c]; }
        A[p] = x; B[p] = y; P[p] = z;
    }
}

// The sums of a teacher and two students in one reading.
CLONES void rows_dual_sums(const Tile& t, const Tile& o, float* __restrict A, float* __restrict B, float* __restrict P,
                           float* __restrict B2, float* __restrict P2) {
    i64 p = 0;
#ifdef LANES
    for (; p + 4 <= t.p; p += 4) {
        V16 x[4] = {}, y[4] = {}, z[4] = {}, y2[4] = {}, z2[4] = {};
        const i64 whole = t.c & ~(i64)15;
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const float* in_a = t.a + (p + i) * t.sa; const float* in_b = t.b + (p + i) * t.sb; const float* in_o = o.b + (p + i) * o.sb;
            for (i64 c = 0; c < whole; c += 16) {
                const V16 a = *(const V16*)(in_a + c), b = *(const V16*)(in_b + c), other = *(const V16*)(in_o + c);
                x[i] += a * a; y[i] += b * b; z[i] += a * b; y2[i] += other * other; z2[i] += a * other;
            }
        }
        collapse(x, A + p); collapse(y, B + p); collapse(z, P + p); collapse(y2, B2 + p); collapse(z2, P2 + p);
        if (whole < t.c)
            for (int i = 0; i < 4; i++)
                for (i64 k = whole; k < t.c; k++) {
                    const float a = t.a[(p + i) * t.sa + k], b = t.b[(p + i) * t.sb + k], other = o.b[(p + i) * o.sb + k];
                    A[p + i] += a * a; B[p + i] += b * b; P[p + i] += a * b; B2[p + i] += other * other; P2[p + i] += a * other;
                }
    }
#endif
    for (; p < t.p; p++) {
        float x = 0, y = 0, z = 0, y2 = 0, z2 = 0;
        for (i64 c = 0; c < t.c; c++) {
            const float a = t.a[p * t.sa + c], b = t.b[p * t.sb + c], other = o.b[p * o.sb + c];
            x += a * a; y += b * b; z += a * b; y2 += other * other; z2 += a * other;
        }
        A[p] = x; B[p] = y; P[p] = z; B2[p] = y2; P2[p] = z2;
    }
}

#ifdef LANES
typedef float V8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef double D8 __attribute__((vector_size(64), aligned(8), may_alias));
#define WIDENED(x) __builtin_convertvector(*(const V8*)(x), D8)
#endif

// The sums in double: products of floats are exact there, so that 1 - P / sqrt(A B) keeps its digits for near pairs.
CLONES void planes_double_sums(const Tile& t, double* __restrict A, double* __restrict B, double* __restrict P) {
    for (i64 p = 0; p < t.p; p++) A[p] = B[p] = P[p] = 0;
    i64 c = 0, done = 0;
#ifdef LANES
    done = t.p & ~(i64)7;
    for (; c + 8 <= t.c; c += 8) {
        const float* a = t.a + c * t.sa; const float* b = t.b + c * t.sb;
        for (i64 p = 0; p < done; p += 8) {
            D8 x = *(D8*)(A + p), y = *(D8*)(B + p), z = *(D8*)(P + p);
#pragma GCC unroll 8
            for (int k = 0; k < 8; k++) {
                const D8 u = WIDENED(a + k * t.sa + p), v = WIDENED(b + k * t.sb + p);
                x += u * u; y += v * v; z += u * v;
            }
            *(D8*)(A + p) = x; *(D8*)(B + p) = y; *(D8*)(P + p) = z;
        }
    }
    const i64 left = c;
    for (c = 0; c < left; c++)
        for (i64 p = done; p < t.p; p++) {
            const double u = t.a[c * t.sa + p], v = t.b[c * t.sb + p];
            A[p] += u * u; B[p] += v * v; P[p] += u * v;
        }
#endif
    for (; c < t.c; c++) {
        const float* __restrict a = t.a + c * t.sa; const float* __restrict b = t.b + c * t.sb;
        for (i64 p = 0; p < t.p; p++) {
            const double u = a[p], v = b[p];
            A[p] += u * u; B[p] += v * v; P[p] += u * v;
        }
    }
}

CLONES void distances(const double* __restrict A, const double* __restrict B, const double* __restrict P, float* __restrict D, i64 n) {
    for (i64 p = 0; p < n; p++) {
        const double q = 1.0 - P[p] / std::sqrt(A[p] * B[p]);
        D[p] = (float)(q < 0 ? 0 : q);
    }
}

// sum over channels of (b * ib - a * ia)^2
CLONES void planes_residual(const Tile& t, const float* __restrict ia, const float* __restrict ib, float* __restrict D) {
    for (i64 p = 0; p < t.p; p++) D[p] = 0;
    i64 c = 0;
    for (; c + 4 <= t.c; c += 4) {
        const float* __restrict a = t.a + c * t.sa; const float* __restrict b = t.b + c * t.sb;
        const float* a1 = a + t.sa; const float* a2 = a1 + t.sa; const float* a3 = a2 + t.sa;
        const float* b1 = b + t.sb; const float* b2 = b1 + t.sb; const float* b3 = b2 + t.sb;
#pragma GCC ivdep
        for (i64 p = 0; p < t.p; p++) {
            const float x = ia[p], y = ib[p];
            const float e0 = b[p] * y - a[p] * x, e1 = b1[p] * y - a1[p] * x;
            const float e2 = b2[p] * y - a2[p] * x, e3 = b3[p] * y - a3[p] * x;
            D[p] += (e0 * e0 + e1 * e1) + (e2 * e2 + e3 * e3);
        }
    }
    for (; c < t.c; c++) {
        const float* __restrict a = t.a + c * t.sa; const float* __restrict b = t.b + c * t.sb;
        for (i64 p = 0; p < t.p; p++) { const float e = b[p] * ib[p] - a[p] * ia[p]; D[p] += e * e; }
    }
}

CLONES void rows_residual(const Tile& t, const float* __restrict ia, const float* __restrict ib, float* __restrict D) {
    i64 p = 0;
#ifdef LANES
    for (; p + 4 <= t.p; p += 4) {
        V16 d[4] = {};
        i64 c = 0;
        for (; c + 16 <= t.c; c += 16)
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                const V16 a = *(const V16*)(t.a + (p + i) * t.sa + c), b = *(const V16*)(t.b + (p + i) * t.sb + c);
                const V16 e = b * ib[p + i] - a * ia[p + i];
                d[i] += e * e;
            }
        collapse(d, D + p);
        if (c < t.c)
            for (int i = 0; i < 4; i++)
                for (i64 k = c; k < t.c; k++) {
                    const float e = t.b[(p + i) * t.sb + k] * ib[p + i] - t.a[(p + i) * t.sa + k] * ia[p + i];
                    D[p + i] += e * e;
                }
    }
#endif
    for (; p < t.p; p++) {
        const float* __restrict a = t.a + p * t.sa; const float* __restrict b = t.b + p * t.sb;
        const float x = ia[p], y = ib[p];
        float d = 0;
        for (i64 c = 0; c < t.c; c++) { const float e = b[c] * y - a[c] * x; d += e * e; }
        D[p] = d;
    }
}

// One row of a gradient, out = u * x + v * y, with u, v per pixel (planes) or constant along the row.
CLONES void planes_combine(const float* __restrict x, const float* __restrict y, const float* __restrict u,
                           const float* __restrict v, float* __restrict out, i64 n) {
    for (i64 p = 0; p < n; p++) out[p] = u[p] * x[p] + v[p] * y[p];
}
CLONES void rows_combine(const float* __restrict x, const float* __restrict y, float u, float v, float* __restrict out, i64 n) {
    for (i64 i = 0; i < n; i++) out[i] = u * x[i] + v * y[i];
}

// The same with the residual of the unit vectors, e = b*ib - a*ia, so that nothing cancels when b is near a:
// out = k * e + m * x, and D += e^2 on the way.
CLONES void planes_residual_gradient(const float* __restrict a, const float* __restrict b, const float* __restrict ia,
                                     const float* __restrict ib, const float* __restrict k, const float* __restrict m,
                                     float* __restrict D, float* __restrict out, i64 n) {
    for (i64 p = 0; p < n; p++) {
        const float e = b[p] * ib[p] - a[p] * ia[p];
        D[p] += e * e;
        out[p] = k[p] * e + m[p] * b[p];
    }
}
// Four channels at a time: the coefficients of a pixel are loaded once for all of them.
CLONES void planes_residual_gradient4(const float* __restrict a, i64 sa, const float* __restrict b, i64 sb, const float* __restrict ia,
                                      const float* __restrict ib, const float* __restrict k, const float* __restrict m,
                                      float* __restrict D, float* __restrict out, i64 so, i64 n) {
    const float *a1 = a + sa, *a2 = a1 + sa, *a3 = a2 + sa, *b1 = b + sb, *b2 = b1 + sb, *b3 = b2 + sb;
    float *out1 = out + so, *out2 = out1 + so, *out3 = out2 + so;
#pragma GCC ivdep
    for (i64 p = 0; p < n; p++) {
        const float x = ia[p], y = ib[p], u = k[p], v = m[p];
        const float e0 = b[p] * y - a[p] * x, e1 = b1[p] * y - a1[p] * x;
        const float e2 = b2[p] * y - a2[p] * x, e3 = b3[p] * y - a3[p] * x;
        D[p] += (e0 * e0 + e1 * e1) + (e2 * e2 + e3 * e3);
        out[p] = u * e0 + v * b[p]; out1[p] = u * e1 + v * b1[p];
        out2[p] = u * e2 + v * b2[p]; out3[p] = u * e3 + v * b3[p];
    }
}

// out = u * x, the rows of a tile at once.
CLONES void planes_scale(const float* __restrict x, i64 sx, const float* __restrict u, float* __restrict out, i64 so, i64 rows, i64 n) {
    for (i64 r = 0; r < rows; r++, x += sx, out += so)
        for (i64 p = 0; p < n; p++) out[p] = u[p] * x[p];
}
CLONES void rows_scale(const float* __restrict x, i64 sx, const float* __restrict u, float* __restrict out, i64 so, i64 rows, i64 n) {
    for (i64 r = 0; r < rows; r++, x += sx, out += so)
        for (i64 i = 0; i < n; i++) out[i] = u[r] * x[i];
}

CLONES float rows_residual_gradient(const float* __restrict a, const float* __restrict b, float ia, float ib, float k, float m,
                                    float* __restrict out, i64 n) {
    float d = 0;
    for (i64 c = 0; c < n; c++) {
        const float e = b[c] * ib - a[c] * ia;
        d += e * e;
        out[c] = k * e + m * b[c];
    }
    return d;
}

// The same for all rows of a tile.
CLONES void rows_residual_gradients(const Tile& t, const float* __restrict ia, const float* __restrict ib, const float* __restrict k,
                                    const float* __restrict m, float* __restrict D, float* __restrict out, i64 so) {
    for (i64 r = 0; r < t.p; r++) {
        const float* __restrict a = t.a + r * t.sa; const float* __restrict b = t.b + r * t.sb;
        float* __restrict to = out + r * so;
        const float x = ia[r], y = ib[r], u = k[r], v = m[r];
        i64 c = 0;
        float d = 0;
#ifdef LANES
        V16 sum = {};
        for (; c + 16 <= t.c; c += 16) {
            const V16 own = *(const V16*)(b + c), e = own * y - *(const V16*)(a + c) * x;
            sum += e * e;
            *(V16*)(to + c) = u * e + v * own;
        }
        for (int i = 0; i < 16; i++) d += sum[i];
#endif
        for (; c < t.c; c++) {
            const float e = b[c] * y - a[c] * x;
            d += e * e;
            to[c] = u * e + v * b[c];
        }
        D[r] = d;
    }
}

CLONES void row_double_sums(const float* __restrict a, const float* __restrict b, i64 n, double* __restrict out) {
    double x = 0, y = 0, z = 0;
    i64 i = 0;
#ifdef LANES
    D8 xs[4] = {}, ys[4] = {}, zs[4] = {};
    for (; i + 32 <= n; i += 32)
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            const D8 u = WIDENED(a + i + 8 * k), v = WIDENED(b + i + 8 * k);
            xs[k] += u * u; ys[k] += v * v; zs[k] += u * v;
        }
    const D8 sx = (xs[0] + xs[1]) + (xs[2] + xs[3]), sy = (ys[0] + ys[1]) + (ys[2] + ys[3]), sz = (zs[0] + zs[1]) + (zs[2] + zs[3]);
    for (int k = 0; k < 8; k++) { x += sx[k]; y += sy[k]; z += sz[k]; }
#endif
    for (; i < n; i++) {
        const double u = a[i], v = b[i];
        x += u * u; y += v * v; z += u * v;
    }
    out[0] += x; out[1] += y; out[2] += z;
}

CLONES void inverse_lengths(const float* __restrict A, const float* __restrict B, const float* __restrict P, float* __restrict ia,
                            float* __restrict ib, float* __restrict q, i64 n) {
    for (i64 p = 0; p < n; p++) {
        ia[p] = 1.0f / std::sqrt(A[p]);
        ib[p] = 1.0f / std::sqrt(B[p]);
        q[p] = 1.0f - P[p] * (ia[p] * ib[p]);
    }
}

INLINE bool in_range(float A, float B) { return A > 1e-30f && A < 1e37f && B > 1e-30f && B < 1e37f; }

CLONES i64 out_of_range(const float* __restrict A, const float* __restrict B, i64 n) {
    i64 found = 0;
    for (i64 p = 0; p < n; p++) {
        found += in_range(A[p], B[p]) ? 0 : 1;
    }
    return found;
}

// The rare pixel whose squares leave float32: zero, tiny and huge vectors, in double precision.
void careful_pixel(const Tile& t, i64 p, float* ia, float* ib, float* q) {
    double A = 0, B = 0, P = 0, la = 0, lb = 0;
    for (i64 c = 0; c < t.c; c++) {
        const double a = t.planes ? t.a[c * t.sa + p] : t.a[p * t.sa + c];
        const double b = t.planes ? t.b[c * t.sb + p] : t.b[p * t.sb + c];
        A += a * a; B += b * b; P += a * b;
        la = std::max(la, std::fabs(a)); lb = std::max(lb, std::fabs(b));
        if (std::isnan(a)) la = a;
        if (std::isnan(b)) lb = b;
    }
    const bool a_zero = la <= TINY, b_zero = lb <= TINY;  // false for NaN, which then spreads
    ia[p] = a_zero ? 0.0f : (float)(1.0 / std::sqrt(A));
    ib[p] = b_zero ? 0.0f : (float)(1.0 / std::sqrt(B));
    q[p] = a_zero || b_zero ? 1.0f : (float)(1.0 - P / std::sqrt(A) / std::sqrt(B));
}

// ---- reading and writing tiles of any dtype and layout --------------------------------------------------------------

struct Scratch {
    std::vector<float> a, b, b2, out;
    float A[MAX_PIXELS], B[MAX_PIXELS], P[MAX_PIXELS], ia[MAX_PIXELS], ib[MAX_PIXELS], q[MAX_PIXELS], D[MAX_PIXELS];
    float B2[MAX_PIXELS], P2[MAX_PIXELS], k[MAX_PIXELS], m[MAX_PIXELS], g[MAX_PIXELS];
    double wide_A[MAX_PIXELS], wide_B[MAX_PIXELS], wide_P[MAX_PIXELS];
};

INLINE bool flat(const View& v, i64 h, i64 w) { return h == 1 || w == 1 || v.sh == v.sw * w; }

INLINE i64 pixel_stride(const View& v, i64 w) { return w == 1 ? v.sh : v.sw; }

INLINE bool row_is_contiguous(const View& v, const Job& j, bool planes) {
    if (!flat(v, j.h, j.w)) return false;
    return planes ? (pixel_stride(v, j.w) == 1 || j.h * j.w == 1) : (v.sc == 1 || j.c == 1);
}

INLINE float load_one(const View& v, i64 offset) {
    if (v.dtype == F32) return ((const float*)v.data)[offset];
    const uint16_t x = ((const uint16_t*)v.data)[offset];
    return v.dtype == F16 ? half_to_float(x) : bfloat_to_float(x);
}

INLINE void store_one(const View& v, i64 offset, float x) {
    if (v.dtype == F32) ((float*)v.data)[offset] = x;
    else ((uint16_t*)v.data)[offset] = v.dtype == F16 ? float_to_half(x) : float_to_bfloat(x);
}

// A pointer to the tile of `v` at sample n, pixels [p0, p0 + np), as rows of floats; copied to `buffer` only if it has to be.
const float* acquire(const View& v, const Job& j, i64 n, i64 p0, i64 np, bool planes, std::vector<float>& buffer, i64* stride) {
    const i64 rows = planes ? j.c : np, length = planes ? np : j.c;
    if (row_is_contiguous(v, j, planes)) {
        const i64 ps = pixel_stride(v, j.w), start = n * v.sn + p0 * ps, rs = planes ? v.sc : ps;
        if (v.dtype == F32) { *stride = rs; return (const float*)v.data + start; }
        if ((i64)buffer.size() < rows * length) buffer.resize(rows * length);
        *stride = length;
        for (i64 r = 0; r < rows; r++) {
            const uint16_t* in = (const uint16_t*)v.data + start + r * rs;
            if (v.dtype == F16) half_row_to_float(in, buffer.data() + r * length, length);
            else bfloat_row_to_float(in, buffer.data() + r * length, length);
        }
        return buffer.data();
    }
    if ((i64)buffer.size() < rows * length) buffer.resize(rows * length);
    *stride = length;
    for (i64 p = 0; p < np; p++) {
        const i64 start = n * v.sn + ((p0 + p) / j.w) * v.sh + ((p0 + p) % j.w) * v.sw;
        for (i64 c = 0; c < j.c; c++) buffer[planes ? c * length + p : p * length + c] = load_one(v, start + c * v.sc);
    }
    return buffer.data();
}

// Where to write row r of an output tile (a pointer into the output, or `row` if it must be converted by `finish_row`).
INLINE float* output_row(const View& v, const Job& j, i64 n, i64 p0, i64 r, bool planes, float* row) {
    if (v.dtype != F32 || !row_is_contiguous(v, j, planes)) return row;
    const i64 ps = pixel_stride(v, j.w);
    return (float*)v.data + n * v.sn + p0 * ps + r * (planes ? v.sc : ps);
}

// Whether the rows of an output tile can be written in place.
INLINE bool in_place(const View& v, const Job& j, bool planes) { return v.dtype == F32 && row_is_contiguous(v, j, planes); }

INLINE i64 row_stride(const View& v, const Job& j, bool planes) { return planes ? v.sc : pixel_stride(v, j.w); }

void finish_row(const View& v, const Job& j, i64 n, i64 p0, i64 r, bool planes, const float* row, i64 length) {
    if (row_is_contiguous(v, j, planes)) {
        if (v.dtype == F32) return;
        const i64 ps = pixel_stride(v, j.w), start = n * v.sn + p0 * ps + r * (planes ? v.sc : ps);
        if (v.dtype == F16) float_row_to_half(row, (uint16_t*)v.data + start, length);
        else float_row_to_bfloat(row, (uint16_t*)v.data + start, length);
        return;
    }
    for (i64 i = 0; i < length; i++) {
        const i64 p = p0 + (planes ? i : r), c = planes ? r : i;
        store_one(v, n * v.sn + (p / j.w) * v.sh + (p % j.w) * v.sw + c * v.sc, row[i]);
    }
}

// ---- one tile of one job -------------------------------------------------------------------------------------------

void upstream_of(const Job& j, i64 n, i64 p0, i64 np, float* g) {
    const float factor = (float)j.factor;
    if (!j.upstream) { for (i64 p = 0; p < np; p++) g[p] = factor; return; }
    const float* u = (const float*)j.upstream + n * j.un;
    for (i64 p = 0; p < np; p++) g[p] = factor * u[((p0 + p) / j.w) * j.uh + ((p0 + p) % j.w) * j.uw];
}

// grads = u * first + v * second for every row, the coefficients given per pixel
void write_combination(const Job& j, const Tile& t, const View& v, i64 n, i64 p0, const float* u, const float* w, std::vector<float>& row) {
    const i64 rows = t.planes ? t.c : t.p, length = t.planes ? t.p : t.c;
    if ((i64)row.size() < length) row.resize(length);
    for (i64 r = 0; r < rows; r++) {
        float* out = output_row(v, j, n, p0, r, t.planes, row.data());
        const float *a = t.a + r * t.sa, *b = t.b + r * t.sb;
        if (t.planes) planes_combine(a, b, u, w, out, length);
        else rows_combine(a, b, u[r], w[r], out, length);
        finish_row(v, j, n, p0, r, t.planes, out, length);
    }
}

// grads = u * first + v * second for every value
void write_flat(const Job& j, const Tile& t, const View& v, i64 n, i64 p0, float u, float w, std::vector<float>& row) {
    const i64 rows = t.planes ? t.c : t.p, length = t.planes ? t.p : t.c;
    if ((i64)row.size() < length) row.resize(length);
    const bool dense = t.sa == length && t.sb == length && in_place(v, j, t.planes) && row_stride(v, j, t.planes) == length;
    if (dense) return rows_combine(t.a, t.b, u, w, output_row(v, j, n, p0, 0, t.planes, nullptr), rows * length);
    for (i64 r = 0; r < rows; r++) {
        float* out = output_row(v, j, n, p0, r, t.planes, row.data());
        rows_combine(t.a + r * t.sa, t.b + r * t.sb, u, w, out, length);
        finish_row(v, j, n, p0, r, t.planes, out, length);
    }
}

// From the float sums of pixels p0 to p1 of a tile of rows: 1 - c where float resolves it, the residual of the pixel elsewhere.
// Returns whether there were such pixels.
bool rows_distances(const Tile& t, Scratch& s, const float* B, const float* P, i64 p0, i64 p1) {
    bool any = false;
    inverse_lengths(s.A + p0, B + p0, P + p0, s.ia + p0, s.ib + p0, s.q + p0, p1 - p0);
    if (out_of_range(s.A + p0, B + p0, p1 - p0))
        for (i64 p = p0; p < p1; p++)
            if (!in_range(s.A[p], B[p])) { careful_pixel(t, p, s.ia, s.ib, s.q); s.q[p] = 0; }
    for (i64 p = p0; p < p1;) {
        if (s.q[p] >= NEAR) { s.D[p] = s.q[p]; p++; continue; }
        i64 end = p + 1;
        while (end < p1 && !(s.q[end] >= NEAR)) end++;
        Tile near = t;
        near.a += p * t.sa; near.b += p * t.sb; near.p = end - p;
        rows_residual(near, s.ia + p, s.ib + p, s.D + p);
        for (; p < end; p++) s.D[p] *= 0.5f;
        any = true;
    }
    return any;
}

// Walks a tile of rows: in one stride, or after near pixels in strides that are still in the L1 cache for their second reading.
struct Strides {
    i64 p0 = 0, p1, pixels, small;
    Strides(i64 pixels, i64 channels)
        : p1(std::min<i64>(16, pixels)), pixels(pixels), small(std::max<i64>(4, SECOND_LOOK / channels / 4 * 4)) {}
    bool next(bool near) {
        p0 = p1;
        p1 = near ? std::min(pixels, p0 + small) : pixels;
        return p0 < pixels;
    }
};

Tile part_of(const Tile& t, i64 p0, i64 p1) {
    Tile part = t;
    part.a += p0 * t.sa; part.b += p0 * t.sb; part.p = p1 - p0;
    return part;
}

// Half the squared residual of the unit vectors by one sweep, to s.D; the lengths to s.ia, s.ib only where they are 0.
void one_sweep(const Tile& t, Scratch& s) {
    if (t.planes) {
        planes_double_sums(t, s.wide_A, s.wide_B, s.wide_P);
        distances(s.wide_A, s.wide_B, s.wide_P, s.D, t.p);
        const double least = (double)t.c * TINY * TINY;  // zero vectors lie below
        for (i64 p = 0; p < t.p; p++) {
            s.ia[p] = s.ib[p] = 1;
            if (s.wide_A[p] > least && s.wide_B[p] > least) continue;
            careful_pixel(t, p, s.ia, s.ib, s.q);
            s.D[p] = s.ia[p] == 0 && s.ib[p] == 0 ? 0.0f : s.ia[p] == 0 || s.ib[p] == 0 ? 0.5f : s.q[p];
        }
        return;
    }
    Strides at(t.p, t.c);
    bool near;
    do {
        rows_sums(part_of(t, at.p0, at.p1), s.A + at.p0, s.B + at.p0, s.P + at.p0);
        near = rows_distances(t, s, s.B, s.P, at.p0, at.p1);
    } while (at.next(near));
}

// The distances in s.D of pixels p0 to p1 as a map; returns their sum.
double finish_map(const Job& j, int kind, float* map, i64 p0, i64 p1, Scratch& s) {
    if (kind != UNIT_L2)  // a zero vector has no direction: its cosine is 0
        for (i64 p = p0; p < p1; p++) if (s.ia[p] == 0 || s.ib[p] == 0) s.D[p] = 1;
    const float weight = (float)j.weight;
    double total = 0;
    for (i64 p = p0; p < p1; p++) total += s.D[p];
    if (map) for (i64 p = p0; p < p1; p++) map[p] = weight * s.D[p];
    return total;
}

// The maps of two students of one teacher, channels_last; the sums of their distances to `totals`.
void run_pair(const Job* jobs, int kind, i64 n, i64 p0, i64 np, const float* a, i64 sa, Scratch& s, double* totals, i64 width) {
    Tile t[2];
    for (int k = 0; k < 2; k++) {
        t[k].a = a; t[k].sa = sa; t[k].c = jobs[k].c; t[k].p = np; t[k].planes = false;
        t[k].b = acquire(jobs[k].student, jobs[k], n, p0, np, false, k ? s.b2 : s.b, &t[k].sb);
    }
    Strides at(np, t[0].c);
    bool near;
    totals[0] = totals[width] = 0;
    do {
        const i64 from = at.p0, to = at.p1;
        rows_dual_sums(part_of(t[0], from, to), part_of(t[1], from, to), s.A + from, s.B + from, s.P + from, s.B2 + from, s.P2 + from);
        near = false;
        for (int k = 0; k < 2; k++) {
            near |= rows_distances(t[k], s, k ? s.B2 : s.B, k ? s.P2 : s.P, from, to);
            totals[k * width] += finish_map(jobs[k], kind, (float*)jobs[k].map + n * jobs[k].h * jobs[k].w + p0, from, to, s);
        }
    } while (at.next(near));
}

double run_tile(const Job& j, int kind, i64 n, i64 p0, i64 np, bool planes, const float* a, i64 sa, Scratch& s, double* sums) {
    Tile t;
    t.a = a; t.sa = sa; t.c = j.c; t.p = np; t.planes = planes;
    t.b = acquire(j.student, j, n, p0, np, planes, s.b, &t.sb);
    const i64 rows = planes ? t.c : t.p, length = planes ? t.p : t.c;
    float* map = j.map ? (float*)j.map + n * j.h * j.w + p0 : nullptr;

    if (kind == FLAT_SUMS) {
        if (t.sa == length && t.sb == length) row_double_sums(t.a, t.b, rows * length, sums);
        else for (i64 r = 0; r < rows; r++) row_double_sums(t.a + r * t.sa, t.b + r * t.sb, length, sums);
        return 0;
    }
    const bool wants_student = j.student_grad.data != 0, wants_teacher = j.teacher_grad.data != 0;
    if (kind == FLAT_GRADIENT) {  // per-sample A, B, P: d/db = (c/B) b - a/sqrt(AB), d/da alike
        const double* S = (const double*)j.sums + 3 * n;
        const double tiny = (double)TINY * TINY;
        const bool zero = S[0] <= tiny || S[1] <= tiny;
        const double root = std::sqrt(S[0]) * std::sqrt(S[1]), cosine = zero ? 0 : S[2] / root, alpha = zero ? 0 : 1 / root;
        const double g = j.factor * (j.upstream ? (double)((const float*)j.upstream)[n * j.un] : 1.0);
        const float other = (float)(-g * alpha);
        if (wants_student) write_flat(j, t, j.student_grad, n, p0, other, zero ? 0 : (float)(g * cosine / S[1]), s.out);
        if (wants_teacher) write_flat(j, t, j.teacher_grad, n, p0, zero ? 0 : (float)(g * cosine / S[0]), other, s.out);
        return 0;
    }
    if (wants_student || wants_teacher) upstream_of(j, n, p0, np, s.g);
    double total = 0;
    if (kind == L2) {
        for (i64 p = 0; p < np; p++) s.ia[p] = s.ib[p] = 1;
        if (planes) planes_residual(t, s.ia, s.ib, s.D); else rows_residual(t, s.ia, s.ib, s.D);
        for (i64 p = 0; p < np; p++) {
            if (map) map[p] = (float)j.weight * s.D[p];
            total += s.D[p];
            s.k[p] = 2 * s.g[p]; s.m[p] = -s.k[p];
        }
        if (wants_student) write_combination(j, t, j.student_grad, n, p0, s.m, s.k, s.out);
        if (wants_teacher) write_combination(j, t, j.teacher_grad, n, p0, s.k, s.m, s.out);
        return total;
    }

    if ((!wants_student && !wants_teacher) || kind == ATTENTION) one_sweep(t, s);
    else {
        if (planes) planes_sums(t, s.A, s.B, s.P); else rows_sums(t, s.A, s.B, s.P);
        inverse_lengths(s.A, s.B, s.P, s.ia, s.ib, s.q, np);
        if (out_of_range(s.A, s.B, np))
            for (i64 p = 0; p < np; p++)
                if (!in_range(s.A[p], s.B[p])) careful_pixel(t, p, s.ia, s.ib, s.q);
        // a zero vector has no direction: it neither gets nor gives a gradient
        for (i64 p = 0; p < np; p++) s.g[p] = s.ia[p] == 0 || s.ib[p] == 0 ? 0 : s.g[p];
        if (wants_student) {
            // d/db = ib (c b/|b| - a/|a|) = ib (e - q b/|b|), q = 1 - c
            for (i64 p = 0; p < np; p++) { s.k[p] = s.g[p] * s.ib[p]; s.m[p] = -s.k[p] * s.q[p] * s.ib[p]; s.D[p] = 0; }
            if ((i64)s.out.size() < length) s.out.resize(length);
            const bool direct = in_place(j.student_grad, j, planes);
            i64 r = 0;
            if (planes && direct)
                for (; r + 4 <= rows; r += 4)
                    planes_residual_gradient4(t.a + r * t.sa, t.sa, t.b + r * t.sb, t.sb, s.ia, s.ib, s.k, s.m, s.D,
                                              output_row(j.student_grad, j, n, p0, r, planes, nullptr), j.student_grad.sc, length);
            else if (direct) {
                rows_residual_gradients(t, s.ia, s.ib, s.k, s.m, s.D, output_row(j.student_grad, j, n, p0, 0, planes, nullptr),
                                        row_stride(j.student_grad, j, planes));
                r = rows;
            }
            for (; r < rows; r++) {
                float* out = output_row(j.student_grad, j, n, p0, r, planes, s.out.data());
                const float *x = t.a + r * t.sa, *y = t.b + r * t.sb;
                if (planes) planes_residual_gradient(x, y, s.ia, s.ib, s.k, s.m, s.D, out, length);
                else s.D[r] = rows_residual_gradient(x, y, s.ia[r], s.ib[r], s.k[r], s.m[r], out, length);
                finish_row(j.student_grad, j, n, p0, r, planes, out, length);
            }
        } else if (planes) planes_residual(t, s.ia, s.ib, s.D);
        else rows_residual(t, s.ia, s.ib, s.D);
        for (i64 p = 0; p < np; p++) s.D[p] *= 0.5f;
    }

    total = finish_map(j, kind, map, 0, np, s);
    if (kind == ATTENTION) {
        for (i64 p = 0; p < np; p++) s.m[p] = 0.5f * s.D[p];
        if (in_place(j.student_grad, j, planes)) {
            float* out = output_row(j.student_grad, j, n, p0, 0, planes, nullptr);
            const i64 so = row_stride(j.student_grad, j, planes);
            if (planes) planes_scale(t.b, t.sb, s.m, out, so, rows, length);
            else rows_scale(t.b, t.sb, s.m, out, so, rows, length);
            return total;
        }
        if ((i64)s.out.size() < length) s.out.resize(length);
        for (i64 r = 0; r < rows; r++) {
            if (planes) planes_scale(t.b + r * t.sb, 0, s.m, s.out.data(), 0, 1, length);
            else rows_scale(t.b + r * t.sb, 0, s.m + r, s.out.data(), 0, 1, length);
            finish_row(j.student_grad, j, n, p0, r, planes, s.out.data(), length);
        }
    }
    if (wants_teacher) {  // d/da = ia (c a/|a| - b/|b|), the residual seen from the other side
        for (i64 p = 0; p < np; p++) { s.k[p] = s.g[p] * s.ia[p]; s.m[p] = -s.k[p] * s.q[p] * s.ia[p]; }
        if ((i64)s.out.size() < length) s.out.resize(length);
        for (i64 r = 0; r < rows; r++) {
            float* out = output_row(j.teacher_grad, j, n, p0, r, planes, s.out.data());
            const float *x = t.a + r * t.sa, *y = t.b + r * t.sb;
            if (planes) planes_residual_gradient(y, x, s.ib, s.ia, s.k, s.m, s.A, out, length);
            else rows_residual_gradient(y, x, s.ib[r], s.ia[r], s.k[r], s.m[r], out, length);
            finish_row(j.teacher_grad, j, n, p0, r, planes, out, length);
        }
    }
    return total;
}

// ---- threads: the pool torch already has ----------------------------------------------------------------------------

typedef void (*GompParallel)(Body, void*, unsigned, unsigned);
GompParallel gomp_parallel = nullptr;

}  // namespace

void parallel(Body body, void* data, int threads) {
    if (threads <= 1) { body(data); return; }
    if (gomp_parallel) { gomp_parallel(body, data, (unsigned)threads, 0); return; }
    std::vector<std::thread> others;
    for (int i = 1; i < threads; i++) others.emplace_back(body, data);
    body(data);
    for (auto& other : others) other.join();
}

namespace {

struct Group { const Job* first; int count; bool planes; i64 pixels, tiles; i64 start; };

double flat_distance(const double* S) {  // 1 - c of a sample from its A, B, P; 1 where a vector is zero
    const double tiny = (double)TINY * TINY;
    if (S[0] <= tiny || S[1] <= tiny) return 1;
    const double q = 1 - S[2] / (std::sqrt(S[0]) * std::sqrt(S[1]));
    return q < 0 ? 0 : q;
}

struct Sweep {
    const Group* groups; int ngroups; int kind; i64 units;
    double* partial;  // per unit and job of its group: total, or A, B, P
    int width, most;
    std::atomic<i64> next;
};

// The sums of a whole sample and then its gradients, while the sample is still in the cache.
void run_sample(const Job& j, i64 n, i64 pixels, bool planes, Scratch& s) {
    double* S = (double*)j.sums + 3 * n;
    S[0] = S[1] = S[2] = 0;
    for (const int kind : {(int)FLAT_SUMS, (int)FLAT_GRADIENT})
        for (i64 p0 = 0; p0 < j.h * j.w; p0 += pixels) {
            const i64 np = std::min(pixels, j.h * j.w - p0);
            i64 sa;
            const float* a = acquire(j.teacher, j, n, p0, np, planes, s.a, &sa);
            double part[3] = {0, 0, 0};
            run_tile(j, kind, n, p0, np, planes, a, sa, s, part);
            for (int i = 0; i < 3; i++) S[i] += part[i];
        }
}

void sweep_body(void* raw) {
    Sweep& w = *(Sweep*)raw;
    static thread_local Scratch s;
    for (;;) {
        const i64 unit = w.next.fetch_add(1, std::memory_order_relaxed);
        if (unit >= w.units) return;
        int g = 0;
        while (g + 1 < w.ngroups && unit >= w.groups[g + 1].start) g++;
        const Group& group = w.groups[g];
        const Job& j = *group.first;
        if (w.kind == FLAT_LOSS) {
            for (int k = 0; k < group.count; k++) run_sample(group.first[k], unit - group.start, group.pixels, group.planes, s);
            continue;
        }
        const i64 local = unit - group.start, n = local / group.tiles, p0 = (local % group.tiles) * group.pixels;
        const i64 np = std::min(group.pixels, j.h * j.w - p0);
        i64 sa;
        const float* a = acquire(j.teacher, j, n, p0, np, group.planes, s.a, &sa);
        if (group.count == 2 && !group.planes && w.kind <= COSINE && j.map && !j.student_grad.data && !j.teacher_grad.data) {
            run_pair(group.first, w.kind, n, p0, np, a, sa, s, w.partial + unit * w.most * w.width, w.width);
            continue;
        }
        for (int k = 0; k < group.count; k++) {
            double* slot = w.partial + (unit * w.most + k) * w.width;
            for (int i = 0; i < w.width; i++) slot[i] = 0;
            const double total = run_tile(group.first[k], w.kind, n, p0, np, group.planes, a, sa, s, slot);
            if (w.kind != FLAT_SUMS) slot[0] = total;
        }
    }
}

}  // namespace

extern "C" {

EXPORT void kdad_use_gomp(void* function) { gomp_parallel = (GompParallel)function; }

EXPORT uint32_t kdad_source() { return KDAD_SOURCE; }  // of setup.py: which sources this was built from

// totals: one double per job, the sum of its (unweighted) discrepancies, of pixels or of samples.
EXPORT void kdad_sweep(const void* raw, int njobs, int kind, int threads, double* totals) {
    const Job* jobs = (const Job*)raw;
    std::vector<Group> groups;
    i64 units = 0;
    int most = 1;
    for (int i = 0; i < njobs; i++) {
        const Job& j = jobs[i];
        totals[i] = 0;
        if (j.chained && !groups.empty()) { most = std::max(most, ++groups.back().count); continue; }
        Group g;
        g.first = &j; g.count = 1; g.start = units;
        g.planes = !(j.student.sc == 1 && j.c > 1 && (pixel_stride(j.student, j.w) != 1 || j.h * j.w == 1));
        const i64 hw = j.h * j.w;
        i64 pixels = (g.planes ? PLANES_TILE : ROWS_TILE) / std::max<i64>(j.c, 1);
        const bool once = g.planes && kind <= COSINE && !j.student_grad.data && !j.teacher_grad.data;
        if (once) pixels = MAX_PIXELS;  // nothing is read twice
        const bool flat_kind = kind == FLAT_SUMS || kind == FLAT_GRADIENT || kind == FLAT_LOSS;  // keeps nothing per pixel
        pixels = std::max<i64>(g.planes ? 16 : 4, flat_kind ? pixels : std::min<i64>(pixels, MAX_PIXELS));
        if (g.planes) pixels = pixels / 16 * 16;
        g.pixels = pixels; g.tiles = kind == FLAT_LOSS ? 1 : (hw + pixels - 1) / pixels;
        units += j.n * g.tiles;
        groups.push_back(g);
    }
    if (!units) return;
    const int width = kind == FLAT_SUMS ? 3 : 1;
    std::vector<double> partial((size_t)units * most * width);
    Sweep sweep;
    sweep.groups = groups.data(); sweep.ngroups = (int)groups.size(); sweep.kind = kind; sweep.units = units;
    sweep.partial = partial.data(); sweep.width = width; sweep.most = most; sweep.next = 0;
    parallel(sweep_body, &sweep, (int)std::min<i64>(threads, units));
    for (const Group& g : groups)
        for (int k = 0; k < g.count; k++) {
            const Job& j = g.first[k];
            for (i64 n = 0; n < j.n && kind != FLAT_LOSS; n++)
                for (i64 tile = 0; tile < g.tiles; tile++) {
                    const double* slot = partial.data() + ((g.start + n * g.tiles + tile) * most + k) * width;
                    if (kind == FLAT_SUMS)
                        for (int i = 0; i < 3; i++) {
                            double* S = (double*)j.sums + 3 * n + i;
                            *S = tile ? *S + slot[i] : slot[i];
                        }
                    else totals[&j - jobs] += slot[0];
                }
            if (kind == FLAT_SUMS || kind == FLAT_LOSS)
                for (i64 n = 0; n < j.n; n++) totals[&j - jobs] += flat_distance((const double*)j.sums + 3 * n);
        }
}

}  // extern "C"

// ---- fusion, blur and image score ------------------------------------------------------------------------------------

namespace {

struct Epilogue {  // laid out as native.py packs it
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

CLONES void blur_along_row(const float* __restrict padded, const float* __restrict weights, i64 taps, float* __restrict out, i64 n) {
    i64 x = 0;
#ifdef LANES
    for (; x + 64 <= n; x += 64) {
        V16 s0 = {}, s1 = {}, s2 = {}, s3 = {};
        const float* in = padded + x;
        for (i64 k = 0; k < taps; k++, in++) {
            const float w = weights[k];
            s0 += w * *(const V16*)in; s1 += w * *(const V16*)(in + 16);
            s2 += w * *(const V16*)(in + 32); s3 += w * *(const V16*)(in + 48);
        }
        *(V16*)(out + x) = s0; *(V16*)(out + x + 16) = s1; *(V16*)(out + x + 32) = s2; *(V16*)(out + x + 48) = s3;
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
        V16 s0 = {}, s1 = {}, s2 = {}, s3 = {};
        for (i64 k = 0; k < taps; k++) {
            const float w = weights[k];
            const float* in = rows[k] + x;
            s0 += w * *(const V16*)in; s1 += w * *(const V16*)(in + 16);
            s2 += w * *(const V16*)(in + 32); s3 += w * *(const V16*)(in + 48);
        }
        *(V16*)(out + x) = s0; *(V16*)(out + x + 16) = s1; *(V16*)(out + x + 32) = s2; *(V16*)(out + x + 48) = s3;
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
    i64 bands;
    std::vector<double> partial;     // [n, bands]: maximum or sum
    std::atomic<i64> next;
};

void fuse_band(const Fusion& f, i64 n, i64 y0, i64 y1, double* score) {
    const Epilogue& e = *f.e;
    const i64 W = e.w, radius = e.radius, taps = 2 * radius + 1;
    const bool blurs = radius >= 0;
    const i64 lo = blurs ? std::max<i64>(0, y0 - radius) : y0, hi = blurs ? std::min(e.h, y1 + radius) : y1;
    static thread_local std::vector<float> stretched, fused, line, padded;
    static thread_local std::vector<const float*> window;

    i64 sources = 0;
    for (int k = 0; k < e.maps; k++) sources += f.down[k].high[hi - 1] - f.down[k].low[lo] + 1;
    // A sum is linear: blurring the few stretched source rows along x costs less than blurring the output rows.
    const bool early = blurs && !e.product && sources < hi - lo;
    if ((i64)stretched.size() < sources * W) stretched.resize(sources * W);
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
            if (early) { blur_row(out, line.data()); std::memcpy(out, line.data(), W * sizeof(float)); }
        }
        for (i64 y = lo; y < hi; y++)
            blend_rows(base + (f.down[k].low[y] - first) * W, base + (f.down[k].high[y] - first) * W, f.down[k].part[y],
                       fused.data() + (y - lo) * W, W, k == 0 ? 0 : e.product ? 2 : 1);
        at += last - first + 1;
    }
    if (blurs && !early)
        for (i64 y = lo; y < hi; y++) {
            float* row = fused.data() + (y - lo) * W;
            blur_row(row, line.data());
            std::memcpy(row, line.data(), W * sizeof(float));
        }
    if (blurs && (i64)window.size() < y1 - y0 + 2 * radius) window.resize(y1 - y0 + 2 * radius);
    if (blurs)
        for (i64 i = 0; i < y1 - y0 + 2 * radius; i++) window[i] = fused.data() + (f.rows[y0 + i] - lo) * W;
    double total = e.mean ? 0 : -INFINITY;
    for (i64 y = y0; y < y1; y++) {
        float* out = e.out ? (float*)e.out + (n * e.h + y) * W : line.data();
        if (blurs) blur_across_rows(window.data() + (y - y0), (const float*)e.weights, taps, out, W);
        else std::memcpy(out, fused.data() + (y - lo) * W, W * sizeof(float));
        if (!e.scores) continue;
        if (e.mean) total += row_sum(out, W);
        else total = row_max(out, W, (float)total);
    }
    *score = total;
}

void fusion_body(void* raw) {
    Fusion& f = *(Fusion*)raw;
    for (;;) {
        const i64 unit = f.next.fetch_add(1, std::memory_order_relaxed);
        if (unit >= f.e->n * f.bands) return;
        const i64 band = unit % f.bands;
        fuse_band(f, unit / f.bands, f.e->h * band / f.bands, f.e->h * (band + 1) / f.bands, &f.partial[unit]);
    }
}

}  // namespace

extern "C" {

EXPORT void kdad_epilogue(const void* raw, int threads) {
    const Epilogue& e = *(const Epilogue*)raw;
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
    f.bands = e.n >= 2 * threads ? 1 : std::max<i64>(1, std::min<i64>(threads, e.h / 32));
    f.partial.resize(e.n * f.bands);
    f.next = 0;
    parallel(fusion_body, &f, (int)std::min<i64>(threads, e.n * f.bands));
    if (!e.scores) return;
    for (i64 n = 0; n < e.n; n++) {
        double s = f.partial[n * f.bands];
        for (i64 b = 1; b < f.bands; b++) {
            const double v = f.partial[n * f.bands + b];
            s = e.mean ? s + v : v > s || v != v ? v : s;
        }
        ((float*)e.scores)[n] = (float)(e.mean ? s / (double)(e.h * e.w) : s);
    }
}

}  // extern "C"
