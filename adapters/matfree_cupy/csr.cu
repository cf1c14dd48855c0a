/*
 * Products and Lanczos steps of a CSR matrix and a C-ordered block of vectors: what csr.py calls.
 *
 * The file is compiled for one kind of matrix: its numbers have so many PARTS (2 where they are
 * complex) of type REAL, its indices are of type INDEX, u32 or u64: they are not negative, and so
 * positions in a block are one multiplication. The sums are double precision always.
 *
 * A block of THREADS threads has a chunk of ROWS rows and a tile of columns. Its threads stand in
 * lanes, one thread for each column of the tile; a lane takes every lanes-th row. Neighbouring
 * threads have neighbouring columns, then neighbouring rows, which are neighbours in memory too;
 * the rows of a chunk are walked together, so that what neighbouring rows need of a vector is
 * fetched once. What the lanes summed is added up in their order, then what the chunks summed in
 * theirs: nothing depends on which thread came first.
 *
 * The work of a thread is plain C. On a device a kernel runs it; where a C compiler reads this
 * file, a loop over the same grid does, so that the numbers are tested without a device.
 */

typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef __CUDACC__
#define FUNCTION static __device__ __forceinline__
#define RESTRICT __restrict__
#define ALIGNED __align__(PARTS * sizeof(REAL)) /* both parts of a number are fetched at once */
#define SEVERAL_AT_ONCE _Pragma("unroll 4")
#define ANNOUNCE(POINTER) asm volatile("prefetch.L1 [%0];" ::"l"(POINTER))
#else
#include <math.h>
#define FUNCTION static
#define RESTRICT restrict
#define ALIGNED
#define SEVERAL_AT_ONCE
#define ANNOUNCE(POINTER)
#endif

typedef struct ALIGNED {
    REAL part[PARTS];
} number;

typedef struct {
    double part[PARTS];
} wide;

#define MATRIX                                                                                 \
    const INDEX *RESTRICT indptr, const INDEX *RESTRICT indices, const number *RESTRICT data
#define SHAPE u64 rows, u64 k, u64 tiles

/* The part of the work that a thread has: rows first, first + lanes, ... before last. */
typedef struct {
    u64 chunk, first, last;
    u32 column, width, lanes;
} share;

FUNCTION share share_of(u64 block, u32 thread, SHAPE)
{
    share own;
    own.chunk = block / tiles;
    own.width = (u32)((k + tiles - 1) / tiles);
    own.lanes = THREADS / own.width;
    own.column = (u32)(block % tiles) * own.width + thread % own.width;
    own.first = own.chunk * ROWS + thread / own.width;
    own.last = own.chunk * ROWS + ROWS < rows ? own.chunk * ROWS + ROWS : rows;
    if (own.column >= k || thread / own.width >= own.lanes)
        own.last = 0; /* the lanes do not fill the block, nor the tiles the columns */
    return own;
}

FUNCTION u64 position(u64 row, u64 k, u32 column)
{
    return row * (u32)k + column;
}

FUNCTION wide sum(wide a, wide b)
{
    for (int i = 0; i < PARTS; ++i)
        a.part[i] += b.part[i];
    return a;
}

FUNCTION wide times(wide a, double factor)
{
    for (int i = 0; i < PARTS; ++i)
        a.part[i] *= factor;
    return a;
}

FUNCTION wide widened(number a)
{
    wide same;
    for (int i = 0; i < PARTS; ++i)
        same.part[i] = a.part[i];
    return same;
}

FUNCTION number rounded(wide a)
{
    number same;
    for (int i = 0; i < PARTS; ++i)
        same.part[i] = (REAL)a.part[i];
    return same;
}

FUNCTION wide product_of(wide a, wide b)
{
    wide made;
    made.part[0] = a.part[0] * b.part[0];
#if PARTS == 2
    made.part[0] -= a.part[1] * b.part[1];
    made.part[1] = a.part[0] * b.part[1] + a.part[1] * b.part[0];
#endif
    return made;
}

FUNCTION wide conjugate(wide a)
{
#if PARTS == 2
    a.part[1] = -a.part[1];
#endif
    return a;
}

