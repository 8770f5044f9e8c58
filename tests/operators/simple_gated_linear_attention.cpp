// Simple gated linear attention: the core function.
#include <cmath>
#include <seqmix/linear/simple_gated_linear_attention.hpp>

#include "support/core_mixer.hpp"
#include "support/recurrence_golden.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

template <class T>
struct SimpleGatedLinearAttentionGolden final : MemoryCoreGolden<T> {
  explicit SimpleGatedLinearAttentionGolden(GoldenCase& golden)
      : MemoryCoreGolden<T>(golden), log_decay(golden.array<T>("input.g", {-1, -1})) {
    golden.config().expect("gate", "log");
    // Where g came from.
    for (const char* remark : {"constant_decay", "layer_index", "num_layers"}) golden.config().ignore(remark);
  }
  void run_rows(Index begin, Index count, const typename MemoryCoreGolden<T>::Streams& s) override {
    simple_gated_linear_attention<T>(s.query, s.key, s.value, log_decay.sequence().rows(begin, count), this->scale,
                                     s.memory, s.output, this->workspace);
  }
  GoldenArray<T> log_decay;
};

struct SimpleGatedLinearAttention {
  static constexpr const char* name = "simple_gated_linear_attention";
  static Index decay_logits(Index heads) { return heads; }
  static double log_decay(Index, Index, double logit) { return -std::exp(6 * logit); }

  template <class T>
  static void run(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
                  ConstSequence<T> log_decay, MemoryView<T> memory, HeadSequence<T> output, Workspace& workspace) {
    simple_gated_linear_attention<T>(query, key, value, log_decay, std::pow(T(memory.key_dim()), T(-0.5)), memory,
                                     output, workspace);
  }
};

const GoldenRegistration<SimpleGatedLinearAttentionGolden> core_golden{"simple_gated_linear_attention", "core"};
const MixerRegistration<CoreTests<SimpleGatedLinearAttention>> mixer;

}  // namespace
}  // namespace seqmix::test
