// S4D: state spaces that are diagonal and do not change with time, with a learned kernel as long as the sequence.
//
//   Source    Gu et al. 2022, arXiv:2206.11893; state-spaces/s4, models/s4/s4.py (SSMKernelDiag, FFTConv, S4Block) and
//             models/s4/s4d.py
//   Glossary  L length   H channels   N state size, of which M = N/2 complex modes are stored   c outputs of a channel
//             n_ssm sets of modes: channel h has number h mod n_ssm
//   Engine    engine/scan_time_invariant.hpp
//
// Core:   A = -f(A_real) - i g(A_imag),   dt = exp(inv_dt),   decay, input = discretised A, B (parts/state_space.hpp)
//         s_t = decay s_{t-1} + input x_t,   y_t = 2 Re sum_n C_n s_t[n] + D x_t
//         which is a convolution with the kernel K_l = 2 Re sum_n C_n input_n decay_n^l.
//         Bidirectional: C has a second half of rows, whose kernel sees the tokens after the current one, the next one at l = 0.
// Layer:  y = W gelu(core) + b, a first half times the sigmoid of a second
// Differs   from the authors' code in that the parallel path is a scan: kernels, and convolutions with them, exist where
//           asked for.
#pragma once

#include <seqmix/engine/scan_time_invariant.hpp>
#include <seqmix/parts/state_space.hpp>
#include <seqmix/parts/state_space_layer.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// The core of S4D.
template <std::floating_point T>
class S4dCore {
 public:
  using Scalar = T;
  static constexpr std::string_view name = "s4d";
  static constexpr bool low_rank = false;

  S4dCore() = default;

  /// Discretises, in double. Throws std::invalid_argument unless the shapes of `weights` follow from `config`.
  S4dCore(const StateSpaceConfig& config, const StateSpaceWeights<T>& weights, Direction direction)
      : decay_(config.channels, config.modes) {
    const Index H = config.channels, M = config.modes, rows = config.outputs * H;
    expect_state_space(name, config, weights);
    const ComplexArray b = read_complex(name, "B", weights.b, config.sets(), M);
    ComplexArray change = input_ = decay_;
    output_ = read_complex(name, "C", weights.c, direction == Direction::bidirectional ? 2 * rows : rows, M);
    for (Index h = 0; h < H; ++h) {
      const double dt = step_of(config, weights, h);
      for (Index n = 0; n < M; ++n) {
        const DiscreteMode mode =
            discretized(config.discretization, pole_of(config, weights, h, n), b(h % config.sets(), n), dt);
        decay_(h, n) = mode.decay, input_(h, n) = mode.input, change(h, n) = mode.change;
      }
    }
    const auto parts = [](const ComplexArray& numbers) -> ComplexMatrix<T> {
      return {numbers.real().template cast<T>(), numbers.imag().template cast<T>()};
    };
    // A stored mode stands for two conjugates.
    const auto system = [&](Index begin, const Vector<T>& skip) {
      return DiagonalSystem<T, true>(name, parts(change), parts(input_), parts(2.0 * output_.middleRows(begin, rows)),
                                     skip);
    };
    forward_ = system(0, Eigen::Map<const Vector<T>>(weights.d.data(), weights.d.size()));
    if (direction == Direction::bidirectional) backward_ = system(rows, Vector<T>());
  }

  Index outputs() const { return forward_.outputs(); }
  /// [2, H, M]: real parts, then imaginary ones.
  Shape state_shape() const { return forward_.state_shape(); }

  /// x [L, H], y [L, c H], output j of channel h at j H + h, from and into `state` [2, H, M]. Forward only. O(L c H M) time;
  /// allocates nothing once `workspace` is warm.
  void run(ConstSequence<T> x, HeadSequence<T> state, Sequence<T> y, Workspace& workspace) const {
    forward_.run(x, state, y, workspace);
  }

  /// The same over a whole sequence, in both directions where the core has both. O(L c H) scratch.
  void run(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    run_both_ways<DiagonalSystem<T, true>, T>(forward_, backward_, x, y, workspace);
  }

  /// K [rows of C, length], without D, in double. O(length) for every mode.
  Matrix<double> kernel(Index length) const {
    Matrix<double> result = Matrix<double>::Zero(output_.rows(), length);
    for (Index row = 0; row < output_.rows(); ++row) {
      for (Index n = 0; n < output_.cols(); ++n) {
        // Not by powers of the decay, whose phase would drift.
        const Complex decay = std::log(decay_(row % decay_.rows(), n)),
                      first = output_(row, n) * input_(row % decay_.rows(), n);
        for (Index l = 0; l < length; ++l) result(row, l) += 2 * (first * std::exp(double(l) * decay)).real();
      }
    }
    return result;
  }

 private:
  ComplexArray decay_, input_, output_;  // [H, M], C
  DiagonalSystem<T, true> forward_, backward_;
};

/// The layer of S4D.
template <std::floating_point T, Direction way = Direction::causal>
using S4d = StateSpaceLayer<S4dCore<T>, way>;

/// Those of the authors' minimal version, models/s4/s4d.py: A = -exp(log_A_real) + i A_imag, B = 1, one output.
template <class T>
struct S4dMinimalWeights {
  Vector<T> d, log_dt;           // [H]
  Matrix<T> c;                   // [H M, 2]
  Matrix<T> log_a_real, a_imag;  // [H, M]
  Matrix<T> output;              // [2 H, H, 1]
  Vector<T> output_bias;         // [2 H]

  template <class Self, class Visitor>
  static void visit(Self& self, Visitor&& visitor) {
    visitor("D", self.d, Presence::required);
    visitor("kernel.log_dt", self.log_dt, Presence::required);
    visitor("kernel.C", self.c, Presence::required);
    visitor("kernel.log_A_real", self.log_a_real, Presence::required);
    visitor("kernel.A_imag", self.a_imag, Presence::required);
    visitor("output_linear.0.weight", self.output, Presence::required);
    visitor("output_linear.0.bias", self.output_bias, Presence::required);
  }

  /// The same in the other form, for the config's defaults.
  operator typename S4d<T>::Weights() const {
    typename S4d<T>::Weights weights;
    weights.core.inv_dt = log_dt, weights.core.c = c;
    weights.core.b = write_complex<T>(ComplexArray::Constant(log_a_real.rows(), log_a_real.cols(), 1.0));
    weights.core.a_real = log_a_real, weights.core.a_imag = -a_imag;
    weights.core.d = d.transpose();
    weights.output = output, weights.output_bias = output_bias;
    if (output.cols() == 1 && output.rows() == 2 * d.size() * d.size()) {
      weights.output = Eigen::Map<const Matrix<T>>(output.data(), 2 * d.size(), d.size());
    }
    return weights;
  }
};

static_assert(RecurrentMixer<S4d<float>>);
static_assert(Mixer<S4d<float, Direction::bidirectional>>);
static_assert(!CausalMixer<S4d<float, Direction::bidirectional>>);

}  // namespace seqmix::inline SEQMIX_ARCH
