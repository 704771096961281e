/* Products with packed weights, root-mean-square norms, and attention over a paged KV cache; see kernels.h.
 *
 * Activations are float32, row-major. Weights are float32, bfloat16 or float16 and are widened in registers, which
 * loses nothing. Every output is summed in one fixed order: the results of a row do not depend on the rows beside it.
 *
 * One micro-kernel does the work: sums[row][0..WIDTH) = sum over k of a[row][k] * b[k][0..WIDTH), for up to ROWS rows.
 */

#include "kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#define HAS_FLOAT16 1
#else
#define HAS_FLOAT16 0
#endif

#if defined(__AVX512F__)
#define ROWS 12
#else
#define ROWS 6
#endif
#define PARTS (WIDTH / LANES)
#define MOST_PANELS (8 / PARTS) /* of one row: sums in flight hide the latency of an addition */
#define BLOCK_OF_ROWS 96        /* whose inputs stay in the second-level cache while every panel passes */
#define DEPTH 192               /* inputs of a panel that are read at a time */
#define WIDEN_ROWS (4 * ROWS) /* from which on they are widened once, for all tiles of rows; panels pass alone then */

/* Holds a vector in a register: the compiler would load it again for every use, and spill the sums. */
#if defined(__x86_64__)
#define KEEP(vector) __asm__("" : "+v"(vector))
#else
#define KEEP(vector) __asm__("" : "+w"(vector))
#endif

typedef uint16_t narrow __attribute__((vector_size(LANES * 2)));
typedef uint16_t narrow_at __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

INLINE long size_of(int kind) { return kind == FLOAT32 ? 4 : 2; }

INLINE vec load(int kind, const char *at) {
  if (kind == FLOAT32) return *(const vec_at *)at;
#if HAS_FLOAT16
  if (kind == FLOAT16)
#if defined(__AVX512F__)
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at));
#else
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at));
#endif
#endif
  narrow found = *(const narrow_at *)at;
  return (vec)(__builtin_convertvector(found, bits) << 16);
}

/* Whether float16 weights can be multiplied as they are. */
int tiller_has_float16(void) { return HAS_FLOAT16; }

/* Adds to `sums`. `panels` panels `apart` bytes from each other; `step`: bytes from b[k] to b[k + 1]. All counts but `depth` are
 * constants where this is inlined, so that the sums stay in registers. */
