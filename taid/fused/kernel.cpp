// The losses of taid/losses.py on rows of logits, value and gradient, one row at a time in fp32.
//
// A row is read in blocks that stay in the first-level cache: `load` turns a piece of both inputs into
// fp32 logits (the blend, for TAID), padded with −∞, which is probability zero. `normalise` makes both
// softmaxes of them, and the KL divergences on the way, and keeps e^x for the sweeps that follow: one
// that sums f and h, where a loss needs it, and one that writes h − q Σ h. That is the gradient of
// Σ f(p, q), with q, p the student's and teacher's probabilities, h = ∂f / ∂ log q and r = log p − log q.
// Vectors are as wide as the processor's; the same source serves AVX2, AVX-512 and NEON.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iterator>
#include <limits>
#include <memory>
#include <numeric>
#include <type_traits>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

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
    const float *weights;     // null: every row counts 1; a row that counts 0 is never read
    const int64_t *labels;    // dkd alone
    float *values, *slopes;   // slopes: null, or the derivatives with respect to ctkd's temperature
    int64_t student_stride, teacher_stride, out_stride, rows, vocabulary;
    int32_t loss, student_type, teacher_type, threads;
    float scale, a, b, temperature;  // a, b: the loss's own parameters
};

enum Type { FLOAT32, BFLOAT16, FLOAT16 };
enum Loss {
    FORWARD_KL, REVERSE_KL, TOTAL_VARIATION, JENSEN_SHANNON, SKEW_KL, SKEW_RKL, ADAPTIVE_KL, DKD, CTKD,
    TAID_KL, ALPHA_BETA
};
const char *const NAMES[] = {"forward_kl", "reverse_kl", "tvd", "jsd", "skew_kl", "skew_rkl", "adaptive_kl", "dkd",
                             "ctkd", "taid_kl", "alpha_beta"};  // in taid/losses.py

// Elementary functions

INLINE F maximum(F x, F y) { return x > y ? x : y; }  // y, where x is NaN
INLINE F absolute(F x) { return (F)((I)x & 0x7fffffff); }

// e^x for x ≤ 0, relative error below 2e-7; 0 below −87, where results would be subnormal; NaN stays.
INLINE F exponential(F x) {
    const float magic = 12582912.0f;  // adding 1.5 · 2^23 leaves an integer in the low bits
    F shifted = x * 1.44269504f + magic;
    F r = x - (shifted - magic) * 0.693147182f;
    F y = r * 8.297584019601345e-3f + 4.191587492823601e-2f;
    y = y * r + 1.6667577624320984e-1f;
    y = y * r + 4.999889135360718e-1f;
    y = y * r + 9.999997019767761e-1f;
    y = y * r + 1.0000001192092896f;
    y = (F)((U)y + ((U)shifted << 23));  // times a power of two; a NaN has no low bits
    return x < -87.0f ? F{} : y;
}

