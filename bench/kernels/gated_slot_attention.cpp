#include <algorithm>
#include <cmath>
#include <memory>
#include <seqmix/linear/gated_slot_attention.hpp>

#include "support/cores.hpp"
#include "support/data.hpp"

namespace seqmix::bench {
namespace {

constexpr Index heads = 12, key_dim = 64, value_dim = 64, slots = 64;
constexpr double scale = 0.125;

struct Data {
  Data(Index length, int threads)
      : query(length, heads, key_dim, -2, 2, rng),
        key(length, heads, key_dim, -2, 2, rng),
        value(length, heads, value_dim, -1, 1, rng),
        slot(length, heads, slots),
        log_decay(length, heads, slots, -0.2, 0, rng),
        output(length, heads, value_dim),
        key_memory(std::size_t(heads * key_dim * slots)),
        value_memory(std::size_t(heads * slots * value_dim)),
        workspace(executor(threads)) {
    std::transform(log_decay.numbers().begin(), log_decay.numbers().end(), slot.numbers().begin(),
                   [](float g) { return -std::expm1(g); });
  }

  void clear() {
    std::fill(key_memory.begin(), key_memory.end(), 0.0f);
    std::fill(value_memory.begin(), value_memory.end(), 0.0f);
  }

  void run(Index begin, Index count) {
    const auto rows = [&](Tensor& tensor) { return tensor.view().rows(begin, count); };
    gated_slot_attention<float>(rows(query), rows(key), rows(value), rows(slot), rows(log_decay), float(scale),
                                MemoryView<float>(key_memory.data(), heads, key_dim, slots),
                                MemoryView<float>(value_memory.data(), heads, slots, value_dim), rows(output),
                                workspace);
  }

  /// Compares tokens begin .. length - 1 with the equations in double, for the first head and the last.
  void check(Index begin, Index length) {
    Comparison comparison;
    for (const Index h : {Index(0), heads - 1}) {
      ReferenceMemory keys(slots, key_dim), values(slots, value_dim);  // the keys' memory transposed
      for (Index t = 0; t < length; ++t) {
        const auto fade = [&](Index m) { return std::exp(double(log_decay.view()(t, h, m))); };
        const auto row = [&](Tensor& tensor) {
          const float* const first = tensor.view().row(t, h);
          return std::vector<double>(first, first + tensor.view().head_dim());
        };
        keys.fade(fade), values.fade(fade);
        keys.add(slot.view().row(t, h), row(key));
        values.add(slot.view().row(t, h), row(value));
        if (t < begin) continue;
        std::vector<float> weights(static_cast<std::size_t>(slots));
        const std::vector<double> q = row(query);
        double sum = 0;
        for (Index m = 0; m < slots; ++m) {
          double logit = 0;
          for (Index i = 0; i < key_dim; ++i)
            logit += scale * q[std::size_t(i)] * keys.numbers()[std::size_t(m * key_dim + i)];
          weights[std::size_t(m)] = float(std::exp(logit));
          sum += std::exp(logit);
        }
        comparison.add(output.view().row(t, h), values.read(weights.data(), 1 / sum).data(), value_dim);
      }
    }
    comparison.expect_within(5e-5, "gated slot attention");
  }

  Index state_bytes() const { return Index((key_memory.size() + value_memory.size()) * sizeof(float)); }

  Rng rng{3};
  Tensor query, key, value, slot, log_decay, output;
  Buffer<float> key_memory, value_memory;
  Workspace workspace;
};

const bool registered = add_core(
    "gated_slot_attention", [](Index tokens, int threads) { return std::make_shared<Data>(tokens, threads); },
    [](Index length) { return work::gated_slot_attention(length, heads, key_dim, value_dim, slots); },
    work::gated_slot_attention_step(heads, key_dim, value_dim, slots));

}  // namespace
}  // namespace seqmix::bench
