// The short causal convolution over time that gated and delta-rule layers put before their memories.
//
//   c_t = bias + sum over j < W of weight[:, j] * u_{t - W + 1 + j},   channel by channel, then silu where asked for
//
// Before the first token there are zeros. u, output [length, channels]. The state holds the last W inputs, oldest first;
// the oldest is never read again, but checkpoints of other implementations carry it.
#pragma once

#include <algorithm>
#include <cassert>
#include <seqmix/core/buffer.hpp>
#include <seqmix/core/error.hpp>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
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

  /// weight [channels, width], bias [channels] or of size 0. Allocates. Throws std::invalid_argument, in the name of
  /// `operation`, on another shape of the bias and on a width of 0.
  ShortConvolution(std::string_view operation, const Matrix<T>& weight, const Vector<T>& bias,
                   ConvolutionActivation activation)
      : width_(weight.cols()), activation_(activation), weight_(weight.transpose()), bias_(bias) {
    expect(width_ > 0, operation, "conv1d.weight", "must have at least one column");
    if (bias.size() > 0) expect_shape(operation, "conv1d.bias", {weight.rows()}, bias);
  }

  Index channels() const { return weight_.cols(); }
  Index width() const { return width_; }

  /// Before the first token: width * channels zeros.
  Tensor<T> initial_state() const { return Tensor<T>({width_, channels()}); }

  /// Throws std::invalid_argument, in the name of `operation`, unless the state has this convolution's size.
  void check_state(std::string_view operation, std::string_view field, const Tensor<T>& state) const {
    expect_shape(operation, field, {width_, channels()}, state.shape());
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
      keep_last(rows, kept);
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
  static constexpr Index published_width = 4;

  /// Row t of the input, or of the state where t < 0.
  const T* row(ConstSequence<T> u, const Tensor<T>& state, Index t) const {
    return t >= 0 ? u.row(t) : state.data() + (width_ + t) * channels();
  }

  Batch<T> activated(const Batch<T>& x) const { return activation_ == ConvolutionActivation::swish ? silu(x) : x; }

  void convolve(ConstSequence<T> u, const Tensor<T>& state, Index begin, Index count, Sequence<T> output) const {
    constexpr Index lane_count = lanes<T>;
    for (Index i = 0; i < channels(); i += lane_count) {
      const Index some = std::min(lane_count, channels() - i);
      const auto read = [&](const T* source) SEQMIX_INLINE_LAMBDA -> Batch<T> {
        return some == lane_count ? load(source + i) : load_partial(source + i, some);
      };
      const auto write = [&](Index t, const Batch<T>& sum) SEQMIX_INLINE_LAMBDA {
        if (some == lane_count) {
          store(output.row(t) + i, activated(sum));
        } else {
          store_partial(output.row(t) + i, activated(sum), some);
        }
      };
      const Batch<T> bias = bias_.size() > 0 ? read(bias_.data()) : broadcast(T(0));
      if (width_ == published_width) {
        // Weights and the last inputs stay in registers: each input is read once.
        Batch<T> weight[published_width], last[published_width];
        unroll<published_width>([&](auto j) SEQMIX_INLINE_LAMBDA {
          weight[j] = read(weight_.row(j).data());
          if constexpr (j > 0) last[j] = read(row(u, state, begin - published_width + j));
        });
        for (Index t = begin; t < begin + count; ++t) {
          unroll<published_width - 1>([&](auto j) SEQMIX_INLINE_LAMBDA { last[j] = last[j + 1]; });
          last[published_width - 1] = read(u.row(t));
          Batch<T> sum = bias;
          unroll<published_width>([&](auto j) SEQMIX_INLINE_LAMBDA { sum = fma(weight[j], last[j], sum); });
          write(t, sum);
        }
      } else {
        for (Index t = begin; t < begin + count; ++t) {
          Batch<T> sum = bias;
          for (Index j = 0; j < width_; ++j) {
            sum = fma(read(weight_.row(j).data()), read(row(u, state, t - width_ + 1 + j)), sum);
          }
          write(t, sum);
        }
      }
    }
  }

  /// Shifts the rows of u into the state.
  void keep_last(ConstSequence<T> u, Tensor<T>& state) const {
    const Index kept = std::max(width_ - u.length(), Index(0)) * channels();
    std::copy(state.end() - kept, state.end(), state.begin());
    for (Index j = std::max(width_ - u.length(), Index(0)); j < width_; ++j) {
      std::copy_n(u.row(u.length() - width_ + j), channels(), state.data() + j * channels());
    }
  }

  Index width_ = 0;
  ConvolutionActivation activation_ = ConvolutionActivation::none;
  Matrix<T> weight_;  // [width, channels]
  Vector<T> bias_;    // [channels], or empty
};

}  // namespace seqmix::inline SEQMIX_ARCH
