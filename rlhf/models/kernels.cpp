// What stands between a language model's matrix products, in one pass each; the formulas are those of kernels.py.
//
// Sums are float32. T is the precision of the products, float32 or bfloat16. Rows of a matrix are cut into chunks, and
// sums over rows are given chunk by chunk, so that they do not depend on the number of threads.
#include <vector>

#include "vectors.h"

// x (n, D), then addend (n, D) or null, which is added to x in `total`; normed (n, D), inverse (n,).
template <class T>
static void norm(const float* x, const T* addend, const float* weight, float epsilon, float* total, T* normed,
                     float* inverse, int64_t n, int64_t size, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < n * size; row += size) {
    const float* of = addend ? total + row : x + row;
    Vector squares = {};
    for (int64_t i = 0; i < size; i += W) {
      Vector value = vector_of(x + row + i);
      if (addend) *(Vector*)(total + row + i) = value += vector_of(addend + row + i);
      squares += value * value;
    }
    const float factor = inverse[row / size] = 1 / std::sqrt(sum(squares) / float(size) + epsilon);
    for (int64_t i = 0; i < size; i += W) narrow(vector_of(of + i) * factor * vector_of(weight + i), normed + row + i);
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
      Vector along = {};
      for (int64_t i = 0; i < size; i += W) {
        const Vector slope = vector_of(grad + start + i), unit = vector_of(x + start + i) * inverse[row];
        along += slope * vector_of(weight + i) * unit;
        *(Vector*)(sums + i) += slope * unit;
      }
      const float mean = sum(along) / float(size);
      for (int64_t i = 0; i < size; i += W) {
        const Vector slope = vector_of(grad + start + i), unit = vector_of(x + start + i) * inverse[row];
        const Vector through = (slope * vector_of(weight + i) - unit * mean) * inverse[row];
        *(Vector*)(x_grad + start + i) = straight ? vector_of(straight + start + i) + through : through;
      }
    }
  }
}

// silu(gate) * up, (n, size), of gate and up side by side, (n, 2 size).
template <class T>
static void gate_of(const T* both, T* out, int64_t n, int64_t size, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < n; row++) {
    const T *gate = both + row * 2 * size, *up = gate + size;
    for (int64_t i = 0; i < size; i += W) {
      const Vector x = vector_of(gate + i);
      narrow(x / (1.0f + exponential(-x)) * vector_of(up + i), out + row * size + i);
    }
  }
}

template <class T>
static void gate_backward(const T* grad, const T* both, T* both_grad, T* out, int64_t n, int64_t size, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < n; row++) {
    const T *gate = both + row * 2 * size, *up = gate + size;
    T *gate_grad = both_grad + row * 2 * size, *up_grad = gate_grad + size;
    for (int64_t i = 0; i < size; i += W) {
      const Vector x = vector_of(gate + i), y = vector_of(up + i), slope = vector_of(grad + row * size + i);
      const Vector sigmoid = 1.0f / (1.0f + exponential(-x)), silu = x * sigmoid;
      narrow(slope * y * (sigmoid + silu * (1.0f - sigmoid)), gate_grad + i);
      narrow(slope * silu, up_grad + i);
      narrow(silu * y, out + row * size + i);
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

// Products (v, n) of w (v, k) and x (n, k), n of W, both rounded to bfloat16.
template <class T>
static void product_of(const T* w, const float* x, float* out, int64_t v, int64_t n, int64_t k, int threads) {
  std::vector<bfloat16> right(n * k);  // the columns that `by_vectors` takes together, and behind them the next ones
#pragma omp parallel num_threads(threads)
  {
#pragma omp for
    for (int64_t row = 0; row < n; row++) {
      const int64_t first = row / (V * W) * (V * W), columns = std::min(V * W, n - first);
      for (int64_t i = 0; i < k; i++)
        narrow(x[row * k + i], &right[first * k + place(right.data(), i, row - first, columns)]);
    }
    std::vector<bfloat16> left(R * k);
#pragma omp for
    for (int64_t first = 0; first < v; first += R) {
      const int64_t count = std::min<int64_t>(R, v - first);
      for (int64_t i = 0; i < count * k; i += W) narrow(vector_of(w + first * k + i), &left[i]);
      by_vectors(n, [&](auto u, int64_t c) {
        Vector sums[u][R] = {};
        multiply(left.data(), k, 2, k, &right[c * k], u * W, sums);
        for (int i = 0; i < u; i++)
          for (int64_t r = 0; r < count; r++) *(Vector*)(out + (first + r) * n + c + i * W) = sums[i][r];
      });
    }
  }
}

// Call f with a number of the precision.
template <class Function>
static void in_precision(bool rounded, Function f) {
  rounded ? f(bfloat16{}) : f(0.0f);
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
