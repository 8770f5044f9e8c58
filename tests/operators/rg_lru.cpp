// RG-LRU: the unit and the recurrent block.
#include <cmath>
#include <numbers>
#include <seqmix/ssm/rg_lru.hpp>

#include "support/golden.hpp"
#include "support/recurrence_reference.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

/// Either mixer, told by input.segment_pos where documents start.
template <class M>
struct DocumentGolden : GoldenRunner<typename M::Scalar> {
  using T = typename M::Scalar;
  using State = typename M::State;

  DocumentGolden(GoldenCase& golden, const typename M::Config& config)
      : source(golden),
        mixer(config, weights(golden)),
        x(golden.array<T>("input.x", {-1, config.channels})),
        y({x.size(0), config.channels}),
        starts({x.size(0), 1}),
        positions(golden.indices("input.segment_pos")) {
    if (Index(positions.size()) != x.size(0)) throw GoldenError("input.segment_pos has another length");
    for (std::size_t t = 0; t < positions.size(); ++t) starts[Index(t)] = T(positions[t] == 0);
    golden.config().expect("causal", true);
    golden.config().expect("c", 8.0);
    golden.config().ignore("resets");  // follow from the positions
  }
  static typename M::Weights weights(GoldenCase& golden) {
    typename M::Weights result{};
    golden.read_weights(result);
    return result;
  }
  Index length() const override { return x.size(0); }
  void reset() override {
    state = mixer.initial_state();
    if (!positions.empty()) state.tokens = positions.front();
    this->workspace.poison();
    read_state();
  }
  void run(Index begin, Index count) override {
    mixer.prefill(state, x.sequence().rows(begin, count), starts.sequence().rows(begin, count),
                  y.sequence().rows(begin, count), this->workspace);
  }
  /// Where only the beginning is a start, if anything, there is no need to say so.
  void step(Index row) override {
    if (row > 0 && positions[std::size_t(row)] > 0) {
      mixer.step(state, x.sequence().token(row), y.sequence().token(row), this->workspace);
    } else {
      run(row, 1);
    }
  }
  virtual void read_state() = 0;

  GoldenCase& source;
  M mixer;
  GoldenArray<T> x, y, starts;
  std::vector<Index> positions;
  State state;
};

template <class T>
struct RgLruUnitGolden final : DocumentGolden<RgLru<T>> {
  using Base = DocumentGolden<RgLru<T>>;
  explicit RgLruUnitGolden(GoldenCase& golden)
      : Base(golden, {.channels = golden.config().integer("width"), .heads = golden.config().integer("heads")}) {
    golden.config().ignore("max_sqrt_gradient");
  }
  void read_state() override {
    if (this->source.has("input.state.h")) this->source.copy("input.state.h", this->state.memory);
  }
  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", this->y);
    outputs.add("state.h", this->state.memory);
  }
};

template <class T>
struct RgLruBlockGolden final : DocumentGolden<RgLruBlock<T>> {
  using Base = DocumentGolden<RgLruBlock<T>>;
  explicit RgLruBlockGolden(GoldenCase& golden)
      : Base(golden, {.channels = golden.config().integer("width"),
                      .width = golden.config().integer("lru_width"),
                      .heads = golden.config().integer("heads"),
                      .convolution_width = golden.config().integer("conv1d_temporal_width")}) {
    golden.config().expect("gelu", "tanh");
    golden.config().ignore("max_sqrt_gradient");
  }
  /// Files hold one input of the convolution less.
  std::size_t unused() const { return std::size_t(this->mixer.config().width); }
  void read_state() override {
    auto& now = this->state;
    if (this->source.has("input.state.rg_lru_state")) this->source.copy("input.state.rg_lru_state", now.memory);
    if (this->source.has("input.state.conv1d_state")) {
      this->source.copy("input.state.conv1d_state",
                        std::span<T>(now.convolution.data() + unused(), now.convolution.size() - unused()));
    }
  }
  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", this->y);
    outputs.add("state.rg_lru_state", this->state.memory);
    outputs.add("state.conv1d_state",
                std::span(this->state.convolution.data() + unused(), this->state.convolution.size() - unused()));
  }
};

