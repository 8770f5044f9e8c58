// Fast weight programmers: the core function and the layer.
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <seqmix/linear/fast_weight.hpp>
#include <stdexcept>

#include "support/fast_weights.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

template <class T>
FastWeightOptions<T> options_of(GoldenConfig& config, Index key_dim) {
  config.expect("update", "delta");
  return {features_of(config, key_dim), T(config.number("scale")), config.boolean("normalize_attention"),
          T(config.number("eps", 0.0))};
}

template <class T>
struct FastWeightCoreGolden final : GoldenRunner<T> {
  explicit FastWeightCoreGolden(GoldenCase& golden)
      : heads(golden.config().integer("heads")),
        key_dim(golden.config().integer("key_dim")),
        value_dim(golden.config().integer("value_dim")),
        options(options_of<T>(golden.config(), key_dim)),
        query(golden.array<T>("input.q", {-1, heads, key_dim})),
        key(golden.array<T>("input.k", {query.size(0), heads, key_dim})),
        value(golden.array<T>("input.v", {query.size(0), heads, value_dim})),
        beta(golden.array<T>("input.beta", {query.size(0), heads})),
        output({query.size(0), heads, value_dim}),
        initial_memory({heads, options.features.size(key_dim), value_dim}),
        initial_key_sum({heads, options.features.size(key_dim)}) {
    if (golden.has("input.state.W")) initial_memory = golden.array<T>("input.state.W", initial_memory.shape());
    if (golden.has("input.state.z")) initial_key_sum = golden.array<T>("input.state.z", initial_key_sum.shape());
  }
  Index length() const override { return query.size(0); }
  void reset() override { memory = initial_memory, key_sum = initial_key_sum; }
  void run(Index begin, Index count) override {
    const auto rows = [&](auto& array) { return array.heads().rows(begin, count); };
    fast_weight<T>(rows(query), rows(key), rows(value), beta.sequence().rows(begin, count), options,
                   {memory.data(), heads, memory.size(1), value_dim}, key_sum.sequence(), rows(output),
                   this->workspace);
  }
  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", output);
    outputs.add("state.W", memory);
    if (options.normalize) outputs.add("state.z", key_sum);
  }

  Index heads, key_dim, value_dim;
  FastWeightOptions<T> options;
  GoldenArray<T> query, key, value, beta, output, initial_memory, initial_key_sum, memory, key_sum;
};

template <class T>
struct FastWeightLayerGolden final : GoldenLayer<FastWeight<T>> {
  using Base = GoldenLayer<FastWeight<T>>;
  using State = typename FastWeight<T>::State;

  explicit FastWeightLayerGolden(GoldenCase& golden) : FastWeightLayerGolden(golden, config(golden)) {}
  FastWeightLayerGolden(GoldenCase& golden, const typename FastWeight<T>::Config& config)
      : Base(golden, config, read_layer_weights<FastWeight<T>>(golden, config.form)) {}

  static typename FastWeight<T>::Config config(GoldenCase& golden) {
    typename FastWeight<T>::Config result;
    read_layer_config(golden.config(), result);
    result.options = options_of<T>(golden.config(), result.head_dim);
    return result;
  }
  void read_state(GoldenCase& golden, State& state) override {
    if (golden.has("input.state.W")) golden.copy("input.state.W", state.memory);
    if (golden.has("input.state.z")) golden.copy("input.state.z", state.key_sum);
  }
  void collect_state(const State& state, GoldenOutputs& outputs) const override {
    outputs.add("state.W", state.memory);
    if (!state.key_sum.empty()) outputs.add("state.z", state.key_sum);
  }
};

const GoldenRegistration<FastWeightCoreGolden> core_golden{"fast_weight", "core"};
const GoldenRegistration<FastWeightLayerGolden> layer_golden{"fast_weight", "layer"};

// --- mixers -----------------------------------------------------------------------------------------------------------

constexpr FastWeightFeatures dpfp(Index nu) { return {.kind = FastWeightFeatures::Kind::dpfp, .nu = nu}; }