// log x for normal x > 0, error below 2e-7 of the result or of 1; NaN stays.
INLINE F logarithm(F x) {
    I exponent = ((I)x - 0x3f3504f3) >> 23;  // so that the mantissa lies in [√½, √2)
    F f = (F)((U)x - ((U)exponent << 23)) - 1.0f;
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

struct Total {  // a sum in fp64, lane by lane
    double lanes[LANES] = {};

    INLINE void add(F x) {
        for (int i = 0; i < LANES; i++) lanes[i] += x[i];
    }
    void scale(double by) {  // what is too small for fp32 is gone, even if it was infinite
        for (double &x : lanes) x = by > 1e-45 || x != x ? x * by : 0;
    }
    double sum() const { return std::accumulate(lanes, lanes + LANES, 0.0); }
};

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

template <class V> INLINE void save(void *at, V x) { std::memcpy(at, &x, sizeof x); }

struct Float32 {
    typedef float Scalar;
    static INLINE F load(const float *at) { return read<F>(at); }
    static INLINE void store(float *at, F x) { save(at, x); }
};

struct BFloat16 {
    typedef uint16_t Scalar;
    static INLINE F load(const uint16_t *at) { return (F)(__builtin_convertvector(read<Half>(at), U) << 16); }
    static INLINE void store(uint16_t *at, F x) {  // to the nearest, ties to even
        U bits = (U)x;
        bits += 0x7fff + ((bits >> 16) & 1);
        save(at, __builtin_convertvector(bits >> 16, Half));
    }
};

struct Float16 {
    typedef _Float16 Scalar;
    typedef _Float16 Vector __attribute__((vector_size(BYTES / 2)));
    static INLINE F load(const _Float16 *at) { return __builtin_convertvector(read<Vector>(at), F); }
    static INLINE void store(_Float16 *at, F x) { save(at, __builtin_convertvector(x, Vector)); }
};

// `count` logits to fp32, each vector by way of `mix`, padded to whole vectors with −∞; returns maxima
template <class T, class Mix> INLINE F fetch(const void *row, int64_t at, int count, F *to, Mix mix) {
    auto *from = static_cast<const typename T::Scalar *>(row) + at;
    int whole = count / LANES, rest = count % LANES;
    F most = F{} - INF;
    for (int j = 0; j < whole; j++) most = maximum(to[j] = mix(T::load(from + j * LANES), j), most);
    if (rest) {
        typename T::Scalar last[LANES] = {};
        std::memcpy(last, from + whole * LANES, rest * sizeof *from);
        F x = mix(T::load(last), whole);
        for (int i = rest; i < LANES; i++) x[i] = -INF;
        most = maximum(to[whole] = x, most);
    }
    return most;
}

template <class Mix> INLINE F fetch(int type, const void *row, int64_t at, int count, F *to, Mix mix) {
    switch (type) {
        case FLOAT32: return fetch<Float32>(row, at, count, to, mix);
        case BFLOAT16: return fetch<BFloat16>(row, at, count, to, mix);
        default: return fetch<Float16>(row, at, count, to, mix);
    }
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

struct Block {
    alignas(64) F s[VECTORS], z[VECTORS];
    F s_most, z_most;
};

// The softmax of one side of a row, block by block: e = e^(x − the maximum so far)
struct Softmax {
    F *e;
    float *maxima;  // after each block
    float maximum;
    double total;  // Σ e^(x − maximum)

    // what makes a block's e probabilities
    float factor(int block) const {
        return (maxima[block] == maximum ? 1 : std::exp(maxima[block] - maximum)) / total;
    }
    double log() const { return maximum + std::log(total); }
};

struct Row {
    const Job &job;
    const void *student, *teacher;
    void *out;
    float scale;    // of the gradient
    int64_t label;  // an entry to leave out, or −1
    Softmax s, z;
    double kl, reverse_kl;  // if `normalise` was asked for them

    int blocks() const { return (job.vocabulary + BLOCK - 1) / BLOCK; }
    int count(int block) const { return std::min<int64_t>(BLOCK, job.vocabulary - int64_t(block) * BLOCK); }
    int vectors(int block) const { return (count(block) + LANES - 1) / LANES; }

    void load(int block, Block &to) const {
        const int64_t at = int64_t(block) * BLOCK;
        auto fetch_both = [&](auto student_mix, auto teacher_mix) {
            to.s_most = fetch(job.student_type, student, at, count(block), to.s, student_mix);
            to.z_most = fetch(job.teacher_type, teacher, at, count(block), to.z, teacher_mix);
        };
        auto plain = [](F x, int) { return x; };
        auto blended = [&, a = 1 - job.a, b = job.a](F x, int j) { return a * to.s[j] + b * x; };
        auto tempered = [tau = job.temperature](F x, int) { return x / tau; };
        if (job.loss == TAID_KL)
            fetch_both(plain, blended);
        else if (job.temperature != 1)
            fetch_both(tempered, tempered);
        else
            fetch_both(plain, plain);
        if (label < at || label >= at + BLOCK) return;
        to.s[(label - at) / LANES][(label - at) % LANES] = -INF;
        to.z[(label - at) / LANES][(label - at) % LANES] = -INF;
        to.s_most = to.z_most = F{} - INF;
        for (int j = 0; j < vectors(block); j++) {
            to.s_most = maximum(to.s[j], to.s_most);
            to.z_most = maximum(to.z[j], to.z_most);
        }
    }

    // Both softmaxes and, of the divergences between them, those asked for. While x − maximum is at hand,
    // so is Σ e d, d the difference of the two sides' x − maximum; a new maximum changes d by a constant.
    template <bool KL, bool REVERSE_KL> void normalise() {
        Block block;
        Total s_total, z_total, kl_total, reverse_total;
        s.maximum = z.maximum = std::numeric_limits<float>::lowest();
        for (int i = 0; i < blocks(); i++) {
            load(i, block);
            const float s_most = largest(block.s_most), z_most = largest(block.z_most);
            if (s_most > s.maximum || z_most > z.maximum) {
                const double s_rise = std::max(s_most, s.maximum) - double(s.maximum);
                const double z_rise = std::max(z_most, z.maximum) - double(z.maximum);
                s.maximum = std::max(s_most, s.maximum), z.maximum = std::max(z_most, z.maximum);
                for (Total *total : {&s_total, &reverse_total}) total->scale(std::exp(-s_rise));
                for (Total *total : {&z_total, &kl_total}) total->scale(std::exp(-z_rise));
                if (i > 0)
                    for (int k = 0; k < LANES; k++) {
                        kl_total.lanes[k] += (s_rise - z_rise) * z_total.lanes[k];
                        reverse_total.lanes[k] += (z_rise - s_rise) * s_total.lanes[k];
                    }
            }
            s.maxima[i] = s.maximum, z.maxima[i] = z.maximum;
            F s_sum{}, z_sum{}, kl_sum{}, reverse_sum{};
            F *s_to = s.e + i * VECTORS, *z_to = z.e + i * VECTORS;
            for (int j = 0; j < vectors(i); j++) {
                const F x = block.s[j] - s.maximum, y = block.z[j] - z.maximum;
                const F e_x = exponential(x), e_y = exponential(y), difference = y - x;
                s_to[j] = e_x, z_to[j] = e_y;
                s_sum += e_x, z_sum += e_y;
                if constexpr (KL) kl_sum += e_y == 0.0f ? F{} : e_y * difference;
                if constexpr (REVERSE_KL) reverse_sum -= e_x == 0.0f ? F{} : e_x * difference;
            }
            s_total.add(s_sum), z_total.add(z_sum);
            if constexpr (KL) kl_total.add(kl_sum);
            if constexpr (REVERSE_KL) reverse_total.add(reverse_sum);
        }
        s.total = s_total.sum(), z.total = z_total.sum();
        const double shift = std::log(s.total) - std::log(z.total);
        kl = kl_total.sum() / z.total + shift;
        reverse_kl = reverse_total.sum() / s.total - shift;
    }
};

// Losses: f and h at entries with student's and teacher's log-probabilities less a constant, a and b

struct Entry {
    F q, p, r, a, b;
};

struct Sums {
    double f = 0, h = 0;
};

// w KL(p ‖ q) + v KL(q ‖ p), which come with the normalisers
struct KLs {
    static constexpr bool reads_logits = true;
    float w, v;
    INLINE F h(const Entry &e) const { return -(e.q == 0.0f ? F{} : v * e.q * e.r) - w * e.p; }
};

struct TVD {
    static constexpr bool reads_logits = false;
    INLINE F f(const Entry &e) const { return 0.5f * absolute(e.p - e.q); }
    INLINE F h(const Entry &e) const {
        F half = 0.5f * e.q;
        return e.q > e.p ? half : e.q < e.p ? -half : e.q - e.p;
    }
};

struct JSD {
    static constexpr bool reads_logits = false;
    float beta;
    INLINE F h(const Entry &e) const { return (1 - beta) * times_log(e.q, e.q * inverse(e)); }
    INLINE F f(const Entry &e) const { return beta * times_log(e.p, e.p * inverse(e)) + h(e); }
    INLINE F inverse(const Entry &e) const { return 1.0f / (beta * e.p + (1 - beta) * e.q + TINY); }
};

struct SkewKL {
    static constexpr bool reads_logits = false;
    float lam;
    INLINE F ratio(const Entry &e) const { return e.p / (lam * e.p + (1 - lam) * e.q + TINY); }
    INLINE F f(const Entry &e) const { return times_log(e.p, ratio(e)); }
    INLINE F h(const Entry &e) const { return (lam - 1) * e.q * ratio(e); }
};

struct SkewRKL {
    static constexpr bool reads_logits = false;
    float lam;
    INLINE F ratio(const Entry &e) const { return e.q / ((1 - lam) * e.p + lam * e.q + TINY); }
    INLINE F f(const Entry &e) const { return times_log(e.q, ratio(e)); }
    INLINE F h(const Entry &e) const { return f(e) - lam * e.q * ratio(e); }
};

struct AlphaBeta {  // see taid/losses.py; log_s, log_z: of both sums of e^(x − maximum)
    static constexpr bool reads_logits = true;
    float alpha, beta, log_s, log_z;

    INLINE F h(const Entry &e) const {
        const F p = e.b - log_z, q = e.a - log_s;
        return there(e, -difference(alpha, alpha * p + beta * q, total() * q, p - q), F{}, alone(alpha, q) * total());
    }
    INLINE F f(const Entry &e) const {
        const F p = e.b - log_z, q = e.a - log_s;
        const bool swap = std::fabs(alpha) > std::fabs(beta);
        const F x = swap ? q : p, y = swap ? p : q;
        const float a = swap ? beta : alpha, b = swap ? alpha : beta;
        const F r = x - y, rise = difference(total(), total() * x, total() * y, r);
        const F both = (rise - difference(a, a * x + b * y, total() * y, r)) / b;
        const F thirds = (total() + a) / 3 + (total() * total() + total() * a + a * a) / 12 * r;
        const F tiny = power(total() * y) * r * r * 0.5f * (1 + thirds * r);
        return there(e, std::fabs(b) < 1e-3f ? tiny : both, alone(beta, p), alone(alpha, q));
    }

    float total() const { return alpha + beta; }
    // by what is there: both probabilities, p alone, q alone, or neither
    INLINE static F there(const Entry &e, F both, F only_p, F only_q) {
        const F with_p = e.a == -INF ? only_p : both, without_p = e.a == -INF ? F{} : only_q;
        return e.b == -INF ? without_p : with_p;
    }
    // the term of one side alone, of log-probability x, where the other's has this exponent
    INLINE F alone(float other, F x) const {
        return other > 0 && total() > 0 ? power(total() * x) / (other * total()) : F{} + INF;
    }
    // (e^u − e^v) / c for u − v = c r, where that is small by its series: r at c = 0
    INLINE static F difference(float c, F u, F v, F r) {
        const F x = c * r;
        F series = F{} + 1;
        for (float n : {7.0f, 6.0f, 5.0f, 4.0f, 3.0f, 2.0f}) series = 1 + x / n * series;
        const F small = power(v) * r * series;
        return c == 0 ? small : absolute(x) < 0.35f ? small : (power(u) - power(v)) / c;
    }
    INLINE static F power(F x) { return x > 88.0f ? F{} + INF : exponential(x); }
};

struct HeadGap {  // sums |p − q|: f over the head, b ≥ threshold, h over all
    static constexpr bool reads_logits = true;
    float threshold;
    INLINE F h(const Entry &e) const { return absolute(e.p - e.q); }
    INLINE F f(const Entry &e) const { return e.b >= threshold ? h(e) : F{}; }
};

struct TemperatureChange {  // −τ K′ = Σ f − K Σ h for K = KL(softmax(b) ‖ softmax(a)), a and b over τ
    static constexpr bool reads_logits = true;
    INLINE F f(const Entry &e) const {
        return (e.q == 0.0f ? F{} : e.q * e.a) + (e.p == 0.0f ? F{} : e.p * (e.r * e.b - e.a));
    }
    INLINE F h(const Entry &e) const { return e.p == 0.0f ? F{} : e.p * e.b; }
};

// Calls `at(block, j, entry)` for the row's vectors and `after(block)` for its blocks
template <bool READ_LOGITS, class At, class After> INLINE void sweep(const Row &row, At at, After after) {
    const float shift = std::log(row.s.total) - std::log(row.z.total);
    Block block;
    for (int i = 0; i < row.blocks(); i++) {
        if constexpr (READ_LOGITS) row.load(i, block);
        const F *s = row.s.e + i * VECTORS, *z = row.z.e + i * VECTORS;
        const float s_factor = row.s.factor(i), z_factor = row.z.factor(i);
        for (int j = 0; j < row.vectors(i); j++) {
            Entry e;
            e.q = s[j] * s_factor;
            e.p = z[j] * z_factor;
            if constexpr (READ_LOGITS) {
                e.a = block.s[j] - row.s.maximum;
                e.b = block.z[j] - row.z.maximum;
                e.r = e.b - e.a + shift;
            }
            at(j, e);
        }
        after(i);
    }
}

template <class L> Sums sums(const Row &row, const L &loss) {
    Total f_total, h_total;
    F f{}, h{};
    sweep<L::reads_logits>(
        row, [&](int, const Entry &e) { f += loss.f(e), h += loss.h(e); },
        [&](int) { f_total.add(f), h_total.add(h), f = h = F{}; });
    return {f_total.sum(), h_total.sum()};
}

// scale · (h − q · total), the gradient, unless nobody wants it
template <class L> void write(const Row &row, const L &loss, double total) {
    if (!row.out) return;
    alignas(64) F gradient[VECTORS];
    const float scaled = row.scale * total;
    sweep<L::reads_logits>(
        row, [&](int j, const Entry &e) { gradient[j] = row.scale * loss.h(e) - scaled * e.q; },
        [&](int i) { put(row.job.student_type, row.out, int64_t(i) * BLOCK, row.count(i), gradient); });
}

template <class L> double divergence(const Row &row, const L &loss) {
    const Sums both = sums(row, loss);
    write(row, loss, both.h);
    return both.f;
}

// Largest x among the teacher's logits less their maximum such that entries ≥ x have the probability `mass`
float head_threshold(const Row &row, float mass) {
    Block block;
    std::vector<float> logits;
    for (float depth = 4;; depth *= 2) {  // most heads are narrow: look at the entries near the maximum first
        logits.clear();
        double found = 0, wanted = mass * row.z.total;
        for (int i = 0; i < row.blocks(); i++) {
            row.load(i, block);
            for (int j = 0; j < row.vectors(i); j++) {
                F x = block.z[j] - row.z.maximum;
                I near = x >= -depth;
                for (int k = 0; k < LANES; k++)
                    if (near[k]) logits.push_back(x[k]), found += std::exp(x[k]);
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
    const Sums gap = sums(row, HeadGap{head_threshold(row, mu)});
    const double epsilon = std::numeric_limits<float>::epsilon();
    const double w = std::clamp(gap.h > 0 ? gap.f / gap.h : 0.5, epsilon, 1 - epsilon), v = 1 - w;
    write(row, KLs{float(w), float(v)}, v * row.reverse_kl - w);
    return w * row.kl + v * row.reverse_kl;
}

// scale · (q_weight · q − p_weight · p), without more products than that takes
void write_difference(const Row &row, double q_weight, double p_weight) {
    if (!row.out) return;
    alignas(64) F gradient[VECTORS];
    for (int i = 0; i < row.blocks(); i++) {
        const F *s = row.s.e + i * VECTORS, *z = row.z.e + i * VECTORS;
        const float a = row.scale * q_weight * row.s.factor(i), b = row.scale * p_weight * row.z.factor(i);
        for (int j = 0; j < row.vectors(i); j++) gradient[j] = a * s[j] - b * z[j];
        put(row.job.student_type, row.out, int64_t(i) * BLOCK, row.count(i), gradient);
    }
}

double forward(const Row &row) {
    write_difference(row, 1, 1);
    return row.kl;
}

double reverse(const Row &row) {
    write(row, KLs{0, 1}, row.reverse_kl);
    return row.reverse_kl;
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
    fetch(type, row, at, 1, &x, [](F x, int) { return x; });
    return x[0];
}

double decoupled(Row row, int64_t label) {
    const Job &job = row.job;
    double tau = job.temperature, alpha = job.a, beta = job.b;
    double s_label = entry(job.student_type, row.student, label) / tau;
    double z_label = entry(job.teacher_type, row.teacher, label) / tau;
    row.label = label;
    row.scale *= job.temperature;
    row.normalise<true, false>();
    double s_odds = s_label - row.s.log(), z_odds = z_label - row.z.log();
    double excess = sigmoid(s_odds) - sigmoid(z_odds);  // q_y − p_y
    write_difference(row, beta - alpha * excess, beta);
    if (row.out) {
        F x = F{} + float(row.scale * alpha * excess);
        put(job.student_type, row.out, label, 1, &x);
    }
    return tau * tau * (alpha * two_way(s_odds, z_odds) + beta * row.kl);
}

double tempered(Row row, float *slope) {
    const double tau = row.job.temperature;
    row.scale *= row.job.temperature;
    if (slope) {
        const Sums change = sums(row, TemperatureChange());
        *slope = 2 * tau * row.kl - tau * (change.f - row.kl * change.h);
    }
    return tau * tau * forward(row);
}

template <class P> P *shifted(P *base, int type, int64_t elements) {
    typedef typename std::conditional<std::is_const<P>::value, const char, char>::type Byte;
    return base ? static_cast<Byte *>(base) + elements * (type == FLOAT32 ? 4 : 2) : nullptr;
}

void zero(const Job &job, int64_t i) {
    if (!job.out) return;
    void *row = shifted(job.out, job.student_type, i * job.out_stride);
    std::memset(row, 0, job.vocabulary * (job.student_type == FLOAT32 ? 4 : 2));
}

double value(const Job &job, int64_t i, const Softmax &s, const Softmax &z) {
    Row row{job, shifted(job.student, job.student_type, i * job.student_stride),
            shifted(job.teacher, job.teacher_type, i * job.teacher_stride),
            shifted(job.out, job.student_type, i * job.out_stride),
            job.weights ? job.scale * job.weights[i] : job.scale, -1, s, z, 0, 0};
    if (job.loss == DKD) {
        const int64_t label = job.labels[i];
        if (label >= 0 && label < job.vocabulary) return decoupled(row, label);
        zero(job, i);  // taid.fused refuses such a label; here it is no address at least
        return std::numeric_limits<double>::quiet_NaN();
    }
    switch (job.loss) {
        case TOTAL_VARIATION: row.normalise<false, false>(); return divergence(row, TVD());
        case JENSEN_SHANNON: row.normalise<false, false>(); return divergence(row, JSD{job.a});
        case SKEW_KL: row.normalise<false, false>(); return divergence(row, SkewKL{job.a});
        case SKEW_RKL: row.normalise<false, false>(); return divergence(row, SkewRKL{job.a});
        case ALPHA_BETA: {
            row.normalise<false, false>();
            const float log_s = std::log(row.s.total), log_z = std::log(row.z.total);
            const float unknown = 0 * (log_s - log_z);  // NaN where one side is −∞ throughout, else 0
            row.scale += unknown;
            return divergence(row, AlphaBeta{job.a, job.b, log_s, log_z}) + unknown;
        }
        case ADAPTIVE_KL: row.normalise<true, true>(); return adaptive(row, job.a);
        case CTKD: row.normalise<true, false>(); return tempered(row, job.slopes ? job.slopes + i : nullptr);
        case REVERSE_KL: row.normalise<false, true>(); return reverse(row);
        default: row.normalise<true, false>(); return forward(row);
    }
}

struct Scratch {  // for one row
    std::unique_ptr<float[]> memory;
    Softmax s, z;

    explicit Scratch(int64_t vocabulary) {
        const int64_t blocks = (vocabulary + BLOCK - 1) / BLOCK;
        memory.reset(new float[2 * blocks * (BLOCK + 1) + LANES]);
        float *at = memory.get();
        while (reinterpret_cast<uintptr_t>(at) % BYTES) at++;
        s.e = reinterpret_cast<F *>(at);
        z.e = s.e + blocks * VECTORS;
        s.maxima = at + 2 * blocks * BLOCK;
        z.maxima = s.maxima + blocks;
    }
};

// A fresh gradient's pages come into being as they are written, in units of 2 MB in a fraction of the time.
void ask_for_huge_pages(const Job &job) {
#ifdef __linux__
    const uintptr_t size = 1 << 21, at = reinterpret_cast<uintptr_t>(job.out);
    const uintptr_t bytes = job.rows * job.out_stride * (job.student_type == FLOAT32 ? 4 : 2);
    const uintptr_t first = (at + size - 1) / size * size, last = (at + bytes) / size * size;
    if (job.out && job.out != job.student && first < last)
        madvise(reinterpret_cast<void *>(first), last - first, MADV_HUGEPAGE);
#endif
}

extern "C" int32_t taid_loss(const char *name) {  // its number, or −1
    const auto found = std::find_if(std::begin(NAMES), std::end(NAMES),
                                    [&](const char *known) { return !std::strcmp(known, name); });
    return found == std::end(NAMES) ? -1 : found - std::begin(NAMES);
}

extern "C" void taid_rows(const Job *job) {
    ask_for_huge_pages(*job);
#pragma omp parallel num_threads(job->threads) if (job->threads > 1)
    {
        Scratch scratch(job->vocabulary);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < job->rows; i++) {
            if (!job->weights || job->weights[i] > 0)
                job->values[i] = value(*job, i, scratch.s, scratch.z);
            else
                zero(*job, i);
        }
    }
}
