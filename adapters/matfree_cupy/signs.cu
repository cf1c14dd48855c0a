/*
 * Counter-based random signs, bit for bit those of matfree/probes.py: Philox4x32-10 (Salmon, Moraes,
 * Dror, Shaw 2011, doi:10.1145/2063384.2063405) of
 *
 *     counter = (i >> 7 low word, i >> 7 high word, probe, stream)    key = (seed low, seed high)
 *     sign of coordinate i = 1 - 2 * bit (i & 31) of word (i >> 5) & 3
 *
 * A thread computes one word of one probe and writes its 32 signs. Neighbouring threads compute
 * neighbouring probes, whose entries are adjacent in the C-ordered block.
 *
 * The work of a thread is plain C. On a device it is called by a kernel. A C compiler turns the
 * kernels into loops over the same grid, so that the bits are tested without a device.
 */

typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef __CUDACC__
#define FUNCTION static __device__
#else
#define FUNCTION
#endif

FUNCTION u32 random_word(u64 block, u32 lane, u32 probe, u32 stream, u64 seed)
{
    u32 c0 = (u32)block, c1 = (u32)(block >> 32), c2 = probe, c3 = stream;
    u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        u64 product0 = (u64)0xD2511F53u * c0, product1 = (u64)0xCD9E8D57u * c2;
        c0 = (u32)(product1 >> 32) ^ c1 ^ k0;
        c1 = (u32)product1;
        c2 = (u32)(product0 >> 32) ^ c3 ^ k1;
        c3 = (u32)product0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return lane == 0 ? c0 : lane == 1 ? c1 : lane == 2 ? c2 : c3;
}

/* Rows begin, begin + 1, ..., end - 1 of num_probes probes; parts is 2 for complex entries. */
#define PARAMETERS(TYPE)                                                                       \
    TYPE *out, u64 begin, u64 end, u64 num_probes, u64 first_probe, u64 stream, u64 seed, u64 parts
#define ARGUMENTS out, begin, end, num_probes, first_probe, stream, seed, parts

#define DEFINE_THREAD(NAME, TYPE)                                                              \
    FUNCTION void NAME##_thread(u64 thread, PARAMETERS(TYPE))                                  \
    {                                                                                          \
        u64 number = (begin >> 5) + thread / num_probes, probe = thread % num_probes;          \
        if (number << 5 >= end)                                                                \
            return; /* the grid is a little larger than the block */                           \
        u32 word = random_word(                                                                \
            number >> 2, number & 3, (u32)(first_probe + probe), (u32)stream, seed);           \
        for (int bit = 0; bit < 32; ++bit) {                                                   \
            u64 row = (number << 5) + bit;                                                     \
            if (row < begin || row >= end)                                                     \
                continue;                                                                      \
            TYPE *entry = out + ((row - begin) * num_probes + probe) * parts;                  \
            entry[0] = (TYPE)(1 - 2 * (int)(word >> bit & 1));                                 \
            if (parts == 2)                                                                    \
                entry[1] = 0;                                                                  \
        }                                                                                      \
    }

#ifdef __CUDACC__
#define DEFINE_KERNEL(NAME, TYPE)                                                              \
    DEFINE_THREAD(NAME, TYPE)                                                                  \
    extern "C" __global__ void NAME(PARAMETERS(TYPE))                                          \
    {                                                                                          \
        NAME##_thread((u64)blockIdx.x * blockDim.x + threadIdx.x, ARGUMENTS);                  \
    }
#else
#define DEFINE_KERNEL(NAME, TYPE)                                                              \
    DEFINE_THREAD(NAME, TYPE)                                                                  \
    void NAME(u64 num_threads, PARAMETERS(TYPE))                                               \
    {                                                                                          \
        for (u64 thread = 0; thread < num_threads; ++thread)                                   \
            NAME##_thread(thread, ARGUMENTS);                                                  \
    }
#endif

DEFINE_KERNEL(signs_int8, signed char)
DEFINE_KERNEL(signs_float32, float)
DEFINE_KERNEL(signs_float64, double)
