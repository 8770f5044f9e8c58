// What the layers of fast weight programmers share: a slow net that writes the streams of all heads, the projection of
// what they have read, and the residual and the layer norm, which are part of the layer.
//
//   Source    IDSIA/recurrent-fwp, algorithmic/layers.py, language_modeling/src/utils/cuda_fast_weight_layer.py;
//             IDSIA/lmtool-fwp, src/utils/cuda_fast_weight_layer.py
//   Glossary  D channels   H heads   d channels of a head
#pragma once

#include <algorithm>
#include <cmath>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/norm.hpp>
#include <string_view>

namespace seqmix::inline SEQMIX_ARCH {

/// Where the layer norm stands and what the residual is, with W_o the projection of what the heads have read.
enum class FastWeightForm {
  algorithmic,              ///< y = x + W_o core(norm(x))
  language_model_pre_norm,  ///< h = norm(x), y = h + W_o core(h): the authors' code overwrites its input
  language_model_post_norm  ///< y = norm(x + W_o core(x))
};

/// The sizes of a layer, and what the slow net writes for each head: `rows` streams of d channels, then `numbers`
/// single ones.
struct FastWeightLayerSizes {
  Index channels, heads, head_dim;
  Index rows, numbers;

  /// A head_dim of 0 stands for channels / heads. Throws std::invalid_argument, in the name of `operation`, on sizes
  /// that are not positive.
  static FastWeightLayerSizes completed(std::string_view operation, FastWeightLayerSizes sizes) {
    expect(sizes.channels > 0 && sizes.heads > 0 && sizes.head_dim >= 0, operation, "config.channels, config.heads",
           "must be positive");
    if (sizes.head_dim == 0) {
      expect_divides(operation, "config.heads", sizes.heads, "channels", sizes.channels);
      sizes.head_dim = sizes.channels / sizes.heads;
    }
    return sizes;
  }

  Index inner() const { return heads * head_dim; }
  Index slow_rows() const { return rows * head_dim + numbers; }  ///< for each head
};

/// The weights that every layer has, under the names of their form.
template <std::floating_point T>
struct FastWeightLayerWeights {
  Matrix<T> slow;                    // [H slow_rows, D]: the rows of head 0, then those of head 1, ...
  Matrix<T> output;                  // [D, H d]
  Vector<T> norm_weight, norm_bias;  // [D]
  FastWeightForm form = FastWeightForm::algorithmic;

  /// Uniform in +-inputs^-1/2, as torch initialises projections; the norm is the identity.
  static FastWeightLayerWeights random(const FastWeightLayerSizes& sizes, FastWeightForm form, Rng& rng) {
    const Index D = sizes.channels, inner = sizes.inner();
    return {uniform_matrix<T>(sizes.heads * sizes.slow_rows(), D, std::pow(double(D), -0.5), rng),
            uniform_matrix<T>(D, inner, std::pow(double(inner), -0.5), rng), Vector<T>::Ones(D), Vector<T>::Zero(D),
            form};
  }

 protected:
  /// Calls visitor for all of them. Language models have their own name for the slow net.
  template <class Self, class Visitor>
  static void visit_shared(Self& self, Visitor& visitor, std::string_view language_model_slow_net) {
    const bool algorithmic = self.form == FastWeightForm::algorithmic;
    visitor(algorithmic ? "slow_net.weight" : language_model_slow_net, self.slow, Presence::required);
    visitor(algorithmic ? "out_linear.weight" : "o_net.weight", self.output, Presence::required);
    visitor("layer_norm.weight", self.norm_weight, Presence::required);
    visitor("layer_norm.bias", self.norm_bias, Presence::required);
  }
};

/// A layer around a core.
template <std::floating_point T>
class FastWeightLayer {
 public:
  /// Packs the weights. Throws std::invalid_argument, in the name of `operation`, unless their shapes follow from
  /// `sizes`.
  FastWeightLayer(std::string_view operation, const FastWeightLayerSizes& sizes, FastWeightForm form, T norm_eps,
                  const FastWeightLayerWeights<T>& weights)
      : sizes_(sizes), form_(form), norm_eps_(norm_eps) {
    const Index D = sizes.channels, inner = sizes.inner();
    expect_tensor(operation, "slow_net.weight", {sizes.heads * sizes.slow_rows(), D}, weights.slow);
    expect_tensor(operation, "out_linear.weight", {D, inner}, weights.output);
    expect_tensor(operation, "layer_norm.weight", {D}, weights.norm_weight);
    expect_tensor(operation, "layer_norm.bias", {D}, weights.norm_bias);
    norm_weight_ = weights.norm_weight, norm_bias_ = weights.norm_bias;
    // One stream after the other, so that heads begin at whole vectors wherever d is whole vectors.
    Matrix<T> slow(weights.slow.rows(), D);
    for (Index stream = 0, from = 0, to = 0; stream < sizes.rows + sizes.numbers; ++stream) {
      const Index count = stream < sizes.rows ? sizes.head_dim : 1;
      for (Index h = 0; h < sizes.heads; ++h, to += count) {
        slow.middleRows(to, count) = weights.slow.middleRows(h * sizes.slow_rows() + from, count);
      }
      from += count;
    }
    input_ = Linear<T>(slow);
    output_ = Linear<T>(weights.output);
  }

  const FastWeightLayerSizes& sizes() const { return sizes_; }

  /// x, y [L, D]. core(columns, read) is given the slow net's output, a ColumnCutter of the streams of all heads side
  /// by side, and writes read [L, H, d].
  template <class Core>
  void apply(ConstSequence<T> x, Sequence<T> y, Workspace& workspace, Core&& core) const {
    const bool algorithmic = form_ == FastWeightForm::algorithmic;
    const auto normalized = workspace.sequence<T>(algorithmic ? x.length() : 0, sizes_.channels);
    const auto normalize = [&](ConstSequence<T> from, const Sequence<T>& to) {
      layer_normalize<T>(from, to, norm_eps_, norm_weight_, norm_bias_);
    };
    // y holds the residual first.
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      const auto rows = x.rows(begin, count);
      const auto residual = y.rows(begin, count);
      if (form_ == FastWeightForm::language_model_pre_norm) {
        normalize(rows, residual);
        return;
      }
      for (Index t = 0; t < count; ++t) std::copy_n(rows.row(t), rows.channels(), residual.row(t));
      if (algorithmic) normalize(rows, normalized.rows(begin, count));
    });
    const ConstSequence<T> input = algorithmic ? normalized : y;
    const auto read = workspace.heads<T>(x.length(), sizes_.heads, sizes_.head_dim);
    core(ColumnCutter<T>(input_.apply(input, workspace)), read);
    output_.add_to(read.flat(), y, workspace);
    if (form_ != FastWeightForm::language_model_post_norm) return;
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      const auto rows = y.rows(begin, count);
      normalize(rows, rows);
    });
  }

 private:
  FastWeightLayerSizes sizes_;
  FastWeightForm form_;
  T norm_eps_;
  Vector<T> norm_weight_, norm_bias_;
  Linear<T> input_, output_;
};

}  // namespace seqmix::inline SEQMIX_ARCH
