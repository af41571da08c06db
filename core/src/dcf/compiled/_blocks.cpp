// Instance norm, ReLU and the mean of 2x2 pixels in one pass over the maps of an image, and its two derivatives.
//
// Maps are (N, H, W, C) in memory, in fp32 or bf16; everything is computed in fp32. An odd last row or column is in no
// window. What a compiler makes of the same formulas goes through all images once for each sum, so through memory; here
// one image stays in the cache. An image is the work of one thread, so results do not depend on how many there are.
//
// With y = w (x - mean) rstd + b, P pixels, and u = g / 4 where y > 0 (g: that of the window), else 0:
//   gb = sum u,  gw = sum u xh,  gx = w rstd (u - gb / P - xh gw / P),  xh = (x - mean) rstd.
// A cotangent (a, alpha, beta) of (gx, gw, gb) comes to, with A = mean a, Q = mean a xh:
//   in u: w rstd (a - A - xh Q) + alpha xh + beta =: d;  in g: sum of d / 4 over the window where y > 0;
//   in w: rstd (sum a u - A gb - Q gw);
//   in x: the derivative of xh, rstd (h - mean h - xh mean h xh), with h = alpha u - w rstd (u Q + a gw / P),
//         and that of rstd: - w rstd^2 (sum a u - A gb - Q gw) xh / P.
// A value that is not a number stays one: masks are factors.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t C = DCF_CHANNELS;

struct bf16 {
    uint16_t bits;
};

inline float get(float x) { return x; }

