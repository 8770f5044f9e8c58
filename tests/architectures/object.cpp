// Compiled once for every instruction set, under a different function name each time.
#include "object.hpp"

#include <seqmix/core/workspace.hpp>
#include <seqmix/simd/batch.hpp>

#define SEQMIX_TEST_TEXT_OF(name) #name
#define SEQMIX_TEST_TEXT(name) SEQMIX_TEST_TEXT_OF(name)

Outcome SEQMIX_TEST_OBJECT() {
  using namespace seqmix;
  Outcome outcome;
  outcome.instruction_set = SEQMIX_TEST_TEXT(SEQMIX_ARCH);
  outcome.lanes = int(lanes<float>);
  Workspace workspace;
  const auto frame = workspace.frame();
  const auto input = workspace.take<float>(Index(outcome.values.size()));
  for (std::size_t i = 0; i < input.size(); ++i) input[i] = 0.01F * float(i);
  for (Index i = 0; i < Index(input.size()); i += lanes<float>) {
    const auto x = load(input.data() + i);
    store(outcome.values.data() + i, fma(x, x, broadcast(1.0F)));
  }
  return outcome;
}
