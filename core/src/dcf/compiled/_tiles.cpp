// 3x3 convolutions in fp32 that keep the sides of maps (stride 1, padding 1), and their gradients, with many channels.
//
// Maps are (N, H, W, C) in memory, weights (K, C, 3, 3). Convolutions are computed in tiles by minimal filtering (Winograd,
// Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR
// 2016), see `_filtering.hpp`: of 8x8 pixels by 100 multiplications where the definition has 576, or of 4x4 by 36 where
// it has 144. The gradient in the images is a convolution with the filters turned.
//
// Results do not depend on the number of threads. What is not a number spreads to its tile.

#include "_rows.hpp"
#include "_filtering.hpp"

namespace {

// Tiles that threads work on at once: all of them together, and each at least.
constexpr int64_t BLOCK = 48, EACH_THREAD = 8;
constexpr int64_t STRIP = COLUMNS * LANES;  // channels of a product that a thread computes
// Between the points of a block, so that they do not fall on the same lines of the cache.
constexpr int64_t GAP = 32;
// As many tiles as the transformation of filters takes the time of.
constexpr int64_t FILTERS = 30;

// Where the tiles of maps are.
template <class F>
struct Tiles {
    static constexpr int64_t TILE = F::TILE;
    int64_t count, height, width, down, across, all;

    Tiles(int64_t n, int64_t h, int64_t w)
        : count(n), height(h), width(w), down((h + TILE - 1) / TILE), across((w + TILE - 1) / TILE),
          all(n * down * across) {}

    int64_t block() const { return std::min(all, std::max(BLOCK, EACH_THREAD * omp_get_max_threads())); }
    int64_t values(int64_t channels) const { return count * height * width * channels; }
    int64_t multiplications() const { return (all + FILTERS) * F::POINTS; }

    // Addresses of pixels of `side` x `side` from `offset` before the tile on, and of those of the tile after it; of zeros
    // outside of the map.
    template <int side>
    struct Pixels {
        const float *at[side * side], *after[side * side];

        Pixels(const Tiles& tiles, const float* maps, const float* zeros, int64_t tile, int64_t offset, int64_t channels) {
            tiles.find<side>(maps, zeros, tile, offset, channels, at);
            tiles.find<side>(maps, zeros, std::min(tile + 1, tiles.all - 1), offset, channels, after);
        }
    };

