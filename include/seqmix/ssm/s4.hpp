// S4: structured state spaces, diagonal plus a part of low rank, that do not change with time.
//
//   Source    Gu, Goel, Re 2022, arXiv:2111.00396; state-spaces/s4, models/s4/s4.py (SSMKernelDPLR, FFTConv, S4Block)
//   Glossary  L length   H channels   N state size, of which M = N/2 complex modes are stored   c outputs of a channel
//             n_ssm sets of modes: channel h has number h mod n_ssm   R rank
//   Engine    engine/scan_low_rank.hpp
//   Size      a core with its initialisation and discretisation, and what the layer needs of it
//
// Core:   A = diag(Lam) - P P^*,   Lam = -f(A_real) - i g(A_imag),   dt = exp(inv_dt)
//         decay = (1 - dt/2 A)^-1 (1 + dt/2 A),   input = (1 - dt/2 A)^-1 dt B   (bilinear)
//         s_t = decay s_{t-1} + input x_t,   y_t = 2 Re(C . s_t) + D x_t
//         which is a convolution with the kernel K_l = 2 Re(C . decay^l input). Bidirectional as in ssm/s4d.hpp.
// Discretised by Woodbury's identity, with Dg = 1 / (2/dt - Lam), E = 2/dt + Lam, Q = conj(P) and W = (1 + 2 Re Q Dg P)^-1 Q Dg:
//         s_t = Dg E s_{t-1} - Dg P g + 2 Dg B x_t,   g = 2 Re((W E + (1 - 2 Re W P) Q) . s_{t-1}) + 4 Re(W B) x_t
// Checkpoints hold C~ = (1 - decay^l)^T C for the length l of their kernel; C is recovered from it once.
// Layer:  y = W gelu(core) + b, a first half times the sigmoid of a second
// Differs   from the authors' code in that the parallel path is a scan: kernels, and convolutions with them, exist where
//           asked for.
#pragma once

#include <seqmix/engine/scan_low_rank.hpp>
#include <seqmix/parts/state_space.hpp>
#include <seqmix/parts/state_space_layer.hpp>
#include <unsupported/Eigen/FFT>
#include <utility>
#include <vector>

namespace seqmix::inline SEQMIX_ARCH {

/// The core of S4.
template <std::floating_point T>
class S4Core {
 public:
  using Scalar = T;
  static constexpr std::string_view name = "s4";
  static constexpr bool low_rank = true;

  S4Core() = default;

  /// Discretises, in double, in O(H N^3 log(config.kernel_length)) if that is not 0. Throws std::invalid_argument unless the
  /// shapes of `weights` follow from `config`.
  S4Core(const StateSpaceConfig& config, const StateSpaceWeights<T>& weights, Direction direction) {
    const Index H = config.channels, M = config.modes, R = config.rank, sets = config.sets(), rows = config.outputs * H;
    expect_state_space(name, config, weights);
    expect(R > 0 && config.kernel_length >= 0, name, "config.rank", "must be positive, and no kernel_length negative");
    const ComplexArray b = read_complex(name, "B", weights.b, sets, M),
                       p = read_complex(name, "P", weights.p, R * sets, M);
    output_ = read_complex(name, "C", weights.c, direction == Direction::bidirectional ? 2 * rows : rows, M);
    pole_ = b_ = ComplexArray(H, M), p_ = ComplexArray(R * H, M), step_ = Eigen::ArrayXd(H);
    for (Index h = 0; h < H; ++h) {
      step_[h] = step_of(config, weights, h);
      for (Index n = 0; n < M; ++n) pole_(h, n) = pole_of(config, weights, h, n);
      b_.row(h) = b.row(h % sets);
      for (Index r = 0; r < R; ++r) p_.row(r * H + h) = p.row(r * sets + h % sets);
    }
    discretize();
    if (config.kernel_length > 0) {
      for (Index h = 0; h < H; ++h) {
        // (1 - decay^l)^T C = C~
        const Dense missing = remainder(h, config.kernel_length);
        for (Index row = h; row < output_.rows(); row += H) {
          const Dense c = solved(missing, whole(output_.row(row)));
          for (Index n = 0; n < M; ++n) output_(row, n) = c(n, 0);
        }
      }
    }
    coefficients_.skip = Eigen::Map<const Vector<T>>(weights.d.data(), weights.d.size()).template cast<double>();
    // A stored mode stands for two conjugates.
    coefficients_.output = 2.0 * output_.topRows(rows);
    forward_ = LowRankSystem<T>(coefficients_);
    if (direction == Direction::bidirectional) {
      LowRankCoefficients backward = coefficients_;
      backward.output = 2.0 * output_.bottomRows(rows), backward.skip = {};
      backward_ = LowRankSystem<T>(backward);
    }
  }

