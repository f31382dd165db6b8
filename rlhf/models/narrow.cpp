// The product of a matrix with few columns; see narrow.py. Weights are read once, in the order in which they lie.
#include <cstdint>

typedef float Eight __attribute__((vector_size(32), aligned(4)));

// R rows of the matrix times 8 C columns: all sums stay in registers, and the next R rows are asked for in time.
template <int R, int C>
static inline void tile(const float* matrix, const float* x, float* out, int64_t k, int64_t n, int64_t down,
                        int64_t right) {
  Eight sums[R][C] = {};
  for (int64_t i = 0; i < k; i++) {
    if (i % 16 == 0)
      for (int r = 0; r < R; r++) __builtin_prefetch(matrix + (r + R) * k + i);
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) sums[r][c] += matrix[r * k + i] * *(const Eight*)(x + i * n + 8 * c);
  }
  for (int c = 0; c < 8 * C; c++)
    for (int r = 0; r < R; r++) out[r * down + c * right] = sums[r][c / 8][c % 8];
}

template <int R>
static inline void rows(const float* matrix, const float* x, float* out, int64_t k, int64_t n, int64_t down,
                        int64_t right) {
  int64_t c = 0;
  for (; c + 16 <= n; c += 16) tile<R, 2>(matrix, x + c, out + c * right, k, n, down, right);
  if (c < n) tile<R, 1>(matrix, x + c, out + c * right, k, n, down, right);
}

// matrix (m, k) and x (k, n) without gaps, n a multiple of 8; neighbours in out (m, n) are `down` and `right` apart.
extern "C" void narrow_product(const float* matrix, const float* x, float* out, int64_t m, int64_t k, int64_t n,
                               int64_t down, int64_t right, int threads) {
  const int64_t whole = m / 6 * 6;
#pragma omp parallel for num_threads(threads)
  for (int64_t r = 0; r < whole; r += 6) rows<6>(matrix + r * k, x, out + r * down, k, n, down, right);
  if (m >= 6 && whole < m) {  // the last six, some of them once more
    rows<6>(matrix + (m - 6) * k, x, out + (m - 6) * down, k, n, down, right);
  } else {
    for (int64_t r = whole; r < m; r++) rows<1>(matrix + r * k, x, out + r * down, k, n, down, right);
  }
}
