/* What the kernels share: how vectors, weights and the KV cache are laid out, and the parts of a team's work.
 *
 * A function without the prefix `tiller_` that ends with "by a team" is called by every thread of a parallel region and
 * shares its work out among them; when it returns, all of it is done.
 */

#ifndef TILLER_KERNELS_H
#define TILLER_KERNELS_H

#include <stdint.h>

#define WIDTH 16 /* outputs of a panel of weights, slots of a block of keys, columns of a tile of values */

#if defined(__AVX512F__)
#define LANES 16
#else
#define LANES 8
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef float vec_at __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t bits __attribute__((vector_size(LANES * 4)));

enum { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

/* Packed weights [panels][inputs][WIDTH] of a `kind`, and a bias or null. */
typedef struct {
  const char *packed;
  const float *bias;
  int64_t outputs, kind;
} matrix;

/* What one query token sees: ranges of slots `[first, last)` in `ranges`, from range `first_range` to `last_range`,
 * whose tokens have the positions `start`, `start` + 1, … in turn; of these those in `[seen_from, seen_to)`.
 * `own`: the token of the pack whose key and value it sees too, at the end; -1 if there is none, as for all of its tile. */
typedef struct {
  int64_t first_range, last_range, start, seen_from, seen_to, own;
} view;

/* `value_width`: `value_dim` rounded up to a multiple of WIDTH. */
typedef struct {
  float *keys;   /* [kv_heads][blocks][key_dim][WIDTH]: block b has slots b * WIDTH … */
  float *values; /* [kv_heads][blocks * WIDTH][value_width] */
  int64_t blocks, kv_heads, key_dim, value_dim, value_width;
} cache;

/* What the tokens of a pack see: a view each. `tiles` [num_tiles + 1]: where the tokens of each tile begin; those of
 * one tile share their ranges. `longest`: the most positions that a tile sees. `slots`: where each token's key and
 * value are put, or -1 where they are not kept. */
typedef struct {
  const view *views;
  const int64_t *tiles, *ranges, *slots;
  int64_t num_tiles, longest;
} sight;

/* y[row] = x[row] . weights + bias for each matrix in turn, their outputs beside each other; by a team. The rows of `x`
 * are `apart_x` floats apart. */
void multiply_rows(const float *x, long apart_x, long rows, long inputs, const matrix *matrices, int num_matrices,
                   float *y);

/* y = x / sqrt(mean(x^2) + epsilon) * weight; `y` may be `x`. */
void norm_row(const float *x, long width, const float *weight, float epsilon, float *y);

/* Puts a token's key and value, whose heads are `*_head` floats apart, in `slot`; -1 is not kept. */
void write_token(const cache *layout, const float *key, long key_head, const float *value, long value_head,
                 int64_t slot);

/* Attention of the tokens of a pack, by a team. `queries`, `keys` and `values`: those of the pack, heads and tokens
 * `*_head` and `*_token` floats apart; keys and values are read where tokens see their own. `sinks`: one logit a head,
 * or null. `softcap`: 0 for none. `outputs` [tokens, heads, value_dim]. Sets `failed` when there is no memory. */
void attend_tokens(const cache *layout, const sight *seen, const float *queries, long query_head, long query_token,
                   long heads, const float *keys, long key_head, long key_token, const float *values, long value_head,
                   long value_token, float scale, float softcap, const float *sinks, float *outputs, int *failed);

/* `reads` and `writes` [stages, rows, width, hidden], `numbers` [stages, rows, width, 8], `gates`
 * [stages, rows] and `norm_gates` [rows, num_norm_gates]: columns of the readings. */
typedef struct {
  const float *reads, *writes, *numbers;
  const int64_t *gates, *norm_gates;
  int64_t stages, rows, width, num_norm_gates;
} slots_at;

/* `units` [rows, width, hidden], `numbers` [rows, width, 10], `columns` [rows, width]. */
typedef struct {
  const float *units, *numbers;
  const int64_t *columns;
  int64_t width;
} readings_at;

/* The bank's rows of the tokens of a pack. `tokens` [count]: those that have slots or are
 * read, ascending; `reading_rows` [count]: their rows of `readings` [.., columns], or null if in order. */
typedef struct {
  const int64_t *row_of_token, *tokens, *reading_rows;
  float *readings;
  int64_t num_tokens, count, hidden, columns;
} steered;

/* What is done at one place; null where there is nothing. `adds` [rows, hidden]. */
typedef struct {
  const float *adds;
  const readings_at *before;
  const slots_at *slots;
  const readings_at *after;
} place_steering;

/* Steers the tokens of a pack, whose activations at a place are `x` [num_tokens, hidden]; by a team. */
void steer_tokens(const steered *on, const place_steering *place, float *x);

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

#endif
