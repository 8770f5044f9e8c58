// Mamba-2: the core function and the layer.
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <seqmix/ssm/mamba2.hpp>

#include "support/recurrence_golden.hpp"
#include "support/recurrence_reference.hpp"
#include "support/registry.hpp"
#include "support/scalars.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

/// Files hold memories as [H, P, N], the library as [H, N, P].
template <class To, class From>
void transpose_heads(const From& from, Index heads, Index rows, Index columns, To& to) {
  for (Index h = 0; h < heads; ++h) {
    for (Index i = 0; i < rows; ++i) {
      for (Index j = 0; j < columns; ++j) {
        to.data()[(h * columns + j) * rows + i] = from.data()[(h * rows + i) * columns + j];
      }
    }
  }
}

/// The limits of dt, where the config has them.
template <class Limits>
void read_limits(GoldenConfig& config, Limits& limits) {
  if (!config.has("dt_limit")) return config.ignore("dt_limit");
  const auto given = config.numbers("dt_limit");
  if (given.size() != 2) config.unknown("dt_limit");
  limits.least_dt = decltype(limits.least_dt)(given[0]);
  limits.most_dt = decltype(limits.most_dt)(given[1]);
}

template <class T>
struct Mamba2CoreGolden final : GoldenRunner<T> {
  explicit Mamba2CoreGolden(GoldenCase& golden)
      : heads(golden.config().integer("heads")),
        head_dim(golden.config().integer("head_dim")),
        state_dim(golden.config().integer("state_dim")),
        groups(golden.config().integer("groups")),
        x(golden.array<T>("input.x", {-1, heads, head_dim})),
        dt(golden.array<T>("input.dt", {x.size(0), heads})),
        b(golden.array<T>("input.B", {x.size(0), groups, state_dim})),
        c(golden.array<T>("input.C", {x.size(0), groups, state_dim})),
        a(golden.array<T>("weight.A", {heads})),
        output({x.size(0), heads, head_dim}),
        initial({heads, state_dim, head_dim}) {
    auto& config = golden.config();
    if (config.boolean("has_z")) z = golden.array<T>("input.z", x.shape());
    const bool by_channel = config.boolean("D_has_hdim", false);
    if (config.boolean("has_D")) {
      const auto given =
          golden.array<T>("weight.D", by_channel ? std::vector<Index>{heads, head_dim} : std::vector{heads});
      d = Eigen::Map<const Vector<T>>(given.data(), given.size());
    }
    if (config.boolean("has_dt_bias")) dt_bias = golden.vector<T>("weight.dt_bias");
    parameters = {a.token(), d, dt_bias, config.boolean("dt_softplus")};
    read_limits(config, parameters);
    config.expect("causal", true);
    config.ignore("chunk_size");
    if (golden.has("input.state.ssm")) {
      transpose_heads(golden.array<T>("input.state.ssm", {heads, head_dim, state_dim}), heads, head_dim, state_dim,
                      initial);
    }
  }
  Index length() const override { return x.size(0); }
  void reset() override { memory = initial; }
  void run(Index begin, Index count) override {
    const auto rows = [&](const auto& view) { return view.rows(begin, count); };
    mamba2<T>(rows(x.heads()), rows(dt.sequence()), rows(b.heads()), rows(c.heads()),
              z.size() > 0 ? rows(z.heads()) : HeadSequence<T>(), parameters,
              {memory.data(), heads, state_dim, head_dim}, rows(output.heads()), this->workspace);
  }
  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", output);
    GoldenArray<T> state({heads, head_dim, state_dim});
    transpose_heads(memory, heads, state_dim, head_dim, state);
    outputs.add("state.ssm", state);
  }

  Index heads, head_dim, state_dim, groups;
  GoldenArray<T> x, dt, b, c, z, a, output, initial, memory;
  Vector<T> d, dt_bias;
  Mamba2Parameters<T> parameters;
};

template <class T>
struct Mamba2LayerGolden final : GoldenLayer<Mamba2<T>> {
  using Base = GoldenLayer<Mamba2<T>>;
  using State = typename Mamba2<T>::State;

