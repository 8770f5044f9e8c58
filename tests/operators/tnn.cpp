// The Toeplitz neural operator and its gated unit, in both directions.
#include <cmath>
#include <seqmix/convolution/tnn.hpp>

#include "support/golden.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

ToeplitzActivation read_activation(GoldenConfig& config, const char* key, const char* otherwise) {
  const std::string text = config.text(key, otherwise);
  if (text == "none") return ToeplitzActivation::none;
  if (text == "relu") return ToeplitzActivation::relu;
  if (text == "silu" || text == "swish") return ToeplitzActivation::swish;
  if (text == "sigmoid") return ToeplitzActivation::logistic;
  if (text == "exp") return ToeplitzActivation::exponential;
  config.unknown(key);
}

ToeplitzConfig read_toeplitz(GoldenCase& golden, Index length) {
  auto& config = golden.config();
  const std::string decay = config.text("decay", "none");
  if (decay != "none" && decay != "fixed" && decay != "multi") config.unknown("decay");
  const Index parts = config.integer("par_type", Index(1));
  if (parts != 1 && parts != 2) config.unknown("par_type");
  config.ignore("norm");
  return {.lags = length,
          .heads = config.integer("heads"),
          .width = config.integer("rpe_dim"),
          .layers = config.integer("rpe_layers"),
          .residual = config.boolean("residual", false),
          .inner_activation = read_activation(config, "rpe_act", "relu"),
          .activation = read_activation(config, "act_type", "none"),
          .position = parts == 1 ? ToeplitzPosition::lag : ToeplitzPosition::part_of_length,
          .decay = decay == "none"    ? ToeplitzDecay::none
                   : decay == "fixed" ? ToeplitzDecay::fixed
                                      : ToeplitzDecay::learned,
          .gamma = config.number("gamma", 0.99),
          .normalize = config.boolean("normalize", false)};
}

template <class T, Direction way>
struct TnnCoreGolden final : GoldenRunner<T> {
  explicit TnnCoreGolden(GoldenCase& golden) : x(golden.array<T>("input.x")), y(x.shape()) {
    auto& config = golden.config();
    config.expect("head_dim", x.size(2));
    ToeplitzWeights<T> weights;
    golden.read_weights(weights);
    core = ToeplitzOperator<T, way>(read_toeplitz(golden, x.size(0)), x.size(1) * x.size(2), weights);
  }
  Index length() const override { return x.size(0); }
  bool stepwise() const override { return way == Direction::causal; }
  void reset() override { past = way == Direction::causal ? Tensor<T>(core.state_shape()) : Tensor<T>(); }
  void run([[maybe_unused]] Index begin, [[maybe_unused]] Index count) override {
    if constexpr (way == Direction::causal) {
      core.run(past.data(), begin, x.heads().rows(begin, count).flat(), y.heads().rows(begin, count).flat(),
               this->workspace);
    }
  }
  void whole() override { core.forward(x.heads().flat(), y.heads().flat(), this->workspace); }
  void collect(GoldenOutputs& outputs) const override { outputs.add("y", y); }

  GoldenArray<T> x, y;
  ToeplitzOperator<T, way> core;
  Tensor<T> past;
};

template <class T, Direction way>
struct TnnLayerGolden final : GoldenLayer<Tnn<T, way>> {
  explicit TnnLayerGolden(GoldenCase& golden) : GoldenLayer<Tnn<T, way>>(golden, config(golden)) {}

  static typename Tnn<T, way>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    config.expect("act", "silu");
    const Index heads = config.integer("heads"), channels = config.integer("dim");
    const Index inner = Index(config.number("expand_ratio") * double(channels)) / heads * heads;
    return {.channels = channels,
            .inner_channels = inner,
            .normalize_rows = config.boolean("use_norm", false),
            .toeplitz = read_toeplitz(golden, golden.array<T>("input.x").size(0))};
  }
};

template <class T>
struct TnnAnyCoreGolden {
  static std::unique_ptr<GoldenRunner<T>> make(GoldenCase& golden) {
    if (golden.config().boolean("causal")) return std::make_unique<TnnCoreGolden<T, Direction::causal>>(golden);
    return std::make_unique<TnnCoreGolden<T, Direction::bidirectional>>(golden);
  }
};
template <class T>
struct TnnAnyLayerGolden {
  static std::unique_ptr<GoldenRunner<T>> make(GoldenCase& golden) {
    if (golden.config().boolean("causal")) return std::make_unique<TnnLayerGolden<T, Direction::causal>>(golden);
    return std::make_unique<TnnLayerGolden<T, Direction::bidirectional>>(golden);
  }
};

const GoldenRegistration<TnnAnyCoreGolden> core_golden{"tnn", "core"};
const GoldenRegistration<TnnAnyLayerGolden> layer_golden{"tnn", "layer"};

