// Gated slot attention: the core function and the layer.
#include <cmath>
#include <seqmix/linear/gated_slot_attention.hpp>

#include "support/recurrence_golden.hpp"
#include "support/recurrence_reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

template <class T>
struct GatedSlotAttentionCoreGolden final : GoldenRunner<T> {
  explicit GatedSlotAttentionCoreGolden(GoldenCase& golden)
      : heads(golden.config().integer("heads")),
        memories(golden.config().integer("kv_heads", heads)),
        key_dim(golden.config().integer("key_dim")),
        value_dim(golden.config().integer("value_dim")),
        slots(golden.config().integer("slots")),
        scale(T(golden.config().number("scale"))),
        query(golden.array<T>("input.q", {-1, heads, key_dim})),
        key(golden.array<T>("input.k", {query.size(0), memories, key_dim})),
        value(golden.array<T>("input.v", {query.size(0), memories, value_dim})),
        slot(golden.array<T>("input.s", {query.size(0), memories, slots})),
        log_decay(golden.array<T>("input.g", {query.size(0), memories, slots})),
        output({query.size(0), heads, value_dim}),
        initial_keys({memories, key_dim, slots}),
        initial_values({memories, slots, value_dim}) {
    golden.config().expect("gate", "log");
    if (golden.has("input.state.Sk")) initial_keys = golden.array<T>("input.state.Sk", initial_keys.shape());
    if (golden.has("input.state.Sv")) initial_values = golden.array<T>("input.state.Sv", initial_values.shape());
  }
  Index length() const override { return query.size(0); }
  void reset() override { keys = initial_keys, values = initial_values; }
  void run(Index begin, Index count) override {
    const auto rows = [&](const GoldenArray<T>& array) { return array.heads().rows(begin, count); };
    gated_slot_attention<T>(rows(query), rows(key), rows(value), rows(slot), rows(log_decay), scale,
                            {keys.data(), memories, key_dim, slots}, {values.data(), memories, slots, value_dim},
                            output.heads().rows(begin, count), this->workspace);
  }
  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", output);
    outputs.add("state.Sk", keys);
    outputs.add("state.Sv", values);
  }

  Index heads, memories, key_dim, value_dim, slots;
  T scale;
  GoldenArray<T> query, key, value, slot, log_decay, output, initial_keys, initial_values, keys, values;
};

template <class T>
struct GatedSlotAttentionLayerGolden final : GoldenLayer<GatedSlotAttention<T>> {
  using Base = GoldenLayer<GatedSlotAttention<T>>;
  using State = typename GatedSlotAttention<T>::State;

  explicit GatedSlotAttentionLayerGolden(GoldenCase& golden) : Base(golden, config(golden)) {}

  static typename GatedSlotAttention<T>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    typename GatedSlotAttention<T>::Config result;
    result.channels = config.integer("dim");
    result.heads = config.integer("heads");
    result.key_value_heads = config.integer("kv_heads", result.heads);
    result.key_channels = Index(std::lround(double(result.channels) * config.number("expand_k", 1)));
    result.value_channels = Index(std::lround(double(result.channels) * config.number("expand_v", 1)));
    result.slots = config.integer("slots", result.key_channels / result.heads);
    result.convolution = convolution_of(config);
    const std::string map = config.text("feature_map", "swish");
    if (map != "swish" && map != "relu") config.unknown("feature_map");
    result.feature_map = map == "relu" ? StreamActivation::relu : StreamActivation::swish;
    result.gate_logit_normalizer = T(config.number("gate_logit_normalizer", 8));
    result.scale = T(config.number("scale", 1));
    config.ignore("norm_eps");  // the implementation does not use it
    return result;
  }
  void read_state(GoldenCase& golden, State& state) override {
    if (golden.has("input.state.Sk")) golden.copy("input.state.Sk", state.key_memory);
    if (golden.has("input.state.Sv")) golden.copy("input.state.Sv", state.value_memory);
    read_histories(golden, {}, state);
  }
  void collect_state(const State& state, GoldenOutputs& outputs) const override {
    outputs.add("state.Sk", state.key_memory);
    outputs.add("state.Sv", state.value_memory);
    collect_histories(state, {}, outputs);
  }
};

const GoldenRegistration<GatedSlotAttentionCoreGolden> core_golden{"gated_slot_attention", "core"};
const GoldenRegistration<GatedSlotAttentionLayerGolden> layer_golden{"gated_slot_attention", "layer"};

