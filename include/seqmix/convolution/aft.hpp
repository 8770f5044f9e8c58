// The attention-free transformer: every channel averages values with weights of its own.
//
//   Source    Zhai et al. 2021, arXiv:2105.14103, sections 3.1 to 3.3 and equation 5; layers as in rish-16/aft-pytorch,
//             aft_pytorch/aft_pytorch.py, and labmlai/annotated_deep_learning_paper_implementations, transformers/aft
//   Glossary  L length   D channels   C hidden channels   H heads (of conv; else 1)   T the most tokens   s taps
//   Engine    engine/attention_free.hpp
//   Size      a core and a layer with four forms of biases, in both directions
//
//   y_t = sigmoid(q_t) * sum over j of e^(k_j + w(t, j)) v_j / (the same sum without v_j),   j <= t where causal
//
//   full     w(t, j) = bias[t, j]                                            [T, T]
//   local    the same where |t - j| < window, else 0
//   simple   w(t, j) = 0
//   conv     w(t, j) = bias[h, t - j], causal, or bias[h, t - j + s div 2], not, where there is such a tap, else 0
//
// Tokens outside the window still count. Keys and biases may have any size: nothing is exponentiated that could overflow.
// Differs   from aft-pytorch in that a causal layer is, and from labml's in that tokens before a window are never formed
//           as a difference from all tokens, which cancels.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/attention_cache.hpp>
#include <seqmix/engine/attention_free.hpp>
#include <seqmix/parts/gate.hpp>
#include <seqmix/parts/linear.hpp>
#include <string_view>

namespace seqmix::inline SEQMIX_ARCH {

/// Which tokens have which biases.
enum class AftForm { full, local, simple, conv };

/// The biases of a core.
template <std::floating_point T>
struct AftBias {
  AftForm form = AftForm::simple;
  Sequence<const T> numbers = {};  ///< [T, T] of full and local, [H, s] of conv
  Index window = 0;                ///< of local, at least 1

  /// Most tokens of a sequence, where there is a limit.
  std::optional<Index> max_length() const {
    if (form == AftForm::full || form == AftForm::local) return numbers.length();
    return std::nullopt;
  }
  /// Near tokens up to a row's own, the earlier ones of which a state holds; none: all.
  std::optional<Index> before(bool causal) const {
    if (form == AftForm::full) return std::nullopt;
    if (form == AftForm::conv) return numbers.channels() - (causal ? 0 : numbers.channels() / 2);
    return form == AftForm::local ? window : 0;
  }
  /// Throws std::invalid_argument unless the shapes fit `heads`.
  void check(Index heads) const {
    expect(form != AftForm::local || window > 0, "aft", "window", "must be positive");
    if (max_length()) expect_shape("aft", "bias", {numbers.length(), numbers.length()}, numbers);
    if (form != AftForm::conv) return;
    expect_shape("aft", "bias", {heads, numbers.channels()}, numbers);
    expect(numbers.channels() > 0, "aft", "bias", "must have taps");
  }
  /// Throws std::invalid_argument unless there is room for `count` tokens after `position`.
  void expect_room(Index position, Index count) const {
    const Index most = max_length().value_or(std::numeric_limits<Index>::max());
    expect(position <= most && count <= most - position, "aft", "x", "more tokens than there are biases for");
  }
};

/// What a causal core knows of earlier tokens: sums of those that are no longer near, and keys and values of the others.
template <std::floating_point T>
struct AftState {
  Tensor<T> sums;         // [5, C], see engine/attention_free.hpp
  KeyValueCache<T> near;  // of full all tokens
  Index position = 0;     // tokens seen

  AftState() = default;

  /// Of no tokens.
  AftState(const AftBias<T>& bias, Index heads, Index head_dim)
      : sums({attention_free_sums, heads * head_dim}), near(heads, head_dim, head_dim, window_of(bias)) {
    std::fill_n(sums.begin(), heads * head_dim, attention_free_empty<T>);
  }

  /// Makes room for `tokens` in all: no step allocates before there are more.
  void reserve(Index tokens) { near.reserve(tokens); }

