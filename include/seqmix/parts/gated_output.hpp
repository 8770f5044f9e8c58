// How most layers with a matrix memory end: normalise what each head has read, gate it, project it.
#pragma once

#include <seqmix/core/parameters.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/parts/gate.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/norm.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// What a gate passes before it multiplies: silu, or the logistic sigmoid; none is no gate.
enum class GateActivation { none, swish, logistic };

/// y = W (rms(o) * weight * activation(gate)), rms over the channels of each head.
template <std::floating_point T>
class GatedOutput {
 public:
  GatedOutput() = default;

  /// norm [value_dim], weight [channels, heads * value_dim]. `activation` none: there is no gate. Allocates.
  GatedOutput(const Matrix<T>& weight, const Vector<T>& norm, T epsilon, GateActivation activation)
      : weight_(weight), norm_(norm), epsilon_(epsilon), activation_(activation) {}

  /// From o [length, heads, value_dim], which is used up, and gate [length, heads * value_dim], not read where there is no
  /// gate, to y [length, channels].
  void apply(HeadSequence<T> o, ConstSequence<T> gate, Sequence<T> y, Workspace& workspace) const {
    workspace.for_row_blocks(o.length(), [&](Index begin, Index count) {
      const auto block = o.rows(begin, count);
      rms_normalize(block, epsilon_, norm_);
      if (activation_ == GateActivation::swish) multiply_silu<T>(block.flat(), gate.rows(begin, count));
      if (activation_ == GateActivation::logistic) multiply_sigmoid<T>(block.flat(), gate.rows(begin, count));
    });
    weight_.apply(o.flat(), y, workspace);
  }

 private:
  Linear<T> weight_;
  Vector<T> norm_;
  T epsilon_ = T(0);
  GateActivation activation_ = GateActivation::none;
};

}  // namespace seqmix::inline SEQMIX_ARCH
