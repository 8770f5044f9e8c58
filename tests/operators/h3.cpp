// H3, and its core with a kernel of its own.
#include <complex>
#include <seqmix/engine/convolution_streaming.hpp>
#include <seqmix/ssm/h3.hpp>

#include "support/golden.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

/// Columns h P + d as d H + h, or back.
template <class T>
Matrix<T> heads_fastest(const GoldenArray<T>& rows, Index heads) {
  const Index P = rows.size(1) / heads;
  Matrix<T> result(rows.size(0), rows.size(1));
  for (Index i = 0; i < result.size(); ++i) {
    const Index c = i % result.cols();
    result.data()[i - c + c % P * heads + c / P] = rows[i];
  }
  return result;
}

template <class T>
struct H3CoreGolden final : GoldenRunner<T> {
  explicit H3CoreGolden(GoldenCase& golden)
      : heads(golden.config().integer("heads")),
        query(heads_fastest(golden.array<T>("input.q"), heads)),
        key(heads_fastest(golden.array<T>("input.k"), heads)),
        value(heads_fastest(golden.array<T>("input.v"), heads)),
        y(query.rows(), query.cols()) {
    auto& config = golden.config();
    const Index P = config.integer("head_dim");
    config.ignore("fft_size");
    width_fastest = config.text("head_out_layout").starts_with("h,");
    both = config.boolean("bidirectional");
    config.expect("causal", !both);
    const Matrix<T> kernel = golden.matrix<T>("weight.ssm_kernel");
    const Vector<T> skip = golden.vector<T>("weight.D");
    const Index wide = P * P * heads;
    Matrix<T> filter(wide, kernel.cols()), later;
    for (Index row = 0; row < wide; ++row) {
      filter.row(row) = kernel.row(row % heads);
      filter(row, 0) += skip[row % heads];
    }
    if (both) {
      const Matrix<T> reverse = golden.matrix<T>("weight.ssm_kernel_rev");
      later = Matrix<T>(wide, reverse.cols() - 1);
      for (Index row = 0; row < wide; ++row) {
        filter(row, 0) += reverse(row % heads, 0);
        later.row(row) = reverse.row(row % heads).tail(later.cols());
      }
      whole_convolution = LongConvolution<T>::bidirectional("h3", wide, query.rows(), filter, later);
    } else {
      convolution = StreamingConvolution<T>("h3", wide, filter);
    }
  }
  Index length() const override { return query.rows(); }
  bool stepwise() const override { return !both; }
  void reset() override { past = both ? Tensor<T>() : Tensor<T>(convolution.state_shape()); }
  void run(Index begin, Index count) override {
    mix(begin, count, [&](const Sequence<T>& from, const Sequence<T>& to) {
      convolution.run(past.data(), begin, from, to, this->workspace);
    });
  }
  void whole() override {
    mix(0, length(), [&](const Sequence<T>& from, const Sequence<T>& to) {
      if (both) {
        whole_convolution.run(from, to, this->workspace);
      } else {
        convolution.forward(from, to, this->workspace);
      }
    });
  }
  template <class Convolve>
  void mix(Index begin, Index count, const Convolve& convolve) {
    const auto frame = this->workspace.frame();
    const auto rows = [&](auto& matrix) { return ConstSequence<T>(matrix).rows(begin, count); };
    const Index wide = query.cols() * query.cols() / heads;
    const auto products = this->workspace.template sequence<T>(count, wide),
               mixed = this->workspace.template sequence<T>(count, wide);
    h3_products<T>(rows(key), rows(value), heads, products, this->workspace);
    convolve(products, mixed);
    h3_contraction<T>(rows(query), mixed, heads, Sequence<T>(y).rows(begin, count), this->workspace);
  }
  void collect(GoldenOutputs& outputs) const override {
    if (!width_fastest) return outputs.add("y", y);
    Matrix<T> result(y.rows(), y.cols());
    const Index P = y.cols() / heads;
    for (Index c = 0; c < y.cols(); ++c) result.col(c % heads * P + c / heads) = y.col(c);
    outputs.add("y", result);
  }

  Index heads;
  Matrix<T> query, key, value, y;
  bool width_fastest = false, both = false;
  StreamingConvolution<T> convolution;
  LongConvolution<T> whole_convolution;
  Tensor<T> past;
};

template <class T>
struct H3LayerGolden final : GoldenLayer<H3<T>> {
  using State = typename H3<T>::State;

  explicit H3LayerGolden(GoldenCase& golden) : GoldenLayer<H3<T>>(golden, config(golden)) {}