inline float get(bf16 x) {
    uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline void put(float& to, float x) { to = x; }

inline void put(bf16& to, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    uint32_t even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to the nearest, ties to even
    to.bits = static_cast<uint16_t>(x == x ? even : 0x7fc0);
}

// 1 for positive values, else 0, by their bits: compilers make a branch of a comparison, which only AVX-512 does not mind.
inline float positive(float y) {
    uint32_t bits;
    std::memcpy(&bits, &y, sizeof bits);
    return static_cast<float>(static_cast<int32_t>(((0 - bits) & ~bits) >> 31));
}

inline float open(float x, float scale, float shift) { return positive(x * scale + shift); }

// One row of channels of a pixel. Functions of rows are not inlined: what is known of their pointers is lost then, and
// the loop is not vectorised.
#define ROW _Pragma("omp simd") for (int64_t c = 0; c < C; ++c)
#define OF_ROWS __attribute__((noinline)) void

template <class X>
OF_ROWS add(const X* __restrict x, float* __restrict sum) {
    ROW sum[c] += get(x[c]);
}

template <class X>
OF_ROWS add_squares(const X* __restrict x, const float* __restrict mean, float* __restrict sum) {
    ROW {
        float d = get(x[c]) - mean[c];
        sum[c] += d * d;
    }
}

template <class X, class O>
OF_ROWS pool(const X* __restrict top, const X* __restrict bottom, const float* __restrict scale,
             const float* __restrict shift, O* __restrict out) {
    ROW {
        float sum = 0;
        const float four[4] = {get(top[c]), get(top[C + c]), get(bottom[c]), get(bottom[C + c])};
        for (int k = 0; k < 4; ++k) {
            float y = four[k] * scale[c] + shift[c];
            sum += y * positive(y);
        }
        put(out[c], sum * 0.25f);
    }
}

template <class X, class O>
void forward(const X* x, const float* w, const float* b, float eps, O* out, float* mean, float* rstd, int64_t n,
             int64_t h, int64_t width) {
    const int64_t pixels = h * width;
#pragma omp parallel for
    for (int64_t i = 0; i < n; ++i) {
        const X* image = x + i * pixels * C;
        float *m = mean + i * C, *r = rstd + i * C;
        alignas(64) float sum[C] = {}, squares[C] = {}, center[C], scale[C], shift[C];
        for (int64_t p = 0; p < pixels; ++p) add(image + p * C, sum);
        ROW center[c] = sum[c] / pixels;
        for (int64_t p = 0; p < pixels; ++p) add_squares(image + p * C, center, squares);
        ROW {
            m[c] = center[c];
            r[c] = 1.0f / std::sqrt(squares[c] / pixels + eps);
            scale[c] = r[c] * w[c];
            shift[c] = b[c] - center[c] * scale[c];
        }
        O* o = out + i * (h / 2) * (width / 2) * C;
        for (int64_t row = 0; row + 1 < h; row += 2) {
            for (int64_t column = 0; column + 1 < width; column += 2, o += C) {
                const X* top = image + (row * width + column) * C;
                pool(top, top + width * C, scale, shift, o);
            }
        }
    }
}

// What is the same for all pixels of an image.
struct Row {
    alignas(64) float scale[C], shift[C], center[C], rstd[C];

    Row(const float* w, const float* b, const float* mean, const float* r) {
        ROW {
            center[c] = mean[c];
            rstd[c] = r[c];
            scale[c] = r[c] * w[c];
            shift[c] = b[c] - mean[c] * scale[c];
        }
    }
};

// Calls `visit` with every pixel and its window, or -1 where it has none.
template <class F>
inline void each_pixel(int64_t h, int64_t width, F visit) {
    for (int64_t y = 0, p = 0; y < h; ++y)
        for (int64_t x = 0; x < width; ++x, ++p)
            visit(p, y / 2 < h / 2 && x / 2 < width / 2 ? (y / 2) * (width / 2) + x / 2 : -1);
}

template <class X, class G>
OF_ROWS add_gradient(const X* __restrict x, const G* __restrict g, const float* __restrict scale,
                     const float* __restrict shift, float* __restrict with_x, float* __restrict alone) {
    ROW {
        float v = get(x[c]);
        float u = get(g[c]) * open(v, scale[c], shift[c]);
        with_x[c] += u * v;
        alone[c] += u;
    }
}

template <class X, class G, class O>
OF_ROWS put_gradient(const X* __restrict x, const G* __restrict g, const float* __restrict scale,
                     const float* __restrict shift, const float* __restrict slope, const float* __restrict offset,
                     O* __restrict out) {
    ROW {
        float v = get(x[c]);
        float u = get(g[c]) * open(v, scale[c], shift[c]) * 0.25f;
        put(out[c], u * scale[c] + v * slope[c] + offset[c]);
    }
}

template <class X, class G, class O>
void backward(const G* g, const X* x, const float* w, const float* b, const float* mean, const float* rstd, O* gx,
              float* gw, float* gb, int64_t n, int64_t h, int64_t width) {
    const int64_t pixels = h * width;
    alignas(64) static const G none[C] = {};
#pragma omp parallel for
    for (int64_t i = 0; i < n; ++i) {
        const X* image = x + i * pixels * C;
        const G* from = g + i * (h / 2) * (width / 2) * C;
        O* out = gx + i * pixels * C;
        const Row row(w, b, mean + i * C, rstd + i * C);
        alignas(64) float with_x[C] = {}, alone[C] = {}, slope[C], offset[C];
        each_pixel(h, width, [&](int64_t p, int64_t window) {
            add_gradient(image + p * C, window < 0 ? none : from + window * C, row.scale, row.shift, with_x, alone);
        });
        ROW {
            float sum = alone[c] * 0.25f;
            float product = (with_x[c] * 0.25f - sum * row.center[c]) * row.rstd[c];
            gb[i * C + c] = sum;
            gw[i * C + c] = product;
            slope[c] = -row.scale[c] * row.rstd[c] * product / pixels;
            offset[c] = -row.scale[c] * sum / pixels - slope[c] * row.center[c];
        }
        each_pixel(h, width, [&](int64_t p, int64_t window) {
            const G* given = window < 0 ? none : from + window * C;
            put_gradient(image + p * C, given, row.scale, row.shift, slope, offset, out + p * C);
        });
    }
}

// Sums over the pixels of an image: of a, a xh, u, u xh and a u.
struct Sums {
    alignas(64) float a[C] = {}, ax[C] = {}, u[C] = {}, ux[C] = {}, au[C] = {};
};

template <class A, class X, class G>
OF_ROWS add_twice(const A* __restrict a, const X* __restrict x, const G* __restrict g, const Row& row,
                  Sums& __restrict sums) {
    ROW {
        float v = get(x[c]), t = get(a[c]);
        float u = get(g[c]) * open(v, row.scale[c], row.shift[c]) * 0.25f;
        float normed = (v - row.center[c]) * row.rstd[c];
        sums.a[c] += t;
        sums.ax[c] += t * normed;
        sums.u[c] += u;
        sums.ux[c] += u * normed;
        sums.au[c] += t * u;
    }
}

// Factors of what goes to x and to u, each once for an image.
struct Factors {
    alignas(64) float x_u[C], x_a[C], x_n[C], x_1[C], u_a[C], u_n[C], u_1[C];
};

template <class A, class X, class G>
OF_ROWS put_twice(const A* __restrict a, const X* __restrict x, const G* __restrict g, const Row& row,
                  const Factors& __restrict f, float* __restrict dx, float* __restrict dg) {
    ROW {
        float v = get(x[c]), t = get(a[c]);
        float mask = open(v, row.scale[c], row.shift[c]) * 0.25f;
        float normed = (v - row.center[c]) * row.rstd[c];
        dx[c] = f.x_u[c] * mask * get(g[c]) + f.x_a[c] * t + f.x_n[c] * normed + f.x_1[c];
        dg[c] += mask * (f.u_a[c] * t + f.u_n[c] * normed + f.u_1[c]);
    }
}

template <class A, class X, class G>
void twice(const A* a, const float* alpha, const float* beta, const G* g, const X* x, const float* w, const float* b,
           const float* mean, const float* rstd, float* dg, float* dx, float* dw, int64_t n, int64_t h,
           int64_t width) {
    const int64_t pixels = h * width, windows = (h / 2) * (width / 2);
    alignas(64) static const G none[C] = {};
#pragma omp parallel for
    for (int64_t i = 0; i < n; ++i) {
        const A* given = a + i * pixels * C;
        const X* image = x + i * pixels * C;
        const G* from = g + i * windows * C;
        float *to_x = dx + i * pixels * C, *to_g = dg + i * windows * C;
        alignas(64) float nobody[C] = {};
        const Row row(w, b, mean + i * C, rstd + i * C);
        const float *al = alpha + i * C, *be = beta + i * C;
        Sums sums;
        Factors f;
        each_pixel(h, width, [&](int64_t p, int64_t window) {
            add_twice(given + p * C, image + p * C, window < 0 ? none : from + window * C, row, sums);
        });
        ROW {
            float ma = sums.a[c] / pixels, mq = sums.ax[c] / pixels, mu = sums.u[c] / pixels, mb = sums.ux[c] / pixels;
            float s = sums.au[c] - ma * sums.u[c] - mq * sums.ux[c];
            float scale = row.scale[c], r = row.rstd[c];
            float mean_h = al[c] * mu - scale * (mu * mq + ma * mb);
            float mean_hx = al[c] * mb - 2 * scale * mb * mq;
            dw[i * C + c] = r * s;
            f.x_u[c] = r * (al[c] - scale * mq);
            f.x_a[c] = -r * scale * mb;
            f.x_n[c] = -r * mean_hx - scale * r * s / pixels;
            f.x_1[c] = -r * mean_h;
            f.u_a[c] = scale;
            f.u_n[c] = al[c] - scale * mq;
            f.u_1[c] = be[c] - scale * ma;
        }
        std::memset(to_g, 0, sizeof(float) * windows * C);
        each_pixel(h, width, [&](int64_t p, int64_t window) {
            const bool has = window >= 0;
            put_twice(given + p * C, image + p * C, has ? from + window * C : none, row, f, to_x + p * C,
                      has ? to_g + window * C : nobody);
        });
    }
}

// Calls `function` with a pointer of the type that the flag says.
template <class F>
void typed(const void* data, int low, F function) {
    low ? function(static_cast<const bf16*>(data)) : function(static_cast<const float*>(data));
}

template <class F>
void typed(void* data, int low, F function) {
    low ? function(static_cast<bf16*>(data)) : function(static_cast<float*>(data));
}

}  // namespace

