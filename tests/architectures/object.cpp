// Compiled once for every instruction set, under a different function name each time.
#include "object.hpp"

#include <seqmix/recurrent/retention.hpp>
#include <seqmix/simd/batch.hpp>

#define SEQMIX_TEST_TEXT_OF(name) #name
#define SEQMIX_TEST_TEXT(name) SEQMIX_TEST_TEXT_OF(name)

Outcome SEQMIX_TEST_OBJECT(seqmix::Sequence<const float> x, seqmix::Sequence<float> y, seqmix::Workspace& workspace) {
  using Mixer = seqmix::Retention<float>;
  const Mixer::Config config{.channels = x.channels(), .heads = 3};
  seqmix::Rng rng(1);
  const Mixer mixer(config, Mixer::random_weights(config, rng));

  // Both orders of evaluation: a piece at once, and the rest token by token.
  auto state = mixer.initial_state();
  const seqmix::Index piece = x.length() / 2;
  mixer.prefill(state, x.rows(0, piece), y.rows(0, piece), workspace);
  for (seqmix::Index t = piece; t < x.length(); ++t) {
    mixer.step(state, {x.row(t), x.channels()}, {y.row(t), y.channels()}, workspace);
  }
  return {SEQMIX_TEST_TEXT(SEQMIX_ARCH), int(seqmix::lanes<float>)};
}
