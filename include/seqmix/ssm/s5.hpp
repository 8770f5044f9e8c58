// S5: one diagonal complex state space for all channels.
//
//   Source    Smith, Warrington, Linderman 2023, arXiv:2208.04933; lindermanlab/S5, s5/ssm.py, s5/layers.py, s5/ssm_init.py
//   Glossary  L length   H channels   P modes, each stored; they may stand for pairs of conjugates
//   Engine    engine/scan.hpp with ComplexDiagonal, between two projections
//   Size      a core with its discretisations and initialisation, and a layer, both of them in one direction or both
//
// Core:   step = step_rescale exp(log_step);   decay, input = discretised Lambda, B (parts/state_space.hpp)
//         s_t = decay s_{t-1} + input x_t,   y_t = k Re(C s_t) + D x_t,   k = 2 for pairs of conjugates, else 1
//         Bidirectional: C2 reads a second state that runs backwards, and has seen the current token too.
// Layer:  v = core(norm(x));   y = x + activation(v), and the norm at the end instead of at the beginning where asked for
// Differs   from the authors' code in nothing but the batch norm and the dropout, which are left out.
#pragma once

#include <seqmix/core/mixer.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/scan.hpp>
#include <seqmix/parts/gate.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/norm.hpp>
#include <seqmix/parts/state_space.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// What follows the core in a layer of S5.
enum class S5Activation {
  plain,      ///< g = gelu(v), by tanh
  full_glu,   ///< out1(g) sigmoid(out2(g))
  half_glu1,  ///< g sigmoid(out2(g))
  half_glu2   ///< v sigmoid(out2(g))
};

/// The core of S5.
template <std::floating_point T>
class S5Core {
 public:
  struct Config {
    Index channels = 0;
    Index modes = 32;        ///< P
    bool conjugates = true;  ///< every mode stands for a pair
    Discretization discretization = Discretization::zoh;
    bool clip = false;  ///< real parts of Lambda to at most -1e-4
    double step_rescale = 1;
    Index blocks = 1;  ///< of the matrix whose eigenvalues random weights begin with; divides the modes
    // Of the layer:
    S5Activation activation = S5Activation::half_glu2;
    bool norm_before = true;  ///< or after
    T norm_eps = T(1e-6);
  };

  /// Complex tensors have rows of real and imaginary part.
  struct Weights {
    Vector<T> lambda_real, lambda_imag;  // [P]
    Matrix<T> b;                         // [P H, 2]
    Matrix<T> c, backward_c;             // [H P, 2]; the second for two directions
    Vector<T> d;                         // [H]
    Vector<T> log_step;                  // [P]
  };

  S5Core() = default;

  /// Discretises, in double. Throws std::invalid_argument, in the name of `operation`, unless the shapes of `weights` follow
  /// from `config`.
  S5Core(std::string_view operation, const Config& config, const Weights& weights, Direction direction)
      : modes_(config.modes), d_(weights.d) {
    check(operation, config);
    const Index H = config.channels, P = config.modes;
    expect_tensor(operation, "Lambda_re", {P}, weights.lambda_real);
    expect_tensor(operation, "Lambda_im", {P}, weights.lambda_imag);
    expect_tensor(operation, "log_step", {P}, weights.log_step);
    expect_tensor(operation, "D", {H}, weights.d);
    const ComplexArray b = read_complex(operation, "B", weights.b, P, H);
    Matrix<T> input(2 * P, H);
    decay_real_ = decay_imag_ = Vector<T>(P);
    for (Index p = 0; p < P; ++p) {
      const double real = double(weights.lambda_real[p]);
      const Complex lambda(config.clip && real > -1e-4 ? -1e-4 : real, double(weights.lambda_imag[p]));
      const double step = config.step_rescale * std::exp(double(weights.log_step[p]));
      const DiscreteMode mode = discretized(config.discretization, lambda, 1.0, step);
      decay_real_[p] = T(mode.decay.real()), decay_imag_[p] = T(mode.decay.imag());
      for (Index h = 0; h < H; ++h) {
        const Complex number = mode.input * b(p, h);
        input(p, h) = T(number.real()), input(P + p, h) = T(number.imag());
      }
    }
    input_ = Linear<T>(input);
    // Re(C s) of the rows (Re s, Im s).
    const auto reader = [&](std::string_view name, const Matrix<T>& parts) {
      const ComplexArray c = read_complex(operation, name, parts, H, P) * (config.conjugates ? 2.0 : 1.0);
      Matrix<T> rows(H, 2 * P);
      rows << c.real().template cast<T>().matrix(), -c.imag().template cast<T>().matrix();
      return Linear<T>(rows);
    };
    const bool both = direction == Direction::bidirectional;
    forward_ = reader(both ? "C1" : "C", weights.c);
    if (both) backward_ = reader("C2", weights.backward_c);
  }

