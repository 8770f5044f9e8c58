// The operator LinearAttention of ONNX (opset 27, https://onnx.ai/onnx/operators/onnx__LinearAttention.html) served by the
// core functions, as the table in linear/gated_delta_rule.hpp says, against a loop over its equations.
#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <cmath>
#include <limits>
#include <seqmix/core/random.hpp>
#include <seqmix/linear/delta_rule.hpp>
#include <seqmix/linear/gated_delta_rule.hpp>
#include <seqmix/linear/gated_linear_attention.hpp>
#include <seqmix/linear/kimi_delta_attention.hpp>
#include <seqmix/linear/linear_attention.hpp>
#include <seqmix/linear/simple_gated_linear_attention.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/scalars.hpp"

namespace seqmix::test {
namespace {

enum class Rule { linear, gated, delta, gated_delta };

/// Attributes and shapes. Names are ONNX's.
struct Node {
  Rule update_rule;
  Index q_num_heads, kv_num_heads, d_k, d_v;
  Index decay_width = 1;  // 1 or d_k for each head
  Index beta_heads = 1;   // kv_num_heads or 1
  double scale = 0;       // 0: d_k^-0.5
  Index B = 2, T = 1;

  bool gating() const { return update_rule == Rule::gated || update_rule == Rule::gated_delta; }
  bool correction() const { return update_rule == Rule::delta || update_rule == Rule::gated_delta; }
  double factor() const { return scale == 0 ? std::pow(double(d_k), -0.5) : scale; }
  std::string text() const {
    return "rule " + std::to_string(int(update_rule)) + ", heads " + std::to_string(q_num_heads) + " and " +
           std::to_string(kv_num_heads) + ", " + std::to_string(d_k) + " x " + std::to_string(d_v) + ", decay " +
           std::to_string(decay_width) + ", beta " + std::to_string(beta_heads) + ", T " + std::to_string(T);
  }
};

/// Inputs and outputs as in ONNX, packed [B, T, heads * width]; the state [B, kv_num_heads, d_k, d_v].
template <class T>
struct Tensors {
  std::vector<T> query, key, value, decay, beta, state, output;

