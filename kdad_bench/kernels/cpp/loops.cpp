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

// Channels innermost, so that memory is read in order. Sixteen lanes of a sum stay in two vectors of 8; `collapse` adds
// them with one tree.
#ifdef LANES
INLINE float collapse(const V8& low, const V8& high) {
    V8 x = low + high;
    x += __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3);
    x += __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5);
    return x[0] + x[1];
}
#endif

CLONES void rows_sums(const Tile& t, float* __restrict A, float* __restrict B, float* __restrict P) {
    for (i64 p = 0; p < t.p; p++) {
        const float* __restrict a = t.a + p * t.sa; const float* __restrict b = t.b + p * t.sb;
        float x = 0, y = 0, z = 0;
        i64 c = 0;
#ifdef LANES
        V8 x0 = {}, x1 = {}, y0 = {}, y1 = {}, z0 = {}, z1 = {};
        for (; c + 16 <= t.c; c += 16) {
            const V8 a0 = at(a + c), b0 = at(b + c), a1 = at(a + c + 8), b1 = at(b + c + 8);
            x0 += a0 * a0; y0 += b0 * b0; z0 += a0 * b0;
            x1 += a1 * a1; y1 += b1 * b1; z1 += a1 * b1;
        }
        x = collapse(x0, x1); y = collapse(y0, y1); z = collapse(z0, z1);
#endif
        for (; c < t.c; c++) { x += a[c] * a[c]; y += b[c] * b[c]; z += a[c] * b[c]; }
        A[p] = x; B[p] = y; P[p] = z;
    }
}

// The sums of a teacher and two students in one reading.
CLONES void rows_dual_sums(const Tile& t, const Tile& o, float* __restrict A, float* __restrict B, float* __restrict P,
                           float* __restrict B2, float* __restrict P2) {
    for (i64 p = 0; p < t.p; p++) {
        const float* __restrict a = t.a + p * t.sa; const float* __restrict b = t.b + p * t.sb; const float* __restrict w = o.b + p * o.sb;
        float x = 0, y = 0, z = 0, y2 = 0, z2 = 0;
        i64 c = 0;
#ifdef LANES
        V8 x0 = {}, x1 = {}, y0 = {}, y1 = {}, z0 = {}, z1 = {}, v0 = {}, v1 = {}, w0 = {}, w1 = {};
        for (; c + 16 <= t.c; c += 16) {
            const V8 a0 = at(a + c), b0 = at(b + c), o0 = at(w + c), a1 = at(a + c + 8), b1 = at(b + c + 8), o1 = at(w + c + 8);
            x0 += a0 * a0; y0 += b0 * b0; z0 += a0 * b0; v0 += o0 * o0; w0 += a0 * o0;
            x1 += a1 * a1; y1 += b1 * b1; z1 += a1 * b1; v1 += o1 * o1; w1 += a1 * o1;
        }
        x = collapse(x0, x1); y = collapse(y0, y1); z = collapse(z0, z1); y2 = collapse(v0, v1); z2 = collapse(w0, w1);
#endif
        for (; c < t.c; c++) {
            x += a[c] * a[c]; y += b[c] * b[c]; z += a[c] * b[c]; y2 += w[c] * w[c]; z2 += a[c] * w[c];
        }
        A[p] = x; B[p] = y; P[p] = z; B2[p] = y2; P2[p] = z2;
    }
}

#ifdef LANES
typedef float V4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef double D4 __attribute__((vector_size(32), aligned(8), may_alias));
#define WIDENED(x) __builtin_convertvector(*(const V4*)(x), D4)
#endif

// The sums in double: products of floats are exact there, so that 1 - P / sqrt(A B) keeps its digits for near pairs.
CLONES void planes_double_sums(const Tile& t, double* __restrict A, double* __restrict B, double* __restrict P) {
    for (i64 p = 0; p < t.p; p++) A[p] = B[p] = P[p] = 0;
    i64 c = 0;
    for (; c + 8 <= t.c; c += 8) {
        const float* __restrict a = t.a + c * t.sa; const float* __restrict b = t.b + c * t.sb;
        const i64 sa = t.sa, sb = t.sb;
#pragma GCC ivdep
        for (i64 p = 0; p < t.p; p++) {
            double x = A[p], y = B[p], z = P[p];
#pragma GCC unroll 8
            for (int k = 0; k < 8; k++) {
                const double u = a[k * sa + p], v = b[k * sb + p];
                x += u * u; y += v * v; z += u * v;
            }
            A[p] = x; B[p] = y; P[p] = z;
        }
    }
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
    for (i64 p = 0; p < t.p; p++) {
        const float* __restrict a = t.a + p * t.sa; const float* __restrict b = t.b + p * t.sb;
        const float x = ia[p], y = ib[p];
        float d = 0;
        i64 c = 0;
#ifdef LANES
        V8 d0 = {}, d1 = {};
        for (; c + 16 <= t.c; c += 16) {
            const V8 e0 = at(b + c) * y - at(a + c) * x, e1 = at(b + c + 8) * y - at(a + c + 8) * x;
            d0 += e0 * e0; d1 += e1 * e1;
        }
        d = collapse(d0, d1);
#endif
        for (; c < t.c; c++) { const float e = b[c] * y - a[c] * x; d += e * e; }
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
        V8 d0 = {}, d1 = {};
        for (; c + 16 <= t.c; c += 16) {
            const V8 b0 = at(b + c), b1 = at(b + c + 8), e0 = b0 * y - at(a + c) * x, e1 = b1 * y - at(a + c + 8) * x;
            d0 += e0 * e0; d1 += e1 * e1;
            *(V8*)(to + c) = u * e0 + v * b0; *(V8*)(to + c + 8) = u * e1 + v * b1;
        }
        d = collapse(d0, d1);
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
    D4 x0 = {}, x1 = {}, y0 = {}, y1 = {}, z0 = {}, z1 = {};
    for (; i + 8 <= n; i += 8) {
        const D4 u0 = WIDENED(a + i), v0 = WIDENED(b + i), u1 = WIDENED(a + i + 4), v1 = WIDENED(b + i + 4);
        x0 += u0 * u0; y0 += v0 * v0; z0 += u0 * v0;
        x1 += u1 * u1; y1 += v1 * v1; z1 += u1 * v1;
    }
    const D4 xs = x0 + x1, ys = y0 + y1, zs = z0 + z1;
    for (int k = 0; k < 4; k++) { x += xs[k]; y += ys[k]; z += zs[k]; }
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
    const bool a_inf = std::isinf(A), b_inf = std::isinf(B);  // a value is: no direction, but no zero vector either
    ia[p] = a_zero ? 0.0f : a_inf ? NAN : (float)(1.0 / std::sqrt(A));
    ib[p] = b_zero ? 0.0f : b_inf ? NAN : (float)(1.0 / std::sqrt(B));
    q[p] = a_inf || b_inf || A != A || B != B ? NAN : a_zero || b_zero ? 1.0f : (float)(1.0 - P / std::sqrt(A) / std::sqrt(B));
}

}  // namespace kdad
