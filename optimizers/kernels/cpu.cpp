// The arithmetic of reference.py, element by element, over float32 tensors in memory. See there for the formulas.
//
// Work is cut into blocks that depend on the layout alone. Sums of squares are taken in double precision for each block
// and added up in the blocks' order, so that the number of threads does not change a bit.

#include <cmath>
#include <cstdint>
#include <initializer_list>

namespace {

enum Formula { ADAM, AMSGRAD, MOMENTUM, NESTEROV, PLAIN };
enum Pass { GRADIENT_NORMS, ADVANCE, DESCEND, STEP };

struct Coefficients {  // in the order of Coefficients.scalars in batch.py
    float rate, grad, l2, scale, beta1, weight1, beta2, rest2, numerator, root, eps, inside, shrink, prox, metric;
};

struct Columns {  // of one block
    float *__restrict w, *__restrict g, *__restrict m, *__restrict v, *__restrict top;
};

template <Formula F> constexpr bool adaptive = F == ADAM || F == AMSGRAD;
template <Formula F> constexpr bool remembers = F != PLAIN;

// What the optimizer sees as the gradient of element i.
inline float gradient(const Columns &t, const Coefficients &c, int64_t i) {
    return c.scale * (c.grad * t.g[i] + c.l2 * t.w[i]);
}

// Moves the moments of element i.
template <Formula F> inline void move(const Columns &t, const Coefficients &c, int64_t i, float g) {
    if constexpr (remembers<F>) t.m[i] = c.beta1 * t.m[i] + c.weight1 * g;
    if constexpr (adaptive<F>) t.v[i] = c.beta2 * t.v[i] + c.rest2 * g * g;
    if constexpr (F == AMSGRAD) t.top[i] = t.top[i] > t.v[i] ? t.top[i] : t.v[i];
}

template <Formula F> inline float denominator(const Columns &t, const Coefficients &c, int64_t i) {
    return std::sqrt(F == AMSGRAD ? t.top[i] : t.v[i]) * c.root + c.eps;
}

template <Formula F> inline float direction(const Columns &t, const Coefficients &c, int64_t i, float g) {
    float u;
    if constexpr (adaptive<F>) u = t.m[i] * c.numerator / denominator<F>(t, c, i);
    else if constexpr (F == MOMENTUM) u = t.m[i] * c.numerator;
    else if constexpr (F == NESTEROV) u = (g + c.beta1 * t.m[i]) * c.numerator;
    else u = g * c.numerator;
    return u + c.inside * t.w[i];
}

template <Formula F, bool METRIC> inline void take(const Columns &t, const Coefficients &c, int64_t i, float u) {
    float w = (c.shrink * t.w[i] - c.rate * u) * c.prox;
    if constexpr (METRIC) w /= 1 + c.metric / denominator<F>(t, c, i);
    t.w[i] = w;
}

constexpr int LANES = 16;          // floats of the widest vectors; narrower processors take several
constexpr int64_t AHEAD = 512;     // elements; the processor's own prefetching stops at the end of each page

// Calls body(i, lane) for each of n elements of some columns. The inner loop is what the compiler turns into vectors.
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

