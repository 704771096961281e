/* Decoder blocks, as many as are asked for in one call: norm, attention, residual, norm, gated feed-forward, residual.
 *
 *     a = output(attention(norm(h)));   n = post_norm(h + a);   m = down(silu(gate(n)) * up(n));   h = h + a + m
 *
 * A call computes a range of the *places* of its blocks, of which each block has four, in the order of `enum place`.
 * What is at a place when the call ends there can be changed before the next call goes on. One team of threads works
 * through the whole range.
 */

#include "kernels.h"

#include <string.h>

/* In the order in which they are computed. */
enum place { ATTENTION, POST_ATTENTION_NORM, MLP, RESIDUAL, PLACES };

#define COLUMNS 256 /* of the feed-forward's inner width, that a thread takes at once */

/* One block's weights. `queries_keys_values` and `gate_up` are in one matrix or in several, beside each other.
 * `query_norm` and `key_norm` [head_dim] are null where there are none. */
typedef struct {
  matrix queries_keys_values[3], output, gate_up[2], down;
  const float *input_norm, *query_norm, *key_norm, *post_attention_norm;
  int64_t num_queries_keys_values, num_gate_up, hidden, heads, kv_heads, head_dim, inner;
  float input_epsilon, query_epsilon, key_epsilon, post_attention_epsilon, scale;
} block;

/* One pass of `tokens` tokens, row by row: `stream`, `normed` and `output` [hidden], `mixed` [queries, keys, values],
 * `attended` [heads * head_dim], `inner` [2 * inner]. `cosines` and `sines` [rotary]: how the first `rotary` numbers of
 * a head are rotated. `caches` and `sights`: of each block. `rows_of_tokens`: the row of `adds[place]` [rows, hidden]
 * that is added for each token, 0 for none; `adds` and the tensor of a place are null where nothing is added. `places`:
 * what more is done at each place to the tokens of `steered`, or null. */
typedef struct {
  float *stream, *normed, *mixed, *attended, *inner, *output;
  const float *cosines, *sines;
  const cache *const *caches;
  const sight *const *sights;
  const int64_t *rows_of_tokens;
  const float *const *adds;
  const steered *steered;
  const place_steering *places;
  int64_t tokens, rotary;
} pass;

/* Adds the token's row of the place to `x`. */
static void steer(const pass *on, long place, long token, long hidden, float *x) {
  const float *rows = on->adds ? on->adds[place] : 0;
  const int64_t row = rows ? on->rows_of_tokens[token] : 0;
  if (row)
    for (long i = 0; i < hidden; i++) x[i] += rows[row * hidden + i];
}

/* Rotates the pairs (x[i], x[i + half]). */
static void rotate(float *x, const float *cosines, const float *sines, long rotary) {
  const long half = rotary / 2;
  for (long i = 0; i < half; i++) {
    const float first = x[i], second = x[half + i];
    x[i] = first * cosines[i] - second * sines[i];
    x[half + i] = second * cosines[half + i] + first * sines[half + i];
  }
}

static void prepare_heads(const block *own, const pass *on, long token, float *mixed) {
  const float *cosines = on->cosines + token * on->rotary, *sines = on->sines + token * on->rotary;
  for (long head = 0; head < own->heads + own->kv_heads; head++) {
    float *x = mixed + head * own->head_dim;
    const float *norm = head < own->heads ? own->query_norm : own->key_norm;
    if (norm) norm_row(x, own->head_dim, norm, head < own->heads ? own->query_epsilon : own->key_epsilon, x);
    rotate(x, cosines, sines, on->rotary);
  }
}

static void attend(const block *own, const pass *on, long number, int *failed) {
  const long dim = own->head_dim, queries = own->heads * dim, keys = own->kv_heads * dim, width = queries + 2 * keys;
  const cache *layout = on->caches[number];
  const sight *seen = on->sights[number];
#pragma omp for schedule(static)
  for (long token = 0; token < on->tokens; token++)
    norm_row(on->stream + token * own->hidden, own->hidden, own->input_norm, own->input_epsilon,
             on->normed + token * own->hidden);
  multiply_rows(on->normed, own->hidden, on->tokens, own->hidden, own->queries_keys_values,
                (int)own->num_queries_keys_values, on->mixed);
#pragma omp for schedule(static)
  for (long token = 0; token < on->tokens; token++) {
    float *mixed = on->mixed + token * width;
    prepare_heads(own, on, token, mixed);
    write_token(layout, mixed + queries, dim, mixed + queries + keys, dim, seen->slots[token]);
  }
  attend_tokens(layout, seen, on->mixed, dim, width, own->heads, on->mixed + queries, dim, width,
                on->mixed + queries + keys, dim, width, own->scale, 0, 0, on->attended, failed);
  multiply_rows(on->attended, queries, on->tokens, queries, &own->output, 1, on->output);
}

