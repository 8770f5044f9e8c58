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
template <RecurrenceOrder order>
const RecurrenceCore per_head_in_order{
    .call =
        [](const RecurrenceStreams& s, Workspace& workspace) {
          linear_recurrence_panels<order>(
              LinearRecurrenceProblem<float, decay::PerHead<float>>{
                  s.query, s.key, s.value, {s.head_log_decay}, {}, {}, 1.0f, s.memory, s.output},
              workspace);
        },
    .work = constant_decay,
    .log_decay = [](const RecurrenceStreams& s, Index, Index h, Index) { return double(s.head_log_decay[h]); }};

template <RecurrenceOrder order>
const RecurrenceCore per_token_channel_in_order{
    .call =
        [](const RecurrenceStreams& s, Workspace& workspace) {
          linear_recurrence_panels<order>(
              LinearRecurrenceProblem<float, decay::PerTokenChannel<float>>{
                  s.query, s.key, s.value, {s.log_decay}, {}, {}, 1.0f, s.memory, s.output},
              workspace);
        },
    .work = channel_decay,
    .log_decay = [](const RecurrenceStreams& s, Index t, Index h, Index i) { return double(s.log_decay(t, h, i)); }};

void add_variant(const std::string& name, const RecurrenceCore& core, const RecurrenceShape& shape) {
  const std::string size = "/head_dim:" + std::to_string(shape.key_dim) + "x" + std::to_string(shape.value_dim);
  add_benchmark("kernel/linear_recurrence/" + name + "/length:2048" + size,
                [=](int threads) { return recurrence(core, shape, 2048, 0, threads); });
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
  add_variant("per_head_chunked", per_head_in_order<RecurrenceOrder::chunked>, {});
  add_variant("per_token_channel_chunked", per_token_channel_in_order<RecurrenceOrder::chunked>, {});
  return true;
}();

}  // namespace
}  // namespace seqmix::bench
