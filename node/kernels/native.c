/* Products with packed weights, compiled for each instruction set that this kind of processor may have.

   A plain shared library: nothing of Python in it. Rounding is the same for every one of them, see products.h. */

#if !defined(__GNUC__)
#error "wants the vector types of GCC and Clang; without them Lepton computes with torch"
#endif

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define LANES 16 /* rows of W in a panel: what the widest registers hold */
#define GROUP 32 /* columns that share a scale: as in llama.cpp's formats */
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

enum { FLOAT32, BFLOAT16, INT8, INT4 };

typedef struct {
    const float *x;         /* (rows, x_stride), of which groups * GROUP columns are read */
    const uint8_t *weights; /* panels of groups */
    float *y;               /* (rows, outputs) */
    long x_stride, rows, groups, outputs;
    int precision;
    int width; /* floats per register: which of the instruction sets below */
} Product;

/* A decoder's layer; the vectors may be NULL where a family has none of them. */
typedef struct {
    const uint8_t *qkv, *out, *gate_up, *down; /* packed; queries, keys and values in one, gate and up in one */
    const float *norm, *second_norm, *query_norm, *key_norm;
    const float *qkv_bias, *out_bias, *gate_up_bias, *down_bias;
    long width, inner, heads, shared, head_width; /* `shared` heads of keys and values */
    long window;                                  /* positions that a query sees, 0: all */
    long page_offset;                             /* in floats, from a page's beginning to this layer's part */
    float epsilon;
    int precision;
} Block;

/* Positions of several sessions, piece after piece, and where their keys and values are. */
typedef struct {
    const long *counts, *starts, *first_pages; /* of each piece: positions, those before them, index into `pages` */
    float *const *pages;                       /* a layer's part: keys (shared, head_width, page_positions),
                                                  values (shared, page_positions, head_width) */
    const float *cos, *sin;                    /* (rows, head_width / 2) */
    long rows, pieces, page_positions;
} Batch;

static inline long padded(long count) { return (count + GROUP - 1) / GROUP * GROUP; }

typedef void Work(const void *what, long begin, long end);
static void in_parallel(Work *work, const void *what, long count, long grain, int threads);
static void multiply(const uint8_t *weights, int precision, int width, const float *x, long inputs, float *y, long outputs,
                     long rows, int threads);

static inline __attribute__((always_inline)) long group_bytes_of(int precision) {
    switch (precision) {
    case FLOAT32: return 4 * LANES * GROUP;
    case BFLOAT16: return 2 * LANES * GROUP;
    case INT8: return 2 * LANES + LANES * GROUP;
    default: return 2 * LANES + LANES * GROUP / 2;
    }
}

/* Rows and panels at once: the sums of a tile fill the registers (32 of AVX-512 and NEON, 16 of AVX2); a strip is for few
   rows, where more panels keep more of the slow memory's reads under way. */
#if defined(__x86_64__)

#define NAME(word) word##_16
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")))
#define WIDTH 16
#define WIDEN(raw) (ints_16) _mm512_cvtepi8_epi32((__m128i)(raw))
#define NIBBLES(i) (floats_16) _mm512_permutexvar_ps((__m512i)(i), _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1))
#define STRIP_PANELS 4
#define TILE_PANELS 2
#define TILE_ROWS 8
#include "products.h"
#include "block.h"

#define NAME(word) word##_8
#define TARGET __attribute__((target("avx2,fma")))
#define WIDTH 8
#define WIDEN(raw) (ints_8) _mm256_cvtepi8_epi32(_mm_cvtsi64_si128((long long)(raw)))
#define STRIP_PANELS 2
#define TILE_PANELS 1
#define TILE_ROWS 4
#include "products.h"
#include "block.h"

#define TARGET_4 __attribute__((target("avx2,fma"))) /* for tests: the code that other processors run */
#else
#define TARGET_4
#endif

#define NAME(word) word##_4
#define TARGET TARGET_4
#define WIDTH 4
#define WIDEN(raw) __builtin_convertvector(raw, ints_4)
#define STRIP_PANELS 2
#define TILE_PANELS 1
#define TILE_ROWS 4
#include "products.h"
#include "block.h"

/* Whether this processor runs the code for registers of `width` floats, and with an fma that rounds once. */
int lepton_runs(int width) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return width == 16 ? avx512 : (width == 8 || width == 4) && avx2;
#elif defined(__aarch64__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return width == 4;
#else
    return 0 * width;
#endif
}

#include "pool.h"

static void work(const void *what, long begin, long end) {
    const Product *job = what;
    switch (job->width) {
#if defined(__x86_64__)
    case 16: panels_16(job, begin, end); break;
    case 8: panels_8(job, begin, end); break;
#endif
    default: panels_4(job, begin, end);
    }
}

/* Tiles of an odd size at the end of a thread's part cost nothing but time. */
void lepton_product(const Product *job, int threads) {
    in_parallel(work, job, (job->outputs + LANES - 1) / LANES, 4, threads);
}

static void multiply(const uint8_t *weights, int precision, int width, const float *x, long inputs, float *y, long outputs,
                     long rows, int threads) {
    long groups = (inputs + GROUP - 1) / GROUP;
    Product job = {x, weights, y, groups * GROUP, rows, groups, outputs, precision, width};
    lepton_product(&job, threads);
}

/* Run a layer on the rows of x, (rows, width), in place. Returns 0, or -1 where there is no memory. */
int lepton_block(const Block *block, const Batch *batch, float *x, int width, int threads) {
    switch (width) {
#if defined(__x86_64__)
    case 16: return block_16(block, batch, x, threads);
    case 8: return block_8(block, batch, x, threads);
#endif
    default: return block_4(block, batch, x, threads);
    }
}

static float from_bfloat16(const uint8_t *at) {
    uint16_t half;
    memcpy(&half, at, 2);
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Rows of W by number, as float32: y[i] = W[ids[i]], without the padding behind `columns`. */
void lepton_rows(const Product *job, const int64_t *ids, long columns) {
    const long group_bytes = group_bytes_of(job->precision);
    for (long row = 0; row < job->rows; row++)
        for (long k = 0; k < columns; k++) {
            long lane = ids[row] % LANES, column = k % GROUP;
            const uint8_t *at = job->weights + (ids[row] / LANES * job->groups + k / GROUP) * group_bytes;
            const uint8_t *weights = at + 2 * LANES;
            float *y = job->y + row * columns + k;
            switch (job->precision) {
            case FLOAT32: memcpy(y, at + 4 * (column * LANES + lane), 4); break;
            case BFLOAT16: *y = from_bfloat16(at + 2 * (column * LANES + lane)); break;
            case INT8: *y = from_bfloat16(at + 2 * lane) * (float)(int8_t)weights[column * LANES + lane]; break;
            default: {
                int pair = weights[column / 2 * LANES + lane], nibble = column % 2 ? pair >> 4 : pair & 15;
                *y = from_bfloat16(at + 2 * lane) * (float)(nibble < 8 ? nibble : nibble - 16);
            }
            }
        }
}
