// The first block of a network in fp32: a 3x3 convolution of images that keeps their sides, instance norm, ReLU and the
// mean of 2x2 pixels; and the gradients in its weights.
//
// Maps are (N, H, W, C) in memory, weights (K, C, 3, 3). Of all pixels of a map, one row of registers of channels is
// computed at a time and stays in the cache: what lies between is never written to memory, and is computed again for the
// gradient. Convolutions are computed in tiles, see `_filtering.hpp`; for the formulas of the norm see `_blocks.cpp`. The
// mean of a convolution is that of the pixels under each weight, so it is known ahead. Sums are taken in an order that does
// not depend on the number of threads.

#include "_rows.hpp"
#include "_filtering.hpp"

namespace {

using F = Filtering<4>;

constexpr int TILE = F::TILE, SIDE = F::SIDE, POINTS = F::POINTS;
constexpr int C = DCF_CHANNELS;
constexpr int64_t GROUPS = 64;  // of images, whose sums are taken apart
constexpr int TOGETHER = 4;     // tiles whose gradients are added at once
constexpr int SUM = SIDE + 1;   // the point at which a gradient is the sum of its tile, as all powers of its place are 1

struct Block {
    int64_t height, width, K;
    const float *filters, *taps;        // (K / LANES, C, POINTS, LANES) in points; (K / LANES, C, 9, LANES) as they are
    const float *bias, *scale, *shift;  // scale and shift of the norm

    int64_t down() const { return (height + TILE - 1) / TILE; }
    int64_t across() const { return (width + TILE - 1) / TILE; }
    int64_t tiles() const { return down() * across(); }
    int64_t pixels() const { return height * width; }
    // Tiles are places in a line, with one between their rows; so all of them are transformed in the same way.
    int64_t line() const { return across() + 1; }
    int64_t place(int64_t tile) const { return tile / across() * line() + tile % across(); }
    int64_t at(int64_t place) const { return place / LANES * (C * POINTS * LANES) + place % LANES; }  // in points
    int64_t places() const { return (down() * line() + LANES - 1) / LANES * LANES; }
    // The image with its border: every fourth pixel of every fourth line, (C, TILE, TILE, down + 1, line).
    int64_t grid() const { return places() + line() + LANES; }
    int64_t room() const { return C * TILE * TILE * grid(); }
    int64_t points() const { return C * POINTS * places(); }            // it in points, (places / LANES, C, POINTS, LANES)
    int64_t sums() const { return (POINTS * C + 3) * K; }               // gradients of all weights
    int64_t filter(int64_t k) const { return k * C * POINTS; }          // where those of channels from k on begin

