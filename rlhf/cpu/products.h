// Matrix products whose sums are handed on before they reach memory, and factors laid out for them.
//
// A library for whole matrices makes all threads wait between two products, and results go through memory. Here a thread
// takes a few tokens through several products in a row, and sums of products are added up in registers.
#pragma once
#include <cstdlib>
#include <initializer_list>
#include <numeric>

#include "vectors.h"

constexpr int64_t DEPTH = 288;  // rows of a strip that stay in the first cache
constexpr int64_t MOST = 96;    // rows of a left factor that are taken through a strip at once

// A factor (depth, columns): strips of columns one behind the other, each of which is read from start to end.
template <class T, int64_t STRIP>
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

// The right factor of a product; and the left one of a gradient, left' right, of which R columns are taken at a time.
template <class T>
using Right = Strips<T, V * W>;
template <class T>
using Left = Strips<T, std::lcm(int64_t(R), int64_t(W))>;

// Memory that a thread keeps for its next call: fresh pages cost more than writing to them.
class Scratch {
  void* data = nullptr;
  int64_t size = 0;

 public:
  ~Scratch() { std::free(data); }

  void* of(int64_t bytes) {
    if (bytes > size) {
      std::free(data);
      size = (bytes + 63) / 64 * 64;
      data = std::aligned_alloc(64, size);
    }
    return data;
  }
};

// Hands out pieces of memory one behind the other; without memory it only counts what it would need.
struct Space {
  char* data = nullptr;
  int64_t used = 0;

  bool counts() const { return !data; }

  template <class T>
  T* piece(int64_t count) {
    T* found = data ? (T*)(data + used) : nullptr;
    used += (count * sizeof(T) + 63) / 64 * 64;
    return found;
  }

  template <class Factor, class T>
  Factor factor(int64_t depth, int64_t columns) {
    return {piece<T>(depth * columns), depth, columns};
  }
};

// Rows of a left factor, `row` numbers apart, and the right factor that they are multiplied by.
template <class T>
struct Term {
  const T* left;
  int64_t row;
  const Right<T>& right;
};

// The sum of products of n rows, filled up to R and at most MOST: f(row, c, sums), R rows and W columns at a time. A part
// of a strip is read from the first cache for all rows; in the meantime their sums lie in memory.
template <class T, class Function>
static inline void times(int64_t n, std::initializer_list<Term<T>> terms, Function f) {
  alignas(64) float kept[MOST * V * W];
  int64_t parts = 0;
  for (const Term<T>& term : terms) parts += (term.right.depth + DEPTH - 1) / DEPTH;
  by_vectors(terms.begin()->right.columns, [&](auto v, int64_t c) {
    int64_t part = 0;
    for (const Term<T>& term : terms)
      for (int64_t k = 0; k < term.right.depth; k += DEPTH, part++)
        for (int64_t row = 0; row < n; row += R) {
          Vector sums[v][R] = {};
          float* own = kept + row * v * W;
          for (int i = 0; i < v * R && part; i++) sums[i / R][i % R] = vector_of(own + i * W);
          multiply(term.left + row * term.row + k, term.row, PAIRED<T>, std::min(DEPTH, term.right.depth - k),
                   term.right.data + c * term.right.depth + k * v * W, v * W, sums);
          if (part + 1 < parts)
            for (int i = 0; i < v * R; i++) *(Vector*)(own + i * W) = sums[i / R][i % R];
          else
            for (int i = 0; i < v; i++) f(row, c + i * W, sums[i]);
        }
  });
}

// The same, one of the n rows at a time: f(row, c, W sums).
template <class T, class Function>
static inline void times_by_row(int64_t n, std::initializer_list<Term<T>> terms, Function f) {
  times(n, terms, [&](int64_t row, int64_t c, const Vector(&sums)[R]) {
    for (int64_t r = 0; r < std::min<int64_t>(R, n - row); r++) f(row + r, c, sums[r]);
  });
}

// Rows, an even number, of x (rows, columns) as rows of a factor from `first` on; they lie `row` numbers apart.
template <class S, class Factor>
static inline void to_strips(const S* x, int64_t row, int64_t rows, int64_t first, const Factor& out) {
  for (int64_t c = 0; c < out.columns; c += W)
    for (int64_t r = 0; r < rows; r += 2) {
      const S* from = x + r * row + c;
      out.store(first + r, c, vector_of(from), vector_of(from + row));
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
static inline void to_columns(const S* x, int64_t first, const Right<T>& out) {
  constexpr int64_t unit = PAIRED<T>;  // what lies together, in 32 bits
  float* to = (float*)out.strip(first) + first % (V * W);
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

// Part of `gradient`: `rows` rows from c + row on, v vectors of columns, tokens from `first` on.
template <int rows, size_t v, class T>
static inline void gradient_part(const Left<T>& left, const Right<T>& right, int64_t c, int64_t row, int64_t column,
                                 int64_t first, float* out) {
  const int64_t width = left.width(c), columns = right.columns;
  float* to = out + (c + row) * columns + column;
  Vector sums[v][rows] = {};
  if (first)
    for (size_t i = 0; i < v; i++)
      for (int r = 0; r < rows; r++) sums[i][r] = vector_of(to + r * columns + i * W);
  multiply(left.strip(c) + first * width + row * PAIRED<T>, PAIRED<T>, width * PAIRED<T>,
           std::min(DEPTH, left.depth - first), right.strip(column) + first * v * W, v * W, sums);
  for (size_t i = 0; i < v; i++)
    for (int r = 0; r < rows; r++) *(Vector*)(to + r * columns + i * W) = sums[i][r];
}

// The rows of one strip, from c, of left' right: the gradient of a matrix (columns of left, columns of right).
template <class T>
static void gradient(const Left<T>& left, const Right<T>& right, int64_t c, float* out) {
  by_vectors(right.columns, [&](auto v, int64_t column) {
    for (int64_t first = 0; first < left.depth; first += DEPTH) {
      int64_t row = 0;
      for (; row + R <= left.width(c); row += R) gradient_part<R, v>(left, right, c, row, column, first, out);
      for (; row < left.width(c); row += 2) gradient_part<2, v>(left, right, c, row, column, first, out);
    }
  });
}
