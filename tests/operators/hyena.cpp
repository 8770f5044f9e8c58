// Hyena, of both versions, and its long convolution.
#include <cmath>
#include <seqmix/convolution/hyena.hpp>
#include <seqmix/engine/convolution_fft.hpp>

#include "support/golden.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

template <class T>
struct HyenaCoreGolden final : GoldenRunner<T> {
  explicit HyenaCoreGolden(GoldenCase& golden) : x(golden.array<T>("input.u")), y(x.shape()) {
    auto& config = golden.config();
    const Index D = config.integer("dim");
    config.ignore("kernel_length"), config.ignore("fft_size");
    gelu = config.boolean("gelu");
    both = config.boolean("bidirectional");
    config.expect("causal", !both);
    Matrix<T> filter = golden.matrix<T>("weight.k");
    if (config.boolean("bias_D")) filter.col(0) += golden.vector<T>("weight.D");
    if (both) {
      const Matrix<T> reverse = golden.matrix<T>("weight.k_rev");
      filter.col(0) += reverse.col(0);
      long_convolution = LongConvolution<T>::bidirectional("hyena", D, x.size(0), filter,
                                                           Matrix<T>(reverse.rightCols(reverse.cols() - 1)));
    } else {
      convolution = StreamingConvolution<T>("hyena", D, filter);
    }
  }
  Index length() const override { return x.size(0); }
  bool stepwise() const override { return !both; }
  void reset() override { past = both ? Tensor<T>() : Tensor<T>(convolution.state_shape()); }
  void run(Index begin, Index count) override {
    const auto rows = y.sequence().rows(begin, count);
    convolution.run(past.data(), begin, x.sequence().rows(begin, count), rows, this->workspace);
    if (gelu) apply_gelu(rows);
  }
  void whole() override {
    if (both) {
      long_convolution.run(x.sequence(), y.sequence(), this->workspace);
    } else {
      convolution.forward(x.sequence(), y.sequence(), this->workspace);
    }
    if (gelu) apply_gelu(y.sequence());
  }
  void collect(GoldenOutputs& outputs) const override { outputs.add("y", y); }

  GoldenArray<T> x, y;
  bool gelu = false, both = false;
  StreamingConvolution<T> convolution;
  LongConvolution<T> long_convolution;
  Tensor<T> past;
};

template <class T>
struct HyenaLayerGolden final : GoldenLayer<Hyena<T>> {
  using State = typename Hyena<T>::State;

  explicit HyenaLayerGolden(GoldenCase& golden) : GoldenLayer<Hyena<T>>(golden, config(golden)) {
    // Past the samples of its filter the reference gives nothing.
    rows = std::min(this->length(), this->mixer().config().filter.samples);
    this->keep_rows(rows);
  }

  static typename Hyena<T>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    for (const char* key : {"num_heads", "inner_factor", "num_blocks"}) config.expect(key, 1);
    config.expect("causal", true);
    config.expect("filter_activation", "sin(freq*x), ONE shared freq");
    for (const char* key : {"w", "target", "fast_decay_pct", "slow_decay_pct"})
      config.ignore(key);  // of initial weights
    const bool full = config.text("variant").starts_with("full");
    const std::string activation = config.text("activation", "id");
    HyenaActivation then = HyenaActivation::none;
    if (activation == "gelu") {
      then = HyenaActivation::exact_gelu;
    } else if (activation == "silu" || activation == "swish") {
      then = HyenaActivation::swish;
    } else if (activation == "relu") {
      then = HyenaActivation::relu;
    } else if (activation == "tanh") {
      then = HyenaActivation::hyperbolic;
    } else if (activation != "id") {
      config.unknown("activation");
    }
    return {.channels = config.integer("d_model"),
            .order = config.integer("order"),
            .short_width = config.integer("short_filter_order"),
            .filter = {.samples = config.integer("l_max"),
                       .features = config.integer("emb_dim"),
                       .width = config.integer("filter_order"),
                       .inner_layers = config.integer("num_inner_mlps"),
                       .modulate = config.boolean("modulate"),
                       .shift = config.number("shift"),
                       .normalize = config.boolean("normalized", false)},
            .layout = full ? HyenaLayout::order_fastest : HyenaLayout::channel_fastest,
            .activation = then,
            .scale_orders = config.boolean("post_order_ffn", false)};
  }
  void collect_state(const State&, GoldenOutputs& outputs) const override {
    outputs.add("filter", Matrix<double>(this->mixer().filter().topRows(rows)));
  }

  Index rows = 0;
};

const GoldenRegistration<HyenaCoreGolden> core_golden{"hyena", "core"};
const GoldenRegistration<HyenaLayerGolden> layer_golden{"hyena", "layer"};

