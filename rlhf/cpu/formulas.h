// What stands between a language model's matrix products, for a row or a vector.
#pragma once
#include "vectors.h"

// x (size,) / rms(x) * weight; returns 1 / rms(x).
template <class T>
static inline float norm_row(const float* x, const float* weight, float epsilon, int64_t size, T* normed) {
  Vector squares = {};
  for (int64_t i = 0; i < size; i += W) squares += vector_of(x + i) * vector_of(x + i);
  const float inverse = 1 / std::sqrt(sum(squares) / float(size) + epsilon);
  for (int64_t i = 0; i < size; i += W) narrow(vector_of(x + i) * inverse * vector_of(weight + i), normed + i);
  return inverse;
}

// Gradient of x, to which `straight` is added unless it is null; that of the weight is added to `weight_grad`.
template <class T>
static inline void norm_row_backward(const T* grad, const float* x, float inverse, const float* weight,
                                     const float* straight, float* x_grad, float* weight_grad, int64_t size) {
  Vector along = {};
  for (int64_t i = 0; i < size; i += W) {
    const Vector slope = vector_of(grad + i), unit = vector_of(x + i) * inverse;
    along += slope * vector_of(weight + i) * unit;
    *(Vector*)(weight_grad + i) += slope * unit;
  }
  const float mean = sum(along) / float(size);
  for (int64_t i = 0; i < size; i += W) {
    const Vector slope = vector_of(grad + i), unit = vector_of(x + i) * inverse;
    const Vector through = (slope * vector_of(weight + i) - unit * mean) * inverse;
    *(Vector*)(x_grad + i) = straight ? vector_of(straight + i) + through : through;
  }
}

// silu(gate) * up
static inline Vector gated_of(Vector gate, Vector up) { return gate / (1.0f + exponential(-gate)) * up; }

struct GateGradient {
  Vector gate, up, gated;  // gradients, and silu(gate) * up once more
};

static inline GateGradient gated_backward_of(Vector grad, Vector gate, Vector up) {
  const Vector sigmoid = 1.0f / (1.0f + exponential(-gate)), silu = gate * sigmoid;
  return {grad * up * (sigmoid + silu * (1.0f - sigmoid)), grad * silu, silu * up};
}
