// Results that are written past the caches.
//
// A plain store reads its cache line first, and leaves it in the caches. For a result larger than these the one is traffic
// for nothing, and the other pushes out what is still needed. Where two threads write the two halves of rows, each also
// fetches lines ahead which the other one is about to write.
#pragma once

#include <cstdint>
#include <seqmix/core/buffer.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/simd/batch.hpp>
#include <type_traits>

namespace seqmix::inline SEQMIX_ARCH {

/// Whether it pays to stream a result: it is larger than a core's own cache (one that stays there is read again soon), and
/// its rows begin with a cache line, so that whole lines are written.
template <class T>
bool pays_to_stream(const Sequence<T>& result) {
  constexpr Index least_bytes = Index(1) << 21, line = static_cast<Index>(memory_alignment);
  const auto bytes = [](Index elements) { return elements * static_cast<Index>(sizeof(T)); };
  return bytes(result.length() * result.channels()) >= least_bytes && bytes(result.stride()) % line == 0 &&
         reinterpret_cast<std::uintptr_t>(result.data()) % memory_alignment == 0;
}

/// Writes a register past the caches, which xsimd 13 cannot, to an address that is a multiple of its size. A plain store where the processor has no
/// other, and under sanitizers, which don't see these. Call finish_streaming before another thread may read the result.
template <class T>
SEQMIX_ALWAYS_INLINE void store_streaming(T* to, const Batch<T>& value) {
  [[maybe_unused]] constexpr bool single = std::is_same_v<T, float>;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  store(to, value);
#elif defined(__AVX512F__)
  if constexpr (single) _mm512_stream_ps(to, value);
  if constexpr (!single) _mm512_stream_pd(to, value);
#elif defined(__AVX__)
  if constexpr (single) _mm256_stream_ps(to, value);
  if constexpr (!single) _mm256_stream_pd(to, value);
#elif defined(__SSE2__)
  if constexpr (single) _mm_stream_ps(to, value);
  if constexpr (!single) _mm_stream_pd(to, value);
#else
  store(to, value);
#endif
}

/// Orders the streamed stores of this thread before what it writes next.
SEQMIX_ALWAYS_INLINE void finish_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace seqmix::inline SEQMIX_ARCH