  private:
    template <int side>
    void find(const float* maps, const float* zeros, int64_t tile, int64_t offset, int64_t channels,
              const float** at) const {
        const float* map = maps + tile / (down * across) * height * width * channels;
        const int64_t top = tile / across % down * TILE - offset, left = tile % across * TILE - offset;
        for (int64_t y = top; y < top + side; ++y) {
            for (int64_t x = left; x < left + side; ++x) {
                const bool inside = y >= 0 && y < height && x >= 0 && x < width;
                *at++ = inside ? map + (y * width + x) * channels : zeros;
            }
        }
    }
};

// Transformed pixels of a tile, point by point `next` apart. Those of the tile `after` it are brought near: they are in
// places that no hardware expects.
template <class F>
inline void transform(const float* const* at, const float* const* after, int64_t channels, float* to, int64_t next) {
    for (int64_t c = 0; c < channels; c += LANES) {
        twice<Row, F::SIDE, F::SIDE>(
            F::template pixels<Row>,
            [&](int i) {
                __builtin_prefetch(after[i] + c);
                return get(at[i] + c);
            },
            [&](int p, Row row) { put(to + p * next + c, row); });
    }
}

// The same of gradients of results, and their sum over the tile.
template <class F>
inline void transform_gradients(const float* const* at, const float* const* after, int64_t channels, float* to,
                                int64_t next, float* bias) {
    for (int64_t c = 0; c < channels; c += LANES) {
        Row sum{};
        twice<Row, F::TILE, F::SIDE>(
            F::template gradients<Row>,
            [&](int i) {
                __builtin_prefetch(after[i] + c);
                const Row row = get(at[i] + c);
                sum += row;
                return row;
            },
            [&](int p, Row row) { put(to + p * next + c, row); });
        put(bias + c, sum);
    }
}

template <class F>
void write(const float* from, int64_t next, const float* bias, const Tiles<F>& tiles, int64_t tile, int64_t channels,
           float* maps) {
    constexpr int64_t TILE = F::TILE;
    const int64_t top = tile / tiles.across % tiles.down * TILE, left = tile % tiles.across * TILE;
    const int64_t rows = std::min(TILE, tiles.height - top);
    const int64_t columns = std::min(TILE, tiles.width - left);
    float* map = maps + tile / (tiles.down * tiles.across) * tiles.height * tiles.width * channels;
    const bool past = tiles.values(channels) >= LARGE;
    for (int64_t c = 0; c < channels; c += LANES) {
        const Row shift = bias ? get(bias + c) : Row{};
        twice<Row, F::SIDE, F::TILE>(
            F::template results<Row>, [&](int p) { return get(from + p * next + c); },
            [&](int i, Row row) {
                const int64_t y = i / TILE, x = i % TILE;
                float* to = map + ((top + y) * tiles.width + left + x) * channels + c;
                if (y < rows && x < columns) past ? put_past(to, row + shift) : put(to, row + shift);
            });
    }
}

// Filters for a convolution from `from` to `to` channels, (POINTS, from, to); turned: for the gradient in its images.
template <class F>
void transform_filters(const float* weight, bool turned, int64_t from, int64_t to, float* u) {
    const int64_t line = turned ? 9 * to : 9, column = turned ? 9 : 9 * from;
#pragma omp parallel for
    for (int64_t i = 0; i < from; ++i) {
        for (int64_t j = 0; j < to; j += LANES) {
            alignas(sizeof(Row)) float taps[9][LANES];
            for (int64_t l = 0; l < LANES; ++l)
                for (int tap = 0; tap < 9; ++tap)
                    taps[tap][l] = weight[i * line + (j + l) * column + (turned ? 8 - tap : tap)];
            twice<Row, 3, F::SIDE>(
                F::template weights<Row>, [&](int tap) { return get(taps[tap]); },
                [&](int p, Row row) { put(u + (p * from + i) * to + j, row); });
        }
    }
}

// Calls `visit` with every point and every strip of so many channels, where it begins and how wide it is; by the threads of
// a team, each some, which wait for one another.
template <class F, class Visit>
inline void each_strip(int64_t channels, Visit visit) {
    const int64_t strips = (channels + STRIP - 1) / STRIP;
#pragma omp for
    for (int64_t task = 0; task < F::POINTS * strips; ++task) {
        const int64_t j = task % strips * STRIP;
        visit(task / strips, j, std::min(STRIP, channels - j));
    }
}

// A convolution from `from` to `to` channels. Threads share a block of tiles, of which each computes some points: so what
// it reads of the filters stays near it. False: there is not enough memory.
template <class F>
bool tiled(const float* x, const float* weight, bool turned, const float* bias, float* out, const Tiles<F>& tiles,
           int64_t from, int64_t to) {
    const int64_t size = tiles.block(), before = size * from + GAP, after = size * to + GAP;
    const Room zeros(from, 1, true), u(F::POINTS * from * to), v(F::POINTS * before), m(F::POINTS * after);
    if (!zeros || !u || !v || !m) return false;
    transform_filters<F>(weight, turned, from, to, u);
#pragma omp parallel
    {
        for (int64_t first = 0; first < tiles.all; first += size) {
            const int64_t many = std::min(size, tiles.all - first);
#pragma omp for
            for (int64_t i = 0; i < many; ++i) {
                const typename Tiles<F>::template Pixels<F::SIDE> read(tiles, x, zeros, first + i, 1, from);
                transform<F>(read.at, read.after, from, v + i * from, before);
            }
            each_strip<F>(to, [&](int64_t p, int64_t j, int64_t columns) {
                product({v + p * before, from, 1}, many, u + p * from * to + j, m + p * after + j, columns, to, from, false);
            });
#pragma omp for nowait
            for (int64_t i = 0; i < many; ++i) write(m + i * to, after, bias, tiles, first + i, to, out);
        }
        settle();
    }
    return true;
}

// Back to gradients of weights (K, C, 3, 3) from those of transformed ones (POINTS, C, K).
template <class F>
void transform_back(const float* u, int64_t c, int64_t C, int64_t K, float* gw) {
    for (int64_t k = 0; k < K; k += LANES) {
        twice<Row, F::SIDE, 3>(
            F::template filters<Row>, [&](int p) { return get(u + (p * C + c) * K + k); },
            [&](int tap, Row row) {
                for (int l = 0; l < LANES; ++l) gw[((k + l) * C + c) * 9 + tap] = row[l];
            });
    }
}

// The gradients in weights and bias, with threads as above. False: there is not enough memory.
template <class F>
bool tiled_weights(const float* x, const float* g, float* gw, float* gb, const Tiles<F>& tiles, int64_t C, int64_t K) {
    const int64_t size = tiles.block(), before = size * C + GAP, after = size * K + GAP;
    const Room zeros(std::max(C, K), 1, true), u(F::POINTS * C * K), biases(size * K);
    const Room v(F::POINTS * before), m(F::POINTS * after);
    if (!zeros || !u || !biases || !v || !m) return false;
    std::memset(gb, 0, K * sizeof(float));
#pragma omp parallel
    {
        for (int64_t first = 0; first < tiles.all; first += size) {
            const int64_t many = std::min(size, tiles.all - first);
#pragma omp for
            for (int64_t i = 0; i < many; ++i) {
                const typename Tiles<F>::template Pixels<F::SIDE> read(tiles, x, zeros, first + i, 1, C);
                transform<F>(read.at, read.after, C, v + i * C, before);
                const typename Tiles<F>::template Pixels<F::TILE> given(tiles, g, zeros, first + i, 0, K);
                transform_gradients<F>(given.at, given.after, K, m + i * K, after, biases + i * K);
            }
            each_strip<F>(K, [&](int64_t p, int64_t j, int64_t columns) {
                product({v + p * before, 1, C}, C, m + p * after + j, u + p * C * K + j, columns, K, many, first > 0);
                for (int64_t i = 0; p == 0 && i < many; ++i)
                    for (int64_t k = j; k < j + columns; ++k) gb[k] += biases[i * K + k];
            });
        }
#pragma omp for
        for (int64_t c = 0; c < C; ++c) transform_back<F>(u, c, C, K, gw);
    }
    return true;
}

// Calls `function` with the tiles that take the least; returns 1 where it has not enough memory, else 0.
template <class Function>
int with_tiles(int64_t n, int64_t h, int64_t w, Function function) {
    const Tiles<Filtering<4>> small(n, h, w);
    const Tiles<Filtering<8>> large(n, h, w);
    return !(large.multiplications() < small.multiplications() ? function(large) : function(small));
}

}  // namespace

// What follows returns 0, or 1 if there is not enough memory.
extern "C" {

int dcf_tiles(const float* x, const float* weight, const float* bias, float* out, int64_t n, int64_t h, int64_t w,
              int64_t C, int64_t K) {
    return with_tiles(n, h, w, [&](auto& tiles) { return tiled(x, weight, false, bias, out, tiles, C, K); });
}

int dcf_tiles_images(const float* g, const float* weight, float* gx, int64_t n, int64_t h, int64_t w, int64_t C,
                     int64_t K) {
    return with_tiles(n, h, w, [&](auto& tiles) { return tiled(g, weight, true, nullptr, gx, tiles, K, C); });
}

int dcf_tiles_weights(const float* x, const float* g, float* gw, float* gb, int64_t n, int64_t h, int64_t w, int64_t C,
                      int64_t K) {
    return with_tiles(n, h, w, [&](auto& tiles) { return tiled_weights(x, g, gw, gb, tiles, C, K); });
}

}  // extern "C"
