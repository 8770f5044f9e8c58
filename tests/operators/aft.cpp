// The attention-free transformer: the core and the layer, in both directions.
#include <algorithm>
#include <cmath>
#include <limits>
#include <seqmix/convolution/aft.hpp>

#include "support/golden.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

AftForm form(GoldenConfig& config) {
  const std::string variant = config.text("variant");
  if (variant == "full") return AftForm::full;
  if (variant == "local") return AftForm::local;
  if (variant == "simple") return AftForm::simple;
  if (variant == "conv") return AftForm::conv;
  config.unknown("variant");
}

void check_remarks(GoldenConfig& config) {
  config.expect("bias_outside_window", 0);
  config.expect("std", "unbiased (n-1)");
  config.ignore("tap");
}

template <class T>
struct AftCoreGolden final : GoldenRunner<T> {
  explicit AftCoreGolden(GoldenCase& golden) {
    GoldenConfig& config = golden.config();
    check_remarks(config);
    bias.form = form(config);
    causal = config.boolean("causal");
    bias.window = config.integer("window", Index(0));
    heads = config.integer("heads", Index(1));
    const Index dim = config.has("dim") ? config.integer("dim") : heads * config.integer("head_dim");
    for (auto& [stream, name] : {std::pair{&query, "input.q"}, {&key, "input.k"}, {&value, "input.v"}}) {
      *stream = golden.array<T>(name, {-1, dim});
    }
    output = GoldenArray<T>({query.size(0), dim});
    if (bias.form == AftForm::conv) {
      numbers = golden.matrix<T>("weight.w");
      config.expect("kernel_size", numbers.cols());
      if (config.boolean("renormalised_w", false)) {
        numbers = renormalized_aft_kernel(numbers, golden.vector<T>("weight.gamma"), golden.vector<T>("weight.beta"));
      }
    } else if (bias.form != AftForm::simple) {
      numbers = golden.matrix<T>("weight.pos_bias");
    }
    bias.numbers = numbers;
    initial = AftState<T>(bias, heads, dim / heads);
    if (!golden.has("input.state.num")) return;
    // Over e^p, p = log(den).
    const auto above = golden.array<T>("input.state.num", {dim}), below = golden.array<T>("input.state.den", {dim});
    for (Index c = 0; c < dim; ++c) {
      initial.sums[std::size_t(c)] = std::log(below[c]);
      initial.sums[std::size_t(dim + c)] = above[c] / below[c];
      initial.sums[std::size_t(3 * dim + c)] = T(1);
    }
    has_state = true;
  }
  Index length() const override { return query.size(0); }
  bool stepwise() const override { return causal; }
  void reset() override { state = initial; }
  void run(Index begin, Index count) override {
    const auto rows = [&](GoldenArray<T>& array) { return array.sequence().heads(heads).rows(begin, count); };
    aft<T>(state, rows(query), rows(key), rows(value), bias, rows(output), this->workspace);
  }
  void whole() override {
    if (has_state) return run(0, length());
    const auto all = [&](GoldenArray<T>& array) { return array.sequence().heads(heads); };
    aft<T>(all(query), all(key), all(value), bias, causal, all(output), this->workspace);
  }
  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", output);
    if (!has_state) return;
    const Index dim = output.size(1);
    std::vector<T> above, below;
    for (std::size_t c = 0; c < std::size_t(dim); ++c) {
      const auto sum = [&](std::size_t row) {
        return (state.sums[row * std::size_t(dim) + c] + state.sums[(row + 1) * std::size_t(dim) + c]) *
               std::exp(state.sums[c]);
      };
      above.push_back(sum(1)), below.push_back(sum(3));
    }
    outputs.add("state.num", above), outputs.add("state.den", below);
  }

  AftBias<T> bias;
  Matrix<T> numbers;
  bool causal = true, has_state = false;
  Index heads = 1;
  GoldenArray<T> query, key, value, output;
  AftState<T> initial, state;
};

