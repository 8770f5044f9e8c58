// Synthesizers: the core and both layers, in both directions.
#include <limits>
#include <seqmix/convolution/synthesizer.hpp>

#include "support/golden.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

SynthesizerForm form(GoldenConfig& config) {
  const std::string variant = config.text("variant");
  if (variant == "dense") return SynthesizerForm::dense;
  if (variant == "random") return SynthesizerForm::random;
  if (variant == "factorized_random") return SynthesizerForm::factorized_random;
  if (variant == "factorized_dense") return SynthesizerForm::factorized_dense;
  if (variant == "mixture_random_vanilla") return SynthesizerForm::mixture;
  config.unknown("variant");
}

void check_remarks(GoldenConfig& config) {
  config.expect("mask_value", -1e9);
  config.expect("scale", 1.0);
  config.expect("tiling", "tile both: logits[i,j]=A[i,j mod a]*B[i,j mod b]");
  config.expect("output_projection", false);
}

/// The sizes that core and layers call the same.
template <class Config>
void read_sizes(GoldenCase& golden, Config& result) {
  GoldenConfig& config = golden.config();
  check_remarks(config);
  result.form = form(config);
  result.heads = config.integer("heads", 1);
  result.max_length = config.integer(config.has("seqlen") ? "seqlen" : "max_seqlen");
  result.hidden = config.integer("hidden", Index(0));
  result.rank = config.integer("rank", Index(0));
  result.period_a = config.integer("a", Index(0));
  result.period_b = config.integer("b", Index(0));
}

template <class T>
struct SynthesizerCoreGolden final : GoldenRunner<T> {
  explicit SynthesizerCoreGolden(GoldenCase& golden)
      : causal(golden.config().boolean("causal")), core(make_core(golden)) {
    const Index H = core.config().heads, K = core.config().head_dim;
    value = golden.array<T>("input.v", {-1, H, core.config().value_dim});
    if (core.reads_queries()) query = golden.array<T>("input.q", {value.size(0), H, K});
    if (core.reads_keys()) key = golden.array<T>("input.k", {value.size(0), H, K});
    output = GoldenArray<T>({value.size(0), H, value.size(2)});
  }

  static SynthesizerCore<T> make_core(GoldenCase& golden) {
    SynthesizerCoreConfig config;
    read_sizes(golden, config);
    config.head_dim = golden.config().integer("head_dim", Index(0));
    config.value_dim = golden.config().integer("value_dim");
    SynthesizerCoreWeights<T> weights;
    golden.read_weights(weights);
    return {config, weights};
  }

  Index length() const override { return value.size(0); }
  bool stepwise() const override { return causal; }
  void reset() override { state = core.initial_state(); }
  void run(Index begin, Index count) override {
    const auto rows = [&](GoldenArray<T>& array) {
      return array.size() > 0 ? array.heads().rows(begin, count) : HeadSequence<T>();
    };
    core.run(state, rows(query), rows(key), rows(value), rows(output), this->workspace);
  }
  void whole() override {
    const auto all = [](GoldenArray<T>& array) { return array.size() > 0 ? array.heads() : HeadSequence<T>(); };
    core.run(all(query), all(key), all(value), causal, all(output), this->workspace);
  }
  void collect(GoldenOutputs& outputs) const override { outputs.add("y", output); }

  bool causal;
  SynthesizerCore<T> core;
  GoldenArray<T> query, key, value, output;
  KeyValueCache<T> state;
};

template <class T, Direction way>
struct SynthesizerLayerGolden final : GoldenLayer<Synthesizer<T, way>> {
  using Mixer = Synthesizer<T, way>;

  explicit SynthesizerLayerGolden(GoldenCase& golden) : GoldenLayer<Mixer>(golden, config(golden), weights(golden)) {}

  static SynthesizerLayout layout(GoldenCase& golden) {
    return golden.has("weight.w_vs.weight") ? SynthesizerLayout::multi_head : SynthesizerLayout::single_head;
  }
  static typename Mixer::Config config(GoldenCase& golden) {
    typename Mixer::Config result{.channels = golden.config().integer("dim"), .layout = layout(golden)};
    read_sizes(golden, result);
    golden.config().expect("residual", result.layout == SynthesizerLayout::multi_head);
    result.head_dim = golden.config().integer("head_dim", Index(0));
    result.value_dim = golden.config().integer("value_dim", Index(0));
    result.norm_epsilon = golden.config().number("layer_norm_eps", 1e-6);
    return result;
  }
  static typename Mixer::Weights weights(GoldenCase& golden) {
    typename Mixer::Weights result;
    result.core.layout = layout(golden);
    golden.read_weights(result);
    return result;
  }
};

template <class T>
struct SynthesizerAnyLayerGolden {
  static std::unique_ptr<GoldenRunner<T>> make(GoldenCase& golden) {
    if (golden.config().boolean("causal")) {
      return std::make_unique<SynthesizerLayerGolden<T, Direction::causal>>(golden);
    }
    return std::make_unique<SynthesizerLayerGolden<T, Direction::bidirectional>>(golden);
  }
};

const GoldenRegistration<SynthesizerCoreGolden> core_golden{"synthesizer", "core"};
const GoldenRegistration<SynthesizerAnyLayerGolden> layer_golden{"synthesizer", "layer"};

// --- the layers -------------------------------------------------------------------------------------------------------

