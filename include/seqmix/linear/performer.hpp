// Performer (FAVOR+): linear attention whose feature maps are random and estimate softmax attention.
//
//   Source    Choromanski et al. 2020, arXiv:2009.14794; lucidrains/performer-pytorch, performer_pytorch.py, FastAttention
//             and SelfAttention
//   Glossary  L length   D channels   H heads   K, V key and value width of one head   m features of one head
//   Engine    engine/random_feature_attention.hpp
//   Size      cores of both directions, their stabilisers, and the layer
//
// Core:   x' = K^-1/4 x,   u = P x'
//         softmax   phi(q) = m^-1/2 (exp(u - |q'|^2 / 2 - max_j u_j) + kernel_eps)
//                   phi(k) = m^-1/2 (exp(u - |k'|^2 / 2 - M) + kernel_eps),   M the key stabilizer of the head
//         relu      phi(x) = max(u, 0) + kernel_eps
//         S_t = S_{t-1} + phi(k_t) v_t^T,   z_t = z_{t-1} + phi(k_t)
//         y_t = phi(q_t)^T S_t / (phi(q_t) . (z_t + denominator_eps))
//         bidirectional: S and z are the sums over all tokens
// Layer:  projections, core, projection
//
// M cancels but for the epsilons. The authors' M is the largest u of the whole sequence, which no causal evaluation knows:
// where it matters, it is given. Without it M is the largest u so far, that of the token itself included: strictly causal,
// and the same in any pieces. Bidirectional attention takes the largest u of all tokens.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <seqmix/engine/random_feature_attention.hpp>
#include <seqmix/parts/attention_layer.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// Options of the Performer.
template <std::floating_point T>
struct PerformerOptions {
  std::optional<T> kernel_eps{};       ///< added to every feature; without it 1e-4 (softmax) or 1e-3 (relu)
  std::optional<T> denominator_eps{};  ///< added to every entry of z; without it 1e-6, bidirectional 0
};

/// What the tokens so far have left. It holds no M, so that any may be given to the next.
template <std::floating_point T>
using PerformerState = RandomFeatureMemory<T>;

namespace detail {

inline constexpr std::string_view performer_name = "performer";

/// Throws unless the streams fit each other and P, and the output overlaps none of them.
template <class T>
void expect_performer_shapes(const HeadSequence<const T>& query, const HeadSequence<const T>& key,
                             const HeadSequence<const T>& value, const RandomFeatures<T>& features,
                             const HeadSequence<T>& output) {
  const Shape shape{output.length(), output.heads(), features.channels()};
  expect(features.features() > 0, performer_name, "features", "are none");
  expect_shape(performer_name, "query", shape, query);
  expect_shape(performer_name, "key", shape, key);
  expect_shape(performer_name, "value", Shape(output), value);
  expect_disjoint(performer_name, "output", output, "query", query);
  expect_disjoint(performer_name, "output", output, "key", key);
  expect_disjoint(performer_name, "output", output, "value", value);
}

/// The options in the engine's unit, phi without its m^-1/2.
template <class Kernel, class T>
RandomFeatureEpsilons<T> performer_epsilons(const PerformerOptions<T>& options, Index features,
                                            T denominator_otherwise) {
  return {options.kernel_eps.value_or(T(Kernel::epsilon)), options.denominator_eps.value_or(denominator_otherwise) *
                                                               (Kernel::stabilized ? std::sqrt(T(features)) : T(1))};
}

}  // namespace detail

/// Causal attention from and into `state`, whose memory is [H, m, V]. query, key [L, H, K], value, output [L, H, V].
/// `features` has P. key_stabilizer [L, H] is M (a stride of 0 repeats a row), empty where it is the largest u so far;
/// kernels without M refuse it. Kernel is one of random_feature.
/// O(L H m (K + V)) time; O(H m (K + V)) scratch. Stable for any L and keys, and for M down
/// to 80 below the largest u, where the features of the definition overflow. Allocates nothing once `workspace` is warm.
/// Throws std::invalid_argument on shapes that do not fit and on an output that overlaps an input.
template <class Kernel = random_feature::Softmax, std::floating_point T>
void performer(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
               const RandomFeatures<T>& features, const std::type_identity_t<PerformerOptions<T>>& options,
               PerformerState<T>& state, HeadSequence<T> output, Workspace& workspace,
               ConstSequence<T> key_stabilizer = {}) {
  const Index heads = output.heads(), m = features.features();
  detail::expect_performer_shapes<T>(query, key, value, features, output);
  state.check(detail::performer_name, {heads, m, output.head_dim()});
  if (key_stabilizer.data()) {
    expect(Kernel::stabilized, detail::performer_name, "key_stabilizer", "is given to a kernel that has none");
    expect_shape(detail::performer_name, "key_stabilizer", {output.length(), heads}, key_stabilizer);
    expect_disjoint(detail::performer_name, "output", output, "key_stabilizer", key_stabilizer);
  }
  random_feature_attention<Kernel, T>(query, key, value, features,
                                      detail::performer_epsilons<Kernel, T>(options, m, T(1e-6)), state, output,
                                      key_stabilizer, workspace);
}

