// Gated Hyena: two gates around a long convolution whose filter is a sum of modes, so that it is a recurrence too.
//
//   Source    togethercomputer/stripedhyena, stripedhyena/model.py (ParallelHyenaFilter, ParallelGatedConvBlock); Massaroli et
//             al. 2023, arXiv:2310.18780 (modal filters)
//   Glossary  L length   D channels   H heads   P = D / H width of a head   G channels of a filter   N modes of a filter
//             w width of the short convolution
//   Engine    engine/scan_time_invariant.hpp; parts/short_convolution.hpp
//   Size      a core with filters of modes and their steps, and a layer
//
// Core:   u [L, 3 D], after a short convolution, is x2, x1 and v: blocks of D channels, or of P in every head (column_split)
//         s_t[n] = pole[n] s_{t-1}[n] + x1_t v_t,   y_t = x2_t (Re sum over n of residue[n] s_t[n] + D x1_t v_t)
//         which is a convolution with Re sum over n of residue[n] pole[n]^l: no conjugates, no factor 2.
// Layer:  u = W x + b,   y = W_out core(u) + b_out
// Differs   from the authors' code in that the parallel path is a scan, for any length, and in that filters of several channels
//           can be stepped, and need not be as many as the channels of each.
#pragma once

#include <cmath>
#include <numbers>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/scan_time_invariant.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/row.hpp>
#include <seqmix/parts/short_convolution.hpp>
#include <seqmix/parts/state_space.hpp>

namespace seqmix::inline SEQMIX_ARCH {

struct GatedHyenaConfig {
  Index channels = 0;
  Index heads = 1;           ///< H, matters where columns are split
  Index modes = 8;           ///< N
  Index short_width = 3;     ///< w
  bool column_split = true;  ///< x2, x1 and v of a head lie together, not those of all heads
  Index filter_groups = 1;   ///< G, so many successive channels share a filter

  Index head_dim() const { return channels / heads; }
  Index filters() const { return channels / filter_groups; }
};

template <class T>
struct GatedHyenaWeights {
  Matrix<T> poles, residues;    // [D / G N, 2]: real and imaginary part
  Vector<T> skip;               // D [D]
  Matrix<T> short_filter;       // [3 D, w]; the last column meets the current token
  Vector<T> short_filter_bias;  // [3 D]

  template <class Self, class Visitor>
  static void visit(Self& self, Visitor&& visitor) {
    visitor("poles", self.poles, Presence::required);
    visitor("residues", self.residues, Presence::required);
    visitor("D", self.skip, Presence::required);
    visitor("short_filter_weight", self.short_filter, Presence::required);
    visitor("short_filter_bias", self.short_filter_bias, Presence::required);
  }
};

template <class T>
struct GatedHyenaState {
  Tensor<T> inputs;  // [w - 1, 3 D] of the short convolution, oldest first
  Tensor<T> modes;   // [2, D, N]: real parts, then imaginary ones

  template <class Self, class Visitor>
  static void visit(Self& self, Visitor&& visitor) {
    visitor("inputs", self.inputs), visitor("modes", self.modes);
  }
};

/// The core.
template <std::floating_point T>
class GatedHyenaCore {
 public:
  static constexpr std::string_view name = "gated_hyena";

  GatedHyenaCore() = default;

  /// Packs the weights. Throws std::invalid_argument unless their shapes follow from `config`.
  GatedHyenaCore(const GatedHyenaConfig& config, const GatedHyenaWeights<T>& weights) : config_(config) {
    check(config);
    const Index D = config.channels, N = config.modes;
    expect_tensor(name, "D", {D}, weights.skip);
    expect_tensor(name, "short_filter_weight", {3 * D, config.short_width}, weights.short_filter);
    expect_tensor(name, "short_filter_bias", {3 * D}, weights.short_filter_bias);
    const auto of_channels = [&](std::string_view tensor, const Matrix<T>& parts) {
      const ComplexArray filters = read_complex(name, tensor, parts, config.filters(), N);
      ComplexArray result(D, N);
      for (Index d = 0; d < D; ++d) result.row(d) = filters.row(d / config.filter_groups);
      return result;
    };
    poles_ = of_channels("poles", weights.poles);
    residues_ = of_channels("residues", weights.residues);
    const auto parts = [](const ComplexArray& numbers) -> ComplexMatrix<T> {
      return {numbers.real().template cast<T>(), numbers.imag().template cast<T>()};
    };
    system_ = DiagonalSystem<T, true>(name, parts(poles_ - Complex(1)), parts(ComplexArray::Constant(D, N, Complex(1))),
                                      parts(residues_), weights.skip);
    short_ = ShortConvolution<T>(name, weights.short_filter, weights.short_filter_bias, ConvolutionActivation::none,
                                 config.short_width - 1);
  }

