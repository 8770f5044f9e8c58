// Elementwise functions of several rows, a register at a time.
#pragma once

#include <seqmix/core/view.hpp>
#include <seqmix/simd/arch.hpp>
#include <seqmix/simd/batch.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// output[i] = f(inputs[i]...) for i < count. f maps batches to a batch; in the last, partial one it is also evaluated at
/// zeros whose results are thrown away. output may be one of the inputs, but not overlap it otherwise. The result of an
/// element depends neither on its position nor on `count`.
template <class T, class F, class... Inputs>
SEQMIX_ALWAYS_INLINE void map_row(Index count, T* output, F&& f, const Inputs*... inputs) {
  Index i = 0;
  for (; i + lanes<T> <= count; i += lanes<T>) store(output + i, f(load(inputs + i)...));
  if (i < count) store_partial(output + i, f(load_partial(inputs + i, count - i)...), count - i);
}

/// sum over i < count of f(inputs[i]...), the products of `f` kept apart in four running batches. f maps batches to a
/// batch and gives 0 at zeros. The order of summation depends on `count` only.
template <class T, class F, class... Inputs>
SEQMIX_ALWAYS_INLINE T sum_row(Index count, F&& f, const T* first, const Inputs*... inputs) {
  Batch<T> sum[4] = {broadcast(T(0)), broadcast(T(0)), broadcast(T(0)), broadcast(T(0))};
  Index i = 0;
  for (; i + 4 * lanes<T> <= count; i += 4 * lanes<T>) {
    unroll<4>([&](auto v) SEQMIX_INLINE_LAMBDA {
      sum[v] += f(load(first + i + v * lanes<T>), load(inputs + i + v * lanes<T>)...);
    });
  }
  for (; i + lanes<T> <= count; i += lanes<T>) sum[0] += f(load(first + i), load(inputs + i)...);
  if (i < count) sum[1] += f(load_partial(first + i, count - i), load_partial(inputs + i, count - i)...);
  return reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

/// Calls f(i, keep) for the vectors of a row of `count` numbers that is there up to whole vectors, whatever it holds beyond
/// its end: i is where a vector begins, and keep(x, otherwise) is `x` where the row has numbers, else `otherwise`.
template <class T, class F>
SEQMIX_ALWAYS_INLINE void for_padded_row(Index count, F&& f) {
  Index i = 0;
  for (; i + lanes<T> <= count; i += lanes<T>) {
    f(i, [](const Batch<T>& x, const Batch<T>&) SEQMIX_INLINE_LAMBDA -> Batch<T> { return x; });
  }
  if (i < count) {
    const BatchMask<T> in_row = lane_index<T>() < broadcast(T(count - i));
    f(i, [&](const Batch<T>& x, const Batch<T>& otherwise) SEQMIX_INLINE_LAMBDA -> Batch<T> {
      return select(in_row, x, otherwise);
    });
  }
}

}  // namespace seqmix::inline SEQMIX_ARCH
