// Gated linear attention: the core function and the layer.
#include <cmath>
#include <seqmix/linear/gated_linear_attention.hpp>

#include "support/recurrence_golden.hpp"
#include "support/recurrence_reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

template <class T>
struct GatedLinearAttentionCoreGolden final : MemoryCoreGolden<T> {
  explicit GatedLinearAttentionCoreGolden(GoldenCase& golden)
      : MemoryCoreGolden<T>(golden), log_decay(golden.array<T>("input.g", {-1, -1, this->key_dim})) {
    golden.config().expect("gate", "log");
  }
  void run_rows(Index begin, Index count, const typename MemoryCoreGolden<T>::Streams& s) override {
    gated_linear_attention<T>(s.query, s.key, s.value, log_decay.heads().rows(begin, count), this->scale, s.memory,
                              s.output, this->workspace);
  }
  GoldenArray<T> log_decay;
};

template <class T>
struct GatedLinearAttentionLayerGolden final : ConvolvedLayerGolden<GatedLinearAttention<T>> {
  explicit GatedLinearAttentionLayerGolden(GoldenCase& golden)
      : ConvolvedLayerGolden<GatedLinearAttention<T>>(golden, config(golden), weights(golden)) {}

  static typename GatedLinearAttention<T>::Weights weights(GoldenCase& golden) {
    typename GatedLinearAttention<T>::Weights result;
    result.output_gate = golden.config().boolean("use_output_gate");
    golden.read_weights(result);
    return result;
  }

  static typename GatedLinearAttention<T>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    typename GatedLinearAttention<T>::Config result;
    result.channels = config.integer("dim");
    result.heads = config.integer("heads");
    result.key_value_heads = config.integer("kv_heads", result.heads);
    result.key_channels = Index(std::lround(double(result.channels) * config.number("expand_k")));
    result.value_channels = Index(std::lround(double(result.channels) * config.number("expand_v")));
    result.convolution = convolution_of(config);
    result.gate_rank = config.integer("gate_low_rank_dim");
    result.gate_logit_normalizer = T(config.number("gate_logit_normalizer"));
    if (config.has("clamp_min")) result.clamp_min = T(config.number("clamp_min"));
    config.ignore("clamp_min");
    result.output_gate = config.boolean("use_output_gate");
    config.expect("gate_fn", "swish");
    result.norm_eps = T(config.number("norm_eps"));
    return result;
  }
};

const GoldenRegistration<GatedLinearAttentionCoreGolden> core_golden{"gated_linear_attention", "core"};
const GoldenRegistration<GatedLinearAttentionLayerGolden> layer_golden{"gated_linear_attention", "layer"};

// --- mixer ------------------------------------------------------------------------------------------------------------

struct GatedLinearAttentionTests {
  static constexpr const char* name = "gated_linear_attention";
  template <class T>
  using Mixer = GatedLinearAttention<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index heads = rng.integer(1, 5);
    return {{"one head of 1", {.channels = 3, .heads = 1, .key_channels = 1, .value_channels = 1, .gate_rank = 1}},
            {"two heads, one of keys, convolved",
             {.channels = 8,
              .heads = 2,
              .key_value_heads = 1,
              .key_channels = 6,
              .convolution = {.convolve = true, .bias = true},
              .gate_rank = 3,
              .clamp_min = T(-0.04)}},
            {"no output gate, width 2",
             {.channels = 9,
              .heads = 3,
              .key_channels = 15,
              .value_channels = 12,
              .convolution = {.convolve = true, .width = 2},
              .gate_rank = 2,
              .gate_logit_normalizer = T(1),
              .output_gate = false}},
            {"head_dim 64", {.channels = 64, .heads = 1, .key_channels = 64}},
            {"random",
             {.channels = rng.integer(1, 33),
              .heads = heads,
              .key_channels = heads * rng.integer(1, 17),
              .value_channels = heads * rng.integer(1, 17),
              .convolution = {.convolve = rng.integer(0, 1) == 1, .width = rng.integer(1, 6)},
              .gate_rank = rng.integer(1, 9)}}};
  }

  static Matrixd reference(const GatedLinearAttention<double>::Config& config,
                           const GatedLinearAttention<double>::Weights& weights, const Matrixd& x) {
    const Index H = config.heads, Hk = config.key_value_heads == 0 ? H : config.key_value_heads;
    const auto activation = config.convolution.convolve ? silu : +[](double value) { return value; };
    const auto& conv = weights.convolution;
    const Matrixd q = map(short_convolution(linear(x, weights.query), conv.query, conv.query_bias), activation);
    const Matrixd k = map(short_convolution(linear(x, weights.key), conv.key, conv.key_bias), activation);
    const Matrixd v = map(short_convolution(linear(x, weights.value), conv.value, conv.value_bias), activation);
    const Matrixd g = map(linear(linear(x, weights.decay_down), weights.decay_up, weights.decay_bias), [&](double z) {
      const double log_decay = log_sigmoid(z) / config.gate_logit_normalizer;
      return config.clamp_min ? std::max(log_decay, *config.clamp_min) : log_decay;
    });
    const Index K = q.cols() / H, V = v.cols() / Hk;
    Matrixd o(x.rows(), H * V);
    for (Index h = 0; h < H; ++h) {
      MemoryLoop memory(K, V);
      const Index shared = h / (H / Hk);
      const Matrixd q_h = head(q, h, H), k_h = head(k, shared, Hk), v_h = head(v, shared, Hk),
                    g_h = head(g, shared, Hk);
      Matrixd o_h(x.rows(), V);
      for (Index t = 0; t < x.rows(); ++t) {
        memory.decay(g_h.row(t));
        memory.add(k_h.row(t), v_h.row(t));
        o_h.row(t) = memory.read(q_h.row(t)) / std::sqrt(double(K));
      }
      set_head(o, h, H, rms_norm(o_h, config.norm_eps, weights.norm));
    }
    if (config.output_gate) o = o.cwiseProduct(map(linear(x, weights.gate), silu));
    return linear(o, weights.output);
  }
};

const MixerRegistration<GatedLinearAttentionTests> mixer;

}  // namespace
}  // namespace seqmix::test
