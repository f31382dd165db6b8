// One new token in each of n rows: what a Llama's blocks do with it, and products with few columns; see decoding.py.
//
// Tokens are columns, W to a vector. Weights are read once, in the order in which they lie, as float32 or as
// bfloat16; sums are float32. What a column becomes does not depend on the others.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
constexpr int W = 16;  // numbers in a register
#else
constexpr int W = 8;
#endif
constexpr int R = 8;  // rows of a matrix at a time: their sums stay in registers

typedef float Vector __attribute__((vector_size(4 * W), aligned(4)));
typedef int32_t Whole __attribute__((vector_size(4 * W), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(2 * W), aligned(2)));
struct bfloat16 { uint16_t bits; };

static inline void narrow(float value, float* out) { *out = value; }
static inline void narrow(float value, bfloat16* out) {  // to the nearest, halves to even
  uint32_t bits;
  memcpy(&bits, &value, 4);
  out->bits = value != value ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

// exp(x) = 2^n exp(r), |r| <= ln 2 / 2, by Taylor's series, for x from -87 to 88 and its ends beyond; 2e-7 off.
static inline Vector exponential(Vector x) {
  const Vector low = Vector{} - 87.0f, high = Vector{} + 88.0f;
  x = x < low ? low : x > high ? high : x;
  const Vector shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to a whole number, kept in its low bits
  const Vector n = shifted - 12582912.0f;
  const Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vector sum = Vector{} + 1.0f / 5040;
  for (float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) sum = sum * r + factor;
  return (Vector)((Whole)sum + ((Whole)shifted << 23));
}

// The right factor of a product, (k, n): of float32, row by row; of bfloat16, two rows at a time, which lie in pairs.
static inline int64_t place(const float*, int64_t k, int64_t c, int64_t n) { return k * n + c; }
static inline int64_t place(const bfloat16*, int64_t k, int64_t c, int64_t n) { return (k / 2 * n + c) * 2 + k % 2; }

static inline void store_pair(float* x, int64_t k, int64_t c, int64_t n, Vector even, Vector odd) {
  *(Vector*)(x + k * n + c) = even;
  *(Vector*)(x + (k + 1) * n + c) = odd;
}

static inline void multiply(const float* w, int64_t k, const float* x, int64_t c, int64_t n, Vector* sums) {
  for (int64_t i = 0; i < k; i++) {
    if (i % 16 == 0)
      for (int r = 0; r < R; r++) __builtin_prefetch(w + (r + R) * k + i);
    const Vector right = *(const Vector*)(x + i * n + c);
    for (int r = 0; r < R; r++) sums[r] += w[r * k + i] * right;
  }
}

#ifdef __AVX512BF16__
static inline void store_pair(bfloat16* x, int64_t k, int64_t c, int64_t n, Vector even, Vector odd) {
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
  const __m512i halves = _mm512_set_epi32(0x1f000f, 0x1e000e, 0x1d000d, 0x1c000c, 0x1b000b, 0x1a000a, 0x190009, 0x180008,
                                          0x170007, 0x160006, 0x150005, 0x140004, 0x130003, 0x120002, 0x110001, 0x100000);
  _mm512_storeu_si512(x + place(x, k, c, n), _mm512_permutexvar_epi16(halves, both));
}

static inline void multiply(const bfloat16* w, int64_t k, const bfloat16* x, int64_t c, int64_t n, Vector* sums) {
  for (int64_t i = 0; i < k; i += 2) {
    if (i % 32 == 0)
      for (int r = 0; r < R; r++) __builtin_prefetch(w + (r + R) * k + i);
    const __m512bh right = (__m512bh)_mm512_loadu_si512(x + place(x, i, c, n));
    for (int r = 0; r < R; r++) {
      int32_t pair;
      memcpy(&pair, w + r * k + i, 4);
      sums[r] = (Vector)_mm512_dpbf16_ps((__m512)sums[r], right, (__m512bh)_mm512_set1_epi32(pair));
    }
  }
}
#endif

// Products of w (m, k), m a multiple of R, and x (k, n), n of W: `finish` gets R rows of W columns at a time.
template <class T, class Finish>
static inline void product(const T* w, int64_t m, int64_t k, const T* x, int64_t n, Finish finish) {
#pragma omp for
  for (int64_t r = 0; r < m; r += R)
    for (int64_t c = 0; c < n; c += W) {
      Vector sums[R] = {};
      multiply(w + r * k, k, x, c, n, sums);
      finish(r, c, sums);
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
#pragma omp for
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

static inline Vector vector_of(const float* values) { return *(const Vector*)values; }
static inline Vector vector_of(const bfloat16* values) {
  return (Vector)(__builtin_convertvector(*(const Halves*)values, Whole) << 16);
}

static inline int64_t filled(int64_t count) { return (count + W - 1) / W * W; }

static inline float sum(Vector x) {
  for (int width = W / 2; width; width /= 2)
    for (int i = 0; i < width; i++) x[i] += x[i + width];
  return x[0];
}

// One query's attention to `count` keys and values, (count, d); `weights` has room for count, filled up to sixteens.
template <class T>
static void attend(const float* query, const T* keys, const T* values, int64_t count, int64_t size, float* weights,
                   float* out) {
  const float scale = 1 / std::sqrt(float(size));
  float peak = -INFINITY;
  for (int64_t t = 0; t < count; t++) {
    Vector products = {};
    for (int64_t i = 0; i < size; i += W) products += vector_of(query + i) * vector_of(keys + t * size + i);
    weights[t] = sum(products) * scale;
    peak = std::max(peak, weights[t]);
  }
  for (int64_t t = count; t < filled(count); t++) weights[t] = -INFINITY;  // exp makes it 2e-38
  Vector totals = {};
  for (int64_t t = 0; t < count; t += W) totals += *(Vector*)(weights + t) = exponential(vector_of(weights + t) - peak);
  const float total = sum(totals);
  for (int64_t i = 0; i < size; i += W) {
    Vector mean = {};
    for (int64_t t = 0; t < count; t++) mean += weights[t] * vector_of(values + t * size + i);
    *(Vector*)(out + i) = mean / total;
  }
}

// Attention of the newest tokens to their rows, whose keys and values they join.
template <class T>
static void attention(const Step& s, const Block& b) {
  const int64_t group = s.heads / s.shared, half = s.size / 2;
#pragma omp for collapse(2)
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
  const auto onto_x = [&](int64_t r, int64_t c, const Vector* sums) {
    for (int i = 0; i < R; i++) *(Vector*)(s.x + (r + i) * s.n + c) += sums[i];
  };
  rms_norm<T>(s, b.norm, b.epsilon);
  product((const T*)b.qkv, all, s.hidden, (const T*)s.normed, s.n, [&](int64_t r, int64_t c, const Vector* sums) {
    for (int i = 0; i < R; i++)
      for (int j = 0; j < W; j++) s.projected[(c + j) * all + r + i] = sums[i][j] + (b.bias ? b.bias[r + i] : 0);
  });
  attention<T>(s, b);
  product((const T*)b.output, s.hidden, width, (const T*)s.attended, s.n, onto_x);
  rms_norm<T>(s, b.second_norm, b.second_epsilon);
  product((const T*)b.gate, s.inner, s.hidden, (const T*)s.normed, s.n, [&](int64_t r, int64_t c, Vector* gates) {
    Vector ups[R] = {};
    multiply((const T*)b.up + r * s.hidden, s.hidden, (const T*)s.normed, c, s.n, ups);
    for (int i = 0; i < R; i++) gates[i] *= ups[i] / (1.0f + exponential(-gates[i]));
    for (int i = 0; i < R; i += 2) store_pair((T*)s.gated, r + i, c, s.n, gates[i], gates[i + 1]);
  });
  product((const T*)b.down, s.hidden, s.inner, (const T*)s.gated, s.n, onto_x);
}

template <class T>
static void run(const Step& s, const Block* blocks, int64_t count, int threads) {
#pragma omp parallel num_threads(threads)
  for (int64_t number = 0; number < count; number++) block<T>(s, blocks[number]);
}

extern "C" {

bool multiplies_bfloat16() {
#ifdef __AVX512BF16__
  return true;
#else
  return false;
#endif
}

void decode_float32(const Step* s, const Block* blocks, int64_t count, int threads) {
  run<float>(*s, blocks, count, threads);
}

void decode_bfloat16(const Step* s, const Block* blocks, int64_t count, int threads) {
#ifdef __AVX512BF16__
  run<bfloat16>(*s, blocks, count, threads);
#endif
}

// w (m, k), x (k, n), n a multiple of 16; out (n, m).
void product_float32(const float* w, const float* x, float* out, int64_t m, int64_t k, int64_t n, int threads) {
#pragma omp parallel num_threads(threads)
  product(w, m, k, x, n, [&](int64_t r, int64_t c, const Vector* sums) {
    for (int j = 0; j < W; j++)
      for (int i = 0; i < R; i++) out[(c + j) * m + r + i] = sums[i][j];
  });
}
}