struct HyenaTests {
  static constexpr const char* name = "hyena";
  template <class T>
  using Mixer = Hyena<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    return {
        {"one channel", {.channels = 1, .filter = {.samples = 2, .features = 1, .width = 1, .inner_layers = 0}}},
        {"five channels, order 2", {.channels = 5, .filter = {.samples = 150, .width = 6}}},
        {"order 3, full version",
         {.channels = 4,
          .order = 3,
          .short_width = 4,
          .filter = {.samples = 300, .features = 5, .width = 5, .inner_layers = 1, .shift = 0.05, .normalize = true},
          .layout = HyenaLayout::order_fastest,
          .activation = HyenaActivation::exact_gelu,
          .scale_orders = true}},
        {"order 3, balanced",
         {.channels = 3, .order = 3, .filter = {.samples = 170, .width = 4}, .schedule = StreamingSchedule::balanced}},
        {"order 4, no window, short filters",
         {.channels = 9,
          .order = 4,
          .short_width = 1,
          .filter = {.samples = 20, .width = 4, .modulate = false},
          .activation = HyenaActivation::hyperbolic}},
        {"random",
         {.channels = rng.integer(1, 20),
          .filter = {.samples = rng.integer(65, 130), .features = 2 * rng.integer(0, 3) + 1, .width = 8},
          .activation = HyenaActivation::swish}}};
  }

  static Hyena<double>::Weights weights(const Hyena<double>::Config& config, Rng& rng) {
    auto result = Hyena<double>::random_weights(config, rng);
    const Matrixd time = result.filter.time;
    stir(result, rng);
    result.filter.time = time;  // windows that fade
    return result;
  }

  static Matrixd reference(const Hyena<double>::Config& config, const Hyena<double>::Weights& weights,
                           const Matrixd& x) {
    const Index L = x.rows(), D = config.channels, p = config.order, w = config.short_width;
    const auto& f = weights.filter;
    Matrixd h(config.filter.samples, D * (p - 1));
    for (Index l = 0; l < h.rows(); ++l) {
      Matrixd a = f.features.row(l);
      const auto last = std::size_t(config.filter.inner_layers) + 1;
      for (std::size_t i = 0; i < last; ++i) {
        a = linear(a, f.layer[i], f.bias[i]);
        for (Index r = 0; r < a.cols(); ++r) a(0, r) = std::sin(f.frequency(0, r) * a(0, r));
      }
      h.row(l) = linear(a, f.layer[last]);
      double sum = 0;
      for (Index c = 0; c < h.cols(); ++c) {
        if (config.filter.modulate) {
          h(l, c) *= std::exp(-f.time(l, 0) * std::abs(f.deltas[c])) + config.filter.shift;
        }
        sum += std::abs(h(l, c));
      }
      if (config.filter.normalize) h.row(l) /= sum;
    }
    const Matrixd projected = linear(x, weights.input, weights.input_bias);
    Matrixd streams(L, (p + 1) * D);
    for (Index t = 0; t < L; ++t) {
      for (Index c = 0; c < streams.cols(); ++c) {
        streams(t, c) = weights.short_filter_bias[c];
        for (Index j = 0; j < w; ++j) {
          const Index s = t - w + 1 + j;
          if (s >= 0) streams(t, c) += weights.short_filter(c, j) * projected(s, c);
        }
      }
    }
    Matrixd v = streams.rightCols(D);
    for (Index o = 0; o + 1 < p; ++o) {
      Matrixd gated(L, D), next(L, D);
      for (Index t = 0; t < L; ++t) {
        for (Index d = 0; d < D; ++d) gated(t, d) = v(t, d) * streams(t, (p - 1 - o) * D + d);
      }
      for (Index d = 0; d < D; ++d) {
        const Index column = config.layout == HyenaLayout::channel_fastest ? o * D + d : d * (p - 1) + o;
        for (Index t = 0; t < L; ++t) {
          double sum = (weights.filter_bias[column] + h(0, column)) * gated(t, d);
          for (Index l = 1; l <= t && l < h.rows(); ++l) sum += h(l, column) * gated(t - l, d);
          next(t, d) = config.scale_orders ? weights.order_scale(o, 0) * sum : sum;
        }
      }
      v = next;
    }
    const auto after = [&](double z) {
      switch (config.activation) {
        case HyenaActivation::exact_gelu:
          return gelu(z);
        case HyenaActivation::swish:
          return silu(z);
        case HyenaActivation::relu:
          return z < 0 ? 0 : z;
        case HyenaActivation::hyperbolic:
          return std::tanh(z);
        case HyenaActivation::none:
          break;
      }
      return z;
    };
    for (Index t = 0; t < L; ++t) {
      for (Index d = 0; d < D; ++d) v(t, d) = after(v(t, d) * streams(t, d));
    }
    return linear(v, weights.output, weights.output_bias);
  }
};

const MixerRegistration<HyenaTests> mixer;

}  // namespace
}  // namespace seqmix::test
