// Causal attention within packed rows, forward and backward, with the rotation before it; see attention.py.
//
// What lies above the diagonal is not computed, and of a row of scores two numbers are kept, with which the backward
// pass makes it again. Factors of products are float32 or bfloat16, sums are float32. A row and a head of keys are the
// work of one thread, so results do not depend on how many there are.
#include <vector>

#include "vectors.h"

constexpr int Q = W == 16 ? 8 : 4;  // queries that are taken at a time

struct Call {
  int64_t tokens, queries, keys, size;  // n, H, K, d
  int64_t rows, columns, repeats;
  const int64_t *grid, *lengths;     // (rows, columns) which token stands in each place, (rows,)
  const int64_t *begins, *repeated;  // (rows,) how many tokens at the start are an earlier row's too; those before it
  const int64_t* places;             // (repeats,) which tokens those are, row by row
  const float *cos, *sin;            // (n, d / 2)
  const void* heads;                 // (n, (H + 2 K) d): queries, keys and values
  void* out;                         // (n, H d)
  float* softmax;                    // (n, H, 2) the largest score, and 1 / the sum of exp(score - that)
  const void* grad;                  // (n, H d)
  void* heads_grad;                  // (n, (H + 2 K) d)
  float *key_grad, *value_grad;      // (n + repeats, K d) of each token's first place, then of its others

  int64_t all() const { return queries + 2 * keys; }  // heads
};

// The numbers x (d,) of a token turned by its angles, or back.
static void rotate(const Call& call, int64_t token, float direction, float* x) {
  const int64_t half = call.size / 2;
  for (int64_t i = 0; i < half; i += W) {
    const Vector first = vector_of(x + i), second = vector_of(x + half + i);
    const Vector cos = vector_of(call.cos + token * half + i), sin = vector_of(call.sin + token * half + i) * direction;
    *(Vector*)(x + i) = first * cos - second * sin;
    *(Vector*)(x + half + i) = second * cos + first * sin;
  }
}

template <class T>
static void to_right(const float* x, int64_t row, int64_t k, int64_t rows, int64_t columns, T* out) {
  for (int64_t i = 0; i < rows; i += 2)
    for (int64_t c = 0; c < columns; c += W)
      store_pair(out, k + i, c, row, vector_of(x + i * row + c), vector_of(x + (i + 1) * row + c));
}

// A left factor (rows, columns) as a right one (columns, rows).
template <class T>
static void to_across(const T* left, int64_t rows, int64_t columns, T* out) {
  const int64_t units = columns / PAIRED<T>;
  for (int64_t k = 0; k < units; k += W)
    for (int64_t i = 0; i < rows; i++)
      for (int64_t j = k; j < k + W; j++) memcpy((float*)out + j * rows + i, (const float*)left + i * units + j, 4);
}

// x where its column, the first of which is c, is at most `last`.
static inline Vector until(Vector x, int64_t c, int64_t last, float otherwise) {
  Whole columns;
  for (int j = 0; j < W; j++) columns[j] = j;
  return columns <= int32_t(last - c) ? x : Vector{} + otherwise;
}

// exp(scores - peak) of the columns up to `last`, and 0 behind them; returns the sum.
static float powers(float* scores, int64_t columns, int64_t last, float peak) {
  Vector total = {};
  for (int64_t c = 0; c < columns; c += W)
    total += *(Vector*)(scores + c) = until(exponential(vector_of(scores + c) - peak), c, last, 0.0f);
  return sum(total);
}

static float peak_of(const float* scores, int64_t columns, int64_t last) {
  Vector peaks = Vector{} - INFINITY;
  for (int64_t c = 0; c < columns; c += W) {
    const Vector x = until(vector_of(scores + c), c, last, -INFINITY);
    peaks = x > peaks ? x : peaks;
  }
  return largest(peaks);
}

// What a thread computes: one row at a time, of l tokens, filled up to vectors with zeros, and one head of keys.
template <class T>
struct Worker {
  const Call& call;
  const int64_t d, group;  // queries that share keys
  const float scale;
  const int64_t* tokens = nullptr;         // of the row
  int64_t length = 0, begin = 0, l = 0;  // of the row; the first token that is its own; length filled up
  // (l, d) of a head: to the left of a product, to the right of it, or across, (d, l), to the right of it.
  std::vector<T> left, key_across, key_right, value_across, value_right, query, query_right, grad, grad_right;
  std::vector<float> numbers, key_sums, value_sums;  // (l, d)
  std::vector<float> scores, slopes;                 // (Q, l)
  std::vector<T> few;                                // (Q, l) to the left
  std::vector<T> weights, scores_grad;               // (l, l) to the right

