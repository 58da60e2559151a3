/* What every generated kernel begins with, as C and as CUDA C. The lines above this file, which emit.py writes, define
   the parameters' format: `real`, the integer `whole` of its width, and the constants TINY, BIAS, FRACTION, EXPONENTS,
   MASK, CUT and OFFSET. */
#if defined(__CUDACC__) || defined(__HIP__)
#define FN static __device__ __forceinline__
#else
#include <math.h>
#define FN static inline
#endif

/* No element of a loop depends on another one, although two arrays may be the same. */
#ifdef __clang__
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

/* Half precision moves as bits, so that no compiler needs to know the types. */
FN float widen_bfloat16(unsigned short h) {
    union { unsigned int i; float f; } u;
    u.i = (unsigned int)h << 16;
    return u.f;
}

/* A subnormal is a small whole number times 2^-24: exact, and free of binary32 subnormals. */
FN float widen_float16(unsigned short h) {
    union { unsigned int i; float f; } u, sub;
    unsigned int magnitude = h & 0x7fffu, sign = (unsigned int)(h & 0x8000u) << 16;
    u.i = (magnitude << 13) + (magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u);
    sub.f = (float)(int)magnitude * 0x1p-24f;
    u.i = (magnitude < 0x400u ? sub.i : u.i) | sign;
    return u.f;
}

/* To bfloat16, to nearest even; NaN becomes the quiet one. */
FN unsigned short to_bfloat16(float x) {
    union { unsigned int i; float f; } u;
    u.f = x;
    return x != x ? 0x7fc0u : (unsigned short)((u.i + 0x7fffu + ((u.i >> 16) & 1u)) >> 16);
}

/* 2^n, for a whole n whose power is a normal number. */
FN real pow2(real n) {
    union { whole i; real f; } u;
    u.i = ((whole)n + BIAS) << FRACTION;
    return u.f;
}

/* The largest power of two that is at most x, for x positive and normal. */
FN real floor2(real x) {
    union { whole i; real f; } u;
    u.f = x;
    u.i &= EXPONENTS;
    return u.f;
}

/* 2 / floor2(x). */
FN real two_over2(real x) {
    union { whole i; real f; } u;
    u.f = x;
    u.i = EXPONENTS - (u.i & EXPONENTS);
    return u.f;
}

/* x = mantissa(x) 2^exponent(x), with the mantissa in [sqrt(1/2), sqrt(2)). */
FN real exponent(real x) {
    union { whole i; real f; } u;
    u.f = x;
    return (real)(((u.i + OFFSET) >> FRACTION) - BIAS);
}
FN real mantissa(real x) {
    union { whole i; real f; } u;
    u.f = x;
    u.i = ((u.i + OFFSET) & MASK) + CUT;
    return u.f;
}
