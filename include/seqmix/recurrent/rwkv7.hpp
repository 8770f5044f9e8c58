// RWKV-7 "Goose" time mixing: a memory from which every token takes something out before it puts something in.
//
//   Source    Peng et al. 2025, arXiv:2503.14456; BlinkDL/RWKV-LM, RWKV-v7/rwkv_v7_demo.py, RWKV_Tmix_x070
//   Glossary  L length   D channels   H heads   K, V key and value width of one head (K = V in the layer)   C = H K
//   Engine    engine/linear_recurrence.hpp with decay::PerTokenChannel and delta::LowRank
//   Size      a core, and a layer with six interpolations, four low-rank maps and a stream from another layer
//
// Core:   S_t = diag(exp(w_t)) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T,   y_t = r_t^T S_t
// Layer:  x_i = x_t + (x_{t-1} - x_t) mix_i  for i in r, w, k, v, a, g
//         r, k, v = projections of x_r, x_k, x_v;   w = -exp(-1/2) sigmoid(w_0 + tanh(x_w W_1) W_2)
//         a = sigmoid(a_0 + x_a A_1 A_2);   g = sigmoid(x_g G_1) G_2
//         after the first layer:  v = v + (v_first - v) sigmoid(v_0 + x_v V_1 V_2),   v_first the first layer's v
//         n = k k_k / max(|k k_k|, eps) per head;   k = k (1 + (a - 1) k_a)
//         o = group_norm(core(r, w, k, v, -n, n a)) + (sum over K of r k r_k) v
//         y = W_o (o g)
// Unlike RWKV-5 and 6, a token reads the memory that it is in already, and there is no bonus inside the core.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/linear_recurrence.hpp>
#include <seqmix/parts/gate.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/norm.hpp>
#include <seqmix/parts/random_features.hpp>
#include <seqmix/parts/token_shift.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// The WKV operator of RWKV-7, from and into `memory` [H, K, V]. receptance, key, log_decay (<= 0, -infinity allowed), a
/// and b [L, H, K], value [L, H, V], output [L, H, V]; a reads the memory before the decay. No scale. The memory stays
/// bounded where diag(exp(log_decay)) + b a^T contracts, as it does in the layer; other a and b may let it grow without
/// bound. O(L H K V) time, O(H K V) scratch. Allocates nothing once `workspace` is warm. Throws std::invalid_argument on
/// shapes that do not fit and on outputs that overlap.
template <std::floating_point T>
void rwkv7(ConstHeadSequence<T> receptance, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
           ConstHeadSequence<T> log_decay, ConstHeadSequence<T> a, ConstHeadSequence<T> b, MemoryView<T> memory,
           HeadSequence<T> output, Workspace& workspace) {
  expect_recurrence_shapes<T>("rwkv7", receptance, key, value, memory, output);
  expect_shared_heads<T>("rwkv7", "log_decay", log_decay, memory.key_dim(), memory, output);
  expect_shared_heads<T>("rwkv7", "a", a, memory.key_dim(), memory, output);
  expect_shared_heads<T>("rwkv7", "b", b, memory.key_dim(), memory, output);
  constexpr RowMap<T> map = row_map<T>;
  linear_recurrence(
      LinearRecurrenceProblem<T, decay::PerTokenChannel<T>, readout::AfterUpdate<T>, normalizer::None<T>,
                              delta::LowRank<T>>{
          receptance, key, value, {log_decay}, {}, {}, T(1), memory, output, map, map, {a, b}},
      workspace);
}

/// The time-mixing layer of RWKV-7.
///
/// In a model, layers after the first blend their values with those that the first layer has computed for the same
/// tokens. All functions take these as first_value [L, C]: the first layer writes them, the others (Config::inner) read
/// them. They are no state: whoever runs the layers one after the other hands them on. A first layer is also a Mixer by
/// itself and then keeps its values; an inner one without first_value throws std::invalid_argument.
template <std::floating_point T>
class Rwkv7 : public RecurrentMixerBase<Rwkv7<T>, T> {
  using Base = RecurrentMixerBase<Rwkv7<T>, T>;

