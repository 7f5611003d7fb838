/* A layer of a decoder around its products, for one instruction set: norms, rotations, attention, the gate.

   As in products.h a row's bits follow from that row (and its session's keys and values) alone, in an order that is
   the same for every instruction set. Sums along a vector go into 16 lanes, lane i taking elements i, i + 16, ..., and
   the lanes are added in halves; attention adds number after number, position after position. What could be contracted in two ways is written
   with fma. exp is our own: libraries differ in the last bit. */

#define FLOATS NAME(floats)
#define FUNCTION static TARGET

INLINE FLOATS NAME(load)(const float *at, long left) { /* zeros behind the end */
    FLOATS value = {0};
    if (left >= WIDTH) memcpy(&value, at, sizeof value);
    else if (left > 0) memcpy(&value, at, (size_t)left * sizeof(float));
    return value;
}

INLINE void NAME(save)(float *at, FLOATS value, long left) {
    memcpy(at, &value, (size_t)(left < WIDTH ? left : WIDTH) * sizeof(float));
}

INLINE float NAME(total)(const FLOATS lanes[PIECES]) {
    float sums[LANES];
    memcpy(sums, lanes, sizeof sums);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) sums[i] += sums[i + half];
    return sums[0];
}

INLINE float NAME(dot)(const float *a, const float *b, long count) {
    FLOATS lanes[PIECES] = {0};
    for (long i = 0; i < count; i += LANES)
        UNROLL for (int p = 0; p < PIECES; p++) {
            long at = i + p * WIDTH;
            if (at < count) lanes[p] += NAME(load)(a + at, count - at) * NAME(load)(b + at, count - at);
        }
    return NAME(total)(lanes);
}

/* e^x within 2 units in the last place (Cephes' polynomial); below -87 and above 88 as at these. */
INLINE FLOATS NAME(exponential)(FLOATS x) {
    const FLOATS zero = {0};
    NAME(ints) low = (NAME(ints))(x < zero - 87.0f), high = (NAME(ints))(x > zero + 88.0f);
    x = (FLOATS)(((NAME(ints))x & ~(low | high)) | ((NAME(ints))(zero - 87.0f) & low) | ((NAME(ints))(zero + 88.0f) & high));
    FLOATS shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: its last bits count whole powers of two */
    FLOATS n = shifted - 12582912.0f;
    FLOATS r = n * -0.693359375f + x;
    r = n * 2.12194440e-4f + r;
    FLOATS y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    FLOATS square = r * r;
    y = y * square + r;
    y = y + 1.0f;
    NAME(ints) power = __builtin_convertvector(n, NAME(ints));
    return (FLOATS)((NAME(ints))y + (NAME(ints))((NAME(bits))power << 23));
}

FUNCTION void NAME(rms_norm)(const float *x, const float *weight, long count, float epsilon, float *y) {
    float scale = 1.0f / __builtin_sqrtf(NAME(dot)(x, x, count) / (float)count + epsilon);
    for (long i = 0; i < count; i++) y[i] = x[i] * scale * weight[i];
}

/* The two halves of a head turned against each other, as in Hugging Face's Llama. */
FUNCTION void NAME(rotate)(float *head, const float *cos, const float *sin, long half) {
    for (long i = 0; i < half; i++) {
        float a = head[i], b = head[i + half];
        head[i] = __builtin_fmaf(-b, sin[i], a * cos[i]);
        head[i + half] = __builtin_fmaf(a, sin[i], b * cos[i]);
    }
}

/* silu(gate) * up, of `inner` gates and as many ups. */
FUNCTION void NAME(gate)(const float *x, long inner, float *y) {
    for (long i = 0; i < inner; i += WIDTH) {
        FLOATS gate = NAME(load)(x + i, inner - i), up = NAME(load)(x + inner + i, inner - i);
        NAME(save)(y + i, gate / (NAME(exponential)(-gate) + 1.0f) * up, inner - i);
    }
}

FUNCTION void NAME(add)(float *x, const float *y, const float *bias, long count) {
    for (long i = 0; i < count; i++) x[i] += bias ? y[i] + bias[i] : y[i];
}

typedef struct {
    const Block *block;
    const Batch *batch;
    float *qkv, *attended; /* rows of all heads; rows of `attended_stride` */
    const long *piece_of, *position_of;
    long attended_stride;
} NAME(Attention);

