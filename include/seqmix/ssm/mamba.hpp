// Mamba: the selective state space model S6, as the mixer of Mamba-1.
//
//   Source    Gu and Dao 2023, arXiv:2312.00752, sections 3.2 to 3.4; state-spaces/mamba, mamba_ssm/modules/mamba_simple.py
//   Glossary  L length   D channels   E = expand D inner channels   N states of a channel   R rank of the time constants
//             W width of the convolution   G groups of channels that share B and C
//   Engine    engine/scan_selective.hpp
//   Size      a core with what the model fuses with it, and its layer
//   Differs   as the authors' code does from the paper's equation 4: B is discretised by Euler's rule (d B), A exactly
//
// Core:   d = softplus(delta_t + delta_bias)
//         s_t = exp(d A) s_{t-1} + d u_t B_t^T,   y_t = (s_t C_t + skip u_t) * silu(z_t), channel by channel
// Layer:  u, z = W_in x;   u = silu(convolution(u));   delta_low, B, C = W_x u;   delta = W_dt delta_low;
//         A = -exp(A_log);   y = W_out core(u, delta, A, B, C, z)
#pragma once

#include <cmath>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/scan_selective.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/short_convolution.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// What a selective scan may have besides its streams; what has no channels is left out.
template <class T>
struct MambaOptions {
  ConstToken<T> skip = {};        // D [E]
  ConstToken<T> delta_bias = {};  // [E]
  ConstSequence<T> gate = {};     // z [L, E]
  bool softplus = true;           // of delta
};

/// The selective scan from and into `state` [E, N]. input, delta [L, E], decay A [E, N] (negative as a rule), write B and
/// read C [L, G, N], output [L, E]; G divides E. O(L E N) time, O(E N) scratch, and O(N) rows of E numbers where channels are
/// so few that states are worked on side by side. Allocates nothing once `workspace` is warm. Throws std::invalid_argument on
/// shapes that do not fit and on results that overlap another argument.
template <std::floating_point T>
void mamba(ConstSequence<T> input, ConstSequence<T> delta, ConstSequence<T> decay, ConstHeadSequence<T> write,
           ConstHeadSequence<T> read, const MambaOptions<T>& options, Sequence<T> state, Sequence<T> output,
           Workspace& workspace) {
  const Index L = output.length(), E = output.channels(), N = state.channels();
  expect_shape("mamba", "input", {L, E}, input);
  expect_shape("mamba", "delta", {L, E}, delta);
  expect_shape("mamba", "decay", {E, N}, decay);
  expect_shape("mamba", "state", {E, N}, state);
  expect_divides("mamba", "groups", write.heads(), "channels", E);
  expect_shape("mamba", "write", {L, write.heads(), N}, write);
  expect_shape("mamba", "read", {L, write.heads(), N}, read);
  const auto alone = [&](std::string_view name, const auto& argument) {
    expect_disjoint("mamba", "output", output, name, argument);
    expect_disjoint("mamba", "state", state, name, argument);
  };
  alone("input", input), alone("delta", delta), alone("decay", decay), alone("write", write), alone("read", read);
  expect_disjoint("mamba", "output", output, "state", state);
  const auto optional = [&](std::string_view name, const Shape& shape, const auto& argument) {
    if (argument.channels() == 0) return;
    expect_shape("mamba", name, shape, argument);
    alone(name, argument);
  };
  optional("skip", {E}, options.skip), optional("delta_bias", {E}, options.delta_bias);
  optional("gate", {L, E}, options.gate);
  selective_scan<T>({input, delta, decay, write, read, options.skip, options.delta_bias, options.gate, options.softplus,
                     state, output},
                    workspace);
}

/// The mixer of Mamba-1.
template <std::floating_point T>
class Mamba : public RecurrentMixerBase<Mamba<T>, T> {
 public:
  static constexpr std::string_view name = "mamba";
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Config {
    Index channels = 0;
    Index state_dim = 16;
    Index convolution_width = 4;
    Index expand = 2;
    Index delta_rank = 0;  ///< R; 0 means channels / 16, rounded up
    bool convolution_bias = true;
    bool bias = false;  ///< of the projections in and out
  };

