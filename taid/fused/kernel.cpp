// The losses of taid/losses.py on rows of logits, value and gradient, one row at a time in fp32.
//
// A row passes through blocks that stay in the first-level cache. `load` turns a piece of the inputs into fp32 logits
// of the student and of the teacher (the blend, for TAID), padded with −∞, which is probability zero. The first sweep
// finds the normalisers of both softmaxes. With q, p and r = log p − log q, a divergence Σ f(p, q) has the gradient
// h − q Σ h, h = ∂f / ∂ log q: a second sweep sums f and h, where Σ h is not known before, and the last one writes.
// Vectors are as wide as the processor's; the same source serves AVX2, AVX-512 and NEON.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <type_traits>
#include <vector>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define INLINE inline __attribute__((always_inline))

constexpr int LANES = BYTES / 4, BLOCK = 512, VECTORS = BLOCK / LANES;
typedef float F __attribute__((vector_size(BYTES)));
typedef int32_t I __attribute__((vector_size(BYTES)));
typedef uint32_t U __attribute__((vector_size(BYTES)));
typedef uint16_t Half __attribute__((vector_size(BYTES / 2)));
constexpr float INF = std::numeric_limits<float>::infinity(), TINY = std::numeric_limits<float>::min();

struct Job {  // as taid/fused/kernel.py lays it out; strides in elements, between rows
    const void *student, *teacher;
    void *out;                // null: no gradient
    const uint8_t *mask;      // null: every row
    const int64_t *labels;    // dkd alone
    float *values, *slopes;   // slopes: null, or the derivatives with respect to ctkd's temperature
    int64_t student_stride, teacher_stride, out_stride, rows, vocabulary;
    int32_t loss, student_type, teacher_type, threads;
    float scale, a, b, temperature;  // a, b: the loss's own parameters
};

enum Type { FLOAT32, BFLOAT16, FLOAT16 };
enum Loss { FORWARD_KL, REVERSE_KL, TVD_, JSD_, SKEW_KL, SKEW_RKL, ADAPTIVE_KL, DKD, CTKD, TAID_KL };

// Elementary functions

INLINE F bits_to_float(I x) { return (F)x; }
INLINE F maximum(F x, F y) { return x > y ? x : y; }  // y, where x is NaN
INLINE F absolute(F x) { return bits_to_float((I)x & 0x7fffffff); }

// e^x for x ≤ 0, relative error below 2e-7; 0 below −87, where results would be subnormal; NaN stays.
INLINE F exponential(F x) {
    const float magic = 12582912.0f + 127.0f;  // 1.5 · 2^23: adding it rounds to integers, kept in the low bits
    F shifted = x * 1.44269504f + magic;
    F r = x - (shifted - magic) * 0.693147182f;
    F y = r * 8.297584019601345e-3f + 4.191587492823601e-2f;
    y = y * r + 1.6667577624320984e-1f;
    y = y * r + 4.999889135360718e-1f;
    y = y * r + 9.999997019767761e-1f;
    y = y * r + 1.0000001192092896f;
    y *= bits_to_float((I)shifted << 23);
    return x < -87.0f ? F{} : y;
}

// log x for normal x > 0, error below 2e-7 of the result or of 1; NaN stays.
INLINE F logarithm(F x) {
    I exponent = ((I)x - 0x3f3504f3) >> 23;  // so that the mantissa lies in [√½, √2)
    F f = bits_to_float((I)x - (exponent << 23)) - 1.0f;
    F y = f * 8.734844624996185e-2f - 1.4307522773742676e-1f;
    y = y * f + 1.4917972683906555e-1f;
    y = y * f - 1.6570508480072021e-1f;
    y = y * f + 1.9962072372436523e-1f;
    y = y * f - 2.5001755356788635e-1f;
    y = y * f + 3.3333951234817505e-1f;
    y = y * f - 4.9999991059303284e-1f;
    y = __builtin_convertvector(exponent, F) * 0.693147182f + (f + f * f * y);
    return x == x ? y : x;
}

