// 3x3 convolutions in fp32 that keep the sides of maps (stride 1, padding 1), and their gradients, with many channels.
//
// Maps are (N, H, W, C) in memory, weights (K, C, 3, 3). Convolutions are computed in tiles by minimal filtering (Winograd,
// Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR
// 2016), see `_filtering.hpp`: of 8x8 pixels by 100 multiplications where the definition has 576, or of 4x4 by 36 where
// it has 144. The gradient in the images is a convolution with the filters turned.
//
// Threads may be on cores that are far from one another, where what one writes and another reads takes several times as
// long as from the own cache. So they share as little as can be: many tiles are divided among them, each with all points;
// of few tiles, and of gradients in weights, each half of the threads computes half of the points from the pixels on.
//
// Results do not depend on the number of threads. What is not a number spreads to its tile.

#include <optional>

#include "_rows.hpp"
#include "_filtering.hpp"

namespace {

// Tiles that are worked on at once: by one thread of those that work apart; by all of them together, and each at least.
constexpr int64_t APART = 12, BLOCK = 48, EACH_THREAD = 8;
// Tiles of each thread from which threads work apart: then they share transformed filters, else products.
constexpr int64_t APART_FROM = 32;
constexpr int64_t STRIP = COLUMNS * LANES;  // channels of a product that a thread computes
// Values ahead of those that are read, which are brought near.
constexpr int64_t AHEAD = 2 * LANES;
// Between the points of a block, so that they do not fall on the same lines of the cache.
constexpr int64_t GAP = 32;
// As many tiles as the transformation of filters takes the time of, and more: of few images, each mask of a ReLU that rounding
// turns weighs more in gradients, and large tiles round more.
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

// What a thread does where all share a block: of the lines of points those of its half, and there one part of so many.
struct Share {
    int threads, thread, halves, half, part, parts;

