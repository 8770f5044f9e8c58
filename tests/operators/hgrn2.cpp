// HGRN2: the core function, and the layers of flash-linear-attention and of the authors.
#include <cmath>
#include <memory>
#include <seqmix/recurrent/hgrn2.hpp>

#include "support/recurrence_golden.hpp"
#include "support/recurrence_reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

template <class T>
struct Hgrn2CoreGolden final : GoldenRunner<T> {
  explicit Hgrn2CoreGolden(GoldenCase& golden)
      : heads(golden.config().integer("heads")),
        key_dim(golden.config().integer("head_f_dim")),
        value_dim(golden.config().integer("head_i_dim")),
        query(golden.array<T>("input.q", {-1, heads, key_dim})),
        log_decay(golden.array<T>("input.g", {query.size(0), heads, key_dim})),
        value(golden.array<T>("input.v", {query.size(0), heads, value_dim})),
        output({query.size(0), heads, value_dim}),
        initial({heads, key_dim, value_dim}) {
    golden.config().expect("scale", "K^-0.5 on q");
    golden.config().expect("k", "1-exp(g)");
    golden.config().expect("causal", true);
    golden.config().expect("state_layout", "[H,K,V]");
    if (golden.has("input.state.h")) initial = golden.array<T>("input.state.h", initial.shape());
  }
  Index length() const override { return query.size(0); }
  void reset() override { memory = initial; }
  void run(Index begin, Index count) override {
    hgrn2<T>(query.heads().rows(begin, count), log_decay.heads().rows(begin, count), value.heads().rows(begin, count),
             std::pow(T(key_dim), T(-0.5)), {memory.data(), heads, key_dim, value_dim},
             output.heads().rows(begin, count), this->workspace);
  }
  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", output);
    outputs.add("state.h", memory);
  }

  Index heads, key_dim, value_dim;
  GoldenArray<T> query, log_decay, value, output, initial, memory;
};

/// The weights of a layer M, whose lower bounds are an input of the file unless they are not to be used.
template <class M>
typename M::Weights weights_with_bound(GoldenCase& golden, bool use_bound = true) {
  typename M::Weights weights{};
  golden.read_weights(weights);
  if (use_bound && golden.has("input.lower_bound")) {
    weights.lower_bound = golden.vector<typename M::Scalar>("input.lower_bound");
  }
  golden.ignore("input.lower_bound");
  return weights;
}

template <class T>
struct FlaHgrn2Golden final : ConvolvedLayerGolden<Hgrn2<T>> {
  using Base = ConvolvedLayerGolden<Hgrn2<T>>;

  // Layer 0 of a model does not use its bounds.
  explicit FlaHgrn2Golden(GoldenCase& golden)
      : Base(golden, config(golden),
             weights_with_bound<Hgrn2<T>>(golden, golden.config().integer("layer_idx", Index(1)) > 0),
             {"h", "conv_q", "conv_f", "conv_i"}) {}

  static typename Hgrn2<T>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    typename Hgrn2<T>::Config result;
    result.channels = config.integer("hidden_size");
    result.key_dim = config.integer("expand_ratio");
    result.heads = config.integer("heads", Index(0));
    result.convolution = convolution_of(config);
    result.norm_eps = T(config.number("rms_eps_used", 1e-5));
    config.ignore("norm_eps");  // the implementation does not use it
    config.expect("causal", true);
    config.expect("head_f_dim", result.key_dim);
    const Index heads = result.heads == 0 ? result.channels / result.key_dim : result.heads;
    config.expect("head_i_dim", result.channels / heads);
    config.expect("scale", "K^-0.5 on q");
    config.expect("state_layout", "[H,K,V]");
    return result;
  }
};

template <class T>
struct AuthorsHgrn2Golden final : GoldenLayer<Hgru2<T>> {
  using Base = GoldenLayer<Hgru2<T>>;
  using State = typename Hgru2<T>::State;