// --- mixer ------------------------------------------------------------------------------------------------------------

struct GatedSlotAttentionTests {
  static constexpr const char* name = "gated_slot_attention";
  template <class T>
  using Mixer = GatedSlotAttention<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index heads = rng.integer(1, 5);
    return {{"one head of 1", {.channels = 1, .heads = 1}},
            {"two heads, one of keys, convolved",
             {.channels = 8,
              .heads = 2,
              .key_value_heads = 1,
              .slots = 5,
              .convolution = {.convolve = true, .bias = true},
              .gate_logit_normalizer = T(1)}},
            {"relu, width 2, scaled",
             {.channels = 9,
              .heads = 3,
              .slots = 7,
              .key_channels = 15,
              .value_channels = 12,
              .convolution = {.convolve = true, .width = 2},
              .feature_map = StreamActivation::relu,
              .scale = T(0.5)}},
            {"head_dim 64, 33 slots", {.channels = 64, .heads = 1, .slots = 33, .gate_logit_normalizer = T(0.25)}},
            {"random",
             {.channels = rng.integer(1, 33),
              .heads = heads,
              .slots = rng.integer(1, 40),
              .key_channels = heads * rng.integer(1, 17),
              .value_channels = heads * rng.integer(1, 17),
              .convolution = {.convolve = rng.integer(0, 1) == 1, .width = rng.integer(1, 6)}}}};
  }

  static Matrixd reference(const GatedSlotAttention<double>::Config& config,
                           const GatedSlotAttention<double>::Weights& weights, const Matrixd& x) {
    const Index H = config.heads, Hk = config.key_value_heads == 0 ? H : config.key_value_heads;
    const bool relu = config.feature_map == StreamActivation::relu;
    const auto convolved = [&](const Matrixd& weight, const Matrixd& taps, const Vectord& bias) {
      const Matrixd u = linear(x, weight);
      return config.convolution.convolve ? map(short_convolution(u, taps, bias), silu) : u;
    };
    const auto feature = [&](double z) { return relu ? std::max(z, 0.0) : silu(z); };
    const auto& conv = weights.convolution;
    const Matrixd q = map(convolved(weights.query, conv.query, conv.query_bias), feature);
    const Matrixd k = map(convolved(weights.key, conv.key, conv.key_bias), feature);
    const Matrixd v = map(convolved(weights.value, conv.value, conv.value_bias), silu);
    const Matrixd g =
        map(linear(x, weights.forget), [&](double z) { return log_sigmoid(z) / config.gate_logit_normalizer; });
    const Index K = q.cols() / H, V = v.cols() / Hk, M = g.cols() / Hk;
    Matrixd o(x.rows(), H * V);
    for (Index h = 0; h < H; ++h) {
      MemoryLoop keys(M, K), values(M, V);
      const Index shared = h / (H / Hk);
      const Matrixd q_h = head(q, h, H), k_h = head(k, shared, Hk), v_h = head(v, shared, Hk),
                    g_h = head(g, shared, Hk);
      Matrixd o_h(x.rows(), V);
      for (Index t = 0; t < x.rows(); ++t) {
        const Matrixd s = g_h.row(t).unaryExpr([](double z) { return -std::expm1(z); });
        keys.decay(g_h.row(t));
        keys.add(s, k_h.row(t));
        values.decay(g_h.row(t));
        values.add(s, v_h.row(t));
        std::vector<double> logits;
        for (Index m = 0; m < M; ++m) {
          double logit = 0;
          const Matrixd slot_key = keys.row(m);
          for (Index i = 0; i < K; ++i) logit += config.scale * q_h(t, i) * slot_key(0, i);
          logits.push_back(logit);
        }
        o_h.row(t) = values.read(attention_weights(logits));
      }
      set_head(o, h, H, o_h);
    }
    return linear(rms_norm(map(o, silu), 1e-5, weights.norm), weights.output);
  }

  /// The softmax of all logits: NaN where one is NaN.
  static Matrixd attention_weights(const std::vector<double>& logits) {
    Matrixd weights(1, Index(logits.size()));
    const double most = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const double logit : logits) sum += std::exp(logit - most);
    for (Index m = 0; m < weights.cols(); ++m) weights(0, m) = std::exp(logits[std::size_t(m)] - most) / sum;
    return weights;
  }
};

const MixerRegistration<GatedSlotAttentionTests> mixer;

}  // namespace
}  // namespace seqmix::test