struct FastWeightTests {
  static constexpr const char* name = "fast_weight";
  template <class T>
  using Mixer = FastWeight<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    using enum FastWeightForm;
    FastWeightFeatures vanishing = dpfp(1);
    vanishing.keep_zeros = true;
    return {{"one head of 1", {.channels = 3, .heads = 1, .head_dim = 1}},
            {"three heads of 4", {.channels = 10, .heads = 3, .head_dim = 4}},
            {"elu + 1, normalised, language model, norm first",
             {.channels = 8,
              .heads = 2,
              .form = language_model_pre_norm,
              .options = {.scale = T(0.5), .normalize = true, .epsilon = T(0.1)},
              .norm_eps = T(1e-2)}},
            {"dpfp, language model, norm last",
             {.channels = 8,
              .heads = 2,
              .head_dim = 5,
              .form = language_model_post_norm,
              .options = {.features = dpfp(2), .scale = T(0.5)}}},
            {"dpfp, normalised",
             {.channels = 12, .heads = 3, .options = {.features = dpfp(3), .scale = T(2), .normalize = true}}},
            {"dpfp, features that vanish", {.channels = 9, .heads = 3, .options = {.features = vanishing}}},
            {"dpfp, more rolls than features",
             {.channels = 6, .heads = 3, .form = language_model_pre_norm, .options = {.features = dpfp(9)}}},
            {"head_dim 64, dpfp", {.channels = 16, .heads = 1, .head_dim = 64, .options = {.features = dpfp(1)}}},
            {"random",
             {.channels = rng.integer(2, 33),
              .heads = rng.integer(1, 4),
              .head_dim = rng.integer(2, 21),
              .options = {.features = dpfp(rng.integer(2, 4))}}}};
  }

  static FastWeight<double>::Weights weights(const FastWeight<double>::Config& config, Rng& rng) {
    auto result = FastWeight<double>::random_weights(config, rng);
    stir(result, rng);
    // Features that are not divided by their sum have to be small for the memory to stay bounded.
    if (!config.options.features.sum_norm) result.slow *= 0.3;
    return result;
  }

  static Matrixd reference(const FastWeight<double>::Config& config, const FastWeight<double>::Weights& weights,
                           const Matrixd& x) {
    const auto& options = config.options;
    return fast_weight_layer(weights, config.norm_eps, config.heads, x, [&](const Matrixd& slow, Index) {
      const Index d = (slow.cols() - 1) / 3;
      const Matrixd q = fast_weight_features(slow.leftCols(d), options.features);
      const Matrixd k = fast_weight_features(slow.middleCols(d, d), options.features);
      Matrixd o(slow.rows(), d), sum = Matrixd::Zero(1, k.cols());
      MemoryLoop memory(k.cols(), d);
      for (Index t = 0; t < slow.rows(); ++t) {
        const double beta = sigmoid(slow(t, 3 * d));
        memory.add(k.row(t), beta * (slow.row(t).segment(2 * d, d) - memory.read(k.row(t))));
        sum += k.row(t);
        o.row(t) = options.scale * memory.read(q.row(t));
        if (options.normalize) o.row(t) /= q.row(t).dot(sum.row(0)) + options.epsilon;
      }
      return o;
    });
  }
};

struct UnnormalizedFastWeightTests : FastWeightTests {
  static constexpr const char* name = "fast_weight, features as they are";

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng&) {
    FastWeightFeatures elu1{.sum_norm = false}, rolled = dpfp(2);
    rolled.sum_norm = false;
    return {{"dpfp", {.channels = 12, .heads = 3, .options = {.features = rolled}}},
            {"elu + 1, two heads of 1", {.channels = 3, .heads = 2, .head_dim = 1, .options = {.features = elu1}}}};
  }
};

const MixerRegistration<FastWeightTests> mixer;
const MixerRegistration<UnnormalizedFastWeightTests> unnormalized;

// --- features that vanish -----------------------------------------------------------------------------------------------

TEST_CASE("features that all vanish are NaN, or 0 if asked for") {
  using T = TestedScalar;
  const Matrix<T> row{{1, -2, 3}};  // with nu = 1 no two neighbours of r are positive
  const Matrix<T> value = Matrix<T>::Ones(1, 2), beta = Matrix<T>::Ones(1, 1);
  Workspace workspace;
  for (const bool keep : {false, true}) {
    FastWeightOptions<T> options{.features = dpfp(1)};
    options.features.keep_zeros = keep;
    Matrix<T> y(1, 2), memory = Matrix<T>::Zero(6, 2);
    const auto heads = [](const auto& matrix) { return ConstSequence<T>(matrix).heads(1); };
    fast_weight<T>(heads(row), heads(row), heads(value), beta, options, {memory.data(), 1, 6, 2}, {},
                   Sequence<T>(y).heads(1), workspace);
    CHECK(y.array().isNaN().all() != keep);
    CHECK((keep ? y.isZero() && memory.isZero() : memory.array().isNaN().all()));
  }
}

TEST_CASE("fast weights refuse a memory of another number of features") {
  using T = TestedScalar;
  const Matrix<T> row = Matrix<T>::Ones(1, 3), beta = Matrix<T>::Ones(1, 1);
  Workspace workspace;
  Matrix<T> y(1, 3), memory = Matrix<T>::Zero(12, 3), key_sum = Matrix<T>::Zero(1, 12);
  const auto heads = ConstSequence<T>(row).heads(1);
  const auto call = [&](const FastWeightOptions<T>& options, Index features, const Sequence<T>& sum) {
    fast_weight<T>(heads, heads, heads, beta, options, {memory.data(), 1, features, 3}, sum, Sequence<T>(y).heads(1),
                   workspace);
  };
  CHECK_NOTHROW(call({.features = dpfp(2)}, 12, {}));
  CHECK_NOTHROW(call({.features = dpfp(2), .normalize = true}, 12, key_sum));
  CHECK_THROWS_AS(call({.features = dpfp(2)}, 6, {}), std::invalid_argument);
  CHECK_THROWS_AS(call({}, 12, {}), std::invalid_argument);
  CHECK_THROWS_AS(call({.features = dpfp(0)}, 0, {}), std::invalid_argument);
  CHECK_THROWS_AS(call({.features = dpfp(2), .normalize = true}, 12, {}), std::invalid_argument);
}

}  // namespace
}  // namespace seqmix::test