template <class T, Direction way>
struct AftLayerGolden final : GoldenLayer<Aft<T, way>> {
  using Mixer = Aft<T, way>;

  explicit AftLayerGolden(GoldenCase& golden) : GoldenLayer<Mixer>(golden, config(golden), weights(golden)) {}

  static typename Mixer::Config config(GoldenCase& golden) {
    GoldenConfig& config = golden.config();
    check_remarks(config);
    return {.channels = config.integer("dim"),
            .form = form(config),
            .hidden = config.integer("hidden_dim", Index(0)),
            .max_length = config.integer("max_seqlen", Index(0)),
            .window = config.integer("window", Index(0)),
            .heads = config.integer("heads", Index(1)),
            .taps = config.integer("kernel_size", Index(0)),
            .renormalized = config.boolean("renormalised_w", false)};
  }
  static typename Mixer::Weights weights(GoldenCase& golden) {
    typename Mixer::Weights result;
    result.names = golden.has("weight.to_q.weight") ? AftNames::aft_pytorch : AftNames::labml;
    golden.read_weights(result);
    return result;
  }
};

template <class T>
struct AftAnyLayerGolden {
  static std::unique_ptr<GoldenRunner<T>> make(GoldenCase& golden) {
    if (golden.config().boolean("causal")) return std::make_unique<AftLayerGolden<T, Direction::causal>>(golden);
    return std::make_unique<AftLayerGolden<T, Direction::bidirectional>>(golden);
  }
};

const GoldenRegistration<AftCoreGolden> core_golden{"aft", "core"};
const GoldenRegistration<AftAnyLayerGolden> layer_golden{"aft", "layer"};

// --- the layer --------------------------------------------------------------------------------------------------------

template <Direction way>
struct AftTests {
  static constexpr const char* name = way == Direction::causal ? "aft" : "aft, bidirectional";
  template <class T>
  using Mixer = Aft<T, way>;
  using Config = typename Mixer<double>::Config;
  using Weights = typename Mixer<double>::Weights;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    constexpr Index most = 1050;  // more than the laws ask for
    return {
        {"full", {.channels = 7, .hidden = 19, .max_length = most}},
        {"full, of rank 2", {.channels = 4, .max_length = most, .rank = 2}},
        {"local, window of 1", {.channels = 5, .form = AftForm::local, .max_length = most, .window = 1}},
        {"local, window of 2", {.channels = 3, .form = AftForm::local, .max_length = most, .window = 2}},
        {"local, window of 30", {.channels = 18, .form = AftForm::local, .max_length = most, .window = 30}},
        {"local, window of 200", {.channels = 3, .form = AftForm::local, .max_length = most, .window = 200}},
        {"simple", {.channels = 6, .form = AftForm::simple, .hidden = 35}},
        {"conv, 1 tap", {.channels = 4, .form = AftForm::conv, .heads = 2, .taps = 1}},
        {"conv, 3 heads of 5 taps", {.channels = 15, .form = AftForm::conv, .heads = 3, .taps = 5}},
        {"conv, 70 taps", {.channels = 6, .form = AftForm::conv, .hidden = 36, .heads = 2, .taps = 70}},
        {"conv, renormalised, 4 taps",
         {.channels = 3, .form = AftForm::conv, .hidden = 6, .heads = 2, .taps = 4, .renormalized = true}},
        {"random",
         {.channels = rng.integer(1, 30),
          .form = AftForm::local,
          .hidden = rng.integer(1, 200),
          .max_length = most,
          .window = rng.integer(1, 90)}},
    };
  }

  /// The bias of token j for row t and channel c, where it has one.
  static double bias(const Config& config, const Weights& weights, const Matrixd& kernel, Index t, Index j, Index c) {
    switch (config.form) {
      case AftForm::simple:
        return 0;
      case AftForm::full:
      case AftForm::local:
        if (config.form == AftForm::local && std::abs(t - j) >= config.window) return 0;
        return config.rank > 0 ? weights.bias_left.row(t).dot(weights.bias_right.row(j)) : weights.bias(t, j);
      case AftForm::conv:
        break;
    }
    const Index tap = t - j + (way == Direction::causal ? 0 : config.taps / 2);
    const Index hidden = config.hidden > 0 ? config.hidden : config.channels;
    return tap >= 0 && tap < config.taps ? kernel(c / (hidden / config.heads), tap) : 0;
  }

  static Matrixd reference(const Config& config, const Weights& weights, const Matrixd& x) {
    const Index L = x.rows();
    const Matrixd q = linear(x, weights.query, weights.query_bias), k = linear(x, weights.key, weights.key_bias);
    const Matrixd v = linear(x, weights.value, weights.value_bias);
    Matrixd kernel = weights.kernel;
    for (Index h = 0; h < kernel.rows() && config.renormalized; ++h) {
      const double mean = kernel.row(h).mean();
      const double variance = (kernel.row(h).array() - mean).square().sum() / double(config.taps - 1);
      for (Index i = 0; i < config.taps; ++i) {
        kernel(h, i) = weights.kernel_gamma[h] * (kernel(h, i) - mean) / std::sqrt(variance) + weights.kernel_beta[h];
      }
    }
    Matrixd mixed(L, q.cols());
    for (Index c = 0; c < q.cols(); ++c) {
      for (Index t = 0; t < L; ++t) {
        const Index seen = way == Direction::causal ? t + 1 : L;
        std::vector<double> logits;
        for (Index j = 0; j < seen; ++j) logits.push_back(k(j, c) + bias(config, weights, kernel, t, j, c));
        const double largest = *std::max_element(logits.begin(), logits.end());
        double above = 0, below = 0;
        for (Index j = 0; j < seen; ++j) {
          const double weight = std::exp(logits[std::size_t(j)] - largest);
          above += weight * v(j, c), below += weight;
        }
        mixed(t, c) = sigmoid(q(t, c)) * above / below;
      }
    }
    return linear(mixed, weights.output, weights.output_bias);
  }
};