  explicit AuthorsHgrn2Golden(GoldenCase& golden)
      : Base(golden, config(golden), weights_with_bound<Hgru2<T>>(golden)) {}

  static typename Hgru2<T>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    typename Hgru2<T>::Config result;
    result.channels = config.integer("embed_dim");
    result.head_dim = config.integer("expand_ratio");
    result.bias = config.boolean("bias", true);
    result.norm_eps = T(config.number("norm_eps"));
    config.expect("heads", result.channels / result.head_dim);
    config.expect("act", "silu");
    config.expect("uv_act", "sigmoid");
    config.expect("norm", "layernorm over embed_dim");
    config.expect("causal", true);
    config.expect("scale", 1.0);
    config.ignore("lower_bound");
    return result;
  }
  void read_state(GoldenCase& golden, State& state) override {
    if (golden.has("input.state.h")) golden.copy("input.state.h", state.memory);
  }
  void collect_state(const State& state, GoldenOutputs& outputs) const override {
    outputs.add("state.h", state.memory);
  }
};

/// One of the two layers.
template <class T>
struct Hgrn2LayerGolden {
  static std::unique_ptr<GoldenRunner<T>> make(GoldenCase& golden) {
    const std::string variant = golden.config().text("variant");
    if (variant == "fla") return std::make_unique<FlaHgrn2Golden<T>>(golden);
    if (variant == "hgru2") return std::make_unique<AuthorsHgrn2Golden<T>>(golden);
    golden.config().unknown("variant");
  }
};

const GoldenRegistration<Hgrn2CoreGolden> core_golden{"hgrn2", "core"};
const GoldenRegistration<Hgrn2LayerGolden> layer_golden{"hgrn2", "layer"};

// --- naive reference --------------------------------------------------------------------------------------------------

/// The recurrence with scale 1, from the preactivations f of the gates.
Matrixd hgrn2_heads(const Matrixd& q, const Matrixd& f, const Vectord& lower_bound, const Matrixd& v, Index heads) {
  Matrixd o(q.rows(), v.cols());
  for (Index h = 0; h < heads; ++h) {
    const Matrixd q_h = head(q, h, heads), f_h = head(f, h, heads), v_h = head(v, h, heads);
    Matrixd o_h(q.rows(), v_h.cols());
    MemoryLoop memory(q_h.cols(), v_h.cols());
    for (Index t = 0; t < q.rows(); ++t) {
      Matrixd log_decay(1, q_h.cols()), key(1, q_h.cols());
      for (Index i = 0; i < q_h.cols(); ++i) {
        const double bound = lower_bound.size() > 0 ? lower_bound[h * q_h.cols() + i] : 0;
        log_decay(0, i) = std::log(bound + (1 - bound) * sigmoid(f_h(t, i)));
        key(0, i) = (1 - bound) * sigmoid(-f_h(t, i));
      }
      memory.decay(log_decay);
      memory.add(key, v_h.row(t));
      o_h.row(t) = memory.read(q_h.row(t));
    }
    set_head(o, h, heads, o_h);
  }
  return o;
}

/// Lower bounds from 0 to nearly 1.
Vectord random_bounds(Index size, Rng& rng) {
  return Vectord::NullaryExpr(size, [&] { return std::max(0.0, 1 - std::exp(rng.uniform(-9, 0.5))); });
}

// --- mixers -----------------------------------------------------------------------------------------------------------