/// Attention of every token to all tokens. Shapes, cost and errors as for performer, without a state.
template <class Kernel = random_feature::Softmax, std::floating_point T>
void performer_bidirectional(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
                             const RandomFeatures<T>& features,
                             const std::type_identity_t<PerformerOptions<T>>& options, HeadSequence<T> output,
                             Workspace& workspace) {
  detail::expect_performer_shapes<T>(query, key, value, features, output);
  random_feature_attention_global<Kernel, T>(query, key, value, features,
                                             detail::performer_epsilons<Kernel, T>(options, features.features(), T(0)),
                                             output, workspace);
}

/// Raises largest [H] to the largest u of key [L, H, K]: where it began with minus infinity, this is the M of the authors for
/// a whole sequence. O(L H m K) time. Allocates nothing once `workspace` is warm. Throws std::invalid_argument on shapes
/// that do not fit.
template <std::floating_point T>
void performer_key_stabilizer(ConstHeadSequence<T> key, const RandomFeatures<T>& features, Token<T> largest,
                              Workspace& workspace) {
  expect_shape(detail::performer_name, "key", {key.length(), largest.channels(), features.channels()}, key);
  raise_to_largest<T>(key, features, largest, workspace);
}

/// The Performer's self-attention layer, causal or bidirectional. Kernel is one of random_feature.
template <std::floating_point T, class Kernel = random_feature::Softmax, Direction way = Direction::causal>
class Performer : public AttentionLayer<Performer<T, Kernel, way>, T, way, PerformerState<T>> {
  using Base = AttentionLayer<Performer, T, way, PerformerState<T>>;

 public:
  static constexpr std::string_view name = detail::performer_name;
  using State = PerformerState<T>;

  struct Config {
    Index channels = 0;
    Index heads = 8;
    Index head_dim = 0;  ///< K = V; 0 means channels / heads
    Index features = 0;  ///< m; 0 means floor(K ln K), at least 1
    bool query_key_value_bias = false;
    bool output_bias = true;
    PerformerOptions<T> options{};
    RandomFeatureNorms norms = RandomFeatureNorms::gaussian;  ///< of the rows of P that random_weights draws
  };

  struct Weights {
    Matrix<T> query, key, value;                 // [H K, D]
    Vector<T> query_bias, key_bias, value_bias;  // [H K], or absent
    Matrix<T> output;                            // [D, H K]
    Vector<T> output_bias;                       // [D], or absent
    Matrix<T> features;                          // P [m, K]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("to_q.weight", self.query, Presence::required);
      visitor("to_k.weight", self.key, Presence::required);
      visitor("to_v.weight", self.value, Presence::required);
      visitor("to_q.bias", self.query_bias, Presence::optional);
      visitor("to_k.bias", self.key_bias, Presence::optional);
      visitor("to_v.bias", self.value_bias, Presence::optional);
      visitor("to_out.weight", self.output, Presence::required);
      visitor("to_out.bias", self.output_bias, Presence::optional);
      visitor("fast_attention.projection_matrix", self.features, Presence::required);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless the shapes of `weights` follow from `config`.
  Performer(const Config& config, const Weights& weights) : config_(completed(config)) {
    const Index D = config_.channels, inner = config_.heads * config_.head_dim;
    expect_tensor(name, "to_q.weight", {inner, D}, weights.query);
    expect_tensor(name, "to_k.weight", {inner, D}, weights.key);
    expect_tensor(name, "to_v.weight", {inner, D}, weights.value);
    expect_tensor(name, "to_out.weight", {D, inner}, weights.output);
    expect_tensor(name, "fast_attention.projection_matrix", {config_.features, config_.head_dim}, weights.features);
    const Index biases = config_.query_key_value_bias ? inner : 0;
    expect_tensor(name, "to_q.bias", {biases}, weights.query_bias);
    expect_tensor(name, "to_k.bias", {biases}, weights.key_bias);
    expect_tensor(name, "to_v.bias", {biases}, weights.value_bias);
    expect_tensor(name, "to_out.bias", {config_.output_bias ? D : 0}, weights.output_bias);
    this->input_ = Linear<T>({&weights.query, &weights.key, &weights.value},
                             {&weights.query_bias, &weights.key_bias, &weights.value_bias});
    this->output_ = Linear<T>(weights.output, weights.output_bias);
    features_ = RandomFeatures<T>(weights.features);
  }

