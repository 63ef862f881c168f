// The inner loops over tiles of a pair of feature maps; see sweep.h.

#include "sweep.h"

namespace kdad {

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

}  // namespace kdad
