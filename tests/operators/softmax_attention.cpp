#include <seqmix/softmax/softmax_attention.hpp>

#include "support/golden.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

/// y = layer(x), from the equations at the top of the header, one query after the other.
Matrixd naive_layer(const SoftmaxAttentionConfig& config, const SoftmaxAttentionWeights<double>& weights,
                    const Matrixd& x, bool causal) {
  const Index heads = config.heads, kv_heads = config.kv_heads > 0 ? config.kv_heads : heads;
  const Index head_dim = config.head_dim > 0 ? config.head_dim : config.channels / heads;
  Matrixd query = linear(x, weights.query, weights.query_bias), key = linear(x, weights.key, weights.key_bias);
  const Matrixd value = linear(x, weights.value, weights.value_bias);
  Matrixd mixed(x.rows(), weights.output.cols());
  for (Index h = 0; h < heads; ++h) {
    Matrixd q = head(query, h, heads), k = head(key, h / (heads / kv_heads), kv_heads);
    const Matrixd v = head(value, h / (heads / kv_heads), kv_heads);
    if (config.qk_norm) {
      q = rms_norm(q, config.norm_eps, weights.query_norm);
      k = rms_norm(k, config.norm_eps, weights.key_norm);
    }
    if (config.rope) {
      const Index rotary_dim = config.rotary_dim.value_or(head_dim);
      const bool interleaved = *config.rope == RotaryPairs::interleaved;
      q = rotate(q, 0, config.rope_theta, rotary_dim, interleaved);
      k = rotate(k, 0, config.rope_theta, rotary_dim, interleaved);
    }
    Matrixd y = Matrixd::Zero(x.rows(), v.cols());
    for (Index i = 0; i < x.rows(); ++i) {
      std::vector<double> logits(std::size_t(x.rows()), -std::numeric_limits<double>::infinity());
      for (Index j = 0; j < x.rows(); ++j) {
        if (causal && j > i) continue;
        if (config.window_left && j < i - *config.window_left) continue;
        if (config.window_right && j > i + *config.window_right) continue;
        double s = config.scale.value_or(1 / std::sqrt(double(head_dim))) * q.row(i).dot(k.row(j));
        if (config.softcap > 0) s = config.softcap * std::tanh(s / config.softcap);
        if (config.alibi) s -= weights.alibi_slopes[h] * double(std::abs(i - j));
        logits[std::size_t(j)] = s;
      }
      const auto p = config.sink ? softmax(logits, weights.sink[h]) : softmax(logits);
      for (Index j = 0; j < x.rows(); ++j) {
        if (logits[std::size_t(j)] > -std::numeric_limits<double>::infinity() || std::isnan(logits[std::size_t(j)])) {
          y.row(i) += p[std::size_t(j)] * v.row(j);  // what isn't seen may be NaN
        }
      }
    }
    set_head(mixed, h, heads, y);
  }
  return linear(mixed, weights.output);
}

struct CausalTests {
  static constexpr const char* name = "softmax_attention";
  template <class T>
  using Mixer = SoftmaxAttention<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    return {
        {"one head of 8", {.channels = 8}},
        {"one head of 1", {.channels = 3, .head_dim = 1}},
        {"two heads of 64, multi-query, RoPE in halves",
         {.channels = 24, .heads = 2, .kv_heads = 1, .head_dim = 64, .rope = RotaryPairs::half}},
        {"grouped heads of 6, interleaved RoPE on 4 channels",
         {.channels = 12,
          .heads = 4,
          .kv_heads = 2,
          .head_dim = 6,
          .value_dim = 5,
          .rope = RotaryPairs::interleaved,
          .rope_theta = 1000,
          .rotary_dim = 4}},
        {"window of 10, biases, norm, RoPE",
         {.channels = 12,
          .heads = 3,
          .kv_heads = 1,
          .head_dim = 4,
          .window_left = 10,
          .rope = RotaryPairs::half,
          .qkv_bias = true,
          .qk_norm = true}},
        {"window of nothing but the token", {.channels = 10, .heads = 2, .window_left = 0}},
        {"ALiBi, value_dim 7", {.channels = 15, .heads = 3, .value_dim = 7, .alibi = true}},
        {"sink, scale", {.channels = 16, .heads = 2, .scale = 0.7, .sink = true}},
        {"softcap, sink, window of 33",
         {.channels = 16, .heads = 2, .kv_heads = 1, .window_left = 33, .softcap = 2.5, .sink = true}},
        {"softcap, ALiBi", {.channels = 10, .heads = 2, .softcap = 3, .alibi = true}},
        {"random", {.channels = rng.integer(1, 30), .heads = rng.integer(1, 5), .head_dim = rng.integer(1, 20)}},
    };
  }

  static Matrixd reference(const SoftmaxAttentionConfig& config, const SoftmaxAttentionWeights<double>& weights,
                           const Matrixd& x) {
    return naive_layer(config, weights, x, true);
  }
};

