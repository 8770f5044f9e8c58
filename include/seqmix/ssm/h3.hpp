// H3: a shift and a diagonal state space, of products of keys and values, read by queries.
//
//   Source    Fu et al. 2022, arXiv:2212.14052; HazyResearch/H3, src/models/ssm/h3.py
//   Glossary  L length   D channels   H heads   P = D / H width of a head   N shift states   M complex modes   n_ssm sets of
//             modes: head h has number h mod n_ssm
//   Engine    engine/shift_system.hpp, engine/scan_time_invariant.hpp
//   Size      two systems, the products and the contraction as functions of their own, and the layer
//
//   q, k, v = W x + b, channel h P + d each;   k' = shift system of k
//   kv_t[i, j, h] = k'_t[h, i] v_t[h, j],   o = diagonal system of kv, that of its head, y_t[j, h] = sum_i q_t[h, i] o_t[i, j, h]
//   y = W_out (y in the order j H + h, or h P + j) + b_out
//
// The diagonal system is that of ssm/s4d.hpp with A = -exp(inv_A_real) + i A_imag, dt = exp(log_dt).
//
// The products and the sum are functions of their own, h3_products and h3_contraction, for engines with projections and kernels
// of their own: any causal convolution may stand between them.
// Differs   from the authors' code in that the parallel path is a scan, for which any length is fine; and in the layout of the
//           states, which have channels d H + h.
#pragma once

#include <cmath>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/scan_time_invariant.hpp>
#include <seqmix/engine/shift_system.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/state_space.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// products_t[i, j, h] = key_t[i, h] value_t[j, h]. key, value [L, P H], products [L, P P H].
template <class T>
void h3_products(ConstSequence<T> key, ConstSequence<T> value, Index heads, Sequence<T> products,
                 Workspace& workspace) {
  const Index P = key.channels() / heads;
  assert(value.channels() == key.channels() && products.channels() == P * key.channels());
  workspace.for_row_blocks(key.length(), [&](Index begin, Index count) {
    for (Index t = begin; t < begin + count; ++t) {
      for (Index ij = 0; ij < P * P; ++ij) {
        map_row(
            heads, products.row(t) + ij * heads,
            [](const Batch<T>& a, const Batch<T>& b) SEQMIX_INLINE_LAMBDA { return a * b; },
            key.row(t) + ij / P * heads, value.row(t) + ij % P * heads);
      }
    }
  });
}

/// y_t[j, h] = sum over i of query_t[i, h] mixed_t[i, j, h]. query, y [L, P H], mixed [L, P P H].
template <class T>
void h3_contraction(ConstSequence<T> query, ConstSequence<T> mixed, Index heads, Sequence<T> y, Workspace& workspace) {
  const Index D = query.channels(), P = D / heads;
  assert(y.channels() == D && mixed.channels() == P * D);
  workspace.for_row_blocks(query.length(), [&](Index begin, Index count) {
    for (Index t = begin; t < begin + count; ++t) {
      for (Index j = 0; j < P; ++j) {
        T* const to = y.row(t) + j * heads;
        for (Index i = 0; i < P; ++i) {
          const T* const q = query.row(t) + i * heads;
          const T* const o = mixed.row(t) + (i * P + j) * heads;
          if (i == 0) {
            map_row(
                heads, to, [](const Batch<T>& a, const Batch<T>& b) SEQMIX_INLINE_LAMBDA { return a * b; }, q, o);
          } else {
            map_row(
                heads, to,
                [](const Batch<T>& a, const Batch<T>& b, const Batch<T>& sum)
                    SEQMIX_INLINE_LAMBDA { return fma(a, b, sum); },
                q, o, static_cast<const T*>(to));
          }
        }
      }
    }
  });
}

/// The order of channels before the last projection: j H + h (the authors' module), or h P + j (their fused kernel).
enum class H3Layout { head_fastest, head_slowest };

/// The layer.
template <std::floating_point T>
class H3 : public RecurrentMixerBase<H3<T>, T> {
 public:
  static constexpr std::string_view name = "h3";
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Config {
    Index channels = 0;
    Index head_dim = 1;       ///< P, divides the channels
    Index shift_states = 64;  ///< N
    Index modes = 32;         ///< M
    Index copies = 0;         ///< n_ssm sets of modes, divides the heads; 0 means as many as heads
    Discretization discretization = Discretization::bilinear;
    H3Layout layout = H3Layout::head_fastest;

    Index heads() const { return channels / head_dim; }
    Index sets() const { return copies > 0 ? copies : heads(); }
  };