  /// Throws std::invalid_argument unless there is such a core.
  static void check(const GatedHyenaConfig& config) {
    expect_divides(name, "config.heads", config.heads, "channels", config.channels);
    expect_divides(name, "config.filter_groups", config.filter_groups, "channels", config.channels);
    expect(config.modes > 0 && config.short_width > 0, name, "config.modes", "must be positive, as must short_width");
  }

  /// The empty state: 3 D (w - 1) + 2 D N zeros.
  GatedHyenaState<T> initial_state() const { return {short_.initial_state(), Tensor<T>(system_.state_shape())}; }

  /// Throws std::invalid_argument unless the state has this core's shapes.
  void check_state(const GatedHyenaState<T>& state) const {
    short_.check_state(name, "state.inputs", state.inputs);
    expect_shape(name, "state.modes", system_.state_shape(), state.modes.shape());
  }

  /// The next rows of several sequences: u [total, 3 D], y [total, D], from and into the states. O(D (w + N)) time for each token
  /// on all threads of the workspace; allocates nothing once it is warm.
  void run(const SequenceBatch<GatedHyenaState<T>>& batch, ConstSequence<T> u, Sequence<T> y,
           Workspace& workspace) const {
    const Index D = config_.channels, N = config_.modes;
    const auto streams = short_.apply(batch, &GatedHyenaState<T>::inputs, u, workspace);
    const auto gated = workspace.sequence<T>(u.length(), D), mixed = workspace.sequence<T>(u.length(), D);
    const auto product = [](const Batch<T>& a, const Batch<T>& b) SEQMIX_INLINE_LAMBDA { return a * b; };
    // Heads of rows: all of them one where columns are not split.
    const Index heads = config_.column_split ? config_.heads : 1, P = D / heads;
    const auto for_heads = [&](const auto& body) {
      workspace.for_row_blocks(u.length(), [&](Index begin, Index count) {
        for (Index t = begin; t < begin + count; ++t) {
          for (Index h = 0; h < heads; ++h) body(t, h * P, streams.row(t) + h * 3 * P);
        }
      });
    };
    for_heads([&](Index t, Index c, const T* from) { map_row(P, gated.row(t) + c, product, from + P, from + 2 * P); });
    for (Index b = 0; b < batch.size(); ++b) {
      const auto rows = [&](const auto& view) { return view.rows(batch.begin(b), batch.length(b)); };
      system_.run(rows(gated), {batch.state(b).modes.data(), 2, D, N, D * N, N}, rows(mixed), workspace);
    }
    for_heads([&](Index t, Index c, const T* from) {
      map_row(P, y.row(t) + c, product, from, static_cast<const T*>(mixed.row(t) + c));
    });
  }

  /// The filter [D, length], without D, in double. O(length) for every mode.
  Matrix<double> filter(Index length) const {
    Matrix<double> result = Matrix<double>::Zero(poles_.rows(), length);
    for (Index d = 0; d < poles_.rows(); ++d) {
      for (Index n = 0; n < poles_.cols(); ++n) {
        for (Index l = 0; l < length; ++l) {
          // Not by a product of poles, whose phase would drift.
          result(d, l) += (residues_(d, n) * (l == 0 ? Complex(1) : std::pow(poles_(d, n), double(l)))).real();
        }
      }
    }
    return result;
  }