  template <class Self, class Visitor>
  static void visit(Self& self, Visitor&& visitor) {
    visitor("sums", self.sums);
    visit_fields(self.near, visitor);
    visitor("position", self.position);
  }

  /// Throws std::invalid_argument unless it is a state of such a core.
  void check(std::string_view operation, const AftBias<T>& bias, Index heads, Index head_dim) const {
    expect_shape(operation, "state.sums", {attention_free_sums, heads * head_dim}, sums.shape());
    near.check(operation, KeyValueCache<T>(heads, head_dim, head_dim, window_of(bias)));
    const Index kept = std::min(position, bias.before(true).value_or(position + 1) - 1);
    expect(position >= 0 && near.size() == std::max(kept, Index(0)), operation, "state.position", "is impossible");
    bias.expect_room(position, 0);
  }

 private:
  static std::optional<Index> window_of(const AftBias<T>& bias) {
    const auto before = bias.before(true);
    return before ? std::optional<Index>(std::max(*before - 2, Index(0))) : std::nullopt;
  }
};

namespace aft_detail {

/// Checked arguments; `state` or none.
template <class T>
void run(AftState<T>* state, HeadSequence<const T> query, HeadSequence<const T> key, HeadSequence<const T> value,
         const AftBias<T>& bias, bool causal, HeadSequence<T> y, Workspace& workspace) {
  const Index L = y.length(), H = y.heads();
  if (L == 0) return;
  const auto frame = workspace.frame();
  AttentionFreeProblem<T> problem{key, value, y};
  problem.causal = causal;
  if (state != nullptr) {
    const auto past = state->near.segments();
    for (Index part = 0; part < 2; ++part) {
      problem.past_key[part] = past[std::size_t(part)].key;
      problem.past_value[part] = past[std::size_t(part)].value;
    }
    problem.sums = {state->sums.data(), attention_free_sums, H * y.head_dim()};
    problem.position = state->position;
  } else if (causal) {
    problem.sums = workspace.sequence<T>(attention_free_sums, H * y.head_dim());
    for (Index row = 0; row < attention_free_sums; ++row) {
      std::fill_n(problem.sums.row(row), H * y.head_dim(), row == 0 ? attention_free_empty<T> : T(0));
    }
  }
  problem.before = bias.before(causal).value_or(problem.past() + L + 1);
  switch (bias.form) {
    case AftForm::simple:
      break;
    case AftForm::full:
    case AftForm::local:
      if (!causal) problem.after = bias.form == AftForm::full ? L : bias.window - 1;
      problem.bias = bias.numbers.data() + problem.position * (bias.numbers.stride() + 1);
      problem.row_step = bias.numbers.stride();
      break;
    case AftForm::conv: {
      const Index taps = bias.numbers.channels();
      if (!causal) problem.after = taps / 2;
      const auto reversed = workspace.sequence<T>(H, taps);  // in the order of tokens
      for (Index h = 0; h < H; ++h) std::reverse_copy(bias.numbers.row(h), bias.numbers.row(h) + taps, reversed.row(h));
      problem.bias = reversed.data() + problem.before - 1;
      problem.row_step = -1;
      problem.head_step = reversed.stride();
      break;
    }
  }
  attention_free(problem, workspace);
  workspace.for_row_blocks(L, [&](Index begin, Index count) {
    for (Index h = 0; h < H; ++h) {
      multiply_sigmoid<T>(y.head(h).rows(begin, count), query.head(h).rows(begin, count));
    }
  });
}

template <class T>
void check(const HeadSequence<const T>& query, const HeadSequence<const T>& key, const HeadSequence<const T>& value,
           const AftBias<T>& bias, Index position, const HeadSequence<T>& y) {
  const Shape shape(y);
  expect_shape("aft", "query", shape, query);
  expect_shape("aft", "key", shape, key);
  expect_shape("aft", "value", shape, value);
  bias.check(y.heads());
  bias.expect_room(position, y.length());
  expect_disjoint("aft", "y", y, "query", query);
  expect_disjoint("aft", "y", y, "key", key);
  expect_disjoint("aft", "y", y, "value", value);
  expect_disjoint("aft", "y", y, "bias", bias.numbers);
}

}  // namespace aft_detail

/// y from query, key and value, all [L, H, d]. O(L C (near tokens)) time. Allocates nothing once `workspace` is warm. Throws
/// std::invalid_argument on shapes that do not fit, on more tokens than there are biases for, and if y overlaps an argument.
template <std::floating_point T>
void aft(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
         const std::type_identity_t<AftBias<T>>& bias, bool causal, HeadSequence<T> y, Workspace& workspace) {
  aft_detail::check<T>(query, key, value, bias, 0, y);
  aft_detail::run<T>(nullptr, query, key, value, bias, causal, y, workspace);
}

/// The same for the next tokens of a sequence, causal, from and into a state of such biases. Allocates only where the state
/// grows.
template <std::floating_point T>
void aft(AftState<T>& state, ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
         const std::type_identity_t<AftBias<T>>& bias, HeadSequence<T> y, Workspace& workspace) {
  aft_detail::check<T>(query, key, value, bias, state.position, y);
  state.check("aft", bias, y.heads(), y.head_dim());
  const Index kept = bias.before(true).value_or(2) - 1;
  if (kept > 0) state.near.reserve_more(y.length());
  aft_detail::run<T>(&state, query, key, value, bias, true, y, workspace);
  if (kept > 0) state.near.append(key, value);
  state.position += y.length();
}

/// The paper's other parameters of a kernel [H, s]: gamma (w - mean) / deviation + beta for each head, the deviation over
/// s - 1.
template <std::floating_point T>
Matrix<T> renormalized_aft_kernel(const Matrix<T>& kernel, const Vector<T>& gamma, const Vector<T>& beta) {
  Matrix<T> result(kernel.rows(), kernel.cols());
  for (Index h = 0; h < kernel.rows(); ++h) {
    double mean = 0, squares = 0;
    for (Index i = 0; i < kernel.cols(); ++i) mean += double(kernel(h, i)) / double(kernel.cols());
    for (Index i = 0; i < kernel.cols(); ++i) squares += std::pow(double(kernel(h, i)) - mean, 2);
    const double scale = double(gamma[h]) / std::sqrt(squares / double(kernel.cols() - 1));
    for (Index i = 0; i < kernel.cols(); ++i) {
      result(h, i) = T(scale * (double(kernel(h, i)) - mean) + double(beta[h]));
    }
  }
  return result;
}

/// The names that published code gives the tensors of a layer.
enum class AftNames {
  aft_pytorch,  ///< to_q, to_k, to_v, project, wbias
  labml         ///< query, key, value, output, pos_bias
};

/// The layer, causal or bidirectional.
template <std::floating_point T, Direction way = Direction::causal>
class Aft : public RecurrentMixerBase<Aft<T, way>, T> {
 public:
  static constexpr std::string_view name = "aft";
  static constexpr Direction direction = way;
  static constexpr StateGrowth growth = StateGrowth::linear;  // of full; of local and conv window, of simple constant

