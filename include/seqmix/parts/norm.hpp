// Normalisation of rows: RMS, group and layer norm, and division by the sum.
//
// All take every row (or every head of every row) by itself, O(length * channels), and allocate nothing. Sums run in
// vector lanes of T and in an order that depends on the number of channels only. A NaN or infinity in a row makes NaN
// there as the equation says, and touches no other row.
#pragma once

#include <cassert>
#include <cmath>
#include <seqmix/core/view.hpp>
#include <seqmix/parts/row.hpp>
#include <seqmix/simd/arch.hpp>
#include <seqmix/simd/batch.hpp>
#include <type_traits>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

template <class T>
T inverse_rms(const T* x, Index count, T eps) {
  const T squares = sum_row(
      count, [](const Batch<T>& value) SEQMIX_INLINE_LAMBDA { return value * value; }, x);
  return T(1) / std::sqrt(squares / T(count) + eps);
}

template <class T>
struct Moments {
  T mean, inverse_deviation;
};

/// Mean and 1 / sqrt(variance + eps), the biased variance from a second pass over the differences.
template <class T>
Moments<T> moments(const T* x, Index count, T eps) {
  const T mean = sum_row(
                     count, [](const Batch<T>& value) SEQMIX_INLINE_LAMBDA { return value; }, x) /
                 T(count);
  T squares = T(0);
  const Index whole = count - count % lanes<T>;
  squares = sum_row(
      whole,
      [&](const Batch<T>& value) SEQMIX_INLINE_LAMBDA {
        const Batch<T> difference = value - broadcast(mean);
        return difference * difference;
      },
      x);
  for (Index i = whole; i < count; ++i) squares += (x[i] - mean) * (x[i] - mean);
  return {mean, T(1) / std::sqrt(squares / T(count) + eps)};
}

/// y = (x - mean) / deviation * weight + bias.
template <class T>
void normalize_row(const T* x, T* y, Index count, T eps, const T* weight, const T* bias) {
  const auto [mean, inverse] = moments(x, count, eps);
  const Batch<T> center = broadcast(mean), scale = broadcast(inverse);
  map_row(
      count, y,
      [&](const Batch<T>& value, const Batch<T>& w, const Batch<T>& b)
          SEQMIX_INLINE_LAMBDA { return fma((value - center) * scale, w, b); },
      x, weight, bias);
}

}  // namespace detail

/// x = x / sqrt(mean(x^2) + eps) over the channels of each head, in place. x [length, heads, head_dim].
template <class T>
void rms_normalize(HeadSequence<T> x, std::type_identity_t<T> eps) {
  for (Index t = 0; t < x.length(); ++t) {
    for (Index h = 0; h < x.heads(); ++h) {
      T* const row = x.row(t, h);
      const Batch<T> scale = broadcast(detail::inverse_rms(row, x.head_dim(), eps));
      map_row(
          x.head_dim(), row, [&](const Batch<T>& value) SEQMIX_INLINE_LAMBDA { return value * scale; }, row);
    }
  }
}

/// x = x / sqrt(mean(x^2) + eps) * weight, weight [head_dim] the same for all heads or [heads * head_dim], in place.
/// x [length, heads, head_dim].
template <class T>
void rms_normalize(HeadSequence<T> x, std::type_identity_t<T> eps, ConstToken<T> weight) {
  assert(weight.channels() == x.head_dim() || weight.channels() == x.heads() * x.head_dim());
  const Index next_head = weight.channels() == x.head_dim() ? 0 : x.head_dim();
  for (Index t = 0; t < x.length(); ++t) {
    for (Index h = 0; h < x.heads(); ++h) {
      T* const row = x.row(t, h);
      const Batch<T> scale = broadcast(detail::inverse_rms(row, x.head_dim(), eps));
      map_row(
          x.head_dim(), row,
          [&](const Batch<T>& value, const Batch<T>& w) SEQMIX_INLINE_LAMBDA { return value * scale * w; }, row,
          weight.data() + h * next_head);
    }
  }
}

/// Group norm with one group per head: x = (x - mean) / sqrt(variance + eps) * weight + bias with the mean and the biased
/// variance of the head's channels, in place. x [length, heads, head_dim], weight and bias [heads * head_dim].
template <class T>
void group_normalize(HeadSequence<T> x, std::type_identity_t<T> eps, ConstToken<T> weight, ConstToken<T> bias) {
  assert(weight.channels() == x.heads() * x.head_dim() && bias.channels() == x.heads() * x.head_dim());
  for (Index t = 0; t < x.length(); ++t) {
    for (Index h = 0; h < x.heads(); ++h) {
      T* const row = x.row(t, h);
      const Index begin = h * x.head_dim();
      detail::normalize_row(static_cast<const T*>(row), row, x.head_dim(), eps, weight.data() + begin,
                            bias.data() + begin);
    }
  }
}

/// y = (x - mean) / sqrt(variance + eps) * weight + bias with the mean and the biased variance of the row.
/// x, y [length, channels], the same or not overlapping; weight, bias [channels].
template <class T>
void layer_normalize(ConstSequence<T> x, Sequence<T> y, std::type_identity_t<T> eps, ConstToken<T> weight,
                     ConstToken<T> bias) {
  assert(x.length() == y.length() && x.channels() == y.channels());
  assert(weight.channels() == x.channels() && bias.channels() == x.channels());
  for (Index t = 0; t < x.length(); ++t) {
    detail::normalize_row(x.row(t), y.row(t), x.channels(), eps, weight.data(), bias.data());
  }
}

/// x = x * weight + bias for every row, in place. x [length, channels], weight, bias [channels].
template <class T>
void scale_and_shift(Sequence<T> x, ConstToken<T> weight, ConstToken<T> bias) {
  assert(weight.channels() == x.channels() && bias.channels() == x.channels());
  for (Index t = 0; t < x.length(); ++t) {
    map_row(
        x.channels(), x.row(t),
        [](const Batch<T>& value, const Batch<T>& w, const Batch<T>& b)
            SEQMIX_INLINE_LAMBDA { return fma(value, w, b); },
        x.row(t), weight.data(), bias.data());
  }
}

/// x = x / (sum(x) + eps) over the channels of each head, in place. x [length, heads, head_dim].
template <class T>
void sum_normalize(HeadSequence<T> x, std::type_identity_t<T> eps) {
  for (Index t = 0; t < x.length(); ++t) {
    for (Index h = 0; h < x.heads(); ++h) {
      T* const row = x.row(t, h);
      const T sum = sum_row(
          x.head_dim(), [](const Batch<T>& value) SEQMIX_INLINE_LAMBDA { return value; }, row);
      const Batch<T> divisor = broadcast(T(sum + eps));
      map_row(
          x.head_dim(), row, [&](const Batch<T>& value) SEQMIX_INLINE_LAMBDA { return value / divisor; }, row);
    }
  }
}

}  // namespace seqmix::inline SEQMIX_ARCH
