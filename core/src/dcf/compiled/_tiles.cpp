// 3x3 convolutions in fp32 that keep the sides of maps (stride 1, padding 1), and their gradients, with many channels.
//
// Maps are (N, H, W, C) in memory, weights (K, C, 3, 3). Convolutions are computed in tiles of 4x4 pixels by minimal
// filtering, F(4x4, 3x3) (Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast Algorithms for
// Convolutional Neural Networks, CVPR 2016): 36 multiplications where the definition has 144; see `_filtering.hpp`. The
// gradient in the images is a convolution with the filters turned.
//
// Gradients in the weights are summed in an order that depends on the number of threads; nothing else does. What is not a
// number spreads to its tile.

#include "_rows.hpp"
#include "_filtering.hpp"

namespace {

constexpr int64_t BLOCK = 48;  // tiles that are worked on at once
constexpr int64_t MOST_SUMS = int64_t{1} << 26;  // values of sums of all threads
// Between the points of a block, so that they do not fall on the same lines of the cache.
constexpr int64_t GAP = 32;

// Where the tiles of maps are.
struct Tiles {
    int64_t count, height, width, down, across, all;

    Tiles(int64_t n, int64_t h, int64_t w)
        : count(n), height(h), width(w), down((h + TILE - 1) / TILE), across((w + TILE - 1) / TILE),
          all(n * down * across) {}

    int64_t values(int64_t channels) const { return count * height * width * channels; }

    // Addresses of `side` x `side` pixels from `offset` before the tile on; of zeros outside of the map.
    template <int side>
    void find(const float* maps, const float* zeros, int64_t tile, int64_t offset, int64_t channels,
              const float** at) const {
        const float* map = maps + tile / (down * across) * height * width * channels;
        const int64_t top = tile / across % down * TILE - offset, left = tile % across * TILE - offset;
        for (int64_t i = 0; i < side * side; ++i) {
            const int64_t y = top + i / side, x = left + i % side;
            const bool inside = y >= 0 && y < height && x >= 0 && x < width;
            at[i] = inside ? map + (y * width + x) * channels : zeros;
        }
    }
};

// Transformed pixels of a tile, point by point `next` apart.
template <int side, class F>
inline void transform(F along, const float* const* at, int64_t channels, float* to, int64_t next) {
    for (int64_t c = 0; c < channels; c += LANES) {
        twice<Row, side, 6>(
            along, [&](int i) { return get(at[i] + c); }, [&](int p, Row row) { put(to + p * next + c, row); });
    }
}

void write(const float* from, int64_t next, const float* bias, const Tiles& tiles, int64_t tile, int64_t channels,
           float* maps) {
    const int64_t top = tile / tiles.across % tiles.down * TILE, left = tile % tiles.across * TILE;
    const int64_t rows = std::min<int64_t>(TILE, tiles.height - top);
    const int64_t columns = std::min<int64_t>(TILE, tiles.width - left);
    float* map = maps + tile / (tiles.down * tiles.across) * tiles.height * tiles.width * channels;
    const bool past = tiles.values(channels) >= LARGE;
    for (int64_t c = 0; c < channels; c += LANES) {
        const Row shift = bias ? get(bias + c) : Row{};
        twice<Row, 6, TILE>(
            results<Row>, [&](int p) { return get(from + p * next + c); },
            [&](int i, Row row) {
                const int64_t y = i / TILE, x = i % TILE;
                float* to = map + ((top + y) * tiles.width + left + x) * channels + c;
                if (y < rows && x < columns) past ? put_past(to, row + shift) : put(to, row + shift);
            });
    }
}

// Filters for a convolution from `from` to `to` channels, (POINTS, from, to); turned: for the gradient in its images.
void transform_filters(const float* weight, bool turned, int64_t from, int64_t to, float* u) {
    const int64_t line = turned ? 9 * to : 9, column = turned ? 9 : 9 * from;
#pragma omp parallel for
    for (int64_t i = 0; i < from; ++i) {
        for (int64_t j = 0; j < to; j += LANES) {
            alignas(sizeof(Row)) float taps[9][LANES];
            for (int64_t l = 0; l < LANES; ++l)
                for (int tap = 0; tap < 9; ++tap)
                    taps[tap][l] = weight[i * line + (j + l) * column + (turned ? 8 - tap : tap)];
            twice<Row, 3, 6>(
                weights<Row>, [&](int tap) { return get(taps[tap]); },
                [&](int p, Row row) { put(u + (p * from + i) * to + j, row); });
        }
    }
}

// A convolution from `from` to `to` channels with transformed filters.
bool tiled(const float* x, const float* u, const float* bias, float* out, const Tiles& tiles, int64_t from,
           int64_t to) {
    const int threads = omp_get_max_threads();
    const int64_t share = (tiles.all + threads - 1) / threads;
    const int64_t size = std::min<int64_t>(BLOCK, share);
    const int64_t before = size * from + GAP, after = size * to + GAP;
    const Room zeros(from, 1, true), pixels_(POINTS * before, threads), results_(POINTS * after, threads);
    if (!zeros || !pixels_ || !results_) return false;
#pragma omp parallel num_threads(threads)
    {
        float *v = pixels_.mine(), *m = results_.mine();
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < tiles.all; first += size) {
            const int64_t many = std::min(size, tiles.all - first);
            for (int64_t i = 0; i < many; ++i) {
                const float* at[36];
                tiles.find<6>(x, zeros, first + i, 1, from, at);
                transform<6>(pixels<Row>, at, from, v + i * from, before);
            }
            for (int p = 0; p < POINTS; ++p)
                product({v + p * before, from, 1}, many, u + p * from * to, m + p * after, to, to, from, false);
            for (int64_t i = 0; i < many; ++i) write(m + i * to, after, bias, tiles, first + i, to, out);
        }
        settle();
    }
    return true;
}