  struct Config {
    Index channels = 0;
    AftForm form = AftForm::full;
    Index hidden = 0;           ///< C; 0 means D
    Index max_length = 0;       ///< T of full and local
    Index window = 0;           ///< of local
    Index heads = 1;            ///< of conv
    Index taps = 0;             ///< s of conv
    bool renormalized = false;  ///< conv has kernels of mean beta and deviation gamma
    Index rank = 0;             ///< of full and local: bias = left right^T; 0: biases of their own
  };

  struct Weights {
    Matrix<T> query, key, value;                 // [C, D]
    Vector<T> query_bias, key_bias, value_bias;  // [C]
    Matrix<T> output;                            // [D, C]
    Vector<T> output_bias;                       // [D]
    Matrix<T> bias;                              // [T, T] of full and local
    Matrix<T> bias_left, bias_right;             // [T, rank] instead
    Matrix<T> kernel;                            // [H, s] of conv
    Vector<T> kernel_gamma, kernel_beta;         // [H], if renormalised
    AftNames names = AftNames::aft_pytorch;

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      const auto named = [&](std::string_view one, std::string_view other) {
        return self.names == AftNames::aft_pytorch ? one : other;
      };
      visitor(named("to_q.weight", "query.weight"), self.query, Presence::required);
      visitor(named("to_q.bias", "query.bias"), self.query_bias, Presence::required);
      visitor(named("to_k.weight", "key.weight"), self.key, Presence::required);
      visitor(named("to_k.bias", "key.bias"), self.key_bias, Presence::required);
      visitor(named("to_v.weight", "value.weight"), self.value, Presence::required);
      visitor(named("to_v.bias", "value.bias"), self.value_bias, Presence::required);
      visitor(named("project.weight", "output.weight"), self.output, Presence::required);
      visitor(named("project.bias", "output.bias"), self.output_bias, Presence::required);
      visitor(named("wbias", "pos_bias"), self.bias, Presence::optional);
      visitor("u", self.bias_left, Presence::optional);
      visitor("v", self.bias_right, Presence::optional);
      visitor("w", self.kernel, Presence::optional);
      visitor("gamma", self.kernel_gamma, Presence::optional);
      visitor("beta", self.kernel_beta, Presence::optional);
    }
  };

