// What stands between a language model's matrix products, in one pass each; the formulas are those of kernels.py.
//
// Sums are float32. T is the precision of the products, float32 or bfloat16. Rows of a matrix are cut into chunks, and
// sums over rows are given chunk by chunk, so that they do not depend on the number of threads.
#include "formulas.h"
#include "products.h"

// x (n, D), then addend (n, D) or null, which is added to x in `total`; normed (n, D), inverse (n,).
template <class T>
static void norm(const float* x, const T* addend, const float* weight, float epsilon, float* total, T* normed,
                 float* inverse, int64_t n, int64_t size, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < n; row++) {
    const int64_t start = row * size;
    for (int64_t i = start; addend && i < start + size; i += W)
      *(Vector*)(total + i) = vector_of(x + i) + vector_of(addend + i);
    inverse[row] = norm_row((addend ? total : x) + start, weight, epsilon, size, normed + start);
  }
}

// Gradients of x (n, D) and, for each chunk, of the weight (chunks, D); straight (n, D) or null.
template <class T>
static void norm_backward(const T* grad, const float* x, const float* inverse, const float* weight,
                          const float* straight, float* x_grad, float* weight_grad, int64_t n, int64_t size,
                          int64_t chunk, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t first = 0; first < n; first += chunk) {
    float* sums = weight_grad + first / chunk * size;
    std::fill(sums, sums + size, 0.0f);
    for (int64_t row = first; row < std::min(first + chunk, n); row++) {
      const int64_t start = row * size;
      norm_row_backward(grad + start, x + start, inverse[row], weight, straight ? straight + start : nullptr,
                        x_grad + start, sums, size);
    }
  }
}

// silu(gate) * up, (n, size), of gate and up side by side, (n, 2 size).
template <class T>
static void gate_of(const T* both, T* out, int64_t n, int64_t size, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < n; row++) {
    const T *gate = both + row * 2 * size, *up = gate + size;
    for (int64_t i = 0; i < size; i += W)
      narrow(gated_of(vector_of(gate + i), vector_of(up + i)), out + row * size + i);
  }
}

template <class T>
static void gate_backward(const T* grad, const T* both, T* both_grad, T* out, int64_t n, int64_t size, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < n; row++) {
    const T *gate = both + row * 2 * size, *up = gate + size;
    T *gate_grad = both_grad + row * 2 * size, *up_grad = gate_grad + size;
    for (int64_t i = 0; i < size; i += W) {
      const GateGradient of = gated_backward_of(vector_of(grad + row * size + i), vector_of(gate + i), vector_of(up + i));
      narrow(of.gate, gate_grad + i);
      narrow(of.up, up_grad + i);
      narrow(of.gated, out + row * size + i);
    }
  }
}

// Of logits (v, n), chunk by chunk of tokens of the vocabulary: the peaks of what is divided by the temperature.
static void peaks_of(const float* logits, float inverse, float* out, int64_t v, int64_t n, int64_t chunk, int threads) {
#pragma omp parallel for num_threads(threads)
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
#pragma omp parallel for num_threads(threads)
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
  const Buffer<bfloat16> space(n * k);
  const Strips<bfloat16> right{space.data, k, n};
#pragma omp parallel num_threads(threads)
  {
#pragma omp for
    for (int64_t row = 0; row < n; row += W) to_columns(x + row * k, row, right);
    const Buffer<bfloat16> left(R * k);
#pragma omp for
    for (int64_t first = 0; first < v; first += R) {
      const int64_t count = std::min<int64_t>(R, v - first);
      to_left(w + first * k, count * k, left.data);
      times_by_row(left.data, count, right,
                   [&](int64_t r, int64_t c, Vector sums) { *(Vector*)(out + (first + r) * n + c) = sums; });
    }
  }
}

extern "C" {

void rms_norm(bool rounded, const float* x, const void* addend, const float* weight, float epsilon, float* total,
              void* normed, float* inverse, int64_t n, int64_t size, int threads) {
  in_precision(rounded, [&]<class T>(T) {
    norm(x, (const T*)addend, weight, epsilon, total, (T*)normed, inverse, n, size, threads);
  });
}

void rms_norm_backward(bool rounded, const void* grad, const float* x, const float* inverse, const float* weight,
                       const float* straight, float* x_grad, float* weight_grad, int64_t n, int64_t size,
                       int64_t chunk, int threads) {
  in_precision(rounded, [&]<class T>(T) {
    norm_backward((const T*)grad, x, inverse, weight, straight, x_grad, weight_grad, n, size, chunk, threads);
  });
}

void gated(bool rounded, const void* both, void* out, int64_t n, int64_t size, int threads) {
  in_precision(rounded, [&]<class T>(T) { gate_of((const T*)both, (T*)out, n, size, threads); });
}

void gated_backward(bool rounded, const void* grad, const void* both, void* both_grad, void* out, int64_t n,
                    int64_t size, int threads) {
  in_precision(rounded, [&]<class T>(T) {
    gate_backward((const T*)grad, (const T*)both, (T*)both_grad, (T*)out, n, size, threads);
  });
}

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
