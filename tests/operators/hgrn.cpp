// HGRN: the core function, and the layers of flash-linear-attention and of the authors.
#include <cmath>
#include <complex>
#include <memory>
#include <seqmix/engine/memory.hpp>
#include <seqmix/recurrent/hgrn.hpp>

#include "support/recurrence_golden.hpp"
#include "support/recurrence_reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

template <class T>
struct HgrnCoreGolden final : GoldenRunner<T> {
  explicit HgrnCoreGolden(GoldenCase& golden)
      : channels(golden.config().integer("channels")),
        log_decay(golden.array<T>("input.g", {-1, channels})),
        input(golden.array<T>("input.x", {log_decay.size(0), channels})),
        output({log_decay.size(0), channels}),
        initial({channels}) {
    golden.config().expect("causal", true);
    golden.config().ignore("g");
    golden.config().ignore("recurrence");
    if (golden.has("input.state.h")) initial = golden.array<T>("input.state.h", {channels});
  }
  Index length() const override { return input.size(0); }
  void reset() override { state = initial; }
  void run(Index begin, Index count) override {
    hgrn<T>(log_decay.sequence().rows(begin, count), input.sequence().rows(begin, count), state.token(),
            output.sequence().rows(begin, count), this->workspace);
  }
  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", output);
    outputs.add("state.h", state);
  }

  Index channels;
  GoldenArray<T> log_decay, input, output, initial, state;
};

/// The weights of a layer M with `channels` forget gates, whose lower bounds are an input of the file, or one number in its
/// config, unless they are not to be used.
template <class M>
typename M::Weights weights_with_bound(GoldenCase& golden, Index channels, bool use_bound = true) {
  using T = typename M::Scalar;
  typename M::Weights weights{};
  golden.read_weights(weights);
  auto& config = golden.config();
  const bool given = golden.has("input.lower_bound");
  if (use_bound && given) weights.lower_bound = golden.vector<T>("input.lower_bound");
  if (given || config.has_text("lower_bound")) {
    config.expect("lower_bound", "given");
  } else if (const double bound = config.number("lower_bound", 0); use_bound) {
    weights.lower_bound = Vector<T>::Constant(channels, T(bound));
  }
  golden.ignore("input.lower_bound");
  return weights;
}

template <class T>
struct FlaHgrnGolden final : GoldenLayer<Hgrn<T>> {
  using Base = GoldenLayer<Hgrn<T>>;
  using State = typename Hgrn<T>::State;

  // Layer 0 of a model does not use its bounds.
  explicit FlaHgrnGolden(GoldenCase& golden)
      : Base(golden, config(golden),
             weights_with_bound<Hgrn<T>>(
                 golden, golden.config().integer("hidden_size") * golden.config().integer("expand_ratio"),
                 golden.config().integer("layer_idx", Index(1)) > 0)) {}

  static typename Hgrn<T>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    const ConvolvedStreamsConfig convolution = convolution_of(config);
    config.expect("causal", true);
    return {.channels = config.integer("hidden_size"),
            .expand = config.integer("expand_ratio"),
            .convolve = convolution.convolve,
            .convolution_width = convolution.width,
            .convolution_bias = convolution.bias,
            .norm_eps = T(config.number("norm_eps"))};
  }
  static void for_histories(auto& state, auto&& f) { f("conv_i", state.input), f("conv_f", state.forget); }
  void read_state(GoldenCase& golden, State& state) override {
    if (golden.has("input.state.h")) golden.copy("input.state.h", state.memory);
    for_histories(state, [&](const std::string& name, Tensor<T>& field) {
      if (!golden.has("input.state." + name)) return;
      Tensor<T> given({field.shape()[1], field.shape()[0]});
      golden.copy("input.state." + name, given);
      field = transposed(given);
    });
  }
  void collect_state(const State& state, GoldenOutputs& outputs) const override {
    outputs.add("state.h", state.memory);
    for_histories(state, [&](const std::string& name, const Tensor<T>& field) {
      if (!field.empty()) outputs.add("state." + name, transposed(field));
    });
  }
};

template <class M>
struct AuthorsHgrnGolden final : GoldenLayer<M> {
  using Base = GoldenLayer<M>;
  using T = typename M::Scalar;
  using State = typename Base::State;

  explicit AuthorsHgrnGolden(GoldenCase& golden)
      : Base(golden, config(golden), weights_with_bound<M>(golden, golden.config().integer("embed_dim"))) {}

