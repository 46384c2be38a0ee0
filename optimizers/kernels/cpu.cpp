// The formula of coefficients.py, element by element, over tensors of DTYPES in memory. It is computed in float32.
//
// The compiler is given FORMULAS, PASSES, DTYPES, SCALARS and COLUMNS by cpu.py: the order of each is defined in Python
// alone.
//
// The work is cut into blocks of a fixed size. Sums of squares are taken in double precision for each block and added up
// in the order of the blocks, so that the bits do not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "rounding.hpp"
#include "vectors.hpp"

namespace {

enum Formula { FORMULAS };
enum Pass { PASSES };

struct Coefficients {
    float SCALARS;
};

struct Columns {  // of one block, or of a part of it
    float *__restrict w, *__restrict g, *__restrict m, *__restrict v, *__restrict top;
};

template <Formula F> constexpr bool adaptive = F == ADAM || F == AMSGRAD;
template <Formula F> constexpr bool has_momentum = F != PLAIN;

// The gradient of element i that the formula works on.
inline float gradient(const Columns &t, const Coefficients &c, int64_t i) {
    return c.scale * (c.grad * t.g[i] + c.l2 * t.w[i]);
}

// Updates the moments of element i.
template <Formula F> inline void move_moments(const Columns &t, const Coefficients &c, int64_t i, float g) {
    if constexpr (has_momentum<F>) t.m[i] = c.beta1 * t.m[i] + c.grad_weight * g;
    if constexpr (adaptive<F>) t.v[i] = c.beta2 * t.v[i] + c.one_minus_beta2 * g * g;
    if constexpr (F == AMSGRAD) t.top[i] = t.top[i] > t.v[i] ? t.top[i] : t.v[i];
}

template <Formula F> inline float denominator(const Columns &t, const Coefficients &c, int64_t i) {
    return std::sqrt(F == AMSGRAD ? t.top[i] : t.v[i]) * c.v_scale + c.eps;
}

template <Formula F> inline float direction(const Columns &t, const Coefficients &c, int64_t i, float g) {
    float u;
    if constexpr (adaptive<F>) u = t.m[i] * c.numerator / denominator<F>(t, c, i);
    else if constexpr (F == MOMENTUM) u = t.m[i] * c.numerator;
    else if constexpr (F == NESTEROV) u = (g + c.beta1 * t.m[i]) * c.numerator;
    else u = g * c.numerator;
    return u + c.coupled_decay * t.w[i];
}

template <Formula F, bool METRIC> inline void move_weight(const Columns &t, const Coefficients &c, int64_t i, float u) {
    float w = (c.shrink * t.w[i] - c.rate * u) * c.prox;
    if constexpr (METRIC) w /= 1 + c.metric / denominator<F>(t, c, i);
    t.w[i] = w;
}

// Two sums of squares in double precision, with the same lanes on every processor.
struct Sums {
    double first[LANES] = {}, second[LANES] = {};

    // The square of a float is exact in double, so a fused multiply-add gives the same bits as two operations.
    static void add_square(double &sum, double x) {
#ifdef __FMA__
        sum = __builtin_fma(x, x, sum);
#else
        sum += x * x;
#endif
    }

    void add(int lane, float a, float b) { add_square(first[lane], a), add_square(second[lane], b); }