  Worker(const Call& call, bool backward)
      : call(call), d(call.size), group(call.queries / call.keys), scale(1 / std::sqrt(float(call.size))) {
    const int64_t longest = filled(call.columns);
    for (auto* part : {&left, &key_across, &key_right, &value_across, &value_right, &query, &query_right, &grad,
                       &grad_right})
      part->resize(longest * d);
    for (auto* part : {&numbers, &key_sums, &value_sums}) part->resize(longest * d);
    for (auto* part : {&scores, &slopes}) part->resize(Q * longest);
    few.resize(Q * longest);
    if (backward)
      for (auto* part : {&weights, &scores_grad}) part->resize(longest * longest);
  }

  void begin_row(int64_t number) {
    tokens = call.grid + number * call.columns;
    length = call.lengths[number], begin = call.begins[number], l = filled(length);
  }

  float* softmax_of(int64_t i, int64_t head) const { return call.softmax + (tokens[i] * call.queries + head) * 2; }

  bool own(int64_t i) const { return i >= begin && i < length; }

  // A head of x (n, heads, d) as `numbers`, and to the left of a product.
  void take(const void* x, int64_t heads, int64_t head, bool turned, std::vector<T>& to) {
    std::fill(numbers.begin() + length * d, numbers.begin() + l * d, 0.0f);
    for (int64_t i = 0; i < length; i++) {
      const T* from = (const T*)x + (tokens[i] * heads + head) * d;
      for (int64_t k = 0; k < d; k += W) *(Vector*)&numbers[i * d + k] = vector_of(from + k);
      if (turned) rotate(call, tokens[i], 1, &numbers[i * d]);
    }
    to_left(numbers.data(), l * d, to.data());
  }

  // Products of Q rows of a left factor (l, d) from `first`, and a right one (d, l), up to `columns`.
  void scores_of(const std::vector<T>& w, int64_t first, const std::vector<T>& x, int64_t columns, float factor,
                 float* out) {
    by_vectors(columns, [&](auto v, int64_t c) {
      Vector sums[v][Q] = {};
      multiply(&w[first * d], d, PAIRED<T>, d, &x[c * PAIRED<T>], l, sums);
      for (int i = 0; i < v; i++)
        for (int r = 0; r < Q; r++) *(Vector*)(out + r * l + c + i * W) = sums[i][r] * factor;
    });
  }

  // Products of `few`, of which `columns` count, and a right factor (l, d): f(r, c, W numbers of row r from column c).
  template <class Function>
  void few_times(const std::vector<T>& x, int64_t columns, Function f) {
    by_vectors(d, [&](auto v, int64_t c) {
      Vector sums[v][Q] = {};
      multiply(few.data(), l, PAIRED<T>, columns, &x[c * PAIRED<T>], d, sums);
      for (int i = 0; i < v; i++)
        for (int r = 0; r < Q; r++) f(r, c + i * W, sums[i][r]);
    });
  }

  void forward(int64_t shared) {
    take(call.heads, call.all(), call.queries + shared, true, left);
    to_across(left.data(), l, d, key_across.data());
    take(call.heads, call.all(), call.queries + call.keys + shared, false, left);
    to_right(numbers.data(), d, 0, l, d, value_right.data());
    for (int64_t head = shared * group; head < (shared + 1) * group; head++) {
      take(call.heads, call.all(), head, true, query);
      for (int64_t first = begin / Q * Q; first < length; first += Q) attend(head, first);
    }
  }

  // What Q queries find.
  void attend(int64_t head, int64_t first) {
    const int64_t columns = std::min(filled(first + Q), l);
    float inverses[Q];
    scores_of(query, first, key_across, columns, scale, scores.data());
    for (int64_t r = 0; r < Q; r++) {
      const float peak = peak_of(&scores[r * l], columns, first + r);
      const float total = powers(&scores[r * l], columns, first + r, peak);
      to_left(&scores[r * l], columns, &few[r * l]);
      inverses[r] = 1 / total;
      if (own(first + r)) softmax_of(first + r, head)[0] = peak, softmax_of(first + r, head)[1] = inverses[r];
    }
    few_times(value_right, columns, [&](int64_t r, int64_t c, Vector sums) {
      if (own(first + r))
        narrow(sums * inverses[r], (T*)call.out + (tokens[first + r] * call.queries + head) * d + c);
    });
  }

