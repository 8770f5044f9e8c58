// What the structured state spaces share: how their parameters are stored, discretised and initialised.
//
//   Source    Gu, Goel, Re 2022, arXiv:2111.00396 (S4); Gu et al. 2022, arXiv:2206.11893 (S4D); state-spaces/s4,
//             models/s4/s4.py
//   Glossary  H channels   N state size, of which M = N/2 modes are stored: the others are their conjugates   c outputs of a
//             channel
//
// All of this happens once, when a mixer is made, in double.
#pragma once

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>
#include <complex>
#include <numbers>
#include <seqmix/core/error.hpp>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/parts/row.hpp>
#include <string_view>

namespace seqmix::inline SEQMIX_ARCH {

/// What is applied to a parameter before it is used.
enum class ParameterTransform { none, exponential, softly_positive, logistic, rectified };

enum class Discretization {
  zoh,      ///< zero-order hold: exp(dt A), B (exp(dt A) - 1) / A
  bilinear  ///< (1 + dt A/2) / (1 - dt A/2), dt B / (1 - dt A/2)
};

/// How the poles A of random weights begin.
enum class StateSpaceInit {
  linear,   ///< -1/2 + i pi n
  inverse,  ///< -1/2 + i (N / pi) (N / (2n + 1) - 1)
  legendre  ///< those of HiPPO-LegS without its part of low rank
};

using Complex = std::complex<double>;
using ComplexArray = Eigen::Array<Complex, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

inline double transformed(double x, ParameterTransform transform) {
  switch (transform) {
    case ParameterTransform::exponential:
      return std::exp(x);
    case ParameterTransform::softly_positive:
      return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)));
    case ParameterTransform::logistic:
      return 1 / (1 + std::exp(-x));
    case ParameterTransform::rectified:
      return x < 0 ? 0 : x;
    case ParameterTransform::none:
      break;
  }
  return x;
}

/// The numbers [rows, columns] of a tensor [..., columns, 2] of real and imaginary parts. Throws std::invalid_argument unless
/// it has as many.
template <class T>
ComplexArray read_complex(std::string_view operation, std::string_view name, const Matrix<T>& parts, Index rows,
                          Index columns) {
  expect_tensor(operation, name, {rows * columns, 2}, parts);
  ComplexArray result(rows, columns);
  for (Index i = 0; i < result.size(); ++i) {
    result.data()[i] = {double(parts.data()[2 * i]), double(parts.data()[2 * i + 1])};
  }
  return result;
}

/// The other way round.
template <class T>
Matrix<T> write_complex(const ComplexArray& numbers) {
  Matrix<T> parts(numbers.size(), 2);
  for (Index i = 0; i < numbers.size(); ++i) {
    parts(i, 0) = T(numbers.data()[i].real()), parts(i, 1) = T(numbers.data()[i].imag());
  }
  return parts;
}

/// exp(z) - 1, accurate around 0.
inline Complex exp_minus_one(Complex z) {
  const double growth = std::exp(z.real()), half_sine = std::sin(z.imag() / 2);
  return {std::expm1(z.real()) * std::cos(z.imag()) - 2 * half_sine * half_sine, growth * std::sin(z.imag())};
}

using Dense = Eigen::Matrix<Complex, Eigen::Dynamic, Eigen::Dynamic>;

/// X in A X = B, by elimination with pivots. (Eigen's own decompositions of complex matrices take the compiler long.)
inline Dense solved(Dense a, Dense b) {
  const Index size = a.rows();
  for (Index i = 0; i < size; ++i) {
    Index pivot = i;
    for (Index row = i + 1; row < size; ++row) {
      if (std::abs(a(row, i)) > std::abs(a(pivot, i))) pivot = row;
    }
    a.row(i).swap(a.row(pivot)), b.row(i).swap(b.row(pivot));
    for (Index row = 0; row < size; ++row) {
      if (row == i) continue;
      const Complex factor = a(row, i) / a(i, i);
      a.row(row) -= factor * a.row(i), b.row(row) -= factor * b.row(i);
    }
  }
  for (Index i = 0; i < size; ++i) b.row(i) /= a(i, i);
  return b;
}

/// A mode after discretisation: s_t = decay s_{t-1} + input x_t; `change` is decay - 1, accurate where that is small.
struct DiscreteMode {
  Complex decay, input, change;
};

inline DiscreteMode discretized(Discretization rule, Complex a, Complex b, double dt) {
  if (rule == Discretization::bilinear) {
    const Complex scale = 1.0 / (1.0 - dt / 2 * a);
    return {(1.0 + dt / 2 * a) * scale, b * dt * scale, dt * a * scale};
  }
  const Complex change = exp_minus_one(dt * a);
  return {std::exp(dt * a), a == 0.0 ? b * dt : b * change / a, change};
}

