// Mamba-3: the state space of Mamba-2 by the trapezoidal rule, with queries and keys that turn as the data say, and with
// several inputs and outputs for each memory (MIMO).
//
//   Source    Dao AI Lab, Goombalab 2026; state-spaces/mamba, mamba_ssm/modules/mamba3.py
//   Glossary  L length   D channels   H heads of P channels   N state size   G groups of heads that share B and C   R rank
//             S angles
//   Engine    engine/trapezoidal_recurrence.hpp, which has the equations of the core: C are the queries, B the keys
//   Size      a core of many streams, and a layer that makes them out of one projection
//
// Layer:  z, x, B, C, dt, a, trapezoid, angle = W_in u;   key = rms(B) w_B, query = rms(C) w_C;   dt' = softplus(dt + bias)
//         g = -max(f(a), least_rate) dt',  f(a) = 1 + a for a >= 0, else 1 / (1 - a)
//         y = W_out core, with z as its gate; or W_out (rms(core) w silu(z)), every head by itself
// Differs   from the authors' code in the layout of the state, [H, N, P] here and [H, P, N] there; in that angles are summed
//           in double and reduced modulo 2 pi at every token; and in exact tanh, sine and cosine.
#pragma once

#include <seqmix/core/mixer.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/trapezoidal_recurrence.hpp>
#include <seqmix/parts/decay_gate.hpp>
#include <seqmix/parts/gate.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/norm.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// Mamba-3 from and into `state`, with any rank. R is parameters.rank, H, N and P those of the state's memory, S that of its
/// angles. O(L R H N P) time, O(H N P) scratch. Allocates nothing once `workspace` is warm. Throws std::invalid_argument on
/// shapes that do not fit and on outputs that overlap.
template <std::floating_point T>
void mamba3(const TrapezoidalStreams<T>& streams, const TrapezoidalParameters<T>& parameters,
            const TrapezoidalState<T>& state, HeadSequence<T> output, Workspace& workspace) {
  constexpr std::string_view name = "mamba3";
  const MemoryView<T>& memory = state.memory;
  const Index L = output.length(), R = parameters.rank, H = memory.heads(), N = memory.key_dim(),
              P = memory.value_dim();
  const Index S = state.angle.channels();
  const auto expect_apart = [&](std::string_view tensor, const auto& view) {
    expect_disjoint(name, "output", output, tensor, view);
    expect_disjoint(name, "state.memory", memory, tensor, view);
    expect_disjoint(name, "state.angle", state.angle, tensor, view);
    expect_disjoint(name, "state.key", state.key, tensor, view);
    expect_disjoint(name, "state.value", state.value, tensor, view);
  };
  const auto expect_input = [&](std::string_view tensor, const Shape& shape, const auto& view) {
    expect_shape(name, tensor, shape, view);
    expect_apart(tensor, view);
  };
  const auto expect_optional = [&](std::string_view tensor, const Shape& shape, const auto& view) {
    if (Shape(view).size() > 0) expect_input(tensor, shape, view);
  };
  expect(R > 0 && H > 0, name, "parameters.rank", "must be positive, as must heads");
  expect(2 * S <= N, name, "state.angle", "has more angles than pairs of channels");
  expect_shape(name, "output", {L, H, P}, output);
  expect_shape(name, "state.angle", {H, S}, state.angle);
  expect_shape(name, "state.key", {H * R, N}, state.key);
  expect_shape(name, "state.value", {H * R, P}, state.value);
  expect_disjoint(name, "output", output, "state.memory", memory);
  expect_disjoint(name, "output", output, "state.angle", state.angle);
  expect_disjoint(name, "output", output, "state.key", state.key);
  expect_disjoint(name, "output", output, "state.value", state.value);
  const Index groups = streams.query.heads() / R;
  expect_divides(name, "groups", groups, "heads", H);
  expect_input("query", {L, R * groups, N}, streams.query);
  expect_input("key", {L, R * groups, N}, streams.key);
  expect_input("value", {L, H, P}, streams.value);
  expect_input("log_decay", {L, H}, streams.log_decay);
  expect_input("dt", {L, H}, streams.dt);
  expect_input("trapezoid", {L, H}, streams.trapezoid);
  expect_input("angle", {L, streams.angle.heads() == 1 ? 1 : H, S}, streams.angle);
  expect_optional("gate", {L, H, P}, streams.gate);
  expect_input("query_bias", {H * R, N}, parameters.query_bias);
  expect_input("key_bias", {H * R, N}, parameters.key_bias);
  expect_optional("d", {H}, parameters.d);
  expect_optional("value_in", {H * R, P}, parameters.value_in);
  expect_optional("gate_in", {H * R, P}, parameters.gate_in);
  expect_optional("output_out", {H * R, P}, parameters.output_out);
  expect_optional("norm_weight", {H, P}, parameters.norm_weight);
  trapezoidal_recurrence(streams, parameters, state, output, workspace);
}