struct BidirectionalTests {
  static constexpr const char* name = "softmax_attention, bidirectional";
  template <class T>
  using Mixer = SoftmaxAttention<T, Direction::bidirectional>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng&) {
    return {
        {"three heads of 5", {.channels = 15, .heads = 3}},
        {"window to both sides, RoPE",
         {.channels = 12, .heads = 2, .window_left = 7, .window_right = 3, .rope = RotaryPairs::half}},
        {"ALiBi, sink", {.channels = 9, .heads = 3, .kv_heads = 1, .alibi = true, .sink = true}},
    };
  }

  static Matrixd reference(const SoftmaxAttentionConfig& config, const SoftmaxAttentionWeights<double>& weights,
                           const Matrixd& x) {
    return naive_layer(config, weights, x, false);
  }
};

std::optional<Index> optional_integer(GoldenConfig& config, const std::string& key) {
  if (!config.has(key)) {
    config.integer(key, 0);
    return std::nullopt;
  }
  return config.integer(key);
}

std::optional<RotaryPairs> rotary_pairs(GoldenConfig& config) {
  const std::string rope = config.text("rope", "");
  if (rope == "half") return RotaryPairs::half;
  if (rope == "interleaved") return RotaryPairs::interleaved;
  if (!rope.empty()) config.unknown("rope");
  return std::nullopt;
}

template <class T>
struct SoftmaxAttentionCoreGolden final : GoldenRunner<T> {
  explicit SoftmaxAttentionCoreGolden(GoldenCase& golden) {
    GoldenConfig& config = golden.config();
    const Index heads = config.integer("heads"), kv_heads = config.integer("kv_heads");
    const Index head_dim = config.integer("head_dim"), value_dim = config.integer("value_dim");
    query = golden.array<T>("input.q", {-1, heads, head_dim});
    key = golden.array<T>("input.k", {-1, kv_heads, head_dim});
    value = golden.array<T>("input.v", {key.size(0), kv_heads, value_dim});
    y = GoldenArray<T>({query.size(0), heads, value_dim});
    options.causal = config.boolean("causal");
    options.window_left = optional_integer(config, "window_left");
    options.window_right = optional_integer(config, "window_right");
    if (config.has("scale")) options.scale = T(config.number("scale"));
    config.number("scale", 0);
    options.softcap = T(config.number("softcap", 0));
    const auto pairs = rotary_pairs(config);
    const Index rotary_dim = config.integer("rotary_dim", head_dim);
    const double theta = config.number("rope_theta", 10000);
    if (pairs) options.rotary = Rotary::standard(rotary_dim, theta, *pairs);
    first_position = config.integer("q_offset", 0);
    if (config.boolean("alibi", false)) {
      slopes = golden.array<T>("weight.alibi_slopes", {heads});
      options.alibi_slopes = slopes.token();
    }
    if (config.boolean("sink", false)) {
      sink = golden.array<T>("weight.sink", {heads});
      options.sink = sink.token();
    }
    empty = KeyValueCache<T>(kv_heads, head_dim, value_dim, options.window_left);
    if (golden.has("input.state.k")) {
      const auto cached_key = golden.array<T>("input.state.k", {-1, kv_heads, head_dim});
      const auto cached_value = golden.array<T>("input.state.v", {cached_key.size(0), kv_heads, value_dim});
      empty.append(cached_key.heads(), cached_value.heads());
      has_state = true;
    }
    if (config.boolean("key_bias", false)) bias = golden.array<T>("input.key_bias", {empty.size() + key.size(0)});
  }

  Index length() const override { return query.size(0); }
  bool stepwise() const override { return options.causal; }

  void reset() override {
    for (Index i = 0; i < y.size(); ++i) y[i] = std::numeric_limits<T>::quiet_NaN();
    this->workspace.poison();
    cache = empty;
    given = 0;
  }

  void whole() override {
    options.query_position = first_position;
    if (bias.size() > 0) options.key_bias = bias.token();
    if (has_state) {
      softmax_attention<T>(cache, query.heads(), key.heads(), value.heads(), options, y.heads(), this->workspace);
    } else {
      softmax_attention<T>(query.heads(), key.heads(), value.heads(), options, y.heads(), this->workspace);
    }
  }

