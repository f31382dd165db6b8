// The two halves of a Llama block, forward and backward, with LoRA adapters and biases; blocks.py calls them.
//
// Tokens are cut into chunks. A chunk is taken through all products of a half by one thread, and threads wait for each
// other twice: before the chunks, until the weights are laid out as factors, and in a backward pass behind them, because
// gradients of weights are sums over all tokens. Chunks are dealt out as threads get free, so that a thread whose core
// another program takes holds up one chunk. T is the precision of the factors, S that of the weights; sums are float32.
// Results do not depend on the number of threads.
#include "formulas.h"
#include "projection.h"

struct Call {
  int64_t n, chunk, size, heads, wide;  // tokens, of a chunk; D, H d, I
  float epsilon;
  const float *norm, *x;                // (D,), (n, D)
  const void* attended;                 // (n, H d)
  // Results of the forward passes; `normed` may be null, and `both` if `normed` is.
  float *middle, *inverse;  // (n, D), (n,)
  void *normed, *both;      // (n, D), (n, 2 I)
  void* products;           // (n, (H + 2 K) d)
  float* out;               // (n, D)
  // The gradient of `products`, or that of `out` in float32, and results of the backward passes.
  const void* grad;
  float *x_grad, *norm_grad;  // (n, D), (chunks, D)
  void* attended_grad;        // (n, H d)
  Projection parts[4];        // query, key, value; or output, gate, up, down
};

// What a thread needs to take chunks of tokens through a half of a block.
template <class S, class T>
struct Half {
  using Laid = LaidOut<S, T>;
  const Call& call;
  const int64_t D = call.size, H = call.heads, I = call.wide, depth = by_rows(call.n);
  int64_t first = 0, n = 0;  // of the chunk
  int64_t all = 0, ranks = 0;
  T *left, *both, *narrow;
  float* numbers;

  Half(const Call& call, Scratch& scratch) : call(call) {
    for (const Projection& part : call.parts) all += part.out, ranks = std::max(ranks, part.rank);
    Space space;
    for (int pass = 0; pass < 2; pass++) {
      left = space.piece<T>(call.chunk * std::max({D, H, I, all}));
      both = space.piece<T>(call.chunk * 2 * I);
      narrow = space.piece<T>(call.chunk * 4 * ranks);
      numbers = space.piece<float>(call.chunk * D);
      if (!pass) space = Space{(char*)scratch.of(space.used)};
    }
  }

