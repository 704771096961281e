/* Kernels for a CPU: products with packed weights, root-mean-square norms, and attention over a paged KV cache.
 *
 * Activations are float32, row-major. Weights are float32, bfloat16 or float16 and are widened in registers, which
 * loses nothing. Every output is summed in one fixed order: the results of a row do not depend on the rows beside it.
 *
 * One micro-kernel does the work: sums[row][0..WIDTH) = sum over k of a[row][k] * b[k][0..WIDTH), for up to ROWS rows.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#define HAS_FLOAT16 1
#else
#define HAS_FLOAT16 0
#endif

#define WIDTH 16 /* outputs of a panel of weights, slots of a block of keys, columns of a tile of values */

#if defined(__AVX512F__)
#define LANES 16
#define ROWS 12
#else
#define LANES 8
#define ROWS 6
#endif
#define PARTS (WIDTH / LANES)
#define MOST_PANELS (8 / PARTS) /* of one row: sums in flight hide the latency of an addition */
#define WIDEN_ROWS (ROWS + 1) /* from which on a panel is widened once, for all tiles of rows */
#define BLOCK_OF_ROWS 96        /* inputs that stay in the second-level cache while every panel passes */

/* Holds a vector in a register: the compiler would load it again for every use, and spill the sums. */
#if defined(__x86_64__)
#define KEEP(vector) __asm__("" : "+v"(vector))
#else
#define KEEP(vector) __asm__("" : "+w"(vector))
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef float vec_at __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t bits __attribute__((vector_size(LANES * 4)));
typedef uint16_t narrow __attribute__((vector_size(LANES * 2)));
typedef uint16_t narrow_at __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