  void backward(int64_t number, int64_t shared) {
    take(call.heads, call.all(), call.queries + shared, true, left);
    to_across(left.data(), l, d, key_across.data());
    to_right(numbers.data(), d, 0, l, d, key_right.data());
    take(call.heads, call.all(), call.queries + call.keys + shared, false, left);
    to_across(left.data(), l, d, value_across.data());
    std::fill(key_sums.begin(), key_sums.end(), 0.0f);
    std::fill(value_sums.begin(), value_sums.end(), 0.0f);
    for (int64_t head = shared * group; head < (shared + 1) * group; head++) {
      take(call.heads, call.all(), head, true, query);
      to_right(numbers.data(), d, 0, l, d, query_right.data());
      take(call.grad, call.queries, head, false, grad);
      to_right(numbers.data(), d, 0, l, d, grad_right.data());
      for (int64_t first = begin / Q * Q; first < length; first += Q) attend_backward(head, first);
      for (int64_t first = 0; first < length; first += Q) {
        add_products(weights, first, grad_right, value_sums);
        add_products(scores_grad, first, query_right, key_sums);
      }
    }
    for (int64_t i = 0; i < length; i++) {
      const int64_t place = own(i) ? tokens[i] : call.tokens + call.repeated[number] + i;
      rotate(call, tokens[i], -1, &key_sums[i * d]);
      std::copy_n(&key_sums[i * d], d, call.key_grad + (place * call.keys + shared) * d);
      std::copy_n(&value_sums[i * d], d, call.value_grad + (place * call.keys + shared) * d);
    }
  }

  // Gradients of Q queries, of their weights and of their scores.
  void attend_backward(int64_t head, int64_t first) {
    const int64_t columns = std::min(filled(first + Q), l);
    scores_of(query, first, key_across, columns, scale, scores.data());
    scores_of(grad, first, value_across, columns, 1, slopes.data());
    for (int64_t r = 0; r < Q; r++) {
      float *p = &scores[r * l], *g = &slopes[r * l];
      float inverse = 0;
      if (own(first + r)) {  // if it is another row's, that row has its gradient
        powers(p, columns, first + r, softmax_of(first + r, head)[0]);
        inverse = softmax_of(first + r, head)[1];
      }
      Vector along = {};
      for (int64_t c = 0; c < columns; c += W) {
        *(Vector*)(p + c) = inverse ? vector_of(p + c) * inverse : Vector{};
        along += vector_of(p + c) * vector_of(g + c);
      }
      const float mean = sum(along);
      for (int64_t c = 0; c < columns; c += W) *(Vector*)(g + c) = vector_of(p + c) * (vector_of(g + c) - mean) * scale;
      to_left(g, columns, &few[r * l]);
    }
    to_right(scores.data(), l, first, Q, columns, weights.data());
    to_right(slopes.data(), l, first, Q, columns, scores_grad.data());
    few_times(key_right, columns, [&](int64_t r, int64_t c, Vector sums) { *(Vector*)&numbers[r * d + c] = sums; });
    for (int64_t r = 0; r < Q; r++)
      if (own(first + r)) {
        rotate(call, tokens[first + r], -1, &numbers[r * d]);
        to_left(&numbers[r * d], d, (T*)call.heads_grad + (tokens[first + r] * call.all() + head) * d);
      }
  }

  // Add products of Q columns of a square, from `first`, and (l, d): the queries that see these keys.
  void add_products(const std::vector<T>& square, int64_t first, const std::vector<T>& x, std::vector<float>& onto) {
    const int64_t from = std::max(first, begin / Q * Q), end = (length + Q - 1) / Q * Q;
    by_vectors(d, [&](auto v, int64_t c) {
      Vector sums[v][Q] = {};
      multiply(&square[from * l + first * PAIRED<T>], PAIRED<T>, l * PAIRED<T>, end - from,
               &x[from * d + c * PAIRED<T>], d, sums);
      for (int i = 0; i < v; i++)
        for (int r = 0; r < Q; r++) *(Vector*)&onto[(first + r) * d + c + i * W] += sums[i][r];
    });
  }
};

// Gradients of keys and values: summed over all places of a token, and rounded once.
template <class T>
static void gather(const Call& call) {
  const int64_t wide = call.keys * call.size, all = call.all() * call.size;
#pragma omp for
  for (int64_t c = 0; c < wide; c += W)
    for (int64_t i = 0; i < call.repeats; i++)
      for (float* grad : {call.key_grad + c, call.value_grad + c})
        *(Vector*)(grad + call.places[i] * wide) += vector_of(grad + (call.tokens + i) * wide);
#pragma omp for
  for (int64_t token = 0; token < call.tokens; token++) {
    T* out = (T*)call.heads_grad + (token + 1) * all - 2 * wide;
    to_left(call.key_grad + token * wide, wide, out);
    to_left(call.value_grad + token * wide, wide, out + wide);
  }
}

template <class T>
static void run(const Call& call, bool backward, int threads) {
#pragma omp parallel num_threads(threads)
  {
    Worker<T> worker(call, backward);
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t row = 0; row < call.rows; row++)
      for (int64_t shared = 0; shared < call.keys; shared++) {
        worker.begin_row(row);
        if (backward)
          worker.backward(row, shared);
        else
          worker.forward(shared);
      }
    if (backward) gather<T>(call);
  }
}

extern "C" void attention(const Call* call, bool rounded, bool backward, int threads) {
  in_precision(rounded, [&]<class T>(T) { run<T>(*call, backward, threads); });
}