  // A row comes with the key that it is aligned with; the keys before those of the first row come beforehand.
  void run(Index begin, Index count) override {
    const Index offset = key.size(0) - query.size(0);
    if (begin + offset > given) attend(begin, 0, begin + offset - given);
    attend(begin, count, std::max<Index>(0, begin + count + offset) - given);
  }

  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", y);
    if (!has_state) return;
    const auto segments = cache.segments();
    outputs.add("state.k", segments[0].key);
    outputs.add("state.v", segments[0].value);
  }

 private:
  void attend(Index begin, Index count, Index keys) {
    options.query_position = first_position + begin;
    if (bias.size() > 0) options.key_bias = {bias.data() + given, cache.size() + keys};
    softmax_attention<T>(cache, query.heads().rows(begin, count), key.heads().rows(given, keys),
                         value.heads().rows(given, keys), options, y.heads().rows(begin, count), this->workspace);
    given += keys;
  }

  GoldenArray<T> query, key, value, y, slopes, sink, bias;
  SoftmaxAttentionOptions<T> options;
  Index first_position = 0;
  bool has_state = false;
  KeyValueCache<T> empty, cache;
  Index given = 0;
};

template <class T, Direction direction>
struct DirectedLayerGolden final : GoldenLayer<SoftmaxAttention<T, direction>> {
  using Mixer = SoftmaxAttention<T, direction>;
  using Base = GoldenLayer<Mixer>;

  explicit DirectedLayerGolden(GoldenCase& golden)
      : Base(golden, config(golden), weights(golden)), position_(golden.config().integer("q_offset", 0)) {}

  static SoftmaxAttentionConfig config(GoldenCase& golden) {
    GoldenConfig& config = golden.config();
    SoftmaxAttentionConfig result{
        .channels = config.integer("dim"),
        .heads = config.integer("heads"),
        .kv_heads = config.integer("kv_heads"),
        .head_dim = config.integer("head_dim"),
        .value_dim = config.integer("value_dim"),
        .window_left = optional_integer(config, "window_left"),
        .window_right = optional_integer(config, "window_right"),
        .softcap = config.number("softcap", 0),
        .rope = rotary_pairs(config),
        .rope_theta = config.number("rope_theta", 10000),
        .rotary_dim = optional_integer(config, "rotary_dim"),
        .alibi = config.boolean("alibi", false),
        .sink = config.boolean("sink", false),
        .qkv_bias = config.boolean("qkv_bias", false),
        .qk_norm = config.boolean("qk_norm", false),
        .norm_eps = config.number("norm_eps", 1e-5),
    };
    if (config.has("scale")) result.scale = config.number("scale");
    config.number("scale", 0);
    config.expect("key_bias", false);
    return result;
  }

  static SoftmaxAttentionWeights<T> weights(GoldenCase& golden) {
    SoftmaxAttentionWeights<T> result;
    if (golden.has("weight.wq.weight")) result.names = AttentionNames::llama;
    golden.read_weights(result);
    return result;
  }

  void read_state(GoldenCase& golden, typename Base::State& state) override {
    if constexpr (RecurrentMixer<Mixer>) {
      state.position = position_;
      if (!golden.has("input.state.k")) return;
      const auto key = golden.array<T>("input.state.k", {-1, state.cache.kv_heads(), state.cache.head_dim()});
      const auto value = golden.array<T>("input.state.v", {-1, state.cache.kv_heads(), state.cache.value_dim()});
      state.cache.append(key.heads(), value.heads());
    }
  }

  void collect_state(const typename Base::State& state, GoldenOutputs& outputs) const override {
    if constexpr (RecurrentMixer<Mixer>) {
      if (state.cache.window()) return;  // the files leave the state out: the cache is a ring
      const auto segments = state.cache.segments();
      outputs.add("state.k", segments[0].key);
      outputs.add("state.v", segments[0].value);
    }
  }

 private:
  Index position_;
};

template <class T>
struct SoftmaxAttentionLayerGolden {
  static std::unique_ptr<GoldenRunner<T>> make(GoldenCase& golden) {
    if (golden.config().boolean("causal")) {
      return std::make_unique<DirectedLayerGolden<T, Direction::causal>>(golden);
    }
    return std::make_unique<DirectedLayerGolden<T, Direction::bidirectional>>(golden);
  }
};

const MixerRegistration<CausalTests> causal;
const MixerRegistration<BidirectionalTests> bidirectional;
const GoldenRegistration<SoftmaxAttentionCoreGolden> core{"softmax_attention", "core"};
const GoldenRegistration<SoftmaxAttentionLayerGolden> layer{"softmax_attention", "layer"};

}  // namespace
}  // namespace seqmix::test
