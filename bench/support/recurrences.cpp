#include "support/recurrences.hpp"

#include <algorithm>
#include <cmath>
#include <memory>

namespace seqmix::bench {
namespace {

/// Scales every head of every row to norm 1.
Tensor normalised(Tensor tensor) {
  const auto view = tensor.view();
  for (Index t = 0; t < view.length(); ++t) {
    for (Index h = 0; h < view.heads(); ++h) {
      double squares = 0;
      for (Index i = 0; i < view.head_dim(); ++i) squares += double(view(t, h, i)) * double(view(t, h, i));
      for (Index i = 0; i < view.head_dim(); ++i) view(t, h, i) = float(double(view(t, h, i)) / std::sqrt(squares));
    }
  }
  return tensor;
}

/// Owns what RecurrenceStreams views.
struct Data {
  Data(const RecurrenceCore& core, const RecurrenceShape& of, Index length, int threads)
      : shape(of),
        query(length, of.key_heads(), of.key_dim, -1, 1, rng),
        key(normalised(Tensor(length, of.key_heads(), of.key_dim, -1, 1, rng))),
        value(length, of.heads, of.value_dim, -1, 1, rng),
        log_decay(length, of.heads, of.key_dim, -0.2, 0, rng),
        output(length, of.heads, of.value_dim),
        channel_log_decay(1, of.heads, of.key_dim, -0.2, 0, rng),
        bonus(1, of.heads, of.key_dim, -1, 1, rng),
        head_log_decay(1, 1, of.heads),
        key_sum(1, of.heads, of.memory_rows()),
        beta(core.removal == Removal::delta_rule || core.weight ? length : 0, 1, of.heads, 0, 1, rng),
        a(normalised(Tensor(core.removal == Removal::low_rank ? length : 0, of.heads, of.key_dim, -1, 1, rng))),
        b(a),
        memory(static_cast<std::size_t>(of.heads * of.memory_rows() * of.value_dim)),
        workspace(executor(threads)) {
    for (Index h = 0; h < of.heads; ++h) {
      head_log_decay.view()(0, 0, h) = float(std::log1p(-std::exp2(-5.0 - double(h))));
    }
    for (float& number : b.numbers()) number *= -float(rng.uniform());
  }

  /// Tokens begin .. begin + count - 1.
  RecurrenceStreams streams(Index begin, Index count) {
    // Streams that the core does not take are empty.
    const auto rows_of = [&](Tensor& tensor) {
      return tensor.view().length() == 0 ? tensor.view() : tensor.view().rows(begin, count);
    };
    const auto of_head = [&](Tensor& tensor) {
      return Sequence<float>(tensor.numbers().data(), shape.heads, shape.key_dim);
    };
    return {query.view().rows(begin, count),
            key.view().rows(begin, count),
            value.view().rows(begin, count),
            log_decay.view().rows(begin, count),
            of_head(channel_log_decay),
            of_head(bonus),
            Token<const float>(head_log_decay.numbers().data(), shape.heads),
            output.view().rows(begin, count),
            MemoryView<float>(memory.data(), shape.heads, shape.memory_rows(), shape.value_dim),
            Sequence<float>(key_sum.numbers().data(), shape.heads, shape.memory_rows()),
            rows_of(beta).flat(),
            rows_of(a),
            rows_of(b)};
  }

  void clear() {
    std::fill(memory.begin(), memory.end(), 0.0f);
    std::fill(key_sum.numbers().begin(), key_sum.numbers().end(), 0.0f);
  }

