// S5: the core and its layer.
#include <cmath>
#include <complex>
#include <seqmix/ssm/s5.hpp>
#include <string>

#include "support/golden.hpp"
#include "support/long_sequences.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

template <class T>
typename S5Core<T>::Config read_core(GoldenCase& golden) {
  auto& config = golden.config();
  typename S5Core<T>::Config result;
  result.channels = config.integer("d_model");
  result.conjugates = config.boolean("conj_sym", true);
  const Index states = config.integer("state_dim");
  result.modes = config.integer("stored_state", result.conjugates ? states / 2 : states);
  const std::string rule = config.text("discretization", "zoh");
  if (rule != "zoh" && rule != "bilinear") config.unknown("discretization");
  result.discretization = rule == "zoh" ? Discretization::zoh : Discretization::bilinear;
  result.clip = config.boolean("clip_eigs", false);
  result.step_rescale = config.number("step_rescale", 1);
  config.ignore("blocks");  // of the initialisation
  return result;
}

Direction read_direction(GoldenCase& golden) {
  auto& config = golden.config();
  const bool both = config.boolean("bidirectional", false);
  config.expect("causal", !both);
  return both ? Direction::bidirectional : Direction::causal;
}

template <class State>
void collect_modes(const State& modes, GoldenOutputs& outputs) {
  const std::size_t half = modes.size() / 2;
  outputs.add("state.x.real", std::vector(modes.data(), modes.data() + half));
  outputs.add("state.x.imag", std::vector(modes.data() + half, modes.data() + 2 * half));
}

template <class State>
void read_modes(GoldenCase& golden, State& modes) {
  if (!golden.has("input.state.x.real")) return;
  using T = std::remove_cvref_t<decltype(*modes.data())>;
  const std::size_t half = modes.size() / 2;
  golden.copy("input.state.x.real", std::span<T>(modes.data(), half));
  golden.copy("input.state.x.imag", std::span<T>(modes.data() + half, half));
}

template <class T>
struct S5CoreGolden final : GoldenRunner<T> {
  explicit S5CoreGolden(GoldenCase& golden)
      : direction(read_direction(golden)),
        config(read_core<T>(golden)),
        x(golden.array<T>("input.x", {-1, config.channels})),
        core("s5", config, weights(golden, direction), direction),
        output(x.shape()),
        initial(core.state_shape()) {
    read_modes(golden, initial);
  }
  static typename S5Core<T>::Weights weights(GoldenCase& golden, Direction direction) {
    const bool both = direction == Direction::bidirectional;
    return {golden.vector<T>("weight.Lambda_re"),
            golden.vector<T>("weight.Lambda_im"),
            golden.matrix<T>("weight.B"),
            golden.matrix<T>(both ? "weight.C1" : "weight.C"),
            both ? golden.matrix<T>("weight.C2") : Matrix<T>(),
            golden.vector<T>("weight.D"),
            golden.vector<T>("weight.log_step")};
  }
  Index length() const override { return x.size(0); }
  bool stepwise() const override { return direction == Direction::causal; }
  void reset() override { state = initial; }
  void run(Index begin, Index count) override {
    if (direction == Direction::bidirectional) return core.run(x.sequence(), output.sequence(), this->workspace);
    core.run(std::as_const(x).sequence().rows(begin, count), Sequence<T>(state.data(), 2, config.modes),
             output.sequence().rows(begin, count), this->workspace);
  }
  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", output);
    if (direction == Direction::causal) collect_modes(state, outputs);
  }

  Direction direction;
  typename S5Core<T>::Config config;
  GoldenArray<T> x;
  S5Core<T> core;
  GoldenArray<T> output;
  Tensor<T> initial, state;
};

template <class T, Direction way>
struct S5LayerGolden final : GoldenLayer<S5<T, way>> {
  using Mixer = S5<T, way>;
  using Base = GoldenLayer<Mixer>;
  using State = typename detail::StateType<Mixer>::Type;

  explicit S5LayerGolden(GoldenCase& golden) : Base(golden, config(golden)) {}

  static typename Mixer::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    typename Mixer::Config result = read_core<T>(golden);
    const std::string activation = config.text("activation");
    if (activation == "gelu") {
      result.activation = S5Activation::plain;
    } else if (activation == "full_glu") {
      result.activation = S5Activation::full_glu;
    } else if (activation == "half_glu1") {
      result.activation = S5Activation::half_glu1;
    } else if (activation == "half_glu2") {
      result.activation = S5Activation::half_glu2;
    } else {
      config.unknown("activation");
    }
    result.norm_before = config.boolean("prenorm", true);
    result.norm_eps = T(config.number("eps", 1e-6));
    config.expect("norm", "layer");
    config.expect("gelu", "tanh");
    config.expect("residual", true);
    config.expect("dense_layout", "flax kernel (in,out)");
    return result;
  }
  void read_state(GoldenCase& golden, State& state) override {
    if constexpr (way == Direction::causal) read_modes(golden, state.modes);
  }
  void collect_state(const State& state, GoldenOutputs& outputs) const override {
    if constexpr (way == Direction::causal) collect_modes(state.modes, outputs);
  }
};

