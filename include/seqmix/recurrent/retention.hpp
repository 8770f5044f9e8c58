// Multi-scale retention, the token mixer of RetNet.
//
//   Source    Sun et al. 2023, arXiv:2307.08621, sections 2.1 and 2.2; microsoft/torchscale, MultiScaleRetention
//   Glossary  L length   D channels   H heads   K, V key and value width of one head
//   Engine    engine/linear_recurrence.hpp with decay::PerHead
//   Size      a core, and a layer in the three forms of the paper
//
// Core:   S_t = gamma_h S_{t-1} + k_t v_t^T,   o_t = K^-0.5 q_t^T S_t
// Layer:  y_t = W_o (act(W_g x_t) * concat_h rms(f_t o_t)), with q and k turned by their positions
//
// The positive factor f_t of a row is what the paper's three forms differ in; the norm removes it but for its epsilon:
//   recurrent  1 / sqrt(z_t),  z_t = gamma z_{t-1} + 1
//   parallel   1 / (sqrt(z_t) clamp(sum_s |o_ts| / sqrt(z_t), 1, 5e4)),  o_ts = K^-0.5 gamma^(t-s) q_t . k_s
//   chunkwise  the same with sums over the current chunk only, and at least the norm of the memory it started from
// Differs   prefill and step always take the recurrent factor, which needs no past keys; forward takes the configured
//           one, at O(L^2 K) or O(L C K) for the sums of absolute values, in O(L) memory.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/linear_recurrence.hpp>
#include <seqmix/parts/gate.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/norm.hpp>
#include <seqmix/parts/rotary.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// log gamma_h = log(1 - 2^(-5-h)), h = 0 .. heads - 1: the decays of the paper. Allocates.
template <std::floating_point T>
Vector<T> retention_log_decay(Index heads) {
  return Vector<T>::NullaryExpr(heads, [](Index h) { return T(std::log1p(-std::exp2(-5.0 - double(h)))); });
}

/// Retention without projections: S_t = exp(log_decay_h) S_{t-1} + k_t v_t^T, output_t = scale * q_t^T S_t, from and into
/// `memory` [H, K, V]. query [L, Hq, K], key [L, Hk, K], value [L, Hv, V] with Hq, Hk and Hv dividing H; log_decay [H];
/// output [L, H, V]. O(L H K V) time, O(H K V) scratch. Allocates nothing once `workspace` is warm.
/// Throws std::invalid_argument on shapes that do not fit and on outputs that overlap.
template <std::floating_point T>
void retention(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
               ConstToken<T> log_decay, std::type_identity_t<T> scale, MemoryView<T> memory, HeadSequence<T> output,
               Workspace& workspace) {
  expect_recurrence_shapes<T>("retention", query, key, value, memory, output);
  expect_shape("retention", "log_decay", {memory.heads()}, log_decay);
  expect_apart_from_results("retention", "log_decay", log_decay, memory, output);
  linear_recurrence(
      LinearRecurrenceProblem<T, decay::PerHead<T>>{query, key, value, {log_decay}, {}, {}, scale, memory, output},
      workspace);
}

/// Where the row factor of the retention layer comes from; see the top of the file.
enum class RetentionForm { recurrent, parallel, chunkwise };

/// Activation of the retention layer's gate.
enum class RetentionGate { swish, exact_gelu };

/// The retention layer of torchscale.
template <std::floating_point T>
class Retention : public RecurrentMixerBase<Retention<T>, T> {
 public:
  static constexpr std::string_view name = "retention";
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Config {
    Index channels = 0;
    Index heads = 1;
    Index value_channels = 0;  ///< V H; 0 means 2 * channels, as in the paper
    T norm_eps = T(1e-6);
    RetentionGate gate = RetentionGate::swish;
    RetentionForm form = RetentionForm::recurrent;  ///< of forward
    Index chunk = 512;                              ///< of the chunkwise form
    Index start_position = 0;                       ///< position of the first token
  };

