// Hyena: gates and long convolutions by turns, with filters that are functions of time.
//
//   Source    Poli et al. 2023, arXiv:2302.10866; HazyResearch/safari, standalone_hyena.py and
//             src/models/sequence/hyena.py (HyenaOperator)
//   Glossary  L length   D channels   p order   w width of the short convolution   n samples of a filter
//   Engine    engine/convolution_streaming.hpp; parts/implicit_filter.hpp, parts/short_convolution.hpp
//   Size      a layer of any order in its standalone and its full version, and a state of several convolutions
//
//   (x_0, x_1 .. x_{p-1}, v) = short convolution of (W_in x + b_in),   D channels each
//   for o = 0 .. p - 2:   v = (h_o + bias_o) * (v x_{p-1-o}),   * the causal convolution, the bias a further tap at lag 0
//   y = W_out act(v x_0) + b_out
//
// The taps and the bias of order o and channel d stand in column o D + d, or in the authors' full version in d (p - 1) + o. That
// also multiplies the result of each convolution by a number, where asked for (post_order_ffn).
// Differs   from the authors' code in that sequences may be longer than filters, which have no taps after n; and in that there
//           are no heads, which do not work there.
//
// Against the layer of softmax/softmax_attention.hpp, 768 channels, 12 heads, order 2 and filters as long as the sequence, one core
// of an AMD Zen 3 (forward, float, microseconds for a token): no length is too short for Hyena, as both have four projections.
//
//   tokens      128   512   2048   8192   16384   65536
//   Hyena        52    53     55     54      56      60
//   attention    55    62     89    205     365    1329
//
// Rows of forward and prefill depend on later rows by rounding errors (engine/convolution_streaming.hpp) where filters have more
// than a few dozen taps; those of steps do not.
#pragma once

#include <algorithm>
#include <cmath>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/convolution_streaming.hpp>
#include <seqmix/parts/feature_map.hpp>
#include <seqmix/parts/gate.hpp>
#include <seqmix/parts/implicit_filter.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/passes.hpp>
#include <seqmix/parts/short_convolution.hpp>
#include <vector>

namespace seqmix::inline SEQMIX_ARCH {

/// Which index of a filter's columns runs fastest: the channel (standalone version), or the order (full version).
enum class HyenaLayout { channel_fastest, order_fastest };

/// What follows the last gate.
enum class HyenaActivation { none, exact_gelu, swish, relu, hyperbolic };

/// The layer.
template <std::floating_point T>
class Hyena : public RecurrentMixerBase<Hyena<T>, T> {
 public:
  static constexpr std::string_view name = "hyena";
  static constexpr StateGrowth growth = StateGrowth::constant;
  static constexpr Causality causality = Causality::rounded;

  struct Config {
    Index channels = 0;
    Index order = 2;              ///< p, at least 2
    Index short_width = 3;        ///< w
    ImplicitFilterConfig filter;  ///< samples = n must be given
    HyenaLayout layout = HyenaLayout::channel_fastest;
    HyenaActivation activation = HyenaActivation::none;
    bool scale_orders = false;                                  ///< post_order_ffn
    StreamingSchedule schedule = StreamingSchedule::amortised;  ///< of steps

    Index filters() const { return channels * (order - 1); }
  };

  struct Weights {
    Matrix<T> input, output;  // [(p + 1) D, D], [D, D]
    Vector<T> input_bias, output_bias;
    Matrix<T> short_filter;       // [(p + 1) D, w]; the last column meets the current token
    Vector<T> short_filter_bias;  // [(p + 1) D]
    Vector<T> filter_bias;        // [D (p - 1)]
    Matrix<T> order_scale;        // [p, 1], or absent; the last is not used
    ImplicitFilterWeights<T> filter;

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("in_proj.weight", self.input, Presence::required);
      visitor("in_proj.bias", self.input_bias, Presence::required);
      visitor("out_proj.weight", self.output, Presence::required);
      visitor("out_proj.bias", self.output_bias, Presence::required);
      visitor("short_filter.weight", self.short_filter, Presence::required);
      visitor("short_filter.bias", self.short_filter_bias, Presence::required);
      visitor("filter_fn.bias", self.filter_bias, Presence::required);
      visitor("ord_proj_w", self.order_scale, Presence::optional);
      self.filter.visit(self.filter, visitor);
    }
  };

