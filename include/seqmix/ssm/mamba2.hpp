// Mamba-2: a selective state space whose state is the memory of a linear recurrence (state-space duality, SSD).
//
//   Source    Dao, Gu 2024, arXiv:2405.21060; state-spaces/mamba, mamba_ssm/modules/mamba2.py, mamba2_simple.py,
//             ssd_minimal.py, mamba_ssm/ops/triton/ssd_combined.py
//   Glossary  L length   D channels   H heads of P channels   N state size   G groups of heads that share B and C
//   Engine    engine/linear_recurrence.hpp with decay::PerToken and readout::Weighted: C are the queries, B the keys, x the
//             values, dt the weights
//   Size      a core with what the models fuse with it, and two layers in one
//
// Core:   dt' = clamp(softplus(dt + dt_bias), least_dt, most_dt)
//         S_t = exp(dt'_t A_h) S_{t-1} + dt'_t B_t x_t^T,   y_t = (C_t^T S_t + D x_t) silu(z_t)
// Layer:  z0, x0, z, xBC, dt = W_in u + b;   x, B, C = silu(convolution(xBC));   A = -exp(A_log)
//         y = W_out [silu(z0) x0 | norm(core)] + b,   norm(y) = rms(y silu(z)) w, or rms(y) w silu(z), in groups of channels
// Differs   from the authors' code in the layout of the state, [H, N, P] here and [H, P, N] there; in a softplus that is not
//           cut off at 20; and in that a single step too respects the limits of dt.
#pragma once

#include <cmath>
#include <limits>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/linear_recurrence.hpp>
#include <seqmix/parts/decay_gate.hpp>
#include <seqmix/parts/gate.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/norm.hpp>
#include <seqmix/parts/short_convolution.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// What the core of Mamba-2 is given beside its streams.
template <class T>
struct Mamba2Parameters {
  ConstToken<T> a;             ///< [H], <= 0
  ConstToken<T> d = {};        ///< [H] or [H * P], or empty: 0
  ConstToken<T> dt_bias = {};  ///< [H], or empty: 0
  bool dt_softplus = true;
  T least_dt = T(0), most_dt = std::numeric_limits<T>::infinity();
};

namespace detail {

/// Steps [L, H] of time as the recurrence takes them, and the logarithms of the decays that follow from them.
template <class T>
void discretize(const Mamba2Parameters<T>& parameters, ConstSequence<T> dt, Sequence<T> steps, Sequence<T> log_decay) {
  const Index heads = dt.channels();
  const Batch<T> least = broadcast(parameters.least_dt), most = broadcast(parameters.most_dt);
  const bool biased = parameters.dt_bias.channels() > 0;
  for (Index t = 0; t < dt.length(); ++t) {
    T* const row = steps.row(t);
    const auto plus = [](const Batch<T>& x, const Batch<T>& y) SEQMIX_INLINE_LAMBDA { return x + y; };
    if (biased) map_row(heads, row, plus, dt.row(t), parameters.dt_bias.data());
    const T* const sum = biased ? row : dt.row(t);
    const auto clamp = [&](const Batch<T>& x)
                           SEQMIX_INLINE_LAMBDA { return min_propagating(max_propagating(x, least), most); };
    if (parameters.dt_softplus) {
      map_row(
          heads, row, [&](const Batch<T>& x) SEQMIX_INLINE_LAMBDA { return clamp(softplus(x)); }, sum);
    } else {
      map_row(heads, row, clamp, sum);
    }
    // No time, no decay, even at an infinite rate.
    const auto times = [](const Batch<T>& x, const Batch<T>& y)
                           SEQMIX_INLINE_LAMBDA { return select(x == broadcast(T(0)), broadcast(T(0)), x * y); };
    map_row(heads, log_decay.row(t), times, row, parameters.a.data());
  }
}

/// What follows the recurrence: y = (y + d x) silu(z).
template <class T>
struct Mamba2Output {
  HeadSequence<const T> x, z;
  const T* d;  // [H, P]