/// The layer of Mamba-3, of rank 1.
template <std::floating_point T>
class Mamba3 : public RecurrentMixerBase<Mamba3<T>, T> {
 public:
  static constexpr std::string_view name = "mamba3";
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Config {
    Index channels = 0;
    Index inner_channels = 0;  ///< H P; 0 means 2 * channels
    Index head_dim = 64;       ///< P, divides inner_channels
    Index state_dim = 128;     ///< N
    Index groups = 1;          ///< G, divides the heads
    Index angles = -1;         ///< S, at most N / 2; below 0 means N / 4
    T least_rate = T(1e-4);    ///< of decay
    bool norm = false;         ///< of the core's output, before the gate
    T norm_eps = T(1e-5);      ///< of B and C too
  };

  struct Weights {
    Matrix<T> input;           // [2 H P + 2 G N + 3 H + S, D]: z, x, B, C, dt, a, trapezoid, angle
    Vector<T> dt_bias, d;      // [H]
    Matrix<T> b_bias, c_bias;  // [H, N]
    Vector<T> b_norm, c_norm;  // [N]
    Vector<T> norm;            // [H P], with a norm
    Matrix<T> output;          // [D, H P]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("in_proj.weight", self.input, Presence::required);
      visitor("dt_bias", self.dt_bias, Presence::required);
      visitor("B_bias", self.b_bias, Presence::required);
      visitor("C_bias", self.c_bias, Presence::required);
      visitor("B_norm.weight", self.b_norm, Presence::required);
      visitor("C_norm.weight", self.c_norm, Presence::required);
      visitor("D", self.d, Presence::required);
      visitor("norm.weight", self.norm, Presence::optional);
      visitor("out_proj.weight", self.output, Presence::required);
    }
  };

  struct State {
    Tensor<double> angle;  // [H, S]
    Tensor<T> memory;      // [H, N, P]
    Tensor<T> key, value;  // [H, N], [H, P]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("angle", self.angle), visitor("memory", self.memory);
      visitor("key", self.key), visitor("value", self.value);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless sizes divide what they must and the shapes of `weights` follow
  /// from `config`.
  Mamba3(const Config& config, const Weights& weights)
      : config_(completed(config)),
        dt_bias_(weights.dt_bias),
        d_(weights.d),
        b_norm_(weights.b_norm),
        c_norm_(weights.c_norm),
        norm_(weights.norm),
        b_bias_(weights.b_bias),
        c_bias_(weights.c_bias) {
    const Config& c = config_;
    expect_tensor(name, "in_proj.weight", {projected(c), c.channels}, weights.input);
    expect_tensor(name, "dt_bias", {heads(c)}, weights.dt_bias);
    expect_tensor(name, "B_bias", {heads(c), c.state_dim}, weights.b_bias);
    expect_tensor(name, "C_bias", {heads(c), c.state_dim}, weights.c_bias);
    expect_tensor(name, "B_norm.weight", {c.state_dim}, weights.b_norm);
    expect_tensor(name, "C_norm.weight", {c.state_dim}, weights.c_norm);
    expect_tensor(name, "D", {heads(c)}, weights.d);
    if (c.norm) expect_tensor(name, "norm.weight", {c.inner_channels}, weights.norm);
    expect_tensor(name, "out_proj.weight", {c.channels, c.inner_channels}, weights.output);
    input_ = Linear<T>(weights.input), output_ = Linear<T>(weights.output);
  }

  /// The authors': projections uniform in +-inputs^-1/2, softplus(dt_bias) from 1e-3 to 0.1 with uniform logarithms, and ones.
  static Weights random_weights(const Config& config, Rng& rng) {
    const Config c = completed(config);
    Weights weights;
    weights.input = random_projection<T>(projected(c), c.channels, rng);
    weights.dt_bias = DecayGate<T>::random_bias(heads(c), rng);
    weights.d = Vector<T>::Ones(heads(c));
    weights.b_bias = weights.c_bias = Matrix<T>::Ones(heads(c), c.state_dim);
    weights.b_norm = weights.c_norm = Vector<T>::Ones(c.state_dim);
    weights.norm = Vector<T>::Ones(c.norm ? c.inner_channels : 0);
    weights.output = random_projection<T>(c.channels, c.inner_channels, rng);
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// H (S + N P + N + P) zeros.
  State initial_state() const {
    const Config& c = config_;
    const Index H = heads(c), N = c.state_dim, P = c.head_dim;
    return {Tensor<double>({H, c.angles}), Tensor<T>({H, N, P}), Tensor<T>({H, N}), Tensor<T>({H, P})};
  }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const {
    const Config& c = config_;
    expect_shape(name, "state.angle", {heads(c), c.angles}, state.angle.shape());
    expect_shape(name, "state.memory", {heads(c), c.state_dim, c.head_dim}, state.memory.shape());
    expect_shape(name, "state.key", {heads(c), c.state_dim}, state.key.shape());
    expect_shape(name, "state.value", {heads(c), c.head_dim}, state.value.shape());
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Config& c = config_;
    const Index H = heads(c), N = c.state_dim, P = c.head_dim;
    ColumnCutter<T> columns(input_.apply(x, workspace));
    const auto gate = columns.next(c.inner_channels), value = columns.next(c.inner_channels);
    const auto b = columns.next(c.groups * N), query = columns.next(c.groups * N);
    const auto dt = columns.next(H), decay = columns.next(H), trapezoid = columns.next(H), angle = columns.rest();
    const auto mixed = workspace.sequence<T>(x.length(), c.inner_channels);
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      const auto rows = [&](const Sequence<T>& view) { return view.rows(begin, count); };
      rms_normalize(rows(b).heads(c.groups), c.norm_eps, b_norm_);
      rms_normalize(rows(query).heads(c.groups), c.norm_eps, c_norm_);
      discretize(rows(dt), rows(decay));
    });
    const TrapezoidalParameters<T> parameters{.query_bias = c_bias_, .key_bias = b_bias_, .d = d_};
    for (Index i = 0; i < batch.size(); ++i) {
      const auto rows = [&](const Sequence<T>& view) { return view.rows(batch.begin(i), batch.length(i)); };
      State& state = batch.state(i);
      mamba3<T>({.query = rows(query).heads(c.groups),
                 .key = rows(b).heads(c.groups),
                 .value = rows(value).heads(H),
                 .log_decay = rows(decay),
                 .dt = rows(dt),
                 .trapezoid = rows(trapezoid),
                 .angle = {rows(angle).data(), batch.length(i), 1, c.angles, angle.stride(), c.angles},
                 .gate = c.norm ? ConstHeadSequence<T>() : rows(gate).heads(H)},
                parameters,
                {{state.angle.data(), H, c.angles}, state.memory, {state.key.data(), H, N}, {state.value.data(), H, P}},
                rows(mixed).heads(H), workspace);
    }
    if (c.norm) {
      workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
        rms_normalize(mixed.rows(begin, count).heads(H), c.norm_eps, norm_);
        multiply_silu<T>(mixed.rows(begin, count), gate.rows(begin, count));
      });
    }
    output_.apply(mixed, y, workspace);
  }

 private:
  /// Steps of time, and log decays from what the projection gives for them, in place.
  void discretize(const Sequence<T>& dt, const Sequence<T>& decay) const {
    const Batch<T> one = broadcast(T(1)), least = broadcast(config_.least_rate);
    for (Index t = 0; t < dt.length(); ++t) {
      map_row(
          dt.channels(), dt.row(t),
          [](const Batch<T>& x, const Batch<T>& bias) SEQMIX_INLINE_LAMBDA { return softplus(x + bias); }, dt.row(t),
          dt_bias_.data());
      map_row(
          dt.channels(), decay.row(t),
          [&](const Batch<T>& a, const Batch<T>& step) SEQMIX_INLINE_LAMBDA {
            const Batch<T> rate = select(a >= broadcast(T(0)), one + a, one / (one - a));
            return -max_propagating(rate, least) * step;
          },
          decay.row(t), dt.row(t));
    }
  }

  static Index heads(const Config& c) { return c.inner_channels / c.head_dim; }
  /// Outputs of the first projection.
  static Index projected(const Config& c) {
    return 2 * c.inner_channels + 2 * c.groups * c.state_dim + 3 * heads(c) + c.angles;
  }

  static Config completed(Config config) {
    expect(config.channels > 0 && config.state_dim > 0, name, "config.state_dim", "must be positive, as must channels");
    if (config.inner_channels == 0) config.inner_channels = 2 * config.channels;
    if (config.angles < 0) config.angles = config.state_dim / 4;
    expect(2 * config.angles <= config.state_dim, name, "config.angles", "are more than pairs of channels");
    expect_divides(name, "config.head_dim", config.head_dim, "inner_channels", config.inner_channels);
    expect_divides(name, "config.groups", config.groups, "heads", heads(config));
    return config;
  }

  Config config_;
  Vector<T> dt_bias_, d_, b_norm_, c_norm_, norm_;
  Matrix<T> b_bias_, c_bias_;
  Linear<T> input_, output_;
};

static_assert(RecurrentMixer<Mamba3<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
