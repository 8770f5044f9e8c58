// How layers end whose cores mix every channel by itself, in time alone: with an activation and a projection, which mixes
// channels, and a gate.
//
//   Source    Gu, Goel, Re 2022, arXiv:2111.00396; state-spaces/s4, models/s4/s4.py, S4Block
#pragma once

#include <seqmix/core/parameters.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/parts/gate.hpp>
#include <seqmix/parts/linear.hpp>
#include <string_view>

namespace seqmix::inline SEQMIX_ARCH {

/// y = W gelu(x) + b, or the product of its first half and the sigmoid of the second. The activation may be left out.
template <std::floating_point T>
class MixingOutput {
 public:
  MixingOutput() = default;

  /// weight [D or 2 D, c D], bias as many. Throws std::invalid_argument on other shapes.
  MixingOutput(std::string_view operation, Index channels, Index outputs, bool activate, bool gate,
               const Matrix<T>& weight, const Vector<T>& bias)
      : gelu_(activate), glu_(gate) {
    const Index rows = channels * (gate ? 2 : 1);
    // A convolution of width 1 is a column to the reader where there is one output.
    expect_tensor(operation, "output_linear.0.weight", {rows, outputs * channels}, weight);
    expect_tensor(operation, "output_linear.0.bias", {rows}, bias);
    linear_ = Linear<T>(weight, bias);
  }

  /// x [L, c D] is overwritten; y [L, D]. O(L c D^2) time.
  void apply(Sequence<T> x, Sequence<T> y, Workspace& workspace) const {
    if (gelu_) {
      workspace.for_row_blocks(x.length(), [&](Index begin, Index count) { apply_gelu(x.rows(begin, count)); });
    }
    if (!glu_) return linear_.apply(x, y, workspace);
    const auto both = linear_.apply(x, workspace);
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      const Index D = y.channels();
      for (Index t = begin; t < begin + count; ++t) {
        map_row(
            D, y.row(t), [](const Batch<T>& a, const Batch<T>& b) SEQMIX_INLINE_LAMBDA { return a * sigmoid(b); },
            both.row(t), both.row(t) + D);
      }
    });
  }

 private:
  bool gelu_ = true, glu_ = true;
  Linear<T> linear_;
};

}  // namespace seqmix::inline SEQMIX_ARCH