    // The square of a float is exact in double, so it makes no difference whether it is rounded before it is added.
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

template <Formula F> void advance(const Columns &t, const Coefficients &c, int64_t n, double *sums) {
    Sums found;
    sweep({t.w, t.g, t.m, t.v}, n, [&](int64_t i, int lane) {
        float g = gradient(t, c, i);
        move<F>(t, c, i, g);
        found.add(lane, t.w[i], direction<F>(t, c, i, g));
    });
    found.write(sums);
}

template <Formula F, bool METRIC> void descend(const Columns &t, const Coefficients &c, int64_t n) {
    sweep({t.w, t.m, t.v}, n, [&](int64_t i, int) {
        take<F, METRIC>(t, c, i, direction<F>(t, c, i, gradient(t, c, i)));
    });
}

template <Formula F, bool METRIC> void step(const Columns &t, const Coefficients &c, int64_t n) {
    sweep({t.w, t.g, t.m, t.v}, n, [&](int64_t i, int) {
        float g = gradient(t, c, i);
        move<F>(t, c, i, g);
        take<F, METRIC>(t, c, i, direction<F>(t, c, i, g));
    });
}

template <Formula F, bool METRIC> void run(Pass pass, const Columns &t, const Coefficients &c, int64_t n, double *sums) {
    if (pass == GRADIENT_NORMS) gradient_norms(t, c, n, sums);
    else if (pass == ADVANCE) advance<F>(t, c, n, sums);
    else if (pass == DESCEND) descend<F, METRIC>(t, c, n);
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

// A block of a batch: `table` has tensor, offset, length and segment of each [4], `columns` the pointers of each tensor
// [5], 0 where there is no such moment. `each`: rate (DESCEND) or scale (STEP) of each segment, or null.
struct Batch {
    Formula formula;
    const Coefficients *coefficients;
    float *const *columns;
    const int64_t *table;

    int64_t segment(int64_t block) const { return table[4 * block + 3]; }

    void run(Pass pass, int64_t block, const float *each, double *partial) const {
        const int64_t tensor = table[4 * block], offset = table[4 * block + 1], length = table[4 * block + 2];
        float *at[5];
        for (int j = 0; j < 5; j++) {
            float *column = columns[5 * tensor + j];
            at[j] = column ? column + offset : nullptr;
        }
        Coefficients c = *coefficients;
        if (each) (pass == DESCEND ? c.rate : c.scale) = each[segment(block)];
        ::run(formula, pass, {at[0], at[1], at[2], at[3], at[4]}, c, length, partial + 2 * block);
    }

    // Sums of the blocks of one segment, in their order.
    void add(int64_t begin, int64_t end, const double *partial, double *sums) const {
        sums[0] = sums[1] = 0;
        for (int64_t k = begin; k < end; k++) sums[0] += partial[2 * k], sums[1] += partial[2 * k + 1];
    }
};

}  // namespace

// One pass over all blocks, which come by rising segment; `first` [segments + 1] is the first block of each.
// partial: [blocks][2]; sums: [segments][2], written by the passes that sum.
extern "C" void bellwether_run(int formula, int pass, const float *coefficients, float *const *columns,
                               const int64_t *table, const int64_t *first, int64_t segments, const float *each,
                               double *partial, double *sums, int threads) {
    const Batch batch{Formula(formula), reinterpret_cast<const Coefficients *>(coefficients), columns, table};
    const int64_t count = first[segments];
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t k = 0; k < count; k++) batch.run(Pass(pass), k, each, partial);
    if (pass != GRADIENT_NORMS && pass != ADVANCE) return;
    for (int64_t s = 0; s < segments; s++) batch.add(first[s], first[s + 1], partial, sums + 2 * s);
}

// ADVANCE and DESCEND of whole parameters, with the ratio ||w|| / ||u|| within bounds, 1 where a norm is 0, between them.
// A few segments at a time, `together` blocks or one segment: the second pass finds in cache what the first has left.
extern "C" void bellwether_adapt(int formula, const float *coefficients, float *const *columns, const int64_t *table,
                                 const int64_t *first, int64_t segments, double lr, double low, double high,
                                 int64_t together, double *partial, double *ratios, float *rates, int threads) {
    const Batch batch{Formula(formula), reinterpret_cast<const Coefficients *>(coefficients), columns, table};
#pragma omp parallel num_threads(threads)
    for (int64_t begin = 0, end; begin < segments; begin = end) {
        for (end = begin + 1; end < segments && first[end + 1] - first[begin] <= together;) end++;
        // Both loops give a thread the same blocks. The end of each loop is a barrier.
#pragma omp for schedule(static)
        for (int64_t k = first[begin]; k < first[end]; k++) batch.run(ADVANCE, k, nullptr, partial);
#pragma omp for schedule(static)
        for (int64_t s = begin; s < end; s++) {
            double sums[2];
            batch.add(first[s], first[s + 1], partial, sums);
            const double ratio = std::sqrt(sums[0]) / std::sqrt(sums[1]);
            const bool none = sums[0] == 0 || sums[1] == 0;
            ratios[s] = none ? 1 : ratio < low ? low : ratio > high ? high : ratio;  // NaN stays
            rates[s] = float(ratios[s] * lr);
        }
#pragma omp for schedule(static)
        for (int64_t k = first[begin]; k < first[end]; k++) batch.run(DESCEND, k, rates, partial);
    }
}