// w · log x, zero where both are zero
INLINE F times_log(F w, F x) { return w * logarithm(x + TINY); }

double sum(F x) {
    double total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}

float largest(F x) {
    float most = x[0];
    for (int i = 1; i < LANES; i++) most = std::max(most, x[i]);
    return most;
}

// Memory

template <class V> INLINE V read(const void *at) {
    V x;
    std::memcpy(&x, at, sizeof x);
    return x;
}

template <class V> INLINE void write(void *at, V x) { std::memcpy(at, &x, sizeof x); }

struct Float32 {
    typedef float Scalar;
    static INLINE F load(const float *at) { return read<F>(at); }
    static INLINE void store(float *at, F x) { write(at, x); }
};

struct BFloat16 {
    typedef uint16_t Scalar;
    static INLINE F load(const uint16_t *at) { return (F)(__builtin_convertvector(read<Half>(at), U) << 16); }
    static INLINE void store(uint16_t *at, F x) {  // to the nearest, ties to even
        U bits = (U)x;
        bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        bits = x == x ? bits : U{} + 0x7fc0;
        write(at, __builtin_convertvector(bits, Half));
    }
};

struct Float16 {
    typedef _Float16 Scalar;
    typedef _Float16 Vector __attribute__((vector_size(BYTES / 2)));
    static INLINE F load(const _Float16 *at) { return __builtin_convertvector(read<Vector>(at), F); }
    static INLINE void store(_Float16 *at, F x) { write(at, __builtin_convertvector(x, Vector)); }
};

struct Block {
    alignas(64) F s[VECTORS], z[VECTORS];
    int vectors;
};

// `count` logits to fp32, padded with −∞ to whole vectors
template <class T> INLINE void fetch(const void *row, int64_t at, int count, F *to) {
    auto *from = static_cast<const typename T::Scalar *>(row) + at;
    int whole = count / LANES, rest = count % LANES;
    for (int j = 0; j < whole; j++) to[j] = T::load(from + j * LANES);
    if (rest) {
        typename T::Scalar last[LANES] = {};
        std::memcpy(last, from + whole * LANES, rest * sizeof *from);
        F x = T::load(last);
        for (int i = rest; i < LANES; i++) x[i] = -INF;
        to[whole] = x;
    }
}

INLINE void fetch(int type, const void *row, int64_t at, int count, F *to) {
    if (type == FLOAT32) fetch<Float32>(row, at, count, to);
    if (type == BFLOAT16) fetch<BFloat16>(row, at, count, to);
    if (type == FLOAT16) fetch<Float16>(row, at, count, to);
}

template <class T> INLINE void put(void *row, int64_t at, int count, const F *from) {
    auto *to = static_cast<typename T::Scalar *>(row) + at;
    int whole = count / LANES, rest = count % LANES;
    for (int j = 0; j < whole; j++) T::store(to + j * LANES, from[j]);
    if (rest) {
        typename T::Scalar last[LANES];
        T::store(last, from[whole]);
        std::memcpy(to + whole * LANES, last, rest * sizeof *to);
    }
}

INLINE void put(int type, void *row, int64_t at, int count, const F *from) {
    if (type == FLOAT32) put<Float32>(row, at, count, from);
    if (type == BFLOAT16) put<BFloat16>(row, at, count, from);
    if (type == FLOAT16) put<Float16>(row, at, count, from);
}

struct Normaliser {
    float maximum = std::numeric_limits<float>::lowest();
    double total = 0;  // Σ e^(x − maximum)
    double log() const { return maximum + std::log(total); }

    INLINE void raise(float to) {
        if (to <= maximum) return;
        total *= std::exp(double(maximum) - to);
        maximum = to;
    }
};

struct Row {
    const Job &job;
    const void *student, *teacher;
    void *out;
    float scale;         // of the gradient
    int64_t label = -1;  // an entry to leave out
    Normaliser s, z;