  explicit Mamba2LayerGolden(GoldenCase& golden) : Base(golden, config(golden), weights(golden)) {}

  static typename Mamba2<T>::Weights weights(GoldenCase& golden) {
    typename Mamba2<T>::Weights result;
    golden.read_weights(result);
    return result;
  }

  static typename Mamba2<T>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    const std::string variant = config.text("variant");
    if (variant != "Mamba2" && variant != "Mamba2Simple") config.unknown("variant");
    typename Mamba2<T>::Config result;
    result.channels = config.integer("d_model");
    result.inner_channels =
        config.integer("d_inner", Index(std::lround(config.number("expand", 2) * double(result.channels))));
    config.ignore("expand");
    result.ssm_channels = config.integer("d_ssm", result.inner_channels);
    result.head_dim = config.integer("headdim");
    result.state_dim = config.integer("d_state");
    result.groups = config.integer("ngroups");
    result.convolution_width = config.integer("d_conv");
    result.convolution_bias = config.boolean("conv_bias", true);
    result.bias = config.boolean("bias", false);
    result.skip_by_channel = config.boolean("D_has_hdim", false);
    result.norm = config.boolean("rmsnorm", true);
    result.norm_before_gate = config.boolean("norm_before_gate", false);
    result.norm_group_size = config.integer(
        "norm_group_size", variant == "Mamba2" ? result.ssm_channels / result.groups : result.ssm_channels);
    result.norm_eps = T(config.number("eps", 1e-5));
    result.learned_initial_state = config.boolean("learnable_init_states", golden.has("weight.init_states"));
    read_limits(config, result);
    config.expect("nheads", result.ssm_channels / result.head_dim);
    const std::string activation = config.text("activation", "silu");
    if (activation != "silu" && activation != "swish") config.unknown("activation");
    config.expect("causal", true);
    config.ignore("chunk_size");
    return result;
  }
  void read_state(GoldenCase& golden, State& state) override {
    const Shape& shape = state.memory.shape();
    if (golden.has("input.state.ssm_state")) {
      const auto given = golden.array<T>("input.state.ssm_state", {shape[0], shape[2], shape[1]});
      transpose_heads(given, shape[0], shape[2], shape[1], state.memory);
    }
    if (golden.has("input.state.conv_state")) {
      Tensor<T> given({state.convolution.shape()[1], state.convolution.shape()[0]});
      golden.copy("input.state.conv_state", given);
      state.convolution = transposed(given);
    }
  }
  void collect_state(const State& state, GoldenOutputs& outputs) const override {
    const Shape& shape = state.memory.shape();
    Tensor<T> memory({shape[0], shape[2], shape[1]});
    transpose_heads(state.memory, shape[0], shape[1], shape[2], memory);
    outputs.add("state.ssm_state", memory);
    outputs.add("state.conv_state", transposed(state.convolution));
  }
};

const GoldenRegistration<Mamba2CoreGolden> core_golden{"mamba2", "core"};
const GoldenRegistration<Mamba2LayerGolden> layer_golden{"mamba2", "layer"};

// --- mixer ------------------------------------------------------------------------------------------------------------