  /// The authors': Lambda the eigenvalues of the normal part of HiPPO-LegS, in each block; B and C random in the basis before
  /// diagonalisation, log_step uniform between those of 1e-3 and 0.1, D normal.
  static Weights random_weights(std::string_view operation, const Config& config, Rng& rng, Direction direction) {
    check(operation, config);
    const Index H = config.channels, P = config.modes, stored = P / config.blocks;
    const Index states = stored * (config.conjugates ? 2 : 1);
    const LegendreModes legendre(states, stored);
    ComplexArray b = ComplexArray::Zero(P, H), c[2] = {ComplexArray::Zero(H, P), ComplexArray::Zero(H, P)};
    Weights weights;
    weights.lambda_real = weights.lambda_imag = Vector<T>(P);
    const double scale = std::pow(double(states * config.blocks), -0.5);
    for (Index p = 0; p < P; ++p) {
      weights.lambda_real[p] = T(legendre.pole[p % stored].real());
      weights.lambda_imag[p] = T(legendre.pole[p % stored].imag());
    }
    for (Index block = 0; block < config.blocks; ++block) {
      for (Index h = 0; h < H; ++h) {
        for (Index n = 0; n < states; ++n) {
          const double real = scale * rng.normal();
          const Complex first(rng.normal(), rng.normal()), second(rng.normal(), rng.normal());
          for (Index i = 0; i < stored; ++i) {
            const Index p = block * stored + i;
            b(p, h) += std::conj(legendre.basis(n, i)) * real;
            c[0](h, p) += scale * first * legendre.basis(n, i);
            c[1](h, p) += scale * second * legendre.basis(n, i);
          }
        }
      }
    }
    weights.b = write_complex<T>(b), weights.c = write_complex<T>(c[0]);
    if (direction == Direction::bidirectional) weights.backward_c = write_complex<T>(c[1]);
    weights.d = Vector<T>::NullaryExpr(H, [&] { return T(rng.normal()); });
    weights.log_step = uniform_vector<T>(P, std::log(1e-3), std::log(0.1), rng);
    return weights;
  }

  /// [2, P]: real parts, then imaginary ones.
  Shape state_shape() const { return {2, modes_}; }

  /// x, y [L, H], from and into `state` [2, P]; forward only. O(L P H) time; allocates nothing once `workspace` is warm.
  void run(ConstSequence<T> x, Sequence<T> state, Sequence<T> y, Workspace& workspace) const {
    const auto frame = workspace.frame();
    forward_.apply(scanned(x, state, workspace), y, workspace);
    add_skip(x, y);
  }

  /// The same over a whole sequence, in both directions where the core has both. O(L P) scratch.
  void run(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const auto frame = workspace.frame();
    const Index length = x.length();
    const auto state = workspace.sequence<T>(2, modes_);
    const auto clear = [&] {
      for (Index row = 0; row < 2; ++row) std::fill_n(state.row(row), modes_, T(0));
    };
    clear();
    run(x, state, y, workspace);
    if (backward_.outputs() == 0) return;
    const auto reversed = workspace.sequence<T>(length, x.channels());
    for (Index t = 0; t < length; ++t) std::copy_n(x.row(t), x.channels(), reversed.row(length - 1 - t));
    clear();
    const auto back = backward_.apply(scanned(reversed, state, workspace), workspace);
    const auto plus = [](const Batch<T>& a, const Batch<T>& b) SEQMIX_INLINE_LAMBDA { return a + b; };
    for (Index t = 0; t < length; ++t) map_row(y.channels(), y.row(t), plus, y.row(t), back.row(length - 1 - t));
  }

