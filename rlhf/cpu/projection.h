// A matrix with a bias and a LoRA adapter, and its weights laid out as factors of products; blocks.cpp takes tokens
// through them.
#pragma once
#include "products.h"

struct Projection {               // y = x W' + b + s (x A') B'
  const void* weight;             // W (out, in)
  const float *bias, *down, *up;  // b (out,), A (rank, in), B (out, rank); null where there is none
  int64_t out, rank;              // rank: 0 without an adapter
  float scale;                    // s
  void* narrow;                   // s x A', (n, rank); null where no backward pass needs it
  float *weight_grad, *down_grad, *up_grad;  // null where they are not wanted
};

// A projection whose weights are laid out as right factors: W', A', B' in a forward pass, W, A, B in a backward one.
// There, what its gradients are products of is kept, token by token.
template <class S, class T>
struct LaidOut {
  const Projection& of;
  Right<T> weight, down, up;
  Left<T> grad, narrow_grad;
  Right<T> narrow;

  static LaidOut forward(const Projection& of, int64_t in, Space& space) {
    LaidOut made{of};
    made.weight = space.factor<Right<T>, T>(in, of.out);
    made.down = space.factor<Right<T>, T>(in, of.rank);
    made.up = space.factor<Right<T>, T>(of.rank, of.out);
    return made;
  }

  static LaidOut backward(const Projection& of, int64_t in, int64_t depth, Space& space) {
    LaidOut made{of};
    made.weight = space.factor<Right<T>, T>(of.out, in);
    made.down = space.factor<Right<T>, T>(of.rank, in);
    made.up = space.factor<Right<T>, T>(of.out, of.rank);
    made.grad = space.factor<Left<T>, T>(made.learns() ? depth : 0, of.out);
    made.narrow_grad = space.factor<Left<T>, T>(depth, of.rank);
    made.narrow = space.factor<Right<T>, T>(depth, of.rank);
    return made;
  }

  bool learns() const { return of.weight_grad || of.up_grad; }       // of its result's gradient
  bool reads_input() const { return of.weight_grad || of.down_grad; }

  // All threads share the work.
  void lay_out(bool transposed) const {
    lay_out((const S*)of.weight, of.out, transposed, weight);
    lay_out(of.down, of.rank, transposed, down);
    lay_out(of.up, of.rank ? of.out : 0, transposed, up);
  }

  template <class X>
  static void lay_out(const X* from, int64_t rows, bool transposed, const Right<T>& to) {
    const int64_t size = transposed ? to.depth : to.columns;
#pragma omp for schedule(dynamic, 4) nowait
    for (int64_t row = 0; row < rows; row += W)
      transposed ? to_columns(from + row * size, row, to) : to_strips(from + row * size, size, W, row, to);
  }

  // The gradients of what is trained, of an input (n, in); all threads share the work.
  void learn(const Right<T>& input) const {
    product_of(grad, input, of.weight_grad);
    product_of(narrow_grad, input, of.down_grad);
    product_of(grad, narrow, of.up_grad);
  }

  static void product_of(const Left<T>& left, const Right<T>& right, float* out) {
    if (!out) return;
#pragma omp for schedule(dynamic) nowait
    for (int64_t c = 0; c < left.columns; c += left.width(0)) gradient(left, right, c, out);
  }
};