  struct Weights {
    Matrix<T> input;             // [2 E, D]: what is mixed, then gates
    Vector<T> input_bias;        // [2 E], or absent
    Matrix<T> convolution;       // [E, W]
    Vector<T> convolution_bias;  // [E], or absent
    Matrix<T> selection;         // [R + 2 N, E]: time constants, B, C
    Matrix<T> delta;             // [E, R]
    Vector<T> delta_bias;        // [E]
    Matrix<T> log_decay;         // [E, N]; A is -exp of it
    Vector<T> skip;              // [E]
    Matrix<T> output;            // [D, E]
    Vector<T> output_bias;       // [D], or absent

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("in_proj.weight", self.input, Presence::required);
      visitor("in_proj.bias", self.input_bias, Presence::optional);
      visitor("conv1d.weight", self.convolution, Presence::required);
      visitor("conv1d.bias", self.convolution_bias, Presence::optional);
      visitor("x_proj.weight", self.selection, Presence::required);
      visitor("dt_proj.weight", self.delta, Presence::required);
      visitor("dt_proj.bias", self.delta_bias, Presence::required);
      visitor("A_log", self.log_decay, Presence::required);
      visitor("D", self.skip, Presence::required);
      visitor("out_proj.weight", self.output, Presence::required);
      visitor("out_proj.bias", self.output_bias, Presence::optional);
    }
  };

  struct State {
    Tensor<T> convolution;  // [W, E], the last inputs of the convolution, oldest first
    Tensor<T> memory;       // [E, N]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("convolution", self.convolution), visitor("memory", self.memory);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless their shapes follow from `config`.
  Mamba(const Config& config, const Weights& weights) : config_(completed(config)) {
    const Index D = config_.channels, E = inner(), N = config_.state_dim, R = config_.delta_rank;
    expect_tensor(name, "in_proj.weight", {2 * E, D}, weights.input);
    expect_tensor(name, "conv1d.weight", {E, config_.convolution_width}, weights.convolution);
    expect_tensor(name, "x_proj.weight", {R + 2 * N, E}, weights.selection);
    expect_tensor(name, "dt_proj.weight", {E, R}, weights.delta);
    expect_tensor(name, "dt_proj.bias", {E}, weights.delta_bias);
    expect_tensor(name, "A_log", {E, N}, weights.log_decay);
    expect_tensor(name, "D", {E}, weights.skip);
    expect_tensor(name, "out_proj.weight", {D, E}, weights.output);
    if (config_.bias) expect_tensor(name, "in_proj.bias", {2 * E}, weights.input_bias);
    if (config_.bias) expect_tensor(name, "out_proj.bias", {D}, weights.output_bias);
    if (config_.convolution_bias) expect_tensor(name, "conv1d.bias", {E}, weights.convolution_bias);
    input_ = Linear<T>(weights.input, config_.bias ? weights.input_bias : Vector<T>());
    convolution_ = ShortConvolution<T>(name, weights.convolution,
                                       config_.convolution_bias ? weights.convolution_bias : Vector<T>(),
                                       ConvolutionActivation::swish);
    selection_ = Linear<T>(weights.selection);
    delta_ = Linear<T>(weights.delta);
    output_ = Linear<T>(weights.output, config_.bias ? weights.output_bias : Vector<T>());
    decay_ = -weights.log_decay.array().exp();
    delta_bias_ = weights.delta_bias;
    skip_ = weights.skip;
  }

  /// As the authors begin: A = -1 .. -N, D = 1, time constants log-uniform in [1e-3, 1e-1]; the rest uniform in
  /// +-inputs^-1/2.
  static Weights random_weights(const Config& config, Rng& rng) {
    const Config c = completed(config);
    const Index D = c.channels, E = c.expand * D, N = c.state_dim, R = c.delta_rank;
    const auto projection = [&](Index rows, Index columns) {
      return uniform_matrix<T>(rows, columns, std::pow(double(columns), -0.5), rng);
    };
    const auto bias = [&](bool there, Index size, Index inputs) {
      const double limit = std::pow(double(inputs), -0.5);
      return uniform_vector<T>(there ? size : 0, -limit, limit, rng);
    };
    Weights weights;
    weights.input = projection(2 * E, D);
    weights.input_bias = bias(c.bias, 2 * E, D);
    weights.convolution = projection(E, c.convolution_width);
    weights.convolution_bias = bias(c.convolution_bias, E, c.convolution_width);
    weights.selection = projection(R + 2 * N, E);
    weights.delta = projection(E, R);
    weights.delta_bias = Vector<T>::NullaryExpr(E, [&] {
      const double constant = std::exp(rng.uniform(std::log(1e-3), std::log(1e-1)));
      return T(constant + std::log(-std::expm1(-constant)));  // softplus gives the constant
    });
    weights.log_decay = Matrix<T>::NullaryExpr(E, N, [](Index, Index n) { return T(std::log(double(n + 1))); });
    weights.skip = Vector<T>::Ones(E);
    weights.output = projection(D, E);
    weights.output_bias = bias(c.bias, D, E);
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// The empty state: E (W + N) zeros.
  State initial_state() const { return {convolution_.initial_state(), Tensor<T>({inner(), config_.state_dim})}; }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const {
    convolution_.check_state(name, "state.convolution", state.convolution);
    expect_shape(name, "state.memory", {inner(), config_.state_dim}, state.memory.shape());
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Index E = inner(), N = config_.state_dim;
    ColumnCutter<T> projected(input_.apply(x, workspace));
    const auto before = projected.next(E), gate = projected.rest();
    const auto input = convolution_.apply(batch, &State::convolution, before, workspace);
    ColumnCutter<T> selected(selection_.apply(input, workspace));
    const auto delta = delta_.apply(selected.next(config_.delta_rank), workspace);
    const auto write = selected.next(N).heads(1), read = selected.rest().heads(1);
    const auto mixed = before;  // the convolution has used it up
    for (Index b = 0; b < batch.size(); ++b) {
      const auto rows = [&](const auto& view) { return view.rows(batch.begin(b), batch.length(b)); };
      mamba<T>(rows(input), rows(delta), decay_, rows(write), rows(read), {skip_, delta_bias_, rows(gate), true},
               {batch.state(b).memory.data(), E, N}, rows(mixed), workspace);
    }
    output_.apply(mixed, y, workspace);
  }

 private:
  Index inner() const { return config_.expand * config_.channels; }

  static Config completed(Config config) {
    expect(config.channels > 0 && config.expand > 0, name, "config.channels", "must be positive, as must expand");
    expect(config.state_dim > 0, name, "config.state_dim", "must be positive");
    expect(config.delta_rank >= 0, name, "config.delta_rank", "must not be negative");
    expect(config.convolution_width > 0, name, "config.convolution_width", "must be positive");
    if (config.delta_rank == 0) config.delta_rank = (config.channels + 15) / 16;
    return config;
  }

  Config config_;
  Linear<T> input_, selection_, delta_, output_;
  ShortConvolution<T> convolution_;
  Matrix<T> decay_;  // [E, N]
  Vector<T> delta_bias_, skip_;
};

static_assert(RecurrentMixer<Mamba<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