 public:
  static constexpr std::string_view name = "rwkv7";
  static constexpr StateGrowth growth = StateGrowth::constant;
  using State = TokenShiftState<T>;

  /// Ranks of 0 mean the authors' suggestion for C channels.
  struct Config {
    Index channels = 0;
    Index attention_channels = 0;  ///< C; 0 means channels
    Index heads = 1;
    bool inner = false;         ///< a layer after the first
    Index decay_rank = 0;       ///< of w
    Index rate_rank = 0;        ///< of a
    Index value_rank = 0;       ///< of the share of v_first, in inner layers
    Index gate_rank = 0;        ///< of g
    T norm_eps = T(64e-5);      ///< of the group norm
    T key_norm_eps = T(1e-12);  ///< least norm that a key is divided by
  };

  /// The inputs that get a mix of their own.
  static constexpr std::array<const char*, 6> inputs = {"r", "w", "k", "v", "a", "g"};

  struct Weights {
    std::array<Vector<T>, 6> mix;      // [D] each, in the order of `inputs`
    Vector<T> decay;                   // [C], w_0
    Matrix<T> decay_down, decay_up;    // [D, R], [R, C]; R is the rank of the pair, as in all that follow
    Vector<T> rate;                    // [C], a_0
    Matrix<T> rate_down, rate_up;      // [D, R], [R, C]
    Vector<T> value_share;             // [C], v_0, in inner layers
    Matrix<T> value_down, value_up;    // [D, R], [R, C], in inner layers
    Matrix<T> gate_down, gate_up;      // [D, R], [R, C]
    Vector<T> removal, replacement;    // [C], k_k and k_a
    Matrix<T> bonus;                   // [H, K], r_k
    Matrix<T> receptance, key, value;  // [C, D]
    Matrix<T> output;                  // [D, C]
    Vector<T> norm_weight, norm_bias;  // [C]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      for (std::size_t i = 0; i < inputs.size(); ++i) {
        visitor(std::string("x_") + inputs[i], self.mix[i], Presence::required);
      }
      visitor("w0", self.decay, Presence::required);
      visitor("w1", self.decay_down, Presence::required);
      visitor("w2", self.decay_up, Presence::required);
      visitor("a0", self.rate, Presence::required);
      visitor("a1", self.rate_down, Presence::required);
      visitor("a2", self.rate_up, Presence::required);
      visitor("v0", self.value_share, Presence::optional);
      visitor("v1", self.value_down, Presence::optional);
      visitor("v2", self.value_up, Presence::optional);
      visitor("g1", self.gate_down, Presence::required);
      visitor("g2", self.gate_up, Presence::required);
      visitor("k_k", self.removal, Presence::required);
      visitor("k_a", self.replacement, Presence::required);
      visitor("r_k", self.bonus, Presence::required);
      visitor("receptance.weight", self.receptance, Presence::required);
      visitor("key.weight", self.key, Presence::required);
      visitor("value.weight", self.value, Presence::required);
      visitor("output.weight", self.output, Presence::required);
      visitor("ln_x.weight", self.norm_weight, Presence::required);
      visitor("ln_x.bias", self.norm_bias, Presence::required);
    }
  };

  /// Packs the weights; those of v_first are ignored unless the layer is an inner one. Throws std::invalid_argument unless
  /// the shapes follow from `config`.
  Rwkv7(Config config, const Weights& weights) : config_(completed(config)), mix_(weights.mix) {
    const Index D = config_.channels, C = config_.attention_channels;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      expect_tensor(name, std::string("x_") + inputs[i], {D}, weights.mix[i]);
    }
    expect_tensor(name, "w0", {C}, weights.decay);
    expect_tensor(name, "w1", {D, config_.decay_rank}, weights.decay_down);
    expect_tensor(name, "w2", {config_.decay_rank, C}, weights.decay_up);
    expect_tensor(name, "a0", {C}, weights.rate);
    expect_tensor(name, "a1", {D, config_.rate_rank}, weights.rate_down);
    expect_tensor(name, "a2", {config_.rate_rank, C}, weights.rate_up);
    if (config_.inner) {
      expect_tensor(name, "v0", {C}, weights.value_share);
      expect_tensor(name, "v1", {D, config_.value_rank}, weights.value_down);
      expect_tensor(name, "v2", {config_.value_rank, C}, weights.value_up);
    }
    expect_tensor(name, "g1", {D, config_.gate_rank}, weights.gate_down);
    expect_tensor(name, "g2", {config_.gate_rank, C}, weights.gate_up);
    expect_tensor(name, "k_k", {C}, weights.removal);
    expect_tensor(name, "k_a", {C}, weights.replacement);
    expect_tensor(name, "r_k", {config_.heads, head_dim()}, weights.bonus);
    expect_tensor(name, "receptance.weight", {C, D}, weights.receptance);
    expect_tensor(name, "key.weight", {C, D}, weights.key);
    expect_tensor(name, "value.weight", {C, D}, weights.value);
    expect_tensor(name, "output.weight", {D, C}, weights.output);
    expect_tensor(name, "ln_x.weight", {C}, weights.norm_weight);
    expect_tensor(name, "ln_x.bias", {C}, weights.norm_bias);
    // The low-rank matrices are stored [inputs, outputs], unlike all others.
    const auto transposed = [](const Matrix<T>& matrix) { return Matrix<T>(matrix.transpose()); };
    decay_down_ = Linear<T>(transposed(weights.decay_down));
    decay_up_ = Linear<T>(transposed(weights.decay_up), weights.decay);
    rate_down_ = Linear<T>(transposed(weights.rate_down));
    rate_up_ = Linear<T>(transposed(weights.rate_up), weights.rate);
    gate_down_ = Linear<T>(transposed(weights.gate_down));
    gate_up_ = Linear<T>(transposed(weights.gate_up));
    value_ = Linear<T>(weights.value);
    if (config_.inner) {
      const Matrix<T> down = transposed(weights.value_down);
      value_ = Linear<T>({&weights.value, &down});
      value_up_ = Linear<T>(transposed(weights.value_up), weights.value_share);
    }
    receptance_ = Linear<T>(weights.receptance);
    key_ = Linear<T>(weights.key);
    output_ = Linear<T>(weights.output);
    removal_ = weights.removal;
    replacement_ = weights.replacement;
    bonus_ = weights.bonus;
    norm_weight_ = weights.norm_weight;
    norm_bias_ = weights.norm_bias;
  }

  /// As the authors begin a layer in the middle of a model, but for what they begin with zeros: the first matrix of each
  /// low-rank pair, and the output.
  static Weights random_weights(const Config& config, Rng& rng) {
    const Config c = completed(config);
    const Index D = c.channels, C = c.attention_channels;
    const auto ratio = [&](double power) {
      return Vector<T>(
          Vector<T>::NullaryExpr(D, [&](Index i) { return T(1 - std::pow(double(i) / double(D), power)); }));
    };
    const auto constant = [&](double value) { return Vector<T>(Vector<T>::Constant(C, T(value))); };
    const auto projection = [&](Index rows, Index columns) {
      return normal_matrix<T>(rows, columns, std::pow(double(columns), -0.5), rng);
    };
    const auto down = [&](Index rank) { return uniform_matrix<T>(D, rank, 0.01, rng); };
    // Rows are orthogonal, of length 0.1.
    const auto up = [&](Index rank) {
      return Matrix<T>(orthogonal_random_features<T>(rank, C, RandomFeatureNorms::constant, rng) *
                       T(0.1 * std::pow(double(C), -0.5)));
    };
    Weights weights;
    weights.mix = {ratio(0.1), ratio(0.45), ratio(0.35), ratio(0.35), ratio(0.45), ratio(0.1)};
    weights.decay = Vector<T>::NullaryExpr(
        C, [&](Index i) { return T(-5.5 + 6 * std::pow(double(i) / double(std::max<Index>(C - 1, 1)), 1.8)); });
    weights.decay_down = down(c.decay_rank);
    weights.decay_up = up(c.decay_rank);
    weights.rate = constant(-0.19);
    weights.rate_down = down(c.rate_rank);
    weights.rate_up = up(c.rate_rank);
    if (c.inner) {
      weights.value_share = constant(0.73);
      weights.value_down = down(c.value_rank);
      weights.value_up = up(c.value_rank);
    }
    weights.gate_down = down(c.gate_rank);
    weights.gate_up = up(c.gate_rank);
    weights.removal = constant(0.71);
    weights.replacement = constant(1.02);
    weights.bonus = Matrix<T>::Constant(c.heads, C / c.heads, T(-0.04));
    weights.receptance = projection(C, D);
    weights.key = projection(C, D);
    weights.value = projection(C, D);
    weights.output = projection(D, C);
    weights.norm_weight = Vector<T>::Ones(C);
    weights.norm_bias = Vector<T>::Zero(C);
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// The empty state: D + H K^2 zeros.
  State initial_state() const { return {Tensor<T>({config_.channels}), Tensor<T>(memory_shape())}; }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const {
    expect_token_shift_state(name, config_.channels, memory_shape(), state);
  }

  using Base::forward;
  using Base::prefill;
  using Base::step;

  /// forward, prefill and step of a layer in a model: first_value [L, C], with a row for every row of x, is written by the
  /// first layer and read by the others. Otherwise as the functions of RecurrentMixerBase; also throws where first_value
  /// has another shape, overlaps y, or is written and overlaps x.
  void forward(ConstSequence<T> x, Sequence<T> first_value, Sequence<T> y, Workspace& workspace) const {
    check_first_value(x, first_value, y);
    Base::forward_with(x, y, workspace, first_value);
  }
  void prefill(State& state, ConstSequence<T> x, Sequence<T> first_value, Sequence<T> y, Workspace& workspace) const {
    check_first_value(x, first_value, y);
    Base::prefill_with(state, x, y, workspace, first_value);
  }
  void step(State& state, ConstToken<T> x, Token<T> first_value, Token<T> y, Workspace& workspace) const {
    prefill(state, ConstSequence<T>(x), Sequence<T>(first_value), Sequence<T>(y), workspace);
  }
  void prefill(std::span<State* const> states, std::span<const Index> offsets, ConstSequence<T> x,
               Sequence<T> first_value, Sequence<T> y, Workspace& workspace) const {
    check_first_value(x, first_value, y);
    Base::prefill_with(states, offsets, x, y, workspace, first_value);
  }
  void step(std::span<State* const> states, ConstSequence<T> x, Sequence<T> first_value, Sequence<T> y,
            Workspace& workspace) const {
    check_first_value(x, first_value, y);
    Base::step_with(states, x, y, workspace, first_value);
  }

  /// Without first_value, a first layer keeps its values to itself.
  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    expect(!config_.inner, name, "first_value", "is missing: layers after the first need it");
    advance(batch, x, y, workspace, workspace.sequence<T>(x.length(), config_.attention_channels));
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace,
               Sequence<T> first_value) const {
    const Index D = config_.channels, C = config_.attention_channels, H = config_.heads, length = x.length();
    const auto difference = workspace.sequence<T>(length, D), mixed = workspace.sequence<T>(length, D);
    previous_tokens(batch, &State::previous, x, difference);
    keep_last_tokens(batch, &State::previous, x);
    workspace.for_row_blocks(length, [&](Index begin, Index count) {
      const auto rows = [&](const auto& view) { return view.rows(begin, count); };
      subtract_tokens<T>(rows(difference), rows(x), rows(difference));
    });
    const auto mixed_for = [&](std::size_t input) {
      workspace.for_row_blocks(length, [&](Index begin, Index count) {
        const auto rows = [&](const auto& view) { return view.rows(begin, count); };
        add_difference<T>(rows(x), rows(difference), mix_[input], rows(mixed));
      });
      return mixed;
    };
    const auto receptance = receptance_.apply(mixed_for(0), workspace);
    const auto decay_low_rank = decay_down_.apply(mixed_for(1), workspace);
    workspace.for_row_blocks(length, [&](Index begin, Index count) { apply_tanh(decay_low_rank.rows(begin, count)); });
    const auto log_decay = decay_up_.apply(decay_low_rank, workspace);
    const auto key = key_.apply(mixed_for(2), workspace);
    Sequence<T> value = first_value, share;
    if (config_.inner) {
      ColumnCutter<T> columns(value_.apply(mixed_for(3), workspace));
      value = columns.next(C);
      share = value_up_.apply(columns.rest(), workspace);
    } else {
      value_.apply(mixed_for(3), value, workspace);
    }
    const auto rate = rate_up_.apply(rate_down_.apply(mixed_for(4), workspace), workspace);
    const auto gate_low_rank = gate_down_.apply(mixed_for(5), workspace);
    workspace.for_row_blocks(length,
                             [&](Index begin, Index count) { apply_sigmoid(gate_low_rank.rows(begin, count)); });
    const auto gate = gate_up_.apply(gate_low_rank, workspace);

    const auto removal = workspace.sequence<T>(length, C);
    workspace.for_row_blocks(length, [&](Index begin, Index count) {
      const auto rows = [&](const auto& view) { return view.rows(begin, count); };
      const Batch<T> least = broadcast(T(-0.60653065971263342360L));  // -exp(-1/2)
      apply_activation(rows(log_decay), [&](const Batch<T>& w) SEQMIX_INLINE_LAMBDA { return least * sigmoid(w); });
      if (config_.inner) blend(rows(value), rows(first_value), rows(share));
      apply_sigmoid(rows(rate));
      split_keys(rows(key), rows(rate), rows(removal));
    });

    const auto output = workspace.heads<T>(length, H, head_dim());
    for (Index b = 0; b < batch.size(); ++b) {
      const auto rows = [&](const Sequence<T>& view) { return view.rows(batch.begin(b), batch.length(b)).heads(H); };
      rwkv7<T>(rows(receptance), rows(key), rows(value), rows(log_decay), rows(removal), rows(rate),
               batch.state(b).memory, rows(output.flat()), workspace);
    }
    workspace.for_row_blocks(length, [&](Index begin, Index count) {
      const auto rows = [&](const auto& view) { return view.rows(begin, count); };
      const auto block = rows(output);
      group_normalize(block, config_.norm_eps, norm_weight_, norm_bias_);
      add_bonus(rows(receptance).heads(H), rows(key).heads(H), rows(value).heads(H), block);
      multiply_elements<T>(block.flat(), rows(gate));
    });
    output_.apply(output.flat(), y, workspace);
  }

 private:
  Index head_dim() const { return config_.attention_channels / config_.heads; }
  Shape memory_shape() const { return {config_.heads, head_dim(), head_dim()}; }

  void check_first_value(const Sequence<const T>& x, const Sequence<T>& first_value, const Sequence<T>& y) const {
    expect_shape(name, "first_value", {x.length(), config_.attention_channels}, first_value);
    expect_disjoint(name, "y", y, "first_value", first_value);
    if (!config_.inner) expect_disjoint(name, "first_value", first_value, "x", x);
  }

  /// value += (first_value - value) sigmoid(share).
  static void blend(Sequence<T> value, ConstSequence<T> first_value, ConstSequence<T> share) {
    for (Index t = 0; t < value.length(); ++t) {
      map_row(
          value.channels(), value.row(t),
          [](const Batch<T>& v, const Batch<T>& first, const Batch<T>& s)
              SEQMIX_INLINE_LAMBDA { return fma(first - v, sigmoid(s), v); },
          value.row(t), first_value.row(t), share.row(t));
    }
  }

  /// From keys k and rates a: key = k (1 + (a - 1) k_a), removal = -n and rate = n a, where n is k k_k, normalised in each
  /// head. All [rows, C].
  void split_keys(Sequence<T> key, Sequence<T> rate, Sequence<T> removal) const {
    const Index K = head_dim();
    const Batch<T> one = broadcast(T(1));
    for (Index t = 0; t < key.length(); ++t) {
      for (Index begin = 0; begin < key.channels(); begin += K) {
        T *const k = key.row(t) + begin, *const a = rate.row(t) + begin, *const negative = removal.row(t) + begin;
        map_row(
            K, negative, [](const Batch<T>& x, const Batch<T>& weight) SEQMIX_INLINE_LAMBDA { return x * weight; }, k,
            removal_.data() + begin);
        const T norm = std::sqrt(sum_row(
            K, [](const Batch<T>& x) SEQMIX_INLINE_LAMBDA { return x * x; }, negative));
        const Batch<T> scale = broadcast(T(-1) / std::max(norm, config_.key_norm_eps));  // NaN where the norm is
        map_row(
            K, negative, [&](const Batch<T>& x) SEQMIX_INLINE_LAMBDA { return x * scale; }, negative);
        map_row(
            K, k,
            [&](const Batch<T>& x, const Batch<T>& r, const Batch<T>& weight)
                SEQMIX_INLINE_LAMBDA { return x * fma(r - one, weight, one); },
            k, a, replacement_.data() + begin);
        map_row(
            K, a, [](const Batch<T>& r, const Batch<T>& n) SEQMIX_INLINE_LAMBDA { return -(r * n); }, a, negative);
      }
    }
  }

  /// output += (sum over K of receptance key r_k) value, [rows, H, K] each.
  void add_bonus(ConstHeadSequence<T> receptance, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
                 HeadSequence<T> output) const {
    for (Index t = 0; t < output.length(); ++t) {
      for (Index h = 0; h < output.heads(); ++h) {
        const Batch<T> bonus = broadcast(sum_row(
            head_dim(),
            [](const Batch<T>& r, const Batch<T>& k, const Batch<T>& weight)
                SEQMIX_INLINE_LAMBDA { return r * k * weight; },
            receptance.row(t, h), key.row(t, h), static_cast<const T*>(bonus_.row(h).data())));
        map_row(
            head_dim(), output.row(t, h),
            [&](const Batch<T>& o, const Batch<T>& v) SEQMIX_INLINE_LAMBDA { return fma(bonus, v, o); },
            static_cast<const T*>(output.row(t, h)), value.row(t, h));
      }
    }
  }

  static Config completed(Config config) {
    if (config.attention_channels == 0) config.attention_channels = config.channels;
    expect(config.channels > 0, name, "config.channels", "must be positive");
    expect_divides(name, "config.heads", config.heads, "attention_channels", config.attention_channels);
    const double root = std::sqrt(double(config.attention_channels));
    const auto complete = [&](Index& rank, double factor) {
      if (rank == 0) rank = std::max<Index>(32, Index(std::nearbyint(factor * root / 32)) * 32);
      expect(rank > 0, name, "config", "ranks must not be negative");
    };
    complete(config.decay_rank, 2.5);
    complete(config.rate_rank, 2.5);
    complete(config.value_rank, 1.7);
    complete(config.gate_rank, 5);
    return config;
  }

  Config config_;
  std::array<Vector<T>, 6> mix_;
  Linear<T> receptance_, key_, value_, output_;  // value_ goes on with the first half of the share, in inner layers
  Linear<T> decay_down_, decay_up_, rate_down_, rate_up_, value_up_, gate_down_, gate_up_;
  Vector<T> removal_, replacement_;
  Matrix<T> bonus_;  // [H, K]
  Vector<T> norm_weight_, norm_bias_;
};

static_assert(RecurrentMixer<Rwkv7<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
