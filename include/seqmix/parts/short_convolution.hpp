// The short causal convolution over time that many layers put before their memories.
//
//   c_t = bias + sum over j < W of weight[:, j] * u_{t - W + 1 + j},   channel by channel, then silu where asked for
//
// Before the first token there are zeros. u, output [length, channels]. The state holds the last W inputs, oldest first;
// the oldest is never read again, but checkpoints of other implementations carry it. (The state may be told to hold another
// number of rows, W - 1 at least.)
//
// A pass goes along several rows at once, from the first channel to the last, as memory comes in; silu is fused into it.
#pragma once

#include <algorithm>
#include <cassert>
#include <seqmix/core/buffer.hpp>
#include <seqmix/core/error.hpp>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/convolution.hpp>
#include <seqmix/simd/arch.hpp>
#include <seqmix/simd/math.hpp>
#include <string_view>

namespace seqmix::inline SEQMIX_ARCH {

/// What follows a short convolution: nothing, or silu.
enum class ConvolutionActivation { none, swish };

/// A short convolution with its weights.
template <std::floating_point T>
class ShortConvolution {
 public:
  /// No channels.
  ShortConvolution() = default;

  /// weight [channels, width], bias [channels] or of size 0; `kept`, where given, is how many inputs states hold instead of
  /// `width`. Allocates. Throws std::invalid_argument, in the name of `operation`, on another shape of the bias, on a width of 0
  /// and on fewer inputs kept than width - 1.
  ShortConvolution(std::string_view operation, const Matrix<T>& weight, const Vector<T>& bias,
                   ConvolutionActivation activation, Index kept = -1)
      : width_(weight.cols()),
        kept_(kept < 0 ? weight.cols() : kept),
        activation_(activation),
        weight_(weight.transpose()),
        bias_(bias) {
    expect(width_ > 0, operation, "conv1d.weight", "must have at least one column");
    expect(kept_ >= width_ - 1, operation, "conv1d.state", "must hold all inputs but one of the width");
    if (bias.size() > 0) expect_shape(operation, "conv1d.bias", {weight.rows()}, bias);
  }

  Index channels() const { return weight_.cols(); }
  Index width() const { return width_; }

  /// Before the first token: width * channels zeros.
  Tensor<T> initial_state() const { return Tensor<T>({kept_, channels()}); }

  /// Throws std::invalid_argument, in the name of `operation`, unless the state has this convolution's size.
  void check_state(std::string_view operation, std::string_view field, const Tensor<T>& state) const {
    expect_shape(operation, field, {kept_, channels()}, state.shape());
  }

  /// Convolves every sequence of the batch, on from the field `state` [width, channels] of its State, which is left as
  /// after the last row. u, output [total, channels], not overlapping. O(length * channels * width) on all threads of the
  /// workspace; allocates nothing once it is warm.
  template <class State>
  void apply(const SequenceBatch<State>& batch, Tensor<T> State::*state, ConstSequence<T> u, Sequence<T> output,
             Workspace& workspace) const {
    assert(u.channels() == channels() && output.channels() == channels() && u.length() == output.length());
    for (Index b = 0; b < batch.size(); ++b) {
      Tensor<T>& kept = batch.state(b).*state;
      const auto rows = u.rows(batch.begin(b), batch.length(b));
      const auto results = output.rows(batch.begin(b), batch.length(b));
      workspace.for_row_blocks(batch.length(b),
                               [&](Index begin, Index count) { convolve(rows, kept, begin, count, results); });
      keep_last_rows<T>(kept, rows);
    }
  }

  /// The same into a new sequence [length, channels] of `workspace`, valid until the caller's frame ends.
  template <class State>
  Sequence<T> apply(const SequenceBatch<State>& batch, Tensor<T> State::*state, ConstSequence<T> u,
                    Workspace& workspace) const {
    const auto output = workspace.sequence<T>(u.length(), channels());
    apply(batch, state, u, output, workspace);
    return output;
  }

 private:
  static constexpr Index tile_rows = 4;

  /// Row t of the input, or of the state where t < 0.
  const T* row(ConstSequence<T> u, const Tensor<T>& state, Index t) const {
    return t >= 0 ? u.row(t) : state.data() + (kept_ + t) * channels();
  }

  void convolve(ConstSequence<T> u, const Tensor<T>& state, Index begin, Index count, Sequence<T> output) const {
    const Index end = begin + count, inside = std::min(end, width_ - 1);
    Index t = begin;
    for (; t < inside; ++t) {
      convolve_rows<1>([&](Index j) SEQMIX_INLINE_LAMBDA { return row(u, state, t + j); }, output.rows(t, 1));
    }
    for (; t + tile_rows <= end; t += tile_rows) {
      convolve_rows<tile_rows>([&](Index j) SEQMIX_INLINE_LAMBDA { return u.row(t) + j * u.stride(); },
                               output.rows(t, tile_rows));
    }
    for (; t < end; ++t) {
      convolve_rows<1>([&](Index j) SEQMIX_INLINE_LAMBDA { return row(u, state, t + j); }, output.rows(t, 1));
    }
  }

  /// R rows of the output; from(j) is the input j rows after that of the first one.
  template <Index R, class From>
  SEQMIX_ALWAYS_INLINE void convolve_rows(const From& from, const Sequence<T>& output) const {
    const auto some = [&](Index i, auto count) SEQMIX_INLINE_LAMBDA {
      const auto read = [&](const T* source)
                            SEQMIX_INLINE_LAMBDA -> Batch<T> { return detail::load_some(source + i, count); };
      const Batch<T> bias = bias_.size() > 0 ? read(bias_.data()) : broadcast(T(0));
      Batch<T> sum[R];
      unroll<R>([&](auto r) SEQMIX_INLINE_LAMBDA { sum[r] = bias; });
      for (Index j = 0; j < width_; ++j) {
        const Batch<T> weight = read(weight_.data() + j * channels());
        unroll<R>([&](auto r) SEQMIX_INLINE_LAMBDA { sum[r] = fma(weight, read(from(r + j - width_ + 1)), sum[r]); });
      }
      if (activation_ == ConvolutionActivation::swish) {
        unroll<R>([&](auto r) SEQMIX_INLINE_LAMBDA { sum[r] = silu(sum[r]); });
      }
      unroll<R>([&](auto r) SEQMIX_INLINE_LAMBDA { detail::store_some(output.row(r) + i, sum[r], count); });
    };
    Index i = 0;
    for (; i + lanes<T> <= channels(); i += lanes<T>) some(i, std::integral_constant<Index, lanes<T>>{});
    if (i < channels()) some(i, channels() - i);
  }

  Index width_ = 0, kept_ = 0;
  ConvolutionActivation activation_ = ConvolutionActivation::none;
  Matrix<T> weight_;  // [width, channels]
  Vector<T> bias_;    // [channels], or empty
};

}  // namespace seqmix::inline SEQMIX_ARCH