    // Calls `visit` with the values of all 2x2 pixels, left to right, and the number of their window.
    template <class Visit>
    void windows(float* column, Visit visit) const {
        int64_t window = 0;
        for (int64_t y = 0; y < height; y += 2) {
            float *top = column + y * width * LANES, *bottom = top + width * LANES;
            for (int64_t x = 0; x < width; x += 2, ++window, top += 2 * LANES, bottom += 2 * LANES) {
                float* const four[] = {top, top + LANES, bottom, bottom + LANES};
                visit(four, window);
            }
        }
    }
};

void transform_image(const Block& block, const float* image, float* room, float* points) {
    const int64_t grid = block.grid(), line = block.line(), places = block.places();
    const auto at = [&](int64_t c, int64_t y, int64_t x) {
        return ((c * TILE + y % TILE) * TILE + x % TILE) * grid + y / TILE * line + x / TILE;
    };
    std::memset(room, 0, block.room() * sizeof(float));
    for (int64_t y = 0; y < block.height; ++y)
        for (int64_t x = 0; x < block.width; ++x)
            for (int c = 0; c < C; ++c) room[at(c, y + 1, x + 1)] = *image++;
    for (int c = 0; c < C; ++c)
        for (int64_t first = 0; first < places; first += LANES)
            twice<Row, SIDE, SIDE>(
                F::pixels<Row>, [&](int i) { return get(room + at(c, i / SIDE, i % SIDE) + first); },
                [&](int p, Row row) { put(points + block.at(first) + (c * POINTS + p) * LANES, row); });
}

void transform_filters(const float* weight, int64_t K, float* to, float* taps) {
    for (int64_t k = 0; k < K; k += LANES) {
        for (int c = 0; c < C; ++c, to += POINTS * LANES, taps += 9 * LANES) {
            for (int64_t l = 0; l < LANES; ++l)
                for (int tap = 0; tap < 9; ++tap) taps[tap * LANES + l] = weight[((k + l) * C + c) * 9 + tap];
            twice<Row, 3, SIDE>(
                F::weights<Row>, [&](int tap) { return get(taps + tap * LANES); },
                [&](int p, Row row) { put(to + p * LANES, row); });
        }
    }
}

// Sums over all pixels of an image of what lies under each weight, (C, 9); `line` has room for a line of pixels.
void add_up(const Block& block, const float* image, float* line, float* sums) {
    const int64_t size = block.width * C;
    const auto outside = [](int tap, int64_t side) { return tap == 0 ? side - 1 : tap == 2 ? 0 : -1; };
    for (int i = 0; i < 3; ++i) {
        std::memset(line, 0, size * sizeof(float));
        for (int64_t y = 0; y < block.height; ++y)
            for (int64_t x = 0; y != outside(i, block.height) && x < size; ++x) line[x] += image[y * size + x];
        for (int c = 0; c < C; ++c) {
            float all = 0;
            for (int64_t x = 0; x < size; x += C) all += line[x + c];
            for (int j = 0; j < 3; ++j)
                sums[c * 9 + i * 3 + j] = j == 1 ? all : all - line[outside(j, block.width) * C + c];
        }
    }
}

// The means over all pixels of channels from k on.
inline Row mean_of(const Block& block, const float* sums, int64_t k) {
    Row sum{};
    for (int64_t i = 0; i < C * 9; ++i) sum += sums[i] * get(block.taps + k * C * 9 + i * LANES);
    return get(block.bias + k) + sum / float(block.pixels());
}

// N tiles, whose points share what is read of the filters. `visit` is called with the line in its tile, the number and the
// value of every pixel.
template <int N, class Visit>
inline void convolve_tiles(const Block& block, const float* points, const float* filters, Row bias, int64_t first,
                           Visit visit) {
    Row half[N][TILE][SIDE];
    const float* at[N];
    for (int t = 0; t < N; ++t) at[t] = points + block.at(block.place(first + t));
    for (int i = 0; i < SIDE; ++i) {
        Row sums[N][SIDE] = {};
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
#pragma GCC unroll 6
            for (int j = 0; j < SIDE; ++j) {
                const int64_t p = c * POINTS + i * SIDE + j;
                Row filter = get(filters + p * LANES);
                hold(filter);
#pragma GCC unroll 4
                for (int t = 0; t < N; ++t) sums[t][j] += at[t][p * LANES] * filter;
            }
        }
        for (int t = 0; t < N; ++t) {
            Row four[TILE];
            F::results(sums[t], four);
            for (int x = 0; x < TILE; ++x) half[t][x][i] = four[x];
        }
    }
    for (int t = 0; t < N; ++t) {
        const int64_t top = (first + t) / block.across() * TILE, left = (first + t) % block.across() * TILE;
        for (int x = 0; x < TILE && left + x < block.width; ++x) {
            Row four[TILE];
            F::results(half[t][x], four);
            for (int y = 0; y < TILE && top + y < block.height; ++y)
                visit(y, (top + y) * block.width + left + x, four[y] + bias);
        }
    }
}

// Channels from k on, of all pixels.
template <class Visit>
inline void convolve(const Block& block, const float* points, int64_t k, Visit visit) {
    const float* filters = block.filters + block.filter(k);
    const Row bias = get(block.bias + k);
    int64_t tile = 0;
    for (; tile + 2 <= block.tiles(); tile += 2) convolve_tiles<2>(block, points, filters, bias, tile, visit);
    for (; tile < block.tiles(); ++tile) convolve_tiles<1>(block, points, filters, bias, tile, visit);
}

inline Row open(Row y) { return y > 0.0f ? Row{} + 1.0f : Row{}; }

inline Row total(const Row (&four)[4]) { return (four[0] + four[1]) + (four[2] + four[3]); }

