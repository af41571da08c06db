// Minimal filtering, F(m x m, 3x3): the m x m results of a 3x3 filter by (m + 2)^2 multiplications instead of 9 m^2.
//
// With d the pixels under a tile, g a filter, and y the tile: V = Bt d B, U = G g Gt, y = At (V U) A, where V U are
// multiplied point by point. The gradient in g is Gt (V (A dy At)) G. Of several channels or tiles, the products are
// summed before they are transformed back. Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks,
// CVPR 2016, section 4.3. G and A take the values of polynomials with the coefficients g and dy at 0, at pairs of places
// a and -a, and at infinity; Bt is the transpose of what finds the coefficients of a product from its values. So even and
// odd coefficients are summed once for a pair.

#pragma once

namespace {

// Pairs of places. The larger the tile, the more is lost by rounding; of the fractions with few digits these lose least.
template <int m>
constexpr double PLACES[m / 2] = {};
template <>
constexpr double PLACES<4>[] = {1, 2};
template <>
constexpr double PLACES<8>[] = {0.375, 0.75, 1.25, 2.5};

template <int m>
struct Filtering {
    static constexpr int TILE = m, SIDE = m + 2, POINTS = SIDE * SIDE, PAIRS = m / 2;

    // Coefficients of the product of (x - a a) over all places a but that of a pair, by powers of x; the last is of all.
    struct Polynomials {
        double of[PAIRS + 1][PAIRS + 1] = {};

        constexpr Polynomials() {
            for (int but = 0; but <= PAIRS; ++but) {
                double(&c)[PAIRS + 1] = of[but];
                c[0] = 1;
                for (int k = 0; k < PAIRS; ++k)
                    for (int i = PAIRS; i >= 0 && k != but; --i)
                        c[i] = (i ? c[i - 1] : 0.0) - c[i] * PLACES<m>[k] * PLACES<m>[k];
            }
        }
        constexpr double value(int but, double x) const {
            double sum = 0;
            for (int i = PAIRS; i >= 0; --i) sum = sum * x + of[but][i];
            return sum;
        }
    };
    static constexpr Polynomials P{};

    static constexpr float power(int k, int of) { return of ? PLACES<m>[k] * power(k, of - 1) : 1.0; }
    // Of the value of a filter at a place, and at 0.
    static constexpr float weight(int k, int of) {
        const double square = PLACES<m>[k] * PLACES<m>[k];
        return power(k, of) / (2 * square * P.value(k, square));
    }
    static constexpr float AT_ZERO = 1 / P.of[PAIRS][0];

// Loops over places and coefficients are to disappear, and constants with them.
#define EACH(i, first, end) _Pragma("GCC unroll 16") for (int i = first; i < end; ++i)

    // Bt d.
    template <class T>
    static inline void pixels(const T (&d)[SIDE], T (&to)[SIDE]) {
        T even = d[SIDE - 2], odd = d[SIDE - 1];
        EACH(i, 0, PAIRS) {
            even += float(P.of[PAIRS][i]) * d[2 * i];
            odd += float(P.of[PAIRS][i]) * d[2 * i + 1];
        }
        to[0] = even;
        to[SIDE - 1] = odd;
        EACH(k, 0, PAIRS) {
            T p = d[SIDE - 2], q = d[SIDE - 3];
            EACH(i, 0, PAIRS - 1) {
                p += float(P.of[k][i]) * d[2 * i + 2];
                q += float(P.of[k][i]) * d[2 * i + 1];
            }
            to[2 * k + 1] = p + power(k, 1) * q;
            to[2 * k + 2] = p - power(k, 1) * q;
        }
    }

    // G g.
    template <class T>
    static inline void weights(const T (&g)[3], T (&to)[SIDE]) {
        to[0] = AT_ZERO * g[0];
        to[SIDE - 1] = g[2];
        EACH(k, 0, PAIRS) {
            const T p = weight(k, 0) * g[0] + weight(k, 2) * g[2], q = weight(k, 1) * g[1];
            to[2 * k + 1] = p + q;
            to[2 * k + 2] = p - q;
        }
    }

    // At m.
    template <class T>
    static inline void results(const T (&values)[SIDE], T (&to)[TILE]) {
        T even[PAIRS], odd[PAIRS];
        EACH(k, 0, PAIRS) {
            even[k] = values[2 * k + 1] + values[2 * k + 2];
            odd[k] = values[2 * k + 1] - values[2 * k + 2];
        }
        EACH(i, 0, TILE) {
            const T(&from)[PAIRS] = i % 2 ? odd : even;
            T sum = i == 0 ? values[0] + from[0] : power(0, i) * from[0];
            EACH(k, 1, PAIRS) sum += power(k, i) * from[k];
            to[i] = i == TILE - 1 ? sum + values[SIDE - 1] : sum;
        }
    }

    // A dy.
    template <class T>
    static inline void gradients(const T (&dy)[TILE], T (&to)[SIDE]) {
        to[0] = dy[0];
        to[SIDE - 1] = dy[TILE - 1];
        EACH(k, 0, PAIRS) {
            T p = dy[0], q = power(k, 1) * dy[1];
            EACH(i, 1, PAIRS) {
                p += power(k, 2 * i) * dy[2 * i];
                q += power(k, 2 * i + 1) * dy[2 * i + 1];
            }
            to[2 * k + 1] = p + q;
            to[2 * k + 2] = p - q;
        }
    }

    // Gt u.
    template <class T>
    static inline void filters(const T (&u)[SIDE], T (&to)[3]) {
        to[0] = AT_ZERO * u[0];
        to[1] = T{};
        to[2] = u[SIDE - 1];
        EACH(k, 0, PAIRS) {
            const T p = u[2 * k + 1] + u[2 * k + 2];
            to[0] += weight(k, 0) * p;
            to[1] += weight(k, 1) * (u[2 * k + 1] - u[2 * k + 2]);
            to[2] += weight(k, 2) * p;
        }
    }
};

// The same along both sides of a square, n x n to m x m, which is read and written once; lines `low` to `high` of it.
template <class T, int n, int m, int low = 0, int high = m, class Along, class Read, class Write>
inline void twice(Along along, Read read, Write write) {
    T half[high - low][n], found[m];
    for (int j = 0; j < n; ++j) {
        T column[n];
        for (int i = 0; i < n; ++i) column[i] = read(i * n + j);
        along(column, found);
        for (int i = low; i < high; ++i) half[i - low][j] = found[i];
    }
    for (int i = low; i < high; ++i) {
        along(half[i - low], found);
        for (int j = 0; j < m; ++j) write(i * m + j, found[j]);
    }
}

}  // namespace