  struct Weights {
    Matrix<T> query, key, value, output;                      // [D, D]
    Vector<T> query_bias, key_bias, value_bias, output_bias;  // [D]
    Matrix<T> shift_input, shift_output;                      // B, C [D, N]
    Vector<T> shift_skip;                                     // [D]
    Matrix<T> c;                                              // [H M, 2], as b rows of real and imaginary part
    Matrix<T> b;                                              // [n_ssm M, 2]
    Matrix<T> a_real, a_imag;                                 // [n_ssm, M]
    Vector<T> log_dt, skip;                                   // [H]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("q_proj.weight", self.query, Presence::required);
      visitor("q_proj.bias", self.query_bias, Presence::required);
      visitor("k_proj.weight", self.key, Presence::required);
      visitor("k_proj.bias", self.key_bias, Presence::required);
      visitor("v_proj.weight", self.value, Presence::required);
      visitor("v_proj.bias", self.value_bias, Presence::required);
      visitor("output_linear.weight", self.output, Presence::required);
      visitor("output_linear.bias", self.output_bias, Presence::required);
      visitor("ssm_k_kernel.kernel.B", self.shift_input, Presence::required);
      visitor("ssm_k_kernel.kernel.C", self.shift_output, Presence::required);
      visitor("ssm_k_D", self.shift_skip, Presence::required);
      visitor("kernel.kernel.C", self.c, Presence::required);
      visitor("kernel.kernel.B", self.b, Presence::required);
      visitor("kernel.kernel.inv_A_real", self.a_real, Presence::required);
      visitor("kernel.kernel.A_imag", self.a_imag, Presence::required);
      visitor("kernel.kernel.log_dt", self.log_dt, Presence::required);
      visitor("D", self.skip, Presence::required);
    }
  };

  struct State {
    Tensor<T> shift;  // [N, D], channel d H + h
    Tensor<T> modes;  // [2, P D, M]: real parts, then imaginary ones; channel (i P + j) H + h

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("shift", self.shift), visitor("modes", self.modes);
    }
  };

  /// Discretises, in double, and packs the weights. Throws std::invalid_argument unless their shapes follow from `config`.
  H3(const Config& config, const Weights& weights) : config_(config) {
    check(config);
    const Index D = config.channels, N = config.shift_states;
    expect_tensor(name, "ssm_k_kernel.kernel.B", {D, N}, weights.shift_input);
    expect_tensor(name, "ssm_k_kernel.kernel.C", {D, N}, weights.shift_output);
    expect_tensor(name, "ssm_k_D", {D}, weights.shift_skip);
    const auto projection = [&](const char* of, const Matrix<T>& weight, const Vector<T>& bias) {
      expect_tensor(name, std::string(of) + ".weight", {D, D}, weight);
      expect_tensor(name, std::string(of) + ".bias", {D}, bias);
    };
    projection("q_proj", weights.query, weights.query_bias), projection("k_proj", weights.key, weights.key_bias);
    projection("v_proj", weights.value, weights.value_bias);
    projection("output_linear", weights.output, weights.output_bias);
    const Vector<Index> order = channel_order();
    const auto rows = [&](const auto& tensor) { return permuted_rows(tensor, order); };
    const Matrix<T> query = rows(weights.query), key = rows(weights.key), value = rows(weights.value);
    const Vector<T> query_bias = rows(weights.query_bias), key_bias = rows(weights.key_bias),
                    value_bias = rows(weights.value_bias);
    input_ = Linear<T>({&query, &key, &value}, {&query_bias, &key_bias, &value_bias});
    output_ = Linear<T>(config.layout == H3Layout::head_fastest
                            ? weights.output
                            : Matrix<T>(permuted_rows(Matrix<T>(weights.output.transpose()), order).transpose()),
                        weights.output_bias);
    shift_ = ShiftSystem<T>(name, rows(weights.shift_input), rows(weights.shift_output), rows(weights.shift_skip));
    diagonal_ = diagonal_system(config, weights);
  }

  /// Projections as torch begins them; shift B the first unit vector, C uniform (Kaiming), D normal; poles -1/2 + i pi n, B = 1, C
  /// complex normal, dt log-uniform in [1e-3, 0.1], D normal.
  static Weights random_weights(const Config& config, Rng& rng) {
    check(config);
    const Index D = config.channels, N = config.shift_states, M = config.modes, H = config.heads();
    const double limit = std::pow(double(D), -0.5);
    Weights weights;
    const auto projection = [&](Matrix<T>& weight, Vector<T>& bias) {
      weight = random_projection<T>(D, D, rng), bias = uniform_vector<T>(D, -limit, limit, rng);
    };
    projection(weights.query, weights.query_bias), projection(weights.key, weights.key_bias);
    projection(weights.value, weights.value_bias), projection(weights.output, weights.output_bias);
    weights.shift_input = Matrix<T>::Zero(D, N);
    weights.shift_input.col(0).setOnes();
    weights.shift_output = uniform_matrix<T>(D, N, std::sqrt(6 / double(N)), rng);
    weights.shift_skip = normal_matrix<T>(D, 1, 1.0, rng).col(0);
    weights.c = normal_matrix<T>(H * M, 2, std::sqrt(0.5), rng);
    weights.b = Matrix<T>::Zero(config.sets() * M, 2);
    weights.b.col(0).setOnes();
    weights.a_real = Matrix<T>::Constant(config.sets(), M, T(std::log(0.5)));
    weights.a_imag = Matrix<T>(config.sets(), M);
    for (Index n = 0; n < M; ++n) weights.a_imag.col(n).setConstant(T(std::numbers::pi * double(n)));
    weights.log_dt = uniform_vector<T>(H, std::log(1e-3), std::log(0.1), rng);
    weights.skip = normal_matrix<T>(H, 1, 1.0, rng).col(0);
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// The empty state: D N + 2 P D M zeros.
  State initial_state() const { return {Tensor<T>(shift_.state_shape()), Tensor<T>(diagonal_.state_shape())}; }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const {
    expect_shape(name, "state.shift", shift_.state_shape(), state.shift.shape());
    expect_shape(name, "state.modes", diagonal_.state_shape(), state.modes.shape());
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Index D = channels(), wide = diagonal_.channels();
    const auto streams = input_.apply(x, workspace);
    const auto query = streams.columns(0, D), key = streams.columns(D, D), value = streams.columns(2 * D, D);
    const auto shifted = workspace.sequence<T>(x.length(), D);
    const auto products = workspace.sequence<T>(x.length(), wide), mixed = workspace.sequence<T>(x.length(), wide);
    const auto for_each = [&](const auto& body) {
      for (Index b = 0; b < batch.size(); ++b) {
        body(batch.state(b), [&, b](const auto& view) { return view.rows(batch.begin(b), batch.length(b)); });
      }
    };
    for_each(
        [&](State& state, const auto& rows) { shift_.run(rows(key), state.shift.data(), rows(shifted), workspace); });
    h3_products<T>(shifted, value, config_.heads(), products, workspace);
    for_each([&](State& state, const auto& rows) {
      const Index M = config_.modes;
      diagonal_.run(rows(products), {state.modes.data(), 2, wide, M, wide * M, M}, rows(mixed), workspace);
    });
    h3_contraction<T>(query, mixed, config_.heads(), shifted, workspace);
    output_.apply(shifted, y, workspace);
  }

 private:
  static void check(const Config& config) {
    expect_divides(name, "config.head_dim", config.head_dim, "channels", config.channels);
    expect(config.shift_states > 0 && config.modes > 0, name, "config.modes", "must be positive, as must shift_states");
    expect_divides(name, "config.copies", config.sets(), "heads", config.heads());
  }

  /// Channel d H + h comes from channel h P + d.
  Vector<Index> channel_order() const {
    Vector<Index> order(config_.channels);
    for (Index c = 0; c < order.size(); ++c) {
      order[c] = c % config_.heads() * config_.head_dim + c / config_.heads();
    }
    return order;
  }
  template <class Tensor>
  static Tensor permuted_rows(const Tensor& from, const Vector<Index>& order) {
    Tensor to(from.rows(), from.cols());
    for (Index i = 0; i < from.rows(); ++i) to.row(i) = from.row(order[i]);
    return to;
  }

  static DiagonalSystem<T, true> diagonal_system(const Config& config, const Weights& weights) {
    const Index H = config.heads(), M = config.modes, sets = config.sets(), wide = config.channels * config.head_dim;
    expect_tensor(name, "kernel.kernel.inv_A_real", {sets, M}, weights.a_real);
    expect_tensor(name, "kernel.kernel.A_imag", {sets, M}, weights.a_imag);
    expect_tensor(name, "kernel.kernel.log_dt", {H}, weights.log_dt);
    expect_tensor(name, "D", {H}, weights.skip);
    const ComplexArray b = read_complex(name, "kernel.kernel.B", weights.b, sets, M);
    const ComplexArray c = read_complex(name, "kernel.kernel.C", weights.c, H, M);
    ComplexArray change(wide, M), input(wide, M), output(wide, M);
    Vector<T> skip(wide);
    for (Index row = 0; row < wide; ++row) {
      const Index h = row % H, set = h % sets;
      for (Index n = 0; n < M; ++n) {
        const Complex a(-std::exp(double(weights.a_real(set, n))), double(weights.a_imag(set, n)));
        const DiscreteMode mode = discretized(config.discretization, a, b(set, n), std::exp(double(weights.log_dt[h])));
        change(row, n) = mode.change, input(row, n) = mode.input, output(row, n) = 2.0 * c(h, n);
      }
      skip[row] = weights.skip[h];
    }
    const auto parts = [](const ComplexArray& numbers) -> ComplexMatrix<T> {
      return {numbers.real().template cast<T>(), numbers.imag().template cast<T>()};
    };
    return {name, parts(change), parts(input), parts(output), skip};
  }

  Config config_;
  Linear<T> input_, output_;  // queries, keys, values
  ShiftSystem<T> shift_;
  DiagonalSystem<T, true> diagonal_;
};

static_assert(RecurrentMixer<H3<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