 private:
  static void check(std::string_view operation, const Config& config) {
    expect(config.channels > 0, operation, "config.channels", "must be positive");
    expect_divides(operation, "config.blocks", config.blocks, "modes", config.modes);
  }

  /// The states after every token, [L, 2 P].
  Sequence<T> scanned(ConstSequence<T> x, Sequence<T> state, Workspace& workspace) const {
    const auto states = input_.apply(x, workspace);
    const Sequence<const T> real = states.columns(0, modes_), imag = states.columns(modes_, modes_);
    const ConstToken<T> decay_real = decay_real_, decay_imag = decay_imag_;
    const auto step = [&](Index t, const auto& read) SEQMIX_INLINE_LAMBDA {
      return ComplexDiagonal::Step<Batch<T>>{read(decay_real), read(decay_imag), read(real, t), read(imag, t)};
    };
    scan<ComplexDiagonal>(step, state, states, workspace);
    return states;
  }

  void add_skip(ConstSequence<T> x, Sequence<T> y) const {
    const auto add = [](const Batch<T>& sum, const Batch<T>& d, const Batch<T>& u)
                         SEQMIX_INLINE_LAMBDA { return fma(d, u, sum); };
    for (Index t = 0; t < y.length(); ++t) map_row(y.channels(), y.row(t), add, y.row(t), d_.data(), x.row(t));
  }

  Index modes_ = 0;
  Vector<T> decay_real_, decay_imag_, d_;
  Linear<T> input_, forward_, backward_;
};

/// The layer of S5, its norm and its residual connection included.
template <std::floating_point T, Direction way = Direction::causal>
class S5 : public RecurrentMixerBase<S5<T, way>, T> {
 public:
  static constexpr std::string_view name = "s5";
  static constexpr Direction direction = way;
  static constexpr StateGrowth growth = StateGrowth::constant;

  using Config = typename S5Core<T>::Config;