/* gate = gate / (1 + exp(-gate)) * up */
static void gate(float *gates, const float *ups, long count) {
  for (long i = 0; i < count; i += LANES) {
    float padded[2][LANES] = {{0}};
    const int is_whole = count - i >= LANES;
    const long left = is_whole ? LANES : count - i;
    if (!is_whole) {
      memcpy(padded[0], gates + i, sizeof(float) * left);
      memcpy(padded[1], ups + i, sizeof(float) * left);
    }
    vec x = is_whole ? *(const vec_at *)(gates + i) : *(const vec_at *)padded[0];
    vec up = is_whole ? *(const vec_at *)(ups + i) : *(const vec_at *)padded[1];
    bits is_negative = (bits)(x < 0.0f);
    vec power = exp_of((vec)((bits)x | 0x80000000u)); /* of -|x| */
    vec above = (vec)((is_negative & (bits)power) | (~is_negative & (bits)((vec){0} + 1.0f)));
    vec gated = x * (above / (1.0f + power)) * up;
    if (is_whole)
      *(vec_at *)(gates + i) = gated;
    else
      for (long lane = 0; lane < left; lane++) gates[i + lane] = gated[lane];
  }
}

static void feed_forward(const block *own, const pass *on) {
  const long width = 2 * own->inner;
  multiply_rows(on->normed, own->hidden, on->tokens, own->hidden, own->gate_up, (int)own->num_gate_up, on->inner);
#pragma omp for schedule(static) collapse(2)
  for (long token = 0; token < on->tokens; token++)
    for (long column = 0; column < own->inner; column += COLUMNS) {
      float *gates = on->inner + token * width + column;
      gate(gates, gates + own->inner, own->inner - column < COLUMNS ? own->inner - column : COLUMNS);
    }
  multiply_rows(on->inner, width, on->tokens, own->inner, &own->down, 1, on->output);
}

/* By a team. */
static void steer_more(const pass *on, long place) {
  const place_steering *more = on->places + place;
  if (!more->before && !more->slots && !more->after) return;
  const long site = place % PLACES;
  steer_tokens(on->steered, more, site == RESIDUAL ? on->stream : site == POST_ATTENTION_NORM ? on->normed : on->output);
}

/* Computes the places `[first, last)`, counted through all blocks. Returns 0, or 1 when there was no memory for the logits of the
 * attention. */
int tiller_blocks(const block *blocks, const pass *on, long first, long last) {
  int failed = 0;
#pragma omp parallel
  for (long place = first; place < last; place++) {
    const long number = place / PLACES;
    const block *own = blocks + number;
    const long hidden = own->hidden;
    if (place % PLACES == ATTENTION) attend(own, on, number, &failed);
    if (place % PLACES == MLP) feed_forward(own, on);
#pragma omp for schedule(static)
    for (long token = 0; token < on->tokens; token++) {
      float *stream = on->stream + token * hidden, *output = on->output + token * hidden;
      float *normed = on->normed + token * hidden;
      switch (place % PLACES) {
        case ATTENTION:
        case MLP:
          steer(on, place, token, hidden, output);
          break;
        case POST_ATTENTION_NORM:
          for (long i = 0; i < hidden; i++) stream[i] += output[i];
          norm_row(stream, hidden, own->post_attention_norm, own->post_attention_epsilon, normed);
          steer(on, place, token, hidden, normed);
          break;
        default:
          for (long i = 0; i < hidden; i++) stream[i] += output[i];
          steer(on, place, token, hidden, stream);
      }
    }
    if (on->places) steer_more(on, place);
  }
  return failed;
}