  /// An OutputMap's function. Without `skips` there is no d, without `gates` no z.
  template <bool skips, bool gates>
  static void finish(const void* parameters, Index head, Index token, Index column, const Sequence<T>& y) {
    const auto& self = *static_cast<const Mamba2Output*>(parameters);
    for (Index t = 0; t < y.length(); ++t) {
      // What there is not, is not read: any row will do.
      const T* const row = y.row(t);
      const T* const x = skips ? self.x.row(token + t, head) + column : row;
      const T* const d = skips ? self.d + head * self.x.head_dim() + column : row;
      const T* const z = gates ? self.z.row(token + t, head) + column : row;
      map_row(
          y.channels(), y.row(t),
          [](const Batch<T>& y_t, const Batch<T>& x_t, const Batch<T>& d_t, const Batch<T>& z_t) SEQMIX_INLINE_LAMBDA {
            const Batch<T> sum = skips ? fma(d_t, x_t, y_t) : y_t;
            return gates ? sum * silu(z_t) : sum;
          },
          row, x, d, z);
    }
  }
};

}  // namespace detail

/// Mamba-2 from and into `memory` [H, N, P]: x [L, H, P], dt [L, H], b, c [L, G, N], z [L, H, P] or empty for no gate,
/// output [L, H, P]; G divides H. O(L H N P) time, O(H N P) scratch. Allocates nothing once `workspace` is warm. Throws
/// std::invalid_argument on shapes that do not fit and on outputs that overlap.
template <std::floating_point T>
void mamba2(ConstHeadSequence<T> x, ConstSequence<T> dt, ConstHeadSequence<T> b, ConstHeadSequence<T> c,
            ConstHeadSequence<T> z, const Mamba2Parameters<T>& parameters, MemoryView<T> memory, HeadSequence<T> output,
            Workspace& workspace) {
  constexpr std::string_view name = "mamba2";
  const Index length = output.length(), heads = memory.heads(), head_dim = memory.value_dim();
  const auto expect_parameter = [&](std::string_view tensor, const ConstToken<T>& parameter, Index size) {
    expect_shape(name, tensor, {size}, parameter);
    expect_apart_from_results(name, tensor, parameter, memory, output);
  };
  expect_shape(name, "output", {length, heads, head_dim}, output);
  expect_disjoint(name, "output", output, "memory", memory);
  expect_shared_heads(name, "b", b, memory.key_dim(), memory, output);
  expect_shared_heads(name, "c", c, memory.key_dim(), memory, output);
  expect_shape(name, "x", output, x);
  expect_apart_from_results(name, "x", x, memory, output);
  expect_shape(name, "dt", {length, heads}, dt);
  expect_apart_from_results(name, "dt", dt, memory, output);
  const bool gates = z.heads() > 0, skip_by_channel = parameters.d.channels() != heads && parameters.d.channels() > 0;
  if (gates) {
    expect_shape(name, "z", output, z);
    expect_apart_from_results(name, "z", z, memory, output);
  }
  expect_parameter("a", parameters.a, heads);
  if (parameters.d.channels() > 0) expect_parameter("d", parameters.d, skip_by_channel ? heads * head_dim : heads);
  if (parameters.dt_bias.channels() > 0) expect_parameter("dt_bias", parameters.dt_bias, heads);

  using Output = detail::Mamba2Output<T>;
  // So that scratch does not grow with the length. Each piece copies the memory, which takes as long as ten tokens.
  constexpr Index piece = 1024;
  const auto frame = workspace.frame();
  const auto steps = workspace.sequence<T>(std::min(length, piece), heads);
  const auto log_decay = workspace.sequence<T>(std::min(length, piece), heads);
  for (Index begin = 0; begin < length; begin += piece) {
    const Index count = std::min(piece, length - begin);
    const auto rows = [&](const auto& stream) { return stream.rows(begin, count); };
    const auto weight = steps.rows(0, count), decay = log_decay.rows(0, count);
    workspace.for_row_blocks(count, [&](Index first, Index some) {
      detail::discretize<T>(parameters, dt.rows(begin + first, some), weight.rows(first, some),
                            decay.rows(first, some));
    });
    const Output finish{rows(x), gates ? rows(z) : z, parameters.d.data()};
    LinearRecurrenceProblem<T, decay::PerToken<T>, readout::Weighted<T>> problem{
        rows(c), rows(b), rows(x), {decay},     {weight, weight, skip_by_channel ? ConstToken<T>() : parameters.d},
        {},      T(1),    memory,  rows(output)};
    if (gates || skip_by_channel) {
      auto* function = &Output::template finish<false, true>;
      if (!gates) function = &Output::template finish<true, false>;
      if (gates && skip_by_channel) function = &Output::template finish<true, true>;
      problem.output_map = {function, &finish, finish.z};
    }
    linear_recurrence(problem, workspace);
  }
}