  /// Projections and biases uniform in +-inputs^-1/2, as linear layers begin by default; orthogonal random features.
  static Weights random_weights(const Config& config, Rng& rng) {
    const Config c = completed(config);
    const Index D = c.channels, inner = c.heads * c.head_dim;
    const auto matrix = [&](Index outputs, Index inputs) {
      return uniform_matrix<T>(outputs, inputs, std::pow(double(inputs), -0.5), rng);
    };
    const auto bias = [&](bool any, Index outputs, Index inputs) {
      const double bound = std::pow(double(inputs), -0.5);
      return uniform_vector<T>(any ? outputs : 0, -bound, bound, rng);
    };
    return {matrix(inner, D),
            matrix(inner, D),
            matrix(inner, D),
            bias(c.query_key_value_bias, inner, D),
            bias(c.query_key_value_bias, inner, D),
            bias(c.query_key_value_bias, inner, D),
            matrix(D, inner),
            bias(c.output_bias, D, inner),
            orthogonal_random_features<T>(c.features, c.head_dim, c.norms, rng)};
  }

  const Config& config() const { return config_; }

  using Base::forward;
  using Base::prefill;
  using Base::step;

  /// forward, prefill and step with M given for each head, key_stabilizer [H]. Otherwise as those without.
  void forward(ConstSequence<T> x, ConstToken<T> key_stabilizer, Sequence<T> y, Workspace& workspace) const
    requires(way == Direction::causal && Kernel::stabilized)
  {
    Base::forward_with(x, y, workspace, repeated(key_stabilizer, x.length()));
  }
  void prefill(State& state, ConstSequence<T> x, ConstToken<T> key_stabilizer, Sequence<T> y,
               Workspace& workspace) const
    requires(way == Direction::causal && Kernel::stabilized)
  {
    Base::prefill_with(state, x, y, workspace, repeated(key_stabilizer, x.length()));
  }
  void step(State& state, ConstToken<T> x, ConstToken<T> key_stabilizer, Token<T> y, Workspace& workspace) const
    requires(way == Direction::causal && Kernel::stabilized)
  {
    prefill(state, ConstSequence<T>(x), key_stabilizer, Sequence<T>(y), workspace);
  }

  /// The authors' M for the whole sequence x [L, D], into key_stabilizer [H]. Throws as forward does.
  void key_stabilizer(ConstSequence<T> x, Token<T> key_stabilizer, Workspace& workspace) const {
    expect_shape(name, "x", {x.length(), config_.channels}, x);
    expect_shape(name, "key_stabilizer", {config_.heads}, key_stabilizer);
    std::fill_n(key_stabilizer.data(), config_.heads, -std::numeric_limits<T>::infinity());
    for (Index begin = 0; begin < x.length(); begin += Base::rows_per_pass) {
      const auto frame = workspace.frame();
      const auto rows = x.rows(begin, std::min(Base::rows_per_pass, x.length() - begin));
      performer_key_stabilizer<T>(this->project_key(rows, workspace), features_, key_stabilizer, workspace);
    }
  }

  // What AttentionLayer asks for.
  AttentionHeads heads() const { return {config_.heads, config_.heads, config_.head_dim, config_.head_dim}; }
  Shape memory_shape() const { return {config_.heads, config_.features, config_.head_dim}; }
  void attend(State& state, const HeadSequence<T>& query, const HeadSequence<T>& key, const HeadSequence<T>& value,
              const HeadSequence<T>& output, Workspace& workspace, ConstSequence<T> key_stabilizer = {}) const {
    performer<Kernel, T>(query, key, value, features_, config_.options, state, output, workspace, key_stabilizer);
  }
  void attend(const HeadSequence<T>& query, const HeadSequence<T>& key, const HeadSequence<T>& value,
              const HeadSequence<T>& output, Workspace& workspace) const {
    performer_bidirectional<Kernel, T>(query, key, value, features_, config_.options, output, workspace);
  }

 private:
  static Config completed(Config config) {
    expect(config.channels > 0, name, "config.channels", "must be positive");
    if (config.head_dim == 0) {
      expect_divides(name, "config.heads", config.heads, "channels", config.channels);
      config.head_dim = config.channels / config.heads;
    }
    expect(config.heads > 0 && config.head_dim > 0, name, "config.heads and config.head_dim", "must be positive");
    const double K = double(config.head_dim);
    if (config.features == 0) config.features = std::max(Index(1), Index(K * std::log(K)));
    expect(config.features > 0, name, "config.features", "must be positive");
    return config;
  }

  /// key_stabilizer [H] for every token.
  ConstSequence<T> repeated(ConstToken<T> key_stabilizer, Index length) const {
    expect_shape(name, "key_stabilizer", {config_.heads}, key_stabilizer);
    return {key_stabilizer.data(), length, config_.heads, 0};
  }

  Config config_;
  RandomFeatures<T> features_;
};

static_assert(RecurrentMixer<Performer<float>>);
static_assert(!CausalMixer<Performer<float, random_feature::Softmax, Direction::bidirectional>>);

}  // namespace seqmix::inline SEQMIX_ARCH
