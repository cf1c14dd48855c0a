/*
 * Kernels for a CSR matrix and a C-ordered block of vectors, which csr.py launches.
 *
 * The file is compiled for one kind of matrix: each number consists of PARTS values of type REAL
 * (2 for complex numbers), and indices are of type INDEX, u32 or u64. Unsigned indices make the
 * address of an entry one multiplication. All sums are accumulated in double precision.
 *
 * A block of THREADS threads processes a chunk of ROWS rows and a tile of columns. The threads are
 * divided into lanes with one thread for each column of the tile, and a lane processes every
 * lanes-th row. Neighbouring threads thus access neighbouring columns and then neighbouring rows,
 * so that their accesses to memory coalesce; and the rows of a chunk are processed at the same
 * time, so that the entries of a vector that neighbouring rows need are fetched once. The sums of
 * the lanes are added in the order of the lanes, and those of the chunks in the order of the
 * chunks, so that the results do not depend on the scheduling of threads.
 *
 * The work of a thread is plain C. On a device it is called by a kernel. A C compiler turns the
 * kernels into loops over the same grid, so that they are tested without a device.
 */

typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef __CUDACC__
#define FUNCTION static __device__ __forceinline__
#define RESTRICT __restrict__
#define ALIGNED __align__(PARTS * sizeof(REAL)) /* a complex number is one access */
#define UNROLL _Pragma("unroll 4")
#define PREFETCH(POINTER) asm volatile("prefetch.L1 [%0];" ::"l"(POINTER))
#else
#include <math.h>
#define FUNCTION static
#define RESTRICT restrict
#define ALIGNED
#define UNROLL
#define PREFETCH(POINTER)
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

/* The work of a thread: the rows first, first + lanes, ... below last, in one column. */
typedef struct {
    u64 chunk, first, last;
    u32 column, width, lanes;
} work;

FUNCTION work work_of(u64 block, u32 thread, SHAPE)
{
    work own;
    own.chunk = block / tiles;
    own.width = (u32)((k + tiles - 1) / tiles);
    own.lanes = THREADS / own.width;
    own.column = (u32)(block % tiles) * own.width + thread % own.width;
    own.first = own.chunk * ROWS + thread / own.width;
    own.last = own.chunk * ROWS + ROWS < rows ? own.chunk * ROWS + ROWS : rows;
    if (own.column >= k || thread / own.width >= own.lanes)
        own.last = 0; /* this thread belongs to no full lane or to no column */
    return own;
}

FUNCTION u64 offset_of(u64 row, u64 k, u32 column)
{
    return row * (u32)k + column;
}

FUNCTION wide plus(wide a, wide b)
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

FUNCTION wide to_wide(number a)
{
    wide result;
    for (int i = 0; i < PARTS; ++i)
        result.part[i] = a.part[i];
    return result;
}

FUNCTION number to_number(wide a)
{
    number result;
    for (int i = 0; i < PARTS; ++i)
        result.part[i] = (REAL)a.part[i];
    return result;
}

FUNCTION wide multiply(wide a, wide b)
{
    wide result;
    result.part[0] = a.part[0] * b.part[0];
#if PARTS == 2
    result.part[0] -= a.part[1] * b.part[1];
    result.part[1] = a.part[0] * b.part[1] + a.part[1] * b.part[0];
#endif
    return result;
}

FUNCTION wide conjugate(wide a)
{
#if PARTS == 2
    a.part[1] = -a.part[1];
#endif
    return a;
}

#define BATCH 4 /* stored entries that are loaded before the first one is used */

/*
 * An entry of A X. Three dependent loads precede the arithmetic: the limits of the row, its stored
 * entries, and the entries of X that they refer to. Prefetching the stored entries of the thread's
 * next row hides most of the latency of the first two.
 */
FUNCTION wide entry(MATRIX, const number *RESTRICT X, u64 k, work own, u64 row)
{
    wide total = {{0}};
    INDEX end = indptr[row + 1];
    u64 next_row = row + own.lanes;
    if (next_row < own.last && indptr[next_row] < indptr[next_row + 1]) {
        PREFETCH(indices + indptr[next_row]);
        PREFETCH(data + indptr[next_row]);
    }
    for (INDEX first = indptr[row]; first < end; first += BATCH) {
        u64 from[BATCH];
        number a[BATCH], x[BATCH];
        for (u32 i = 0; i < BATCH; ++i) {
            INDEX p = end - first > i ? first + i : first; /* beyond the end: any valid entry */
            from[i] = indices[p];
            a[i] = data[p];
        }
        for (u32 i = 0; i < BATCH; ++i)
            x[i] = X[offset_of(from[i], k, own.column)];
        for (u32 i = 0; i < BATCH; ++i)
            if (i == 0 || end - first > i)
                total = plus(total, multiply(to_wide(a[i]), to_wide(x[i])));
    }
    return total;
}

/* Y = A X */
FUNCTION void matmat_thread(work own, MATRIX, const number *RESTRICT X, number *RESTRICT Y, u64 k)
{
    for (u64 row = own.first; row < own.last; row += own.lanes)
        Y[offset_of(row, k, own.column)] = to_number(entry(indptr, indices, data, X, k, own, row));
}