/* Where this layer's keys (part 0) or values (part 1) of one shared head begin in page `page` of piece `piece`. */
INLINE float *NAME(part_of_page)(const Block *block, const Batch *batch, long piece, long page, int part, long head) {
    float *numbers = batch->pages[batch->first_pages[piece] + page] + block->page_offset;
    return numbers + (part * block->shared + head) * batch->page_positions * block->head_width;
}

/* sum += factors[0] * rows[0] + factors[1] * rows[1] + ..., of up to 4 registers of each row; a register's numbers are
   added one after another, whatever stands beside them. */
INLINE void NAME(weigh)(FLOATS sum[4], const float *rows, long stride, long left, const float *factors, long count) {
    if (left >= 4 * WIDTH)
        for (long k = 0; k < count; k++)
            UNROLL for (int p = 0; p < 4; p++) sum[p] += NAME(load)(rows + k * stride + p * WIDTH, WIDTH) * factors[k];
    else
        for (long k = 0; k < count; k++)
            UNROLL for (int p = 0; p < 4; p++)
                sum[p] += NAME(load)(rows + k * stride + p * WIDTH, left - p * WIDTH) * factors[k];
}

INLINE void NAME(save_up_to_4)(float *at, const FLOATS sum[4], FLOATS factor, long left) {
    for (int p = 0; p < 4 && p * WIDTH < left; p++) NAME(save)(at + p * WIDTH, sum[p] * factor, left - p * WIDTH);
}

/* e^(score - highest) in place of the scores; returns their sum. */
FUNCTION float NAME(soften)(float *scores, long count) {
    float highest = -__builtin_inff();
    for (long i = 0; i < count; i++) highest = scores[i] > highest ? scores[i] : highest;
    FLOATS lanes[PIECES] = {0};
    for (long i = 0; i < count; i += LANES)
        UNROLL for (int p = 0; p < PIECES; p++) {
            long at = i + p * WIDTH, left = count - at;
            if (left <= 0) continue;
            NAME(save)(scores + at, NAME(exponential)(NAME(load)(scores + at, left) - highest), left);
            lanes[p] += NAME(load)(scores + at, left);
        }
    return NAME(total)(lanes);
}

/* One query head at one position: softmax(q k^T / sqrt(head width)) v over the positions that it sees. */
FUNCTION void NAME(attend)(const NAME(Attention) *what, long row, long head, float *scores) {
    const Block *block = what->block;
    const Batch *batch = what->batch;
    const long width = block->head_width, shared = head / (block->heads / block->shared), piece = what->piece_of[row];
    const long end = what->position_of[row] + 1, first = block->window && end > block->window ? end - block->window : 0;
    const long size = batch->page_positions, first_page = first / size, start = first_page * size;
    const float *query = what->qkv + (row * (block->heads + 2 * block->shared) + head) * width;
    const FLOATS zero = {0};
    for (long page = first_page; page * size < end; page++) { /* of whole pages: what is not seen is not read again */
        const float *keys = NAME(part_of_page)(block, batch, piece, page, 0, shared);
        for (long i = 0; i < size; i += 4 * WIDTH) {
            FLOATS sum[4] = {0};
            NAME(weigh)(sum, keys + i, size, size - i, query, width);
            NAME(save_up_to_4)(scores + page * size - start + i, sum, zero + 1.0f / __builtin_sqrtf((float)width), size - i);
        }
    }
    float total = NAME(soften)(scores + first - start, end - first);
    float *y = what->attended + row * what->attended_stride + head * width;
    for (long i = 0; i < width; i += 4 * WIDTH) {
        FLOATS sum[4] = {0};
        for (long page = first_page; page * size < end; page++) {
            long from = page == first_page ? first - start : 0, to = end - page * size < size ? end - page * size : size;
            const float *values = NAME(part_of_page)(block, batch, piece, page, 1, shared) + from * width + i;
            NAME(weigh)(sum, values, width, width - i, scores + page * size - start + from, to - from);
        }
        NAME(save_up_to_4)(y + i, sum, zero + 1.0f / total, width - i);
    }
}

FUNCTION void NAME(attend_some)(const void *job, long begin, long end) {
    const NAME(Attention) *what = job;
    long longest = 0, heads = what->block->heads;
    for (long i = begin; i < end; i++)
        if (what->position_of[i / heads] > longest) longest = what->position_of[i / heads];
    float *scores = malloc((size_t)(longest + what->batch->page_positions) * sizeof(float));
    if (!scores) abort(); /* some thousand bytes: a machine without them is past help */
    for (long i = begin; i < end; i++) NAME(attend)(what, i / heads, i % heads, scores);
    free(scores);
}