const GoldenRegistration<RgLruUnitGolden> core_golden{"rg_lru", "core"};
const GoldenRegistration<RgLruBlockGolden> layer_golden{"rg_lru", "layer"};

// --- mixers -----------------------------------------------------------------------------------------------------------

Matrixd rg_lru_unit(const RgLru<double>::Weights& weights, const Matrixd& x) {
  const Index K = weights.input_gate.cols();
  Matrixd y(x.rows(), x.cols());
  for (Index c = 0; c < x.cols(); ++c) {
    const Index first = c / K * K;
    double h = 0;
    for (Index t = 0; t < x.rows(); ++t) {
      double decay = weights.decay_gate_bias(c / K, c % K), input = weights.input_gate_bias(c / K, c % K);
      for (Index i = 0; i < K; ++i) {
        decay += x(t, first + i) * weights.decay_gate(first + i, c % K);
        input += x(t, first + i) * weights.input_gate(first + i, c % K);
      }
      const double log_a = -8 * sigmoid(decay) * softplus(weights.decay[c]);
      const double size = t == 0 ? 1 : std::sqrt(-std::expm1(2 * log_a));
      h = (t == 0 ? 0 : std::exp(log_a) * h) + size * sigmoid(input) * x(t, c);
      y(t, c) = h;
    }
  }
  return y;
}

struct RgLruTests {
  static constexpr const char* name = "rg_lru";
  template <class T>
  using Mixer = RgLru<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index heads = rng.integer(1, 5);
    return {{"one channel", {.channels = 1}},
            {"three heads of 5", {.channels = 15, .heads = 3}},
            {"random", {.channels = heads * rng.integer(1, 14), .heads = heads}}};
  }
  static Matrixd reference(const RgLru<double>::Config&, const RgLru<double>::Weights& weights, const Matrixd& x) {
    return rg_lru_unit(weights, x);
  }
};

struct RgLruBlockTests {
  static constexpr const char* name = "rg_lru, the block";
  template <class T>
  using Mixer = RgLruBlock<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index heads = rng.integer(1, 4);
    return {{"6 channels, two heads of 4", {.channels = 6, .width = 8, .heads = 2}},
            {"9 channels, width 1", {.channels = 9, .convolution_width = 1}},
            {"random",
             {.channels = rng.integer(1, 20),
              .width = heads * rng.integer(1, 9),
              .heads = heads,
              .convolution_width = rng.integer(1, 6)}}};
  }
  static Matrixd reference(const RgLruBlock<double>::Config&, const RgLruBlock<double>::Weights& weights,
                           const Matrixd& x) {
    const Matrixd convolved = short_convolution(linear(x, weights.input, weights.input_bias),
                                                weights.convolution.transpose(), weights.convolution_bias);
    const Matrixd gate = map(linear(x, weights.gate, weights.gate_bias), [](double v) {
      return 0.5 * v * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (v + 0.044715 * v * v * v)));
    });
    return linear(rg_lru_unit(weights.unit, convolved).cwiseProduct(gate), weights.output, weights.output_bias);
  }
};

/// Gates that close to nothing and others that stay open.
struct ExtremeRgLruTests : RgLruTests {
  static constexpr const char* name = "rg_lru, extreme gates";

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng&) {
    return {{"two heads of 8", {.channels = 16, .heads = 2}}};
  }
  static RgLru<double>::Weights weights(const RgLru<double>::Config& config, Rng& rng) {
    auto result = RgLru<double>::random_weights(config, rng);
    stir(result, rng);
    for (Index c = 0; c < config.channels; ++c) {
      result.decay[c] = rng.uniform(-16, 60);
      result.decay_gate.row(c) *= std::exp(rng.uniform(0, 3));
    }
    return result;
  }
};

const MixerRegistration<RgLruTests> mixer;
const MixerRegistration<RgLruBlockTests> block_mixer;
const MixerRegistration<ExtremeRgLruTests> extreme_mixer;

}  // namespace
}  // namespace seqmix::test
