// The two halves of a Llama block, forward and backward; see native_blocks.py, whose names these are.
//
// Tokens are cut into chunks. A chunk is taken through all products of a half by one thread, and threads wait for each
// other twice: before the chunks, until the weights are laid out as right factors, and in a backward pass behind them,
// because gradients of weights are sums over all tokens. T is the precision of the factors, S that of the weights; sums
// are float32. Results do not depend on the number of threads.
#include "formulas.h"
#include "products.h"

struct Call {
  int64_t n, chunk, size, heads, keys, wide;  // tokens, of a chunk; D, H d, K d, I
  float epsilon;
  const void *query, *key, *value, *output, *gate, *up, *down;  // (H d, D), (K d, D) twice, (D, H d), (I, D) twice, (D, I)
  const float *norm, *x;                                        // (D,), (n, D)
  const void* attended;                                         // (n, H d)
  void* space;                                                  // for the right factors
  // Results of the forward passes; `normed` may be null, and `both` if `normed` is.
  float *middle, *inverse;  // (n, D), (n,)
  void *normed, *both;      // (n, D), (n, 2 I)
  void* products;           // (n, (H + 2 K) d)
  float* out;               // (n, D)
  // The gradient of `products`, or that of `out` in float32; results of the backward passes, of which the last are null
  // if gradients of weights are not wanted.
  const void* grad;
  float *x_grad, *norm_grad;                   // (n, D), (chunks, D)
  void* attended_grad;                         // (n, H d)
  float* heads_grad;                           // ((H + 2 K) d, D)
  float *output_grad, *both_grad, *down_grad;  // (D, H d), (2 I, D), (D, I)
};

struct Weight {
  const void* data;
  int64_t rows;
};

// Rows x (n, columns) in the precision of the factors, filled up to R with zeros.
template <class S, class T>
static const T* filled_up(const S* x, int64_t n, int64_t columns, T* out) {
  to_left(x, n * columns, out);
  std::fill_n(out + n * columns, (by_rows(n) - n) * columns, T{});
  return out;
}

// What a thread needs to take chunks of tokens through a half of a block.
template <class S, class T>
struct Half {
  const Call& call;
  const int64_t D = call.size, H = call.heads, K = call.keys, I = call.wide, all = H + 2 * K, depth = by_rows(call.n);
  int64_t first = 0, n = 0;  // of the chunk
  Buffer<T> left, both;
  Buffer<float> numbers;

  explicit Half(const Call& call)
      : call(call), left(call.chunk * std::max({D, I, all})), both(call.chunk * 2 * I), numbers(call.chunk * D) {}

  template <class X>
  X* of_chunk(X* x, int64_t columns) const {
    return x + first * columns;
  }

  // Lay weights (rows, size), one below the other, out as a right factor: W', or W.
  void lay_out(std::initializer_list<Weight> weights, int64_t size, bool transposed, const Strips<T>& out) const {
    int64_t before = 0;
    for (const Weight& weight : weights) {
#pragma omp for schedule(static) nowait
      for (int64_t row = 0; row < weight.rows; row += W) {
        const S* from = (const S*)weight.data + row * size;
        transposed ? to_columns(from, before + row, out) : to_strips(from, W, before + row, out);
      }
      before += weight.rows;
    }
  }

  template <class Function>
  void each_chunk(Function f) {
#pragma omp barrier
#pragma omp for schedule(dynamic)
    for (int64_t start = 0; start < call.n; start += call.chunk) {
      first = start, n = std::min(call.chunk, call.n - start);
      f();
    }
  }

  // The chunk's norms, to the left of a product.
  const T* norm(const float* x) {
    for (int64_t r = 0; r < n; r++)
      call.inverse[first + r] = norm_row(x + r * D, call.norm, call.epsilon, D, left.data + r * D);
    std::fill_n(left.data + n * D, (by_rows(n) - n) * D, T{});
    if (call.normed) std::copy_n(left.data, n * D, of_chunk((T*)call.normed, D));
    return left.data;
  }

  // Gradients of x (n, D), from those of its norms in `numbers`.
  void norm_backward(const float* x, const float* straight) {
    float *sums = call.norm_grad + first / call.chunk * D, *x_grad = of_chunk(call.x_grad, D);
    std::fill_n(sums, D, 0.0f);
    for (int64_t r = 0; r < n; r++)
      norm_row_backward(numbers.data + r * D, x + r * D, call.inverse[first + r], call.norm,
                        straight ? straight + r * D : nullptr, x_grad + r * D, sums, D);
  }

  // Rows of the chunk as rows of a right factor.
  template <class X>
  const T* keep(const X* x, int64_t columns, const Strips<T>& out) {
    filled_up(of_chunk(x, columns), n, columns, left.data);
    to_strips(left.data, by_rows(n), first, out);
    return left.data;
  }

  void to_numbers(const T* grad, const Strips<T>& weight) {
    times(grad, n, weight, [&](int64_t row, int64_t c, const Vector(&sums)[R]) {
      for (int64_t r = 0; r < R; r++) *(Vector*)(numbers.data + (row + r) * D + c) = sums[r];
    });
  }

  void to_memory(const T* factor, const Strips<T>& weight, T* out) {
    times_by_row(factor, n, weight,
                 [&](int64_t row, int64_t c, Vector sums) { narrow(sums, out + row * weight.columns + c); });
  }

  void add_to(const float* x, const T* factor, const Strips<T>& weight, float* out) {
    times_by_row(factor, n, weight, [&](int64_t row, int64_t c, Vector sums) {
      *(Vector*)(out + row * D + c) = vector_of(x + row * D + c) + sums;
    });
  }

