// Vectors of float32 as wide as the processor's registers, and factors of matrix products in float32 or bfloat16.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
constexpr int W = 16;  // numbers in a register
#else
constexpr int W = 8;
#endif
// Rows of a left factor, and vectors of columns of a right one, that are multiplied at a time: sums stay in registers,
// of which AVX-512 has 32 and AVX2 has 16.
constexpr int R = W == 16 ? 8 : 6;
constexpr int64_t V = 2;

typedef float Vector __attribute__((vector_size(4 * W), aligned(4)));
typedef int32_t Whole __attribute__((vector_size(4 * W), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(2 * W), aligned(2)));
struct bfloat16 { uint16_t bits; };

// Call f with a number of the precision; bfloat16 is compiled only where its products are fast.
template <class Function>
static inline void in_precision([[maybe_unused]] bool rounded, Function f) {
#ifdef __AVX512BF16__
  if (rounded) return f(bfloat16{});
#endif
  f(0.0f);
}

// Whether products of bfloat16 are fast; each library that includes this says so to compiler.py.
extern "C" int multiplies_bfloat16() {
#ifdef __AVX512BF16__
  return 1;
#else
  return 0;
#endif
}

static inline float sum(Vector x) {
  for (int width = W / 2; width; width /= 2)
    for (int i = 0; i < width; i++) x[i] += x[i + width];
  return x[0];
}

// Numbers of two vectors in turn: those of their first halves, or of their second ones. Compilers make this one shuffle.
template <int half, int... i>
static inline Whole in_turn(Whole x, Whole y, std::integer_sequence<int, i...>) {
  return Whole{(i % 2 ? y : x)[i / 2 + half * W / 2]...};
}

template <int half>
static inline Whole in_turn(Whole x, Whole y) {
  return in_turn<half>(x, y, std::make_integer_sequence<int, W>());
}

// Of each of W vectors, its sum.
static inline Vector sums_of(Vector (&x)[W]) {
  for (int count = W / 2; count; count /= 2)
    for (int i = 0; i < count; i++) {
      const Whole one = (Whole)x[i], other = (Whole)x[i + count];
      x[i] = (Vector)in_turn<0>(one, other) + (Vector)in_turn<1>(one, other);
    }
  return x[0];
}

static inline float largest(Vector x) {
  for (int width = W / 2; width; width /= 2)
    for (int i = 0; i < width; i++) x[i] = std::max(x[i], x[i + width]);
  return x[0];
}

static inline int64_t filled(int64_t count) { return (count + W - 1) / W * W; }
static inline int64_t by_rows(int64_t count) { return (count + R - 1) / R * R; }

static inline Vector vector_of(const float* values) { return *(const Vector*)values; }
static inline Vector vector_of(const bfloat16* values) {
  return (Vector)(__builtin_convertvector(*(const Halves*)values, Whole) << 16);
}

