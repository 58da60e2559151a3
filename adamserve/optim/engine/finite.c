/* Whether no element is infinite or NaN, that is, whether no exponent has all its bits set. The test is made on integers, a
   block at a time, so that it vectorises and stops early. */
#define FINITE(dtype, type, exponent)                                             \
    int finite_##dtype(long long n, const type *x) {                              \
        for (long long start = 0; start < n; start += 4096) {                     \
            const long long stop = n - start < 4096 ? n : start + 4096;           \
            type bad = 0;                                                         \
            for (long long i = start; i < stop; i++)                              \
                bad |= (type)((x[i] & exponent) == exponent);                     \
            if (bad) return 0;                                                    \
        }                                                                         \
        return 1;                                                                 \
    }

FINITE(float16, unsigned short, 0x7c00u)
FINITE(bfloat16, unsigned short, 0x7f80u)
FINITE(float32, unsigned int, 0x7f800000u)
FINITE(float64, unsigned long long, 0x7ff0000000000000ull)
