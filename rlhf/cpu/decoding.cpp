// One new token in each of n rows: what a Llama's blocks do with it, and products with few columns; see decoding.py.
//
// Tokens are columns, W to a vector. Weights are read once, in the order in which they lie, as float32 or as
// bfloat16; sums are float32. What a column becomes does not depend on the others.
#include <iterator>

#include "vectors.h"

// Part of `product`: `rows` rows of w from r on.
template <int rows, class T, class Finish>
static inline void rows_product(const T* w, int64_t r, int64_t k, const T* x, int64_t n, Finish finish) {
  by_vectors(n, [&](auto v, int64_t c) {
    Vector sums[v][rows] = {};
    multiply<true>(w + r * k, k, PAIRED<T>, k, x + c * PAIRED<T>, n, sums);
    finish(v, r, c, sums);
  });
}

// Products of w (m, k), m even, and x (k, n), n of W: `finish` gets some rows of v vectors of columns at a time.
template <class T, class Finish>
static inline void product(const T* w, int64_t m, int64_t k, const T* x, int64_t n, Finish finish) {
#pragma omp for schedule(dynamic, 8)
  for (int64_t r = 0; r < m; r += R) {
    if (r + R <= m)
      rows_product<R>(w, r, k, x, n, finish);
    else
      for (int64_t rest = r; rest < m; rest += 2) rows_product<2>(w, rest, k, x, n, finish);
  }
}

struct Block {
  const void *qkv, *output, *gate, *up, *down;  // queries, keys and values are one matrix
  const float *bias, *norm, *second_norm;       // bias of that matrix, or null
  void *keys, *values;                          // (rows of the cache, K, columns, d)
  float epsilon, second_epsilon;
};

struct Step {
  int64_t rows, n, hidden, heads, shared, size, inner, columns;  // n: rows, filled up to sixteens; shared: K
  const int64_t* lengths;                                        // (rows,) where in its row each token stands
  const float *cos, *sin;                                        // (rows, d / 2)
  float *x, *projected, *scores;  // (D, n), (n, (H + 2 K) d), (rows, H, columns filled up to sixteens)
  void *normed, *attended, *gated;  // right factors, (D, n), (H d, n), (I, n)
};

template <class T>
static void rms_norm(const Step& s, const float* weight, float epsilon) {
#pragma omp for schedule(dynamic)
  for (int64_t c = 0; c < s.n; c += W) {
    Vector squares = {};
    for (int64_t i = 0; i < s.hidden; i++) {
      const Vector x = *(Vector*)(s.x + i * s.n + c);
      squares += x * x;
    }
    Vector inverse = squares / float(s.hidden) + epsilon;
    for (int j = 0; j < W; j++) inverse[j] = 1 / std::sqrt(inverse[j]);
    for (int64_t i = 0; i < s.hidden; i += 2) {
      const Vector even = *(Vector*)(s.x + i * s.n + c) * inverse * weight[i];
      const Vector odd = *(Vector*)(s.x + (i + 1) * s.n + c) * inverse * weight[i + 1];
      store_pair((T*)s.normed, i, c, s.n, even, odd);
    }
  }
}

static void rotate(float* head, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; i++) {
    const float first = head[i], second = head[half + i];
    head[i] = first * cos[i] - second * sin[i];
    head[half + i] = second * cos[i] + first * sin[i];
  }
}

// One query's attention to `count` keys and values, (count, d); `weights` has room for count, filled up to sixteens.
template <class T>
static void attend(const float* query, const T* keys, const T* values, int64_t count, int64_t size, float* weights,
                   float* out) {
  const float scale = 1 / std::sqrt(float(size));
  float peak = -INFINITY;
  for (int64_t t = 0; t < count; t += W) {
    Vector products[W] = {};
    for (int64_t j = 0; j < std::min<int64_t>(W, count - t); j++)
      for (int64_t i = 0; i < size; i += W)
        products[j] += vector_of(query + i) * vector_of(keys + (t + j) * size + i);
    *(Vector*)(weights + t) = sums_of(products) * scale;
    for (int64_t j = count; j < t + W; j++) weights[j] = -INFINITY;
    peak = std::max(peak, largest(vector_of(weights + t)));
  }
  Vector totals = {};
  for (int64_t t = 0; t < count; t += W) totals += *(Vector*)(weights + t) = exponential(vector_of(weights + t) - peak);
  const float total = sum(totals);
  by_vectors(size, [&](auto v, int64_t i) {
    Vector means[v] = {};
    for (int64_t t = 0; t < count; t++)
      for (int u = 0; u < v; u++) means[u] += weights[t] * vector_of(values + t * size + i + u * W);
    for (int u = 0; u < v; u++) *(Vector*)(out + i + u * W) = means[u] / total;
  });
}

