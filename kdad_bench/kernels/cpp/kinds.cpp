// What each kind of job does with one tile, a function per kind; see sweep.h.

#include "sweep.h"

namespace kdad {

namespace {

void upstream_of(const Piece& x, float* g) {
    const Job& j = x.job;
    const float factor = (float)j.factor;
    const i64 np = x.tile.p;
    if (!j.upstream) { for (i64 p = 0; p < np; p++) g[p] = factor; return; }
    const float* u = (const float*)j.upstream + x.n * j.un;
    for (i64 p = 0; p < np; p++) g[p] = factor * u[((x.p0 + p) / j.w) * j.uh + ((x.p0 + p) % j.w) * j.uw];
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
            const bool zeros[] = {s.ia[p] == 0, s.ib[p] == 0};  // neither is a vector that is not finite
            s.D[p] = zeros[0] && zeros[1] ? 0.0f : (zeros[0] && s.ib[p] == s.ib[p]) || (zeros[1] && s.ia[p] == s.ia[p]) ? 0.5f : s.q[p];
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

// A, B and P of the tile, added to `sums`.
void flat_sums(const Piece& x, double* sums) {
    const Tile& t = x.tile;
    const i64 rows = x.rows(), length = x.length();
    if (t.sa == length && t.sb == length) return row_double_sums(t.a, t.b, rows * length, sums);
    for (i64 r = 0; r < rows; r++) row_double_sums(t.a + r * t.sa, t.b + r * t.sb, length, sums);
}

// From A, B and P of the whole sample: d/db = (c/B) b - a/sqrt(AB), d/da alike.
void flat_gradient(const Piece& x, Scratch& s) {
    const Job& j = x.job;
    const double* S = (const double*)j.sums + 3 * x.n;
    const double tiny = (double)TINY * TINY;
    const bool zero = S[0] <= tiny || S[1] <= tiny;
    const double root = std::sqrt(S[0]) * std::sqrt(S[1]), cosine = zero ? 0 : S[2] / root, alpha = zero ? 0 : 1 / root;
    const double g = j.factor * (j.upstream ? (double)((const float*)j.upstream)[x.n * j.un] : 1.0);
    const double limit = (double)FAR * FAR, other = -g * alpha;
    const bool widely = !zero && !(S[0] < limit && S[1] < limit && S[0] * limit > 1 && S[1] * limit > 1);
    if (j.student_grad.data) write_flat(x, j.student_grad, other, zero ? 0 : g * cosine / S[1], widely, s.out);
    if (j.teacher_grad.data) write_flat(x, j.teacher_grad, zero ? 0 : g * cosine / S[0], other, widely, s.out);
}

// |t - s|^2 and its gradients.
double l2(const Piece& x, Scratch& s) {
    const Job& j = x.job;
    const Tile& t = x.tile;
    float* map = x.map();
    if (j.student_grad.data || j.teacher_grad.data) upstream_of(x, s.g);
    for (i64 p = 0; p < t.p; p++) s.ia[p] = s.ib[p] = 1;
    if (t.planes) planes_residual(t, s.ia, s.ib, s.D); else rows_residual(t, s.ia, s.ib, s.D);
    double total = 0;
    for (i64 p = 0; p < t.p; p++) {
        if (map) map[p] = (float)j.weight * s.D[p];
        total += s.D[p];
        s.k[p] = 2 * s.g[p]; s.m[p] = -s.k[p];
    }
    if (j.student_grad.data) write_combination(x, j.student_grad, s.m, s.k, s.out);
    if (j.teacher_grad.data) write_combination(x, j.teacher_grad, s.k, s.m, s.out);
    return total;
}

// (1 - c) / 2 times the student.
double attention(const Piece& x, Scratch& s) {
    const Tile& t = x.tile;
    const View& v = x.job.student_grad;
    const i64 rows = x.rows(), length = x.length();
    one_sweep(t, s);
    const double total = finish_map(x.job, ATTENTION, x.map(), 0, t.p, s);
    for (i64 p = 0; p < t.p; p++) s.m[p] = 0.5f * s.D[p];
    if (in_place(v, x)) {
        float* out = output_row(v, x, 0, nullptr);
        if (t.planes) planes_scale(t.b, t.sb, s.m, out, row_stride(v, x), rows, length);
        else rows_scale(t.b, t.sb, s.m, out, row_stride(v, x), rows, length);
        return total;
    }
    if ((i64)s.out.size() < length) s.out.resize(length);
    for (i64 r = 0; r < rows; r++) {
        if (t.planes) planes_scale(t.b + r * t.sb, 0, s.m, s.out.data(), 0, 1, length);
        else rows_scale(t.b + r * t.sb, 0, s.m + r, s.out.data(), 0, 1, length);
        finish_row(v, x, r, s.out.data());
    }
    return total;
}

// The lengths of the vectors and q = 1 - c, from the sums; an upstream gradient of 0 where a vector is zero: it has no direction,
// and neither gets nor gives a gradient.
void lengths(const Piece& x, Scratch& s) {
    const Tile& t = x.tile;
    if (t.planes) planes_sums(t, s.A, s.B, s.P); else rows_sums(t, s.A, s.B, s.P);
    inverse_lengths(s.A, s.B, s.P, s.ia, s.ib, s.q, t.p);
    if (out_of_range(s.A, s.B, t.p))
        for (i64 p = 0; p < t.p; p++)
            if (!in_range(s.A[p], s.B[p])) careful_pixel(t, p, s.ia, s.ib, s.q);
    for (i64 p = 0; p < t.p; p++) s.g[p] = s.ia[p] == 0 || s.ib[p] == 0 ? 0 : s.g[p];
}

bool far(float inverse) { return inverse != 0 && !(inverse < FAR && inverse * FAR > 1); }

// k and m of out = k e + m v, v the vector with these inverse lengths; returns whether some of them are far.
bool coefficients(const float* inverse, Scratch& s, i64 n) {
    int found = 0;
    for (i64 p = 0; p < n; p++) {
        s.k[p] = s.g[p] * inverse[p]; s.m[p] = -s.k[p] * s.q[p] * inverse[p];
        found |= far(inverse[p]);
    }
    return found;
}

// The gradients of far vectors once more, as k (e - q v/|v|): m has left float32, or what is left of it has few digits. `from` is the
// other vector.
void mend_far(const Piece& x, const View& v, const float* from, i64 from_stride, const float* own, i64 own_stride,
              const float* from_inverse, const float* inverse, const Scratch& s) {
    const bool planes = x.tile.planes;
    for (i64 p = 0; p < x.tile.p; p++) {
        if (!far(inverse[p])) continue;
        for (i64 c = 0; c < x.tile.c; c++) {
            const float unit = own[planes ? c * own_stride + p : p * own_stride + c] * inverse[p];
            const float other = from[planes ? c * from_stride + p : p * from_stride + c] * from_inverse[p];
            write_one(x, v, p, c, s.k[p] * ((unit - other) - s.q[p] * unit));
        }
    }
}

// d/db = ib (c b/|b| - a/|a|) = ib (e - q b/|b|), q = 1 - c; the squared residual |e|^2 to s.D on the way.
void student_gradient(const Piece& x, Scratch& s) {
    const Tile& t = x.tile;
    const View& v = x.job.student_grad;
    const i64 rows = x.rows(), length = x.length();
    const bool mends = coefficients(s.ib, s, t.p);
    std::fill(s.D, s.D + t.p, 0.0f);
    if ((i64)s.out.size() < length) s.out.resize(length);
    const bool direct = in_place(v, x);
    i64 r = 0;
    if (t.planes && direct)
        for (; r + 4 <= rows; r += 4)
            planes_residual_gradient4(t.a + r * t.sa, t.sa, t.b + r * t.sb, t.sb, s.ia, s.ib, s.k, s.m, s.D,
                                      output_row(v, x, r, nullptr), v.sc, length);
    else if (direct) {
        rows_residual_gradients(t, s.ia, s.ib, s.k, s.m, s.D, output_row(v, x, 0, nullptr), row_stride(v, x));
        r = rows;
    }
    for (; r < rows; r++) {
        float* out = output_row(v, x, r, s.out.data());
        const float *a = t.a + r * t.sa, *b = t.b + r * t.sb;
        if (t.planes) planes_residual_gradient(a, b, s.ia, s.ib, s.k, s.m, s.D, out, length);
        else s.D[r] = rows_residual_gradient(a, b, s.ia[r], s.ib[r], s.k[r], s.m[r], out, length);
        finish_row(v, x, r, out);
    }
    if (mends) mend_far(x, v, t.a, t.sa, t.b, t.sb, s.ia, s.ib, s);
}

// d/da = ia (c a/|a| - b/|b|), the residual seen from the other side; s.A is spoilt.
void teacher_gradient(const Piece& x, Scratch& s) {
    const Tile& t = x.tile;
    const View& v = x.job.teacher_grad;
    const i64 rows = x.rows(), length = x.length();
    const bool mends = coefficients(s.ia, s, t.p);
    if ((i64)s.out.size() < length) s.out.resize(length);
    for (i64 r = 0; r < rows; r++) {
        float* out = output_row(v, x, r, s.out.data());
        const float *a = t.a + r * t.sa, *b = t.b + r * t.sb;
        if (t.planes) planes_residual_gradient(b, a, s.ib, s.ia, s.k, s.m, s.A, out, length);
        else rows_residual_gradient(b, a, s.ib[r], s.ia[r], s.k[r], s.m[r], out, length);
        finish_row(v, x, r, out);
    }
    if (mends) mend_far(x, v, t.b, t.sb, t.a, t.sa, s.ib, s.ia, s);
}

// UNIT_L2 and COSINE with gradients: two sweeps.
double unit_gradients(int kind, const Piece& x, Scratch& s) {
    const Tile& t = x.tile;
    upstream_of(x, s.g);
    lengths(x, s);
    if (x.job.student_grad.data) student_gradient(x, s);
    else if (t.planes) planes_residual(t, s.ia, s.ib, s.D);
    else rows_residual(t, s.ia, s.ib, s.D);
    for (i64 p = 0; p < t.p; p++) s.D[p] *= 0.5f;
    const double total = finish_map(x.job, kind, x.map(), 0, t.p, s);
    if (x.job.teacher_grad.data) teacher_gradient(x, s);
    return total;
}

// UNIT_L2 and COSINE without gradients: one sweep.
double unit_map(int kind, const Piece& x, Scratch& s) {
    one_sweep(x.tile, s);
    return finish_map(x.job, kind, x.map(), 0, x.tile.p, s);
}

}  // namespace

// One tile; returns the sum of its discrepancies, or adds to `sums` (FLAT_SUMS).
double run_tile(int kind, const Piece& x, Scratch& s, double* sums) {
    switch (kind) {
        case FLAT_SUMS: flat_sums(x, sums); return 0;
        case FLAT_GRADIENT: flat_gradient(x, s); return 0;
        case L2: return l2(x, s);
        case ATTENTION: return attention(x, s);
        default: return x.job.student_grad.data || x.job.teacher_grad.data ? unit_gradients(kind, x, s) : unit_map(kind, x, s);
    }
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

}  // namespace kdad