  Index outputs() const { return forward_.outputs(); }
  /// [2, H, M]: real parts, then imaginary ones.
  Shape state_shape() const { return forward_.state_shape(); }

  /// x [L, H], y [L, c H], output j of channel h at j H + h, from and into `state` [2, H, M]. Forward only.
  /// O(L (R + c) H M) time; allocates nothing once `workspace` is warm.
  void run(ConstSequence<T> x, HeadSequence<T> state, Sequence<T> y, Workspace& workspace) const {
    forward_.run(x, state, y, workspace);
  }

  /// The same over a whole sequence, in both directions where the core has both. O(L c H) scratch.
  void run(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    run_both_ways<LowRankSystem<T>, T>(forward_, backward_, x, y, workspace);
  }

  /// K [rows of C, length], without D, in double. By its generating function at the roots of unity, which Woodbury's identity
  /// turns into Cauchy products, and a fast Fourier transform: O(length (N R^2 + log(length))) for every row.
  Matrix<double> kernel(Index length) const {
    const Index H = pole_.rows(), R = p_.rows() / H, half = length / 2;
    Matrix<double> result(output_.rows(), length);
    if (length == 0) return result;
    const double turn = 2 * std::numbers::pi / double(length);
    Eigen::FFT<double> fourier;
    std::vector<Complex> spectrum, impulse;
    for (Index h = 0; h < H; ++h) {
      const Dense missing = remainder(h, length);
      for (Index row = h; row < output_.rows(); row += H) {
        const Dense all = missing.lazyProduct(whole(output_.row(row)));
        const ComplexArray c = all.topRows(pole_.cols()).transpose().array();
        const double dt = step_[h];
        spectrum.clear();
        for (Index j = 0; j <= half; ++j) {
          if (2 * j == length) {  // where z is infinite
            spectrum.push_back(dt * (b_.row(h) * c.row(0)).sum().real());
            continue;
          }
          const Complex root = std::polar(1.0, -turn * double(j)), z = 2.0 * (1.0 - root) / (1.0 + root);
          const auto cauchy = [&](const auto& left, const auto& right) {
            Complex sum = 0;
            for (Index n = 0; n < pole_.cols(); ++n) {
              const Complex product = left(n) * right(n);
              sum +=
                  dt * product / (z - dt * pole_(h, n)) + dt * std::conj(product) / (z - dt * std::conj(pole_(h, n)));
            }
            return sum;
          };
          const auto p = [&](Index r) { return p_.row(r * H + h); };
          Dense from(R, 1), to(R, 1), among(R, R);
          for (Index r = 0; r < R; ++r) {
            from(r, 0) = cauchy(b_.row(h), p(r).conjugate()), to(r, 0) = cauchy(p(r), c.row(0));
            for (Index q = 0; q < R; ++q) among(r, q) = (q == r ? 1.0 : 0.0) + cauchy(p(r), p(q).conjugate());
          }
          const Complex correction = from.cwiseProduct(solved(among, to)).sum();
          spectrum.push_back((cauchy(b_.row(h), c.row(0)) - correction) * 2.0 / (1.0 + root));
        }
        for (Index j = half + 1; j < length; ++j) spectrum.push_back(std::conj(spectrum[std::size_t(length - j)]));
        if (length == 1) {
          impulse = spectrum;  // the transform takes no single number
        } else {
          fourier.inv(impulse, spectrum);
        }
        for (Index l = 0; l < length; ++l) result(row, l) = impulse[std::size_t(l)].real();
      }
    }
    return result;
  }