// Attention of the newest tokens to their rows, whose keys and values they join.
template <class T>
static void attention(const Step& s, const Block& b) {
  const int64_t group = s.heads / s.shared, half = s.size / 2;
#pragma omp for collapse(2) schedule(dynamic, 4)
  for (int64_t row = 0; row < s.rows; row++)
    for (int64_t shared = 0; shared < s.shared; shared++) {
      float* heads = s.projected + row * (s.heads + 2 * s.shared) * s.size;
      float *key = heads + (s.heads + shared) * s.size, *value = key + s.shared * s.size;
      const float *cos = s.cos + row * half, *sin = s.sin + row * half;
      T* keys = (T*)b.keys + (row * s.shared + shared) * s.columns * s.size;
      T* values = (T*)b.values + (row * s.shared + shared) * s.columns * s.size;
      const int64_t newest = s.lengths[row];
      rotate(key, cos, sin, half);
      for (int64_t i = 0; i < s.size; i++) {
        narrow(key[i], keys + newest * s.size + i);
        narrow(value[i], values + newest * s.size + i);
      }
      for (int64_t head = shared * group; head < (shared + 1) * group; head++) {
        float *query = heads + head * s.size, *weights = s.scores + (row * s.heads + head) * filled(s.columns);
        rotate(query, cos, sin, half);
        attend(query, keys, values, newest + 1, s.size, weights, query);
        T* out = (T*)s.attended;
        for (int64_t i = 0; i < s.size; i++) narrow(query[i], out + place(out, head * s.size + i, row, s.n));
      }
    }
}

template <class T>
static void block(const Step& s, const Block& b) {
  const int64_t width = s.heads * s.size, all = width + 2 * s.shared * s.size;
  const auto onto_x = [&](auto v, int64_t r, int64_t c, auto& sums) {
    for (size_t i = 0; i < std::size(sums[0]); i++)
      for (int u = 0; u < v; u++) *(Vector*)(s.x + (r + i) * s.n + c + u * W) += sums[u][i];
  };
  rms_norm<T>(s, b.norm, b.epsilon);
  product((const T*)b.qkv, all, s.hidden, (const T*)s.normed, s.n, [&](auto v, int64_t r, int64_t c, auto& sums) {
    for (size_t i = 0; i < std::size(sums[0]); i++)
      for (int j = 0; j < v * W; j++)
        s.projected[(c + j) * all + r + i] = sums[j / W][i][j % W] + (b.bias ? b.bias[r + i] : 0);
  });
  attention<T>(s, b);
  product((const T*)b.output, s.hidden, width, (const T*)s.attended, s.n, onto_x);
  rms_norm<T>(s, b.second_norm, b.second_epsilon);
  product((const T*)b.gate, s.inner, s.hidden, (const T*)s.normed, s.n, [&](auto v, int64_t r, int64_t c, auto& gates) {
    constexpr size_t rows = std::extent_v<std::remove_reference_t<decltype(gates)>, 1>;
    Vector ups[v][rows] = {};
    multiply<true>((const T*)b.up + r * s.hidden, s.hidden, PAIRED<T>, s.hidden, (const T*)s.normed + c * PAIRED<T>,
                   s.n, ups);
    for (int u = 0; u < v; u++) {
      for (size_t i = 0; i < rows; i++) gates[u][i] *= ups[u][i] / (1.0f + exponential(-gates[u][i]));
      for (size_t i = 0; i < rows; i += 2) store_pair((T*)s.gated, r + i, c + u * W, s.n, gates[u][i], gates[u][i + 1]);
    }
  });
  product((const T*)b.down, s.hidden, s.inner, (const T*)s.gated, s.n, onto_x);
}

template <class T>
static void run(const Step& s, const Block* blocks, int64_t count, int threads) {
#pragma omp parallel num_threads(threads)
  for (int64_t number = 0; number < count; number++) block<T>(s, blocks[number]);
}

extern "C" {

void decode(const Step* s, const Block* blocks, int64_t count, bool rounded, int threads) {
  in_precision(rounded, [&]<class T>(T) { run<T>(*s, blocks, count, threads); });
}

// w (m, k), x (k, n), n a multiple of 16; out (n, m).
void product_float32(const float* w, const float* x, float* out, int64_t m, int64_t k, int64_t n, int threads) {
#pragma omp parallel num_threads(threads)
  product(w, m, k, x, n, [&](auto v, int64_t r, int64_t c, auto& sums) {
    for (int j = 0; j < v * W; j++)
      for (size_t i = 0; i < std::size(sums[0]); i++) out[(c + j) * m + r + i] = sums[j / W][i][j % W];
  });
}
}
