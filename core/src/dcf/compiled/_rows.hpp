// Rows of registers, memory, and products of matrices in fp32: what `_tiles.cpp` and `_few.cpp` are made of.

#pragma once

#if defined(__AVX__)
#include <immintrin.h>
#endif
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

// What is inlined into several functions is kept in registers in some of them alone.
#define ALONE __attribute__((noinline))

#ifdef __AVX512F__
typedef float Row __attribute__((vector_size(64)));
constexpr int COLUMNS = 4;  // rows of registers that a product fills at once
#else
typedef float Row __attribute__((vector_size(32)));
constexpr int COLUMNS = 2;
#endif
constexpr int LANES = sizeof(Row) / sizeof(float), LINES = 6;

inline Row get(const float* from) {
    Row row;
    std::memcpy(&row, from, sizeof row);
    return row;
}

inline void put(float* to, Row row) { std::memcpy(to, &row, sizeof row); }

// Holds a row in a register: compilers would rather read it again for each product that it is in.
inline void hold(Row& row) {
#if defined(__AVX512F__)
    asm("" : "+v"(row));
#elif defined(__AVX__)
    asm("" : "+x"(row));
#endif
}

// Values from which results are written past the cache: reading what is overwritten would cost as much again.
constexpr int64_t LARGE = int64_t{1} << 22;

// As put, past the cache where a row is a whole line of it; `to` is aligned. Every thread is to call settle() after it.
inline void put_past(float* to, Row row) {
#if defined(__AVX512F__)
    _mm512_stream_ps(to, reinterpret_cast<__m512&>(row));
#else
    put(to, row);
#endif
}

inline void settle() {
#if defined(__AVX512F__)
    _mm_sfence();
#endif
}

// Aligned memory; what it holds is unknown, or zero. Null if there is not as much. What a thread works in, it asks for itself:
// in parts of what another asked for, convolutions took up to a third longer where cores are far from one another.
class Room {
  public:
    explicit Room(int64_t values, bool clear = false)
        : data_(static_cast<float*>(std::aligned_alloc(sizeof(Row), (values + LANES - 1) / LANES * sizeof(Row)))) {
        if (data_ && clear) std::memset(data_, 0, values * sizeof(float));
    }
    ~Room() { std::free(data_); }
    Room(const Room&) = delete;
    Room& operator=(const Room&) = delete;
    operator float*() const { return data_; }

  private:
    float* data_;
};

// Calls `work` in every thread with the first and the end of the tasks that are its own, one after the other in memory. Whether
// all returned true.
template <class Work>
bool divided(int64_t tasks, Work work) {
    bool done = true;
#pragma omp parallel reduction(&& : done)
    {
        const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
        done = work(thread * tasks / threads, (thread + 1) * tasks / threads);
        settle();
    }
    return done;
}

// --- products of matrices ------------------------------------------------------------------------------------------

// A matrix by steps of its inner dimension: where the next line and the next step are.
struct Left {
    const float* at;
    int64_t line, step;
};

// c[r, j] = (what was there +) sum over s of a[r, s] b[s, j], for R lines and K rows of registers; b and c have `width`.
template <int R, int K>
inline void block(Left a, const float* b, float* c, int64_t width, int64_t steps, bool add) {
    Row sums[R][K];
    for (int r = 0; r < R; ++r)
        for (int k = 0; k < K; ++k) sums[r][k] = add ? get(c + r * width + k * LANES) : Row{};
    // What the next lines add to is far in the cache, and no hardware expects it; what is only written may be in that of another
    // core, and comes while these sums are taken.
    for (int r = add ? R : 0; r < (add ? 2 * R : R); ++r)
        for (int k = 0; k < K; ++k) __builtin_prefetch(c + r * width + k * LANES, 1);
    for (int64_t s = 0; s < steps; ++s) {
        Row row[K];
        for (int k = 0; k < K; ++k) row[k] = get(b + s * width + k * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const float value = a.at[r * a.line + s * a.step];
#pragma GCC unroll 16
            for (int k = 0; k < K; ++k) sums[r][k] += value * row[k];
        }
    }
    for (int r = 0; r < R; ++r)
        for (int k = 0; k < K; ++k) put(c + r * width + k * LANES, sums[r][k]);
}

// All lines, R at a time, those that are left half as many at a time.
template <int R, int K>
void lines(Left a, int64_t many, const float* b, float* c, int64_t width, int64_t steps, bool add) {
    int64_t i = 0;
    for (; i + R <= many; i += R)
        block<R, K>({a.at + i * a.line, a.line, a.step}, b, c + i * width, width, steps, add);
    if constexpr (R > 1)
        lines<R / 2, K>({a.at + i * a.line, a.line, a.step}, many - i, b, c + i * width, width, steps, add);
}

// c (many x columns) = (what was there +) a (many x steps) b (steps x columns), of matrices whose lines have `width`.
inline void product(Left a, int64_t many, const float* b, float* c, int64_t columns, int64_t width, int64_t steps,
                    bool add) {
    int64_t j = 0;
    for (; j + COLUMNS * LANES <= columns; j += COLUMNS * LANES)
        lines<LINES, COLUMNS>(a, many, b + j, c + j, width, steps, add);
    for (; j < columns; j += LANES) lines<LINES, 1>(a, many, b + j, c + j, width, steps, add);
}

}  // namespace
