// What the layers around a delta rule share: their sizes, the weights that all of them have, and the gates that turn
// projections into the log decay (parts/decay_gate.hpp) and the beta of the rule.
//
//   Source    Yang et al. 2024, arXiv:2406.06484, 2412.06464; Kimi Team 2025, arXiv:2510.26692; the layers of
//             fla-org/flash-linear-attention
//   Glossary  D channels   H heads of queries and keys   Hv heads of values and of the memory   K, V their widths
#pragma once

#include <seqmix/parts/convolved_streams.hpp>
#include <seqmix/parts/decay_gate.hpp>
#include <seqmix/parts/gated_output.hpp>
#include <seqmix/parts/linear.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// beta = sigmoid(beta), or twice that where `doubled`, in place: how much of what the memory holds for a key a token
/// takes out. Above 1 the rule reflects (I - beta k k^T has the eigenvalue 1 - beta). beta [length, Hv].
template <class T>
void apply_beta_gate(Sequence<T> beta, bool doubled) {
  const Batch<T> limit = broadcast(doubled ? T(2) : T(1));
  apply_activation(beta, [&](const Batch<T>& b) SEQMIX_INLINE_LAMBDA { return limit * sigmoid(b); });
}

/// The sizes of a layer with a delta rule.
struct DeltaLayerSizes {
  Index channels, heads, value_heads, key_dim, value_dim;
  ConvolvedStreamsConfig convolution;

  Index key_channels() const { return heads * key_dim; }
  Index value_channels() const { return value_heads * value_dim; }
  Shape memory_shape() const { return {value_heads, key_dim, value_dim}; }

  /// Throws std::invalid_argument, in the name of `operation`, unless all are positive and heads divides value_heads.
  void check(std::string_view operation) const {
    expect(channels > 0 && key_dim > 0 && value_dim > 0, operation, "config.channels",
           "must be positive, as must the widths of the heads");
    expect_divides(operation, "config.heads", heads, "value_heads", value_heads);
  }
};

/// The weights that every layer with a delta rule has.
template <std::floating_point T>
struct DeltaLayerWeights {
  Matrix<T> query, key, value;  // [H K, D], [H K, D], [Hv V, D]
  ConvolvedStreamsWeights<T> convolution;
  Matrix<T> beta;    // [Hv, D]
  Vector<T> norm;    // [V]
  Matrix<T> output;  // [D, Hv V]

  /// Throws std::invalid_argument, in the name of `operation`, unless the shapes are those of `sizes`, but for the
  /// convolutions, which check themselves.
  void check(std::string_view operation, const DeltaLayerSizes& sizes, bool has_beta = true) const {
    expect_tensor(operation, "q_proj.weight", {sizes.key_channels(), sizes.channels}, query);
    expect_tensor(operation, "k_proj.weight", {sizes.key_channels(), sizes.channels}, key);
    expect_tensor(operation, "v_proj.weight", {sizes.value_channels(), sizes.channels}, value);
    if (has_beta) expect_tensor(operation, "b_proj.weight", {sizes.value_heads, sizes.channels}, beta);
    expect_tensor(operation, "o_norm.weight", {sizes.value_dim}, norm);
    expect_tensor(operation, "o_proj.weight", {sizes.channels, sizes.value_channels()}, output);
  }

  /// The convolutions and activations of queries, keys and values, whose convolutions are among these weights.
  ConvolvedStreams<T> streams(std::string_view operation, const DeltaLayerSizes& sizes,
                              StreamActivation activation = StreamActivation::swish) const {
    return {operation,   sizes.convolution, sizes.key_channels(),   sizes.key_channels(), sizes.value_channels(),
            convolution, activation,        StreamActivation::swish};
  }

  /// As torch initialises them; the norm's weight is 1.
  static DeltaLayerWeights random(const DeltaLayerSizes& sizes, Rng& rng, bool has_beta = true) {
    const Index D = sizes.channels, keys = sizes.key_channels(), values = sizes.value_channels();
    return {random_projection<T>(keys, D, rng),
            random_projection<T>(keys, D, rng),
            random_projection<T>(values, D, rng),
            ConvolvedStreams<T>::random_weights(sizes.convolution, keys, keys, values, rng),
            random_projection<T>(has_beta ? sizes.value_heads : 0, D, rng),
            Vector<T>::Ones(sizes.value_dim),
            random_projection<T>(D, values, rng)};
  }

 protected:
  /// Calls visitor for all of them.
  template <class Self, class Visitor>
  static void visit_shared(Self& self, Visitor& visitor) {
    visitor("q_proj.weight", self.query, Presence::required);
    visitor("k_proj.weight", self.key, Presence::required);
    visitor("v_proj.weight", self.value, Presence::required);
    ConvolvedStreamsWeights<T>::visit_all(self.convolution, visitor);
    visitor("b_proj.weight", self.beta, Presence::optional);
    visitor("o_norm.weight", self.norm, Presence::required);
    visitor("o_proj.weight", self.output, Presence::required);
  }
};

}  // namespace seqmix::inline SEQMIX_ARCH
