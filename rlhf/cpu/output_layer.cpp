// Softmax over a tile of the vocabulary in two passes, and products whose factors are rounded; see output_layer.py.
//
// Sums are float32. Tokens of the vocabulary are cut into chunks, and sums over them are given chunk by chunk, so that
// they do not depend on the number of threads.
#include "products.h"

// Of logits (v, n), chunk by chunk of tokens of the vocabulary: the peaks of what is divided by the temperature.
static void peaks_of(const float* logits, float inverse, float* out, int64_t v, int64_t n, int64_t chunk, int threads) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t first = 0; first < v; first += chunk) {
    float* peak = out + first / chunk * n;
    std::fill(peak, peak + n, -INFINITY);
    for (int64_t row = first; row < std::min(first + chunk, v); row++)
      for (int64_t i = 0; i < n; i++) peak[i] = std::max(peak[i], logits[row * n + i] * inverse);
  }
}

// exp(logits / temperature - peak), (v, n), kept if there is a place for it, and its sums chunk by chunk.
template <class T>
static void powers_of(const float* logits, float inverse, const float* peak, float* sums, T* kept, int64_t v, int64_t n,
                   int64_t chunk, int threads) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t first = 0; first < v; first += chunk) {
    float* total = sums + first / chunk * n;
    std::fill(total, total + n, 0.0f);
    for (int64_t row = first; row < std::min(first + chunk, v); row++)
      for (int64_t i = 0; i < n; i += W) {
        const Vector power = exponential(vector_of(logits + row * n + i) * inverse - vector_of(peak + i));
        *(Vector*)(total + i) += power;
        if (kept) narrow(power, kept + row * n + i);
      }
  }
}

// Products (v, n) of w (v, k) and x (n, k), n and k of W, both rounded to bfloat16.
template <class T>
static void product_of(const T* w, const float* x, float* out, int64_t v, int64_t n, int64_t k, int threads) {
  static thread_local Scratch shared, own;
  const Right<bfloat16> right{(bfloat16*)shared.of(n * k * sizeof(bfloat16)), k, n};
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic)
    for (int64_t row = 0; row < n; row += W) to_columns(x + row * k, row, right);
    bfloat16* left = (bfloat16*)own.of(R * k * sizeof(bfloat16));
#pragma omp for schedule(dynamic, 8)
    for (int64_t first = 0; first < v; first += R) {
      const int64_t count = std::min<int64_t>(R, v - first);
      to_left(w + first * k, count * k, left);
      times_by_row<bfloat16>(count, {{left, k, right}}, [&](int64_t r, int64_t c, Vector sums) {
        *(Vector*)(out + (first + r) * n + c) = sums;
      });
    }
  }
}

extern "C" {

void peaks(const float* logits, float inverse, float* out, int64_t v, int64_t n, int64_t chunk, int threads) {
  peaks_of(logits, inverse, out, v, n, chunk, threads);
}

void powers(bool rounded, const float* logits, float inverse, const float* peak, float* sums, void* kept, int64_t v,
            int64_t n, int64_t chunk, int threads) {
  in_precision(rounded, [&]<class T>(T) {
    powers_of(logits, inverse, peak, sums, (T*)kept, v, n, chunk, threads);
  });
}

void rounded_product(bool rounded, const void* w, const float* x, float* out, int64_t v, int64_t n, int64_t k,
                     int threads) {
  in_precision(rounded, [&]<class T>(T) { product_of((const T*)w, x, out, v, n, k, threads); });
}
}
