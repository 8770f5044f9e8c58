// Lightning attention: the core function.
#include <cmath>
#include <seqmix/linear/lightning_attention.hpp>

#include "support/core_mixer.hpp"
#include "support/recurrence_golden.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

template <class T>
struct LightningAttentionGolden final : MemoryCoreGolden<T> {
  explicit LightningAttentionGolden(GoldenCase& golden)
      : MemoryCoreGolden<T>(golden),
        log_decay(lightning_log_decay<T>(this->heads, golden.config().integer("layer_index"),
                                         golden.config().integer("num_layers"))) {}
  void run_rows(Index, Index, const typename MemoryCoreGolden<T>::Streams& s) override {
    lightning_attention<T>(s.query, s.key, s.value, log_decay, this->scale, s.memory, s.output, this->workspace);
  }
  Vector<T> log_decay;
};

/// Layer 3 of 12.
struct LightningAttention {
  static constexpr const char* name = "lightning_attention";
  static Index decay_logits(Index) { return 0; }
  static double log_decay(Index heads, Index h, double) { return -8.0 / double(heads) * 0.75 * double(h); }

  template <class T>
  static void run(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value, ConstSequence<T>,
                  MemoryView<T> memory, HeadSequence<T> output, Workspace& workspace) {
    const auto frame = workspace.frame();
    T* const decay = workspace.take<T>(memory.heads()).data();
    for (Index h = 0; h < memory.heads(); ++h) decay[h] = T(log_decay(memory.heads(), h, 0));
    lightning_attention<T>(query, key, value, {decay, memory.heads()}, std::pow(T(memory.key_dim()), T(-0.5)), memory,
                           output, workspace);
  }
};

const GoldenRegistration<LightningAttentionGolden> core_golden{"lightning_attention", "core"};
const MixerRegistration<CoreTests<LightningAttention>> mixer;

}  // namespace
}  // namespace seqmix::test
