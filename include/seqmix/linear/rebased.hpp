// ReBased: linear attention whose weights are squares of the products of normalised queries and keys.
//
//   Source    Aksenov et al. 2024, arXiv:2402.10644, section 4; fla-org/flash-linear-attention, fla/layers/rebased.py
//             (forward_reference), fla/modules/feature_map.py (RebasedFeatureMap), fla/ops/rebased/naive.py
//   Glossary  L length   D channels   H heads   f width of queries and keys of one head   V value width
//             K = f (f + 1) / 2 features
//   Engine    engine/linear_recurrence.hpp with decay::None, and engine/linear_attention_global.hpp without order
//
// Core:   w_ts = s^2,   s = scale q_t . k_s
//         y_t = sum_s w_ts v_s / (sum_s w_ts + epsilon),   the denominator only when normalising
//         causal: over s <= t; bidirectional: over all tokens
// Layer:  projections, layer norm of q and k of every head, * gamma + beta, core with scale f^-1/2 and epsilon 1e-5,
//         projection
// Weights can vanish: only epsilon bounds the denominator of the first tokens from below. So the first 16 tokens from a state
// of zeros, as far as one call has them, and bidirectional sequences no longer than that, take their weights from the
// products themselves, not from products of features.
#pragma once

#include <seqmix/parts/norm.hpp>
#include <seqmix/parts/polynomial_attention.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// Causal ReBased attention from and into `memory` [H, K, V], the second moments of the keys
/// (parts/polynomial_features.hpp), and `key_sum` [H, K], the same of a value that is always 1 (left alone unless
/// normalising). query, key [L, H', f], value [L, H', V] with every H' dividing H, output [L, H, V]. O(L H K V) time,
/// O(H K V) scratch. Allocates nothing once `workspace` is warm. Throws std::invalid_argument on shapes that do not fit and
/// on outputs that overlap.
template <std::floating_point T>
void rebased(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
             const std::type_identity_t<PolynomialAttentionOptions<T>>& options, MemoryView<T> memory,
             Sequence<T> key_sum, HeadSequence<T> output, Workspace& workspace,
             const std::type_identity_t<SumCompensation<T>>& compensation = {}) {
  polynomial_attention<polynomial::Square, Direction::causal, T>("rebased", query, key, value, options, memory, key_sum,
                                                                 output, workspace, compensation);
}

/// ReBased attention of every token to all tokens. Shapes, cost and errors as for rebased, without a state.
template <std::floating_point T>
void rebased_bidirectional(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
                           const std::type_identity_t<PolynomialAttentionOptions<T>>& options, HeadSequence<T> output,
                           Workspace& workspace) {
  polynomial_attention<polynomial::Square, Direction::bidirectional, T>("rebased", query, key, value, options, {}, {},
                                                                        output, workspace);
}

/// The layer of ReBased, causal or bidirectional.
template <std::floating_point T, Direction way = Direction::causal>
class Rebased : public PolynomialAttentionLayer<Rebased<T, way>, polynomial::Square, T, way> {
  using Layer = PolynomialAttentionLayer<Rebased<T, way>, polynomial::Square, T, way>;

 public:
  static constexpr std::string_view name = "rebased";

  struct Config {
    Index channels = 0;
    Index heads = 16;
    Index feature_dim = 16;  ///< f
    PolynomialAttentionOptions<T> options{.epsilon = T(1e-5)};
    bool normalize_input = true;  ///< mean 0 and variance 1 of q and k of every head
    bool use_gamma = true;        ///< then times gamma
    bool use_beta = true;         ///< then plus beta
    T norm_eps = T(1e-5);         ///< added to the variance
  };

  struct Weights : PolynomialAttentionWeights<T> {
    Vector<T> gamma, beta;  // [f], for q and k of all heads

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      Weights::visit_shared(self, visitor);
      visitor("feature_map.gamma", self.gamma, Presence::optional);
      visitor("feature_map.beta", self.beta, Presence::optional);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless heads divides channels and the shapes of `weights` follow from
  /// `config`.
  Rebased(const Config& config, const Weights& weights)
      : Layer(config, weights),
        config_(config),
        gamma_(config.use_gamma ? weights.gamma : Vector<T>::Ones(config.feature_dim)),
        beta_(config.use_beta ? weights.beta : Vector<T>::Zero(config.feature_dim)) {
    expect_tensor(name, "feature_map.gamma", {config.feature_dim}, gamma_);
    expect_tensor(name, "feature_map.beta", {config.feature_dim}, beta_);
  }

  /// Projections uniform in +-D^-1/2; gamma is 1 and beta 0.
  static Weights random_weights(const Config& config, Rng& rng) {
    return {PolynomialAttentionWeights<T>::random(Layer::checked(config), rng),
            Vector<T>::Ones(config.use_gamma ? config.feature_dim : 0),
            Vector<T>::Zero(config.use_beta ? config.feature_dim : 0)};
  }

  const Config& config() const { return config_; }

  /// Norms of queries and keys, for AttentionLayer.
  void prepare(const HeadSequence<T>& query, const HeadSequence<T>& key) const {
    for (const auto& rows : {query, key}) {
      for (Index h = 0; h < rows.heads(); ++h) {
        if (config_.normalize_input) {
          layer_normalize<T>(rows.head(h), rows.head(h), config_.norm_eps, gamma_, beta_);
        } else if (config_.use_gamma || config_.use_beta) {
          scale_and_shift<T>(rows.head(h), gamma_, beta_);
        }
      }
    }
  }

 private:
  Config config_;
  Vector<T> gamma_, beta_;  // [f]
};

static_assert(RecurrentMixer<Rebased<float>>);
static_assert(!CausalMixer<Rebased<float, Direction::bidirectional>>);

}  // namespace seqmix::inline SEQMIX_ARCH