  static typename H3<T>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    config.expect("causal", true);
    for (const char* remark : {"measure", "l_max", "heads"}) config.ignore(remark);
    const Index states = config.integer("d_state");
    const std::string rule = config.text("disc", "bilinear"), layout = config.text("head_out_layout", "d2,h");
    if (rule != "zoh" && rule != "bilinear") config.unknown("disc");
    if (!layout.starts_with("d2,h") && !layout.starts_with("h,d2")) config.unknown("head_out_layout");
    return {.channels = config.integer("d_model"),
            .head_dim = config.integer("head_dim"),
            .shift_states = config.integer("shift_state", states),
            .modes = config.integer("stored_state", states / 2),
            .copies = config.integer("n_ssm", Index(0)),
            .discretization = rule == "zoh" ? Discretization::zoh : Discretization::bilinear,
            .layout = layout.starts_with("d2,h") ? H3Layout::head_fastest : H3Layout::head_slowest};
  }

  void read_state(GoldenCase& golden, State& state) override {
    if (!golden.has("input.state.shift")) return;
    Tensor<T> given({state.shift.shape()[1], state.shift.shape()[0]});
    golden.copy("input.state.shift", given);
    each_shift([&](Index file, Index own) { state.shift[std::size_t(own)] = given[std::size_t(file)]; });
    const std::size_t half = state.modes.size() / 2;
    golden.copy("input.state.ssm.real", std::span<T>(state.modes.data(), half));
    golden.copy("input.state.ssm.imag", std::span<T>(state.modes.data() + half, half));
  }
  void collect_state(const State& state, GoldenOutputs& outputs) const override {
    std::vector<T> shift(state.shift.size());
    each_shift([&](Index file, Index own) { shift[std::size_t(file)] = state.shift[std::size_t(own)]; });
    outputs.add("state.shift", shift);
    const std::size_t half = state.modes.size() / 2;
    outputs.add("state.ssm.real", std::vector<T>(state.modes.data(), state.modes.data() + half));
    outputs.add("state.ssm.imag", std::vector<T>(state.modes.data() + half, state.modes.data() + 2 * half));
  }
  /// Files have [D, N] with channels h P + d.
  template <class Body>
  void each_shift(const Body& body) const {
    const auto& config = this->mixer().config();
    const Index D = config.channels, N = config.shift_states;
    for (Index c = 0; c < D; ++c) {
      for (Index n = 0; n < N; ++n) body(c * N + n, n * D + c % config.head_dim * config.heads() + c / config.head_dim);
    }
  }
};

const GoldenRegistration<H3CoreGolden> core_golden{"h3", "core"};
const GoldenRegistration<H3LayerGolden> layer_golden{"h3", "layer"};

struct H3Tests {
  static constexpr const char* name = "h3";
  template <class T>
  using Mixer = H3<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index heads = rng.integer(1, 6);
    return {
        {"one channel", {.channels = 1, .shift_states = 1, .modes = 1}},
        {"nine heads of 1", {.channels = 9, .shift_states = 8, .modes = 4, .discretization = Discretization::zoh}},
        {"three heads of 2, bilinear", {.channels = 6, .head_dim = 2, .shift_states = 5, .modes = 3}},
        {"four heads of 3, two sets of modes, heads slowest",
         {.channels = 12, .head_dim = 3, .shift_states = 4, .modes = 2, .copies = 2, .layout = H3Layout::head_slowest}},
        {"random", {.channels = 2 * heads, .head_dim = 2, .shift_states = rng.integer(1, 20), .modes = 5}}};
  }

  static Matrixd reference(const H3<double>::Config& config, const H3<double>::Weights& weights, const Matrixd& x) {
    using Complex = std::complex<double>;
    const Index L = x.rows(), D = config.channels, P = config.head_dim, H = D / P, M = config.modes;
    const Matrixd query = linear(x, weights.query, weights.query_bias), key = linear(x, weights.key, weights.key_bias),
                  value = linear(x, weights.value, weights.value_bias);
    Matrixd shifted(L, D), y = Matrixd::Zero(L, D);
    for (Index c = 0; c < D; ++c) {
      for (Index t = 0; t < L; ++t) {
        double sum = weights.shift_skip[c] * key(t, c);
        for (Index l = 0; l <= t && l < config.shift_states; ++l) {
          double tap = 0;
          for (Index n = 0; n + l < config.shift_states; ++n) {
            tap += weights.shift_input(c, n) * weights.shift_output(c, n + l);
          }
          sum += tap * key(t - l, c);
        }
        shifted(t, c) = sum;
      }
    }
    for (Index h = 0; h < H; ++h) {
      const Index set = h % (config.copies > 0 ? config.copies : H);
      const double dt = std::exp(weights.log_dt[h]);
      std::vector<double> kernel(std::size_t(L), 0.0);
      for (Index n = 0; n < M; ++n) {
        const Complex a(-std::exp(weights.a_real(set, n)), weights.a_imag(set, n));
        const Complex b(weights.b(set * M + n, 0), weights.b(set * M + n, 1));
        const Complex c(weights.c(h * M + n, 0), weights.c(h * M + n, 1));
        Complex decay = std::exp(dt * a), power = b * (decay - 1.0) / a;
        if (config.discretization == Discretization::bilinear) {
          decay = (1.0 + dt * a / 2.0) / (1.0 - dt * a / 2.0), power = b * dt / (1.0 - dt * a / 2.0);
        }
        for (double& tap : kernel) {
          tap += 2 * (c * power).real();
          power *= decay;
        }
      }
      for (Index i = 0; i < P; ++i) {
        for (Index j = 0; j < P; ++j) {
          for (Index t = 0; t < L; ++t) {
            double sum = weights.skip[h] * shifted(t, h * P + i) * value(t, h * P + j);
            for (Index l = 0; l <= t; ++l) {
              sum += kernel[std::size_t(l)] * shifted(t - l, h * P + i) * value(t - l, h * P + j);
            }
            const Index column = config.layout == H3Layout::head_fastest ? j * H + h : h * P + j;
            y(t, column) += query(t, h * P + i) * sum;
          }
        }
      }
    }
    return linear(y, weights.output, weights.output_bias);
  }
};

const MixerRegistration<H3Tests> mixer;

}  // namespace
}  // namespace seqmix::test
