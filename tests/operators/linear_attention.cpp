// Linear attention: the core functions, and the laws of the layers.
#include <cmath>
#include <memory>
#include <seqmix/linear/linear_attention.hpp>

#include "operators/linear_attention_options.hpp"
#include "support/golden.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

template <class T>
struct LinearAttentionCoreGolden final : GoldenRunner<T> {
  explicit LinearAttentionCoreGolden(GoldenCase& golden)
      : heads(golden.config().integer("heads")),
        key_dim(golden.config().integer("key_dim")),
        value_dim(golden.config().integer("value_dim")),
        causal(golden.config().boolean("causal")),
        options(options_of<T>(golden.config())),
        query(golden.array<T>("input.q", {-1, heads, key_dim})),
        key(golden.array<T>("input.k", {query.size(0), -1, key_dim})),
        value(golden.array<T>("input.v", {query.size(0), -1, value_dim})),
        output({query.size(0), heads, value_dim}),
        initial_memory({heads, key_dim, value_dim}),
        initial_key_sum({heads, key_dim}) {
    golden.config().expect("kv_heads", key.size(1));
    if (golden.has("input.state.S")) initial_memory = golden.array<T>("input.state.S", initial_memory.shape());
    if (golden.has("input.state.z")) initial_key_sum = golden.array<T>("input.state.z", initial_key_sum.shape());
    with_feature_map(golden.config(),
                     [&](auto map) { run_mapped = &LinearAttentionCoreGolden::run_with<decltype(map)>; });
  }
  Index length() const override { return query.size(0); }
  bool stepwise() const override { return causal; }
  void reset() override { memory = initial_memory, key_sum = initial_key_sum; }
  void run(Index begin, Index count) override { (this->*run_mapped)(begin, count); }
  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", output);
    if (!causal) return;
    outputs.add("state.S", memory);
    if (options.normalize) outputs.add("state.z", key_sum);
  }

 private:
  template <class Map>
  void run_with(Index begin, Index count) {
    const auto q = query.heads().rows(begin, count), k = key.heads().rows(begin, count);
    const auto v = value.heads().rows(begin, count), y = output.heads().rows(begin, count);
    if (causal) {
      linear_attention<Map, T>(q, k, v, options, {memory.data(), heads, key_dim, value_dim}, key_sum.sequence(), y,
                               this->workspace);
    } else {
      linear_attention_bidirectional<Map, T>(q, k, v, options, y, this->workspace);
    }
  }

  Index heads, key_dim, value_dim;
  bool causal;
  LinearAttentionOptions<T> options;
  GoldenArray<T> query, key, value, output, initial_memory, initial_key_sum, memory, key_sum;
  void (LinearAttentionCoreGolden::*run_mapped)(Index begin, Index count) = nullptr;
};

const GoldenRegistration<LinearAttentionCoreGolden> core_golden{"linear_attention", "core"};

// --- naive reference --------------------------------------------------------------------------------------------------

// NaN stays NaN in both of these.
double phi(feature_map::Elu1, double x) { return x <= 0 ? std::exp(x) : x + 1; }
double phi(feature_map::Relu, double x) { return x < 0 ? 0 : x; }

/// Every row over its sum + eps.
Matrixd sum_norm(const Matrixd& x, double eps) {
  Matrixd y = x;
  for (Index t = 0; t < x.rows(); ++t) y.row(t) /= x.row(t).sum() + eps;
  return y;
}

template <class Map, Direction direction, class Config, class Weights>
Matrixd linear_attention_layer(const Config& config, const Weights& weights, const Matrixd& x) {
  const Index H = config.heads, shared = config.key_value_heads > 0 ? config.key_value_heads : H;
  const auto mapped = [](const Matrixd& z) { return map(z, [](double value) { return phi(Map{}, value); }); };
  const Matrixd q = mapped(linear(x, weights.query, weights.query_bias));
  const Matrixd k = mapped(linear(x, weights.key, weights.key_bias));
  const Matrixd v = linear(x, weights.value, weights.value_bias);
  const auto& options = config.options;
  const Index V = v.cols() / shared, length = x.rows();
  Matrixd mixed(length, H * V);
  for (Index h = 0; h < H; ++h) {
    Matrixd q_h = head(q, h, H), k_h = head(k, h / (H / shared), shared);
    const Matrixd v_h = head(v, h / (H / shared), shared);
    if (config.normalize_query) q_h = sum_norm(q_h, config.feature_eps);
    if (config.normalize_key) k_h = sum_norm(k_h, config.feature_eps);
    Matrixd o = Matrixd::Zero(length, V);
    for (Index t = 0; t < length; ++t) {
      double sum = 0;
      for (Index s = 0; s < (direction == Direction::causal ? t + 1 : length); ++s) {
        const double weight = options.scale * q_h.row(t).dot(k_h.row(s));
        sum += weight;
        o.row(t) += weight * v_h.row(s);
      }
      if (options.normalize) o.row(t) /= sum + options.epsilon;
    }
    set_head(mixed, h, H, config.output_norm ? rms_norm(o, config.norm_eps, weights.norm) : o);
  }
  return linear(mixed, weights.output, weights.output_bias);
}

