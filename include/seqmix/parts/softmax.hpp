// The softmax of a row.
#pragma once

#include <limits>
#include <seqmix/core/view.hpp>
#include <seqmix/parts/row.hpp>
#include <seqmix/simd/arch.hpp>
#include <seqmix/simd/math.hpp>
#include <seqmix/simd/row_map.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// to[i] = scale * e^(from[i] - max) / (sum over j < count of e^(from[j] - max) + epsilon) for i < count, and zeros up to
/// whole vectors. `to` may be `from`. Relative error 4 ulp and that of a sum of as many numbers; 0 where from[i] is 87 (in
/// double 708) below the largest. A NaN, +infinity or nothing but -infinity makes the row NaN. The order of summation
/// depends on `count` only.
template <class T>
SEQMIX_ALWAYS_INLINE void softmax_row(const T* from, Index count, T scale, T epsilon, T* to) {
  constexpr T least = -std::numeric_limits<T>::infinity();
  const Index whole = count - count % lanes<T>, rest = count - whole;
  const BatchMask<T> exists = lane_index<T>() < broadcast(T(rest));
  Batch<T> last = broadcast(least), most = last;
  for (Index i = 0; i < whole; i += lanes<T>) most = max(most, load(from + i));
  if (rest > 0) {
    last = select(exists, load_partial(from + whole, rest), last);
    most = max(most, last);
  }
  // The largest exponent is 0. A NaN may be missed here, and reaches the sum all the same.
  const Batch<T> largest = broadcast(reduce_max(most));
  Batch<T> sum = broadcast(T(0));
  const auto add = [&](const Batch<T>& x, Index i) SEQMIX_INLINE_LAMBDA {
    const Batch<T> weight = exp_decay(x - largest);
    sum += weight;
    store(to + i, weight);
  };
  for (Index i = 0; i < whole; i += lanes<T>) add(load(from + i), i);
  if (rest > 0) add(last, whole);
  const Batch<T> factor = broadcast(scale / (reduce_add(sum) + epsilon));
  for (Index i = 0; i < count; i += lanes<T>) store(to + i, load(to + i) * factor);
  if (rest > 0) store(to + whole, select(exists, load(to + whole), broadcast(T(0))));
}

namespace detail {

template <class T>
void softmax_mapped_row(const void* /*parameters*/, const T* from, Index count, T scale, T* to) {
  softmax_row(from, count, scale, T(0), to);
}

}  // namespace detail

/// softmax_row as a map of rows that an engine reads.
template <class T>
inline constexpr RowMap<T> softmax_map = {&detail::softmax_mapped_row<T>};

}  // namespace seqmix::inline SEQMIX_ARCH