 private:
  /// The recurrence's coefficients, but for the outputs.
  void discretize() {
    const Index H = pole_.rows(), M = pole_.cols(), R = p_.rows() / H;
    coefficients_.decay = coefficients_.input = ComplexArray(H, M);
    coefficients_.write.assign(std::size_t(R), ComplexArray(H, M)), coefficients_.read = coefficients_.write;
    coefficients_.through = LowRankCoefficients::Reals(R, H);
    for (Index h = 0; h < H; ++h) {
      const Eigen::ArrayXcd lam = pole_.row(h).transpose(), b = b_.row(h).transpose();
      const Eigen::ArrayXcd dg = 1.0 / (2 / step_[h] - lam), e = 2 / step_[h] + lam;
      const auto p = [&](Index r) -> Eigen::ArrayXcd { return p_.row(r * H + h).transpose(); };
      Dense among(R, R);
      Eigen::MatrixXd through = Eigen::MatrixXd::Identity(R, R);
      for (Index r = 0; r < R; ++r) {
        for (Index q = 0; q < R; ++q)
          among(r, q) = (r == q ? 1.0 : 0.0) + 2 * (p(r).conjugate() * dg * p(q)).sum().real();
      }
      const Dense inverse = solved(among, Dense::Identity(R, R));  // real
      std::vector<Eigen::ArrayXcd> w;
      for (Index r = 0; r < R; ++r) {
        Eigen::ArrayXcd sum = Eigen::ArrayXcd::Zero(M);
        for (Index q = 0; q < R; ++q) sum += inverse(r, q).real() * p(q).conjugate() * dg;
        w.push_back(sum);
        for (Index q = 0; q < R; ++q) through(r, q) -= 2 * (sum * p(q)).sum().real();
      }
      coefficients_.decay.row(h) = (dg * e).transpose();
      coefficients_.input.row(h) = (2.0 * dg * b).transpose();
      for (Index r = 0; r < R; ++r) {
        Eigen::ArrayXcd read = w[std::size_t(r)] * e;
        for (Index q = 0; q < R; ++q) read += through(r, q) * p(q).conjugate();
        coefficients_.write[std::size_t(r)].row(h) = (dg * p(r)).transpose();
        coefficients_.read[std::size_t(r)].row(h) = (2.0 * read).transpose();
        coefficients_.through(r, h) = 4 * (w[std::size_t(r)] * b).sum().real();
      }
    }
  }

  /// Stored numbers, then their conjugates.
  template <class Row>
  static Dense whole(const Row& stored) {
    Dense result(2 * stored.size(), 1);
    for (Index n = 0; n < stored.size(); ++n)
      result(n, 0) = stored(n), result(stored.size() + n, 0) = std::conj(stored(n));
    return result;
  }

  /// (1 - decay^length)^T of a channel, over all N modes.
  Dense remainder(Index h, Index length) const {
    const Index N = 2 * pole_.cols();
    Dense decay = Dense::Zero(N, N);
    decay.diagonal() = whole(coefficients_.decay.row(h)).col(0);
    for (std::size_t r = 0; r < coefficients_.read.size(); ++r) {
      // A stored number that is read stands for two.
      decay -= whole(coefficients_.write[r].row(h)).lazyProduct(whole(0.5 * coefficients_.read[r].row(h)).transpose());
    }
    Dense power = Dense::Identity(N, N);
    for (; length > 0; length /= 2, decay = Dense(decay.lazyProduct(decay))) {
      if (length % 2 == 1) power = Dense(power.lazyProduct(decay));
    }
    return (Dense::Identity(N, N) - power).transpose();
  }

  ComplexArray pole_, b_, p_, output_;  // [H, M], of P R times; C
  Eigen::ArrayXd step_;                 // [H]
  LowRankCoefficients coefficients_;
  LowRankSystem<T> forward_, backward_;
};

/// The layer of S4.
template <std::floating_point T, Direction way = Direction::causal>
using S4 = StateSpaceLayer<S4Core<T>, way>;

static_assert(RecurrentMixer<S4<float>>);
static_assert(Mixer<S4<float, Direction::bidirectional>>);
static_assert(!CausalMixer<S4<float, Direction::bidirectional>>);

}  // namespace seqmix::inline SEQMIX_ARCH