INLINE void multiply(int kind, int rows, int panels, const float *const *a, const char *b, long step, long apart,
                     long depth, float *sums) {
  vec held[ROWS * MOST_PANELS * PARTS];
  const long part_size = LANES * size_of(kind);
#pragma GCC unroll 32
  for (int i = 0; i < rows * panels * PARTS; i++) held[i] = *(const vec_at *)(sums + i * LANES);
  for (long k = 0; k < depth; k++) {
    const char *at = b + k * step;
    if (panels == 1) {
      vec weights[PARTS];
#pragma GCC unroll 2
      for (int part = 0; part < PARTS; part++) {
        weights[part] = load(kind, at + part * part_size);
        KEEP(weights[part]);
      }
#pragma GCC unroll 12
      for (int row = 0; row < rows; row++) {
        vec input = a[row][k] - (vec){0};
        KEEP(input);
#pragma GCC unroll 2
        for (int part = 0; part < PARTS; part++) held[row * PARTS + part] += weights[part] * input;
      }
    } else {
#pragma GCC unroll 8
      for (int panel = 0; panel < panels; panel++)
#pragma GCC unroll 2
        for (int part = 0; part < PARTS; part++) {
          vec weights = load(kind, at + panel * apart + part * part_size);
#pragma GCC unroll 12
          for (int row = 0; row < rows; row++) held[(row * panels + panel) * PARTS + part] += weights * a[row][k];
        }
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < rows * panels * PARTS; i++) *(vec_at *)(sums + i * LANES) = held[i];
}

/* How many panels `rows` rows pass at once. */
INLINE int panels_for(int rows) {
  int panels = MOST_PANELS / rows;
  return panels < 1 ? 1 : panels;
}

#define CASE(R)                                                                                                        \
  case R:                                                                                                              \
    if (panels == panels_for(R))                                                                                       \
      multiply(kind, R, panels_for(R), a, b, step, apart, depth, sums);                                                \
    else                                                                                                               \
      for (int panel = 0; panel < panels; panel++) {                                                                   \
        float own[R * WIDTH];                                                                                          \
        for (int row = 0; row < R; row++)                                                                              \
          memcpy(own + row * WIDTH, sums + (row * panels + panel) * WIDTH, sizeof(float) * WIDTH);                     \
        multiply(kind, R, 1, a, b + panel * apart, step, 0, depth, own);                                               \
        for (int row = 0; row < R; row++)                                                                              \
          memcpy(sums + (row * panels + panel) * WIDTH, own + row * WIDTH, sizeof(float) * WIDTH);                     \
      }                                                                                                                \
    break;

INLINE void multiply_any(int kind, int rows, int panels, const float *const *a, const char *b, long step, long apart,
                         long depth, float *sums) {
  switch (rows) {
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if ROWS > 6
    CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
  }
}

static void multiply_float32(int rows, int panels, const float *const *a, const char *b, long step, long apart,
                             long depth, float *sums) {
  multiply_any(FLOAT32, rows, panels, a, b, step, apart, depth, sums);
}

static void multiply_bfloat16(int rows, int panels, const float *const *a, const char *b, long step, long apart,
                              long depth, float *sums) {
  multiply_any(BFLOAT16, rows, panels, a, b, step, apart, depth, sums);
}

static void multiply_float16(int rows, int panels, const float *const *a, const char *b, long step, long apart,
                             long depth, float *sums) {
  multiply_any(FLOAT16, rows, panels, a, b, step, apart, depth, sums);
}

typedef void (*multiply_function)(int, int, const float *const *, const char *, long, long, long, float *);
static const multiply_function MULTIPLY[] = {multiply_float32, multiply_bfloat16, multiply_float16};

/* weights [outputs, inputs] -> packed [ceil(outputs / WIDTH)][inputs][WIDTH], of elements of `size` bytes. */
void tiller_pack(const char *weights, long outputs, long inputs, long size, char *packed) {
  long panels = (outputs + WIDTH - 1) / WIDTH;
#pragma omp parallel for schedule(static)
  for (long panel = 0; panel < panels; panel++)
    for (long k = 0; k < inputs; k++)
      for (long lane = 0; lane < WIDTH; lane++) {
        char *to = packed + ((panel * inputs + k) * WIDTH + lane) * size;
        long output = panel * WIDTH + lane;
        if (output < outputs)
          memcpy(to, weights + (output * inputs + k) * size, size);
        else
          memset(to, 0, size);
      }
}

/* The inverse of `tiller_pack`. */
void tiller_unpack(const char *packed, long outputs, long inputs, long size, char *weights) {
#pragma omp parallel for schedule(static)
  for (long output = 0; output < outputs; output++)
    for (long k = 0; k < inputs; k++)
      memcpy(weights + (output * inputs + k) * size,
             packed + ((output / WIDTH * inputs + k) * WIDTH + output % WIDTH) * size, size);
}

/* Widens `count` packed weights to float32. */
static void widen(int kind, const char *from, long count, float *to) {
  for (long i = 0; i < count; i += LANES)
    *(vec_at *)(to + i) = kind == FLOAT16 ? load(FLOAT16, from + 2 * i) : load(BFLOAT16, from + 2 * i);
}

/* How many times `together` panels of a matrix pass. */
static long groups_of(const matrix *weights, int together) {
  const long panels = (weights->outputs + WIDTH - 1) / WIDTH;
  return (panels + together - 1) / together;
}

/* The outputs of `together` panels of `weights` from panel `first` on, for up to BLOCK_OF_ROWS rows of `x` and `y`,
 * which are `apart_x` and `apart_y` floats apart. Weights are read DEPTH inputs at a time, which stay in the first-level
 * cache for all tiles of rows. */
static void multiply_panels(const float *x, long apart_x, long rows, long inputs, const matrix *weights, long first,
                            int together, float *y, long apart_y) {
  const int stored = (int)weights->kind, is_widened = stored != FLOAT32 && rows >= WIDEN_ROWS;
  const int kind = is_widened ? FLOAT32 : stored;
  const long step = WIDTH * size_of(stored), outputs = weights->outputs, panels = (outputs + WIDTH - 1) / WIDTH;
  const int now = panels - first < together ? (int)(panels - first) : together;
  const long left = outputs - first * WIDTH, width = left < now * WIDTH ? left : now * WIDTH;
  const long tiles = (rows + ROWS - 1) / ROWS;
  float sums[BLOCK_OF_ROWS * WIDTH * MOST_PANELS], wide[DEPTH * WIDTH];
  memset(sums, 0, sizeof(float) * rows * now * WIDTH);
  for (long from = 0; from < inputs; from += DEPTH) {
    const long depth = inputs - from < DEPTH ? inputs - from : DEPTH;
    const char *part = weights->packed + (first * inputs + from) * step;
    if (is_widened) {
      widen(stored, part, depth * WIDTH, wide);
      part = (const char *)wide;
    }
    for (long tile = 0; tile < tiles; tile++) {
      const long row = rows * tile / tiles;
      const int count = (int)(rows * (tile + 1) / tiles - row);
      const float *a[ROWS];
      for (int i = 0; i < count; i++) a[i] = x + (row + i) * apart_x + from;
      MULTIPLY[kind](count, now, a, part, WIDTH * size_of(kind), inputs * step, depth, sums + row * now * WIDTH);
    }
  }
  for (long row = 0; row < rows; row++) {
    float *out = y + row * apart_y + first * WIDTH;
    const float *own = sums + row * now * WIDTH;
    if (weights->bias)
      for (long j = 0; j < width; j++) out[j] = own[j] + weights->bias[first * WIDTH + j];
    else
      memcpy(out, own, sizeof(float) * width);
  }
}

void multiply_rows(const float *x, long apart_x, long rows, long inputs, const matrix *matrices, int num_matrices,
                   float *y) {
  long outputs = 0;
  for (int i = 0; i < num_matrices; i++) outputs += matrices[i].outputs;
  for (long block = 0; block < rows; block += BLOCK_OF_ROWS) {
    const long in_block = rows - block < BLOCK_OF_ROWS ? rows - block : BLOCK_OF_ROWS;
    const long tiles = (in_block + ROWS - 1) / ROWS;
    const int together = panels_for((int)((in_block + tiles - 1) / tiles));
    long groups = 0;
    for (int i = 0; i < num_matrices; i++) groups += groups_of(matrices + i, together);
#pragma omp for schedule(static) nowait
    for (long group = 0; group < groups; group++) {
      const matrix *own = matrices;
      long first = group, column = 0;
      for (; first >= groups_of(own, together); own++) {
        first -= groups_of(own, together);
        column += own->outputs;
      }
      multiply_panels(x + block * apart_x, apart_x, in_block, inputs, own, first * together, together,
                      y + block * outputs + column, outputs);
    }
  }
#pragma omp barrier
}

void tiller_linear(const float *x, long rows, long inputs, const char *packed, int kind, long outputs,
                   const float *bias, float *y) {
  const matrix weights = {packed, bias, outputs, kind};
#pragma omp parallel
  multiply_rows(x, inputs, rows, inputs, &weights, 1, y);
}

void norm_row(const float *x, long width, const float *weight, float epsilon, float *y) {
  vec squares = {0};
  float rest = 0;
  long i = 0;
  for (; i + LANES <= width; i += LANES) {
    vec found = *(const vec_at *)(x + i);
    squares += found * found;
  }
  for (; i < width; i++) rest += x[i] * x[i];
  for (int lane = 0; lane < LANES; lane++) rest += squares[lane];
  const float scale = 1.0f / sqrtf(rest / width + epsilon);
  for (i = 0; i < width; i++) y[i] = weight[i] * (x[i] * scale);
}

/* `norm_row` of every row. */
void tiller_rms_norm(const float *x, long rows, long width, const float *weight, float epsilon, float *y) {
#pragma omp parallel for schedule(static) if (rows * width > 65536)
  for (long row = 0; row < rows; row++) norm_row(x + row * width, width, weight, epsilon, y + row * width);
}

void write_token(const cache *layout, const float *key, long key_head, const float *value, long value_head,
                 int64_t slot) {
  if (slot < 0) return;
  for (long head = 0; head < layout->kv_heads; head++) {
    float *keys = layout->keys + ((head * layout->blocks + slot / WIDTH) * layout->key_dim) * WIDTH + slot % WIDTH;
    float *values = layout->values + (head * layout->blocks * WIDTH + slot) * layout->value_width;
    for (long d = 0; d < layout->key_dim; d++) keys[d * WIDTH] = key[head * key_head + d];
    memcpy(values, value + head * value_head, sizeof(float) * layout->value_dim);
  }
}

/* Puts the new keys and values `[kv_heads, tokens, dim]`, which are `*_head` and `*_token` floats apart, in `slots`. */
void tiller_write(const cache *layout, const float *new_keys, long key_head, long key_token, const float *new_values,
                  long value_head, long value_token, const int64_t *slots, long tokens) {
#pragma omp parallel for schedule(static) if (tokens > 64)
  for (long token = 0; token < tokens; token++)
    write_token(layout, new_keys + token * key_token, key_head, new_values + token * value_token, value_head,
                slots[token]);
}

/* `count` floats of this thread, kept for its next call: what malloc gives back to the system costs page faults. Null
 * when there is no memory. */
static float *scratch(long count) {
  static _Thread_local float *held;
  static _Thread_local long size;
  if (count > size) {
    free(held);
    held = malloc(sizeof(float) * count);
    size = held ? count : 0;
  }
  return held;
}

static void note_failure(int *failed) {
#pragma omp atomic write
  *failed = 1;
}

/* Attention of `rows` query rows that share a KV head and a view but for `seen_from`, `seen_to` and `own` (one per row).
 * `own_keys` and `own_values`: those that each row sees besides, or null if none does. `logits`: [rows][longest] scratch.
 * Writes each row's output and, where `sinks` is given, weighs it with its sink. */
static void attend_rows(int rows, const float *const *queries, const view *const *views, const int64_t *ranges,
                        const cache *layout, long head, const float *const *own_keys, const float *const *own_values,
                        float scale, float softcap, const float *const *sinks, float *logits, long longest,
                        float *const *outputs) {
  const float *keys = layout->keys + head * layout->blocks * layout->key_dim * WIDTH;
  const float *values = layout->values + head * layout->blocks * WIDTH * layout->value_width;
  const view *shared = views[0];
  int64_t from = shared->seen_from, to = shared->seen_to;
  for (int i = 1; i < rows; i++) {
    if (views[i]->seen_from < from) from = views[i]->seen_from;
    if (views[i]->seen_to > to) to = views[i]->seen_to;
  }
  long count = to > from ? to - from : 0;
  int64_t position = shared->start;
  for (int64_t range = shared->first_range; range < shared->last_range; range++) {
    int64_t first = ranges[2 * range], last = ranges[2 * range + 1];
    const int64_t begins = position;
    position += last - first;
    if (begins < from) first += from - begins;
    if (position > to) last -= position - to;
    for (int64_t slot = first; slot < last;) {
      const int64_t block = slot / WIDTH, end = (block + 1) * WIDTH < last ? (block + 1) * WIDTH : last;
      float sums[ROWS * WIDTH] = {0};
      multiply_float32(rows, 1, queries, (const char *)(keys + block * layout->key_dim * WIDTH), WIDTH * sizeof(float),
                       0, layout->key_dim, sums);
      const long at = begins + (slot - ranges[2 * range]) - from;
      for (int i = 0; i < rows; i++)
        memcpy(logits + i * longest + at, sums + i * WIDTH + slot % WIDTH, sizeof(float) * (end - slot));
      slot = end;
    }
  }
  if (own_keys) {
    for (int i = 0; i < rows; i++) {
      float sum = 0;
      for (long d = 0; d < layout->key_dim; d++) sum += queries[i][d] * own_keys[i][d];
      logits[i * longest + count] = sum;
    }
    count++;
  }
  for (int i = 0; i < rows; i++) {
    float *row = logits + i * longest;
    const long begin = views[i]->seen_from - from, end = count - (to - views[i]->seen_to);
    float highest = -INFINITY;
    for (long j = begin; j < end; j++) {
      row[j] *= scale;
      if (softcap > 0) row[j] = softcap * tanhf(row[j] / softcap);
    }
    for (long j = begin; j < end; j++)
      if (row[j] > highest || row[j] != row[j]) highest = row[j];
    for (long j = 0; j < begin; j++) row[j] = 0;
    for (long j = end; j < count; j++) row[j] = 0;
    vec total = {0};
    float sum = 0;
    long j = begin;
    for (; j + LANES <= end; j += LANES) {
      vec weights = exp_of(*(vec_at *)(row + j) - highest);
      *(vec_at *)(row + j) = weights;
      total += weights;
    }
    if (j < end) {
      float padded[LANES];
      for (long lane = 0; lane < LANES; lane++) padded[lane] = j + lane < end ? row[j + lane] - highest : -INFINITY;
      vec weights = exp_of(*(vec_at *)padded);
      for (long lane = 0; j + lane < end; lane++) row[j + lane] = weights[lane], sum += weights[lane];
    }
    for (int lane = 0; lane < LANES; lane++) sum += total[lane];
    if (sinks) sum += expf(*sinks[i] - highest);
    const float share = 1.0f / sum;
    for (j = begin; j < end; j++) row[j] *= share;
  }
  const long kept = count - (own_keys ? 1 : 0);
  for (long tile = 0; tile < layout->value_width; tile += WIDTH) {
    float found[ROWS * WIDTH] = {0};
    position = shared->start;
    for (int64_t range = shared->first_range; range < shared->last_range; range++) {
      int64_t first = ranges[2 * range], last = ranges[2 * range + 1];
      const int64_t begins = position;
      position += last - first;
      if (begins < from) first += from - begins;
      if (position > to) last -= position - to;
      if (first >= last) continue;
      const long at = begins + (first - ranges[2 * range]) - from;
      const float *weights[ROWS];
      for (int i = 0; i < rows; i++) weights[i] = logits + i * longest + at;
      multiply_float32(rows, 1, weights, (const char *)(values + first * layout->value_width + tile),
                       layout->value_width * sizeof(float), 0, last - first, found);
    }
    const long width = layout->value_dim - tile < WIDTH ? layout->value_dim - tile : WIDTH;
    for (int i = 0; i < rows; i++)
      for (long j = 0; j < width; j++)
        outputs[i][tile + j] =
            found[i * WIDTH + j] + (own_keys ? logits[i * longest + kept] * own_values[i][tile + j] : 0.0f);
  }
}

void attend_tokens(const cache *layout, const sight *seen, const float *queries, long query_head, long query_token,
                   long heads, const float *keys, long key_head, long key_token, const float *values, long value_head,
                   long value_token, float scale, float softcap, const float *sinks, float *outputs, int *failed) {
  const long group = heads / layout->kv_heads, longest = seen->longest;
  float *logits = scratch(ROWS * longest);
  if (!logits) note_failure(failed);
#pragma omp for schedule(dynamic) collapse(2)
  for (long tile = 0; tile < seen->num_tiles; tile++)
    for (long head = 0; head < layout->kv_heads; head++) {
      if (!logits) continue;
      const long first = seen->tiles[tile], total = (seen->tiles[tile + 1] - first) * group;
      for (long done = 0; done < total; done += ROWS) {
        const int rows = total - done < ROWS ? (int)(total - done) : ROWS;
        const float *q[ROWS], *sink[ROWS], *own_keys[ROWS], *own_values[ROWS];
        const view *views[ROWS];
        float *out[ROWS];
        for (int i = 0; i < rows; i++) {
          const long token = first + (done + i) / group, own_head = head * group + (done + i) % group;
          q[i] = queries + own_head * query_head + token * query_token;
          views[i] = seen->views + token;
          sink[i] = sinks ? sinks + own_head : 0;
          out[i] = outputs + (token * heads + own_head) * layout->value_dim;
          if (views[i]->own < 0) continue;
          own_keys[i] = keys + head * key_head + views[i]->own * key_token;
          own_values[i] = values + head * value_head + views[i]->own * value_token;
        }
        const int has_own = views[0]->own >= 0;
        attend_rows(rows, q, views, seen->ranges, layout, head, has_own ? own_keys : 0, has_own ? own_values : 0, scale,
                    softcap, sinks ? sink : 0, logits, longest, out);
      }
    }
}

/* `attend_tokens` by a team of its own. Returns 0, or 1 when there is no memory for the logits. */
int tiller_attend(const cache *layout, const sight *seen, const float *queries, long query_head, long query_token,
                  long heads, const float *keys, long key_head, long key_token, const float *values, long value_head,
                  long value_token, float scale, float softcap, const float *sinks, float *outputs) {
  int failed = 0;
#pragma omp parallel
  attend_tokens(layout, seen, queries, query_head, query_token, heads, keys, key_head, key_token, values, value_head,
                value_token, scale, softcap, sinks, outputs, &failed);
  return failed;
}