extern "C" {

int dcf_forward(const void* x, int x_low, const float* w, const float* b, float eps, void* out, int out_low,
                float* mean, float* rstd, int64_t n, int64_t h, int64_t width) {
    typed(x, x_low, [&](auto* x_) {
        typed(out, out_low, [&](auto* out_) { forward(x_, w, b, eps, out_, mean, rstd, n, h, width); });
    });
    return 0;
}

int dcf_backward(const void* g, int g_low, const void* x, int x_low, const float* w, const float* b,
                 const float* mean, const float* rstd, void* gx, int gx_low, float* gw, float* gb, int64_t n,
                 int64_t h, int64_t width) {
    typed(g, g_low, [&](auto* g_) {
        typed(x, x_low, [&](auto* x_) {
            typed(gx, gx_low,
                  [&](auto* gx_) { backward(g_, x_, w, b, mean, rstd, gx_, gw, gb, n, h, width); });
        });
    });
    return 0;
}

int dcf_twice(const void* a, int a_low, const float* alpha, const float* beta, const void* g, int g_low,
              const void* x, int x_low, const float* w, const float* b, const float* mean, const float* rstd,
              float* dg, float* dx, float* dw, int64_t n, int64_t h, int64_t width) {
    typed(a, a_low, [&](auto* a_) {
        typed(g, g_low, [&](auto* g_) {
            typed(x, x_low, [&](auto* x_) {
                twice(a_, alpha, beta, g_, x_, w, b, mean, rstd, dg, dx, dw, n, h, width);
            });
        });
    });
    return 0;
}

}  // extern "C"
