/* What a block does between its matrices: attention over pages, and the gate of the feed-forward part.

   A plain shared library without anything of Python. Every number is worked out by one order of operations, each of
   which rounds once (-ffp-contract=off), so all processors and compilers give the same bits: lanes only ever hold
   different positions or different numbers of a head, and where lanes are summed the order is written down. */

#if !defined(__GNUC__)
#error "wants the vector types of GCC and Clang; without them Lepton computes with numpy"
#endif

#include <string.h>

#define PAGE 64 /* positions, as in cache.py */
#define LANES 16
#define INLINE static inline __attribute__((always_inline))
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int ints __attribute__((vector_size(4 * LANES)));

typedef struct {
    const float *queries;       /* (count, heads, width) */
    float *out;                 /* the same */
    const float *const *pages;  /* of one block: keys (shared heads, width, PAGE), then values (shared heads, PAGE, width) */
    float *scores;              /* room for one number a position, in whole pages */
    long count, first;          /* queries, and the position of the first */
    long heads, shared, width;  /* query heads, key/value heads, numbers of a head */
    long window;                /* how many positions a query sees, its own among them; 0 is all */
    float scale;
} Attention;

INLINE floats load(const float *at) {
    floats x;
    memcpy(&x, at, sizeof x);
    return x;
}

INLINE floats chosen(ints where, floats a, floats b) {
    return (floats)((where & (ints)a) | (~where & (ints)b));
}

/* e^x within 2 units in the last place, x cut to -87 .. 88 (Cephes' expf). */
INLINE floats exponential(floats x) {
    const floats low = {0}, high = {0};
    floats least = low - 87.0f, most = high + 88.0f;
    x = chosen(x < least, least, x);
    x = chosen(x > most, most, x);
    floats turns = x * 1.44269504088896341f + 12582912.0f; /* 1.5 * 2^23: rounds to a whole number */
    ints exponent = (ints)turns - 0x4B400000;
    turns = turns - 12582912.0f;
    x = x - turns * 0.693359375f;
    x = x + turns * 2.12194440e-4f;
    floats y = x * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * (x * x) + x + 1.0f;
    return y * (floats)((exponent + 127) << 23);
}

/* Scores of a page's positions: each a sum in the order of the head's numbers. */
INLINE void page_scores(const float *query, const float *keys, long width, float scale, float *scores) {
    floats sum[PAGE / LANES] = {{0}};
    for (long d = 0; d < width; d++)
        for (int lane = 0; lane < PAGE / LANES; lane++) sum[lane] += query[d] * load(keys + d * PAGE + lane * LANES);
    for (int lane = 0; lane < PAGE / LANES; lane++) {
        floats score = sum[lane] * scale;
        memcpy(scores + lane * LANES, &score, sizeof score);
    }
}

/* Scores become weights; those of positions outside `low` .. `high` nothing. Returns the weights' sum. */
INLINE float softmax(float *scores, long low, long high, long begin, long end) {
    float most = scores[low], total = 0;
    floats sums = {0};
    for (long j = low; j < high; j++) most = scores[j] > most ? scores[j] : most;
    for (long j = begin; j < end; j += LANES) {
        floats weight = exponential(load(scores + j) - most);
        memcpy(scores + j, &weight, sizeof weight);
    }
    memset(scores + begin, 0, (size_t)(low - begin) * sizeof(float));
    memset(scores + high, 0, (size_t)(end - high) * sizeof(float));
    for (long j = begin; j < end; j += LANES) sums += load(scores + j);
    for (int lane = 0; lane < LANES; lane++) total += sums[lane];
    return total;
}

/* Numbers d .. d + 16 * n of the weighted mean of the values. */
INLINE void mean(const Attention *job, long values, long low, long high, float total, float *out, long d, const int n) {
    floats sum[4] = {{0}};
    for (long j = low; j < high; j++) {
        const float *value = job->pages[j / PAGE] + values + j % PAGE * job->width + d;
        for (int i = 0; i < n; i++) sum[i] += job->scores[j] * load(value + i * LANES);
    }
    for (int i = 0; i < n; i++) {
        floats y = sum[i] / total;
        memcpy(out + d + i * LANES, &y, sizeof y);
    }
}

CLONES void lepton_attend(const Attention *job) {
    const long width = job->width, sharing = job->heads / job->shared, all_keys = job->shared * width * PAGE;
    for (long t = 0; t < job->count; t++) {
        const long high = job->first + t + 1, low = job->window && high > job->window ? high - job->window : 0;
        const long begin = low / PAGE * PAGE, end = (high + PAGE - 1) / PAGE * PAGE;
        for (long head = 0; head < job->heads; head++) {
            const float *query = job->queries + (t * job->heads + head) * width;
            float *out = job->out + (t * job->heads + head) * width;
            const long keys = head / sharing * width * PAGE, values = all_keys + keys;
            for (long j = begin; j < end; j += PAGE)
                page_scores(query, job->pages[j / PAGE] + keys, width, job->scale, job->scores + j);
            const float total = softmax(job->scores, low, high, begin, end);
            long d = 0;
            for (; d + 4 * LANES <= width; d += 4 * LANES) mean(job, values, low, high, total, out, d, 4);
            for (; d + LANES <= width; d += LANES) mean(job, values, low, high, total, out, d, 1);
            for (; d < width; d++) {
                float sum = 0;
                for (long j = low; j < high; j++)
                    sum += job->scores[j] * job->pages[j / PAGE][values + j % PAGE * width + d];
                out[d] = sum / total;
            }
        }
    }
}

/* silu(gate) * up: (rows, 2, inner) to (rows, inner). */
CLONES void lepton_gate(const float *x, float *out, long rows, long inner) {
    for (long row = 0; row < rows; row++) {
        const float *gate = x + row * 2 * inner, *up = gate + inner;
        float *y = out + row * inner;
        for (long i = 0; i < inner; i += LANES) {
            const size_t size = sizeof(float) * (size_t)(inner - i < LANES ? inner - i : LANES);
            floats g = {0}, u = {0};
            memcpy(&g, gate + i, size);
            memcpy(&u, up + i, size);
            g = g / (exponential(-g) + 1.0f) * u;
            memcpy(y + i, &g, size);
        }
    }
}
