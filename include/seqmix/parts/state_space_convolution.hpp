// The kernel of a structured state space as a convolution: the other way to evaluate a whole sequence.
//
//   y_t[j H + h] = sum over l of K[j H + h][l] x_{t-l}[h] + D[j, h] x_t[h],
//   where bidirectional plus the sum over l of K'[j H + h][l] x_{t+1+l}[h]
//
// Short kernels are summed directly, others by Fourier transforms, whose outputs depend on later inputs by rounding errors
// (engine/convolution_fft.hpp).
#pragma once

#include <seqmix/core/mixer.hpp>
#include <seqmix/engine/convolution.hpp>
#include <seqmix/engine/convolution_fft.hpp>
#include <string_view>

namespace seqmix::inline SEQMIX_ARCH {

/// Convolutions of sequences up to a length.
template <std::floating_point T>
class StateSpaceConvolution {
 public:
  /// Most taps that are summed directly.
  static constexpr Index direct_taps = 32;

  /// No channels.
  StateSpaceConvolution() = default;

  /// kernel [c H, length], twice the rows where bidirectional, and d [c, H]. Allocates. O(c H length log(length)) time.
  StateSpaceConvolution(std::string_view operation, Index channels, Matrix<double> kernel, const Matrix<T>& d,
                        Direction direction)
      : length_(kernel.cols()) {
    for (Index row = 0; row < d.size(); ++row) kernel(row, 0) += double(d.data()[row]);
    if (direction == Direction::bidirectional) {
      const Matrix<double> earlier = kernel.topRows(kernel.rows() / 2), later = kernel.bottomRows(kernel.rows() / 2);
      long_ = LongConvolution<T>::bidirectional(operation, channels, length_, earlier, later);
    } else if (length_ <= direct_taps) {
      direct_ = CausalConvolution<T>(operation, channels, kernel);
    } else {
      long_ = LongConvolution<T>::causal(operation, channels, length_, kernel);
    }
  }

  /// The longest sequence; 0 without channels.
  Index length() const { return length_; }

  /// x [L, H] into y [L, c H], not overlapping, L up to length(). Allocates nothing once `workspace` is warm.
  void run(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    assert(x.length() <= length_);
    if (direct_.channels() > 0) return direct_.run({}, x, y, workspace);
    long_.run(x, y, workspace);
  }

 private:
  Index length_ = 0;
  CausalConvolution<T> direct_;
  LongConvolution<T> long_;
};

}  // namespace seqmix::inline SEQMIX_ARCH