void forward(const Block& block, const float* points, const float* sums, int64_t k, float eps, float* column, bool past,
             float* out, float* mean, float* rstd) {
    const Row about = mean_of(block, sums, k);  // but for what the convolution rounds
    Row over[TILE] = {}, squares[TILE] = {}, root;
    convolve(block, points, k, [&](int y, int64_t pixel, Row value) {
        const Row apart = value - about;
        over[y] += apart;
        squares[y] += apart * apart;
        put(column + pixel * LANES, value);
    });
    const float pixels = block.pixels();
    const Row rest = total(over) / pixels, center = about + rest, square = total(squares) / pixels - rest * rest;
    for (int l = 0; l < LANES; ++l) root[l] = 1.0f / std::sqrt(square[l] + eps);
    put(mean + k, center);
    put(rstd + k, root);
    const Row scale = root * get(block.scale + k), shift = get(block.shift + k) - center * scale;
    block.windows(column, [&](float* const* four, int64_t window) {
        Row sum{};
        for (int i = 0; i < 4; ++i) {
            const Row y = get(four[i]) * scale + shift;
            sum += y * open(y);
        }
        float* to = out + window * block.K + k;
        past ? put_past(to, 0.25f * sum) : put(to, 0.25f * sum);
    });
}

// The gradient in the convolution at a tile, in points, each `next` rows of registers apart.
inline void transform_gradient(const Block& block, const float* column, int64_t tile, float* to, int64_t next) {
    const int64_t top = tile / block.across() * TILE, left = tile % block.across() * TILE;
    const float* at = column + (top * block.width + left) * LANES;
    const bool whole = top + TILE <= block.height && left + TILE <= block.width;
    twice<Row, TILE, SIDE>(
        F::gradients<Row>,
        [&](int i) {
            const int64_t y = i / TILE, x = i % TILE;
            const bool inside = whole || (top + y < block.height && left + x < block.width);
            return inside ? get(at + (y * block.width + x) * LANES) : Row{};
        },
        [&](int p, Row row) { put(to + p * next * LANES, row); });
}

// Adds what a gradient in the convolution comes to in the filters, in points, and returns its sum.
ALONE Row add_filters(const Block& block, const float* points, const float* column, float* to) {
    Row sum{};
    alignas(sizeof(Row)) float found[POINTS * TOGETHER * LANES];
    for (int64_t first = 0; first < block.tiles(); first += TOGETHER) {
        const int64_t many = std::min<int64_t>(TOGETHER, block.tiles() - first);
        if (many < TOGETHER) std::memset(found, 0, sizeof found);
        for (int64_t t = 0; t < many; ++t) {
            transform_gradient(block, column, first + t, found + t * LANES, TOGETHER);
            sum += get(found + (SUM * TOGETHER + t) * LANES);
        }
        const float* at[TOGETHER];  // those beyond the last tile are multiplied by zero
        for (int64_t t = 0; t < TOGETHER; ++t) at[t] = points + block.at(block.place(first + std::min(t, many - 1)));
        for (int p = 0; p < POINTS; ++p) {
            Row row[TOGETHER];
            for (int t = 0; t < TOGETHER; ++t) hold(row[t] = get(found + (p * TOGETHER + t) * LANES));
            for (int i = p; i < C * POINTS; i += POINTS) {
                Row value = get(to + i * LANES);
                for (int t = 0; t < TOGETHER; ++t) value += at[t][i * LANES] * row[t];
                put(to + i * LANES, value);
            }
        }
    }
    return sum;
}

// Adds the gradients of filters, and after them, a line each, those of bias, scale and shift.
void backward(const Block& block, const float* points, int64_t k, const float* g, const float* mean, const float* rstd,
              float* column, float* to) {
    convolve(block, points, k, [&](int, int64_t pixel, Row value) { put(column + pixel * LANES, value); });
    const float pixels = block.pixels();
    const Row center = get(mean + k), root = get(rstd + k);
    const Row scale = root * get(block.scale + k), shift = get(block.shift + k) - center * scale;
    Row with_x[4] = {}, alone[4] = {};
    block.windows(column, [&](float* const* four, int64_t window) {
        const Row given = get(g + window * block.K + k);
        for (int i = 0; i < 4; ++i) {
            const Row x = get(four[i]), u = given * open(x * scale + shift);
            with_x[i] += u * x;
            alone[i] += u;
        }
    });
    const Row sum = 0.25f * total(alone), product = (0.25f * total(with_x) - sum * center) * root;
    const Row slope = -scale * root * product / pixels, offset = -scale * sum / pixels - slope * center;
    block.windows(column, [&](float* const* four, int64_t window) {
        const Row given = 0.25f * get(g + window * block.K + k);
        for (int i = 0; i < 4; ++i) {
            const Row x = get(four[i]), u = given * open(x * scale + shift);
            put(four[i], u * scale + x * slope + offset);
        }
    });
    const Row bias = add_filters(block, points, column, to + block.filter(k));
    float* line = to + block.filter(block.K) + k;
    for (Row row : {bias, product, sum}) {
        put(line, get(line) + row);
        line += block.K;
    }
}