    void write(double *sums) const {
        sums[0] = sums[1] = 0;
        for (int lane = 0; lane < LANES; lane++) sums[0] += first[lane], sums[1] += second[lane];
    }
};

void gradient_norms(const Columns &t, const Coefficients &c, int64_t n, Sums &sums) {
    Sums found = sums;  // a local copy stays in registers
    sweep({t.w, t.g}, n, [&](int64_t i, int lane) { found.add(lane, t.w[i], c.grad * t.g[i]); });
    sums = found;
}

template <Formula F> void update_moments(const Columns &t, const Coefficients &c, int64_t n, Sums &sums) {
    Sums found = sums;
    sweep({t.w, t.g, t.m, t.v}, n, [&](int64_t i, int lane) {
        float g = gradient(t, c, i);
        move_moments<F>(t, c, i, g);
        found.add(lane, t.w[i], direction<F>(t, c, i, g));
    });
    sums = found;
}

template <Formula F, bool METRIC> void apply_update(const Columns &t, const Coefficients &c, int64_t n) {
    sweep({t.w, t.m, t.v}, n, [&](int64_t i, int) {
        move_weight<F, METRIC>(t, c, i, direction<F>(t, c, i, gradient(t, c, i)));
    });
}

template <Formula F, bool METRIC> void step(const Columns &t, const Coefficients &c, int64_t n) {
    sweep({t.w, t.g, t.m, t.v}, n, [&](int64_t i, int) {
        float g = gradient(t, c, i);
        move_moments<F>(t, c, i, g);
        move_weight<F, METRIC>(t, c, i, direction<F>(t, c, i, g));
    });
}

template <Formula F, bool METRIC> void run(Pass pass, const Columns &t, const Coefficients &c, int64_t n, Sums &sums) {
    if (pass == GRADIENT_NORMS) gradient_norms(t, c, n, sums);
    else if (pass == UPDATE_MOMENTS) update_moments<F>(t, c, n, sums);
    else if (pass == APPLY_UPDATE) apply_update<F, METRIC>(t, c, n);
    else step<F, METRIC>(t, c, n);
}

template <Formula F> void run(Pass pass, const Columns &t, const Coefficients &c, int64_t n, Sums &sums) {
    if (adaptive<F> && c.metric != 0) run<F, adaptive<F>>(pass, t, c, n, sums);
    else run<F, false>(pass, t, c, n, sums);
}

void run(Formula formula, Pass pass, const Columns &t, const Coefficients &c, int64_t n, Sums &sums) {
    switch (formula) {
        case ADAM: return run<ADAM>(pass, t, c, n, sums);
        case AMSGRAD: return run<AMSGRAD>(pass, t, c, n, sums);
        case MOMENTUM: return run<MOMENTUM>(pass, t, c, n, sums);
        case NESTEROV: return run<NESTEROV>(pass, t, c, n, sums);
        case PLAIN: return run<PLAIN>(pass, t, c, n, sums);
    }
}

// --- 16-bit columns: a part of a block is converted to float32, updated, and rounded back ---

enum Column { W, G, M, V, TOP };

// Whether a pass reads a column, of those that the formula has. If in doubt it does.
constexpr bool reads(Formula formula, Pass pass, int column) {
    if (pass == GRADIENT_NORMS) return column == W || column == G;
    if (pass != APPLY_UPDATE) return true;
    if (column == G) return formula == NESTEROV || formula == PLAIN;
    return column != V || formula != AMSGRAD;
}

constexpr bool writes(Pass pass, int column) {
    if (column == W) return pass == APPLY_UPDATE || pass == STEP;
    return column != G && (pass == UPDATE_MOMENTS || pass == STEP);
}

constexpr bool computes_sums(Pass pass) { return pass == GRADIENT_NORMS || pass == UPDATE_MOMENTS; }

constexpr int64_t PART = 1024;  // elements; five columns of float32 are in the first-level cache

// A tensor list in blocks: `table` has tensor, offset, length and segment of each block [4], `columns` the pointers of
// each tensor [COLUMNS], 0 where the formula has no such moment, `dtypes` the Dtype of each column [COLUMNS]. `factors`:
// rate (APPLY_UPDATE) or scale (STEP) of each segment, or null.
struct TensorList {
    Formula formula;
    const Coefficients *coefficients;
    const int *dtypes;
    void *const *columns;
    const int64_t *table;

    int64_t segment(int64_t block) const { return table[4 * block + 3]; }

    void run(Pass pass, int64_t block, const float *factors, double *partial) const {
        void *const *row = columns + COLUMNS * table[4 * block];
        const int64_t offset = table[4 * block + 1], length = table[4 * block + 2];
        Coefficients c = *coefficients;
        if (factors) (pass == APPLY_UPDATE ? c.rate : c.scale) = factors[segment(block)];
        const bool converts = std::any_of(dtypes, dtypes + COLUMNS, [](int dtype) { return dtype != FLOAT32; });
        const int64_t part = converts ? PART : length;
        Sums found;
        for (int64_t begin = 0; begin < length; begin += part)
            run(pass, row, offset + begin, std::min(part, length - begin), c, found);
        if (computes_sums(pass)) found.write(partial + 2 * block);
    }