  struct State {
    Index position = 0;  // tokens seen
    Tensor<T> inputs;    // [w - 1, (p + 1) D] of the short convolution, oldest first
    Tensor<T> past;      // [p - 1, P, numbers of a row] of the long ones, see StreamingConvolution

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("position", self.position), visitor("inputs", self.inputs), visitor("past", self.past);
    }
  };

  /// Makes the filters, in double, and transforms them; O(p D n (R + log n)) time. Throws std::invalid_argument unless the
  /// shapes of `weights` follow from `config`.
  Hyena(const Config& config, const Weights& weights) : config_(config) {
    check(config);
    const Index D = config.channels, p = config.order, streams = (p + 1) * D;
    expect_tensor(name, "in_proj.weight", {streams, D}, weights.input);
    expect_tensor(name, "in_proj.bias", {streams}, weights.input_bias);
    expect_tensor(name, "out_proj.weight", {D, D}, weights.output);
    expect_tensor(name, "out_proj.bias", {D}, weights.output_bias);
    expect_tensor(name, "short_filter.weight", {streams, config.short_width}, weights.short_filter);
    expect_tensor(name, "short_filter.bias", {streams}, weights.short_filter_bias);
    expect_tensor(name, "filter_fn.bias", {config.filters()}, weights.filter_bias);
    if (config.scale_orders) expect_tensor(name, "ord_proj_w", {p, 1}, weights.order_scale);
    input_ = Linear<T>(weights.input, weights.input_bias), output_ = Linear<T>(weights.output, weights.output_bias);
    short_ = ShortConvolution<T>(name, weights.short_filter, weights.short_filter_bias, ConvolutionActivation::none,
                                 config.short_width - 1);
    filter_ = implicit_filter(name, config.filter, weights.filter, config.filters());
    for (Index o = 0; o + 1 < p; ++o) {
      Matrix<double> taps(D, config.filter.samples);
      for (Index d = 0; d < D; ++d) {
        const Index column = config.layout == HyenaLayout::channel_fastest ? o * D + d : d * (p - 1) + o;
        taps.row(d) = filter_.col(column).transpose();
        taps(d, 0) += double(weights.filter_bias[column]);
      }
      if (config.scale_orders) taps *= double(weights.order_scale(o, 0));
      convolutions_.emplace_back(name, D, taps, config.schedule);
    }
  }

  /// As torch begins projections and convolutions; biases of the long convolutions normal.
  static Weights random_weights(const Config& config, Rng& rng) {
    check(config);
    const Index D = config.channels, p = config.order, streams = (p + 1) * D;
    const double limit = std::pow(double(D), -0.5), short_limit = std::pow(double(config.short_width), -0.5);
    Weights weights;
    weights.input = random_projection<T>(streams, D, rng), weights.output = random_projection<T>(D, D, rng);
    weights.input_bias = uniform_vector<T>(streams, -limit, limit, rng);
    weights.output_bias = uniform_vector<T>(D, -limit, limit, rng);
    weights.short_filter = uniform_matrix<T>(streams, config.short_width, short_limit, rng);
    weights.short_filter_bias = uniform_vector<T>(streams, -short_limit, short_limit, rng);
    weights.filter_bias = normal_matrix<T>(config.filters(), 1, 1.0, rng).col(0);
    if (config.scale_orders) weights.order_scale = normal_matrix<T>(p, 1, 1.0, rng);
    weights.filter = random_implicit_filter<T>(name, config.filter, config.filters(), rng);
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// h [n, D (p - 1)], without the bias, columns as in checkpoints.
  const Matrix<double>& filter() const { return filter_; }

  /// y = mixer(x) for a whole sequence. x, y [L, D]. O(p L D (D + log(min(L, n)))) time, (p + 1) L D numbers of scratch; allocates
  /// a little. Throws std::invalid_argument on wrong shapes and overlapping views.
  void forward(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    internal::expect_input_output<T>(name, channels(), x, y);
    if (x.length() == 0) return;
    const auto frame = workspace.frame();
    const auto streams = workspace.sequence<T>(x.length(), short_.channels());
    State state{0, short_.initial_state(), {}};
    for_passes(x.length(), workspace, [&](Index begin, Index count) {
      State* const states[] = {&state};
      const Index offsets[] = {0, count};
      short_.apply(SequenceBatch<State>{states, offsets}, &State::inputs, input_.apply(x.rows(begin, count), workspace),
                   streams.rows(begin, count), workspace);
    });
    convolve(streams, workspace, [&](Index o, const Sequence<T>& from, const Sequence<T>& to) {
      convolutions_[std::size_t(o)].forward(from, to, workspace);
    });
    for_passes(x.length(), workspace,
               [&](Index begin, Index count) { finish(streams.rows(begin, count), y.rows(begin, count), workspace); });
  }

  /// Zeros, O(p D n) of them.
  State initial_state() const { return {0, short_.initial_state(), Tensor<T>(past_shape())}; }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const {
    expect(state.position >= 0, name, "state.position", "must not be negative");
    short_.check_state(name, "state.inputs", state.inputs);
    expect_shape(name, "state.past", past_shape(), state.past.shape());
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const auto streams = short_.apply(batch, &State::inputs, input_.apply(x, workspace), workspace);
    const Index size = past_shape().size() / (config_.order - 1);
    convolve(streams, workspace, [&](Index o, const Sequence<T>& from, const Sequence<T>& to) {
      for (Index b = 0; b < batch.size(); ++b) {
        const Index begin = batch.begin(b), count = batch.length(b);
        convolutions_[std::size_t(o)].run(batch.state(b).past.data() + o * size, batch.state(b).position,
                                          from.rows(begin, count), to.rows(begin, count), workspace);
      }
    });
    for (Index b = 0; b < batch.size(); ++b) batch.state(b).position += batch.length(b);
    finish(streams, y, workspace);
  }

 private:
  static void check(const Config& config) {
    expect(config.channels > 0 && config.order >= 2 && config.short_width > 0, name, "config.channels",
           "must be positive, as must short_width, and order at least 2");
  }

  Shape past_shape() const {
    const Shape one = convolutions_.front().state_shape();
    return {config_.order - 1, one[0], one[1]};
  }

  Sequence<T> stream(const Sequence<T>& streams, Index which) const {
    return streams.columns(which * channels(), channels());
  }

  /// Gates and convolves from the last stream on. v is left in the place of x_1, whose turn is the last.
  template <class Convolve>
  void convolve(const Sequence<T>& streams, Workspace& workspace, const Convolve& body) const {
    for (Index o = 0; o + 1 < config_.order; ++o) {
      const auto v = stream(streams, config_.order - o), gate = stream(streams, config_.order - 1 - o);
      workspace.for_row_blocks(v.length(), [&](Index begin, Index count) {
        multiply_elements<T>(v.rows(begin, count), gate.rows(begin, count));
      });
      body(o, v, gate);
    }
  }

  void finish(const Sequence<T>& streams, const Sequence<T>& y, Workspace& workspace) const {
    const auto v = stream(streams, 1);
    workspace.for_row_blocks(v.length(), [&](Index begin, Index count) {
      const auto rows = v.rows(begin, count);
      multiply_elements<T>(rows, stream(streams, 0).rows(begin, count));
      if (config_.activation == HyenaActivation::exact_gelu) apply_gelu(rows);
      if (config_.activation == HyenaActivation::swish) apply_silu(rows);
      if (config_.activation == HyenaActivation::relu) apply_activation(rows, feature_map::Relu{});
      if (config_.activation == HyenaActivation::hyperbolic) apply_tanh(rows);
    });
    output_.apply(v, y, workspace);
  }

  Config config_;
  Linear<T> input_, output_;
  ShortConvolution<T> short_;
  Matrix<double> filter_;
  std::vector<StreamingConvolution<T>> convolutions_;  // of order 0 .. p - 2
};

static_assert(RecurrentMixer<Hyena<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
