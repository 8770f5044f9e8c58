// LRU: the unit and the layer.
#include <cmath>
#include <complex>
#include <seqmix/ssm/lru.hpp>

#include "support/golden.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

/// The parts of a state [2, N] in files.
constexpr const char* parts[] = {"state.h.real", "state.h.imag"};

template <class M>
struct LruGolden : GoldenLayer<M> {
  using T = typename M::Scalar;
  using State = typename M::State;

  explicit LruGolden(GoldenCase& golden) : GoldenLayer<M>(golden, config(golden)) {}

  static typename M::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    typename M::Config result;
    result.channels = config.integer("d_model");
    result.state_dim = config.integer("d_hidden");
    config.expect("causal", true);
    if constexpr (requires { result.normalize_first; }) {
      result.normalize_first = config.boolean("prenorm");
      result.norm_eps = T(config.number("eps"));
      config.expect("norm", "layer");
      config.expect("gelu", "tanh");
      config.expect("dense_layout", "flax kernel (in,out)");
      config.expect("output", "out1(g)*sigmoid(out2(g))");
      config.expect("residual", true);
    }
    return result;
  }
  void read_state(GoldenCase& golden, State& state) override {
    const std::size_t states = state.memory.size() / 2;
    for (std::size_t part = 0; part < 2; ++part) {
      const std::string name = std::string("input.") + parts[part];
      if (golden.has(name)) golden.copy(name, std::span<T>(state.memory.data() + part * states, states));
    }
  }
  void collect_state(const State& state, GoldenOutputs& outputs) const override {
    const std::size_t states = state.memory.size() / 2;
    for (std::size_t part = 0; part < 2; ++part) {
      outputs.add(parts[part], std::span(state.memory.data() + part * states, states));
    }
  }
};

template <class T>
struct LruUnitGolden final : LruGolden<Lru<T>> {
  using LruGolden<Lru<T>>::LruGolden;
};
template <class T>
struct LruLayerGolden final : LruGolden<LruLayer<T>> {
  using LruGolden<LruLayer<T>>::LruGolden;
};

const GoldenRegistration<LruUnitGolden> core_golden{"lru", "core"};
const GoldenRegistration<LruLayerGolden> layer_golden{"lru", "layer"};

// --- mixers -----------------------------------------------------------------------------------------------------------

Matrixd lru_unit(const Lru<double>::Weights& weights, const Matrixd& x) {
  using Complex = std::complex<double>;
  const Index N = weights.decay_log.size();
  std::vector<Complex> h(std::size_t(N), 0.0);
  Matrixd y(x.rows(), x.cols());
  for (Index t = 0; t < x.rows(); ++t) {
    for (Index n = 0; n < N; ++n) {
      Complex in = 0;
      for (Index c = 0; c < x.cols(); ++c) in += Complex(weights.input_real(n, c), weights.input_imag(n, c)) * x(t, c);
      const Complex lambda = std::exp(Complex(-std::exp(weights.decay_log[n]), std::exp(weights.phase_log[n])));
      h[std::size_t(n)] = lambda * h[std::size_t(n)] + std::exp(weights.scale_log[n]) * in;
    }
    for (Index c = 0; c < x.cols(); ++c) {
      y(t, c) = weights.skip[c] * x(t, c);
      for (Index n = 0; n < N; ++n) {
        y(t, c) += (Complex(weights.output_real(c, n), weights.output_imag(c, n)) * h[std::size_t(n)]).real();
      }
    }
  }
  return y;
}

struct LruTests {
  static constexpr const char* name = "lru";
  template <class T>
  using Mixer = Lru<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    return {{"one channel, one state", {.channels = 1}},
            {"5 channels, 3 states", {.channels = 5, .state_dim = 3}},
            {"random", {.channels = rng.integer(1, 30), .state_dim = rng.integer(1, 70)}}};
  }
  static Matrixd reference(const Lru<double>::Config&, const Lru<double>::Weights& weights, const Matrixd& x) {
    return lru_unit(weights, x);
  }
};

struct LruLayerTests {
  static constexpr const char* name = "lru, the layer";
  template <class T>
  using Mixer = LruLayer<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    return {
        {"6 channels, 8 states", {.channels = 6, .state_dim = 8}},
        {"9 channels, norm last", {.channels = 9, .normalize_first = false, .norm_eps = T(1e-3)}},
        {"random",
         {.channels = rng.integer(2, 30), .state_dim = rng.integer(1, 40), .normalize_first = rng.integer(0, 1) == 1}}};
  }
  static Matrixd reference(const LruLayer<double>::Config& config, const LruLayer<double>::Weights& weights,
                           const Matrixd& x) {
    const auto normalized = [&](const Matrixd& of) {
      return layer_norm(of, config.norm_eps, weights.norm_weight, weights.norm_bias);
    };
    const Matrixd g = map(lru_unit(weights.unit, config.normalize_first ? normalized(x) : x), [](double v) {
      return 0.5 * v * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (v + 0.044715 * v * v * v)));
    });
    const Matrixd value = linear(g, weights.value.transpose(), weights.value_bias);
    const Matrixd gate = map(linear(g, weights.gate.transpose(), weights.gate_bias), sigmoid);
    const Matrixd y = x + value.cwiseProduct(gate);
    return config.normalize_first ? y : normalized(y);
  }
};

const MixerRegistration<LruTests> mixer;
const MixerRegistration<LruLayerTests> layer_mixer;

}  // namespace
}  // namespace seqmix::test
