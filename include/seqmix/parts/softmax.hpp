// The softmax of a row.
#pragma once

#include <limits>
#include <seqmix/core/view.hpp>
#include <seqmix/parts/row.hpp>
#include <seqmix/simd/arch.hpp>
#include <seqmix/simd/math.hpp>
#include <seqmix/simd/row_map.hpp>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// to[i] = scale * exp(from[i]) / sum over j < count of exp(from[j]), and zeros up to whole vectors.
template <class T>
void softmax_mapped_row(const void* /*parameters*/, const T* from, Index count, T scale, T* to) {
  constexpr T least = -std::numeric_limits<T>::infinity();
  const Index whole = count - count % lanes<T>, rest = count - whole;
  const BatchMask<T> exists = lane_index<T>() < broadcast(T(rest));
  Batch<T> last = broadcast(least), most = last;
  for (Index i = 0; i < whole; i += lanes<T>) most = xsimd::max(most, load(from + i));
  if (rest > 0) {
    last = select(exists, load_partial(from + whole, rest), last);
    most = xsimd::max(most, last);
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
  const Batch<T> factor = broadcast(scale / reduce_add(sum));
  for (Index i = 0; i < count; i += lanes<T>) store(to + i, load(to + i) * factor);
  if (rest > 0) store(to + whole, select(exists, load(to + whole), broadcast(T(0))));
}

}  // namespace detail

/// The softmax over the numbers of a row, as a map of rows that an engine reads. Relative error 4 ulp and that of a sum of as
/// many numbers. NaN and +infinity, or nothing but -infinity, in a row make all of it NaN.
template <class T>
inline constexpr RowMap<T> softmax_map = {&detail::softmax_mapped_row<T>};

/// to[i] = e^(from[i] - max) / (sum of these + epsilon) for i < count, and zeros up to whole vectors, up to which both
/// rows must be there, but `from` may hold anything. `to` may be `from`. 0 where from[i] is 87 (in double 708) below
/// the largest; a NaN, an infinity or nothing but -infinity makes the row NaN. count > 0. The order of summation
/// depends on `count` only.
template <class T>
SEQMIX_ALWAYS_INLINE void softmax_padded_row(const T* from, Index count, T epsilon, T* to) {
  constexpr Index width = lanes<T>;
  const Index whole = count / width * width;
  const BatchMask<T> in_row = lane_index<T>() < broadcast(T(count - whole));
  const Batch<T> first = broadcast(from[0]);  // stands beyond the end: no larger than the largest
  const auto tail = [&]() SEQMIX_INLINE_LAMBDA { return select(in_row, load(from + whole), first); };
  Batch<T> most = first;
  for (Index i = 0; i < whole; i += width) most = max_propagating(load(from + i), most);
  if (whole < count) most = max_propagating(tail(), most);
  const Batch<T> largest = broadcast(reduce_max(most));
  Batch<T> sum = broadcast(T(0));
  for (Index i = 0; i < whole; i += width) {
    const Batch<T> weight = exp_decay(load(from + i) - largest);
    sum += weight;
    store(to + i, weight);
  }
  if (whole < count) {
    const Batch<T> weight = select(in_row, exp_decay(tail() - largest), broadcast(T(0)));
    sum += weight;
    store(to + whole, weight);
  }
  const Batch<T> inverse = broadcast(T(1) / (reduce_add(sum) + epsilon));
  for (Index i = 0; i < count; i += width) store(to + i, load(to + i) * inverse);
}

}  // namespace seqmix::inline SEQMIX_ARCH