template <Direction way>
struct TnnTests {
  static constexpr const char* name = way == Direction::causal ? "tnn" : "tnn, bidirectional";
  template <class T>
  using Mixer = Tnn<T, way>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    return {{"one channel, one lag", {.channels = 1, .toeplitz = {.lags = 1, .width = 1, .layers = 0}}},
            {"five channels, 150 lags that fade",
             {.channels = 5,
              .normalize_rows = true,
              .toeplitz =
                  {.lags = 150, .heads = 3, .width = 6, .layers = 2, .decay = ToeplitzDecay::fixed, .gamma = 0.98}}},
            {"600 lags, normalised",
             {.channels = 4,
              .inner_channels = 6,
              .toeplitz = {.lags = 600,
                           .heads = 2,
                           .width = 4,
                           .layers = 1,
                           .activation = ToeplitzActivation::exponential,
                           .position = ToeplitzPosition::part_of_length,
                           .normalize = true}}},
            {"200 lags, balanced",
             {.channels = 2, .schedule = StreamingSchedule::balanced, .toeplitz = {.lags = 200, .width = 4}}},
            {"20 lags, learned decays, residual",
             {.channels = 3,
              .inner_channels = 17,
              .toeplitz = {.lags = 20,
                           .width = 5,
                           .layers = 3,
                           .residual = true,
                           .inner_activation = ToeplitzActivation::swish,
                           .activation = ToeplitzActivation::logistic,
                           .decay = ToeplitzDecay::learned,
                           .gamma = 0.9,
                           .normalize = true}}},
            {"random", {.channels = rng.integer(1, 12), .toeplitz = {.lags = rng.integer(65, 300), .width = 8}}}};
  }

  static typename Mixer<double>::Weights weights(const typename Mixer<double>::Config& config, Rng& rng) {
    auto result = Mixer<double>::random_weights(config, rng);
    const Matrixd gamma = result.toeplitz.gamma;
    stir(result, rng);
    result.toeplitz.gamma = gamma;  // fading
    return result;
  }

  static double activated(double z, ToeplitzActivation activation) {
    if (activation == ToeplitzActivation::relu) return z < 0 ? 0 : z;
    if (activation == ToeplitzActivation::swish) return silu(z);
    if (activation == ToeplitzActivation::logistic) return sigmoid(z);
    if (activation == ToeplitzActivation::exponential) return std::exp(z);
    return z;
  }

  static Matrixd reference(const typename Mixer<double>::Config& config, const typename Mixer<double>::Weights& weights,
                           const Matrixd& x) {
    const Index L = x.rows(), E = config.inner(), n = config.toeplitz.lags;
    const auto& t = config.toeplitz;
    const auto& w = weights.toeplitz;
    const auto norm = [&](Matrixd a) {
      a /= std::sqrt(a.squaredNorm() / double(a.cols())) + 1e-8;
      return a;
    };
    const auto coefficients = [&](Index lag) {
      Matrixd position(1, 1);
      position(0, 0) = double(lag);
      if (t.position == ToeplitzPosition::part_of_length) position(0, 0) /= double(n - 1);
      const auto act = [&](double z) { return activated(z, t.inner_activation); };
      Matrixd a = linear(position, w.first, w.first_bias);
      for (std::size_t i = 0; i < std::size_t(t.layers); ++i) {
        Matrixd next = linear(map(norm(a), act), w.layer[i], w.bias[i]);
        a = t.residual ? Matrixd(next + a) : next;
      }
      Matrixd c = linear(map(norm(a), act), w.last, w.last_bias);
      for (Index e = 0; e < E; ++e) {
        double g = 1;
        if (t.decay == ToeplitzDecay::fixed) g = w.gamma.data()[e];
        if (t.decay == ToeplitzDecay::learned) g = t.gamma + (1 - t.gamma) * sigmoid(w.gamma.data()[e]);
        c(0, e) = activated(std::pow(g, double(std::abs(lag))) * c(0, e), t.activation);
      }
      return c;
    };
    const Matrixd value = map(linear(x, weights.value, weights.value_bias), silu);
    const Matrixd gate = map(linear(x, weights.gate, weights.gate_bias), silu);
    const Index most = std::min(n, L);
    std::vector<Matrixd> later, earlier;
    for (Index lag = 0; lag < most; ++lag) {
      later.push_back(coefficients(lag));
      if (way == Direction::bidirectional) earlier.push_back(coefficients(-lag));
    }
    Matrixd mixed(L, E);
    for (Index row = 0; row < L; ++row) {
      for (Index e = 0; e < E; ++e) {
        double sum = 0, ones = 0;
        for (Index s = 0; s < L; ++s) {
          const Index lag = row - s;
          if (std::abs(lag) >= n || (lag < 0 && way == Direction::causal)) continue;
          const double c = lag >= 0 ? later[std::size_t(lag)](0, e) : earlier[std::size_t(-lag)](0, e);
          sum += c * value(s, e), ones += c;
        }
        mixed(row, e) = gate(row, e) * (t.normalize ? sum / ones : sum);
      }
      if (config.normalize_rows) mixed.row(row) = norm(mixed.row(row));
    }
    return linear(mixed, weights.output, weights.output_bias);
  }
};

const MixerRegistration<TnnTests<Direction::causal>> causal;
const MixerRegistration<TnnTests<Direction::bidirectional>> bidirectional;

}  // namespace
}  // namespace seqmix::test
