// The name of the instruction set this translation unit is compiled for.
//
// Code above core/ lives in `namespace seqmix::inline SEQMIX_ARCH`. Two objects compiled with different -m flags thus
// define differently named functions, and a program linked from both runs each object's own code: without this the
// linker would keep one copy of every inline function, perhaps the one that this processor can't execute.
// The name differs wherever xsimd::default_arch does, and wherever the compiler may use other vector instructions: it is
// put together from the widest set and the extensions beside it, avx2_fma for instance.
#pragma once

#if defined(__AVX512F__)
#define SEQMIX_ARCH_BASE avx512f
#elif defined(__AVX2__)
#define SEQMIX_ARCH_BASE avx2
#elif defined(__AVX__)
#define SEQMIX_ARCH_BASE avx
#elif defined(__SSE4_2__)
#define SEQMIX_ARCH_BASE sse4_2
#elif defined(__SSE4_1__)
#define SEQMIX_ARCH_BASE sse4_1
#elif defined(__SSSE3__)
#define SEQMIX_ARCH_BASE ssse3
#elif defined(__SSE3__)
#define SEQMIX_ARCH_BASE sse3
#elif defined(__SSE2__)
#define SEQMIX_ARCH_BASE sse2
#elif defined(__ARM_FEATURE_SVE)
#define SEQMIX_ARCH_BASE sve
#elif defined(__aarch64__)
#define SEQMIX_ARCH_BASE neon64
#elif defined(__ARM_NEON)
#define SEQMIX_ARCH_BASE neon
#else
#define SEQMIX_ARCH_BASE generic
#endif

// Empty where the extension is missing.
#if defined(__FMA__)
#define SEQMIX_ARCH_FMA _fma
#else
#define SEQMIX_ARCH_FMA
#endif
#if defined(__AVXVNNI__)
#define SEQMIX_ARCH_AVXVNNI _avxvnni
#else
#define SEQMIX_ARCH_AVXVNNI
#endif
#if defined(__AVX512CD__)
#define SEQMIX_ARCH_CD _cd
#else
#define SEQMIX_ARCH_CD
#endif
#if defined(__AVX512DQ__)
#define SEQMIX_ARCH_DQ _dq
#else
#define SEQMIX_ARCH_DQ
#endif
#if defined(__AVX512BW__)
#define SEQMIX_ARCH_BW _bw
#else
#define SEQMIX_ARCH_BW
#endif
#if defined(__AVX512VL__)
#define SEQMIX_ARCH_VL _vl
#else
#define SEQMIX_ARCH_VL
#endif
#if defined(__AVX512IFMA__)
#define SEQMIX_ARCH_IFMA _ifma
#else
#define SEQMIX_ARCH_IFMA
#endif
#if defined(__AVX512VBMI__)
#define SEQMIX_ARCH_VBMI _vbmi
#else
#define SEQMIX_ARCH_VBMI
#endif
#if defined(__AVX512VNNI__)
#define SEQMIX_ARCH_VNNI _vnni
#else
#define SEQMIX_ARCH_VNNI
#endif
#if defined(__ARM_FEATURE_SVE_BITS)
#define SEQMIX_ARCH_BITS __ARM_FEATURE_SVE_BITS
#else
#define SEQMIX_ARCH_BITS
#endif
#if defined(__ARM_FEATURE_MATMUL_INT8)
#define SEQMIX_ARCH_I8MM _i8mm
#else
#define SEQMIX_ARCH_I8MM
#endif

#define SEQMIX_ARCH_PASTE(a, b, c, d, e, f, g, h, i, j, k, l) a##b##c##d##e##f##g##h##i##j##k##l
#define SEQMIX_ARCH_JOIN(a, b, c, d, e, f, g, h, i, j, k, l) SEQMIX_ARCH_PASTE(a, b, c, d, e, f, g, h, i, j, k, l)
#define SEQMIX_ARCH                                                                                          \
  SEQMIX_ARCH_JOIN(SEQMIX_ARCH_BASE, SEQMIX_ARCH_BITS, SEQMIX_ARCH_FMA, SEQMIX_ARCH_AVXVNNI, SEQMIX_ARCH_CD, \
                   SEQMIX_ARCH_DQ, SEQMIX_ARCH_BW, SEQMIX_ARCH_VL, SEQMIX_ARCH_IFMA, SEQMIX_ARCH_VBMI,       \
                   SEQMIX_ARCH_VNNI, SEQMIX_ARCH_I8MM)
