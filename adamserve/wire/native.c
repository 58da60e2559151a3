/* The codec's inner loops: elements are moved, summed and tested in one pass, while they are in the cache. */
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* What arrives lies at any address. */
typedef uint32_t word __attribute__((aligned(1), may_alias));
typedef uint16_t half __attribute__((aligned(1), may_alias));

enum { BLOCK = 2048, LARGE = 1 << 17 };
#define BLOCKS for (long long at = 0, stop; at < n && (stop = n - at < BLOCK ? n : at + BLOCK, 1); at = stop)

/* Copy a block of something large past the caches: it will not be read soon, and lines that are overwritten as a whole
   need not be read first. */
static void put_aside(void *out, const void *block, long long bytes) {
    char *to = out;
    const char *from = block, *end = from + bytes;
#ifdef __SSE2__
    for (; (uintptr_t)to % 16 && from < end; to += 2, from += 2) memcpy(to, from, 2);
    for (; from + 16 <= end; to += 16, from += 16)
        _mm_stream_si128((__m128i *)to, _mm_loadu_si128((const __m128i *)from));
#endif
    memcpy(to, from, end - from);
}

/* What was put aside is there for every thread. */
static void settle(void) {
#ifdef __SSE2__
    _mm_sfence();
#endif
}

static uint32_t sum_halves(const half *x, long long n) {
    uint32_t sum = 0;
    const word *pairs = (const word *)x;
    for (long long i = 0; i < n / 2; i++) sum += pairs[i];
    return n % 2 ? sum + x[n - 1] : sum;
}

/* The sum of n 32-bit words. */
uint32_t sum_words(long long n, const word *x) {
    uint32_t sum = 0;
    for (long long i = 0; i < n; i++) sum += x[i];
    return sum;
}

/* Copy n binary32; *finite becomes 0 where one is infinite or NaN. The sum of what was read. */
uint32_t take_float32(long long n, const word *x, uint32_t *out, int *finite) {
    uint32_t sum = 0;
    BLOCKS {
        uint32_t bad = 0;
        for (long long i = at; i < stop; i++) {
            sum += x[i];
            bad |= (x[i] & 0x7f800000u) == 0x7f800000u;
        }
        if (bad) *finite = 0;
        if (n < LARGE) memcpy(out + at, x + at, 4 * (stop - at));
        else put_aside(out + at, x + at, 4 * (stop - at));
    }
    settle();
    return sum;
}

/* The same of bfloat16, widened to binary32. */
uint32_t take_bfloat16(long long n, const half *x, uint32_t *out, int *finite) {
    uint32_t sum = 0, block[BLOCK];
    BLOCKS {
        uint32_t bad = 0, *wide = n < LARGE ? out + at : block;
        for (long long i = 0; i < stop - at; i++) {
            const uint32_t w = (uint32_t)x[at + i] << 16;
            wide[i] = w;
            bad |= (w & 0x7f800000u) == 0x7f800000u;
        }
        if (bad) *finite = 0;
        if (wide == block) put_aside(out + at, block, 4 * (stop - at));
        sum += sum_halves(x + at, stop - at);
    }
    settle();
    return sum;
}

/* Copy n halves whose exponent has those bits. */
static inline uint32_t keep(long long n, const half *x, uint16_t *out, int *finite, uint16_t exponent) {
    uint32_t sum = 0;
    BLOCKS {
        uint16_t bad = 0;
        for (long long i = at; i < stop; i++) bad |= (x[i] & exponent) == exponent;
        if (bad) *finite = 0;
        sum += sum_halves(x + at, stop - at);
        if (n < LARGE) memcpy(out + at, x + at, 2 * (stop - at));
        else put_aside(out + at, x + at, 2 * (stop - at));
    }
    settle();
    return sum;
}

/* Copy n bfloat16. */
uint32_t keep_bfloat16(long long n, const half *x, uint16_t *out, int *finite) {
    return keep(n, x, out, finite, 0x7f80);
}

/* Copy n binary16. */
uint32_t keep_float16(long long n, const half *x, uint16_t *out, int *finite) {
    return keep(n, x, out, finite, 0x7c00);
}

/* Round n binary32 to bfloat16, to nearest even; NaN becomes the quiet one. The sum of what was written.
   Both halves of an element are taken by themselves: a vector holds twice as many halves. */
uint32_t give_bfloat16(long long n, const uint32_t *x, half *restrict out) {
    uint32_t sum = 0;
    BLOCKS {
        const half *halves = (const half *)(x + at);
        half *restrict to = out + at;
        uint16_t largest = 0;
        for (long long i = 0; i < stop - at; i++) {
            const uint16_t low = halves[2 * i], high = halves[2 * i + 1], magnitude = high << 1;
            to[i] = high + (low > (uint16_t)(0x8000u - (high & 1)));
            largest = magnitude > largest ? magnitude : largest;
        }
        if (largest >= 0xff00u)
            for (long long i = at; i < stop; i++)
                if ((x[i] & 0x7fffffffu) > 0x7f800000u) out[i] = 0x7fc0;
        sum += sum_halves(to, stop - at);
    }
    return sum;
}

/* A digest of n words that depends on their places, for noticing a change: 32 accumulators of xxHash's round, side by side so
   that it vectorises. */
uint32_t digest_words(long long n, const uint32_t *x, uint64_t *digest) {
    uint32_t lanes[32];
    for (int k = 0; k < 32; k++) lanes[k] = (uint32_t)k * 2654435761u;
    for (long long i = 0; i < n; i += 32) {
        const int width = n - i < 32 ? (int)(n - i) : 32;
        for (int k = 0; k < width; k++) {
            const uint32_t mixed = lanes[k] + x[i + k] * 2246822519u;
            lanes[k] = (mixed << 13 | mixed >> 19) * 2654435761u;
        }
    }
    uint64_t sum = (uint64_t)n;
    for (int k = 0; k < 32; k++) sum = (sum ^ lanes[k]) * 1099511628211u, sum ^= sum >> 29;
    *digest = sum;
    return 0;
}
