#include <algorithm>
#include <cmath>
#include <memory>
#include <seqmix/linear/recurrent_fast_weight.hpp>
#include <string>
#include <vector>

#include "support/cores.hpp"
#include "support/data.hpp"

namespace seqmix::bench {
namespace {

constexpr Index heads = 12, head_dim = 64;
constexpr std::size_t width = std::size_t(head_dim);
using Row = std::vector<double>;

struct Data {
  Data(bool feeds_back, Index length, int threads)
      : delta_net(feeds_back),
        query(length, heads, head_dim, -2, 2, rng),
        key(length, heads, head_dim, -2, 2, rng),
        value(length, heads, head_dim, -1, 1, rng),
        recurrent_key(delta_net ? 0 : length, heads, head_dim, -2, 2, rng),
        recurrent_value(delta_net ? 0 : length, heads, head_dim, -1, 1, rng),
        beta(length, 1, heads, 0, 1, rng),
        recurrent_beta(delta_net ? 0 : length, 1, heads, 0, 1, rng),
        output(length, heads, head_dim),
        query_feedback(heads * head_dim, 1, head_dim, -0.2, 0.2, rng),
        key_feedback(heads * head_dim, 1, head_dim, -0.2, 0.2, rng),
        value_feedback(heads * head_dim, 1, head_dim, -0.2, 0.2, rng),
        beta_feedback(heads, 1, head_dim, -0.2, 0.2, rng),
        memory(heads, head_dim, head_dim),
        recurrent_memory(heads, head_dim, head_dim),
        hidden(heads, 1, head_dim),
        workspace(executor(threads)) {}

  void clear() {
    for (Tensor* tensor : {&memory, &recurrent_memory, &hidden}) {
      std::fill(tensor->numbers().begin(), tensor->numbers().end(), 0.0f);
    }
  }

  void run(Index begin, Index count) {
    const auto rows = [&](Tensor& tensor) { return tensor.view().rows(begin, count); };
    const auto matrix = [](Tensor& tensor) {
      return MemoryView<float>(tensor.numbers().data(), heads, head_dim, head_dim);
    };
    if (delta_net) {
      recurrent_delta_net<float>(
          rows(query), rows(key), rows(value), rows(beta).flat(),
          {query_feedback.flat(), key_feedback.flat(), value_feedback.flat(), beta_feedback.flat()}, 1.0f,
          matrix(memory), hidden.flat(), rows(output), workspace);
    } else {
      delta_rnn<float>(rows(query), rows(key), rows(value), rows(beta).flat(), rows(recurrent_key),
                       rows(recurrent_value), rows(recurrent_beta).flat(), {}, matrix(memory), matrix(recurrent_memory),
                       hidden.flat(), rows(output), workspace);
    }
  }

  void check(Index begin, Index length);
  Index state_bytes() const { return (delta_net ? 1 : 2) * heads * head_dim * head_dim * Index(sizeof(float)); }

  bool delta_net;
  Rng rng{3};
  Tensor query, key, value, recurrent_key, recurrent_value, beta, recurrent_beta, output;
  Tensor query_feedback, key_feedback, value_feedback, beta_feedback, memory, recurrent_memory, hidden;
  Workspace workspace;
};

/// f of every number, over the sum of all.
template <class F>
std::vector<float> normalised(Row row, const F& f) {
  double sum = 0;
  for (double& x : row) sum += x = f(x);
  std::vector<float> result;
  for (const double x : row) result.push_back(float(x / sum));
  return result;
}
std::vector<float> softmax(const Row& row) {
  return normalised(row, [](double x) { return std::exp(x); });
}
std::vector<float> elu1(const Row& row) {
  return normalised(row, [](double x) { return x > 0 ? x + 1 : std::exp(x); });
}

/// S += k (beta (v - S^T k))^T.
void apply_delta_rule(ReferenceMemory& memory, const std::vector<float>& key, Row value, double beta) {
  const Row held = memory.read(key.data(), 1);
  for (std::size_t j = 0; j < width; ++j) value[j] = beta * (value[j] - held[j]);
  memory.add(key.data(), value);
}

/// Compares tokens begin .. length - 1 with the equations in double, for the first head and the last.
void compare(Data& data, Index begin, Index length) {
  Comparison outputs;
  for (const Index h : {Index(0), heads - 1}) {
    ReferenceMemory memory(head_dim, head_dim), recurrent_memory(head_dim, head_dim);
    Row hidden(width);
    for (Index t = 0; t < length; ++t) {
      const auto row = [&](Tensor& tensor) {
        const float* const first = tensor.view().row(t, h);
        return Row(first, first + width);
      };
      const auto fed_back = [&](Tensor& tensor, Tensor& feedback) {
        Row sum = row(tensor);
        for (std::size_t i = 0; i < width; ++i) {
          const float* const weights = feedback.flat().row(h * head_dim + Index(i));
          for (std::size_t j = 0; j < width; ++j) sum[j] += std::tanh(hidden[i]) * double(weights[j]);
        }
        return sum;
      };
      if (data.delta_net) {
        const auto query = softmax(fed_back(data.query, data.query_feedback));
        const auto key = softmax(fed_back(data.key, data.key_feedback));
        double beta = double(data.beta.flat()(t, h));
        for (std::size_t i = 0; i < width; ++i) {
          beta += std::tanh(hidden[i]) * double(data.beta_feedback.flat()(h, Index(i)));
        }
        apply_delta_rule(memory, key, fed_back(data.value, data.value_feedback), 1 / (1 + std::exp(-beta)));
        hidden = memory.read(query.data(), 1);
      } else {
        apply_delta_rule(memory, elu1(row(data.key)), row(data.value), double(data.beta.flat()(t, h)));
        apply_delta_rule(recurrent_memory, softmax(row(data.recurrent_key)), row(data.recurrent_value),
                         double(data.recurrent_beta.flat()(t, h)));
        const Row read = memory.read(elu1(row(data.query)).data(), 1);
        hidden = recurrent_memory.read(softmax(hidden).data(), 1);
        for (std::size_t j = 0; j < width; ++j) hidden[j] += read[j];
      }
      if (t >= begin) outputs.add(data.output.view().row(t, h), hidden.data(), head_dim);
    }
  }
  outputs.expect_within(1e-4, "the recurrent fast weights");
}

void Data::check(Index begin, Index length) { compare(*this, begin, length); }

bool add(const std::string& name, bool delta_net) {
  return add_core(
      name, [=](Index tokens, int threads) { return std::make_shared<Data>(delta_net, tokens, threads); },
      [=](Index length) {
        return delta_net ? work::recurrent_delta_net(length, heads, head_dim)
                         : work::delta_rnn(length, heads, head_dim);
      },
      delta_net ? work::recurrent_delta_net_step(heads, head_dim) : work::delta_rnn_step(heads, head_dim));
}

const bool registered = add("recurrent_fast_weight", true) && add("recurrent_fast_weight/delta_rnn", false);

}  // namespace
}  // namespace seqmix::bench