enum { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

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

/* Widens `count` packed weights to float32. */
static void widen(int kind, const char *from, long count, float *to) {
  for (long i = 0; i < count; i += LANES)
    *(vec_at *)(to + i) = kind == FLOAT16 ? load(FLOAT16, from + 2 * i) : load(BFLOAT16, from + 2 * i);
}

/* y[row][output] = x[row] . weights[output] + bias[output]; `bias` may be null. Returns 0, or 1 without memory. */
int tiller_linear(const float *x, long rows, long inputs, const char *packed, int kind, long outputs, const float *bias,
                  float *y) {
  const long panels = (outputs + WIDTH - 1) / WIDTH;
  const int is_widened = kind != FLOAT32 && rows >= WIDEN_ROWS; /* once for all rows, not for each tile of them */
  const long step = WIDTH * size_of(is_widened ? FLOAT32 : kind), apart = inputs * step;
  const multiply_function product = MULTIPLY[is_widened ? FLOAT32 : kind];
  int failed = 0;
#pragma omp parallel
  {
    float *wide = is_widened ? scratch(MOST_PANELS * WIDTH * inputs) : 0;
    if (is_widened && !wide) {
#pragma omp atomic write
      failed = 1;
    }
    for (long block = 0; block < rows; block += BLOCK_OF_ROWS) {
      const long in_block = rows - block < BLOCK_OF_ROWS ? rows - block : BLOCK_OF_ROWS;
      const long tiles = (in_block + ROWS - 1) / ROWS;
      const int together = panels_for((int)((in_block + tiles - 1) / tiles));
#pragma omp for schedule(static)
      for (long first = 0; first < panels; first += together) {
        if (is_widened && !wide) continue;
        const int now = panels - first < together ? (int)(panels - first) : together;
        const char *weights = packed + first * inputs * WIDTH * size_of(kind);
        if (is_widened) {
          widen(kind, weights, now * WIDTH * inputs, wide);
          weights = (const char *)wide;
        }
        for (long tile = 0; tile < tiles; tile++) {
          const long row = in_block * tile / tiles;
          const int count = (int)(in_block * (tile + 1) / tiles - row);
          const float *a[ROWS];
          float sums[ROWS * MOST_PANELS * WIDTH];
          memset(sums, 0, sizeof(float) * count * now * WIDTH);
          for (int i = 0; i < count; i++) a[i] = x + (block + row + i) * inputs;
          product(count, now, a, weights, step, apart, inputs, sums);
          for (int i = 0; i < count; i++) {
            float *out = y + (block + row + i) * outputs + first * WIDTH;
            const float *own = sums + (long)i * now * WIDTH;
            const long left = outputs - first * WIDTH, width = left < now * WIDTH ? left : now * WIDTH;
            if (bias)
              for (long j = 0; j < width; j++) out[j] = own[j] + bias[first * WIDTH + j];
            else
              memcpy(out, own, sizeof(float) * width);
          }
        }
      }
    }
  }
  return failed;
}

/* y = x / sqrt(mean(x^2) + epsilon) * weight, row by row. */
void tiller_rms_norm(const float *x, long rows, long width, const float *weight, float epsilon, float *y) {
#pragma omp parallel for schedule(static) if (rows * width > 65536)
  for (long row = 0; row < rows; row++) {
    const float *from = x + row * width;
    float *to = y + row * width;
    vec squares = {0};
    float rest = 0;
    long i = 0;
    for (; i + LANES <= width; i += LANES) {
      vec found = *(const vec_at *)(from + i);
      squares += found * found;
    }
    for (; i < width; i++) rest += from[i] * from[i];
    for (int lane = 0; lane < LANES; lane++) rest += squares[lane];
    const float scale = 1.0f / sqrtf(rest / width + epsilon);
    for (i = 0; i < width; i++) to[i] = weight[i] * (from[i] * scale);
  }
}

/* exp(x) for x <= 0, to about 2 units in the last place; 0 below -87.3. */
INLINE vec exp_of(vec x) {
  typedef int32_t whole __attribute__((vector_size(LANES * 4)));
  whole is_tiny = x < -87.3f;
  x = (vec)((bits)x & ~(bits)is_tiny);
  vec scaled = x * 1.44269504088896341f - 0.5f;
  whole power = __builtin_convertvector(scaled, whole); /* rounds towards zero, so to the nearest of x log2(e) */
  vec by = __builtin_convertvector(power, vec);
  vec r = x - by * 0.693359375f + by * 2.12194440e-4f;
  vec found = r * 1.9875691500e-4f + 1.3981999507e-3f;
  found = found * r + 8.3334519073e-3f;
  found = found * r + 4.1665795894e-2f;
  found = found * r + 1.6666665459e-1f;
  found = found * r + 5.0000001201e-1f;
  found = found * r * r + r + 1.0f + x * 0.0f; /* what is not a number stays so */
  bits factor = (bits)(power + 127) << 23;
  return (vec)((bits)(found * (vec)factor) & ~(bits)is_tiny);
}

/* What one query token sees: ranges of slots `[first, last)` in `ranges`, from range `first_range` to `last_range`,
 * whose tokens have the positions `start`, `start` + 1, … in turn; of these those in `[seen_from, seen_to)`.
 * `own`: the token of the pack whose key and value it sees too, at the end; -1 if there is none. */
typedef struct {
  int64_t first_range, last_range, start, seen_from, seen_to, own;
} view;

/* `value_width`: `value_dim` rounded up to a multiple of WIDTH. */
typedef struct {
  float *keys;   /* [kv_heads][blocks][key_dim][WIDTH]: block b has slots b * WIDTH … */
  float *values; /* [kv_heads][blocks * WIDTH][value_width] */
  int64_t blocks, kv_heads, key_dim, value_dim, value_width;
} cache;

/* Puts the new keys and values `[kv_heads, tokens, dim]`, which are `*_head` and `*_token` floats apart, in `slots`;
 * a slot of -1 is not kept. */
void tiller_write(const cache *layout, const float *new_keys, long key_head, long key_token, const float *new_values,
                  long value_head, long value_token, const int64_t *slots, long tokens) {
#pragma omp parallel for schedule(static) if (tokens > 64)
  for (long token = 0; token < tokens; token++) {
    const int64_t slot = slots[token];
    if (slot < 0) continue;
    for (long head = 0; head < layout->kv_heads; head++) {
      float *key = layout->keys + ((head * layout->blocks + slot / WIDTH) * layout->key_dim) * WIDTH + slot % WIDTH;
      float *value = layout->values + (head * layout->blocks * WIDTH + slot) * layout->value_width;
      const float *from = new_keys + head * key_head + token * key_token;
      for (long d = 0; d < layout->key_dim; d++) key[d * WIDTH] = from[d];
      memcpy(value, new_values + head * value_head + token * value_token, sizeof(float) * layout->value_dim);
    }
  }
}

/* Attention of `rows` query rows that share a KV head and a view but for `seen_from` and `seen_to` (one per row).
 * `logits`: [rows][longest] scratch. Writes each row's output and, where `sinks` is given, weighs it with its sink. */
static void attend_rows(int rows, const float *const *queries, const view *const *views, const int64_t *ranges,
                        const cache *layout, long head, const float *own_key, const float *own_value, float scale,
                        float softcap, const float *const *sinks, float *logits, long longest, float *const *outputs) {
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
  if (own_key) {
    for (int i = 0; i < rows; i++) {
      float sum = 0;
      for (long d = 0; d < layout->key_dim; d++) sum += queries[i][d] * own_key[d];
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
  const long kept = count - (own_key ? 1 : 0);
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
            found[i * WIDTH + j] + (own_key ? logits[i * longest + kept] * own_value[tile + j] : 0.0f);
  }
}

/* Attention of `tokens` query tokens, each of which has a view. `queries`: heads and tokens `query_head` and
 * `query_token` floats apart. `tiles`: [num_tiles + 1], where the tokens of each tile begin; those of one tile share
 * their ranges. `new_keys`, `new_values`: the pack's, for tokens that see their own. `sinks`: one logit a head, or
 * null. `outputs` [tokens, heads, value_dim]. Returns 0, or 1 when there is no memory for the logits. */
int tiller_attend(const cache *layout, const float *queries, long query_head, long query_token, long heads,
                  const view *views, const int64_t *tiles, long num_tiles, const int64_t *ranges,
                  const float *new_keys, long key_head, long key_token, const float *new_values, long value_head,
                  long value_token, float scale, float softcap, const float *sinks, long longest, float *outputs) {
  const long group = heads / layout->kv_heads;
  int failed = 0;
#pragma omp parallel
  {
    float *logits = scratch(ROWS * longest);
    if (!logits) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp for schedule(dynamic) collapse(2)
    for (long tile = 0; tile < num_tiles; tile++)
      for (long head = 0; head < layout->kv_heads; head++) {
        if (!logits) continue;
        const long total = (tiles[tile + 1] - tiles[tile]) * group;
        for (long done = 0; done < total; done += ROWS) {
          const int rows = total - done < ROWS ? (int)(total - done) : ROWS;
          const float *q[ROWS], *sink[ROWS];
          const view *seen[ROWS];
          float *out[ROWS];
          for (int i = 0; i < rows; i++) {
            const long token = tiles[tile] + (done + i) / group, own_head = head * group + (done + i) % group;
            q[i] = queries + own_head * query_head + token * query_token;
            seen[i] = views + token;
            sink[i] = sinks ? sinks + own_head : 0;
            out[i] = outputs + (token * heads + own_head) * layout->value_dim;
          }
          const int64_t own = seen[0]->own;
          attend_rows(rows, q, seen, ranges, layout, head,
                      own < 0 ? 0 : new_keys + head * key_head + own * key_token,
                      own < 0 ? 0 : new_values + head * value_head + own * value_token, scale, softcap,
                      sinks ? sink : 0, logits, longest, out);
        }
      }
  }
  return failed;
}