#define BATCH 4 /* stored entries whose numbers are fetched before the first is waited for */

/*
 * An entry of A X. A thread waits for the limits of its row, then for the entries, then for what
 * these point to. So it announces those of its next row before: the first two waits are shorter.
 */
FUNCTION wide entry(MATRIX, const number *RESTRICT X, u64 k, share own, u64 row)
{
    wide total = {{0}};
    INDEX end = indptr[row + 1];
    u64 later = row + own.lanes;
    if (later < own.last && indptr[later] < indptr[later + 1]) {
        ANNOUNCE(indices + indptr[later]);
        ANNOUNCE(data + indptr[later]);
    }
    for (INDEX first = indptr[row]; first < end; first += BATCH) {
        u64 from[BATCH];
        number a[BATCH], x[BATCH];
        for (u32 i = 0; i < BATCH; ++i) {
            INDEX p = end - first > i ? first + i : first; /* an entry that is there */
            from[i] = indices[p];
            a[i] = data[p];
        }
        for (u32 i = 0; i < BATCH; ++i)
            x[i] = X[position(from[i], k, own.column)];
        for (u32 i = 0; i < BATCH; ++i)
            if (i == 0 || end - first > i)
                total = sum(total, product_of(widened(a[i]), widened(x[i])));
    }
    return total;
}

/* Y = A X */
FUNCTION void product_share(share own, MATRIX, const number *RESTRICT X, number *RESTRICT Y, u64 k)
{
    for (u64 row = own.first; row < own.last; row += own.lanes)
        Y[position(row, k, own.column)] = rounded(entry(indptr, indices, data, X, k, own, row));
}

/* The sums of conj(X) (A X). */
FUNCTION wide forms_share(share own, MATRIX, const number *RESTRICT X, u64 k)
{
    wide total = {{0}};
    for (u64 row = own.first; row < own.last; row += own.lanes) {
        wide x = widened(X[position(row, k, own.column)]);
        wide y = entry(indptr, indices, data, X, k, own, row);
        total = sum(total, product_of(conjugate(x), y));
    }
    return total;
}

/* W = A U - W diag(beta) and the sums of conj(U) W, for U = V diag(scale). */
FUNCTION wide first_share(
    share own, MATRIX, const number *RESTRICT V, number *RESTRICT W, const double *RESTRICT beta,
    const double *RESTRICT scale, u64 k)
{
    wide total = {{0}};
    if (own.first >= own.last)
        return total;
    double back = beta[own.column], length = scale[own.column];
    for (u64 row = own.first; row < own.last; row += own.lanes) {
        u64 here = position(row, k, own.column);
        wide v = widened(V[here]), w = widened(W[here]);
        wide y = entry(indptr, indices, data, V, k, own, row);
        number remainder = rounded(sum(times(y, length), times(w, -back)));
        W[here] = remainder;
        total = sum(total, product_of(conjugate(v), widened(remainder)));
    }
    return times(total, length);
}

/* W -= U diag(alpha) and the sums of |W|^2. */
FUNCTION wide second_share(
    share own, const number *RESTRICT V, number *RESTRICT W, const wide *RESTRICT alpha,
    const double *RESTRICT scale, u64 k)
{
    wide total = {{0}};
    if (own.first >= own.last)
        return total;
    wide factor = times(alpha[own.column], -scale[own.column]);
    SEVERAL_AT_ONCE
    for (u64 row = own.first; row < own.last; row += own.lanes) {
        u64 here = position(row, k, own.column);
        wide v = widened(V[here]), w = widened(W[here]);
        number remainder = rounded(sum(w, product_of(factor, v)));
        W[here] = remainder;
        wide r = widened(remainder);
        total = sum(total, product_of(conjugate(r), r));
    }
    return total;
}

/* What a block's lanes summed, in their order: (k, chunks) in the end. */
FUNCTION void add_lanes(u64 block, u32 thread, const wide *sums, wide *partial, SHAPE)
{
    share own = share_of(block, thread, rows, k, tiles);
    if (thread >= own.width || own.column >= k)
        return;
    wide total = sums[thread];
    for (u32 lane = 1; lane < own.lanes; ++lane)
        total = sum(total, sums[thread + lane * own.width]);
    partial[own.column * ((rows + ROWS - 1) / ROWS) + own.chunk] = total;
}