static inline void narrow(float value, float* out) { *out = value; }
static inline void narrow(float value, bfloat16* out) {  // to the nearest, halves to even
  uint32_t bits;
  memcpy(&bits, &value, 4);
  out->bits = value != value ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

static inline void narrow(Vector values, float* out) { *(Vector*)out = values; }
static inline void narrow(Vector values, bfloat16* out) {
#ifdef __AVX512BF16__
  _mm256_storeu_si256((__m256i*)out, (__m256i)_mm512_cvtneps_pbh((__m512)values));
#else
  for (int j = 0; j < W; j++) narrow(values[j], out + j);
#endif
}

// Numbers, a multiple of W, in the precision of a left factor.
template <class S, class T>
static inline void to_left(const S* x, int64_t count, T* out) {
  for (int64_t i = 0; i < count; i += W) narrow(vector_of(x + i), out + i);
}

// exp(x) = 2^n exp(r), |r| <= ln 2 / 2, by Taylor's series, up to x = 88; 0 below -87; 2e-7 off.
static inline Vector exponential(Vector x) {
  const Vector low = Vector{} - 87.0f, high = Vector{} + 88.0f;
  const Whole lost = x < low;
  x = lost ? low : x > high ? high : x;
  const Vector shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to a whole number, kept in its low bits
  const Vector n = shifted - 12582912.0f;
  const Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vector sum = Vector{} + 1.0f / 5040;
  for (float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) sum = sum * r + factor;
  return lost ? Vector{} : (Vector)((Whole)sum + ((Whole)shifted << 23));
}

// The right factor of a product, (k, n): of float32, row by row; of bfloat16, two rows at a time, which lie in pairs.
template <class T>
constexpr int PAIRED = 4 / sizeof(T);  // rows that lie together

static inline int64_t place(const float*, int64_t k, int64_t c, int64_t n) { return k * n + c; }
static inline int64_t place(const bfloat16*, int64_t k, int64_t c, int64_t n) { return (k / 2 * n + c) * 2 + k % 2; }

static inline void store_pair(float* x, int64_t k, int64_t c, int64_t n, Vector even, Vector odd) {
  *(Vector*)(x + k * n + c) = even;
  *(Vector*)(x + (k + 1) * n + c) = odd;
}

// Call f(v, c) for all columns, c being the first of v vectors of them; v is a constant, V or 1.
template <class Function>
static inline void by_vectors(int64_t columns, Function f) {
  int64_t c = 0;
  for (; c + V * W <= columns; c += V * W) f(std::integral_constant<int64_t, V>(), c);
  for (; c < columns; c += W) f(std::integral_constant<int64_t, 1>(), c);
}

// Add the product of some rows of the left factor and v vectors of columns of the right one, x (k, n), which begins at the
// first of them. The left one's rows lie `row` apart, and what meets a row of the right one, or a pair of them, `step`
// apart. With `stream` the next rows are fetched in the meantime, from memory to the second cache: the first one is
// full.
template <bool stream = false, size_t v, size_t rows>
[[gnu::always_inline]] static inline void multiply(const float* w, int64_t row, int64_t step, int64_t k,
                                                   const float* x, int64_t n, Vector (&sums)[v][rows]) {
  for (int64_t i = 0; i < k; i++) {
    if (stream && i % 16 == 0)
      for (size_t r = 0; r < rows; r++) __builtin_prefetch(w + (r + rows) * row + i * step, 0, 2);
    Vector right[v];
    for (size_t u = 0; u < v; u++) right[u] = vector_of(x + i * n + u * W);
    for (size_t r = 0; r < rows; r++)
      for (size_t u = 0; u < v; u++) sums[u][r] += w[r * row + i * step] * right[u];
  }
}

static inline void store_pair(bfloat16* x, int64_t k, int64_t c, int64_t n, Vector even, Vector odd) {
#ifdef __AVX512BF16__
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
  const __m512i halves = _mm512_set_epi32(
      0x1f000f, 0x1e000e, 0x1d000d, 0x1c000c, 0x1b000b, 0x1a000a, 0x190009, 0x180008, 0x170007, 0x160006, 0x150005,
      0x140004, 0x130003, 0x120002, 0x110001, 0x100000);
  _mm512_storeu_si512(x + place(x, k, c, n), _mm512_permutexvar_epi16(halves, both));
#else
  for (int j = 0; j < W; j++) {
    narrow(even[j], x + place(x, k, c + j, n));
    narrow(odd[j], x + place(x, k + 1, c + j, n));
  }
#endif
}

// The sum and the products of pairs of bfloat16, which are the halves of 32 bits.
static inline Vector with_products(Vector sum, Whole one, Whole other) {
#ifdef __AVX512BF16__
  return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)one, (__m512bh)other);
#else
  const Whole upper = Whole{} + int32_t(0xffff0000);
  return sum + (Vector)(one << 16) * (Vector)(other << 16) + (Vector)(one & upper) * (Vector)(other & upper);
#endif
}

template <bool stream = false, size_t v, size_t rows>
[[gnu::always_inline]] static inline void multiply(const bfloat16* w, int64_t row, int64_t step, int64_t k,
                                                   const bfloat16* x, int64_t n, Vector (&sums)[v][rows]) {
  for (int64_t i = 0; i < k / 2; i++) {
    if (stream && i % 16 == 0)
      for (size_t r = 0; r < rows; r++) __builtin_prefetch(w + (r + rows) * row + i * step, 0, 2);
    Whole right[v];
    for (size_t u = 0; u < v; u++) right[u] = *(const Whole*)(x + 2 * (i * n + u * W));
    for (size_t r = 0; r < rows; r++) {
      int32_t pair;
      memcpy(&pair, w + r * row + i * step, 4);
      for (size_t u = 0; u < v; u++) sums[u][r] = with_products(sums[u][r], right[u], Whole{} + pair);
    }
  }
}