  struct Weights {
    typename S5Core<T>::Weights core;
    Matrix<T> out1, out2;              // [inputs, outputs], both H, where the activation has them
    Vector<T> out1_bias, out2_bias;    // [H]
    Vector<T> norm_weight, norm_bias;  // [H]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("seq.Lambda_re", self.core.lambda_real, Presence::required);
      visitor("seq.Lambda_im", self.core.lambda_imag, Presence::required);
      visitor("seq.B", self.core.b, Presence::required);
      if constexpr (way == Direction::causal) {
        visitor("seq.C", self.core.c, Presence::required);
      } else {
        visitor("seq.C1", self.core.c, Presence::required);
        visitor("seq.C2", self.core.backward_c, Presence::required);
      }
      visitor("seq.D", self.core.d, Presence::required);
      visitor("seq.log_step", self.core.log_step, Presence::required);
      visitor("out1.kernel", self.out1, Presence::optional);
      visitor("out1.bias", self.out1_bias, Presence::optional);
      visitor("out2.kernel", self.out2, Presence::optional);
      visitor("out2.bias", self.out2_bias, Presence::optional);
      visitor("norm.scale", self.norm_weight, Presence::required);
      visitor("norm.bias", self.norm_bias, Presence::required);
    }
  };

  struct State {
    Tensor<T> modes;  // [2, P], real parts, then imaginary ones

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("modes", self.modes);
    }
  };

  /// Discretises and packs the weights. Throws std::invalid_argument unless their shapes follow from `config`.
  S5(const Config& config, const Weights& weights)
      : config_(config),
        core_(name, config, weights.core, way),
        norm_weight_(weights.norm_weight),
        norm_bias_(weights.norm_bias) {
    const Index H = channels();
    const auto dense = [&](std::string_view kernel, const Matrix<T>& weight, std::string_view bias_name,
                           const Vector<T>& bias) {
      expect_tensor(name, kernel, {H, H}, weight);
      expect_tensor(name, bias_name, {H}, bias);
      return Linear<T>(Matrix<T>(weight.transpose()), bias);
    };
    if (has_out1(config)) out1_ = dense("out1.kernel", weights.out1, "out1.bias", weights.out1_bias);
    if (has_out2(config)) out2_ = dense("out2.kernel", weights.out2, "out2.bias", weights.out2_bias);
    expect_tensor(name, "norm.scale", {H}, norm_weight_);
    expect_tensor(name, "norm.bias", {H}, norm_bias_);
  }

  /// Those of the core; dense kernels normal with variance 1 / inputs, without biases; a norm that does nothing more.
  static Weights random_weights(const Config& config, Rng& rng) {
    const Index H = config.channels;
    Weights weights;
    weights.core = S5Core<T>::random_weights(name, config, rng, way);
    const auto dense = [&](Matrix<T>& kernel, Vector<T>& bias) {
      kernel = normal_matrix<T>(H, H, std::pow(double(H), -0.5), rng);
      bias = Vector<T>::Zero(H);
    };
    if (has_out1(config)) dense(weights.out1, weights.out1_bias);
    if (has_out2(config)) dense(weights.out2, weights.out2_bias);
    weights.norm_weight = Vector<T>::Ones(H), weights.norm_bias = Vector<T>::Zero(H);
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// y = mixer(x) for a whole sequence. x, y [L, H]. Throws std::invalid_argument on wrong shapes and overlapping views.
  void forward(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    if constexpr (way == Direction::causal) {
      RecurrentMixerBase<S5, T>::forward(x, y, workspace);
    } else {
      internal::expect_input_output(name, channels(), x, y);
      if (x.length() == 0) return;
      const auto frame = workspace.frame();
      mix(x, y, workspace, [&](ConstSequence<T> u, Sequence<T> v) { core_.run(u, v, workspace); });
    }
  }

  State initial_state() const
    requires(way == Direction::causal)
  {
    return {Tensor<T>(core_.state_shape())};
  }

  /// Throws std::invalid_argument unless the state has this mixer's shape.
  void check_state(const State& state) const {
    expect_shape(name, "state.modes", core_.state_shape(), state.modes.shape());
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    mix(x, y, workspace, [&](ConstSequence<T> u, Sequence<T> v) {
      for (Index i = 0; i < batch.size(); ++i) {
        const auto rows = [&](const auto& view) { return view.rows(batch.begin(i), batch.length(i)); };
        core_.run(rows(u), {batch.state(i).modes.data(), 2, core_.state_shape()[1]}, rows(v), workspace);
      }
    });
  }

 private:
  static bool has_out1(const Config& config) { return config.activation == S5Activation::full_glu; }
  static bool has_out2(const Config& config) { return config.activation != S5Activation::plain; }

  /// The layer around core(u, v).
  template <class Core>
  void mix(ConstSequence<T> x, Sequence<T> y, Workspace& workspace, Core&& core) const {
    const Index H = channels();
    const auto normal = workspace.sequence<T>(x.length(), H), v = workspace.sequence<T>(x.length(), H);
    if (config_.norm_before) {
      layer_normalize<T>(x, normal, config_.norm_eps, norm_weight_, norm_bias_);
      core(normal, v);
    } else {
      core(x, v);
    }
    // g over what was the input of the core.
    for (Index t = 0; t < x.length(); ++t) {
      map_row(
          H, normal.row(t), [](const Batch<T>& z) SEQMIX_INLINE_LAMBDA { return gelu_tanh(z); }, v.row(t));
    }
    Sequence<T> result = config_.activation == S5Activation::half_glu2 ? v : normal;
    if (has_out2(config_)) {
      const auto gate = out2_.apply(normal, workspace);
      if (has_out1(config_)) out1_.apply(normal, v, workspace), result = v;
      multiply_sigmoid<T>(result, gate);
    }
    const auto plus = [](const Batch<T>& a, const Batch<T>& b) SEQMIX_INLINE_LAMBDA { return a + b; };
    for (Index t = 0; t < x.length(); ++t) map_row(H, y.row(t), plus, x.row(t), result.row(t));
    if (!config_.norm_before) layer_normalize<T>(y, y, config_.norm_eps, norm_weight_, norm_bias_);
  }

  Config config_;
  S5Core<T> core_;
  Vector<T> norm_weight_, norm_bias_;
  Linear<T> out1_, out2_;
};

static_assert(RecurrentMixer<S5<float>>);
static_assert(Mixer<S5<float, Direction::bidirectional>>);
static_assert(!CausalMixer<S5<float, Direction::bidirectional>>);

}  // namespace seqmix::inline SEQMIX_ARCH