/// Keys and biases that jump by hundreds: neither over- nor underflows may show.
template <Direction way>
struct ExtremeAftTests : AftTests<way> {
  static constexpr const char* name = way == Direction::causal ? "aft, extreme" : "aft, extreme, bidirectional";
  using typename AftTests<way>::Weights;
  using typename AftTests<way>::Config;
  template <class T>
  using Mixer = Aft<T, way>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng&) {
    constexpr Index most = 1050;
    return {{"full", {.channels = 6, .hidden = 20, .max_length = most}},
            {"local", {.channels = 6, .form = AftForm::local, .hidden = 20, .max_length = most, .window = 40}},
            {"simple", {.channels = 6, .form = AftForm::simple, .hidden = 20}},
            {"conv", {.channels = 6, .form = AftForm::conv, .hidden = 20, .heads = 4, .taps = 20}}};
  }
  static Weights weights(const Config& config, Rng& rng) {
    Weights result = Mixer<double>::random_weights(config, rng);
    stir(result, rng);
    for (Index c = 0; c < result.key.rows(); ++c) result.key.row(c) *= std::exp(rng.uniform(0, 6));
    for (Index i = 0; i < result.bias.size(); ++i) result.bias.data()[i] = rng.uniform(-300, 300);
    for (Index i = 0; i < result.kernel.size(); ++i) result.kernel.data()[i] = rng.uniform(-300, 300);
    return result;
  }
};

const MixerRegistration<AftTests<Direction::causal>> causal;
const MixerRegistration<AftTests<Direction::bidirectional>> bidirectional;
const MixerRegistration<ExtremeAftTests<Direction::causal>> extreme;
const MixerRegistration<ExtremeAftTests<Direction::bidirectional>> extreme_bidirectional;

}  // namespace
}  // namespace seqmix::test