  Rng rng{3};
  RecurrenceShape shape;
  Tensor query, key, value, log_decay, output, channel_log_decay, bonus, head_log_decay, key_sum, beta, a, b;
  Buffer<float> memory;
  Workspace workspace;
};

/// Compares tokens begin .. length - 1 of the output, and the memory, with the equations in double, for the first head
/// and the last.
void check_recurrence(const RecurrenceCore& core, Data& data, Index begin, Index length) {
  const RecurrenceShape& shape = data.shape;
  const RecurrenceStreams streams = data.streams(0, length);
  Comparison outputs, memories;
  const Index rows = shape.memory_rows();
  std::vector<float> query(static_cast<std::size_t>(rows)), key(query);
  const auto feature = [&](const float* from, bool of_query, std::vector<float>& to) {
    if (core.features) return core.features(from, shape.key_dim, of_query, to.data());
    std::transform(from, from + shape.key_dim, to.begin(), [&](float x) { return core.feature ? core.feature(x) : x; });
  };
  for (const Index h : {Index(0), shape.heads - 1}) {
    ReferenceMemory reference(rows, shape.value_dim);
    std::vector<double> key_sum(static_cast<std::size_t>(rows));
    for (Index t = 0; t < length; ++t) {
      const Index key_head = h / (shape.heads / shape.key_heads());
      feature(streams.query.row(t, key_head), true, query);
      feature(streams.key.row(t, key_head), false, key);
      for (Index i = 0; core.key && i < shape.key_dim; ++i) key[std::size_t(i)] = core.key(streams, t, h, i);
      const auto decay = [&](Index i) { return core.log_decay ? std::exp(core.log_decay(streams, t, h, i)) : 1.0; };
      const float* const of_value = streams.value.row(t, h);
      std::vector<double> value(of_value, of_value + shape.value_dim), expected, removed;
      if (core.bonus) {
        expected = reference.read(query.data(), core.scale);
        double weight = 0;
        for (Index i = 0; i < shape.key_dim; ++i) {
          weight +=
              core.scale * double(query[std::size_t(i)]) * double(streams.bonus(h, i)) * double(key[std::size_t(i)]);
        }
        for (std::size_t j = 0; j < value.size(); ++j) expected[j] += weight * value[j];
      }
      if (core.removal == Removal::low_rank) removed = reference.read(streams.a.row(t, h), 1);
      reference.fade(decay);
      if (core.removal == Removal::low_rank) reference.add(streams.b.row(t, h), removed);
      if (core.removal == Removal::delta_rule) {
        removed = reference.read(key.data(), 1);
        for (std::size_t j = 0; j < value.size(); ++j) value[j] = double(streams.beta(t, h)) * (value[j] - removed[j]);
      }
      std::vector<double> added = value;
      if (core.weight) {
        for (double& number : added) number *= core.weight(streams, t, h);
      }
      reference.add(key.data(), added);
      if (!core.bonus) expected = reference.read(query.data(), core.scale);
      if (core.divisor) {
        double weight = 0;
        for (Index i = 0; i < rows; ++i) {
          double& sum = key_sum[std::size_t(i)];
          sum = decay(i) * sum + double(key[std::size_t(i)]);
          weight += core.scale * double(query[std::size_t(i)]) * sum;
        }
        for (double& number : expected) number /= core.divisor(weight);
      }
      if (core.skip) {
        for (std::size_t j = 0; j < value.size(); ++j) expected[j] += core.skip(streams, h) * value[j];
      }
      if (t >= begin) outputs.add(streams.output.row(t, h), expected.data(), shape.value_dim);
    }
    memories.add(streams.memory.row(h, 0), reference.numbers().data(), rows * shape.value_dim);
  }
  outputs.expect_within(5e-5, "the recurrence");
  memories.expect_within(5e-5, "its memory");
}

}  // namespace

Case recurrence(const RecurrenceCore& core, const RecurrenceShape& shape, Index length, Index context, int threads) {
  constexpr Index spare = 16;  // steps go round these tokens, which follow the context
  const bool step = context > 0;
  const Index rows = shape.memory_rows();
  const auto data = std::make_shared<Data>(core, shape, step ? context + spare : length, threads);
  Case result;
  if (step) {
    core.call(data->streams(0, context), data->workspace);
    const auto steps = std::make_shared<Index>(0);
    result.run = [=] { core.call(data->streams(context + (*steps)++ % spare, 1), data->workspace); };
    result.check = [=] { check_recurrence(core, *data, context, context + 1); };
    result.work = shape.features > 0 ? work::feature_attention_step(shape.heads, shape.key_dim, rows, shape.value_dim,
                                                                    core.work.flops_per_cell)
                                     : work::linear_recurrence_step(shape.heads, rows, shape.value_dim, core.work);
  } else {
    result.prepare = [=] { data->clear(); };
    result.run = [=] { core.call(data->streams(0, length), data->workspace); };
    result.check = [=] { check_recurrence(core, *data, 0, length); };
    result.work = shape.features > 0 ? work::feature_attention(length, shape.heads, shape.key_dim, rows,
                                                               shape.value_dim, core.work.flops_per_cell)
                                     : work::linear_recurrence(length, shape.heads, rows, shape.value_dim, core.work);
  }
  result.tokens = step ? 1 : length;
  result.state_bytes = Index(data->memory.size() * sizeof(float));
  result.workspace_bytes = [data] { return data->workspace.capacity_bytes(); };
  return result;
}

bool add_recurrence(const std::string& name, const RecurrenceCore& core, const RecurrenceShape& shape) {
  for (const Index length : {Index(2048), Index(8192)}) {
    if (length > effort().longest_core) continue;
    add_benchmark("core/" + name + "/length:" + std::to_string(length),
                  [=](int threads) { return recurrence(core, shape, length, 0, threads); });
  }
  add_benchmark("core_step/" + name + "/context:2048",
                [=](int threads) { return recurrence(core, shape, 1, 2048, threads); });
  return true;
}

}  // namespace seqmix::bench
