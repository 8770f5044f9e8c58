// The name of the instruction set this translation unit is compiled for.
//
// Code above core/ lives in `namespace seqmix::inline SEQMIX_ARCH`. Two objects compiled with different -m flags thus
// define differently named functions, and a program linked from both runs each object's own code: without this the
// linker would keep one copy of every inline function, perhaps the one that this processor can't execute.
// The name must differ wherever xsimd::default_arch does, so it lists the same extensions.
#pragma once

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VNNI__)
#define SEQMIX_ARCH avx512vnni
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#define SEQMIX_ARCH avx512bw
#elif defined(__AVX512F__)
#define SEQMIX_ARCH avx512f
#elif defined(__AVX2__) && defined(__FMA__) && defined(__AVXVNNI__)
#define SEQMIX_ARCH avxvnni
#elif defined(__AVX2__) && defined(__FMA__)
#define SEQMIX_ARCH avx2_fma
#elif defined(__AVX2__)
#define SEQMIX_ARCH avx2
#elif defined(__AVX__) && defined(__FMA__)
#define SEQMIX_ARCH avx_fma
#elif defined(__AVX__)
#define SEQMIX_ARCH avx
#elif defined(__SSE4_2__)
#define SEQMIX_ARCH sse4_2
#elif defined(__SSE4_1__)
#define SEQMIX_ARCH sse4_1
#elif defined(__SSSE3__)
#define SEQMIX_ARCH ssse3
#elif defined(__SSE3__)
#define SEQMIX_ARCH sse3
#elif defined(__SSE2__)
#define SEQMIX_ARCH sse2
#elif defined(__ARM_FEATURE_SVE)
#define SEQMIX_ARCH sve
#elif defined(__aarch64__)
#define SEQMIX_ARCH neon64
#elif defined(__ARM_NEON)
#define SEQMIX_ARCH neon
#else
#define SEQMIX_ARCH generic
#endif