/// The layer of Mamba-2. The authors' Mamba2Simple is this with norm_group_size = inner_channels.
template <std::floating_point T>
class Mamba2 : public RecurrentMixerBase<Mamba2<T>, T> {
 public:
  static constexpr std::string_view name = "mamba2";
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Config {
    Index channels = 0;
    Index inner_channels = 0;  ///< 0 means 2 * channels
    Index ssm_channels = 0;    ///< H P, at most inner_channels; 0 means all of them. The others are a gated MLP
    Index head_dim = 64;       ///< P, divides ssm_channels
    Index state_dim = 128;     ///< N
    Index groups = 1;          ///< G, divides the heads
    Index convolution_width = 4;
    bool convolution_bias = true;
    bool bias = false;             ///< of the projections
    bool skip_by_channel = false;  ///< D is [H P], not [H]
    T least_dt = T(0), most_dt = std::numeric_limits<T>::infinity();
    bool norm = true;  ///< without it, the core gates
    bool norm_before_gate = false;
    Index norm_group_size = 0;  ///< channels that are normalised together; 0 means ssm_channels / groups
    T norm_eps = T(1e-5);
    bool learned_initial_state = false;
  };

  struct Weights {
    Matrix<T> input;              // [2 inner_channels + 2 G N + H, D]: z0, x0, z, x, B, C, dt
    Vector<T> input_bias;         // the same without D, with biases
    Matrix<T> convolution;        // [H P + 2 G N, width]
    Vector<T> convolution_bias;   // [H P + 2 G N], with a bias
    Vector<T> dt_bias, a_log, d;  // [H]; d: [H P] where it is by channel
    Vector<T> norm;               // [H P], with a norm
    Matrix<T> output;             // [D, inner_channels]
    Vector<T> output_bias;        // [D], with biases
    Matrix<T> initial_state;      // [H P, N], where it is learned

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("in_proj.weight", self.input, Presence::required);
      visitor("in_proj.bias", self.input_bias, Presence::optional);
      visitor("conv1d.weight", self.convolution, Presence::required);
      visitor("conv1d.bias", self.convolution_bias, Presence::optional);
      visitor("dt_bias", self.dt_bias, Presence::required);
      visitor("A_log", self.a_log, Presence::required);
      visitor("D", self.d, Presence::required);
      visitor("norm.weight", self.norm, Presence::optional);
      visitor("out_proj.weight", self.output, Presence::required);
      visitor("out_proj.bias", self.output_bias, Presence::optional);
      visitor("init_states", self.initial_state, Presence::optional);
    }
  };

  struct State {
    Tensor<T> memory;       // [H, N, P]
    Tensor<T> convolution;  // [width, H P + 2 G N], the last inputs, oldest first

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("memory", self.memory), visitor("convolution", self.convolution);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless sizes divide what they must and the shapes of `weights` follow
  /// from `config`.
  Mamba2(const Config& config, const Weights& weights)
      : config_(completed(config)),
        dt_bias_(weights.dt_bias),
        a_(-weights.a_log.array().exp()),
        d_(weights.d),
        norm_(weights.norm),
        initial_state_({heads(), config_.state_dim, config_.head_dim}) {
    const Config& c = config_;
    const Index D = c.channels, inner = c.inner_channels, inputs = 2 * inner + convolved() - c.ssm_channels + heads();
    expect_tensor(name, "in_proj.weight", {inputs, D}, weights.input);
    if (c.bias) expect_tensor(name, "in_proj.bias", {inputs}, weights.input_bias);
    expect_tensor(name, "conv1d.weight", {convolved(), c.convolution_width}, weights.convolution);
    if (c.convolution_bias) expect_tensor(name, "conv1d.bias", {convolved()}, weights.convolution_bias);
    expect_tensor(name, "dt_bias", {heads()}, weights.dt_bias);
    expect_tensor(name, "A_log", {heads()}, weights.a_log);
    expect_tensor(name, "D", {c.skip_by_channel ? c.ssm_channels : heads()}, weights.d);
    if (c.norm) expect_tensor(name, "norm.weight", {c.ssm_channels}, weights.norm);
    expect_tensor(name, "out_proj.weight", {D, inner}, weights.output);
    if (c.bias) expect_tensor(name, "out_proj.bias", {D}, weights.output_bias);
    if (c.learned_initial_state) {
      expect_tensor(name, "init_states", {c.ssm_channels, c.state_dim}, weights.initial_state);
      for (Index h = 0; h < heads(); ++h) {
        const auto memory = MemoryView<T>(initial_state_).head(h);
        for (Index n = 0; n < c.state_dim; ++n) {
          for (Index p = 0; p < c.head_dim; ++p) memory(n, p) = weights.initial_state(h * c.head_dim + p, n);
        }
      }
    }
    input_ = Linear<T>(weights.input, c.bias ? weights.input_bias : Vector<T>());
    convolution_ =
        ShortConvolution<T>(name, weights.convolution, c.convolution_bias ? weights.convolution_bias : Vector<T>(),
                            ConvolutionActivation::swish);
    output_ = Linear<T>(weights.output, c.bias ? weights.output_bias : Vector<T>());
  }

  /// The authors': projections uniform in +-inputs^-1/2, A uniform in -16 to -1, softplus(dt_bias) from 1e-3 to 0.1 with
  /// uniform logarithms, D and the norm's weight 1; a learned initial state is 0.
  static Weights random_weights(const Config& config, Rng& rng) {
    const Config c = completed(config);
    const Index D = c.channels, H = c.ssm_channels / c.head_dim,
                convolved = c.ssm_channels + 2 * c.groups * c.state_dim;
    const Index inputs = 2 * c.inner_channels + 2 * c.groups * c.state_dim + H;
    const double limit = std::pow(double(D), -0.5), output_limit = std::pow(double(c.inner_channels), -0.5);
    const double convolution_limit = std::pow(double(c.convolution_width), -0.5);
    Weights weights;
    weights.input = random_projection<T>(inputs, D, rng);
    weights.input_bias = uniform_vector<T>(c.bias ? inputs : 0, -limit, limit, rng);
    weights.convolution = random_projection<T>(convolved, c.convolution_width, rng);
    weights.convolution_bias =
        uniform_vector<T>(c.convolution_bias ? convolved : 0, -convolution_limit, convolution_limit, rng);
    weights.dt_bias = DecayGate<T>::random_bias(H, rng);
    weights.a_log = DecayGate<T>::random_log_rate(H, 1, 16, rng);
    weights.d = Vector<T>::Ones(c.skip_by_channel ? c.ssm_channels : H);
    weights.norm = Vector<T>::Ones(c.norm ? c.ssm_channels : 0);
    weights.output = random_projection<T>(D, c.inner_channels, rng);
    weights.output_bias = uniform_vector<T>(c.bias ? D : 0, -output_limit, output_limit, rng);
    if (c.learned_initial_state) weights.initial_state = Matrix<T>::Zero(c.ssm_channels, c.state_dim);
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// Before the first token: the learned state, or H N P zeros, and those of the convolution.
  State initial_state() const { return {initial_state_, convolution_.initial_state()}; }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const {
    expect_shape(name, "state.memory", initial_state_.shape(), state.memory.shape());
    convolution_.check_state(name, "state.convolution", state.convolution);
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Index H = heads(), G = config_.groups, channels = config_.ssm_channels;
    const Index mlp = config_.inner_channels - channels, shared = G * config_.state_dim;
    ColumnCutter<T> columns(input_.apply(x, workspace));
    const auto mlp_gate = columns.next(mlp), mlp_value = columns.next(mlp), gate = columns.next(channels);
    const auto convolved = convolution_.apply(batch, &State::convolution, columns.next(this->convolved()), workspace);
    const auto dt = columns.rest();
    ColumnCutter<T> streams(convolved);
    const auto value = streams.next(channels), b = streams.next(shared), c = streams.rest();
    const auto mixed = workspace.sequence<T>(x.length(), config_.inner_channels);
    const auto core = mixed.columns(mlp, channels);
    const Mamba2Parameters<T> parameters{a_, d_, dt_bias_, true, config_.least_dt, config_.most_dt};
    for (Index i = 0; i < batch.size(); ++i) {
      const auto rows = [&](const Sequence<T>& view) { return view.rows(batch.begin(i), batch.length(i)); };
      mamba2<T>(rows(value).heads(H), rows(dt), rows(b).heads(G), rows(c).heads(G),
                config_.norm ? ConstHeadSequence<T>() : rows(gate).heads(H), parameters, batch.state(i).memory,
                rows(core).heads(H), workspace);
    }
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      const auto rows = [&](const Sequence<T>& view) { return view.rows(begin, count); };
      if (mlp > 0) multiply_activated<T>(rows(mlp_value), rows(mlp_gate), silu);
      for (Index t = begin; t < begin + count; ++t) std::copy_n(mlp_value.row(t), mlp, mixed.row(t));
      if (!config_.norm) return;
      const auto normalize = [&] {
        rms_normalize(rows(core).heads(channels / config_.norm_group_size), config_.norm_eps, norm_);
      };
      if (config_.norm_before_gate) normalize();
      multiply_silu<T>(rows(core), rows(gate));
      if (!config_.norm_before_gate) normalize();
    });
    output_.apply(mixed, y, workspace);
  }

 private:
  Index heads() const { return config_.ssm_channels / config_.head_dim; }
  /// Channels of the convolution.
  Index convolved() const { return config_.ssm_channels + 2 * config_.groups * config_.state_dim; }

  static Config completed(Config config) {
    expect(config.channels > 0 && config.state_dim > 0, name, "config.state_dim", "must be positive, as must channels");
    expect(config.convolution_width > 0, name, "config.convolution_width", "must be positive");
    if (config.inner_channels == 0) config.inner_channels = 2 * config.channels;
    if (config.ssm_channels == 0) config.ssm_channels = config.inner_channels;
    expect(config.ssm_channels <= config.inner_channels, name, "config.ssm_channels", "are more than inner_channels");
    expect_divides(name, "config.head_dim", config.head_dim, "ssm_channels", config.ssm_channels);
    expect_divides(name, "config.groups", config.groups, "heads", config.ssm_channels / config.head_dim);
    if (config.norm_group_size == 0) config.norm_group_size = config.ssm_channels / config.groups;
    expect_divides(name, "config.norm_group_size", config.norm_group_size, "ssm_channels", config.ssm_channels);
    return config;
  }

  Config config_;
  Vector<T> dt_bias_, a_, d_, norm_;
  Tensor<T> initial_state_;
  Linear<T> input_, output_;
  ShortConvolution<T> convolution_;
};

static_assert(RecurrentMixer<Mamba2<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