// Back to gradients of weights (K, C, 3, 3) from those of transformed ones (groups, POINTS, C, K), summed over groups.
void transform_back(const float* u, int64_t groups, int64_t c, int64_t C, int64_t K, float* gw) {
    for (int64_t k = 0; k < K; k += LANES) {
        twice<Row, 6, 3>(
            filters<Row>,
            [&](int p) {
                Row sum{};
                for (int64_t group = 0; group < groups; ++group)
                    sum += get(u + ((group * POINTS + p) * C + c) * K + k);
                return sum;
            },
            [&](int tap, Row row) {
                for (int l = 0; l < LANES; ++l) gw[((k + l) * C + c) * 9 + tap] = row[l];
            });
    }
}

// Some tiles and some filters.
struct Share {
    int64_t first, end, from, to;
};

// What a share of the tiles gives to transformed weights (POINTS, C, K), and to the bias, to which it is added.
void add_share(const float* x, const float* g, const Tiles& tiles, Share share, int64_t C, int64_t K,
               const float* zeros, float* v, float* m, float* u, float* bias) {
    const int64_t before = BLOCK * C + GAP, after = BLOCK * K + GAP, columns = share.to - share.from;
    for (int64_t start = share.first; start < share.end; start += BLOCK) {
        const int64_t many = std::min(BLOCK, share.end - start);
        for (int64_t i = 0; i < many; ++i) {
            const float* at[36];
            tiles.find<6>(x, zeros, start + i, 1, C, at);
            transform<6>(pixels<Row>, at, C, v + i * C, before);
            tiles.find<4>(g + share.from, zeros, start + i, 0, K, at);
            transform<4>(gradients<Row>, at, columns, m + i * K, after);
        }
        for (int p = 0; p < POINTS; ++p)
            product({v + p * before, 1, C}, C, m + p * after, u + p * C * K + share.from, columns, K, many,
                    start > share.first);
        for (int64_t i = 0; i < many; ++i)
            for (int64_t k = 0; k < columns; k += LANES)
                put(bias + share.from + k, get(bias + share.from + k) + get(m + SUM * after + i * K + k));
    }
}

// Every thread sums over tiles of its own, or where these are few for filters of its own: what several threads write and
// read in turn travels between their cores.
bool tiled_weights(const float* x, const float* g, float* gw, float* gb, const Tiles& tiles, int64_t C, int64_t K) {
    const int64_t size = POINTS * C * K, most = std::max<int64_t>(1, MOST_SUMS / size);
    const bool few = tiles.all <= 2 * BLOCK;
    const int threads = omp_get_max_threads();
    const int64_t groups = few ? 1 : std::min({int64_t{threads}, most, tiles.all / BLOCK});
    const int64_t width = few ? COLUMNS * LANES : K, parts = (K + width - 1) / width;
    const Room zeros(std::max(C, K), 1, true), u(groups * size), biases(groups * K, 1, true);
    const Room v(POINTS * (BLOCK * C + GAP), threads), m(POINTS * (BLOCK * K + GAP), threads);
    if (!zeros || !u || !biases || !v || !m) return false;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int64_t task = 0; task < groups * parts; ++task) {
        const int64_t group = task / parts, from = task % parts * width;
        const Share share{group * tiles.all / groups, (group + 1) * tiles.all / groups, from, std::min(K, from + width)};
        add_share(x, g, tiles, share, C, K, zeros, v.mine(), m.mine(), u + group * size, biases + group * K);
    }
#pragma omp parallel for
    for (int64_t c = 0; c < C; ++c) transform_back(u, groups, c, C, K, gw);
    std::memcpy(gb, biases, K * sizeof(float));
    for (int64_t i = K; i < groups * K; ++i) gb[i % K] += biases[i];
    return true;
}

}  // namespace

// What follows returns 0, or 1 if there is not enough memory.
extern "C" {

int dcf_tiles(const float* x, const float* weight, const float* bias, float* out, int64_t n, int64_t h, int64_t w,
              int64_t C, int64_t K) {
    const Room u(POINTS * C * K);
    if (!u) return 1;
    transform_filters(weight, false, C, K, u);
    return !tiled(x, u, bias, out, Tiles(n, h, w), C, K);
}

int dcf_tiles_images(const float* g, const float* weight, float* gx, int64_t n, int64_t h, int64_t w, int64_t C,
                     int64_t K) {
    const Room u(POINTS * C * K);
    if (!u) return 1;
    transform_filters(weight, true, K, C, u);
    return !tiled(g, u, nullptr, gx, Tiles(n, h, w), K, C);
}

int dcf_tiles_weights(const float* x, const float* g, float* gw, float* gb, int64_t n, int64_t h, int64_t w, int64_t C,
                      int64_t K) {
    return !tiled_weights(x, g, gw, gb, Tiles(n, h, w), C, K);
}

}  // extern "C"