    void run(Pass pass, void *const *row, int64_t offset, int64_t n, const Coefficients &c, Sums &sums) const {
        alignas(64) float wide[COLUMNS][PART];
        float *at[COLUMNS];
        for (int j = 0; j < COLUMNS; j++) {
            at[j] = !row[j] ? nullptr : dtypes[j] == FLOAT32 ? static_cast<float *>(row[j]) + offset : wide[j];
            if (at[j] != wide[j] || !reads(formula, pass, j)) continue;
            const auto *from = static_cast<const uint16_t *>(row[j]) + offset;
            dtypes[j] == BFLOAT16 ? widen<Bfloat16>(from, wide[j], n) : widen<Float16>(from, wide[j], n);
        }
        ::run(formula, pass, {at[W], at[G], at[M], at[V], at[TOP]}, c, n, sums);
        for (int j = 0; j < COLUMNS; j++) {
            if (at[j] != wide[j] || !writes(pass, j)) continue;
            auto *to = static_cast<uint16_t *>(row[j]) + offset;
            dtypes[j] == BFLOAT16 ? narrow<Bfloat16>(wide[j], to, n) : narrow<Float16>(wide[j], to, n);
        }
    }

    // Sums of the blocks of one segment, in their order.
    void add(int64_t begin, int64_t end, const double *partial, double *sums) const {
        sums[0] = sums[1] = 0;
        for (int64_t k = begin; k < end; k++) sums[0] += partial[2 * k], sums[1] += partial[2 * k + 1];
    }
};

TensorList make(int formula, const float *coefficients, const int *dtypes, void *const *columns, const int64_t *table) {
    return {Formula(formula), reinterpret_cast<const Coefficients *>(coefficients), dtypes, columns, table};
}

}  // namespace

// One pass over all blocks, which are in ascending order of segments; `first` [segments + 1] is the first block of each.
// partial: [blocks][2]; sums: [segments][2], written by the passes that compute norms.
extern "C" void bellwether_run(int formula, int pass, const float *coefficients, const int *dtypes,
                               void *const *columns, const int64_t *table, const int64_t *first, int64_t segments,
                               const float *factors, double *partial, double *sums, int threads) {
    const TensorList list = make(formula, coefficients, dtypes, columns, table);
    const int64_t count = first[segments];
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t k = 0; k < count; k++) list.run(Pass(pass), k, factors, partial);
    if (!computes_sums(Pass(pass))) return;
    for (int64_t s = 0; s < segments; s++) list.add(first[s], first[s + 1], partial, sums + 2 * s);
}

// UPDATE_MOMENTS, the ratios ||w|| / ||u|| within bounds (1 where a norm is 0), and APPLY_UPDATE, for whole parameters.
// Takes a few segments at a time, up to `in_cache` blocks or one segment: the second pass finds them in cache.
extern "C" void bellwether_fused_step(int formula, const float *coefficients, const int *dtypes, void *const *columns,
                                      const int64_t *table, const int64_t *first, int64_t segments, double lr,
                                      double low, double high, int64_t in_cache, double *partial, double *ratios,
                                      float *rates, int threads) {
    const TensorList list = make(formula, coefficients, dtypes, columns, table);
#pragma omp parallel num_threads(threads)
    for (int64_t begin = 0, end; begin < segments; begin = end) {
        for (end = begin + 1; end < segments && first[end + 1] - first[begin] <= in_cache;) end++;
        // Both loops give a thread the same blocks. The end of each loop is a barrier.
#pragma omp for schedule(static)
        for (int64_t k = first[begin]; k < first[end]; k++) list.run(UPDATE_MOMENTS, k, nullptr, partial);
#pragma omp for schedule(static)
        for (int64_t s = begin; s < end; s++) {
            double sums[2];
            list.add(first[s], first[s + 1], partial, sums);
            const double ratio = std::sqrt(sums[0]) / std::sqrt(sums[1]);
            const bool is_zero = sums[0] == 0 || sums[1] == 0;
            ratios[s] = is_zero ? 1 : ratio < low ? low : ratio > high ? high : ratio;  // NaN stays
            rates[s] = float(ratios[s] * lr);
        }
#pragma omp for schedule(static)
        for (int64_t k = first[begin]; k < first[end]; k++) list.run(APPLY_UPDATE, k, rates, partial);
    }
}
