/* The product y = x W^T for one instruction set; native.c includes this once for each.

   W is stored in panels of 16 rows. A panel's columns come in groups of 32: for each group 16 scales (bfloat16, only
   for int8 and int4) and then column after column 16 weights, one a row. So lane n of a register works for output n
   alone, and one order of operations holds for every instruction set, any number of rows of x and any thread:
       sum = 0; for each group: part = 0; for each column k of it: part = fma(w[n][k], x[k], part);
       sum = fma(scale, part, sum)      (float32 and bfloat16: sum = sum + part)
   Every fma rounds once (-ffp-contract=fast on machines that have it; native.c refuses others). */

#define PIECES (LANES / WIDTH) /* registers of one panel's column */

typedef float NAME(floats) __attribute__((vector_size(4 * WIDTH)));
typedef int32_t NAME(ints) __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t NAME(bits) __attribute__((vector_size(4 * WIDTH)));
typedef int8_t NAME(bytes) __attribute__((vector_size(WIDTH)));
typedef uint16_t NAME(halves) __attribute__((vector_size(2 * WIDTH)));

#define INLINE static inline __attribute__((always_inline)) TARGET

INLINE NAME(floats) NAME(from_bfloat16)(const uint8_t *at) {
    NAME(halves) raw;
    memcpy(&raw, at, sizeof raw);
    return (NAME(floats))(__builtin_convertvector(raw, NAME(bits)) << 16);
}

INLINE NAME(ints) NAME(from_int8)(const uint8_t *at) {
    NAME(bytes) raw;
    memcpy(&raw, at, sizeof raw);
    return WIDEN(raw); /* sign-extended; gcc 12 makes no single instruction of __builtin_convertvector here */
}

/* The weights of one column (int4: of two, which share their bytes) in `column`. */
INLINE void NAME(decode)(int precision, const uint8_t *at, NAME(floats) column[2][PIECES]) {
    UNROLL for (int p = 0; p < PIECES; p++) {
        if (precision == FLOAT32) memcpy(&column[0][p], at + 4 * WIDTH * p, 4 * WIDTH);
        if (precision == BFLOAT16) column[0][p] = NAME(from_bfloat16)(at + 2 * WIDTH * p);
        if (precision == INT8) column[0][p] = __builtin_convertvector(NAME(from_int8)(at + WIDTH * p), NAME(floats));
        if (precision == INT4) { /* two's complement: the even column in the low half of each byte */
            NAME(ints) pair = NAME(from_int8)(at + WIDTH * p);
#ifdef NIBBLES
            column[0][p] = NIBBLES(pair);
            column[1][p] = NIBBLES(pair >> 4);
#else
            NAME(ints) low = (NAME(ints))((NAME(bits))pair << 28) >> 28;
            column[0][p] = __builtin_convertvector(low, NAME(floats));
            column[1][p] = __builtin_convertvector(pair >> 4, NAME(floats));
#endif
        }
    }
}

/* `rows` rows of x times `panels` panels; both are constants where this is called, so that all sums stay in registers. */
INLINE void NAME(tile)(const int precision, const int rows, const int panels, const Product *job, long row, long panel) {
    const int together = precision == INT4 ? 2 : 1, scales_bytes = precision >= INT8 ? 2 * LANES : 0;
    const long group_bytes = group_bytes_of(precision);
    const int step_bytes = (int)((group_bytes - scales_bytes) / GROUP) * together;
    NAME(floats) sum[8][4][PIECES] = {0};
    for (long group = 0; group < job->groups; group++) {
        const uint8_t *at = job->weights + (panel * job->groups + group) * group_bytes;
        const float *x = job->x + row * job->x_stride + group * GROUP;
        const long panel_bytes = job->groups * group_bytes;
        NAME(floats) part[8][4][PIECES] = {0};
        if (row == 0 && (precision >= INT8 || rows == TILE_ROWS)) /* bound by memory: the hardware's own prefetching of so short streams reaches half as much */
            for (int j = 0; j < panels; j++)
                for (long line = 0; line < group_bytes; line += 64)
                    __builtin_prefetch(at + j * panel_bytes + 4 * group_bytes + line);
        for (int k = 0; k < GROUP; k += together) {
            UNROLL for (int j = 0; j < panels; j++) {
                NAME(floats) column[2][PIECES];
                NAME(decode)(precision, at + j * panel_bytes + scales_bytes + k / together * step_bytes, column);
                UNROLL for (int c = 0; c < together; c++)
                    UNROLL for (int r = 0; r < rows; r++)
                        UNROLL for (int p = 0; p < PIECES; p++)
                            part[r][j][p] += column[c][p] * x[r * job->x_stride + k + c];
            }
        }
        UNROLL for (int j = 0; j < panels; j++)
            UNROLL for (int p = 0; p < PIECES; p++) {
                NAME(floats) scale = {0};
                if (scales_bytes) scale = NAME(from_bfloat16)(at + j * panel_bytes + 2 * WIDTH * p);
                UNROLL for (int r = 0; r < rows; r++)
                    sum[r][j][p] = scales_bytes ? part[r][j][p] * scale + sum[r][j][p] : sum[r][j][p] + part[r][j][p];
            }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int j = 0; j < panels; j++) {
            long first = (panel + j) * LANES, count = job->outputs - first < LANES ? job->outputs - first : LANES;
            memcpy(job->y + (row + r) * job->outputs + first, sum[r][j], (size_t)count * sizeof(float));
        }
}

/* All rows of x with the panels from `panel` on, as many at once as `panels` says. */
INLINE void NAME(strip)(const int precision, const int panels, const int rows, const Product *job, long panel) {
    long row = 0;
    for (; row + rows <= job->rows; row += rows) NAME(tile)(precision, rows, panels, job, row, panel);
    for (; row + 2 <= job->rows; row += 2) NAME(tile)(precision, 2, panels, job, row, panel);
    for (; row < job->rows; row++) NAME(tile)(precision, 1, panels, job, row, panel);
}

INLINE void NAME(strips)(const int precision, const Product *job, long panel, long end) {
    if (job->rows < TILE_ROWS)
        for (; panel + STRIP_PANELS <= end; panel += STRIP_PANELS)
            NAME(strip)(precision, STRIP_PANELS, 4, job, panel);
    for (; panel + TILE_PANELS <= end; panel += TILE_PANELS) NAME(strip)(precision, TILE_PANELS, TILE_ROWS, job, panel);
    for (; panel < end; panel++) NAME(strip)(precision, 1, TILE_ROWS, job, panel);
}

static TARGET void NAME(panels)(const Product *job, long begin, long end) {
    switch (job->precision) {
    case FLOAT32: NAME(strips)(FLOAT32, job, begin, end); break;
    case BFLOAT16: NAME(strips)(BFLOAT16, job, begin, end); break;
    case INT8: NAME(strips)(INT8, job, begin, end); break;
    case INT4: NAME(strips)(INT4, job, begin, end); break;
    }
}
