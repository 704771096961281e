/* Steering at one place beyond what is only added: for each token that has slots or is read, in turn
 *
 *     readings before;   x += its row's sum;   its slots, stage by stage;   its norm, if it is kept;   readings after
 *
 * as `server/steering/slots.py` and `readings.py` say. Tokens do not depend on each other, and every sum has one fixed
 * order.
 */

#include "kernels.h"

#include <math.h>

#define UNUSED 2
#define MAX_RANK 64 /* `vectors/vocabulary.py` */
#define LATCHED -2.0f

enum { SLOPE, BIAS, FLOOR, LOW, HIGH, STRENGTH, IS_SIGMOID, IS_STEP, SLOT_NUMBERS };
enum { READING_SIGMOID = 3, READING_STEP, SIGN, THRESHOLD, SHARPNESS, IS_GATE, IS_LATCHED, READING_NUMBERS };

static float dot(const float *x, const float *y, long width) {
  vec sums[4] = {{0}};
  long i = 0;
  for (; i + 4 * LANES <= width; i += 4 * LANES)
    for (int part = 0; part < 4; part++)
      sums[part] += *(const vec_at *)(x + i + part * LANES) * *(const vec_at *)(y + i + part * LANES);
  for (; i + LANES <= width; i += LANES) sums[0] += *(const vec_at *)(x + i) * *(const vec_at *)(y + i);
  vec all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float sum = 0;
  for (int lane = 0; lane < LANES; lane++) sum += all[lane];
  for (; i < width; i++) sum += x[i] * y[i];
  return sum;
}

static float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/* Comparisons leave what is not a number as it is. */
static float clip(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

static float activated(float x, float floor, float is_sigmoid, float is_step) {
  if (is_sigmoid > 0) x = sigmoid(x);
  if (is_step > 0) x = x > 0;
  return x < floor ? floor : x;
}

static void read_token(const readings_at *own, long row, long hidden, const float *x, float *found) {
  for (long place = 0; place < own->width; place++) {
    const long at = row * own->width + place;
    const int64_t column = own->columns[at];
    if (column == UNUSED) continue;
    const float *n = own->numbers + at * READING_NUMBERS;
    float value = n[BIAS] + dot(x, own->units + at * hidden, hidden) * n[SLOPE];
    value = activated(value, n[FLOOR], n[READING_SIGMOID], n[READING_STEP]);
    if (n[IS_GATE] > 0) {
      const float beyond = n[SIGN] * (value - n[THRESHOLD]);
      value = n[SHARPNESS] > 0 ? sigmoid(beyond * n[SHARPNESS]) : beyond > 0;
      if (n[IS_LATCHED] > 0 && found[column] == LATCHED) value = 1;
    }
    found[column] = value;
  }
}

static void apply_slots(const slots_at *own, long row, long hidden, const float *found, float *x) {
  float changes[MAX_RANK];
  for (long stage = 0; stage < own->stages; stage++) {
    const long at = stage * own->rows + row;
    const float gate = found[own->gates[at]];
    for (long slot = 0; slot < own->width; slot++) {
      const float *n = own->numbers + (at * own->width + slot) * SLOT_NUMBERS;
      changes[slot] = 0;
      if (n[STRENGTH] == 0) continue;
      float value = n[BIAS] + dot(x, own->reads + (at * own->width + slot) * hidden, hidden) * n[SLOPE];
      value = activated(value, n[FLOOR], n[IS_SIGMOID], n[IS_STEP]);
      changes[slot] = (clip(value, n[LOW], n[HIGH]) - value) * n[STRENGTH] * gate;
    }
    for (long slot = 0; slot < own->width; slot++) {
      const float change = changes[slot], *write = own->writes + (at * own->width + slot) * hidden;
      if (change == 0) continue;
      for (long i = 0; i < hidden; i++) x[i] += change * write[i];
    }
  }
}

/* In double, in which no square overflows or vanishes. */
static double norm_of(const float *x, long width) {
  double sum = 0;
  for (long i = 0; i < width; i++) sum += (double)x[i] * x[i];
  return sqrt(sum);
}

static int keeps_norm(const slots_at *own, long row, const float *found) {
  for (long gate = 0; gate < own->num_norm_gates; gate++)
    if (found[own->norm_gates[row * own->num_norm_gates + gate]] > 0) return 1;
  return 0;
}

static void add_row(const float *adds, long row, long hidden, float *x) {
  if (adds && row)
    for (long i = 0; i < hidden; i++) x[i] += adds[row * hidden + i];
}

static void steer_token(const steered *on, long number, const place_steering *place, float *x) {
  const long row = on->row_of_token[on->tokens[number]], hidden = on->hidden;
  float *found = on->readings + (on->reading_rows ? on->reading_rows[number] : number) * on->columns;
  const slots_at *slots = place->slots;
  if (place->before) read_token(place->before, row, hidden, x, found);
  const int restores = slots && keeps_norm(slots, row, found);
  const double norm = restores ? norm_of(x, hidden) : 0;
  add_row(place->adds, row, hidden, x);
  if (slots) apply_slots(slots, row, hidden, found, x);
  if (restores) {
    const double changed = norm_of(x, hidden), by = changed > 0 || changed != changed ? norm / changed : 0;
    for (long i = 0; i < hidden; i++) x[i] = (float)(x[i] * by);
  }
  if (place->after) read_token(place->after, row, hidden, x, found);
}

void steer_tokens(const steered *on, const place_steering *place, float *x) {
  if (place->adds && on->count < on->num_tokens) {
#pragma omp single
    for (long token = 0, number = 0; token < on->num_tokens; token++)
      if (number < on->count && on->tokens[number] == token)
        number++;
      else
        add_row(place->adds, on->row_of_token[token], on->hidden, x + token * on->hidden);
  }
#pragma omp for schedule(static)
  for (long number = 0; number < on->count; number++)
    steer_token(on, number, place, x + on->tokens[number] * on->hidden);
}

void tiller_steer(const steered *on, const place_steering *place, float *x) {
#pragma omp parallel if (on->count * on->hidden > 1 << 16)
  steer_tokens(on, place, x);
}