  struct Weights {
    Matrix<T> query, key;   // [D, D]
    Matrix<T> value, gate;  // [H V, D]
    Matrix<T> output;       // [D, H V]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("q_proj.weight", self.query, Presence::required);
      visitor("k_proj.weight", self.key, Presence::required);
      visitor("v_proj.weight", self.value, Presence::required);
      visitor("g_proj.weight", self.gate, Presence::required);
      visitor("out_proj.weight", self.output, Presence::required);
    }
  };

  struct State {
    Tensor<T> memory;    // [H, K, V], S_t
    Tensor<T> scale;     // [H], z_t
    Index position = 0;  // of the next token

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("memory", self.memory), visitor("scale", self.scale), visitor("position", self.position);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless heads divides the channels into pairs and the shapes of
  /// `weights` follow from `config`.
  Retention(Config config, const Weights& weights) : config_(completed(config)) {
    const Index D = config_.channels, values = config_.value_channels;
    expect_tensor(name, "q_proj.weight", {D, D}, weights.query);
    expect_tensor(name, "k_proj.weight", {D, D}, weights.key);
    expect_tensor(name, "v_proj.weight", {values, D}, weights.value);
    expect_tensor(name, "g_proj.weight", {values, D}, weights.gate);
    expect_tensor(name, "out_proj.weight", {D, values}, weights.output);
    input_ = Linear<T>({&weights.query, &weights.key, &weights.value, &weights.gate});
    output_ = Linear<T>(weights.output);
    rotary_ = Rotary::retention(key_dim());
    log_decay_ = retention_log_decay<T>(config_.heads);
  }

  /// Xavier-uniform with gain 2^-2.5, the output projection with 2^-1.
  static Weights random_weights(const Config& config, Rng& rng) {
    const Config c = completed(config);
    const auto xavier = [&](Index rows, Index columns, double gain) {
      return uniform_matrix<T>(rows, columns, gain * std::sqrt(6.0 / double(rows + columns)), rng);
    };
    const double gain = std::exp2(-2.5);
    return {xavier(c.channels, c.channels, gain), xavier(c.channels, c.channels, gain),
            xavier(c.value_channels, c.channels, gain), xavier(c.value_channels, c.channels, gain),
            xavier(c.channels, c.value_channels, 0.5)};
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// The empty state: H (K V + 1) zeros.
  State initial_state() const {
    return {Tensor<T>({config_.heads, key_dim(), value_dim()}), Tensor<T>({config_.heads}), config_.start_position};
  }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const {
    expect_shape(name, "state.memory", {config_.heads, key_dim(), value_dim()}, state.memory.shape());
    expect_shape(name, "state.scale", {config_.heads}, state.scale.shape());
    expect(state.position >= 0, name, "state.position", "is negative");
  }

  /// As RecurrentMixerBase::forward, with the row factor of the configured form.
  void forward(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    if (config_.form == RetentionForm::recurrent) {
      RecurrentMixerBase<Retention, T>::forward(x, y, workspace);
      return;
    }
    internal::expect_input_output<T>(name, channels(), x, y);
    if (x.length() == 0) return;
    auto state = initial_state();
    State* const states[] = {&state};
    const Index offsets[] = {0, x.length()};
    const auto frame = workspace.frame();
    run(config_.form, {states, offsets}, x, y, workspace);
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    run(RetentionForm::recurrent, batch, x, y, workspace);
  }

 private:
  Index key_dim() const { return config_.channels / config_.heads; }
  Index value_dim() const { return config_.value_channels / config_.heads; }

  static Config completed(Config config) {
    if (config.value_channels == 0) config.value_channels = 2 * config.channels;
    expect(config.channels > 0, name, "config.channels", "must be positive");
    expect_divides(name, "config.heads", config.heads, "channels", config.channels);
    expect(config.channels / config.heads % 2 == 0, name, "config.heads",
           "must leave heads of even size: given " + std::to_string(config.heads) + " for " +
               std::to_string(config.channels) + " channels");
    expect_divides(name, "config.heads", config.heads, "value_channels", config.value_channels);
    expect(config.start_position >= 0, name, "config.start_position", "must not be negative");
    expect(config.chunk > 0, name, "config.chunk", "must be positive");
    return config;
  }

  void run(RetentionForm form, const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y,
           Workspace& workspace) const {
    const Index D = config_.channels, H = config_.heads, values = config_.value_channels;
    const auto projected = input_.apply(x, workspace);
    const auto query = projected.columns(0, D).heads(H), key = projected.columns(D, D).heads(H);
    const auto value = projected.columns(2 * D, values).heads(H);
    const auto gate = projected.columns(2 * D + values, values);
    const auto mixed = workspace.heads<T>(x.length(), H, value_dim());
    for (Index b = 0; b < batch.size(); ++b) {
      State& state = batch.state(b);
      const Index begin = batch.begin(b), length = batch.length(b);
      const auto rows = [&](const HeadSequence<T>& view) { return view.rows(begin, length); };
      rotary_.apply(rows(query), state.position, workspace);
      rotary_.apply(rows(key), state.position, workspace);
      const MemoryView<T> memory(state.memory);
      const Index piece = form == RetentionForm::chunkwise ? config_.chunk : length;
      for (Index start = 0; start < length; start += piece) {
        const Index count = std::min(piece, length - start);
        const auto frame = workspace.frame();
        const auto least = workspace.take<T>(H);
        for (Index h = 0; h < H; ++h) {
          least[std::size_t(h)] = form == RetentionForm::chunkwise ? memory_norm(memory, h) : T(1);
        }
        retention<T>(rows(query).rows(start, count), rows(key).rows(start, count), rows(value).rows(start, count),
                     log_decay_, std::pow(T(key_dim()), T(-0.5)), memory, rows(mixed).rows(start, count), workspace);
        scale_rows(form, least, state.scale, rows(query).rows(start, count), rows(key).rows(start, count),
                   rows(mixed).rows(start, count), workspace);
      }
      state.position += length;
    }
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      const auto block = mixed.rows(begin, count);
      rms_normalize(block, config_.norm_eps);
      if (config_.gate == RetentionGate::swish) {
        multiply_silu(block.flat(), gate.rows(begin, count));
      } else {
        multiply_gelu(block.flat(), gate.rows(begin, count));
      }
    });
    output_.apply(mixed.flat(), y, workspace);
  }

  /// max(1, largest absolute column sum) of a head's memory of keys times K^-0.5, normalised as at the end of a whole
  /// chunk.
  T memory_norm(const MemoryView<T>& memory, Index h) const {
    const double log_gamma = double(log_decay_[h]);
    const T z = T(std::expm1(double(config_.chunk) * log_gamma) / std::expm1(log_gamma)) * std::sqrt(T(key_dim()));
    T largest = T(0);
    for (Index j = 0; j < memory.value_dim(); ++j) {
      T sum = T(0);
      for (Index i = 0; i < memory.key_dim(); ++i) sum += std::abs(memory.row(h, i)[j]);
      largest = std::max(largest, sum / z);
    }
    return std::max(largest, T(1));
  }

  /// Multiplies the rows of one sequence, or of one chunk of it, by the factor f_t of `form`, and advances z.
  void scale_rows(RetentionForm form, std::span<const T> least, Tensor<T>& scale, const HeadSequence<T>& query,
                  const HeadSequence<T>& key, const HeadSequence<T>& mixed, Workspace& workspace) const {
    const Index length = mixed.length();
    const auto sums = workspace.take<T>(form == RetentionForm::recurrent ? 0 : length);
    const T most = form == RetentionForm::parallel ? T(5e4) : std::numeric_limits<T>::infinity();
    for (Index h = 0; h < config_.heads; ++h) {
      const T gamma = std::exp(log_decay_[h]);
      T z = form == RetentionForm::chunkwise ? T(0) : scale[std::size_t(h)];
      if (form != RetentionForm::recurrent) absolute_sums(query.head(h), key.head(h), gamma, sums);
      for (Index t = 0; t < length; ++t) {
        z = gamma * z + T(1);
        T factor = T(1) / std::sqrt(z);
        if (form != RetentionForm::recurrent) {
          factor /= std::min(std::max(sums[std::size_t(t)] * factor, least[std::size_t(h)]), most);
        }
        for (Index j = 0; j < mixed.head_dim(); ++j) mixed(t, h, j) *= factor;
      }
      scale[std::size_t(h)] = z;
    }
  }

  /// sums[t] = sum_{s <= t} |K^-0.5 q_t . k_s| gamma^(t - s).
  void absolute_sums(ConstSequence<T> query, ConstSequence<T> key, T gamma, std::span<T> sums) const {
    const T scale = std::pow(T(key_dim()), T(-0.5));
    for (Index t = 0; t < query.length(); ++t) {
      T total = T(0), weight = scale;
      for (Index s = t; s >= 0; --s, weight *= gamma) {
        const T dot = sum_row(
            key_dim(), [](const Batch<T>& q, const Batch<T>& k) SEQMIX_INLINE_LAMBDA { return q * k; }, query.row(t),
            key.row(s));
        total += std::abs(dot) * weight;
      }
      sums[std::size_t(t)] = total;
    }
  }

  Config config_;
  Linear<T> input_, output_;
  Rotary rotary_;
  Vector<T> log_decay_;
};

static_assert(RecurrentMixer<Retention<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
