// The linear recurrence engine under each kind of decay, and at other head sizes.

#include <seqmix/engine/linear_recurrence.hpp>

#include <string>

#include "support/recurrences.hpp"

namespace seqmix::bench {
namespace {

template <class DecayPolicy, class Readout = readout::AfterUpdate<float>>
void run(const RecurrenceStreams& s, const DecayPolicy& decay, const Readout& readout, Workspace& workspace) {
  linear_recurrence(
      LinearRecurrenceProblem<float, DecayPolicy, Readout>{
          s.query, s.key, s.value, decay, readout, {}, 1.0f, s.memory, s.output},
      workspace);
}

const RecurrenceCore none{
    .call = [](const RecurrenceStreams& s,
               Workspace& workspace) { run(s, decay::None<float>{}, readout::AfterUpdate<float>{}, workspace); },
    .work = no_decay};

const RecurrenceCore per_head{
    .call =
        [](const RecurrenceStreams& s, Workspace& workspace) {
          run(s, decay::PerHead<float>{s.head_log_decay}, readout::AfterUpdate<float>{}, workspace);
        },
    .work = constant_decay,
    .log_decay = [](const RecurrenceStreams& s, Index, Index h, Index) { return double(s.head_log_decay[h]); }};

const RecurrenceCore per_channel{
    .call =
        [](const RecurrenceStreams& s, Workspace& workspace) {
          run(s, decay::PerChannel<float>{s.channel_log_decay}, readout::AfterUpdate<float>{}, workspace);
        },
    .work = constant_decay,
    .log_decay = [](const RecurrenceStreams& s, Index, Index h, Index i) { return double(s.channel_log_decay(h, i)); }};

/// A head's decay at a token is that of its first channel.
const RecurrenceCore per_token{
    .call =
        [](const RecurrenceStreams& s, Workspace& workspace) {
          const auto frame = workspace.frame();
          const auto gates = workspace.sequence<float>(s.output.length(), s.output.heads());
          for (Index t = 0; t < gates.length(); ++t) {
            for (Index h = 0; h < gates.channels(); ++h) gates(t, h) = s.log_decay(t, h, 0);
          }
          run(s, decay::PerToken<float>{gates}, readout::AfterUpdate<float>{}, workspace);
        },
    .work = {4, 1.0 / 64, 4},
    .log_decay = [](const RecurrenceStreams& s, Index t, Index h, Index) { return double(s.log_decay(t, h, 0)); }};

const RecurrenceCore per_token_channel{
    .call =
        [](const RecurrenceStreams& s, Workspace& workspace) {
          run(s, decay::PerTokenChannel<float>{s.log_decay}, readout::AfterUpdate<float>{}, workspace);
        },
    .work = channel_decay,
    .log_decay = [](const RecurrenceStreams& s, Index t, Index h, Index i) { return double(s.log_decay(t, h, i)); }};

const RecurrenceCore per_token_channel_bonus{
    .call =
        [](const RecurrenceStreams& s, Workspace& workspace) {
          run(s, decay::PerTokenChannel<float>{s.log_decay}, readout::BeforeUpdate<float>{s.bonus}, workspace);
        },
    .work = channel_decay,
    .log_decay = [](const RecurrenceStreams& s, Index t, Index h, Index i) { return double(s.log_decay(t, h, i)); },
    .bonus = true};

/// An order of evaluation, whichever linear_recurrence would take.
template <RecurrenceOrder order, class DecayPolicy, class Delta = delta::None<float>>
void run_in_order(const RecurrenceStreams& s, const DecayPolicy& decay, Workspace& workspace, const Delta& delta = {}) {
  LinearRecurrenceProblem<float, DecayPolicy, readout::AfterUpdate<float>, normalizer::None<float>, Delta> problem{
      s.query, s.key, s.value, decay, {}, {}, 1.0f, s.memory, s.output};
  problem.delta = delta;
  linear_recurrence_panels<order>(problem, workspace);
}

double log_decay_of_channel(const RecurrenceStreams& s, Index t, Index h, Index i) {
  return double(s.log_decay(t, h, i));
}

template <RecurrenceOrder order>
const RecurrenceCore none_in_order{
    .call = [](const RecurrenceStreams& s,
               Workspace& workspace) { run_in_order<order>(s, decay::None<float>{}, workspace); },
    .work = no_decay};

template <RecurrenceOrder order>
const RecurrenceCore per_head_in_order{
    .call = [](const RecurrenceStreams& s,
               Workspace& workspace) { run_in_order<order>(s, decay::PerHead<float>{s.head_log_decay}, workspace); },
    .work = constant_decay,
    .log_decay = [](const RecurrenceStreams& s, Index, Index h, Index) { return double(s.head_log_decay[h]); }};

template <RecurrenceOrder order>
const RecurrenceCore per_token_channel_in_order{
    .call = [](const RecurrenceStreams& s,
               Workspace& workspace) { run_in_order<order>(s, decay::PerTokenChannel<float>{s.log_decay}, workspace); },
    .work = channel_decay,
    .log_decay = log_decay_of_channel};

template <RecurrenceOrder order>
const RecurrenceCore delta_rule_in_order{.call =
                                             [](const RecurrenceStreams& s, Workspace& workspace) {
                                               run_in_order<order>(s, decay::None<float>{}, workspace,
                                                                   delta::Rule<float>{s.beta});
                                             },
                                         .work = no_decay_delta,
                                         .removal = Removal::delta_rule};

template <RecurrenceOrder order>
const RecurrenceCore decayed_delta_rule_in_order{
    .call =
        [](const RecurrenceStreams& s, Workspace& workspace) {
          run_in_order<order>(s, decay::PerTokenChannel<float>{s.log_decay}, workspace, delta::Rule<float>{s.beta});
        },
    .work = channel_decay_delta,
    .log_decay = log_decay_of_channel,
    .removal = Removal::delta_rule};

template <RecurrenceOrder order>
const RecurrenceCore low_rank_in_order{.call =
                                           [](const RecurrenceStreams& s, Workspace& workspace) {
                                             run_in_order<order>(s, decay::PerTokenChannel<float>{s.log_decay},
                                                                 workspace, delta::LowRank<float>{s.a, s.b});
                                           },
                                       .work = channel_decay_low_rank,
                                       .log_decay = log_decay_of_channel,
                                       .removal = Removal::low_rank};

void add_variant(const std::string& name, const RecurrenceCore& core, const RecurrenceShape& shape) {
  const std::string size = "/head_dim:" + std::to_string(shape.key_dim) + "x" + std::to_string(shape.value_dim);
  add_benchmark("kernel/linear_recurrence/" + name + "/length:2048" + size,
                [=](int threads) { return recurrence(core, shape, 2048, 0, threads); });
}

/// Both orders of everything, to see which of them linear_recurrence should take.
template <RecurrenceOrder order>
void add_in_order(const std::string& name, const RecurrenceShape& shape) {
  add_variant(name + "/none", none_in_order<order>, shape);
  add_variant(name + "/per_head", per_head_in_order<order>, shape);
  add_variant(name + "/per_token_channel", per_token_channel_in_order<order>, shape);
  add_variant(name + "/delta_rule", delta_rule_in_order<order>, shape);
  add_variant(name + "/per_token_channel_delta_rule", decayed_delta_rule_in_order<order>, shape);
  add_variant(name + "/per_token_channel_low_rank", low_rank_in_order<order>, shape);
}

const bool registered = [] {
  add_variant("none", none, {});
  add_variant("per_head", per_head, {});
  add_variant("per_channel", per_channel, {});
  add_variant("per_token", per_token, {});
  add_variant("per_token_channel", per_token_channel, {});
  add_variant("per_token_channel_bonus", per_token_channel_bonus, {});
  add_variant("per_head", per_head, {.heads = 12, .key_dim = 64, .value_dim = 128});
  add_variant("per_head", per_head, {.heads = 6, .key_dim = 128, .value_dim = 128});
  add_variant("per_token_channel", per_token_channel, {.heads = 6, .key_dim = 128, .value_dim = 128});
  // One long sequence of one head uses both threads as well.
  const RecurrenceShape one_head{.heads = 1, .key_dim = 128, .value_dim = 128};
  add_variant("one_head/per_token_channel", per_token_channel, one_head);
  add_variant("one_head/delta_rule", delta_rule_in_order<RecurrenceOrder::fused>, one_head);
  for (const RecurrenceShape& shape :
       {RecurrenceShape{}, RecurrenceShape{.heads = 6, .key_dim = 128, .value_dim = 128}}) {
    add_in_order<RecurrenceOrder::fused>("fused", shape);
    add_in_order<RecurrenceOrder::chunked>("chunked", shape);
  }
  return true;
}();

}  // namespace
}  // namespace seqmix::bench