  // From gradients of silu(gate) * up, (n, D) times `weight`: those of gate and up, which are returned and kept.
  const T* gates_backward(const T* grad, const Strips<T>& weight, const Strips<T>& kept, const Strips<T>& gated) {
    const T* known = of_chunk((const T*)call.both, 2 * I);
    times(grad, n, weight, [&](int64_t row, int64_t c, const Vector(&sums)[R]) {
      GateGradient of[R] = {};
      for (int64_t r = 0; r < R; r++) {
        const int64_t at = (row + r) * 2 * I + c;
        if (row + r < n) of[r] = gated_backward_of(sums[r], vector_of(known + at), vector_of(known + at + I));
        narrow(of[r].gate, both.data + at);
        narrow(of[r].up, both.data + at + I);
      }
      for (int64_t r = 0; r < R; r += 2) {
        const int64_t at = first + row + r;
        kept.store(at, c, of[r].gate, of[r + 1].gate);
        kept.store(at, I + c, of[r].up, of[r + 1].up);
        gated.store(at, c, of[r].gated, of[r + 1].gated);
      }
    });
    return both.data;
  }

  static void gradient_of(const Strips<T>& left, const Strips<T>& right, float* out) {
#pragma omp for schedule(dynamic) nowait
    for (int64_t c = 0; c < left.columns; c += STRIP) gradient(left, right, c, out);
  }

  void project() {
    Space<T> space{(T*)call.space};
    const auto weight = space.strips(D, all);
    lay_out({{call.query, H}, {call.key, K}, {call.value, K}}, D, true, weight);
    each_chunk([&] { to_memory(norm(of_chunk(call.x, D)), weight, of_chunk((T*)call.products, all)); });
  }

  void project_backward() {
    Space<T> space{(T*)call.space};
    const auto weight = space.strips(all, D), grads = space.strips(depth, all), normed = space.strips(depth, D);
    lay_out({{call.query, H}, {call.key, K}, {call.value, K}}, D, false, weight);
    each_chunk([&] {
      keep((const T*)call.normed, D, normed);
      to_numbers(keep((const T*)call.grad, all, grads), weight);
      norm_backward(of_chunk(call.x, D), nullptr);
    });
    if (call.heads_grad) gradient_of(grads, normed, call.heads_grad);
  }

  void finish() {
    Space<T> space{(T*)call.space};
    const auto output = space.strips(H, D), gates = space.strips(D, 2 * I), down = space.strips(I, D);
    lay_out({{call.output, D}}, H, true, output);
    lay_out({{call.gate, I}, {call.up, I}}, D, true, gates);
    lay_out({{call.down, D}}, I, true, down);
    each_chunk([&] {
      float* middle = of_chunk(call.middle, D);
      T* pairs = call.both ? of_chunk((T*)call.both, 2 * I) : both.data;
      add_to(of_chunk(call.x, D), filled_up(of_chunk((const T*)call.attended, H), n, H, left.data), output, middle);
      to_memory(norm(middle), gates, pairs);
      for (int64_t r = 0; r < n; r++)
        for (int64_t i = 0; i < I; i += W) {
          const T* gate = pairs + r * 2 * I + i;
          narrow(gated_of(vector_of(gate), vector_of(gate + I)), left.data + r * I + i);
        }
      std::fill_n(left.data + n * I, (by_rows(n) - n) * I, T{});
      add_to(middle, left.data, down, of_chunk(call.out, D));
    });
  }

  void finish_backward() {
    Space<T> space{(T*)call.space};
    const auto output = space.strips(D, H), gates = space.strips(2 * I, D), down = space.strips(D, I);
    const auto attended = space.strips(depth, H), middle_grad = space.strips(depth, D), normed = space.strips(depth, D),
               both_grad = space.strips(depth, 2 * I), gated = space.strips(depth, I), grad = space.strips(depth, D);
    lay_out({{call.output, D}}, H, false, output);
    lay_out({{call.gate, I}, {call.up, I}}, D, false, gates);
    lay_out({{call.down, D}}, I, false, down);
    each_chunk([&] {
      keep((const T*)call.attended, H, attended);
      keep((const T*)call.normed, D, normed);
      to_numbers(gates_backward(keep((const float*)call.grad, D, grad), down, both_grad, gated), gates);
      norm_backward(of_chunk(call.middle, D), of_chunk((const float*)call.grad, D));
      to_memory(keep((const float*)call.x_grad, D, middle_grad), output, of_chunk((T*)call.attended_grad, H));
    });
    if (!call.output_grad) return;
    gradient_of(both_grad, normed, call.both_grad);
    gradient_of(grad, gated, call.down_grad);
    gradient_of(middle_grad, attended, call.output_grad);
  }
};

template <class Method>
static void run(const Call* call, bool rounded, bool rounded_weights, int threads, Method method) {
  in_precision(rounded, [&]<class T>(T) {
    in_precision(rounded_weights, [&]<class S>(S) {
#pragma omp parallel num_threads(threads)
      {
        Half<S, T> half(*call);
        method(half);
      }
    });
  });
}

extern "C" {

void project(const Call* call, bool rounded, bool rounded_weights, int threads) {
  run(call, rounded, rounded_weights, threads, [](auto& half) { half.project(); });
}

void project_backward(const Call* call, bool rounded, bool rounded_weights, int threads) {
  run(call, rounded, rounded_weights, threads, [](auto& half) { half.project_backward(); });
}

void finish(const Call* call, bool rounded, bool rounded_weights, int threads) {
  run(call, rounded, rounded_weights, threads, [](auto& half) { half.finish(); });
}

void finish_backward(const Call* call, bool rounded, bool rounded_weights, int threads) {
  run(call, rounded, rounded_weights, threads, [](auto& half) { half.finish_backward(); });
}
}
