// Retention: the core function, and the layers of torchscale and of flash-linear-attention.
#include <cmath>
#include <memory>
#include <seqmix/recurrent/multi_scale_retention.hpp>
#include <seqmix/recurrent/retention.hpp>

#include "retention_reference.hpp"
#include "support/golden.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

template <class T>
struct RetentionCoreGolden final : GoldenRunner<T> {
  explicit RetentionCoreGolden(GoldenCase& golden)
      : heads(golden.config().integer("heads")),
        key_dim(golden.config().integer("head_dim")),
        value_dim(golden.config().integer("value_head_dim", key_dim)),
        query(golden.array<T>("input.q", {-1, -1, key_dim})),
        key(golden.array<T>("input.k", {-1, -1, key_dim})),
        value(golden.array<T>("input.v", {-1, -1, value_dim})),
        output({query.size(0), heads, value_dim}),
        initial({heads, key_dim, value_dim}) {
    auto& config = golden.config();
    config.expect("causal", true);
    config.expect("scale", "head_dim^-0.5 on q");
    config.ignore("state_layout");
    if (config.has("decay") && config.text("decay") == "1-2^(-5-h)") {
      const Vector<double> paper = retention_log_decay<double>(heads);
      log_decay = retention_log_decay<T>(heads);
      if (golden.has("input.log_gamma") && !golden.vector<double>("input.log_gamma").isApprox(paper, 1e-12)) {
        throw GoldenError("input.log_gamma is not log(1 - 2^(-5-h))");
      }
    } else {
      config.expect("decay", "given in input.log_gamma");
      log_decay = golden.vector<T>("input.log_gamma");
    }
    if (golden.has("input.state.s")) initial = golden.array<T>("input.state.s", {heads, key_dim, value_dim});
  }
  Index length() const override { return query.size(0); }
  void reset() override { memory = initial; }
  void run(Index begin, Index count) override {
    retention<T>(query.heads().rows(begin, count), key.heads().rows(begin, count), value.heads().rows(begin, count),
                 log_decay, std::pow(T(key_dim), T(-0.5)), {memory.data(), heads, key_dim, value_dim},
                 output.heads().rows(begin, count), this->workspace);
  }
  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", output);
    outputs.add("state.s", memory);
  }

  Index heads, key_dim, value_dim;
  GoldenArray<T> query, key, value, output, initial, memory;
  Vector<T> log_decay;
};

// Torchscale keeps the memory transposed, with the factor of the keys, and divided by the root of its scale.
template <class T>
struct TorchscaleGolden final : GoldenLayer<Retention<T>> {
  using Base = GoldenLayer<Retention<T>>;
  using State = typename Retention<T>::State;

  explicit TorchscaleGolden(GoldenCase& golden) : Base(golden, config(golden)) {}

  static typename Retention<T>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    typename Retention<T>::Config result;
    result.channels = config.integer("embed_dim");
    result.heads = config.integer("heads");
    result.value_channels = config.integer("value_dim", 2 * result.channels);
    result.norm_eps = T(config.number("layernorm_eps"));
    result.start_position = config.integer("start_position", 0);
    const std::string gate = config.text("gate_fn", "swish"), mode = config.text("mode");
    if (gate == "gelu") {
      result.gate = RetentionGate::exact_gelu;
    } else if (gate != "swish" && gate != "silu") {
      config.unknown("gate_fn");
    }
    const Index chunk = config.integer("chunk", 0);
    if (mode == "chunkwise") {
      result.form = RetentionForm::chunkwise;
      result.chunk = chunk;
    } else if (mode == "parallel") {
      result.form = RetentionForm::parallel;
    } else if (mode != "recurrent") {
      config.unknown("mode");
    }
    config.expect("variant", "torchscale");
    config.expect("causal", true);
    config.expect("key_head_dim", result.channels / result.heads);
    config.expect("head_dim", result.value_channels / result.heads);
    config.ignore("state_layout");
    return result;
  }

  void read_state(GoldenCase& golden, State& state) override {
    if (golden.has("input.state.scale")) golden.copy("input.state.scale", state.scale);
    if (!golden.has("input.state.prev_key_value")) return;
    const auto given = golden.template array<T>("input.state.prev_key_value", {heads(), value_dim(), key_dim()});
    each([&](Index h, Index i, Index j, Index stored) {
      state.memory[std::size_t((h * key_dim() + i) * value_dim() + j)] = given[stored] * factor(state, h);
    });
  }
  void collect_state(const State& state, GoldenOutputs& outputs) const override {
    std::vector<T> stored_memory(state.memory.size());
    each([&](Index h, Index i, Index j, Index stored) {
      const T memory = state.memory[std::size_t((h * key_dim() + i) * value_dim() + j)];
      stored_memory[std::size_t(stored)] = state.scale[std::size_t(h)] > 0 ? memory / factor(state, h) : T(0);
    });
    outputs.add("state.prev_key_value", stored_memory);
    outputs.add("state.scale", state.scale);
  }

 private:
  Index heads() const { return this->mixer().config().heads; }
  Index key_dim() const { return this->mixer().config().channels / heads(); }
  Index value_dim() const { return this->mixer().config().value_channels / heads(); }

  // S / M: torchscale multiplies its keys by K^-0.5.
  T factor(const State& state, Index h) const { return std::sqrt(state.scale[std::size_t(h)] * T(key_dim())); }

  // f(h, key channel, value channel, index in [heads, value_dim, key_dim]).
  template <class F>
  void each(F f) const {
    for (Index h = 0, stored = 0; h < heads(); ++h) {
      for (Index j = 0; j < value_dim(); ++j) {
        for (Index i = 0; i < key_dim(); ++i, ++stored) f(h, i, j, stored);
      }
    }
  }
};