  Tensors(const Node& node, bool past_state, Rng& rng) {
    const auto fill = [&](std::vector<T>& to, Index width, double least, double most) {
      to.resize(std::size_t(node.B * node.T * width));
      for (T& x : to) x = T(rng.uniform(least, most));
    };
    const double key_limit = std::pow(double(node.d_k) / 3, -0.5);  // of length about 1
    fill(query, node.q_num_heads * node.d_k, -1, 1);
    fill(key, node.kv_num_heads * node.d_k, -key_limit, key_limit);
    fill(value, node.kv_num_heads * node.d_v, -1, 1);
    if (node.gating()) fill(decay, node.kv_num_heads * node.decay_width, -0.7, 0);
    if (node.correction()) fill(beta, node.beta_heads, 0, 1);
    state.assign(std::size_t(node.B * node.kv_num_heads * node.d_k * node.d_v), T(0));
    if (past_state) std::generate(state.begin(), state.end(), [&] { return T(rng.uniform(-1, 1)); });
    output.assign(std::size_t(node.B * node.T * node.q_num_heads * node.d_v), std::numeric_limits<T>::quiet_NaN());
  }
};

/// Tokens begin .. begin + count - 1 of every sequence by the core that the node is, on the state where it is.
template <class T>
void serve(const Node& node, Tensors<T>& tensors, Index begin, Index count, Workspace& workspace) {
  for (Index b = 0; b < node.B; ++b) {
    const auto rows = [&](auto& packed, Index width) {
      return Sequence(packed.data() + (b * node.T + begin) * width, count, width);
    };
    const Index Hq = node.q_num_heads, H = node.kv_num_heads, K = node.d_k, V = node.d_v;
    const ConstHeadSequence<T> query = rows(tensors.query, Hq * K).heads(Hq), key = rows(tensors.key, H * K).heads(H);
    const ConstHeadSequence<T> value = rows(tensors.value, H * V).heads(H);
    const ConstSequence<T> decay = rows(tensors.decay, H * node.decay_width),
                           beta = rows(tensors.beta, node.beta_heads);
    const MemoryView<T> memory(tensors.state.data() + b * H * K * V, H, K, V);
    const HeadSequence<T> output = rows(tensors.output, Hq * V).heads(Hq);
    const T scale = T(node.factor());
    switch (node.update_rule) {
      case Rule::linear:
        linear_attention<feature_map::Identity, T>(query, key, value, {.scale = scale, .normalize = false}, memory, {},
                                                   output, workspace);
        break;
      case Rule::gated:
        if (node.decay_width == 1) {
          simple_gated_linear_attention<T>(query, key, value, decay, scale, memory, output, workspace);
        } else {
          gated_linear_attention<T>(query, key, value, decay.heads(H), scale, memory, output, workspace);
        }
        break;
      case Rule::delta:
        delta_rule<T>(query, key, value, beta, scale, QueryKeyNorm::none, memory, output, workspace);
        break;
      case Rule::gated_delta:
        if (node.decay_width == 1) {
          gated_delta_rule<T>(query, key, value, decay, beta, scale, QueryKeyNorm::none, memory, output, workspace);
        } else {
          kimi_delta_attention<T>(query, key, value, decay.heads(H), beta, scale, QueryKeyNorm::none, memory, output,
                                  workspace);
        }
    }
  }
}

struct Expected {
  std::vector<double> state, output;
};

/// The equations, in double:
///   linear        S_t = S_{t-1} + k_t v_t^T
///   gated         S_t = exp(g_t) S_{t-1} + k_t v_t^T
///   delta         S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T
///   gated_delta   S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - exp(g_t) S_{t-1}^T k_t)^T
/// and o_t = scale q_t^T S_t, where query head h reads the state of head h / (q_num_heads / kv_num_heads).
template <class T>
Expected equations(const Node& node, const Tensors<T>& tensors) {
  const Index K = node.d_k, V = node.d_v, H = node.kv_num_heads, Hq = node.q_num_heads, group = Hq / H;
  Expected result{{tensors.state.begin(), tensors.state.end()}, std::vector<double>(tensors.output.size())};
  const auto at = [](const std::vector<T>& numbers, Index index) { return double(numbers[std::size_t(index)]); };
  for (Index b = 0; b < node.B; ++b) {
    for (Index t = 0; t < node.T; ++t) {
      const Index row = b * node.T + t;
      for (Index h = 0; h < H; ++h) {
        double* const S = result.state.data() + (b * H + h) * K * V;
        const auto k = [&](Index i) { return at(tensors.key, (row * H + h) * K + i); };
        for (Index i = 0; i < K && node.gating(); ++i) {
          const Index width = node.decay_width;
          const double g = at(tensors.decay, (row * H + h) * width + (width == 1 ? 0 : i));
          for (Index j = 0; j < V; ++j) S[i * V + j] *= std::exp(g);
        }
        for (Index j = 0; j < V; ++j) {
          double v = at(tensors.value, (row * H + h) * V + j);
          if (node.correction()) {
            for (Index i = 0; i < K; ++i) v -= S[i * V + j] * k(i);
            v *= at(tensors.beta, row * node.beta_heads + (node.beta_heads == 1 ? 0 : h));
          }
          for (Index i = 0; i < K; ++i) S[i * V + j] += k(i) * v;
        }
        for (Index reader = h * group; reader < (h + 1) * group; ++reader) {
          for (Index j = 0; j < V; ++j) {
            double sum = 0;
            for (Index i = 0; i < K; ++i) sum += at(tensors.query, (row * Hq + reader) * K + i) * S[i * V + j];
            result.output[std::size_t((row * Hq + reader) * V + j)] = node.factor() * sum;
          }
        }
      }
    }
  }
  return result;
}

/// The greatest distance of `given` from `expected`, over the greatest number there.
template <class T>
double distance(const std::vector<T>& given, const std::vector<double>& expected) {
  double largest = 0, worst = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::abs(expected[i]));
    const double apart = std::abs(double(given[i]) - expected[i]);
    if (!(apart <= worst)) worst = apart;
  }
  return worst / largest;
}

TEMPLATE_TEST_CASE("LinearAttention of ONNX is served by the cores, states shared by groups of query heads",
                   "[linear_recurrence]", float, double) {
  using T = TestType;
  if constexpr (scalar_tested<T>) {
    Rng rng(27);
    Workspace workspace;
    for (const Rule rule : {Rule::linear, Rule::gated, Rule::delta, Rule::gated_delta}) {
      for (const auto& [q_num_heads, kv_num_heads] : {std::pair<Index, Index>{2, 2}, {4, 2}, {6, 2}, {3, 1}, {1, 1}}) {
        for (const auto& [d_k, d_v] : {std::pair<Index, Index>{5, 7}, {16, 32}}) {
          for (const bool finely : {false, true}) {
            for (const Index length : {Index(1), Index(6), Index(37)}) {
              Node node{rule, q_num_heads, kv_num_heads, d_k, d_v};
              if (node.gating() && finely) node.decay_width = d_k;
              if (node.correction() && finely) node.beta_heads = kv_num_heads;
              node.scale = finely ? 0.75 : 0;
              node.T = length;
              INFO(node.text());
              const Tensors<T> inputs(node, finely, rng);
              const Expected expected = equations(node, inputs);
              const double allowed = 4 * (4 + std::sqrt(double(length))) * double(std::numeric_limits<T>::epsilon());
              // In one call, and prefilled, then decoded, on the state where it is.
              for (const Index prefill : {length, length / 2}) {
                Tensors<T> served = inputs;
                serve(node, served, 0, prefill, workspace);
                for (Index t = prefill; t < length; ++t) serve(node, served, t, 1, workspace);
                CHECK(distance(served.output, expected.output) <= allowed);
                CHECK(distance(served.state, expected.state) <= allowed);
              }
            }
          }
        }
      }
    }
  }
}