/* The sums of conj(X) (A X). */
FUNCTION wide forms_thread(work own, MATRIX, const number *RESTRICT X, u64 k)
{
    wide total = {{0}};
    for (u64 row = own.first; row < own.last; row += own.lanes) {
        wide x = to_wide(X[offset_of(row, k, own.column)]);
        wide y = entry(indptr, indices, data, X, k, own, row);
        total = plus(total, multiply(conjugate(x), y));
    }
    return total;
}

/* W = A U - W diag(beta) and the sums of conj(U) W, for U = V diag(scale). */
FUNCTION wide first_pass_thread(
    work own, MATRIX, const number *RESTRICT V, number *RESTRICT W, const double *RESTRICT beta,
    const double *RESTRICT scale, u64 k)
{
    wide total = {{0}};
    if (own.first >= own.last)
        return total;
    double back = beta[own.column], length = scale[own.column];
    for (u64 row = own.first; row < own.last; row += own.lanes) {
        u64 offset = offset_of(row, k, own.column);
        wide v = to_wide(V[offset]), w = to_wide(W[offset]);
        wide y = entry(indptr, indices, data, V, k, own, row);
        number remainder = to_number(plus(times(y, length), times(w, -back)));
        W[offset] = remainder;
        total = plus(total, multiply(conjugate(v), to_wide(remainder)));
    }
    return times(total, length);
}

/* W -= U diag(alpha) and the sums of |W|^2. */
FUNCTION wide second_pass_thread(
    work own, const number *RESTRICT V, number *RESTRICT W, const wide *RESTRICT alpha,
    const double *RESTRICT scale, u64 k)
{
    wide total = {{0}};
    if (own.first >= own.last)
        return total;
    wide factor = times(alpha[own.column], -scale[own.column]);
    UNROLL
    for (u64 row = own.first; row < own.last; row += own.lanes) {
        u64 offset = offset_of(row, k, own.column);
        wide v = to_wide(V[offset]), w = to_wide(W[offset]);
        number remainder = to_number(plus(w, multiply(factor, v)));
        W[offset] = remainder;
        wide r = to_wide(remainder);
        total = plus(total, multiply(conjugate(r), r));
    }
    return total;
}

/* Adds the sums of the lanes of a block, in order; ``partial`` has the shape (k, chunks). */
FUNCTION void add_lanes(u64 block, u32 thread, const wide *sums, wide *partial, SHAPE)
{
    work own = work_of(block, thread, rows, k, tiles);
    if (thread >= own.width || own.column >= k)
        return;
    wide total = sums[thread];
    for (u32 lane = 1; lane < own.lanes; ++lane)
        total = plus(total, sums[thread + lane * own.width]);
    partial[own.column * ((rows + ROWS - 1) / ROWS) + own.chunk] = total;
}

/* The sum over every THREADS-th chunk of a column. */
FUNCTION wide chunks_thread(u64 column, u32 thread, const wide *RESTRICT partial, u64 chunks)
{
    wide total = {{0}};
    for (u64 chunk = thread; chunk < chunks; chunk += THREADS)
        total = plus(total, partial[column * chunks + chunk]);
    return total;
}

FUNCTION wide sum_of_threads(const wide *sums)
{
    wide total = sums[0];
    for (u32 thread = 1; thread < THREADS; ++thread)
        total = plus(total, sums[thread]);
    return total;
}

/*
 * KERNEL executes WORK in every thread. SUMMING_KERNEL computes SUM in every thread, synchronizes
 * the block, and then executes THEN.
 */
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

#define WORK_HERE work_of(block, thread, rows, k, tiles)
#define ADD_LANES add_lanes(block, thread, sums, partial, rows, k, tiles)

KERNEL(matmat, matmat_thread(WORK_HERE, indptr, indices, data, X, Y, k),
    MATRIX, const number *RESTRICT X, number *RESTRICT Y, SHAPE)

SUMMING_KERNEL(quadratic_forms, forms_thread(WORK_HERE, indptr, indices, data, X, k), ADD_LANES,
    MATRIX, const number *RESTRICT X, wide *RESTRICT partial, SHAPE)

SUMMING_KERNEL(first_pass, first_pass_thread(WORK_HERE, indptr, indices, data, V, W, beta, scale, k), ADD_LANES,
    MATRIX, const number *RESTRICT V, number *RESTRICT W, const double *RESTRICT beta,
    const double *RESTRICT scale, wide *RESTRICT partial, SHAPE)

SUMMING_KERNEL(second_pass, second_pass_thread(WORK_HERE, V, W, alpha, scale, k), ADD_LANES,
    const number *RESTRICT V, number *RESTRICT W, const wide *RESTRICT alpha,
    const double *RESTRICT scale, wide *RESTRICT partial, SHAPE)

SUMMING_KERNEL(sum_chunks, chunks_thread(block, thread, partial, chunks),
    if (thread == 0) totals[block] = sum_of_threads(sums),
    const wide *RESTRICT partial, wide *RESTRICT totals, u64 chunks)

SUMMING_KERNEL(sum_chunks_to_norms, chunks_thread(block, thread, partial, chunks),
    if (thread == 0) norms[block] = sqrt(sum_of_threads(sums).part[0]),
    const wide *RESTRICT partial, double *RESTRICT norms, u64 chunks)