  using State = AftState<T>;

  /// Packs the weights. Throws std::invalid_argument unless their shapes follow from `config`.
  Aft(const Config& config, const Weights& weights) : config_(completed(config)) {
    const Index D = config_.channels, C = config_.hidden, most = config_.max_length;
    expect_tensor(name, "query", {C, D}, weights.query);
    expect_tensor(name, "query.bias", {C}, weights.query_bias);
    expect_tensor(name, "key", {C, D}, weights.key);
    expect_tensor(name, "key.bias", {C}, weights.key_bias);
    expect_tensor(name, "value", {C, D}, weights.value);
    expect_tensor(name, "value.bias", {C}, weights.value_bias);
    expect_tensor(name, "output", {D, C}, weights.output);
    expect_tensor(name, "output.bias", {D}, weights.output_bias);
    input_ = Linear<T>({&weights.query, &weights.key, &weights.value},
                       {&weights.query_bias, &weights.key_bias, &weights.value_bias});
    output_ = Linear<T>(weights.output, weights.output_bias);
    if (config_.form == AftForm::conv) {
      expect_tensor(name, "w", {config_.heads, config_.taps}, weights.kernel);
      numbers_ = weights.kernel;
      if (!config_.renormalized) return;
      expect_tensor(name, "gamma", {config_.heads}, weights.kernel_gamma);
      expect_tensor(name, "beta", {config_.heads}, weights.kernel_beta);
      numbers_ = renormalized_aft_kernel(weights.kernel, weights.kernel_gamma, weights.kernel_beta);
    } else if (config_.form != AftForm::simple && config_.rank == 0) {
      expect_tensor(name, "bias", {most, most}, weights.bias);
      numbers_ = weights.bias;
    } else if (config_.form != AftForm::simple) {
      expect_tensor(name, "u", {most, config_.rank}, weights.bias_left);
      expect_tensor(name, "v", {most, config_.rank}, weights.bias_right);
      numbers_ = weights.bias_left.lazyProduct(weights.bias_right.transpose());
    }
  }

