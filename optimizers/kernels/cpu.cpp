// The formula of coefficients.py, element by element, over float32 tensors in memory.
//
// The compiler is given FORMULAS, PASSES, SCALARS and COLUMNS by cpu.py: the order of each is defined in Python alone.
//
// The work is cut into blocks of a fixed size. Sums of squares are taken in double precision for each block and added up
// in the order of the blocks, so that the bits do not depend on the number of threads.

#include <cmath>
#include <cstdint>
#include <initializer_list>

namespace {

enum Formula { FORMULAS };
enum Pass { PASSES };

struct Coefficients {
    float SCALARS;
};

struct Columns {  // of one block
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

constexpr int LANES = 16;       // floats in the widest vectors; narrower processors use several
constexpr int64_t AHEAD = 512;  // elements; hardware prefetching stops at the end of each page

// Calls body(i, lane) for each of n elements of some columns. The compiler vectorizes the inner loop.
template <typename Body> inline void sweep(std::initializer_list<const float *> columns, int64_t n, Body body) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (const float *column : columns) __builtin_prefetch(column + i + AHEAD);
#pragma omp simd
        for (int lane = 0; lane < LANES; lane++) body(i + lane, lane);
    }
    for (int lane = 0; i < n; i++, lane++) body(i, lane);
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

void gradient_norms(const Columns &t, const Coefficients &c, int64_t n, double *sums) {
    Sums found;
    sweep({t.w, t.g}, n, [&](int64_t i, int lane) { found.add(lane, t.w[i], c.grad * t.g[i]); });
    found.write(sums);
}

template <Formula F> void update_moments(const Columns &t, const Coefficients &c, int64_t n, double *sums) {
    Sums found;
    sweep({t.w, t.g, t.m, t.v}, n, [&](int64_t i, int lane) {
        float g = gradient(t, c, i);
        move_moments<F>(t, c, i, g);
        found.add(lane, t.w[i], direction<F>(t, c, i, g));
    });
    found.write(sums);
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

template <Formula F, bool METRIC> void run(Pass pass, const Columns &t, const Coefficients &c, int64_t n, double *sums) {
    if (pass == GRADIENT_NORMS) gradient_norms(t, c, n, sums);
    else if (pass == UPDATE_MOMENTS) update_moments<F>(t, c, n, sums);
    else if (pass == APPLY_UPDATE) apply_update<F, METRIC>(t, c, n);
    else step<F, METRIC>(t, c, n);
}

template <Formula F> void run(Pass pass, const Columns &t, const Coefficients &c, int64_t n, double *sums) {
    if (adaptive<F> && c.metric != 0) run<F, adaptive<F>>(pass, t, c, n, sums);
    else run<F, false>(pass, t, c, n, sums);
}

void run(Formula formula, Pass pass, const Columns &t, const Coefficients &c, int64_t n, double *sums) {
    switch (formula) {
        case ADAM: return run<ADAM>(pass, t, c, n, sums);
        case AMSGRAD: return run<AMSGRAD>(pass, t, c, n, sums);
        case MOMENTUM: return run<MOMENTUM>(pass, t, c, n, sums);
        case NESTEROV: return run<NESTEROV>(pass, t, c, n, sums);
        case PLAIN: return run<PLAIN>(pass, t, c, n, sums);
    }
}

// A tensor list in blocks: `table` has tensor, offset, length and segment of each block [4], `columns` the pointers of
// each tensor [COLUMNS], 0 where the formula has no such moment. `factors`: rate (APPLY_UPDATE) or scale (STEP) of each
// segment, or null.
struct TensorList {
    Formula formula;
    const Coefficients *coefficients;
    float *const *columns;
    const int64_t *table;

    int64_t segment(int64_t block) const { return table[4 * block + 3]; }

    void run(Pass pass, int64_t block, const float *factors, double *partial) const {
        const int64_t tensor = table[4 * block], offset = table[4 * block + 1], length = table[4 * block + 2];
        float *at[COLUMNS];
        for (int j = 0; j < COLUMNS; j++) {
            float *column = columns[COLUMNS * tensor + j];
            at[j] = column ? column + offset : nullptr;
        }
        Coefficients c = *coefficients;
        if (factors) (pass == APPLY_UPDATE ? c.rate : c.scale) = factors[segment(block)];
        ::run(formula, pass, {at[0], at[1], at[2], at[3], at[4]}, c, length, partial + 2 * block);
    }

    // Sums of the blocks of one segment, in their order.
    void add(int64_t begin, int64_t end, const double *partial, double *sums) const {
        sums[0] = sums[1] = 0;
        for (int64_t k = begin; k < end; k++) sums[0] += partial[2 * k], sums[1] += partial[2 * k + 1];
    }
};

}  // namespace

// One pass over all blocks, which are in ascending order of segments; `first` [segments + 1] is the first block of each.
// partial: [blocks][2]; sums: [segments][2], written by the passes that compute norms.
extern "C" void bellwether_run(int formula, int pass, const float *coefficients, float *const *columns,
                               const int64_t *table, const int64_t *first, int64_t segments, const float *factors,
                               double *partial, double *sums, int threads) {
    const TensorList list{Formula(formula), reinterpret_cast<const Coefficients *>(coefficients), columns, table};
    const int64_t count = first[segments];
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t k = 0; k < count; k++) list.run(Pass(pass), k, factors, partial);
    if (pass != GRADIENT_NORMS && pass != UPDATE_MOMENTS) return;
    for (int64_t s = 0; s < segments; s++) list.add(first[s], first[s + 1], partial, sums + 2 * s);
}

// UPDATE_MOMENTS, the ratios ||w|| / ||u|| within bounds (1 where a norm is 0), and APPLY_UPDATE, for whole parameters.
// Takes a few segments at a time, up to `in_cache` blocks or one segment: the second pass finds them in cache.
extern "C" void bellwether_fused_step(int formula, const float *coefficients, float *const *columns,
                                      const int64_t *table, const int64_t *first, int64_t segments, double lr,
                                      double low, double high, int64_t in_cache, double *partial, double *ratios,
                                      float *rates, int threads) {
    const TensorList list{Formula(formula), reinterpret_cast<const Coefficients *>(coefficients), columns, table};
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