struct Mamba2Tests {
  static constexpr const char* name = "mamba2";
  template <class T>
  using Mixer = Mamba2<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index groups = rng.integer(1, 3), heads = groups * rng.integer(1, 2), head_dim = rng.integer(1, 17);
    return {{"one head of 1", {.channels = 1, .inner_channels = 1, .head_dim = 1, .state_dim = 1}},
            {"three heads of 4", {.channels = 6, .head_dim = 4, .state_dim = 5}},
            {"two groups and an MLP, norms of 4",
             {.channels = 8, .ssm_channels = 8, .head_dim = 2, .state_dim = 3, .groups = 2, .bias = true}},
            {"norm before gate, skips by channel, width 3",
             {.channels = 5,
              .inner_channels = 12,
              .head_dim = 3,
              .state_dim = 7,
              .groups = 4,
              .convolution_width = 3,
              .convolution_bias = false,
              .skip_by_channel = true,
              .norm_before_gate = true,
              .norm_group_size = 6}},
            {"no norm, an MLP, limits",
             {.channels = 7,
              .inner_channels = 20,
              .ssm_channels = 15,
              .head_dim = 5,
              .state_dim = 9,
              .convolution_width = 1,
              .bias = true,
              .least_dt = T(0.25),
              .most_dt = T(1.5),
              .norm = false}},
            {"no norm, skips by channel, a learned initial state",
             {.channels = 4,
              .inner_channels = 18,
              .head_dim = 9,
              .state_dim = 16,
              .groups = 2,
              .skip_by_channel = true,
              .norm = false,
              .learned_initial_state = true}},
            {"as Mamba2Simple",
             {.channels = 6,
              .inner_channels = 12,
              .head_dim = 4,
              .state_dim = 4,
              .groups = 3,
              .norm_group_size = 12,
              .learned_initial_state = true}},
            {"two heads of 64, 128 states", {.channels = 16, .inner_channels = 128}},
            {"random",
             {.channels = rng.integer(1, 33),
              .inner_channels = heads * head_dim,
              .head_dim = head_dim,
              .state_dim = rng.integer(1, 20),
              .groups = groups,
              .convolution_width = rng.integer(1, 6)}}};
  }

  static Matrixd reference(const Mamba2<double>::Config& config, const Mamba2<double>::Weights& weights,
                           const Matrixd& u) {
    const Index inner = config.inner_channels == 0 ? 2 * config.channels : config.inner_channels;
    const Index ssm = config.ssm_channels == 0 ? inner : config.ssm_channels, mlp = inner - ssm;
    const Index P = config.head_dim, N = config.state_dim, G = config.groups, H = ssm / P, L = u.rows();
    const Matrixd projected = linear(u, weights.input, weights.input_bias);
    const Matrixd z0 = projected.leftCols(mlp), x0 = projected.middleCols(mlp, mlp);
    const Matrixd z = projected.middleCols(2 * mlp, ssm), dt = projected.rightCols(H);
    const Matrixd convolved = map(short_convolution(projected.middleCols(2 * mlp + ssm, ssm + 2 * G * N),
                                                    weights.convolution, weights.convolution_bias),
                                  silu);
    Matrixd y(L, ssm);
    for (Index h = 0; h < H; ++h) {
      Matrixd memory = Matrixd::Zero(P, N);
      if (config.learned_initial_state) memory = weights.initial_state.middleRows(h * P, P);
      const Index group = h / (H / G);
      for (Index t = 0; t < L; ++t) {
        const double step = std::clamp(softplus(dt(t, h) + weights.dt_bias[h]), config.least_dt, config.most_dt);
        for (Index p = 0; p < P; ++p) {
          const double x = convolved(t, h * P + p);
          double sum = weights.d[config.skip_by_channel ? h * P + p : h] * x;
          for (Index n = 0; n < N; ++n) {
            double& s = memory(p, n);
            s = std::exp(-step * std::exp(weights.a_log[h])) * s + step * x * convolved(t, ssm + group * N + n);
            sum += s * convolved(t, ssm + G * N + group * N + n);
          }
          y(t, h * P + p) = sum;
        }
      }
    }
    const Matrixd gate = map(z, silu);
    if (!config.norm_before_gate || !config.norm) y = y.cwiseProduct(gate);
    if (config.norm) {
      const Index size = config.norm_group_size == 0 ? ssm / G : config.norm_group_size;
      for (Index g = 0; g < ssm / size; ++g) {
        y.middleCols(g * size, size) =
            rms_norm(y.middleCols(g * size, size), config.norm_eps, weights.norm.segment(g * size, size));
      }
      if (config.norm_before_gate) y = y.cwiseProduct(gate);
    }
    Matrixd all(L, inner);
    all << x0.cwiseProduct(map(z0, silu)), y;
    return linear(all, weights.output, weights.output_bias);
  }
};

