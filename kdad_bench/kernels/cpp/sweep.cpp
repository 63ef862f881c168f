// Runs jobs over pairs of feature maps, all in one parallel region, behind a plain C interface that cpp_path.py loads; see sweep.h.
// No Python or torch headers, no OpenMP library of its own.

#include "sweep.h"

#include <atomic>
#include <memory>

namespace kdad {

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
    std::atomic<bool> complete;
};

Piece piece_of(const Job& j, i64 n, i64 p0, i64 np, bool planes, const float* a, i64 sa, Scratch& s) {
    Piece x{j, {}, n, p0};
    x.tile.a = a; x.tile.sa = sa; x.tile.c = j.c; x.tile.p = np; x.tile.planes = planes;
    x.tile.b = acquire(j.student, j, n, p0, np, planes, s.b, &x.tile.sb);
    return x;
}

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
            run_tile(kind, piece_of(j, n, p0, np, planes, a, sa, s), s, part);
            for (int i = 0; i < 3; i++) S[i] += part[i];
        }
}

// One tile of all jobs of a group, which share their teacher.
void run_unit(const Sweep& w, const Group& group, i64 unit, Scratch& s) {
    const Job& j = *group.first;
    const i64 local = unit - group.start, n = local / group.tiles, p0 = (local % group.tiles) * group.pixels;
    const i64 np = std::min(group.pixels, j.h * j.w - p0);
    i64 sa;
    const float* a = acquire(j.teacher, j, n, p0, np, group.planes, s.a, &sa);
    if (group.count == 2 && !group.planes && w.kind <= COSINE && j.map && !j.student_grad.data && !j.teacher_grad.data)
        return run_pair(group.first, w.kind, n, p0, np, a, sa, s, w.partial + unit * w.most * w.width, w.width);
    for (int k = 0; k < group.count; k++) {
        double* slot = w.partial + (unit * w.most + k) * w.width;
        for (int i = 0; i < w.width; i++) slot[i] = 0;
        const double total = run_tile(w.kind, piece_of(group.first[k], n, p0, np, group.planes, a, sa, s), s, slot);
        if (w.kind != FLAT_SUMS) slot[0] = total;
    }
}

void sweep_body(void* raw) {
    Sweep& w = *(Sweep*)raw;
    static thread_local std::unique_ptr<Scratch> kept;
    const bool complete = had_memory([&] {
        if (!kept) kept.reset(new Scratch());
        Scratch& s = *kept;
        for (i64 unit; (unit = w.next.fetch_add(1, std::memory_order_relaxed)) < w.units;) {
            int g = 0;
            while (g + 1 < w.ngroups && unit >= w.groups[g + 1].start) g++;
            const Group& group = w.groups[g];
            if (w.kind != FLAT_LOSS) run_unit(w, group, unit, s);
            else
                for (int k = 0; k < group.count; k++) run_sample(group.first[k], unit - group.start, group.pixels, group.planes, s);
        }
    });
    if (!complete) w.complete = false;
    if (kept) kept->shrink();
}

// How a job, and those chained to it, are cut into tiles.
Group group_of(const Job& j, int kind, i64 start) {
    Group g;
    g.first = &j; g.count = 1; g.start = start;
    g.planes = !(j.student.sc == 1 && j.c > 1 && (pixel_stride(j.student, j.w) != 1 || j.h * j.w == 1));
    i64 pixels = (g.planes ? PLANES_TILE : ROWS_TILE) / std::max<i64>(j.c, 1);
    const bool once = g.planes && kind <= COSINE && !j.student_grad.data && !j.teacher_grad.data;
    if (once) pixels = MAX_PIXELS;  // nothing is read twice
    const bool flat_kind = kind == FLAT_SUMS || kind == FLAT_GRADIENT || kind == FLAT_LOSS;  // keeps nothing per pixel
    pixels = std::max<i64>(g.planes ? 16 : 4, flat_kind ? pixels : std::min<i64>(pixels, MAX_PIXELS));
    if (g.planes) pixels = pixels / 16 * 16;
    g.pixels = pixels; g.tiles = kind == FLAT_LOSS ? 1 : (j.h * j.w + pixels - 1) / pixels;
    return g;
}

// The total of job k of a group from the slots of its tiles, in order; for FLAT_SUMS also its sums.
double total_of(const Sweep& w, const Group& g, int k) {
    const Job& j = g.first[k];
    double total = 0;
    for (i64 n = 0; n < j.n && w.kind != FLAT_LOSS; n++)
        for (i64 tile = 0; tile < g.tiles; tile++) {
            const double* slot = w.partial + ((g.start + n * g.tiles + tile) * w.most + k) * w.width;
            if (w.kind == FLAT_SUMS)
                for (int i = 0; i < 3; i++) {
                    double* S = (double*)j.sums + 3 * n + i;
                    *S = tile ? *S + slot[i] : slot[i];
                }
            else total += slot[0];
        }
    if (w.kind == FLAT_SUMS || w.kind == FLAT_LOSS)
        for (i64 n = 0; n < j.n; n++) total += flat_distance((const double*)j.sums + 3 * n);
    return total;
}

// Raises std::bad_alloc where memory is short.
void run_jobs(const Job* jobs, int njobs, int kind, int threads, double* totals) {
    std::vector<Group> groups;
    i64 units = 0;
    int most = 1;
    for (int i = 0; i < njobs; i++) {
        totals[i] = 0;
        if (jobs[i].chained && !groups.empty()) { most = std::max(most, ++groups.back().count); continue; }
        groups.push_back(group_of(jobs[i], kind, units));
        units += jobs[i].n * groups.back().tiles;
    }
    if (!units) return;
    const int width = kind == FLAT_SUMS ? 3 : 1;
    std::vector<double> partial((size_t)units * most * width);
    Sweep sweep;
    sweep.groups = groups.data(); sweep.ngroups = (int)groups.size(); sweep.kind = kind; sweep.units = units;
    sweep.partial = partial.data(); sweep.width = width; sweep.most = most; sweep.next = 0; sweep.complete = true;
    parallel(sweep_body, &sweep, (int)std::min<i64>(threads, units));
    if (!sweep.complete) throw std::bad_alloc();
    for (const Group& g : groups)
        for (int k = 0; k < g.count; k++) totals[g.first + k - jobs] = total_of(sweep, g, k);
}

}  // namespace

}  // namespace kdad

extern "C" {

// totals: one double per job, the sum of its (unweighted) discrepancies, of pixels or of samples. False where memory is short.
EXPORT bool kdad_sweep(const void* raw, int njobs, int kind, int threads, double* totals) {
    return had_memory([&] { kdad::run_jobs((const kdad::Job*)raw, njobs, kind, threads, totals); });
}

}  // extern "C"