  /// Projections as torch initialises them, biases of tokens normal with deviation 0.01 as the paper's, gamma 1, beta 0.
  static Weights random_weights(const Config& given, Rng& rng) {
    const Config config = completed(given);
    const Index D = config.channels, C = config.hidden, most = config.max_length;
    Weights weights;
    const auto project = [&](Index outputs, Index inputs, Matrix<T>& weight, Vector<T>& bias) {
      const double bound = std::pow(double(inputs), -0.5);
      weight = random_projection<T>(outputs, inputs, rng);
      bias = uniform_vector<T>(outputs, -bound, bound, rng);
    };
    project(C, D, weights.query, weights.query_bias);
    project(C, D, weights.key, weights.key_bias);
    project(C, D, weights.value, weights.value_bias);
    project(D, C, weights.output, weights.output_bias);
    if (config.form == AftForm::conv) {
      weights.kernel = normal_matrix<T>(config.heads, config.taps, 0.01, rng);
      if (config.renormalized) weights.kernel_gamma = Vector<T>::Ones(config.heads);
      if (config.renormalized) weights.kernel_beta = Vector<T>::Zero(config.heads);
    } else if (config.form != AftForm::simple && config.rank == 0) {
      weights.bias = normal_matrix<T>(most, most, 0.01, rng);
    } else if (config.form != AftForm::simple) {
      weights.bias_left = normal_matrix<T>(most, config.rank, 0.01, rng);
      weights.bias_right = normal_matrix<T>(most, config.rank, 0.01, rng);
    }
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// y = mixer(x) for a whole sequence. x, y [L, D]. Throws std::invalid_argument on wrong shapes, on overlapping views, and on
  /// more than T tokens.
  void forward(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    if constexpr (way == Direction::causal) {
      RecurrentMixerBase<Aft, T>::forward(x, y, workspace);
    } else {
      internal::expect_input_output<T>(name, channels(), x, y);
      bias().expect_room(0, x.length());
      if (x.length() == 0) return;
      const auto frame = workspace.frame();
      mix(x, y, workspace, [&](const auto& query, const auto& key, const auto& value, const auto& mixed) {
        aft<T>(query, key, value, bias(), false, mixed, workspace);
      });
    }
  }

  /// The state of no tokens.
  State initial_state() const
    requires(way == Direction::causal)
  {
    return State(bias(), heads(), config_.hidden / heads());
  }

  /// Throws std::invalid_argument unless the state is one of this mixer's.
  void check_state(const State& state) const { state.check(name, bias(), heads(), config_.hidden / heads()); }

  /// Throws std::invalid_argument where a sequence would have more than T tokens.
  void reserve(const SequenceBatch<State>& batch) const {
    for (Index b = 0; b < batch.size(); ++b) bias().expect_room(batch.state(b).position, batch.length(b));
    if (bias().before(true).value_or(2) <= 1) return;
    for (Index b = 0; b < batch.size(); ++b) batch.state(b).near.reserve_more(batch.length(b));
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    mix(x, y, workspace, [&](const auto& query, const auto& key, const auto& value, const auto& mixed) {
      for (Index b = 0; b < batch.size(); ++b) {
        const auto rows = [&](const auto& view) { return view.rows(batch.begin(b), batch.length(b)); };
        aft<T>(batch.state(b), rows(query), rows(key), rows(value), bias(), rows(mixed), workspace);
      }
    });
  }

 private:
  Index heads() const { return config_.form == AftForm::conv ? config_.heads : 1; }
  AftBias<T> bias() const { return {config_.form, numbers_, config_.window}; }

  static Config completed(Config config) {
    if (config.hidden == 0) config.hidden = config.channels;
    expect(config.channels > 0 && config.hidden > 0, name, "config.channels", "must be positive, as must hidden");
    const bool table = config.form == AftForm::full || config.form == AftForm::local;
    expect(!table || config.max_length > 0, name, "config.max_length", "must be positive");
    expect(config.form != AftForm::local || config.window > 0, name, "config.window", "must be positive");
    expect(config.rank >= 0, name, "config.rank", "must not be negative");
    if (config.form == AftForm::conv) {
      expect_divides(name, "config.heads", config.heads, "config.hidden", config.hidden);
      expect(config.taps > (config.renormalized ? 1 : 0), name, "config.taps",
             "must be positive, and 2 to have a deviation");
    }
    return config;
  }

  /// Projections around core(query, key, value, mixed).
  template <class Core>
  void mix(ConstSequence<T> x, Sequence<T> y, Workspace& workspace, const Core& core) const {
    ColumnCutter<T> columns(input_.apply(x, workspace));
    const auto next = [&] { return HeadSequence<const T>(columns.next(config_.hidden).heads(heads())); };
    const auto query = next(), key = next(), value = next();
    const auto mixed = workspace.sequence<T>(x.length(), config_.hidden);
    core(query, key, value, mixed.heads(heads()));
    output_.apply(mixed, y, workspace);
  }

  Config config_;
  Linear<T> input_;  // query, key and value side by side
  Linear<T> output_;
  Matrix<T> numbers_;  // [T, T], or [H, s]
};

static_assert(RecurrentMixer<Aft<float>>);
static_assert(Mixer<Aft<float, Direction::bidirectional>>);
static_assert(!CausalMixer<Aft<float, Direction::bidirectional>>);

}  // namespace seqmix::inline SEQMIX_ARCH