    INLINE int load(int64_t at, Block &block) const {
        int count = std::min<int64_t>(BLOCK, job.vocabulary - at);
        block.vectors = (count + LANES - 1) / LANES;
        fetch(job.student_type, student, at, count, block.s);
        fetch(job.teacher_type, teacher, at, count, block.z);
        if (job.loss == TAID_KL)
            for (int j = 0; j < block.vectors; j++) block.z[j] = (1 - job.a) * block.s[j] + job.a * block.z[j];
        if (job.temperature != 1)
            for (int j = 0; j < block.vectors; j++) block.s[j] /= job.temperature, block.z[j] /= job.temperature;
        if (label >= at && label < at + count)
            for (F *x : {block.s, block.z}) x[(label - at) / LANES][(label - at) % LANES] = -INF;
        return count;
    }

    void normalise() {
        Block block;
        for (int64_t at = 0; at < job.vocabulary; at += BLOCK) {
            load(at, block);
            F s_most = block.s[0], z_most = block.z[0];
            for (int j = 1; j < block.vectors; j++) {
                s_most = maximum(block.s[j], s_most);
                z_most = maximum(block.z[j], z_most);
            }
            s.raise(largest(s_most));
            z.raise(largest(z_most));
            F s_total{}, z_total{};
            for (int j = 0; j < block.vectors; j++) {
                s_total += exponential(block.s[j] - s.maximum);
                z_total += exponential(block.z[j] - z.maximum);
            }
            s.total += sum(s_total);
            z.total += sum(z_total);
        }
    }
};

// Losses: f and h at entries with student's and teacher's log-probabilities less a constant, a and b

struct Entry {
    F q, p, r, a, b;
};

struct Sums {
    double f = 0, h = 0;
};

struct ForwardKL {
    static constexpr bool knows_total = true;  // Σ h = −1, or as dkd sets it
    float weight = 1;
    INLINE F f(const Entry &e) const { return e.p == 0.0f ? F{} : e.p * e.r; }
    INLINE F h(const Entry &e) const { return -weight * e.p; }
};

struct ReverseKL {
    static constexpr bool knows_total = false;
    INLINE F f(const Entry &e) const { return e.q == 0.0f ? F{} : -e.q * e.r; }
    INLINE F h(const Entry &e) const { return f(e); }  // and q, whose part cancels
};

struct TVD {
    static constexpr bool knows_total = false;
    INLINE F f(const Entry &e) const { return 0.5f * absolute(e.p - e.q); }
    INLINE F h(const Entry &e) const {
        F half = 0.5f * e.q;
        return e.q > e.p ? half : e.q < e.p ? -half : e.q - e.p;
    }
};

struct JSD {
    static constexpr bool knows_total = false;
    float beta;
    INLINE F h(const Entry &e) const { return (1 - beta) * times_log(e.q, e.q * inverse(e)); }
    INLINE F f(const Entry &e) const { return beta * times_log(e.p, e.p * inverse(e)) + h(e); }
    INLINE F inverse(const Entry &e) const { return 1.0f / (beta * e.p + (1 - beta) * e.q + TINY); }
};

struct SkewKL {
    static constexpr bool knows_total = false;
    float lam;
    INLINE F ratio(const Entry &e) const { return e.p / (lam * e.p + (1 - lam) * e.q + TINY); }
    INLINE F f(const Entry &e) const { return times_log(e.p, ratio(e)); }
    INLINE F h(const Entry &e) const { return (lam - 1) * e.q * ratio(e); }
};

struct SkewRKL {
    static constexpr bool knows_total = false;
    float lam;
    INLINE F ratio(const Entry &e) const { return e.q / ((1 - lam) * e.p + lam * e.q + TINY); }
    INLINE F f(const Entry &e) const { return times_log(e.q, ratio(e)); }
    INLINE F h(const Entry &e) const { return f(e) - lam * e.q * ratio(e); }
};

