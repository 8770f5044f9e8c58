#include <seqmix/ssm/mamba3.hpp>

#include <memory>

#include "support/cores.hpp"
#include "support/data.hpp"

namespace seqmix::bench {
namespace {

constexpr Index heads = 24, head_dim = 64, state_dim = 128, angles = 32;

struct Data {
  Data(Index length, int threads)
      : query(length, 1, state_dim, -1, 1, rng),
        key(length, 1, state_dim, -1, 1, rng),
        value(length, heads, head_dim, -1, 1, rng),
        log_decay(length, 1, heads, -0.2, 0, rng),
        dt(length, 1, heads, 0, 0.2, rng),
        trapezoid(length, 1, heads, -1, 1, rng),
        angle(length, 1, angles, -1, 1, rng),
        output(length, heads, head_dim),
        query_bias(1, heads, state_dim, 0.5, 1.5, rng),
        key_bias(1, heads, state_dim, 0.5, 1.5, rng),
        d(1, 1, heads, -1, 1, rng),
        angle_sum(std::size_t(heads * angles)),
        memory(std::size_t(heads * state_dim * head_dim)),
        last_key(std::size_t(heads * state_dim)),
        last_value(std::size_t(heads * head_dim)),
        workspace(executor(threads)) {}

  void clear() {
    std::fill(angle_sum.begin(), angle_sum.end(), 0.0);
    for (Buffer<float>* part : {&memory, &last_key, &last_value}) std::fill(part->begin(), part->end(), 0.0f);
  }

  void run(Index begin, Index count) { run(begin, count, output.view().rows(begin, count)); }

  void run(Index begin, Index count, HeadSequence<float> to) {
    const auto rows = [&](const Tensor& tensor) { return tensor.view().rows(begin, count); };
    const auto of_heads = [](const Tensor& tensor, Index channels) {
      return Sequence<const float>(tensor.view().data(), heads, channels);
    };
    mamba3<float>(
        {.query = rows(query),
         .key = rows(key),
         .value = rows(value),
         .log_decay = rows(log_decay).flat(),
         .dt = rows(dt).flat(),
         .trapezoid = rows(trapezoid).flat(),
         .angle = rows(angle)},
        {.query_bias = of_heads(query_bias, state_dim),
         .key_bias = of_heads(key_bias, state_dim),
         .d = Token<const float>(d.view().data(), heads)},
        {Sequence<double>(angle_sum.data(), heads, angles),
         MemoryView<float>(memory.data(), heads, state_dim, head_dim),
         Sequence<float>(last_key.data(), heads, state_dim), Sequence<float>(last_value.data(), heads, head_dim)},
        to, workspace);
  }

  /// Tokens one by one give the same; of steps, that they are finite.
  void check(Index begin, Index length) {
    if (begin > 0) return expect_finite(output.flat().rows(0, length), "a step");
    const Index some = std::min(output.view().length(), Index(300));
    Tensor alone(some, heads, head_dim);
    clear();
    for (Index t = 0; t < some; ++t) run(t, 1, alone.view().rows(t, 1));
    Comparison outputs;
    for (Index t = 0; t < some; ++t) {
      outputs.add(output.view().rows(t, 1).data(), alone.view().rows(t, 1).data(), heads * head_dim);
    }
    outputs.expect_within(5e-5, "the recurrence");
  }

  Index state_bytes() const { return Index(memory.size() * sizeof(float)); }

  Rng rng{6};
  Tensor query, key, value, log_decay, dt, trapezoid, angle, output, query_bias, key_bias, d;
  Buffer<double> angle_sum;
  Buffer<float> memory, last_key, last_value;
  Workspace workspace;
};

Work least_work(Index length) { return work::mamba3(length, heads, state_dim, head_dim, angles); }

Work step_work() {
  Work work = least_work(1);
  work.streamed_bytes = 0;
  work.footprint_bytes = 4.0 * heads * state_dim * head_dim;
  work.resident_bytes = 2 * work.footprint_bytes;
  return work;
}

const auto make = [](Index tokens, int threads) { return std::make_shared<Data>(tokens, threads); };
const bool registered =
    add_core_sequences("mamba3", make, least_work) && add_core_step("mamba3", make, step_work(), 64);

}  // namespace
}  // namespace seqmix::bench