template <class T>
struct S5Layers {
  static std::unique_ptr<GoldenRunner<T>> make(GoldenCase& golden) {
    if (read_direction(golden) == Direction::causal) {
      return std::make_unique<S5LayerGolden<T, Direction::causal>>(golden);
    }
    return std::make_unique<S5LayerGolden<T, Direction::bidirectional>>(golden);
  }
};

const GoldenRegistration<S5CoreGolden> core_golden{"s5", "core"};
const GoldenRegistration<S5Layers> layer_golden{"s5", "layer"};

// --- mixer ------------------------------------------------------------------------------------------------------------

template <Direction way>
struct S5Tests {
  static constexpr const char* name = way == Direction::causal ? "s5" : "s5, bidirectional";
  template <class T>
  using Mixer = S5<T, way>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    return {{"one channel, one mode", {.channels = 1, .modes = 1}},
            {"five channels, 4 modes, bilinear, full GLU",
             {.channels = 5,
              .modes = 4,
              .discretization = Discretization::bilinear,
              .step_rescale = 0.5,
              .activation = S5Activation::full_glu}},
            {"modes for themselves, two blocks, clipped, half GLU, norm after",
             {.channels = 7,
              .modes = 6,
              .conjugates = false,
              .clip = true,
              .blocks = 2,
              .activation = S5Activation::half_glu1,
              .norm_before = false}},
            {"only GELU", {.channels = 16, .modes = 9, .activation = S5Activation::plain}},
            {"random", {.channels = rng.integer(2, 20), .modes = rng.integer(1, 40)}}};
  }

  /// Random ones whose poles stay left of the imaginary axis, and some beyond where they are clipped.
  static typename Mixer<double>::Weights weights(const typename Mixer<double>::Config& config, Rng& rng) {
    auto result = Mixer<double>::random_weights(config, rng);
    stir(result, rng);
    for (double& real : result.core.lambda_real) {
      real = config.clip ? rng.uniform(-1, 0.5) : -std::exp(rng.normal());
    }
    return result;
  }

  static Matrixd reference(const typename Mixer<double>::Config& config, const typename Mixer<double>::Weights& weights,
                           const Matrixd& x) {
    using Number = std::complex<double>;
    const auto& c = config;
    const Index H = c.channels, P = c.modes, L = x.rows();
    const auto number = [](const Matrixd& parts, Index row) {
      return Number(parts.data()[2 * row], parts.data()[2 * row + 1]);
    };
    const Matrixd u = config.norm_before ? layer_norm(x, config.norm_eps, weights.norm_weight, weights.norm_bias) : x;
    Matrixd v(L, H);
    for (Index t = 0; t < L; ++t) {
      for (Index h = 0; h < H; ++h) v(t, h) = weights.core.d[h] * u(t, h);
    }
    const auto add = [&](const Matrixd& reader, bool backward) {
      for (Index p = 0; p < P; ++p) {
        const double real = weights.core.lambda_real[p];
        const Number lambda(c.clip ? std::min(real, -1e-4) : real, weights.core.lambda_imag[p]);
        const double step = c.step_rescale * std::exp(weights.core.log_step[p]);
        Number decay = std::exp(lambda * step), scale = (decay - 1.0) / lambda;
        if (c.discretization == Discretization::bilinear) {
          const Number inverse = 1.0 / (1.0 - step / 2 * lambda);
          decay = inverse * (1.0 + step / 2 * lambda), scale = inverse * step;
        }
        Number state = 0;
        for (Index i = 0; i < L; ++i) {
          const Index t = backward ? L - 1 - i : i;
          Number input = 0;
          for (Index h = 0; h < H; ++h) input += scale * number(weights.core.b, p * H + h) * u(t, h);
          state = decay * state + input;
          for (Index h = 0; h < H; ++h) {
            v(t, h) += (c.conjugates ? 2 : 1) * (number(reader, h * P + p) * state).real();
          }
        }
      }
    };
    add(weights.core.c, false);
    if (way == Direction::bidirectional) add(weights.core.backward_c, true);
    const auto gelu_by_tanh = [](double z) {
      return 0.5 * z * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (z + 0.044715 * z * z * z)));
    };
    const Matrixd g = map(v, gelu_by_tanh);
    Matrixd result = g;
    if (config.activation != S5Activation::plain) {
      const Matrixd gate = map(linear(g, weights.out2.transpose(), weights.out2_bias), sigmoid);
      if (config.activation == S5Activation::full_glu) result = linear(g, weights.out1.transpose(), weights.out1_bias);
      if (config.activation == S5Activation::half_glu2) result = v;
      result = result.cwiseProduct(gate);
    }
    const Matrixd y = x + result;
    return config.norm_before ? y : layer_norm(y, config.norm_eps, weights.norm_weight, weights.norm_bias);
  }
};

const MixerRegistration<S5Tests<Direction::causal>> causal;
const MixerRegistration<S5Tests<Direction::bidirectional>> bidirectional;

TEST_CASE("s5: steps through many tokens give what the scan gives", "[s5]") {
  check_long_steps<S5<float>>({.channels = 3, .modes = 4});
  check_long_steps<S5<double>>({.channels = 3, .modes = 4});
}

}  // namespace
}  // namespace seqmix::test
