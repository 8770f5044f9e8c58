// Elementary functions and activations on batches, scalars and contiguous rows.
#pragma once

#include <seqmix/simd/math_exp.hpp>
#include <seqmix/simd/math_gate.hpp>
#include <seqmix/simd/math_log.hpp>
#include <seqmix/simd/math_trig.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// destination[i] = f(source[i]) for i < count, contiguous; source and destination are the same array or don't overlap.
/// f takes and returns a Batch<T>; it is also evaluated at 0 for lanes beyond the end, which are thrown away. The result
/// of an element does not depend on its position. O(count), allocates nothing.
template <class T, class F>
SEQMIX_ALWAYS_INLINE void transform(const T* source, T* destination, Index count, F&& f) {
  Index i = 0;
  for (; i + lanes<T> <= count; i += lanes<T>) store(destination + i, f(load(source + i)));
  if (i < count) store_partial(destination + i, f(load_partial(source + i, count - i)), count - i);
}

/// data[i] = f(data[i]) for i < count; see transform.
template <class T, class F>
SEQMIX_ALWAYS_INLINE void apply_in_place(T* data, Index count, F&& f) {
  transform(data, data, count, f);
}

/// Every channel of `token` becomes f of itself; see transform.
template <class T, class F>
SEQMIX_ALWAYS_INLINE void apply_in_place(Token<T> token, F&& f) {
  transform(token.data(), token.data(), token.channels(), f);
}

}  // namespace seqmix::inline SEQMIX_ARCH