    Share() {
        threads = omp_get_num_threads(), thread = omp_get_thread_num();
        halves = threads % 2 ? 1 : 2;
        parts = threads / halves;
        half = thread / parts;
        part = thread % parts;
    }
    int64_t first(int64_t of) const { return part * of / parts; }
    int64_t end(int64_t of) const { return (part + 1) * of / parts; }
};

// Lines of points, between which no pair of places is.
template <class F, int low, int high>
struct Lines {
    static constexpr int LOW = low, HIGH = high, FIRST = low * F::SIDE, END = high * F::SIDE;
};

// Calls `work` with the lines of a share.
template <class F, class Work>
inline void with_lines(const Share& share, Work work) {
    constexpr int MIDDLE = F::SIDE / 2;
    static_assert(MIDDLE % 2);
    if (share.halves == 1) return work(Lines<F, 0, F::SIDE>{});
    share.half ? work(Lines<F, MIDDLE, F::SIDE>{}) : work(Lines<F, 0, MIDDLE>{});
}

// Until all threads are here.
ALONE void wait() {
#pragma omp barrier
}

// A row of registers, and brings those after it near: of many points, no hardware expects the next, and they may be in the
// cache of a core far away.
inline Row get_ahead(const float* from) {
    __builtin_prefetch(from + AHEAD);
    return get(from);
}

// Transformed pixels of a tile, point by point `next` apart. Those of the tile `after` it are brought near: they are in
// places that no hardware expects.
template <class F, class L>
inline void transform(const float* const* at, const float* const* after, int64_t channels, float* to, int64_t next) {
    for (int64_t c = 0; c < channels; c += LANES) {
        twice<Row, F::SIDE, F::SIDE, L::LOW, L::HIGH>(
            F::template pixels<Row>,
            [&](int i) {
                __builtin_prefetch(after[i] + c);
                return get(at[i] + c);
            },
            [&](int p, Row row) { put(to + (p - L::FIRST) * next + c, row); });
    }
}

// The same of gradients of results, and their sum over the tile.
template <class F, class L>
inline void transform_gradients(const float* const* at, const float* const* after, int64_t channels, float* to,
                                int64_t next, float* bias) {
    for (int64_t c = 0; c < channels; c += LANES) {
        Row sum{};
        twice<Row, F::TILE, F::SIDE, L::LOW, L::HIGH>(
            F::template gradients<Row>,
            [&](int i) {
                __builtin_prefetch(after[i] + c);
                const Row row = get(at[i] + c);
                if (L::LOW == 0) sum += row;
                return row;
            },
            [&](int p, Row row) { put(to + (p - L::FIRST) * next + c, row); });
        if (L::LOW == 0) put(bias + c, sum);
    }
}

// Results of a tile, of whose points `value` returns a row of registers from a channel on.
template <class F, class Value>
inline void write(Value value, const float* bias, const Tiles<F>& tiles, int64_t tile, int64_t channels, float* maps) {
    constexpr int64_t TILE = F::TILE;
    const int64_t top = tile / tiles.across % tiles.down * TILE, left = tile % tiles.across * TILE;
    const int64_t rows = std::min(TILE, tiles.height - top);
    const int64_t columns = std::min(TILE, tiles.width - left);
    float* map = maps + tile / (tiles.down * tiles.across) * tiles.height * tiles.width * channels;
    const bool past = tiles.values(channels) >= LARGE;
    for (int64_t c = 0; c < channels; c += LANES) {
        const Row shift = bias ? get(bias + c) : Row{};
        twice<Row, F::SIDE, F::TILE>(
            F::template results<Row>, [&](int p) { return value(p, c); },
            [&](int i, Row row) {
                const int64_t y = i / TILE, x = i % TILE;
                float* to = map + ((top + y) * tiles.width + left + x) * channels + c;
                if (y >= rows || x >= columns) return;
                if (past) return put_past(to, row + shift);
                put(to, row + shift);
                __builtin_prefetch(to + LANES, 1);
            });
    }
}

// Filters for a convolution from `from` to `to` channels, (POINTS, from, to), those of channels from `first` to `end`; turned:
// for the gradient in its images. Channels are passed in the order in which their weights are near one another.
template <class F, class L>
void transform_filters(const float* weight, bool turned, int64_t from, int64_t to, int64_t first, int64_t end, float* u,
                       int64_t next) {
    const int64_t line = turned ? 9 * to : 9, column = turned ? 9 : 9 * from;
    const auto transform_row = [&](int64_t i, int64_t j) {
        alignas(sizeof(Row)) float taps[9][LANES];
        for (int64_t l = 0; l < LANES; ++l)
            for (int tap = 0; tap < 9; ++tap)
                taps[tap][l] = weight[i * line + (j + l) * column + (turned ? 8 - tap : tap)];
        twice<Row, 3, F::SIDE, L::LOW, L::HIGH>(
            F::template weights<Row>, [&](int tap) { return get(taps[tap]); },
            [&](int p, Row row) { put(u + (p - L::FIRST) * next + i * to + j, row); });
    };
    if (turned)
        for (int64_t i = first; i < end; ++i)
            for (int64_t j = 0; j < to; j += LANES) transform_row(i, j);
    else
        for (int64_t j = 0; j < to; j += LANES)
            for (int64_t i = first; i < end; ++i) transform_row(i, j);
}

// A convolution from `from` to `to` channels of tiles from `first` to `end`, with transformed filters `u`. The products of a
// point take the place of its pixels, so a block stays in the cache of its core. False: there is not enough memory.
template <class F>
ALONE bool convolve(const float* x, const float* u, const float* bias, float* out, const Tiles<F> tiles, int64_t from,
                    int64_t to, int64_t first, int64_t end) {
    using All = Lines<F, 0, F::SIDE>;
    const int64_t next = APART * std::max(from, to) + GAP, filters = from * to + GAP;
    const Room zeros(from, true), v(F::POINTS * next), room(APART * from);
    if (!zeros || !v || !room) return false;
    for (; first < end; first += APART) {
        const int64_t many = std::min(APART, end - first);
        for (int64_t i = 0; i < many; ++i) {
            const typename Tiles<F>::template Pixels<F::SIDE> read(tiles, x, zeros, first + i, 1, from);
            transform<F, All>(read.at, read.after, from, v + i * from, next);
        }
        for (int64_t p = 0; p < F::POINTS; ++p) {
            std::memcpy(room, v + p * next, many * from * sizeof(float));
            product({room, from, 1}, many, u + p * filters, v + p * next, to, to, from, false);
        }
        for (int64_t i = 0; i < many; ++i)
            write([&](int p, int64_t c) { return get_ahead(v + p * next + i * to + c); }, bias, tiles, first + i, to, out);
    }
    return true;
}

// Each thread some of the tiles, with memory of its own.
template <class F>
bool tiled_apart(const float* x, const float* weight, bool turned, const float* bias, float* out, const Tiles<F>& tiles,
                 int64_t from, int64_t to) {
    const int64_t filters = from * to + GAP;
    const Room u(F::POINTS * filters);
    return u && divided(from, [&](int64_t first, int64_t end) {
               transform_filters<F, Lines<F, 0, F::SIDE>>(weight, turned, from, to, first, end, u, filters);
               return true;
           }) && divided(tiles.all, [&](int64_t first, int64_t end) {
               return convolve<F>(x, u, bias, out, tiles, from, to, first, end);
           });
}

// Memory of one half of the threads: its points of transformed filters (POINTS, from, to) and of two matrices of the tiles of
// a block, and what else is needed. Not there, if there is not as much.
struct Half {
    const Room u, v, m, zeros, biases;
    int64_t filters, before, after;