// From the sums of groups of images to gradients; the first group's memory is used.
void finish(const Block& block, float* parts, int64_t groups, float* gw, float* gb, float* gscale, float* gshift) {
    const int64_t size = block.sums(), share = 1024;
#pragma omp parallel for
    for (int64_t first = 0; first < size; first += share)
        for (int64_t group = 1; group < groups; ++group)
            for (int64_t i = first; i < std::min(first + share, size); ++i) parts[i] += parts[group * size + i];
    for (int64_t k = 0; k < block.K; k += LANES)
        for (int c = 0; c < C; ++c) {
            const float* from = parts + block.filter(k) + c * POINTS * LANES;
            twice<Row, SIDE, 3>(
                F::filters<Row>, [&](int p) { return get(from + p * LANES); },
                [&](int tap, Row row) {
                    for (int64_t l = 0; l < LANES; ++l) gw[((k + l) * C + c) * 9 + tap] = row[l];
                });
        }
    const float* line = parts + block.filter(block.K);
    for (float* to : {gb, gscale, gshift}) {
        std::memcpy(to, line, block.K * sizeof(float));
        line += block.K;
    }
}

}  // namespace

// What follows returns 0, or 1 if there is not enough memory.
extern "C" {

int dcf_first(const float* x, const float* weight, const float* bias, const float* scale, const float* shift, float* out,
              float* mean, float* rstd, float eps, int64_t n, int64_t h, int64_t w, int64_t, int64_t K) {
    const Room filters(K * C * POINTS), taps(K * C * 9);
    if (!filters || !taps) return 1;
    transform_filters(weight, K, filters, taps);
    return !divided(n, [=, &filters, &taps](int64_t first, int64_t end) {
        const Block block{h, w, K, filters, taps, bias, scale, shift};
        const Room room(block.room()), points(block.points()), column(h * w * LANES), line(w * C), sums(C * 9);
        if (!room || !points || !column || !line || !sums) return false;
        const int64_t size = h * w / 4 * K;
        const bool past = n * size >= LARGE;
        for (int64_t i = first; i < end; ++i) {
            const float* image = x + i * h * w * C;
            transform_image(block, image, room, points);
            add_up(block, image, line, sums);
            for (int64_t k = 0; k < K; k += LANES)
                forward(block, points, sums, k, eps, column, past, out + i * size, mean + i * K, rstd + i * K);
        }
        return true;
    });
}

int dcf_first_backward(const float* g, const float* x, const float* weight, const float* bias, const float* scale,
                       const float* shift, const float* mean, const float* rstd, float* gw, float* gb, float* gscale,
                       float* gshift, int64_t n, int64_t h, int64_t w, int64_t, int64_t K) {
    const int64_t groups = std::min(GROUPS, n);
    const Room filters(K * C * POINTS), taps(K * C * 9);
    const Block all{h, w, K, filters, taps, bias, scale, shift};
    const Room parts(groups * all.sums());
    if (!filters || !taps || !parts) return 1;
    transform_filters(weight, K, filters, taps);
    const bool done = divided(groups, [=, &filters, &taps, &parts](int64_t first, int64_t end) {
        const Block block{h, w, K, filters, taps, bias, scale, shift};
        const Room room(block.room()), points(block.points()), column(h * w * LANES);
        if (!room || !points || !column) return false;
        float* sums = parts + first * block.sums();
        std::memset(sums, 0, (end - first) * block.sums() * sizeof(float));
        for (int64_t group = first; group < end; ++group, sums += block.sums())
            for (int64_t i = group * n / groups; i < (group + 1) * n / groups; ++i) {
                transform_image(block, x + i * h * w * C, room, points);
                for (int64_t k = 0; k < K; k += LANES)
                    backward(block, points, k, g + i * h * w / 4 * K, mean + i * K, rstd + i * K, column, sums);
            }
        return true;
    });
    if (done) finish(all, parts, groups, gw, gb, gscale, gshift);
    return !done;
}

}  // extern "C"