TEST_CASE("a shared sum keeps its second part once, whoever reads it", "[linear_recurrence]") {
  using T = TestedScalar;
  constexpr Index readers = 3, heads = 2, key_dim = 6, value_dim = 9, length = 40;
  Rng rng(3);
  Node node{Rule::linear, readers * heads, heads, key_dim, value_dim};
  node.B = 1, node.T = length;
  const Tensors<T> inputs(node, true, rng);
  Workspace workspace;
  // Memories by `groups`: each state for all readers of it, and for each a copy.
  const auto run = [&](Index copies, Tensor<T>& memory, Tensor<T>& compensation, std::vector<T>& output) {
    const Index count = heads * copies;
    memory = compensation = Tensor<T>({count, key_dim, value_dim});
    for (Index h = 0; h < count; ++h) {
      std::copy_n(inputs.state.data() + h / copies * key_dim * value_dim, key_dim * value_dim,
                  memory.data() + h * key_dim * value_dim);
    }
    output.resize(inputs.output.size());
    for (Index begin = 0; begin < length; begin += 20) {
      const auto rows = [&](const std::vector<T>& packed, Index heads_of, Index width) {
        return ConstHeadSequence<T>(packed.data() + begin * heads_of * width, 20, heads_of, width);
      };
      linear_attention<feature_map::Identity, T>(
          rows(inputs.query, node.q_num_heads, key_dim), rows(inputs.key, heads, key_dim),
          rows(inputs.value, heads, value_dim), {.normalize = false}, memory, {},
          {output.data() + begin * node.q_num_heads * value_dim, 20, node.q_num_heads, value_dim}, workspace,
          {.memory = compensation, .position = begin});
    }
  };
  Tensor<T> shared, shared_rest, copied, copied_rest;
  std::vector<T> shared_output, copied_output;
  run(1, shared, shared_rest, shared_output);
  run(readers, copied, copied_rest, copied_output);
  CHECK(shared_output == copied_output);
  bool equal = true;
  for (Index i = 0; i < heads * key_dim * value_dim; ++i) {
    const Index from = i / (key_dim * value_dim) * readers * key_dim * value_dim + i % (key_dim * value_dim);
    equal = equal && shared.data()[i] == copied.data()[from] && shared_rest.data()[i] == copied_rest.data()[from];
  }
  CHECK(equal);
}

TEST_CASE("groups of query heads that do not fit a memory are refused", "[linear_recurrence]") {
  using T = TestedScalar;
  constexpr Index length = 3, heads = 2, dim = 4;
  std::vector<T> numbers(600, T(0.5));
  T* const at = numbers.data();
  Workspace workspace;
  const ConstHeadSequence<T> key(at, length, heads, dim), value(at + 50, length, heads, dim);
  const ConstSequence<T> decay(at + 100, length, heads);
  const MemoryView<T> memory(at + 150, heads, dim, dim);
  const auto refused = [&](const ConstHeadSequence<T>& query, const HeadSequence<T>& output) {
    try {
      simple_gated_linear_attention<T>(query, key, value, decay, T(1), memory, output, workspace);
    } catch (const std::invalid_argument& error) {
      CHECK(std::all_of(numbers.begin(), numbers.end(), [](T x) { return x == T(0.5); }));
      return std::string(error.what()).starts_with("simple_gated_linear_attention: ");
    }
    return false;
  };
  const ConstHeadSequence<T> query(at + 200, length, 4, dim);
  const HeadSequence<T> output(at + 300, length, 4, dim);
  CHECK(refused({at + 200, length, 3, dim}, {at + 300, length, 3, dim}));  // 2 do not divide 3
  CHECK(refused({at + 200, length, 2, dim}, output));                      // queries of fewer heads than the output
  CHECK(refused(query, {at + 300, length, 2, dim}));                       // and of more
  CHECK(refused({at + 200, length, 4, dim - 1}, output));                  // another key_dim
  CHECK(refused(query, {at + 300, length, 4, dim + 1}));                   // another value_dim
  CHECK(refused({at + 200, length - 1, 4, dim}, output));                  // another length
  CHECK(refused({at + 340, length, 4, dim}, output));                      // the output overlaps the query
  CHECK(refused({at + 181, length, 4, dim}, output));                      // the memory overlaps the query
  CHECK(refused(query, {at + 140, length, 4, dim}));                       // and the output
  CHECK_FALSE(refused(query, output));
  CHECK_THROWS_AS((linear_attention<feature_map::Identity, T>(query, key, value, {}, memory, {at + 500, heads, dim},
                                                              output, workspace)),
                  std::invalid_argument);  // sums of keys are not shared
}

}  // namespace
}  // namespace seqmix::test