/// The normal part of HiPPO-LegS in its eigenbasis: the first `stored` of its modes by ascending imaginary part, of which a
/// half has conjugates in the other. A = basis^* (diag(pole) - low_rank low_rank^*) basis is the whole, for all modes.
struct LegendreModes {
  Eigen::ArrayXcd pole, low_rank, input;  // [stored]
  Eigen::MatrixXcd basis;                 // [states, stored], orthonormal columns

  /// O(states^3).
  LegendreModes(Index states, Index stored) {
    const auto root = [](Index n) { return std::sqrt(2.0 * double(n) + 1); };
    // A[n, k] + P_n P_k, P_n = sqrt(n + 1/2), is -1/2 and a skew part K; K v = i w v, so -i K is Hermitian.
    Eigen::MatrixXcd hermitian(states, states);
    for (Index n = 0; n < states; ++n) {
      for (Index k = 0; k < states; ++k) {
        hermitian(n, k) = Complex(0, n == k ? 0 : (n > k ? 0.5 : -0.5) * root(n) * root(k));
      }
    }
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXcd> solver(hermitian);
    basis = solver.eigenvectors().leftCols(stored);
    pole = Eigen::ArrayXcd(stored), input = Eigen::ArrayXcd::Zero(stored);
    for (Index i = 0; i < stored; ++i) {
      pole[i] = Complex(-0.5, solver.eigenvalues()[i]);
      for (Index n = 0; n < states; ++n) input[i] += std::conj(basis(n, i)) * root(n);
    }
    low_rank = input * std::sqrt(0.5);
    // As the authors do.
    for (Index i = 0; i < stored; ++i) input[i].imag(std::clamp(input[i].imag(), -2.0, 2.0));
  }
};

/// The parameters of S4D and S4 beside their numbers.
struct StateSpaceConfig {
  Index channels = 0;
  Index modes = 32;         ///< M
  Index outputs = 1;        ///< c
  Index copies = 0;         ///< n_ssm sets of modes, divides the channels; 0 means as many as channels
  Index rank = 1;           ///< of S4
  Index kernel_length = 0;  ///< of S4: the length that its C was stored for, see ssm/s4.hpp; 0: C as it is
  Discretization discretization = Discretization::zoh;  ///< of S4D; S4 is bilinear
  ParameterTransform dt_transform = ParameterTransform::exponential, real_transform = ParameterTransform::exponential,
                     imag_transform = ParameterTransform::none;
  StateSpaceInit init = StateSpaceInit::legendre;  ///< of random weights
  bool activate = true, gated = true;              ///< of the layer: GELU before its projection, GLU after it
  Index convolution_length = 0;  ///< longest sequence that the layer can convolve with its kernel; 0: none

  Index sets() const { return copies > 0 ? copies : channels; }
};

/// Their numbers. Complex tensors have rows of real and imaginary part.
template <class T>
struct StateSpaceWeights {
  Vector<T> inv_dt;          // [H]
  Matrix<T> c;               // [c H M, 2], twice the rows for two directions
  Matrix<T> b;               // [n_ssm M, 2]
  Matrix<T> a_real, a_imag;  // [n_ssm, M]
  Matrix<T> d;               // [c, H]
  Matrix<T> p;               // of S4: [R n_ssm M, 2]
};

/// Throws std::invalid_argument unless there are such systems.
inline void expect_state_space(std::string_view operation, const StateSpaceConfig& config) {
  expect(config.channels > 0 && config.modes > 0 && config.outputs > 0 && config.rank >= 0, operation, "config.modes",
         "must be positive, as must channels");
  expect_divides(operation, "config.copies", config.sets(), "channels", config.channels);
}

/// The same, and throws unless the real tensors have the shapes that follow from `config`.
template <class T>
void expect_state_space(std::string_view operation, const StateSpaceConfig& config,
                        const StateSpaceWeights<T>& weights) {
  expect_state_space(operation, config);
  expect_tensor(operation, "inv_dt", {config.channels}, weights.inv_dt);
  expect_tensor(operation, "A_real", {config.sets(), config.modes}, weights.a_real);
  expect_tensor(operation, "A_imag", {config.sets(), config.modes}, weights.a_imag);
  expect_tensor(operation, "D", {config.outputs, config.channels}, weights.d);
}