/* Every THREADS-th of a column's chunks. */
FUNCTION wide chunks_share(u64 column, u32 thread, const wide *RESTRICT partial, u64 chunks)
{
    wide total = {{0}};
    for (u64 chunk = thread; chunk < chunks; chunk += THREADS)
        total = sum(total, partial[column * chunks + chunk]);
    return total;
}

FUNCTION wide all(const wide *sums)
{
    wide total = sums[0];
    for (u32 thread = 1; thread < THREADS; ++thread)
        total = sum(total, sums[thread]);
    return total;
}

/* A kernel; one whose threads each make a SUM, and when all of a block have, do what comes THEN. */
#ifdef __CUDACC__
#define KERNEL(NAME, WORK, ...)                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(__VA_ARGS__)                    \
    {                                                                                          \
        u64 block = blockIdx.x;                                                                \
        u32 thread = threadIdx.x;                                                              \
        WORK;                                                                                  \
    }
#define SUMMING_KERNEL(NAME, SUM, THEN, ...)                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(__VA_ARGS__)                    \
    {                                                                                          \
        __shared__ wide sums[THREADS];                                                         \
        u64 block = blockIdx.x;                                                                \
        u32 thread = threadIdx.x;                                                              \
        sums[thread] = SUM;                                                                    \
        __syncthreads();                                                                       \
        THEN;                                                                                  \
    }
#else
#define KERNEL(NAME, WORK, ...)                                                                \
    void NAME(u64 num_blocks, __VA_ARGS__)                                                     \
    {                                                                                          \
        for (u64 block = 0; block < num_blocks; ++block)                                       \
            for (u32 thread = 0; thread < THREADS; ++thread)                                   \
                WORK;                                                                          \
    }
#define SUMMING_KERNEL(NAME, SUM, THEN, ...)                                                   \
    void NAME(u64 num_blocks, __VA_ARGS__)                                                     \
    {                                                                                          \
        wide sums[THREADS];                                                                    \
        for (u64 block = 0; block < num_blocks; ++block) {                                     \
            for (u32 thread = 0; thread < THREADS; ++thread)                                   \
                sums[thread] = SUM;                                                            \
            for (u32 thread = 0; thread < THREADS; ++thread)                                   \
                THEN;                                                                          \
        }                                                                                      \
    }
#endif

#define OWN share_of(block, thread, rows, k, tiles)
#define ADD_LANES add_lanes(block, thread, sums, partial, rows, k, tiles)

KERNEL(product, product_share(OWN, indptr, indices, data, X, Y, k),
    MATRIX, const number *RESTRICT X, number *RESTRICT Y, SHAPE)

SUMMING_KERNEL(quadratic_forms, forms_share(OWN, indptr, indices, data, X, k), ADD_LANES,
    MATRIX, const number *RESTRICT X, wide *RESTRICT partial, SHAPE)

SUMMING_KERNEL(first_pass, first_share(OWN, indptr, indices, data, V, W, beta, scale, k), ADD_LANES,
    MATRIX, const number *RESTRICT V, number *RESTRICT W, const double *RESTRICT beta,
    const double *RESTRICT scale, wide *RESTRICT partial, SHAPE)

SUMMING_KERNEL(second_pass, second_share(OWN, V, W, alpha, scale, k), ADD_LANES,
    const number *RESTRICT V, number *RESTRICT W, const wide *RESTRICT alpha,
    const double *RESTRICT scale, wide *RESTRICT partial, SHAPE)

SUMMING_KERNEL(add_up, chunks_share(block, thread, partial, chunks),
    if (thread == 0) totals[block] = all(sums),
    const wide *RESTRICT partial, wide *RESTRICT totals, u64 chunks)

SUMMING_KERNEL(add_up_lengths, chunks_share(block, thread, partial, chunks),
    if (thread == 0) lengths[block] = sqrt(all(sums).part[0]),
    const wide *RESTRICT partial, double *RESTRICT lengths, u64 chunks)
