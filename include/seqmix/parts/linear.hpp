// The linear projection of a layer, y = x W^T + b.
#pragma once

#include <initializer_list>
#include <seqmix/core/error.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/simd/arch.hpp>
#include <seqmix/simd/gemm.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// y = x W^T + b, W [outputs, inputs], b [outputs] or absent. The weights are packed once, at construction.
///
/// Row t of y has the same bits whether it is computed alone or with others, and on any number of threads.
template <std::floating_point T>
class Linear {
 public:
  /// No inputs, no outputs.
  Linear() = default;

  /// Packs weight [outputs, inputs] and bias [outputs]; a bias of size 0 is none. Allocates.
  /// Throws std::invalid_argument if the bias has another size.
  explicit Linear(const Matrix<T>& weight, const Vector<T>& bias = {}) : Linear({&weight}, {&bias}) {}

  /// Several projections of the same input as one: the outputs of the first weight, then those of the second, ...
  /// Weights [outputs_i, inputs] share the number of inputs. `biases` is empty or has one for each weight, of which
  /// nullptr and those of size 0 count as zeros. Allocates. Throws std::invalid_argument on shapes that do not fit together.
  explicit Linear(std::initializer_list<const Matrix<T>*> weights,
                  std::initializer_list<const Vector<T>*> biases = {}) {
    expect(biases.size() == 0 || biases.size() == weights.size(), "Linear", "biases",
           "must be as many as the weights, or none");
    Index outputs = 0;
    bool any_bias = false;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const Matrix<T>& weight = *weights.begin()[i];
      expect_shape("Linear", "weight", {weight.rows(), (*weights.begin())->cols()}, weight);
      outputs += weight.rows();
      if (biases.size() == 0 || !has_bias(biases.begin()[i])) continue;
      expect_shape("Linear", "bias", {weight.rows()}, *biases.begin()[i]);
      any_bias = true;
    }
    if (weights.size() == 0) return;
    weight_ = PackedMatrix<T>(outputs, (*weights.begin())->cols());
    if (any_bias) bias_ = Vector<T>::Zero(outputs);
    Index begin = 0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const Matrix<T>& weight = *weights.begin()[i];
      weight_.set(begin, weight);
      if (biases.size() > 0 && has_bias(biases.begin()[i])) bias_.segment(begin, weight.rows()) = *biases.begin()[i];
      begin += weight.rows();
    }
  }

  Index inputs() const { return weight_.inputs(); }
  Index outputs() const { return weight_.outputs(); }

  /// y = x W^T + b. x [length, inputs], y [length, outputs], not overlapping. 2 * length * inputs * outputs operations on
  /// all of the workspace's threads; bound by reading the weights for few rows. Allocates nothing once `workspace` is
  /// warm.
  void apply(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    if (bias_.size() > 0) {
      multiply(x, weight_, FromBias<T>{bias_}, y, workspace);
    } else {
      multiply(x, weight_, FromZero{}, y, workspace);
    }
  }

  /// The same into a new sequence [length, outputs] of `workspace`, valid until the caller's frame ends.
  Sequence<T> apply(ConstSequence<T> x, Workspace& workspace) const {
    const auto y = workspace.sequence<T>(x.length(), outputs());
    apply(x, y, workspace);
    return y;
  }

  /// y += x W^T + b, otherwise as apply.
  void add_to(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    if (bias_.size() > 0) {
      for (Index t = 0; t < y.length(); ++t) {
        for (Index n = 0; n < y.channels(); ++n) y.row(t)[n] += bias_[n];
      }
    }
    multiply(x, weight_, FromOutput{}, y, workspace);
  }

 private:
  static bool has_bias(const Vector<T>* bias) { return bias && bias->size() > 0; }

  PackedMatrix<T> weight_;
  Vector<T> bias_;  // [outputs], or empty
};

/// Deals out the columns of a fused projection, from the first on.
template <class T>
class ColumnCutter {
 public:
  explicit ColumnCutter(const Sequence<T>& columns) : columns_(columns) {}

  /// The next `count` columns.
  Sequence<T> next(Index count) {
    begin_ += count;
    return columns_.columns(begin_ - count, count);
  }

  /// All columns that are left.
  Sequence<T> rest() { return next(columns_.channels() - begin_); }

 private:
  Sequence<T> columns_;
  Index begin_ = 0;
};

}  // namespace seqmix::inline SEQMIX_ARCH
