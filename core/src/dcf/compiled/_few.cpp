// 3x3 convolutions in fp32 that keep the sides of maps, with as few channels as images have, and their gradients.
//
// Maps are (N, H, W, C) in memory, weights (K, C, 3, 3). Sums are taken as they are defined, in an order that does not
// depend on the number of threads.

#include "_rows.hpp"

namespace {

constexpr int64_t GROUPS = 64;  // of images, whose sums are taken apart

// Maps with a border of zeros, so that three pixels beside each other are 3 C values in a row everywhere.
struct Padded {
    int64_t height, width, channels, row;

    Padded(int64_t h, int64_t w, int64_t c) : height(h), width(w), channels(c), row((w + 2) * c) {}
    int64_t values() const { return (height + 2) * row; }

    void fill(const float* map, float* to) const {
        std::memset(to, 0, values() * sizeof(float));
        for (int64_t y = 0; y < height; ++y)
            std::memcpy(to + (y + 1) * row + channels, map + y * width * channels, width * channels * sizeof(float));
    }

    void empty(const float* from, float* map) const {
        for (int64_t y = 0; y < height; ++y)
            std::memcpy(map + y * width * channels, from + (y + 1) * row + channels, width * channels * sizeof(float));
    }
};

// Weights as (3, 3, C, K).
void order(const float* weight, int64_t C, int64_t K, float* to) {
    for (int64_t k = 0; k < K; ++k)
        for (int64_t c = 0; c < C; ++c)
            for (int tap = 0; tap < 9; ++tap) to[(tap * C + c) * K + k] = weight[(k * C + c) * 9 + tap];
}

// R pixels beside each other, K rows of registers.
template <int R, int K>
inline void pixels_of_few(const Padded& from, const float* at, const float* u, int64_t width, const float* bias,
                          float* out, int64_t pixel) {
    Row sums[R][K];
    for (int r = 0; r < R; ++r)
        for (int k = 0; k < K; ++k) sums[r][k] = bias ? get(bias + k * LANES) : Row{};
    for (int dy = 0; dy < 3; ++dy) {
        for (int64_t s = 0; s < 3 * from.channels; ++s) {
            const float* filter = u + (dy * 3 * from.channels + s) * width;
            Row row[K];
            for (int k = 0; k < K; ++k) row[k] = get(filter + k * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const float value = at[dy * from.row + r * from.channels + s];
#pragma GCC unroll 16
                for (int k = 0; k < K; ++k) sums[r][k] += value * row[k];
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int k = 0; k < K; ++k) put(out + r * pixel + k * LANES, sums[r][k]);
}

template <int R, int K>
ALONE void row_of_few(const Padded& from, const float* at, const float* u, int64_t width, const float* bias, float* out,
                int64_t pixel) {
    int64_t x = 0;
    for (; x + R <= from.width; x += R)
        pixels_of_few<R, K>(from, at + x * from.channels, u, width, bias, out + x * pixel, pixel);
    for (; x < from.width; ++x)
        pixels_of_few<1, K>(from, at + x * from.channels, u, width, bias, out + x * pixel, pixel);
}

// One image, with a border.
void convolve(const Padded& from, const float* room, const float* u, const float* bias, float* out, int64_t K) {
    for (int64_t y = 0; y < from.height; ++y) {
        const float* at = room + y * from.row;
        float* to = out + y * from.width * K;
        int64_t k = 0;
        for (; k + COLUMNS * LANES <= K; k += COLUMNS * LANES)
            row_of_few<4, COLUMNS>(from, at, u + k, K, bias ? bias + k : nullptr, to + k, K);
        for (; k < K; k += LANES) row_of_few<4, 1>(from, at, u + k, K, bias ? bias + k : nullptr, to + k, K);
    }
}

// Adds the sums over the pixels of a map of R values of the image times one row of registers of the gradient.
template <int R>
void sums_of_few(const Padded& from, const float* at, const float* g, int64_t pixel, float* to, int64_t width) {
    Row sums[R];
    for (int r = 0; r < R; ++r) sums[r] = get(to + r * width);
    for (int64_t y = 0; y < from.height; ++y) {
        for (int64_t x = 0; x < from.width; ++x) {
            const Row row = get(g + (y * from.width + x) * pixel);
            const float* values = at + y * from.row + x * from.channels;
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) sums[r] += values[r] * row;
        }
    }
    for (int r = 0; r < R; ++r) put(to + r * width, sums[r]);
}

// Adds what one row of registers of a gradient, its pixels `pixel` apart, comes to in weights and, after them, bias.
void add_weights(const Padded& from, const float* room, const float* g, int64_t pixel, float* to, int64_t width) {
    constexpr void (*sums[])(const Padded&, const float*, const float*, int64_t, float*, int64_t) = {
        sums_of_few<3>, sums_of_few<6>, sums_of_few<9>, sums_of_few<12>};
    const int64_t taps = 3 * from.channels;
    for (int dy = 0; dy < 3; ++dy)
        sums[from.channels - 1](from, room + dy * from.row, g, pixel, to + dy * taps * width, width);
    Row all = get(to + 3 * taps * width);
    for (int64_t p = 0; p < from.height * from.width; ++p) all += get(g + p * pixel);
    put(to + 3 * taps * width, all);
}

// Adds the sums of groups of images, and hands those of weights and bias out; `size` values a group.
void add_groups(float* parts, int64_t groups, int64_t size, int64_t C, int64_t K, float* gw, float* gb) {
    for (int64_t group = 1; group < groups; ++group)
        for (int64_t i = 0; i < size; ++i) parts[i] += parts[group * size + i];
    for (int64_t k = 0; k < K; ++k) {
        gb[k] = parts[9 * C * K + k];
        for (int64_t i = 0; i < 9 * C; ++i) gw[(k * C + i % C) * 9 + i / C] = parts[i * K + k];
    }
}

// What one row of pixels `given` gives to the values under each, added to a map with a border.
void add_row(const Padded& to, const float* given, int64_t width, float* at) {
    const int64_t taps = 3 * to.channels;
    for (int dy = 0; dy < 3; ++dy)
        for (int64_t x = 0; x < to.width; ++x)
            for (int64_t s = 0; s < taps; ++s)
                at[dy * to.row + x * to.channels + s] += given[x * width + dy * taps + s];
}

}  // namespace

// What follows returns 0, or 1 if there is not enough memory.
extern "C" {

int dcf_few(const float* x, const float* weight, const float* bias, float* out, int64_t n, int64_t h, int64_t w,
            int64_t C, int64_t K) {
    const Room u(9 * C * K);
    if (!u) return 1;
    order(weight, C, K, u);
    return !divided(n, [=, &u](int64_t first, int64_t end) {
        const Padded maps(h, w, C);
        const Room room(maps.values());
        if (!room) return false;
        for (int64_t i = first; i < end; ++i) {
            maps.fill(x + i * h * w * C, room);
            convolve(maps, room, u, bias, out + i * h * w * K, K);
        }
        return true;
    });
}

int dcf_few_weights(const float* x, const float* g, float* gw, float* gb, int64_t n, int64_t h, int64_t w, int64_t C,
                    int64_t K) {
    const int64_t groups = std::min(GROUPS, n), size = (9 * C + 1) * K;
    const Room parts(groups * size);
    const bool done = parts && divided(groups, [=, &parts](int64_t first, int64_t end) {
        const Padded maps(h, w, C);
        const Room room(maps.values());
        if (!room) return false;
        std::memset(parts + first * size, 0, (end - first) * size * sizeof(float));
        for (int64_t group = first; group < end; ++group)
            for (int64_t i = group * n / groups; i < (group + 1) * n / groups; ++i) {
                maps.fill(x + i * h * w * C, room);
                for (int64_t k = 0; k < K; k += LANES)
                    add_weights(maps, room, g + i * h * w * K + k, K, parts + group * size + k, K);
            }
        return true;
    });
    if (done) add_groups(parts, groups, size, C, K, gw, gb);
    return !done;
}

int dcf_few_images(const float* g, const float* weight, float* gx, int64_t n, int64_t h, int64_t w, int64_t C,
                   int64_t K) {
    const int64_t width = (9 * C + LANES - 1) / LANES * LANES;
    const Room u(K * width, true);
    if (!u) return 1;
    for (int64_t k = 0; k < K; ++k)
        for (int64_t i = 0; i < 9 * C; ++i) u[k * width + i] = weight[(k * C + i % C) * 9 + i / C];
    return !divided(n, [=, &u](int64_t first, int64_t end) {
        const Padded maps(h, w, C);
        const Room room(maps.values()), given(w * width);
        if (!room || !given) return false;
        for (int64_t i = first; i < end; ++i) {
            std::memset(room, 0, maps.values() * sizeof(float));
            for (int64_t y = 0; y < h; ++y) {
                product({g + (i * h + y) * w * K, K, 1}, w, u, given, width, width, K, false);
                add_row(maps, given, width, room + y * maps.row);
            }
            maps.empty(room, gx + i * h * w * C);
        }
        return true;
    });
}

}  // extern "C"