/// Log decays from -infinity and some hundreds to -1e-7 side by side.
struct ExtremeMamba2Tests : Mamba2Tests {
  static constexpr const char* name = "mamba2, extreme decays";

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng&) {
    return {{"eight heads of 9", {.channels = 9, .inner_channels = 72, .head_dim = 9, .state_dim = 11, .groups = 2}}};
  }
  static Mamba2<double>::Weights weights(const Mamba2<double>::Config& config, Rng& rng) {
    auto result = Mamba2<double>::random_weights(config, rng);
    stir(result, rng);
    extreme_decays(result.a_log, result.dt_bias, rng);
    return result;
  }
};

const MixerRegistration<Mamba2Tests> mixer;
const MixerRegistration<ExtremeMamba2Tests> extreme_mixer;

/// Tokens that take no time, which neither decay nor write, at rates of -infinity too.
template <class T>
void check_no_time(bool softplus) {
  if constexpr (scalar_tested<T>) {
    constexpr Index length = 150, heads = 5, head_dim = 9, states = 7;
    constexpr double infinity = std::numeric_limits<double>::infinity(), rates[heads] = {-infinity, -500, -1, -1e-7, 0};
    Rng rng(9);
    const auto stream = [&](Index channels) { return normal_matrix<T>(length, channels, 1.0, rng); };
    const Matrix<T> x = stream(heads * head_dim), b = stream(states), c = stream(states);
    Matrix<T> dt = stream(heads).cwiseAbs(), y(length, heads * head_dim), expected = y;
    for (Index i = 0; i < dt.size(); ++i) {
      // softplus(-1000) is 0.
      if (i % 3 != 1) dt.data()[i] = softplus ? T(-1000) : T(0);
    }
    const Vector<T> a = Vector<T>::NullaryExpr(heads, [&](Index h) { return T(rates[h]); });
    const Matrix<T> initial = normal_matrix<T>(heads, states * head_dim, 1.0, rng);
    Matrix<double> memory = initial.template cast<double>();
    for (Index t = 0; t < length; ++t) {
      for (Index h = 0; h < heads; ++h) {
        const double given = double(dt(t, h)), step = softplus ? std::log1p(std::exp(given)) : given;
        const double decay = step == 0 ? 1 : std::exp(step * rates[h]);
        for (Index p = 0; p < head_dim; ++p) {
          double sum = 0;
          for (Index n = 0; n < states; ++n) {
            double& cell = memory(h, n * head_dim + p);
            cell = decay * cell + step * double(b(t, n)) * double(x(t, h * head_dim + p));
            sum += double(c(t, n)) * cell;
          }
          expected(t, h * head_dim + p) = T(sum);
        }
      }
    }
    Workspace workspace;
    for (const Index piece : {Index(1), Index(37), length}) {
      Matrix<T> kept = initial;
      y.setConstant(std::numeric_limits<T>::quiet_NaN());
      for (Index begin = 0; begin < length; begin += piece) {
        const Index count = std::min(piece, length - begin);
        const auto rows = [&](const auto& of, Index of_heads) { return of.rows(begin, count).heads(of_heads); };
        mamba2<T>(rows(ConstSequence<T>(x), heads), ConstSequence<T>(dt).rows(begin, count),
                  rows(ConstSequence<T>(b), 1), rows(ConstSequence<T>(c), 1), {}, {.a = a, .dt_softplus = softplus},
                  {kept.data(), heads, states, head_dim}, rows(Sequence<T>(y), heads), workspace);
      }
      INFO("pieces of " << piece << (softplus ? ", softplus" : ""));
      const T most = T(std::is_same_v<T, float> ? 1e-5 : 1e-13) * expected.cwiseAbs().maxCoeff();
      CHECK((y - expected).cwiseAbs().maxCoeff() <= most);
      CHECK((kept - memory.template cast<T>()).cwiseAbs().maxCoeff() <= most);
    }
  }
}

TEST_CASE("mamba2: no time, no decay", "[mamba2]") {
  for (const bool softplus : {false, true}) {
    check_no_time<float>(softplus);
    check_no_time<double>(softplus);
  }
}

}  // namespace
}  // namespace seqmix::test