  static typename M::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    config.expect("act", "silu");
    config.expect("norm", "layernorm");
    return {.channels = config.integer("embed_dim"),
            .bias = config.boolean("bias", true),
            .norm_eps = T(config.number("norm_eps"))};
  }
  /// The parts of a complex state in files; a real one is called h.
  static std::string part(std::size_t which, std::size_t parts) {
    return parts == 1 ? "state.h" : which == 0 ? "state.h_real" : "state.h_imag";
  }
  void read_state([[maybe_unused]] GoldenCase& golden, [[maybe_unused]] State& state) override {
    if constexpr (RecurrentMixer<M>) {
      const std::size_t parts = std::size_t(state.memory.shape()[0]), channels = std::size_t(state.memory.shape()[1]);
      for (std::size_t p = 0; p < parts; ++p) {
        const std::string name = "input." + part(p, parts);
        if (golden.has(name)) golden.copy(name, std::span<T>(state.memory.data() + p * channels, channels));
      }
    }
  }
  void collect_state([[maybe_unused]] const State& state, [[maybe_unused]] GoldenOutputs& outputs) const override {
    if constexpr (RecurrentMixer<M>) {
      const std::size_t parts = std::size_t(state.memory.shape()[0]), channels = std::size_t(state.memory.shape()[1]);
      for (std::size_t p = 0; p < parts; ++p) {
        outputs.add(part(p, parts), std::span(state.memory.data() + p * channels, channels));
      }
    }
  }
};

/// One of the layers.
template <class T>
struct HgrnLayerGolden {
  static std::unique_ptr<GoldenRunner<T>> make(GoldenCase& golden) {
    const std::string variant = golden.config().text("variant");
    if (variant == "fla") return std::make_unique<FlaHgrnGolden<T>>(golden);
    const bool causal = golden.config().boolean("causal", true);
    constexpr Direction both = Direction::bidirectional;
    if (variant == "hgru_complex") {
      if (causal) return std::make_unique<AuthorsHgrnGolden<Hgru<T, true>>>(golden);
      return std::make_unique<AuthorsHgrnGolden<Hgru<T, true, both>>>(golden);
    }
    if (variant == "hgru_real") {
      if (causal) return std::make_unique<AuthorsHgrnGolden<Hgru<T, false>>>(golden);
      return std::make_unique<AuthorsHgrnGolden<Hgru<T, false, both>>>(golden);
    }
    golden.config().unknown("variant");
  }
};

const GoldenRegistration<HgrnCoreGolden> core_golden{"hgrn", "core"};
const GoldenRegistration<HgrnLayerGolden> layer_golden{"hgrn", "layer"};

// --- mixers -----------------------------------------------------------------------------------------------------------

/// Lower bounds from 0 to nearly 1.
Vectord random_bounds(Index size, Rng& rng) {
  return Vectord::NullaryExpr(size, [&] { return std::max(0.0, 1 - std::exp(rng.uniform(-9, 0.5))); });
}

double bound_of(const Vectord& bounds, Index c) { return bounds.size() > 0 ? bounds[c] : 0; }

struct HgrnTests {
  static constexpr const char* name = "hgrn";
  template <class T>
  using Mixer = Hgrn<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    return {{"one channel", {.channels = 1}},
            {"5 channels, convolved, with biases", {.channels = 5, .convolve = true, .convolution_bias = true}},
            {"16 channels, expanded", {.channels = 16, .expand = 3, .norm_eps = T(1e-3)}},
            {"random",
             {.channels = rng.integer(1, 30),
              .expand = rng.integer(1, 3),
              .convolve = true,
              .convolution_width = rng.integer(1, 6)}}};
  }
  static Hgrn<double>::Weights weights(const Hgrn<double>::Config& config, Rng& rng) {
    auto result = Hgrn<double>::random_weights(config, rng);
    stir(result, rng);
    if (config.channels > 1) result.lower_bound = random_bounds(result.norm.size(), rng);
    return result;
  }
  static Matrixd reference(const Hgrn<double>::Config& config, const Hgrn<double>::Weights& weights, const Matrixd& x) {
    const Matrixd f =
        short_convolution(linear(x, weights.forget), weights.forget_convolution, weights.forget_convolution_bias);
    const Matrixd i =
        short_convolution(linear(x, weights.input), weights.input_convolution, weights.input_convolution_bias);
    Matrixd h = Matrixd::Zero(x.rows(), f.cols());
    for (Index c = 0; c < h.cols(); ++c) {
      const double b = bound_of(weights.lower_bound, c);
      for (Index t = 0; t < h.rows(); ++t) {
        if (t > 0) h(t, c) = (b + (1 - b) * sigmoid(f(t, c))) * h(t - 1, c);
        h(t, c) += (1 - b) * sigmoid(-f(t, c)) * silu(i(t, c));
      }
    }
    const Matrixd gate = map(linear(x, weights.gate), silu);
    return linear(rms_norm(h, config.norm_eps, weights.norm).cwiseProduct(gate), weights.output);
  }
};

