// Matrix products whose sums are handed on before they reach memory, and factors laid out for them.
//
// oneDNN and MKL multiply whole matrices: between two products all threads wait for the slowest, results go to memory in
// the factors' precision, and what follows reads them again. Here a thread takes a few tokens through several products.
#pragma once
#include <cstdlib>

#include "vectors.h"

constexpr int64_t STRIP = V * W;  // columns
constexpr int64_t DEPTH = 256;    // rows of a strip that stay in the first cache

// A right factor (depth, columns): strips of columns one behind the other, each of which is read from start to end.
template <class T>
struct Strips {
  T* data;
  int64_t depth, columns;

  T* strip(int64_t c) const { return data + c / STRIP * STRIP * depth; }
  int64_t width(int64_t c) const { return std::min(STRIP, columns - c / STRIP * STRIP); }

  // W numbers of row k, which is even, from column c on, and those below them.
  void store(int64_t k, int64_t c, Vector even, Vector odd) const {
    store_pair(strip(c), k, c % STRIP, width(c), even, odd);
  }
};

// Memory that begins where a vector may.
template <class T>
struct Buffer {
  T* data;
  explicit Buffer(int64_t count) : data((T*)std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64)) {}
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(data); }
};

// Strips one behind the other.
template <class T>
struct Space {
  T* free;

  Strips<T> strips(int64_t depth, int64_t columns) {
    T* data = free;
    free += depth * columns;
    return {data, depth, columns};
  }
};

// The product of rows (n, depth), filled up to R, and strips: f(row, c, sums), R rows and W columns at a time.
template <class T, class Function>
static inline void times(const T* left, int64_t n, const Strips<T>& right, Function f) {
  by_vectors(right.columns, [&](auto v, int64_t c) {
    for (int64_t row = 0; row < n; row += R) {
      Vector sums[v][R] = {};
      multiply(left + row * right.depth, right.depth, PAIRED<T>, right.depth, right.data + c * right.depth, v * W, sums);
      for (int i = 0; i < v; i++) f(row, c + i * W, sums[i]);
    }
  });
}

// The same, one of the n rows at a time: f(row, c, W sums).
template <class T, class Function>
static inline void times_by_row(const T* left, int64_t n, const Strips<T>& right, Function f) {
  times(left, n, right, [&](int64_t row, int64_t c, const Vector(&sums)[R]) {
    for (int64_t r = 0; r < std::min<int64_t>(R, n - row); r++) f(row + r, c, sums[r]);
  });
}

// R rows or more, an even number, of x (rows, columns) as rows of a right factor from `first` on.
template <class S, class T>
static inline void to_strips(const S* x, int64_t rows, int64_t first, const Strips<T>& out) {
  for (int64_t c = 0; c < out.columns; c += W)
    for (int64_t r = 0; r < rows; r += 2) {
      const S* from = x + r * out.columns + c;
      out.store(first + r, c, vector_of(from), vector_of(from + out.columns));
    }
}

// Rows as columns: in each round, the first bit of a row's number becomes the last one of its columns'.
static inline void transpose(Whole (&x)[W]) {
  for (int round = 1; round < W; round *= 2) {
    Whole before[W];
    std::copy_n(x, W, before);
    for (int i = 0; i < W / 2; i++) {
      x[2 * i] = in_turn<0>(before[i], before[i + W / 2]);
      x[2 * i + 1] = in_turn<1>(before[i], before[i + W / 2]);
    }
  }
}

// W rows of x (rows, depth) as columns of a right factor from `first` on.
template <class S, class T>
static inline void to_columns(const S* x, int64_t first, const Strips<T>& out) {
  constexpr int64_t unit = PAIRED<T>;  // what lies together, in 32 bits
  float* to = (float*)out.strip(first) + first % STRIP;
  for (int64_t k = 0; k < out.depth; k += unit * W) {
    const int64_t numbers = std::min(unit * W, out.depth - k);
    T rows[W][unit * W];
    Whole columns[W];
    for (int r = 0; r < W; r++) to_left(x + r * out.depth + k, numbers, rows[r]);
    for (int r = 0; r < W; r++) memcpy(&columns[r], rows[r], sizeof(Whole));
    transpose(columns);
    for (int64_t i = 0; i < numbers / unit; i++) *(Whole*)(to + (k / unit + i) * out.width(first)) = columns[i];
  }
}

// STRIP rows, from c, of left' right: the gradient of a matrix (columns of left, columns of right).
template <class T>
static void gradient(const Strips<T>& left, const Strips<T>& right, int64_t c, float* out) {
  const int64_t width = left.width(c), columns = right.columns;
  by_vectors(columns, [&](auto v, int64_t column) {
    for (int64_t first = 0; first < left.depth; first += DEPTH)
      for (int64_t row = 0; row < width; row += R) {
        float* to = out + (c + row) * columns + column;
        Vector sums[v][R] = {};
        if (first)
          for (int i = 0; i < v; i++)
            for (int r = 0; r < R; r++) sums[i][r] = vector_of(to + r * columns + i * W);
        multiply(left.strip(c) + first * width + row * PAIRED<T>, PAIRED<T>, width * PAIRED<T>,
                 std::min(DEPTH, left.depth - first), right.strip(column) + first * v * W, v * W, sums);
        for (int i = 0; i < v; i++)
          for (int r = 0; r < R; r++) *(Vector*)(to + r * columns + i * W) = sums[i][r];
      }
  });
}