struct WeightedKL {  // w KL(p ‖ q) + (1 − w) KL(q ‖ p)
    static constexpr bool knows_total = false;
    float w;
    INLINE F f(const Entry &e) const { return w * ForwardKL().f(e) + (1 - w) * ReverseKL().f(e); }
    INLINE F h(const Entry &e) const { return (1 - w) * ReverseKL().h(e) - w * e.p; }
};

struct HeadGap {  // sums |p − q|: f over the head, b ≥ threshold, h over all
    float threshold;
    INLINE F h(const Entry &e) const { return absolute(e.p - e.q); }
    INLINE F f(const Entry &e) const { return e.b >= threshold ? h(e) : F{}; }
};

struct TemperatureChange {  // −τ K′ = Σ f − K Σ h for K = KL(softmax(b) ‖ softmax(a)), a and b over τ
    INLINE F f(const Entry &e) const {
        return (e.q == 0.0f ? F{} : e.q * e.a) + (e.p == 0.0f ? F{} : e.p * (e.r * e.b - e.a));
    }
    INLINE F h(const Entry &e) const { return e.p == 0.0f ? F{} : e.p * e.b; }
};

// Σ f and Σ h over the row, each if asked for; writes scale · (h − q · total) if asked for
template <bool SUM_F, bool SUM_H, bool WRITE, class L> Sums sweep(const Row &row, const L &loss, float total = 0) {
    const Job &job = row.job;
    const float s_inverse = 1 / row.s.total, z_inverse = 1 / row.z.total;
    const float shift = std::log(row.s.total) - std::log(row.z.total);
    Block block;
    Sums sums;
    for (int64_t at = 0; at < job.vocabulary; at += BLOCK) {
        int count = row.load(at, block);
        F f_total{}, h_total{};
        for (int j = 0; j < block.vectors; j++) {
            Entry e;
            e.a = block.s[j] - row.s.maximum;
            e.b = block.z[j] - row.z.maximum;
            e.q = exponential(e.a) * s_inverse;
            e.p = exponential(e.b) * z_inverse;
            e.r = e.b - e.a + shift;
            if constexpr (SUM_F) f_total += loss.f(e);
            if constexpr (SUM_H) h_total += loss.h(e);
            if constexpr (WRITE) block.s[j] = row.scale * (loss.h(e) - e.q * total);
        }
        if constexpr (SUM_F) sums.f += sum(f_total);
        if constexpr (SUM_H) sums.h += sum(h_total);
        if constexpr (WRITE) put(job.student_type, row.out, at, count, block.s);
    }
    return sums;
}

// The value; writes the gradient if there is a place for it
template <class L> double divergence(const Row &row, const L &loss, float total = -1) {
    if (!row.out) return sweep<true, false, false>(row, loss).f;
    if constexpr (L::knows_total) return sweep<true, false, true>(row, loss, total).f;
    Sums sums = sweep<true, true, false>(row, loss);
    sweep<false, false, true>(row, loss, sums.h);
    return sums.f;
}

// Largest x among the teacher's logits less their maximum such that the entries ≥ x have the probability `mass`
float head_threshold(const Row &row, float mass) {
    Block block;
    std::vector<float> logits;
    for (float depth = 4;; depth *= 2) {  // most heads are narrow: look at the entries near the maximum first
        logits.clear();
        double found = 0, wanted = mass * row.z.total;
        for (int64_t at = 0; at < row.job.vocabulary; at += BLOCK) {
            row.load(at, block);
            for (int j = 0; j < block.vectors; j++) {
                F x = block.z[j] - row.z.maximum;
                I near = x >= -depth;
                for (int i = 0; i < LANES; i++)
                    if (near[i]) logits.push_back(x[i]), found += std::exp(x[i]);
            }
        }
        if (found < wanted && depth < 128) continue;
        std::sort(logits.begin(), logits.end(), std::greater<float>());
        for (float x : logits)
            if ((wanted -= std::exp(x)) <= 0) return x;
        return logits.empty() ? 0 : logits.back();
    }
}