/* Norm, rotate and put keys and values where attention finds them, for all rows. */
FUNCTION void NAME(prepare)(const NAME(Attention) *what) {
    const Block *block = what->block;
    const long heads = block->heads, shared = block->shared, width = block->head_width, half = width / 2;
    for (long row = 0; row < what->batch->rows; row++) {
        float *qkv = what->qkv + row * (heads + 2 * shared) * width;
        if (block->qkv_bias) NAME(add)(qkv, block->qkv_bias, NULL, (heads + 2 * shared) * width);
        for (long head = 0; head < heads + shared; head++) {
            float *numbers = qkv + head * width;
            const float *norm = head < heads ? block->query_norm : block->key_norm;
            if (norm) NAME(rms_norm)(numbers, norm, width, block->epsilon, numbers);
            NAME(rotate)(numbers, what->batch->cos + row * half, what->batch->sin + row * half, half);
        }
        const long size = what->batch->page_positions, piece = what->piece_of[row];
        const long page = what->position_of[row] / size, place = what->position_of[row] % size;
        for (long head = 0; head < shared; head++) {
            float *keys = NAME(part_of_page)(block, what->batch, piece, page, 0, head) + place;
            float *values = NAME(part_of_page)(block, what->batch, piece, page, 1, head) + place * width;
            for (long i = 0; i < width; i++) keys[i * size] = qkv[(heads + head) * width + i];
            memcpy(values, qkv + (heads + shared + head) * width, (size_t)width * sizeof(float));
        }
    }
}

FUNCTION int NAME(block)(const Block *block, const Batch *batch, float *x, int threads) {
    const long rows = batch->rows, inner = block->inner, width = block->width;
    const long all = (block->heads + 2 * block->shared) * block->head_width, attended = block->heads * block->head_width;
    const long wide = padded(width), wide_attended = padded(attended), wide_inner = padded(inner);
    const long most = all > 2 * inner ? all : 2 * inner;
    const int precision = block->precision;
    /* Zeros: what a product reads behind a row must not be NaN. */
    float *memory = calloc((size_t)(rows * (wide + wide_attended + wide_inner + most + width)), sizeof(float));
    long *places = malloc((size_t)(2 * rows) * sizeof(long));
    if (!memory || !places) {
        free(memory);
        free(places);
        return -1;
    }
    float *normed = memory, *found = normed + rows * wide, *gated = found + rows * wide_attended;
    float *between = gated + rows * wide_inner, *y = between + rows * most;
    for (long piece = 0, row = 0; piece < batch->pieces; piece++)
        for (long i = 0; i < batch->counts[piece]; i++, row++) {
            places[row] = piece;
            places[rows + row] = batch->starts[piece] + i;
        }

    for (long row = 0; row < rows; row++)
        NAME(rms_norm)(x + row * width, block->norm, width, block->epsilon, normed + row * wide);
    multiply(block->qkv, precision, WIDTH, normed, width, between, all, rows, threads);
    const NAME(Attention) attention = {block, batch, between, found, places, places + rows, wide_attended};
    NAME(prepare)(&attention);
    in_parallel(NAME(attend_some), &attention, rows * block->heads, 1, threads);
    multiply(block->out, precision, WIDTH, found, attended, y, width, rows, threads);
    for (long row = 0; row < rows; row++) {
        NAME(add)(x + row * width, y + row * width, block->out_bias, width);
        NAME(rms_norm)(x + row * width, block->second_norm, width, block->epsilon, normed + row * wide);
    }
    multiply(block->gate_up, precision, WIDTH, normed, width, between, 2 * inner, rows, threads);
    for (long row = 0; row < rows; row++) {
        if (block->gate_up_bias) NAME(add)(between + row * 2 * inner, block->gate_up_bias, NULL, 2 * inner);
        NAME(gate)(between + row * 2 * inner, inner, gated + row * wide_inner);
    }
    multiply(block->down, precision, WIDTH, gated, inner, y, width, rows, threads);
    for (long row = 0; row < rows; row++) NAME(add)(x + row * width, y + row * width, block->down_bias, width);
    free(memory);
    free(places);
    return 0;
}

#undef PIECES
#undef INLINE
#undef FLOATS
#undef FUNCTION
#undef NAME
#undef TARGET
#undef WIDTH
#undef WIDEN
#undef NIBBLES
#undef STRIP_PANELS
#undef TILE_PANELS
#undef TILE_ROWS
