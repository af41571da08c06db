// Minimal filtering, F(4x4, 3x3): 4x4 results of a 3x3 filter by 36 multiplications instead of 144.
//
// With d the 6x6 pixels under a tile, g a filter, and y the tile: V = Bt d B, U = G g Gt, y = At (V U) A, where V U are
// multiplied point by point. The gradient in g is Gt (V (A dy At)) G. Of several channels or tiles, the products are
// summed before they are transformed back. Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks,
// CVPR 2016, section 4.3.

#pragma once

namespace {

constexpr int POINTS = 36, TILE = 4, SUM = 7;  // at SUM, A dy At is the sum of a tile

// Bt d: of 6 pixels.
template <class T>
inline void pixels(const T (&d)[6], T (&to)[6]) {
    const T p = d[4] - 4.0f * d[2], q = d[3] - 4.0f * d[1], r = d[4] - d[2], s = 2.0f * (d[3] - d[1]);
    to[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
    to[1] = p + q;
    to[2] = p - q;
    to[3] = r + s;
    to[4] = r - s;
    to[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
}

// G g: of 3 weights.
template <class T>
inline void weights(const T (&g)[3], T (&to)[6]) {
    const T p = (-1.0f / 6) * (g[0] + g[2]), q = (1.0f / 6) * g[1];
    const T r = (1.0f / 24) * g[0] + (1.0f / 6) * g[2], s = (1.0f / 12) * g[1];
    to[0] = 0.25f * g[0];
    to[1] = p - q;
    to[2] = p + q;
    to[3] = r + s;
    to[4] = r - s;
    to[5] = g[2];
}

// At m: to 4 pixels.
template <class T>
inline void results(const T (&m)[6], T (&to)[4]) {
    const T p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
    to[0] = m[0] + p + r;
    to[1] = q + 2.0f * s;
    to[2] = p + 4.0f * r;
    to[3] = q + 8.0f * s + m[5];
}

// A y: of 4 pixels of a gradient.
template <class T>
inline void gradients(const T (&y)[4], T (&to)[6]) {
    const T p = y[0] + y[2], q = y[1] + y[3], r = y[0] + 4.0f * y[2], s = 2.0f * y[1] + 8.0f * y[3];
    to[0] = y[0];
    to[1] = p + q;
    to[2] = p - q;
    to[3] = r + s;
    to[4] = r - s;
    to[5] = y[3];
}

// Gt u: to 3 weights.
template <class T>
inline void filters(const T (&u)[6], T (&to)[3]) {
    const T p = u[1] + u[2], q = u[2] - u[1], r = u[3] + u[4], s = u[3] - u[4];
    to[0] = 0.25f * u[0] - (1.0f / 6) * p + (1.0f / 24) * r;
    to[1] = (1.0f / 6) * q + (1.0f / 12) * s;
    to[2] = (1.0f / 6) * (r - p) + u[5];
}

// The same along both sides of a square, n x n to m x m, which is read and written once.
template <class T, int n, int m, class Along, class Read, class Write>
inline void twice(Along along, Read read, Write write) {
    T half[m][n], found[m];
    for (int j = 0; j < n; ++j) {
        T column[n];
        for (int i = 0; i < n; ++i) column[i] = read(i * n + j);
        along(column, found);
        for (int i = 0; i < m; ++i) half[i][j] = found[i];
    }
    for (int i = 0; i < m; ++i) {
        along(half[i], found);
        for (int j = 0; j < m; ++j) write(i * m + j, found[j]);
    }
}

}  // namespace