    Half(int64_t points, int64_t size, int64_t from, int64_t to)
        : u(points * (from * to + GAP)), v(points * (size * from + GAP)), m(points * (size * to + GAP)),
          zeros(std::max(from, to), true), biases(size * to), filters(from * to + GAP), before(size * from + GAP),
          after(size * to + GAP) {}
    bool operator!() const { return !u || !v || !m || !zeros || !biases; }
};

// Calls `work` in every thread with its lines, the memory of its half, and that of both, which a thread of each half asks for.
// False: there is not enough.
template <class F, class Work>
bool with_halves(int64_t size, int64_t from, int64_t to, Work work) {
    const Half* halves[2];
    bool done = true;
#pragma omp parallel reduction(&& : done)
    {
        const Share share;
        with_lines<F>(share, [&](auto lines) {
            using L = decltype(lines);
            std::optional<Half> half;
            if (!share.part) halves[share.half] = &half.emplace(L::END - L::FIRST, size, from, to);
            wait();
            const Half &own = *halves[share.half], &first = *halves[0], &second = *halves[share.halves - 1];
            done = !!first && !!second;
            if (done) work(lines, share, own, first, second);
            wait();
        });
    }
    return done;
}

// A row of a point in the memory of halves.
template <class F>
inline Row get(int p, const float* first, const float* second, int64_t next, int64_t from) {
    constexpr int MIDDLE = Lines<F, 0, F::SIDE / 2>::END;
    return get_ahead((first == second || p < MIDDLE ? first + p * next : second + (p - MIDDLE) * next) + from);
}

// Calls `visit` with points of a share, counted from its first, and strips of so many channels, where each begins and how
// wide it is.
template <class L, class Visit>
inline void each_strip(const Share& share, int64_t channels, Visit visit) {
    const int64_t strips = (channels + STRIP - 1) / STRIP, tasks = (L::END - L::FIRST) * strips;
    for (int64_t task = share.first(tasks); task < share.end(tasks); ++task) {
        const int64_t j = task % strips * STRIP;
        visit(task / strips, j, std::min(STRIP, channels - j));
    }
}

// What one thread does of a convolution whose blocks of tiles all threads share: the products of its points, and then some
// of the tiles.
template <class F, class L>
ALONE void convolve_together(const Share share, const Half& own, const Half& lower, const Half& upper, const float* x,
                             const float* weight, bool turned, const float* bias, float* out, const Tiles<F> tiles,
                             int64_t from, int64_t to) {
    const int64_t size = tiles.block(), before = own.before, after = own.after, filters = own.filters;
    float *u = own.u, *v = own.v, *m = own.m;
    const float *low = lower.m, *high = upper.m;
    transform_filters<F, L>(weight, turned, from, to, share.first(from), share.end(from), u, filters);
    for (int64_t first = 0; first < tiles.all; first += size) {
        const int64_t many = std::min(size, tiles.all - first);
        for (int64_t i = share.first(many); i < share.end(many); ++i) {
            const typename Tiles<F>::template Pixels<F::SIDE> read(tiles, x, own.zeros, first + i, 1, from);
            transform<F, L>(read.at, read.after, from, v + i * from, before);
        }
        wait();
        each_strip<L>(share, to, [&](int64_t p, int64_t j, int64_t columns) {
            product({v + p * before, from, 1}, many, u + p * filters + j, m + p * after + j, columns, to, from, false);
        });
        wait();
        for (int64_t i = share.thread * many / share.threads; i < (share.thread + 1) * many / share.threads; ++i)
            write([&](int p, int64_t c) { return get<F>(p, low, high, after, i * to + c); }, bias, tiles, first + i, to, out);
    }
    settle();
}

template <class F>
bool tiled_together(const float* x, const float* weight, bool turned, const float* bias, float* out,
                    const Tiles<F>& tiles, int64_t from, int64_t to) {
    return with_halves<F>(tiles.block(), from, to, [&](auto lines, const Share& share, auto&... halves) {
        convolve_together<F, decltype(lines)>(share, halves..., x, weight, turned, bias, out, tiles, from, to);
    });
}

template <class F>
bool tiled(const float* x, const float* weight, bool turned, const float* bias, float* out, const Tiles<F>& tiles,
           int64_t from, int64_t to) {
    const bool apart = tiles.all >= APART_FROM * omp_get_max_threads();
    return (apart ? tiled_apart<F> : tiled_together<F>)(x, weight, turned, bias, out, tiles, from, to);
}

// Back to gradients of weights (K, C, 3, 3) from those of transformed ones, of whose points `value` returns a row of
// registers from k on.
template <class F, class Value>
inline void transform_back(Value value, int64_t c, int64_t C, int64_t K, float* gw) {
    for (int64_t k = 0; k < K; k += LANES) {
        twice<Row, F::SIDE, 3>(
            F::template filters<Row>, [&](int p) { return value(p, k); },
            [&](int tap, Row row) {
                for (int l = 0; l < LANES; ++l) gw[((k + l) * C + c) * 9 + tap] = row[l];
            });
    }
}

// What one thread does for the gradients in weights and bias: its points, from the pixels to the sums over all tiles, and then
// some of the weights.
template <class F, class L>
ALONE void add_up(const Share share, const Half& own, const Half& lower, const Half& upper, const float* x,
                  const float* g, float* gw, float* gb, const Tiles<F> tiles, int64_t C, int64_t K) {
    const int64_t size = tiles.block(), before = own.before, after = own.after, filters = own.filters;
    float *u = own.u, *v = own.v, *m = own.m, *biases = own.biases;
    const float *low = lower.u, *high = upper.u;
    for (int64_t first = 0; first < tiles.all; first += size) {
        const int64_t many = std::min(size, tiles.all - first);
        if (share.parts > 1) wait();
        for (int64_t i = share.first(many); i < share.end(many); ++i) {
            const typename Tiles<F>::template Pixels<F::SIDE> read(tiles, x, own.zeros, first + i, 1, C);
            transform<F, L>(read.at, read.after, C, v + i * C, before);
            const typename Tiles<F>::template Pixels<F::TILE> given(tiles, g, own.zeros, first + i, 0, K);
            transform_gradients<F, L>(given.at, given.after, K, m + i * K, after, biases + i * K);
        }
        if (share.parts > 1) wait();
        each_strip<L>(share, K, [&](int64_t p, int64_t j, int64_t columns) {
            product({v + p * before, 1, C}, C, m + p * after + j, u + p * filters + j, columns, K, many, first > 0);
            for (int64_t i = 0; L::LOW == 0 && p == 0 && i < many; ++i)
                for (int64_t k = j; k < j + columns; ++k) gb[k] = (first + i ? gb[k] : 0.0f) + biases[i * K + k];
        });
    }
    wait();
    for (int64_t c = share.thread * C / share.threads; c < (share.thread + 1) * C / share.threads; ++c)
        transform_back<F>([&](int p, int64_t k) { return get<F>(p, low, high, filters, c * K + k); }, c, C, K, gw);
}

// The gradients in weights and bias. False: there is not enough memory.
template <class F>
bool tiled_weights(const float* x, const float* g, float* gw, float* gb, const Tiles<F>& tiles, int64_t C, int64_t K) {
    return with_halves<F>(tiles.block(), C, K, [&](auto lines, const Share& share, auto&... halves) {
        add_up<F, decltype(lines)>(share, halves..., x, g, gw, gb, tiles, C, K);
    });
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