  template <class X>
  X* of_chunk(X* x, int64_t columns) const {
    return x + first * columns;
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

  // Rows of the chunk in the precision of the factors, filled up to R with zeros.
  template <class X>
  const T* to_left_factor(const X* x, int64_t columns) {
    to_left(of_chunk(x, columns), n * columns, left);
    return filled_up(left, columns);
  }

  const T* filled_up(T* x, int64_t columns) const {
    std::fill_n(x + n * columns, (by_rows(n) - n) * columns, T{});
    return x;
  }

  // The chunk's norms, to the left of a product.
  const T* norm(const float* x) {
    for (int64_t r = 0; r < n; r++)
      call.inverse[first + r] = norm_row(x + r * D, call.norm, call.epsilon, D, left + r * D);
    if (call.normed) std::copy_n(left, n * D, of_chunk((T*)call.normed, D));
    return filled_up(left, D);
  }

  // Gradients of x (n, D), from those of its norms in `numbers`.
  void norm_backward(const float* x, const float* straight) {
    float *sums = call.norm_grad + first / call.chunk * D, *x_grad = of_chunk(call.x_grad, D);
    std::fill_n(sums, D, 0.0f);
    for (int64_t r = 0; r < n; r++)
      norm_row_backward(numbers + r * D, x + r * D, call.inverse[first + r], call.norm,
                        straight ? straight + r * D : nullptr, x_grad + r * D, sums, D);
  }

  // Scaled products with the narrow side of an adapter, (n, rank); there is room for `place` others before them.
  const T* narrowed(const T* x, int64_t row, const Right<T>& by, float scale, int place) {
    T* out = narrow + place * call.chunk * ranks;
    if (by.columns)
      times<T>(n, {{x, row, by}}, [&](int64_t r, int64_t c, const Vector(&sums)[R]) {
        for (int64_t i = 0; i < R; i++) narrow_to(sums[i] * scale, out + (r + i) * by.columns + c);
      });
    return out;
  }
  static void narrow_to(Vector x, T* out) { ::narrow(x, out); }

  // y = x W' + b + s (x A') B' of the chunk, x being a left factor: f(row, column, W numbers).
  template <class Function>
  void project(const Laid& by, const T* x, Function f) {
    const int64_t rank = by.of.rank;
    const T* low = narrowed(x, by.weight.depth, by.down, by.of.scale, 0);
    if (by.of.narrow) std::copy_n(low, n * rank, of_chunk((T*)by.of.narrow, rank));
    times_by_row<T>(n, {{x, by.weight.depth, by.weight}, {low, rank, by.up}}, [&](int64_t row, int64_t c, Vector sums) {
      f(row, c, by.of.bias ? sums + vector_of(by.of.bias + c) : sums);
    });
  }

  void project_to(const Laid& by, const T* x, T* out, int64_t columns) {
    project(by, x, [&](int64_t row, int64_t c, Vector y) { ::narrow(y, out + row * columns + c); });
  }

  void add_projected(const Laid& by, const T* x, const float* onto, float* out) {
    project(by, x, [&](int64_t row, int64_t c, Vector y) {
      *(Vector*)(out + row * D + c) = vector_of(onto + row * D + c) + y;
    });
  }

  // Gradients of x A' of a projection, from those of its result, (n, out), whose rows lie `row` apart; what the
  // gradients of weights need is kept.
  const T* narrow_backward(const Laid& by, const T* grad, int64_t row, int place) {
    const int64_t rank = by.of.rank;
    const T* low = narrowed(grad, row, by.up, by.of.scale, place);
    if (by.of.down_grad) to_strips(low, rank, by_rows(n), first, by.narrow_grad);
    if (by.of.up_grad) {
      T* known = narrow + 3 * call.chunk * ranks;
      std::copy_n(of_chunk((const T*)by.of.narrow, rank), n * rank, known);
      to_strips(filled_up(known, rank), rank, by_rows(n), first, by.narrow);
    }
    return low;
  }

  void keep_input(const void* x, const Right<T>& to) {
    if (to.depth) to_strips(to_left_factor((const T*)x, to.columns), to.columns, by_rows(n), first, to);
  }

  void keep_grad(const Laid& by, const T* grad, int64_t row) {
    if (by.learns()) to_strips(grad, row, by_rows(n), first, by.grad);
  }

  void to_numbers(int64_t row, int64_t c, const Vector (&sums)[R]) {
    for (int64_t r = 0; r < R; r++) *(Vector*)(numbers + (row + r) * D + c) = sums[r];
  }

  // From gradients of silu(gate) * up: those of gate and up, side by side, which are kept where they are needed.
  const T* gates_backward(const T* grad, const Laid& gate, const Laid& up, const Laid& down, const Right<T>& gated) {
    const T *known = of_chunk((const T*)call.both, 2 * I), *low = narrow_backward(down, grad, D, 0);
    times<T>(n, {{grad, D, down.weight}, {low, down.of.rank, down.down}},
             [&](int64_t row, int64_t c, const Vector(&sums)[R]) {
               GateGradient of[R] = {};
               for (int64_t r = 0; r < R; r++) {
                 const int64_t at = (row + r) * 2 * I + c;
                 if (row + r < n) of[r] = gated_backward_of(sums[r], vector_of(known + at), vector_of(known + at + I));
                 ::narrow(of[r].gate, both + at);
                 ::narrow(of[r].up, both + at + I);
               }
               for (int64_t r = 0; r < R; r += 2) {
                 const int64_t at = first + row + r;
                 if (gate.learns()) gate.grad.store(at, c, of[r].gate, of[r + 1].gate);
                 if (up.learns()) up.grad.store(at, c, of[r].up, of[r + 1].up);
                 if (gated.depth) gated.store(at, c, of[r].gated, of[r + 1].gated);
               }
             });
    return both;
  }

  void attention_input(Space& space) {
    const Projection(&parts)[4] = call.parts;
    const Laid query = Laid::forward(parts[0], D, space), key = Laid::forward(parts[1], D, space),
               value = Laid::forward(parts[2], D, space);
    if (space.counts()) return;
    for (const Laid* by : {&query, &key, &value}) by->lay_out(true);
    each_chunk([&] {
      const T* x = norm(of_chunk(call.x, D));
      T* out = of_chunk((T*)call.products, all);
      for (const Laid* by : {&query, &key, &value}) project_to(*by, x, out, all), out += by->of.out;
    });
  }

  void attention_input_backward(Space& space) {
    const Projection(&parts)[4] = call.parts;
    const Laid query = Laid::backward(parts[0], D, depth, space), key = Laid::backward(parts[1], D, depth, space),
               value = Laid::backward(parts[2], D, depth, space);
    const bool reads = query.reads_input() || key.reads_input() || value.reads_input();
    const auto normed = space.factor<Right<T>, T>(reads ? depth : 0, D);
    if (space.counts()) return;
    for (const Laid* by : {&query, &key, &value}) by->lay_out(false);
    each_chunk([&] {
      keep_input(call.normed, normed);
      const T* grad = to_left_factor((const T*)call.grad, all);
      const T *key_grad = grad + query.of.out, *value_grad = key_grad + key.of.out;
      keep_grad(query, grad, all), keep_grad(key, key_grad, all), keep_grad(value, value_grad, all);
      const T *low = narrow_backward(query, grad, all, 0), *key_low = narrow_backward(key, key_grad, all, 1),
              *value_low = narrow_backward(value, value_grad, all, 2);
      times<T>(n, {{grad, all, query.weight}, {key_grad, all, key.weight}, {value_grad, all, value.weight},
                   {low, query.of.rank, query.down}, {key_low, key.of.rank, key.down},
                   {value_low, value.of.rank, value.down}},
               [&](int64_t row, int64_t c, const Vector(&sums)[R]) { to_numbers(row, c, sums); });
      norm_backward(of_chunk(call.x, D), nullptr);
    });
    for (const Laid* by : {&query, &key, &value}) by->learn(normed);
  }

  void block_output(Space& space) {
    const Projection(&parts)[4] = call.parts;
    const Laid output = Laid::forward(parts[0], H, space), gate = Laid::forward(parts[1], D, space),
               up = Laid::forward(parts[2], D, space), down = Laid::forward(parts[3], I, space);
    if (space.counts()) return;
    for (const Laid* by : {&output, &gate, &up, &down}) by->lay_out(true);
    each_chunk([&] {
      float* middle = of_chunk(call.middle, D);
      T* pairs = call.both ? of_chunk((T*)call.both, 2 * I) : both;
      add_projected(output, to_left_factor((const T*)call.attended, H), of_chunk(call.x, D), middle);
      const T* normed = norm(middle);
      project_to(gate, normed, pairs, 2 * I);
      project_to(up, normed, pairs + I, 2 * I);
      for (int64_t r = 0; r < n; r++)
        for (int64_t i = 0; i < I; i += W) {
          const T* pair = pairs + r * 2 * I + i;
          ::narrow(gated_of(vector_of(pair), vector_of(pair + I)), left + r * I + i);
        }
      add_projected(down, filled_up(left, I), middle, of_chunk(call.out, D));
    });
  }

  void block_output_backward(Space& space) {
    const Projection(&parts)[4] = call.parts;
    const Laid output = Laid::backward(parts[0], H, depth, space), gate = Laid::backward(parts[1], D, depth, space),
               up = Laid::backward(parts[2], D, depth, space), down = Laid::backward(parts[3], I, depth, space);
    const auto attended = space.factor<Right<T>, T>(output.reads_input() ? depth : 0, H),
               normed = space.factor<Right<T>, T>(gate.reads_input() || up.reads_input() ? depth : 0, D),
               gated = space.factor<Right<T>, T>(down.reads_input() ? depth : 0, I);
    if (space.counts()) return;
    for (const Laid* by : {&output, &gate, &up, &down}) by->lay_out(false);
    each_chunk([&] {
      keep_input(call.attended, attended);
      keep_input(call.normed, normed);
      const float* straight = (const float*)call.grad;
      const T* grad = to_left_factor(straight, D);
      keep_grad(down, grad, D);
      const T* pair = gates_backward(grad, gate, up, down, gated);
      const T *low = narrow_backward(gate, pair, 2 * I, 0), *up_low = narrow_backward(up, pair + I, 2 * I, 1);
      times<T>(n, {{pair, 2 * I, gate.weight}, {pair + I, 2 * I, up.weight}, {low, gate.of.rank, gate.down},
                   {up_low, up.of.rank, up.down}},
               [&](int64_t row, int64_t c, const Vector(&sums)[R]) { to_numbers(row, c, sums); });
      norm_backward(of_chunk(call.middle, D), of_chunk(straight, D));
      grad = to_left_factor((const float*)call.x_grad, D);
      keep_grad(output, grad, D);
      low = narrow_backward(output, grad, D, 0);
      T* attended_grad = of_chunk((T*)call.attended_grad, H);
      times_by_row<T>(n, {{grad, D, output.weight}, {low, output.of.rank, output.down}},
                      [&](int64_t row, int64_t c, Vector sums) { ::narrow(sums, attended_grad + row * H + c); });
    });
    gate.learn(normed), up.learn(normed), down.learn(gated), output.learn(attended);
  }
};

static thread_local Scratch shared, own;  // of the thread that calls, for all threads; and of each thread

template <class Method>
static void run(const Call* call, bool rounded, bool rounded_weights, int threads, Method method) {
  in_precision(rounded, [&]<class T>(T) {
    in_precision(rounded && rounded_weights, [&]<class S>(S) {
      Space counting;
      Half<S, T> counter(*call, own);
      method(counter, counting);
      char* memory = (char*)shared.of(counting.used);
#pragma omp parallel num_threads(threads)
      {
        Half<S, T> half(*call, own);
        Space space{memory};
        method(half, space);
      }
    });
  });
}

extern "C" {
void attention_input(const Call* call, bool rounded, bool rounded_weights, int threads) {
  run(call, rounded, rounded_weights, threads, [](auto& half, Space& space) { half.attention_input(space); });
}
void attention_input_backward(const Call* call, bool rounded, bool rounded_weights, int threads) {
  run(call, rounded, rounded_weights, threads, [](auto& half, Space& space) { half.attention_input_backward(space); });
}
void block_output(const Call* call, bool rounded, bool rounded_weights, int threads) {
  run(call, rounded, rounded_weights, threads, [](auto& half, Space& space) { half.block_output(space); });
}
void block_output_backward(const Call* call, bool rounded, bool rounded_weights, int threads) {
  run(call, rounded, rounded_weights, threads, [](auto& half, Space& space) { half.block_output_backward(space); });
}
}