/// The authors' layer: complex or real, in one direction or both.
template <bool complex, Direction way>
struct HgruTests {
  static constexpr const char* name = complex
                                          ? way == Direction::causal ? "hgrn, complex" : "hgrn, complex, bidirectional"
                                      : way == Direction::causal ? "hgrn, real"
                                                                 : "hgrn, real, bidirectional";
  template <class T>
  using Mixer = Hgru<T, complex, way>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    return {{"one channel", {.channels = 1}},
            {"5 channels, no biases", {.channels = 5, .bias = false}},
            {"random", {.channels = rng.integer(6, 40), .norm_eps = T(1e-3)}}};
  }
  static typename Mixer<double>::Weights weights(const typename Mixer<double>::Config& config, Rng& rng) {
    auto result = Mixer<double>::random_weights(config, rng);
    stir(result, rng);
    if (config.channels > 1) result.lower_bound = random_bounds(config.channels, rng);
    return result;
  }
  static Matrixd reference(const typename Mixer<double>::Config& config, const typename Mixer<double>::Weights& weights,
                           const Matrixd& x) {
    using Number = std::complex<double>;
    const Index D = config.channels, parts = complex ? 2 : 1, L = x.rows();
    const Matrixd z = map(linear(x, weights.input, weights.input_bias), silu);
    const Matrixd f = linear(x, weights.forget, weights.forget_bias);
    Matrixd feature = Matrixd::Zero(L, parts * D);
    for (Index c = 0; c < D; ++c) {
      const double b = bound_of(weights.lower_bound, c);
      const Number turn = complex ? std::polar(1.0, weights.phase[c]) : Number(1);
      for (const bool backward : {false, true}) {
        if (backward && way == Direction::causal) continue;
        Number h = 0;
        for (Index step = 0; step < L; ++step) {
          const Index t = backward ? L - 1 - step : step;
          const Number in = complex ? Number(z(t, 2 * c), z(t, 2 * c + 1)) : Number(z(t, c));
          if (step > 0) h *= (b + (1 - b) * sigmoid(f(t, c))) * turn;
          h += (1 - b) * sigmoid(-f(t, c)) * in;
          feature(t, c) += h.real();
          if (complex) feature(t, D + c) += h.imag();
        }
      }
    }
    const Matrixd gate = map(linear(x, weights.gate, weights.gate_bias), silu);
    return linear(layer_norm(feature, config.norm_eps, weights.norm_weight, weights.norm_bias).cwiseProduct(gate),
                  weights.output, weights.output_bias);
  }
};

/// Gates from e^-60 to 1 - e^-16 side by side, without lower bounds.
struct ExtremeHgrnTests : HgrnTests {
  static constexpr const char* name = "hgrn, extreme gates";

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng&) {
    return {{"16 channels", {.channels = 16}}};
  }
  static Hgrn<double>::Weights weights(const Hgrn<double>::Config& config, Rng& rng) {
    auto result = Hgrn<double>::random_weights(config, rng);
    stir(result, rng);
    for (Index c = 0; c < result.forget.rows(); ++c) result.forget.row(c) *= std::exp(rng.uniform(0, 4));
    return result;
  }
};

const MixerRegistration<HgrnTests> mixer;
const MixerRegistration<ExtremeHgrnTests> extreme_mixer;
const MixerRegistration<HgruTests<true, Direction::causal>> complex_mixer;
const MixerRegistration<HgruTests<true, Direction::bidirectional>> complex_bidirectional_mixer;
const MixerRegistration<HgruTests<false, Direction::causal>> real_mixer;
const MixerRegistration<HgruTests<false, Direction::bidirectional>> real_bidirectional_mixer;

}  // namespace
}  // namespace seqmix::test