template <class T>
struct FlaGolden final : GoldenLayer<MultiScaleRetention<T>> {
  using Base = GoldenLayer<MultiScaleRetention<T>>;
  using State = typename MultiScaleRetention<T>::State;

  explicit FlaGolden(GoldenCase& golden) : Base(golden, config(golden)) {}

  static typename MultiScaleRetention<T>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    config.expect("variant", "fla");
    typename MultiScaleRetention<T>::Config result;
    result.channels = config.integer("hidden_size");
    result.heads = config.integer("num_heads");
    result.key_value_heads = config.integer("num_kv_heads", result.heads);
    result.key_channels = widened(result.channels, config.number("expand_k", 1.0));
    result.value_channels = widened(result.channels, config.number("expand_v", 2.0));
    result.norm_eps = T(config.number("norm_eps"));
    result.start_position = config.integer("start_position", 0);
    config.expect("causal", true);
    config.expect("head_dim", result.key_channels / result.heads);
    config.expect("value_head_dim", result.value_channels / result.heads);
    config.expect("scale", "K^-0.5 on q");
    config.expect("gate_fn", "swish");
    config.ignore("rotary");
    config.ignore("state_layout");
    return result;
  }
  void read_state(GoldenCase& golden, State& state) override {
    if (golden.has("input.state.s")) golden.copy("input.state.s", state.memory);
  }
  void collect_state(const State& state, GoldenOutputs& outputs) const override {
    outputs.add("state.s", state.memory);
  }

 private:
  static Index widened(Index channels, double factor) { return Index(std::floor(double(channels) * factor + 1e-9)); }
};

template <class T>
struct RetentionLayerGolden {
  static std::unique_ptr<GoldenRunner<T>> make(GoldenCase& golden) {
    if (golden.config().has("variant") && golden.config().text("variant") == "fla") {
      return std::make_unique<FlaGolden<T>>(golden);
    }
    return std::make_unique<TorchscaleGolden<T>>(golden);
  }
};

const GoldenRegistration<RetentionCoreGolden> core_golden{"retention", "core"};
const GoldenRegistration<RetentionLayerGolden> layer_golden{"retention", "layer"};

// --- mixers -----------------------------------------------------------------------------------------------------------

struct RetentionTests {
  static constexpr const char* name = "retention";
  template <class T>
  using Mixer = Retention<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index heads = rng.integer(1, 5);
    return {
        {"one head, key_dim 2, value_dim 1", {.channels = 2, .value_channels = 1}},
        {"two heads, default values", {.channels = 8, .heads = 2}},
        {"three heads, key_dim 6, value_dim 5", {.channels = 18, .heads = 3, .value_channels = 15}},
        {"gelu gate", {.channels = 12, .heads = 2, .gate = RetentionGate::exact_gelu}},
        {"another epsilon", {.channels = 12, .heads = 2, .norm_eps = T(1e-3)}},
        {"start at position 1000003", {.channels = 16, .heads = 2, .start_position = 1000003}},
        {"head_dim 64", {.channels = 64, .heads = 1, .value_channels = 64}},
        {"random",
         {.channels = 2 * heads * rng.integer(1, 8), .heads = heads, .value_channels = heads * rng.integer(1, 17)}}};
  }
  static Matrixd reference(const Retention<double>::Config& config, const Retention<double>::Weights& weights,
                           const Matrixd& x) {
    return retention_layer(config, weights, x);
  }
};

struct FlaRetentionTests {
  static constexpr const char* name = "retention, flash-linear-attention";
  template <class T>
  using Mixer = MultiScaleRetention<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index shared = rng.integer(1, 2), heads = shared * rng.integer(1, 3);
    return {{"one head, key_dim 2, value_dim 1", {.channels = 2, .value_channels = 1}},
            {"two heads, defaults", {.channels = 8, .heads = 2}},
            {"four heads share one key and value", {.channels = 8, .heads = 4, .key_value_heads = 1}},
            {"odd channels, key_dim 4, value_dim 5, groups of 3",
             {.channels = 11, .heads = 6, .key_value_heads = 2, .key_channels = 24, .value_channels = 30}},
            {"another epsilon", {.channels = 12, .heads = 2, .norm_eps = T(1e-2)}},
            {"start at position 1000003", {.channels = 16, .heads = 2, .start_position = 1000003}},
            {"head_dim 64", {.channels = 64, .heads = 1, .value_channels = 64}},
            {"random",
             {.channels = rng.integer(1, 40),
              .heads = heads,
              .key_value_heads = shared,
              .key_channels = 2 * heads * rng.integer(1, 8),
              .value_channels = heads * rng.integer(1, 17)}}};
  }
  static Matrixd reference(const MultiScaleRetention<double>::Config& config,
                           const MultiScaleRetention<double>::Weights& weights, const Matrixd& x) {
    return fla_layer(config, weights, x);
  }
};

const MixerRegistration<RetentionTests> torchscale;
const MixerRegistration<FlaRetentionTests> flash_linear_attention;

}  // namespace
}  // namespace seqmix::test