double adaptive(const Row &row, float mu) {
    Sums gap = sweep<true, true, false>(row, HeadGap{head_threshold(row, mu)});
    const double epsilon = std::numeric_limits<float>::epsilon();
    double w = gap.h > 0 ? gap.f / gap.h : 0.5;
    return divergence(row, WeightedKL{float(std::clamp(w, epsilon, 1 - epsilon))});
}

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }
double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// KL between two-way distributions with the log-odds z and s
double two_way(double s, double z) {
    double value = 0;
    for (double sign : {1.0, -1.0}) {
        double p = sigmoid(sign * z);
        if (p != 0) value += p * (softplus(-sign * s) - softplus(-sign * z));
    }
    return value;
}

float entry(int type, const void *row, int64_t at) {
    F x{};
    fetch(type, row, at, 1, &x);
    return x[0];
}

double decoupled(Row row, int64_t label) {
    const Job &job = row.job;
    double tau = job.temperature, alpha = job.a, beta = job.b;
    double s_label = entry(job.student_type, row.student, label) / tau;
    double z_label = entry(job.teacher_type, row.teacher, label) / tau;
    row.label = label;
    row.scale *= job.temperature;
    row.normalise();
    double s_odds = s_label - row.s.log(), z_odds = z_label - row.z.log();
    double excess = sigmoid(s_odds) - sigmoid(z_odds);  // q_y − p_y
    double others = divergence(row, ForwardKL{float(beta)}, alpha * excess - beta);
    if (row.out) {
        F x = F{} + float(row.scale * alpha * excess);
        put(job.student_type, row.out, label, 1, &x);
    }
    return tau * tau * (alpha * two_way(s_odds, z_odds) + beta * others);
}

double tempered(Row row, float *slope) {
    double tau = row.job.temperature;
    row.scale *= row.job.temperature;
    Sums change;
    if (slope) change = sweep<true, true, false>(row, TemperatureChange());
    double value = divergence(row, ForwardKL());
    if (slope) *slope = 2 * tau * value - tau * (change.f - value * change.h);
    return tau * tau * value;
}

template <class P> P *shifted(P *base, int type, int64_t elements) {
    typedef typename std::conditional<std::is_const<P>::value, const char, char>::type Byte;
    return base ? static_cast<Byte *>(base) + elements * (type == FLOAT32 ? 4 : 2) : nullptr;
}

double value(const Job &job, int64_t i) {
    Row row{job, shifted(job.student, job.student_type, i * job.student_stride),
            shifted(job.teacher, job.teacher_type, i * job.teacher_stride),
            shifted(job.out, job.student_type, i * job.out_stride), job.scale};
    if (job.loss == DKD) return decoupled(row, std::max<int64_t>(job.labels[i], 0));
    row.normalise();
    switch (job.loss) {
        case REVERSE_KL: return divergence(row, ReverseKL());
        case TVD_: return divergence(row, TVD());
        case JSD_: return divergence(row, JSD{job.a});
        case SKEW_KL: return divergence(row, SkewKL{job.a});
        case SKEW_RKL: return divergence(row, SkewRKL{job.a});
        case ADAPTIVE_KL: return adaptive(row, job.a);
        case CTKD: return tempered(row, job.slopes ? job.slopes + i : nullptr);
        default: return divergence(row, ForwardKL());
    }
}

void zero(const Job &job, int64_t i) {
    if (!job.out) return;
    void *row = shifted(job.out, job.student_type, i * job.out_stride);
    std::memset(row, 0, job.vocabulary * (job.student_type == FLOAT32 ? 4 : 2));
}

extern "C" void taid_rows(const Job *job) {
#pragma omp parallel for num_threads(job->threads) schedule(static) if (job->threads > 1)
    for (int64_t i = 0; i < job->rows; i++) {
        if (!job->mask || job->mask[i])
            job->values[i] = value(*job, i);
        else
            zero(*job, i);
    }
}
