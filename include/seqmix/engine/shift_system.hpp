// Systems that shift: a state of N numbers for every channel moves on by one place with every token.
//
//   s_t[0] = B[0] x_t,   s_t[n] = s_{t-1}[n - 1] + B[n] x_t,   y_t = sum over n of C[n] s_t[n] + skip x_t
//
//   Glossary  L length   D channels   N states of a channel
//   Source    Fu et al. 2022, arXiv:2212.14052, section 3.1 (the shift SSM of H3)
#pragma once

#include <algorithm>
#include <cassert>
#include <seqmix/core/buffer.hpp>
#include <seqmix/core/error.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/simd/batch.hpp>
#include <string_view>

namespace seqmix::inline SEQMIX_ARCH {

/// A shifting system with its coefficients.
template <std::floating_point T>
class ShiftSystem {
 public:
  /// No channels.
  ShiftSystem() = default;

  /// input (B), output (C) [D, N], skip [D]. Packs them; allocates. Throws std::invalid_argument, in the name of `operation`,
  /// on shapes that do not fit.
  ShiftSystem(std::string_view operation, const Matrix<T>& input, const Matrix<T>& output, const Vector<T>& skip)
      : channels_(input.rows()), states_(input.cols()) {
    expect_shape(operation, "C", {channels_, states_}, output);
    expect_shape(operation, "skip", {channels_}, skip);
    packed_.resize(std::size_t(vectors() * (2 * states_ + 1) * width));
    for (Index c = 0; c < channels_; ++c) {
      T* const to = packed_.data() + c / width * (2 * states_ + 1) * width + c % width;
      for (Index n = 0; n < states_; ++n) to[2 * n * width] = input(c, n), to[(2 * n + 1) * width] = output(c, n);
      to[2 * states_ * width] = skip[c];
    }
  }

  Index channels() const { return channels_; }

  /// Shape of the state.
  Shape state_shape() const { return {states_, channels_}; }

  /// Runs all tokens from and into `state` [N, D]. x, y [L, D], not overlapping. O(L D N) time on all threads of the
  /// workspace, allocates nothing once it is warm.
  void run(ConstSequence<T> x, T* state, Sequence<T> y, Workspace& workspace) const {
    assert(x.channels() == channels_ && y.channels() == channels_ && x.length() == y.length());
    if (x.length() == 0) return;
    workspace.parallel_for(vectors(), [&](Index v, Workspace& local) {
      const Index count = std::min(width, channels_ - v * width);
      const T* const coefficients = packed_.data() + v * (2 * states_ + 1) * width;
      const Batch<T> skip = load(coefficients + 2 * states_ * width);
      T* const s = local.take<T>((states_ + 1) * width).data() + width;  // s[-1] is the zero that is shifted in
      store(s - width, broadcast(T(0)));
      for (Index n = 0; n < states_; ++n) store(s + n * width, load_partial(state + n * channels_ + v * width, count));
      for (Index t = 0; t < x.length(); ++t) {
        const T* const from = x.row(t) + v * width;
        T* const to = y.row(t) + v * width;
        const Batch<T> u = detail::load_some(from, count);
        Batch<T> sum[2] = {skip * u, broadcast(T(0))};
        const auto some = [&](auto which, Index n) SEQMIX_INLINE_LAMBDA {
          const T* const at = coefficients + 2 * n * width;
          const Batch<T> next = fma(load(at), u, load(s + (n - 1) * width));
          store(s + n * width, next);
          sum[which] = fma(load(at + width), next, sum[which]);
        };
        Index n = states_ - 1;
        for (; n >= 1; n -= 2) {
          some(std::integral_constant<int, 0>{}, n);
          some(std::integral_constant<int, 1>{}, n - 1);
        }
        if (n == 0) some(std::integral_constant<int, 0>{}, n);
        detail::store_some<T>(to, sum[0] + sum[1], count);
      }
      for (Index n = 0; n < states_; ++n) store_partial(state + n * channels_ + v * width, load(s + n * width), count);
    });
  }

 private:
  static constexpr Index width = lanes<T>;

  Index vectors() const { return (channels_ + width - 1) / width; }

  Index channels_ = 0, states_ = 0;
  Buffer<T> packed_;  // [vector of channels][state][B, C][lane], then the skips
};

}  // namespace seqmix::inline SEQMIX_ARCH