template <Direction way>
struct SynthesizerTests {
  static constexpr const char* name = way == Direction::causal ? "synthesizer" : "synthesizer, bidirectional";
  template <class T>
  using Mixer = Synthesizer<T, way>;
  using Weights = typename Mixer<double>::Weights;
  using Config = typename Mixer<double>::Config;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    using enum SynthesizerForm;
    using enum SynthesizerLayout;
    constexpr Index most = 1050;  // more than the laws ask for
    return {
        {"dense, one head", {.channels = 9, .layout = single_head, .max_length = most, .hidden = 7}},
        {"dense, three heads",
         {.channels = 12, .heads = 3, .head_dim = 5, .value_dim = 17, .max_length = most, .hidden = 6}},
        {"random, one head", {.channels = 8, .layout = single_head, .form = random, .max_length = most}},
        {"random, two heads", {.channels = 6, .form = random, .heads = 2, .max_length = most}},
        {"factorised random, two heads",
         {.channels = 10, .form = factorized_random, .heads = 2, .max_length = most, .rank = 3}},
        {"factorised dense, periods 4 and 275",
         {.channels = 5,
          .layout = single_head,
          .form = factorized_dense,
          .max_length = 1100,
          .period_a = 4,
          .period_b = 275}},
        {"factorised dense, two heads, periods 1 and 33",
         {.channels = 6, .form = factorized_dense, .heads = 2, .max_length = most, .period_a = 1, .period_b = 33}},
        {"mixture, one head", {.channels = 7, .layout = single_head, .form = mixture, .max_length = most}},
        {"mixture, two heads",
         {.channels = 4, .form = mixture, .heads = 2, .head_dim = 3, .max_length = most, .norm_epsilon = 1e-3}},
        {"random sizes",
         {.channels = 2 * rng.integer(1, 30), .heads = 2, .max_length = most, .hidden = rng.integer(1, 20)}},
    };
  }

  static Matrixd reference(const Config& config, const Weights& weights, const Matrixd& x) {
    const Index L = x.rows(), H = config.heads;
    const bool single = config.layout == SynthesizerLayout::single_head;
    const auto project = [&](const Matrixd& weight, const Vectord& bias) {
      return linear(x, weight, single ? bias : Vectord());
    };
    const Matrixd value = project(weights.value, weights.value_bias);
    const bool no_query = weights.query.size() == 0;
    const Matrixd query = no_query ? x : project(weights.query, weights.query_bias);
    Matrixd key;
    if (config.form == SynthesizerForm::mixture) key = project(weights.key, weights.key_bias);
    Matrixd mixed(L, value.cols());
    for (Index h = 0; h < H; ++h) {
      const Matrixd v = head(value, h, H), logits = logits_of(config, weights.core, query, key, h);
      Matrixd y = Matrixd::Zero(L, v.cols());
      for (Index t = 0; t < L; ++t) {
        const Index seen = way == Direction::causal ? t + 1 : L;
        const auto p = softmax(std::vector<double>(logits.row(t).data(), logits.row(t).data() + seen));
        for (Index j = 0; j < seen; ++j) y.row(t) += p[std::size_t(j)] * v.row(j);
      }
      set_head(mixed, h, H, y);
    }
    if (single) return mixed;
    return layer_norm(linear(mixed, weights.output) + x, config.norm_epsilon, weights.norm_weight, weights.norm_bias);
  }

  static Matrixd logits_of(const Config& config, const SynthesizerCoreWeights<double>& weights, const Matrixd& query,
                           const Matrixd& key, Index h) {
    const Index L = query.rows(), H = config.heads, T = config.max_length;
    Matrixd logits(L, L);
    switch (config.form) {
      case SynthesizerForm::dense: {
        const Matrixd hidden = linear(head(query, h, H), weights.hidden, weights.hidden_bias).cwiseMax(0.0);
        return linear(hidden, weights.logits, weights.logits_bias).leftCols(L);
      }
      case SynthesizerForm::factorized_dense: {
        const Matrixd a = linear(head(query, h, H), weights.factor_a, weights.factor_a_bias);
        const Matrixd b = linear(head(query, h, H), weights.factor_b, weights.factor_b_bias);
        for (Index t = 0; t < L; ++t) {
          for (Index j = 0; j < L; ++j) logits(t, j) = a(t, j % config.period_a) * b(t, j % config.period_b);
        }
        return logits;
      }
      case SynthesizerForm::factorized_random:
        for (Index t = 0; t < L; ++t) {
          for (Index j = 0; j < L; ++j) logits(t, j) = weights.first.row(h * T + t).dot(weights.second.row(h * T + j));
        }
        return logits;
      case SynthesizerForm::random:
      case SynthesizerForm::mixture:
        break;
    }
    logits = weights.random.block(h * T, 0, L, L);
    if (config.form == SynthesizerForm::mixture) {
      const Matrixd q = head(query, h, H), k = head(key, h, H);
      for (Index t = 0; t < L; ++t) {
        for (Index j = 0; j < L; ++j) logits(t, j) += q.row(t).dot(k.row(j));
      }
    }
    return logits;
  }
};

const MixerRegistration<SynthesizerTests<Direction::causal>> causal;
const MixerRegistration<SynthesizerTests<Direction::bidirectional>> bidirectional;

}  // namespace
}  // namespace seqmix::test