struct Hgrn2Tests {
  static constexpr const char* name = "hgrn2";
  template <class T>
  using Mixer = Hgrn2<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index heads = rng.integer(1, 4);
    return {
        {"three heads of 1", {.channels = 3, .key_dim = 1}},
        {"two heads of 4, convolved", {.channels = 8, .key_dim = 4, .convolution = {.convolve = true, .bias = true}}},
        {"three heads of 5 and 2", {.channels = 6, .heads = 3, .key_dim = 5, .norm_eps = T(1e-3)}},
        {"head_dim 64", {.channels = 64, .key_dim = 64}},
        {"random",
         {.channels = heads * rng.integer(1, 12),
          .heads = heads,
          .key_dim = rng.integer(1, 17),
          .convolution = {.convolve = rng.integer(0, 1) == 1, .width = rng.integer(1, 6)}}}};
  }
  static Hgrn2<double>::Weights weights(const Hgrn2<double>::Config& config, Rng& rng) {
    auto result = Hgrn2<double>::random_weights(config, rng);
    stir(result, rng);
    if (config.key_dim > 1) result.lower_bound = random_bounds(result.forget.rows(), rng);
    return result;
  }
  static Matrixd reference(const Hgrn2<double>::Config& config, const Hgrn2<double>::Weights& weights,
                           const Matrixd& x) {
    const auto& c = weights.convolution;
    const Matrixd q = map(short_convolution(linear(x, weights.query), c.query, c.query_bias), silu);
    const Matrixd f = short_convolution(linear(x, weights.forget), c.key, c.key_bias);
    const Matrixd v = short_convolution(linear(x, weights.input), c.value, c.value_bias);
    const Matrixd o = hgrn2_heads(q / std::sqrt(double(config.key_dim)), f, weights.lower_bound, v,
                                  weights.forget.rows() / config.key_dim);
    return linear(rms_norm(o, config.norm_eps, weights.norm), weights.output);
  }
};

/// Gates from e^-60 to 1 - e^-16 side by side, without lower bounds.
struct ExtremeHgrn2Tests : Hgrn2Tests {
  static constexpr const char* name = "hgrn2, extreme gates";

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng&) {
    return {{"two heads of 8", {.channels = 16, .key_dim = 8}}};
  }
  static Hgrn2<double>::Weights weights(const Hgrn2<double>::Config& config, Rng& rng) {
    auto result = Hgrn2<double>::random_weights(config, rng);
    stir(result, rng);
    for (Index c = 0; c < result.forget.rows(); ++c) result.forget.row(c) *= std::exp(rng.uniform(0, 4));
    return result;
  }
};

struct Hgru2Tests {
  static constexpr const char* name = "hgrn2, the authors' layer";
  template <class T>
  using Mixer = Hgru2<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index head_dim = rng.integer(1, 9);
    return {{"three heads of 1", {.channels = 3, .head_dim = 1}},
            {"two heads of 4, no biases", {.channels = 8, .head_dim = 4, .bias = false}},
            {"head_dim 64", {.channels = 64, .head_dim = 64, .norm_eps = T(1e-3)}},
            {"random", {.channels = head_dim * rng.integer(1, 5) + 3 * head_dim, .head_dim = head_dim}}};
  }
  static Hgru2<double>::Weights weights(const Hgru2<double>::Config& config, Rng& rng) {
    auto result = Hgru2<double>::random_weights(config, rng);
    stir(result, rng);
    if (config.head_dim > 1) result.lower_bound = random_bounds(config.channels, rng);
    return result;
  }
  static Matrixd reference(const Hgru2<double>::Config& config, const Hgru2<double>::Weights& weights,
                           const Matrixd& x) {
    const Index D = config.channels;
    const Matrixd feature = linear(x, weights.input, weights.input_bias);
    const Matrixd o = hgrn2_heads(map(feature.middleCols(D, D), sigmoid), feature.rightCols(D), weights.lower_bound,
                                  map(feature.leftCols(D), silu), D / config.head_dim);
    return linear(layer_norm(o, config.norm_eps, weights.norm_weight, weights.norm_bias), weights.output,
                  weights.output_bias);
  }
};

const MixerRegistration<Hgrn2Tests> mixer;
const MixerRegistration<ExtremeHgrn2Tests> extreme_mixer;
const MixerRegistration<Hgru2Tests> authors_mixer;

}  // namespace
}  // namespace seqmix::test
