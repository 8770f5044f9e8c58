// Benchmarks of core functions with a state: a whole sequence, and a single token after others.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>

#include "support/benchmark.hpp"

namespace seqmix::bench {

/// Registers core/<name>/length:... for these lengths. make(tokens, threads) gives a shared pointer to what the core runs
/// on, in the state of no tokens, with members
///
///   void run(Index begin, Index count);      runs these tokens, on from the state
///   void clear();                            to the state of no tokens
///   void check(Index begin, Index length);   throws WrongResult unless the output of begin .. length - 1 is right
///   Index state_bytes() const;
///   Workspace workspace;
///
/// whole(length) is the minimum work of a sequence. Returns true.
template <class Make, class WorkOf>
bool add_core_sequences(const std::string& name, const Make& make, const WorkOf& whole,
                        std::initializer_list<Index> lengths = {2048, 8192}) {
  for (const Index length : lengths) {
    if (length > effort().longest_core) continue;
    add_benchmark("core/" + name + "/length:" + std::to_string(length), [=](int threads) {
      const auto data = make(length, threads);
      Case result;
      result.prepare = [=] { data->clear(); };
      result.run = [=] { data->run(0, length); };
      result.check = [=] { data->check(0, length); };
      result.work = whole(length);
      result.tokens = length;
      result.state_bytes = data->state_bytes();
      result.workspace_bytes = [data] { return data->workspace.capacity_bytes(); };
      return result;
    });
  }
  return true;
}

/// Registers core_step/<name>/context:..., one token after that many. `step` is the minimum work of a token; make as above.
template <class Make>
bool add_core_step(const std::string& name, const Make& make, const Work& step, Index context = 2048) {
  constexpr Index spare = 16;  // steps go round the spare tokens, which follow the context
  add_benchmark("core_step/" + name + "/context:" + std::to_string(context), [=](int threads) {
    const auto data = make(context + spare, threads);
    data->run(0, context);
    const auto steps = std::make_shared<Index>(0);
    Case result;
    result.run = [=] { data->run(context + (*steps)++ % spare, 1); };
    result.check = [=] { data->check(context, context + 1); };
    result.work = step;
    result.tokens = 1;
    result.state_bytes = data->state_bytes();
    result.workspace_bytes = [data] { return data->workspace.capacity_bytes(); };
    return result;
  });
  return true;
}

/// Both.
template <class Make, class WorkOf>
bool add_core(const std::string& name, const Make& make, const WorkOf& whole, const Work& step) {
  return add_core_sequences(name, make, whole) && add_core_step(name, make, step);
}

}  // namespace seqmix::bench
