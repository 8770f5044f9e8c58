#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>
#include <seqmix/linear/log_linear_attention.hpp>
#include <string>

#include "support/data.hpp"

namespace seqmix::bench {
namespace {

constexpr float scale = 0.125f;

struct Data {
  Data(Index length, Index of_heads, Index head_dim, int threads)
      : heads(of_heads),
        query(length, heads, head_dim, -1, 1, rng),
        key(length, heads, head_dim, -1, 1, rng),
        value(length, heads, head_dim, -1, 1, rng),
        level_scales(length, heads, LogLinearState<float>::levels_for(length) + 1, -1, 1, rng),
        log_decay(length, 1, heads, -0.02, 0, rng),
        output(length, heads, head_dim),
        state(length, heads, head_dim, head_dim),
        workspace(executor(threads)) {}

  void run(Index begin, Index count) {
    const auto rows = [&](Tensor& tensor) { return tensor.view().rows(begin, count); };
    log_linear_attention<float>(rows(query), rows(key), rows(value), log_decay.flat().rows(begin, count),
                                rows(level_scales), scale, state, rows(output), workspace);
  }

  /// Compares some tokens from `begin` on with the equations in double, for the first head and the last.
  void check(Index begin, Index length) {
    Comparison comparison;
    for (const Index h : {Index(0), heads - 1}) {
      for (const Index row : sampled_rows(length - begin)) {
        const Index t = begin + row, width = query.view().head_dim();
        std::vector<double> expected(static_cast<std::size_t>(width));
        double between = 0;
        for (Index s = t; s >= 0; --s) {
          double weight =
              scale * std::exp(between) * double(level_scales.view()(t, h, std::bit_width(std::uint64_t(t ^ s))));
          double product = 0;
          for (Index i = 0; i < width; ++i) product += double(query.view()(t, h, i)) * double(key.view()(s, h, i));
          for (Index j = 0; j < width; ++j)
            expected[std::size_t(j)] += weight * product * double(value.view()(s, h, j));
          between += double(log_decay.flat()(s, h));
        }
        comparison.add(output.view().row(t, h), expected.data(), width);
      }
    }
    comparison.expect_within(5e-5, "log-linear attention");
  }

  Rng rng{3};
  Index heads;
  Tensor query, key, value, level_scales, log_decay, output;
  LogLinearState<float> state;
  Workspace workspace;
};

Case whole(Index length, Index heads, Index head_dim, int threads) {
  const auto data = std::make_shared<Data>(length, heads, head_dim, threads);
  Case result;
  result.prepare = [=] { data->state.position = 0; };
  result.run = [=] { data->run(0, length); };
  result.check = [=] { data->check(0, length); };
  result.work = work::log_linear_recurrence(length, heads, head_dim, head_dim);
  result.tokens = length;
  result.state_bytes = Index((data->state.memory.size() + data->state.fade.size()) * sizeof(float));
  result.workspace_bytes = [data] { return data->workspace.capacity_bytes(); };
  return result;
}

/// The token at `position`, again and again.
Case step(Index position, Index heads, Index head_dim, int threads) {
  const auto data = std::make_shared<Data>(position + 1, heads, head_dim, threads);
  data->run(0, position);
  const auto fade = data->state.fade;
  Case result;
  result.run = [=] {
    data->run(position, 1);
    // A step writes to a level that was empty, and so can be repeated.
    data->state.position = position;
    std::copy(fade.begin(), fade.end(), data->state.fade.begin());
  };
  result.check = [=] { data->check(position, position + 1); };
  result.work = work::log_linear_step(position, heads, head_dim, head_dim);
  result.tokens = 1;
  result.state_bytes = Index((data->state.memory.size() + data->state.fade.size()) * sizeof(float));
  result.workspace_bytes = [data] { return data->workspace.capacity_bytes(); };
  return result;
}

const bool registered = [] {
  for (const Index length : {Index(2048), Index(8192)}) {
    if (length > effort().longest_core) continue;
    add_benchmark("core/log_linear_attention/length:" + std::to_string(length),
                  [=](int threads) { return whole(length, 12, 64, threads); });
  }
  add_benchmark("core/log_linear_attention/head_dim:128/length:2048",
                [](int threads) { return whole(2048, 6, 128, threads); });
  // 10101010101 in binary: half of eleven levels are full, and one is merged, which is the mean.
  add_benchmark("core_step/log_linear_attention/context:1365", [](int threads) { return step(1365, 12, 64, threads); });
  return true;
}();

}  // namespace
}  // namespace seqmix::bench