/// A of channel h, -f(A_real) - i g(A_imag), and its dt.
template <class T>
Complex pole_of(const StateSpaceConfig& config, const StateSpaceWeights<T>& weights, Index h, Index mode) {
  const Index set = h % config.sets();
  return {-transformed(double(weights.a_real(set, mode)), config.real_transform),
          -transformed(double(weights.a_imag(set, mode)), config.imag_transform)};
}
template <class T>
double step_of(const StateSpaceConfig& config, const StateSpaceWeights<T>& weights, Index h) {
  return transformed(double(weights.inv_dt[h]), config.dt_transform);
}

/// What `transform` makes x of; a number near it where there is none.
inline double untransformed(double x, ParameterTransform transform) {
  switch (transform) {
    case ParameterTransform::exponential:
      return std::log(std::max(x, 1e-4));
    case ParameterTransform::softly_positive:
      return x + std::log(-std::expm1(-std::max(x, 1e-4)));
    case ParameterTransform::logistic:
      return std::log(std::clamp(x, 1e-4, 1 - 1e-4) / (1 - std::clamp(x, 1e-4, 1 - 1e-4)));
    default:
      return x;
  }
}

/// The authors': poles, B and P by config.init, C complex normal, dt log-uniform in [1e-3, 0.1], D normal.
template <class T>
StateSpaceWeights<T> random_state_space(const StateSpaceConfig& config, Rng& rng, Direction direction) {
  const Index H = config.channels, M = config.modes, sets = config.sets();
  const LegendreModes legendre(2 * M, M);
  ComplexArray b = ComplexArray::Constant(sets, M, 1.0), p = ComplexArray::Zero(config.rank * sets, M);
  ComplexArray c(config.outputs * H * (direction == Direction::bidirectional ? 2 : 1), M);
  StateSpaceWeights<T> weights;
  weights.a_real = weights.a_imag = Matrix<T>(sets, M);
  for (Index i = 0; i < sets; ++i) {
    for (Index n = 0; n < M; ++n) {
      const double N = 2.0 * double(M), pi = std::numbers::pi;
      Complex a(-0.5, -pi * double(n));
      if (config.init == StateSpaceInit::inverse) a.imag(-N / pi * (N / (2 * double(n) + 1) - 1));
      if (config.init == StateSpaceInit::legendre) {
        a = legendre.pole[n], b(i, n) = legendre.input[n], p(i, n) = legendre.low_rank[n];
      }
      weights.a_real(i, n) = T(untransformed(-a.real(), config.real_transform));
      weights.a_imag(i, n) = T(untransformed(-a.imag(), config.imag_transform));
    }
  }
  for (Index i = 0; i < c.size(); ++i) c.data()[i] = Complex(rng.normal(), rng.normal()) * std::sqrt(0.5);
  weights.b = write_complex<T>(b), weights.c = write_complex<T>(c), weights.p = write_complex<T>(p);
  weights.inv_dt = Vector<T>::NullaryExpr(
      H, [&] { return T(untransformed(std::exp(rng.uniform(std::log(1e-3), std::log(0.1))), config.dt_transform)); });
  weights.d = normal_matrix<T>(config.outputs, H, 1.0, rng);
  return weights;
}

/// y of a whole sequence from the empty state, and where `backward` has outputs, what it makes of the tokens after the current
/// one, from the last on. x [L, H], y [L, c H]. O(L c H) scratch.
template <class System, class T>
void run_both_ways(const System& forward, const System& backward, const Sequence<const T>& x, const Sequence<T>& y,
                   Workspace& workspace) {
  const auto frame = workspace.frame();
  const Shape shape = forward.state_shape();
  const Index length = x.length();
  const auto memory = workspace.take<T>(shape.size());
  const auto fresh = [&] {
    std::fill(memory.begin(), memory.end(), T(0));
    return HeadSequence<T>(memory.data(), 2, shape[1], shape[2], shape[1] * shape[2], shape[2]);
  };
  forward.run(x, fresh(), y, workspace);
  if (backward.outputs() == 0 || length < 2) return;
  const auto reversed = workspace.sequence<T>(length - 1, x.channels());
  const auto back = workspace.sequence<T>(length - 1, y.channels());
  for (Index t = 1; t < length; ++t) std::copy_n(x.row(t), x.channels(), reversed.row(length - 1 - t));
  backward.run(reversed, fresh(), back, workspace);
  const auto plus = [](const Batch<T>& a, const Batch<T>& b) SEQMIX_INLINE_LAMBDA { return a + b; };
  for (Index t = 0; t + 1 < length; ++t) map_row(y.channels(), y.row(t), plus, y.row(t), back.row(length - 2 - t));
}

}  // namespace seqmix::inline SEQMIX_ARCH