// --- mixers -----------------------------------------------------------------------------------------------------------

template <class Map, Direction direction>
struct LinearAttentionTests {
  template <class T>
  using Mixer = LinearAttention<T, Map, direction>;

  static Matrixd reference(const typename Mixer<double>::Config& config, const typename Mixer<double>::Weights& weights,
                           const Matrixd& x) {
    return linear_attention_layer<Map, direction>(config, weights, x);
  }
};

/// Options that both feature maps are tested with.
template <class T, class Map, Direction direction>
std::vector<Configuration<LinearAttention<T, Map, direction>>> few_configurations() {
  return {{"two heads of 4", {.channels = 8, .heads = 2}},
          {"norms, scale, groups of 3, key_dim 5, value_dim 7",
           {.channels = 11,
            .heads = 6,
            .key_value_heads = 2,
            .key_dim = 5,
            .value_dim = 7,
            .options = {.scale = T(0.3), .normalize = false},
            .normalize_query = true,
            .normalize_key = true,
            .output_norm = true}}};
}

template <Direction direction>
struct Elu1Tests : LinearAttentionTests<feature_map::Elu1, direction> {
  static constexpr const char* name =
      direction == Direction::causal ? "linear_attention" : "linear_attention, bidirectional";
  using Weights = typename LinearAttention<double, feature_map::Elu1, direction>::Weights;
  using Config = typename LinearAttention<double, feature_map::Elu1, direction>::Config;

  template <class T>
  static std::vector<Configuration<LinearAttention<T, feature_map::Elu1, direction>>> configurations(Rng& rng) {
    auto result = few_configurations<T, feature_map::Elu1, direction>();
    const Index shared = rng.integer(1, 2), heads = shared * rng.integer(1, 3);
    result.push_back({"one head of 1", {.channels = 1}});
    result.push_back({"three heads of 5", {.channels = 15, .heads = 3}});
    result.push_back({"not normalised", {.channels = 12, .heads = 3, .options = {.normalize = false}}});
    result.push_back(
        {"large epsilon and scale", {.channels = 12, .heads = 3, .options = {.scale = T(2), .epsilon = T(0.5)}}});
    result.push_back({"queries over their sums", {.channels = 12, .heads = 2, .normalize_query = true}});
    result.push_back(
        {"keys over their sums", {.channels = 12, .heads = 2, .normalize_key = true, .feature_eps = T(0.1)}});
    result.push_back({"output norm", {.channels = 12, .heads = 4, .output_norm = true, .norm_eps = T(1e-2)}});
    result.push_back({"head_dim 64", {.channels = 64, .heads = 1}});
    result.push_back({"random",
                      {.channels = rng.integer(1, 33),
                       .heads = heads,
                       .key_value_heads = shared,
                       .key_dim = rng.integer(1, 17),
                       .value_dim = rng.integer(1, 17)}});
    return result;
  }

  /// With biases.
  static Weights weights(const Config& config, Rng& rng) {
    auto result = LinearAttention<double, feature_map::Elu1, direction>::random_weights(config, rng);
    result.query_bias = Vectord::Zero(result.query.rows());
    result.key_bias = Vectord::Zero(result.key.rows());
    result.value_bias = Vectord::Zero(result.value.rows());
    result.output_bias = Vectord::Zero(result.output.rows());
    stir(result, rng);
    return result;
  }
};

/// The maps by themselves are tested in parts/, the others of them within the core by golden cases.
struct ReluTests : LinearAttentionTests<feature_map::Relu, Direction::causal> {
  static constexpr const char* name = "linear_attention, relu";

  template <class T>
  static std::vector<Configuration<LinearAttention<T, feature_map::Relu>>> configurations(Rng&) {
    return few_configurations<T, feature_map::Relu, Direction::causal>();
  }
};

const MixerRegistration<Elu1Tests<Direction::causal>> causal;
const MixerRegistration<Elu1Tests<Direction::bidirectional>> bidirectional;
const MixerRegistration<ReluTests> relu;

}  // namespace
}  // namespace seqmix::test