 private:
  GatedHyenaConfig config_;
  ComplexArray poles_, residues_;  // [D, N]
  DiagonalSystem<T, true> system_;
  ShortConvolution<T> short_;
};

/// The layer.
template <std::floating_point T>
class GatedHyena : public RecurrentMixerBase<GatedHyena<T>, T> {
 public:
  static constexpr std::string_view name = GatedHyenaCore<T>::name;
  static constexpr StateGrowth growth = StateGrowth::constant;
  using Config = GatedHyenaConfig;
  using State = GatedHyenaState<T>;

  struct Weights {
    Matrix<T> input, output;            // [3 D, D], [D, D]
    Vector<T> input_bias, output_bias;  // [3 D], [D], or absent
    GatedHyenaWeights<T> core;

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("projections.weight", self.input, Presence::required);
      visitor("projections.bias", self.input_bias, Presence::optional);
      visitor("out_filter_dense.weight", self.output, Presence::required);
      visitor("out_filter_dense.bias", self.output_bias, Presence::optional);
      visitor("filter.poles", self.core.poles, Presence::required);
      visitor("filter.residues", self.core.residues, Presence::required);
      visitor("filter.D", self.core.skip, Presence::required);
      visitor("filter.short_filter_weight", self.core.short_filter, Presence::required);
      visitor("filter.short_filter_bias", self.core.short_filter_bias, Presence::required);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless their shapes follow from `config`.
  GatedHyena(const Config& config, const Weights& weights) : config_(config), core_(config, weights.core) {
    const Index D = config.channels;
    expect_tensor(name, "projections.weight", {3 * D, D}, weights.input);
    expect_tensor(name, "out_filter_dense.weight", {D, D}, weights.output);
    if (weights.input_bias.size() > 0) expect_tensor(name, "projections.bias", {3 * D}, weights.input_bias);
    if (weights.output_bias.size() > 0) expect_tensor(name, "out_filter_dense.bias", {D}, weights.output_bias);
    input_ = Linear<T>(weights.input, weights.input_bias), output_ = Linear<T>(weights.output, weights.output_bias);
  }

  /// As torch begins projections and convolutions; poles of any phase with magnitudes from 0.5 to 0.999, residues and D normal.
  static Weights random_weights(const Config& config, Rng& rng) {
    GatedHyenaCore<T>::check(config);
    const Index D = config.channels, modes = config.filters() * config.modes;
    const double limit = std::pow(double(D), -0.5), short_limit = std::pow(double(config.short_width), -0.5);
    Weights weights;
    weights.input = random_projection<T>(3 * D, D, rng), weights.output = random_projection<T>(D, D, rng);
    weights.input_bias = uniform_vector<T>(3 * D, -limit, limit, rng);
    weights.output_bias = uniform_vector<T>(D, -limit, limit, rng);
    weights.core.poles = Matrix<T>(modes, 2);
    for (Index i = 0; i < modes; ++i) {
      const Complex pole = std::polar(rng.uniform(0.5, 0.999), rng.uniform(-std::numbers::pi, std::numbers::pi));
      weights.core.poles(i, 0) = T(pole.real()), weights.core.poles(i, 1) = T(pole.imag());
    }
    weights.core.residues = normal_matrix<T>(modes, 2, std::pow(double(config.modes), -0.5), rng);
    weights.core.skip = normal_matrix<T>(D, 1, 1.0, rng).col(0);
    weights.core.short_filter = uniform_matrix<T>(3 * D, config.short_width, short_limit, rng);
    weights.core.short_filter_bias = uniform_vector<T>(3 * D, -short_limit, short_limit, rng);
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }
  const GatedHyenaCore<T>& core() const { return core_; }

  State initial_state() const { return core_.initial_state(); }
  void check_state(const State& state) const { core_.check_state(state); }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const auto mixed = workspace.sequence<T>(x.length(), channels());
    core_.run(batch, input_.apply(x, workspace), mixed, workspace);
    output_.apply(mixed, y, workspace);
  }

 private:
  Config config_;
  GatedHyenaCore<T> core_;
  Linear<T> input_, output_;
};

static_assert(RecurrentMixer<GatedHyena<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
